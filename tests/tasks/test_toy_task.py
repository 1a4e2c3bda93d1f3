"""Two small tasks, whole: one that is defined here on Task, in at most 60 lines, and the example of CONTRIBUTING.md."""
import importlib
import inspect
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import train
from minibert.__main__ import main
from minibert.core.batch import Feature
from minibert.data.rows import WordNumbers, word_features
from minibert.data.tables import read_lines
from minibert.data.tokenizer import Tokenizer
from minibert.scores.tables import Scores
from minibert.tasks import TASKS
from minibert.tasks.base import Result, Task
from minibert.use.predict import load

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")


# ------------------------------------------------------------------------------------------ the task, 60 lines at most


@dataclass(frozen=True)
class Sentence:
    """Words without capitals, and which of them begin with one; of raw text that is not known."""
    words: list[str]
    capitals: list[int]


class Truecase(Task[Sentence, list[str]]):
    """Give a text its capitals back: 0 or 1 for each word, read on its first piece."""
    name, unit, suffixes, About = "truecase", "words", (".txt",), WordNumbers
    trial = "ada met bruno in oslo"

    def read_file(self, file: Path) -> list[Sentence]:
        """A sentence a line, blanks between words."""
        lines = [line.split() for line in read_lines(file)]
        return [Sentence([w.lower() for w in words], [int(w[0].isupper()) for w in words]) for words in lines if words]

    def example(self, text: str) -> Sentence:
        """Raw text."""
        return Sentence(text.lower().split(), [])

    def learn_labels(self, splits: dict[str, Sequence[Sentence]]) -> None:
        """There are two."""
        self.labels = ["small", "capital"]

    def encode(self, number: int, example: Sentence, tokenizer: Tokenizer, max_pieces: int,
               overlap: int) -> list[Feature]:
        """Windows of the sentence."""
        labels = example.capitals or [-1] * len(example.words)
        return word_features(number, tokenizer.pieces([example.words])[0], tokenizer, max_pieces, overlap, labels)

    def decode(self, examples: Sequence[Sentence], features: Sequence[Feature],
               scores: Sequence[np.ndarray]) -> list[list[str]]:
        """The words as they should be written."""
        said = [list(e.words) for e in examples]
        for feature, z in zip(features, scores, strict=True):
            for word in feature.about.words[z.argmax(-1) == 1]:
                said[feature.example][word] = said[feature.example][word].capitalize()
        return said

    def score(self, predictions: Sequence[list[str]], examples: Sequence[Sentence]) -> Scores:
        """The share of words that are written right."""
        right = [word[0].isupper() == bool(capital) for words, e in zip(predictions, examples, strict=True)
                 for word, capital in zip(words, e.capitals, strict=True)]
        return {"accuracy": sum(right) / len(right)}

    def result(self, example: Sentence, prediction: list[str]) -> Result:
        """{"text"}."""
        return {"text": " ".join(prediction)}


# ------------------------------------------------------------------------------------------------------------ the tests

NAMES, PLAIN = ["Ada", "Bruno", "Clara", "Oslo", "Lima"], ["met", "left", "the", "rain", "old", "bank", "visited"]


def write(folder: Path, lines: list[str]) -> Path:
    folder.mkdir()
    for split in ("train", "dev", "test"):
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def sentences() -> list[str]:
    draw = np.random.default_rng(3)
    return [" ".join(draw.permutation([*draw.choice(NAMES, 3), *draw.choice(PLAIN, 12)])) for _ in range(40)]


def command(name: str, weights: Path, data: Path, output: Path, *more: str) -> list[str]:
    return ["--task", name, "--weights", str(weights), "--data", str(data), "--output", str(output), "--max-pieces",
            "14", "--overlap", "4", "--batch-size", "8", "--learning-rate", "3e-3", "--precision", "fp32", *more]


def trained(name: str, weights: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run through train.main, its features once made and once from the cache; both end with the same losses."""
    monkeypatch.setattr("minibert.use.prepare.WORTH", 0)
    losses = []
    for number in (0, 1):
        output = tmp_path / f"r{number}"
        words = command(name, weights, data, output, "--max-steps", "60", "--cache", str(tmp_path / "c"))
        assert train.main(words) == 0
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert losses[0] == losses[1] and losses[0][-1] < 0.3 * losses[0][0]
    return output


def test_a_task_of_sixty_lines_is_trained_scored_and_loaded(tiny_folder, tmp_path, monkeypatch, capsys):
    assert len(inspect.getsource(Sentence).splitlines() + inspect.getsource(Truecase).splitlines()) <= 60
    monkeypatch.setitem(TASKS, "truecase", Truecase)
    data = write(tmp_path / "d", sentences())
    output = trained("truecase", tiny_folder, data, tmp_path, monkeypatch)
    scores = json.loads((output / "metrics.json").read_text())
    assert scores["before"]["test"]["accuracy"] < scores["test"]["accuracy"] > 0.99
    capsys.readouterr()
    assert main(["evaluate", str(output), "--data", str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["test"] == scores["test"]
    assert load(output).predict(["ada left the old bank rain met bruno visited lima"]) == [
        {"text": "Ada left the old bank rain met Bruno visited Lima"}]
    assert main(["predict", str(output), "clara met ada"]) == 0 and capsys.readouterr().out == "text  Clara met Ada\n"
    assert main(["predict", str(output), "--answers", str(data / "test.txt"), "x"]) == 2
    assert "chooses no replies" in capsys.readouterr().err


def code_of_the_page() -> str:
    """The one block of Python in CONTRIBUTING.md."""
    block, = re.findall(r"(?ms)^```python\n(.*?)^```$", PAGE)
    assert len(block.splitlines()) <= 50
    return block


def test_the_example_of_the_page_is_a_task(tiny_folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "mood.py").write_text(code_of_the_page(), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        mood = importlib.import_module("mood")
        monkeypatch.setitem(TASKS, "mood", mood.Mood)
        lines = [line for n in range(2, 9) for line in ("+ " + "Ada Oslo " * n, "- " + "the old bank " * n)]
        output = trained("mood", tiny_folder, write(tmp_path / "d", lines), tmp_path, monkeypatch)
        assert json.loads((output / "metrics.json").read_text())["test"]["accuracy"] > 0.9
        found = load(output).predict(["Oslo Oslo Ada", "old bank old rain"])
        assert [(r["label"], r["text"]) for r in found] == [("+", "Oslo Oslo Ada"), ("-", "old bank old rain")]
        (tmp_path / "d" / "dev.txt").write_text("+ good\nbad\n")
        capsys.readouterr()
        assert train.main(command("mood", tiny_folder, tmp_path / "d", tmp_path / "none")) == 2
        assert f"{tmp_path}/d/dev.txt:2: 'bad'" in capsys.readouterr().err
    finally:
        sys.modules.pop("mood", None)
