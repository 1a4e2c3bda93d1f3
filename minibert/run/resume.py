"""A run as it stands on the disk: its best model, checkpoints of all of it, going on from one to the same bits."""
import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from minibert.checkpoints import weights
from minibert.core.batch import Batch
from minibert.core.config import BertConfig
from minibert.core.precision import LossScaler
from minibert.data.cache import checksum
from minibert.errors import MinibertError
from minibert.files import Json, copy, flushed_size, read_json, remove, truncate, write_json
from minibert.run.checkpoint import (
    COMPLETE,
    Checkpoints,
    fault,
    fault_of,
    read_optimizer,
    seal,
    sealed,
    size_and_sha256,
    write_optimizer,
)
from minibert.run.folder import RunFolder
from minibert.run.progress import Progress, expect
from minibert.run.replay import as_parts, broken_weight, write_update
from minibert.run.terminal import replay_command, resume_command
from minibert.run.training import Training

BEST = "model.safetensors"                         # of a run folder: the best model so far
BESIDE = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
SEALED = (BEST, *BESIDE, "train.json")             # what belongs to a finished run
FREE = {"data", "cache", "weights", "output", "epochs", "max_steps", "updates", "before", "save_every", "keep",
        "resume", "verbose", "threads", "processes", "torch"}                  # what a resumed run may change


