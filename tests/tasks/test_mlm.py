"""tasks/mlm.py, wordhead.py, scratch.py, features.spill: text as rows, hiding, the tied head, vocabularies."""
import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from refusing import refused
from updates import settings_of

import minibert
import train
from minibert.__main__ import main
from minibert.checkpoints import weights
from minibert.checkpoints.scratch import learn_vocabulary
from minibert.checkpoints.weights import read_tokenizer
from minibert.core import byhand
from minibert.core.batch import collate
from minibert.core.heads import WordHead
from minibert.core.model import Model
from minibert.data.features import concatenate, spill
from minibert.data.order import row_generator
from minibert.engines.fast.engine import Fast
from minibert.run.start import start_model
from minibert.tasks.mlm import MLM, Hits, TextLines, hide_pieces, hits, portions, stream, words_and_masks
from minibert.use.prepare import encode_all

TEXT = "Ada met Bruno in Oslo .\n\n\n\n  The rain left Lima today, Clara visited Cairo.\nNordia bought ACME\n"


def task(**options) -> MLM:
    return MLM(MLM.Options(**options))


@pytest.fixture
def lines(tmp_path) -> TextLines:
    (tmp_path / "train.txt").write_text(TEXT)
    return task().read(tmp_path)["train"]


# -------------------------------------------------------------------------------------------------- text -> rows


def test_lines_are_read_when_asked_for(lines):
    assert len(lines) == 3 and lines[2] == "Nordia bought ACME" and lines[-3] == "Ada met Bruno in Oslo ."
    assert list(lines.lines()) == [lines[0], "", lines[1], lines[2]] and list(lines[:1].lines()) == [lines[0]]
    assert len(lines[:2]) == 2 and len(lines[:9]) == 3
    again = TextLines.from_arrays(lines.file, lines.arrays())
    assert list(again.lines()) == list(lines.lines())
    with pytest.raises(IndexError):
        lines[1:]


def test_files_without_text(tmp_path):
    (tmp_path / "dev.txt").write_text(" \n\n")
    with refused(f"{tmp_path}/dev.txt", "no text"):
        task().read(tmp_path)
    (tmp_path / "dev.txt").write_bytes(b"a\n\xff\n")
    with refused(f"{tmp_path}/dev.txt:2", "UTF-8"):
        task().read(tmp_path)


@pytest.mark.parametrize("hide", [0.0, 1.0, -1.0, math.nan])
def test_shares_that_cannot_be(hide):
    with refused("--hide"):
        task(hide=hide)


def slow_stream(lines: TextLines, tokenizer) -> list[int]:
    """Pieces of the text, line by line, with the library alone; [SEP] between documents."""
    ids = []
    for line in lines.lines():
        ids += tokenizer.backend.encode(line, add_special_tokens=False).ids if line else [tokenizer.end]
    return ids


@pytest.mark.parametrize("max_pieces", [8, 11, 40])
def test_rows_are_full_and_hold_the_whole_text(lines, tokenizer, max_pieces):
    rows = encode_all(task(), lines, tokenizer, max_pieces, 3)
    wanted, room = slow_stream(lines, tokenizer), max_pieces - 2
    assert [i for r in rows for i in r.ids[1:-1].tolist()] == wanted
    assert np.concatenate(list(stream(lines, tokenizer, closed=True)), 1)[0].tolist() == [*wanted, tokenizer.end]
    full, rest = divmod(len(wanted), room)
    assert [len(r.ids) - 2 for r in rows] == [room] * full + [rest] * bool(rest)
    assert all((r.ids[0], r.ids[-1]) == (tokenizer.start, tokenizer.end) and len(r.picks) == 0 for r in rows)


def test_blocks_do_not_show(lines, tokenizer, monkeypatch):
    whole = encode_all(task(), lines, tokenizer, 9, 3)
    monkeypatch.setattr("minibert.tasks.mlm.BLOCK", 2)
    parts = encode_all(task(), lines, tokenizer, 9, 3)
    assert len(whole) == len(parts) and all(np.array_equal(a.ids, b.ids) for a, b in zip(whole, parts, strict=True))


def test_case_shapes_are_those_of_words(lines, tiny_folder):
    bert, _ = weights.load(tiny_folder)
    shaped = read_tokenizer(tiny_folder, bert)
    shaped.case_shapes = True
    row, *_ = encode_all(task(), lines, shaped, 40, 3)
    shown = [(shaped.backend.id_to_token(i), int(t)) for i, t in zip(row.ids, row.types, strict=True)]
    assert shown[1:4] == [("ada", 2), ("met", 0), ("bruno", 2)] and ("acme", 4) in shown


