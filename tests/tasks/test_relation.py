"""tasks/relation.py: marks in text and vocabulary, both layouts of files, long texts, the head, the folder, score."""
import json
import re

import numpy as np
import pytest
import torch
from refusing import refused
from updates import build_model, settings_of

import train
from minibert import metrics
from minibert.checkpoints import weights
from minibert.checkpoints.weights import read_tokenizer
from minibert.core import byhand
from minibert.core.batch import collate
from minibert.tasks.labelled import Answer
from minibert.tasks.relation import MARKS, Example, Relation, marked, nearest, with_marks
from minibert.use.evaluate import score_features
from minibert.use.predict import load

BLOCKS = ('1\t"<e1>Ada</e1> left <e2>ACME</e2>."\nEmployer-Employee(e2,e1)\nComment: hm\n\n'
          '8\t"The <e1>rain</e1> met <e2>New Lima</e2>."\nOther\nComment:\n\n'
          '9\t"<e1>ACME</e1> bought <e2>Globex</e2>."\nOwner-Company(e1,e2)\n\n')


def task(**options) -> Relation:
    return Relation(Relation.Options(**options))


def learnt(labels: list[str]) -> Relation:
    found = task()
    found.learn_labels({"train": [marked("<e1>a</e1> <e2>b</e2>", y, "f:1") for y in labels]})
    return found


# ----------------------------------------------------------------------------------------------------- reading


def test_the_published_layout_is_read_with_its_lines(tmp_path):
    file = tmp_path / "train.txt"
    file.write_text(BLOCKS)
    found = task().read(tmp_path)["train"]
    assert list(found) == [
        Example("Ada left ACME.", ((0, 3), (9, 13)), "Employer-Employee(e2,e1)", f"{file}:1"),
        Example("The rain met New Lima.", ((4, 8), (13, 21)), "Other", f"{file}:5"),
        Example("ACME bought Globex.", ((0, 4), (12, 18)), "Owner-Company(e1,e2)", f"{file}:9")]


def test_tables_are_read_too_and_the_second_span_may_stand_first(tmp_path):
    (tmp_path / "test.csv").write_text('label,text\n"R(e1,e2)","a <e2>b</e2>, <e1>c d</e1>"\n')
    found, = task().read(tmp_path)["test"]
    assert (found.text, found.spans, found.label) == ("a b, c d", ((5, 8), (2, 3)), "R(e1,e2)")
    assert [found.text[a:b] for a, b in found.spans] == ["c d", "b"]


@pytest.mark.parametrize("text, spans", [
    ("<e1>Cafe</e1>\u0301 in <e2>Lima</e2>.", ("Cafe\u0301", "Lima")),
    ("Cafe<e1>\u0301s</e1> in <e2>दिल</e2>्ली", ("s", "दिल्")), ("<e2>a</e2><e1>\u0301b</e1>", ("b", "a\u0301"))],
    ids=ascii)
def test_no_mark_stands_between_a_letter_and_its_accent(text, spans):
    found = marked(text, None, "")
    assert tuple(found.text[a:b] for a, b in found.spans) == spans
    assert found.text == re.sub("</?e[12]>", "", text)


@pytest.mark.parametrize("text", [
    "no marks", "<e1>a</e1> b", "<e1>a</e1> <e1>b</e1>", "<e1>a <e2>b</e1></e2>", "<e1>a <e2>b</e2></e1>",
    "</e1>a<e1> <e2>b</e2>", "<e1></e1> <e2>b</e2>", "<e1><e1>a</e1> <e2>b</e2>", "<e1>a</e1> <e2>b</e2> <e2>c</e2>",
    ""])
def test_marks_that_are_not_two_spans(text):
    with refused("f:7", "expected <e1>one span</e1>"):
        marked(text, "Other", "f:7")


@pytest.mark.parametrize("text, line, said", [
    ("<e1>a</e1> <e2>b</e2>\nOther\n", 1, "expected a number, a tab"), ('x\t"a"\nOther\n', 1, "expected a number"),
    ('1\t"<e1>a</e1> <e2>b</e2>"\n', 1, "no label"), ('1\t"<e1>a</e1> <e2>b</e2>"\nComment:\n', 1, "no label"),
    (BLOCKS + '3\t"<e1>a</e1> <e2>b</e2>"\nOther\n4\t"x"\n', 12, "the second line after it"),
    (BLOCKS + '3\t"a"\nOther\n', 12, "expected <e1>one span</e1>")])
