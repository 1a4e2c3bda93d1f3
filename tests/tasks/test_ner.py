"""tasks/ner.py: reading CoNLL files, labels, windows, decoding against brute force, loss, offsets; no word left out."""
import itertools
import math
import random
import re
import string
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from refusing import refused
from updates import build_model

import train
from minibert.checkpoints.weights import random_bert, save
from minibert.core import ops
from minibert.core.batch import Feature, collate
from minibert.core.config import BertConfig
from minibert.core.model import Model, initialise
from minibert.data.rows import WordNumbers
from minibert.data.tokenizer import Tokenizer
from minibert.settings import TrainConfig
from minibert.tasks.conll import Example, read_conll
from minibert.tasks.ner import NER, best_tags, best_valid_path, continuations
from minibert.use.evaluate import predict_examples
from minibert.use.predict import load
from minibert.use.prepare import encode_all

LABELS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def task(context: str = "sentence", decoding: str = "valid", labels=LABELS) -> NER:
    return NER(NER.Options(context=context, decoding=decoding), labels)


def put(file: Path, text: str | bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return file


def rows(examples) -> list[list[tuple[str, str]]]:
    """Sentences of (word, tag)."""
    return [list(zip(w, t, strict=True)) for e in examples
            for w, t in zip(e.cut(e.words), e.cut(e.tags), strict=True)]


@pytest.fixture
def tokenizer(tiny_folder) -> Tokenizer:
    return Tokenizer.read(tiny_folder)


# ------------------------------------------------------------------------------------------------------- reading


MERKEL = [[("Angela", "B-PER"), ("Merkel", "I-PER"), ("left", "O"), ("Paris", "B-LOC")], [("It", "O"), ("rained", "O")]]
FORMS = {
    "spaces": "Angela B-PER\nMerkel I-PER\nleft O\nParis B-LOC\n\nIt O\nrained O\n",
    "tabs": "Angela\tB-PER\nMerkel\tI-PER\nleft\tO\nParis\tB-LOC\n\nIt\tO\nrained\tO\n",
    "four columns": "Angela NNP B-NP B-PER\nMerkel NNP I-NP I-PER\nleft VBD B-VP O\nParis NNP B-NP B-LOC\n\n"
                    "It PRP B-NP O\nrained VBD B-VP O\n",
    "four tabs": "Angela\tNNP\tB-NP\tB-PER\nMerkel\tNNP\t\tI-PER\nleft\tx\ty\tO\nParis\tx\ty\tB-LOC\n\n"
                 "It\tx\ty\tO\nrained\tx\ty\tO\n",
    "many spaces": "Angela   B-PER  \n Merkel I-PER\nleft    O\nParis B-LOC\n   \nIt O\t\nrained O\n",
    "windows": "Angela B-PER\r\nMerkel I-PER\r\nleft O\r\nParis B-LOC\r\n\r\nIt O\r\nrained O\r\n",
    "byte order mark": "\ufeffAngela B-PER\nMerkel I-PER\nleft O\nParis B-LOC\n\nIt O\nrained O\n",
    "no final newline": "Angela B-PER\nMerkel I-PER\nleft O\nParis B-LOC\n\nIt O\nrained O",
    "blank lines": "\n\n\nAngela B-PER\nMerkel I-PER\nleft O\nParis B-LOC\n\n\n\nIt O\nrained O\n\n\n",
    "document": "-DOCSTART- -X- -X- O\n\nAngela B-PER\nMerkel I-PER\nleft O\nParis B-LOC\n\nIt O\nrained O\n\n",
    "two documents": "-DOCSTART- O\nAngela B-PER\nMerkel I-PER\nleft O\nParis B-LOC\n-DOCSTART- O\n\nIt O\nrained O\n",
    "lone document lines": "-DOCSTART-\n-DOCSTART- O\n\nAngela B-PER\nMerkel I-PER\nleft O\nParis B-LOC\n\n"
                           "It O\nrained O\n\n-DOCSTART-\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_one_text_in_every_form(tmp_path, form):
    ner = task()
    found = ner.read(put(tmp_path / "train.txt", FORMS[form]).parent)
    assert list(found) == ["train"] and rows(found["train"]) == MERKEL
    assert ner.notices == []
    assert len(found["train"]) == 2                                          # a sentence is an example


SCHEMES = {
    "IOB2": ("B-PER I-PER B-PER O B-LOC I-LOC O B-LOC", None),
    "IOB1": ("I-PER I-PER B-PER O I-LOC I-LOC O I-LOC", "IOB1"),
    "BIOES": ("B-PER E-PER S-PER O B-LOC E-LOC O S-LOC", "BIOES"),
    "BILOU": ("B-PER L-PER U-PER O B-LOC L-LOC O U-LOC", "BIOES"),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_becomes_iob2_with_a_notice(tmp_path, scheme):
    tags, notice = SCHEMES[scheme]
    ner = task()
    put(tmp_path / "train.txt", "".join(f"w{i} {t}\n" for i, t in enumerate(tags.split())))
    found = ner.read(tmp_path)["train"][0]
    assert found.tags == SCHEMES["IOB2"][0].split()
    assert [notice in n and "IOB2" in n for n in ner.notices] == ([True] if notice else [])


def test_broken_iob2_is_counted_in_a_notice(tmp_path):
    ner = task()
    put(tmp_path / "train.txt", "a B-PER\nb I-LOC\nc I-LOC\nd O\ne I-PER\nf B-LOC\n")
    assert ner.read(tmp_path)["train"][0].tags == ["B-PER", "B-LOC", "I-LOC", "O", "B-PER", "B-LOC"]
    assert len(ner.notices) == 1 and ner.notices[0].startswith("2 ")


@pytest.mark.parametrize("name, split", [("train.txt", "train"), ("train.conll", "train"), ("dev.tsv", "dev"),
                                         ("valid.txt", "dev"), ("testa.iob", "dev"), ("test.bio", "test"),
                                         ("testb.txt", "test"), ("test.iob2", "test")])
def test_names_of_files(tmp_path, name, split):
    put(tmp_path / name, FORMS["spaces"])
    put(tmp_path / "notes.md", "not data")
    put(tmp_path / "training.txt", "not data either")
    assert list(task().read(tmp_path)) == [split]


def test_all_three_splits_in_order(tmp_path):
    for i, name in enumerate(("testb.txt", "valid.txt", "train.txt")):
        put(tmp_path / name, f"w{i} B-LOC\n")
    found = task().read(tmp_path)
    assert {k: v[0].words for k, v in found.items()} == {"train": ["w2"], "dev": ["w1"], "test": ["w0"]}
    assert list(found) == ["train", "dev", "test"]


@pytest.mark.parametrize("one, two, split", [("dev.txt", "valid.txt", "dev"), ("test.txt", "testb.txt", "test"),
                                             ("train.txt", "train.conll", "train"), ("dev.txt", "testa.tsv", "dev")])
def test_two_candidates_for_one_split_are_refused(tmp_path, one, two, split):
    put(tmp_path / one, FORMS["spaces"])
    put(tmp_path / two, FORMS["spaces"])
    with refused(tmp_path, one, two, split):
        task().read(tmp_path)


def test_a_single_file_is_the_test_split(tmp_path):
    assert list(task().read(put(tmp_path / "anything.text", FORMS["tabs"]))) == ["test"]


@pytest.mark.parametrize("text, line, parts", [
    ("Angela B-PER\nMerkel\nleft O\n", 2, ["Merkel", "one column"]),
    ("Angela\nMerkel\n", 1, ["Angela", "one column"]),                        # a file without tags
    ("Angela B-PER\n\nParis PER\n", 3, ["'PER'", "no tag"]),
    ("Angela B-PER\r\nParis X-PER\r\n", 2, ["'X-PER'"]),
    ("Angela B-PER\nParis B-\n", 2, ["'B-'"]),
    ("-DOCSTART- O\n\nAngela b-PER\n", 3, ["'b-PER'"]),
    ("\ufeffAngela B-PER\nleft 0\n", 2, ["'0'"]),
    ("Angela B-PER\n\tO\n", 2, ["'O'"]),
    ("Angela B-PER\nParis NNP\n", 2, ["'NNP'"]),
    ("Angela B-PER\n" + "x" * 500 + "\n", 2, ["xxx..."]),
])
def test_a_line_that_does_not_parse_is_named(tmp_path, text, line, parts):
    file = put(tmp_path / "dev.txt", text)
    put(tmp_path / "train.txt", FORMS["spaces"])
    with refused(f"{file}:{line}: ", *parts):
        task().read(tmp_path)


@pytest.mark.parametrize("raw, line, byte", [
    (b"Angela B-PER\nM\xfcller I-PER\n", 2, "0xfc"), (b"\xff\xfeA\0 \0O\0", 1, "0xff"),
    (b"Angela B-PER\n\nParis B-LOC\ncaf\xe9 O\n", 4, "0xe9"), (b"a O\nb O\nc \xc3", 3, "0xc3")])
def test_bytes_that_are_not_utf8(tmp_path, raw, line, byte):
    file = put(tmp_path / "train.txt", raw)
    with refused(f"{file}:{line}: ", byte, "UTF-8"):
        task().read(tmp_path)


@pytest.mark.parametrize("text", ["", "\n\n \n", "-DOCSTART- -X- O O\n\n", "\ufeff", "\r\n"])
def test_a_file_without_a_sentence(tmp_path, text):
    file = put(tmp_path / "train.txt", text)
    with refused(file, "no sentence"):
        task().read(tmp_path)


def test_missing_and_empty_folders(tmp_path):
    with refused(tmp_path / "none", "no such"):
        task().read(tmp_path / "none")
    with refused(tmp_path, "train"):
        task().read(tmp_path)
    (tmp_path / "train.txt").mkdir()                                         # a folder is no file
    with refused(tmp_path, "train"):
        task().read(tmp_path)


def test_odd_spaces_inside_a_word_split_neither_line_nor_word(tmp_path):
    words = ["a\u0085b", "a\u2028b", "a\u00a0b", "a\x0bb", "a\x0cb", "\u3000", "a\u2029", "\u00a0", "a\x1cb", "\u200b"]
    for separator in (" ", "\t"):
        put(tmp_path / "train.txt", "".join(f"{w}{separator}B-PER\n" for w in words) + "\nlast O\n")
        assert rows(task().read(tmp_path)["train"]) == [[(w, "B-PER") for w in words], [("last", "O")]]


def test_where_says_file_and_line(tmp_path):
    file = put(tmp_path / "train.txt", "\n\na O\nb B-PER\n\n-DOCSTART- O\n\nc O\n")
    assert [e.where for e in task().read(tmp_path)["train"]] == [f"{file}:3", f"{file}:8"]


def test_the_real_data_reads_without_a_notice():
    ner = task()
    found = ner.read(Path(__file__).resolve().parents[2] / "data" / "ner")
    ner.learn_labels(found)
    assert ner.notices == [] and list(found) == ["train", "dev", "test"]
    assert ner.labels == ["O"] + [p + t for t in ("LOC", "MISC", "ORG", "PER") for p in ("B-", "I-")]


# -------------------------------------------------------------------------------------------------------- labels


def test_labels_are_closed_under_b_and_i(tmp_path):
    put(tmp_path / "train.txt", "a B-PER\nb O\nc B-LOC\nd I-LOC\ne B-co-author\n")
    ner = task(labels=())
    found = ner.read(tmp_path)
    ner.learn_labels(found)
    assert ner.labels == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER", "B-co-author", "I-co-author"]
    assert ner.notices == []


def test_tags_that_train_never_saw_are_counted_and_never_a_crash(tmp_path, tokenizer):
    put(tmp_path / "train.txt", "ada B-PER\nin O\noslo B-LOC\n")
    put(tmp_path / "dev.txt", "acme B-ORG\nmotors I-ORG\n\nada B-PER\nglobex B-ORG\n")
    put(tmp_path / "test.txt", "old B-EVENT\nin O\n")
    ner = task(labels=())
    found = ner.read(tmp_path)
    ner.learn_labels(found)
    assert "I-PER" in ner.labels and not any("ORG" in label for label in ner.labels)
    dev, test = ner.notices
    assert dev.startswith("dev") and "B-ORG (2 words)" in dev and "I-ORG (1 words)" in dev
    assert test.startswith("test") and "B-EVENT" in test
    features = encode_all(ner, found["dev"], tokenizer, 16, 5)
    assert [f.labels.tolist() for f in features] == [[-1, -1], [ner.labels.index("B-PER"), -1]]
    assert ner.counts(collate(features)) == {"words": 1.0}
    guess = [["O", "B-PER"], ["B-PER", "O"]]
    scores = ner.score(guess, found["dev"])
    assert scores["entity"]["recall"] == 1 / 3 and scores["entity"]["precision"] == 1 / 2 and scores["words"] == 4
    assert scores["entity"]["types"]["ORG"]["support"] == 2                  # they count as missed
    assert "ORG" in ner.report(scores)


def test_a_training_file_without_entities(tmp_path):
    put(tmp_path / "train.txt", "it O\nrained O\n")
    ner = task(labels=())
    with refused(f"{tmp_path / 'train.txt'}:1", "O"):
        ner.learn_labels(ner.read(tmp_path))


# ------------------------------------------------------------------------------------------------ words and windows


def random_example(draw: random.Random, count: int) -> Example:
    """Words of one to many pieces, words that give none, words longer than a window."""
    words = []
    for _ in range(count):
        kind = draw.random()
        if kind < 0.1:
            words.append(draw.choice(["\u200b", "\x01", "\ufffd", "😀", "北京", "a\u00a0b", "\u0301"]))
        elif kind < 0.15:
            words.append("".join(draw.choices(string.ascii_lowercase, k=draw.randint(20, 60))))
        else:
            words.append("".join(draw.choices(string.ascii_lowercase + "A-", k=draw.randint(1, 5))))
    return Example(words, draw.choices(LABELS, k=count), [0], "here:1")


def test_label_on_the_first_piece_only(tokenizer):
    tags = ["B-PER", "I-PER", "O", "O", "B-LOC"]
    example = Example(["ada", "stonexy", "left", "\u200b", "oslo"], tags, [0], "here:1")
    feature, = task().encode(7, example, tokenizer, 32, 9)
    vocabulary = {i: p for p, i in tokenizer.backend.get_vocab().items()}
    pieces = [vocabulary[i] for i in feature.ids]
    assert pieces == ["[CLS]", "ada", "stone", "##x", "##y", "left", "[UNK]", "oslo", "[SEP]"]
    assert feature.picks.tolist() == [1, 2, 5, 6, 7] and feature.about.words.tolist() == [0, 1, 2, 3, 4]
    assert feature.labels.tolist() == [3, 4, 0, 0, 1] and feature.example == 7
    assert feature.types.tolist() == [0] * 9


@pytest.mark.parametrize("max_pieces, overlap", [(8, 0), (8, 3), (16, 5), (23, 10), (64, 31)])
def test_every_word_is_picked_exactly_once_over_all_windows(tokenizer, max_pieces, overlap):
    draw = random.Random(21)
    several = 0
    for _ in range(40):
        example = random_example(draw, draw.randint(1, 60))
        features = task().encode(0, example, tokenizer, max_pieces, overlap)
        owned = np.concatenate([f.about.words for f in features])
        assert sorted(owned.tolist()) == list(range(len(example.words)))
        first = first_pieces(tokenizer, example.words)
        for f in features:
            assert len(f.ids) <= max_pieces and f.ids[0] == tokenizer.start and f.ids[-1] == tokenizer.end
            assert f.ids[f.picks].tolist() == [first[w] for w in f.about.words]  # the pick is that word's first piece
            assert f.labels.tolist() == [LABELS.index(example.tags[w]) for w in f.about.words]
            assert all(0 < p < len(f.ids) - 1 for p in f.picks)
        several += len(features) > 3
    assert several > 5 or max_pieces == 64


def first_pieces(tokenizer, words) -> list[int]:
    """The id of each word's first piece, one word at a time."""
    return [tokenizer.pieces([[w]])[0].ids[0] for w in words]


@pytest.mark.parametrize("overlap, ends", [
    (6, [9, 15, 20]),                              # windows of words 0-11, 6-17, 12-19: word 8 has 3 after, 2 before
    (5, [10, 17, 20])])                            # windows of words 0-11, 7-18, 14-19: word 9 has 2 and 2: the first
def test_a_word_in_an_overlap_belongs_to_the_window_with_most_context(tokenizer, overlap, ends):
    example = Example(list("abcdefghijklmnopqrst"), ["O"] * 20, [0], "here:1")              # one piece each
    owned = [f.about.words.tolist() for f in task().encode(0, example, tokenizer, 14, overlap)]  # 12 pieces a window
    assert owned == [list(range(i, j)) for i, j in zip([0, *ends], ends, strict=False)]


def test_raw_text_has_no_labels_and_nothing_has_no_feature(tokenizer):
    ner = task()
    example = ner.example("Ada left Oslo.")
    assert example.words == ["Ada", "left", "Oslo", "."] and example.tags == []
    assert ner.encode(0, example, tokenizer, 16, 4)[0].labels.tolist() == [-1] * 4
    empty = ner.example("  ")
    assert ner.encode(1, empty, tokenizer, 16, 4) == []
    assert ner.decode([empty], [], []) == [[]]
    assert ner.result(empty, []) == {"text": "  ", "entities": []}


DOCUMENTS = ("-DOCSTART- O\n\nada B-PER\nleft O\n\nstone I-PER\nmet O\noslo B-LOC\n\n"
             "-DOCSTART- O\n\nlima B-LOC\n\ncairo B-LOC\nnew I-LOC\n")


def test_document_context_groups_sentences_and_sentence_context_does_not(tmp_path, tokenizer):
    put(tmp_path / "train.txt", DOCUMENTS)
    whole, single = task("document"), task("sentence")
    documents, sentences = whole.read(tmp_path)["train"], single.read(tmp_path)["train"]
    assert [e.words for e in documents] == [["ada", "left", "stone", "met", "oslo"], ["lima", "cairo", "new"]]
    assert [e.sentences for e in documents] == [[0, 2], [0, 1]]
    assert rows(documents) == rows(sentences) and len(sentences) == 4
    rows_of = [len(f.ids) for f in encode_all(whole, documents, tokenizer, 32, 8)]
    assert rows_of == [5 + 2, 3 + 2]                                          # one row a document
    assert not [n for n in whole.notices if "DOCSTART" in n]
    with_notice = task("document")
    put(tmp_path / "train.txt", FORMS["spaces"])
    assert len(with_notice.read(tmp_path)["train"]) == 2 and any("DOCSTART" in n for n in with_notice.notices)


def test_a_file_of_a_single_document_is_a_document(tmp_path):
    put(tmp_path / "train.txt", DOCUMENTS)
    put(tmp_path / "test.txt", "-DOCSTART- O\n\nada B-PER\nleft O\n\nstone B-PER\n")
    ner = task("document")
    found = ner.read(tmp_path)
    assert [len(e.sentences) for e in found["train"]] == [2, 2] and [len(e.sentences) for e in found["test"]] == [2]
    assert not [n for n in ner.notices if "DOCSTART" in n]


def test_sentences_of_a_document_are_decoded_and_scored_apart(tmp_path):
    put(tmp_path / "test.txt", DOCUMENTS)
    ner = task("document")
    examples = ner.read(tmp_path)["test"]
    scores = []                                                              # I-PER is best at every word
    for e in examples:
        table = np.full((len(e.words), 5), -9.0, np.float32)
        table[:, 4], table[:, 3] = 5.0, 4.0
        scores.append(table)
    features = [type("F", (), {"example": i, "about": WordNumbers(np.arange(len(e.words)))})
                for i, e in enumerate(examples)]
    guess = ner.decode(examples, features, scores)
    assert guess == [["B-PER", "I-PER", "B-PER", "I-PER", "I-PER"], ["B-PER", "B-PER", "I-PER"]]
    # no entity goes over the end of a sentence: "ada | stone" are two persons, "lima | cairo new" two places
    result = ner.score([e.tags for e in examples], examples)
    assert result["entity"]["types"]["PER"]["support"] == 2 and result["entity"]["types"]["LOC"]["support"] == 3
    assert result["entity"]["f1"] == 1.0


def test_windows_of_a_document_give_every_word_its_own_scores(tmp_path, tokenizer):
    """Scores that point at each word's gold label come back as the gold tags, whatever the windows."""
    draw = random.Random(22)
    ner = task("document", "argmax")
    examples = []
    for _ in range(7):
        whole = random_example(draw, draw.randint(11, 70))
        cuts = sorted({0, *draw.sample(range(1, len(whole.words)), 4)})
        examples.append(Example(whole.words, whole.tags, cuts, "here:1"))
    features = encode_all(ner, examples, tokenizer, 16, 5)
    scores = [np.eye(5, dtype=np.float32)[f.labels] for f in features]
    order = draw.sample(range(len(features)), len(features))
    guess = ner.decode(examples, [features[i] for i in order], [scores[i] for i in order])
    assert guess == [e.tags for e in examples]


# ---------------------------------------------------------------------------------- no word is left out of the score


@pytest.mark.parametrize("context", ["sentence", "document"])
@pytest.mark.parametrize("decoding", ["valid", "argmax"])
def test_as_many_words_are_scored_as_there_are_lines(tmp_path, tokenizer, tiny_config, context, decoding):
    draw = random.Random(23)
    text = ""
    for i in range(30):
        e = random_example(draw, draw.choice((1, 2, 5, 17, 90)))
        text += "-DOCSTART- -X- O O\n\n" if i % 7 == 0 else ""
        text += "".join(f"{w}\tNN\t{t}\n" for w, t in zip(e.words, e.tags, strict=True)) + "\n"
    file = put(tmp_path / "test.txt", text)
    lines = [x for x in file.read_bytes().split(b"\n") if b"\t" in x]        # counted without minibert
    ner = task(context, decoding)
    examples = ner.read(tmp_path)["test"]
    head = ner.head(tiny_config)
    initialise(head, 0.5, seed=1)
    model = Model(random_bert(tiny_config, seed=2), head)
    features = encode_all(ner, examples, tokenizer, 24, 7)
    guess = predict_examples(model, ner, examples, features)
    scores = ner.score(guess, examples)
    assert scores["words"] == len(lines) > 400
    assert sum(r["support"] for r in scores["tags"]["per_tag"].values()) == len(lines)
    assert len(features) > len(examples)                                     # there were windows
    assert len({t for g in guess for t in g}) > 3                            # and the guesses are no constant
    assert sum(len(f.picks) for f in features) == len(lines)


# ------------------------------------------------------------------------------------------------------ decoding


def valid(sequence: tuple[int, ...]) -> bool:
    """Every I- stands after B- or I- of its own type."""
    before = "O"
    for k in sequence:
        label = LABELS[k]
        if label[0] == "I" and before[2:] != label[2:]:
            return False
        before = label
    return True


SEQUENCES = {n: np.array([s for s in itertools.product(range(5), repeat=n) if valid(s)]) for n in (1, 4, 5, 6)}


@pytest.mark.parametrize("words", SEQUENCES)
@pytest.mark.parametrize("spread", [0.3, 2.0, 40.0])
def test_best_valid_path_is_the_best_of_all_valid_sequences(words, spread):
    random_ = np.random.default_rng(24)
    sequences, differs = SEQUENCES[words], 0
    for _ in range(150):
        scores = (spread * random_.standard_normal((words, 5))).astype(np.float32)
        logs = np.array([[x - math.log(sum(math.exp(y - max(row)) for y in row)) - max(row) for x in row]
                         for row in scores.astype(float).tolist()])
        totals = logs[np.arange(words), sequences].sum(1)
        best = sequences[totals.argmax()].tolist()
        found = best_valid_path(scores, LABELS)
        assert valid(found)
        assert logs[np.arange(words), found].sum() == pytest.approx(totals.max(), rel=1e-5)
        if np.sort(totals)[-1] - np.sort(totals)[-2:][0] > 1e-4 * spread:
            assert found == best
        alone = best_tags(scores, LABELS)
        assert alone == scores.argmax(1).tolist()
        assert found == alone or not valid(alone)
        differs += found != alone
    assert differs > 20                                                      # the constraint mattered


def test_what_may_follow_what_is_found_out_once_a_model():
    """It takes K steps in Python: sentences must not wait for it one by one."""
    labels = ["O", *(f"{prefix}-T{i}" for i in range(30) for prefix in "BI")]
    task, random_ = NER(NER.Options(), labels), np.random.default_rng(3)
    examples = [Example(["a"] * n, ["O"] * n, [0, 2], f"here:{n}") for n in range(5, 25)]
    rows = [SimpleNamespace(example=i, about=SimpleNamespace(words=np.arange(len(e.words))))
            for i, e in enumerate(examples)]
    scores = [random_.standard_normal((len(e.words), 61)) for e in examples]
    continuations.cache_clear()
    assert [len(tags) for tags in task.decode(examples, rows, scores)] == list(range(5, 25))
    assert continuations.cache_info().misses == 1


def slow_path(scores: np.ndarray, labels: list[str]) -> list[int]:
    """The best valid path by [K,K] sums a word, −∞ where a label may not follow; of equals the first."""
    after = np.array([[0.0 if b[:2] != "I-" or a in ("B-" + b[2:], b) else -np.inf for b in labels] for a in labels])
    logs = scores - scores.max(-1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(-1, keepdims=True))
    best, back = logs[0] + after[labels.index("O")], []                      # float64, as `after` is
    for row in logs[1:]:
        sums = best[:, None] + after
        back.append(sums.argmax(0))
        best = sums.max(0) + row
    path = [int(best.argmax())]
    for choice in reversed(back):
        path.insert(0, int(choice[path[0]]))
    return path


@pytest.mark.parametrize("seed", range(60))
def test_the_path_is_the_one_of_all_pairs_of_labels_of_equals_the_first(seed):
    """Whole numbers of few values as scores give many ties; some types lack their B-, some their I-."""
    random_ = np.random.default_rng(seed)
    labels = ["O", *(f"{p}-T{i}" for i in range(6) for p in random_.choice(["B", "I", "BI", "BI"]))]
    random_.shuffle(labels)
    inside = [k for k, label in enumerate(labels) if label[0] == "I"]
    continued = 0
    for words in (1, 2, 7, 12):
        scores = random_.integers(0, 3, (words, len(labels))).astype(np.float32)
        scores[:, inside] += 1                                               # else few paths go through them
        found = best_valid_path(scores, labels)
        assert found == slow_path(scores, labels), labels
        continued += len({*found} & {*inside})
    assert continued or not any("B-" + labels[k][2:] in labels for k in inside)


def test_where_the_best_tags_are_valid_they_are_the_path():
    random_ = np.random.default_rng(25)
    seen = 0
    for _ in range(600):
        scores = random_.standard_normal((7, 5))
        alone = best_tags(scores, LABELS)
        if valid(tuple(alone)):
            assert best_valid_path(scores, LABELS) == alone
            seen += 1
    assert seen > 40


def test_extreme_scores_are_no_trouble():
    scores = np.array([[0, 1e4, 0, 0, -1e4], [-3e4, 0, 3e4, 0, 1], [0, 0, 0, 0, 1e4]], np.float32)
    found = best_valid_path(scores, LABELS)
    assert found[:2] == [1, 2] and found[2] != 4                             # I-PER there would cost 30000 before it


def test_the_option_decides_how_tags_are_read():
    example = Example(["a", "b", "c"], ["O"] * 3, [0], "here:1")
    table = np.full((3, 5), 0.0, np.float32)
    table[0, 4], table[1, 2], table[2, 2] = 3.0, 3.0, 3.0                     # I-PER I-LOC I-LOC
    feature = type("F", (), {"example": 0, "about": WordNumbers(np.arange(3))})
    assert task(decoding="argmax").decode([example], [feature], [table]) == [["I-PER", "I-LOC", "I-LOC"]]
    by_path = task(decoding="valid").decode([example], [feature], [table])[0]
    assert valid(tuple(LABELS.index(t) for t in by_path)) and by_path[1:] == ["I-LOC", "I-LOC"]


# --------------------------------------------------------------------------------------------------- loss and counts


def batch_of(labels: list[list[int]]):
    features = []
    for row in labels:
        T = len(row) + 4
        features.append(feature(np.arange(T), np.arange(2, 2 + len(row)), np.array(row, np.int64)))
    return collate(features)


def feature(ids, picks, labels):
    return Feature(0, ids.astype(np.int64), np.zeros(len(ids), np.int64), picks.astype(np.int64), labels)


def slow_loss(scores: list[list[float]], labels: list[int]) -> float:
    """Σ −log softmax, one number at a time; unknown labels carry none."""
    total = 0.0
    for row, label in zip(scores, labels, strict=True):
        if label >= 0:
            total += math.log(sum(math.exp(x) for x in row)) - row[label]
    return total


@pytest.mark.parametrize("labels", [[[0, 1, 4, 2, 0], [3], [1, 1, 1]], [[0, -1, 4], [-1, -1], [2, 3, -1, 0]], [[0]]])
def test_loss_and_counts_against_a_loop(labels):
    batch = batch_of(labels)
    flat = [k for row in labels for k in row]
    torch.manual_seed(26)
    scores = (3 * torch.randn(len(flat), 5, dtype=torch.float64)).requires_grad_()
    loss = task().loss(scores, batch)["words"]
    assert loss.item() == pytest.approx(slow_loss(scores.tolist(), flat), rel=1e-12)
    assert task().counts(batch) == {"words": float(sum(k >= 0 for k in flat))}
    loss.backward()
    softmax = scores.detach().softmax(-1)
    for i, k in enumerate(flat):                                              # p − y, and nothing for an unknown label
        expected = torch.zeros(5, dtype=torch.float64)
        if k >= 0:
            expected = softmax[i].clone()
            expected[k] -= 1
        assert torch.allclose(scores.grad[i], expected, atol=1e-14)


def test_label_0_carries_loss():
    batch = batch_of([[0, 0]])
    scores = torch.tensor([[0.0, 9, 0, 0, 0], [0.0, 9, 0, 0, 0]])
    assert task().loss(scores, batch)["words"].item() > 17


@pytest.mark.parametrize("labels", [[[], []], [[-1, -1], [-1]], [[]]], ids=str)
def test_a_batch_without_a_label_has_loss_0_and_gradient_0(labels, tiny_config):
    ner = task()
    batch = batch_of(labels)
    head = ner.head(tiny_config)
    model = Model(random_bert(tiny_config), head)
    scores = model(batch)
    assert scores.shape == (sum(map(len, labels)), 5)
    loss = ner.loss(scores, batch)["words"]
    assert loss.item() == 0.0 and ner.counts(batch) == {"words": 0.0}
    loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads and all(bool((g == 0).all()) for g in grads)


def test_half_precision_scores_are_summed_in_float32():
    labels = [[k % 5 for k in range(3000)]]
    batch = batch_of(labels)
    scores = torch.randn(3000, 5, generator=torch.Generator().manual_seed(1)).bfloat16()
    loss = task().loss(scores, batch)["words"]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(slow_loss(scores.double().tolist(), labels[0]), rel=1e-5)


def weighing(tmp_path, text: str) -> NER:
    """The task with --class-weights balanced, its labels from a training file."""
    ner = NER(NER.Options(class_weights="balanced"))
    ner.learn_labels(ner.read(put(tmp_path / "train.txt", text).parent))
    return ner


WEIGHED = "in O\nin O\nin O\nin O\nAda B-PER\nBo B-PER\nOslo B-LOC\nNew B-LOC\nYork I-LOC\nis O\n"  # 5, 2, 1, 2 of 10


def test_balanced_tags_have_the_same_say(tmp_path):
    """10 words, 4 tags that occur: 10 / (4 · 5) for O; I-PER does not occur and weighs 1."""
    ner = weighing(tmp_path, WEIGHED)
    assert dict(zip(ner.labels, ner.weights.tolist(), strict=True)) == {
        "O": 0.5, "B-LOC": 1.25, "I-LOC": 2.5, "B-PER": 1.25, "I-PER": 1.0}
    assert ner.counts(batch_of([[0, 1, -1], [2], [4]])) == {"words": 0.5 + 1.25 + 2.5 + 1.0}
    assert ner.counts(batch_of([[0] * 5 + [1] * 2 + [2] + [3] * 2])) == {"words": 10.0}   # training counts as it did
    assert NER.Options().class_weights == "none" and torch.equal(task().weights, torch.ones(5, dtype=torch.float64))


def test_the_weighted_loss_and_its_gradient_are_torchs(tmp_path):
    ner, labels = weighing(tmp_path, WEIGHED), [0, 1, -1, 4, 2, 0, 3]
    scores = (3 * torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))).requires_grad_()
    target = torch.tensor([k if k >= 0 else -100 for k in labels])
    for batch in (batch_of([labels]), batch_of([labels[:3], labels[3:]])):
        total, count = ner.loss(scores, batch)["words"], ner.counts(batch)["words"]
        weight = torch.tensor([0.5, 1.25, 2.5, 1.25, 1], dtype=torch.float64)
        wanted = torch.nn.functional.cross_entropy(scores, target, weight=weight)
        assert float(total.detach()) / count == pytest.approx(float(wanted.detach()), rel=1e-13)
        theirs, = torch.autograd.grad(wanted, scores)
        ours = ner.loss_backward(scores.detach(), batch)["words"] / count
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-15) and not ours[2].any() and ours[0].any()
        assert torch.allclose(torch.autograd.grad(total, scores)[0], ours * count, rtol=0, atol=1e-14)


