"""A feature is one row for the encoder; a batch is many of them laid out."""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minibert.core.layout import Layout, moved


@dataclass(frozen=True)
class Feature:
    """One row for the encoder: T pieces, of which the head reads M (`picks`)."""
    example: int                                   # number of the example it was cut from
    ids: np.ndarray                                # int64 [T]
    types: np.ndarray                              # int64 [T]
    picks: np.ndarray                              # int64 [M] columns the head reads
    labels: np.ndarray                             # int64 [M]; -1: not known in training, no loss
    about: Any = None                              # what the task has to know of the row: a frozen dataclass of its own


@dataclass(frozen=True)
class Batch:
    """Features laid out for the encoder: P pieces (see Layout), of which the head reads M."""
    ids: Tensor                                    # int64 [P]
    types: Tensor                                  # int64 [P]
    layout: Layout
    picks: Tensor                                  # int64 [M] indices into the P pieces
    labels: Tensor                                 # int64 [M]
    features: Sequence[Feature]

    @property
    def pieces(self) -> int:
        """Live pieces, padding not counted."""
        return sum(len(f.ids) for f in self.features)


def collate(features: Sequence[Feature], kind: str = "rectangle", pad: int = 0, prefix: Tensor | None = None,
            device: torch.device | str = "cpu") -> Batch:
    """Features -> Batch in either kind of Layout; `prefix` [B] as Layout takes it."""
    lengths = np.array([len(f.ids) for f in features])
    T = int(lengths.max())
    live = np.arange(T) < lengths[:, None]                           # [B,T]
    ids, types = np.concatenate([f.ids for f in features]), np.concatenate([f.types for f in features])

    if kind == "rectangle":
        begin = T * np.arange(len(features))
        ids, types = fill(ids, live, pad), fill(types, live, 0)
    else:
        begin = np.cumsum(lengths) - lengths

    picks = np.concatenate([f.picks + b for f, b in zip(features, begin, strict=True)])
    labels = np.concatenate([f.labels for f in features])

    def move(x: np.ndarray) -> Tensor:
        return moved(torch.from_numpy(x), device)

    layout = Layout(torch.from_numpy(live), kind, prefix).to(device)          # made on the host: it counts cells
    return Batch(move(ids), move(types), layout, move(picks), move(labels), features)


def fill(values: np.ndarray, live: np.ndarray, pad: int) -> np.ndarray:
    """[N] values in the live cells of [B,T], `pad` elsewhere -> [B·T]."""
    cells = np.full(live.shape, pad, np.int64)
    cells[live] = values
    return cells.ravel()
