"""The gradients of core/byhand.py in as few passes as torch allows.

Read engine.py first (what is called once a micro-batch), then kernels.py (the operations of a block), linear.py (the
three products of a linear map), adamw.py (the update in one pass), memory.py (what the C library is told).
docs/performance.md says what each piece is worth.
"""
