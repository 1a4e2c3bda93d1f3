"""What is done with a model and a task: prepare.py (data read and encoded), divide.py (one file as train, dev and
test), evaluate.py (a split scored), predict.py (a run folder as a model). Imports everything above it, of the tasks
only what a task is and their table.
"""
