"""The network and its mathematics: what a mathematician reads, and what everything else stands on.

In this order: config.py (facts of a checkpoint), layout.py and batch.py (where each piece of a batch sits), model.py
(the encoder as torch modules), ops.py (every operation as a formula, its gradient below it), kit.py and byhand.py (a
block on those, forward and backward, and the whole network), heads.py (hidden states to scores), objective.py (what
scores lose), optim.py (the update), dropout.py and precision.py (masks, number formats). Two files more change how an
update takes its gradient: coupled.py (losses of rows that belong together), adversarial.py (a step uphill on the word
vectors). Imports errors and files only.
"""
