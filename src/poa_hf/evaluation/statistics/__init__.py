"""How sure a number is, and whether two models differ."""
