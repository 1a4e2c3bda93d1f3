"""What is done with a model and a task: prepare.py (data read and encoded), evaluate.py (a split scored), predict.py (a
run folder as a model). Imports everything above it, of the tasks only what a task is and their table.
"""
