"""tokenizer.py: pieces against a reference written out here; nothing cut, padded or lost; letter case; raw text."""
import json
import random
import string
import unicodedata
from pathlib import Path

import pytest
from refusing import refused
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from minibert.data.rows import word_features
from minibert.data.text import split_words
from minibert.data.tokenizer import CASE_SHAPES, Tokenizer, case_shape
from minibert.data.wordpiece import add_tokens

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
UNKNOWN = 1
CHINESE = "北京東漢字"
ODD = "éèñüßøÉÑÜØåÅçłŁαωΑΩжЖшאבحठिक" + "“”„’‘«»—–…¿€°½²™" + string.punctuation
LETTERS = string.ascii_letters + string.digits + CHINESE + ODD
WHOLE = ["paris", "Paris", "hi", "the", "un", "able", "play", "ing", "##ing", "##able", "##ed", "##er", "caf", "Café",
         "café", "strasse", "東京", "##ris", "pa"]
VOCABULARY = list(dict.fromkeys([*SPECIALS, "[unused0]", *LETTERS, *("##" + c for c in LETTERS), *WHOLE]))
TEXTS = ["The play ing unable playing played players hi Paris PARIS paris".split(),
         "Café CAFÉ café naïve Ångström Straße ñandú ØRE Łódź αω ΑΩ Жшж".split(),
         ["北京市", "東京", "漢a字b", "a北", "日本"], ["अठिक", "אב", "ح", "कि"],
         ["“quoted”", "«g»", "don't", "a/b", "U.S.", "1,200.50", "x@y.org", "--", "...", "½²", "€5", "3°", "²"],
         ["\U0001F600", "👨\u200d👩", "❤\ufe0f", "a\u200bb", "a\u00adb", "\ufeffx", "a\u00a0b", "a\u2028b", "a\tb"],
         ["e\u0301le\u0300ve", "A\u030a", "\u0301", "n\u0303"], ["[CLS]", "[MASK]", "x[SEP]y", "[cls]", "##ing"],
         ["x" * 99, "x" * 100, "x" * 101, "北" * 101], ["\u200b", "\x01", "\x00", "\ufffd", "", " "], []]


def published_json(vocabulary=VOCABULARY, lower=True, strip=None, chinese=True, **change) -> dict:
    """A tokenizer.json as published ones are."""
    def special(piece):
        return {"id": vocabulary.index(piece), "content": piece, "special": True, "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": False}

    ids = {p: {"id": p, "ids": [vocabulary.index(p)], "tokens": [p]} for p in ("[CLS]", "[SEP]") if p in vocabulary}
    around = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
              {"SpecialToken": {"id": "[SEP]", "type_id": 0}}]
    second = [{"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}]
    return {"version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [special(p) for p in SPECIALS if p in vocabulary],
            "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": chinese,
                           "strip_accents": strip, "lowercase": lower},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "TemplateProcessing", "single": around, "pair": around + second,
                               "special_tokens": ids} if len(ids) == 2 else None,
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                      "max_input_chars_per_word": 100, "vocab": {p: i for i, p in enumerate(vocabulary)}}} | change


