"""Data made ready for training: read and encoded, or, where the files are large, taken from the cache.

Every entry's key holds the contents of the data files, every setting that has a part in it, and the code itself, so a
change of any of them makes a new entry and none can become stale.
"""
import dataclasses
import hashlib
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from minibert.data.cache import Arrays, Cache
from minibert.data.features import Features, concatenate, pack, spill
from minibert.data.tokenizer import Tokenizer
from minibert.errors import MinibertError
from minibert.files import Json, open_regular
from minibert.tasks.base import Example, Prediction, Task

EXAMPLES = 4096                                        # examples whose features are objects at the same time
WORTH = 16_000_000                                 # bytes of data files from which on the cache pays
FORMAT = 2                                         # of the entries


def encode_all(task: Task[Example, Prediction], examples: Sequence[Example], tokenizer: Tokenizer, max_pieces: int,
               overlap: int) -> Features:
    """All features of all examples, in order; many at a time where the task's read() made the examples compact."""
    if isinstance(examples, task.Examples):
        parts = task.encode_many(examples, tokenizer, max_pieces, overlap)
        return spill(parts) if task.on_disk else concatenate(parts)

    return concatenate(pack(f for i in range(start, min(start + EXAMPLES, len(examples)))
                            for f in task.encode(i, examples[i], tokenizer, max_pieces, overlap))
                       for start in range(0, len(examples), EXAMPLES))


class Splits(dict[str, Sequence[Any]]):
    """{"train" | "dev" | "test": examples}, and what the cache calls them."""
    cache: Cache | None = None                     # None: nothing of these is kept
    key: Json                                      # all that the examples were made from
    file_sha256: str | None = None                 # of the one file that --split has divided into these

    def limited(self, count: int) -> "Splits":
        """The first `count` examples of each split."""
        few = Splits({split: examples[:count] for split, examples in self.items()})
        if self.cache is not None:
            few.cache, few.key = self.cache, {**self.key, "limit": count}
        return few


def read_splits(task: Task, path: Path, folder: str) -> Splits:
    """task.read(path), kept in the cache `folder` ("off": none) where the files are large and the examples compact."""
    files = task.files(path)
    if folder == "off" or sum(file.stat().st_size for file in files.values()) < WORTH:
        return Splits(task.read(path))

    def make(arrays: Arrays, notices: list[str]) -> tuple[Splits, list[str]]:
        return Splits({split: task.Examples.from_arrays(file, part(arrays, split)) for split, file in files.items()}
                      ), notices

    cache, key = Cache(folder), {"kind": "examples", **sources(task, files)}
    known = len(task.notices)
    if (found := cache.load(key, make)) is not None:
        splits = found[0]
        task.notices += found[1]
    else:
        splits = Splits(task.read(path))
        if key["files"] != digests(files):
            task.notices.append(f"{path}: files changed while they were read; nothing is kept in {folder}")
            return splits
        if all(isinstance(examples, task.Examples) for examples in splits.values()):
            cache.save(key, together(splits), task.notices[known:])
    splits.cache, splits.key = cache, key
    move_notices(cache, task)
    return splits


def encode_splits(task: Task, splits: Splits, tokenizer: Tokenizer, max_pieces: int,
                  overlap: int) -> dict[str, Features]:
    """The features of every split, and what the task has to note of them."""
    task.tokenizer = tokenizer                     # it names pieces by it, also those of features from the cache
    features = kept_features(task, splits, tokenizer, max_pieces, overlap)
    for split, rows in features.items():
        task.note_rows(split, rows)
    return features


def kept_features(task: Task, splits: Splits, tokenizer: Tokenizer, max_pieces: int,
                  overlap: int) -> dict[str, Features]:
    """encode_all of every split, from the cache where it is there, and kept in it where the examples have a key."""

    def encode() -> dict[str, Features]:
        return {split: encode_all(task, examples, tokenizer, max_pieces, overlap) for split, examples in splits.items()}

    if splits.cache is None:
        return encode()
    key = {**splits.key, "kind": "features", "labels": task.labels, "max_pieces": max_pieces, "overlap": overlap,
           "case_shapes": tokenizer.case_shapes, "types": tokenizer.types, "splits": list(splits),
           "tokenizer": hashlib.sha256(tokenizer.backend.to_str().encode("utf-8", "surrogatepass")).hexdigest()}
    features = splits.cache.load(key, lambda arrays, _: {
        split: Features.from_arrays(part(arrays, split), task.About).checked() for split in splits})
    if features is None:
        features = encode()
        splits.cache.save(key, together(features))
    move_notices(splits.cache, task)
    return features


def sources(task: Task, files: dict[str, Path]) -> Json:
    """What examples are made from: files, task, options, and the code and libraries that make them."""
    return {"format": FORMAT, "task": task.name, "options": dataclasses.asdict(task.options), "files": digests(files),
            "code": code(task), "tokenizers": tokenizers.__version__, "unicode": unicodedata.unidata_version}


def digests(files: dict[str, Path]) -> dict[str, str]:
    """SHA-256 of the contents of each file."""
    result = {}
    for name, file in files.items():
        try:
            with open_regular(file, "rb") as f:
                result[name] = hashlib.file_digest(f, "sha256").hexdigest()
        except OSError as e:
            raise MinibertError(f"{file}: cannot be read ({e.strerror})") from None
    return result


def code(task: Task) -> str:
    """SHA-256 of the source of this package and of the file the task was written in."""
    own = Path(__file__).parent.parent
    elsewhere = Path(str(sys.modules[type(task).__module__].__file__))
    digest = hashlib.sha256()
    for file in [*sorted(own.rglob("*.py")), elsewhere]:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def together(splits: Json) -> Arrays:
    """The arrays of all splits, the name of the split in front."""
    return {f"{split}.{name}": x for split, whole in splits.items() for name, x in whole.arrays().items()}


def part(arrays: Arrays, split: str) -> Arrays:
    """The arrays of one split, without its name in front."""
    return {name.removeprefix(f"{split}."): x for name, x in arrays.items() if name.startswith(f"{split}.")}


def move_notices(cache: Cache, task: Task) -> None:
    """What the cache has to tell, told with what reading has."""
    task.notices += cache.notices
    cache.notices.clear()
