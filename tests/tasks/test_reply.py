"""tasks/reply.py and coupled.py: rows of an update, vectors, both losses, two passes, candidates, rankings."""
import csv
import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
from refusing import refused
from updates import accumulate

import minibert
import train
from minibert import metrics
from minibert.__main__ import main
from minibert.core import coupled, ops
from minibert.core.batch import Batch, Feature, collate
from minibert.data.order import row_generator
from minibert.tasks.reply import Example, Ranking, Reply
from minibert.tasks.reply_rows import (
    ANSWER,
    PAIR,
    QUESTION,
    Role,
    answer_row,
    nearest_others,
    pair_row,
    question_row,
    text_number,
)
from minibert.use import evaluate

PAIRS = [("who met ada ?", "bruno met her in oslo ."), ("where is the bank ?", "in lima ."),
         ("the rain left", "today it rained in oslo and lima ."), ("is acme old", "nordia bought acme"),
         ("who works at globex ?", "clara stone works at globex in cairo")]


def task(**options) -> Reply:
    return Reply(Reply.Options(**options))


def write(folder, rows=PAIRS, names=("train", "dev", "test")):
    folder.mkdir(exist_ok=True)
    for name in names:
        with open(folder / f"{name}.csv", "w", encoding="utf-8", newline="") as f:
            csv.writer(f).writerows([("question", "answer"), *rows])
    return folder


def features(tokenizer, pairs=PAIRS, max_pieces=24) -> list[Feature]:
    return [f for i, (q, a) in enumerate(pairs)
            for f in task().encode(i, Example(q, a, (), ""), tokenizer, max_pieces, 6)]


def spelt(tokenizer, row) -> str:
    return " ".join(tokenizer.backend.id_to_token(i) for i in row.ids)


# ----------------------------------------------------------------------------------------------------- reading


def test_tables_and_their_lines(tmp_path):
    found = task().read(write(tmp_path))["dev"]
    assert [(e.question, e.answer) for e in found] == PAIRS and found[1].where == f"{tmp_path}/dev.csv:3"


@pytest.mark.parametrize("row", ['{"question": "a", "answer": 5}', '{"question": " ", "answer": "a"}'])
def test_rows_that_are_none(tmp_path, row):
    (tmp_path / "dev.jsonl").write_text(row + "\n")
    with refused(f"{tmp_path}/dev.jsonl:1", "expected a question and its answer"):
        task().read(tmp_path)


def test_options_that_cannot_be():
    for options, said in (({"columns": "a"}, "--columns"), ({"temperature": 0.0}, "--temperature"),
                          ({"rerank": -1}, "--rerank")):
        with refused(said):
            task(**options)
    one = Example("a", "b", (), "f:1")
    with refused("f:1: all training questions have the same answer"):
        task().learn_labels({"train": [one, dataclasses.replace(one, question="c")]})


def test_raw_text_and_files_of_answers(tmp_path):
    assert task().example("a? ||| b ||| c ||| b") == Example("a?", None, ("b", "c"), "text")
    (tmp_path / "bad.jsonl").write_text('{"answer": null}\n')
    with refused("bad.jsonl:1", "the text is None"):
        task().read_candidates(tmp_path / "bad.jsonl")
    for text in ("", "a?", "||| b", "a? |||"):
        with refused("expected a question"):
            task().example(text)
    known = task()
    (tmp_path / "answers.txt").write_text("one\n\n two \none\n")
    known.read_candidates(tmp_path / "answers.txt")
    assert known.example("a? ||| B  c ||| x ||| b c|||X").candidates == ("B  c", "x")    # equal but for case and blanks
    assert known.example("a?").candidates == ("one", "two") and known.example("a?|||x").candidates == ("x",)
    known.read_candidates(write(tmp_path) / "dev.csv")
    assert known.candidates == tuple(a for _, a in PAIRS)
    (tmp_path / "pairs.txt").write_text("one ||| what?\n two|||which ?\nthree\n")
    known.read_candidates(tmp_path / "pairs.txt")
    assert known.candidates == ("one", "two", "three")
    (tmp_path / "empty.txt").write_text("\n")
    with refused("empty.txt: no answers"):
        known.read_candidates(tmp_path / "empty.txt")


# -------------------------------------------------------------------------------------------------------- rows


