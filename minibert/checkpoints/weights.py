"""safetensors <-> Bert: the table of names, reading with every check, the load report, saving.

A safetensors file is eight bytes (header length, little-endian), a JSON header {name: dtype, shape, offsets}, then the
numbers. The safetensors library reads it; this file adds what that leaves unchecked: duplicate names, shapes against
the config, numbers that are not finite.
"""
import dataclasses
import json
import math
import os
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from minibert.checkpoints.names import ALIASES, BUFFERS, KNOWN_HEADS, POOLER_NAMES, name_table
from minibert.core.config import BertConfig
from minibert.core.heads import Head
from minibert.core.model import Bert, Model, initialise
from minibert.data.tokenizer import CASE_SHAPES, Tokenizer
from minibert.errors import MinibertError
from minibert.files import Json, open_regular, read_json, refuse_stand_in, write_json, write_tensors


def read_tokenizer(folder: Path, bert: Bert) -> Tokenizer:
    """The tokenizer of a checkpoint; raises MinibertError where it does not belong to its encoder."""
    tokenizer, V = Tokenizer.read(folder), bert.config.vocab_size
    if tokenizer.size > V:
        number = int(tokenizer.numbers[tokenizer.numbers >= V][0])
        lines = folder / "vocab.txt"
        place = folder if (folder / "tokenizer.json").exists() or not lines.exists() else f"{lines}:{number + 1}"
        raise MinibertError(f"{place}: the tokenizer has pieces up to number {tokenizer.size - 1}, the encoder {V} "
                            f"vectors, none for {tokenizer.backend.id_to_token(number)!r} ({number}); they belong to "
                            "different checkpoints")
    if bert.config.case_shapes not in ((), CASE_SHAPES):
        raise MinibertError(f"{folder}/config.json: case_shapes {list(bert.config.case_shapes)}; this version knows "
                            f"{list(CASE_SHAPES)}")
    tokenizer.case_shapes = bool(bert.config.case_shapes)
    tokenizer.types = bert.config.type_vocab_size // max(1, len(bert.config.case_shapes))
    return tokenizer


Stored = tuple[Path, Any]                          # file, lazy slice of a tensor in it
# Bytes. The format allows 100 million, which parsed take gigabytes; the 16 tensors of a block take 2,000.
MAX_HEADER = 4_000_000
BLOCK_TENSORS = 16
FLOATS = ("F64", "F32", "F16", "BF16")
WRAPPED = re.compile(r"((?:(?:module|_orig_mod|model)\.)+)(?:bert\.|embeddings\.|encoder\.)")


def read_header(file: Path) -> Json:
    """The JSON header of a safetensors file. Raises MinibertError for one that cannot be read, is something else or
    truncated, or names a tensor twice.
    """
    try:
        refuse_stand_in(file)
        with open_regular(file, "rb") as f:
            size, start = os.fstat(f.fileno()).st_size, f.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else size   # [FILE-1]
            if length > min(MAX_HEADER, size - 8):                            # [FILE-2]
                raise MinibertError(f"{file}: header of {length} bytes in a file of {size}, {MAX_HEADER:,} at most; "
                                    "the file is truncated or not safetensors; fetch it again")
            text = f.read(length)
    except OSError as e:
        raise MinibertError(f"{file}: cannot be read ({e.strerror})") from None

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = next(k for k, n in Counter(k for k, _ in pairs).items() if n > 1)
            raise MinibertError(f"{file}: the name {twice!r} stands twice in the header; the file cannot be trusted")
        return found

    try:
        header = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as e:
        raise MinibertError(f"{file}: the header is not JSON ({e}); fetch the file again") from None
    if not isinstance(header, dict):
        raise MinibertError(f"{file}: the header is not a JSON object; fetch the file again")
    return header


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors of `folder`, or the files that model.safetensors.index.json lists."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        other = [p.name for p in folder.glob("*.bin")] + [p.name for p in folder.glob("*.ckpt*")]
        hint = f" ({other[0]} is not read: it can run code when opened)" if other else ""
        raise MinibertError(f"{folder}: no model.safetensors and no model.safetensors.index.json{hint}")
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(v, str) and Path(v).name == v for v in table.values()):
        raise MinibertError(f"{index}: no weight_map of names to files in the same folder; fetch it again")
    files = [folder / name for name in sorted(set(table.values()))]
    if missing := [f for f in files if not os.path.exists(f)]:                 # Path.exists raises for a long name
        raise MinibertError(f"{missing[0]}: listed in {index.name} but not there; fetch the checkpoint again")
    return files


