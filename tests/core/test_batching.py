import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minibert.core.batch import Feature, collate
from minibert.core.layout import KINDS
from minibert.data.order import epoch_batches
from minibert.data.rows import owned_words, windows, word_features
from minibert.data.tokenizer import CASE_SHAPES, Tokenizer

steady = settings(max_examples=300, deadline=None, derandomize=True, database=None)


# -------------------------------------------------------------------------------------------------------------- windows


def text(sizes: list[int]) -> list[int]:
    """The word of each piece, from the number of pieces of each word."""
    return [w for w, size in enumerate(sizes) for _ in range(size)]


@st.composite
def texts(draw) -> tuple[list[int], int, int]:
    """(pieces a word, capacity, overlap up to half of it, as TrainConfig allows); some words outgrow a window."""
    capacity = draw(st.integers(6, 40))
    size = st.one_of(st.just(1), st.integers(1, 5), st.integers(1, capacity + 12))
    return draw(st.lists(size, min_size=1, max_size=90)), capacity, draw(st.integers(0, capacity // 2))


def slow_windows(words: list[int], capacity: int, overlap: int) -> list[tuple[int, int]]:
    """Word by word: fill a window, then go back over whole words as long as they fit into `overlap`.

    Going back must leave room for the first word not yet seen, or the next window would show nothing new.
    """
    sizes = [words.count(w) for w in range(words[-1] + 1)]
    begin = [sum(sizes[:w]) for w in range(len(sizes) + 1)]
    if len(words) <= capacity:
        return [(0, len(words))]
    result, first = [], 0
    while True:
        last = first                                   # windows hold words first .. last - 1
        while last < len(sizes) and begin[last + 1] - begin[first] <= capacity:
            last += 1
        if last == first:
            result.append((begin[first], begin[first] + capacity))
            last = back = first + 1
        else:
            result.append((begin[first], begin[last]))
            back = last
            if last < len(sizes):
                while back - 1 > first and begin[last] - begin[back - 1] <= overlap \
                        and begin[last + 1] - begin[back - 1] <= capacity:
                    back -= 1
        if last == len(sizes):
            return result
        first = back


@steady
@given(texts())
@example(([1] * 8 + [9] + [1] * 8, 10, 4))
@example(([12, 1, 1], 10, 4))
@example(([1, 1, 12], 10, 4))
@example(([30, 30, 30], 10, 4))
@example(([10, 10, 10], 10, 5))
def test_windows_are_those_of_the_slow_version(case):
    sizes, capacity, overlap = case
    assert windows(text(sizes), capacity, overlap) == slow_windows(text(sizes), capacity, overlap)


@steady
@given(texts())
def test_windows_cover_fit_and_cut_no_word(case):
    sizes, capacity, overlap = case
    words, cuts = text(sizes), windows(text(sizes), capacity, overlap)
    begins = {words.index(w) for w in range(len(sizes))}
    ends = {b + sizes[words[b]] for b in begins}
    for start, stop in cuts:
        assert 0 < stop - start <= capacity
        assert start in begins
        assert stop in ends or (stop == start + capacity and sizes[words[start]] > capacity)
    covered = {i for start, stop in cuts for i in range(start, stop)}
    assert covered == {b + j for b in begins for j in range(min(sizes[words[b]], capacity))} or len(words) <= capacity
    for before, after in zip(cuts, cuts[1:], strict=False):
        assert before[1] - after[0] <= overlap
        assert before[0] < after[0]


@steady
@given(texts())
@example(([1] * 8 + [9] + [1] * 8, 10, 4))
def test_every_window_shows_something_that_none_before_it_showed(case):
    """Eight words of one piece and then one of nine, in windows of ten with overlap 4: a window [4, 8) is wasted."""
    cuts = windows(text(case[0]), *case[1:])
    assert all(after[1] > before[1] for before, after in zip(cuts, cuts[1:], strict=False))


def test_windows_over_single_pieces_share_exactly_the_overlap():
    assert windows(range(25), 10, 4) == [(0, 10), (6, 16), (12, 22), (18, 25)]
    assert windows(range(25), 10, 0) == [(0, 10), (10, 20), (20, 25)]
    assert windows(range(10), 10, 4) == [(0, 10)]
    assert windows([], 10, 4) == [(0, 0)]


def slow_owners(words: list[int], cuts: list[tuple[int, int]]) -> list[list[int]]:
    """For each word the first window of the largest smaller-side context; the text's own ends limit nothing."""
    owned: list[list[int]] = [[] for _ in cuts]
    for w in range(words[-1] + 1):
        first, last = words.index(w), len(words) - 1 - words[::-1].index(w)
        best, owner = -1.0, None
        for i, (start, stop) in enumerate(cuts):
            if start <= first < stop:
                left = first - start if start > 0 else math.inf
                right = stop - 1 - last if stop < len(words) else math.inf
                context = max(0.0, min(left, right))
                if context > best:
                    best, owner = context, i
        owned[owner].append(w)
    return owned


@steady
@given(texts())
@example(([12, 1, 1], 10, 4))
@example(([1, 1, 12], 10, 4))
def test_each_word_is_owned_once_by_the_window_of_most_context(case):
    sizes, capacity, overlap = case
    words = text(sizes)
    cuts = windows(words, capacity, overlap)
    owned = [o.tolist() for o in owned_words(words, cuts)]
    assert owned == slow_owners(words, cuts)
    assert sorted(w for o in owned for w in o) == list(range(len(sizes)))
    for o, (start, stop) in zip(owned, cuts, strict=True):
        assert all(start <= words.index(w) < stop for w in o)


def test_owners_of_single_pieces_meet_in_the_middle_of_the_overlap():
    """[0, 10) and [6, 15): piece 7 has 2 to its right in the first and 1 to its left in the second; 8 has 1 and 2."""
    first, second = owned_words(range(15), [(0, 10), (6, 15)])
    assert first.tolist() == list(range(8)) and second.tolist() == list(range(8, 15))
    assert [o.tolist() for o in owned_words([], [(0, 0)])] == [[]]


@steady
@given(st.integers(60, 200), st.integers(20, 40), st.integers(8, 10))
def test_overlap_gives_every_word_context_on_both_sides(n, capacity, overlap):
    """With words of one piece, nobody in the middle of a text has fewer than overlap/2 - 1 pieces to either side."""
    cuts = windows(range(n), capacity, overlap)
    for (start, stop), owned in zip(cuts, owned_words(range(n), cuts), strict=True):
        for w in owned.tolist():
            assert start == 0 or w - start >= overlap // 2 - 1
            assert stop == n or stop - 1 - w >= overlap // 2 - 1


# ------------------------------------------------------------------------------------------------------------- features


@pytest.fixture
def tokenizer(tiny_folder) -> Tokenizer:
    return Tokenizer.read(tiny_folder)


WORDS = ["Ada", "visited", "Zoe", "in", "OSLO", ",", "McBert", "left", "UNESCO", "today", "\u200b", "the", "rain", "."]


@pytest.mark.parametrize("case_shapes", [False, True])
@pytest.mark.parametrize("max_pieces, overlap", [(40, 5), (16, 6), (9, 2), (8, 0)])
def test_word_features_label_and_pick_every_word_once(tokenizer, tiny_vocabulary, case_shapes, max_pieces, overlap):
    tokenizer.case_shapes = case_shapes
    pieces = tokenizer.pieces([WORDS])[0]
    labels = [17 + 3 * w for w in range(len(WORDS))]
    labels[4] = -1
    features = word_features(23, pieces, tokenizer, max_pieces, overlap, labels)
    cuts = windows(pieces.words, max_pieces - 2, overlap)
    assert len(features) == len(cuts) and (max_pieces == 40) == (len(cuts) == 1)
    seen = {}
    for f, (start, stop) in zip(features, cuts, strict=True):
        assert f.example == 23 and len(f.ids) == len(f.types) == stop - start + 2 <= max_pieces
        assert [tiny_vocabulary[f.ids[0]], tiny_vocabulary[f.ids[-1]]] == ["[CLS]", "[SEP]"]
        assert f.ids[1:-1].tolist() == pieces.ids[start:stop]
        shapes = [pieces.shapes[i] for i in range(start, stop)]
        assert f.types.tolist() == [0, *(2 * s for s in shapes), 0]
        assert all(x.dtype == np.int64 for x in (f.ids, f.types, f.picks, f.labels, f.about.words))
        assert len(f.picks) == len(f.labels) == len(f.about.words)
        for pick, label, target in zip(f.picks.tolist(), f.labels.tolist(), f.about.words.tolist(), strict=True):
            assert label == labels[target]
            assert pieces.words[start + pick - 1] == target and pieces.words.index(target) == start + pick - 1
            assert target not in seen
            seen[target] = f.types[pick]
    assert sorted(seen) == list(range(len(WORDS)))
    shape = {"Ada": "title", "OSLO": "upper", "McBert": "mixed", "left": "lower", "UNESCO": "upper", ",": "lower"}
    for word, name in shape.items():
        assert seen[WORDS.index(word)] == (2 * CASE_SHAPES.index(name) if case_shapes else 0)


def test_first_pieces_are_picked_by_their_spelling(tokenizer, tiny_vocabulary):
    """visited is one piece, zoe is z ##o ##e, works one, UNX u ##n ##x; a zero-width space becomes [UNK]."""
    words = ["visited", "Zoe", "works", "UNX", "\u200b", "rain"]
    f, = word_features(0, tokenizer.pieces([words])[0], tokenizer, 40, 5, list(range(6)))
    spelt = ["[CLS]", "visited", "z", "##o", "##e", "works", "u", "##n", "##x", "[UNK]", "rain", "[SEP]"]
    assert [tiny_vocabulary[i] for i in f.ids] == spelt
    assert f.picks.tolist() == [1, 2, 5, 6, 9, 10] and f.labels.tolist() == f.about.words.tolist() == [0, 1, 2, 3, 4, 5]


# -------------------------------------------------------------------------------------------------------------- collate


def features(*lengths: int, picks: int = 3) -> list[Feature]:
    """Ids from 20 on, all different; the picks of a row in no order, labels all different."""
    draw, result, total = np.random.default_rng(3), [], 20
    for i, n in enumerate(lengths):
        ids, total = np.arange(total, total + n), total + n
        chosen = draw.permutation(n)[:picks + i]
        result.append(Feature(i, ids, draw.integers(1, 9, n), chosen, 1000 + ids[chosen], ids[chosen]))
    return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [(9, 5, 12, 7), (6, 6), (8,), (5, 17)])
def test_collate_keeps_every_piece_and_points_every_pick_at_its_id(kind, lengths):
    rows = features(*lengths)
    batch = collate(rows, kind, pad=7)
    B, T = len(lengths), max(lengths)
    assert batch.layout.kind == kind and batch.layout.shape == (B, T) and batch.layout.prefix is None
    assert batch.features is rows and batch.pieces == sum(lengths)
    assert len(batch.ids) == len(batch.types) == (B * T if kind == "rectangle" else sum(lengths))
    wanted = [(int(i), int(label)) for f in rows for i, label in zip(f.ids[f.picks], f.labels, strict=True)]
    assert list(zip(batch.ids[batch.picks].tolist(), batch.labels.tolist(), strict=True)) == wanted
    assert all(label == 1000 + i for i, label in wanted) and len(wanted) > 2 * B
    ids, types, live = map(batch.layout.rows, (batch.ids, batch.types, batch.layout.live))
    for b, f in enumerate(rows):
        n = len(f.ids)
        assert ids[b, :n].tolist() == f.ids.tolist() and types[b, :n].tolist() == f.types.tolist()
        assert live[b].tolist() == [True] * n + [False] * (T - n)
        assert not types[b, n:].any()
        assert set(ids[b, n:].tolist()) <= {7 if kind == "rectangle" else 0}
    assert batch.layout.position.tolist() == [t for f in rows for t in range(T if kind == "rectangle" else len(f.ids))]
    assert all(x.dtype == torch.int64 for x in (batch.ids, batch.types, batch.picks, batch.labels))


@pytest.mark.parametrize("kind", KINDS)
def test_collate_hands_on_prefix_and_rows_without_picks(kind):
    rows, prefix = features(9, 5, picks=0), torch.tensor([4, 2])
    batch = collate(rows, kind, prefix=prefix)
    assert batch.layout.prefix is prefix and batch.layout.allowed.shape == (2, 1, 9, 9)
    assert batch.ids[batch.picks].tolist() == rows[1].ids[rows[1].picks].tolist() and len(batch.picks) == 1
    assert collate(rows[:1], kind).picks.shape == collate(rows[:1], kind).labels.shape == (0,)


# ----------------------------------------------------------------------------------------------------- order of batches


def lengths_of(count: int, seed: int = 0) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).lognormal(3, 0.6, count), 3, 128).astype(int)