def test_the_weighted_gradient_by_differences(tmp_path):
    ner, batch = weighing(tmp_path, WEIGHED), batch_of([[0, 4, -1], [1, 2]])
    z = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    gradient, step = ner.loss_backward(z, batch)["words"], 1e-6
    for i, j in itertools.product(range(5), range(5)):
        nudge = torch.zeros_like(z)
        nudge[i, j] = step
        slope = (ner.loss(z + nudge, batch)["words"] - ner.loss(z - nudge, batch)["words"]) / (2 * step)
        assert float(slope) == pytest.approx(float(gradient[i, j]), abs=1e-8)


def test_without_the_option_the_loss_is_the_old_one_to_the_bit():
    batch, z = batch_of([[0, 1, -1, 4], [2]]), torch.randn(5, 5, generator=torch.Generator().manual_seed(5))
    ner = task()
    assert torch.equal(ner.loss(z, batch)["words"], ops.cross_entropy_forward(z, batch.labels)[0])
    assert torch.equal(ner.loss_backward(z, batch)["words"], ops.cross_entropy_backward(1.0, (z, batch.labels)))
    assert ner.learnt == {} and ner.terms(batch) is None


def test_a_loaded_model_weighs_tags_as_its_run_did(tiny_folder, tmp_path):
    put(tmp_path / "data" / "train.txt", WEIGHED)
    run = train.train(["--task", "ner", "--data", str(tmp_path / "data"), "--weights", str(tiny_folder),
                       "--class-weights", "balanced", "--output", str(tmp_path / "r"), "--cache", "off",
                       "--max-steps", "1", "--max-pieces", "24", "--overlap", "6"])
    assert load(run).task.weights.tolist() == [0.5, 1.25, 2.5, 1.25, 1.0]
    file = run / "config.json"
    file.write_text(file.read_text().replace("2.5", "-2.5"))
    with refused("config.json", "expected a positive number for each of 5 labels"):
        load(run)


