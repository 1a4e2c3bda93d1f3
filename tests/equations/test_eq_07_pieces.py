"""Chapter 07: greedy spelling, first pieces, windows and padding, each against a slow count; the page's numbers."""
import itertools
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from minibert.checkpoints.weights import random_bert
from minibert.core.batch import Feature, collate
from minibert.core.layout import KINDS
from minibert.core.model import Model
from minibert.data.order import epoch_batches, shuffled
from minibert.data.rows import context_in_window, owned_words, windows, word_features
from minibert.data.tokenizer import CASE_SHAPES, Pieces, Tokenizer
from minibert.settings import TrainConfig
from minibert.tasks.conll import Example
from minibert.tasks.ner import NER, Options

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "07-pieces.md").read_text("utf-8")
SENTENCE = "Erik Gustafson left for Maputo today .".split()
TAGS = "B-PER I-PER O O B-LOC O O".split()
# pieces of bert-base-uncased's vocabulary under their own numbers, with shorter ones that a lazy rule would take
PUBLISHED = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, ".": 1012, "for": 2005, "left": 2187, "##a": 2050,
             "##s": 2015, "##u": 2226, "##able": 3085, "today": 2651, "##son": 3385, "##ble": 3468, "##ff": 4246,
             "un": 4895, "##ut": 4904, "map": 4949, "##so": 6499, "erik": 10240, "##af": 10354, "gus": 12670,
             "una": 14477, "##uto": 16161, "gu": 19739, "##ffa": 20961, "gust": 26903, "u": 1057, "s": 1055}


def tokenizer_of(pieces: dict[str, int], folder: Path) -> Tokenizer:
    """Uncased WordPiece with `pieces` under those numbers, fillers between; case shapes on."""
    names = {number: piece for piece, number in pieces.items()}
    lines = [names.get(i, f"[unused{i}]") for i in range(max(names) + 1)]
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Tokenizer(Tokenizer.read(folder).backend, case_shapes=True)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Tokenizer:
    return tokenizer_of(PUBLISHED, tmp_path_factory.mktemp("published"))


@pytest.fixture
def tiny(tiny_folder) -> Tokenizer:
    return Tokenizer.read(tiny_folder)


def spelt(tokenizer: Tokenizer, word: str) -> list[str]:
    return [tokenizer.backend.id_to_token(i) for i in tokenizer.pieces([[word]])[0].ids]


def text(sizes: list[int]) -> list[int]:
    """The word of each piece, from the number of pieces of each word."""
    return [w for w, size in enumerate(sizes) for _ in range(size)]


def random_sizes(seed: int, words: int, largest: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.choice([1, 1, 1, 2, 3, draw.randint(1, largest)]) for _ in range(words)]


# ------------------------------------------------------------------------------------------------ words -> pieces


def greedy(word: str, vocabulary: set[str]) -> list[str]:
    """WordPiece as the chapter tells it."""
    spelling, start = [], 0
    while start < len(word):
        mark = "##" if start else ""
        candidates = [word[start:end] for end in range(start + 1, len(word) + 1)]
        longest = max((x for x in candidates if mark + x in vocabulary), key=len, default="")     # [PIECE-1]
        if not longest:
            return ["[UNK]"]
        spelling.append(mark + longest)
        start += len(longest)
    return spelling


def test_the_tokenizer_spells_as_the_slow_rule_does_PIECE_1(tiny, tiny_vocabulary):
    draw = random.Random(0)
    known = [p for p in tiny_vocabulary if p.isalpha() and p.isascii()]
    parts = known + ["ing", "ed", "er", *["1", "a" * 60] * 3]                  # 1 cannot be spelt
    words = ["".join(draw.choices(parts, k=draw.randint(1, 4))) for _ in range(400)] + known
    expected = [greedy(w, set(tiny_vocabulary)) if len(w) <= 100 else ["[UNK]"] for w in words]
    assert [spelt(tiny, w) for w in words] == expected
    assert sum(e == ["[UNK]"] for e in expected) > 20 and sum(len(e) > 3 for e in expected) > 100
    assert sum(len(e) == 1 and len(w) > 1 for w, e in zip(words, expected, strict=True)) > 20


