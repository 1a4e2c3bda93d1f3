"""Large files: what each reader costs in memory and time on a file of 100 MB, of shapes that people have and of others.

    python tests/tools/sizes.py [--megabytes 100] [--only WORD]                # a part of `make torture`

Each file is read in a process of its own. It may be read or refused with MinibertError; any other exception, more than
MEGABYTES beyond the size of the file, or more than SECONDS of processor time for 100 MB are faults. On a quiet machine
the slowest takes about 20 s; others' work makes processor time longer too, so three times that is allowed.
"""
import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import torch  # noqa: E402
from tiny import write_tiny_folder  # noqa: E402

from minibert.checkpoints import weights  # noqa: E402
from minibert.data.tokenizer import Tokenizer  # noqa: E402
from minibert.errors import MinibertError  # noqa: E402
from minibert.tasks import TASKS  # noqa: E402
from minibert.use import predict  # noqa: E402

MEGABYTES, SECONDS = 200, 60                       # of 10^6 bytes; for a file of 100 MB
MB, HANG = 10 ** 6, 600
WORDS = b"the rain in @@@ fell on the river and the bank of the town was wet "        # @@@: another in each MB
KEPT: list[object] = []                            # what was read stays until it is measured


@dataclass(frozen=True)
class Reader:
    """One reader: the name of its file, what a row of each kind looks like, and how it reads the folder."""
    name: str
    file: str
    head: bytes                                    # of the file
    row: bytes                                     # %s: where its text stands
    between: bytes                                 # rows
    tail: bytes
    read: Callable[[Path], object]                 # takes the file
    beside: bool = False                           # the files of a checkpoint lie there too
    seconds: int = SECONDS                         # for 100 MB


def task_reader(task: str, suffix: str, head: bytes, row: bytes, between: bytes = b"\n", tail: bytes = b"",
                **options: str) -> Reader:
    """A task's own reading of data."""
    kind = TASKS[task]
    said = "".join(f" {value}" for value in options.values())
    return Reader(f"{task}{said} from {suffix}", f"x{suffix}", head, row, between, tail,
                  lambda file: kind(kind.Options(**options)).read(file))


def readers() -> list[Reader]:
    """Every reader of what may be large."""
    text = b'{"text": "%s", "label": "a"}'
    marked = b'{"text": "%s Oslo", "label": [[0, 3, "LOC"]]}'
    asked = b'{"context": "%s", "qas": [{"id": "1", "question": "who?", "answers": [], "is_impossible": true}]}'

    def answers(file: Path) -> object:
        task = TASKS["reply"](TASKS["reply"].Options())
        task.read_candidates(file)
        return task

    return [
        task_reader("classify", ".csv", b"text,label\n", b"%s,a"),
        task_reader("classify", ".tsv", b"text\tlabel\n", b"%s\ta"),
        task_reader("classify", ".jsonl", b"", text), task_reader("classify", ".json", b"[", text, b",\n", b"]"),
        task_reader("classify", ".txt", b"", b"a ||| %s"),
        task_reader("classify", ".csv", b"text,label\n", b"%s,a|b", choice="several"),
        task_reader("match", ".csv", b"first,second,label\n", b"%s,b,a"),
        task_reader("translate", ".tsv", b"source\ttarget\n", b"%s\tb"),
        task_reader("reply", ".tsv", b"question\tanswer\n", b"%s\tb"),
        task_reader("relation", ".txt", b"", b'1\t"<e1>a</e1> %s <e2>b</e2>"\nOther\n', b"\n"),
        task_reader("ner", ".conll", b"", b"%s O\n"), replace(task_reader("ner", ".jsonl", b"", marked), seconds=240),
        replace(task_reader("ner", ".json", b"[", marked, b",\n", b"]"), seconds=240),  # cut into words one by one
        task_reader("qa", ".json", b'{"version": "1", "data": [{"paragraphs": [', asked, b",\n", b"]}]}"),
        task_reader("mlm", ".txt", b"", b"%s"),
        Reader("answers of reply", "x.txt", b"", b"%s", b"\n", b"", answers),
        Reader("vocab.txt", "vocab.txt", b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n", b"%s", b"\n", b"",
               lambda file: Tokenizer.read(file.parent)),
        Reader("tokenizer.json", "tokenizer.json", b'{"model": {"type": "WordPiece", "vocab": {', b'"%s": 1',
               b",", b"}}}", lambda file: Tokenizer.read(file.parent), True),
        Reader("config.json", "config.json", b'{"model_type": "bert", "more": [', b'"%s"', b",", b"]}",
               lambda file: weights.read_fitting_config(file.parent), True),
        Reader("safetensors", "model.safetensors", (2 * MB).to_bytes(8, "little") + b'{"a": [', b'"%s"', b",",
               b"]}", lambda file: weights.load(file.parent), True),
        Reader("train.json", "train.json", b'{"task": "ner", "more": [', b'"%s"', b",", b"]}",
               lambda file: predict.load(file.parent), True)]