def test_what_is_spilt_is_the_same(lines, tokenizer):
    parts = list(task().encode_many(lines, tokenizer, 9, 3))
    kept, spilt = concatenate(parts), spill(parts)
    assert isinstance(spilt.ids, np.memmap) and not isinstance(kept.ids, np.memmap)
    for a, b in zip(kept, spilt, strict=True):
        assert all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("example", "ids", "types", "picks"))
    assert len(spill([])) == 0 and np.array_equal(spilt.lengths, kept.lengths)


# ----------------------------------------------------------------------------------------------------- hiding


def draws(seed: int = 3) -> np.random.Generator:
    return row_generator(seed, 5, 7)


def test_hiding_is_a_function_of_its_arguments_HIDE_1():
    ids, words, free = np.arange(10, 60), np.arange(50), np.ones(50, bool)
    first, second = (hide_pieces(ids, words, free, 0.15, 4, np.arange(99), draws()) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    changed, picks = first
    assert len(picks) == 8 and np.array_equal(np.delete(changed, picks), np.delete(ids, picks))
    assert not np.array_equal(hide_pieces(ids, words, free, 0.15, 4, np.arange(99), draws(4))[1], picks)


def test_eight_of_ten_are_masked_one_is_any_piece_one_stays_HIDE_1():
    """100,000 draws: the three shares within four standard deviations; any piece is as likely as another."""
    n = 100_000
    ids, free = np.full(n, 7), np.ones(n, bool)
    changed, picks = hide_pieces(ids, np.arange(n), free, 0.999999, 4, np.arange(50), draws())
    assert len(picks) == n
    masked, stays = (changed == 4).mean(), (changed == 7).mean()
    assert abs(masked - (0.8 + 0.1 / 50)) < 4 * math.sqrt(0.16 / n)
    assert abs(stays - (0.1 + 0.1 / 50)) < 4 * math.sqrt(0.09 / n)
    others = np.bincount(changed, minlength=50)[[i for i in range(50) if i not in (4, 7)]]
    assert others.min() > 200 - 4 * math.sqrt(200) and others.max() < 200 + 4.5 * math.sqrt(200)


def test_fate_by_hand_HIDE_1():
    """Six pieces in the order in which they stand; their numbers, and those of all others, are large."""
    class Drawn:
        def random(self, n: int) -> np.ndarray:
            return np.array([0.0, 0.79, 0.8, 0.89, 0.9, 0.99]) if n == 6 else np.zeros(n)

        def integers(self, low: int, high: int, n: int) -> np.ndarray:
            assert (low, high) == (0, 30000)
            return 20000 + np.arange(n)

    ids = 10000 + np.arange(6)
    changed, picks = hide_pieces(ids, np.arange(6), np.ones(6, bool), 0.99, 25000, np.arange(30000), Drawn())
    assert picks.tolist() == [0, 1, 2, 3, 4, 5] and changed.tolist() == [25000, 25000, 20002, 20003, 10004, 10005]


def test_every_piece_is_hidden_as_often_as_another():
    counts = np.zeros(20)
    for i in range(4000):
        _, picks = hide_pieces(np.arange(20), np.arange(20), np.ones(20, bool), 0.15, 4, np.arange(99),
                               row_generator(0, 1, i))
        counts[picks] += 1
    assert counts.sum() == 4000 * 3 and abs(counts - 600).max() < 4.5 * math.sqrt(600 * 0.85)


def test_whole_words_are_hidden_whole():
    """Words of 1, 4, 2 and 3 pieces; three of ten pieces are wanted: the word of four only if it comes first."""
    words, free = np.repeat([0, 1, 2, 3], [1, 4, 2, 3]), np.ones(10, bool)
    seen = set()
    for i in range(200):
        _, picks = hide_pieces(np.arange(10), words, free, 0.3, 4, np.arange(99), row_generator(0, 1, i))
        hidden = {w for w in range(4) if set(np.flatnonzero(words == w)) <= set(picks)}
        assert set(np.flatnonzero(np.isin(words, list(hidden)))) == set(picks.tolist()) and 1 <= len(picks) <= 4
        seen.add(frozenset(hidden))
    assert seen == {frozenset(x) for x in ({0}, {1}, {2}, {3}, {0, 2})}


def test_special_pieces_are_never_hidden_and_letter_case_not_told(lines, tiny_folder):
    bert, _ = weights.load(tiny_folder)
    shaped = read_tokenizer(tiny_folder, bert)
    shaped.case_shapes = True
    t = task(hide=0.9)
    rows = encode_all(t, lines, shaped, 14, 3)
    for whole in (False, True):
        t = task(hide=0.9, whole_words=whole)
        t.tokenizer = shaped
        for old, new in zip(rows, t.rows(list(rows), lambda i: row_generator(1, 1, i)), strict=True):
            assert not np.isin(old.ids[new.picks], [shaped.start, shaped.end]).any()
            assert np.array_equal(new.labels, old.ids[new.picks]) and len(new.picks) > 3
            changed = new.ids != old.ids
            assert (new.types[changed] == 0).all() and np.array_equal(new.types[~changed], old.types[~changed])


def test_a_row_of_nothing_to_hide():
    ids, picks = hide_pieces(np.array([2, 3]), np.arange(2), np.zeros(2, bool), 0.15, 4, np.arange(9), draws())
    assert ids.tolist() == [2, 3] and len(picks) == 0


def test_each_epoch_hides_others_and_evaluation_the_same(lines, tokenizer):
    t = task()
    rows = list(encode_all(t, lines, tokenizer, 40, 3))
    picks = [t.rows(rows, lambda i, e=epoch: row_generator(0, e, i))[0].picks.tolist() for epoch in (1, 2, 1)]
    assert picks[0] == picks[2] != picks[1]
    seen: list[list[int]] = []

    def score(rows):
        seen.append([p for row in rows for p in (*row.ids, -1, *row.picks)])
        return [np.zeros((len(row.picks), tokenizer.size), np.float32) for row in rows]

    for _ in range(2):
        t.infer(score, lines, rows)
    assert len(seen) == 2 and seen[0] == seen[1]


def test_a_file_of_one_line_is_cut_into_words_a_part_at_a_time(tokenizer, tmp_path, monkeypatch):
    text = " ".join(TEXT.split() * 5)
    (tmp_path / "train.txt").write_text(text)
    one = task().read(tmp_path)["train"]
    assert list(portions("")) == [""] and list(portions(text)) == [text]
    whole = [f.ids.tolist() for f in encode_all(task(), one, tokenizer, 14, 3)]
    monkeypatch.setattr("minibert.tasks.mlm.LONG", 30)
    monkeypatch.setattr("minibert.tasks.mlm.BLOCK", 11)
    parts = list(portions(text))
    assert len(parts) > 9 and " ".join(parts) == text and max(map(len, parts)) < 40
    assert len(list(stream(one, tokenizer))) > 5
    assert [f.ids.tolist() for f in encode_all(task(), one, tokenizer, 14, 3)] == whole


# ------------------------------------------------------------------------------------------------------- the head


def test_the_tied_decoder_gives_the_word_vectors_two_gradients_TIE_1_TIE_2(tiny_config, lines, tokenizer):
    """By hand, by autograd, and as the sum of what the lookup and the decoder would get in two separate tables."""
    t = task(hide=0.4)
    t.tokenizer = tokenizer
    rows = t.rows(list(encode_all(t, lines, tokenizer, 14, 3)), lambda i: row_generator(0, 1, i))
    bert = weights.random_bert(tiny_config, seed=3, pooler=False)
    head = WordHead(tiny_config)
    torch.nn.init.normal_(head.cls["predictions"].bias, std=0.3, generator=torch.Generator().manual_seed(1))
    model = Model(bert, head).double()
    batch = collate(rows)
    sums, gradients = byhand.loss_and_gradients(model, batch, task=t)
    t.loss(model(batch), batch)["pieces"].backward()
    for name, p in model.named_parameters():
        assert torch.allclose(gradients[name], p.grad, rtol=0, atol=1e-10), name
    both = bert.embeddings.word.weight.grad.clone()
    table = bert.embeddings.word.weight.detach().clone().requires_grad_(True)

    class Apart(torch.nn.Module):
        word = torch.nn.Module()

    Apart.word.weight = table
    model.zero_grad()
    head.attach(SimpleNamespace(embeddings=Apart))
    t.loss(model(batch), batch)["pieces"].backward()
    lookup = bert.embeddings.word.weight.grad
    assert torch.allclose(lookup + table.grad, both, rtol=0, atol=1e-12)
    assert float(lookup.norm()) > 1e-3 and float(table.grad.norm()) > 1e-3


def test_a_decoder_of_its_own_is_learnt_and_kept(tiny_config, lines, tokenizer, tmp_path):
    """config.json unties it: its gradient is its own, in every engine, and the folder opens as it was saved."""
    t, config = task(hide=0.4), dataclasses.replace(tiny_config, tie_word_embeddings=False)
    t.tokenizer = tokenizer
    model = Model(weights.random_bert(config, seed=3, pooler=False), WordHead(config)).double()
    batch = collate(t.rows(list(encode_all(t, lines, tokenizer, 14, 3)), lambda i: row_generator(0, 1, i)))
    _, gradients = byhand.loss_and_gradients(model, batch, task=t)
    Fast(model, "fp32")(t, batch, None, {"pieces": 1.0})
    fast = {name: p.grad.to_dense() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with torch.enable_grad():
        t.loss(model(batch), batch)["pieces"].backward()
    for name, p in model.named_parameters():
        assert torch.allclose(gradients[name], p.grad, rtol=0, atol=1e-10), name
        assert torch.allclose(fast[name], p.grad, rtol=0, atol=1e-10), name
    assert float(model.head.cls["predictions"].decoder.weight.grad.norm()) > 1e-3
    unread = sorted(set(range(config.vocab_size)) - set(batch.ids.tolist()))
    assert len(unread) > 5 and not model.bert.embeddings.word.weight.grad[unread].any()

    weights.save(tmp_path, model.bert, model.head)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is False
    again = WordHead(weights.read_config(tmp_path))
    bert, report = weights.load(tmp_path, again)
    assert not report.ignored and "cls.predictions.decoder.weight" in report.loaded
    with torch.no_grad():
        assert torch.allclose(Model(bert, again).double()(batch), model(batch), rtol=0, atol=1e-5)


def test_a_uniform_guess_has_the_perplexity_of_the_vocabulary():
    f = task().rows([], None)
    assert f == []
    loss = 7 * math.log(95)
    scores = task().score([Hits(loss, 1, 7, frozenset({3}), None)], ["x"])
    assert scores["perplexity"] == pytest.approx(95) and scores["accuracy"] == pytest.approx(1 / 7)
    assert "perplexity" in task().report(scores)


def test_hits_are_those_of_the_scores(tokenizer):
    from minibert.core.batch import Feature
    z = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]], np.float32))
    f = Feature(0, np.zeros(4, np.int64), np.zeros(4, np.int64), np.array([1, 2]), np.array([1, 2]))
    found = hits(f, z)
    assert found.loss == pytest.approx(-math.log(0.25) - math.log(0.7), rel=1e-6)
    assert (found.right, found.hidden, found.guesses, found.answer) == (1, 2, {0, 2}, None)


