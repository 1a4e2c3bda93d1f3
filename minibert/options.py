"""A dataclass field as an option: of the command line and of a settings file, its text the help."""
import argparse
import dataclasses
import tomllib
from dataclasses import field
from pathlib import Path
from types import UnionType
from typing import Any, get_args

from minibert.errors import MinibertError
from minibert.files import read_json


class OneLineParser(argparse.ArgumentParser):
    """argparse whose errors are ours: one line, no usage before it."""

    def error(self, message: str) -> None:
        """Called by argparse for whatever it does not understand."""
        raise MinibertError(f"{message}; {self.prog} --help lists the options")


def add_options(parser: argparse.ArgumentParser, settings: type) -> None:
    """Every field of the dataclass `settings` as an option that is absent from the result unless it was given."""
    for f in dataclasses.fields(settings):
        add_option(parser, f, f.metadata["help"] + ("" if f.default is None else f" (default: {f.default})"))


def add_option(parser: argparse.ArgumentParser, f: dataclasses.Field, text: str) -> None:
    """One of them, with the help `text`."""
    name, kind, text = "--" + f.name.replace("_", "-"), _kind(f.type), text.replace("%", "%%")
    if kind is bool:
        parser.add_argument(name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
    else:
        parser.add_argument(name, type=kind, choices=f.metadata["choices"], default=argparse.SUPPRESS, help=text,
                            metavar=None if f.metadata["choices"] else kind.__name__.upper())


def later_options(*settings: type) -> dict[str, list[dataclasses.Field]]:
    """{name: its fields} of what a trained model can be used with in another way, in all dataclasses of `settings`."""
    found: dict[str, list[dataclasses.Field]] = {}
    for f in (f for s in settings for f in dataclasses.fields(s) if f.metadata["later"]):
        if f not in found.setdefault(f.name, []):
            found[f.name].append(f)
    return found


def _kind(annotation: Any) -> type:
    """float | None -> float; the plain types are themselves."""
    return get_args(annotation)[0] if isinstance(annotation, UnionType) else annotation


def option_names(*settings: type) -> set[str]:
    """As typed, those of all dataclasses in `settings`; a yes or no has two, --NAME and --no-NAME."""
    names = {(f.name.replace("_", "-"), _kind(f.type) is bool) for s in settings for f in dataclasses.fields(s)}
    return {"--" + name for name, _ in names} | {"--no-" + name for name, both in names if both}


def option_given(argv: list[str], name: str) -> str | None:
    """What follows the last `--name` in `argv`, before the options are known that a whole parse needs; None without."""
    found = None
    for i, word in enumerate(argv):
        if word == name:
            found = argv[i + 1] if i + 1 < len(argv) else None
        elif word.startswith(name + "="):
            found = word[len(name) + 1:]
    return found


def parse(argv: list[str], *settings: type, description: str | None = None) -> dict[str, Any]:
    """The options given in `argv`, by field name, for the fields of all dataclasses in `settings` and --config."""
    parser = OneLineParser(prog="train.py", description=description, allow_abbrev=False)
    for s in settings:
        add_options(parser, s)
    parser.add_argument("--config", default=argparse.SUPPRESS, metavar="FILE",
                        help="TOML or JSON file with any of these options; the command line stands above it")
    return vars(parser.parse_args(argv))


def read_settings(path: str, *settings: type) -> dict[str, Any]:
    """The options in a TOML or JSON file. Raises MinibertError for an unknown key or a value of the wrong kind."""
    file = Path(path)
    try:
        values = read_json(file) if file.suffix == ".json" else tomllib.loads(file.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as e:                         # a number of 5,000 digits is one too
        raise MinibertError(f"{file}: cannot be read as TOML ({e}); --config takes a .toml or .json file") from None
    return checked(values, file, *settings)


def checked(values: dict[str, Any], file: Path, *settings: type) -> dict[str, Any]:
    """Options that were read from `file`, by field name. Raises MinibertError as read_settings() does."""
    known = {f.name: f for s in settings for f in dataclasses.fields(s)}
    result = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in known:
            raise MinibertError(f"{file}: unknown setting {key!r}; known: {', '.join(known)}")
        if name in result:
            raise MinibertError(f"{file}: {name} stands twice, with a dash and with an underscore; keep one")
        kind, choices = _kind(known[name].type), known[name].metadata["choices"]
        if value is None and known[name].default is None:
            continue
        if kind is float and type(value) is int and abs(value) < 2 ** 1023:
            value = float(value)
        if name == "freeze" and type(value) is int:   # a number of blocks, as on the command line
            value = str(value)
        if type(value) is not kind or (choices and value not in choices):
            wanted = f"one of {', '.join(choices)}" if choices else f"a value of type {kind.__name__}"
            raise MinibertError(f"{file}: {key} is {value!r}, not {wanted}")
        result[name] = value
    return result


def writable(text: str) -> bool:
    """Whether a path or name can be written down: not empty, no NUL, no half of a surrogate pair."""
    return bool(text) and "\0" not in text and text.encode("utf-8", "ignore").decode("utf-8") == text


def option(default: Any, text: str, choices: tuple[str, ...] | None = None, later: bool = False) -> Any:
    """A dataclass field that is also an option of the command line; `later`: a trained model can be used with another.
    """
    return field(default=default, metadata={"help": text, "choices": choices, "later": later})
