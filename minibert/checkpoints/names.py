"""The table of names: each parameter in the docs, in the model here and in a published file."""
from typing import NamedTuple

from minibert.core.config import BertConfig


class Name(NamedTuple):
    """One parameter under its three names."""
    symbol: str                                    # in the docs
    ours: str                                      # in Bert.state_dict()
    published: str                                 # in the file, after an optional "bert."


EMBEDDING_NAMES = (
    Name("E_word", "embeddings.word.weight", "embeddings.word_embeddings.weight"),
    Name("E_position", "embeddings.position.weight", "embeddings.position_embeddings.weight"),
    Name("E_type", "embeddings.token_type.weight", "embeddings.token_type_embeddings.weight"),
    Name("gamma_0", "embeddings.norm.weight", "embeddings.LayerNorm.weight"),
    Name("beta_0", "embeddings.norm.bias", "embeddings.LayerNorm.bias"),
)
BLOCK_NAMES = (                                    # i is the block's number, from 0
    Name("W_Q[i]", "blocks.{i}.attention.query.weight", "encoder.layer.{i}.attention.self.query.weight"),
    Name("b_Q[i]", "blocks.{i}.attention.query.bias", "encoder.layer.{i}.attention.self.query.bias"),
    Name("W_K[i]", "blocks.{i}.attention.key.weight", "encoder.layer.{i}.attention.self.key.weight"),
    Name("b_K[i]", "blocks.{i}.attention.key.bias", "encoder.layer.{i}.attention.self.key.bias"),
    Name("W_V[i]", "blocks.{i}.attention.value.weight", "encoder.layer.{i}.attention.self.value.weight"),
    Name("b_V[i]", "blocks.{i}.attention.value.bias", "encoder.layer.{i}.attention.self.value.bias"),
    Name("W_O[i]", "blocks.{i}.attention.output.weight", "encoder.layer.{i}.attention.output.dense.weight"),
    Name("b_O[i]", "blocks.{i}.attention.output.bias", "encoder.layer.{i}.attention.output.dense.bias"),
    Name("gamma_A[i]", "blocks.{i}.attention_norm.weight", "encoder.layer.{i}.attention.output.LayerNorm.weight"),
    Name("beta_A[i]", "blocks.{i}.attention_norm.bias", "encoder.layer.{i}.attention.output.LayerNorm.bias"),
    Name("W_1[i]", "blocks.{i}.feedforward.inner.weight", "encoder.layer.{i}.intermediate.dense.weight"),
    Name("b_1[i]", "blocks.{i}.feedforward.inner.bias", "encoder.layer.{i}.intermediate.dense.bias"),
    Name("W_2[i]", "blocks.{i}.feedforward.outer.weight", "encoder.layer.{i}.output.dense.weight"),
    Name("b_2[i]", "blocks.{i}.feedforward.outer.bias", "encoder.layer.{i}.output.dense.bias"),
    Name("gamma_F[i]", "blocks.{i}.feedforward_norm.weight", "encoder.layer.{i}.output.LayerNorm.weight"),
    Name("beta_F[i]", "blocks.{i}.feedforward_norm.bias", "encoder.layer.{i}.output.LayerNorm.bias"),
)
POOLER_NAMES = (
    Name("W_P", "pooler.dense.weight", "pooler.dense.weight"),
    Name("b_P", "pooler.dense.bias", "pooler.dense.bias"),
)
ALIASES = (("cls.predictions.decoder.bias", "cls.predictions.bias"),           # two names of one tensor, if it is tied
           ("cls.predictions.decoder.weight", "embeddings.word_embeddings.weight"))
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")     # constants that some files carry
KNOWN_HEADS = {"cls.predictions.": "masked-word head", "cls.seq_relationship.": "next-sentence head",
               "classifier.": "classification head", "qa_outputs.": "question-answering head"}


def name_table(config: BertConfig, pooler: bool = True) -> list[Name]:
    """Every parameter of an encoder, one row each: docs symbol, our name, published name (without "bert.")."""
    rows = list(EMBEDDING_NAMES)
    for i in range(config.num_hidden_layers):
        rows += [Name(n.symbol.replace("[i]", f"[{i}]"), n.ours.format(i=i), n.published.format(i=i))
                 for n in BLOCK_NAMES]
    return rows + (list(POOLER_NAMES) if pooler else [])
