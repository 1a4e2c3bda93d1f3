"""BLEU against sacrebleu and ROUGE against rouge-score, on random texts with everything that splits words in them."""
import random
import sys
import unicodedata

import pytest
import regex
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from sacrebleu.tokenizers.tokenizer_char import TokenizerChar
from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

from minibert.scores import texts as textscores
from minibert.scores import words as wordrules

WORDS = ["the", "The", "cat", "a", "3,000.50", "5%", "(net)", "don't", "x-ray", "4-5", "U.S.", "&amp;", "&lt;b&gt;",
         '"no"', "“so”", "…", "größe", "$5", "a/b", "end.", "3.", ",5", "[1]", "`", "~", "日本", "<skipped>", "-",
         "--", "it's;"]

SCRIPTS = {
    "hindi": "नदी के किनारे एक पुराना घर है । क्‍या लड़का १२ किताबें पढ़ता है ?".split(),
    "arabic": "ذهبَ الوَلَدُ إلى المدرسة ، ثم عاد ٣ مرات . می‌خواهم".split(),
    "korean": "강가에 오래된 집이 있다 . 아이가 책 3권을 읽는다 !".split(),
    "thai": ["แม่น้ำ", "กินข้าวแล้ว", "๑๒", "บ้านเก่า", "ๆ", "น้ำ", "ไป", "3.5", "ที่"],
    "khmer": ["ផ្ទះ", "ទឹកស្អាត", "ខ្ញុំ", "ទៅ", "។"],
    "chinese": ["河边有一座老房子", "，", "我有2.5元", "USB线", "。", "“好”", "〇", "房子", "々", "ＡＢ", "！"],
    "japanese": ["川のそばに", "古い家", "ラーメン", "が", "ある", "。", "ｶﾅ", "B級", "「はい」", "猫"],
    "russian": "У реки стоит старый дом , ёлка 4-5 й".split(),
    "nfd": [unicodedata.normalize("NFD", word) for word in "Où l'église größe Đà Nẵng ça ñandú".split()],
    "emoji": ["😀", "❤️", "👍🏽", "ok", "👨‍👩‍👧", "家", "дом"]}


def texts(draw: random.Random, count: int, most: int, words=WORDS) -> list[str]:
    return [" ".join(draw.choices(words, k=draw.randrange(0, most))) for _ in range(count)]


def noisy(draw: random.Random, text: str) -> str:
    """The same with some words gone, doubled or others."""
    words = text.split(" ")
    return " ".join(w for word in words for w in draw.choice([[word]] * 6 + [[], [word, word], [draw.choice(WORDS)]]))


@pytest.mark.parametrize("seed", range(40))
def test_words_are_those_of_13a(seed):
    draw = random.Random(seed)
    for text in [*texts(draw, 20, 14), "a-\nb\nc", "1-\n2"]:
        assert " ".join(wordrules.words_13a(text)) == Tokenizer13a()(text)


def test_every_character_is_chinese_or_not_as_for_sacrebleu():
    for c in map(chr, [*range(0xD800), *range(0xE000, sys.maxunicode, 7)]):
        assert bool(wordrules.CHINESE.fullmatch(c)) == TokenizerZh._is_chinese_char(c), f"{ord(c):x}"


@pytest.mark.parametrize("language", SCRIPTS)
@pytest.mark.parametrize("name, theirs", [("zh", TokenizerZh), ("char", TokenizerChar), ("13a", Tokenizer13a)])
def test_words_and_bleu_are_sacrebleus_in_every_script(language, name, theirs):
    draw = random.Random(language)
    words = SCRIPTS[language] + WORDS
    gold = texts(draw, 60, 14, words)
    for text in gold:
        assert wordrules.BLEU_WORDS[name](text) == theirs()(text.rstrip()).split()
    said = [" ".join(draw.choices(words, k=3)) if draw.random() < 0.1 else noisy(draw, text) for text in gold]
    wanted = sacrebleu.corpus_bleu(said, [gold], tokenize=name).score
    assert textscores.bleu(gold, said, name) == pytest.approx(wanted, abs=1e-6) and wanted > 10


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("most", [3, 6, 30])
def test_bleu_is_sacrebleus(seed, most):
    draw = random.Random(seed)
    gold = texts(draw, 12, most)
    said = [noisy(draw, text) for text in gold]
    theirs = sacrebleu.corpus_bleu(said, [gold])
    assert textscores.bleu(gold, said, "13a") == pytest.approx(theirs.score, abs=1e-6)
    low = sacrebleu.corpus_bleu(said, [gold], lowercase=True).score
    gold, said = ([text.lower() for text in side] for side in (gold, said))
    assert textscores.bleu(gold, said, "13a") == pytest.approx(low, abs=1e-6)


