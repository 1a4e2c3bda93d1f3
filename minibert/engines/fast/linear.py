"""The three products of a linear map: x wᵀ + b, and from the gradient of that, those by x and by w and b.

Linear asks for them as matrix products. Convolution asks for the same numbers as a convolution of width 1: P pieces are
a row of P pixels with m channels each. Torch has two libraries for the two questions, and on processors of AMD the one
for convolutions (oneDNN) is ahead in fp32, where the other (MKL) keeps to vectors of half the width, and in 16 bits on
the many pieces of a batch of inference: docs/performance.md.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Linear:
    """A linear map, or several side by side that read the same input: weight [n,m] and bias [n]."""
    w: Tensor
    b: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """[P,m] -> [P,n]."""
        return torch.addmm(self.b, x, self.w.T)

    def by_input(self, dout: Tensor) -> Tensor:
        """[P,n] -> dx [P,m]."""
        return dout @ self.w

    def by_weights(self, dout: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """[P,n], [P,m] -> dw [n,m], db [n]."""
        return dout.T @ x, dout.sum(0)


class Convolution(Linear):
    """Linear by another library, nothing else."""

    def __call__(self, x: Tensor) -> Tensor:
        """[P,m] -> [P,n]."""
        return pieces(F.conv2d(pixels(x), self.kernel, self.b))

    def by_input(self, dout: Tensor) -> Tensor:
        """[P,n] -> dx [P,m]."""
        x = dout.new_empty(len(dout), self.w.shape[1])                         # only its shape is looked at
        return pieces(self.backward(dout, x, [True, False, False])[0])

    def by_weights(self, dout: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """[P,n], [P,m] -> dw [n,m], db [n]."""
        _, dw, db = self.backward(dout, x, [False, True, True])
        return dw.view(self.w.shape), db

    @property
    def kernel(self) -> Tensor:
        """[n,m] -> [n,m,1,1], the same memory."""
        return self.w[:, :, None, None]

    def backward(self, dout: Tensor, x: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients by input, weight and bias, as far as wanted: stride 1, no padding, dilation 1, one group."""
        return torch.ops.aten.convolution_backward(pixels(dout), pixels(x), self.kernel, [len(self.w)], [1, 1], [0, 0],
                                                   [1, 1], False, [0, 0], 1, wanted)


def pixels(x: Tensor) -> Tensor:
    """[P,m] -> an image [1,m,1,P] whose channels lie next to each other: the same memory."""
    return x[None, None].permute(0, 3, 1, 2)


def pieces(image: Tensor) -> Tensor:
    """[1,n,1,P] -> [P,n]."""
    return image.permute(0, 2, 3, 1).reshape(image.shape[3], image.shape[1])


def linear_kind(device: torch.device, dtype: torch.dtype, training: bool) -> type[Linear]:
    """The faster of the two here. It depends on nothing but the machine and the arguments: a run can be repeated."""
    can = torch.cpu.get_capabilities()
    amd = str(can.get("cpu_name", "")).startswith("AMD") and can.get("avx512_f")
    ahead = dtype == torch.float32 or (dtype == torch.bfloat16 and can.get("avx512_bf16") and not training)
    here = device.type == "cpu" and torch.backends.mkldnn.is_available()
    return Convolution if here and amd and ahead else Linear
