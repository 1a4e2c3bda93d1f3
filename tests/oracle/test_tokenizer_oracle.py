"""Pieces against transformers: its BertTokenizer, and the pure-Python one it descends from, an independent program."""
import itertools
import json
import random
import unicodedata

import pytest
import transformers as hf
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from minibert.data.text import split_words
from minibert.data.tokenizer import Tokenizer
from minibert.data.wordpiece import SPECIAL

WORDS = """The cat McCoy USA 1996 1,200.50 3rd U.S. O'Neil don't Jean-Luc rock'n'roll e-mail x@y.org http://a.b/c?d=e&f
café CAFÉ naïve Ångström façade Straße İstanbul ŒUVRE Łódź Dvořák ñandú Øre þing ΑΘΗΝΑ Ἀθῆναι Москва Ёлка ṩ
東京 北京市 中文字符 日本語テキスト カタカナ ひらがな 한국어 漢a字b 𠀀 豈 العربية עברית हिन्दी ไทย
😀 👨‍👩‍👧 🇩🇪 ❤️ ™ © € $5 £3 +=<>^`|~ § ° ½ ² ﬁ ‰ … – — ‚ „ “quoted” «guillemets» ¿qué? ¡no! ‹x› ・ 。 、 「鉤」 !?.,;:
() [x] {y} <z> a/b a\\b a_b # % & * @ -- ''' \"\" [CLS] [SEP] [MASK] [UNK] [pad] ##ing un##able""".split()
WORDS += ["e\u0301le\u0300ve", "A\u030angstro\u0308m", "a\u200bb", "a\u00adb", "\ufeffbom", "tab\tin", "a b",
          "line\nend", "nul\x00l", "bell\x07", "rep\ufffdlaced", "nbsp\u00a0x", "thin\u2009x", "rtl\u200fx",
          "\u202eflip", *("x" * n for n in (99, 100, 101, 250)), "é" * 100, "é" * 101, "北" * 120, "ab-" * 60]
EMPTY = ["\u200b", "\x00", "\x07", "\ufffd", " ", "\u00ad", "\ufeff", "\u0301", ""]  # no piece, in some settings


def random_words(count: int) -> list[str]:
    """Words of 1 to 12 characters from the whole of Unicode's lower planes, most of them ASCII or Latin."""
    draw = random.Random(0)
    ranges = [(33, 126)] * 6 + [(0xA1, 0x24F)] * 3 + [(0x300, 0x36F), (0x370, 0x5FF), (0x900, 0xDFF), (0x2010, 0x2BFF),
                                                      (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xF900, 0xFFFD),
                                                      (0x1F300, 0x1F6FF), (0x1, 0x9F)]
    words = []
    while len(words) < count:
        word = "".join(chr(draw.randint(*draw.choice(ranges))) for _ in range(draw.randint(1, 12)))
        if all(unicodedata.category(c) != "Cn" for c in word):               # unassigned: tables differ by release
            words.append(word)
    return words


def rich_vocabulary(folder) -> None:
    """A vocab.txt in which every form of every character of WORDS is a piece: no setting hides behind [UNK]."""
    text = "".join(WORDS)
    forms = {c for f in ("NFC", "NFD") for t in (text, text.lower()) for c in unicodedata.normalize(f, t)}
    pieces = sorted(c for c in forms if not c.isspace() and unicodedata.category(c) != "Cc")
    joined = ["the", "caf", "##fe", "##fé", "##FÉ", "strasse", "Stra", "##ße", "##oy", "Mc", "東京", "##京"]
    every = [*SPECIAL.values(), *pieces, *("##" + p for p in pieces), *joined]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(every) + "\n", encoding="utf-8")