def test_a_feature_holds_both_texts(tokenizer):
    f, *_ = features(tokenizer)
    assert spelt(tokenizer, question_row(f)) == "[CLS] w ##h ##o met ada [UNK] [SEP]"
    assert spelt(tokenizer, answer_row(f)) == "[CLS] bruno met h ##er in oslo . [SEP]"
    for row in (question_row(f), answer_row(f)):
        assert row.picks.tolist() == list(range(len(row.ids))) and set(row.types.tolist()) == {0}
    pair = pair_row(f, f, 1)
    assert spelt(tokenizer, pair) == "[CLS] w ##h ##o met ada [UNK] [SEP] bruno met h ##er in oslo . [SEP]"
    assert pair.types.tolist() == [0] * 8 + [1] * 8 and pair.picks.tolist() == [0] and pair.labels.tolist() == [1]


@pytest.mark.parametrize("q, a, kept", [(30, 30, (10, 11)), (3, 30, (3, 18)), (30, 4, (17, 4)), (9, 12, (9, 12))])
def test_pairs_that_do_not_fit_keep_what_comes_first(tokenizer, q, a, kept):
    """24 pieces a row leave 21 for both; each text alone keeps 22."""
    f, = features(tokenizer, [("ada " * q, "oslo " * a)])
    assert len(f.ids) == min(q, 22) + min(a, 22) + 4
    words = spelt(tokenizer, pair_row(f, f, 0)).split()
    assert len(words) <= 24 and (words.count("ada"), words.count("oslo")) == kept and words.count("[SEP]") == 2


def test_types_carry_case_shapes_too(tokenizer):
    f, = features(tokenizer, [("ada met", "oslo")])
    f = dataclasses.replace(f, types=np.array([0, 2, 2, 0, 0, 6, 0]))
    assert pair_row(f, f, 0).types.tolist() == [0, 2, 2, 0, 7, 1]


def test_an_update_reads_questions_answers_and_two_pairs_each(tokenizer):
    rows = task().rows(features(tokenizer), None)
    kinds = [int(r.about.kind) for r in rows]
    assert kinds == [QUESTION] * 5 + [ANSWER] * 5 + [PAIR] * 10
    assert [int(r.labels[0]) for r in rows[10:]] == [1] * 5 + [0] * 5
    numbers = [(text_number(q), text_number(a)) for q, a in PAIRS]
    assert [(r.about.question, r.about.answer) for r in rows[10:15]] == numbers
    for row, (q, a) in zip(rows[15:], numbers, strict=True):
        assert row.about.question == q and row.about.answer != a
    assert task().counts(collate(rows)) == {"answers": 5.0, "pairs": 10.0}
    alone = task(rerank=0).rows(features(tokenizer), None)
    assert len(alone) == 10 and task(rerank=0).counts(collate(alone)) == {"answers": 5.0}


def test_the_wrong_answer_is_the_most_alike_that_is_not_right_too(tokenizer):
    """The second has the first's answer in other words, the third the same answer, the fourth the same question.

    So the third's answer is right for the fourth's question, though their rows have no text in common.
    """
    pairs = [("a", "ada met bruno"), ("b", "ada met clara"), ("c", "ada met bruno"), ("a", "ada met keller in oslo"),
             ("d", "rain"), ("e", "old acme")]
    found = nearest_others(features(tokenizer, pairs), {})
    assert found[0] == 1 and found[2] == 1 and found[1] in (0, 2) and found[3] == 1
    assert nearest_others(features(tokenizer, [("a", "x y"), ("a", "z")]), {}) == [-1, -1]
    known = task()
    known.learn_labels({"train": [Example(q, a, (), "") for q, a in [*pairs, ("a", "ada met clara")]]})
    found = nearest_others(features(tokenizer, pairs), known.right)            # in train, though not in this update
    assert found[0] not in (1, 2, 3) and found[3] not in (0, 1, 2) and found[2] == 1
    pairs = [("a", "ada met bruno"), ("b", "Ada met  Bruno"), ("c", "old rain")]
    assert nearest_others(features(tokenizer, pairs), {})[:2] == [2, 2]        # one answer, spelt in two ways


# ------------------------------------------------------------------------------------- vectors and their gradients


