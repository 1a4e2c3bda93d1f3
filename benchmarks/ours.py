"""minibert as a contender: the parts of train.py and evaluate.py, called as they call each other."""
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from contender import SCHEDULE, Contender

import train
from minibert.core.optim import lr_at
from minibert.data.order import epoch_batches
from minibert.errors import MinibertError
from minibert.use.evaluate import score_features


class Minibert(Contender):
    """train.Run with its defaults, or with the arguments in spec["arguments"], which stand last and so win."""

    def __init__(self, spec: dict[str, Any]):
        super().__init__()
        self.run = train.Run(["--data", spec["data"], "--weights", spec["weights"], "--output", spec["output"],
                              "--precision", spec["precision"], "--device", "cpu", "--max-steps", str(SCHEDULE),
                              "--no-before", "--evaluate", "none", *spec["arguments"]])
        self.precision, self.step = self.run.settings.precision, 0

    def batches(self, epoch: int) -> Iterator[np.ndarray]:
        """Numbers of rows, as fit() takes them."""
        s = self.run.settings
        return iter(epoch_batches(self.run.lengths, s.batch_size, s.seed, epoch))

    def update(self, batch: np.ndarray) -> tuple[int, int]:
        """What fit() does for one update."""
        run, s = self.run, self.run.settings
        self.step += 1
        lr = lr_at(self.step, run.total, run.warmup, s.learning_rate)
        batches = train.micro_batches(run.features["train"], batch, run.task, s, run.tokenizer.pad,
                                      torch.device("cpu"))
        with torch.set_grad_enabled(s.gradients == "autograd"):
            train.one_update(run.model, run.task, batches, run.optimizer, run.scaler, s, self.step, lr)
        return sum(b.pieces for b in batches), sum(len(b.ids) for b in batches)

    def score_rows(self, every: int) -> tuple[int, int]:
        """evaluate.score_features, which says nothing of its padding."""
        if "test" not in self.run.features:
            raise MinibertError(f"{self.run.settings.data}: no test file to score; expected test.conll or test.txt")
        features = self.run.features["test"][::every]
        score_features(self.run.model, self.run.task, features, self.precision)
        return sum(len(f.ids) for f in features), 0

    def rows(self) -> dict[str, list[Sequence[int]]]:
        """The pieces of every row."""
        return {split: [f.ids for f in features] for split, features in self.run.features.items()}