# -------------------------------------------------------------------------------------------------- run and predict


@pytest.fixture(scope="module")
def run(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "d").mkdir()
    for split in ("train", "dev", "test"):
        (folder / "d" / f"{split}.txt").write_text(TEXT * 6)
    return train.train(["--task", "mlm", "--weights", str(tiny_folder), "--data", str(folder / "d"), "--output",
                        str(folder / "r"), "--max-pieces", "20", "--epochs", "2", "--precision", "fp32", "--cache",
                        "off"])


def test_words_and_masks(tokenizer):
    text = "Ada's [MASK], [MASK][MASK]."
    words = [text[a:b] for a, b in words_and_masks(text, tokenizer)]
    assert words == ["Ada", "'s", "[MASK]", ",", "[MASK]", "[MASK]", "."]
    assert words_and_masks("[MASK]", tokenizer) == [(0, 6)]


def test_predict_names_five_pieces_for_each_mask(run, capsys):
    text = "Ada met [MASK] in " + "the old rain " * 12 + "[MASK]."
    assert main(["predict", str(run), "--json", text]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [text[m["start"]:m["end"]] for m in found["masks"]] == ["[MASK]"] * 2
    for mask in found["masks"]:
        ps = [p["probability"] for p in mask["pieces"]]
        assert len(ps) == 5 and ps == sorted(ps, reverse=True) and sum(ps) < 1
    model = minibert.load(run)
    ids, mask, types = model.features(["Ada met [MASK] ."])
    assert ids.tolist() == [[2, *(model.tokenizer.backend.token_to_id(p) for p in ("ada", "met", "[MASK]", ".")), 3]]
    with torch.no_grad():
        hidden, _ = model.bert.encode(ids, mask, types)
        best = model.head.words(hidden[0, 3:4]).softmax(-1).topk(5)
    said, = model.predict(["Ada met [MASK] ."])
    assert [p["piece"] for p in said["masks"][0]["pieces"]] == [model.tokenizer.backend.id_to_token(i)
                                                               for i in best.indices[0].tolist()]
    assert main(["predict", str(run), "Ada"]) == 2 and "expected [MASK]" in capsys.readouterr().err


def test_the_folder_has_the_published_names(run):
    from safetensors import safe_open
    with safe_open(run / "model.safetensors", framework="pt") as f:
        names = {n for n in f.keys() if n.startswith("cls.")}  # noqa: SIM118
    assert names == {"cls.predictions.bias", "cls.predictions.transform.dense.weight",
                     "cls.predictions.transform.dense.bias", "cls.predictions.transform.LayerNorm.weight",
                     "cls.predictions.transform.LayerNorm.bias"}
    assert json.loads((run / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]


def test_a_trained_head_is_taken_over_and_others_start_new(run, tiny_folder):
    for folder, new in ((run, False), (tiny_folder, True)):
        settings, options, _ = settings_of(["--task", "mlm", "--weights", str(folder), "--max-pieces", "20"])
        assert ("newly initialised" in str(start_model(folder, MLM(options), settings)[2])) == new


# ---------------------------------------------------------------------------------------------------- from scratch


def test_a_vocabulary_is_learnt_from_text(tmp_path):
    (tmp_path / "t.txt").write_text("lower lowest low newer newest new wide wider widest\n" * 5)
    tokenizer = learn_vocabulary(tmp_path / "t.txt", 60)
    pieces = tokenizer.backend.get_vocab()
    assert [tokenizer.backend.id_to_token(i) for i in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.size <= 60 and {"low", "new", "wide", "newest"} <= pieces.keys()      # each five times there
    spelt, = tokenizer.pieces([["widest", "lowdest", "xyz"]])
    assert spelt.words.count(0) == 1 and spelt.words.count(1) > 1 and spelt.ids[-1] == tokenizer.unknown
    assert tokenizer.uncased and not learn_vocabulary(tmp_path / "t.txt", 60, cased=True).uncased
    with refused("t.txt", "its letters alone"):
        learn_vocabulary(tmp_path / "t.txt", 9)
    (tmp_path / "e.txt").write_text("\n")
    with refused("e.txt", "no text"):
        learn_vocabulary(tmp_path / "e.txt", 60)


def test_a_new_checkpoint_trains(tmp_path, capsys):
    (tmp_path / "d").mkdir()
    for split in ("train", "dev"):
        (tmp_path / "d" / f"{split}.txt").write_text(TEXT * 20)
    sizes = ["--layers", "2", "--hidden", "30", "--heads", "5", "--feedforward", "44", "--positions", "24"]
    command = ["new", str(tmp_path / "w"), "--text", str(tmp_path / "d" / "train.txt"), "--vocabulary", "70", *sizes]
    assert main(command) == 0 and main(command) == 2
    assert "not empty" in capsys.readouterr().err
    output = train.train(["--task", "mlm", "--weights", str(tmp_path / "w"), "--data", str(tmp_path / "d"), "--output",
                          str(tmp_path / "r"), "--max-pieces", "24", "--epochs", "30", "--learning-rate", "5e-3",
                          "--precision", "fp32", "--cache", "off", "--batch-size", "8"])
    scores = json.loads((output / "metrics.json").read_text())
    assert scores["dev"]["perplexity"] < 0.6 * scores["before"]["dev"]["perplexity"]


@pytest.mark.parametrize("more, said", [(["--heads", "7"], "does not divide"), (["--layers", "0"], "--layers is 0"),
                                        (["--seed", "-1"], "--seed")])
def test_sizes_that_cannot_be(tmp_path, capsys, more, said):
    (tmp_path / "t.txt").write_text(TEXT)
    assert main(["new", str(tmp_path / "w"), "--text", str(tmp_path / "t.txt"), *more]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "w").exists()
