"""tasks/seq2seq.py, generate.py, BLEU and ROUGE: rows, the mask, writing with and without a cache, beams."""
import csv
import json
import math

import numpy as np
import pytest
import torch
from refusing import refused

import minibert
import train
from minibert.__main__ import main
from minibert.checkpoints import weights
from minibert.core.batch import Feature, collate
from minibert.core.heads import WordHead
from minibert.core.model import Model
from minibert.data.features import pack
from minibert.scores import texts as textscores
from minibert.tasks.generate import Beams, Writer, extend, write
from minibert.tasks.seq2seq import Dialogue, Example, Row, Translate, Written, source_row

PAIRS = [("ada met bruno", "bruno left oslo today"), ("the rain left lima", "today it rained"),
         ("acme bought nordia", "ok"), ("who works at globex", "clara stone works at the old bank in cairo"),
         ("in oslo", "the old bank")]


def task(**options) -> Translate:
    return Translate(Translate.Options(**options))


def features(tokenizer, pairs=PAIRS, max_pieces=30, **options) -> tuple[Translate, list[Feature]]:
    t = task(**options)
    return t, [t.encode(i, Example(*pair, ""), tokenizer, max_pieces, 6)[0] for i, pair in enumerate(pairs)]


def spelt(tokenizer, ids) -> list[str]:
    return [tokenizer.backend.id_to_token(int(i)) for i in ids]


# ------------------------------------------------------------------------------------------------ reading and rows


@pytest.mark.parametrize("row", ['{"source": "a", "target": 5}', '{"source": " ", "target": "a"}'])
def test_rows_that_are_none(tmp_path, row):
    (tmp_path / "dev.jsonl").write_text(row + "\n")
    with refused(f"{tmp_path}/dev.jsonl:1", "expected a source and its target"):
        task().read(tmp_path)


def test_options_that_cannot_be():
    for options, said in (({"columns": "a"}, "--columns"), ({"longest": 0}, "--longest"), ({"beams": 0}, "--beams"),
                          ({"length_penalty": math.nan}, "--length-penalty")):
        with refused(said):
            task(**options)


def test_each_piece_of_the_target_is_said_by_the_one_before(tokenizer):
    t, (row, *_) = features(tokenizer)
    assert spelt(tokenizer, row.ids) == ["[CLS]", "ada", "met", "bruno", "[SEP]", "bruno", "left", "oslo", "today",
                                         "[SEP]"]
    assert row.types.tolist() == [0] * 5 + [1] * 5
    said = dict(zip(spelt(tokenizer, row.ids[row.picks]), spelt(tokenizer, row.labels), strict=True))
    assert said == {"[SEP]": "bruno", "bruno": "left", "left": "oslo", "oslo": "today", "today": "[SEP]"}
    assert row.picks.tolist() == [4, 5, 6, 7, 8] and t.layout([row]).tolist() == [5]
    assert spelt(tokenizer, source_row(row).ids) == ["[CLS]", "ada", "met", "bruno", "[SEP]"]


def test_a_raw_source_has_no_target(tokenizer):
    t = task()
    row, = t.encode(3, t.example("ada met bruno"), tokenizer, 30, 6)
    assert spelt(tokenizer, row.ids)[-1] == "[SEP]" and row.labels.tolist() == [-1] and row.picks.tolist() == [4]
    assert row.about == Row(5, 13, 0, 0)   # of 30 pieces 13 for the target at most
    assert t.counts(collate([row], prefix=t.layout([row]))) == {"pieces": 0.0}


def test_texts_that_do_not_fit(tokenizer):
    t, (row,) = features(tokenizer, [("oslo " * 30, "lima " * 30)], 20)
    words = spelt(tokenizer, row.ids)
    assert len(words) == 20 and words.count("oslo") == 9 and words.count("lima") == 9
    assert row.about == Row(11, 8, 21, 22)
    assert spelt(tokenizer, row.labels) == ["lima"] * 9                        # it was cut off, so it does not end
    _, (row,) = features(tokenizer, [("oslo " * 30, "lima " * 3)], 20, longest=3)
    assert spelt(tokenizer, row.labels) == ["lima"] * 3 + ["[SEP]"] and spelt(tokenizer, row.ids).count("oslo") == 14


