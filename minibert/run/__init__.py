"""What makes a run survive, and what it says; train.py can be understood without a line of it.

start.py (a model to begin with) and training.py (all that a loop needs), then run.py: a run, composed of progress.py
(where it stands, how far it goes), folder.py (its folder, lock and log), resume.py and checkpoint.py (what it keeps on
the disk), stopping.py (signals), report.py and terminal.py (words, exit codes). processes.py is for several of them,
replay.py for an update that went wrong. Imports use and adapt and everything above them.
"""
