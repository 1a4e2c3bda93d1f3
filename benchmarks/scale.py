"""A million sentences: reading, tokenising, memory, first and second start; and what an update costs as rows grow.

    python benchmarks/scale.py --data DIR [--sentences 1000000] [--seed 0] [--json FILE]
    python benchmarks/scale.py --curve [--pieces 4096] [--rounds 5] [--json FILE]

The sentences are made from the training file in DIR, in a temporary folder: its entities and single words are shuffled
over and over and cut into sentences of the lengths found there, so that tags stay valid. Each part runs in a process of
its own, and its memory is the largest resident size (VmHWM) of that process, torch and all.

parts   reading (NER.read) and tokenising (encode_all) alone, without the cache; every block of sentences is also given
        to the tokenizers library as its users do, encode_batch on 1,000 sentences at a time, the order alternating
new     the same two rates over sentences whose words all differ, the worst there is for looking words up
start   train.py up to its first update with an empty cache, then twice with a full one

Blocks are compared by their medians: whatever else the machine does falls on both. Reading, tokenising in one go and
the starts are measured once each; where their CPU seconds are far fewer, the machine did something else meanwhile.
MB are millions of bytes of the words' letters with one space each, without tags. The library gets its sentences as
lists of words that were made before, and nothing is taken out of what it returns.
"""
import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
BLOCK = 50_000                                     # sentences for one alternation
LIBRARY = 1000                                     # sentences a call of encode_batch


# ----------------------------------------------------------------------------------------------------------- the data


