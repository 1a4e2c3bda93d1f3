"""The small sets of data/ but ner: the numbers of data/README.md, balance, and the rule against repeated wording.

Nothing of the package is imported. Each check is a function from {split: rows} to a list of faults, so that the second
half can break the data on purpose and see it complain.
"""
import csv
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "data"
SPLITS = ("train", "dev", "test")
RUN = 6                                            # words in a row that no two texts may share

Row = tuple[tuple[str, ...], str]                  # the texts of an example and its label, "" for none
Splits = dict[str, list[Row]]


def table(*columns: str) -> Callable[[Path], list[Row]]:
    """A reader of .csv whose columns are exactly these; one called label is the label."""
    def read(file: Path) -> list[Row]:
        with open(file, encoding="utf-8", newline="") as f:
            head, *rows = csv.reader(f, strict=True)
        assert head == list(columns)
        dicts = [dict(zip(columns, row, strict=True)) for row in rows]
        return [(tuple(d[c] for c in columns if c != "label"), d.get("label", "")) for d in dicts]
    return read


def objects(file: Path) -> list[Row]:
    """A reader of .jsonl with source and target."""
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert all(row.keys() == {"source", "target"} for row in rows)
    return [((row["source"], row["target"]), "") for row in rows]


def paragraphs(file: Path) -> list[Row]:
    """A reader of plain text, one paragraph a line."""
    return [((line,), "") for line in file.read_text("utf-8").splitlines() if line]


def semeval(file: Path) -> list[Row]:
    """A reader of blocks: NUMBER, a tab, the sentence in quotes; the label; Comment:; an empty line."""
    rows = []
    for block in file.read_text("utf-8").strip().split("\n\n"):
        sentence, label, comment = block.split("\n")
        number, text = sentence.split("\t")
        assert number.isdecimal() and text[0] == text[-1] == '"' and comment == "Comment:"
        assert [m[0] for m in re.finditer("</?e[12]>", text)] == ["<e1>", "</e1>", "<e2>", "</e2>"]
        rows.append(((re.sub("</?e[12]>", "", text[1:-1]),), label))
    return rows


def squad(file: Path) -> list[Row]:
    """A reader of SQuAD's layout: a row a question, whose text stands with the first of its questions."""
    rows = []
    for article in json.loads(file.read_text("utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for i, q in enumerate(paragraph["qas"]):
                assert all(paragraph["context"][a["answer_start"]:][:len(a["text"])] == a["text"] for a in q["answers"])
                assert q["is_impossible"] == (not q["answers"])
                rows.append((((paragraph["context"],) if not i else ()) + (q["question"],), ""))
    return rows


SETS: dict[str, tuple[Callable[[Path], list[Row]], str]] = {       # reader, suffix
    "classify": (table("text", "label"), "csv"), "intents": (table("text", "label"), "csv"),
    "match": (table("first", "second", "label"), "csv"), "relation": (semeval, "txt"),
    "reply": (table("question", "answer"), "csv"), "translate": (table("source", "target"), "csv"),
    "dialogue": (table("source", "target"), "csv"), "summarize": (objects, "jsonl"), "mlm": (paragraphs, "txt"),
    "qa": (squad, "json")}


def read(name: str) -> Splits:
    reader, suffix = SETS[name]
    return {split: reader(DATA / name / f"{split}.{suffix}") for split in SPLITS}


def told(name: str) -> list[str]:
    """The cells of a set in the table of data/README.md: examples of train, dev, test; longest text; labels."""
    row = re.search(rf"(?m)^\| {name} \| (.*) \|$", (DATA / "README.md").read_text("utf-8"))
    assert row, f"data/README.md has no row of {name} in its table: | {name} | train | dev | test | words | labels |"
    return [cell.strip() for cell in row[1].split("|")]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def counted(splits: Splits) -> list[str]:
    """What told() should be."""
    texts = [text for rows in splits.values() for texts, _ in rows for text in texts]
    labels = sorted({label for rows in splits.values() for _, label in rows})
    return [*(f"{len(rows):,}" for rows in splits.values()), str(max(len(words(t)) for t in texts)), " ".join(labels)]


def balance(splits: Splits) -> list[str]:
    """All labels in every split, and nearly as many of each.

    Other may be twice the rest: it stands for a relation, which has two directions.
    """
    every, faults = {label for rows in splits.values() for _, label in rows}, []
    for split, rows in splits.items():
        counts = Counter(label for _, label in rows)
        even = [counts[label] / 2 if label == "Other" else counts[label] for label in every]
        faults += [f"{split}: {counts}"] if max(even) - min(even) > 4 or set(counts) != every else []
    return faults


def repeats(splits: Splits) -> list[str]:
    """Runs of RUN words that stand in two texts, and texts that stand twice, whatever the split."""
    seen: dict[tuple[str, ...], int] = {}
    faults = []
    for i, text in enumerate(text for rows in splits.values() for texts, _ in rows for text in texts):
        w = tuple(words(text))
        for run in {w[k:k + RUN] for k in range(max(1, len(w) - RUN + 1))}:
            if seen.setdefault(run, i) != i:
                faults.append(" ".join(run))
    return faults


def form(splits: Splits) -> list[str]:
    """No blanks at the ends, no control characters, two words at least."""
    return [text for rows in splits.values() for texts, _ in rows for text in texts
            if text != text.strip() or not text.isprintable() or len(words(text)) < 2]


@pytest.mark.parametrize("name", SETS)
def test_the_page_of_the_data_gives_its_numbers(name):
    assert counted(read(name)) == told(name)


@pytest.mark.parametrize("name", SETS)
def test_labels_are_balanced(name):
    assert balance(read(name)) == []


@pytest.mark.parametrize("name", SETS)
def test_no_two_texts_share_six_words_in_a_row(name):
    assert repeats(read(name)) == []


@pytest.mark.parametrize("name", SETS)
def test_texts_are_clean(name):
    assert form(read(name)) == []


@pytest.mark.parametrize("name", SETS)
def test_the_page_of_the_data_tells_of_them(name):
    text = (DATA / "README.md").read_text("utf-8")
    assert f"## {name}/" in text, f"data/README.md has no section ## {name}/ that says how the set was written"
    part = text.split(f"## {name}/")[1].split("\n## ")[0]
    assert all(size in part for size in told(name)[:3]) and "written" in part.lower()


def test_every_folder_of_data_is_checked():
    there = {p.name for p in DATA.iterdir() if p.is_dir()}
    assert there == {*SETS, "ner"}, f"data/ and SETS, which reads it, differ by {there ^ {*SETS, 'ner'}}"


def test_each_check_can_fail():
    splits = read("classify")
    (first, label), *others = splits["dev"]
    for broken in ({"dev": others}, {"dev": [(("one " * 24,), label), *others]}, {"dev": [(first, "mixed"), *others]}):
        assert counted(splits | broken) != told("classify")
    assert balance({**splits, "test": [(t, "neutral") if y == "negative" else (t, y) for t, y in splits["test"]]})
    assert balance({**splits, "dev": [(first, "mixed"), *others]})
    (text,), _ = splits["train"][0]
    assert repeats({**splits, "test": [*splits["test"], ((text,), "neutral")]})
    six = " ".join(words(splits["train"][1][0][0])[:RUN])
    assert repeats({**splits, "dev": [*splits["dev"], ((f"Nobody says that {six} today",), "neutral")]})
    assert repeats({"train": [(("a b c d e f", "x a b c d e f"), "")]})        # within one example too
    for bad in (" x y z", "one\ttwo three", "a"):
        assert form({"train": [((bad,), "neutral")]})