def test_blocks_that_are_none(tmp_path, text, line, said):
    (tmp_path / "dev.txt").write_text(text)
    with refused(f"{tmp_path}/dev.txt:{line}", said):
        task().read(tmp_path)


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_a_file_without_sentences(tmp_path, text):
    (tmp_path / "train.txt").write_text(text)
    with refused(f"{tmp_path}/train.txt", "no sentences"):
        task().read(tmp_path)


@pytest.mark.parametrize("row, wanted", [('{"text": 5, "label": "a"}', "expected a string"),
                                         ('{"text": "a", "label": null}', "expected a name"),
                                         ('{"text": "a", "label": " "}', "expected a name")])
def test_rows_that_are_none(tmp_path, row, wanted):
    (tmp_path / "dev.jsonl").write_text(row + "\n")
    with refused(f"{tmp_path}/dev.jsonl:1", wanted):
        task().read(tmp_path)


@pytest.mark.parametrize("columns", ["a", "a,b,c", "a,a", ","])
def test_columns_that_cannot_be(columns):
    with refused("--columns"):
        task(columns=columns)


def test_labels_of_training():
    found = learnt(["b", "Other", "a"])
    assert found.labels == ["Other", "a", "b"]
    found.note_unseen({"dev": [marked("<e1>a</e1> <e2>b</e2>", "c", "f:1")]})
    assert found.notices == ["dev has labels that train never saw, which count as missed: c (1 sentences)"]
    with refused("f:1: the training sentences have the labels a;", "at least two"):
        learnt(["a", "a"])
    note, = learnt(["a", "b"]).notices
    assert "'Other'" in note and "--none" in note


# ------------------------------------------------------------------------------------------------------- encoding


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    bert, _ = weights.load(tiny_folder)
    found = read_tokenizer(tiny_folder, bert)
    found.add(MARKS)
    return found


def pieces(tokenizer, row) -> list[str]:
    return [tokenizer.backend.id_to_token(i) for i in row.ids]


def test_marks_stand_around_the_spans_and_the_head_reads_the_opening_ones(tokenizer):
    row, = learnt(["a", "b"]).encode(3, marked("<e1>Ada</e1> met <e2>New Lima</e2>.", "b", ""), tokenizer, 24, 6)
    assert pieces(tokenizer, row) == ["[CLS]", "[E1]", "ada", "[/E1]", "met", "[E2]", "new", "lima", "[/E2]", ".",
                                      "[SEP]"]
    assert row.picks.tolist() == [1, 5] and row.labels.tolist() == [1, 1] and row.example == 3
    row, = learnt(["a", "b"]).encode(0, marked("<e2>Ada</e2> met<e1> Oslo</e1>", "c", ""), tokenizer, 24, 6)
    assert pieces(tokenizer, row) == ["[CLS]", "[E2]", "ada", "[/E2]", "met", "[E1]", "oslo", "[/E1]", "[SEP]"]
    assert row.picks.tolist() == [5, 1] and row.labels.tolist() == [-1, -1]    # e1's state comes first


def test_spans_inside_a_word_and_side_by_side(tokenizer):
    row, = learnt(["a", "b"]).encode(0, marked("<e1>Oslo</e1>rain<e2>ada</e2>", "a", ""), tokenizer, 24, 6)
    assert pieces(tokenizer, row)[1:-1] == ["[E1]", "oslo", "[/E1]", "rain", "[E2]", "ada", "[/E2]"]
    row, = learnt(["a", "b"]).encode(0, marked("<e1>Oslo</e1><e2>ada</e2>", "a", ""), tokenizer, 24, 6)
    assert pieces(tokenizer, row)[1:-1] == ["[E1]", "oslo", "[/E1]", "[E2]", "ada", "[/E2]"]


def test_of_a_long_text_what_is_near_the_spans_is_kept(tokenizer):
    """Ten words, e1, thirty words, e2, ten words; 24 pieces leave 16 beside the marks and the spans' own two."""
    words = list("abcdefghijklmnopqrstuvwxyz")
    text = " ".join([*words[:10], "<e1>oslo</e1>", *words, *words[:4], "<e2>lima</e2>", *words[:10]])
    row, = learnt(["a", "b"]).encode(0, marked(text, "a", ""), tokenizer, 24, 6)
    kept = pieces(tokenizer, row)
    assert len(kept) == 24 and [kept[i] for i in row.picks] == ["[E1]", "[E2]"]
    first, second = kept.index("[E1]"), kept.index("[E2]")
    assert kept[first:first + 3] == ["[E1]", "oslo", "[/E1]"] and kept[second:second + 3] == ["[E2]", "lima", "[/E2]"]
    assert kept[1:first] == words[6:10] and kept[first + 3:first + 7] == words[:4]
    assert kept[second - 4:second] == words[:4] and kept[second + 3:-1] == words[:4]