def test_greedy_step_by_step_and_its_three_faults_PIECE_1(published, tmp_path):
    """gustafson: gust (after 5 longer ones were asked for), af (after 3), son (at once): 6 + 4 + 1 = 11 questions."""
    assert spelt(published, "gustafson") == greedy("gustafson", set(PUBLISHED)) == ["gust", "##af", "##son"]
    rests = [len("gustafson"), len("afson"), len("son")]
    assert sum(rest - len(x) + 1 for rest, x in zip(rests, ("gust", "af", "son"), strict=True)) == 11
    assert spelt(published, "unaffable") == greedy("unaffable", set(PUBLISHED)) == ["una", "##ffa", "##ble"]
    assert spelt(published, "U.S.") == ["u", ".", "s", "."]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    for word, entries, cut in (("unable", ["un", "una", "##able"], ["[UNK]"]),
                               ("abcd", ["ab", "a", "##bcd", "##c", "##d"], ["ab", "##c", "##d"])):
        small = tokenizer_of({p: i for i, p in enumerate(special + entries)}, tmp_path)
        assert spelt(small, word) == greedy(word, set(entries)) == cut


def test_the_table_that_opens_the_chapter_PIECE_2_PIECE_3_PIECE_4(published):
    """One row of twelve: every column as the page shows it."""
    pieces = published.pieces([SENTENCE])[0]
    (row,) = word_features(0, pieces, published, 12, 3, range(7))
    read = dict(zip(row.picks.tolist(), (TAGS[i] for i in row.labels), strict=True))
    lines = {"column": range(12), "piece": [published.backend.id_to_token(i) for i in row.ids], "id": row.ids,
             "type": row.types, "word": ["-", *pieces.words, "-"], "label": [read.get(j, "-") for j in range(12)]}
    shown = dict(line.split(maxsplit=1) for line in PAGE.split("```")[1].strip().splitlines())
    assert {k: v.split() for k, v in shown.items()} == {k: [str(x) for x in v] for k, v in lines.items()}
    assert read == {1: "B-PER", 2: "I-PER", 5: "O", 6: "O", 7: "B-LOC", 9: "O", 10: "O"}


@pytest.mark.parametrize("types", [2, 5])
def test_first_pieces_types_and_columns_against_a_walk_over_the_text_PIECE_2_PIECE_3_PIECE_4(tiny, types):
    """Long words, a word of no piece, several windows; each pick is where its word begins, looked for one by one."""
    draw = random.Random(types)
    words = [draw.choice(["ada", "Oslo", "RAINED", "visiting", "\u200b", "newPort", "U.S."]) for _ in range(60)]
    shaped = Tokenizer(tiny.backend, case_shapes=True, types=types)
    pieces = shaped.pieces([words])[0]
    features = word_features(3, pieces, shaped, 20, 8, range(100, 160))
    assert len(features) > 5
    for feature, (start, stop) in zip(features, windows(pieces.words, 18, 8), strict=True):
        assert feature.types.dtype == feature.picks.dtype == np.int64
        for target, pick, label in zip(feature.about.words, feature.picks, feature.labels, strict=True):
            assert start + pick - 1 == pieces.words.index(target) and label == 100 + target
        shapes = [{"ada": 0, "Oslo": 1, "RAINED": 2, "visiting": 0, "\u200b": 0, "newPort": 3, "U.S.": 2}[words[w]]
                  for w in pieces.words[start:stop]]
        assert feature.types.tolist() == [0] + [sum([types] * s) for s in shapes] + [0]
    assert sorted(t for f in features for t in f.about.words) == list(range(60))
    assert CASE_SHAPES == ("lower", "title", "upper", "mixed")


