"""Checkpoints of a run: each is whole or not there, and the newest whole one counts.

    RUN/checkpoints/update-00000123/
        model.safetensors, config.json   the weights after 123 updates, as weights.save writes them
        optimizer.safetensors            the running means of every parameter
        state.json                       where the run stands and with which settings
        best.safetensors                 RUN/model.safetensors at that moment: a copy, so that damage stays in one place
        complete.json                    size and SHA-256 of each of them, written last

It grows under a name with a dot in front, is flushed to the disk, and only then gets its name. So what has the name was
whole when it got it, whenever the process was killed; what a disk does to it later, the hashes tell.
"""
import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from minibert.core.optim import Optimizer, State
from minibert.errors import MinibertError
from minibert.files import Json, check_regular, flush_folder, open_regular, read_json, remove, write_json, write_tensors

COMPLETE, OPTIMIZER = "complete.json", "optimizer.safetensors"
NAME = re.compile(r"update-(\d{8,})(-scored)?")


class Checkpoints:
    """The checkpoints of one run folder. `notices` says in words what was wrong with those that were passed over."""

    def __init__(self, run: Path, keep: int):
        self.folder, self.keep = run / "checkpoints", keep
        if os.path.lexists(self.folder) and not self.folder.is_dir():
            raise MinibertError(f"{self.folder}: is there and no folder (a link to a disk that is away?); mend it, or "
                                "name another --output")
        self.notices: list[str] = []

    def save(self, name: str, write: Callable[[Path], None]) -> Path:
        """A checkpoint of the files that write(folder) makes; older ones beyond `keep` go once it is whole.

        The same name means the same contents: what is there stays. Raises MinibertError where it cannot be written;
        those that are there stay as they are.
        """
        target = self.folder / name
        growing = self.folder / f".{name}.new"
        if target.exists():
            return target
        try:
            self.folder.mkdir(exist_ok=True)
            flush_folder(self.folder.parent)
            remove(growing)
            growing.mkdir()
            write(growing)
            seal(growing)
            os.rename(growing, target)
            flush_folder(self.folder)
        except (OSError, MinibertError) as e:
            with contextlib.suppress(OSError):
                remove(growing)
            if isinstance(e, MinibertError):       # it says what, why and what to do
                raise
            raise MinibertError(f"{target}: cannot be written ({e}); free space") from None
        self.prune()
        return target

    def newest(self) -> Path | None:
        """The newest whole one, every byte of it checked. A damaged one stays for inspection, under another name: no
        later run takes it, removes it, or finds its place taken.
        """
        for folder in self.inside(growing=True):
            self.notices.append(f"{folder}: removed: the process ended while it was written or removed")
        self.sweep()
        for folder in self.inside():
            wrong = fault(folder)
            if not wrong:
                return folder
            aside = free_name(folder)
            self.notices.append(f"{folder}: passed over, kept for inspection as {aside.name}: {wrong}")
            with contextlib.suppress(OSError):     # a folder that cannot be written to: nothing is removed there either
                os.rename(folder, aside)
        return None

    def inside(self, growing: bool = False) -> list[Path]:
        """Every checkpoint that has its name, newest first; or those that have it not yet, or no more."""
        everything = list(self.folder.iterdir()) if self.folder.is_dir() else []
        if growing:
            return [f for f in everything if f.name.startswith(".update-")]
        named = [(int(m[1]), f.name, f) for f in everything if (m := NAME.fullmatch(f.name))]
        return [f for *_, f in sorted(named, reverse=True)]

    def prune(self) -> None:
        """Remove what is older than the newest `keep`, and what was never finished; nothing newest() passed over."""
        for folder in self.inside()[self.keep:]:
            with contextlib.suppress(OSError):     # first the name: half a checkpoint must not have one
                os.rename(folder, folder.with_name(f".{folder.name}.old"))
        self.sweep()

    def sweep(self) -> None:
        """Remove what has no name yet, or no more: it is of a process that was killed."""
        for folder in self.inside(growing=True):
            with contextlib.suppress(OSError):
                remove(folder)


class Interval:
    """When to save: every so many updates ("50"), or minutes ("5m") after the last time."""

    def __init__(self, text: str):
        self.count, self.minutes, self.last = int(text.removesuffix("m")), text.endswith("m"), time.monotonic()

    def due(self, step: int) -> bool:
        """Asked after every update; where the answer is yes, the next interval begins."""
        due = time.monotonic() - self.last >= 60 * self.count if self.minutes else step % self.count == 0
        self.last = time.monotonic() if due else self.last
        return due


