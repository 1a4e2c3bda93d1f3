"""What is trained of the network: freeze.py keeps parts as they were loaded, grow.py adds rows to its tables.

Each way to adapt is a file of its own. Imports core.
"""
