"""tasks/classify.py: reading, targets, windows, decoding, scores and the saved folder, each on a worked example."""
import json
import math
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from refusing import refused
from updates import build_model, settings_of

import train
from minibert import metrics
from minibert.checkpoints import weights
from minibert.checkpoints.weights import read_tokenizer
from minibert.core.heads import PooledHead
from minibert.core.model import Model, initialise
from minibert.tasks.classify import Classify, Example, Holding
from minibert.tasks.label_lists import LabelLists
from minibert.tasks.labelled import Answer
from minibert.use.predict import load

REVIEWS = ("text,label\nThis is a positive review,positive\nI did not enjoy a minute of it,negative\n"
           "The best evening in years,positive\nA waste of my money,negative\n")


def task(**options) -> Classify:
    return Classify(Classify.Options(**options))


def read(found: Classify, *values: object) -> list[tuple[str, ...]]:
    """The labels of rows that have these values, in lines 1, 2, ..."""
    if found.options.choice != "several":
        return [(found.read_label(value, f"f:{i}"),) for i, value in enumerate(values, 1)]
    lists = LabelLists()
    names = [lists.read(value, f"f:{i}") for i, value in enumerate(values, 1)]
    return list(map(lists.meaning(Path("f"), found.notices), names))


def learnt(labels: list[str], **options) -> Classify:
    found = task(**options)
    found.learn_labels({"train": [Example("x", y, "f:1") for y in read(found, *labels)]})
    return found


def write(folder, **splits: str):
    for split, text in splits.items():
        (folder / f"{split}.csv").write_text(text)
    return folder


# ----------------------------------------------------------------------------------------------------- reading


def test_a_folder_is_read_with_its_lines(tmp_path):
    splits = task().read(write(tmp_path, train=REVIEWS, test="text,label\nFine,positive\n"))
    assert {split: len(examples) for split, examples in splits.items()} == {"train": 4, "test": 1}
    assert splits["train"][1] == Example("I did not enjoy a minute of it", ("negative",), f"{tmp_path}/train.csv:3")


def test_other_columns(tmp_path):
    (tmp_path / "train.tsv").write_text("id\tcategory\tsentence\n1\ta\tx y\n2\tb\tz\n")
    found = task(columns="sentence, category").read(tmp_path)["train"]
    assert [(e.text, e.labels) for e in found] == [("x y", ("a",)), ("z", ("b",))]


@pytest.mark.parametrize("value, labels", [("b|a", ("a", "b")), ("", ()), (["x", 5], ("5", "x")), (" a | a ", ("a",)),
                                           ([], ())])
def test_several_labels(value, labels):
    assert read(task(choice="several"), value) == [labels]


@pytest.mark.parametrize("values, labels", [
    ([[1, 0, 1], [0, 0, 0], [0, 1, 0]], [("0", "2"), (), ("1",)]), ([[0, 1], [1, 0]], [("1",), ("0",)]),
    ([[True, False, True]], [("0", "2")]), (["[0, 1, 1]", "[1, 0, 0]"], [("1", "2"), ("0",)]),
    (["1|0|0|1"], [("0", "3")]), ([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]], [("1", "2"), ("0",)]),
    (["[0 1 1]", "[1. 0. 0.]"], [("1", "2"), ("0",)])])
def test_vectors_of_0_and_1_are_labels_by_their_places(values, labels):
    found = task(choice="several")
    assert read(found, *values) == labels
    assert len(found.notices) == 1 and "vectors of 0 and 1" in found.notices[0]


@pytest.mark.parametrize("values, labels", [
    ([[1], [0]], [("1",), ("0",)]), ([["1", "a"], ["0", "b"]], [("1", "a"), ("0", "b")]), ([[], []], [(), ()]),
    (["['खेल', 'news']", '["खेल"]', "[]"], [("news", "खेल"), ("खेल",), ()])])