def test_of_a_dialogue_the_end_is_read(tokenizer):
    """The turn that wants a reply stands there; translations keep the beginning."""
    said = "ada met bruno | " + "oslo " * 9 + "| clara left lima"
    for kind, words in ((Dialogue, "oslo oslo oslo oslo oslo | clara left lima"),
                        (Translate, "ada met bruno | oslo oslo oslo oslo oslo")):
        t = kind(kind.Options())
        row, = t.encode(0, Example(said, "rain", ""), tokenizer, 20, 6)
        assert spelt(tokenizer, source_row(row).ids[1:-1]) == [{"|": "[UNK]"}.get(w, w) for w in words.split()]
        assert row.types.tolist()[:len(words.split()) + 2] == [0] * (len(words.split()) + 2)


def test_a_note_counts_what_was_not_read(tokenizer):
    pairs = [("oslo " * 12, "lima"), ("oslo " * 9, "lima " * 8), ("oslo " * 30, "lima " * 11)]
    t, rows = features(tokenizer, pairs, 20)
    t.note_rows("dev", pack(rows))
    assert t.notices == ["dev: of 2 of 3 sources not all was read, 21 pieces missing at most; --max-pieces and "
                         "--longest set the room", "dev: of 1 of 3 targets not all was read, 3 pieces missing at most; "
                         "--max-pieces and --longest set the room"]
    t, rows = features(tokenizer)
    t.note_rows("dev", pack(rows))
    assert t.notices == []


# ----------------------------------------------------------------------------------------- writing, and its cache


@pytest.fixture(scope="module")
def model(tiny_config) -> Model:
    bert = weights.random_bert(tiny_config, seed=7, pooler=False)
    head = WordHead(tiny_config)
    draw = torch.Generator().manual_seed(5)
    for p in head.parameters():
        torch.nn.init.normal_(p, std=0.7, generator=draw)
    with torch.no_grad():
        for p in bert.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=draw))
        bert.embeddings.word.weight.mul_(2)
    return Model(bert, head).double().eval()


def slow_scores(model, t, source: Feature, written: list[int]) -> torch.Tensor:
    """[V] for the next piece, from the whole row computed anew under training's mask."""
    ids = np.concatenate([source.ids, np.array(written, np.int64)])
    row = Feature(0, ids, np.concatenate([source.types, np.ones(len(written), np.int64)]), np.array([len(ids) - 1]),
                  np.array([-1]), Row(len(source.ids), 9, 0, 0))
    with torch.no_grad():
        return model(collate([row], prefix=t.layout([row])))[0]


def test_the_cache_changes_nothing(model, tokenizer):
    """Rows of different length, side by side, six steps of pieces drawn at random: 1e-6 of the uncached scores."""
    t, rows = features(tokenizer)
    sources = [source_row(f) for f in rows]
    writer, draw = Writer(model, sources, 6, 1), torch.Generator().manual_seed(2)
    scores, written = writer.first, [[] for _ in rows]
    for step in range(6):
        for row, source, so_far in zip(scores, sources, written, strict=True):
            wanted = slow_scores(model, t, source, so_far)
            assert float((row - wanted).abs().max()) <= 1e-6 * float(wanted.abs().max())   # scores come as float32
        if step == 3:                              # a row twice, one gone
            order = torch.tensor([4, 0, 2, 2, 1])
            writer.keep(order)
            sources, written = [sources[i] for i in order], [list(written[i]) for i in order]
        pieces = torch.randint(5, 95, (5,), generator=draw)
        written = [[*so_far, int(p)] for so_far, p in zip(written, pieces, strict=True)]
        scores = writer.step(pieces)


def slow_beams(model, t, source, limit, end, beams, penalty) -> list[int]:
    """Beam search as one would write it down: lists of beginnings, every score computed anew."""
    going, done = [(0.0, [])], []
    while True:
        ways = []
        for log, so_far in going:
            logs = slow_scores(model, t, source, so_far).float().log_softmax(-1)
            ways += [(log + float(x), [*so_far, i]) for i, x in enumerate(logs)]
        ways.sort(key=lambda way: -way[0])
        done += [(log / len(text) ** penalty, text[:-1]) for log, text in ways[:beams] if text[-1] == end]
        going = [way for way in ways if way[1][-1] != end][:beams]
        if len(done) >= beams:
            return max(done, key=lambda pair: pair[0])[1]
        if len(going[0][1]) >= limit:              # those that are not complete are worth what they are
            return max(done + [(log / limit ** penalty, text) for log, text in going], key=lambda pair: pair[0])[1]


