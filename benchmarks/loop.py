"""One update at a time, as the loop of train.py makes it, for benchmarks that want no run folder."""
from functools import partial

import numpy as np

import train
from minibert.core.adversarial import derivation
from minibert.core.batch import Batch
from minibert.core.optim import lr_at
from minibert.data.order import epoch_batches
from minibert.run.training import Training


class Loop:
    """The updates of what train.set_up() made ready. dataclasses.replace() gives it another engine or other rows."""

    def __init__(self, t: Training):
        self.t, self.step = t, 0
        self.derive = derivation(t.model, t.settings.adversarial, t.processes.first)

    def order(self, epoch: int) -> list[np.ndarray]:
        """The numbers of the rows of each update of an epoch."""
        s = self.t.settings
        return epoch_batches(self.t.features["train"].lengths, s.batch_size, s.seed, epoch)

    def batches(self, numbers: np.ndarray, epoch: int = 1) -> list[Batch]:
        """The micro-batches of an update."""
        t = self.t
        return train.micro_batches(t.features["train"], t.processes.share(numbers), t.task, t.settings, t.tokenizer.pad,
                                   t.device, epoch)

    def update(self, batches: list[Batch]) -> tuple[float, float, float]:
        """Gradient, clip, step -> (loss, gradient norm, learning rate)."""
        t = self.t
        self.step += 1
        gradient = partial(train.accumulate, t.engine, t.task, batches, t.settings.seed, self.step, t.processes)
        rate = lr_at(self.step, t.plan.total, t.plan.warmup, t.settings.learning_rate)
        return *train.one_update(partial(self.derive, gradient), t.optimizer, t.scaler, rate, t.settings.clip), rate