def test_lists_of_names_are_names(values, labels):
    found = task(choice="several")
    assert read(found, *values) == labels and found.notices == []


def test_vectors_among_names_are_refused_with_both_places():
    with refused("f:2: the labels are 1 0 1, a vector of 0 and 1", "f:1", "write names"):
        read(task(choice="several"), ["a"], [1, 0, 1])
    with refused("f:1: the labels are 1 0 1,", "f:2,"):
        read(task(choice="several"), [1, 0, 1], [1, 0])


def test_one_label_that_a_text_has_or_not(tmp_path):
    """A single output is one sigmoid: softmax of one score would always be 1."""
    (tmp_path / "train.jsonl").write_text('{"text": "late again", "label": ["complaint"]}\n'
                                          '{"text": "thank you", "label": []}\n{"text": "ok", "label": ""}\n')
    found = task(choice="several")
    splits = found.read(tmp_path)
    found.learn_labels(splits)
    assert found.labels == ["complaint"] and [e.labels for e in splits["train"]] == [("complaint",), (), ()]
    z = torch.tensor([[2.0], [-1.0], [0.5]], dtype=torch.float64)
    row = SimpleNamespace(about=Holding(np.array([0])))
    none = SimpleNamespace(about=Holding(np.zeros(0, np.int64)))
    batch = SimpleNamespace(labels=torch.zeros(3, dtype=torch.int64), features=[row, none, none])
    right = math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)) + math.log1p(math.exp(0.5))
    assert float(found.loss(z, batch)["texts"]) == pytest.approx(right, rel=1e-12)


@pytest.mark.parametrize("name, form", [
    ("train.csv", "text,label\n{0},a\n,b\n{1},\n  ,a\n{1},b\n"),
    ("train.jsonl", '{{"text": "{0}", "label": "a"}}\n{{"text": null, "label": "b"}}\n{{"text": "{1}", "label": '
                    'null}}\n{{"text": " ", "label": "a"}}\n{{"text": "{1}", "label": "b"}}\n')])
def test_rows_that_lack_something(tmp_path, name, form):
    first = 2 if name == "train.csv" else 1
    (tmp_path / name).write_text(form.format("अच्छा दिन", "bad day"))
    with refused(f"{tmp_path / name}:{first + (name == 'train.csv') + 1}: the ", "--incomplete skip"):
        task().read(tmp_path)
    found = task(incomplete="skip")
    assert [(e.text, e.labels[0], e.where[-1]) for e in found.read(tmp_path)["train"]] == [
        ("अच्छा दिन", "a", str(first)), ("bad day", "b", str(first + 4))]
    assert found.notices == [f"3 rows without a text or a label are left out, the first {tmp_path / name}:{first + 1}"]


