"""The tokenizer of the tiny checkpoint, as every task meets it."""
import pytest

from minibert.checkpoints import weights
from minibert.data.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_folder) -> Tokenizer:
    bert, _ = weights.load(tiny_folder)
    return weights.read_tokenizer(tiny_folder, bert)
