"""Writing with the encoder: one piece after the other, each from the source and from what was written so far.

The source is read once. Its keys and values in every block are kept, and so are those of every piece written: with
training's mask a piece sees only what stands before it, so nothing that was computed changes when another is added.
A new piece costs the work of one position.
"""
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from minibert.core.batch import Feature, collate
from minibert.core.heads import WordHead
from minibert.core.model import Block, Model, attention_fused
from minibert.core.precision import autocast
from minibert.tasks.vocabulary import NONE, without


class Writer:
    """R rows that are being written: step() takes the last piece of each and gives scores for the next."""

    def __init__(self, model: Model, sources: Sequence[Feature], longest: int, kind: int, precision: str = "fp32"):
        """`sources`: rows [CLS] source [SEP]; at most `longest` pieces are written, of token type `kind`."""
        self.model, self.precision, self.kind = model, precision, kind
        self.words = cast(WordHead, model.head).words                          # [R,H] -> scores [R,V]
        self.device = next(model.parameters()).device
        batch = collate(sources, device=self.device)
        live = batch.layout.rows(batch.layout.live)                            # [R,S]
        R, S = live.shape
        self.position, self.column = live.sum(1), S                            # [R] of the next pieces; of their keys

        # which keys there are: the live ones of the source, later the pieces written
        self.live = torch.cat([live, live.new_zeros(R, longest)], 1)
        self.kept: list[list[Tensor]] = []         # keys and values of each block, [R,A,S+longest,D]

        with torch.inference_mode(), autocast(precision, self.device):
            x = model.bert.embeddings(batch.ids, batch.types, batch.layout.position)
            for block in model.bert.blocks:
                a = block.attention
                there = (a.heads(batch.layout.rows(f(x))) for f in (a.key, a.value))     # [R,A,S,D] each
                self.kept.append([nn.functional.pad(both, (0, 0, 0, longest)) for both in there])
                x = block(x, batch.layout)
            last = x[torch.arange(R, device=self.device) * S + self.position - 1]        # [R,H] of the sources' [SEP]
            self.first = self.words(last).float()  # scores [R,V] for the first piece

    def step(self, pieces: Tensor) -> Tensor:
        """int64 [R], the pieces just written -> scores [R,V] for the ones that follow."""
        with torch.inference_mode(), autocast(self.precision, self.device):
            self.live[:, self.column] = True
            x = self.model.bert.embeddings(pieces, torch.full_like(pieces, self.kind), self.position)
            for block, (keys, values) in zip(self.model.bert.blocks, self.kept, strict=True):
                x = block_step(block, x, keys, values, self.live, self.column)
            self.position, self.column = self.position + 1, self.column + 1
            return self.words(x).float()

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows [R'], in this order; a row may be there several times."""
        self.live, self.position = self.live[rows], self.position[rows]
        self.kept = [[x[rows] for x in both] for both in self.kept]


def block_step(m: Block, x: Tensor, keys: Tensor, values: Tensor, live: Tensor, column: int) -> Tensor:
    """[R,H], one new piece of each row -> [R,H]; its key and value are put into `column` of [R,A,columns,D]."""
    a, stop = m.attention, column + 1              # columns behind are not written yet
    q, k, v = (a.heads(f(x)[:, None]) for f in (a.query, a.key, a.value))      # [R,A,1,D]
    keys[:, :, column], values[:, :, column] = k[:, :, 0], v[:, :, 0]
    mixed = attention_fused(q, keys[:, :, :stop], values[:, :, :stop], live[:, None, None, :stop])
    x = m.attention_norm(x + a.output(mixed.transpose(1, 2).flatten(2)[:, 0]))
    return m.feedforward_norm(x + m.feedforward(x))


@dataclass
class Beams:
    """What is known of one text that is being written."""
    limit: int                                     # pieces at most, the end included
    open: list[tuple[float, list[int]]] = field(default_factory=lambda: [(0.0, [])])     # (log p, pieces)
    done: list[tuple[float, list[int]]] = field(default_factory=list)                    # (log p a length, pieces)


def write(model: Model, sources: Sequence[Feature], limits: Sequence[int], end: int, kind: int, beams: int = 1,
          length_penalty: float = 1.0, precision: str = "fp32", absent: np.ndarray = NONE) -> list[list[int]]:
    """For each row [CLS] source [SEP] the pieces of a text, without the `end` that closes it.

    The `beams` most probable beginnings are followed side by side; one beam is greedy search. A text of n pieces, the
    end included, is worth log p / n^length_penalty: 0 favours short ones, 1 compares log p a piece. Search ends when
    as many texts are complete as there are beams, or at `limits`, where the open ones are taken as they stand. Numbers
    that are `absent` from the vocabulary are never written.
    """
    texts = [Beams(limit) for limit in limits]
    writer = Writer(model, sources, max(limits), kind, precision)
    scores, owners = writer.first, list(range(len(texts)))                     # the text of each row of the writer
    while True:
        logs = without(scores.log_softmax(-1), absent)
        best = logs.topk(min(beams + 1, scores.shape[1]))                      # one of them may be the end
        going = extend(texts, owners, best.values.double().cpu().numpy(), best.indices.cpu().numpy(), end, beams,
                       length_penalty)
        if not going:
            return [max(text.done, key=lambda pair: pair[0])[1] for text in texts]
        rows, following, owners = map(list, zip(*going, strict=True))
        if rows != list(range(len(scores))):
            writer.keep(torch.tensor(rows, device=scores.device))
        scores = writer.step(torch.tensor(following, device=scores.device))


def extend(texts: list[Beams], owners: Sequence[int], logs: np.ndarray, pieces: np.ndarray, end: int, beams: int,
           length_penalty: float) -> list[tuple[int, int, int]]:
    """Each open beginning by its best next pieces -> (row to go on with, its new piece, the text it belongs to).

    `owners` [R]: the text of each row; rows of one text stand in the order of its open beginnings.
    """
    row, following = 0, []
    for number in dict.fromkeys(owners):
        text, ways = texts[number], []
        for so_far, before in text.open:
            ways += [(so_far + log, before, piece, row)
                     for log, piece in zip(logs[row].tolist(), pieces[row].tolist(), strict=True)]
            row += 1
        ways.sort(key=lambda way: -way[0])

        # an end that is not among the best is no better than going on
        text.done += [(log / (len(before) + 1) ** length_penalty, before)
                      for log, before, piece, _ in ways[:beams] if piece == end]
        going = [way for way in ways if way[2] != end][:beams]
        text.open = [(log, [*before, piece]) for log, before, piece, _ in going]
        if len(text.done) >= beams or not going:
            continue
        if len(text.open[0][1]) == text.limit:
            text.done += [(log / text.limit ** length_penalty, pieces) for log, pieces in text.open]
        else:
            following += [(row, piece, number) for *_, piece, row in going]
    return following
