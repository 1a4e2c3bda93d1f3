"""A run as it stands on the disk: what it has written, saving all of it, going on with it to the same bits."""
import contextlib
import dataclasses
import functools
import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minibert.checkpoints import weights
from minibert.core.batch import Batch
from minibert.core.config import BertConfig
from minibert.core.model import Model
from minibert.core.optim import Optimizer
from minibert.core.precision import LossScaler
from minibert.data.cache import checksum
from minibert.data.features import Features
from minibert.data.tokenizer import Tokenizer
from minibert.errors import MinibertError
from minibert.files import copy, flushed_size, read_json, truncate, write_json
from minibert.run.checkpoint import Checkpoints, Interval, read_optimizer, size_and_sha256, write_optimizer
from minibert.run.processes import Processes
from minibert.run.replay import as_parts, broken_weight, write_update
from minibert.run.terminal import interpreter, say
from minibert.settings import TrainConfig

BEST = "model.safetensors"                         # of a run folder: the best model so far
FREE = {"data", "cache", "weights", "output", "epochs", "max_steps", "updates", "before", "save_every", "keep",
        "resume", "threads", "processes", "torch"}                             # what a resumed run may change


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
    losses: int = 0                                # finite ones of this epoch so far, and their sum
    loss_sum: float = 0.0
    best: tuple[float, Any, str] | None = None     # value, scores, tables on dev
    before: dict[str, tuple[Any, str]] = field(default_factory=dict)           # scores, tables of the untrained model

    @classmethod
    def read(cls, saved: dict[str, Any]) -> "Progress":
        """What dataclasses.asdict() gave, back from JSON. Raises KeyError, TypeError, ValueError for anything else."""
        for f in dataclasses.fields(cls):
            if f.type in (int, bool, float, str):
                expect(saved[f.name], f.type, f.name)
        if saved["best"] is not None:
            for value, kind in zip(saved["best"], (float, dict, str), strict=True):
                expect(value, kind, "best")
        for scored in saved["before"].values():
            for value, kind in zip(scored, (dict, str), strict=True):
                expect(value, kind, "before")
        return cls(**saved)


