"""A dataclass field as an option, of a command line and of a settings file: its text is the help, its bounds a check.

    epochs: int = option(3, "passes over the training data", least=1, group="optimization")
"""
import argparse
import dataclasses
import math
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, cast, get_args

from minibert.errors import MinibertError
from minibert.files import Json, read_json, read_text

INSTALLED = Path(__file__).with_name("train.py").is_file()                    # else this is a checkout: it stands above
PROGRAM = "minibert train" if INSTALLED else "train.py"
GROUPS = {"first": "used most", "data": "data", "model": "model",
          "optimization": "optimization", "evaluation": "evaluation", "run": "run"}


def option(default: Any, text: str, choices: tuple[str, ...] | None = None, *, least: float | None = None,
           most: float | None = None, above: float | None = None, below: float | None = None,
           aliases: tuple[str, ...] = (), group: str = "task", later: bool = False) -> Any:
    """A dataclass field that is also an option.

    `choices`: all values there are. `least` ≤ value ≤ `most`, `above` < value < `below`. `aliases`: what other programs
    call it, with dashes. `group`: a key of GROUPS, or "task" for what only one task has. `later`: a trained model can
    be used with another value.
    """
    bounds = {"least": least, "most": most, "above": above, "below": below}
    return dataclasses.field(default=default, metadata={"help": text, "choices": choices, "bounds": bounds,
                                                        "aliases": aliases, "group": group, "later": later})


def kind_of(f: dataclasses.Field) -> type:
    """The type of a field's values other than None."""
    return cast(type, get_args(f.type)[0] if isinstance(f.type, UnionType) else f.type)


def typed(name: str) -> str:
    """The name of a field as it is typed."""
    return "--" + name.replace("_", "-")


# ------------------------------------------------------------------------------------------------------- the bounds


def check_bounds(settings: Any) -> None:
    """Raises MinibertError for the first field of a dataclass whose value is out of its bounds."""
    for f in dataclasses.fields(settings):
        value, bounds = getattr(settings, f.name), f.metadata["bounds"]
        if isinstance(value, str) and not writable(value):
            raise MinibertError(f"{typed(f.name)} is {value!r}; it must be text that UTF-8 can write, and not empty")
        if isinstance(value, int | float) and not within(value, **bounds):
            refuse(settings, f.name, spelt(**bounds))


def within(value: float, least: float | None, most: float | None, above: float | None, below: float | None) -> bool:
    """Whether a number keeps to its bounds; one that is not finite keeps to none."""
    finite = isinstance(value, int) or math.isfinite(value)                    # no float holds an int of 400 digits
    return (finite and (least is None or value >= least) and (most is None or value <= most)
            and (above is None or value > above) and (below is None or value < below))


def spelt(least: float | None, most: float | None, above: float | None, below: float | None) -> str:
    """Bounds in words."""
    if most is not None:
        return f"between {least:,} and {most:,}"
    if below is not None:
        return f"between {above} and {below}, both left out" if least is None else f"in [{least}, {below})"
    if above is not None:
        return f"above {above}"
    if least is None:
        return "a finite number"
    return f"at least {least}" if least else "0 or more"


def refuse(settings: object, name: str, wanted: str) -> NoReturn:
    """Raise MinibertError for a field whose value is not as wanted."""
    raise MinibertError(f"{typed(name)} is {getattr(settings, name)}; it must be {wanted}")


def writable(text: str) -> bool:
    """Whether a path or name can be written down: not empty, no NUL, no half of a surrogate pair."""
    return bool(text) and "\0" not in text and text.encode("utf-8", "ignore").decode("utf-8") == text


# ---------------------------------------------------------------------------------------------- as a command line


class OneLineParser(argparse.ArgumentParser):
    """argparse whose errors are ours: one line, no usage before it."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse for whatever it does not understand."""
        raise MinibertError(f"{message}; {self.prog} --help lists the options")


def parse(argv: list[str], *settings: type, description: str | None = None) -> Json:
    """The options given in `argv`, by field name, for the fields of all dataclasses in `settings` and --config."""
    parser = OneLineParser(prog=PROGRAM, usage=f"{PROGRAM} [--task TASK] [options]", description=description,
                           allow_abbrev=False, epilog=f"{PROGRAM} --replay RUN/broken-update-14/update.json does an "
                           "update that went wrong once more, and says where its numbers stop being finite.")
    fields = [f for s in settings for f in dataclasses.fields(s)]
    for group, title in {**GROUPS, "task": "of this task alone"}.items():
        there = parser.add_argument_group(title)
        for f in (f for f in fields if f.metadata["group"] == group):
            add_option(there, f, f.metadata["help"] + ("" if f.default is None else f" (default: {f.default})"))
        if group == "run":
            there.add_argument("--config", default=argparse.SUPPRESS, metavar="FILE",
                               help="TOML or JSON file with any of these options; the command line stands above it")
    return vars(parser.parse_args(argv))


