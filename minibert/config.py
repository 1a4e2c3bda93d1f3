"""Two kinds of settings: BertConfig, the facts of a checkpoint, and TrainConfig, our choices for one run.

The fields of TrainConfig are the command line: each field's text is its help, each default its default.
"""
import dataclasses
import json
import re
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from minibert.errors import MinibertError

# ------------------------------------------------------------------------------------------ facts of a checkpoint

# published name -> ours: one erf form, one tanh form that appears under three names, and ReLU
ACTIVATIONS = {"gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
               "gelu_fast": "gelu_tanh", "relu": "relu"}
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


LARGEST = 2 ** 20                                  # of any size of an encoder


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
    def from_dict(cls, published: dict[str, Any], where: str = "config.json") -> "BertConfig":
        """BertConfig from the keys of a published config.json; keys that do not touch the numbers are passed over."""
        refuse_unsupported(published, where)
        own = published.get("minibert") or {}
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
        for name, kind in (*((k, int) for k in SIZES), ("max_position_embeddings", int), ("type_vocab_size", int)):
            value = values.get(name, 1)
            if type(value) is not kind or not 1 <= value <= LARGEST:
                raise MinibertError(f"{where}: {name} is {repr(value)[:40]}, not a whole number from 1 to {LARGEST:,}; "
                                    "mend the file")
        for name in ("layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range"):
            value = values.get(name, 0.0)
            if type(value) not in (int, float) or not 0 <= value < 1:
                raise MinibertError(f"{where}: {name} is {value!r}, not a number in [0, 1); mend the file")
        if values["hidden_size"] % values["num_attention_heads"]:
            raise MinibertError(f"{where}: hidden_size {values['hidden_size']} does not divide into "
                                f"{values['num_attention_heads']} heads; mend the file")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The published form: a plain BERT config, plus a key "minibert" that other libraries pass over."""
        values = dataclasses.asdict(self)
        shapes = values.pop("case_shapes")
        return {"model_type": "bert", **values, "position_embedding_type": "absolute",
                **({"minibert": {"case_shapes": list(shapes)}} if shapes else {})}


def refuse_unsupported(published: dict[str, Any], where: str) -> None:
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
    if published.get("hidden_act", "gelu") not in tuple(ACTIVATIONS):
        raise MinibertError(f"{where}: hidden_act is {published['hidden_act']!r}; known: {', '.join(ACTIVATIONS)}")


# --------------------------------------------------------------------------------------------- choices for one run

MOST = 10 ** 9                                     # epochs, updates; nobody asks for more


def writable(text: str) -> bool:
    """Whether a path or name can be written down: not empty, no NUL, no half of a surrogate pair."""
    return bool(text) and "\0" not in text and text.encode("utf-8", "ignore").decode("utf-8") == text


def option(default: Any, text: str, choices: tuple[str, ...] | None = None, later: bool = False) -> Any:
    """A dataclass field that is also an option of the command line; `later`: a trained model can be used with another.
    """
    return field(default=default, metadata={"help": text, "choices": choices, "later": later})


@dataclass(frozen=True)
class TrainConfig:
    """One run of train.py. Order: command line, --config, the task's defaults, the checkpoint's, these."""
    task: str = option("ner", "what to train")
    data: str | None = option(None, "folder with train, dev and test files (default: data/TASK)")
    cache: str = option("cache", "folder that keeps large data sets as they were read and encoded (off: none)")
    weights: str = option("minilm-l6", "a name of the manifest, org/name[@revision] of the model hub, or a folder with "
                                       "config.json and model.safetensors")
    output: str | None = option(None, "the run folder; without --resume it must not hold a run (default: runs/TASK, "
                                      "or the number after the highest that is there)")
    epochs: int = option(3, "passes over the training data")
    max_steps: int = option(0, "exactly so many updates, whatever --epochs says (0: as the epochs give)")
    batch_size: int = option(32, "features an update")
    accumulate: int = option(1, "micro-batches an update is split into: less memory, the same gradient")
    max_pieces: int = option(256, "longest row in pieces; longer texts become overlapping windows")
    overlap: int | None = option(None, "pieces that neighbouring windows of one text share (default: a quarter of "
                                       "--max-pieces)")
    learning_rate: float = option(5e-5, "the highest learning rate, reached after warm-up")
    optimizer: str = option("adamw", "the update rule", ("adamw", "sgd"))
    momentum: float = option(0.9, "of sgd")
    beta1: float = option(0.9, "of adamw: decay of the gradient's running mean")
    beta2: float = option(0.999, "of adamw: decay of the squared gradient's running mean")
    epsilon: float = option(1e-8, "of adamw: added outside the root")
    bias_correction: bool = option(True, "of adamw: divide the running means by 1 - beta^t")
    weight_decay: float = option(0.01, "decoupled decay of weights; biases and LayerNorm are left out")
    warmup: float = option(0.1, "share of the updates in which the learning rate rises")
    clip: float = option(1.0, "largest global norm of the gradient (0: no clipping)")
    dropout: float | None = option(None, "dropout everywhere (default: as the checkpoint says)")
    case_shapes: str = option("auto", "give letter case back to an uncased checkpoint through token types (auto: "
                                      "where it is uncased and nothing is frozen)", ("auto", "on", "off"))
    layout: str = option("rectangle", "how batches lie in memory", ("rectangle", "ragged"))
    precision: str = option("auto", "auto: bf16 where the processor is fast at it, else fp32",
                            ("auto", "fp32", "bf16", "fp16"))
    gradients: str = option("fast", "who derives the gradient: fast and by-hand take the formulas of ops.py, on fused "
                                    "kernels or as they stand; autograd leaves it to torch",
                            ("fast", "by-hand", "autograd"))
    adversarial: float = option(0.0, "length of a step uphill on the word vectors, from which every update learns as "
                                     "well (0: none; twice the time)")
    freeze: str = option("none", "what is not trained: none, embeddings, K (embeddings and the first K blocks) "
                                 "or encoder (all but the head)")
    best: str | None = option(None, "the score on dev that chooses the kept epoch, such as macro_f1 or rouge.L.f1 "
                                    "(default: the task's own; a wrong one lists what there is)")
    patience: int = option(0, "stop after so many epochs without a better dev score (0: never)")
    evaluate: str = option("all", "which splits are scored", ("all", "dev", "none"))
    before: bool = option(True, "score the untrained model too")
    limit: int = option(0, "use only the first N examples of each split (0: all)")
    save_every: str = option("5m", "how often the state of the run is saved: a number of updates, or of minutes as in "
                                   "5m")
    keep: int = option(2, "checkpoints that are kept, besides the best model")
    resume: bool = option(False, "continue the run in --output (default: the last runs/TASK) from its newest whole "
                                 "checkpoint, to the same bits as without the interruption")
    seed: int = option(0, "of batch order, dropout and new weights")
    device: str = option("auto", "where to compute", ("auto", "cpu", "cuda"))

    def check(self) -> "TrainConfig":
        """self; raises MinibertError for values that no run can have."""
        names = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name, value in names.items():
            if isinstance(value, str) and not writable(value):
                raise MinibertError(f"--{name.replace('_', '-')} is {value!r}; it must be text that UTF-8 can write, "
                                    "and not empty")
        rules = [(1 <= self.epochs <= MOST, "--epochs", f"between 1 and {MOST:,}"),
                 (self.batch_size >= 1, "--batch-size", "at least 1"),
                 (1 <= self.accumulate <= self.batch_size, "--accumulate", "between 1 and --batch-size"),
                 (0 <= self.max_steps <= MOST, "--max-steps", f"between 0 and {MOST:,}"),
                 (self.limit >= 0, "--limit", "0 or more"),
                 (self.patience >= 0, "--patience", "0 or more"), (self.max_pieces >= 8, "--max-pieces", "at least 8"),
                 (0 <= (self.overlap or 0) <= self.max_pieces // 2, "--overlap", "between 0 and half of --max-pieces"),
                 (0 <= self.learning_rate <= MOST, "--learning-rate", f"between 0 and {MOST:,}"),
                 (self.clip >= 0, "--clip", "0 or more"),
                 (0 <= self.momentum < 1, "--momentum", "in [0, 1)"), (0 <= self.beta1 < 1, "--beta1", "in [0, 1)"),
                 (0 <= self.beta2 < 1, "--beta2", "in [0, 1)"), (0 < self.epsilon < inf, "--epsilon", "above 0"),
                 (0 <= self.weight_decay < inf, "--weight-decay", "0 or more"),
                 (0 <= self.warmup <= 1, "--warmup", "in [0, 1]"),
                 (self.dropout is None or 0 <= self.dropout < 1, "--dropout", "in [0, 1)"),
                 (re.fullmatch(r"[1-9]\d{0,8}m?", self.save_every), "--save-every",
                  "a number of updates such as 50, or of minutes such as 5m"),
                 (self.keep >= 1, "--keep", "at least 1"),
                 (0 <= self.seed < 2 ** 63, "--seed", "between 0 and 2^63 - 1"),
                 (0 <= self.adversarial < inf, "--adversarial", "0 or more"),
                 (self.freeze == "none" or not self.adversarial, "--adversarial",
                  "0 with --freeze: frozen word vectors have no gradient to follow"),
                 (self.freeze == "none" or self.case_shapes != "on", "--case-shapes",
                  "auto or off with --freeze: frozen token types cannot learn what the shapes mean"),
                 (self.evaluate != "none" or not self.patience, "--patience",
                  "0 with --evaluate none: there is no score to wait for"),
                 (self.evaluate != "none" or self.best is None, "--best",
                  "left out with --evaluate none: there is no score to choose by"),
                 (re.fullmatch(r"none|embeddings|encoder|[0-9]{1,4}", self.freeze), "--freeze",
                  "none, embeddings, encoder or a number of blocks")]
        for holds, name, wanted in rules:
            if not holds:
                value = getattr(self, name[2:].replace("-", "_"))
                raise MinibertError(f"{name} is {value}; it must be {wanted}")
        return self


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises MinibertError where the file is missing, unreadable or not an object."""
    try:
        value = json.loads(Path(path).read_text("utf-8-sig"))
    except FileNotFoundError:
        raise MinibertError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as e:
        raise MinibertError(f"{path}: cannot be read as JSON ({e})") from None
    if not isinstance(value, dict):
        raise MinibertError(f"{path}: holds {type(value).__name__}, not a JSON object")
    return value
