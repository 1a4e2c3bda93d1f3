"""Gradients against central differences: the error must shrink as h², not merely be small."""
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

STEPS = [2.0 ** -k for k in range(3, 15)]


def check_gradient(f: Callable[..., Tensor], inputs: Sequence[Tensor], gradients: Sequence[Tensor], seed: int = 0,
                   directions: int = 3) -> None:
    """Assert that `gradients` are those of the float64 scalar f(*inputs), along random directions.

    (f(x+hv) − f(x−hv)) / 2h = ⟨∇f, v⟩ + c·h² + O(h⁴) + rounding of size ε·|f|/h. A right gradient leaves only the last
    two: errors fall by a factor of 4 with every halving of h until rounding takes over, or are rounding from the start
    (f of degree 2 along v, where c = 0). A wrong one leaves an error that does not fall at all.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(directions):
        vs = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in inputs]
        claimed = float(sum((g * v).sum() for g, v in zip(gradients, vs, strict=True)))
        errors, floors = [], []
        for h in STEPS:
            up, down = (float(f(*(x + s * h * v for x, v in zip(inputs, vs, strict=True)))) for s in (1, -1))
            errors.append(abs((up - down) / (2 * h) - claimed))
            floors.append(1e-14 * (abs(up) + abs(down) + abs(claimed) + 1) / h)
        above = [i for i, (e, floor) in enumerate(zip(errors, floors, strict=True)) if e > 20 * floor]
        assert abs(claimed) > 1e-3, f"a slope of {claimed} proves nothing; take other inputs"
        if not above:
            continue                                            # rounding from the start
        assert above[-1] < len(STEPS) - 1, f"the error stays: {errors}"
        falls = [errors[i] / errors[i + 1] for i in above[:-1]][-3:]    # at wide steps the h⁴ term still counts
        assert len(falls) == 3, f"too few steps above rounding: {errors}"
        assert all(3.8 < fall < 4.2 for fall in falls), f"the error does not shrink as h²: {falls}"
