"""Pictures and charts as matplotlib figures, and the tensors that the pictures show."""
