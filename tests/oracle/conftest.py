"""What the live comparisons share: minilm-l6, and checkpoints written by transformers with everything randomised."""
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf

import minibert

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))                  # train.py is a script of the checkout, not of the package
hf.logging.set_verbosity_error()
hf.logging.disable_progress_bar()

# Three shapes; inside each no two of V, H, A, D, F, L and the longest row are equal. F < H once.
SHAPES = (dict(vocab_size=131, hidden_size=30, num_attention_heads=5, intermediate_size=44, num_hidden_layers=2,
               max_position_embeddings=40),
          dict(vocab_size=97, hidden_size=56, num_attention_heads=7, intermediate_size=36, num_hidden_layers=3,
               max_position_embeddings=64),
          dict(vocab_size=211, hidden_size=48, num_attention_heads=3, intermediate_size=101, num_hidden_layers=4,
               max_position_embeddings=33))


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of minilm-l6: weights/minilm-l6 of the checkout, fetched if it is not there."""
    return minibert.fetch("minilm-l6", ROOT / "weights")


@pytest.fixture(scope="session")
def ner_words() -> list[list[str]]:
    """The sentences of data/ner/dev.conll as words."""
    blocks = (ROOT / "data" / "ner" / "dev.conll").read_text("utf-8").strip().split("\n\n")
    return [[line.split()[0] for line in block.splitlines()] for block in blocks]


@pytest.fixture(scope="session")
def random_bert() -> Callable[..., hf.PreTrainedModel]:
    """random_bert(kind, shape, seed, pooler, **config) -> a transformers model in eval mode, no bias 0, no weight 1."""
    def make(kind=hf.BertModel, shape: int = 0, seed: int = 0, pooler: bool = True, **config):
        torch.manual_seed(seed)
        settings = hf.BertConfig(**SHAPES[shape], **{"initializer_range": 0.2, **config})
        model = kind(settings, add_pooling_layer=False) if kind is hf.BertModel and not pooler else kind(settings)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.dim() == 1:                   # LayerNorm weights start at 1 and all biases at 0: both hide errors
                    p += 0.3 * torch.randn(p.shape)
                elif name.endswith("word_embeddings.weight"):
                    p[0] = torch.randn(p.shape[1:])                          # the row of [PAD] starts at 0
        return model.eval()
    return make


@pytest.fixture(scope="session")
def masks() -> Callable[[str, int, int], torch.Tensor | None]:
    """masks(kind, B, T) -> int64 [B,T] with rows of different lengths, at least one live piece in each."""
    def make(kind: str, B: int, T: int) -> torch.Tensor | None:
        column, length = torch.arange(T), 1 + (torch.arange(B) * 7 + T - 1) % T       # row 0 is full
        right = (column < length[:, None]).long()
        if kind == "none":
            return None
        if kind == "right":
            return right
        if kind == "left":
            return right.flip(1)
        if kind == "mixed":                        # half of the rows padded on the left
            return torch.where((torch.arange(B) % 2 == 1)[:, None], right.flip(1), right)
        assert kind == "holes"
        holes = torch.rand(B, T, generator=torch.Generator().manual_seed(7)) < 0.6
        holes[:, 0] = True                         # pooled is read there
        return holes.long()
    return make
