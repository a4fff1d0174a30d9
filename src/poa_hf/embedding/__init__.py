"""Features of all images of a dataset as files, and what is nearest to an image among them.

`rows` reads images in the dataset's order, `features` computes batches of them, `files` and `manifest` say what a
folder of embeddings holds, `embed` and `writer` write one and `embeddings` reads it. `nearest` compares images, and
`page` shows them with `thumbnails`.
"""