def test_a_text_without_words_is_read_and_told(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\nx,a\n,b\n")
    found = task()
    assert [e.text for e in found.read(tmp_path)["train"]] == ["x", ""]
    assert found.notices == ["1 rows without a text or a label are read as they are; --incomplete skip leaves them "
                             f"out, the first {tmp_path}/train.csv:3"]
    (tmp_path / "train.csv").write_text("text,label\n,a\n,b\n")
    with refused("no row in it has all of text, label"):
        task(incomplete="skip").read(tmp_path)


@pytest.mark.parametrize("choice, value", [("one", ""), ("one", "  "), ("one", ["a"]), ("one", None), ("one", 1.5),
                                           ("yes-no", ["a"]), ("several", [["a"]]), ("several", {"a": 1})])
def test_what_is_no_label(choice, value):
    with refused("f:2: the label", "--incomplete skip" if not value else ""):
        read(task(choice=choice), "a", value)


def test_a_text_that_is_none(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": "b"}\n{"text": 5, "label": "b"}\n')
    with refused(f"{tmp_path}/train.jsonl:2: the text is 5"):
        task().read(tmp_path)


@pytest.mark.parametrize("options, said", [
    ({"columns": "text"}, "--columns"), ({"columns": "a,b,c"}, "--columns"), ({"columns": "a,"}, "--columns"),
    ({"columns": "a, a"}, "--columns"),
    ({"label_smoothing": 1.0}, "--label-smoothing"), ({"label_smoothing": -0.1}, "--label-smoothing"),
    ({"class_weights": "balanced", "choice": "several"}, "--class-weights"),
    ({"class_weights": "balanced", "choice": "yes-no"}, "--class-weights")])
def test_options_that_cannot_be(options, said):
    with refused(said):
        task(**options)


@pytest.mark.parametrize("labels, choice, wanted", [(["a", "a"], "one", "at least two"), (["a"], "yes-no", "two"),
                                                    (["a", "b", "c"], "yes-no", "two"), ([""], "several", "at least")])
def test_too_few_or_too_many_labels(labels, choice, wanted):
    with refused("f:1: the training texts have the labels", wanted):
        learnt(labels, choice=choice)


def test_labels_are_sorted_and_numbers_by_their_size():
    assert learnt(["10", "9", "-1", "x", "0.5"]).labels == ["-1", "0.5", "9", "10", "x"]
    assert learnt(["nan", "b", "inf"]).labels == ["b", "inf", "nan"]


def test_labels_that_train_never_saw_are_told_and_count_as_missed():
    found = learnt(["a", "b", "b"])
    found.note_unseen({"dev": [Example("x", ("c",), "f:1"), Example("y", ("a",), "f:2"), Example("z", ("c",), "f:3")]})
    assert found.notices == ["dev has labels that train never saw, which count as missed: c (2 texts)"]
    scores = found.score([Answer({"a": 0.9, "b": 0.1})] * 2, [Example("x", ("c",), ""), Example("y", ("a",), "")])
    assert scores["accuracy"] == 0.5 and scores["confusion"] == [[1, 0], [0, 0]]
    assert scores["per_class"]["c"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}


# ---------------------------------------------------------------------------------------------- rows and windows


def test_a_short_text_is_one_row_read_at_cls(tokenizer):
    found = learnt(["a", "b"])
    row, = found.encode(5, Example("Ada met Bruno.", ("b",), "f:1"), tokenizer, 24, 6)
    words = [tokenizer.backend.id_to_token(i) for i in row.ids]
    assert words == ["[CLS]", "ada", "met", "bruno", ".", "[SEP]"]
    assert row.picks.tolist() == [0] and row.labels.tolist() == [1] and row.example == 5


def test_unknown_labels_have_no_loss_and_raw_texts_none(tokenizer):
    found = learnt(["a", "b"])
    for labels in (("c",), ()):
        row, = found.encode(0, Example("ada", labels, ""), tokenizer, 24, 6)
        assert row.labels.tolist() == [-1]


@pytest.mark.parametrize("text", ["", "  \n "])
def test_a_text_without_words_is_a_row_too(tokenizer, text):
    row, = learnt(["a", "b"]).encode(0, Example(text, ("a",), ""), tokenizer, 24, 6)
    assert row.ids.tolist() == [tokenizer.start, tokenizer.end]


def test_nothing_of_a_long_text_is_dropped(tokenizer):
    """52 words of one piece, no two neighbours the same elsewhere: each window has one place, and they overlap."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    text = " ".join(letters) + " " + " ".join(letters[::-1])
    rows = learnt(["a", "b"]).encode(0, Example(text, ("a",), ""), tokenizer, 24, 6)
    whole = [i for p in tokenizer.pieces([text.split()]) for i in p.ids]
    assert len(whole) == 52 and all(r.labels.tolist() == [0] and r.picks.tolist() == [0] for r in rows)
    reached = 0
    for row in rows:
        inside = row.ids[1:-1].tolist()
        start, = (k for k in range(52) if whole[k:k + len(inside)] == inside)
        assert len(row.ids) <= 24 and start == (reached - 6 if reached else 0)
        reached = start + len(inside)
    assert reached == 52


# ----------------------------------------------------------------------------------------------- decoding and scores


class Row:
    def __init__(self, example: int):
        self.example = example


def test_the_mean_score_of_the_windows_decides():
    """Scores (0, log 3) and (log 9, log 3) have the mean (log 3, log 3): 1/2 each. Alone, the first says 3/4."""
    found = learnt(["a", "b"])
    scores = [np.array([[0.0, math.log(3)]]), np.array([[math.log(9), math.log(3)]]), np.array([[0.0, math.log(3)]])]
    one, two = found.decode([None, None], [Row(0), Row(0), Row(1)], scores)
    assert one.probabilities == pytest.approx({"a": 0.5, "b": 0.5})
    assert two.probabilities == pytest.approx({"a": 0.25, "b": 0.75})


@pytest.mark.parametrize("z, p", [(math.log(3), 0.75), (-math.log(4), 0.2), (800.0, 1.0), (-800.0, 0.0)])
def test_yes_or_no_is_a_sigmoid(z, p):
    found = learnt(["no", "yes"], choice="yes-no")
    assert found.outputs == ["yes"]
    answer, = found.decode([None], [Row(0)], [np.array([[z]])])
    assert answer.probabilities == pytest.approx({"no": 1 - p, "yes": p})
    assert found.chosen(answer) == (("yes",) if p > 0.5 else ("no",))


def test_any_number_of_labels():
    found = learnt(["a|b", "c", ""], choice="several")
    answer, = found.decode([None], [Row(0)], [np.array([[2.0, -0.1, 0.1]])])
    assert found.chosen(answer) == ("a", "c")
    assert found.chosen(found.decode([None], [Row(0)], [np.full((1, 3), -1.0)])[0]) == ()
    assert found.best == ("micro_f1", "max")


def test_scores_by_hand():
    """Four texts, a a b c, given a b b b: a 1 of 2 found, b 1 of 3 right, c never."""
    found = learnt(["a", "b", "c"])
    sure = {x: Answer({y: float(x == y) for y in "abc"}) for x in "abc"}
    examples = [Example("", (x,), "") for x in "aabc"]
    scores = found.score([sure[x] for x in "abbb"], examples)
    assert scores["accuracy"] == scores["micro_f1"] == 0.5
    assert scores["confusion"] == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert scores["per_class"]["a"] == {"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "support": 2}
    assert scores["per_class"]["b"] == {"precision": 1 / 3, "recall": 1.0, "f1": 0.5, "support": 1}
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 0.5 + 0) / 3)
    assert scores["weighted_f1"] == pytest.approx((2 * 2 / 3 + 0.5) / 4)
    report = found.report(scores)
    assert report.splitlines()[-3:] == ["a  1  1  .", "b  .  1  .", "c  .  1  ."]


def test_scores_of_several_labels_by_hand():
    """{a,b} given {a}, {} given {}, {c} given {a,c}: 3 labels there, 3 given, 2 right; one text of three exactly."""
    gold, guess = [("a", "b"), (), ("c",)], [("a",), (), ("a", "c")]
    scores = metrics.label_scores(gold, guess, ["a", "b", "c"])
    assert scores["micro_precision"] == scores["micro_recall"] == pytest.approx(2 / 3)
    assert scores["accuracy"] == pytest.approx(1 / 3) and scores["support"] == 3
    assert [scores[f"weighted_{x}"] for x in ("precision", "recall", "f1")] == pytest.approx(
        [(0.5 + 0 + 1) / 3, (1 + 0 + 1) / 3, (2 / 3 + 0 + 1) / 3])            # one of each label
    assert scores["per_class"]["a"]["precision"] == 0.5 and scores["per_class"]["b"]["recall"] == 0.0


def test_a_confusion_matrix_with_many_or_long_names_has_numbers():
    labels = [f"a_rather_long_name_{i}" for i in range(12)]
    text = metrics.confusion_report([[int(i == j) * 7 for j in range(12)] for i in range(12)], labels).splitlines()
    assert text[1].split() == [str(i) for i in range(1, 13)] and text[2].split()[:3] == ["1", labels[0], "7"]
    assert len({len(line) for line in text[1:]}) == 1


def test_predictions_that_collapsed():
    found = learnt(["a", "b"])
    same = [Answer({"a": 0.9, "b": 0.1})] * 3
    assert found.collapsed(same, [Example("", (x,), "") for x in "aab"]) == "a"
    assert found.collapsed(same, [Example("", (x,), "") for x in "aaa"]) is None
    assert found.collapsed([*same, Answer({"a": 0.1, "b": 0.9})], [Example("", (x,), "") for x in "aabb"]) is None
    several = learnt(["a|b", "c"], choice="several")
    answers = [{"a": 0.9, "b": 0.6, "c": 0.2}, {"a": 0.1, "b": 0.2, "c": 0.3}]
    for answer, said in zip(answers, ("a and b", None), strict=True):          # none is where several labels start
        assert several.collapsed([Answer(answer)] * 2, [Example("", x, "") for x in (("a", "b"), ("c",))]) == said


def test_an_answer_as_text():
    """The chosen, the text, the three most probable."""
    found, answer = learnt(list("abcd")), {"a": 0.1, "b": 0.5, "c": 0.15, "d": 0.25}
    result = found.result(Example("rain", (), ""), Answer(answer))
    assert found.render(result, False) == "b  rain\n  b 0.500  d 0.250  c 0.150"
    assert found.render(result, True).startswith("\033[36mb\033[0m  rain")
    several = learnt(["a|b", "c", "d"], choice="several")
    for p, head in (([0.1, 0.2, 0.3, 0.4], "none"), ([0.9, 0.2, 0.6, 0.4], "a c")):
        answer = dict(zip("abcd", p, strict=True))
        assert several.render(several.result(Example("x", (), ""), Answer(answer)), False).startswith(f"{head}  x\n")


# ------------------------------------------------------------------------------------------------- head and folder


def test_the_head_shares_the_encoders_pooler(tiny_folder):
    head = PooledHead(weights.read_config(tiny_folder), 3)
    bert, _ = weights.load(tiny_folder, head, new_head=True)
    model = Model(bert, head)
    assert head.pooler is bert.pooler and set(head.state_dict()) == {"classifier.weight", "classifier.bias"}
    assert sum("pooler" in name for name, _ in model.named_parameters()) == 2


def test_a_checkpoint_without_a_pooler_gets_a_new_one_and_says_so(tiny_config, tiny_folder, tmp_path):
    weights.save(tmp_path, weights.random_bert(tiny_config, seed=3, pooler=False))
    head = PooledHead(tiny_config, 3)
    bert, report = weights.load(tmp_path, head, new_head=True)
    assert bert.pooler is not None and set(report.new) == {
        "pooler.dense.weight", "pooler.dense.bias", "classifier.weight", "classifier.bias"}
    with refused(str(tmp_path), "missing"):        # a run folder must have it
        weights.load(tmp_path, head)
    for name in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_folder / name).read_bytes())
    settings, _, _ = settings_of(["--task", "classify", "--max-pieces", "40", "--overlap", "9"])
    model, _ = build_model(tmp_path, learnt(["a", "b"]), settings)
    w = model.bert.pooler.dense.weight
    assert 0.05 < float(w.detach().std()) < 0.12 and float(w.detach().abs().max()) <= 0.2      # cut at two sd of 0.1
    assert not model.bert.pooler.dense.bias.any()


def test_the_pooled_head_is_the_published_order(tiny_folder):
    """tanh of a linear map of the first piece, then a linear map: against encode()'s pooled state."""
    head = PooledHead(weights.read_config(tiny_folder), 3)
    bert, _ = weights.load(tiny_folder, head, new_head=True)
    initialise(head, 0.3, seed=5)
    model, found = Model(bert, head).eval(), learnt(["a", "b", "c"])
    rows = [r for i, text in enumerate(["Ada met Bruno", "rain", "the old bank of New Lima left"])
            for r in found.encode(i, Example(text, (), ""), read_tokenizer(tiny_folder, bert), 24, 6)]
    from minibert.core.batch import collate
    scores = model(collate(rows)).detach()
    for row, z in zip(rows, scores, strict=True):
        _, pooled = bert.encode(torch.tensor(row.ids[None]), types=torch.tensor(row.types[None]))
        assert torch.allclose(head.classifier(pooled)[0], z, atol=1e-5)


def test_new_pooler_and_new_head_share_no_number(tiny_config, tiny_folder, tmp_path):
    """And both are trained, whatever of the encoder is frozen."""
    weights.save(tmp_path, weights.random_bert(tiny_config, seed=3, pooler=False))
    for name in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_folder / name).read_bytes())
    settings, _, _ = settings_of(["--task", "classify", "--max-pieces", "40", "--freeze", "encoder"])
    model, _ = build_model(tmp_path, learnt(["a", "b"]), settings)
    head, pooler = (set(m.weight.flatten().tolist()) for m in (model.head.classifier, model.bert.pooler.dense))
    assert len(head) == 60 and len(pooler) == 900 and not head & pooler
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "head.classifier.weight",
                       "head.classifier.bias"}


