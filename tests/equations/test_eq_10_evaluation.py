"""Chapter 10: scores against counting by hand, the decoder against all sequences, the claims on chance exactly."""
import bisect
import itertools
import math
import random
import re
import statistics
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest

from minibert import metrics
from minibert.scores import tags as module
from minibert.scores.tables import COLUMNS, row_of
from minibert.tasks.ner import best_tags, best_valid_path

BIO = ["O"] + [f"{prefix}-{kind}" for kind in ("LOC", "ORG") for prefix in "BI"]
EVERY = ["O"] + [f"{prefix}-{kind}" for kind in ("LOC", "ORG") for prefix in "BIES"]
LETTERS = {"O": ".", **{f"{x}-LOC": x for x in "BIES"}, **{f"{x}-ORG": x.lower() for x in "BIES"}}
NORMAL = NormalDist()
POPULATION = [Fraction(x) for x in (0, 1, 3, 8, 9)]


def spans(tags) -> set[tuple[str, int, int]]:
    """conlleval's entities by a regular expression over one letter a word: capitals are LOC, small ones ORG."""
    text = "".join(LETTERS[t] for t in tags)
    found = re.finditer(r"[BI]I*E?|[ES]|[bi]i*e?|[es]", text)
    return {("LOC" if m[0].isupper() else "ORG", m.start(), m.end()) for m in found}


@pytest.fixture
def sentences():
    """Gold and predicted tags of 40 sentences; three tags in ten are replaced."""
    draw = random.Random(10)
    gold = [draw.choices(EVERY, weights=[9, 3, 5, 1, 1, 2, 2, 1, 1], k=draw.randint(1, 13)) for _ in range(40)]
    return gold, [[draw.choice(EVERY) if draw.random() < 0.3 else t for t in s] for s in gold]


# --------------------------------------------------------------------------------------------- three counts, two ratios


def test_precision_and_recall_ask_every_entity_in_turn_SCORE_1_SCORE_2(sentences):
    gold, predicted = sentences
    marked = [span in spans(g) for g, p in zip(gold, predicted, strict=True) for span in spans(p)]
    there = [span in spans(p) for g, p in zip(gold, predicted, strict=True) for span in spans(g)]
    scores = metrics.entity_scores(gold, predicted)
    assert scores["precision"] == pytest.approx(statistics.fmean(marked), rel=1e-14)
    assert scores["recall"] == pytest.approx(statistics.fmean(there), rel=1e-14)
    assert len(marked) != len(there) == scores["support"]


def test_f1_is_twice_the_shared_part_over_both_sizes_SCORE_3(sentences):
    gold, predicted = ({(i, *e) for i, s in enumerate(side) for e in spans(s)} for side in sentences)
    both = Fraction(2 * len(gold & predicted), len(gold) + len(predicted))
    assert metrics.entity_scores(*sentences)["f1"] == pytest.approx(float(both), rel=1e-14)
    assert metrics.entity_scores([["O"]], [["O"]])["f1"] == 0.0               # 0/0 counts as 0


def test_f1_is_the_harmonic_mean_SCORE_4():
    for marked, there in itertools.product(range(1, 12), range(1, 14)):
        for correct in range(1, min(marked, there) + 1):
            p, r = Fraction(correct, marked), Fraction(correct, there)
            claimed = 2 * p * r / (p + r)                                     # [SCORE-4]
            assert claimed == Fraction(2 * correct, marked + there) == statistics.harmonic_mean([p, r])
            assert row_of(correct, marked, there)["f1"] == pytest.approx(float(claimed), rel=1e-14)
            assert min(p, r) <= claimed <= (p + r) / 2


# ------------------------------------------------------------------------------------------------ averages over tags


def test_micro_f1_of_one_tag_a_word_is_accuracy_SCORE_5_SCORE_6(sentences):
    gold, predicted = ([t for s in side for t in s] for side in sentences)
    right = [g == p for g, p in zip(gold, predicted, strict=True)]
    c = [sum(ok for ok, g in zip(right, gold, strict=True) if g == tag) for tag in EVERY]
    m, g = [predicted.count(tag) for tag in EVERY], [gold.count(tag) for tag in EVERY]
    micro = 2 * sum(c) / (sum(m) + sum(g))                                    # [SCORE-6]
    scores = metrics.tag_scores(gold, predicted)
    assert micro == pytest.approx(statistics.fmean(right), rel=1e-14)
    assert scores["accuracy"] == pytest.approx(statistics.fmean(right), rel=1e-14)
    assert scores["micro_f1"] == scores["micro_precision"] == scores["micro_recall"] == scores["accuracy"]
    assert 0.5 < micro < 0.9