def test_labelled_positions_are_the_words_whatever_the_batches_PIECE_5(tiny):
    """50 words, 6 of them with a tag that training never had: 44, in any window and batch size and either layout."""
    draw = random.Random(4)
    words = [draw.choice(["ada", "visiting", "oslo", "banker", "in"]) for _ in range(50)]
    tags = ["X" if i % 8 == 3 else draw.choice(["O", "B-PER"]) for i in range(50)]
    task = NER(Options(), ["O", "B-PER", "I-PER"])
    example = Example(words, tags, [0], "here")
    assert tags.count("X") == 6 and tags.count("O") > 10
    for max_pieces, overlap, size, kind in itertools.product((16, 33), (0, 5, 8), (1, 4), KINDS):
        features = task.encode(0, example, tiny, max_pieces, overlap)
        batches = [collate(features[i:i + size], kind) for i in range(0, len(features), size)]
        counts = [task.counts(b)["words"] for b in batches]
        assert counts == [sum(y != -1 for f in b.features for y in f.labels.tolist()) for b in batches]
        assert sum(counts) == 44 and len(features) > 2


# -------------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("seed", range(8))
def test_context_is_counted_piece_by_piece_WIN_1_WIN_2_WIN_3(seed):
    """Neighbours of a word inside a window, walking outwards from it; past an end of the text there is no limit."""
    sizes = random_sizes(seed, 40, 14)
    words = text(sizes)
    N, begins = len(words), np.cumsum([0, *sizes[:-1]])
    last = begins + sizes - 1
    cuts = windows(words, 11, 5)
    assert len(cuts) > 5 and any(cut[1] - cut[0] < sizes[words[cut[0]]] for cut in cuts) == (max(sizes) > 11)
    for a, z in [*cuts, (0, N), (0, 9), (N - 9, N)]:
        found = context_in_window(begins, last, a, z, N)
        for w in range(len(sizes)):
            left = sum(a <= p < begins[w] for p in range(N)) if a else math.inf
            right = sum(last[w] < p < z for p in range(N)) if z < N else math.inf
            if a <= begins[w] < z:
                assert found[w] == min(left, right)


def test_a_word_longer_than_the_window_has_context_0_WIN_3():
    """Pieces 5 to 20 in the window [5, 13): 13 - 1 - 20 = -8 to the right, shown as 0, and the window owns the word."""
    sizes = [1] * 5 + [16] + [1] * 6
    words, begins = text(sizes), np.cumsum([0, *sizes[:-1]])
    cuts = windows(words, 8, 2)
    assert (5, 13) in cuts
    assert context_in_window(begins, begins + sizes - 1, 5, 13, len(words))[5] == 0
    assert [5] in [o.tolist() for o in owned_words(words, cuts)]


@pytest.mark.parametrize("capacity, overlap, largest", [(11, 5, 1), (11, 0, 4), (12, 6, 3), (9, 4, 20), (30, 12, 5)])
def test_every_word_has_exactly_one_owner_WIN_4(capacity, overlap, largest):
    for seed in range(30):
        sizes = random_sizes(seed, 70, largest)
        owned = owned_words(text(sizes), windows(text(sizes), capacity, overlap))
        assert len(owned) > 2
        total = sum(len(o) for o in owned)                                    # [WIN-4]
        assert total == len(sizes) == len({int(w) for o in owned for w in o})


def test_the_number_of_windows_in_closed_form_WIN_5():
    for capacity in range(3, 12):
        for overlap, N in itertools.product(range(capacity), range(1, 40)):
            claimed = 1 + max(0, math.ceil((N - capacity) / (capacity - overlap)))  # [WIN-5]
            assert len(windows(range(N), capacity, overlap)) == claimed
            slow, reach = 1, capacity
            while reach < N:
                slow, reach = slow + 1, reach - overlap + capacity
            assert slow == claimed


