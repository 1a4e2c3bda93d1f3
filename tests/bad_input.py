"""Files as they should not be: for each reader a way to make thousands of them, and what may come of it.

    python tests/bad_input.py [--count 10000] [--seed S] [--only READER]     # a part of `make torture`

Every input starts from a good file, which is cut, spliced, shuffled and flipped, or is made of fragments that the
format knows. A reader may give a value or raise MinibertError with one line; anything else is a fault: another
exception, more than SECONDS, or a process that grew by more than MEGABYTES.
"""
import argparse
import contextlib
import io
import json
import random
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from conftest import write_tiny_data, write_tiny_folder  # noqa: E402

from minibert import checkpoint, weights  # noqa: E402
from minibert.commandline import read_settings  # noqa: E402
from minibert.config import BertConfig, TrainConfig  # noqa: E402
from minibert.errors import MinibertError  # noqa: E402
from minibert.replay import read_update  # noqa: E402
from minibert.tasks.ner import NER  # noqa: E402
from minibert.tokenizer import Tokenizer  # noqa: E402

SECONDS, MEGABYTES = 10.0, 200
FRAGMENTS = {
    "conll": [b"\n", b"\r\n", b"\r", b"\t", b" ", b"O", b"B-PER", b"I-PER", b"E-LOC", b"S-X", b"B-", b"-", b"#",
              b"-DOCSTART-", b"word O\n", b"Oslo B-LOC\n", b"\xff\xfe", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\x00",
              b"\xc3", b"a" * 5000, b"\n\n\n", "\u200b O\n".encode(),
              "\u0130stanbul B-LOC\n".encode(), b"x B-PER I-PER\n",
              b"x\tB-PER\n", b"\x0b", b"\x85"],
    "json": [b"{", b"}", b"[", b"]", b'"', b":", b",", b"null", b"NaN", b"Infinity", b"-1", b"0", b"1e999", b"1e-400",
             b"true", b"9" * 400, b"9" * 5000, b'"\\ud800"', b'"model_type"', b'"hidden_size"', b'"x": 5', b"[" * 3000,
             b"\xff", b"\xef\xbb\xbf", b" ", b'{"a": {"b": []}}', b'"num_hidden_layers": 1000000000',
             b'"vocab_size": -5', b'"minibert"', b"\x00"],
    "toml": [b"epochs", b"=", b"3", b'"', b"'''", b"[a]", b"[[", b"]]", b"\n", b"1979-05-27", b"nan", b"inf", b"true",
             b"{", b"}", b"batch-size", b"batch_size", b"learning_rate", b"freeze", b"task", b"#", b"\x00", b"\xff",
             b"1_000", b"0x10", b".", b"9" * 5000, b"[" * 2000],
    "lines": [b"\n", b"[PAD]", b"[UNK]", b"[CLS]", b"[SEP]", b"[MASK]", b"##", b"\r\n", b"\xff", b" ", b"a" * 3000,
              b"\x00", b"the"],
}
DTYPES = ["F32", "F64", "BF16", "I64", "BOOL", "F8_E4M3", "X9", "", 5, None]
SHAPES = [[], [0], [2 ** 62, 4], [2 ** 32, 2 ** 32], [-1, 5], [1.5], "3", None, [1] * 500, [10 ** 30]]
OFFSETS = [[0, 0], [5, 1], [0, 2 ** 63], [-4, 0], [0], None, "0", [0, 10 ** 40], [8, 4]]
NAMES = ["", "bert.x", "a" * 3000, "embeddings.word_embeddings.weight", "\x00"]
METADATA = [{}, {"a": 5}, [], None, "x", {"format": "pt" * 2000}]
NO_NUMBERS = [struct.pack("<f", float(x)) for x in ("nan", "inf", "-inf")]