def read_tensors(folder: Path) -> Iterator[tuple[str, Path, Any]]:
    """(published name without "bert.", file, lazy slice) of every tensor of a checkpoint, gamma/beta renamed."""
    seen: dict[str, Path] = {}
    wrapper = wrapper_of(folder)
    for file in weight_files(Path(folder)):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (safe_open is no dict)
                    plain = modern_name(name.removeprefix(wrapper))
                    if plain in seen:
                        raise MinibertError(f"{file}: {name!r} means {plain!r}, which {seen[plain].name} has already")
                    seen[plain] = file
                    yield plain, file, tensors.get_slice(name)
        except SafetensorError as e:
            raise MinibertError(f"{file}: not a whole safetensors file ({e}); fetch it again") from None


def wrapper_of(folder: Path) -> str:
    """What all names of a folder's tensors begin with where a model was saved inside of a wrapper, such as "module.".

    Raises MinibertError where some encoder weights have such a prefix and other tensors have not, and as read_header()
    does.
    """
    names = [name for file in weight_files(Path(folder)) for name in read_header(file) if name != "__metadata__"]
    found = [match for match in map(WRAPPED.match, names) if match]
    if not found:
        return ""
    prefix, name = found[0][1], found[0].string
    if other := next((name for name in names if not name.startswith(prefix)), None):
        raise MinibertError(f"{folder}: {name!r} has the prefix {prefix!r} of a wrapper (DataParallel, torch.compile), "
                            f"{other!r} has not; save the state_dict() of the model inside it")
    return prefix


def modern_name(name: str) -> str:
    """Without "bert.", and LayerNorm.gamma/beta of the first published files as weight/bias."""
    name = name.removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def read_weight(name: str, file: Path, stored: Any, shape: tuple[int, ...]) -> Tensor:
    """One tensor as float32 of `shape`. Raises MinibertError naming tensor, file and both shapes or dtypes."""
    if stored.get_dtype() not in FLOATS:
        raise MinibertError(f"{file}: {name} is stored as {stored.get_dtype()}; weights must be {', '.join(FLOATS)}")
    if tuple(stored.get_shape()) != tuple(shape):
        raise MinibertError(f"{file}: {name} is {stored.get_shape()}, but config.json asks for {list(shape)}")
    value = stored[...].to(torch.float32)
    if not bool(torch.isfinite(value).all()):
        raise MinibertError(f"{file}: {name} holds numbers that are not finite; fetch the checkpoint again")
    return value


# ----------------------------------------------------------------------------------------------------- loading


@dataclass
class Report:
    """What happened to every tensor of a checkpoint, in plain words."""
    loaded: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)            # of ours, not in the file
    ignored: dict[str, list[str]] = field(default_factory=dict)  # what it is -> names in the file
    grown: list[str] = field(default_factory=list)          # what was made from loaded tensors, in words
    wrapper: str = ""                                       # what all names in the file begin with

    def __str__(self) -> str:
        lines = [f"loaded: {len(self.loaded)} tensors"]
        if self.wrapper:
            lines.append(f"all names in the file begin with {self.wrapper!r}, of a wrapper around the model; read "
                         "without")
        if self.new:
            what = "new pooler and head" if POOLER_NAMES[0].published in self.new else "new head"
            lines.append(f"newly initialised: {', '.join(self.new)} (expected: {what})")
        lines += self.grown
        lines += [f"ignored: {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
                  for what, names in self.ignored.items()]
        return "\n".join(lines)


def read_config(folder: Path, dropout: float | None = None) -> BertConfig:
    """BertConfig of `folder`, with all dropout probabilities replaced unless `dropout` is None."""
    config = BertConfig.read(folder)
    if dropout is None:
        return config
    return dataclasses.replace(config, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
                               classifier_dropout=None)


