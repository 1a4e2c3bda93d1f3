"""Micro-batches whose rows belong together: the loss of one row reads the scores of all, wherever they were computed.

In-batch negatives are such a loss: splitting the batch would leave each question fewer wrong answers. So there are two
passes. The first computes the scores of all micro-batches, without a graph, and from all of them the loss and its
gradient by every score. The second goes through the micro-batches as usual, and each is handed its part of that
gradient. The result is the gradient of the whole batch, in the memory of one micro-batch (Gao et al. 2021).
"""
import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from minibert.core import ops
from minibert.core.batch import Batch
from minibert.core.dropout import Masks
from minibert.core.model import Model
from minibert.core.objective import Loss
from minibert.core.precision import autocast


@dataclasses.dataclass
class KnownLoss:
    """The loss of one micro-batch where that of the whole update is known, and so is its gradient here."""
    sums: dict[str, Tensor]
    dscores: dict[str, Tensor]

    def terms(self, batch: Batch) -> None:
        """It is no cross-entropy of these scores alone."""

    def loss(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """{term: its share of the sum}, whose derivative by the scores is the known one."""
        z = ops.at_least_fp32(scores)              # a sum of many terms: in fp16 it might be no number
        along = {term: (z * dterm).sum() for term, dterm in self.dscores.items()}
        return {term: along[term] + (total - along[term].detach()) for term, total in self.sums.items()}

    def loss_backward(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """{term: the known gradient}."""
        return self.dscores


@torch.no_grad()
def known_losses(model: Model, criterion: Loss, batches: Sequence[Batch], masks: Sequence[Masks], precision: str,
                 ) -> list[KnownLoss]:
    """The first pass over the micro-batches of an update, with the dropout masks that the second will have."""
    with autocast(precision, batches[0].ids.device):
        scores = [model(batch, mask) for batch, mask in zip(batches, masks, strict=True)]
    whole = torch.cat(scores)
    together = dataclasses.replace(batches[0], labels=torch.cat([b.labels for b in batches]),
                                   features=[f for b in batches for f in b.features])     # all that a loss reads of it
    sums, dwhole = criterion.loss(whole, together), criterion.loss_backward(whole, together)

    split = {term: dterm.split([len(s) for s in scores]) for term, dterm in dwhole.items()}
    nothing = {term: torch.zeros_like(x) for term, x in sums.items()}          # the sum is told once
    return [KnownLoss(sums if i == 0 else nothing, {term: x[i] for term, x in split.items()})
            for i in range(len(batches))]
