"""What a device that is no CPU asks of the fast kernels, as far as it can be said without one."""
import pytest
import torch
from torch import nn

from minibert.engines.fast import kernels


@pytest.mark.parametrize("device, given", [("cpu", torch.bfloat16), ("meta", torch.float32)])
def test_layernorm_elsewhere_gets_one_number_format(device, given, monkeypatch):
    """CUDA's kernel refuses 16 bits beside weights in 32; what comes back is in 16 bits again, its statistics are not.
    """
    asked, norm = [], torch.native_layer_norm

    def spy(x, shape, weight, *rest):
        asked.append((x.dtype, weight.dtype))
        return norm(x, shape, weight, *rest)
    monkeypatch.setattr(torch, "native_layer_norm", spy)
    x = torch.arange(30.0, device=device).view(5, 6).to(torch.bfloat16)
    out, mean, rstd = kernels.norm_forward(nn.LayerNorm(6, device=device), x)
    assert asked == [(given, torch.float32)]
    assert out.dtype == torch.bfloat16 and out.shape == x.shape and mean.dtype == rstd.dtype == torch.float32
