"""Every head: hidden states of the encoder to scores, forward and backward by hand beside it."""
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minibert.core import ops
from minibert.core.batch import Batch
from minibert.core.config import ACTIVATIONS, BertConfig
from minibert.core.layout import moved
from minibert.core.model import ACTIVATE, Bert, draw, dropout


class TokenHead(nn.Module):
    """Dropout and one linear map on the pieces that carry a label."""

    def __init__(self, config: BertConfig, K: int):
        super().__init__()
        self.classifier = nn.Linear(config.hidden_size, K)
        self.p, self.site = config.hidden_dropout_prob, 1 + 3 * config.num_hidden_layers

    def forward(self, hidden: Tensor, batch: Batch, masks=None) -> Tensor:
        """[P,H] -> scores [M,K] of the batch's picks."""
        return self.classifier(dropout(hidden.index_select(0, batch.picks), self.p, masks, self.site))

    def forward_by_hand(self, hidden: Tensor, batch: Batch, masks=None) -> tuple[Tensor, Any]:
        """forward() with what backward_by_hand needs: [P,H] -> scores [M,K], cache."""
        picked, lookup = ops.embedding_forward(batch.picks, hidden)          # a lookup, as word vectors are
        x, mask = ops.dropout_forward(picked, draw(masks, self.site, picked.shape, self.p, picked))
        scores, linear = ops.linear_forward(x, self.classifier.weight, self.classifier.bias)
        return scores, (lookup, mask, linear)

    def backward_by_hand(self, dscores: Tensor, cache: Any) -> tuple[Tensor, list[tuple[nn.Parameter, Tensor]]]:
        """[M,K] -> dhidden [P,H], 0 where no label is, and (parameter, gradient) pairs."""
        lookup, mask, linear = cache
        dx, dw, db = ops.linear_backward(dscores, linear)
        dhidden = ops.embedding_backward(ops.dropout_backward(dx, mask), lookup)
        return dhidden, [(self.classifier.weight, dw), (self.classifier.bias, db)]


class SpanHead(nn.Module):
    """One linear map to two scores a piece, without dropout: published as BertForQuestionAnswering."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.qa_outputs = nn.Linear(config.hidden_size, 2)

    def forward(self, hidden: Tensor, batch: Batch, masks: Any = None) -> Tensor:
        """[P,H] -> scores [M,2] of the batch's picks: start, end."""
        return self.qa_outputs(hidden.index_select(0, batch.picks))

    def forward_by_hand(self, hidden: Tensor, batch: Batch, masks: Any = None) -> tuple[Tensor, Any]:
        """forward() with what backward_by_hand needs: [P,H] -> scores [M,2], cache."""
        picked, lookup = ops.embedding_forward(batch.picks, hidden)
        scores, linear = ops.linear_forward(picked, self.qa_outputs.weight, self.qa_outputs.bias)
        return scores, (lookup, linear)

    def backward_by_hand(self, dscores: Tensor, cache: Any) -> tuple[Tensor, list[tuple[nn.Parameter, Tensor]]]:
        """[M,2] -> dhidden [P,H], 0 but at the picks, and (parameter, gradient) pairs."""
        lookup, linear = cache
        dpicked, dw, db = ops.linear_backward(dscores, linear)
        return ops.embedding_backward(dpicked, lookup), [(self.qa_outputs.weight, dw), (self.qa_outputs.bias, db)]


class PairHead(nn.Module):
    """The states of two pieces of a row, side by side, dropout, one linear map."""
    one_a_row = True                               # scores, of two picks

    def __init__(self, config: BertConfig, K: int):
        super().__init__()
        self.classifier = nn.Linear(2 * config.hidden_size, K)
        self.p, self.site = config.hidden_dropout_prob, 1 + 3 * config.num_hidden_layers

    def forward(self, hidden: Tensor, batch: Batch, masks: Any = None) -> Tensor:
        """[P,H] -> scores [B,K]; each row of the batch has two picks."""
        pair = hidden.index_select(0, batch.picks).view(-1, 2 * hidden.shape[1])
        return self.classifier(dropout(pair, self.p, masks, self.site))

    def forward_by_hand(self, hidden: Tensor, batch: Batch, masks: Any = None) -> tuple[Tensor, Any]:
        """forward() with what backward_by_hand needs: [P,H] -> scores [B,K], cache."""
        picked, lookup = ops.embedding_forward(batch.picks, hidden)            # [2B,H]
        pair = picked.view(-1, 2 * hidden.shape[1])                            # [B,2H] the same memory
        x, mask = ops.dropout_forward(pair, draw(masks, self.site, pair.shape, self.p, pair))
        scores, linear = ops.linear_forward(x, self.classifier.weight, self.classifier.bias)
        return scores, (lookup, mask, linear)

    def backward_by_hand(self, dscores: Tensor, cache: Any) -> tuple[Tensor, list[tuple[nn.Parameter, Tensor]]]:
        """[B,K] -> dhidden [P,H], 0 but at the picks, and (parameter, gradient) pairs."""
        lookup, mask, linear = cache
        dx, dw, db = ops.linear_backward(dscores, linear)
        dpicked = ops.dropout_backward(dx, mask).view(2 * len(dx), -1)         # each half to its piece
        return ops.embedding_backward(dpicked, lookup), [(self.classifier.weight, dw), (self.classifier.bias, db)]


