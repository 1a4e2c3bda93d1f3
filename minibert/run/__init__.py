"""What makes a run survive: its folder and lock, checkpoints, signals, several processes, an update that went wrong.

run.py is the run, training.py and start.py what it is made of, progress.py where it stands, report.py and terminal.py
what it says; folder.py, checkpoint.py, resume.py, stopping.py, processes.py, replay.py. train.py needs no line of it to
be understood. Imports use and everything above it.
"""