def orders(lengths, size, seed, epoch) -> list[list[int]]:
    return [b.tolist() for b in epoch_batches(lengths, size, seed, epoch)]


@pytest.mark.parametrize("count, size", [(1000, 32), (1777, 7), (31, 32), (64, 32), (5, 1), (65, 32), (1, 8)])
def test_every_feature_once_and_one_smaller_batch_at_most(count, size):
    batches = orders(lengths_of(count), size, 3, 2)
    assert sorted(i for b in batches for i in b) == list(range(count))
    assert sorted(map(len, batches)) == ([count % size] if count % size else []) + [size] * (count // size)


def test_order_is_a_function_of_seed_and_epoch_alone():
    lengths = lengths_of(500)
    expected = orders(lengths, 8, 3, 2)
    np.random.seed(1)
    torch.manual_seed(1)
    orders(lengths, 8, 3, 1)
    assert orders(lengths.tolist(), 8, 3, 2) == expected
    state = np.random.get_state()[1].copy()
    orders(lengths, 8, 4, 2)
    assert np.array_equal(np.random.get_state()[1], state)


def test_every_epoch_and_every_seed_has_an_order_of_its_own():
    """64 ones: only the shuffling tells them apart. Neighbouring large numbers must not fall together either."""
    cases = [(s, e) for s in (0, 1, 2, 2 ** 63 - 1, 2 ** 63 - 2, 2 ** 53, 2 ** 53 + 1) for e in range(6)]
    seen = {str(orders([1] * 64, 8, s, e)) for s, e in cases}
    assert len(seen) == len(cases)


def test_companions_change_from_epoch_to_epoch():
    """500 rows in batches of 5: of the pairs that share a batch, 1 in 100 would do so in the next epoch by chance."""
    def pairs(epoch):
        return {(a, b) for batch in orders([9] * 500, 5, 0, epoch) for a in batch for b in batch if a < b}

    for epoch in (1, 2, 3):
        assert len(pairs(epoch) & pairs(epoch + 1)) < 0.05 * len(pairs(epoch))


def test_over_the_epochs_every_row_stands_everywhere():
    """Over 200 epochs each of 40 rows stands first 5 times in the mean; a count of 20 has a chance below 1e-6."""
    first = [orders([1] * 40, 1, 0, epoch)[0][0] for epoch in range(200)]
    counts = np.bincount(first, minlength=40)
    assert counts.max() < 20 and (counts > 0).sum() > 30


def padding(batches, lengths) -> float:
    """Share of the cells of all rectangles that hold no piece."""
    cells = sum(len(b) * max(lengths[i] for i in b) for b in batches)
    return 1 - sum(lengths) / cells


@pytest.mark.parametrize("count, size", [(3000, 32), (300, 8)])
def test_rows_of_a_batch_have_similar_lengths(count, size):
    lengths = lengths_of(count).tolist()
    order = np.random.default_rng(1).permutation(count)
    random = padding([order[i:i + size].tolist() for i in range(0, count, size)], lengths)
    assert random > 0.4
    assert padding(orders(lengths, size, 0, 1), lengths) < 0.15 * random


def test_long_and_short_batches_alternate():
    """Means of lengths in order of training: sorted they would correlate with the step; shuffled, up to 4/sqrt(n)."""
    lengths = lengths_of(3000)
    means = [lengths[b].mean() for b in epoch_batches(lengths, 32, 0, 1)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 4 / math.sqrt(len(means))