class PooledHead(nn.Module):
    """The encoder's pooler, dropout, one linear map: published as BertForSequenceClassification."""
    uses_pooler = True
    pooler: nn.Module                              # the encoder's: shared, not a parameter of this module

    def __init__(self, config: BertConfig, outputs: int):
        super().__init__()
        self.classifier = nn.Linear(config.hidden_size, outputs)
        self.p, self.site = config.hidden_dropout_prob, 1 + 3 * config.num_hidden_layers

    def attach(self, bert: Bert) -> None:
        """Use this encoder's pooler."""
        self.__dict__["pooler"] = bert.pooler      # past nn.Module, which would count its weights as ours too

    def forward(self, hidden: Tensor, batch: Batch, masks: Any = None) -> Tensor:
        """[P,H] -> scores [M,outputs] of the batch's picks, the first piece of each row."""
        pooled = self.pooler(hidden.index_select(0, batch.picks))
        return self.classifier(dropout(pooled, self.p, masks, self.site))

    def forward_by_hand(self, hidden: Tensor, batch: Batch, masks: Any = None) -> tuple[Tensor, Any]:
        """forward() with what backward_by_hand needs: [P,H] -> scores [M,outputs], cache."""
        first, lookup = ops.embedding_forward(batch.picks, hidden)
        z, inner = ops.linear_forward(first, self.pooler.dense.weight, self.pooler.dense.bias)
        pooled, curve = ops.tanh_forward(z)
        x, mask = ops.dropout_forward(pooled, draw(masks, self.site, pooled.shape, self.p, pooled))
        scores, outer = ops.linear_forward(x, self.classifier.weight, self.classifier.bias)
        return scores, (lookup, inner, curve, mask, outer)

    def backward_by_hand(self, dscores: Tensor, cache: Any) -> tuple[Tensor, list[tuple[nn.Parameter, Tensor]]]:
        """[M,outputs] -> dhidden [P,H], 0 but at the picks, and (parameter, gradient) pairs."""
        lookup, inner, curve, mask, outer = cache
        dx, dw, db = ops.linear_backward(dscores, outer)
        dz = ops.tanh_backward(ops.dropout_backward(dx, mask), curve)
        dfirst, dw_pooler, db_pooler = ops.linear_backward(dz, inner)
        return ops.embedding_backward(dfirst, lookup), [
            (self.classifier.weight, dw), (self.classifier.bias, db), (self.pooler.dense.weight, dw_pooler),
            (self.pooler.dense.bias, db_pooler)]


@dataclass(frozen=True)
class OnlyPicks:
    """What the head of a pair reads of a batch."""
    picks: Tensor


class TowerHead(PooledHead):
    """A row's vector, the mean of its picks at length 1, and in the last column the score of a pair."""
    one_a_row = True

    def __init__(self, config: BertConfig):
        super().__init__(config, 1)

    def forward(self, hidden: Tensor, batch: Batch, masks: Any = None) -> Tensor:
        """[P,H] -> [B,H+1]: H numbers of the vector, one score."""
        row, first = rows_of_picks(batch)
        mean, _ = ops.row_mean_forward(ops.at_least_fp32(hidden.index_select(0, batch.picks)), row, len(first))
        score = super().forward(hidden, OnlyPicks(batch.picks[first]), masks)
        return torch.cat([ops.unit_forward(mean)[0], score.to(mean.dtype)], 1)

    def forward_by_hand(self, hidden: Tensor, batch: Batch, masks: Any = None) -> tuple[Tensor, Any]:
        """forward() with what backward_by_hand needs: [P,H] -> [B,H+1], cache."""
        row, first = rows_of_picks(batch)
        picked, lookup = ops.embedding_forward(batch.picks, hidden)
        mean, means = ops.row_mean_forward(ops.at_least_fp32(picked), row, len(first))
        vector, unit = ops.unit_forward(mean)
        score, pooled = super().forward_by_hand(hidden, OnlyPicks(batch.picks[first]), masks)
        return torch.cat([vector, score.to(mean.dtype)], 1), (lookup, picked.dtype, means, unit, score.dtype, pooled)

    def backward_by_hand(self, dscores: Tensor, cache: Any) -> tuple[Tensor, list[tuple[nn.Parameter, Tensor]]]:
        """[B,H+1] -> dhidden [P,H], 0 but at the picks, and (parameter, gradient) pairs."""
        lookup, dtype, means, unit, score_dtype, pooled = cache
        dmean = ops.unit_backward(dscores[:, :-1], unit)
        dhidden = ops.embedding_backward(ops.row_mean_backward(dmean, means).to(dtype), lookup)
        dfirst, pairs = super().backward_by_hand(dscores[:, -1:].to(score_dtype), pooled)
        return dhidden + dfirst, pairs


