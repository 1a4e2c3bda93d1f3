"""One file as train, dev and test: --split 0.8,0.1,0.1, and --stratify for every label in the same shares."""
import dataclasses
import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minibert.data.order import shuffled
from minibert.errors import MinibertError
from minibert.files import Json
from minibert.tasks.base import Task
from minibert.use.prepare import Splits, digests

NAMES = ("train", "dev", "test")
READING = {"columns", "incomplete"}                # options of tasks that change which rows are read, or their labels
PURPOSE = 2                                        # of the permutation, apart from those of batches


def divide(task: Task, splits: Splits, path: Path, shares: str | None, stratify: bool, seed: int) -> Splits:
    """The examples of the one file at `path` in these shares, drawn by `seed`, in the order of the file; all as they
    are without `shares`. Raises MinibertError for several files, and for shares that leave a split empty.
    """
    if shares is None:
        return splits
    if len(splits) != 1:
        raise MinibertError(f"--split is {shares}; {path} has {', '.join(splits)} files already; give one file")
    examples, = splits.values()
    strata = [task.stratum(example) for example in examples] if stratify else [None] * len(examples)
    parts = allot(strata, [float(share) for share in shares.split(",")], seed)
    if empty := [name for name, numbers in zip(NAMES, parts, strict=False) if not len(numbers)]:
        raise MinibertError(f"--split is {shares}; of the {len(examples)} examples of {path} none would be left for "
                            f"{empty[0]}; give more, or other shares")

    divided = Splits({name: task.subset(examples, numbers) for name, numbers in zip(NAMES, parts, strict=False)})
    divided.file_sha256 = contents(task, path)
    if splits.cache is not None:
        divided.cache, divided.key = splits.cache, {**splits.key, "split": [shares, stratify, seed]}
    return divided


def divide_as_then(task: Task, splits: Splits, path: Path, settings: Json) -> Splits:
    """The same for a model with these `settings`, where `path` holds what it was trained on a part of.

    Raises MinibertError for options that read other rows than training did: nobody knows which of those it has seen.
    """
    shares, file = settings.get("split"), str(settings.get("data"))
    if shares is None:
        return splits
    if contents(task, path) != settings.get("file_sha256"):
        if os.path.exists(file) and os.path.samefile(file, path):
            task.notices.append(f"{path} is not as it was when the model was trained on a part of it; all of it is "
                                "scored, also what may have been in that part")
        return splits
    for name, value in dataclasses.asdict(task.options).items():
        if name in READING and value != settings.get(name):
            raise MinibertError(f"--{name} is {value}, but {settings.get(name)} in training; with other rows nobody "
                                "can say which the model was trained on; leave it out")
    task.notices.append(f"{path} is what the model was trained on a part of; divided as then, by --split {shares}")
    return divide(task, splits, path, shares, settings["stratify"], settings["seed"])


def contents(task: Task, path: Path) -> str:
    """SHA-256 of the data files at `path`."""
    return hashlib.sha256(" ".join(digests(task.files(path)).values()).encode()).hexdigest()


def allot(strata: Sequence[object], shares: Sequence[float], seed: int) -> list[np.ndarray]:
    """For each share the numbers of the examples it gets, ascending. `strata` [N]: what each is to be shared out by.

    A stratum of n gives the share s floor(n s) of them, or one more where that is not whole: what is left over goes to
    the shares that are furthest behind in all so far.
    """
    members: dict[object, list[int]] = defaultdict(list)
    for number in shuffled(len(strata), seed, 0, PURPOSE).tolist():
        members[strata[number]].append(number)

    parts: list[list[int]] = [[] for _ in shares]
    seen = 0
    for numbers in members.values():
        seen += len(numbers)
        exact = [round(len(numbers) * share, 9) for share in shares]
        counts = [int(x) for x in exact]
        behind = [seen * share - len(part) - count for share, part, count in zip(shares, parts, counts, strict=True)]
        broken = [i for i in range(len(shares)) if exact[i] > counts[i]]
        for i in sorted(broken, key=lambda i: -behind[i])[:len(numbers) - sum(counts)]:
            counts[i] += 1
        for part, stop, count in zip(parts, np.cumsum(counts).tolist(), counts, strict=True):
            part += numbers[stop - count:stop]
    return [np.array(sorted(part), np.int64) for part in parts]
