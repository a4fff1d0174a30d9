"""Writing and publishing the sizes of a run: extraction, formats, model cards, and repositories on the Hub."""
