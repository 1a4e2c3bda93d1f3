"""nextsentence.py and mlm --next-sentence: rows of two halves, the head, both losses, runs."""
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from refusing import refused

import minibert
import train
from minibert.checkpoints import weights
from minibert.core import byhand
from minibert.core.batch import Feature, collate
from minibert.core.heads import NextSentenceHead, firsts
from minibert.core.model import Model
from minibert.data.features import concatenate
from minibert.data.order import row_generator
from minibert.engines.fast import engine as fast
from minibert.files import read_json, write_json
from minibert.tasks.mlm import MLM, Hits, hits
from minibert.tasks.next_sentence import FOLLOWS, OTHER, halves, partners, stretches

WORDS = "ada bruno clara oslo lima cairo the met rain old left visited".split()


def task() -> MLM:
    return MLM(MLM.Options(next_sentence=True, hide=0.3))


def slow_stretches(documents: list[list[int]], room: int) -> list[list[int]]:
    """Every document cut every `room` pieces."""
    return [d[i:i + room] for d in documents for i in range(0, len(d), room)]


@pytest.fixture
def documents(tokenizer) -> list[list[int]]:
    """Pieces, each document of another length: 0 to 57."""
    draw = np.random.default_rng(3)
    return [draw.integers(5, tokenizer.size, n).tolist() for n in (57, 1, 0, 23, 12, 31, 2, 11, 22, 44, 13, 1, 24)]