def test_the_head_reads_the_picked_pieces(tiny_config):
    ner = task()
    head = ner.head(tiny_config).eval()
    batch = batch_of([[1, 2, 0], [3]])
    hidden = torch.randn(len(batch.ids), 30)
    # rows of 7 and 5 pieces in a rectangle of 7 columns; picks begin at column 2
    cells = [2, 3, 4, 7 + 2]
    expected = hidden[cells] @ head.classifier.weight.T + head.classifier.bias
    assert torch.allclose(head(hidden, batch), expected, atol=1e-6)
    assert list(head.state_dict()) == ["classifier.weight", "classifier.bias"]
    assert head.classifier.weight.shape == (5, 30)


# ------------------------------------------------------------------------------------------------- results as text


def test_offsets_slice_the_text():
    ner = task()
    text = "  Angela Merkel's party left  São Paulo, then Oslo."
    example = ner.example(text)
    tags = {"Angela": "B-PER", "Merkel": "I-PER", "São": "B-LOC", "Paulo": "I-LOC", "Oslo": "B-LOC"}
    result = ner.result(example, [tags.get(w, "O") for w in example.words])
    assert result == {"text": text, "entities": [
        {"text": "Angela Merkel", "type": "PER", "start": 2, "end": 15},
        {"text": "São Paulo", "type": "LOC", "start": 30, "end": 39},
        {"text": "Oslo", "type": "LOC", "start": 46, "end": 50}]}
    for e in result["entities"]:
        assert text[e["start"]:e["end"]] == e["text"]