def add_option(parser: argparse._ActionsContainer, f: dataclasses.Field, text: str) -> None:
    """A field as an option with the help `text`, absent from the result unless it was given."""
    names, kind, text = (typed(f.name), *f.metadata["aliases"]), kind_of(f), text.replace("%", "%%")
    if kind is bool:
        parser.add_argument(*names, dest=f.name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS,
                            help=text)
    else:
        parser.add_argument(*names, dest=f.name, type=kind, choices=f.metadata["choices"], default=argparse.SUPPRESS,
                            help=text, metavar=None if f.metadata["choices"] else kind.__name__.upper())


def parse_before(argv: list[str], *names: str) -> dict[str, str]:
    """Those of the options `names` that stand in `argv`, before it is known which others there may be."""
    parser = OneLineParser(prog=PROGRAM, add_help=False, allow_abbrev=False)
    for name in names:
        parser.add_argument(typed(name), nargs="?", default=argparse.SUPPRESS)
    return {name: value for name, value in vars(parser.parse_known_args(argv)[0]).items() if value is not None}


def words_of(*settings: type) -> set[str]:
    """What may be typed for the fields of all dataclasses in `settings`; a yes or no has --NAME and --no-NAME."""
    words = set()
    for f in (f for s in settings for f in dataclasses.fields(s)):
        names = {typed(f.name), *f.metadata["aliases"]}
        words |= names | ({"--no-" + name[2:] for name in names} if kind_of(f) is bool else set())
    return words


def later_options(*settings: type) -> dict[str, list[dataclasses.Field]]:
    """{name: its fields} of what a trained model can be used with in another way, in all dataclasses of `settings`."""
    found: dict[str, list[dataclasses.Field]] = {}
    for f in (f for s in settings for f in dataclasses.fields(s) if f.metadata["later"]):
        if f not in found.setdefault(f.name, []):
            found[f.name].append(f)
    return found


# --------------------------------------------------------------------------------------------------------- as a file


def read_table(file: Path) -> Json:
    """What a TOML or JSON file says; read once, as it may be a pipe. Raises MinibertError."""
    try:
        return (read_json(file, pipe=True) if file.suffix == ".json" else
                tomllib.loads(read_text(file, "utf-8-sig", pipe=True)))
    except (OSError, ValueError, RecursionError) as e:                         # a number of 5,000 digits is one too
        raise MinibertError(f"{file}: cannot be read as TOML ({e}); --config takes a .toml or .json file") from None


def checked(values: Mapping[str, object], file: Path, *settings: type) -> Json:
    """Options that were read from `file`, by field name. Raises MinibertError for an unknown key or a wrong value."""
    known = {name: f for s in settings for f in dataclasses.fields(s) for name in keys_of(f)}
    result: dict[str, object] = {}
    for key, value in values.items():
        f = known.get(key.replace("-", "_"))
        if f is None:
            names = dict.fromkeys(f.name for f in known.values())
            raise MinibertError(f"{file}: unknown setting {key!r}; known: {', '.join(names)}")
        if f.name in result:
            raise MinibertError(f"{file}: {f.name} stands twice, under two spellings or names; keep one")
        if value is not None or f.default is not None:
            result[f.name] = converted(key, value, f, file)
    return result


def keys_of(f: dataclasses.Field) -> Iterator[str]:
    """The names of a field in a file, dashes as underscores."""
    yield f.name
    yield from (alias.lstrip("-").replace("-", "_") for alias in f.metadata["aliases"])


def converted(key: str, value: object, f: dataclasses.Field, file: Path) -> object:
    """A value from a file as one of its field. Raises MinibertError for one of another kind."""
    kind, choices = kind_of(f), f.metadata["choices"]
    if kind is float and type(value) is int and abs(value) < 2 ** 1023:
        value = float(value)
    if f.name == "freeze" and type(value) is int:  # a number of blocks, as on the command line
        value = str(value)
    if type(value) is not kind or (choices and value not in choices):
        wanted = f"one of {', '.join(choices)}" if choices else f"a value of type {kind.__name__}"
        raise MinibertError(f"{file}: {key} is {value!r}, not {wanted}")
    return value