@pytest.mark.parametrize("column", COLUMNS)
def test_macro_counts_tags_and_weighted_counts_words_SCORE_7_SCORE_8(sentences, column):
    gold, predicted = ([t for s in side for t in s] for side in sentences)
    values = []
    for tag in EVERY:
        there, marked = ({i for i, t in enumerate(side) if t == tag} for side in (gold, predicted))
        both = len(there & marked)
        values.append({"precision": both / len(marked), "recall": both / len(there),
                       "f1": 2 * both / (len(there) + len(marked))}[column])
    scores = metrics.tag_scores(gold, predicted)
    assert scores[f"macro_{column}"] == pytest.approx(statistics.fmean(values), rel=1e-13)
    weighted = statistics.fmean(values, weights=[gold.count(tag) for tag in EVERY])
    assert scores[f"weighted_{column}"] == pytest.approx(weighted, rel=1e-13)
    assert abs(scores[f"weighted_{column}"] - scores[f"macro_{column}"]) > 1e-3


# ---------------------------------------------------------------------------------------------------------- entities


def test_an_entity_counts_only_whole_SCORE_9(sentences):
    gold = [["B-LOC", "I-LOC", "I-LOC", "O", "B-ORG"]]
    for slip in (["B-LOC", "I-LOC", "O", "O", "B-ORG"], ["O", "B-LOC", "I-LOC", "O", "B-ORG"],
                 ["B-ORG", "I-ORG", "I-ORG", "O", "B-ORG"], ["B-LOC", "I-LOC", "I-LOC", "I-LOC", "B-ORG"]):
        assert metrics.entity_scores(gold, [slip])["recall"] == 0.5           # B-ORG alone is right
    pairs = [(a, b) for g, p in zip(*sentences, strict=True) for a in spans(g) for b in spans(p) if a == b]
    scores = metrics.entity_scores(*sentences)
    assert scores["recall"] * scores["support"] == pytest.approx(len(pairs), rel=1e-13)
    assert len(pairs) > 20


def test_two_words_are_joined_where_conlleval_joins_them_SCORE_10():
    for before, word in itertools.product(EVERY, repeat=2):
        joined = any(stop - start == 2 for _, start, stop in spans([before, word]))
        assert module._joined(module._split(before), module._split(word)) is joined
    for tags in itertools.product(EVERY, repeat=4):
        assert set(metrics.entities(tags)) == spans(tags)


def test_strict_leaves_out_what_does_not_begin_with_b_SCORE_11():
    for tags in itertools.product(BIO, repeat=4):
        begun = {(kind, first, stop) for kind, first, stop in spans(tags) if tags[first] == f"B-{kind}"}
        assert set(metrics.entities(tags, strict=True)) == begun


def test_a_lone_i_is_the_smallest_difference_of_the_two_readings_SCORE_10_SCORE_11():
    """Chapter 10: gold B-LOC, predicted I-LOC. conlleval: 1 of 1 right. Strict: nothing predicted, 0 right."""
    assert metrics.entities([]) == metrics.entities([], strict=True) == []
    differing = [t for t in BIO if metrics.entities([t]) != metrics.entities([t], strict=True)]
    assert differing == ["I-LOC", "I-ORG"]
    assert metrics.entities(["I-LOC"]) == [("LOC", 0, 1)] and metrics.entities(["I-LOC"], strict=True) == []
    assert metrics.entity_scores([["B-LOC"]], [["I-LOC"]])["f1"] == 1.0


GOLD = "B-PER I-PER O B-ORG I-ORG I-ORG I-ORG I-ORG".split()
GUESS = "B-PER I-PER O B-ORG I-ORG I-ORG O B-LOC".split()