def test_offsets_of_random_text_and_random_tags():
    ner, draw = task(), random.Random(27)
    seen = 0
    for _ in range(300):
        text = "".join(draw.choices("ab C.'-\u00e9\u5317\u200b😀\t,", k=draw.randint(0, 30)))
        example = ner.example(text)
        tags = draw.choices(LABELS, k=len(example.words))
        last = 0
        for e in ner.result(example, tags)["entities"]:
            assert text[e["start"]:e["end"]] == e["text"] == e["text"].strip() != ""
            assert e["start"] >= last
            last, seen = e["end"], seen + 1
    assert seen > 500


def test_render_with_and_without_colour():
    result = {"text": "Ada met Bo in Oslo, X.", "entities": [
        {"text": "Ada", "type": "PER", "start": 0, "end": 3}, {"text": "Oslo", "type": "LOC", "start": 14, "end": 18},
        {"text": "X", "type": "other", "start": 20, "end": 21}]}
    plain = task().render(result, colour=False)
    assert plain.splitlines()[0] == "Ada [PER] met Bo in Oslo [LOC], X [other]."
    assert [line.split() for line in plain.splitlines()[1:]] == [
        ["PER", "0-3", "Ada"], ["LOC", "14-18", "Oslo"], ["other", "20-21", "X"]]
    assert "\033" not in plain
    coloured = task().render(result, colour=True)
    assert coloured.count("\033[0m") == 3 and "\033[36mAda [PER]\033[0m" in coloured
    assert re.sub(r"\033\[\d+m", "", coloured) == plain
    assert task().render({"text": "nothing here", "entities": []}, colour=True) == "nothing here"


