"""The gradient as torch derives it from the forward of core/model.py."""
from collections.abc import Mapping

import torch
from torch import Tensor

from minibert.core.batch import Batch
from minibert.core.dropout import Masks
from minibert.core.model import Model
from minibert.core.objective import Loss
from minibert.core.optim import AdamW
from minibert.core.precision import autocast


class Autograd:
    """--gradients autograd."""
    adamw: type[AdamW] = AdamW

    def __init__(self, model: Model, precision: str):
        self.model, self.precision = model, precision

    @torch.enable_grad()
    def __call__(self, criterion: Loss, batch: Batch, masks: Masks | None, factors: Mapping[str, float],
                 ) -> dict[str, Tensor]:
        """Add the gradient of Σ factor · sum of losses to every parameter's; -> the sums."""
        with autocast(self.precision, batch.ids.device):
            scores = self.model(batch, masks)
        sums = criterion.loss(scores, batch)

        objective: Tensor = sum(factors[term] * sums[term] for term in sums)  # [AMP-1]
        objective.backward()
        return {term: x.detach() for term, x in sums.items()}
