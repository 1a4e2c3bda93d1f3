"""divide.py: shares of one file, whole and disjoint, in proportion for every label, the same for the same seed."""
import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from refusing import refused

import train
from minibert.settings import TrainConfig
from minibert.tasks import TASKS
from minibert.tasks.classify import Classify
from minibert.tasks.ner import NER
from minibert.use.divide import allot, divide
from minibert.use.prepare import Splits

SHARES = [[0.8, 0.1, 0.1], [0.7, 0.3], [0.5, 0.25, 0.25], [0.334, 0.333, 0.333]]


@pytest.mark.parametrize("shares", SHARES, ids=str)
@pytest.mark.parametrize("count", [7, 30, 601])
def test_every_example_once_in_shares_within_one(shares, count):
    parts = allot([None] * count, shares, seed=5)
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))
    assert all(part.tolist() == sorted(part) for part in parts)
    for part, share in zip(parts, shares, strict=True):
        assert len(part) in (math.floor(round(count * share, 6)), math.ceil(round(count * share, 6)))


def test_the_seed_alone_decides_and_neighbours_are_parted():
    first, again, other = (allot([None] * 90, [0.8, 0.1, 0.1], seed) for seed in (3, 3, 4))
    assert [a.tolist() for a in first] == [a.tolist() for a in again]
    assert first[1].tolist() != other[1].tolist()
    assert np.diff(first[1]).max() > 1 and first[1].max() > 20                # not a stretch of the file, not its end


@pytest.mark.parametrize("shares", SHARES, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_each_label_has_its_share_and_so_has_the_whole(shares, seed):
    draw = np.random.default_rng(seed)
    strata = [("a", "b", "c", "d", "e", "f")[i] for i in np.minimum(draw.geometric(0.35, 400) - 1, 5)]
    counts = Counter(strata)
    parts = allot(strata, shares, seed)
    for share, part in zip(shares, parts, strict=True):
        for label, n in counts.items():
            there = sum(strata[i] == label for i in part)
            assert there in (math.floor(round(n * share, 6)), math.ceil(round(n * share, 6))), (label, n)
        assert abs(len(part) - 400 * share) <= 1


def test_labels_too_rare_for_every_split_take_turns():
    """Five of each of twelve: 4, 1/2, 1/2. Without turns dev would get all twelve that are left, test none."""
    parts = allot([i % 12 for i in range(60)], [0.8, 0.1, 0.1], seed=1)
    assert [len(part) for part in parts] == [48, 6, 6]


def write(folder: Path) -> Path:
    rows = [f"शब्द {i},{'xy'[i % 3 == 0]}" for i in range(40)]
    (folder / "all.csv").write_text("\n".join(["text,label", *rows]))
    return folder / "all.csv"


def test_a_table_is_divided_with_its_lines(tmp_path):
    file, found = write(tmp_path), Classify(Classify.Options())
    splits = divide(found, Splits(found.read(file)), file, "0.5,0.25,0.25", True, 7)
    counts = {name: Counter(e.labels[0] for e in part) for name, part in splits.items()}
    assert list(counts) == ["train", "dev", "test"] and counts["train"] == {"x": 13, "y": 7}
    assert sorted([counts["dev"]["x"], counts["test"]["x"]]) == [6, 7] and counts["dev"].total() == 10
    lines = [int(e.where.split(":")[-1]) for part in splits.values() for e in part]
    assert sorted(lines) == list(range(2, 42))
    assert divide(found, splits, file, None, False, 7) is splits


def test_sentences_of_arrays_are_those_of_objects(tmp_path):
    sentences = [[(f"w{i}.{j}", ("B-X", "I-X", "O")[j % 3]) for j in range(1 + i % 4)] for i in range(23)]
    text = "\n\n".join("\n".join(" ".join(pair) for pair in sentence) for sentence in sentences)
    (tmp_path / "all.conll").write_text(text + "\n")
    found = NER(NER.Options())
    whole, = found.read(tmp_path / "all.conll").values()
    numbers = np.array([20, 3, 4, 11, 7, 0])
    taken = whole.take(numbers)
    assert [(e.words, e.tags, e.where) for e in taken] == [
        (whole[i].words, whole[i].tags, whole[i].where) for i in numbers.tolist()]
    assert taken.count_tags() == Counter(t for i in numbers.tolist() for t in whole[i].tags)
    assert [e.words for e in taken[2:5]] == [whole[i].words for i in (4, 11, 7)]
    assert len(whole.take(numbers[:0])) == 0


def test_what_cannot_be_divided(tmp_path):
    file, found = write(tmp_path), Classify(Classify.Options())
    with refused("--split is 0.9,0.1; ", "has train, dev files already"):
        divide(found, Splits({"train": [1], "dev": [2]}), file, "0.9,0.1", False, 0)
    with refused("--split is 0.998,0.001,0.001; of the 40 examples", "none would be left for dev"):
        divide(found, Splits(found.read(file)), file, "0.998,0.001,0.001", False, 0)
    for kind, options in (("ner", {}), ("qa", {}), ("match", {"answer": "score"})):
        with refused("--stratify"):
            TASKS[kind](TASKS[kind].Options(**options)).stratum(None)
    with refused("--split: --task mlm reads a file as one text"):
        TASKS["mlm"](TASKS["mlm"].Options()).subset([], numbers=np.zeros(0, np.int64))


@pytest.mark.parametrize("shares", ["0.8", "0.8,0.1", "1,0", "0.8,0.1,0.1,0.0", "0.9,-0.1,0.2", "a,b", "0.8;0.2", ""])
def test_shares_that_are_none(shares):
    with refused("--split is "):
        TrainConfig(split=shares).check()


def test_stratify_needs_shares():
    with refused("--stratify is True; it must be left out without --split"):
        TrainConfig(stratify=True).check()


def test_a_run_on_one_file(tmp_path, tiny_folder, monkeypatch, capsys):
    """Trained, chosen and scored on three parts of it; scored again, on the same rows as then."""
    from minibert.__main__ import main
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path)
    run = train.train(["--task", "classify", "--data", str(file), "--weights", str(tiny_folder), "--cache", "off",
                       "--split", "0.5,0.25,0.25", "--stratify", "--max-steps", "1", "--max-pieces", "20", "--output",
                       "run"]).resolve()
    said = " ".join(capsys.readouterr().out.split())
    assert "train 20, dev 10, test 10 examples" in said
    assert main(["evaluate", str(run), "--data", str(file), "--json"]) == 0
    said = capsys.readouterr()
    assert said.out.count('"support": 10') >= 2 and '"train"' not in said.out
    assert f"{file} is what the model was trained on a part of; divided as then" in said.err

    # by its contents, wherever it lies and is looked at from; and no file is divided that is another
    (tmp_path / "there").mkdir()
    shutil.copy(file, tmp_path / "there" / "copy.csv")
    monkeypatch.chdir(tmp_path / "there")
    assert main(["evaluate", str(run), "--data", "copy.csv", "--json"]) == 0
    assert capsys.readouterr().out == said.out
    assert main(["evaluate", str(run), "--data", "copy.csv", "--incomplete", "skip"]) == 2
    assert "error: --incomplete is skip, but refuse in training; with other rows nobody" in capsys.readouterr().err
    for changed in (Path("copy.csv"), file):
        changed.write_text(changed.read_text().replace("शब्द 3", "शब्द x"))
        assert main(["evaluate", str(run), "--data", str(changed), "--json"]) == 0
        said = capsys.readouterr()
        assert '"support": 40' in said.out and ("is not as it was" in said.err) == (changed == file)
