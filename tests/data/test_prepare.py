"""prepare.py: a second start gives the same to the bit without reading, and anything that has a part in it misses."""
import contextlib
import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from incomplete import incomplete
from refusing import refused

import train
from minibert.data.features import Features
from minibert.data.rows import WordNumbers
from minibert.data.tokenizer import Tokenizer
from minibert.errors import MinibertError
from minibert.run.training import Training
from minibert.settings import TrainConfig
from minibert.tasks import TASKS
from minibert.tasks.base import Task
from minibert.tasks.conll import Examples
from minibert.tasks.ner import NER
from minibert.use import prepare
from minibert.use.prepare import Splits, encode_all, encode_splits, read_splits

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def data(tmp_path, tiny_data) -> Path:
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    monkeypatch.setattr(prepare, "WORTH", 0)


class Start:
    """What a start of train.py does with data, and what it found."""

    def __init__(self, data: Path, cache: Path | str, checkpoint: Path, limit: int = 0, options=None, labels=None,
                 case_shapes: bool = True, types: int = 2, max_pieces: int = 12, overlap: int = 3):
        self.task = NER(options or NER.Options())
        self.splits = read_splits(self.task, data, str(cache))
        self.splits = self.splits.limited(limit) if limit else self.splits
        self.task.learn_labels(self.splits)
        self.task.labels = labels or self.task.labels
        read = Tokenizer.read(checkpoint)
        self.tokenizer = Tokenizer(read.backend, case_shapes, types)
        self.features = encode_splits(self.task, self.splits, self.tokenizer, max_pieces, overlap)


def entries(folder: Path) -> dict[str, int]:
    """{kind: how many} in a cache folder."""
    kinds = [f.name.split("-")[0] for f in folder.iterdir()]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def same(one: Start, two: Start) -> bool:
    """Examples and features equal in every array, its type too."""
    return one.splits.keys() == two.splits.keys() == one.features.keys() == two.features.keys() and all(
        a.arrays().keys() == b.arrays().keys() and all(
            x.dtype == b.arrays()[n].dtype and np.array_equal(x, b.arrays()[n]) for n, x in a.arrays().items())
        for s in one.splits for a, b in ((one.splits[s], two.splits[s]), (one.features[s], two.features[s])))


def forbidden(*_):
    raise AssertionError("this was to come from the cache")


def test_a_second_start_reads_and_encodes_nothing_and_is_the_same_to_the_bit(data, tmp_path, tiny_folder, monkeypatch):
    plain = Start(data, "off", tiny_folder)
    first = Start(data, tmp_path / "c", tiny_folder)
    assert entries(tmp_path / "c") == {"examples": 1, "features": 1}
    assert first.task.notices == plain.task.notices == []
    monkeypatch.setattr(NER, "read", forbidden)
    monkeypatch.setattr(prepare, "encode_all", forbidden)
    second = Start(data, tmp_path / "c", tiny_folder)
    assert same(plain, first) and same(first, second)
    assert [n.split(" come from ")[0] for n in second.task.notices] == ["examples", "features"]
    assert all(isinstance(f, Features) for f in second.features.values())
    assert [e.where for e in second.splits["dev"]] == [e.where for e in plain.splits["dev"]]
    assert list(second.splits["train"]) == list(plain.splits["train"])


def test_notices_of_reading_are_told_again(tmp_path, tiny_folder):
    (tmp_path / "train.txt").write_text("a I-PER\nb I-PER\nc B-PER\n\nd O\n")
    (tmp_path / "dev.txt").write_text("a I-LOC\n")
    options = NER.Options(context="document")
    first, second = (Start(tmp_path, tmp_path / "c", tiny_folder, options=options) for _ in range(2))
    assert [n[:8] for n in first.task.notices] == ["tags are", "no -DOCS", "dev has "]
    assert [n for n in second.task.notices if "come from" not in n] == first.task.notices


def test_the_same_contents_in_another_folder_are_found_and_say_where_they_are(data, tmp_path, tiny_folder, monkeypatch):
    Start(data, tmp_path / "c", tiny_folder)
    moved = data.rename(tmp_path / "moved")
    monkeypatch.setattr(NER, "read", forbidden)
    again = Start(moved, tmp_path / "c", tiny_folder)
    assert again.splits["train"][0].where == f"{moved / 'train.conll'}:1"