@pytest.mark.parametrize("block", [7, 50, 1000])
def test_halves_are_those_of_the_documents(tokenizer, documents, block):
    """Against lists: the same stretches whatever the blocks, first halves in order, each second half once.

    In one block the short stretch of the last document is asked like the others.
    """
    flat = [p for d in documents for p in (*d, tokenizer.end)]
    shapes = [p % 4 if p != tokenizer.end else 0 for p in flat]
    both = np.array([flat, shapes])
    blocks = [both[:, i:i + block] for i in range(0, len(flat), block)]
    rows = concatenate(halves(blocks, tokenizer, 14))
    wanted = [s for s in slow_stretches(documents, 11) if len(s) > 1]
    lengths, asked = Counter(map(len, wanted)), 0
    seconds = Counter(tuple(s[len(s) // 2:]) for s in wanted)
    assert len(rows) == len(wanted)
    for i, (f, s) in enumerate(zip(rows, wanted, strict=True)):
        a = len(s) // 2
        assert f.example == i and f.picks.tolist() in ([0], []) and (lengths[len(s)] > 1 or not len(f.picks))
        assert f.ids[0] == tokenizer.start and f.ids[a + 1] == f.ids[-1] == tokenizer.end
        assert f.ids[1:a + 1].tolist() == s[:a]
        second = f.ids[a + 2:-1].tolist()
        assert len(second) == len(s) - a
        assert f.labels.tolist() == [FOLLOWS if second == s[a:] else OTHER] * len(f.picks)
        assert len(f.picks) or second == s[a:]
        asked += len(f.picks)
        seconds[tuple(second)] -= 1
        of_second = 1 if tokenizer.types > 1 else 0
        types = [tokenizer.types * (p % 4) + of_second for p in second]
        assert f.types.tolist() == [0, *(tokenizer.types * (p % 4) for p in s[:a]), 0, *types, of_second]
    assert not +seconds and not -seconds
    if block == 1000:
        assert lengths[len(wanted[-1])] > 1 and len(wanted[-1]) < 11
        assert asked == sum(n for n in lengths.values() if n > 1) < len(rows)
        assert {OTHER, FOLLOWS} == {int(f.labels[0]) for f in rows if len(f.picks)}


def test_a_half_spelt_like_the_rows_own_follows(tokenizer):
    """29 documents of ten pieces with two sorts of second halves: exchanging those of one sort changes nothing."""
    draw = np.random.default_rng(5)
    ends = draw.integers(5, tokenizer.size, (2, 5))
    texts = [[*draw.integers(5, tokenizer.size, 5), *ends[i % 2], tokenizer.end] for i in range(29)]
    flat = np.concatenate(texts)
    own = [tuple(t[5:10]) for t in texts]
    rows = concatenate(halves([np.array([flat, np.zeros_like(flat)])], tokenizer, 13))
    seconds, _ = partners(np.full(29, 10), row_generator(1, 0, 0))
    same = [own[j] == own[i] for i, j in enumerate(seconds)]
    assert [int(f.labels[0]) for f in rows] == [FOLLOWS if s else OTHER for s in same]
    assert 0 < sum(s and i != j for s, (i, j) in zip(same, enumerate(seconds), strict=True)) and not all(same)


def test_what_is_hidden_stays_in_its_half_and_loses_its_letter_case(tokenizer, documents):
    t = task()
    t.tokenizer = tokenizer
    flat = [p for d in documents for p in (*d, tokenizer.end)]
    shapes = [1 + p % 3 if p != tokenizer.end else 0 for p in flat]
    rows = concatenate(halves([np.array([flat, shapes])], tokenizer, 14))
    moved = 0
    for f, g in zip(rows, t.rows(rows, lambda i: row_generator(0, 1, i)), strict=True):
        changed = g.ids != f.ids
        assert (g.types % tokenizer.types == f.types % tokenizer.types).all()
        assert (g.types[changed] < tokenizer.types).all() and (g.types[~changed] == f.types[~changed]).all()
        moved += int((changed & (f.types % tokenizer.types == 1)).sum())
    assert tokenizer.types > 1 and moved > 5


def test_an_open_document_waits():
    """Room 4: five pieces of a document that is over, of the open one four of six."""
    begins, counts, rest = stretches(np.array([9, 8, 7, 6, 5, 3, 9, 9, 9, 9, 8, 8]), 3, 4)
    assert begins.tolist() == [0, 4, 6] and counts.tolist() == [4, 1, 4] and rest == 10
    begins, counts, rest = stretches(np.array([3, 3]), 3, 4)
    assert len(begins) == len(counts) == 0 and rest == 2


def test_half_of_the_rows_have_a_half_of_another_of_their_length():
    """Never their own by chance: 4,000 rows, sd of the share 0.008; what stands alone in its length is not asked."""
    counts = np.append(np.random.default_rng(1).integers(5, 12, 4000), 77)
    seconds, asked = partners(counts, row_generator(1, 0, 5))
    assert sorted(seconds.tolist()) == list(range(4001)) and seconds[4000] == 4000
    assert asked.tolist() == [True] * 4000 + [False]
    assert (counts[seconds] == counts).all()
    for n in range(5, 12):
        there = counts == n
        assert 0.42 < (seconds != np.arange(4001))[there].mean() < 0.58       # whatever the length: about 3.7 sd
    again, _ = partners(counts, row_generator(1, 0, 5))
    assert (again == seconds).all() and (partners(counts, row_generator(1, 0, 6))[0] != seconds).any()
    assert [x.tolist() for x in partners(np.array([], int), row_generator(1, 0, 0))] == [[], []]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_short_rows_answer_is_a_toss_however_few_have_its_length(size):
    """Coins alone would leave 1/4 of two rows: the share is 1/2 for each row, sd 0.011 over 2,000 draws."""
    counts = np.array([9] * size + [6] * 7)
    others = np.mean([partners(counts, row_generator(1, 0, i))[0] != np.arange(size + 7) for i in range(2000)], 0)
    assert (abs(others - 0.5) < 0.045).all()       # 4 sd, of twelve rows at most


@pytest.fixture
def example(tiny_config, tokenizer, documents):
    """(task, model in float64, batch): rows of two halves with pieces hidden, and one without, as predict has it."""
    t = task()
    t.tokenizer = tokenizer
    flat = [p for d in documents for p in (*d, tokenizer.end)]
    rows = list(concatenate(halves([np.array([flat, [0] * len(flat)])], tokenizer, 14)))[:9]
    rows = t.rows(rows, lambda i: row_generator(0, 1, i))
    ids = np.array([tokenizer.start, 7, 8, tokenizer.mask, 9, tokenizer.end])
    rows.insert(4, Feature(0, ids, np.zeros(6, np.int64), np.array([3]), np.array([11])))
    bert = weights.random_bert(tiny_config, seed=3)
    head = NextSentenceHead(tiny_config)
    for i, p in enumerate(head.parameters()):
        torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(i))
    return t, Model(bert, head).double(), collate(rows)


def test_scores_of_a_first_pick_are_two_and_nothing_NEXT_1(example):
    t, model, batch = example
    first = firsts(batch)
    assert len(first) == 9 and batch.picks[first].tolist() == [14 * i for i in range(10) if i != 4]
    with torch.no_grad():
        hidden = model.bert(batch.ids, batch.types, batch.layout)
        scores = model(batch)
        answers = model.head.cls["seq_relationship"](model.bert.pooler(hidden[batch.picks[first]]))
        words = model.head.words(hidden[batch.picks])
    assert torch.equal(scores[first, :2], answers) and bool((scores[first, 2:] == -torch.inf).all())
    others = [i for i in range(len(scores)) if i not in first.tolist()]
    assert torch.equal(scores[others], words[others])


def test_both_losses_by_hand_and_by_autograd_NEXT_1(example):
    """The sums against torch's own cross-entropy over two columns; all gradients against autograd's, term by term.

    The default engine's against those by hand: its batch has filling pieces and picks.
    """
    t, model, batch = example
    first = firsts(batch)
    counts = t.counts(batch)
    assert counts == {"pieces": float(len(batch.picks) - 9), "next": 9.0}
    scores = model(batch)
    sums = t.loss(scores.detach(), batch)
    rest = [i for i in range(len(scores)) if i not in first.tolist()]
    whole = torch.nn.functional.cross_entropy
    z, y = scores.detach(), batch.labels
    wanted = {"next": whole(z[first, :2], y[first], reduction="sum"),
              "pieces": whole(z[rest], y[rest], reduction="sum")}
    assert {term: float(x) for term, x in sums.items()} == pytest.approx({t: float(x) for t, x in wanted.items()})
    for weight in ({"pieces": 1.0, "next": 0.0}, {"pieces": 0.0, "next": 1.0}, {"pieces": 0.4, "next": 3.0}):
        model.zero_grad()
        sum(weight[term] * x for term, x in t.loss(model(batch), batch).items()).backward()
        _, gradients = byhand.loss_and_gradients(model, batch, task=t, factors=weight)
        for name, p in model.named_parameters():
            wanted = torch.zeros_like(p) if p.grad is None else p.grad
            assert torch.allclose(gradients[name], wanted, rtol=0, atol=1e-10), (name, weight)
        with torch.no_grad():
            model.zero_grad()
            fast.Fast(model, "fp32")(t, batch, None, weight)
        for name, p in model.named_parameters():
            found = torch.zeros_like(p) if p.grad is None else p.grad.to_dense()
            assert torch.allclose(found, gradients[name], rtol=0, atol=1e-10), (name, weight)
    assert torch.allclose(fast.Scorer(model, "fp32")(batch), z, rtol=0, atol=1e-10)      # −∞ where that is −∞
    assert float(gradients["head.cls.seq_relationship.weight"].norm()) > 1e-3
    assert float(gradients["bert.pooler.dense.weight"].norm()) > 1e-3


def test_hits_count_the_answer_apart():
    z = np.full((3, 6), -np.inf, np.float32)
    z[0, :2] = 0.0, 2.0
    z[1:] = np.log([[0.5, 0.1, 0.1, 0.1, 0.1, 0.1], [0.05, 0.05, 0.05, 0.05, 0.05, 0.75]])
    f = Feature(0, np.zeros(7, np.int64), np.zeros(7, np.int64), np.array([0, 3, 5]), np.array([1, 2, 5]))
    found = hits(f, z)
    assert found.loss == pytest.approx(-np.log(0.1) - np.log(0.75), rel=1e-6)
    assert (found.right, found.hidden, found.guesses, found.answer) == (1, 2, {0, 5}, True)
    scores = task().score([found, *(Hits(0.0, 0, 0, frozenset(), answer) for answer in (False, True))], ["x"])
    assert scores["next_sentence"] == pytest.approx(2 / 3) and "next sentence" in task().report(scores)


@pytest.fixture(scope="module")
def run(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "d").mkdir()
    draw = np.random.default_rng(2)
    text = "\n\n".join(" ".join(WORDS[i] for i in draw.integers(0, len(WORDS), 19 + d)) for d in range(40))
    for split in ("train", "dev"):
        (folder / "d" / f"{split}.txt").write_text(text)
    return train.train(["--task", "mlm", "--next-sentence", "--weights", str(tiny_folder), "--data", str(folder / "d"),
                        "--output", str(folder / "r"), "--max-pieces", "16", "--epochs", "2", "--precision", "fp32",
                        "--cache", "off", "--batch-size", "7"])


def test_a_run_says_how_many_halves_were_told_apart(run):
    """Counted again row by row, past the head: the linear map on the pooler of each row by itself."""
    model = minibert.load(run)
    assert model.task.architecture == "BertForPreTraining"
    rows = model.encode_examples(model.task.read(run.parent / "d")["dev"])
    right = []
    for i, f in enumerate(rows):
        if len(f.picks):
            batch = collate([model.task.hidden(f, row_generator(0, 0, i))])
            with torch.no_grad():
                states = model.bert(batch.ids, batch.types, batch.layout)
                answers = model.head.cls["seq_relationship"](model.bert.pooler(states[:1]))
            right.append(int(answers.argmax()) == f.labels[0])
    assert len(right) > 50
    found = read_json(run / "metrics.json")["dev"]["next_sentence"]
    assert found == pytest.approx(sum(right) / len(right), abs=1e-9)
    said, = model.predict(["ada met [MASK]"])
    assert len(said["masks"][0]["pieces"]) == 5


def short_run(weights: Path, data: Path, output: Path, *options: str) -> Path:
    return train.train(["--task", "mlm", "--weights", str(weights), "--data", str(data), "--output", str(output),
                        "--max-pieces", "16", "--max-steps", "1", "--precision", "fp32", "--cache", "off",
                        "--batch-size", "7", *options])


def at_the_start(monkeypatch) -> dict[str, torch.Tensor]:
    """Filled with the weights of the next run's model, as they are before its first update."""
    found, whole = {}, train.start_model

    def build(*arguments):
        model, *rest = whole(*arguments)
        found.update({name: w.clone() for name, w in model.state_dict().items()})
        return model, *rest

    monkeypatch.setattr(train, "start_model", build)
    return found


def test_what_it_learnt_is_taken_over(run, tmp_path, capsys):
    """Its head by mlm without the option, too; which leaves a head of masked words alone."""
    plain = short_run(run, run.parent / "d", tmp_path / "r")
    assert "new: " not in capsys.readouterr().out
    assert read_json(plain / "config.json")["architectures"] == ["BertForMaskedLM"]
    assert not any(name.startswith("cls.seq") for name in safetensors.torch.load_file(plain / "model.safetensors"))


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForPreTraining", None])
@pytest.mark.parametrize("lacking", [(), ("cls.seq_relationship.",), ("cls.predictions.",), ("cls.",),
                                     ("cls.seq_relationship.", "bert.pooler.")])
def test_each_part_of_the_head_is_taken_where_it_is(run, tmp_path, monkeypatch, capsys, name, lacking):
    """As bert-base-uncased: a file of both parts named after one of them. What is missing is drawn, nothing else."""
    folder = shutil.copytree(run, tmp_path / "w")
    tensors = safetensors.torch.load_file(run / "model.safetensors")
    kept = {k: v for k, v in tensors.items() if not k.startswith(lacking)}
    safetensors.torch.save_file(kept, folder / "model.safetensors")
    write_json(folder / "config.json", read_json(run / "config.json") | {"architectures": name and [name]})
    start = at_the_start(monkeypatch)
    short_run(folder, run.parent / "d", tmp_path / "r", "--next-sentence")
    said = " ".join(capsys.readouterr().out.split())
    drawn = said.partition("new: ")[2].partition(";")[0]
    found = 0
    for published, value in tensors.items():
        ours = "head." + published if published.startswith("cls.") else published
        if ours in start:                          # the head and the pooler; the blocks have other names
            new = published not in kept
            assert torch.equal(start[ours], value) != new
            assert (published.removeprefix("bert.") in drawn) == new
            found += 1
    assert found == 9


def test_half_a_part_is_a_damaged_file(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "w")
    tensors = safetensors.torch.load_file(run / "model.safetensors")
    del tensors["cls.seq_relationship.bias"]
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    with refused("cls.seq_relationship.bias missing"):
        short_run(folder, run.parent / "d", tmp_path / "r", "--next-sentence")


def test_a_replay_takes_no_offence_at_what_is_no_answer(tiny_folder, run, tmp_path, capsys, monkeypatch):
    """A loss that is no number in update 3, of an update that is healthy: its −∞ scores are meant."""
    asked, whole = [], fast.cross_entropy

    def broken(*arguments):
        asked.append(1)
        sums, dscores = whole(*arguments)
        return ({term: x * float("nan") for term, x in sums.items()} if len(asked) == 3 else sums), dscores

    command = ["--task", "mlm", "--next-sentence", "--weights", str(tiny_folder), "--data", str(run.parent / "d"),
               "--output", str(tmp_path / "r"), "--max-pieces", "16", "--precision", "fp32", "--cache", "off",
               "--batch-size", "7", "--evaluate", "none"]
    with monkeypatch.context() as m:
        m.setattr(fast, "cross_entropy", broken)
        assert train.main(command) == 2
    capsys.readouterr()
    assert train.main(["--replay", str(tmp_path / "r" / "broken-update-3" / "update.json")]) == 0
    said = capsys.readouterr().out
    assert "every tensor of the forward is finite" in said and "not finite:" not in said


def test_text_without_two_pieces_in_a_document(tiny_folder, tmp_path):
    (tmp_path / "train.txt").write_text("ada\n\nbruno\n")
    with refused("train.txt", "no document of two pieces"):
        train.train(["--task", "mlm", "--next-sentence", "--weights", str(tiny_folder), "--data", str(tmp_path),
                     "--output", str(tmp_path / "r"), "--precision", "fp32", "--max-pieces", "16"])
    assert not (tmp_path / "r").exists()


def test_a_note_where_nothing_is_asked(tiny_folder, tmp_path, capsys):
    """Of train a row of four pieces and one of three, of dev two of three."""
    for split, text in (("train", "ada met bruno old\n\nclara left lima\n"), ("dev", "ada met old\n\nlima the rain\n")):
        (tmp_path / f"{split}.txt").write_text(text)
    run = short_run(tiny_folder, tmp_path, tmp_path / "r", "--next-sentence")
    said = " ".join(capsys.readouterr().out.split())
    assert "train.txt: no two stretches have the same number of pieces" in said and "dev.txt: no two" not in said
    scores = read_json(run / "metrics.json")
    assert "next_sentence" in scores["dev"]