def from_json(folder: Path, **options) -> Tokenizer:
    """A tokenizer.json that has the last word, beside a tokenizer_config.json that leaves it to it."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(published_json(**options), ensure_ascii=False), encoding="utf-8")
    return Tokenizer.read(folder)


def from_vocab(folder: Path, vocabulary=VOCABULARY, settings: dict | None = None) -> Tokenizer:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return Tokenizer.read(folder)


# ------------------------------------------------------------------ the published algorithm, written out once more


def is_cjk(c: str) -> bool:
    return 0x4E00 <= ord(c) <= 0x9FFF or 0x3400 <= ord(c) <= 0x4DBF or 0x20000 <= ord(c) <= 0x2CEAF


def is_mark(c: str) -> bool:
    return unicodedata.category(c)[0] == "P" or c in string.punctuation


def reference(word: str, lower: bool, strip: bool | None, chinese: bool) -> list[str]:
    """Pieces of one word: clean, part Chinese, strip accents, lower-case, part punctuation, longest piece first."""
    clean = ""
    for c in word:
        if c in "\t\n\r" or c.isspace():
            clean += " "
        elif unicodedata.category(c)[0] != "C" and c != "\ufffd":
            clean += f" {c} " if chinese and is_cjk(c) else c
    if lower if strip is None else strip:
        clean = "".join(c for c in unicodedata.normalize("NFD", clean) if unicodedata.category(c) != "Mn")
    clean = clean.lower() if lower else clean
    result = []
    for chunk in "".join(f" {c} " if is_mark(c) else c for c in clean).split():
        result += greedy(chunk)
    return result


def greedy(chunk: str) -> list[str]:
    pieces, start = [], 0
    while start < len(chunk) and len(chunk) <= 100:
        stop = len(chunk)
        while stop > start and ("##" if start else "") + chunk[start:stop] not in VOCABULARY_SET:
            stop -= 1
        if stop == start:
            break
        pieces.append(("##" if start else "") + chunk[start:stop])
        start = stop
    return pieces if start == len(chunk) else ["[UNK]"]


VOCABULARY_SET = set(VOCABULARY)
SETTINGS = [(lower, strip, chinese) for lower in (True, False) for strip in (None, True, False)
            for chinese in (True, False)]


def random_texts(count: int, seed: int) -> list[list[str]]:
    """Words of 1 to 9 characters that all settings can spell, and some that they cannot."""
    draw = random.Random(seed)
    pool = string.ascii_lowercase * 4 + LETTERS * 2 + "ê\u0301\u0308\u200b\x07\u00a0😀日ǅ"
    return [["".join(draw.choices(pool, k=draw.randint(1, 9))) for _ in range(draw.randint(5, 11))]
            for _ in range(count)]


@pytest.mark.parametrize("lower, strip, chinese", SETTINGS)
def test_pieces_are_those_of_the_published_algorithm(tmp_path, lower, strip, chinese):
    tokenizer = from_json(tmp_path, lower=lower, strip=strip, chinese=chinese)
    texts = [t for t in TEXTS if "[CLS]" not in t] + random_texts(60, seed=7)
    several = 0
    for words, found in zip(texts, tokenizer.pieces(texts), strict=True):
        for i, word in enumerate(words):
            mine = [VOCABULARY[p] for p, w in zip(found.ids, found.words, strict=True) if w == i]
            assert mine == (reference(word, lower, strip, chinese) or ["[UNK]"]), word
            several += len(mine) > 2
    assert several > 50


@pytest.mark.parametrize("lower, strip, chinese", SETTINGS)
def test_vocab_txt_and_tokenizer_json_are_the_same_tokenizer(tmp_path, lower, strip, chinese):
    one = from_json(tmp_path / "json", lower=lower, strip=strip, chinese=chinese)
    settings = {"do_lower_case": lower, "tokenize_chinese_chars": chinese, "tokenizer_class": "BertTokenizer"}
    two = from_vocab(tmp_path / "vocab", settings=settings | ({} if strip is None else {"strip_accents": strip}))
    texts = TEXTS + random_texts(40, seed=8)
    assert one.pieces(texts) == two.pieces(texts)
    assert one.uncased == two.uncased == lower and one.size == two.size == len(VOCABULARY)
    for role in ("unknown", "start", "end", "pad", "mask"):
        assert getattr(one, role) == getattr(two, role)
    assert (one.pad, one.unknown, one.start, one.end, one.mask) == (0, 1, 2, 3, 4)


def test_the_settings_differ_where_they_should(tmp_path):
    def pieces(word, **options):
        tokenizer = from_json(tmp_path, **options)
        return [VOCABULARY[i] for i in tokenizer.pieces([[word]])[0].ids]

    assert pieces("Paris", lower=True) == ["paris"] and pieces("Paris", lower=False) == ["Paris"]
    assert pieces("Café", lower=False) == ["Café"] and pieces("CAFÉ", lower=True) == ["caf", "##e"]
    assert pieces("Café", lower=True, strip=False) == ["café"]
    assert pieces("北京", chinese=True) == ["北", "京"] and pieces("北京", chinese=False) == ["北", "##京"]


def test_vocab_txt_alone_means_uncased_and_windows_line_ends_do_no_harm(tmp_path):
    plain = from_vocab(tmp_path / "a")
    assert plain.uncased
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "vocab.txt").write_bytes("\r\n".join(VOCABULARY).encode())
    assert Tokenizer.read(tmp_path / "b").pieces(TEXTS) == plain.pieces(TEXTS)
    assert Tokenizer.read(tmp_path / "b").size == plain.size == len(VOCABULARY)


def test_tokenizer_json_stands_above_vocab_txt(tmp_path):
    from_vocab(tmp_path, settings={"do_lower_case": True})
    assert not from_json(tmp_path, lower=False).uncased


# ------------------------------------------------------------------------------- nothing is cut, nothing is padded


WHEEL = {"truncation": {"direction": "Right", "max_length": 128, "strategy": "LongestFirst", "stride": 0},
         "padding": {"strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                     "pad_type_id": 0, "pad_token": "[PAD]"}}


def test_stored_truncation_and_padding_are_switched_off(tmp_path):
    tokenizer = from_json(tmp_path, **WHEEL)
    words = [f"player{i % 10}" for i in range(600)]
    long, short = tokenizer.pieces([words, ["hi"]])
    assert len(long.ids) > 600 and set(long.words) == set(range(600))
    assert short.ids == [VOCABULARY.index("hi")]
    assert len(word_features(0, short, tokenizer, 256, 64, [0])[0].ids) == 3
    assert len(tokenizer.backend.encode("hi").ids) == 3                       # what any other user of the file gets
    assert len(tokenizer.backend.encode(" ".join(words)).ids) == len(long.ids) + 2


def test_a_saved_tokenizer_neither_cuts_nor_pads_and_is_the_same(tmp_path):
    tokenizer = from_json(tmp_path / "in", **WHEEL)
    (tmp_path / "out").mkdir()
    tokenizer.save(tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "tokenizer.json").read_text("utf-8"))
    assert saved["truncation"] is None and saved["padding"] is None
    assert saved["model"]["vocab"] == {p: i for i, p in enumerate(VOCABULARY)}
    again = Tokenizer.read(tmp_path / "out")
    texts = TEXTS + random_texts(40, seed=9)
    assert again.pieces(texts) == tokenizer.pieces(texts)
    assert (again.pad, again.unknown, again.start, again.end, again.mask) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("full", ["tokenizer.json", "tokenizer_config.json", "vocab.txt"])
def test_a_tokenizer_that_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch, full):
    tokenizer = from_json(tmp_path / "in", **WHEEL)
    tokenizer.save(tmp_path / "in")
    before = {f: f.read_bytes() for f in (tmp_path / "in").iterdir()}
    write_text = Path.write_text

    def half(file, text, *a, **k):
        if full not in file.name:
            return write_text(file, text, *a, **k)
        write_text(file, text[:len(text) // 2], *a, **k)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with refused(str(tmp_path / "in" / full), "No space left", "free space"):
        tokenizer.save(tmp_path / "in")
    assert {f: f.read_bytes() for f in (tmp_path / "in").iterdir()} == before


@pytest.mark.parametrize("lower, strip, chinese", SETTINGS)
def test_a_saved_tokenizer_config_says_what_the_saved_tokenizer_json_does(tmp_path, lower, strip, chinese):
    """Other libraries build from tokenizer_config.json and correct tokenizer.json by it: the two must agree."""
    (tmp_path / "out").mkdir()
    tokenizer = from_json(tmp_path / "in", lower=lower, strip=strip, chinese=chinese)
    tokenizer.save(tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text("utf-8"))
    assert settings["do_lower_case"] is lower and settings["tokenizer_class"] == "BertTokenizer"
    assert [settings[f"{r}_token"] for r in ("pad", "unk", "cls", "sep", "mask")] == SPECIALS
    rebuilt = from_vocab(tmp_path / "again", settings=settings)
    texts = TEXTS + random_texts(30, seed=10)
    assert rebuilt.pieces(texts) == tokenizer.pieces(texts)


# ----------------------------------------------------------------------------------- no word is lost, spans are true


@pytest.fixture
def uncased(tmp_path) -> Tokenizer:
    return from_json(tmp_path / "uncased")


EMPTY = ["\u200b", "\x01", "\x00", "\ufffd", "\u200d", "\u00ad", "\ufeff", "\u0301", "", " ", "\u2028", "\x85"]


def test_a_word_that_gives_nothing_becomes_one_unknown_piece(uncased):
    for word in EMPTY:
        assert reference(word, True, None, True) == []                        # it really gives nothing
        found = uncased.pieces([["paris", word, "players"]])[0]
        assert found.words == [0, 1, 2, 2, 2] and found.ids[1] == UNKNOWN, repr(word)
        assert found.spans[1] == (0, len(word))
    found = uncased.pieces([EMPTY])[0]
    assert found.words == list(range(len(EMPTY))) and set(found.ids) == {UNKNOWN}


def test_a_word_that_cannot_be_spelt_is_one_unknown_piece(uncased):
    for word in ("😀", "x" * 101, "x" * 200, "日本語"[2]):
        found = uncased.pieces([["hi", word, "hi"]])[0]
        assert found.words == [0, 1, 2] and found.ids[1] == UNKNOWN and found.spans[1] == (0, len(word))
    assert len(uncased.pieces([["x" * 100]])[0].ids) == 100


def test_every_word_keeps_a_piece_and_words_ascend(uncased):
    texts = TEXTS + random_texts(300, seed=11) + [random.Random(12).choices(EMPTY + ["hi", "paris"], k=13)]
    for words, found in zip(texts, uncased.pieces(texts), strict=True):
        assert sorted(set(found.words)) == list(range(len(words)))
        assert found.words == sorted(found.words)
        assert len(found.ids) == len(found.words) == len(found.spans) == len(found.shapes)
        for word, (start, stop) in zip(found.words, found.spans, strict=True):
            assert 0 <= start <= stop <= len(words[word])
        for (w, (_, stop)), (v, (start, _)) in zip(zip(found.words, found.spans, strict=True),
                                                   list(zip(found.words, found.spans, strict=True))[1:], strict=False):
            assert v > w or start >= stop                                     # inside a word spans ascend


def test_spans_slice_lower_case_text_back_to_the_pieces(uncased):
    draw = random.Random(13)
    words = ["".join(draw.choices(string.ascii_lowercase + "-.'", k=draw.randint(1, 14))) for _ in range(500)]
    found = uncased.pieces([words])[0]
    assert len(found.ids) > 1500
    for i, word, (start, stop) in zip(found.ids, found.words, found.spans, strict=True):
        assert words[word][start:stop] == VOCABULARY[i].removeprefix("##")


def test_spans_point_at_the_original_characters_also_where_normalising_moves_them(uncased):
    """Soft hyphens and accents vanish, so the pieces are shorter than the word; spans count the word's characters."""
    found = uncased.pieces([["\u00adpl\u200bay", "É\u0301x", "Straße"]])[0]
    words = ["\u00adpl\u200bay", "É\u0301x", "Straße"]
    cut = [words[w][a:b] for w, (a, b) in zip(found.words, found.spans, strict=True)]
    assert [VOCABULARY[i] for i in found.ids[:1]] == ["play"]
    assert cut[0].endswith("pl\u200bay") and cut[1].startswith("É") and cut[2] == "x"
    assert "".join(cut[3:]) == "Straße"