@pytest.mark.parametrize("beams, penalty", [(1, 1.0), (3, 0.0), (3, 1.0), (5, 0.6)])
def test_beams_are_those_of_the_slow_search(model, tokenizer, beams, penalty):
    """An end that is likely enough to come at different lengths: the bias of [SEP] is raised."""
    t, rows = features(tokenizer)
    bias = model.head.cls["predictions"].bias
    kept = bias.detach().clone()
    with torch.no_grad():
        bias[tokenizer.end] += 4.0
    try:
        sources = [source_row(f) for f in rows]
        found = write(model, sources, [7, 3, 7, 5, 7], tokenizer.end, 1, beams, penalty)
        for source, limit, text in zip(sources, [7, 3, 7, 5, 7], found, strict=True):
            assert text == slow_beams(model, t, source, limit, tokenizer.end, beams, penalty)
        assert len({len(text) for text in found}) > 1 and all(len(text) <= 7 for text in found)
    finally:
        with torch.no_grad():
            bias.copy_(kept)


def test_an_early_end_does_not_win_over_better_texts_that_reach_the_limit():
    """Two beams, two pieces at most, by hand: the end at once has log p −2, going on −0.1 and −3, then −0.2 and −1."""
    text, end = Beams(2), 3
    ways = np.array([[-0.1, -2.0, -3.0]]), np.array([[7, end, 8]])
    assert extend([text], [0], *ways, end, 2, 1.0) == [(0, 7, 0), (0, 8, 0)]
    assert text.done == [(-2.0, [])] and text.open == [(-0.1, [7]), (-3.0, [8])]
    ways = np.array([[-0.2, -1.0, -4.0], [-0.1, -2.0, -9.0]]), np.array([[5, 6, end], [5, 6, end]])
    assert extend([text], [0, 0], *ways, end, 2, 1.0) == []
    assert max(text.done) == (pytest.approx(-0.15), [7, 5]) and text.done[2] == (pytest.approx(-0.55), [7, 6])


def test_greedy_takes_the_most_probable_piece(model, tokenizer):
    t, (row, *_) = features(tokenizer)
    found, = write(model, [source_row(row)], [6], tokenizer.end, 1)
    written = []
    while len(written) < 6 and (best := int(slow_scores(model, t, source_row(row), written).argmax())) != tokenizer.end:
        written.append(best)
    assert found == written


def test_a_text_does_not_depend_on_its_company(model, tokenizer):
    _, rows = features(tokenizer)
    together = write(model, [source_row(f) for f in rows], [9] * 5, tokenizer.end, 1, 2)
    assert together == [write(model, [source_row(f)], [9], tokenizer.end, 1, 2)[0] for f in rows]


# -------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("gold, said, wanted", [
    (["a b c d e"], ["a b c d e"], 100.0), (["a b c d e"], ["x y z v w"], 0.0), (["a b c"], ["a b c"], 0.0),
    ([], [], 0.0),
    (["a b c d e f"], ["a b c d"], 100 * math.exp(1 - 6 / 4)),                 # too short
    (["a b c d"], ["a b x c d"], 100 * (4 / 5 * 2 / 4 * 1 / (2 * 3) * 1 / (4 * 2)) ** 0.25)])   # no three, no four
def test_bleu_by_hand(gold, said, wanted):
    assert textscores.bleu(gold, said) == pytest.approx(wanted)


def test_rouge_by_hand():
    """Two texts: 3 of 4 words, one pair of three, in order three; nothing at all."""
    scores = textscores.rouge(["the cat sat down", "x"], ["The cat, down!", "y z"])
    assert scores["1"] == {"precision": pytest.approx(1 / 2), "recall": pytest.approx(3 / 8),
                           "f1": pytest.approx(2 * 3 / 7 / 2)}
    assert scores["2"]["f1"] == pytest.approx(2 * 1 / 5 / 2) and scores["L"]["recall"] == pytest.approx(3 / 8)
    assert textscores.rouge([], [])["1"]["f1"] == 0


@pytest.mark.parametrize("text, bleu, rouge", [
    ("नदी के किनारे एक पुराना घर है", "13a", "unicode"), ("У реки стоит старый дом", "13a", "unicode"),
    ("강가에 오래된 집이 있다", "13a", "unicode"), ("ذهب الولد إلى المدرسة اليوم", "13a", "unicode"),
    ("河边有一座老房子", "zh", "unicode"), ("川のそばに古い家がある", "char", "unicode"),
    ("มีบ้านเก่าอยู่ริมแม่น้ำ", "char", "unicode"), ("Où est l’église ? Ça", "13a", "latin"),
    ("E\u0301cole a\u0300 No\u0308el ici", "13a", "latin"), ("ﬁve 中 letters of thirty are none", "13a", "latin"),
    ("12 + 34 = 46 😀", "13a", "latin"), ("", "13a", "latin")])