def agree(ours: Tokenizer, theirs, words: list[str]) -> int:
    """Assert the same ids, words and characters for one text given as words; -> words that yield nothing there."""
    wanted = theirs([words], is_split_into_words=True, add_special_tokens=False, return_offsets_mapping=True)
    owners = wanted.word_ids(0)
    found = ours.pieces([words])[0]
    empty = set(range(len(words))) - set(owners)
    rows = list(zip(found.words, found.ids, found.spans, strict=True))
    expected = list(zip(owners, wanted["input_ids"][0], map(tuple, wanted["offset_mapping"][0]), strict=True))
    nothing = [(w, ours.unknown, (0, len(words[w]))) for w in sorted(empty)]
    expected = sorted(expected + nothing, key=lambda row: row[0])            # stable: pieces keep their order
    assert [(words[a[0]], a, b) for a, b in zip(rows, expected, strict=False) if a[:2] != b[:2]] == []
    assert len(rows) == len(expected)
    for (w, _, (a, b)), (*_, (c, d)) in zip(rows, expected, strict=True):    # with what the vocabulary drops
        dropped = words[w][a:c] + words[w][d:b]
        assert a <= c and d <= b and all(unicodedata.category(x)[0] in "MCZ" or x == "\ufffd" for x in dropped)
    return len(empty)


@pytest.mark.parametrize("source", ["tokenizer.json", "vocab.txt"])
def test_minilm_cuts_as_transformers_does(minilm, ner_words, tmp_path, source):
    for name in (source, "tokenizer_config.json"):
        (tmp_path / name).write_bytes((minilm / name).read_bytes())
    ours, theirs = Tokenizer.read(tmp_path), hf.BertTokenizer.from_pretrained(minilm)
    assert agree(ours, theirs, WORDS) == 0
    assert agree(ours, theirs, WORDS + EMPTY) > 4
    assert agree(ours, theirs, random_words(4000)) > 10
    for words in ner_words:
        assert agree(ours, theirs, words) == 0


def test_nothing_is_cut_or_padded(minilm, ner_words):
    """The file stores a truncation and a padding to 128; neither is left. A row has all pieces of all its words."""
    assert json.loads((minilm / "tokenizer.json").read_text("utf-8"))["truncation"]["max_length"] == 128
    ours, theirs = Tokenizer.read(minilm), hf.BertTokenizer.from_pretrained(minilm)
    words = list(itertools.chain(*ner_words))
    assert len(words) > 2000
    for count in (1, 20, 127, 129, 600, len(words)):
        wanted = theirs(words[:count], is_split_into_words=True, truncation=False, padding=False)["input_ids"]
        found = ours.pieces([words[:count]])[0].ids
        assert [ours.start, *found, ours.end] == wanted and len(found) >= count
    several = ours.pieces([["hi"], words[:300], []])
    assert [len(p.ids) for p in several] == [1, len(ours.pieces([words[:300]])[0].ids), 0]


# The Python tokenizer lower-cases a whole word, so that the last Σ becomes ς, and composes (NFC) before cutting; the
# published fast one, and so ours, takes characters one by one. No word below tells these apart.
def independent(word: str) -> bool:
    return unicodedata.normalize("NFC", word) == word and "Σ" not in word


@pytest.mark.parametrize("chinese", [True, False])
@pytest.mark.parametrize("strip", [None, True, False])
@pytest.mark.parametrize("lowercase", [True, False])
def test_every_setting_against_both_tokenizers(tmp_path, lowercase, strip, chinese):
    """vocab.txt with tokenizer_config.json; and the run folder that we write of it opens as the same tokenizer."""
    settings = {"do_lower_case": lowercase, "strip_accents": strip, "tokenize_chinese_chars": chinese}
    rich_vocabulary(tmp_path / "in")
    (tmp_path / "in" / "tokenizer_config.json").write_text(json.dumps(settings))
    ours = Tokenizer.read(tmp_path / "in")
    words = WORDS + random_words(300)
    assert ours.uncased == lowercase
    agree(ours, hf.BertTokenizer.from_pretrained(tmp_path / "in", **settings), words + EMPTY)

    slow = BertTokenizerLegacy(str(tmp_path / "in" / "vocab.txt"), **settings)
    compared = [w for w in words if independent(w)]
    assert len(compared) > 300
    found = [ours.pieces([[w]])[0].ids for w in compared]
    wanted = [slow.convert_tokens_to_ids(slow.tokenize(w)) or [ours.unknown] for w in compared]
    assert [(w, a, b) for w, a, b in zip(compared, found, wanted, strict=True) if a != b] == []

    (tmp_path / "out").mkdir()
    ours.save(tmp_path / "out")
    again, opened = Tokenizer.read(tmp_path / "out"), hf.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again.pieces([words]) == ours.pieces([words])
    agree(ours, opened, words + EMPTY)
    both = opened(words, is_split_into_words=True)["input_ids"]
    assert (both[0], both[-1]) == (ours.start, ours.end)


