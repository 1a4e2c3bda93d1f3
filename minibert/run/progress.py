"""Where a run stands, and how far it goes."""
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from minibert.errors import MinibertError
from minibert.files import Json
from minibert.scores.tables import Scores
from minibert.settings import TrainConfig
from minibert.tasks.base import Task


@dataclass(frozen=True)
class Plan:
    """How far a run goes, and what is scored."""
    an_epoch: int                                  # updates of an epoch, of all, and of those that warm up
    total: int
    warmup: int
    scored: list[str]                              # the splits that are scored
    chosen_by: tuple[str, str]                     # the dev score that chooses an epoch, and "max" or "min"
    patience: int                                  # epochs without a better one, after which a run ends; 0: never

    @classmethod
    def of(cls, settings: TrainConfig, task: Task, rows: int, splits: Mapping[str, Sequence[object]]) -> "Plan":
        """The plan for a training set of so many rows. Raises MinibertError for a score that nothing can give."""
        an_epoch = -(-rows // settings.batch_size)
        total = settings.max_steps or settings.epochs * an_epoch
        wanted = {"all": ("dev", "test"), "dev": ("dev",), "none": ()}[settings.evaluate]
        scored = [split for split in wanted if split in splits]
        for name, value in (("patience", settings.patience), ("best", settings.best)):
            if value and "dev" not in scored:
                raise MinibertError(f"--{name} is {value}; {settings.data} has no dev split to score")
        return cls(an_epoch, total, int(settings.warmup * total), scored, chosen_by(task, settings.best),
                   settings.patience)


def chosen_by(task: Task, name: str | None) -> tuple[str, str]:
    """(score, "max" or "min") that selects a checkpoint. Raises MinibertError for a score that this task has not."""
    known = dict([task.best]) | task.also_best
    if name is not None and name not in known:
        raise MinibertError(f"--best is {name!r}; --task {task.name} can choose by {', '.join(known)}")
    return (name, known[name]) if name else task.best


@dataclass
class Progress:
    """Where a run stands. With weights, optimizer and scaler it is all that a checkpoint has to hold: batches and
    dropout masks are functions of the seed and of these numbers.
    """
    step: int = 0                                  # updates done
    scored: int = 0                                # updates done when an epoch was last scored and perhaps saved
    epoch: int = 0                                 # epochs scored
    better_epoch: int = 0                          # the last that was better than all before
    saved: int = 0                                 # the update whose weights are the run folder's, and their SHA-256
    saved_sha256: str = ""
    over: bool = False                             # patience is at its end
    seconds: float = 0.0                           # of all updates, and their pieces
    pieces: int = 0
    losses: int = 0                                # of this epoch so far, and their sum
    loss_sum: float = 0.0
    best: tuple[float, Scores] | None = None          # value, scores on dev
    before: dict[str, Scores] = field(default_factory=dict)                       # scores of the untrained model

    @classmethod
    def read(cls, saved: Json) -> "Progress":
        """What dataclasses.asdict() gave, back from JSON. Raises KeyError, TypeError, ValueError for anything else."""
        for f in dataclasses.fields(cls):
            if f.type in (int, bool, float, str):
                expect(saved[f.name], f.type, f.name)
        if saved["best"] is not None:
            for value, kind in zip(saved["best"], (float, dict), strict=True):
                expect(value, kind, "best")
        for scores in saved["before"].values():
            expect(scores, dict, "before")
        return cls(**saved)

    def epoch_in_hand(self, plan: Plan) -> int:
        """The number, from 1, of the epoch that the next update belongs to, or whose end was not yet scored."""
        return (self.step - (self.step > self.scored)) // plan.an_epoch + 1

    def done(self, plan: Plan) -> bool:
        """Whether all updates are made and scored, or none is worth making any more."""
        return self.scored == self.step and (self.step >= plan.total or (self.over and plan.patience > 0))

    def count(self, loss: float, seconds: float, pieces: int) -> None:
        """One update more."""
        self.step, self.seconds, self.pieces = self.step + 1, self.seconds + seconds, self.pieces + pieces
        self.losses, self.loss_sum = self.losses + 1, self.loss_sum + loss

    def end_epoch(self, epoch: int, scores: Scores | None, value: float, plan: Plan) -> tuple[bool, bool]:
        """The epoch is at its end, dev scored `value` (`scores` None: it is not) -> (better than all, or as good).

        Of equals the longer trained is kept, but patience is not begun anew.
        """
        better = as_good = True
        if scores is not None:
            direction = 1 if plan.chosen_by[1] == "max" else -1
            better = self.best is None or direction * value > direction * self.best[0]
            as_good = better or (self.best is not None and value == self.best[0])
            self.best = (value, scores) if as_good else self.best
        self.epoch, self.scored, self.losses, self.loss_sum = epoch, self.step, 0, 0.0
        self.better_epoch = epoch if better else self.better_epoch
        self.over = bool(plan.patience) and epoch - self.better_epoch >= plan.patience
        return better, as_good


def expect(value: object, kind: type, what: str) -> None:
    """Raises TypeError unless `value` is of this kind, and where it counts something at least 0."""
    if type(value) is not kind or (kind is int and cast(int, value) < 0):
        raise TypeError(f"{what} is {value!r}")
