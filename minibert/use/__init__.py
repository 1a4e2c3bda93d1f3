"""What is done with a model and a task: prepare.py (data read and encoded), divide.py (one file as train, dev and
test), evaluate.py (a split scored), predict.py (a model loaded and asked), published.py (what a model of somebody else
means), offsets.py (characters as other languages count them). Imports everything above it, of the tasks only what a
task is and their table.
"""
