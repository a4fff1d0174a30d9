"""How good the features of a model are: labelled data, features of many sizes in one pass, and tasks that use them."""
