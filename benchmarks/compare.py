"""minibert and transformers side by side: training, scoring, start-up, memory, and what the machine itself can do.

    python benchmarks/compare.py --data DIR [--rounds 5] [--updates 40] [--only train-bf16,...] [--output FOLDER]

DIR holds CoNLL columns (train, dev or valid, test). Each contender in each setting is a process of its own; they work
in turn, never two at once, for so many rounds, every other round in reverse order, and the ratio of each pair is taken
within its round. All warm up before. What each number counts is printed below the table (summary.COUNTED).

    train-…   minibert with its defaults (or --minibert "ARGUMENTS"); transformers at its best (minibert's batches,
              fused AdamW); transformers as its example does it (random batches). fp32, bf16, and auto: what minibert
              chooses by itself beside minibert fp32 and the example in its default, fp32
    score-…   the test set: evaluate.score_features; transformers sorted by length, 64 rows at a time
    …-base-…  the same at the size of bert-base (12 layers, 768 wide, random weights), fewer updates, every fourth row
    start-up  from the start of a process to the end of its first update, in the precision that auto chooses
    memory-…  the peak of a fresh process after 20 and after 60 updates
    machine   rates of matrix products and copies, at the beginning and at the end, the higher counts

--only takes these names, or beginnings of them (train, score-base); machine is measured whenever it is chosen or
anything is. Transformers, and matplotlib for the plot, must be installed: `make bench` sees to it. On the CPU only.
"""
import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))                      # this checkout's minibert, whatever else is installed

import torch  # noqa: E402
from contender import peak_mb  # noqa: E402
from summary import COUNTED, UNITS, add_limits, best_rates, disagreements, matrix_weights, summarise, table  # noqa: E402
from workers import Worker, start  # noqa: E402

import minibert  # noqa: E402
from minibert.checkpoints.weights import random_bert, save  # noqa: E402
from minibert.core.config import BertConfig  # noqa: E402
from minibert.core.precision import resolve_precision  # noqa: E402
from minibert.data.tables import find_files  # noqa: E402
from minibert.errors import MinibertError  # noqa: E402
from minibert.options import OneLineParser  # noqa: E402
from minibert.tasks.conll import SUFFIXES  # noqa: E402

BASE = BertConfig(vocab_size=30522, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
                  intermediate_size=3072)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
BASE_SHARE = 8                                     # bert-base is eight times the work: so many times fewer updates
BASE_EVERY = 4                                     # and every fourth row of the test set
MEMORY_ROUNDS = 3                                  # at most: memory hardly varies
OURS, BEST, RECIPE = "minibert", "transformers, best", "transformers, recipe"


@dataclass(frozen=True)
class Setting:
    """What is compared with what: (side, precision) of each contender; the first is compared with the others."""
    name: str
    kind: str                                      # train, score, start or memory
    geometry: str                                  # minilm-l6 or bert-base
    contenders: tuple[tuple[str, str], ...]


def settings(auto: str) -> list[Setting]:
    """All of them, in the order they run; `auto` is what --precision auto chooses here."""
    result = []
    for geometry, tag in (("minilm-l6", ""), ("bert-base", "base-")):
        for p in ("fp32", "bf16"):
            result.append(Setting(f"train-{tag}{p}", "train", geometry, ((OURS, p), (BEST, p), (RECIPE, p))))
            result.append(Setting(f"score-{tag}{p}", "score", geometry, ((OURS, p), (BEST, p))))
        result.append(Setting(f"train-{tag}auto", "train", geometry,
                              ((OURS, "auto"), (OURS, "fp32"), (RECIPE, "fp32"))))
        result.append(Setting(f"score-{tag}auto", "score", geometry, ((OURS, "auto"), (OURS, "fp32"))))
    result.append(Setting("start-up", "start", "minilm-l6", ((OURS, "auto"), (BEST, auto))))
    return result + [Setting(f"memory-{p}", "memory", "minilm-l6", ((OURS, p), (BEST, p))) for p in ("fp32", "bf16")]


def choose(only: str | None, known: Sequence[Setting]) -> list[Setting]:
    """The settings that --only names, by whole names or beginnings up to a dash; None: all."""
    if only is None:
        return list(known)
    chosen: set[str] = set()
    for word in only.split(","):
        hits = {s.name for s in known if s.name == word or s.name.startswith(word + "-")}
        if not hits and word != "machine":
            raise MinibertError(f"--only names {word!r}; known: machine, {', '.join(s.name for s in known)}")
        chosen |= hits
    return [s for s in known if s.name in chosen]


