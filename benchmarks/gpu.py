"""For the day a GPU is at hand: does it compute what the CPU computes, and how fast.

    python benchmarks/gpu.py [--weights DIR] [--data DIR] [--seconds 360] [--output FILE]
    python benchmarks/gpu.py --device cpu --small                              # a dry run, without a GPU

A bare checkout is enough, with torch, tokenizers, safetensors and, for the other side, transformers; no network.
DIR holds minilm-l6; without it weights are random, of the same size. The order is that of what is most worth knowing:

    facts        what it runs on
    reference    50 updates on the CPU, fp32, autograd, dropout on: of the first, a middle one and the last also weights
                 and gradient
    gradients    the same updates on the device by an engine in a layout and a number format. "gradient": the norm of
                 the difference to the norm of the reference's gradient, both at the reference's weights, the largest of
                 the three. "loss" and "norm": the largest relative difference along the way, each side with its own
                 weights, which drift apart. fp16 has its LossScaler
    scores       of the test set beside the CPU's in fp32
    train, score pieces a second of minibert and of transformers (sdpa, autocast, fused AdamW), all in bf16: sentences
                 of data/ner, and long rows of them; "dropout 0" says what drawing masks on the CPU costs

Before each part the time that is left is looked at; parts for which there is none are listed. After each part FILE
(benchmarks/results/gpu.json) is written anew. A part that fails leaves its error and the end of its traceback, one that
takes a quarter of all seconds is ended, and the others go on, in a fresh process if need be. "ratios": minibert's best
by transformers' best, as far as both are there.
"""
import argparse
import collections
import contextlib
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))                      # this checkout's minibert, whatever else is installed

from compare import BASE, TOKENIZER_FILES, commit, tell  # noqa: E402
from workers import Worker, start  # noqa: E402

from minibert.checkpoints.weights import random_bert, save  # noqa: E402
from minibert.core.config import BertConfig  # noqa: E402
from minibert.data.tokenizer import SPECIAL  # noqa: E402
from minibert.errors import MinibertError  # noqa: E402
from minibert.files import write_json  # noqa: E402
from minibert.run.start import resolve_device  # noqa: E402
from minibert.tasks import TASKS  # noqa: E402

MINILM = BertConfig(vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
                    intermediate_size=1536)
TINY = BertConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
ENGINES, LAYOUTS = ("fast", "by-hand", "autograd"), ("rectangle", "ragged")
LEAST = 8.0                                        # seconds without which no part is begun
SHARE = 0.25                                       # of all seconds, for one part
TRACE = 6                                          # last lines of what a dead process printed


def parts() -> Iterator[tuple[str, dict[str, Any]]]:
    """(kind, arguments) of all parts, what is most worth knowing first."""
    yield "facts", {}
    for layout in LAYOUTS:
        yield "reference", {"layout": layout}
    for engine in ENGINES:
        yield from gradients(engine, "fp32")
    yield from gradients("fast", "bf16")
    for precision in ("fp32", "bf16"):
        for layout in LAYOUTS:
            yield "scores", {"layout": layout, "precision": precision}
    yield from gradients("fast", "fp16")
    yield from speeds("minilm-l6", "sentences")
    yield from speeds("bert-base", "long")
    for engine in ("by-hand", "autograd"):
        for precision in ("bf16", "fp16"):
            yield from gradients(engine, precision)
    yield from speeds("minilm-l6", "long")
    yield from speeds("bert-base", "sentences")
    for layout in LAYOUTS:
        yield "scores", {"layout": layout, "precision": "fp16"}


