"""A task whose labels are pieces of the vocabulary: what masked words and writing share."""
import math

import numpy as np
import torch
from torch import Tensor

from minibert.core.batch import Batch
from minibert.core.config import BertConfig
from minibert.core.heads import Head, WordHead
from minibert.tasks.base import Example, Prediction, Task

NONE = np.zeros(0, np.int64)


class VocabularyTask(Task[Example, Prediction]):
    """Such a task; no label can be unseen, since every text has pieces of the vocabulary."""
    architecture = "BertForMaskedLM"
    head_parts = ("cls.predictions.", "cls.seq_relationship.")
    unit = "pieces"

    @property
    def outputs(self) -> list[str]:
        """The scores are those of the vocabulary, which has a file of its own."""
        return []

    def head(self, config: BertConfig) -> Head:
        return WordHead(config)

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        return self.targets(batch)


def without(scores: Tensor, absent: np.ndarray) -> Tensor:
    """Scores [M,V] that never choose one of the `absent` columns, which no piece has."""
    return scores.index_fill(1, torch.from_numpy(absent).to(scores.device), -math.inf) if len(absent) else scores