def turns(count: int, round_number: int) -> list[int]:
    """Who works when: 0, 1, 2, ... in even rounds, the reverse in odd ones."""
    return list(range(count))[::-1 if round_number % 2 else 1]


# ------------------------------------------------------------------------------------------------------- measurements


class Bench:
    """One run of the benchmark: its options, its folder for throw-away files, the checkpoints of both geometries."""

    def __init__(self, options: argparse.Namespace, weights: Path, folder: Path):
        self.options, self.weights, self.folder, self.made = options, weights, folder, 0

    def checkpoint(self, geometry: str) -> Path:
        """minilm-l6 as fetched; bert-base written at first use, random weights with the tokenizer of minilm-l6."""
        if geometry == "minilm-l6":
            return self.weights
        folder = self.folder / geometry
        if not folder.is_dir():
            folder.mkdir()
            save(folder, random_bert(BASE, seed=0))
            for name in TOKENIZER_FILES:
                if (self.weights / name).is_file():
                    shutil.copy(self.weights / name, folder / name)
        return folder

    def start(self, setting: Setting, side: str, precision: str) -> Worker:
        """A fresh process for one contender."""
        self.made += 1
        spec = {"side": side, "precision": precision, "data": str(self.options.data),
                "weights": str(self.checkpoint(setting.geometry)), "output": str(self.folder / f"run-{self.made}"),
                "arguments": shlex.split(self.options.minibert),
                "attention": self.options.attention if side == BEST else None}
        return start(f"{setting.name}: {side} {precision}", spec, self.folder / f"log-{self.made}")

    @contextlib.contextmanager
    def all_started(self, setting: Setting) -> Iterator[list[Worker]]:
        """A worker a contender, all of them ready; they end with the block."""
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(self.start(setting, *c)) for c in setting.contenders]

    def train(self, setting: Setting) -> tuple[str, list[dict[str, Any]]]:
        """(what was done, facts and rounds a contender): the same number of updates a round for all."""
        o, small = self.options, setting.geometry == "bert-base"
        count, warm = (max(1, n // BASE_SHARE) if small else n for n in (o.updates, o.warm_up))
        whole = o.whole_epochs and not small
        with self.all_started(setting) as workers:
            facts = [w.ask("facts") for w in workers]
            for w in workers:
                w.ask("warm_up", count=warm)
            rounds = (self.alternate(setting, workers, "whole_epoch") if whole else
                      self.alternate(setting, workers, "updates", count=count))
        what = f"{o.rounds} rounds of " + ("a whole epoch" if whole else f"{count:,} updates")
        return f"training {setting.geometry}, {what}", gather(facts, rounds, lambda r: r["pieces"] / r["seconds"])

    def score(self, setting: Setting) -> tuple[str, list[dict[str, Any]]]:
        """The test set, or every fourth row of it, once a round."""
        every = BASE_EVERY if setting.geometry == "bert-base" else 1
        with self.all_started(setting) as workers:
            facts = [w.ask("facts") for w in workers]
            for w in workers:
                w.ask("score", every=every * 8)
            rounds = self.alternate(setting, workers, "score", every=every)
        rows = f"every {every}th row of the test set" if every > 1 else "the test set"
        what = f"scoring {rows} with {setting.geometry}, {self.options.rounds} rounds"
        return what, gather(facts, rounds, lambda r: r["pieces"] / r["seconds"])

    def alternate(self, setting: Setting, workers: list[Worker], job: str, **order: Any) -> list[list[dict[str, Any]]]:
        """[contender][round] of answers, one worker at a time."""
        answers: list[list[dict[str, Any]]] = [[] for _ in workers]
        for number in range(self.options.rounds):
            for i in turns(len(workers), number):
                answers[i].append(workers[i].ask(job, **order))
            tell(f"{setting.name}: round {number + 1} of {self.options.rounds}")
        return answers

    def start_up(self, setting: Setting) -> tuple[str, list[dict[str, Any]]]:
        """Fresh processes in turn; the first of each, which finds files and caches cold, is left out."""
        answers, facts = [[] for _ in setting.contenders], [{} for _ in setting.contenders]
        for number in range(-1, self.options.rounds):
            for i in turns(len(setting.contenders), number):
                begin = time.perf_counter()
                with self.start(setting, *setting.contenders[i]) as worker:
                    answer = worker.ask("updates", count=1)
                    took = time.perf_counter() - begin
                    facts[i] = worker.ask("facts")
                if number >= 0:
                    answers[i].append({**answer, "first_update": took})
            tell(f"{setting.name}: round {number + 1} of {self.options.rounds}")
        what = f"process start to the end of the first update of minilm-l6, {self.options.rounds} fresh processes each"
        return what, gather(facts, answers, lambda r: r["first_update"])

    def memory(self, setting: Setting) -> tuple[str, list[dict[str, Any]]]:
        """Fresh processes in turn, each asked twice: after a few updates, and after more."""
        (few, more), rounds = self.options.memory_updates, min(self.options.rounds, MEMORY_ROUNDS)
        answers, facts = [[] for _ in setting.contenders], [{} for _ in setting.contenders]
        for number in range(rounds):
            for i in turns(len(setting.contenders), number):
                with self.start(setting, *setting.contenders[i]) as worker:
                    first, later = worker.ask("updates", count=few), worker.ask("updates", count=more - few)
                    facts[i] = worker.ask("facts")
                answers[i].append({**first, "peak_mb_later": later["peak_mb"]})
            tell(f"{setting.name}: round {number + 1} of {rounds}")
        contenders = gather(facts, answers, lambda r: r["peak_mb"])
        later = " and ".join(f"{max(r['peak_mb_later'] for r in c['rounds']):,.0f}" for c in contenders)
        return (f"peak memory after {few} updates of minilm-l6, {rounds} fresh processes each; "
                f"after {more}: {later} MB"), contenders

    def rates(self) -> dict[str, Any]:
        """The machine alone."""
        self.made += 1
        with start("machine", {"side": "machine"}, self.folder / f"log-{self.made}") as worker:
            answer = worker.ask("rates")
        tell("machine: measured")
        return {k: answer[k] for k in ("gflops", "copy_gb")}

    def measure(self, setting: Setting) -> dict[str, Any]:
        """One setting, summarised."""
        work = {"train": self.train, "score": self.score, "start": self.start_up, "memory": self.memory}[setting.kind]
        what, contenders = work(setting)
        for c, (side, precision) in zip(contenders, setting.contenders, strict=True):
            resolved = c["facts"]["precision"]
            c |= {"name": f"{side} {precision}" + (f" ({resolved})" if precision == "auto" else ""), "side": side,
                  "precision": precision, "resolved": resolved}
        result = {"name": setting.name, "kind": setting.kind, "geometry": setting.geometry, "what": what,
                  "unit": UNITS[setting.kind], "matrix_weights": matrix_weights(
                      BASE if setting.geometry == "bert-base" else BertConfig.read(self.weights)),
                  "contenders": contenders, "notes": disagreements([c["facts"]["read"] for c in contenders])}
        summarise(result)
        return result


def gather(facts: list[dict[str, Any]], rounds: list[list[dict[str, Any]]], value: Any) -> list[dict[str, Any]]:
    """Facts and rounds of each contender in one dictionary, with the number that `value` takes from each round."""
    return [{"facts": f, "rounds": r, "values": [value(x) for x in r]} for f, r in zip(facts, rounds, strict=True)]


def tell(line: str) -> None:
    """Progress, on standard error."""
    print(line, file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------------- the command


def read_options(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Raises MinibertError for values that no run can have."""
    parser = OneLineParser(prog="compare.py", description=__doc__, allow_abbrev=False,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train and test in CoNLL columns")
    parser.add_argument("--rounds", type=int, default=5, help="alternations; 2 or more (default: 5)")
    parser.add_argument("--updates", type=int, default=40, help="a round of training (default: 40; bert-base: 1/8)")
    parser.add_argument("--warm-up", type=int, default=12, help="updates before the first round (default: 12)")
    parser.add_argument("--whole-epochs", action="store_true", help="a round of minilm-l6 is one epoch")
    parser.add_argument("--memory-updates", default="20,60", help="when memory is read (default: 20,60)")
    parser.add_argument("--minibert", default="", metavar="ARGUMENTS",
                        help='for train.py, one string: --minibert="--gradients by-hand"')
    parser.add_argument("--attention", choices=("sdpa", "eager"),
                        help="of transformers at its best (default: what it chooses itself)")
    parser.add_argument("--only", help="settings, with commas between; then nothing is written without --output")
    parser.add_argument("--output", type=Path, help="folder for compare.json and compare.png (default: "
                                                    "benchmarks/results for a whole run)")
    options = parser.parse_args(argv)
    for name, value, least in (("rounds", options.rounds, 2), ("updates", options.updates, 1),
                               ("warm-up", options.warm_up, 1)):
        if value < least:
            raise MinibertError(f"--{name} is {value}; it must be at least {least}")
    try:
        options.memory_updates = few, more = [int(x) for x in options.memory_updates.split(",")]
        if not 1 <= few < more:
            raise ValueError
    except ValueError:
        raise MinibertError(f"--memory-updates is {options.memory_updates!r}; expected two rising numbers, as in "
                            "20,60") from None
    if options.output is None and options.only is None:
        options.output = ROOT / "benchmarks" / "results"
    return options


def check_possible(options: argparse.Namespace, chosen: Sequence[Setting]) -> None:
    """Before the first minute is spent: raises MinibertError for what is not installed, not there, not measurable."""
    needed = {"transformers"} if any(side != OURS for s in chosen for side, _ in s.contenders) else set()
    needed |= {"matplotlib"} if options.output and chosen else set()
    if missing := sorted(name for name in needed if importlib.util.find_spec(name) is None):
        raise MinibertError(f"{' and '.join(missing)}: not installed beside {sys.executable}; `make bench` makes an "
                            "environment that has all of it")
    if chosen:
        if not options.data.exists():
            raise MinibertError(f"{options.data}: no such folder; --data takes one with train and test files")
        if missing := {"train", "test"} - find_files(options.data, SUFFIXES).keys():
            raise MinibertError(f"{options.data}: no {' and no '.join(sorted(missing))} file; both are needed")
    if any(s.kind == "memory" for s in chosen) and peak_mb() is None:
        raise MinibertError("memory is read from /proc, which is not here; leave it out with --only")


def system() -> dict[str, Any]:
    """What it ran on, without the name of any folder."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    model = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), platform.machine())
    try:
        transformers = importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        transformers = "not installed"
    return {"cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__,
            "transformers": transformers, "minibert": f"{minibert.__version__} {commit()}".strip(),
            "python": platform.python_version(), "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "not set"),
            "capabilities": sorted(k for k, has in torch.cpu.get_capabilities().items() if has is True),
            "load_before": os.getloadavg()[0]}


def commit() -> str:
    """The commit of this checkout, "-dirty" where files differ from it; "" outside of git."""
    try:
        git = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"], cwd=ROOT,
                             capture_output=True, text=True)
    except OSError:
        return ""
    return git.stdout.strip()


def run(options: argparse.Namespace, chosen: Sequence[Setting], report: dict[str, Any]) -> None:
    """Measure everything chosen into `report`, which is worth printing whenever this ends."""
    weights = minibert.fetch("minilm-l6", ROOT / "weights")
    with tempfile.TemporaryDirectory(prefix="minibert-bench-") as folder:
        bench = Bench(options, weights, Path(folder))
        runs = [bench.rates()]
        report["machine"] = best_rates(runs)
        for setting in chosen:
            report["results"].append(bench.measure(setting))
            add_limits(report["results"][-1], report["machine"]["gflops"])
        if chosen:
            runs.append(bench.rates())
    report["machine"] = {**best_rates(runs), "runs": runs}
    for result in report["results"]:
        add_limits(result, report["machine"]["gflops"])
    report["system"]["load_after"] = os.getloadavg()[0]


def write(report: dict[str, Any], output: Path) -> None:
    """compare.json and compare.png, each beside its name first, so that neither is ever half there."""
    from plot import draw  # matplotlib is needed nowhere else

    output.mkdir(parents=True, exist_ok=True)
    for name, make in (("compare.json", lambda f: f.write_text(json.dumps(report, indent=1) + "\n", "utf-8")),
                       ("compare.png", lambda f: draw(report, f))):
        new = output / f".new-{name}"
        make(new)
        os.replace(new, output / name)
        tell(f"written: {output / name}")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 2 for something the user can mend (one line says what), 130 for Ctrl-C."""
    report: dict[str, Any] = {}
    try:
        options = read_options(sys.argv[1:] if argv is None else argv)
        chosen = choose(options.only, settings(resolve_precision("auto", torch.device("cpu"))))
        check_possible(options, chosen)
        report |= {"counted": COUNTED, "system": system(), "machine": None, "results": [], "settings": {
            "data": options.data.resolve().name, "rounds": options.rounds, "updates": options.updates,
            "warm_up": options.warm_up, "whole_epochs": options.whole_epochs, "minibert": options.minibert,
            "attention": options.attention}}
        run(options, chosen, report)
        if options.output and chosen:
            write(report, options.output)
    except (MinibertError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        if report.get("machine"):
            print(table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