@pytest.mark.parametrize("was, now, kept", [("one", "one", True), ("one", "yes-no", False), ("one", "several", False),
                                            ("several", "several", True), ("yes-no", "several", False)])
def test_a_stored_head_is_kept_only_for_what_it_means(tiny_folder, tmp_path, capsys, was, now, kept):
    data = tmp_path / "data"
    data.mkdir()
    write(data, train=REVIEWS)
    common = ["--task", "classify", "--data", str(data), "--max-pieces", "24", "--overlap", "6", "--cache", "off"]
    first = train.train([*common, "--weights", str(tiny_folder), "--choice", was, "--output", str(tmp_path / "a"),
                         "--max-steps", "1"])
    capsys.readouterr()
    train.train([*common, "--weights", str(first), "--choice", now, "--output", str(tmp_path / "b"), "--max-steps",
                 "1"])
    assert ("new: " not in capsys.readouterr().out) == kept


@pytest.mark.parametrize("choice, train_file, labels, outputs", [
    ("one", REVIEWS, ["negative", "positive"], {"0": "negative", "1": "positive"}),
    ("yes-no", REVIEWS, ["negative", "positive"], {"0": "positive"}),
    ("several", "text,label\nx,a|b\ny,\nz,c\n", ["a", "b", "c"], {"0": "a", "1": "b", "2": "c"})])
