"""minibert as a contender: the parts of train.py and evaluate.py, called as they call each other."""
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from contender import SCHEDULE, Contender
from loop import Loop

import train
from minibert.errors import MinibertError
from minibert.run.run import Run
from minibert.use.evaluate import score_features


class Minibert(Contender):
    """A run of train.py with its defaults, or with the arguments in spec["arguments"], which stand last and so win."""

    def __init__(self, spec: dict[str, Any]):
        super().__init__()
        self.t = train.set_up(["--data", spec["data"], "--weights", spec["weights"], "--output", spec["output"],
                               "--precision", spec["precision"], "--device", "cpu", "--max-steps", str(SCHEDULE),
                               "--no-before", "--evaluate", "none", "--save-every", "999999999", *spec["arguments"]])
        self.precision, self.loop, self.held = self.t.settings.precision, Loop(self.t), contextlib.ExitStack()
        self.run = self.held.enter_context(Run(self.t, self.never))            # until the process ends

    def never(self, split: str) -> Any:
        """--evaluate none."""
        raise AssertionError(f"nobody asked for scores of {split}")

    def batches(self, epoch: int) -> Iterator[tuple[int, np.ndarray]]:
        """(epoch, numbers of rows), as the loop takes them."""
        return ((epoch, numbers) for numbers in self.loop.order(epoch))

    def update(self, batch: tuple[int, np.ndarray]) -> tuple[int, int]:
        """What the loop does for one update, its line in metrics.jsonl included."""
        epoch, numbers = batch
        batches = self.loop.batches(numbers, epoch)
        with self.run.watch(batches):
            loss, norm, rate = self.loop.update(batches)
        self.run.after_update(loss, norm, rate, batches)
        return sum(b.pieces for b in batches), sum(len(b.ids) for b in batches)

    def score_rows(self, every: int) -> tuple[int, int]:
        """evaluate.score_features, which says nothing of its padding."""
        if "test" not in self.t.features:
            raise MinibertError(f"{self.t.settings.data}: no test file to score; expected test.conll or test.txt")
        features = self.t.features["test"][::every]
        score_features(self.t.model, self.t.task, features, self.precision)
        return sum(len(f.ids) for f in features), 0

    def rows(self) -> dict[str, list[Sequence[int]]]:
        """The pieces of every row."""
        return {split: [f.ids for f in features] for split, features in self.t.features.items()}