def test_the_rule_for_words_is_the_texts_own_and_the_same_text_is_all_right(text, bleu, rouge):
    assert textscores.word_rules([text]) == {"bleu": bleu, "rouge": rouge}
    if text and text[0] != "1":
        assert textscores.rouge([text], [text])["L"]["f1"] == 1
        assert textscores.bleu([text], [text]) == pytest.approx(100)


def test_a_tenth_of_other_letters_is_few_and_one_more_is_not():
    """The whole set decides, not a text of it: 18 Latin letters and 2 others, then 3."""
    for others, rouge, bleu in (("дж", "latin", "13a"), ("джи", "unicode", "13a"), ("河边", "latin", "13a"),
                                ("河边房", "unicode", "zh"), ("そばに", "unicode", "char")):
        assert textscores.word_rules(["abc def ghi", "jkl mno pqr", others]) == {"bleu": bleu, "rouge": rouge}
    assert textscores.word_rules(["河边有一座老房の"])["bleu"] == "char"
    assert textscores.word_rules(["河边有一座老房子子の"])["bleu"] == "zh"


def test_rouge_of_a_script_without_blanks_by_hand():
    """Four Thai letters of which one carries a mark, against three: น้ำ is น with its mark, then the vowel."""
    scores = textscores.rouge(["กินดี"], ["กิน"])             # กิ น ดี against กิ น
    assert scores["1"]["recall"] == pytest.approx(2 / 3) and scores["1"]["precision"] == 1
    assert textscores.rouge(["नमस्ते दुनिया"], ["नमस्ते"])["1"]["recall"] == 1 / 2


def test_lengths_must_agree():
    for score in (textscores.bleu, textscores.rouge, textscores.answer_scores):
        with refused("2 gold", "1 predicted"):
            score(["a", "b"], ["a"])


def test_scores_of_the_task():
    examples = [Example("s", "Today, it rained.", ""), Example("t", "Ok", "")]
    said = [Written("today , it rained .", 3.0, 4), Written("no", 2.0, 1)]
    scores = task().score(said, examples)
    assert scores["loss_a_piece"] == 1.0 and scores["perplexity"] == pytest.approx(math.e) and scores["exact"] == 0.5
    assert scores["bleu"] > 50 and "BLEU" in task().report(scores)
    assert scores["words_by"] == {"bleu_13a": 2, "rouge_latin": 2}
    assert "words by     bleu 13a, rouge latin" in task().report(scores)
    hindi = [Example("s", "नदी के किनारे", "")]
    assert task().score([Written("नदी", 1.0, 2)], hindi)["words_by"] == {"bleu_13a": 1, "rouge_unicode": 1}
    assert task().collapsed([said[0]] * 2, examples) == said[0].text and task().collapsed(said, examples) is None


# ------------------------------------------------------------------------------------------------------------ runs


def test_a_few_pairs_are_learnt_by_heart(tiny_folder, tmp_path, capsys):
    (tmp_path / "d").mkdir()
    with open(tmp_path / "d" / "train.csv", "w", encoding="utf-8", newline="") as f:
        csv.writer(f).writerows([("source", "target"), *PAIRS])
    output = train.train(["--task", "dialogue", "--weights", str(tiny_folder), "--data", str(tmp_path / "d"),
                          "--output", str(tmp_path / "r"), "--max-pieces", "30", "--epochs", "120", "--learning-rate",
                          "5e-3", "--precision", "fp32", "--cache", "off", "--dropout", "0", "--evaluate", "none"])
    capsys.readouterr()
    assert main(["evaluate", str(output), "--data", str(tmp_path / "d"), "--split", "train", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["train"]
    assert scores["exact"] == 1.0 and scores["loss_a_piece"] < 0.2
    model = minibert.load(output)
    assert [r["text"] for r in model.predict([s for s, _ in PAIRS])] == [t for _, t in PAIRS]
    assert main(["predict", str(output), PAIRS[0][0]]) == 0 and capsys.readouterr().out == "bruno left oslo today\n"
    assert main(["predict", str(output), "--longest", "2", "--beams", "3", PAIRS[0][0]]) == 0
    assert capsys.readouterr().out == "bruno left\n"
