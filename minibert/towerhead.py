"""The head of texts that are read apart: a vector for each, and where two are read together, whether they fit."""
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minibert import ops
from minibert.batching import Batch
from minibert.config import BertConfig
from minibert.layout import moved
from minibert.pooled import PooledHead


class TowerHead(PooledHead):
    """A row's vector, the mean of its picks at length 1, and in the last column the score of a pair."""
    one_a_row = True

    def __init__(self, config: BertConfig):
        super().__init__(config, 1)

    def forward(self, hidden: Tensor, batch: Batch, masks: Any = None) -> Tensor:
        """[P,H] -> [B,H+1]: H numbers of the vector, one score."""
        row, first = rows_of_picks(batch)
        mean, _ = ops.row_mean_forward(ops.at_least_fp32(hidden.index_select(0, batch.picks)), row, len(first))
        score = super().forward(hidden, OnlyPicks(batch.picks[first]), masks)
        return torch.cat([ops.unit_forward(mean)[0], score.to(mean.dtype)], 1)

    def forward_by_hand(self, hidden: Tensor, batch: Batch, masks: Any = None) -> tuple[Tensor, Any]:
        """forward() with what backward_by_hand needs: [P,H] -> [B,H+1], cache."""
        row, first = rows_of_picks(batch)
        picked, lookup = ops.embedding_forward(batch.picks, hidden)
        mean, means = ops.row_mean_forward(ops.at_least_fp32(picked), row, len(first))
        vector, unit = ops.unit_forward(mean)
        score, pooled = super().forward_by_hand(hidden, OnlyPicks(batch.picks[first]), masks)
        return torch.cat([vector, score.to(mean.dtype)], 1), (lookup, picked.dtype, means, unit, score.dtype, pooled)

    def backward_by_hand(self, dscores: Tensor, cache: Any) -> tuple[Tensor, list[tuple[nn.Parameter, Tensor]]]:
        """[B,H+1] -> dhidden [P,H], 0 but at the picks, and (parameter, gradient) pairs."""
        lookup, dtype, means, unit, score_dtype, pooled = cache
        dmean = ops.unit_backward(dscores[:, :-1], unit)
        dhidden = ops.embedding_backward(ops.row_mean_backward(dmean, means).to(dtype), lookup)
        dfirst, pairs = super().backward_by_hand(dscores[:, -1:].to(score_dtype), pooled)
        return dhidden + dfirst, pairs


@dataclass(frozen=True)
class OnlyPicks:
    """What the head of a pair reads of a batch."""
    picks: Tensor


def rows_of_picks(batch: Batch) -> tuple[Tensor, Tensor]:
    """int64: the row of each pick [M]; the first pick of each row [B]."""
    counts = np.array([len(f.picks) for f in batch.features])
    row = np.repeat(np.arange(len(counts)), counts)
    return moved(torch.from_numpy(row), batch.picks.device), moved(torch.from_numpy(np.cumsum(counts) - counts),
                                                                   batch.picks.device)
