"""data/classify and data/intents: sizes, balance, splits, and the rule against repeated wording.

Nothing of the package is imported. Each check is a function from {split: rows} to a list of faults, so that the second
half can break the data on purpose and see it complain.
"""
import csv
import re
from collections import Counter
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parent.parent / "data"
SETS = {"classify": {"negative", "neutral", "positive"},
        "intents": {"lost_card", "card_declined", "card_delivery", "change_pin", "transfer_delayed", "wrong_charge",
                    "refund", "loan_question", "open_account", "close_account", "exchange_rate", "change_address"}}
LEAST = {"train": 200, "dev": 50, "test": 50}
RUN = 6                                            # words in a row that no two texts may share

Splits = dict[str, list[tuple[str, str]]]


def read(name: str) -> Splits:
    found = {}
    for split in LEAST:
        with open(DATA / name / f"{split}.csv", encoding="utf-8", newline="") as f:
            head, *rows = csv.reader(f, strict=True)
        assert head == ["text", "label"]
        found[split] = [(text, label) for text, label in rows]
    return found


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def sizes(splits: Splits, labels: set[str]) -> list[str]:
    """Enough rows in every split, the labels that were meant, and nearly as many of each."""
    faults = [f"{split}: {len(rows)} rows" for split, rows in splits.items() if len(rows) < LEAST[split]]
    for split, rows in splits.items():
        counts = Counter(label for _, label in rows)
        faults += [f"{split}: labels {sorted(counts)}"] if set(counts) != labels else []
        faults += [f"{split}: {counts}"] if max(counts.values()) - min(counts.values()) > 4 else []
    return faults


def repeats(splits: Splits) -> list[str]:
    """Runs of RUN words that stand in two texts, and texts that stand twice, whatever the split."""
    seen: dict[tuple[str, ...], int] = {}
    faults = []
    for i, text in enumerate(text for rows in splits.values() for text, _ in rows):
        w = tuple(words(text))
        for run in {w[k:k + RUN] for k in range(max(1, len(w) - RUN + 1))}:
            if seen.setdefault(run, i) != i:
                faults.append(" ".join(run))
    return faults


def form(splits: Splits) -> list[str]:
    """No blanks at the ends, no control characters, 3 to 40 words."""
    return [text for rows in splits.values() for text, _ in rows
            if text != text.strip() or not text.isprintable() or not 3 <= len(words(text)) <= 40]


@pytest.mark.parametrize("name", SETS)
def test_sizes_and_balance(name):
    assert sizes(read(name), SETS[name]) == []


@pytest.mark.parametrize("name", SETS)
def test_no_two_texts_share_six_words_in_a_row(name):
    assert repeats(read(name)) == []


@pytest.mark.parametrize("name", SETS)
def test_texts_are_clean(name):
    assert form(read(name)) == []


@pytest.mark.parametrize("name", SETS)
def test_the_page_of_the_data_tells_of_them(name):
    text = (DATA / "README.md").read_text("utf-8")
    part = text.split(f"## {name}/")[1].split("\n## ")[0]
    assert all(f"{len(rows):,}" in part for rows in read(name).values()) and "written" in part.lower()


def test_each_check_can_fail():
    splits, labels = read("classify"), SETS["classify"]
    few = {**splits, "dev": splits["dev"][:40]}
    assert sizes(few, labels) and sizes(splits, labels | {"mixed"})
    assert sizes({**splits, "test": [(t, "neutral") if y == "negative" else (t, y) for t, y in splits["test"]]}, labels)
    text = splits["train"][0][0]
    assert repeats({**splits, "test": [*splits["test"], (text, "neutral")]})
    six = " ".join(words(splits["train"][1][0])[:RUN])
    assert repeats({**splits, "dev": [*splits["dev"], (f"Nobody says that {six} today", "neutral")]})
    for bad in (" x y z", "one\ttwo three", "a"):
        assert form({"train": [(bad, "neutral")]})