def gradients(engine: str, precision: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """One engine in one number format."""
    for layout in LAYOUTS:
        yield "gradients", {"engine": engine, "layout": layout, "precision": precision}


def speeds(geometry: str, rows: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Both sides, the parts that make the ratios first."""
    what = {"geometry": geometry, "rows": rows}
    for layout in LAYOUTS:
        yield "train", {**what, "engine": "fast", "layout": layout}
    yield "peer train", what
    for layout in LAYOUTS:
        yield "score", {**what, "layout": layout}
    yield "peer score", what
    yield "train", {**what, "engine": "fast", "layout": "rectangle", "dropout": "0"}
    yield "peer train", {**what, "dropout": "0"}
    yield "train", {**what, "engine": "autograd", "layout": "rectangle"}


# ------------------------------------------------------------------------------------------------------- the weights


def random_weights(folder: Path, config: BertConfig, data: Path) -> None:
    """A checkpoint that nobody has trained; its vocabulary are the words of the data, the most frequent first."""
    examples = TASKS["ner"](TASKS["ner"].Options()).read(data)["train"]
    counts = collections.Counter(w.lower() for e in examples for w in e.words)
    letters = sorted({c for w in counts for c in w})
    known = dict.fromkeys([*SPECIAL.values(), *letters, *("##" + c for c in letters), *(w for w, _ in
                                                                                         counts.most_common())])
    pieces = [*known][:config.vocab_size]
    pieces += [f"[unused{i}]" for i in range(config.vocab_size - len(pieces))]
    folder.mkdir()
    save(folder, random_bert(config, seed=0))
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}), encoding="utf-8")


def checkpoints(options: argparse.Namespace, folder: Path) -> dict[str, str]:
    """{geometry: folder}; the size of bert-base has random weights and the tokenizer of minilm-l6."""
    small, base = options.weights, folder / "bert-base"
    if small is None:
        small = folder / "minilm-l6"
        random_weights(small, TINY if options.small else MINILM, options.data)
    base.mkdir()
    save(base, random_bert(TINY if options.small else BASE, seed=0))
    for name in TOKENIZER_FILES:
        if (small / name).is_file():
            shutil.copy(small / name, base / name)
    return {"minilm-l6": str(small), "bert-base": str(base)}


# ------------------------------------------------------------------------------------------------------- the parts


class Bench:
    """All parts in turn, in a worker that is started anew where it has died or its device has."""

    def __init__(self, options: argparse.Namespace, spec: dict[str, Any], end: float):
        self.options, self.spec, self.end = options, spec, end
        self.worker: Worker | None = None
        self.started = 0
        self.report: dict[str, Any] = {
            "minibert": commit(), "weights": "random" if options.weights is None else options.weights.name,
            "data": options.data.resolve().name, "parts": {}, "failed": [], "no time for": [], "ratios": {}}

    def run(self) -> None:
        """Every part there is time for."""
        with contextlib.ExitStack() as held:
            held.callback(self.leave)
            for kind, arguments in parts():
                name = " ".join([kind, *map(str, arguments.values())])
                if kind.endswith("train") and "dropout" in arguments:
                    name = name.removesuffix(" 0") + " dropout 0"
                if self.end - time.monotonic() < LEAST:
                    self.report["no time for"].append(name)
                    continue
                begin = time.monotonic()
                answer = self.ask(kind, arguments)
                answer["seconds"] = round(time.monotonic() - begin, 2)
                self.note(name, answer)
        self.write()

    def ask(self, kind: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """The figures of a part, or what went wrong."""
        if self.worker is None:
            self.started += 1
            log = Path(self.spec["scratch"]) / f"log-{self.started}"
            self.worker = start("gpu", {"side": "gpu", **self.spec}, log)
        last = min(self.end, time.monotonic() + self.options.seconds * SHARE)
        overdue = threading.Timer(last - time.monotonic(), self.worker.process.kill)
        overdue.start()
        try:
            answer = self.worker.ask("part", kind=kind, **arguments)
        except MinibertError as e:
            printed = [x for x in self.worker.log.read_text("utf-8", errors="replace").splitlines() if x.strip()]
            why = "killed: it took too long" if time.monotonic() >= last else str(e)
            answer = {"error": why, "trace": printed[-TRACE:], "broken": True}
        finally:
            overdue.cancel()
        if answer.pop("broken", False):
            self.leave()
        return {k: v for k, v in answer.items() if not k.startswith("waited")}

    def leave(self) -> None:
        """End the worker."""
        if self.worker is not None:
            self.worker.process.kill()
            self.worker.close()
            self.worker = None

    def note(self, name: str, answer: dict[str, Any]) -> None:
        """Keep it, at once on the disk, and say it."""
        self.report["parts"][name] = answer
        if "error" in answer:
            self.report["failed"].append(name)
        self.report["ratios"] = ratios(self.report["parts"])
        self.write()
        tell(f"{name}: {said(answer)}")

    def write(self) -> None:
        """The file as a whole."""
        self.options.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.options.output, self.report)


def said(answer: dict[str, Any]) -> str:
    """A part in a line."""
    if "error" in answer:
        return f"FAILED, {answer['error']}"
    if "rate" in answer:
        return f"{answer['rate']:,.0f} pieces/s"
    keys = ("name", "torch", "gradient", "loss", "losses", "largest difference", "same label", "skipped")
    return ", ".join(f"{key} {answer[key]:.2g}" if isinstance(answer[key], float) else f"{key} {answer[key]}"
                     for key in keys if key in answer)


def ratios(done: dict[str, dict[str, Any]]) -> dict[str, float]:
    """minibert's fastest by transformers' fastest, for each work, geometry and kind of rows that both have done."""
    best: dict[tuple[str, str], float] = {}
    for name, answer in done.items():
        if "rate" in answer:
            side, _, rest = name.rpartition("peer ")
            work, geometry, rows = rest.split()[:3]
            what = " ".join([work, geometry, rows] + ["dropout 0"] * name.endswith("dropout 0"))
            key = "peer" if "peer" in name else "minibert", what
            best[key] = max(best.get(key, 0.0), answer["rate"])
    return {what: round(rate / best["peer", what], 3) for (side, what), rate in best.items()
            if side == "minibert" and ("peer", what) in best}


# ------------------------------------------------------------------------------------------------------ the command


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 where no part failed, 1 where one did, 2 for something the user can mend."""
    begin = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, help="folder of minilm-l6 (default: random weights)")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "ner", help="CoNLL columns")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=360, help="in all (default: 360)")
    parser.add_argument("--updates", type=int, default=50, help="whose losses are compared (default: 50)")
    parser.add_argument("--small", action="store_true", help="tiny sizes: a dry run")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "gpu.json")
    options = parser.parse_args(argv)

    try:
        resolve_device(options.device)
        with tempfile.TemporaryDirectory(prefix="minibert-gpu-") as scratch:
            spec = {"device": options.device, "data": str(options.data), "scratch": scratch, "updates": options.updates,
                    "seconds": 0.01 if options.small else 0.7, "weights": checkpoints(options, Path(scratch))}
            bench = Bench(options, spec, begin + options.seconds)
            bench.run()
    except (MinibertError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    r = bench.report
    print(f"{len(r['parts'])} parts in {time.monotonic() - begin:.0f} s, failed: {', '.join(r['failed']) or 'none'}; "
          f"no time for {len(r['no time for'])}; minibert by transformers: {r['ratios']}; {options.output}")
    return 1 if r["failed"] else 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    sys.exit(main())
