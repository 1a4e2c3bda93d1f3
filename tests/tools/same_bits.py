"""Do two trees of this repository compute the same numbers, to the bit?

    python tests/tools/same_bits.py                                   # the working tree against the default of --old
    python tests/tools/same_bits.py --tasks ner qa/fast-fp32          # a task, or one comparison of it
    python tests/tools/same_bits.py --baseline DIR [--prepare]        # keep the old side there; --prepare: only make it
    python tests/tools/same_bits.py --allow ner/fast-bf16=1e-6        # a named exception, with its relative tolerance

Every task is trained by both trees under every engine, from the same weights and data. The loss and gradient norm of
each update, the dev scores where there are any, and the saved weights must be equal. Then a run folder that the old
tree finished is given to both: `predict` and `evaluate` must answer the same. One line a comparison; the exit code is
1 if any differs. Only command lines and files are used, nothing is imported from either tree but the old one's trial
texts. Seconds and counts of pieces are not compared.
"""
import argparse
import contextlib
import functools
import hashlib
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TASKS = ("ner", "classify", "relation", "match", "reply", "translate", "mlm", "qa")      # the longest runs last
FAST = ("--gradients", "fast", "--precision", "fp32", "--evaluate", "none")
KEPT = "fast-fp32"                                 # the run whose folder is kept for ANSWERS
ENGINES = {"fast-bf16": ("--gradients", "fast", "--precision", "bf16", "--evaluate", "none"),
           KEPT: ("--gradients", "fast", "--precision", "fp32", "--evaluate", "dev"),
           "by-hand-fp32": ("--gradients", "by-hand", "--precision", "fp32", "--evaluate", "none")}
MORE = {"ner/accumulate": (*FAST, "--accumulate", "3"),
        "ner/adversarial": (*FAST, "--adversarial", "0.5"),
        "ner/ragged": (*FAST, "--layout", "ragged"),
        "ner/autograd-fp32": ("--gradients", "autograd", "--precision", "fp32", "--evaluate", "none"),
        "reply/accumulate": (*FAST, "--accumulate", "3"),
        "mlm/next-sentence": (*FAST, "--next-sentence")}
RUNS = {f"{task}/{engine}": words for task in TASKS for engine, words in ENGINES.items()} | MORE
ANSWERS = ("predict", "evaluate")
NAMES = sorted([*RUNS, *(f"{task}/{answer}" for task in TASKS for answer in ANSWERS)],
               key=lambda name: (TASKS.index(name.split("/")[0]), name.endswith(ANSWERS)))   # a task's answers last

Leaf = str | int | float | bool | None


class Failed(Exception):
    """A command of one of the trees that did not do its work, in one line."""


# ------------------------------------------------------------------------------------------------------ comparing


def leaves(value: object, where: str = "") -> Iterator[tuple[str, Leaf]]:
    """(place, value) of everything in a JSON value that holds nothing else; an empty list or object is one too."""
    if isinstance(value, dict | list) and value:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, f"{where}.{key}" if where else str(key))
    else:
        yield where, repr(value) if isinstance(value, dict | list) else value


def of_training(record: str) -> dict[str, Leaf]:
    """{place: value} of what is compared in a metrics.jsonl: of an update two numbers, of other lines all."""
    found: dict[str, Leaf] = {}
    for line in map(json.loads, record.splitlines()):
        where = f"update {line['step']}" if "step" in line else ""
        if "loss" in line:
            found |= {f"{where} {key}": line.get(key, "missing") for key in ("loss", "gradient_norm")}
        else:
            found |= leaves(line, where)
    return found


def of_answers(record: str) -> dict[str, Leaf]:
    """{place: value} of everything in JSON lines."""
    return {place: value for number, line in enumerate(record.splitlines(), 1)
            for place, value in leaves(json.loads(line), f"line {number}")}


def relative_difference(a: Leaf, b: Leaf) -> float:
    """|a - b| / max(|a|, |b|): 0 for equal values, infinity for different ones that are not both numbers."""
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (a, b))
    if a == b and (numbers or type(a) is type(b)):
        return 0.0
    if not numbers or not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    return abs(a - b) / max(abs(a), abs(b))


