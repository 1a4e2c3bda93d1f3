import pytest
import torch

from minibert.core.layout import KINDS, Layout, allowed

# rows of 9 columns: left padding, right padding, holes, full, a single piece, and no piece at all
ROWS = ["000111111", "111111000", "110101011", "111111111", "000010000", "000000000", "011111100"]
LIVE = torch.tensor([[c == "1" for c in row] for row in ROWS])
B, T = LIVE.shape
PREFIX = torch.tensor([3, 5, 0, 9, 2, 4, 1])


def cells(kind: str) -> list[tuple[int, int]]:
    """(row, column) of every piece, by a slow double loop."""
    return [(b, t) for b in range(B) for t in range(T) if kind == "rectangle" or LIVE[b, t]]


@pytest.mark.parametrize("kind", KINDS)
def test_every_piece_knows_its_row_position_and_whether_it_lives(kind):
    layout, expected = Layout(LIVE, kind), cells(kind)
    assert layout.row.tolist() == [b for b, _ in expected]
    assert layout.position.tolist() == [t for _, t in expected]
    assert layout.live.tolist() == [bool(LIVE[b, t]) for b, t in expected]
    assert layout.lengths.tolist() == [row.count("1") for row in ROWS]
    assert (layout.shape, layout.kind) == ((B, T), kind)


@pytest.mark.parametrize("rest", [(), (5,), (6, 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_pieces_are_inverse(kind, rest):
    layout, expected = Layout(LIVE, kind), cells(kind)
    x = torch.arange(1, B * T * 24 + 1, dtype=torch.float64)[:len(expected) * torch.Size(rest).numel()]
    x = x.view(len(expected), *rest)
    rows = layout.rows(x)
    assert rows.shape == (B, T, *rest)
    for i, (b, t) in enumerate(expected):
        assert torch.equal(rows[b, t], x[i])
    assert torch.equal(layout.pieces(rows), x)
    if kind == "ragged":
        assert not rows[~LIVE].any()
    full = torch.randn(B, T, *rest)
    back = layout.rows(layout.pieces(full))
    keep = LIVE if kind == "ragged" else torch.ones_like(LIVE)
    assert torch.equal(back, torch.where(keep.view(B, T, *[1] * len(rest)), full, torch.zeros(())))


@pytest.mark.parametrize("kind", KINDS)
def test_whole_numbers_and_tensors_that_are_not_contiguous(kind):
    layout = Layout(LIVE, kind)
    ids = torch.arange(T * B).view(T, B).T
    assert layout.pieces(ids).tolist() == [int(ids[b, t]) for b, t in cells(kind)]


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_goes_back_to_the_piece_it_came_from(kind):
    """Of sum(w * rows(x)) by x: w at the piece's cell; of sum(v * pieces(y)) by y: v there, else 0."""
    layout, expected = Layout(LIVE, kind), cells(kind)
    g = torch.Generator().manual_seed(1)
    w, v = torch.randn(B, T, 5, generator=g), torch.randn(len(expected), 5, generator=g)
    x = torch.randn(len(expected), 5, generator=g, requires_grad=True)
    (w * layout.rows(x)).sum().backward()
    assert torch.equal(x.grad, torch.stack([w[b, t] for b, t in expected]))
    y = torch.randn(B, T, 5, generator=g, requires_grad=True)
    (v * layout.pieces(y)).sum().backward()
    by_hand = torch.zeros(B, T, 5)
    for i, (b, t) in enumerate(expected):
        by_hand[b, t] = v[i]
    assert torch.equal(y.grad, by_hand)


@pytest.mark.parametrize("prefix", [None, PREFIX], ids=["all", "prefix"])
@pytest.mark.parametrize("kind", KINDS)
def test_who_may_look_at_whom(kind, prefix):
    """A key is seen where it lives and, with a prefix, where it is in the source or not after the query."""
    seen = Layout(LIVE, kind, prefix).allowed
    assert seen.dtype == torch.bool and seen.shape == (B, 1, 1 if prefix is None else T, T)
    seen = seen.expand(B, 1, T, T)
    for b in range(B):
        for query in range(T):
            for key in range(T):
                expected = ROWS[b][key] == "1"
                if prefix is not None:
                    expected = expected and (key < int(prefix[b]) or key <= query)
                assert bool(seen[b, 0, query, key]) == expected, (b, query, key)


def test_nothing_hidden_needs_no_table():
    full = torch.ones(5, 7, dtype=torch.bool)
    assert allowed(full, None) is None
    assert bool(allowed(full, torch.full((5,), 7)).all())
    causal = allowed(full, torch.zeros(5, dtype=torch.int64))
    assert torch.equal(causal, torch.ones(7, 7).tril().bool().expand(5, 1, 7, 7))


def test_prefix_is_kept_and_an_unknown_kind_refused():
    assert Layout(LIVE, "ragged", PREFIX).prefix is PREFIX
    with pytest.raises(ValueError, match="triangle"):
        Layout(LIVE, "triangle")


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_moves_to_the_device_and_cuda_copies_are_pinned(kind, monkeypatch):
    """The copies to CUDA, which is not here: `to` answers with a mark of the device instead."""
    asked = []

    def to(x, device, **how):
        asked.append((x.is_shared(), str(device), how))
        return x + 0

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: x.clone().share_memory_())      # shared: it was pinned
    monkeypatch.setattr(torch.Tensor, "to", to)
    layout = Layout(LIVE, kind, PREFIX)
    before = {name: x for name, x in vars(layout).items() if isinstance(x, torch.Tensor)}
    assert layout.to("cuda:1") is layout
    assert len(before) == {"rectangle": 6, "ragged": 7}[kind]
    assert asked == [(True, "cuda:1", {"non_blocking": True})] * len(before)
    assert all(torch.equal(getattr(layout, name), x) for name, x in before.items())
    asked.clear()
    layout.to("cpu")
    assert asked == [(False, "cpu", {})] * len(before)
