"""What makes a run survive: its folder and lock, checkpoints, signals, several processes, an update that went wrong.

folder.py, checkpoint.py, resume.py, stopping.py, processes.py, replay.py, terminal.py. train.py needs no line of it to
be understood. Imports use and everything above it.
"""
