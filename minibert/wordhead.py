"""The head that says which piece stands at a place, published as cls.predictions: masked words and all that writes."""
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minibert import ops
from minibert.batching import Batch
from minibert.config import ACTIVATIONS, BertConfig
from minibert.model import ACTIVATE, Bert
from minibert.tokenizer import Tokenizer


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


class PieceTask:
    """A task whose labels are pieces of the vocabulary: its head and its loss."""
    architecture, problem_type = "BertForMaskedLM", None
    head_parts = ("cls.predictions.", "cls.seq_relationship.")
    new_pieces: tuple[str, ...] = ()

    def __init__(self, options: Any, labels: Sequence[str] = ()):
        self.options, self.labels, self.notices = options, list(labels), []
        self.tokenizer: Tokenizer | None = None    # the last one that encoded; pieces are named by it

    @property
    def outputs(self) -> list[str]:
        """The scores are those of the vocabulary, which has a file of its own."""
        return []

    def learn_labels(self, splits: Any) -> None:
        """There are none: the text is its own label."""

    def note_unseen(self, splits: Any) -> None:
        """Nothing can be unseen: every text has pieces of the vocabulary."""

    def head(self, config: BertConfig) -> nn.Module:
        """Published as `cls.predictions`."""
        return WordHead(config)

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """{term: labels [M], -1 at picks that are none of it}."""
        return {"pieces": batch.labels}

    def counts(self, batch: Batch) -> dict[str, float]:
        """Pieces that are to be said."""
        return {"pieces": float(sum((f.labels >= 0).sum() for f in batch.features))}

    def loss(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Scores [M,V] -> the sums of −log softmax at the right piece."""
        z = ops.at_least_fp32(scores)
        return {term: ops.cross_entropy_forward(z, y)[0] for term, y in self.terms(batch).items()}

    def loss_backward(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Scores [M,V] -> the gradients [M,V] of the sums by them."""
        z = ops.at_least_fp32(scores)
        return {term: ops.cross_entropy_backward(1.0, (z, y)) for term, y in self.terms(batch).items()}