def compare(old: dict[str, Leaf], new: dict[str, Leaf], allowed: float = 0.0) -> tuple[bool, str]:
    """(whether no value differs by more than `allowed`, relative; what was found, in words)."""
    sizes = {place: relative_difference(old.get(place, "missing"), new.get(place, "missing")) for place in old | new}
    different = {place: size for place, size in sizes.items() if size}
    if not different:
        return True, f"same, {len(sizes)} values"

    good, first = max(different.values()) <= allowed, next(iter(different))
    numbers = [size for size in different.values() if size < math.inf]
    words = f"within {allowed:g}" if good else "DIFFERS"
    change = f"{first}: {old.get(first, 'missing')!r} -> {new.get(first, 'missing')!r}"
    return good, f"{words}, {len(different)} of {len(sizes)} values, first {change}; largest relative difference of " \
                 f"{len(numbers)} numbers {max(numbers, default=0.0):.2g}"


# -------------------------------------------------------------------------------------------------- running a tree


def run(tree: Path, *words: str) -> str:
    """What Python prints for these words in a tree. Raises Failed with the last line of its complaint."""
    env = os.environ | {"PYTHONPATH": str(tree), "PYTHONUTF8": "1", "OMP_NUM_THREADS": threads(),
                        "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *words], cwd=tree, env=env, encoding="utf-8", stdin=subprocess.DEVNULL,
                          capture_output=True)
    if done.returncode:
        last = (done.stderr.strip() or "nothing said").splitlines()[-1]
        raise Failed(f"exit code {done.returncode} of {' '.join(words[:4])} ... in {tree}: {last}")
    return done.stdout


def threads() -> str:
    """Those of every run, on both sides."""
    return os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count())


