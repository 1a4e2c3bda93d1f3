"""What scores lose: sums of losses and their gradient. A task says it; so does a part of a loss that rows share."""
from typing import Protocol

from torch import Tensor

from minibert.core.batch import Batch


class Loss(Protocol):
    """Sums, never means: the objective of an update divides them by the counts of the whole update, see train.py."""

    def terms(self, batch: Batch) -> dict[str, Tensor] | None:
        """{term: labels [M], -1 for none, each row in one term at most}, where the loss is the cross-entropy of scores
        for a whole vocabulary, for which engines/fast has a kernel; None: it is something else.
        """

    def loss(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """{term: sum of losses}, in float32."""

    def loss_backward(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """{term: gradient of its sum by the scores}, in the shape of the scores."""
