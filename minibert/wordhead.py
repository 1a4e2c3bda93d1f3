"""The head that says which piece stands at a place, published as cls.predictions: masked words and all that writes."""
from typing import Any

import torch
from torch import Tensor, nn

from minibert import ops
from minibert.batching import Batch
from minibert.config import ACTIVATIONS, BertConfig
from minibert.model import ACTIVATE, Bert


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