def saved_weights(file: Path) -> dict[str, str]:
    """{tensor: its type, shape and the SHA-256 of its bytes} of a .safetensors file."""
    raw = file.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    found = {}
    for name, entry in json.loads(raw[8:start]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            digest = hashlib.sha256(raw[start + begin:start + end]).hexdigest()
            found[name] = f"{entry['dtype']} {entry['shape']} {digest}"
    return found


@dataclass
class Comparison:
    """Two trees, and the folder that keeps what the old one computed: old/NAME.jsonl, runs/TASK, data/TASK."""
    old: Callable[[], Path]                        # checked out when first asked for
    new: Path
    base: Path
    weights: Path
    updates: int

    def of_old(self, name: str) -> str:
        """The record of a comparison by the old tree, made now if it is not kept."""
        kept, task = self.base / "old" / f"{name}.jsonl", name.split("/")[0]
        if kept.exists():
            return kept.read_text("utf-8")

        if name not in RUNS:
            self.of_old(f"{task}/{KEPT}")          # makes the run folder that is asked
        keep = self.base / "runs" / task if name == f"{task}/{KEPT}" else None
        record = self.record(self.old(), name, keep)
        kept.parent.mkdir(parents=True, exist_ok=True)
        half = kept.with_suffix(".half")
        half.write_text(record, "utf-8")
        half.replace(kept)
        return record

    def record(self, tree: Path, name: str, keep: Path | None = None) -> str:
        """JSON lines by one tree: metrics.jsonl and a line of saved weights, or an answer of the old run folder."""
        task, what = name.split("/")
        if name in RUNS:
            return self.train(tree, task, RUNS[name], keep)
        finished = str(self.base / "runs" / task)
        words = [self.trial(task)] if what == "predict" else ["--data", str(self.data(task))]
        answer = run(tree, "-m", "minibert", what, finished, *words, "--json")
        if not answer.strip():
            raise Failed(f"{what} of {tree} printed nothing")
        return answer

    def train(self, tree: Path, task: str, words: tuple[str, ...], keep: Path | None) -> str:
        """The record of one run; its folder goes to `keep`."""
        with tempfile.TemporaryDirectory() as work:
            output = Path(work) / "run"
            run(tree, "train.py", "--task", task, *words, "--max-steps", str(self.updates), "--no-before", "--cache",
                "off", "--weights", str(self.weights), "--data", str(self.data(task)), "--output", str(output))
            record = (output / "metrics.jsonl").read_text("utf-8")
            seen = sum("loss" in json.loads(line) for line in record.splitlines())
            if seen != self.updates:
                raise Failed(f"{tree} wrote {seen} updates into metrics.jsonl, not {self.updates}")
            saved = json.dumps({"saved weights": saved_weights(output / "model.safetensors")})
            if keep:
                shutil.rmtree(keep, ignore_errors=True)
                keep.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(output, keep)
        return f"{record}{saved}\n"

    def data(self, task: str) -> Path:
        """The new tree's data, copied once: all runs read the copy."""
        kept = self.base / "data" / task
        if not kept.exists():
            half = kept.with_suffix(".half")
            shutil.copytree(self.new / "data" / task, half, dirs_exist_ok=True)
            half.replace(kept)
        return kept

    def trial(self, task: str) -> str:
        """The old tree's text to try a model of this task on."""
        kept = self.base / "old" / task / "trial.txt"
        if not kept.exists():
            text = run(self.old(), "-c", f"from minibert.tasks import TASKS; print(TASKS[{task!r}].trial)")
            kept.write_text(text.rstrip("\n"), "utf-8")
        return kept.read_text("utf-8")

    def verdict(self, name: str, allowed: float) -> tuple[bool, str]:
        """As compare(), with the saved weights left out where rounding is allowed to differ."""
        old, new = (self.of_old(name), self.record(self.new, name))
        if name not in RUNS:
            return compare(of_answers(old), of_answers(new), allowed)
        if allowed:
            old, new = (record.rstrip("\n").rpartition("\n")[0] for record in (old, new))
        return compare(of_training(old), of_training(new), allowed)


# ------------------------------------------------------------------------------------------------ trees and machine


def git(*words: str) -> str:
    """What git prints in this repository. Raises Failed with the last line of its complaint."""
    done = subprocess.run(["git", "-C", str(REPOSITORY), *words], capture_output=True, encoding="utf-8")
    if done.returncode:
        raise Failed(f"git {' '.join(words)}: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
    return done.stdout.strip()


def is_tree(what: str) -> bool:
    """Whether it names a folder with train.py, to be taken as it is, rather than a commit."""
    return (Path(what) / "train.py").is_file()


@contextlib.contextmanager
def checked_out(what: str) -> Iterator[Path]:
    """The folder `what` as it is, or the commit `what` in a temporary git worktree."""
    if is_tree(what):
        yield Path(what).resolve()
        return
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary) / "tree"
        git("worktree", "add", "--detach", str(tree), what)
        try:
            yield tree
        finally:
            git("worktree", "remove", "--force", str(tree))


def processor() -> str:
    """Its vendor, model numbers and name, where the system tells them, and what torch's kernels may use of it."""
    import torch
    wanted = ("vendor_id", "cpu family", "model", "model name")
    first = ""
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    facts = [line.partition(":") for line in first.splitlines()]
    told = [f"{key.strip()} {value.strip()}" for key, _, value in facts if key.strip() in wanted]
    bf16 = [name for name, there in torch.cpu.get_capabilities().items() if there is True and "bf16" in name]
    return ", ".join([*(told or [platform.processor() or platform.machine()]),
                      torch.backends.cpu.get_cpu_capability(), *sorted(bf16)])


def key(old: str, updates: int, weights: Path) -> dict[str, str | int]:
    """What must be the same for a kept old side to be worth comparing with."""
    return {"commit": str(Path(old).resolve()) if is_tree(old) else git("rev-parse", f"{old}^{{commit}}"),
            "updates": updates, "threads": threads(), "processor": processor(), "torch": version("torch"),
            "numpy": version("numpy"), "tokenizers": version("tokenizers"), "python": platform.python_version(),
            "weights": hashlib.sha256((weights / "model.safetensors").read_bytes()).hexdigest()}


def check_key(base: Path, here: dict[str, str | int]) -> None:
    """Write key.json into a new folder. Raises Failed where the one that is there says anything else."""
    file = base / "key.json"
    if not file.exists():
        base.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(here, indent=1) + "\n", "utf-8")
    there = json.loads(file.read_text("utf-8"))
    if different := [name for name in here | there if here.get(name) != there.get(name)]:
        name = different[0]
        raise Failed(f"{file}: {name} is {there.get(name)!r} there and {here.get(name)!r} here; take another "
                     "--baseline")