SIGNS = ["हिन्दी", "कि", "ภาษาไทย", "الكِتابُ", "\u200fشركة", "e\u0301tude\u0301", "cafe\u0301-bar\u0301",
         "\u00ada\u00ad", "한국", "İi", "ti\u1ebf\u0301ng", "a\u200b,\u200bb\u0301", "Straße", "9\ufe0f\u20e3",
         "\u0301x", "日\U000e0100", "ﬁx", "…\u0301"]


def test_no_character_of_a_word_is_left_out_in_any_script(uncased):
    """The vocabulary drops accents, vowel signs and what cannot be seen; a slice of the text has them all the same."""
    draw = random.Random(31)
    words = SIGNS + [w for w in ("".join(draw.choices("".join(SIGNS), k=draw.randint(1, 9))) for _ in range(700)) if w]
    alphabet = Tokenizer(letters("".join(words)))
    dropped = parts = 0
    for found in (uncased.pieces([words])[0], alphabet.pieces([words])[0]):
        for w, word in enumerate(words):
            own = [span for span, v in zip(found.spans, found.words, strict=True) if v == w]
            assert own[0][0] == 0 and own[-1][1] == len(word), ascii(word)
            assert {i for a, b in own for i in range(a, b)} == set(range(len(word))), ascii(word)
            parts += len(own)
            dropped += len(unicodedata.normalize("NFD", word)) - len(own)
    assert parts > 2 * len(words) and dropped > 100