@dataclass
class Reader:
    """One reader: the good file, what its format is made of, and how to read a folder that holds the bad one."""
    name: str
    good: bytes
    fragments: list[bytes]
    file: str                                      # its name in the folder
    read: Callable[[Path], object]                 # takes the folder
    make: Callable[[random.Random, "Reader"], bytes] | None = None


def broken(draw: random.Random, reader: Reader) -> bytes:
    """A bad file: fragments alone, or the good one after a few accidents."""
    if draw.random() < 0.3:
        return b"".join(draw.choice(reader.fragments) for _ in range(draw.randrange(12)))
    data = bytearray(reader.good)
    for _ in range(draw.randrange(1, 5)):
        at = draw.randrange(len(data) + 1)
        kind = draw.randrange(6)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            del data[at:at + draw.randrange(1, 40)]
        elif kind == 2:
            data[at:at] = draw.choice(reader.fragments)
        elif kind == 3:
            data[at:at] = draw.randbytes(draw.randrange(1, 9))
        elif kind == 4 and data:
            at = draw.randrange(len(data))
            data[at] ^= 1 << draw.randrange(8)
        else:
            other = draw.randrange(len(data) + 1)
            data[at:at] = data[other:other + draw.randrange(200)]
    return bytes(data)


def broken_safetensors(draw: random.Random, reader: Reader) -> bytes:
    """Half the time a header that says something wrong with numbers behind it, else any accident."""
    if draw.random() < 0.5:
        return broken(draw, reader)
    length = struct.unpack("<Q", reader.good[:8])[0]
    header, numbers = json.loads(reader.good[8:8 + length]), reader.good[8 + length:]
    for _ in range(draw.randrange(1, 4)):
        entry = header[draw.choice([name for name in header if name != "__metadata__"])]
        kind = draw.randrange(9)
        if kind == 0:
            entry["dtype"] = draw.choice(DTYPES)
        elif kind == 1:
            entry["shape"] = draw.choice(SHAPES)
        elif kind == 2:
            entry["data_offsets"] = draw.choice(OFFSETS)
        elif kind == 3:
            entry["data_offsets"] = [x + draw.randrange(-8, 9) for x in entry.get("data_offsets") or [0, 0]
                                     if isinstance(x, int)]
        elif kind == 4:
            header[draw.choice(NAMES)] = dict(entry)
        elif kind == 5:
            header["__metadata__"] = draw.choice(METADATA)
        elif kind == 6:
            entry.pop(draw.choice(list(entry)), None) if entry else None
        elif kind == 7:
            at = 4 * draw.randrange(len(numbers) // 4)
            numbers = numbers[:at] + draw.choice(NO_NUMBERS) + numbers[at + 4:]
        else:
            numbers = numbers[:draw.randrange(len(numbers) + 1)]
        if not entry:
            break
    text = json.dumps(header).encode()
    if draw.random() < 0.2:                        # a name twice
        text = text[:-1] + b", " + text[1:]
    size = draw.choice([len(text)] * 6 + [len(text) + 1, len(text) - 1, 100_000_001, 2 ** 63, 2 ** 64 - 1, 0])
    return struct.pack("<Q", size) + text + numbers


def readers(folder: Path) -> list[Reader]:
    """Every reader of the project, with a good file of its own; `folder` is empty and may be written into."""
    model, data, run = folder / "model", folder / "data", folder / "run"
    for place, write in ((model, write_tiny_folder), (data, write_tiny_data)):
        place.mkdir()
        write(place)
    run.mkdir()
    Tokenizer.read(model).save(run)
    config = (model / "config.json").read_bytes()
    settings = json.dumps({"epochs": 3, "batch-size": 7, "learning_rate": 1e-3, "task": "ner", "freeze": 2}).encode()
    row = {"example": 3, "ids": [2, 5, 3], "types": [0, 0, 0], "picks": [1], "labels": [0], "targets": [0]}
    update = json.dumps({"update": 5, "said": "x", "settings": {"precision": "fp32"}, "checkpoint": "checkpoints/x",
                         "micro_batches": [{"process": 0, "number": 0, "rows": [row, row]}]}).encode()
    marker = json.dumps({"files": {"config.json": {"bytes": 5, "sha256": "0" * 64}}}).encode()

    def load_model(place: Path) -> None:
        (place / "config.json").write_bytes(config)
        weights.load(place)

    def read_data(place: Path) -> None:
        task = NER(NER.Options())
        task.learn_labels(task.read(place))

    def read_vocabulary(place: Path) -> None:
        Tokenizer.read(place).pieces([["Oslo", "rains"]])

    def read_marker(place: Path) -> None:
        if wrong := checkpoint.fault(place):
            raise MinibertError(wrong)

    def config_file(name: str) -> Callable[[Path], object]:
        return lambda place: read_settings(str(place / name), TrainConfig, NER.Options)

    a_json, toml = FRAGMENTS["json"], b'epochs = 3\nbatch-size = 7\nlearning_rate = 1e-3\ntask = "ner"\n'
    return [
        Reader("CoNLL files", (data / "train.conll").read_bytes()[:900], FRAGMENTS["conll"], "train.conll", read_data),
        Reader("safetensors", (model / "model.safetensors").read_bytes(), a_json, "model.safetensors", load_model,
               broken_safetensors),
        Reader("config.json", config, a_json, "config.json", BertConfig.read),
        Reader("labels", config[:-2] + b', "id2label": {"0": "O", "1": "B-X"}}', a_json, "config.json",
               weights.read_labels),
        Reader("tokenizer.json", (run / "tokenizer.json").read_bytes(), a_json, "tokenizer.json", read_vocabulary),
        Reader("vocab.txt", (model / "vocab.txt").read_bytes(), FRAGMENTS["lines"], "vocab.txt", read_vocabulary),
        Reader("--config in JSON", settings, a_json, "x.json", config_file("x.json")),
        Reader("--config in TOML", toml, FRAGMENTS["toml"], "x.toml", config_file("x.toml")),
        Reader("--replay", update, a_json, "update.json", lambda place: read_update(place / "update.json")),
        Reader("complete.json", marker, a_json, "complete.json", read_marker),
    ]


def resident() -> float:
    """MB of 2^20 bytes in use now; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0.0
    return int(status.read_text().split("VmRSS:")[1].split()[0]) / 1024


def try_out(reader: Reader, folder: Path, count: int, seed: int) -> tuple[int, int]:
    """(files read, files refused) of `count`; AssertionError with the beginning of the bad file for anything else."""
    folder.mkdir(exist_ok=True)
    file, draw, taken, begin = folder / reader.file, random.Random(f"{seed} {reader.name}"), 0, resident()
    for number in range(count):
        data = (reader.make or broken)(draw, reader)
        for old in folder.iterdir():
            old.unlink()
        file.write_bytes(data)
        what, started = f"{reader.name}, input {number} of seed {seed}, {data[:300]!r}", time.perf_counter()
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                reader.read(folder)
            taken += 1
        except MinibertError as e:
            said = str(e)
            assert said and "\n" not in said and len(said) < 1500, f"{what}: {said[:300]}"
        except Exception as e:
            raise AssertionError(f"{what}: {type(e).__name__}: {e}") from e
        assert time.perf_counter() - started < SECONDS, f"{what}: slow"
        assert resident() - begin < MEGABYTES, f"{what}: memory"
    return taken, count - taken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="the name of one reader")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="minibert-bad-") as name:
        for i, reader in enumerate(readers(Path(name))):
            if options.only in (None, reader.name):
                begin = time.perf_counter()
                read, refused = try_out(reader, Path(name) / f"bad-{i}", options.count, options.seed)
                print(f"{reader.name}: {options.count:,} inputs of seed {options.seed}, {read:,} read, {refused:,} "
                      f"refused, {time.perf_counter() - begin:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
