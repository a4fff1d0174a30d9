"""The report on a run: `page` assembles it from the sections in `numbers`, `pictures` and `sizes`."""
