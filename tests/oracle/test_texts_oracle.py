"""BLEU against sacrebleu and ROUGE against rouge-score, on random texts with everything that splits words in them."""
import random

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from minibert.scores import texts as textscores

WORDS = ["the", "The", "cat", "a", "3,000.50", "5%", "(net)", "don't", "x-ray", "4-5", "U.S.", "&amp;", "&lt;b&gt;",
         '"no"', "“so”", "…", "größe", "$5", "a/b", "end.", "3.", ",5", "[1]", "`", "~", "日本", "<skipped>", "-",
         "--", "it's;"]


def texts(draw: random.Random, count: int, most: int) -> list[str]:
    return [" ".join(draw.choices(WORDS, k=draw.randrange(0, most))) for _ in range(count)]


def noisy(draw: random.Random, text: str) -> str:
    """The same with some words gone, doubled or others."""
    words = text.split(" ")
    return " ".join(w for word in words for w in draw.choice([[word]] * 6 + [[], [word, word], [draw.choice(WORDS)]]))


@pytest.mark.parametrize("seed", range(40))
def test_words_are_those_of_13a(seed):
    draw = random.Random(seed)
    for text in [*texts(draw, 20, 14), "a-\nb\nc", "1-\n2"]:
        assert " ".join(textscores.words_13a(text)) == Tokenizer13a()(text)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("most", [3, 6, 30])
def test_bleu_is_sacrebleus(seed, most):
    draw = random.Random(seed)
    gold = texts(draw, 12, most)
    said = [noisy(draw, text) for text in gold]
    theirs = sacrebleu.corpus_bleu(said, [gold])
    assert textscores.bleu(gold, said) == pytest.approx(theirs.score, abs=1e-6)
    low = sacrebleu.corpus_bleu(said, [gold], lowercase=True)
    assert textscores.bleu([t.lower() for t in gold], [t.lower() for t in said]) == pytest.approx(low.score, abs=1e-6)


def test_bleu_of_nothing_right_is_theirs():
    for gold, said in ((["a b c d e"], ["v w x y z"]), (["a b c"], ["a b c"]), (["a b c d e"], [""])):
        assert textscores.bleu(gold, said) == pytest.approx(sacrebleu.corpus_bleu(said, [gold]).score, abs=1e-6)


@pytest.mark.parametrize("seed", range(40))
def test_rouge_is_rouge_scores(seed):
    draw = random.Random(seed)
    gold = texts(draw, 12, 20)
    said = [noisy(draw, text) for text in gold]
    scorer, ours = RougeScorer(["rouge1", "rouge2", "rougeL"]), textscores.rouge(gold, said)
    rows = [scorer.score(g, s) for g, s in zip(gold, said, strict=True)]
    for name in ("1", "2", "L"):
        for column, attribute in (("precision", "precision"), ("recall", "recall"), ("f1", "fmeasure")):
            mean = sum(getattr(row[f"rouge{name}"], attribute) for row in rows) / len(rows)
            assert ours[name][column] == pytest.approx(mean, abs=1e-9)