class Resumable:
    """What train.Run is besides: the half of a run that outlives its process. Run sets all of these."""
    output: Path                                   # the run folder, claimed and locked
    processes: Processes
    settings: TrainConfig
    record: dict[str, Any]                         # every resolved setting, the task's too, as train.json has them
    task: Any
    features: dict[str, Features]
    scored: list[str]                              # the splits that are scored
    tokenizer: Tokenizer
    model: Model
    optimizer: Optimizer
    scaler: LossScaler
    an_epoch: int                                  # updates; and all of them
    total: int
    progress: Progress
    last_in_memory: bool                           # the weights are those of the last update, not of the best epoch
    checkpoints: Checkpoints
    interval: Interval

    @property
    def epoch_in_hand(self) -> int:
        """The number, from 1, of the epoch that the next update belongs to, or whose end was not yet scored."""
        p = self.progress
        return (p.step - (p.step > p.scored)) // self.an_epoch + 1

    @property
    def done(self) -> bool:
        """Whether all updates are made and scored, or none is worth making any more."""
        p = self.progress
        return p.scored == p.step and (p.step >= self.total or (p.over and not self.settings.max_steps))

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do, the final scores included."""
        return self.done and (self.output / "metrics.json").is_file()

    def log(self, line: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        if not self.processes.first:
            return
        file = self.output / "metrics.jsonl"
        try:
            with open(file, "a", encoding="utf-8") as f:
                f.write(json.dumps(line) + "\n")
        except OSError as e:
            raise MinibertError(f"{file}: cannot be written ({e.strerror}); free space, then --resume") from None

    def tell(self, text: str) -> None:
        """A line for the user, and for the run's log.txt with the time before it."""
        if not self.processes.first:
            return
        say(text)
        with contextlib.suppress(OSError), open(self.output / "log.txt", "a", encoding="utf-8") as f:
            f.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def save_best(self) -> None:
        """The model as it is now is the best so far: it becomes the run folder's. Only the first process writes."""
        def write() -> str:
            self.save(self.output)
            return size_and_sha256(self.output / BEST)["sha256"]

        self.progress.saved, self.progress.saved_sha256 = self.progress.step, self.processes.by_first(write)

    def copy_best(self, file: Path) -> None:
        """A copy of the best model; MinibertError where it is no longer what was written, so that no damage spreads."""
        best = self.output / BEST
        wrong = "" if best.is_file() else "gone"
        if not wrong:
            copy(best, file)
            wrong = "" if size_and_sha256(file)["sha256"] == self.progress.saved_sha256 else "not as it was written"
        if wrong:
            file.unlink(missing_ok=True)
            raise MinibertError(f"{best} is {wrong}; --resume brings it back, with the last checkpoint")

    def save(self, folder: Path) -> None:
        """The model as it is now, under the published names."""
        labels, outputs = self.task.labels, self.task.outputs
        weights.save(folder, self.model.bert, self.model.head, {
            "architectures": [self.task.architecture], "problem_type": self.task.problem_type,
            "id2label": {str(i): label for i, label in enumerate(outputs)},
            "label2id": {label: i for i, label in enumerate(outputs)},
            "minibert": {**({"labels": labels} if labels != outputs else {}), **self.task.learnt}})

    def checkpoint(self) -> None:
        """Save all that a resumed run needs. Raises MinibertError where it cannot be written, or is worth nothing.

        The first process saves; the others go on, and wait for it where the next sum does.
        """
        def write(folder: Path) -> None:
            self.save(folder)
            optimizer = write_optimizer(folder, self.optimizer)
            if self.progress.saved:
                self.copy_best(folder / "best.safetensors")
            write_json(folder / "state.json", {
                "progress": dataclasses.asdict(self.progress), "scaler": vars(self.scaler), "optimizer": optimizer,
                "metrics_bytes": flushed_size(self.output / "metrics.jsonl"), "rows": self.row_hashes,
                "settings": self.record})

        p = self.progress
        if broken := broken_weight(self.model):    # it would take the place of one that is worth more
            raise MinibertError(f"{broken} holds numbers that are not finite")
        if self.processes.first and self.last_in_memory:
            self.checkpoints.save(f"update-{p.step:08d}" + ("-scored" if p.scored == p.step else ""), write)

    def save_if_possible(self) -> None:
        """A checkpoint; where it cannot be written, the run goes on and says so: stopping would lose more."""
        try:
            self.checkpoint()
        except MinibertError as e:
            self.tell(f"warning: update {self.progress.step} is not saved: {e}; the run goes on")

    def write_down(self, step: int, batches: Sequence[Batch], said: str) -> str:
        """Leave an update that went wrong in the run folder, with the weights before it; -> what to do now."""
        folder, broken, lost = self.output / f"broken-update-{step}", broken_weight(self.model), ""
        parts = [part for rank in self.processes.gather(as_parts(batches, self.processes.rank)) for part in rank]
        examples = [row["example"] for part in parts for row in part["rows"]]
        if self.processes.first:
            try:
                folder.mkdir(exist_ok=True)
                write_update(folder / "update.json", step, parts, self.record, said)
                if not broken:
                    self.save(folder)
            except (MinibertError, OSError) as e:      # what went wrong first is what the user must read
                lost = f"it could not be written down ({e}); "
        if not broken:
            self.save_if_possible()
        again = f"{interpreter()} train.py --replay {shlex.quote(str(folder / 'update.json'))}"
        why = (f"{broken} was not finite before it: lower --learning-rate" if broken else
               f"{lost}look at it with {again}, or lower --learning-rate")
        return f"train examples {', '.join(map(str, examples[:8]))}{', ...' if len(examples) > 8 else ''}; {why}"

    def rewind(self, found: Path, size: int) -> None:
        """The run folder as it was at a checkpoint: its best model, its lines of metrics.jsonl, no final scores."""
        self.bring_back(found)
        (self.output / "metrics.json").unlink(missing_ok=True)
        if not truncate(self.output / "metrics.jsonl", size):
            self.tell(f"note: {self.output}/metrics.jsonl is shorter than it was at this checkpoint; lines are missing")

    def bring_back(self, found: Path) -> None:
        """The best model, if there was one, from a checkpoint into the run folder, and what belongs to it."""
        if self.progress.saved:
            copy(found / "best.safetensors", self.output / BEST)
            copy(found / "config.json", self.output / "config.json")
            self.tokenizer.save(self.output)

    def best_is_there(self) -> bool:
        """Whether the run folder holds the best model as it was written, and what belongs to it."""
        there = all((self.output / name).is_file() for name in (BEST, "config.json", "tokenizer.json"))
        return there and size_and_sha256(self.output / BEST)["sha256"] == self.progress.saved_sha256

    @functools.cached_property                     # every byte of them: once a run, not once a checkpoint
    def row_hashes(self) -> dict[str, str]:
        """What the run learns from and is chosen by: SHA-256 of the encoded rows and of the labels' names."""
        splits = {"train", "dev"} & {"train", *self.scored}
        return {split: checksum(self.features[split].fingerprint(), self.task.labels) for split in sorted(splits)}

    def resume(self) -> None:
        """Go to the newest whole checkpoint, or say that there is none. All processes read the same folder."""
        found = self.processes.by_first(lambda: str(self.checkpoints.newest() or ""))
        for notice in self.checkpoints.notices:
            self.tell(f"note: {notice}")
        if not found:
            if (self.output / "metrics.json").is_file():
                raise MinibertError(f"{self.output}: finished, and without a whole checkpoint to go on from; name "
                                    "another --output")
            self.tell(f"{self.output}: no whole checkpoint to resume from; starting anew")
            self.processes.by_first(lambda: (self.output / "metrics.jsonl").unlink(missing_ok=True))
            return
        self.go_to(Path(found), read_state(Path(found) / "state.json"))

    def go_to(self, found: Path, state: dict[str, Any]) -> None:
        """The run as it was when a checkpoint of it was saved. Raises MinibertError where this is not that run."""
        refuse_changes(state["settings"], self.record, found)
        if BertConfig.read(found) != self.model.bert.config:
            raise MinibertError(f"{found}: config.json says another model than {self.settings.weights} with these "
                                "settings; give the --weights that the run began with, or name another --output")
        if other := [split for split, rows in self.row_hashes.items() if state["rows"].get(split) != rows]:
            raise MinibertError(f"{self.settings.data}: not the {' and '.join(other)} data of {found}; give those, or "
                                "name another --output")
        if state["progress"].saved and not (found / "best.safetensors").is_file():
            raise MinibertError(f"{found}: best.safetensors is missing; name another --output")
        weights.load_into(found, self.model)
        read_optimizer(found, self.optimizer, state["optimizer"])
        vars(self.scaler).update(state["scaler"])
        self.progress = state["progress"]
        if self.finished:
            if self.processes.first and not self.best_is_there():
                self.bring_back(found)
            return
        self.processes.by_first(lambda: self.rewind(found, state["metrics_bytes"]))
        self.tell(f"resumed from update {self.progress.step}")
        for name in ("threads", "processes", "torch"):
            if (then := state["settings"].get(name)) != self.record[name]:
                self.tell(f"note: {name} was {then}, now {self.record[name]}: the same rows in the same order, but not "
                          "the same bits")


