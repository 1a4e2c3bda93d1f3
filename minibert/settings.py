"""TrainConfig: our choices for one run. Its fields are the command line of train.py."""
import dataclasses
import re
from dataclasses import dataclass
from math import inf

from minibert.errors import MinibertError
from minibert.options import option, writable

MOST = 10 ** 9                                     # epochs, updates; nobody asks for more


@dataclass(frozen=True)
class TrainConfig:
    """One run of train.py. Order: command line, --config, the task's defaults, the checkpoint's, these."""
    task: str = option("ner", "what to train")
    data: str | None = option(None, "folder with train, dev and test files (default: data/TASK)")
    cache: str = option("cache", "folder that keeps large data sets as they were read and encoded (off: none)")
    weights: str = option("minilm-l6", "a name of the manifest, or a folder with config.json and model.safetensors")
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