def test_the_folder_keeps_labels_and_outputs(tiny_folder, tmp_path, choice, train_file, labels, outputs):
    data = tmp_path / "data"
    data.mkdir()
    write(data, train=train_file)
    output = train.train(["--task", "classify", "--weights", str(tiny_folder), "--data", str(data), "--output",
                          str(tmp_path / "r"), "--choice", choice, "--max-pieces", "24", "--overlap", "6", "--epochs",
                          "1", "--cache", "off", "--learning-rate", "1e-3"])
    config = json.loads((output / "config.json").read_text())
    assert config["id2label"] == outputs and config["architectures"] == ["BertForSequenceClassification"]
    assert config["problem_type"] == ("single" if choice == "one" else "multi") + "_label_classification"
    model = load(output)
    assert model.task.labels == labels
    result, = model.predict(["Ada left"])
    assert set(result["probabilities"]) == set(labels) and result["text"] == "Ada left"
    assert list(result["probabilities"].values()) == sorted(result["probabilities"].values(), reverse=True)


def test_four_reviews_are_learnt_by_heart(tiny_folder, tmp_path):
    """Yes or no with binary cross-entropy: the loss falls from log 2 and every review is told apart."""
    data = tmp_path / "data"
    data.mkdir()
    write(data, train=REVIEWS, dev=REVIEWS)
    output = train.train(["--task", "classify", "--weights", str(tiny_folder), "--data", str(data), "--output",
                          str(tmp_path / "r"), "--choice", "yes-no", "--max-pieces", "40", "--overlap", "9", "--epochs",
                          "60", "--cache", "off", "--learning-rate", "3e-3", "--dropout", "0", "--precision", "fp32"])
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    loss = [line["loss"] for line in lines if "loss" in line]
    assert 0.4 < loss[0] < 1.1 and loss[-1] < 0.1
    assert json.loads((output / "metrics.json").read_text())["dev"]["accuracy"] == 1.0


