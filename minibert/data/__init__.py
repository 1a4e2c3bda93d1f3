"""From text to rows of numbers: text.py (words), wordpiece.py (files of a vocabulary), tokenizer.py (pieces), rows.py
(windows, pairs), order.py (batches).

Then, for data by the million: features.py (rows in flat arrays), wordlist.py (many words in little memory), compact.py
(many records), cache.py (arrays kept on the disk), tables.py (files as people have them), records.py (those that name
their columns), jsontext.py (JSON a value at a time). Imports core, for what a feature is.
"""