class RunStore:
    """What a run keeps on the disk. `record`: every resolved setting, as train.json has them."""

    def __init__(self, folder: RunFolder, training: Training, record: Json):
        self.folder, self.training, self.record = folder, training, record
        self.plan, self.processes = training.plan, training.processes
        self.checkpoints = Checkpoints(folder.path, record["keep"])
        self.progress = Progress()
        self.last_in_memory = True                 # the weights are those of the last update, not of the best epoch

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do, the final scores included."""
        return self.progress.done(self.plan) and self.final_scores() is not None

    def final_scores(self) -> Json | None:
        """metrics.json; None where it is not there, or damaged: then they are found again."""
        try:
            return read_json(self.folder.path / "metrics.json")
        except MinibertError:
            return None

    @functools.cached_property                     # every byte of them: once a run, not once a checkpoint
    def row_hashes(self) -> dict[str, str]:
        """What the run learns from and is chosen by: SHA-256 of the encoded rows and of the labels' names."""
        splits = {"train", "dev"} & {"train", *self.plan.scored}
        return {split: checksum(self.training.features[split].fingerprint(), self.training.task.labels)
                for split in sorted(splits)}

    # ------------------------------------------------------------------------------------------------ the best model

    def save(self, folder: Path) -> None:
        """The model as it is now, under the published names."""
        task = self.training.task
        labels, outputs = task.labels, task.outputs
        weights.save(folder, self.training.model.bert, self.training.model.head, {
            "architectures": [task.architecture], "problem_type": task.problem_type,
            "id2label": {str(i): label for i, label in enumerate(outputs)},
            "label2id": {label: i for i, label in enumerate(outputs)},
            "minibert": {**({"labels": labels} if labels != outputs else {}), **task.learnt}})

    def save_best(self) -> None:
        """The model as it is now is the best so far: it becomes the run folder's. Only the first process writes.

        Raises MinibertError where it cannot be written, or is worth nothing.
        """
        if broken := broken_weight(self.training.model):
            raise MinibertError(f"{broken} holds numbers that are not finite after update {self.progress.step}: this "
                                "model is not saved; lower --learning-rate")

        def write() -> str:
            self.save(self.folder.path)
            return size_and_sha256(self.folder.path / BEST)["sha256"]

        self.progress.saved, self.progress.saved_sha256 = self.progress.step, self.processes.by_first(write)

    def copy_best(self, file: Path) -> None:
        """A copy of the best model; MinibertError where it is no longer what was written, so that no damage spreads."""
        best = self.folder.path / BEST
        wrong = "" if best.is_file() else "gone"
        if not wrong:
            copy(best, file)
            wrong = "" if size_and_sha256(file)["sha256"] == self.progress.saved_sha256 else "not as it was written"
        if wrong:
            file.unlink(missing_ok=True)
            raise MinibertError(f"{best} is {wrong}; --resume brings it back, with the last checkpoint")

    def best_is_there(self) -> bool:
        """Whether the run folder holds the best model as it was written."""
        best = self.folder.path / BEST
        return best.is_file() and size_and_sha256(best)["sha256"] == self.progress.saved_sha256

    def go_back_to_best(self) -> None:
        """The weights of the best epoch, into the model. Raises MinibertError where they are no longer there."""
        if self.progress.saved == self.progress.step:
            return
        self.last_in_memory = False
        if not self.best_is_there():
            raise MinibertError(f"{self.folder.path}: the best model is not as it was written; --resume brings it back")
        weights.load_into(self.folder.path, self.training.model)

    def end(self, scores: Json) -> None:
        """The run is finished: what belongs to it is sealed, then metrics.json says so. Raises MinibertError."""
        path = self.folder.path
        try:
            seal(path, SEALED)
        except OSError as e:
            raise MinibertError(f"{e.filename}: cannot be read ({e.strerror}); --resume brings it back") from None
        self.folder.write("metrics.json", scores)

    # --------------------------------------------------------------------------------------------------- checkpoints

    def checkpoint(self) -> None:
        """Save all that a resumed run needs. Raises MinibertError where it cannot be written, or is worth nothing.

        The first process saves; the others go on, and wait for it where the next sum does.
        """
        def write(folder: Path) -> None:
            if not self.last_in_memory:
                raise MinibertError("the model holds the weights of the best epoch by now")
            self.save(folder)
            optimizer = write_optimizer(folder, self.training.optimizer)
            if self.progress.saved:
                self.copy_best(folder / "best.safetensors")
            write_json(folder / "state.json", {
                "progress": dataclasses.asdict(self.progress), "scaler": vars(self.training.scaler),
                "optimizer": optimizer, "metrics_bytes": flushed_size(self.folder.path / "metrics.jsonl"),
                "rows": self.row_hashes, "settings": self.record})

        p = self.progress
        if broken := broken_weight(self.training.model):    # it would take the place of one that is worth more
            raise MinibertError(f"{broken} holds numbers that are not finite")
        if self.processes.first:
            self.checkpoints.save(f"update-{p.step:08d}" + ("-scored" if p.scored == p.step else ""), write)

    def save_if_possible(self) -> None:
        """A checkpoint; where it cannot be written, the run goes on and says so: stopping would lose more."""
        try:
            self.checkpoint()
        except MinibertError as e:
            self.folder.tell(f"warning: update {self.progress.step} is not saved: {e}; the run goes on")

    def save_at_last(self) -> str:
        """A checkpoint of a run that ends before its end; -> what to do now, and what is lost if it cannot be written.

        Raises MinibertError where nothing is left to go on from.
        """
        command, step = resume_command(self.folder.path), self.progress.step
        if not step:
            return f"nothing is lost; {command} begins anew"
        try:
            self.checkpoint()
        except MinibertError as e:
            last = self.checkpoints.newest()
            if last is None:
                raise MinibertError(f"all {step} updates are lost: no checkpoint could be written ({e}); {command} "
                                    "begins anew") from None
            return f"update {step} is not saved ({e}): what came after {last.name} is lost; go on with {command}"
        return f"go on with {command}"

    def write_down(self, step: int, batches: Sequence[Batch], said: str) -> str:
        """Leave an update that went wrong in the run folder, with the weights before it; -> what to do now."""
        folder, broken, lost = self.folder.path / f"broken-update-{step}", broken_weight(self.training.model), ""
        parts = [part for rank in self.processes.gather(as_parts(batches, self.processes.rank)) for part in rank]
        examples = [row["example"] for part in parts for row in part["rows"]]
        if self.processes.first:
            try:
                if folder.is_symlink():            # nothing is written through one
                    folder.unlink()
                folder.mkdir(exist_ok=True)
                write_update(folder / "update.json", step, parts, self.record, said)
                if not broken:
                    self.save(folder)
            except (MinibertError, OSError) as e:      # what went wrong first is what the user must read
                lost = str(e)
        if not broken:
            self.save_if_possible()

        why = (f"{broken} was not finite before it: lower --learning-rate" if broken else
               f"it could not be written down ({lost}): lower --learning-rate" if lost else
               f"look at it with {replay_command(folder / 'update.json')}, or lower --learning-rate")
        return f"train examples {', '.join(map(str, examples[:8]))}{', ...' if len(examples) > 8 else ''}; {why}"

    # ------------------------------------------------------------------------------------------------------ going on

    def resume(self) -> None:
        """Go to the newest whole checkpoint, or say that there is none. All processes read the same folder."""
        path = self.folder.path
        self.processes.by_first(self.sweep)
        found = self.processes.by_first(lambda: str(self.checkpoints.newest() or ""))
        for notice in self.checkpoints.notices:
            self.folder.tell(f"note: {notice}")
        if found:
            self.go_to(Path(found), read_state(Path(found) / "state.json"))
            return
        if (path / "metrics.json").exists():
            self.stay_finished()
            return
        self.folder.tell(f"{path}: no whole checkpoint to resume from; starting anew")
        self.processes.by_first(lambda: (path / "metrics.jsonl").unlink(missing_ok=True))

    def sweep(self) -> None:
        """Remove what a process that was killed had begun to write."""
        for folder in self.folder.path.glob(".*.new"):
            with contextlib.suppress(OSError):
                remove(folder)

    def stay_finished(self) -> None:
        """The end of a run that no checkpoint was left of, on a full disk: it needs none as long as all is whole.

        Raises MinibertError where something is to be done, which no checkpoint is there for.
        """
        path = self.folder.path
        wrong = self.processes.by_first(lambda: fault(path))
        scores = (self.final_scores() or {}).get("train")
        steps = scores.get("steps") if isinstance(scores, dict) else None
        if not wrong and isinstance(steps, int):
            refuse_changes(read_json(path / "train.json"), self.record, path)
            self.progress = Progress(step=steps, scored=steps, over=True)
        if not (self.progress.step and self.finished):
            raise MinibertError(f"{path}: finished, and without a whole checkpoint to go on from"
                                f"{f' ({wrong})' if wrong else ''}; name another --output")

    def go_to(self, found: Path, state: Json) -> None:
        """The run as it was when a checkpoint of it was saved. Raises MinibertError where this is not that run."""
        self.refuse_another_run(found, state)
        weights.load_into(found, self.training.model)
        read_optimizer(found, self.training.optimizer, state["optimizer"])
        vars(self.training.scaler).update(state["scaler"])
        self.progress = state["progress"]

        if self.finished:
            self.processes.by_first(lambda: self.mend(found, state["settings"]))
            return
        self.processes.by_first(lambda: self.rewind(found, state["metrics_bytes"]))
        self.folder.tell(f"resumed from update {self.progress.step}")
        for name in ("threads", "processes", "torch"):
            if (then := state["settings"].get(name)) != self.record[name]:
                self.folder.tell(f"note: {name} was {then}, now {self.record[name]}: the same rows in the same order, "
                                 "but not the same bits")

    def refuse_another_run(self, found: Path, state: Json) -> None:
        """Raises MinibertError where a checkpoint is of other settings, of another model or of other data."""
        refuse_changes(state["settings"], self.record, found)
        if BertConfig.read(found) != self.training.model.bert.config:
            raise MinibertError(f"{found}: config.json says another model than {self.record['weights']} with these "
                                "settings; give the --weights that the run began with, or name another --output")
        if other := [split for split, rows in self.row_hashes.items() if state["rows"].get(split) != rows]:
            raise MinibertError(f"{self.record['data']}: not the {' and '.join(other)} data of {found}; give those, or "
                                "name another --output")
        if state["progress"].saved and not (found / "best.safetensors").is_file():
            raise MinibertError(f"{found}: best.safetensors is missing; name another --output")

    def rewind(self, found: Path, size: int) -> None:
        """The run folder as it was at a checkpoint: its best model, its lines of metrics.jsonl, no final scores."""
        path = self.folder.path
        self.bring_back(found)
        for name in ("metrics.json", COMPLETE):
            remove(path / name)
        if not truncate(path / "metrics.jsonl", size):
            self.folder.tell(f"note: {path}/metrics.jsonl is shorter than it was at this checkpoint; lines are missing")

    def mend(self, found: Path, settings: Json) -> None:
        """All that belongs to a finished run as it was written, from its last checkpoint; what was not is told."""
        path = self.folder.path
        changed = self.bring_back(found)
        try:
            wrong = fault_of(path, "train.json", sealed(path).get("train.json"))
        except MinibertError as e:
            wrong = str(e)
        if wrong:
            changed.append("train.json")
            self.folder.write("train.json", settings)
        if changed:
            self.folder.tell(f"note: {path}: not as written, and brought back: {', '.join(changed)}")
        if fault(path):
            seal(path, SEALED)

    def bring_back(self, found: Path) -> list[str]:
        """The best model, if there was one, from a checkpoint into the run folder, and what belongs to it; -> the names
        of the files that were otherwise.
        """
        if not self.progress.saved:
            return []
        path = self.folder.path
        before, lost = digests(path), not self.best_is_there()
        if lost:
            copy(found / "best.safetensors", path / BEST)
        copy(found / "config.json", path / "config.json")
        self.training.tokenizer.save(path)
        return [BEST] * lost + [name for name, digest in digests(path).items() if digest != before[name]]


def digests(folder: Path) -> dict[str, Json | None]:
    """Size and SHA-256 of what stands beside the model in a run folder; None for what is not there."""
    return {name: size_and_sha256(folder / name) if (folder / name).is_file() else None for name in BESIDE}


def read_state(file: Path) -> Json:
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


def refuse_changes(then: Json, now: Json, found: Path) -> None:
    """Raises MinibertError with every setting that differs from the saved run's and may not."""
    differ = [f"{k} was {then.get(k)}, now {now.get(k)}" for k in {**then, **now}
              if then.get(k) != now.get(k) and k not in FREE]
    if now["updates"] < then["updates"]:
        differ.append(f"updates were {then['updates']}, now {now['updates']}: there may only be more")
    if differ:
        raise MinibertError(f"{found}: saved with other settings: {'; '.join(differ)}; give the same, or name another "
                            "--output")