def test_the_mean_of_a_row_and_its_gradient_POOL_1_POOL_2():
    draw = torch.Generator().manual_seed(3)
    x, row = torch.randn(11, 7, generator=draw, dtype=torch.float64), torch.tensor([2, 0, 0, 1, 1, 1, 4, 3, 3, 2, 2])
    mean, cache = ops.row_mean_forward(x, row, 5)
    wanted = [sum(v for v, r in zip(x, row.tolist(), strict=True) if r == i) / (row == i).sum() for i in range(5)]
    assert torch.allclose(mean, torch.stack(wanted), rtol=0, atol=1e-15)
    x.requires_grad_(True)
    dout = torch.randn(5, 7, generator=draw, dtype=torch.float64)
    (ops.row_mean_forward(x, row, 5)[0] * dout).sum().backward()
    assert torch.allclose(ops.row_mean_backward(dout, cache), x.grad, rtol=0, atol=1e-15)


def test_unit_vectors_and_their_gradient_UNIT_1_UNIT_2():
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(6, 9, generator=draw, dtype=torch.float64)
    u, cache = ops.unit_forward(x)
    assert torch.allclose(u.norm(dim=1), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-14)
    assert torch.allclose(u * x.norm(dim=1)[:, None], x, rtol=0, atol=1e-14)
    du = torch.randn(6, 9, generator=draw, dtype=torch.float64)
    x.requires_grad_(True)
    (torch.nn.functional.normalize(x, dim=1) * du).sum().backward()
    dx = ops.unit_backward(du, cache)
    assert torch.allclose(dx, x.grad, rtol=0, atol=1e-14)
    assert float((dx * u).sum(1).abs().max()) < 1e-14            # nothing along the vector: its length cannot grow


def test_a_row_of_zeros_has_no_direction_UNIT_1():
    u, cache = ops.unit_forward(torch.zeros(2, 5))
    assert torch.equal(u, torch.zeros(2, 5)) and bool(torch.isfinite(ops.unit_backward(torch.ones(2, 5), cache)).all())


# ---------------------------------------------------------------------------------------------------- the losses


def batch_of(*rows: tuple[int, int, int, int]) -> Batch:
    """Rows of kind, question, answer, label."""
    return collate([Feature(i, np.arange(5), np.zeros(5, np.int64), np.zeros(1, np.int64), np.array([label]),
                            Role(kind, q, a)) for i, (kind, q, a, label) in enumerate(rows)])


# five rows; the third has the first's answer, the fourth repeats the second question, the last has both: so the first
# answer is right for the second question too, in two rows that share neither text
KEYS = [(11, 21), (12, 22), (13, 21), (12, 24), (12, 21)]
ROWS = [*((QUESTION, q, a, -1) for q, a in KEYS), *((ANSWER, q, a, -1) for q, a in KEYS), (PAIR, 11, 21, 1),
        (PAIR, 11, 22, 0), (PAIR, 12, 22, 1)]


