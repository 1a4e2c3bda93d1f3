"""BertConfig, the facts of a checkpoint: what its config.json says, and what cannot be honoured."""
import dataclasses
from dataclasses import dataclass
from pathlib import Path

from minibert.errors import MinibertError
from minibert.files import Json, read_json

# published name -> ours: one erf form, one tanh form that appears under three names, and ReLU
HIDDEN_ACTS = {"gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
               "gelu_fast": "gelu_tanh", "relu": "relu"}
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
# of each size ten times what any published encoder has, or more
MOST = {"vocab_size": 2 ** 21, "hidden_size": 2 ** 16, "num_hidden_layers": 2 ** 10, "num_attention_heads": 2 ** 10,
        "intermediate_size": 2 ** 18, "max_position_embeddings": 2 ** 20, "type_vocab_size": 2 ** 10}


@dataclass(frozen=True)
class BertConfig:
    """What a published config.json of model_type bert says. Letters of the docs in brackets."""
    vocab_size: int                                # [V] pieces in the vocabulary
    hidden_size: int                               # [H]
    num_hidden_layers: int                         # [L]
    num_attention_heads: int                       # [A]
    intermediate_size: int                         # [F]
    hidden_act: str = "gelu"                       # fixed by the checkpoint: erf GELU unless it says otherwise
    max_position_embeddings: int = 512             # fixed by the checkpoint: longest row
    type_vocab_size: int = 2                       # 2·S where letter case is given back through S case shapes
    layer_norm_eps: float = 1e-12                  # fixed by the checkpoint
    hidden_dropout_prob: float = 0.1               # as published; --dropout replaces both
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02                # sd of the truncated normal that new weights start from
    pad_token_id: int = 0
    case_shapes: tuple[str, ...] = ()              # shapes a word's letters can have; () where case is not given back
    classifier_dropout: float | None = None        # before the map of a head; None: as hidden_dropout_prob
    tie_word_embeddings: bool = True               # whether a piece is predicted by its own word vector

    @property
    def head_size(self) -> int:
        """[D] = H / A."""
        return self.hidden_size // self.num_attention_heads

    @property
    def least_numbers(self) -> int:
        """Numbers in the embeddings and matrices, which every whole checkpoint has."""
        H, F = self.hidden_size, self.intermediate_size
        tables = self.vocab_size + self.max_position_embeddings + self.type_vocab_size
        return tables * H + self.num_hidden_layers * (4 * H * H + 2 * H * F)

    @classmethod
    def read(cls, folder: Path) -> "BertConfig":
        """The config.json of `folder`. Raises MinibertError naming what is missing or cannot be honoured."""
        return cls.from_dict(read_json(Path(folder) / "config.json"), str(Path(folder) / "config.json"))

    @classmethod
    def from_dict(cls, published: Json, where: str = "config.json") -> "BertConfig":
        """BertConfig from the keys of a published config.json; keys that do not touch the numbers are passed over."""
        refuse_unsupported(published, where)
        own = published.get("minibert")
        own = {} if own is None else own
        shapes = own.get("case_shapes", []) if isinstance(own, dict) else None
        if not isinstance(shapes, list) or not all(isinstance(s, str) for s in shapes):
            raise MinibertError(f"{where}: minibert is {own!r}; expected case_shapes, a list of names; mend the file")
        values = {k: published[k] for k in SIZES}
        for f in dataclasses.fields(cls):
            if f.name in published and f.name not in SIZES:
                values[f.name] = published[f.name]
        values["pad_token_id"] = values.get("pad_token_id") or 0        # some files say null
        values["case_shapes"] = tuple(shapes)
        if type(values["pad_token_id"]) is not int:
            raise MinibertError(f"{where}: pad_token_id is {values['pad_token_id']!r}, not a number; mend the file")
        for name, most in MOST.items():
            value = values.get(name, 1)
            if type(value) is not int or not 1 <= value <= most:
                raise MinibertError(f"{where}: {name} is {repr(value)[:40]}, not a whole number from 1 to {most:,}; "
                                    "mend the file")
        for name in ("layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout",
                     "initializer_range"):
            value = values.get(name, 0.0)
            if value is None and name == "classifier_dropout":
                continue
            if type(value) not in (int, float) or not 0 <= value < 1:
                raise MinibertError(f"{where}: {name} is {value!r}, not a number in [0, 1); mend the file")
        if type(values.get("tie_word_embeddings", True)) is not bool:
            raise MinibertError(f"{where}: tie_word_embeddings is {values['tie_word_embeddings']!r}; expected true or "
                                "false; mend the file")
        if values["hidden_size"] % values["num_attention_heads"]:
            raise MinibertError(f"{where}: hidden_size {values['hidden_size']} does not divide into "
                                f"{values['num_attention_heads']} heads; mend the file")
        return cls(**values)

    def to_dict(self) -> Json:
        """The published form: a plain BERT config, plus a key "minibert" that other libraries pass over."""
        values = dataclasses.asdict(self)
        shapes = values.pop("case_shapes")
        for name, usual in (("classifier_dropout", None), ("tie_word_embeddings", True)):
            if values[name] is usual:              # what a file without it means
                del values[name]
        return {"model_type": "bert", **values, "position_embedding_type": "absolute",
                **({"minibert": {"case_shapes": list(shapes)}} if shapes else {})}


def refuse_unsupported(published: Json, where: str) -> None:
    """Raise MinibertError by name for what the encoder here cannot honour; silence would give wrong numbers."""
    kind = published.get("model_type", "bert")     # Google's own first files have no model_type
    if kind != "bert":
        raise MinibertError(f"{where}: model_type is {kind!r}; minibert reads model_type 'bert' only")
    if missing := [k for k in SIZES if k not in published]:
        raise MinibertError(f"{where}: {', '.join(missing)} missing; is this the config.json of a BERT checkpoint?")
    if published.get("position_embedding_type", "absolute") != "absolute":
        raise MinibertError(f"{where}: position_embedding_type is {published['position_embedding_type']!r}; "
                            "minibert has absolute positions only")
    for key, what in (("is_decoder", "a decoder"), ("add_cross_attention", "cross-attention"),
                      ("is_encoder_decoder", "an encoder-decoder"), ("pruned_heads", "pruned heads"),
                      ("quantization_config", "quantised weights")):
        if published.get(key):
            raise MinibertError(f"{where}: {key} is {published[key]!r}; minibert cannot honour {what}")
    if published.get("hidden_act", "gelu") not in tuple(HIDDEN_ACTS):
        raise MinibertError(f"{where}: hidden_act is {published['hidden_act']!r}; known: {', '.join(HIDDEN_ACTS)}")
