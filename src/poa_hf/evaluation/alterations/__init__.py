"""What tasks change in images before a model sees them, to learn how much of the accuracy is left."""