def test_nearest_by_hand():
    assert nearest(9, [2, 6], 20).tolist() == list(range(9))
    assert nearest(9, [2, 6], 2).tolist() == [2, 6]
    assert nearest(9, [2, 6], 6).tolist() == [1, 2, 3, 5, 6, 7]


def test_the_case_of_a_span_is_given_back(tokenizer, tiny_folder):
    ids, shapes, marks = with_marks(marked("the <e1>NASA</e1> met <e2>Ada</e2>", "a", ""), tokenizer)
    assert len(ids) == len(shapes) and list(marks) == ["[E1]", "[/E1]", "[E2]", "[/E2]"] and not shapes.any()
    shaped = type(tokenizer)(tokenizer.backend, case_shapes=True)
    _, shapes, marks = with_marks(marked("the <e1>NASA</e1> met <e2>Ada</e2>", "a", ""), shaped)
    assert shapes[marks["[E1]"] + 1] == 2 and shapes[marks["[E2]"] + 1] == 1 and shapes[0] == 0


def test_a_vocabulary_without_the_marks_is_refused(tiny_folder):
    bert, _ = weights.load(tiny_folder)
    with refused("vocabulary without [E1]"):
        learnt(["a", "b"]).encode(0, marked("<e1>a</e1> <e2>b</e2>", "a", ""), read_tokenizer(tiny_folder, bert), 24, 6)


# ----------------------------------------------------------------------------------------------- model, head, folder


@pytest.fixture(scope="module")
def run(tiny_folder, tmp_path_factory):
    """A run on three sentences, learnt by heart."""
    folder = tmp_path_factory.mktemp("relation")
    for split in ("train", "dev"):
        (folder / f"{split}.txt").write_text(BLOCKS)
    return train.train(["--task", "relation", "--weights", str(tiny_folder), "--data", str(folder), "--output",
                        str(folder / "r"), "--max-pieces", "40", "--overlap", "9", "--epochs", "60", "--cache", "off",
                        "--learning-rate", "3e-3", "--dropout", "0", "--precision", "fp32"])


def test_it_is_learnt_by_heart_and_the_folder_keeps_the_grown_vocabulary(run, tiny_folder):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    loss = [line["loss"] for line in lines if "loss" in line]
    assert loss[-1] < 0.1 * loss[0]
    assert json.loads((run / "metrics.json").read_text())["dev"]["relation"]["macro_f1"] == 1.0
    before, after = (json.loads((f / "config.json").read_text())["vocab_size"] for f in (tiny_folder, run))
    model = load(run)
    assert after == before + 4 == len(model.bert.embeddings.word.weight) == model.tokenizer.size
    assert [model.tokenizer.number(m) for m in MARKS] == list(range(before, after))
    old, _ = weights.load(tiny_folder)
    moved = (model.bert.embeddings.word.weight[:before] - old.embeddings.word.weight).norm(dim=1) > 0
    assert bool(moved.any())
    result, = model.predict(["<e1>Ada</e1> left <e2>ACME</e2>."])
    assert result["label"] == "Employer-Employee(e2,e1)"
    assert result["e2"] == {"text": "ACME", "start": 9, "end": 13} and result["text"] == "Ada left ACME."
    assert model.task.render(result, False).startswith("Employer-Employee(ACME,Ada)  0.9")
    result |= {"e1": {"text": "type2"}, "e2": {"text": "e1"}}                  # names in names
    assert model.task.render(result, False).startswith("Employer-Employee(e1,type2)  0.9")