def test_worked_example_entities_SCORE_1_SCORE_2_SCORE_9():
    """Chapter 10: Peter Chan left University of California , Berkeley.

    Gold: PER 0-2, ORG 3-8. Predicted: PER 0-2, ORG 3-6, LOC 7-8. Right: PER. p = 1/3, r = 1/2, F1 = 2·1/(3 + 2).
    """
    scores = metrics.entity_scores([GOLD], [GUESS])
    assert (scores["precision"], scores["recall"], scores["f1"], scores["support"]) == (1 / 3, 1 / 2, 2 / 5, 2)
    assert 2 * Fraction(1, 3) * Fraction(1, 2) / (Fraction(1, 3) + Fraction(1, 2)) == Fraction(2, 5)


def test_worked_example_tags_SCORE_5_SCORE_7_SCORE_8():
    """Chapter 10: six of eight tags are right: micro 3/4.

    F1: B-PER, I-PER, B-ORG 1; I-ORG 2·2/(2 + 4) = 2/3; O 2·1/(2 + 1) = 2/3; B-LOC 0 of 1 predicted, 0 gold: 0.
    macro (1 + 1 + 1 + 2/3 + 2/3 + 0)/6 = 13/18; weighted (1 + 1 + 1 + 4·2/3 + 1·2/3)/8 = 19/24.
    """
    scores = metrics.tag_scores(GOLD, GUESS)
    per_tag = {tag: row["f1"] for tag, row in scores["per_tag"].items()}
    assert per_tag == {"B-PER": 1, "I-PER": 1, "B-ORG": 1, "I-ORG": 2 / 3, "O": 2 / 3, "B-LOC": 0}
    assert scores["micro_f1"] == 3 / 4
    assert scores["macro_f1"] == pytest.approx(13 / 18, rel=1e-15)
    assert scores["weighted_f1"] == pytest.approx(19 / 24, rel=1e-15)


# ---------------------------------------------------------------------------------------------------------- decoding

LABELS = ["O", *(f"{prefix}-{kind}" for kind in ("LOC", "ORG", "PER") for prefix in "BI")]


def valid(path) -> bool:
    """Every I-X has X just before it."""
    names = ["O", *(LABELS[k] for k in path)]
    return all(t[0] != "I" or before[2:] == t[2:] for before, t in itertools.pairwise(names))


def log_probabilities(scores) -> list[list[float]]:
    """log softmax of each row by math alone."""
    return [[x - math.log(math.fsum(math.exp(y) for y in row)) for x in row] for row in scores.tolist()]


def test_the_path_is_the_best_of_all_sequences_of_five_words_VIT_1_VIT_2():
    paths = [t for t in itertools.product(range(7), repeat=5) if valid(t)]
    draw, differs = np.random.default_rng(7), 0
    for _ in range(12):
        scores = 2 * draw.standard_normal((5, 7))
        logs = log_probabilities(scores)
        highest = max(math.fsum(logs[w][k] for w, k in enumerate(t)) for t in paths)       # [VIT-1]
        found = best_valid_path(scores, LABELS)
        assert valid(found)
        assert math.fsum(logs[w][k] for w, k in enumerate(found)) == pytest.approx(highest, rel=1e-13)
        differs += found != best_tags(scores, LABELS)
    assert differs > 6                                                        # the words alone would not do


def test_a_path_may_win_by_a_hair_VIT_2():
    """O B I loses 10 at the second word, O O O loses 10.005 at the third: nothing may be scaled on the way."""
    scores = np.array([[0.0, -30, -30], [0, -10, -30], [-10.005, -40, 0]])
    assert best_valid_path(scores, ["O", "B-X", "I-X"]) == [0, 1, 2]
    scores[2, 0] = -9.995
    assert best_valid_path(scores, ["O", "B-X", "I-X"]) == [0, 0, 0]


def test_two_words_on_paper_VIT_1_VIT_2():
    """Chapter 10: p = (0.5, 0.4, 0.1) and (0.3, 0.1, 0.6) for O, B-PER, I-PER.

    Word 1 leaves 0.5, 0.4, 0. Word 2: O 0.5·0.3 = 0.15, B 0.5·0.1 = 0.05, I 0.4·0.6 = 0.24, from B.
    """
    p, names = np.array([[0.5, 0.4, 0.1], [0.3, 0.1, 0.6]]), ["O", "B-PER", "I-PER"]
    allowed = {(a, b): p[0, a] * p[1, b] for a in (0, 1) for b in (0, 1, 2) if (a, b) != (0, 2)}
    assert {t: round(x, 12) for t, x in allowed.items()} == {(0, 0): 0.15, (0, 1): 0.05, (1, 0): 0.12, (1, 1): 0.04,
                                                            (1, 2): 0.24}
    assert best_tags(np.log(p), names) == [0, 2]                              # O I-PER: no such sequence
    assert best_valid_path(np.log(p), names) == [1, 2]
    gold = [["B-PER", "I-PER"]]
    assert metrics.entity_scores(gold, [["O", "I-PER"]])["f1"] == 0.0
    assert metrics.entity_scores(gold, gold)["f1"] == 1.0