def test_a_loaded_model_weighs_classes_as_its_run_did(tiny_folder, tmp_path):
    """And what is no weights is refused; an older folder without them has ones."""
    data = tmp_path / "data"
    data.mkdir()
    write(data, train=REVIEWS + "Fine,positive\n" * 3)
    run = train.train(["--task", "classify", "--data", str(data), "--max-pieces", "24", "--overlap", "6", "--cache",
                       "off", "--weights", str(tiny_folder), "--class-weights", "balanced", "--output",
                       str(tmp_path / "r"), "--max-steps", "1"])
    assert load(run).task.labels == ["negative", "positive"]
    assert load(run).task.weights.tolist() == pytest.approx([7 / (2 * 2), 7 / (2 * 5)], abs=1e-12)   # 2 of 7 and 5
    file = run / "config.json"
    config = json.loads(file.read_text())
    for value in ([1.0], [1.0, -1.0], [1.0, "x"], 5):
        file.write_text(json.dumps({**config, "minibert": {**config["minibert"], "class_weights": value}}))
        with refused("config.json", "expected a positive number"):
            load(run)
    del config["minibert"]["class_weights"]
    file.write_text(json.dumps(config))
    assert load(run).task.weights.tolist() == [1.0, 1.0]
    file.write_text(json.dumps({**config, "id2label": {}}))
    with warnings.catch_warnings(action="error"), refused("classifier.weight is [2, ", "config.json asks for [0, "):
        load(run)                                  # one line, and none of torch's before it