def read_state(file: Path) -> dict[str, Any]:
    """state.json of a checkpoint, its "progress" as Progress. Raises MinibertError for what no run here wrote."""
    state = read_json(file)
    try:
        for name, kind in (("settings", dict), ("scaler", dict), ("optimizer", dict), ("metrics_bytes", int),
                           ("rows", dict)):
            expect(state[name], kind, name)
        expect(state["settings"]["updates"], int, "updates")
        for name, value in vars(LossScaler(enabled=True)).items():
            expect(state["scaler"][name], type(value), name)
        for parameter, numbers in state["optimizer"].items():
            for value in numbers.values():
                expect(value, int, parameter)
        state["progress"] = Progress.read(state["progress"])
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise MinibertError(f"{file}: of another version of minibert ({type(e).__name__}: {e}); go on with that "
                            "one, or name another --output") from None
    return state


def expect(value: Any, kind: type, what: str) -> None:
    """Raises TypeError unless `value` is of this kind, and where it counts something at least 0."""
    if type(value) is not kind or (kind is int and value < 0):
        raise TypeError(f"{what} is {value!r}")


def refuse_changes(then: dict[str, Any], now: dict[str, Any], found: Path) -> None:
    """Raises MinibertError with every setting that differs from the saved run's and may not."""
    differ = [f"{k} was {then.get(k)}, now {now.get(k)}" for k in {**then, **now}
              if then.get(k) != now.get(k) and k not in FREE]
    if now["updates"] < then["updates"]:
        differ.append(f"updates were {then['updates']}, now {now['updates']}: there may only be more")
    if differ:
        raise MinibertError(f"{found}: saved with other settings: {'; '.join(differ)}; give the same, or name another "
                            "--output")
