"""TrainConfig: our choices for one run. Its fields are the command line of train.py; resolve() has their order.

Order: command line, --config, the task's defaults, what suits the checkpoint, these defaults.
"""
import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from minibert.errors import MinibertError
from minibert.files import Json
from minibert.options import check_bounds, checked, option, parse, parse_before, read_table, refuse, words_of

MOST = 10 ** 9                                     # epochs, updates, rows; nobody asks for more


@dataclass(frozen=True)
class TrainConfig:
    """One run of train.py."""
    task: str = option("ner", "what to train", group="first")
    data: str | None = option(None, "folder with train, dev and test files (default: data/TASK)", group="first")
    weights: str = option("minilm-l6", "a name of the manifest, ORG/NAME[@REVISION] of the model hub, or a folder with "
                                       "config.json and model.safetensors",
                          group="first", aliases=("--model-name-or-path",))
    output: str | None = option(None, "the run folder; without --resume it must not hold a run (default: runs/TASK, "
                                      "or the number after the highest that is there)",
                                group="first", aliases=("--output-dir",))
    epochs: int = option(3, "passes over the training data; 8 unless given where an epoch has fewer than 100 updates",
                         least=1, most=MOST, group="first", aliases=("--num-train-epochs",))
    learning_rate: float = option(5e-5, "the highest learning rate, reached after warm-up", least=0, most=MOST,
                                  group="first", aliases=("--lr",))

    cache: str = option("cache", "folder that keeps large data sets as they were read and encoded (off: none)",
                        group="data")
    max_pieces: int = option(256, "longest row in pieces (tokens); longer texts become overlapping windows", least=8,
                             group="data", aliases=("--max-length", "--max-seq-length"))
    overlap: int | None = option(None, "pieces that neighbouring windows of one text share (default: a quarter of "
                                       "--max-pieces)", least=0, group="data")
    limit: int = option(0, "use only the first N examples of each split (0: all)", least=0, group="data",
                        aliases=("--max-train-samples",))

    split: str | None = option(None, "--data is one file: shares of it for train, dev and perhaps test, such as "
                                     "0.8,0.1,0.1, drawn by --seed", group="data")
    stratify: bool = option(False, "with --split: every label in the same shares", group="data")

    dropout: float | None = option(None, "dropout everywhere (default: as the checkpoint says)", least=0, below=1,
                                   group="model")
    case_shapes: str = option("auto", "give letter case back to an uncased checkpoint through token types (auto: "
                                      "where it is uncased and nothing is frozen)", ("auto", "on", "off"),
                             group="model")
    freeze: str = option("none", "what is not trained: none, embeddings, K (embeddings and the first K blocks) "
                                 "or encoder (all but the head)", group="model")

    batch_size: int = option(32, "features an update, over all processes", least=1, most=MOST,
                             group="optimization", aliases=("--train-batch-size",))
    accumulate: int = option(1, "micro-batches an update is split into: less memory, the same gradient", least=1,
                             most=MOST, group="optimization", aliases=("--gradient-accumulation-steps",))
    max_steps: int = option(0, "exactly so many updates, whatever --epochs says (0: as the epochs give)", least=0,
                            most=MOST, group="optimization")
    optimizer: str = option("adamw", "the update rule", ("adamw", "sgd"), group="optimization")
    momentum: float = option(0.9, "of sgd", least=0, below=1, group="optimization")
    beta1: float = option(0.9, "of adamw: decay of the gradient's running mean", least=0, below=1,
                          group="optimization", aliases=("--adam-beta1",))
    beta2: float = option(0.999, "of adamw: decay of the squared gradient's running mean", least=0, below=1,
                          group="optimization", aliases=("--adam-beta2",))
    epsilon: float = option(1e-8, "of adamw: added outside the root", above=0, group="optimization",
                            aliases=("--adam-epsilon",))
    bias_correction: bool = option(True, "of adamw: divide the running means by 1 - beta^t", group="optimization")
    weight_decay: float = option(0.01, "decoupled decay of weights; biases and LayerNorm are left out", least=0,
                                 group="optimization")
    warmup: float = option(0.1, "share of the updates in which the learning rate rises", least=0, most=1,
                           group="optimization", aliases=("--warmup-ratio",))
    clip: float = option(1.0, "largest global norm of the gradient (0: no clipping)", least=0, group="optimization",
                         aliases=("--max-grad-norm",))
    adversarial: float = option(0.0, "length of a step uphill on the word vectors, from which every update learns as "
                                     "well (0: none; twice the time)", least=0, group="optimization")
    gradients: str = option("fast", "who derives the gradient: by-hand chains the formulas of ops.py, fast the same on "
                                    "fused kernels; autograd leaves it to torch",
                            ("fast", "by-hand", "autograd"), group="optimization")
    precision: str = option("auto", "auto: bf16 where the processor is fast at it, else fp32",
                            ("auto", "fp32", "bf16", "fp16"), group="optimization")
    layout: str = option("rectangle", "how batches lie in memory", ("rectangle", "ragged"), group="optimization")

    evaluate: str = option("all", "which splits are scored", ("all", "dev", "none"), group="evaluation")
    before: bool = option(True, "score the untrained model too", group="evaluation")
    best: str | None = option(None, "the score on dev that chooses the kept epoch, such as macro_f1 or rouge.L.f1 "
                                    "(default: the task's own; a wrong one lists what there is)", group="evaluation",
                              aliases=("--metric-for-best-model",))
    patience: int = option(0, "stop after so many epochs without a better dev score (0: never)", least=0,
                           group="evaluation", aliases=("--early-stopping-patience",))

    save_every: str = option("5m", "how often the state of the run is saved: a number of updates, or of minutes as in "
                                   "5m", group="run", aliases=("--save-steps",))
    keep: int = option(2, "checkpoints that are kept, besides the best model", least=1, group="run",
                       aliases=("--save-total-limit",))
    resume: bool = option(False, "continue the run in --output (default: the last runs/TASK) from its newest whole "
                                 "checkpoint, to the same bits as without the interruption", group="run")
    seed: int = option(0, "of batch order, dropout and new weights", least=0, most=2 ** 63 - 1, group="run")
    device: str = option("auto", "where to compute", ("auto", "cpu", "cuda"), group="run")
    verbose: bool = option(False, "print all that log.txt has: every setting, the parameters trained, all tables",
                           group="run")

    def check(self) -> "TrainConfig":
        """self; raises MinibertError for values that no run can have."""
        check_bounds(self)
        rules = [(self.accumulate <= self.batch_size, "accumulate", "between 1 and --batch-size"),
                 ((self.overlap or 0) <= self.max_pieces // 2, "overlap", "between 0 and half of --max-pieces"),
                 (self.split is None or is_shares(self.split), "split",
                  "two or three numbers with commas between whose sum is 1, such as 0.8,0.1,0.1"),
                 (self.split is not None or not self.stratify, "stratify", "left out without --split"),
                 (re.fullmatch(r"[1-9]\d{0,8}m?", self.save_every), "save_every",
                  "a number of updates such as 50, or of minutes such as 5m"),
                 (re.fullmatch(r"none|embeddings|encoder|[0-9]{1,4}", self.freeze), "freeze",
                  "none, embeddings, encoder or a number of blocks"),
                 (self.freeze == "none" or not self.adversarial, "adversarial",
                  "0 with --freeze: frozen word vectors have no gradient to follow"),
                 (self.freeze == "none" or self.case_shapes != "on", "case_shapes",
                  "auto or off with --freeze: frozen token types cannot learn what the shapes mean"),
                 (self.evaluate != "none" or not self.patience, "patience",
                  "0 with --evaluate none: there is no score to wait for"),
                 (self.evaluate != "none" or self.best is None, "best",
                  "left out with --evaluate none: there is no score to choose by")]
        for holds, name, wanted in rules:
            if not holds:
                refuse(self, name, wanted)
        return self


def is_shares(text: str) -> bool:
    """Whether a text is two or three positive numbers whose sum is 1."""
    parts = text.split(",")
    right = len(parts) in (2, 3) and all(re.fullmatch(r"0?\.[0-9]{1,9}", part) for part in parts)
    return right and all(map(float, parts)) and abs(sum(map(float, parts)) - 1) < 1e-9


# -------------------------------------------------------------------------------------------- where each comes from


class HasOptions(Protocol):
    """What resolve() knows of a task."""
    Options: type
    defaults: dict[str, int | float | str]


def resolve(argv: list[str], tasks: Mapping[str, type[HasOptions]], data: Path | None, description: str,
            ) -> tuple[TrainConfig, Any, set[str]]:
    """(settings, the task's own options, names that were chosen rather than left at TrainConfig's default).

    `tasks` by name; `data`: the folder whose data/TASK is read where --data names no other; None: it has to. Raises
    MinibertError.
    """
    before = parse_before(argv, "task", "config")
    file = Path(before.get("config", ""))
    table = read_table(file) if "config" in before else {}
    name = task_name(before.get("task"), table, file, tasks)
    kind = tasks[name]

    refuse_options_of_others(argv, name, tasks)
    typed = parse(argv, TrainConfig, kind.Options, description=description)
    typed.pop("config", None)                      # it is in `table`
    given = {**kind.defaults, **checked(table, file, TrainConfig, kind.Options), **typed, "task": name}

    own = {f.name for f in dataclasses.fields(kind.Options)}
    settings = TrainConfig(**{k: v for k, v in given.items() if k not in own}).check()
    if settings.max_steps and settings.patience:   # not in check(): there are runs that had both
        refuse(settings, "patience", "0 with --max-steps: exactly so many updates are made")
    if settings.overlap is None:
        settings = dataclasses.replace(settings, overlap=default_overlap(settings.max_pieces))
    if settings.data is None:
        if data is None:
            raise MinibertError("--data is needed: a folder with train, dev and test files; the small sets that are "
                                "read without it are in a checkout of the repository alone")
        settings = dataclasses.replace(settings, data=str(data / name))
    return settings, kind.Options(**{k: v for k, v in given.items() if k in own}), set(given)


def default_overlap(max_pieces: int) -> int:
    """Pieces that neighbouring windows share where --overlap does not say."""
    return max_pieces // 4


def task_name(typed: str | None, table: Json, file: Path, tasks: Mapping[str, type[HasOptions]]) -> str:
    """The task asked for: `typed`, else in the `table` of --config, else the default; it decides which options exist.
    """
    name = typed
    if name is None:
        name = checked(table, file, TrainConfig, *(kind.Options for kind in tasks.values())).get("task")
    name = TrainConfig.task if name is None else name
    if name not in tasks:
        raise MinibertError(f"--task is {name!r}; known: {', '.join(tasks)}")
    return name


def refuse_options_of_others(argv: list[str], name: str, tasks: Mapping[str, type[HasOptions]]) -> None:
    """Raise MinibertError for an option that this task does not have and another one has."""
    known = words_of(TrainConfig, tasks[name].Options)
    for word in (word.partition("=")[0] for word in argv if word.startswith("--")):
        having = [task for task, kind in tasks.items() if word in words_of(kind.Options)]
        if having and word not in known:
            raise MinibertError(f"{word} is an option of --task {', '.join(having)}, not of --task {name}; leave it "
                                "out, or name the task that is meant")