def free_name(folder: Path) -> Path:
    """folder-damaged, or the first of folder-damaged-2, -3 ... that is free."""
    names = (folder.with_name(f"{folder.name}-damaged" + (f"-{i}" if i > 1 else "")) for i in range(1, 10 ** 6))
    return next(name for name in names if not name.exists())


def seal(folder: Path, names: Iterable[str] | None = None) -> None:
    """Write complete.json, after the files it lists, all or these, are on the disk."""
    files = {}
    for file in sorted(folder.iterdir() if names is None else map(folder.joinpath, names)):
        files[file.name] = size_and_sha256(file)
        with open_regular(file, "rb") as f:
            os.fsync(f.fileno())
    write_json(folder / COMPLETE, {"files": files})


def size_and_sha256(file: Path) -> Json:
    """{"bytes", "sha256"} of a file."""
    with open_regular(file, "rb") as f:
        return {"bytes": os.fstat(f.fileno()).st_size, "sha256": hashlib.file_digest(f, "sha256").hexdigest()}


def fault(folder: Path) -> str:
    """What keeps a checkpoint, or a finished run, from being whole, in words; "" where nothing does."""
    try:
        files = sealed(folder)
    except MinibertError as e:
        return str(e)
    return next(filter(None, (fault_of(folder, name, wanted) for name, wanted in files.items())), "")


def sealed(folder: Path) -> Json:
    """{file: size and SHA-256} as complete.json lists them. Raises MinibertError where it lists none."""
    files = read_json(folder / COMPLETE).get("files")
    if not isinstance(files, dict) or not files:
        raise MinibertError(f"{COMPLETE} lists no files")
    return files


def fault_of(folder: Path, name: str, wanted: object) -> str:
    """What is wrong with one file of a sealed folder, which has `wanted` of it, in words; "" where nothing is."""
    try:
        if not (folder / name).is_file() or Path(name).name != name:
            return f"{name} is missing"
        return "" if size_and_sha256(folder / name) == wanted else f"{name} is not as it was written"
    except OSError as e:
        return f"{name} cannot be read ({e.strerror})"


# ----------------------------------------------------------------------------------------------------- the optimizer


def write_optimizer(folder: Path, optimizer: Optimizer) -> dict[str, Json]:
    """The tensors of its state into `folder`, as "m.NAME"; -> what else it keeps: {name of the parameter: {"t": 5}}."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Json] = {}
    names = parameter_names(optimizer)
    for number, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{key}.{names[number]}"] = value.detach().cpu().contiguous()
            else:
                rest.setdefault(names[number], {})[key] = value
    write_tensors(folder / OPTIMIZER, tensors)
    return rest


def read_optimizer(folder: Path, optimizer: Optimizer, rest: dict[str, Json]) -> None:
    """Put what write_optimizer() wrote and returned into an optimizer over the same parameters.

    Raises MinibertError where it is not what the rule would have kept: names, shapes, number formats.
    """
    file, numbers = folder / OPTIMIZER, {name: i for i, name in enumerate(parameter_names(optimizer))}
    params = optimizer.params
    try:
        check_regular(file)
        state = {numbers[name]: dict(values) for name, values in rest.items()}
        with safe_open(file, framework="pt") as tensors:
            for full in tensors.keys():  # noqa: SIM118 (safe_open is no dict)
                key, _, name = full.partition(".")
                p = params[numbers[name]]
                state.setdefault(numbers[name], {})[key] = tensors.get_tensor(full).to(p.device)
    except (KeyError, OSError, SafetensorError) as e:
        raise MinibertError(f"{file}: does not fit this run ({type(e).__name__}: {e}); start a new one") from None
    groups = [g for g in optimizer.groups for _ in g["params"]]
    for number, kept in state.items():
        fresh: State = {}
        optimizer.begin(params[number], fresh, groups[number])
        if (found := shapes_and_formats(kept)) != (wanted := shapes_and_formats(fresh)):
            raise MinibertError(f"{file}: of {parameter_names(optimizer)[number]} it has {found}, this run keeps "
                                f"{wanted}; start a new one")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def shapes_and_formats(state: State) -> dict[str, str]:
    """{name: shape and number format of a tensor, kind of anything else} of one parameter's state."""
    return {k: f"{list(v.shape)} {v.dtype}" if isinstance(v, Tensor) else type(v).__name__
            for k, v in sorted(state.items())}


def parameter_names(optimizer: Optimizer) -> list[str]:
    """Of all its parameters, in its order; its groups come from optim.decay_groups."""
    return [name for group in optimizer.groups for name in group["names"]]
