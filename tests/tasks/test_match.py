"""tasks/match.py and batching.pair_rows: reading, pairs as rows and windows, both losses, answers, scores, folder."""
import json
import math

import numpy as np
import pytest
import torch
from refusing import refused

import train
from minibert import metrics
from minibert.core.batch import Feature, collate
from minibert.data.rows import pair_rows
from minibert.tasks.labelled import Answer
from minibert.tasks.match import Match, Number
from minibert.tasks.pairs import Pair
from minibert.use.predict import load

PAIRS = ("first,second,label\nwhere is my card,has the card been sent,same\nwhere is my card,block the card,different\n"
         "open an account,I want to join your bank,same\nclose it,how do I open one,different\n")


def task(**options) -> Match:
    return Match(Match.Options(**options))


def learnt(labels: list, **options) -> Match:
    found = task(**options)
    found.learn_labels({"train": [Pair("x", "y", y, "f:1") for y in labels]})
    return found


# ----------------------------------------------------------------------------------------------------- reading


def test_a_folder_is_read_with_its_lines(tmp_path):
    (tmp_path / "train.csv").write_text(PAIRS)
    examples = task().read(tmp_path)["train"]
    assert len(examples) == 4
    assert examples[1] == Pair("where is my card", "block the card", "different", f"{tmp_path}/train.csv:3")


def test_other_columns_and_numbers(tmp_path):
    (tmp_path / "dev.tsv").write_text("\tb\tscore\ta\n0\tx y\t3.75\tz\n1\tu\t-1e1\tv\n")
    found = task(columns="a,b,score", answer="score").read(tmp_path)["dev"]
    assert [(e.first, e.second, e.label) for e in found] == [("z", "x y", 3.75), ("v", "u", -10.0)]
    (tmp_path / "dev.tsv").unlink()
    (tmp_path / "dev.jsonl").write_text('{"first": "a", "second": "b", "label": 4}\n')
    assert task(answer="score").read(tmp_path)["dev"][0].label == 4.0


@pytest.mark.parametrize("answer, value, said", [
    ("class", "", "expected a name"), ("class", None, "expected a name"), ("class", ["a"], "expected a name"),
    ("score", "", "expected a number"), ("score", "high", "'high', not a number"), ("score", "nan", "must be finite"),
    ("score", float("inf"), "must be finite"), ("score", "-2e15", "at most 1e+15"), ("score", {}, "expected a number")])
def test_what_is_no_label(answer, value, said):
    with refused("f:7: the", said):
        task(answer=answer).read_label(value, "f:7")


def test_a_text_that_is_none(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"first": "a", "second": 5, "label": "b"}\n')
    with refused(f"{tmp_path}/train.jsonl:1: the text is 5"):
        task().read(tmp_path)


@pytest.mark.parametrize("columns", ["a,b", "a,b,c,d", "a,,c", "a,b,a", ""])
def test_columns_that_cannot_be(columns):
    with refused("--columns", "3 different names"):
        task(columns=columns)


@pytest.mark.parametrize("labels, options", [(["a", "a"], {}), ([2.0, 2.0], {"answer": "score"})])
def test_nothing_to_tell_apart(labels, options):
    with refused("f:1: the training pairs have the labels", "at least two", "--limit"):
        learnt(labels, **options)


def test_labels_that_train_never_saw_are_told_and_numbers_never():
    found = learnt(["b", "a"])
    dev = [Pair("x", "y", "c", "f:1"), Pair("x", "y", "a", "f:2")]
    found.note_unseen({"dev": dev})
    assert found.labels == ["a", "b"]
    assert found.notices == ["dev has labels that train never saw, which count as missed: c (1 pairs)"]
    scores = found.score([Answer({"a": 0.9, "b": 0.1})] * 2, dev)
    assert scores["accuracy"] == 0.5 and scores["confusion"] == [[1, 0], [0, 0]]
    number = learnt([1.0, 2.0], answer="score")
    number.note_unseen({"dev": [Pair("x", "y", 7.0, "f:1")]})
    assert number.notices == [] and number.labels == number.outputs == ["score"]


@pytest.mark.parametrize("text", ["one text", "", "a ||| b ||| c"])
def test_raw_text_that_is_no_pair(text):
    with refused("expected two texts with |||"):
        task().example(text)


# ---------------------------------------------------------------------------------------------- pairs in rows


def texts(tokenizer, first: int, second: int):
    """Pieces of two texts of so many words, each word one piece."""
    words = ["ada", "met", "bruno", "in", "oslo", "rain", "old"]
    pick = [[words[(i * step) % 7] for i in range(n)] for n, step in ((first, 1), (second, 3))]
    found = tokenizer.pieces(pick)
    assert [len(p.ids) for p in found] == [first, second]
    return found


