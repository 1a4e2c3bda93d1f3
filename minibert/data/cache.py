"""Arrays kept on the disk between runs: one safetensors file an entry, found by the hash of all it was made from.

An entry is used only if it is whole: the key it was made for and a checksum of every byte stand in the file. Whatever
is wrong with one, or with the folder, costs time and a notice, never the run.
"""
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from minibert.files import Json, beside

Arrays = dict[str, np.ndarray]
Made = TypeVar("Made")


class Cache:
    """Entries of one folder, which is made when the first is saved. A key is anything that JSON can write."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.notices: list[str] = []

    def file(self, key: Json) -> Path:
        """Where the entry of a key lies; its name begins with key["kind"]."""
        return self.folder / f"{key['kind']}-{hashlib.sha256(canonical(key)).hexdigest()[:32]}.safetensors"

    def load(self, key: Json, make: Callable[[Arrays, Any], Made]) -> Made | None:
        """make(arrays, extra) of what was saved, the arrays mapped from the file; None without an entry.

        `make` raises where the arrays do not fit each other; that is a damaged entry like any other.
        """
        file = self.file(key)
        try:
            if not file.is_file():
                return None
            with safe_open(file, framework="pt") as f:
                arrays = {name: f.get_tensor(name).numpy() for name in f.keys()}  # noqa: SIM118 (safe_open is no dict)
                about = json.loads(f.metadata()["about"])
                whole = f.metadata()["sha256"] == checksum(arrays, about) and about["key"] == json.loads(canonical(key))
            made = make(arrays, about["extra"]) if whole else None
        except Exception as e:                     # the file may hold anything, and the library raises many kinds
            self.notices.append(f"{file}: cannot be read ({type(e).__name__}: {e}); made again")
            return None
        self.notices.append(f"{key['kind']} come from {file}" if whole else f"{file}: damaged; made again")
        return made

    def save(self, key: Json, arrays: Arrays, extra: object = None) -> None:
        """Write an entry: the whole of it or nothing. Where that cannot be done there is a notice and no entry."""
        file = self.file(key)
        about = {"key": key, "extra": extra}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with beside(file, f".{os.getpid()}") as temporary:                 # other processes may write the same one
                save_file(arrays, temporary, metadata={"about": canonical(about).decode(),
                                                       "sha256": checksum(arrays, about)})
        except Exception as e:                     # OSError, or the library's own for the same
            self.notices.append(f"{self.folder}: {key['kind']} cannot be kept there ({e}); free space, name another "
                                "folder with --cache, or --cache off")


def canonical(value: object) -> bytes:
    """One JSON text for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def checksum(arrays: Arrays, about: object) -> str:
    """SHA-256 of names, types, shapes and bytes of all arrays and of what is said about them."""
    digest = hashlib.sha256(canonical(about))
    for name, x in sorted(arrays.items()):
        digest.update(canonical([name, x.dtype.str, list(x.shape)]))
        digest.update(np.ascontiguousarray(x).data)
    return digest.hexdigest()