def scores_of(seed: int, rows=ROWS) -> torch.Tensor:
    return torch.randn(len(rows), 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_loss_by_hand_NEG_1_NEG_2():
    """Question by question with math.exp; what is right too is no wrong answer, on either side."""
    def right(i: int, j: int) -> bool:
        return (KEYS[i][0], KEYS[j][1]) in KEYS

    z, tau = scores_of(5), 0.3
    near = [[float(z[i, :-1] @ z[5 + j, :-1]) / tau for j in range(5)] for i in range(5)]
    wanted = 0.0
    for i in range(5):
        wanted += math.log(sum(math.exp(near[i][j]) for j in range(5) if j == i or not right(i, j))) - near[i][i]
        wanted += math.log(sum(math.exp(near[j][i]) for j in range(5) if j == i or not right(j, i))) - near[i][i]
    sums = task(temperature=tau).loss(z, batch_of(*ROWS))
    assert float(sums["answers"]) == pytest.approx(wanted / 2, rel=1e-12)
    pairs = sum(math.log(1 + math.exp(-s * float(v))) for s, v in zip((1, -1, 1), z[10:, -1], strict=True))
    assert float(sums["pairs"]) == pytest.approx(pairs, rel=1e-12)


def test_what_train_knows_as_right_goes_with_the_rows_NEG_1(tokenizer):
    """So a model that was loaded has the same loss for the same rows: three more answers reply to "b", in train."""
    pairs = [("a", "ada met bruno"), ("b", "old rain"), ("c", "in lima ."), ("d", "globex"), ("e", "acme")]
    known = task(rerank=0)
    known.learn_labels({"train": [Example(q, a, (), "") for q, a in [*pairs, ("B", "in lima ."), ("b", "globex"),
                                                                   ("b", "not here"), (" b", "Acme")]]})
    batch = collate(known.rows(features(tokenizer, pairs), None))
    z = scores_of(8, [()] * 10)
    near = z[:5, :-1] @ z[5:, :-1].T / 0.05
    near[1, 2:] = -torch.inf
    wanted = (near.logsumexp(1) + near.logsumexp(0)).sum() / 2 - near.diag().sum()
    for t in (known, task(rerank=0)):
        assert float(t.loss(z, batch)["answers"]) == pytest.approx(float(wanted), rel=1e-12)


@pytest.mark.parametrize("rerank", [0, 3])
def test_the_gradient_is_autograds_NEG_3_NEG_4_NEG_5(rerank):
    z, t = scores_of(6).requires_grad_(True), task(rerank=rerank, temperature=0.3)
    sums, found = t.loss(z, batch_of(*ROWS)), t.loss_backward(z.detach(), batch_of(*ROWS))
    assert sums.keys() == found.keys() == ({"answers", "pairs"} if rerank else {"answers"})
    for term in sums:
        wanted, = torch.autograd.grad(sums[term], z, retain_graph=True)
        assert torch.allclose(found[term], wanted, rtol=0, atol=1e-13) and float(wanted.abs().max()) > 0.1


def test_two_equally_near_answers_cost_log_2_NEG_2():
    z = torch.zeros(4, 8)
    rows = [(QUESTION, 1, 3, -1), (QUESTION, 2, 4, -1), (ANSWER, 1, 3, -1), (ANSWER, 2, 4, -1)]
    assert float(task().loss(z, batch_of(*rows))["answers"]) == pytest.approx(2 * math.log(2), rel=1e-6)


@pytest.mark.parametrize("engine", ["autograd", "by-hand", "fast"])
def test_two_passes_are_the_whole_batch(tiny_folder, tmp_path, engine):
    """In float64, with dropout off: 1, 3 and 7 micro-batches of 20 rows; without the first pass they differ."""
    command = ["--task", "reply", "--weights", str(tiny_folder), "--data", str(write(tmp_path / "d")), "--output",
               str(tmp_path / "r"), "--max-pieces", "24", "--dropout", "0", "--precision", "fp32", "--cache", "off",
               "--gradients", engine, "--batch-size", "7"]
    run = train.set_up(command)
    model = run.model.double()

    def gradient(parts: int) -> tuple[float, dict[str, torch.Tensor]]:
        model.zero_grad()
        settings = dataclasses.replace(run.settings, accumulate=parts)
        batches = train.micro_batches(run.features["train"], np.arange(5), run.task, settings, run.tokenizer.pad,
                                      torch.device("cpu"))
        assert len(batches) == parts
        loss = accumulate(model, run.task, batches, 1.0, settings, step=1)
        return loss, {n: p.grad.to_dense().clone() for n, p in model.named_parameters() if p.grad is not None}

    loss, wanted = gradient(1)
    for parts in (3, 7):
        found, gradients = gradient(parts)
        assert found == pytest.approx(loss, rel=1e-12) and gradients.keys() == wanted.keys()
        for n, dw in wanted.items():
            size = wanted[n.replace("key.bias", "query.bias")].norm()
            assert size > 0 and (gradients[n] - dw).norm() <= 1e-12 * size, n


def test_the_first_pass_has_the_dropout_masks_of_the_second(tiny_folder, tmp_path, monkeypatch):
    command = ["--task", "reply", "--weights", str(tiny_folder), "--data", str(write(tmp_path / "d")), "--output",
               str(tmp_path / "r"), "--max-pieces", "24", "--precision", "fp32", "--cache", "off", "--gradients",
               "autograd", "--batch-size", "5", "--accumulate", "2", "--max-steps", "1", "--evaluate", "none"]
    seen, real = [], coupled.KnownLoss.loss
    parts = coupled.known_losses

    def spying(model, task, batches, masks, precision):
        found = parts(model, task, batches, masks, precision)
        for batch, mask, part in zip(batches, masks, found, strict=True):
            part.expected = model(batch, mask).detach()
        return found

    def loss(self, scores, batch):
        seen.append(float((scores.detach() - self.expected).abs().max()))
        return real(self, scores, batch)

    monkeypatch.setattr(coupled, "known_losses", spying)
    monkeypatch.setattr(coupled.KnownLoss, "loss", loss)
    train.train(command)
    assert seen == [0.0, 0.0]


def test_a_known_loss_is_a_number_where_a_sum_in_fp16_is_none():
    """350 products of 100 · 30 are more than fp16 holds; the loss they stand for is 3."""
    scores, dscores = torch.full((70, 5), 100.0, dtype=torch.float16), torch.full((70, 5), 30.0)
    known = coupled.KnownLoss({"texts": torch.tensor(3.0)}, {"texts": dscores})
    assert float(known.loss(scores, None)["texts"]) == pytest.approx(3.0, abs=0.1)
    scores = scores.requires_grad_()
    with torch.enable_grad():
        known.loss(scores, None)["texts"].backward()
    assert torch.equal(scores.grad, dscores.half())


def test_a_batch_of_one_row_has_nothing_to_learn_from(tiny_folder, tmp_path, capsys):
    command = ["--task", "reply", "--weights", str(tiny_folder), "--data", str(write(tmp_path / "d")), "--output",
               str(tmp_path / "r"), "--batch-size", "1"]
    assert train.main(command) == 2 and "--batch-size is 1" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_what_is_random_about_a_row_is_a_function_of_seed_epoch_and_number():
    first = row_generator(3, 5, 7).integers(0, 2 ** 30, 5).tolist()
    assert row_generator(3, 5, 7).integers(0, 2 ** 30, 5).tolist() == first
    others = [row_generator(*key).integers(0, 2 ** 30, 5).tolist() for key in ((4, 5, 7), (3, 6, 7), (3, 5, 8))]
    assert first not in others and len({tuple(x) for x in others}) == 3


# ------------------------------------------------------------------------------------------- rankings and scores


def test_scores_by_hand():
    """Places 1, 2, 6: the second question's answers are both right, as it is asked twice."""
    answers = list("abcdef")
    examples = [Example(q, a, (), "") for q, a in (("p", "a"), ("q", "b"), ("q", "c"), ("r", "f"))]
    orders = [[0, 1, 2, 3, 4, 5], [3, 2, 1, 0, 4, 5], [3, 2, 1, 0, 4, 5], [0, 1, 2, 3, 4, 5]]
    said = [Ranking(answers, np.array(o), -np.argsort(np.array(o)).astype(float)) for o in orders]
    scores = task().score(said, examples)
    assert (scores["recall_1"], scores["recall_5"]) == (0.25, 0.75) and scores["support"] == 4
    assert scores["mrr"] == pytest.approx((1 + 0.5 + 0.5 + 1 / 6) / 4) and scores["vectors"]["mrr"] == scores["mrr"]
    again = [*examples[:3], Example("R ", "F", (), "")]
    assert task().score(said, again) == scores     # letter case and blanks make no other text
    assert task().collapsed(said[:1], examples[:1]) is None and task().collapsed([said[0]] * 4, examples) == "a"


def test_no_questions_have_no_scores():
    assert metrics.ranking_scores([]) == {"recall_1": 0.0, "recall_5": 0.0, "mrr": 0.0, "support": 0}


@pytest.mark.parametrize("z, p", [(0.0, 0.5), (math.log(3), 0.75), (-math.log(4), 0.2), (2000.0, 1.0), (-2000.0, 0.0)])
def test_a_fit_of_any_size_is_a_probability(z, p):
    found = task().reordered(Ranking(["a"], np.array([0]), np.array([0.5])), {0: z})
    assert found.fits[0] == pytest.approx(p, abs=1e-15)


def test_nearness_and_fit_are_added():
    """Cosines / 0.05 are 10, 9, 8, 2; the pair scores 0, 3, 1 bring the second to the front, the fourth stays last."""
    ranking = Ranking(list("abcd"), np.array([0, 1, 2, 3]), np.array([0.5, 0.45, 0.4, 0.1]))
    found = task(rerank=3).reordered(ranking, {0: 0.0, 1: 3.0, 2: 1.0})
    assert found.order.tolist() == [1, 0, 2, 3] and found.fits[0] == 0.5
    result = task().result(Example("q", None, tuple("abcd"), ""), found)
    assert [a["text"] for a in result["answers"]] == list("bacd") and "probability" not in result["answers"][3]
    assert task().render(result, False).splitlines()[1] == "  0.450, fits 0.953  b"


@pytest.fixture(scope="module")
def run(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return train.train(["--task", "reply", "--weights", str(tiny_folder), "--data", str(write(folder / "d")),
                        "--output", str(folder / "r"), "--max-pieces", "24", "--epochs", "2", "--batch-size", "5",
                        "--rerank", "3", "--precision", "fp32", "--cache", "off", "--no-before"])


def test_the_vector_is_the_mean_of_the_rows_states(run, tokenizer):
    model = minibert.load(run)
    rows = model.encode_examples(model.task.read(run.parent / "d")["test"])
    row = question_row(rows[2])
    hidden, _ = model.bert.encode(torch.from_numpy(row.ids)[None], types=torch.from_numpy(row.types)[None])
    with torch.no_grad():
        scores = model(collate([row, pair_row(rows[0], rows[1], 0)]))
        wanted = torch.nn.functional.normalize(hidden[0].mean(0), dim=0)
        pair = torch.from_numpy(pair_row(rows[0], rows[1], 0).ids)[None]
        kinds = torch.from_numpy(pair_row(rows[0], rows[1], 0).types)[None]
        z = model.head.classifier(model.bert.encode(pair, types=kinds)[1])
    assert torch.allclose(scores[0, :-1], wanted, rtol=0, atol=1e-6)
    assert float(scores[1, -1]) == pytest.approx(float(z), abs=1e-6)


def test_predict_chooses_from_the_text_or_from_a_file(run, tmp_path, capsys):
    (tmp_path / "answers.txt").write_text("\n".join(a for _, a in PAIRS))
    assert main(["predict", str(run), "--answers", str(tmp_path / "answers.txt"), "--json", "who met ada ?"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {a["text"] for a in found["answers"]} == {a for _, a in PAIRS}
    assert sum("probability" in a for a in found["answers"]) == 3
    assert main(["predict", str(run), "--json", "who met ada ? ||| in lima . ||| rain"]) == 0
    assert {a["text"] for a in json.loads(capsys.readouterr().out)["answers"]} == {"in lima .", "rain"}
    assert main(["predict", str(run), "who met ada ?"]) == 2
    assert "--answers FILE" in capsys.readouterr().err


def looks(model, monkeypatch) -> list[int]:
    """Rows of each look at the model from now on."""
    seen: list[int] = []
    look = evaluate.score_features

    def counted(model, task, features, *rest):
        seen.append(len(features))
        return look(model, task, features, *rest)

    monkeypatch.setattr(evaluate, "score_features", counted)
    return seen


def test_a_file_of_answers_is_read_once(run, tmp_path, monkeypatch):
    (tmp_path / "answers.txt").write_text("\n".join(a for _, a in PAIRS))
    model = minibert.load(run)
    questions = ["who met ada ?", "the bank ||| rain ||| old acme", "is acme old"]
    listed = model.predict([q if "|||" in q else " ||| ".join([q, *(a for _, a in PAIRS)]) for q in questions])
    model.task.read_candidates(tmp_path / "answers.txt")
    seen = looks(model, monkeypatch)
    assert_equal_results(model.predict(questions[:1]), listed[:1])
    assert seen == [5, 1, 3]                       # the answers, the question, three pairs
    assert_equal_results(model.predict(questions), listed)
    assert seen[3:] == [5, 3 + 2 + 3]              # three questions, two answers of their own; pairs
    (tmp_path / "answers.txt").write_text("in lima .\nrain\nnever\nold acme")
    model.task.read_candidates(tmp_path / "answers.txt")
    assert {a["text"] for a in model.predict(["rain ?"])[0]["answers"]} == {"in lima .", "rain", "never", "old acme"}
    assert seen[5:] == [4, 1, 3]
    seen.clear()
    model.task.read_candidates(tmp_path / "answers.txt")
    model.features(["rain ?"])
    model.predict([questions[1]])                  # nobody asks for those of the file
    assert seen == [3, 2]
    model.predict([questions[1], questions[1].replace("bank", "rain")])
    assert seen[2:] == [2 + 2, 2 * 2]              # the same two answers


def test_letter_case_makes_no_other_answer_and_yet_is_read(run, tmp_path):
    """An answer is read as it stands with its question, whatever other questions or the file spell it like."""
    model, text = minibert.load(run), "who met ada ? ||| RAIN ||| Old Acme ||| in lima ."
    torch.nn.init.normal_(model.bert.embeddings.token_type.weight, generator=torch.Generator().manual_seed(4))
    small = "who met ada ? ||| rain ||| old acme ||| in lima ."
    alone, other = model.predict([text])[0], model.predict([small])[0]
    near, far = ({a["text"].lower(): a["similarity"] for a in found["answers"]} for found in (alone, other))
    assert abs(near["rain"] - far["rain"]) > 1e-3                              # shapes of letters are seen
    (tmp_path / "answers.txt").write_text("rain\nold acme\nnever\n")
    model.task.read_candidates(tmp_path / "answers.txt")
    for texts in ([small, text], [text, small], ["the bank", text], [text, "the bank"], [text]):
        assert_equal_results([model.predict(texts)[texts.index(text)]], [alone])


def test_of_equal_answers_the_first_spelling_is_read_and_shown(run):
    model = minibert.load(run)
    torch.nn.init.normal_(model.bert.embeddings.token_type.weight, generator=torch.Generator().manual_seed(4))
    for spelt in (("RAIN", "rain"), ("rain", "RAIN")):
        examples = [Example(q, a, (), "") for q, a in zip(["who met ada ?", "is it ?", "x"], [*spelt, "old acme"],
                                                          strict=True)]
        found = evaluate.predict_examples(model, model.task, examples, model.encode_examples(examples))
        wanted = model.predict([f"who met ada ? ||| {spelt[0]} ||| old acme"])
        assert_equal_results([model.task.result(examples[0], found[0])], wanted)


def assert_equal_results(some, others):
    for one, other in zip(some, others, strict=True):
        assert [a["text"] for a in one["answers"]] == [a["text"] for a in other["answers"]]
        for a, b in zip(one["answers"], other["answers"], strict=True):
            assert a == {k: v if k == "text" else pytest.approx(v, abs=1e-6) for k, v in b.items()}


def test_pairs_may_be_read_in_another_number_later(run, tmp_path, capsys):
    (tmp_path / "answers.txt").write_text("\n".join(a for _, a in PAIRS))
    for n in (0, 2, 5):
        assert main(["predict", str(run), "--rerank", str(n), "--answers", str(tmp_path / "answers.txt"), "--json",
                     "who met ada ?"]) == 0
        assert sum("probability" in a for a in json.loads(capsys.readouterr().out)["answers"]) == n
    assert main(["evaluate", str(run), "--rerank", "0", "--data", str(run.parent / "d")]) == 0
    assert "read together" not in capsys.readouterr().out
    settings = json.loads((run / "train.json").read_text())
    without = tmp_path / "without"
    shutil.copytree(run, without)
    (without / "train.json").write_text(json.dumps({**settings, "rerank": 0}))
    assert main(["predict", str(without), "--rerank", "2", "who met ada ? ||| rain"]) == 2
    assert "--rerank 2: the model was trained with --rerank 0" in capsys.readouterr().err
    assert main(["predict", str(without), "--rerank", "0", "who met ada ? ||| rain"]) == 0


def test_answers_are_refused_by_other_tasks(tiny_folder, tiny_data, tmp_path, capsys):
    output = train.train(["--task", "ner", "--weights", str(tiny_folder), "--data", str(tiny_data), "--output",
                          str(tmp_path / "r"), "--max-steps", "1", "--evaluate", "none", "--max-pieces", "24"])
    (tmp_path / "a.txt").write_text("x\n")
    capsys.readouterr()
    assert main(["predict", str(output), "--answers", str(tmp_path / "a.txt"), "Ada"]) == 2
    assert "chooses no replies" in capsys.readouterr().err


def test_a_prediction_does_not_depend_on_its_company(run):
    model = minibert.load(run)
    text = "who met ada ? ||| in lima . ||| rain"
    alone, = model.predict([text])
    among = model.predict(["the bank ||| rain ||| old acme", text, "ada ||| in lima ."])[1]
    assert_equal_results([alone], [among])