# -------------------------------------------------------------------------------------------- several seeds, chance


def deviation(scores) -> float:
    mean = math.fsum(scores) / len(scores)
    return math.sqrt(math.fsum((x - mean) ** 2 for x in scores) / (len(scores) - 1))          # [DOUBT-1]


def half_width(s):
    return 4.303 * s / math.sqrt(3)                                           # [DOUBT-4]


def area(y, x) -> float:
    """The trapezoidal rule on evenly spaced x."""
    return float((y[1:] + y[:-1]).sum() * (x[1] - x[0]) / 2)


def student(freedom: int, t: float) -> float:
    """P(|T| ≤ t), the area under Student's density."""
    x = np.linspace(-t, t, 200_001)
    c = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    return area(c * (1 + x ** 2 / freedom) ** (-(freedom + 1) / 2), x)


def test_standard_deviation_with_n_minus_1_is_right_on_average_DOUBT_1():
    scores = [0.881, 0.893, 0.902, 0.874, 0.897, 0.886]
    assert deviation(scores) == pytest.approx(statistics.stdev(scores), rel=1e-12)
    triples = itertools.product(POPULATION, repeat=3)
    assert statistics.mean(statistics.variance(t) for t in triples) == statistics.pvariance(POPULATION)   # exactly
    assert deviation([float(x) for x in POPULATION[:3]]) == pytest.approx(math.sqrt(7 / 3), rel=1e-14)


def test_standard_error_by_all_125_triples_DOUBT_2():
    s, k = math.sqrt(statistics.pvariance(POPULATION)), 3
    error = s / math.sqrt(k)                                                  # [DOUBT-2]
    means = [statistics.mean(t) for t in itertools.product(POPULATION, repeat=3)]
    assert math.sqrt(statistics.pvariance(means)) == pytest.approx(error, rel=1e-13)


def test_student_with_three_runs_in_closed_form_DOUBT_3():
    draws = np.random.default_rng(3).standard_normal((400_000, 3))
    ts = abs(draws.mean(1)) / (draws.std(1, ddof=1) / math.sqrt(3))
    for t in (0.3, 1.0, 4.303, 11.0):
        claimed = t / math.sqrt(t ** 2 + 2)                                   # [DOUBT-3]
        assert claimed == pytest.approx(student(2, t), rel=1e-8)
        assert claimed == pytest.approx(float((ts <= t).mean()), abs=0.003)


def test_the_interval_of_three_runs_holds_the_truth_19_times_of_20_DOUBT_4():
    t = bisect.bisect_left(range(4000, 5000), 0.95, key=lambda n: student(2, n / 1000)) / 1000 + 4
    assert t == 4.303
    assert half_width(0.7) == pytest.approx(t * 0.7 / 3 ** 0.5, rel=1e-13)
    x = 0.892 + 0.001 * np.random.default_rng(4).standard_normal((400_000, 3))
    inside = abs(x.mean(1) - 0.892) <= half_width(x.std(1, ddof=1))
    assert float(inside.mean()) == pytest.approx(0.95, abs=0.002)
    two_errors = abs(x.mean(1) - 0.892) <= 1.96 * x.std(1, ddof=1) / 3 ** 0.5
    assert float(two_errors.mean()) == pytest.approx(0.81, abs=0.005)        # what the habit of 1.96 would give


def test_deviation_of_three_runs_is_itself_uncertain_DOUBT_5():
    """s of x = u·e1 + v·e2, both directions at right angles to the ones, over a fine grid of normal u and v."""
    z = np.array([NORMAL.inv_cdf((i + 0.5) / 900) for i in range(900)])
    e1, e2 = np.array([1, -1, 0]) / math.sqrt(2), np.array([1, 1, -2]) / math.sqrt(6)
    x = z[:, None, None] * e1 + z[None, :, None] * e2
    s = x.reshape(-1, 3).std(1, ddof=1)
    for q in (0.3, 0.8, 1.4):
        claimed = 1 - math.exp(-q ** 2)                                       # [DOUBT-5]
        assert float((s <= q).mean()) == pytest.approx(claimed, abs=1e-4)   # the grid's own error
    low, high = math.sqrt(-math.log(0.975)), math.sqrt(-math.log(0.025))
    assert (round(1 / high, 2), round(1 / low, 1)) == (0.52, 6.3)             # the true one, in multiples of s


