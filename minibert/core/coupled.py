"""Micro-batches whose rows belong together: the loss of one row reads the scores of all, wherever they were computed.

In-batch negatives are such a loss: splitting the batch would leave each question fewer wrong answers. So there are two
passes. The first computes the scores of all micro-batches, without a graph, and from all of them the loss and its
gradient by every score. The second goes through the micro-batches as usual, and each is handed its part of that
gradient. The result is the gradient of the whole batch, in the memory of one micro-batch (Gao et al. 2021).
"""
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minibert.core.batch import Batch
from minibert.core.precision import autocast


class Part:
    """Stands in for the task in one micro-batch: the loss of the whole update is known, and so is its gradient here."""

    def __init__(self, sums: dict[str, Tensor], dscores: dict[str, Tensor]):
        self.sums, self.dscores = sums, dscores

    def terms(self, batch: Batch) -> None:
        """No kernel of an engine is faster: nothing is computed but a product."""

    def loss(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """{term: its share of the sum}, whose derivative by the scores is the known one."""
        along = {term: (scores * dterm.to(scores.dtype)).sum() for term, dterm in self.dscores.items()}
        return {term: along[term] + (total - along[term].detach()) for term, total in self.sums.items()}

    def loss_backward(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """{term: the known gradient}."""
        return self.dscores


@torch.no_grad()
def parts(model: nn.Module, task: Any, batches: Sequence[Batch], masks: Sequence[Any], precision: str) -> list[Part]:
    """The first pass over the micro-batches of an update, with the dropout masks that the second will have."""
    scores = []
    for batch, mask in zip(batches, masks, strict=True):
        with autocast(precision, batch.ids.device):
            scores.append(model(batch, mask))
    whole, together = torch.cat(scores), joined(batches)
    sums, dwhole = task.loss(whole, together), task.loss_backward(whole, together)
    cuts = [len(s) for s in scores]
    split = {term: dterm.split(cuts) for term, dterm in dwhole.items()}
    nothing = {term: torch.zeros_like(x) for term, x in sums.items()}          # the sum is told once
    return [Part(sums if i == 0 else nothing, {term: x[i] for term, x in split.items()}) for i in range(len(batches))]


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch of the rows of all, for a loss, which reads `features` and `labels`."""
    return dataclasses.replace(batches[0], labels=torch.cat([b.labels for b in batches]),
                               features=[f for b in batches for f in b.features])