def test_bleu_of_nothing_right_is_theirs():
    for gold, said in ((["a b c d e"], ["v w x y z"]), (["a b c"], ["a b c"]), (["a b c d e"], [""])):
        assert textscores.bleu(gold, said) == pytest.approx(sacrebleu.corpus_bleu(said, [gold]).score, abs=1e-6)


ALONE = "".join(rf"\p{{Script={name}}}" for name in ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar"))


class UnicodeWords(Tokenizer):
    """The same rule by the regex package, which knows scripts by its own tables."""

    def tokenize(self, text):
        plain = regex.sub(r"\p{Cf}", "", unicodedata.normalize("NFKC", text.lower()))
        return regex.findall(rf"[\p{{L}}&&[{ALONE}ー]]\p{{M}}*|[[\p{{L}}\p{{N}}]--[\p{{L}}&&[{ALONE}ー]]]"
                             rf"[[\p{{L}}\p{{N}}\p{{M}}]--[\p{{L}}&&[{ALONE}ー]]]*", plain, regex.V1)


def assert_same_rouge(gold: list[str], said: list[str], scorer: RougeScorer, rule: str | None) -> None:
    ours = textscores.rouge(gold, said, rule)
    rows = [scorer.score(g, s) for g, s in zip(gold, said, strict=True)]
    for name in ("1", "2", "L"):
        for column, attribute in (("precision", "precision"), ("recall", "recall"), ("f1", "fmeasure")):
            mean = sum(getattr(row[f"rouge{name}"], attribute) for row in rows) / len(rows)
            assert ours[name][column] == pytest.approx(mean, abs=1e-9)


@pytest.mark.parametrize("seed", range(40))
def test_rouge_is_rouge_scores(seed):
    draw = random.Random(seed)
    gold = texts(draw, 12, 20)
    said = [noisy(draw, text) for text in gold]
    assert_same_rouge(gold, said, RougeScorer(["rouge1", "rouge2", "rougeL"]), "latin")


@pytest.mark.parametrize("language", SCRIPTS)
def test_rouge_of_other_scripts_is_rouge_scores_with_words_by_the_regex_package(language):
    draw = random.Random(language)
    gold = texts(draw, 40, 12, SCRIPTS[language] + WORDS)
    said = [noisy(draw, text) for text in gold]
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=UnicodeWords())
    for text in gold + said:
        assert wordrules.words_unicode(text) == UnicodeWords().tokenize(text), text
    assert_same_rouge(gold, said, scorer, "unicode")


def test_texts_in_latin_letters_keep_the_numbers_of_both():
    """Whatever accents they have: the rule is chosen by the text, and is the published one."""
    sentences = ["Où est l'église de ce village ?", "Die größte Straße führt über die Brücke.", "Þetta er æðislegt.",
                 "Ở Đà Nẵng có nhiều cầu đẹp.", "Łódź ma dużo źródeł.", "Işık çok güzel.", "Azərbaycan dilində əlifba"]
    for gold in ([s] for s in sentences + [unicodedata.normalize("NFD", s) for s in sentences]):
        said = [gold[0].replace("e", "a", 2)]
        assert_same_rouge(gold, said, RougeScorer(["rouge1", "rouge2", "rougeL"]), None)
        assert textscores.bleu(gold, said) == pytest.approx(sacrebleu.corpus_bleu(said, [gold]).score, abs=1e-6)