@pytest.mark.parametrize("split", ["train", "dev", "test"])
@pytest.mark.parametrize("place", [0, 77, -2])
def test_one_byte_of_any_file_is_enough(data, tmp_path, tiny_folder, split, place):
    first = Start(data, tmp_path / "c", tiny_folder)
    file = data / f"{split}.conll"
    raw = bytearray(file.read_bytes())
    place = next(i for i in range(place % len(raw), -1, -1) if chr(raw[i]).islower() or i == 0)
    raw[place] = ord("z") if raw[place] != ord("z") else ord("y")
    file.write_bytes(raw)
    second = Start(data, tmp_path / "c", tiny_folder)
    assert entries(tmp_path / "c") == {"examples": 2, "features": 2} and not same(first, second)
    assert same(second, Start(data, "off", tiny_folder))


def test_files_that_change_places_are_other_data(data, tmp_path, tiny_folder):
    Start(data, tmp_path / "c", tiny_folder)
    (data / "dev.conll").rename(data / "x")
    (data / "test.conll").rename(data / "dev.conll")
    (data / "x").rename(data / "test.conll")
    second = Start(data, tmp_path / "c", tiny_folder)
    assert entries(tmp_path / "c") == {"examples": 2, "features": 2} and same(second, Start(data, "off", tiny_folder))


LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]


@pytest.mark.parametrize("change, examples", [
    ({"limit": 17}, 1), ({"labels": LABELS}, 1), ({"case_shapes": False}, 1), ({"types": 3}, 1),
    ({"max_pieces": 13}, 1), ({"overlap": 4}, 1), ({"options": NER.Options(context="document")}, 2),
    ({"options": NER.Options(decoding="argmax")}, 2)], ids=str)
def test_every_setting_is_part_of_the_key(data, tmp_path, tiny_folder, change, examples):
    Start(data, tmp_path / "c", tiny_folder)
    other = Start(data, tmp_path / "c", tiny_folder, **change)
    assert entries(tmp_path / "c") == {"examples": examples, "features": 2}
    assert same(other, Start(data, "off", tiny_folder, **change))
    assert same(other, Start(data, tmp_path / "c", tiny_folder, **change))
    assert entries(tmp_path / "c") == {"examples": examples, "features": 2}


