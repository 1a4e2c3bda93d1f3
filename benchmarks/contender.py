"""A worker's side of the benchmark: one contender in one setting, its clock, and the loop that takes its orders.

    python benchmarks/contender.py '{"side": "minibert", ...}'        # started by workers.Worker, never by hand

Orders come as JSON lines on standard input, each is answered by one JSON line. Between two orders the process is
blocked in a read. Each side is imported only in its own workers.
"""
import abc
import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))                      # this checkout's minibert, whatever else is installed

SCHEDULE = 100_000                                 # updates the learning rate is planned for, so that no run reaches 0
BATCH = 32                                         # rows an update


class Contender(abc.ABC):
    """One side, ready to work. Epoch 0 is for warming up, the rounds take the batches of epochs 1, 2, 3, ..."""
    precision: str                                 # resolved: fp32 or bf16

    def __init__(self):
        self.epochs = itertools.count(1)
        self.stream = itertools.chain.from_iterable(self.batches(epoch) for epoch in self.epochs)

    @abc.abstractmethod
    def batches(self, epoch: int) -> Iterator[Any]:
        """What update() takes, one epoch of it, as the library itself would order it."""

    @abc.abstractmethod
    def update(self, batch: Any) -> tuple[int, int]:
        """Assemble the batch, forward, backward, clip, optimizer; -> pieces without padding, cells with padding."""

    @abc.abstractmethod
    def score_rows(self, every: int) -> tuple[int, int]:
        """Scores of every `every`-th test row; -> pieces, cells (0 where the library keeps that to itself)."""

    @abc.abstractmethod
    def rows(self) -> dict[str, list[Sequence[int]]]:
        """The pieces of every row, by split, in the order of the files."""

    def updates(self, count: int) -> dict[str, float]:
        """The next `count` updates."""
        return self.clock(itertools.islice(self.stream, count))

    def whole_epoch(self) -> dict[str, float]:
        """The next epoch, all of it."""
        return self.clock(self.batches(next(self.epochs)))

    def warm_up(self, count: int) -> dict[str, float]:
        """`count` updates of an epoch that no round uses."""
        return self.clock(itertools.islice(self.batches(0), count))

    def clock(self, batches: Iterable[Any]) -> dict[str, float]:
        """Updates on `batches`, drawing and assembling them included; -> wall seconds, updates, pieces, cells."""
        begin, done = time.perf_counter(), [self.update(b) for b in batches]
        pieces, cells = map(sum, zip(*done, strict=True))
        return {"seconds": time.perf_counter() - begin, "updates": len(done), "pieces": pieces, "cells": cells}

    def score(self, every: int) -> dict[str, float]:
        """Test rows -> scores as float32 numpy arrays, sorting and assembling included; tokenising is not."""
        begin = time.perf_counter()
        pieces, cells = self.score_rows(every)
        return {"seconds": time.perf_counter() - begin, "pieces": pieces, "cells": cells}

    def facts(self) -> dict[str, Any]:
        """What this contender read: rows, pieces and a hash a split, so that the parent sees both sides agree."""
        splits = {split: {"rows": len(rows), "pieces": sum(map(len, rows)), "sha256": fingerprint(rows)}
                  for split, rows in self.rows().items()}
        return {"precision": self.precision, "read": splits}


def fingerprint(rows: Iterable[Sequence[int]]) -> str:
    """SHA-256 of rows of piece numbers: equal only where every row has the same pieces in the same order."""
    text = "\n".join(" ".join(str(int(i)) for i in row) for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()


def peak_mb() -> float | None:
    """Largest resident size of this process so far, in MB of 2^20 bytes; None where there is no /proc."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def serve(contender: Any, orders: TextIO, answers: TextIO) -> None:
    """Answer {"job": method, its arguments} line by line with what the method returns and what it cost this process."""
    rested, rested_cpu = time.perf_counter(), time.process_time()
    for line in orders:
        order = json.loads(line)
        began, began_cpu = time.perf_counter(), time.process_time()
        answer = getattr(contender, order.pop("job"))(**order)
        cost = {"cpu_seconds": time.process_time() - began_cpu, "peak_mb": peak_mb(),
                "waited_seconds": began - rested, "waited_cpu_seconds": began_cpu - rested_cpu}
        print(json.dumps({**answer, **cost}), file=answers, flush=True)
        rested, rested_cpu = time.perf_counter(), time.process_time()


def make(spec: dict[str, Any]) -> Any:
    """The contender that `spec` describes; its library is imported here and nowhere else."""
    if spec["side"] == "machine":
        from machine import Machine
        return Machine()
    if spec["side"] == "gpu":
        from gpu_parts import Parts
        return Parts(spec)
    if spec["side"] == "minibert":
        from ours import Minibert
        return Minibert(spec)
    from peer import Best, Recipe
    return {"transformers, best": Best, "transformers, recipe": Recipe}[spec["side"]](spec)


def main() -> None:
    """Serve until standard input ends; whatever libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(make(json.loads(sys.argv[1])), sys.stdin, answers)


if __name__ == "__main__":
    main()
