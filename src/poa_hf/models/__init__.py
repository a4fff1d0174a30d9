"""The model families, pre-training, and their registration with transformers' auto classes.

Importing anything from here registers every model first (`auto.py`), so a module of this folder never waits for one
that is still being imported.
"""

from . import auto as auto