def rows_of_picks(batch: Batch) -> tuple[Tensor, Tensor]:
    """int64: the row of each pick [M]; the first pick of each row [B]."""
    counts = np.array([len(f.picks) for f in batch.features])
    row = np.repeat(np.arange(len(counts)), counts)
    return moved(torch.from_numpy(row), batch.picks.device), moved(torch.from_numpy(np.cumsum(counts) - counts),
                                                                   batch.picks.device)


class Transform(nn.Module):
    """Linear map, activation, LayerNorm."""

    def __init__(self, c: BertConfig):
        super().__init__()
        self.dense = nn.Linear(c.hidden_size, c.hidden_size)
        self.LayerNorm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)


class Predictions(nn.Module):
    """The transform and a bias a piece; the map between them is the table of word vectors."""

    def __init__(self, c: BertConfig):
        super().__init__()
        self.transform, self.bias = Transform(c), nn.Parameter(torch.zeros(c.vocab_size))


class WordHead(nn.Module):
    """Hidden states -> a score for each piece of the vocabulary, by the word vectors themselves (a tied decoder)."""
    wide = True                                    # a score for each of V pieces: fast.py adds picks without a label
    embeddings: nn.Module                          # the encoder's: shared, not a parameter of this module

    def __init__(self, config: BertConfig):
        super().__init__()
        self.cls = nn.ModuleDict({"predictions": Predictions(config)})
        self.activation = ACTIVATIONS[config.hidden_act]

    def attach(self, bert: Bert) -> None:
        """Use this encoder's word vectors."""
        self.__dict__["embeddings"] = bert.embeddings          # past nn.Module, which would count them as ours too

    @property
    def parts(self) -> tuple[nn.Linear, nn.LayerNorm, nn.Parameter, nn.Parameter]:
        """dense, LayerNorm, bias [V], word vectors [V,H]."""
        predictions = self.cls["predictions"]
        return (predictions.transform.dense, predictions.transform.LayerNorm, predictions.bias,
                self.embeddings.word.weight)

    def forward(self, hidden: Tensor, batch: Batch, masks: Any = None) -> Tensor:
        """[P,H] -> scores [M,V] of the batch's picks."""
        return self.words(hidden.index_select(0, batch.picks))

    def words(self, x: Tensor) -> Tensor:
        """[M,H] -> scores [M,V]."""
        dense, norm, bias, words = self.parts
        return nn.functional.linear(norm(ACTIVATE[self.activation](dense(x))), words, bias)

    def forward_by_hand(self, hidden: Tensor, batch: Batch, masks: Any = None) -> tuple[Tensor, Any]:
        """forward() with what backward_by_hand needs: [P,H] -> scores [M,V], cache."""
        dense, norm, bias, words = self.parts
        picked, lookup = ops.embedding_forward(batch.picks, hidden)
        z, inner = ops.linear_forward(picked, dense.weight, dense.bias)
        active, curve = ops.ACTIVATIONS[self.activation][0](ops.at_least_fp32(z))
        x, norm_cache = ops.layernorm_forward(active, norm.weight, norm.bias, norm.eps)
        scores, outer = ops.linear_forward(x, words, bias)                    # [TIE-1]
        return scores, (lookup, inner, curve, norm_cache, outer)

    def backward_by_hand(self, dscores: Tensor, cache: Any) -> tuple[Tensor, list[tuple[nn.Parameter, Tensor]]]:
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
        reader = PooledHead(config, 2)
        reader.p = 0.0                             # the published class has no dropout here
        self.cls["seq_relationship"] = reader.classifier
        self.__dict__["reader"] = reader           # past nn.Module: all its weights are listed already

    def attach(self, bert: Bert) -> None:
        """Use this encoder's word vectors and its pooler."""
        super().attach(bert)
        self.reader.attach(bert)

    def forward(self, hidden: Tensor, batch: Batch, masks: Any = None) -> Tensor:
        """[P,H] -> scores [M,V] of the batch's picks."""
        first = firsts(batch)
        answers = self.reader(hidden, replace(batch, picks=batch.picks[first]))
        return with_answers(super().forward(hidden, batch), first, answers)

    def forward_by_hand(self, hidden: Tensor, batch: Batch, masks: Any = None) -> tuple[Tensor, Any]:
        """forward() with what backward_by_hand needs: [P,H] -> scores [M,V], cache."""
        first = firsts(batch)
        answers, pooled = self.reader.forward_by_hand(hidden, replace(batch, picks=batch.picks[first]))
        scores, words = super().forward_by_hand(hidden, batch)
        return with_answers(scores, first, answers), (first, pooled, words)

    def backward_by_hand(self, dscores: Tensor, cache: Any) -> tuple[Tensor, list[tuple[nn.Parameter, Tensor]]]:
        """[M,V] -> dhidden [P,H], 0 but at the picks, and (parameter, gradient) pairs."""
        first, pooled, words = cache
        dfirst, of_answers = self.reader.backward_by_hand(dscores[first, :2], pooled)
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