def letters(characters: str) -> Backend:
    """A WordPiece whose pieces are characters, those that begin a word and those that continue one: nothing is
    unknown, so that every dropped mark shows.
    """
    plain = BertNormalizer(lowercase=True).normalize_str(characters)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({f"{p}{c}" for c in plain for p in ("", "##")})]
    backend = Backend(WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = BertNormalizer(lowercase=True), BertPreTokenizer()
    return backend


def test_what_is_dropped_belongs_to_the_piece_before_it_at_a_beginning_to_the_first():
    found = Tokenizer(letters("abé-")).pieces([["\u200fa\u0301b", "é-\u00adb"]])[0]
    assert found.spans == [(0, 3), (3, 4), (0, 1), (1, 3), (3, 4)] and found.words == [0, 0, 1, 1, 1]


def test_half_a_surrogate_pair_is_a_character_like_any_other_that_cannot_be_spelt(uncased):
    """Such text reaches Python from a command line or a stream in a wrong encoding."""
    found = uncased.pieces([["hi", "\ud800", "hi\udcff"]])[0]
    assert sorted(set(found.words)) == [0, 1, 2] and found.ids[0] == VOCABULARY.index("hi")


def test_no_texts_and_texts_without_words(uncased):
    assert uncased.pieces([]) == []
    assert uncased.pieces([[], []])[1].ids == []


# --------------------------------------------------------------------------------------------------- letter case


SHAPES = [("apple", "lower"), ("ß", "lower"), ("éa", "lower"), ("1996", "lower"), ("...", "lower"), ("", "lower"),
          ("北京", "lower"), ("1st", "lower"), ("don't", "lower"), ("अठ", "lower"), ("😀", "lower"),
          ("\u200b", "lower"),
          ("Apple", "title"), ("Éa", "title"), ("Jean-Luc", "title"), ("O'Neil", "title"), ("Ångström", "title"),
          ("Straße", "title"), ("Москва", "title"), ("İstanbul", "title"), ("ǅungla", "title"), ("ǅ", "title"),
          ("USA", "upper"), ("É", "upper"), ("İ", "upper"), ("A", "upper"), ("U.S.", "upper"), ("3D", "upper"),
          ("AT&T", "upper"), ("F-16", "upper"), ("МОСКВА", "upper"), ("ǄUNGLA", "upper"), ("STRASSE", "upper"),
          ("McDonald", "mixed"), ("McDonald's", "mixed"), ("iPhone", "mixed"), ("eBay", "mixed"), ("GmbH", "mixed"),
          ("PhD", "mixed"), ("USAir", "mixed"), ("STRAßE", "mixed"), ("NaCl2", "mixed"), ("jEAN", "mixed")]


@pytest.mark.parametrize("word, shape", SHAPES, ids=lambda v: ascii(v))
def test_case_shape(word, shape):
    assert CASE_SHAPES[case_shape(word)] == shape


def test_there_are_four_shapes_in_a_fixed_order():
    assert CASE_SHAPES == ("lower", "title", "upper", "mixed")                # the rows of a saved checkpoint
    assert {shape for _, shape in SHAPES} == set(CASE_SHAPES)


def test_case_shapes_of_pieces_are_those_of_their_word_or_all_0(uncased):
    words = ["Players", "play", "PLAYER", "McPlay", "\u200b", "Éa"]
    assert not uncased.case_shapes and set(uncased.pieces([words])[0].shapes) == {0}
    uncased.case_shapes = True
    found = uncased.pieces([words])[0]
    assert [(w, s) for w, s in dict(zip(found.words, found.shapes, strict=True)).items()] == [
        (0, 1), (1, 0), (2, 2), (3, 3), (4, 0), (5, 1)]
    for i, shape in enumerate((1, 0, 2, 3, 0, 1)):
        of_word = [s for w, s in zip(found.words, found.shapes, strict=True) if w == i]
        assert set(of_word) == {shape}
    assert found.words.count(0) > 1 and found.words.count(3) > 1


# ---------------------------------------------------------------------------------------------------- raw text


LINES = [
    ("", ""), ("   ", ""), ("\n\t\u2003", ""), ("word", "word"), ("  two  words ", "two|words"),
    ("Angela Merkel met Tim Cook in Paris.", "Angela|Merkel|met|Tim|Cook|in|Paris|."),
    ("Dr. Jean-Luc O'Neil's U.S. trip cost 1,200.50.", "Dr.|Jean-Luc|O'Neil|'s|U.S.|trip|cost|1,200.50|."),
    ("Mr. Smith vs. Mrs. Jones, Jr.", "Mr.|Smith|vs.|Mrs.|Jones|,|Jr."),
    ("J.R.R. Tolkien and J. K. Rowling", "J.R.R.|Tolkien|and|J.|K.|Rowling"),
    ("It rained. She left.", "It|rained|.|She|left|."), ("So did I.", "So|did|I|."), ("e.g. this", "e.g.|this"),
    ("Merkel's plan, the dogs' bones", "Merkel|'s|plan|,|the|dogs|'|bones"),
    ("It was Merkel's.", "It|was|Merkel|'s|."), ("“It’s,” he said", "“|It|’s|,|”|he|said"),
    ("They're here; we've won, I'm sure they'll, he'd", "They|'re|here|;|we|'ve|won|,|I|'m|sure|they|'ll|,|he|'d"),
    ("(Merkel's)", "(|Merkel|'s|)"), ("don't rock'n'roll", "don't|rock'n'roll"),
    ("$1,200,000 or 3.5% of 10:30", "$|1,200,000|or|3.5|%|of|10:30"), ("a,b", "a|,|b"), ("1,", "1|,"),
    ("5-4 win, -7 loss", "5-4|win|,|-|7|loss"), ("and/or", "and/or"), ("9/11", "9/11"), ("note:this", "note|:|this"),
    ('He said "no".', 'He|said|"|no|"|.'), ("'quoted'", "'|quoted|'"), ("«Oui»!", "«|Oui|»|!"), ("¿Qué?", "¿|Qué|?"),
    ("wait... what?!", "wait|.|.|.|what|?|!"), ("dash — and–dash", "dash|—|and|–|dash"), ("AT&T", "AT&T"),
    ("C++ & C#", "C|+|+|&|C|#"), ("mail a.b@c.org now", "mail|a.b@c.org|now"), ("snake_case", "snake_case"),
    ("see http://x.org/a?b=1", "see|http|:|/|/|x.org/a|?|b|=|1"), ("Yahoo! #tag @user", "Yahoo|!|#|tag|@|user"),
    ("北京市 2008年", "北|京|市|2008|年"), ("我在Paris。", "我|在|Paris|。"), ("東京タワー", "東|京|タワー"),
    ("हिन्दी भाषा।", "हिन्दी|भाषा|।"), ("שלום עולם", "שלום|עולם"), ("Привет, мир!", "Привет|,|мир|!"),
    ("한국어 말", "한국어|말"), ("I ❤\ufe0f u", "I|❤\ufe0f|u"),
    ("👩\u200d👧 1\ufe0f\u20e3.", "👩\u200d👧|1\ufe0f\u20e3|."),
    ("葛\U000e0100城", "葛\U000e0100|城"), ("x…\u0301y", "x|…\u0301|y"), ("(\u200fلا)", "(|\u200fلا|)"),
    ("e\u0301le\u0300ve x", "e\u0301le\u0300ve|x"), ("ok 😀 fine😀", "ok|😀|fine|😀"), ("a\u200bb", "a\u200bb"),
    ("a \u200b b", "a|\u200b|b"), ("co\u00adop", "co\u00adop"), ("a\u00a0b\u2028c\x85d", "a|b|c|d"), ("ﬁne Ⅷ", "ﬁne|Ⅷ"),
    ("x²+y", "x²|+|y"), ("1st 2nd", "1st|2nd"), ("A.", "A."), (".", "."), ("..", ".|."), ("-", "-"), ("'s", "'|s"),
    ("’Tis", "’|Tis"), ("non‑breaking", "non‑breaking"), ("Catalan col·legi", "Catalan|col·legi"),
    ("SOCCER - JAPAN GET LUCKY WIN , CHINA IN SURPRISE DEFEAT .",
     "SOCCER|-|JAPAN|GET|LUCKY|WIN|,|CHINA|IN|SURPRISE|DEFEAT|."),
]


@pytest.mark.parametrize("text, words", LINES, ids=lambda v: ascii(v)[:40])
def test_split_words(text, words):
    assert [text[a:b] for a, b in split_words(text)] == (words.split("|") if words else [])


def random_text(draw: random.Random) -> str:
    pools = (string.ascii_letters, string.digits, string.punctuation, " \t\n\u00a0\u2028\x85\u3000", "’“”—…·。、।",
             CHINESE + "𠀀豈", "éßİǅ\u0301\u093f", "\u200b\u200d\ufeff\x00\x01\u00ad", "😀❤\ufe0f👩", "\ud800")
    chars = []
    for _ in range(draw.randint(0, 25)):
        pool = draw.choice(pools)
        chars.append(draw.choice(pool) if draw.random() < 0.9 else chr(draw.randrange(0x110000)))
    return "".join(chars)


def test_words_of_random_text_cover_every_visible_character_once():
    draw = random.Random(14)
    most = 0
    for _ in range(4000):
        text = random_text(draw)
        spans = split_words(text)
        covered = [i for a, b in spans for i in range(a, b)]
        assert covered == sorted(set(covered)), ascii(text)                   # ascending, none twice
        assert covered == [i for i, c in enumerate(text) if not c.isspace()], ascii(text)
        assert all(a < b and text[a:b] == text[a:b].strip() for a, b in spans), ascii(text)
        most = max(most, len(spans))
    assert most > 12


def test_words_of_text_do_not_depend_on_the_spaces_between_them():
    draw = random.Random(15)
    for _ in range(300):
        lines = [text for text, _ in draw.choices(LINES, k=5)]
        each = [text[a:b] for text in lines for a, b in split_words(text)]
        both = "  ".join(lines)
        assert [both[a:b] for a, b in split_words(both)] == each


def test_every_word_of_raw_text_gets_a_piece(uncased):
    draw = random.Random(16)
    for _ in range(300):
        text = random_text(draw).encode("utf-8", "replace").decode()          # what can come from a file
        words = [text[a:b] for a, b in split_words(text)]
        assert sorted(set(uncased.pieces([words])[0].words)) == list(range(len(words))), ascii(text)


# ------------------------------------------------------------------------------------------------------- errors


def test_no_tokenizer_in_the_folder(tmp_path):
    with refused(tmp_path, "tokenizer.json", "vocab.txt"):
        Tokenizer.read(tmp_path)
    with refused(tmp_path / "none"):
        Tokenizer.read(tmp_path / "none")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"version": "1.0"}', '{"model": {"type": "BPE"}}'])