def test_marks_get_a_gradient_and_are_trained(run, tiny_folder):
    """From where they started: the run's first model, built again."""
    model = load(run)
    settings, _, _ = settings_of(["--task", "relation", "--weights", str(tiny_folder), "--max-pieces", "40"])
    start, _ = build_model(tiny_folder, learnt(model.task.labels), settings)
    there = [model.tokenizer.number(m) for m in MARKS]
    first, last = (m.bert.embeddings.word.weight[there].detach() for m in (start, model))
    assert first.shape == last.shape == (4, 30) and bool(((last - first).norm(dim=1) > 0.05).all())
    rows = model.encode_examples([marked("<e1>Ada</e1> left <e2>ACME</e2>.", "Other", "")])
    _, gradients = byhand.loss_and_gradients(model, collate(rows))
    dw = gradients["bert.embeddings.word.weight"][[model.tokenizer.number(m) for m in MARKS]]
    assert bool((dw.norm(dim=1) > 0).all())


def test_going_on_from_a_run_adds_no_pieces_twice(run, tmp_path, capsys):
    capsys.readouterr()
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.txt").write_text(BLOCKS)
    output = train.train(["--task", "relation", "--weights", str(run), "--data", str(data), "--output",
                          str(tmp_path / "r"), "--max-pieces", "40", "--max-steps", "1", "--cache", "off"])
    said = capsys.readouterr().out
    assert "grown" not in said and "new: " not in said
    assert json.loads((output / "config.json").read_text())["vocab_size"] == load(run).tokenizer.size


def test_the_head_is_one_map_of_both_states_side_by_side(run):
    """Against the hidden states that encode() gives, one row after the other, in both layouts."""
    model = load(run)
    texts = ["<e1>Ada</e1> left <e2>ACME</e2>.", "<e2>rain</e2> in the old bank of <e1>Lima</e1>",
             "<e1>a</e1><e2>b</e2>"]
    rows = model.encode_examples([marked(t, None, "") for t in texts])
    for layout in ("rectangle", "ragged"):
        scores = score_features(model, model.task, rows, layout=layout)
        assert [s.shape for s in scores] == [(1, 3)] * 3
        for row, z in zip(rows, scores, strict=True):
            hidden, _ = model.bert.encode(torch.tensor(row.ids[None]), types=torch.tensor(row.types[None]))
            pair = torch.cat([hidden[0, row.picks[0]], hidden[0, row.picks[1]]])
            wanted = model.head.classifier.weight @ pair + model.head.classifier.bias
            assert np.allclose(wanted.detach().numpy(), z[0], atol=1e-5)


# --------------------------------------------------------------------------------------------------------- the score


def test_the_official_score_by_hand():
    """A: of 3, one right, one in the wrong direction, one lost; one Other taken for it. B: 1 of 1. C only answered."""
    gold = ["A(e1,e2)", "A(e2,e1)", "A(e1,e2)", "Other", "B(e1,e2)", "Other", "Other"]
    guess = ["A(e1,e2)", "A(e1,e2)", "Other", "A(e2,e1)", "B(e1,e2)", "Other", "C"]
    scores = metrics.relation_scores(gold, guess, "Other")
    assert scores["relations"] == {
        "A": {"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3, "support": 3},
        "B": {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1},
        "C": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}}
    assert scores["macro_f1"] == pytest.approx(4 / 9) and scores["support"] == 4
    assert scores["micro_precision"] == pytest.approx(2 / 5) and scores["micro_recall"] == 0.5
    assert metrics.relation_scores(gold, guess, "A(e1,e2)")["relations"]["A"]["support"] == 1
    with refused("7 gold relations but 1"):
        metrics.relation_scores(gold, ["A"], "Other")


def test_decoding_and_what_collapsed():
    found = learnt(["a", "b", "Other"])
    row = type("Row", (), {"example": 0})
    answer, = found.decode([None], [row], [np.log([[0.2, 0.5, 0.3]])])
    assert answer.probabilities == pytest.approx({"Other": 0.2, "a": 0.5, "b": 0.3})
    examples = [marked("<e1>a</e1> <e2>b</e2>", y, "") for y in ("a", "b")]
    assert found.collapsed([answer] * 2, examples) == "a" and found.collapsed([answer] * 2, examples[:1] * 2) is None
    scores = found.score([answer] * 2, examples)
    assert scores["accuracy"] == 0.5 and scores["relation"]["macro_recall"] == 0.5
    assert "accuracy of all labels  0.500" in found.report(scores)


def test_a_split_without_any_relation_has_a_summary_too():
    found = learnt(["a", "b", "Other"])
    other = Answer({"Other": 1.0, "a": 0.0, "b": 0.0})
    scores = found.score([other] * 2, [marked("<e1>a</e1> <e2>b</e2>", "Other", "")] * 2)
    assert found.summary(scores, scores).split() == ["precision", "recall", "f1-score", "support"]
