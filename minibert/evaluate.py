"""Features -> scores -> text-level predictions -> metrics; used by train.py and the command line."""
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from minibert.batching import Feature, collate
from minibert.fast import Scorer
from minibert.features import Features, join, pack, spill
from minibert.model import Model
from minibert.processes import ALONE, Processes

CELLS = 2048                                       # pieces a batch of inference, padding included: more leave the cache
PART = 4096                                        # examples whose features are objects at the same time


def encode_all(task, examples: Sequence[Any], tokenizer, max_pieces: int, overlap: int) -> Features:
    """All features of all examples, in order; many at a time where the task's read() made the examples compact."""
    if isinstance(examples, getattr(task, "Examples", ())):
        parts = task.encode_many(examples, tokenizer, max_pieces, overlap)
        return spill(parts) if getattr(task, "on_disk", False) else join(parts)
    return join(pack(f for i in range(start, min(start + PART, len(examples)))
                     for f in task.encode(i, examples[i], tokenizer, max_pieces, overlap))
                for start in range(0, len(examples), PART))


def batches_by_length(features: Sequence[Feature]) -> Iterator[list[int]]:
    """Numbers of features, longest first, so many at a time that a batch has about CELLS cells."""
    lengths = [len(f.ids) for f in features]
    order = sorted(range(len(features)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        stop = start + max(1, CELLS // lengths[order[start]])
        yield order[start:stop]
        start = stop


@torch.inference_mode()
def score_features(model: Model, task, features: Sequence[Feature], precision: str = "fp32", layout: str = "rectangle",
                   ) -> list[np.ndarray]:
    """The head's scores of every feature, float32 [M,K] each, in the order of `features`; dropout is off."""
    device = next(model.parameters()).device
    result: list[np.ndarray] = [np.zeros(0)] * len(features)
    scorer, one_a_row = Scorer(model, precision), getattr(model.head, "one_a_row", False)
    for numbers in batches_by_length(features):
        chosen = [features[i] for i in numbers]
        batch = collate(chosen, layout, prefix=task.layout(chosen), device=device)
        scores = scorer(batch).float().cpu().numpy()
        ends = np.cumsum([1 if one_a_row else len(f.picks) for f in chosen])[:-1]
        for i, rows in zip(numbers, np.split(scores, ends), strict=True):
            result[i] = rows
    return result


class Look:
    """look(features) -> their scores, of a model in some precision; every process does its share and has all."""

    def __init__(self, model: Model, task, precision: str, processes: Processes):
        self.model, self.task, self.precision, self.processes = model, task, precision, processes

    def __call__(self, features: Sequence[Feature]) -> list[np.ndarray]:
        """As score_features()."""
        rank, size = self.processes.rank, self.processes.size
        shares = [range(r, len(features), size) for r in range(size)]
        mine = score_features(self.model, self.task, [features[i] for i in shares[rank]], self.precision)
        scores: list[np.ndarray] = [np.zeros(0)] * len(features)
        for share, arrays in zip(shares, self.processes.gather_arrays(mine), strict=True):
            for i, rows in zip(share, arrays, strict=True):
                scores[i] = rows
        return scores


def predict_examples(model: Model, task, examples: Sequence[Any], features: Sequence[Feature],
                     precision: str = "fp32", processes: Processes = ALONE) -> list[Any]:
    """One text-level prediction an example, in every process."""
    look = Look(model, task, precision, processes)
    if hasattr(task, "infer"):
        return task.infer(look, examples, features)
    return task.decode(examples, features, look(features))


def at(scores: dict[str, Any], path: str) -> float:
    """The number at a dotted path, such as "entity.f1"."""
    for key in path.split("."):
        scores = scores[key]
    return scores