def make(data: Path, folder: Path, sentences: int, seed: int) -> None:
    """train.txt of `sentences` sentences, dev.txt and test.txt of a hundredth of that, from `data`'s training file."""
    from minibert.tasks.conll import read_conll
    from minibert.tasks.ner import NER
    units: list[list[str]] = []                    # the lines of an entity, or of one word outside
    lengths: list[int] = []
    for document in read_conll(NER(NER.Options()).files(data)["train"]):
        for s in document:
            lengths.append(len(s.words))
            for word, tag in zip(s.words, s.tags, strict=True):
                if tag.startswith("I-") and units:
                    units[-1].append(f"{word} {tag}\n")
                else:
                    units.append([f"{word} {tag}\n"])
    draw = random.Random(seed)
    for split, count in (("train", sentences), ("dev", sentences // 100), ("test", sentences // 100)):
        stream = endless(units, draw)
        with open(folder / f"{split}.txt", "w", encoding="utf-8") as f:
            for _ in range(count):
                wanted, lines = draw.choice(lengths), []
                while len(lines) < wanted:
                    lines += next(stream)
                f.write("".join(lines) + "\n")


def endless(units: list[list[str]], draw: random.Random) -> Iterator[list[str]]:
    """All units in a new order, again and again."""
    while True:
        yield from draw.sample(units, len(units))


# ----------------------------------------------------------------------------------------------- in fresh processes


def status(key: str) -> float:
    """A line of this process's status, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"/proc/self/status has no {key}; memory is measured on Linux only")


def timed(call, *arguments) -> tuple[float, object]:
    """(seconds, what it returned)."""
    begin = time.perf_counter()
    result = call(*arguments)
    return time.perf_counter() - begin, result


def library(tokenizer, sentences: list[list[str]]) -> None:
    """The tokenizers library by itself."""
    for i in range(0, len(sentences), LIBRARY):
        tokenizer.backend.encode_batch(sentences[i:i + LIBRARY], is_pretokenized=True, add_special_tokens=False)


def alternate(task, examples, tokenizer, size: int) -> dict[str, float]:
    """Sentences a second of encode_all and of the library (medians), every block given to both in turn."""
    from minibert.use.prepare import encode_all
    ours, theirs, letters, words = [], [], 0, 0              # the first two: sentences a second, a block each
    for start in range(0, len(examples), size):
        block = examples[start:start + size]
        sentences = [e.words for e in block]
        letters += sum(len(w.encode()) + 1 for s in sentences for w in s)
        words += sum(map(len, sentences))
        calls = [(ours, encode_all, task, block, tokenizer, 256, 64), (theirs, library, tokenizer, sentences)]
        for rates, *call in calls if start // size % 2 else calls[::-1]:
            rates.append(len(block) / timed(*call)[0])
    return {"blocks": len(ours), "our_rate": statistics.median(ours), "library_rate": statistics.median(theirs),
            "words": words, "MB": letters / 1e6,
            "ratio": statistics.median(a / b for a, b in zip(ours, theirs, strict=True))}


def parts(folder: Path, weights: str) -> dict[str, float]:
    """Reading, then tokenising in one go, then beside the library."""
    import torch  # noqa: F401 (its memory counts)

    from minibert.checkpoints import hub
    from minibert.data.tokenizer import Tokenizer
    from minibert.tasks.ner import NER
    from minibert.use.prepare import encode_all
    before = status("VmHWM")
    task, tokenizer = NER(NER.Options()), Tokenizer.read(hub.fetch(weights))
    tokenizer.case_shapes = tokenizer.uncased
    began = time.process_time()
    reading, splits = timed(task.read, folder)
    read = time.process_time()
    task.learn_labels(splits)
    read_peak = status("VmHWM")
    examples = splits["train"]
    tokenising, features = timed(encode_all, task, examples, tokenizer, 256, 64)
    peak, encoded = status("VmHWM"), time.process_time()
    result = {"sentences": len(examples), "reading_seconds": reading, "all_splits": sum(map(len, splits.values())),
              "tokenising_seconds": tokenising, "rows": len(features), "pieces": int(features.lengths.sum()),
              "features_MB": sum(x.nbytes for x in features.arrays().values()) / 1e6,
              "examples_MB": sum(x.nbytes for x in examples.arrays().values()) / 1e6,
              "distinct_words": len(examples.words), "imports_peak_MB": before, "reading_peak_MB": read_peak,
              "peak_MB": peak, "reading_cpu_seconds": read - began, "tokenising_cpu_seconds": encoded - read}
    del features
    return result | alternate(task, examples, tokenizer, BLOCK)


def new(folder: Path, weights: str) -> dict[str, float]:
    """Sentences of as many words, each word new: letters in an order that never comes again."""
    from minibert.checkpoints import hub
    from minibert.data.tokenizer import Tokenizer
    from minibert.tasks.ner import NER
    task, tokenizer = NER(NER.Options(), ["O"]), Tokenizer.read(hub.fetch(weights))
    tokenizer.case_shapes = tokenizer.uncased
    syllables = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in "lmnrst"]
    file = folder / "new.txt"
    draw, number = random.Random(1), 0
    with open(file, "w", encoding="utf-8") as f:
        for _ in range(BLOCK):
            for _ in range(14):
                number += 1
                word = "".join(syllables[number // len(syllables) ** k % len(syllables)] for k in range(3))
                f.write(f"{word.title() if draw.random() < 0.2 else word} O\n")
            f.write("\n")
    examples = task.read(file)["test"]
    assert len(examples.words) == number
    return alternate(task, examples, tokenizer, BLOCK // 10)


def start(folder: Path, weights: str, cache: str) -> dict[str, float]:
    """train.py until it could make its first update."""
    begin = time.perf_counter()
    import train
    from minibert.run.run import Run
    imported = time.perf_counter()
    phases = {}

    def watched(name):
        call = getattr(train, name)

        def wrapper(*arguments):
            phases[f"{name}_seconds"], result = timed(call, *arguments)
            return result
        setattr(train, name, wrapper)

    for name in ("read_data", "encode_splits"):
        watched(name)
    with tempfile.TemporaryDirectory() as output:
        t = train.set_up(["--data", str(folder), "--weights", weights, "--cache", cache, "--output", output + "/run"])
        with Run(t, lambda split: None):
            done = time.perf_counter()
        return {"seconds": done - begin, "import_seconds": imported - begin, **phases, "peak_MB": status("VmHWM"),
                "cpu_seconds": time.process_time(), "rows": sum(map(len, t.features.values())),
                "notes": t.task.notices}


def fresh(part: str, *arguments: str) -> dict[str, float]:
    """The last line a part prints, from a process of its own; "process_seconds" is from its birth to its end."""
    command = [sys.executable, __file__, "--part", part, *arguments]
    begin = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - begin
    return json.loads(done.stdout.splitlines()[-1]) | {"process_seconds": seconds}


# ---------------------------------------------------------------------------------------------------------- the curve


def curve(weights: str, pieces: int, rounds: int) -> dict:
    """For each row length T: microseconds a piece of an update of `pieces` pieces, and attention's part in it.

    Attention is the function that mixes rows in training (forward and backward, scores to mixed values, without its
    linear maps), timed alone on arrays of the same shapes, as many times as there are blocks.
    """
    import dataclasses

    import numpy as np
    from loop import Loop

    import train
    from minibert.core.batch import Feature
    loop = Loop(train.set_up(["--weights", weights, "--device", "cpu", "--max-pieces", "512"]))
    config, settings = loop.t.model.bert.config, loop.t.settings
    draw, result = np.random.default_rng(0), {}
    for T in (16, 32, 64, 128, 256, 512):
        rows = [Feature(i, draw.integers(1000, config.vocab_size, T), np.zeros(T, np.int64), np.arange(1, T - 1),
                        draw.integers(0, len(loop.t.task.labels), T - 2)) for i in range(pieces // T)]
        shape = (len(rows), config.num_attention_heads, T, config.head_size)
        loop.t = dataclasses.replace(loop.t, features={"train": rows})
        updates, attentions = [], []
        for _ in range(rounds + 1):                                           # the first of each warms up
            batches = loop.batches(np.arange(len(rows)))
            updates.append(timed(loop.update, batches)[0])
            attentions.append(attention_seconds(shape, config.attention_probs_dropout_prob, settings.precision))
        whole = statistics.median(updates[1:])
        part = config.num_hidden_layers * statistics.median(attentions[1:])
        result[str(T)] = {"rows": len(rows), "update_seconds": whole, "us_a_piece": 1e6 * whole / (T * len(rows)),
                          "attention_seconds": part, "attention_share": part / whole}
    return {"precision": settings.precision, "rows": result}


def attention_seconds(shape: tuple[int, int, int, int], p: float, precision: str) -> float:
    """Seconds of one block's attention forward and backward on [B,A,T,D], mask drawn as in training."""
    import torch

    from minibert.core import model
    from minibert.core.dropout import DropoutMasks
    from minibert.core.layout import Layout
    from minibert.core.precision import autocast
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    q, k, v = (torch.randn(shape, dtype=kind).requires_grad_() for _ in range(3))
    B, A, T, _ = shape
    allowed = Layout(torch.ones(B, T, dtype=torch.bool)).allowed

    def attend() -> None:
        with autocast(precision, q.device):
            mixed = model.attention(q, k, v, allowed, model.draw(DropoutMasks(0, 1, 0), 1, (B, A, T, T), p, q))
        mixed.sum().backward()

    return timed(attend)[0]


# ----------------------------------------------------------------------------------------------------------- in words


def show(results: dict[str, dict[str, float]]) -> None:
    """The table."""
    p, n = results["parts"], results["new"]
    first, second = results["first"], results["second"]
    rate, library_rate = p["sentences"] / p["tokenising_seconds"], p["library_rate"]
    size = p["MB"] / p["sentences"]
    lines = [
        ("sentences (train; all splits)", f"{p['sentences']:,}; {p['all_splits']:,}"),
        ("words, distinct words, pieces", f"{p['words']:,}, {p['distinct_words']:,}, {p['pieces']:,}"),
        ("reading, all splits", f"{p['reading_seconds']:.1f} s ({p['reading_cpu_seconds']:.1f} s CPU)"),
        ("tokenising into features, train", f"{p['tokenising_seconds']:.1f} s ({p['tokenising_cpu_seconds']:.1f} s "
                                            f"CPU): {rate:,.0f} sentences/s, {rate * size:.1f} MB/s"),
        ("the library's encode_batch", f"{library_rate:,.0f} sentences/s, {library_rate * size:.2f} MB/s"),
        (f"our rate to the library's, {p['blocks']:.0f} blocks", f"{p['ratio']:.1f} (median)"),
        (f"the same where every word is new, {n['blocks']:.0f} blocks", f"{n['ratio']:.2f} (median)"),
        ("examples, features in memory", f"{p['examples_MB']:.0f} MB, {p['features_MB']:.0f} MB"),
        ("peak memory: imports, reading, all", f"{p['imports_peak_MB']:.0f}, {p['reading_peak_MB']:.0f}, "
                                               f"{p['peak_MB']:.0f} MB")]
    for name, r in (("first start", first), ("second start", second), ("third start", results["third"])):
        lines.append((f"{name}: whole (reading, tokenising)", f"{r['seconds']:.1f} s ({r['read_data_seconds']:.1f}, "
                      f"{r['encode_splits_seconds']:.1f}; {r['cpu_seconds']:.1f} CPU), peak {r['peak_MB']:.0f} MB"))
    for left, right in lines:
        print(f"{left:48} {right}")


def show_curve(found: dict) -> None:
    """The table of --curve."""
    print(f"{found['precision']}\n   T  rows  us a piece  attention")
    for T, r in found["rows"].items():
        print(f"{T:>4} {r['rows']:>5} {r['us_a_piece']:>11.1f} {100 * r['attention_share']:>9.1f}%")


def main() -> None:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "ner", help="folder with a CoNLL training file")
    parser.add_argument("--sentences", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", default="minilm-l6")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    parser.add_argument("--curve", action="store_true", help="the cost of an update as rows grow")
    parser.add_argument("--pieces", type=int, default=4096, help="of --curve: pieces an update")
    parser.add_argument("--rounds", type=int, default=5, help="of --curve: updates a length")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        call = {"parts": lambda: parts(args.folder, args.weights), "new": lambda: new(args.folder, args.weights),
                "make": lambda: make(args.data, args.folder, args.sentences, args.seed) or {},
                "start": lambda: start(args.folder, args.weights, args.cache)}[args.part]
        return print(json.dumps(call()))
    if args.curve:
        results = curve(args.weights, args.pieces, args.rounds)
        show_curve(results)
    else:
        with tempfile.TemporaryDirectory() as folder:
            where = ["--folder", folder, "--weights", args.weights]
            fresh("make", *where, "--data", str(args.data), "--sentences", str(args.sentences),
                  "--seed", str(args.seed))
            results = {"parts": fresh("parts", *where), "new": fresh("new", *where)}
            (Path(folder) / "new.txt").unlink()
            for name in ("first", "second", "third"):
                results[name] = fresh("start", *where, "--cache", folder + "/cache")
        show(results)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
