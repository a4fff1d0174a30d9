"""Feature vectors of images, of many sizes and altered images in one pass, and what is measured with them."""