def test_a_tokenizer_json_that_is_none(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    with refused(tmp_path / "tokenizer.json"):
        Tokenizer.read(tmp_path)


def test_bytes_that_are_not_text(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xff\xfe\n")
    with refused(tmp_path / "vocab.txt"):
        Tokenizer.read(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b'{"version": "\xff"}')
    with refused(tmp_path / "tokenizer.json"):
        Tokenizer.read(tmp_path)


@pytest.mark.parametrize("settings", ["{", "[]", '{"do_lower_case": "no"}'])
def test_a_tokenizer_config_that_cannot_be_read(tmp_path, settings):
    from_vocab(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(settings, encoding="utf-8")
    with refused(tmp_path):
        Tokenizer.read(tmp_path)


@pytest.mark.parametrize("gone", [["[CLS]"], ["[SEP]"], ["[UNK]"], ["[PAD]"], ["[CLS]", "[SEP]"]], ids="".join)
def test_a_vocabulary_without_its_special_pieces(tmp_path, gone):
    vocabulary = [p for p in VOCABULARY if p not in gone]
    with refused(tmp_path / "vocab.txt", *gone):
        from_vocab(tmp_path, vocabulary)
    with refused(tmp_path / "json" / "tokenizer.json", *gone):
        from_json(tmp_path / "json", vocabulary=vocabulary)


def test_a_vocabulary_without_mask_is_enough(tmp_path):
    tokenizer = from_vocab(tmp_path, [p for p in VOCABULARY if p != "[MASK]"])
    assert tokenizer.mask is None and tokenizer.end == 3


def test_an_empty_vocabulary(tmp_path):
    (tmp_path / "vocab.txt").write_text("", encoding="utf-8")
    with refused(tmp_path / "vocab.txt", "is empty"):
        Tokenizer.read(tmp_path)


def test_a_long_stretch_of_letters_takes_no_quadratic_time():
    seen = []

    class Text(str):
        def __getitem__(self, key):
            seen.append(1)
            return str.__getitem__(self, key)

    n = 3000
    assert split_words(Text("a" * n)) == [(0, n)] and len(seen) < 20 * n


def test_case_shape_is_the_same_however_accents_are_stored():
    for word in ("Zürich", "Málaga", "ÜBER", "élan"):
        assert case_shape(unicodedata.normalize("NFD", word)) == case_shape(word)
    assert CASE_SHAPES[case_shape("Zu\u0308rich")] == "title"


@pytest.mark.parametrize("text, words", [
    ("It costs €100 (or £5.50).", "It|costs|€100|(|or|£5.50|)|."), ("20°C→5×4 ©2024", "20°C→5×4|©2024"),
    ("it😀😀 x™", "it😀😀|x™"), ("中国x €5", "中|国|x|€5"), ("a \u200b \ufffd b", "a|b"),
    ("Ada's [MASK]", "Ada|'s|[|MASK|]"), ("", ""), ("नमस्ते°x", "नमस्ते°x")])
def test_words_for_bert_are_joined_where_it_knows_no_cut(uncased, text, words):
    assert uncased.words(text) == (words.split("|") if words else [])


def test_added_pieces_are_words_wherever_they_stand(uncased):
    pieces = [AddedToken("<ent>"), AddedToken("[E1]", special=True, normalized=False), AddedToken("[E1]x"),
              AddedToken("new york")]
    add_tokens(uncased.backend, [(uncased.size + i, piece, "here") for i, piece in enumerate(pieces)])
    text = "a<ENT>b [E1]hi [e1] [E1]x in New York."
    assert uncased.words(text) == ["a", "<ENT>", "b", "[E1]", "hi", "[", "e1", "]", "[E1]x", "in", "New York", "."]
    assert uncased.words(text, wholes=False)[:5] == ["a", "<", "ENT", ">", "b"]
    again = "".join(text[a:b] for a, b in uncased.cut(text))
    assert again == text.replace(" ", "").replace("NewYork", "New York")
