"""A run: what a loop does besides learning, composed of a folder, a store, a request to stop, a clock and words."""
import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from minibert.core.batch import Batch
from minibert.core.precision import NotFinite
from minibert.errors import MinibertError
from minibert.run import report
from minibert.run.checkpoint import Interval
from minibert.run.folder import RunFolder, claim_folder, lock
from minibert.run.processes import Processes
from minibert.run.progress import Progress
from minibert.run.resume import RunStore
from minibert.run.stopping import Stopped, StopRequest, nothing_begun
from minibert.run.terminal import resume_command
from minibert.run.training import Training
from minibert.scores.tables import score_at
from minibert.settings import TrainConfig
from minibert.use.evaluate import Evaluation


class Run:
    """One run, from a claimed folder to its final scores. `evaluate(split)` scores the model as it is.

        with Run(...) as run:
            for epoch in run.epochs_left(): ...

    Who asks it to stop ends the loop with Stopped, after the update in hand; the `with` saves and says how to go on.
    """

    def __init__(self, training: Training, evaluate: Callable[[str], Evaluation]):
        self.training, self.settings, self.plan = training, training.settings, training.plan
        self.processes, self.score_split = training.processes, evaluate
        self.stop, self.interval = StopRequest(self.processes.size > 1), Interval(self.settings.save_every)
        self.held = contextlib.ExitStack()         # what is let go at the end

    def __enter__(self) -> "Run":
        with contextlib.ExitStack() as held:
            held.callback(self.processes.leave)
            path = Path(self.processes.by_first(lambda: str(claim_folder(self.settings))))
            self.processes.by_first(lambda: held.enter_context(lock(path)))
            self.folder = RunFolder(path, self.processes, self.settings.verbose)
            self.store = RunStore(self.folder, self.training, {**self.training.record, "output": str(path)})
            with nothing_begun(f"go on with {resume_command(path)}"):
                if self.settings.resume:
                    self.store.resume()
                if not self.store.finished:
                    self.processes.by_first(self.introduce)
            held.enter_context(self.stop)
            self.bar = held.enter_context(report.progress_bar(self.plan.total, self.at.step, self.processes.first))
            self.held = held.pop_all()
        self.timer = time.perf_counter()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self.held:
            if isinstance(error, Stopped):
                self.folder.tell(f"stopped by {error} after update {self.at.step}; {self.store.save_at_last()}")

    @property
    def at(self) -> Progress:
        """Where it stands."""
        return self.store.progress

    def introduce(self) -> None:
        """In the first process: save every resolved setting, say what is trained on what and how."""
        self.folder.write("train.json", self.store.record)
        self.training.tokenizer.save(self.folder.path)
        report.introduce(self.folder, self.store.record, self.training)

    # ------------------------------------------------------------------------------------------------- epochs, updates

    def epochs_left(self) -> Iterator[int]:
        """The numbers of the epochs that are left, from 1."""
        self.timer = time.perf_counter()
        while not self.at.done(self.plan):
            yield self.at.epoch_in_hand(self.plan)

    def batches_left(self, order: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Of the batches of the epoch in hand those that no update has read yet."""
        begun = (self.at.epoch_in_hand(self.plan) - 1) * self.plan.an_epoch    # updates of the epochs before this one
        return order[self.at.step - begun:self.plan.total - begun]

    @contextlib.contextmanager
    def watch(self, batches: Sequence[Batch]) -> Iterator[None]:
        """An update on these batches: one that raises NotFinite is left in the run folder to be looked at."""
        step = self.at.step + 1
        try:
            yield
        except NotFinite as e:
            said = f"update {step}: {e}"
            raise NotFinite(f"{said}; {self.store.write_down(step, batches, said)}") from None

    def after_update(self, loss: float, norm: float, rate: float, batches: Sequence[Batch]) -> None:
        """Count it, log it, save if that is due. Raises Stopped if that was asked for, here or in another process."""
        epoch = self.at.epoch_in_hand(self.plan)
        pieces = int(self.processes.add(sum(b.pieces for b in batches)))
        took = self.lap()
        line = {"step": self.at.step + 1, "epoch": epoch, "loss": loss, "learning_rate": rate,
                "gradient_norm": norm if math.isfinite(norm) else None,        # JSON has no infinity
                "pieces": pieces, "seconds": took}
        self.folder.log(line)
        self.at.count(loss, took, pieces)
        self.bar.show(line, self.at)

        asked, due = self.processes.any(self.stop.asked is not None,
                                        self.processes.first and self.interval.due(self.at.step))
        if asked:
            raise Stopped(self.stop.asked or "another process")
        if due:
            self.store.save_if_possible()
            self.lap()

    def lap(self) -> float:
        """Seconds since the last update, or since what is no update (scoring, saving) was done."""
        before, self.timer = self.timer, time.perf_counter()
        return self.timer - before

    # -------------------------------------------------------------------------------------------------------- scoring

    def evaluate(self, split: str) -> Evaluation:
        """The scores of a split; a request to stop ends it at once, as nothing has changed."""
        with self.stop.at_once():
            return self.score_split(split)

    def score_before(self) -> None:
        """The untrained model, unless the run is resumed or --no-before."""
        if self.settings.before and not self.at.step:
            self.at.before = {split: self.evaluate(split).scores for split in self.plan.scored}

    def after_epoch(self, epoch: int) -> None:
        """Score dev, save if it is the best so far (or dev is not scored), note whether patience is at its end."""
        key, found, value = self.plan.chosen_by[0], None, math.nan
        if "dev" in self.plan.scored:
            found = self.evaluate("dev")
            value = score_at(found.scores, key)
            if self.at.step > self.at.scored and found.collapsed:
                self.folder.tell(report.collapse(epoch, found.collapsed, self.settings.learning_rate))
            self.folder.log({"step": self.at.step, "epoch": epoch, "split": "dev", **found.scores})

        loss = self.at.loss_sum / self.at.losses if self.at.losses else math.nan
        better, as_good = self.at.end_epoch(epoch, found.scores if found else None, value, self.plan)
        said = f", dev {key} {value:.4f}{' (best so far)' if better else ''}" if found else ""
        self.folder.tell(f"epoch {epoch}: loss {loss:.4f}{said}")
        if as_good:
            self.store.save_best()
        self.lap()

    def finish(self) -> Path:
        """A checkpoint to go on from, the scores of the best epoch's weights, metrics.json, what to do next."""
        self.bar.close()
        if self.store.finished:
            self.folder.tell(f"{self.folder.path}: finished already, {self.at.step:,} updates; nothing to do")
            return self.folder.path
        p = self.at
        self.store.save_if_possible()
        self.store.go_back_to_best()
        after = {split: p.best[1] if split == "dev" and p.best else self.evaluate(split).scores
                 for split in self.plan.scored}
        speed = {"seconds": p.seconds, "pieces": p.pieces, "pieces_per_second": p.pieces / p.seconds, "steps": p.step}
        numbers = {"before": p.before, **after, "train": speed}
        self.processes.by_first(lambda: self.store.end(numbers))
        report.summarise(self.folder, self.training, p.before, after, speed)
        return self.folder.path


def refuse_lonely_rows(coupled: bool, settings: TrainConfig, processes: Processes) -> None:
    """Raise MinibertError where a task whose rows share a loss (`coupled`) would not see all of an update's rows."""
    if coupled and processes.size > 1:
        raise MinibertError(f"--task {settings.task} with {processes.size} processes: each would set its rows against "
                            "its own alone; start one process (--accumulate saves memory)")
    if coupled and settings.batch_size < 2:
        raise MinibertError(f"--batch-size is {settings.batch_size}; --task {settings.task} learns from the other rows "
                            "of an update: 2 or more, better 32 (--accumulate saves memory)")