def shapes(reader: Reader) -> dict[str, tuple[bytes, bytes, bytes]]:
    """{shape: (begin, what is repeated, end)} of the files that a reader is given."""
    begin, end = (reader.head + reader.row).split(b"%s")
    rows = {name: reader.row.replace(b"%s", words) + reader.between
            for name, words in (("rows of 100 bytes", (WORDS * 2)[:95 - min(60, len(reader.row))] + b" @@@"),
                                ("short rows", b"it rains @@@"))}
    last = reader.row.replace(b"%s", b"end") + reader.tail
    return {**{name: (reader.head, row, last) for name, row in rows.items()},
            "one text": (begin, WORDS, end + reader.tail), "one line": (b"", WORDS, b""),
            "deep": (b"", b"[", b""), "one list": (b"[", b"1,", b"1]")}


def write(file: Path, shape: tuple[bytes, bytes, bytes], size: int) -> None:
    """A file of about so many bytes."""
    begin, again, end = shape
    block = again * max(1, MB // len(again))
    with open(file, "wb") as f:
        f.write(begin.replace(b"@@@", b"one"))
        for number in range(max(1, size // len(block))):
            f.write(block.replace(b"@@@", b"%03d" % (number % 1000)))
        f.write(end)


def resident(name: str) -> int:
    """Bytes in use now (VmRSS), or at most since the count was set back (VmHWM)."""
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) * 1024


def measured(reader: Reader, file: Path) -> dict[str, object]:
    """{"said": "read", "refused ..." or a fault, "bytes": beyond the start, "seconds"}, in a process of its own."""
    told, process = file.parent / "told", os.fork()
    if process == 0:
        try:
            Path("/proc/self/clear_refs").write_text("5")                     # the peak counts from here
            begin, started = resident("VmRSS"), time.process_time()
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    KEPT.append(reader.read(file))
                said = "read"
            except MinibertError as e:
                said = f"refused: {str(e).replace(str(file.parent), '')}"[:90]
            except BaseException:
                said = f"FAULT {traceback.format_exc().splitlines()[-1]}"
            told.write_text(json.dumps({"said": said, "bytes": resident("VmHWM") - begin,
                                        "seconds": time.process_time() - started}))
        finally:
            os._exit(0)
    end = time.monotonic() + HANG
    while not os.waitpid(process, os.WNOHANG)[0]:
        if time.monotonic() > end:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return {"said": f"FAULT hangs, {HANG} s", "bytes": 0, "seconds": HANG}
        time.sleep(0.02)
    return json.loads(told.read_text()) if told.exists() else {"said": "FAULT killed", "bytes": 0, "seconds": 0.0}


def fault(found: dict, size: int, allowed: int = SECONDS) -> str:
    """What is wrong with what was measured on a file of `size` bytes, `allowed` seconds for 100 MB; "" for nothing."""
    if found["said"].startswith("FAULT"):
        return found["said"]
    beyond, seconds = found["bytes"] - size, allowed * max(1.0, size / (100 * MB))
    if beyond > MEGABYTES * MB:
        return f"FAULT {beyond / MB:,.0f} MB beyond the size of the file"
    return f"FAULT {found['seconds']:.0f} s" if found["seconds"] > seconds else ""


def tried(reader: Reader, shape: str, size: int, model: Path) -> tuple[str, dict]:
    """(fault or "", what was measured) of one file, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="minibert-size-") as name:
        folder = Path(name) / "x"
        if reader.beside:
            shutil.copytree(model, folder)
        folder.mkdir(exist_ok=True)
        write(folder / reader.file, shapes(reader)[shape], size)
        found = measured(reader, folder / reader.file)
        return fault(found, (folder / reader.file).stat().st_size, reader.seconds), found


def results(size: int, only: str = "", workers: int = 1) -> Iterator[tuple[str, str, dict]]:
    """(reader and shape, fault or "", what was measured) of all files of `size` bytes."""
    with tempfile.TemporaryDirectory(prefix="minibert-size-") as name, ThreadPoolExecutor(workers) as pool:
        write_tiny_folder(Path(name))
        cases = [(reader, shape) for reader in readers() for shape in shapes(reader)
                 if only in f"{reader.name}, {shape}"]
        answers = pool.map(lambda case: tried(*case, size, Path(name)), cases)
        for (reader, shape), (wrong, found) in zip(cases, answers, strict=True):
            yield f"{reader.name}, {shape}", wrong, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--only", default="", help="a part of the name of a reader or a shape")
    options = parser.parse_args()
    torch.set_num_threads(1)
    faults = 0
    for what, wrong, found in results(options.megabytes * MB, options.only, os.cpu_count() or 1):
        faults += bool(wrong)
        print(f"{what:40} {found['bytes'] / MB:7,.0f} MB {found['seconds']:6.1f} s  {wrong or found['said']}",
              flush=True)
    print(f"sizes: {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.exit(main())