def test_score_keys_and_the_best_score_of_the_task():
    example = Example(["a", "b"], ["B-PER", "O"], [0], "here:1")
    scores = task().score([["B-PER", "B-LOC"]], [example])
    assert set(scores) >= {"entity", "tags", "words"}
    assert {"precision", "recall", "f1", "types"} <= set(scores["entity"])
    assert set(scores["tags"]) == {"micro_f1", "macro_f1", "weighted_f1", "per_tag"}
    assert scores["entity"]["precision"] == 0.5 and scores["entity"]["recall"] == 1.0
    assert scores["tags"]["micro_f1"] == 0.5                                  # one tag of two
    assert NER.best == ("entity.f1", "max") and "learning_rate" not in NER.defaults


# ----------------------------------------------------------------------------------- letter case through token types


@pytest.mark.parametrize("types", [1, 2, 3])
def test_case_shapes_change_nothing_before_training(tmp_path, tiny_vocabulary, types):
    """DESIGN section 4: each new row starts as a copy of its type's row, however many types the checkpoint has."""
    config = BertConfig(len(tiny_vocabulary), 30, 2, 5, 44, max_position_embeddings=40, type_vocab_size=types,
                        initializer_range=0.3)
    save(tmp_path, random_bert(config, seed=3))
    (tmp_path / "vocab.txt").write_text("\n".join(tiny_vocabulary) + "\n", encoding="utf-8")
    example = Example("Ada McStone left OSLO today".split(), ["O"] * 5, [0], "here:1")
    scores = {}
    for shapes in ("on", "off"):
        settings = TrainConfig(case_shapes=shapes, max_pieces=32, overlap=8)
        ner = task()
        model, tokenizer = build_model(tmp_path, ner, settings)
        features = encode_all(ner, [example], tokenizer, 32, 8)
        assert max(f.types.max() for f in features) < model.bert.config.type_vocab_size
        assert (max(f.types.max() for f in features) > 0) == (shapes == "on")
        with torch.no_grad():
            scores[shapes] = model.eval()(collate(features))
    assert torch.equal(scores["on"], scores["off"])


def test_the_three_line_ends_are_one(tmp_path):
    lines = ["Ada B-PER", "met O", "", "Oslo B-LOC", ""]
    for name, end in (("a", "\n"), ("b", "\r\n"), ("c", "\r")):
        (tmp_path / name).write_bytes(end.join(lines).encode())
    read = [[(s.words, s.tags, s.line) for d in read_conll(tmp_path / n) for s in d] for n in "abc"]
    assert read[0] == read[1] == read[2] == [(["Ada", "met"], ["B-PER", "O"], 1), (["Oslo"], ["B-LOC"], 4)]