def test_the_poorest_word_has_half_the_overlap_WIN_6():
    """All that the command line accepts for short rows: --max-pieces from 8, --overlap up to half of it."""
    seen = set()
    for max_pieces in range(8, 27):
        capacity = max_pieces - 2
        for overlap, more in itertools.product(range(max_pieces // 2 + 1), (1, 7, 40)):
            N = capacity + more
            cuts, numbers = windows(range(N), capacity, overlap), np.arange(N)
            best = np.max([np.where((a <= numbers) & (numbers < z), context_in_window(numbers, numbers, a, z, N), -1)
                           for a, z in cuts], axis=0)
            claimed = math.floor(overlap / 2)                                 # [WIN-6]
            assert best.min() == claimed
            seen.add(claimed)
    assert seen == set(range(7))


def test_what_the_defaults_cost_and_buy_WIN_5_WIN_6():
    """256 pieces, a quarter shared: C = 254, o = 64, 190 new pieces a window; poorest context 32."""
    default = TrainConfig()
    assert (default.max_pieces - 2, default.max_pieces // 4, default.overlap) == (254, 64, None)
    cuts = windows(range(100_000), 254, 64)
    assert sum(z - a for a, z in cuts) == 100_000 + (len(cuts) - 1) * 64
    assert 100 * round(sum(z - a for a, z in cuts) / 100_000, 2) == 134
    assert 100 * round(2 * len(cuts) / 100_000, 2) == 1


def test_worked_example_of_windows_WIN_1_WIN_2_PIECE_4(published):
    """Pieces 1 3 1 1 2 1 1, C = 6, o = 3: windows [0, 6) and [4, 10).

    left (piece 4): 6 - 1 - 4 = 1 right of it in the first, 4 - 4 = 0 left of it in the second: the first owns it.
    for (piece 5): 6 - 1 - 5 = 0 and 5 - 4 = 1: the second. Maputo begins at piece 6: column 6 - 4 + 1 = 3.
    """
    pieces = published.pieces([SENTENCE])[0]
    words, firsts, lasts = pieces.words, np.array([0, 1, 4, 5, 6, 8, 9]), np.array([0, 3, 4, 5, 7, 8, 9])
    assert windows(words, 6, 3) == [(0, 6), (4, 10)]
    assert context_in_window(firsts, lasts, 0, 6, 10)[:4].tolist() == [5, 2, 1, 0]
    assert context_in_window(firsts, lasts, 4, 10, 10)[2:].tolist() == [0, 1, 2, 4, 5]
    for feature in word_features(0, pieces, published, 8, 3, range(7)):
        row = " ".join(published.backend.id_to_token(i) for i in feature.ids)
        numbers, columns = (" ".join(map(str, x)) for x in (feature.about.words, feature.picks))
        assert f"{row:<47} words {numbers:<10} in columns {columns}\n" in PAGE
    assert word_features(0, pieces, published, 8, 3, range(7))[1].picks.tolist() == [2, 3, 5, 6]


# -------------------------------------------------------------------------------------------------------- padding


def features_of(lengths: list[int]) -> list[Feature]:
    return [Feature(0, np.full(n, 7), np.zeros(n, np.int64), np.array([1]), np.array([0])) for n in lengths]


@pytest.mark.parametrize("lengths", [[7, 31, 12, 5], [28, 9, 33, 14], [5, 7, 9, 12, 40], [3], [6, 6, 6]])
def test_padding_share_is_what_the_rectangle_holds_PAD_1(lengths):
    share = 1 - sum(lengths) / (len(lengths) * max(lengths))                  # [PAD-1]
    batch = collate(features_of(lengths))
    dead = sum(not cell for cell in batch.layout.live.tolist())
    assert dead / len(batch.ids) == pytest.approx(share, abs=1e-15)
    assert len(collate(features_of(lengths), "ragged").ids) == sum(lengths)


def deals(rows: list[int], size: int):
    """All ways to deal rows into batches of `size`."""
    if not rows:
        yield []
        return
    for others in itertools.combinations(range(1, len(rows)), size - 1):
        batch = [rows[0], *(rows[i] for i in others)]
        rest = [r for i, r in enumerate(rows) if i and i not in others]
        yield from ([batch, *more] for more in deals(rest, size))


@pytest.mark.parametrize("rows, size, ways", [(6, 2, 15), (6, 3, 10), (8, 4, 35), (9, 3, 280), (8, 2, 105)])
def test_no_deal_needs_fewer_cells_than_sorting_PAD_2(rows, size, ways):
    for seed in range(5):
        lengths = random.Random(seed).sample(range(3, 60), rows)
        longest_first = sorted(lengths, reverse=True)
        claimed = size * sum(longest_first[::size])                           # [PAD-2]
        cells = [sum(size * max(batch) for batch in deal) for deal in deals(lengths, size)]
        assert len(cells) == ways and min(cells) == claimed < max(cells)
        mine = epoch_batches(lengths, size, seed=seed, epoch=2)
        assert sum(size * max(lengths[i] for i in batch) for batch in mine) == claimed


def test_worked_example_of_padding_PAD_1_PAD_2():
    """7 31 12 5 | 28 9 33 14: 4 (31 + 33) = 256 cells for 139 pieces; 5 7 9 12 | 14 28 31 33: 4 (12 + 33) = 180."""
    lengths = [7, 31, 12, 5, 28, 9, 33, 14]
    assert sum(lengths) == 139
    before = sum(len(collate(features_of(lengths[i:i + 4])).ids) for i in (0, 4))
    after = sum(len(collate(features_of([lengths[i] for i in b])).ids) for b in epoch_batches(lengths, 4, 0, 0))
    assert (before, before - 139, after, after - 139) == (256, 117, 180, 41)
    assert (round(100 * 117 / 256), round(100 * 41 / 180)) == (46, 23)


def test_what_sorting_in_pools_saves_on_the_projects_own_data_PAD_1():
    task = NER(Options())
    lengths = np.array([len(e.words) + 2 for e in task.read(ROOT / "data" / "ner")["train"]])

    def share(batches):
        return 1 - lengths.sum() / sum(len(b) * lengths[b].max() for b in batches)

    order = shuffled(len(lengths), seed=0, epoch=1, purpose=0)
    unsorted = share([order[i:i + 32] for i in range(0, len(order), 32)])
    pooled = share(epoch_batches(lengths, 32, seed=0, epoch=1))
    assert f"{100 * unsorted:.1f} percent of all cells are padding without sorting" in " ".join(PAGE.split())
    assert f"and {100 * pooled:.1f} percent with it" in " ".join(PAGE.split())


# -------------------------------------------------------------------------------------------------- what flows back


def test_a_second_piece_gets_no_gradient_on_top_and_one_below(tiny, tiny_config):
    """visiting is v ##i ##s ##i ##t ##ing: ##ing is read nowhere, yet its word vector moves."""
    task = NER(Options(), ["O", "B-PER", "I-PER"])
    (feature,) = task.encode(0, Example(["ada", "visiting", "oslo"], ["B-PER", "O", "O"], [0], "here"), tiny, 16, 4)
    batch = collate([feature])
    torch.manual_seed(0)
    model = Model(random_bert(tiny_config), task.head(tiny_config)).double()
    hidden = model.bert(batch.ids, batch.types, batch.layout)
    hidden.retain_grad()
    task.loss(model.head(hidden, batch), batch)["words"].backward()
    unread = [j for j in range(len(batch.ids)) if j not in batch.picks]
    assert len(unread) == 7 and not hidden.grad[unread].any() and hidden.grad[batch.picks].abs().sum(1).min() > 0.01
    ing = tiny.backend.token_to_id("##ing")
    assert ing in batch.ids[unread] and model.bert.embeddings.word.weight.grad[ing].abs().max() > 1e-4


def test_a_word_of_no_piece_keeps_its_label(published):
    """The list of first pieces would slide by one if it did not become [UNK]."""
    pieces = published.pieces([["erik", "\u200b", "today"]])[0]
    assert pieces == Pieces([10240, 100, 2651], [0, 1, 2], [(0, 4), (0, 1), (0, 5)], [0, 0, 0])
