"""The parts of a run, and one update of them, for tests that want no run."""
from collections.abc import Sequence
from pathlib import Path

import train
from minibert.core.adversarial import derivation
from minibert.core.batch import Batch
from minibert.core.model import Model
from minibert.core.optim import Optimizer
from minibert.core.precision import LossScaler
from minibert.data.tokenizer import Tokenizer
from minibert.engines import ENGINES
from minibert.run.processes import ALONE, Processes
from minibert.run.start import start_model
from minibert.settings import TrainConfig, resolve
from minibert.tasks import TASKS
from minibert.tasks.base import Task, TaskOptions


def settings_of(argv: list[str]) -> tuple[TrainConfig, TaskOptions, set[str]]:
    """What train.py would take from these words."""
    return resolve(argv, TASKS, train.DATA, "")


def build_model(folder: Path, task: Task, settings: TrainConfig) -> tuple[Model, Tokenizer]:
    """start_model() without its report."""
    return start_model(folder, task, settings)[:2]


def accumulate(model: Model, task: Task, batches: Sequence[Batch], scale: float, settings: TrainConfig, step: int,
               processes: Processes = ALONE) -> float:
    """train.accumulate() by the engine of the settings."""
    engine = ENGINES[settings.gradients](model, settings.precision)
    return train.accumulate(engine, task, batches, settings.seed, step, processes, scale)


def derive(model: Model, task: Task, batches: Sequence[Batch], scale: float, settings: TrainConfig, step: int,
           processes: Processes = ALONE) -> float:
    """The gradient of an update as the loop takes it, with --adversarial."""
    def gradient(scale: float) -> float:
        return accumulate(model, task, batches, scale, settings, step, processes)
    return derivation(model, settings.adversarial, processes.first)(gradient, scale)


def one_update(model: Model, task: Task, batches: Sequence[Batch], optimizer: Optimizer, scaler: LossScaler,
               settings: TrainConfig, step: int, rate: float) -> tuple[float, float]:
    """train.one_update() with that gradient."""
    def gradient(scale: float) -> float:
        return derive(model, task, batches, scale, settings, step)
    return train.one_update(gradient, optimizer, scaler, rate, settings.clip)
