"""From text to rows of numbers: text.py (words), wordpiece.py (files of a vocabulary), tokenizer.py (pieces), rows.py
(windows, pairs), order.py (batches).

Then, for data by the million: features.py (rows in flat arrays), wordlist.py (many words in little memory), cache.py
(arrays kept on the disk), tables.py (files as people have them), records.py (those that name their columns). Imports
core, for what a feature is.
"""
