"""The folder of a run has one owner.

`layout` names its files, `atomic` and `json_lines` write them, `checkpoints` says which are complete, `load` and `hub`
load the model, `facts` reads what the run has written down, `evaluations` keeps its records, `metrics` names what was
measured, and `comparison` decides which number counts.
"""
