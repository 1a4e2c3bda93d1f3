"""`make torture`: kill training runs with SIGKILL at random moments, resume them, and compare the weights bit by bit.

    python tests/tools/torture.py [--tiny 100] [--real 10] [--seed S] [--report FILE]

A run is started again and again with --resume in the same folder and killed at a random moment after its first
checkpoint, every third time within a save, until enough kills have hit; then it may finish. Its weights must be those
of the run that nobody touched, every update must stand in metrics.jsonl once, and no whole checkpoint may be lost: each
resume must start at the newest that was there when the kill came, or after it.
"""
import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from tiny import write_tiny_data, write_tiny_folder  # noqa: E402

from minibert.checkpoints import weights  # noqa: E402
from minibert.run.checkpoint import NAME  # noqa: E402

PATIENCE = 300                                     # seconds until a run that does nothing counts as hung


@dataclass
class Job:
    """What is trained: the arguments of train.py without --output, and updates between two saves."""
    name: str
    arguments: list[str]
    every: int

    def command(self, output: Path) -> list[str]:
        """One for the first start and for every other; it makes the folder that --resume wants to see."""
        output.mkdir(parents=True, exist_ok=True)
        return [sys.executable, str(ROOT / "train.py"), *self.arguments, "--save-every", str(self.every), "--resume",
                "--output", str(output)]


@dataclass
class Kill:
    """One SIGKILL: which run, the newest checkpoint and the last logged update just before it, where it hit."""
    run: int
    checkpoint: int
    logged: int
    inside_save: bool


def named(output: Path) -> list[int]:
    """Updates of the checkpoints that have got their name, newest first."""
    try:
        return sorted((int(m[1]) for f in (output / "checkpoints").iterdir() if (m := NAME.fullmatch(f.name))),
                      reverse=True)
    except FileNotFoundError:
        return []


def growing(output: Path) -> bool:
    """Whether a checkpoint is being written this moment."""
    try:
        return any(f.name.startswith(".update-") for f in (output / "checkpoints").iterdir())
    except FileNotFoundError:
        return False


def steps(output: Path) -> list[int]:
    """The updates in metrics.jsonl, an unfinished last line left out."""
    try:
        lines = (output / "metrics.jsonl").read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []
    return [line["step"] for line in map(json.loads, lines) if "loss" in line]


def start(job: Job, output: Path, log: Path) -> subprocess.Popen:
    with open(log, "a") as f:
        return subprocess.Popen(job.command(output), stdout=f, stderr=f)


def wait(process: subprocess.Popen, until, log: Path) -> bool:
    """Poll until(); False if the process ended before. Raises where nothing happens for PATIENCE seconds."""
    deadline = time.monotonic() + PATIENCE
    while not until():
        if process.poll() is not None:
            return False
        if time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"hung: {log.read_text()[-2000:]}")
        time.sleep(0.0005)
    return True


def kill_once(job: Job, output: Path, log: Path, draw: random.Random, longest: float, in_save: bool, run: int,
              ) -> Kill | None:
    """Start the run, kill it at a random moment after it trains with a checkpoint behind it; None: it ended before."""
    before = steps(output)[-1:]
    process = start(job, output, log)
    try:
        # the process has resumed and made an update of its own, and a whole checkpoint is there
        if not wait(process, lambda: named(output) and steps(output)[-1:] not in ([], before), log):
            return None
        time.sleep(draw.uniform(0, longest))
        if in_save and not wait(process, lambda: growing(output), log):
            return None
        if in_save:
            time.sleep(draw.uniform(0, 0.02))
        seen, logged, inside = named(output)[0], steps(output)[-1], growing(output)
        if process.poll() is not None:
            return None
        os.kill(process.pid, signal.SIGKILL)
        if process.wait() != -signal.SIGKILL or (output / "metrics.json").is_file():
            return None                            # it had ended, or was about to with all its work done
        return Kill(run, seen, logged, inside)
    finally:
        process.kill()
        process.wait()