@pytest.mark.parametrize("labels, texts, said", [
    (49, 49, None), (50, 150, None), (50, 149, "told"), (200, 200, "told"), (201, 603, None), (201, 602, "refused")])
def test_labels_that_are_nearly_as_many_as_texts(labels, texts, said):
    """As when the columns are exchanged; few labels for few texts, or one text for each, are what a small set has."""
    examples = [Example("x", (f"l{i % labels}",), f"f:{i + 2}") for i in range(texts)]
    task = Classify(Classify.Options())
    if said == "refused":
        with refused(f"f:2: {labels} labels on {texts} texts, first 'l0'", "columns exchanged"):
            task.learn_labels({"train": examples})
        return
    task.learn_labels({"train": examples})
    assert len(task.labels) == labels and task.number("l7") == task.labels.index("l7") and task.number("z") == -1
    assert task.notices == [f"f:2: {labels} labels on {texts} texts, first 'l0'; are text and label columns "
                            "exchanged?"] * (said == "told")


def test_a_square_table_of_many_labels_is_left_out():
    """200 labels still have one; of 201 the rows are right without."""
    for count in (200, 201):
        names = [f"l{i:03}" for i in range(count)]
        task = Classify(Classify.Options(), names)
        sure = [Answer({name: float(name == "l005") for name in names})] * 3
        scores = task.score(sure, [Example("", (x,), "") for x in ("l005", "l005", "l117")])
        assert ("confusion" in scores) == (count == 200)
        assert scores["per_class"]["l005"]["precision"] == 2 / 3 and scores["per_class"]["l117"]["recall"] == 0.0
        assert "l117" in task.report(scores)
