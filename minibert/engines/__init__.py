"""Three ways to the gradient of one micro-batch, with one signature and each with its own state.

autograd.py leaves it to torch, by_hand.py takes the formulas of core/ops.py, and fast/, the default, runs the same
chain of core/byhand.py on fused kernels. Imports core.
"""
from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from minibert.core.batch import Batch
from minibert.core.dropout import Masks
from minibert.core.model import Model
from minibert.core.objective import Loss
from minibert.core.optim import AdamW
from minibert.engines.autograd import Autograd
from minibert.engines.by_hand import ByHand
from minibert.engines.fast.engine import Fast


class Engine(Protocol):
    """Made once a run, from the model and the number format; called once a micro-batch."""
    model: Model
    precision: str
    adamw: type[AdamW]                             # the form of AdamW that reads the gradients it leaves

    def __init__(self, model: Model, precision: str):
        """`precision`: fp32, bf16 or fp16."""

    def __call__(self, criterion: Loss, batch: Batch, masks: Masks | None, factors: Mapping[str, float],
                 ) -> dict[str, Tensor]:
        """Add the gradient of Σ factor · sum of losses to every parameter's .grad; -> {term: sum of losses}.

        `criterion` says what the scores lose: the task, or a coupled.KnownLoss. Outside any autocast.
        """


ENGINES: dict[str, type[Engine]] = {"fast": Fast, "by-hand": ByHand, "autograd": Autograd}
