"""Half of every gradient from where the words are a step further uphill (Miyato et al. 2017, for text).

What the model learns must hold around every word, not only at its vector.
"""
import functools
from collections.abc import Callable

import torch

from minibert.core.model import Model

AddGradient = Callable[[float], float]             # adds scale · gradient of an update's objective; -> the objective


def derivation(model: Model, length: float, first: bool) -> Callable[[AddGradient, float], float]:
    """How an update takes its gradient, derive(gradient, scale) -> objective: as it is, or with a step of this length.

    `first`: this process speaks for all.
    """
    if length:
        return functools.partial(adversarial, model, length, first)
    return lambda gradient, scale: gradient(scale)


def adversarial(model: Model, length: float, first: bool, gradient: AddGradient, scale: float) -> float:
    """Half the gradient here and half of it where the word vectors are a step further uphill; -> the objective here.

    The step has the direction of the first gradient. What gradient() finds in .grad is of this process, what it leaves
    there is the sum over all of them.
    """
    w = model.bert.embeddings.word.weight
    loss = gradient(scale / 2)
    assert w.grad is not None                      # settings refuse to freeze them
    g = w.grad if w.grad.is_sparse else w.grad.to_sparse(1)                    # the rows of words that are there
    rows, uphill = g.indices()[0], g.values()      # [rows], [rows,H]

    with torch.no_grad():
        here = w[rows]                             # a copy: adding and subtracting would not bring back every bit
        size = uphill.norm().clamp(min=torch.finfo(uphill.dtype).tiny)         # no direction, no step
        w[rows] = here + uphill * (length / size)                             # [ADV-1]
    if not first:                                  # the first half is there once, not once a process
        for p in model.parameters():
            p.grad = None
    gradient(scale / 2)                                                       # [ADV-2]
    with torch.no_grad():
        w[rows] = here
    return loss
