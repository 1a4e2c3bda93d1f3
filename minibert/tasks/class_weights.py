"""Class weights: a row, of a text or a word, counts by how rare its label is in training."""
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from minibert.errors import MinibertError


def balanced(counts: Mapping[str, int], labels: Sequence[str]) -> Tensor:
    """float64 [K], the weight of each label: K of them occur in training, in n of N rows each.

    A label that does not occur weighs 1: no row of training has it, so nothing is multiplied by that.
    """
    n = torch.tensor([counts.get(label, 0) for label in labels], dtype=torch.float64)
    N, K = n.sum(), (n > 0).sum()
    weights = N / (K * n)                                                     # [SOFT-4]
    return torch.where(n > 0, weights, 1.0)


def recalled(learnt: Mapping[str, object], labels: int) -> Tensor:
    """float64 [labels], the weights that a run has kept, ones if it has none. Raises MinibertError for others."""
    weights = learnt.get("class_weights", [1.0] * labels)
    if not isinstance(weights, list) or len(weights) != labels or not all(
            type(w) is float and 0 < w < math.inf for w in weights):
        raise MinibertError(f"the class weights are {str(weights)[:60]}; expected a positive number for each of "
                            f"{labels} labels")
    return torch.tensor(weights, dtype=torch.float64)


def weighted_targets(labels: Tensor, weights: Tensor, like: Tensor) -> Tensor:
    """Labels [M], -1 for none, weights [K] -> [M,K]: the weight of each label in its place, in the format of `like`."""
    y = labels.clamp(min=0)
    hard = nn.functional.one_hot(y, len(weights)).to(like.dtype)
    return hard * (weights.to(like)[y] * (labels >= 0))[:, None]


def total_weight(labels: Tensor, weights: Tensor) -> float:
    """The sum of the weights of labels [M], -1 for none."""
    known = labels[labels >= 0].cpu()
    return float(weights[known].sum())                                        # [SOFT-5]