def test_two_runs_of_one_recipe_differ_DOUBT_6():
    for s, d in ((0.001, 0.002), (0.002, 0.002), (0.003, 0.001)):
        claimed = math.erfc(d / (2 * s))                                      # [DOUBT-6]
        difference = NormalDist(0.89, s) - NormalDist(0.89, s)
        assert claimed == pytest.approx(2 * difference.cdf(-d), rel=1e-10)
    assert (round(math.erfc(1), 2), round(math.erfc(0.5), 2)) == (0.16, 0.48)


def share_error(a: float, n: int) -> float:
    return math.sqrt(a * (1 - a) / n)                                         # [DOUBT-7]


def test_error_of_a_share_by_the_binomial_distribution_DOUBT_7():
    n, a = 23, Fraction(3, 11)
    weights = {Fraction(i, n): math.comb(n, i) * a ** i * (1 - a) ** (n - i) for i in range(n + 1)}
    mean = sum(x * w for x, w in weights.items())
    variance = sum((x - mean) ** 2 * w for x, w in weights.items())
    assert share_error(float(a), n) == pytest.approx(math.sqrt(variance), rel=1e-13) and mean == a
    assert round(share_error(0.892, 5648), 4) == 0.0041                       # chapter 10: CoNLL-2003's entities,
    assert round(share_error(0.978, 46435), 4) == 0.0007                      # its words,
    assert round(share_error(0.740, 438), 3) == 0.021                         # and the project's own set


def expected_best(k: int, s: float) -> float:
    """E max of k normal numbers of deviation s: the area under x·k·φ(x)·Φ(x)^(k−1)."""
    x = np.linspace(-9, 9, 6001)
    density = np.array([k * NORMAL.pdf(t) * NORMAL.cdf(t) ** (k - 1) for t in x])
    return s * area(x * density, x)


def test_the_best_of_two_and_of_three_runs_DOUBT_8_DOUBT_9():
    s = 0.7
    two = s / math.sqrt(math.pi)                                              # [DOUBT-8]
    three = 3 * s / (2 * math.sqrt(math.pi))                                  # [DOUBT-9]
    assert two == pytest.approx(expected_best(2, s), rel=1e-9)
    assert three == pytest.approx(expected_best(3, s), rel=1e-9)
    assert [round(expected_best(k, 1.0), 3) for k in (2, 3, 10)] == [0.564, 0.846, 1.539]
    draws = s * np.random.default_rng(8).standard_normal((400_000, 3))
    assert float(draws.max(1).mean()) == pytest.approx(three, abs=0.004)


@pytest.mark.parametrize("K", [5, 9])
def test_wrong_gold_labels_pull_every_score_together_DOUBT_10(K):
    draw = random.Random(K)
    for noise in (0.07, 0.3):
        answer = [draw.random() for _ in range(K)]                            # label 0 is the truth
        answer = [x / sum(answer) for x in answer]
        gold = [1 - noise] + [noise / (K - 1)] * (K - 1)
        a = answer[0]
        measured = a * (1 - noise) + (1 - a) * noise / (K - 1)                # [DOUBT-10]
        assert measured == pytest.approx(math.fsum(x * y for x, y in zip(answer, gold, strict=True)), rel=1e-13)


def test_worked_example_three_seeds_DOUBT_1_DOUBT_2_DOUBT_4():
    """Chapter 10: 0.891, 0.892, 0.893: mean 0.892, s = sqrt((1 + 0 + 1)/2) thousandths, half-width 2.48 of them."""
    scores = [0.891, 0.892, 0.893]
    s = deviation(scores)
    assert statistics.fmean(scores) == pytest.approx(0.892, rel=1e-15)
    assert s == pytest.approx(0.001, rel=1e-12)
    assert (round(s / math.sqrt(3), 5), round(half_width(s), 5)) == (0.00058, 0.00248)