def read_fitting_config(folder: Path, dropout: float | None = None, labels: int = 0) -> BertConfig:
    """read_config(), for a head that is made before the weights are read; raises MinibertError as refuse_larger()."""
    config = read_config(folder, dropout)
    refuse_larger(config, {name: (file, stored) for name, file, stored in read_tensors(folder)}, folder, labels)
    return config


def refuse_larger(config: BertConfig, found: Mapping[str, Stored], folder: Path, labels: int = 0) -> None:
    """Raise MinibertError where config.json asks for far more than the file has: that is not even begun."""
    have = sum(math.prod(tensor.get_shape()) for _, tensor in found.values())
    least = config.least_numbers + labels * config.hidden_size
    if least > 2 * have + 10 ** 6:
        raise MinibertError(f"{folder}: config.json asks for {least:,} numbers at least, the weights are {have:,}; "
                            "does it belong to this checkpoint?")
    asked = BLOCK_TENSORS * config.num_hidden_layers
    if asked > 2 * len(found) + 1000:              # modules cost, however little is in them
        raise MinibertError(f"{folder}: config.json asks for {asked:,} tensors at least, the weights are {len(found):,}"
                            "; does it belong to this checkpoint?")


@torch.no_grad()
def load(folder: Path, head: Head | None = None, new_head: bool = False, dropout: float | None = None,
         parts: tuple[str, ...] = ()) -> tuple[Bert, Report]:
    """The encoder in `folder` (eval mode, float32), and `head` filled in place from the same file.

    A head tensor that is missing is an error, with two exceptions. `new_head`: the head keeps its initial values and is
    reported as new, whatever the file holds. `parts`: beginnings of names; where the file has none of a part, that part
    is new. Raises MinibertError for a missing encoder weight, a wrong shape or dtype, a number that is not finite, a
    damaged file.
    """
    folder = Path(folder)
    config = read_config(folder, dropout)
    found = {name: (file, stored) for name, file, stored in read_tensors(folder)}
    refuse_larger(config, found, folder)
    read = any(name.startswith("cls.predictions.") for name in (head.state_dict() if head is not None else {}))
    unite(found, config.tie_word_embeddings, read and not new_head, folder)
    stored = POOLER_NAMES[0].published in found
    bert = Bert(config, pooler=stored or (head is not None and head.uses_pooler))
    new = new_names(head, set(found), new_head, parts)
    table = {n.published: n.ours for n in name_table(config, pooler=stored or not new and bert.pooler is not None)}
    report, state = Report(wrapper=wrapper_of(folder)), bert.state_dict()
    if missing := [name for name in table if name not in found]:
        advice = ("these are names of an adapter around the model: merge it first (merge_and_unload)" if
                  any(name.startswith("base_model.") for name in found) else
                  "is this a whole BERT checkpoint, and does config.json belong to it?")
        raise MinibertError(f"{folder}: {len(missing)} weights missing, first {missing[0]}; {advice}")
    if extra := [n for n in found if n.startswith(("embeddings.", "encoder.")) and n not in {*table, *BUFFERS}]:
        raise MinibertError(f"{folder}: config.json has no place for {len(extra)} weights, first {extra[0]}; does it "
                            "belong to this checkpoint?")
    for published, ours in table.items():
        state[ours].copy_(read_weight(published, *found[published], state[ours].shape))
        report.loaded.append(published)
    if bert.pooler is not None and not stored:
        report.new += [name.published for name in POOLER_NAMES]
    load_head(head, found, new, folder, report)
    used = set(report.loaded)
    for name in (n for n in found if n not in used):
        report.ignored.setdefault(kind_of_tensor(name), []).append(name)
    return bert.eval(), report


def unite(found: dict[str, Stored], tied: bool, read: bool, folder: Path) -> None:
    """Where a file has a tensor under another of its names, or under both, let the one that is asked for stay.

    `read`: a masked-word head is. Then MinibertError is raised where config.json says that two are one and they differ.
    """
    for own, shared in ALIASES:
        if tied and own in found:
            stored = found[own]
            one, other = stored[1], found.setdefault(shared, stored)[1]
            if read and (one.get_shape() != other.get_shape() or not torch.equal(one[...], other[...])):
                raise MinibertError(f"{folder}: {own} is not {shared}, though config.json ties them; if the decoder is "
                                    'one of its own write "tie_word_embeddings": false into config.json')
            if read or one is other:
                del found[own]
        elif read and not tied and own.endswith("bias") and shared in found:
            found.setdefault(own, found.pop(shared))                           # a decoder's own has the last word


