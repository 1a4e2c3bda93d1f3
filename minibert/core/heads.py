"""Every head: hidden states of the encoder to scores, forward and backward by hand beside it.

Parameters carry the names of the published classes. TokenHead is the one to read first.
"""
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from minibert.core import ops
from minibert.core.batch import Batch
from minibert.core.config import HIDDEN_ACTS, BertConfig
from minibert.core.dropout import Masks, draw
from minibert.core.layout import moved
from minibert.core.model import ACTIVATE, Bert, Pooler
from minibert.core.ops import Cache, Pair


class Head(nn.Module):
    """Hidden states [P,H] of a batch -> scores of its picks; the base of all heads.

    One that has forward() alone can learn with --gradients autograd; the other engines need the pair by hand.
    """
    uses_pooler = False                            # so a checkpoint without a pooler gets a new one
    one_a_row = False                              # scores [B,K], one for each feature whatever it picks
    wide = False                                   # a score for each of V pieces: the batch may have more picks, which
                                                   # stand behind those of the features and have label -1

    def __init__(self) -> None:
        super().__init__()
        # In a tuple, because nn.Module would list the encoder's weights as this module's own.
        self.encoder: tuple[Bert, ...] = ()

    def attach(self, bert: Bert) -> None:
        """Become a head of this encoder; several heads use parts of it."""
        self.encoder = (bert,)

    def forward(self, hidden: Tensor, batch: Batch, masks: Masks | None = None) -> Tensor:
        """[P,H] -> scores [M,K]; without `masks` no dropout."""
        return self.forward_by_hand(hidden, batch, masks)[0]

    def forward_by_hand(self, hidden: Tensor, batch: Batch, masks: Masks | None = None) -> tuple[Tensor, Cache]:
        """[P,H] -> scores [M,K], and what backward_by_hand() needs."""
        raise NotImplementedError

    def backward_by_hand(self, dscores: Tensor, cache: Cache) -> tuple[Tensor, list[Pair]]:
        """Gradient of the scores -> dhidden [P,H], 0 at pieces that are not read, and those of the parameters."""
        raise NotImplementedError


