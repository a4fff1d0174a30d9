"""The images of an evaluation: rows of splits, labels and masks, held-out parts, and images that coincide."""
