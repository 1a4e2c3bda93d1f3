"""The products of a linear map, by either library, beside einsum's in float64; and which of them is chosen where."""
import pytest
import torch

from minibert.engines.fast.linear import Convolution, Linear, linear_kind

FORMATS = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 6e-3}    # relative; the last is 1.5 · 2^-8


def random(*shape: int, seed: int) -> torch.Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", [Linear, Convolution])
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("P, m, n", [(13, 44, 30), (640, 96, 288), (7, 11, 200), (6, 5, 9)])
def test_all_three_products(kind, dtype, P, m, n):
    w, b, x, dout = (random(*shape, seed=i).to(dtype) for i, shape in enumerate(((n, m), (n,), (P, m), (P, n))))
    f, (W, B, X, D) = kind(w, b), (t.double() for t in (w, b, x, dout))
    dw, db = f.by_weights(dout, x)
    found = (f(x), f.by_input(dout), dw, db)
    wanted = (torch.einsum("pm,nm->pn", X, W) + B, torch.einsum("pn,nm->pm", D, W), torch.einsum("pn,pm->nm", D, X),
              torch.einsum("pn->n", D))
    for a, e in zip(found, wanted, strict=True):
        assert a.dtype == dtype and a.shape == e.shape and a.is_contiguous()
        assert (a.double() - e).norm() <= FORMATS[dtype] * e.norm()


AMD = {"cpu_name": "AMD EPYC 9005", "avx512_f": True, "avx512_bf16": True}


@pytest.mark.parametrize("device, dtype, training, machine, chosen", [
    ("cpu", torch.float32, True, AMD, Convolution),
    ("cpu", torch.float32, False, AMD, Convolution),
    ("cpu", torch.bfloat16, False, AMD, Convolution),
    ("cpu", torch.bfloat16, True, AMD, Linear),
    ("cpu", torch.float16, False, AMD, Linear),
    ("cpu", torch.float64, True, AMD, Linear),             # no library for convolutions in float64
    ("cuda", torch.float32, True, AMD, Linear),
    ("cpu", torch.float32, True, AMD | {"avx512_f": False}, Linear),
    ("cpu", torch.bfloat16, False, AMD | {"avx512_bf16": False}, Linear),
    ("cpu", torch.float32, True, AMD | {"cpu_name": "INTEL XEON PLATINUM"}, Linear),
    ("cpu", torch.float32, True, {}, Linear),              # processors that torch knows nothing about
])
def test_which_one_is_chosen(device, dtype, training, machine, chosen, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: machine)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert linear_kind(torch.device(device), dtype, training) is chosen


def test_without_the_library_there_is_one_choice(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: AMD)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert linear_kind(torch.device("cpu"), torch.float32, True) is Linear