class TokenHead(Head):
    """Dropout and one linear map on the pieces that a batch picks: published as BertForTokenClassification."""
    published = "classifier"                       # name of the map
    side_by_side = 1                               # picks that are one vector together

    def __init__(self, config: BertConfig, outputs: int, dropout: bool = True):
        super().__init__()
        self.add_module(self.published, nn.Linear(self.side_by_side * config.hidden_size, outputs))
        p = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.p, self.site = p * dropout, 1 + 3 * config.num_hidden_layers

    @property
    def linear(self) -> nn.Linear:
        """The map."""
        return cast(nn.Linear, self.get_submodule(self.published))

    @property
    def pooler(self) -> Pooler:
        """The encoder's, which has one for every head that uses it."""
        pooler = self.encoder[0].pooler
        assert pooler is not None
        return pooler

    def forward_by_hand(self, hidden: Tensor, batch: Batch, masks: Masks | None = None) -> tuple[Tensor, Cache]:
        """[P,H] -> scores [M,outputs] of the batch's picks, cache."""
        picked, lookup = ops.embedding_forward(batch.picks, hidden)          # a lookup, as word vectors are
        x, dense, curve = picked.view(-1, self.side_by_side * hidden.shape[1]), None, None
        if self.uses_pooler:
            z, dense = ops.linear_forward(x, self.pooler.dense.weight, self.pooler.dense.bias)
            x, curve = ops.tanh_forward(z)

        x, mask = ops.dropout_forward(x, draw(masks, self.site, x.shape, self.p, x))
        scores, linear = ops.linear_forward(x, self.linear.weight, self.linear.bias)
        return scores, (lookup, dense, curve, mask, linear)

    def backward_by_hand(self, dscores: Tensor, cache: Cache) -> tuple[Tensor, list[Pair]]:
        """[M,outputs] -> dhidden [P,H], 0 but at the picks, and (parameter, gradient) pairs."""
        lookup, dense, curve, mask, linear = cache
        dx, dw, db = ops.linear_backward(dscores, linear)
        dx, pairs = ops.dropout_backward(dx, mask), [(self.linear.weight, dw), (self.linear.bias, db)]

        if self.uses_pooler:
            dx, dw, db = ops.linear_backward(ops.tanh_backward(dx, curve), dense)
            pairs += [(self.pooler.dense.weight, dw), (self.pooler.dense.bias, db)]
        dpicked = dx.view(-1, dx.shape[1] // self.side_by_side)              # each part to its piece
        return ops.embedding_backward(dpicked, lookup), pairs


class SpanHead(TokenHead):
    """Two scores a piece, start and end, without dropout: published as BertForQuestionAnswering."""
    published = "qa_outputs"

    def __init__(self, config: BertConfig):
        super().__init__(config, 2, dropout=False)


class PairHead(TokenHead):
    """The states of two pieces of a row, side by side, dropout, one linear map: scores [B,K]."""
    one_a_row = True
    side_by_side = 2


class PooledHead(TokenHead):
    """The encoder's pooler before it, for the first piece of each row: published as BertForSequenceClassification."""
    uses_pooler = True


class TowerHead(PooledHead):
    """A row's vector, the mean of its picks at length 1, and in the last column the score of a pair.

    Every row picks its [CLS] first, of which the pooler and a map to one number make that score.
    """
    one_a_row = True

    def forward_by_hand(self, hidden: Tensor, batch: Batch, masks: Masks | None = None) -> tuple[Tensor, Cache]:
        """[P,H] -> [B,H+1], H numbers of the vector and one score; cache."""
        first, counts = firsts(batch), [len(f.picks) for f in batch.features]
        row = moved(torch.from_numpy(np.repeat(np.arange(len(counts)), counts)), hidden.device)      # [M] of each pick
        picked, lookup = ops.embedding_forward(batch.picks, hidden)
        mean, means = ops.row_mean_forward(ops.at_least_fp32(picked), row, len(first))
        vector, unit = ops.unit_forward(mean)

        score, pooled = super().forward_by_hand(hidden, replace(batch, picks=batch.picks[first]), masks)
        return torch.cat([vector, score.to(mean.dtype)], 1), (lookup, picked.dtype, means, unit, score.dtype, pooled)

    def backward_by_hand(self, dscores: Tensor, cache: Cache) -> tuple[Tensor, list[Pair]]:
        """[B,H+1] -> dhidden [P,H], 0 but at the picks, and (parameter, gradient) pairs."""
        lookup, dtype, means, unit, score_dtype, pooled = cache
        dmean = ops.unit_backward(dscores[:, :-1], unit)
        dhidden = ops.embedding_backward(ops.row_mean_backward(dmean, means).to(dtype), lookup)

        dfirst, pairs = super().backward_by_hand(dscores[:, -1:].to(score_dtype), pooled)
        return dhidden + dfirst, pairs


class WordHead(Head):
    """A score for each piece of the vocabulary: linear map, activation, LayerNorm, and the encoder's word vectors.

    The decoder is tied to them; what it has of its own is a bias a piece. Where config.json unties it, it is a linear
    map of its own.
    """
    wide = True

    def __init__(self, config: BertConfig):
        super().__init__()
        H, predictions = config.hidden_size, nn.Module()
        predictions.transform = nn.ModuleDict({"dense": nn.Linear(H, H),
                                               "LayerNorm": nn.LayerNorm(H, eps=config.layer_norm_eps)})
        self.tied = config.tie_word_embeddings
        if self.tied:
            predictions.bias = nn.Parameter(torch.zeros(config.vocab_size))
        else:
            predictions.decoder = nn.Linear(H, config.vocab_size)
        self.cls = nn.ModuleDict({"predictions": predictions})
        self.activation = HIDDEN_ACTS[config.hidden_act]

    @property
    def parts(self) -> tuple[nn.Linear, nn.LayerNorm, nn.Parameter, nn.Parameter]:
        """dense, LayerNorm, bias [V], word vectors [V,H], or the matrix in their place."""
        predictions: Any = self.cls["predictions"]  # what a module of torch holds has no types
        transform = predictions.transform.values()
        if not self.tied:
            return *transform, predictions.decoder.bias, predictions.decoder.weight
        return *transform, predictions.bias, self.encoder[0].embeddings.word.weight

    def forward(self, hidden: Tensor, batch: Batch, masks: Masks | None = None) -> Tensor:
        """[P,H] -> scores [M,V] of the batch's picks."""
        return self.words(hidden.index_select(0, batch.picks))

    def words(self, x: Tensor) -> Tensor:
        """[M,H] -> scores [M,V]."""
        dense, norm, bias, words = self.parts
        return nn.functional.linear(norm(ACTIVATE[self.activation](dense(x))), words, bias)

    def forward_by_hand(self, hidden: Tensor, batch: Batch, masks: Masks | None = None) -> tuple[Tensor, Cache]:
        """[P,H] -> scores [M,V] of the batch's picks, cache."""
        dense, norm, bias, words = self.parts
        picked, lookup = ops.embedding_forward(batch.picks, hidden)
        z, inner = ops.linear_forward(picked, dense.weight, dense.bias)
        active, curve = ops.ACTIVATIONS[self.activation][0](ops.at_least_fp32(z))
        x, norm_cache = ops.layernorm_forward(active, norm.weight, norm.bias, norm.eps)
        scores, outer = ops.linear_forward(x, words, bias)                    # [TIE-1]
        return scores, (lookup, inner, curve, norm_cache, outer)

    def backward_by_hand(self, dscores: Tensor, cache: Cache) -> tuple[Tensor, list[Pair]]:
        """[M,V] -> dhidden [P,H], 0 but at the picks, and (parameter, gradient) pairs; one is of the word vectors."""
        dense, norm, bias, words = self.parts
        lookup, inner, curve, norm_cache, outer = cache
        dx, dwords, dbias = ops.linear_backward(dscores, outer)               # [TIE-2]
        dactive, dw_norm, db_norm = ops.layernorm_backward(dx, norm_cache)
        dz = ops.ACTIVATIONS[self.activation][1](dactive, curve)
        dpicked, dw, db = ops.linear_backward(dz, inner)
        return ops.embedding_backward(dpicked, lookup), [
            (words, dwords), (bias, dbias), (norm.weight, dw_norm), (norm.bias, db_norm), (dense.weight, dw),
            (dense.bias, db)]


class NextSentenceHead(WordHead):
    """WordHead; and where a row's first pick is its [CLS], that pick's scores are the two answers, the others −∞.

    So the softmax over the vocabulary is there a softmax over two, and one loss serves both.
    """
    uses_pooler = True

    def __init__(self, config: BertConfig):
        super().__init__(config)
        answers = PooledHead(config, 2, dropout=False)                         # as the published class
        self.cls["seq_relationship"] = answers.linear
        self.answers = (answers,)                  # in a tuple, as the encoder is: its weights are listed above

    def attach(self, bert: Bert) -> None:
        """Use this encoder's word vectors and its pooler."""
        super().attach(bert)
        self.answers[0].attach(bert)

    def forward(self, hidden: Tensor, batch: Batch, masks: Masks | None = None) -> Tensor:
        """[P,H] -> scores [M,V] of the batch's picks."""
        first = firsts(batch)
        answers = self.answers[0](hidden, replace(batch, picks=batch.picks[first]))
        return with_answers(super().forward(hidden, batch), first, answers)

    def forward_by_hand(self, hidden: Tensor, batch: Batch, masks: Masks | None = None) -> tuple[Tensor, Cache]:
        """[P,H] -> scores [M,V] of the batch's picks, cache."""
        first = firsts(batch)
        answers, pooled = self.answers[0].forward_by_hand(hidden, replace(batch, picks=batch.picks[first]))
        scores, words = super().forward_by_hand(hidden, batch)
        return with_answers(scores, first, answers), (first, pooled, words)

    def backward_by_hand(self, dscores: Tensor, cache: Cache) -> tuple[Tensor, list[Pair]]:
        """[M,V] -> dhidden [P,H], 0 but at the picks, and (parameter, gradient) pairs."""
        first, pooled, words = cache
        dfirst, of_answers = self.answers[0].backward_by_hand(dscores[first, :2], pooled)
        dhidden, of_words = super().backward_by_hand(dscores.index_fill(0, first, 0.0), words)
        return dhidden + dfirst, of_words + of_answers


def firsts(batch: Batch) -> Tensor:
    """int64: of the batch's M picks those that are the [CLS] of their row."""
    counts = np.array([len(f.picks) for f in batch.features])
    there = [len(f.picks) > 0 and f.picks[0] == 0 for f in batch.features]
    return moved(torch.from_numpy((np.cumsum(counts) - counts)[there]), batch.picks.device)


def with_answers(scores: Tensor, first: Tensor, answers: Tensor) -> Tensor:
    """Scores [M,V] with rows `first` replaced by `answers` [B,2] and −∞; written in place."""
    scores[first] = -torch.inf
    scores[first, :2] = answers.to(scores.dtype)                              # [NEXT-1]
    return scores