def test_a_pair_is_one_row_told_apart_by_types(tokenizer):
    row, = learnt(["a", "b"]).encode(5, Pair("Ada met Bruno", "the rain.", "b", ""), tokenizer, 24, 6)
    assert [tokenizer.backend.id_to_token(i) for i in row.ids] == [
        "[CLS]", "ada", "met", "bruno", "[SEP]", "the", "rain", ".", "[SEP]"]
    assert row.types.tolist() == [0] * 5 + [1] * 4
    assert row.picks.tolist() == [0] and row.labels.tolist() == [1] and row.example == 5


def test_types_carry_case_shapes_too(tokenizer):
    first, second = texts(tokenizer, 5, 7)
    shaped = [type(p)(p.ids, p.words, p.spans, [shape] * len(p.ids)) for p, shape in ((first, 1), (second, 3))]
    row, = pair_rows(*shaped, tokenizer, 24, 6)
    assert row.types.tolist() == [0, *[2] * 5, 0, *[7] * 7, 1]


@pytest.mark.parametrize("first, second, rows", [(10, 11, 1), (0, 0, 1), (0, 21, 1), (21, 0, 1), (3, 60, 4), (60, 3, 4),
                                                 (11, 11, 2), (40, 50, 42)])
def test_every_piece_of_both_texts_meets_every_of_the_other(tokenizer, first, second, rows):
    """24 pieces a row leave room for 21; what is longer has windows, each text at least half the room.

    40 and 50: windows of 10 and 11 pieces, 4 of them seen before, 6 · 7 rows.
    """
    a, b = texts(tokenizer, first, second)
    found = pair_rows(a, b, tokenizer, 24, 4)
    assert len(found) == rows
    met = np.zeros((first, second), bool)
    for row in found:
        types = row.types
        assert len(row.ids) == len(types) <= 24
        ids, end = row.ids.tolist(), tokenizer.end
        assert ids[1:-1] == [*a.ids[slice(*row.first)], end, *b.ids[slice(*row.second)]]
        cut = ids.index(end)
        assert ids[0] == tokenizer.start and ids[-1] == end and ids.count(end) == 2
        assert types.tolist() == [0] * (cut + 1) + [1] * (len(ids) - cut - 1)
        met[slice(*row.first), slice(*row.second)] = True
    assert met.all()


def test_no_label_no_loss(tokenizer):
    row, = learnt(["a", "b"]).encode(0, Pair("ada", "rain", "c", ""), tokenizer, 24, 6)
    assert row.labels.tolist() == [-1]


# ------------------------------------------------------------------------------------------------------- losses


def batch_of(found: Match, labels: list):
    """A row a label; None: not known."""
    rows = []
    for i, label in enumerate(labels):
        number, target = found.numbers(Pair("x", "y", label, "f:1"))
        rows.append(Feature(i, np.array([2, 5 + i, 3]), np.zeros(3, np.int64), np.zeros(1, np.int64),
                            np.array([number]), target))
    return collate(rows)


def test_classes_are_cross_entropy_and_numbers_squared_error():
    """Scores (0, log 3) at b: −log 3/4; a row without label counts 0. Guesses 1 and 4 for 3.25 and 2: 5.0625 + 4."""
    found = learnt(["a", "b"])
    z = torch.tensor([[0.0, math.log(3)], [5.0, -5.0]], dtype=torch.float64)
    batch = batch_of(found, ["b", None])
    assert float(found.loss(z, batch)["pairs"]) == pytest.approx(math.log(4 / 3))
    assert found.counts(batch) == {"pairs": 1.0}
    number = learnt([2.0, 3.0], answer="score")
    z, batch = torch.tensor([[1.0], [4.0], [9.0]], dtype=torch.float64), batch_of(number, [3.25, 2.0, None])
    assert float(number.loss(z, batch)["pairs"]) == 9.0625
    assert number.counts(batch) == {"pairs": 2.0}


@pytest.mark.parametrize("labels, options, K", [(["a", "b", "c"], {}, 3), ([-0.5, 1.5, 5.0], {"answer": "score"}, 1)])
def test_the_gradient_is_autograds(labels, options, K):
    found = learnt(labels, **options)
    batch = batch_of(found, [labels[2], labels[0], None, labels[1], labels[2]])
    z = torch.randn(5, K, dtype=torch.float64, generator=torch.Generator().manual_seed(7)).requires_grad_()
    found.loss(z, batch)["pairs"].backward()
    assert torch.allclose(z.grad, found.loss_backward(z.detach(), batch)["pairs"], rtol=1e-12, atol=1e-14)
    assert not z.grad[2].any() and z.grad[0].any()