TEXTS = ["€100", "£5.50", "20°C", "5×4", "±3", "©2024", "x→y", "😀😀", "it😀", "नमस्ते", "한국어", "e\u0301te\u0301",
         "don't", "U.S.", "a/b", "中国文", "\ufffd", "\u200b", "a\u200bb", "👨\u200d👩", "❤\ufe0f", "x™", "3½",
         "«oui»", "Merkel's", "a_b", "$5", "^x", "คน", "שלום", "x\u00ady", "\ufeffz", "٣٤", "①x", "♫la", "[MASK",
         "x]", "<ent>", "[E1]", "New York", "ÉTÉ", "<Ent>"]


def random_texts(count: int) -> list[str]:
    draw = random.Random(3)
    return ["".join(draw.choice(TEXTS) + draw.choice(["", " ", " ", "  ", "\n"]) for _ in range(draw.randint(1, 7)))
            for _ in range(count)]


def test_raw_text_has_the_pieces_that_transformers_gives_it(minilm):
    """Also where words for people and words for BERT are cut otherwise, as 20°C and €100."""
    ours, theirs = Tokenizer.read(minilm), hf.BertTokenizer.from_pretrained(minilm)
    found = [p.ids for p in ours.pieces(list(map(ours.words, random_texts(3000))))]
    wanted = theirs(random_texts(3000), add_special_tokens=False)["input_ids"]
    assert [(t, a, b) for t, a, b in zip(random_texts(3000), found, wanted, strict=True) if a != b] == []
    apart = [p.ids for p in ours.pieces([[t[a:b] for a, b in split_words(t)] for t in random_texts(3000)])]
    assert sum(a != b for a, b in zip(apart, wanted, strict=True)) > 500     # so much would be lost


@pytest.mark.parametrize("chinese", [True, False])
@pytest.mark.parametrize("lowercase", [True, False])
def test_added_pieces_in_raw_text(tmp_path, lowercase, chinese):
    settings = {"do_lower_case": lowercase, "tokenize_chinese_chars": chinese}
    rich_vocabulary(tmp_path / "in")
    lines = dict.fromkeys((tmp_path / "in" / "vocab.txt").read_text("utf-8").split("\n"))
    (tmp_path / "in" / "vocab.txt").write_text("\n".join(lines), "utf-8")    # a repeated one would take a new number
    theirs = hf.BertTokenizer(vocab=str(tmp_path / "in" / "vocab.txt"), **settings)
    theirs.add_tokens(["<ent>", "new york", "中国文"])
    theirs.add_special_tokens({"additional_special_tokens": ["[E1]", "😀"]})
    theirs.save_pretrained(tmp_path / "out")
    ours, opened = Tokenizer.read(tmp_path / "out"), hf.AutoTokenizer.from_pretrained(tmp_path / "out")
    texts = random_texts(2000)
    found, wanted = [p.ids for p in ours.pieces(list(map(ours.words, texts)))], opened(texts, add_special_tokens=False)
    assert [(t, opened.convert_ids_to_tokens(a), opened.convert_ids_to_tokens(b))
            for t, a, b in zip(texts, found, wanted["input_ids"], strict=True) if a != b] == []
    added = {number for number in opened.added_tokens_decoder if number >= 5}
    assert len(added) == 5 and len(added & {i for ids in found for i in ids}) == 4 + lowercase     # New York


def test_settings_matter(tmp_path):
    """Each setting changes the pieces of some word, so that the test above would see it ignored."""
    rich_vocabulary(tmp_path)
    results = set()
    for lowercase, strip, chinese in itertools.product((True, False), (True, False), (True, False)):
        settings = {"do_lower_case": lowercase, "strip_accents": strip, "tokenize_chinese_chars": chinese}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        results.add(tuple(Tokenizer.read(tmp_path).pieces([["CAFÉ", "東京都"]])[0].ids))
    assert len(results) == 8
