"""The gradient by the formulas of core/ops.py, without autograd: the labelled lines of docs/ are what runs."""
from collections.abc import Mapping

from torch import Tensor

from minibert.core.batch import Batch
from minibert.core.byhand import reached_gradients
from minibert.core.dropout import Masks
from minibert.core.model import Model
from minibert.core.objective import Loss
from minibert.core.optim import AdamW
from minibert.core.precision import autocast


class ByHand:
    """--gradients by-hand."""
    adamw: type[AdamW] = AdamW

    def __init__(self, model: Model, precision: str):
        self.model, self.precision = model, precision

    def __call__(self, criterion: Loss, batch: Batch, masks: Masks | None, factors: Mapping[str, float],
                 ) -> dict[str, Tensor]:
        """Add the gradient of Σ factor · sum of losses to every parameter's; -> the sums."""
        with autocast(self.precision, batch.ids.device):
            sums, gradients = reached_gradients(self.model, batch, masks, criterion, factors)
        for name, p in self.model.named_parameters():
            if name in gradients:
                p.grad = gradients[name] if p.grad is None else p.grad.add_(gradients[name])  # [ACC-4]
        return sums
