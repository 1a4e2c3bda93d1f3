"""All that a loop needs, ready to begin."""
import dataclasses

import torch

from minibert.checkpoints.weights import Report
from minibert.core.model import Model
from minibert.core.optim import Optimizer
from minibert.core.precision import LossScaler
from minibert.data.features import Features
from minibert.data.tokenizer import Tokenizer
from minibert.engines import Engine
from minibert.files import Json
from minibert.run.processes import Processes
from minibert.run.progress import Plan
from minibert.settings import TrainConfig
from minibert.tasks.base import Task, TaskOptions
from minibert.use.prepare import Splits


@dataclasses.dataclass
class Training:
    """Made by train.set_up(); what a run reads, changes, saves."""
    settings: TrainConfig
    options: TaskOptions                           # the task's own
    task: Task
    processes: Processes
    device: torch.device
    examples: Splits                               # of each split
    features: dict[str, Features]
    model: Model
    tokenizer: Tokenizer
    loaded: Report                                 # what became of every tensor of the checkpoint
    engine: Engine
    optimizer: Optimizer
    scaler: LossScaler
    plan: Plan

    @property
    def record(self) -> Json:
        """Every resolved setting, as train.json has them; the run folder is not known yet."""
        best = None if self.plan.chosen_by == self.task.best else self.settings.best         # one run to --resume
        divided = {"file_sha256": self.examples.file_sha256} if self.settings.split else {}
        return {**dataclasses.asdict(self.settings), **dataclasses.asdict(self.options), **divided, "best": best,
                "updates": self.plan.total, "threads": torch.get_num_threads(), "processes": self.processes.size,
                "device": self.device.type, "torch": torch.__version__}