def test_the_vocabulary_is_part_of_the_key(data, tmp_path, tiny_folder, tiny_vocabulary):
    first = Start(data, tmp_path / "c", tiny_folder)
    other = tmp_path / "other"
    other.mkdir()
    swapped = [*tiny_vocabulary[:-2], tiny_vocabulary[-1], tiny_vocabulary[-2]]
    (other / "vocab.txt").write_text("\n".join(swapped) + "\n", encoding="utf-8")
    second = Start(data, tmp_path / "c", other)
    assert entries(tmp_path / "c") == {"examples": 1, "features": 2} and not same(first, second)
    (other / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    Start(data, tmp_path / "c", other)
    assert entries(tmp_path / "c") == {"examples": 1, "features": 3}


@pytest.mark.parametrize("where, name, value", [
    ("minibert.use.prepare", "FORMAT", 99), ("tokenizers", "__version__", "99.0"),
    ("unicodedata", "unidata_version", "99.0"), ("minibert.use.prepare", "code", lambda task: "other"),
    ("minibert.tasks.ner.NER", "name", "other")])
def test_code_and_libraries_are_part_of_the_key(data, tmp_path, tiny_folder, monkeypatch, where, name, value):
    Start(data, tmp_path / "c", tiny_folder)
    monkeypatch.setattr(f"{where}.{name}", value)
    Start(data, tmp_path / "c", tiny_folder)
    assert entries(tmp_path / "c") == {"examples": 2, "features": 2}


def test_a_changed_line_of_any_source_is_other_code(tmp_path, monkeypatch):
    package = Path(shutil.copytree(ROOT / "minibert", tmp_path / "minibert", ignore=shutil.ignore_patterns("*.pyc")))
    monkeypatch.setattr(prepare, "__file__", str(package / "use" / "prepare.py"))
    task, seen = NER(NER.Options()), set()
    for file in (None, "data/tokenizer.py", "tasks/ner.py", "scores/tags.py"):
        if file:
            (package / file).write_text((package / file).read_text("utf-8") + "\n", encoding="utf-8")
        seen.add(prepare.code(task))
    elsewhere = type("Elsewhere", (NER,), {"__module__": __name__})
    assert len(seen) == 4 and prepare.code(elsewhere(NER.Options())) not in seen


def test_files_that_change_while_they_are_read_are_not_kept(data, tmp_path, tiny_folder, monkeypatch):
    read = NER.read

    def slow(self, path):
        splits = read(self, path)
        with open(data / "dev.conll", "a") as f:
            f.write("\nlima B-LOC\n")
        return splits

    monkeypatch.setattr(NER, "read", slow)
    start = Start(data, tmp_path / "c", tiny_folder)
    assert not (tmp_path / "c").exists()
    assert len(start.task.notices) == 1 and "changed while" in start.task.notices[0]
    assert len(start.features["dev"]) >= 20


@pytest.mark.parametrize("kind", ["examples", "features"])
def test_a_damaged_entry_is_made_again_with_a_notice(data, tmp_path, tiny_folder, kind):
    first = Start(data, tmp_path / "c", tiny_folder)
    file, = (tmp_path / "c").glob(f"{kind}-*")
    file.write_bytes(file.read_bytes()[:-5])
    second = Start(data, tmp_path / "c", tiny_folder)
    assert same(first, second) and sum("made again" in n for n in second.task.notices) == 1
    third = Start(data, tmp_path / "c", tiny_folder)
    assert same(first, third) and not any("made again" in n for n in third.task.notices)


def test_examples_whose_arrays_do_not_fit_are_made_again(data, tmp_path, tiny_folder, monkeypatch):
    """As if other code had written them under this key."""
    arrays = Examples.arrays
    for change in ({"numbers": lambda x: x[:-1]}, {"tags": lambda x: x + 100}, {"numbers": lambda x: x - 1},
                   {"lines": lambda x: x[1:]}, {"example_ends": lambda x: x[::-1]}, {"words.ends": lambda x: x[1:]},
                   {"names.letters": lambda x: x[:-1]}):
        (name, break_it), = change.items()
        monkeypatch.setattr(Examples, "arrays", lambda self, n=name, b=break_it: (a := arrays(self)) | {n: b(a[n])})
        Start(data, tmp_path / "c", tiny_folder)
        monkeypatch.setattr(Examples, "arrays", arrays)
        again = Start(data, tmp_path / "c", tiny_folder)
        assert sum("made again" in n for n in again.task.notices) == 1, name
        assert same(again, Start(data, "off", tiny_folder))
        shutil.rmtree(tmp_path / "c")


def test_features_whose_arrays_do_not_fit_are_made_again(data, tmp_path, tiny_folder, monkeypatch):
    arrays = Features.arrays
    monkeypatch.setattr(Features, "arrays", lambda self: (a := arrays(self)) | {"ids": a["ids"][:-1]})
    Start(data, tmp_path / "c", tiny_folder)
    monkeypatch.setattr(Features, "arrays", arrays)
    again = Start(data, tmp_path / "c", tiny_folder)
    assert sum("made again" in n for n in again.task.notices) == 1
    assert same(again, Start(data, "off", tiny_folder))


def test_small_data_and_off_keep_nothing(data, tmp_path, tiny_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Start(data, "off", tiny_folder)
    assert [f.name for f in tmp_path.iterdir()] == ["data"]
    size = sum(f.stat().st_size for f in data.iterdir())
    monkeypatch.setattr(prepare, "WORTH", size + 1)
    Start(data, tmp_path / "c", tiny_folder)
    assert not (tmp_path / "c").exists()
    monkeypatch.setattr(prepare, "WORTH", size)
    Start(data, tmp_path / "c", tiny_folder)
    assert entries(tmp_path / "c") == {"examples": 1, "features": 1}


@incomplete
class Plain(Task):
    """NER's files and features, of examples that are no arrays."""
    name, About = "plain", WordNumbers

    def __init__(self):
        self.inner = NER(NER.Options(), LABELS)
        super().__init__(self.inner.options, LABELS)
        self.files = self.inner.files

    def read(self, path: Path) -> dict[str, list]:
        return {split: list(examples) for split, examples in self.inner.read(path).items()}

    def encode(self, *arguments) -> list:
        return self.inner.encode(*arguments)


def test_features_of_a_task_without_any_code_for_it_are_kept(data, tmp_path, tiny_folder, monkeypatch):
    tokenizer, found = Tokenizer.read(tiny_folder), []
    for _ in range(2):
        task = Plain()
        splits = read_splits(task, data, str(tmp_path / "c"))
        assert all(isinstance(s, list) for s in splits.values())
        found.append(encode_splits(task, splits, tokenizer, 12, 3))
        monkeypatch.setattr(prepare, "encode_all", forbidden)
    assert entries(tmp_path / "c") == {"features": 1}
    for split, features in found[0].items():
        assert all(np.array_equal(x, found[1][split].arrays()[n]) for n, x in features.arrays().items())


@pytest.mark.parametrize("name", TASKS)
def test_a_task_opens_nothing_but_its_files(name, tmp_path):
    """What is not in files() would not be in the key. Python itself reports every open()."""
    opened: list[str] = []
    listening = [True]
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if listening[0] and event == "open" else None)
    folder = Path(shutil.copytree(ROOT / "data" / name, tmp_path / name))
    kind = TASKS[name]
    for options in every_options(kind.Options):
        opened.clear()
        task = kind(options)
        with contextlib.suppress(MinibertError):   # a number is asked for, and the small set has names
            task.read(folder)
        inside = {Path(f) for f in opened if f.startswith(str(folder))}
        assert inside and inside <= set(task.files(folder).values())
    listening[0] = False


def every_options(kind: type) -> list:
    """The default options, and each choice of each of them."""
    default = kind()
    return [default, *(dataclasses.replace(default, **{f.name: choice}) for f in dataclasses.fields(kind)
                       for choice in f.metadata["choices"] or ())]


def test_a_limited_set_keeps_what_it_was_made_from(data, tmp_path, tiny_folder):
    task = NER(NER.Options())
    splits = read_splits(task, data, str(tmp_path / "c"))
    few = splits.limited(13)
    assert isinstance(few, Splits) and [len(s) for s in few.values()] == [13, 13, 13]
    assert few.key == {**splits.key, "limit": 13} and few.cache is splits.cache and "limit" not in splits.key
    plain = Splits({"train": [1, 2, 3, 4]}).limited(2)
    assert plain == {"train": [1, 2]} and plain.cache is None


def test_missing_and_unreadable_files_are_the_same_errors(tmp_path, monkeypatch):
    with refused(tmp_path / "none", "no such"):
        read_splits(NER(NER.Options()), tmp_path / "none", "c")
    file = tmp_path / "train.txt"
    file.write_text("a O\n")

    def closed(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", closed)
    with refused(f"{file}: cannot be read (Permission denied)"):
        read_splits(NER(NER.Options()), tmp_path, str(tmp_path / "c"))


# ------------------------------------------------------------------------------------------------------- train.py


def set_up(tiny_folder, data, cache, *more: str) -> Training:
    return train.set_up(["--weights", str(tiny_folder), "--data", str(data), "--cache", str(cache), "--max-pieces",
                         "24", "--overlap", "6", "--batch-size", "7", *more])


def test_a_run_says_what_it_took_from_the_cache_and_trains_the_same(data, tmp_path, tiny_folder, capsys):
    arguments = ["--weights", str(tiny_folder), "--data", str(data), "--cache", str(tmp_path / "c"),
                 "--max-pieces", "24", "--overlap", "6", "--max-steps", "5", "--no-before", "--evaluate", "dev",
                 "--precision", "fp32"]
    losses = []
    for i in range(2):
        capsys.readouterr()
        folder = train.train([*arguments, "--output", str(tmp_path / f"run{i}")])
        assert capsys.readouterr().out.count("come from") == 2 * i
        lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert losses[0] == losses[1] and len(losses[0]) == 5


def test_a_cache_that_cannot_be_used_stops_no_run(data, tmp_path, tiny_folder, capsys):
    (tmp_path / "file").write_text("x")
    train.train(["--weights", str(tiny_folder), "--data", str(data), "--cache", str(tmp_path / "file"), "--output",
                 str(tmp_path / "r"), "--max-pieces", "24", "--max-steps", "1", "--evaluate", "none"])
    assert " ".join(capsys.readouterr().out.split()).count("cannot be kept") == 2
    assert len(set_up(tiny_folder, data, tmp_path / "file").features["train"]) >= 60


def test_limit_takes_as_many_as_it_says(data, tmp_path, tiny_folder):
    for _ in range(2):
        found = set_up(tiny_folder, data, tmp_path / "c", "--limit", "17")
        assert [len(s) for s in found.examples.values()] == [17, 17, 17]
        assert {f.example for f in found.features["train"]} == set(range(17))
        assert found.features["train"].lengths.tolist() == [len(f.ids) for f in found.features["train"]]


def test_the_default_folder_is_beside_the_weights_and_git_does_not_see_it():
    assert TrainConfig().cache == "cache" and "/cache/" in (ROOT / ".gitignore").read_text().splitlines()


def test_encode_splits_without_a_cache_is_encode_all(data, tiny_folder):
    task = NER(NER.Options())
    splits = read_splits(task, data, "off")
    task.learn_labels(splits)
    tokenizer = Tokenizer.read(tiny_folder)
    found = encode_splits(task, splits, tokenizer, 12, 3)
    for split, examples in splits.items():
        wanted = encode_all(task, examples, tokenizer, 12, 3)
        assert np.array_equal(found[split].ids, wanted.ids)
