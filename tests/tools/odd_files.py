"""What is no plain file in the place of one: links, FIFOs, devices, sockets, in a run folder, a checkpoint, the cache.

    python tests/tools/odd_files.py [--only WORD]              # a part of `make torture`

Each command is a process of its own with SECONDS to end and GIGABYTES to take. It may do its work or end with exit code
2 and one line; a traceback, a process that hangs or runs out of memory, and a change to any file outside of the folders
it was given are faults.
"""
import argparse
import hashlib
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import torch  # noqa: E402
from tiny import write_tiny_data, write_tiny_folder  # noqa: E402

import train as _train  # noqa: E402, F401 (once, not once a process)
from minibert.__main__ import main as minibert  # noqa: E402
from minibert.use import predict as _predict  # noqa: E402, F401

SECONDS, GIGABYTES = 20, 4
CHECKPOINT = ("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json", "tokenizer.json",
              "added_tokens.json", "model.safetensors.index.json")
RUN = ("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json", "tokenizer.json", "train.json",
       "metrics.json", "metrics.jsonl", "log.txt", ".lock", ".train.json.new")
SENTINEL = b'{"task": "ner"}\n'


def link_outside(file: Path, outside: Path) -> None:
    file.symlink_to(outside / "file.json")


def link_dangling(file: Path, outside: Path) -> None:
    file.symlink_to(outside / "not-there")


def link_to_folder(file: Path, outside: Path) -> None:
    file.symlink_to(outside)


def folder(file: Path, outside: Path) -> None:
    file.mkdir()


def fifo(file: Path, outside: Path) -> None:
    os.mkfifo(file)


def zero(file: Path, outside: Path) -> None:
    file.symlink_to("/dev/zero")


def full(file: Path, outside: Path) -> None:
    file.symlink_to("/dev/full")


def unix_socket(file: Path, outside: Path) -> None:
    before = os.getcwd()
    os.chdir(file.parent)                          # the path of a socket has 108 characters at most
    try:
        with socket.socket(socket.AF_UNIX) as there:
            there.bind(file.name)
    finally:
        os.chdir(before)


def unreadable(file: Path, outside: Path) -> None:
    file.write_bytes(SENTINEL)
    file.chmod(0)                                  # root reads it all the same


ODD = (link_outside, link_dangling, link_to_folder, folder, fifo, zero, full, unix_socket, unreadable)


def fingerprint(place: Path) -> str:
    """Of names, kinds and contents of all that lies in a folder."""
    digest = hashlib.sha256()
    for file in sorted(place.rglob("*")):
        digest.update(f"{file.relative_to(place)} {file.lstat().st_mode}".encode())
        digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()


def cases(good: Path, work: Path) -> Iterator[tuple[str, list[str], Path]]:
    """(what is tried, words after `python -m minibert`, the file that is replaced), work/ made anew for each."""
    model, run, cache = work / "model", work / "run", work / "cache"
    predict = ["predict", str(run), "Ada met Bruno in Oslo."]
    evaluate = ["evaluate", str(run), "--data", str(good / "data" / "test.conll")]
    train = ["train", "--weights", str(model), "--data", str(good / "data"), "--max-pieces", "24", "--overlap", "6",
             "--precision", "fp32", "--no-before", "--max-steps", "2", "--save-every", "1", "--evaluate", "none"]
    for name in RUN:
        for what, words in (("predict", predict), ("evaluate", evaluate),
                            ("train", [*train, "--cache", "off", "--output", str(run)]),
                            ("resume", [*train, "--cache", "off", "--output", str(run), "--resume"])):
            yield f"{what}: {name} of a run folder", words, run / name
    for name in CHECKPOINT:
        yield f"train: {name} of a checkpoint", [*train, "--cache", "off", "--output", str(work / "new")], model / name
    yield "train: the cache", [*train, "--cache", str(cache), "--output", str(work / "new")], cache
    for name in ("train.conll", "dev.conll"):
        yield (f"train: {name}", [*train[:3], "--data", str(work / "data"), *train[5:], "--cache", "off", "--output",
                                  str(work / "new")], work / "data" / name)


def fault(words: list[str], work: Path, outside: Path) -> str:
    """What went wrong with one command; "" for nothing."""
    before, said = fingerprint(outside), work.parent / "said"
    process = os.fork()
    if process == 0:
        become(words, work, said)
    code = ended(process)
    if code is None:
        return f"hangs, {SECONDS} s"
    text = said.read_text("utf-8", "replace")
    if code not in (0, 2) or "Traceback" in text or "out of memory" in text:
        return f"exit code {code}: {text.strip().splitlines()[-1:]}"
    if code == 2 and sum(line.startswith("error: ") for line in text.splitlines()) != 1:
        return f"no one line: {text[-200:]!r}"
    return "" if fingerprint(outside) == before else "a file outside of the folders changed"


def become(words: list[str], work: Path, said: Path) -> NoReturn:
    """Run a command in this process, which was forked for it."""
    code = 1
    try:
        os.chdir(work)
        nothing, errors = os.open(os.devnull, os.O_RDWR), os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number, handle in ((0, nothing), (1, nothing), (2, errors)):
            os.dup2(handle, number)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + GIGABYTES * 2 ** 30,) * 2)
        code = minibert(words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(process: int) -> int | None:
    """The exit code of a process, negative for a signal; None where it had to be killed."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        there, status = os.waitpid(process, os.WNOHANG)
        if there:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def put(make: Callable[[Path, Path], None], file: Path, outside: Path) -> None:
    """The odd thing in the place of `file`."""
    file.parent.mkdir(exist_ok=True)
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    file.unlink(missing_ok=True)
    make(file, outside)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a part of what is printed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="minibert-odd-") as name:
        good, work, outside = (Path(name) / x for x in ("good", "work", "outside"))
        for place in (good / "model", good / "data", outside):
            place.mkdir(parents=True)
        write_tiny_folder(good / "model")
        write_tiny_data(good / "data")
        (outside / "file.json").write_bytes(SENTINEL)
        torch.set_num_threads(1)                   # a process that is forked has none of its parent's
        words = next(words for what, words, _ in cases(good, good) if what.startswith("train: the cache"))
        if wrong := fault([word.replace("/new", "/run") for word in words], good, outside):
            raise SystemExit(f"the good run: {wrong}")

        tried = faults = 0
        for what, words, file in cases(good, work):
            for make in ODD:
                title = f"{what} is {make.__name__}"
                if options.only not in title:
                    continue
                shutil.rmtree(work, ignore_errors=True)
                work.mkdir()
                for part in ("model", "run", "data"):
                    shutil.copytree(good / part, work / part)
                if "resume" in title:              # a run that has not ended
                    (work / "run" / "metrics.json").unlink()
                put(make, file, outside)
                tried += 1
                if wrong := fault(words, work, outside):
                    faults += 1
                    print(f"{title}: {wrong}", flush=True)
        print(f"odd files: {tried} tried, {faults} faults", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
