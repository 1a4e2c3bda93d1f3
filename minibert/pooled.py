"""What tasks that read one answer a row share: the head on the pooled state of [CLS], one answer of many windows."""
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from minibert import ops
from minibert.batching import Batch, Feature
from minibert.config import BertConfig
from minibert.model import Bert, draw, dropout


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


def mean_scores(examples: int, outputs: int, features: Sequence[Feature], scores: Sequence[np.ndarray]) -> np.ndarray:
    """The scores [1,outputs] of every feature -> [examples,outputs]: the mean over the windows of each example.

    Every example has at least one: a text without words is [CLS] [SEP].
    """
    sums, counts = np.zeros((examples, outputs)), np.zeros((examples, 1))
    for feature, rows in zip(features, scores, strict=True):
        sums[feature.example] += rows[0]
        counts[feature.example] += 1
    return sums / counts


def sigmoid(scores: np.ndarray) -> np.ndarray:
    """Any shape -> probabilities of that shape; no score overflows it."""
    return np.exp(-np.logaddexp(0.0, -scores))


def softmax(scores: np.ndarray) -> np.ndarray:
    """[N,K] -> probabilities [N,K]."""
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)
