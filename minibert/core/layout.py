"""Layout: where each piece of a batch sits, and which pieces may attend to which.

Everything but attention acts on single pieces, so the encoder works on [P, H]; attention alone needs rows. A Layout
goes from one to the other, in two kinds behind one interface:

    rectangle   P = B·T, every cell of the batch, padding included; rows() and pieces() are free reshapes
    ragged      P = N, live pieces only; rows() scatters them into zeros, pieces() gathers them back
"""
import torch
from torch import Tensor

KINDS = ("rectangle", "ragged")


class Layout:
    """Built from `live`, bool [B,T]: which cells hold a piece (holes and left padding are allowed).

    `prefix`, int64 [B], makes rows sequence-to-sequence: the first prefix[b] columns are the source, which every piece
    sees; later columns are the target, seen only by themselves and the columns after them. None: all see all.
    """

    def __init__(self, live: Tensor, kind: str = "rectangle", prefix: Tensor | None = None):
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}; it must be one of {KINDS}")
        B, T = live.shape
        self.kind, self.shape, self.prefix = kind, (B, T), prefix
        self.lengths = live.sum(1)                                                          # [B]
        self.cells = None if kind == "rectangle" else live.flatten().nonzero().squeeze(1)   # [N] cell of each piece
        cells = torch.arange(B * T, device=live.device) if self.cells is None else self.cells
        self.row, self.position = cells // T, cells % T                                     # [P] each
        self.live = live.flatten()[cells]                                                   # [P]
        self.allowed = allowed(live, prefix)                                                # [B,1,1 or T,T] or None

    def to(self, device: torch.device | str) -> "Layout":
        """Itself, with its tensors on `device`. What it had to ask them is answered where they were made."""
        for name, x in vars(self).items():
            if isinstance(x, Tensor):
                setattr(self, name, moved(x, device))
        return self

    def rows(self, x: Tensor) -> Tensor:
        """[P, ...] -> [B, T, ...]; cells without a piece are 0 in the ragged kind."""
        B, T = self.shape
        if self.cells is not None:
            x = x.new_zeros(B * T, *x.shape[1:]).index_copy(0, self.cells, x)
        return x.view(B, T, *x.shape[1:])

    def pieces(self, x: Tensor) -> Tensor:
        """[B, T, ...] -> [P, ...], the inverse of rows()."""
        x = x.reshape(-1, *x.shape[2:])
        return x if self.cells is None else x[self.cells]


def moved(x: Tensor, device: torch.device | str) -> Tensor:
    """x on `device`; to CUDA from pinned memory, so that nobody waits for the copy."""
    return x.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else x.to(device)


def allowed(live: Tensor, prefix: Tensor | None) -> Tensor | None:
    """Which key each query may look at: bool [B,1,1,T], with a prefix [B,1,T,T]; None where nothing is hidden."""
    if prefix is None:
        return None if bool(live.all()) else live[:, None, None, :]
    T = live.shape[1]
    column = torch.arange(T, device=live.device)
    source = column < prefix[:, None]                                                       # [B,T]
    earlier = column[:, None] >= column                                                     # [T query, T key]
    return ((source[:, None, :] | earlier) & live[:, None, :])[:, None]       # [ATT-11]