# ----------------------------------------------------------------------------------------------- answers and scores


class Row:
    def __init__(self, example: int):
        self.example = example


def test_the_mean_score_of_the_windows_decides_a_number_too():
    number = learnt([1.0, 2.0], answer="score")
    assert number.decode([None], [Row(0), Row(0)], [np.array([[1.0]]), np.array([[4.0]])]) == [Number(2.5)]


def test_correlations_by_hand():
    """(1,2,3,4) against (2,1,4,3): Σdxdy 3 of 5; ranks the same. Against (1,1,2,2): ranks 1.5 and 3.5, 4/√(5·4)."""
    scores = metrics.correlations([1, 2, 3, 4], [2, 1, 4, 3])
    assert scores == pytest.approx({"pearson": 0.6, "spearman": 0.6, "mse": 1.0, "support": 4})
    assert metrics.correlations([1, 2, 3, 4], [10, 10, 20, 20])["spearman"] == pytest.approx(4 / math.sqrt(20))
    assert metrics.correlations([1, 2], [5, 5])["pearson"] == 0.0
    with refused("2 gold numbers but 1"):
        metrics.correlations([1, 2], [1])


def test_numbers_may_be_chosen_by_each_of_their_scores():
    t = Match(Match.Options(answer="score"))
    assert {**t.also_best, **dict([t.best])} == {"pearson": "max", "spearman": "max", "mse": "min"}
    assert metrics.correlations([1, 2], [1, 3]).keys() == {"pearson", "spearman", "mse", "support"}


@pytest.mark.parametrize("seed", range(5))
def test_correlations_are_numpys(seed):
    draw = np.random.default_rng(seed)
    x, y = draw.normal(size=37), draw.integers(0, 5, 37).astype(float)
    scores = metrics.correlations(x.tolist(), y.tolist())
    assert scores["pearson"] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-12)
    ranks = [[np.mean(np.flatnonzero(np.sort(v) == u)) for u in v] for v in (x, y)]
    assert scores["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-12)


def test_predictions_that_collapsed():
    found, number = learnt(["a", "b"]), learnt([1.0, 2.0], answer="score")
    pair = [Pair("", "", y, "") for y in "ab"]
    one, other = Answer({"a": 0.9, "b": 0.1}), Answer({"a": 0.1, "b": 0.9})
    assert found.collapsed([one] * 2, pair) == "a"
    assert found.collapsed([one] * 2, pair[:1] * 2) is None
    assert found.collapsed([one, other], pair) is None
    pair = [Pair("", "", y, "") for y in (1.0, 2.0)]
    assert number.collapsed([Number(1.50001), Number(1.50002)], pair) == "1.5"
    assert number.collapsed([Number(1.5), Number(1.6)], pair) is None


@pytest.mark.parametrize("answer, file, kind", [
    ("class", PAIRS, "single_label_classification"),
    ("score", "first,second,label\na,b,0.2\nc,d,-0.5\ne,rain,1\nmet,old,0.5\n", "regression")])
def test_four_pairs_are_learnt_by_heart_and_the_folder_keeps_them(tiny_folder, tmp_path, answer, file, kind):
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "dev"):
        (data / f"{split}.csv").write_text(file)
    output = train.train(["--task", "match", "--weights", str(tiny_folder), "--data", str(data), "--output",
                          str(tmp_path / "r"), "--answer", answer, "--max-pieces", "40", "--overlap", "9", "--epochs",
                          "80", "--cache", "off", "--learning-rate", "3e-3", "--dropout", "0", "--precision", "fp32"])
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    loss = [line["loss"] for line in lines if "loss" in line]
    assert loss[-1] < 0.1 * loss[0]
    scores = json.loads((output / "metrics.json").read_text())["dev"]
    assert scores["pearson"] > 0.98 if answer == "score" else scores["accuracy"] == 1.0
    config = json.loads((output / "config.json").read_text())
    assert config["problem_type"] == kind and config["architectures"] == ["BertForSequenceClassification"]
    model = load(output)
    first, second = file.splitlines()[1].split(",")[:2]
    result, = model.predict([f"{first} ||| {second}"])
    assert (result["first"], result["second"]) == (first, second)
    wanted = file.splitlines()[1].split(",")[2]
    if answer == "score":
        assert result["score"] == pytest.approx(float(wanted), abs=0.15)
        assert model.task.render(result, False).splitlines()[0] == f"{result['score']:.2f}"
    else:
        assert result["label"] == wanted and set(result["probabilities"]) == {"same", "different"}
        assert model.task.render(result, False).startswith(f"{wanted} ")