# -------------------------------------------------------------------------------------------------- the command line


def chosen(wishes: list[str]) -> list[str]:
    """The comparisons that tasks, or names of comparisons, stand for. Raises Failed for a name that stands for none."""
    for wish in wishes:
        if wish not in (*TASKS, *NAMES):
            raise Failed(f"{wish} is no comparison; there are {', '.join(TASKS)} and {', '.join(NAMES)}")
    return [name for name in NAMES if name in wishes or name.split("/")[0] in wishes]


def exceptions(given: list[str]) -> dict[str, float]:
    """{comparison: relative tolerance} from T/WHAT=1e-6. Raises Failed for anything else."""
    found = {}
    for word in given:
        name, _, value = word.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise Failed(f"--allow {word}: give it as ner/fast-bf16=1e-6") from None
        if name not in NAMES or not 0 < found[name] < 1:
            raise Failed(f"--allow {word}: one of {', '.join(NAMES)}, and a tolerance between 0 and 1")
    return found


def compare_trees(given: argparse.Namespace, stack: contextlib.ExitStack) -> int:
    """Print a line a comparison; -> how many differ."""
    names, allowed, weights = chosen(given.tasks), exceptions(given.allow), given.weights.resolve()
    if not (weights / "model.safetensors").is_file():
        raise Failed(f"{weights}: no model.safetensors; name a folder of weights with --weights")
    base = given.baseline or Path(stack.enter_context(tempfile.TemporaryDirectory()))
    check_key(base.resolve(), key(given.old, given.updates, weights))
    new = stack.enter_context(checked_out(given.new))
    old = functools.cache(lambda: stack.enter_context(checked_out(given.old)))
    comparison, begun, bad = Comparison(old, new, base.resolve(), weights, given.updates), time.perf_counter(), 0

    for name in names:
        try:
            if given.prepare:
                comparison.of_old(name)
            good, words = (True, "kept") if given.prepare else comparison.verdict(name, allowed.get(name, 0.0))
        except Failed as e:
            good, words = False, f"FAILED, {e}"
        bad += not good
        print(f"{name:22} {words}", flush=True)
    print(f"{bad} of {len(names)} comparisons differ or failed; {time.perf_counter() - begun:.0f} s", flush=True)
    return bad


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 where all is the same or allowed, 1 where anything differs, 2 for what cannot be compared."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--old", default="199a5ca", help="a commit, or a folder with train.py (default: 199a5ca)")
    add("--new", default=str(REPOSITORY), help="the same (default: the working tree as it is)")
    add("--tasks", nargs="+", default=list(TASKS), metavar="T", help="tasks, or names such as ner/ragged")
    add("--updates", type=int, default=30, help="of every run (default: 30)")
    add("--weights", type=Path, default=REPOSITORY / "weights" / "minilm-l6", help="folder to start from")
    add("--baseline", type=Path, help="folder that keeps the old side for another time")
    add("--prepare", action="store_true", help="only make what --baseline lacks")
    add("--allow", action="append", default=[], metavar="T/WHAT=X", help="relative tolerance of one of them")
    given = parser.parse_args(argv)
    with contextlib.ExitStack() as stack:
        try:
            return 1 if compare_trees(given, stack) else 0
        except Failed as e:
            print(f"same_bits.py: {e}", file=sys.stderr)
            return 2


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))       # so that the worktrees go, and the run in hand
    sys.exit(main())
