"""An encoder with more rows in its tables: new pieces of the vocabulary, case shapes of words."""
import dataclasses

import torch
from torch import Tensor, nn

from minibert.core.model import Bert


@torch.no_grad()
def grow_words(bert: Bert, rows: Tensor) -> Bert:
    """A Bert with further pieces at the end of its vocabulary, whose word vectors are `rows` [n,H]."""
    old = bert.embeddings.word.weight
    bert.config = dataclasses.replace(bert.config, vocab_size=len(old) + len(rows))
    bert.embeddings.word = nn.Embedding.from_pretrained(torch.cat([old, rows.to(old)]), freeze=not old.requires_grad)
    return bert


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
