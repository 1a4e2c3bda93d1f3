"""An encoder with more rows in its tables: new pieces of the vocabulary, case shapes of words."""
import dataclasses

import torch
from torch import Tensor, nn

from minibert.core.model import Bert


@torch.no_grad()
def set_words(bert: Bert, first: int, rows: Tensor) -> int:
    """Give the pieces from number `first` on the word vectors `rows` [n,H]; -> how many the table had a row for.

    A published table may have more rows than pieces, so that its size is a round number; what stands there was never
    trained. Where it has fewer than are needed, it grows.
    """
    old = bert.embeddings.word.weight
    spare = min(len(old) - first, len(rows))
    old[first:first + spare] = rows[:spare].to(old)
    if spare < len(rows):
        grown = torch.cat([old, rows[spare:].to(old)])
        bert.config = dataclasses.replace(bert.config, vocab_size=len(grown))
        bert.embeddings.word = nn.Embedding.from_pretrained(grown, freeze=not old.requires_grad)
    return spare


@torch.no_grad()
def grow_types(bert: Bert, shapes: tuple[str, ...]) -> Bert:
    """A Bert with S case shapes: type = shape · (old number of types) + old type; each new row copies its type's row.

    Same function as before on lower-case text, and on all text until training moves the copies apart.
    """
    old, c = bert.embeddings.token_type.weight, bert.config
    config = dataclasses.replace(c, type_vocab_size=c.type_vocab_size * len(shapes), case_shapes=tuple(shapes))
    bert.config = config
    bert.embeddings.token_type = nn.Embedding.from_pretrained(old.repeat(len(shapes), 1), freeze=not old.requires_grad)
    return bert
