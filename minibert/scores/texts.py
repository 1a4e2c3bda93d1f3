"""Scores of texts that a model picks or writes: answers as SQuAD counts them, BLEU, ROUGE."""
import math
import re
import string
from collections import Counter
from collections.abc import Sequence

from minibert.scores.tables import COLUMNS, Row, Scores, ratio, row_of, side_by_side
from minibert.scores.words import BLEU_WORDS, ROUGE_WORDS, word_rules


def plain_answer(text: str) -> str:
    """An answer as SQuAD's official scorer compares it: lower case, no ASCII punctuation, no articles, single spaces.

    >>> plain_answer("The  U.S. (an ally)")
    'us ally'
    """
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def answer_f1(gold: str, predicted: str) -> float:
    """F1 of the words that two answers share, counted with repeats; 1 if both are empty, 0 if one is.

    Words are what blanks divide, in every language, as in SQuAD's script and so in XQuAD's: a Chinese or Thai answer is
    one word and right as a whole or not at all. (MLQA's own script takes Chinese characters one by one, and has other
    articles for other languages; its numbers are not these.)

    >>> answer_f1("the old red house", "red house"), answer_f1("", "house"), answer_f1("", "the")
    (0.8, 0.0, 1.0)
    """
    right, guess = plain_answer(gold).split(), plain_answer(predicted).split()
    if not right or not guess:
        return float(right == guess)
    shared = (Counter(right) & Counter(guess)).total()
    return 2 * shared / (len(right) + len(guess))


def answer_scores(gold: Sequence[Sequence[str]], predicted: Sequence[str]) -> Scores:
    """SQuAD's official scores, as shares of 1; a question with no gold answer is right when "" is predicted.

    `exact`: equal to any of the right answers once both are plain_answer()s; `f1`: the best answer_f1 of them, the mean
    over questions. Right answers of which nothing is left when plain (such as "the") are passed over, as officially;
    a question with no other counts as one without an answer. `answered` and `unanswerable` are the same of the two
    kinds of questions. Raises MinibertError where the two sides differ in length.

    >>> scores = answer_scores([["in 1911", "1911"], []], ["1911", "1912"])
    >>> scores["exact"], scores["answered"]["f1"], scores["unanswerable"]["f1"]
    (0.5, 1.0, 0.0)
    """
    rows: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for every, guess in side_by_side(gold, predicted, "answers"):
        right = [text for text in every if plain_answer(text)] or [""]
        rows[right != [""]].append((max(float(plain_answer(text) == plain_answer(guess)) for text in right),
                                    max(answer_f1(text, guess) for text in right)))
    return {**_means(rows[True] + rows[False]), "answered": _means(rows[True]), "unanswerable": _means(rows[False])}


def _means(rows: Sequence[tuple[float, float]]) -> Scores:
    """What would be 0/0 is 0."""
    exact, f1 = (ratio(sum(row[i] for row in rows), len(rows)) for i in (0, 1))
    return {"exact": exact, "f1": f1, "support": len(rows)}


def answer_report(scores: Scores) -> str:
    """`answer_scores` as text: one line a kind of question.

    >>> print(answer_report(answer_scores([["in 1911"], []], ["1911", ""])))
                    exact       f1    support
    answered        0.000    0.667          1
    unanswerable    1.000    1.000          1
    all             0.500    0.833          2
    """
    rows = {"answered": scores["answered"], "unanswerable": scores["unanswerable"], "all": scores}
    lines = [f"{name:12}  {row['exact']:7.3f}  {row['f1']:7.3f}  {row['support']:9d}" for name, row in rows.items()]
    return "\n".join([f"{'':12}  {'exact':>7}  {'f1':>7}  {'support':>9}", *lines])


def runs(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """How often each run of n words stands in a text."""
    return Counter(tuple(words[i:i + n]) for i in range(len(words) - n + 1))


def bleu(gold: Sequence[str], predicted: Sequence[str], rule: str | None = None) -> float:
    """BLEU of a whole set, 0 to 100, one right text each (Papineni et al. 2002), as sacrebleu computes it.

    The geometric mean over n = 1 to 4 of the share of predicted runs of n words that the right text has too, a run at
    most as often as there; times e^(1 − r/c) where the c predicted words are fewer than the r right ones. The k-th n
    without a shared run counts as 2^-k of one; a set without a predicted run of four words has 0. Letter case counts.
    `rule` is a name of words.BLEU_WORDS and of sacrebleu's tokenizers: 13a, zh, char; None: as words.word_rules() says
    of `gold`. Raises MinibertError where the two sides differ in length.

    >>> round(bleu(["the cat sat on the mat today"], ["the cat sat on a mat today"]), 2)
    48.89
    """
    words = BLEU_WORDS[rule or word_rules(gold)["bleu"]]
    pairs = [(words(right), words(guess)) for right, guess in side_by_side(gold, predicted, "texts")]
    logs, missing = 0.0, 0
    for n in range(1, 5):
        shared = sum((runs(right, n) & runs(guess, n)).total() for right, guess in pairs)
        there = sum(max(0, len(guess) - n + 1) for _, guess in pairs)
        if not there or (n == 1 and not shared):
            return 0.0
        missing += not shared
        logs += math.log(shared / there if shared else 1 / (2 ** missing * there)) / 4

    right, guess = (sum(len(pair[side]) for pair in pairs) for side in (0, 1))
    return 100 * math.exp(logs + min(0.0, 1 - right / guess))


def rouge(gold: Sequence[str], predicted: Sequence[str], rule: str | None = None) -> dict[str, dict[str, float]]:
    """{"1", "2", "L": {"precision", "recall", "f1"}}, each the mean over texts (Lin 2004), as rouge-score computes it.

    1 and 2 compare words and pairs of neighbours with repeats, L the longest common subsequence. `rule` is a name of
    words.ROUGE_WORDS: latin, rouge-score's own, or unicode; None: as words.word_rules() says of `gold`. Raises
    MinibertError where the two sides differ in length.

    >>> scores = rouge(["The cat sat."], ["the black cat"])
    >>> [round(scores[k]["f1"], 3) for k in ("1", "2", "L")]
    [0.667, 0.0, 0.667]
    """
    words = ROUGE_WORDS[rule or word_rules(gold)["rouge"]]
    rows: dict[str, list[Row]] = {"1": [], "2": [], "L": []}
    for texts in side_by_side(gold, predicted, "texts"):
        right, guess = map(words, texts)
        for name, n in (("1", 1), ("2", 2)):
            there, found = runs(right, n), runs(guess, n)
            rows[name].append(row_of((there & found).total(), found.total(), there.total()))
        rows["L"].append(row_of(common_subsequence(right, guess), len(guess), len(right)))
    return {name: {c: ratio(sum(row[c] for row in every), len(every)) for c in COLUMNS} for name, every in rows.items()}


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest sequence of words that stands in both, in order, with gaps.

    >>> common_subsequence("the cat sat on the mat".split(), "the mat sat".split())
    2
    """
    lengths = [0] * (len(b) + 1)                   # of the words of `a` so far with the first j of `b`
    for x in a:
        before = 0                                 # what stood to the left, one word of `a` ago
        for j, y in enumerate(b, 1):
            before, lengths[j] = lengths[j], before + 1 if x == y else max(lengths[j], lengths[j - 1])
    return lengths[-1]