def finish(job: Job, output: Path, log: Path) -> None:
    process = start(job, output, log)
    assert process.wait(timeout=4 * PATIENCE) == 0, log.read_text()[-2000:]


def same_weights(a: Path, b: Path) -> bool:
    """torch.equal of every tensor of two run folders."""
    one, two = ({name: s[...] for name, _, s in weights.read_tensors(folder)} for folder in (a, b))
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


def resumed(log: Path) -> list[int]:
    """Where each resume began, as printed: "resumed from update 15"."""
    return [int(x) for x in re.findall(r"^resumed from update (\d+)$", log.read_text(), re.MULTILINE)]


def torture(job: Job, folder: Path, kills: int, seed: int, longest: float, most_a_run: int) -> Iterator[Kill]:
    """`kills` kills of as many runs as that takes, every one checked as the head of this file says."""
    draw = random.Random(seed)
    untouched = folder / "untouched"
    finish(job, untouched, folder / "untouched.log")
    total, done, run = steps(untouched)[-1], 0, 0
    while done < kills:
        run += 1
        output, log, in_this = folder / f"run-{run}", folder / f"run-{run}.log", []
        while len(in_this) < most_a_run and done < kills:
            kill = kill_once(job, output, log, draw, longest, in_save=done % 3 == 0, run=run)
            if kill is None:
                break
            in_this.append(kill)
            done += 1
            yield kill
        finish(job, output, log)
        starts = resumed(log)
        assert len(starts) >= len(in_this), (starts, in_this)
        for kill, begun in zip(in_this, starts, strict=False):
            assert begun >= kill.checkpoint, f"a whole checkpoint was lost: {kill}, resumed from {begun}"
            assert begun >= kill.logged - job.every, f"more than {job.every} updates were lost: {kill}, {begun}"
        assert steps(output) == list(range(1, total + 1)), "an update is missing or stands twice"
        assert same_weights(untouched, output), f"run {run} ended with other weights"


def tiny_job(folder: Path) -> Job:
    """A model of 2 blocks, 120 updates in fp32 with accumulation, a save every 5."""
    for name, write in (("weights", write_tiny_folder), ("data", write_tiny_data)):
        (folder / name).mkdir()
        write(folder / name)
    return Job("tiny", ["--weights", str(folder / "weights"), "--data", str(folder / "data"), "--batch-size", "7",
                        "--accumulate", "2", "--epochs", "14", "--learning-rate", "3e-3", "--precision", "fp32",
                        "--max-pieces", "24", "--overlap", "6", "--no-before", "--cache", "off"], every=5)


def real_job(folder: Path) -> Job:
    """minilm-l6 on data/ner with the defaults (bf16 where the machine is fast at it), a save every 4 updates."""
    return Job("minilm-l6", ["--weights", str(ROOT / "weights" / "minilm-l6"), "--data", str(ROOT / "data" / "ner"),
                             "--no-before", "--cache", str(folder / "cache")], every=4)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", type=int, default=100, help="kills of the tiny model (default: 100)")
    parser.add_argument("--real", type=int, default=10, help="kills of minilm-l6 (default: 10)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for make, kills, longest, most in ((tiny_job, options.tiny, 1.0, 6), (real_job, options.real, 8.0, 5)):
        if not kills:
            continue
        with tempfile.TemporaryDirectory(prefix="minibert-torture-") as name:
            folder = Path(name)
            job = make(folder)
            print(f"{job.name}: {kills} kills, seed {options.seed}, a save every {job.every} updates", flush=True)
            inside = 0
            for number, kill in enumerate(torture(job, folder, kills, options.seed, longest, most), 1):
                inside += kill.inside_save
                print(f"kill {number} of {kills}: run {kill.run}, update {kill.logged} logged, newest checkpoint "
                      f"{kill.checkpoint}{', inside a save' if kill.inside_save else ''}", flush=True)
        print(f"{job.name}: {kills} kills, {inside} of them inside a save; every run ended with the weights of the "
              "untouched one; no whole checkpoint was lost", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