def new_names(head: nn.Module | None, stored: set[str], new_head: bool, parts: tuple[str, ...]) -> set[str]:
    """Names of the head's tensors that keep their initial values: all, or those of the parts that are not stored."""
    missing = tuple(part for part in parts if not any(name.startswith(part) for name in stored))
    return {name for name in (head.state_dict() if head is not None else {}) if new_head or name.startswith(missing)}


def load_head(head: Head | None, found: dict[str, Stored], new: set[str], folder: Path, report: Report) -> None:
    """Fill the head's tensors (their names are the published ones) and note in `report` what was loaded or is new."""
    for name, tensor in (head.state_dict() if head is not None else {}).items():
        if name in new:
            report.new.append(name)
            continue
        if name not in found:
            raise MinibertError(f"{folder}: {name} missing; this folder was saved for another task")
        tensor.copy_(read_weight(name, *found[name], tensor.shape))
        report.loaded.append(name)


def kind_of_tensor(name: str) -> str:
    """What a tensor is that the model here has no place for."""
    if name in BUFFERS:
        return "constant buffers"
    return next((f"known: {what}" for start, what in KNOWN_HEADS.items() if name.startswith(start)), f"unknown: {name}")


@torch.no_grad()
def load_into(folder: Path, model: Model) -> None:
    """Replace the weights of `model` by those in `folder`, which was saved from a model of the same kind.

    All of them, those too that an adaptation added, or none: MinibertError for one that is missing or does not fit.
    """
    found = {name: (file, stored) for name, file, stored in read_tensors(Path(folder))}
    wanted = {name.removeprefix("bert."): tensor for name, tensor in named_tensors(model.bert, model.head).items()}
    if missing := [name for name in wanted if name not in found]:
        raise MinibertError(f"{folder}: {missing[0]} missing; this folder was saved from a model of another kind")

    read = {name: read_weight(name, *found[name], tuple(tensor.shape)) for name, tensor in wanted.items()}
    for name, tensor in wanted.items():
        tensor.copy_(read[name])


def load_bert(folder: str | Path) -> Bert:
    """The encoder in `folder`, ready to use: eval mode, float32. Raises MinibertError as load() does."""
    return load(Path(folder))[0]


def random_bert(config: BertConfig, seed: int = 0, pooler: bool = True) -> Bert:
    """An untrained encoder, initialised as in the paper."""
    bert = Bert(config, pooler)
    initialise(bert, config.initializer_range, seed)
    return bert.eval()


# ------------------------------------------------------------------------------------------------------ saving


def named_tensors(bert: Bert, head: nn.Module | None = None) -> dict[str, Tensor]:
    """{name in a file: tensor} of a model: the published names, and "added." before ours of what nobody published."""
    state = bert.state_dict()
    table = {n.ours: "bert." + n.published for n in name_table(bert.config, bert.pooler is not None)}
    tensors = {published: state[ours] for ours, published in table.items()}
    tensors |= {f"added.{ours}": tensor for ours, tensor in state.items() if ours not in table}
    return tensors | (dict(head.state_dict()) if head is not None else {})


def save(folder: Path, bert: Bert, head: nn.Module | None = None, extra: Json | None = None) -> None:
    """model.safetensors and config.json under the published names; the usual libraries open the folder.

    `extra` joins config.json (architectures, id2label …), its "minibert" what the config itself has under that key.
    Each file is written beside its name, flushed and renamed, so that a crash leaves the old file or the new one.
    """
    folder = Path(folder)
    tensors = {k: v.detach().to("cpu", torch.float32).contiguous() for k, v in named_tensors(bert, head).items()}
    write_tensors(folder / "model.safetensors", tensors)
    values, extra = bert.config.to_dict(), extra or {}
    own = values.pop("minibert", {}) | extra.get("minibert", {})
    rest = {key: value for key, value in extra.items() if key != "minibert"}
    write_json(folder / "config.json", values | rest | ({"minibert": own} if own else {}))
