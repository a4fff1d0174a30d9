"""How good the features of a model are, and what a model costs."""
