"""python -m minibert train | fetch | predict | evaluate | new."""
import argparse
import codecs
import functools
import importlib.util
import io
import json
import os
import queue
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from minibert.errors import MinibertError, spelt_out
from minibert.options import INSTALLED, PROGRAM, OneLineParser
from minibert.run.terminal import Advice, exit_code, lead_nowhere, training_command

if TYPE_CHECKING:                                  # torch is imported by the commands that need it
    from minibert.use.predict import FineTuned

Given = TypeVar("Given")
Answer = TypeVar("Answer")


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """The command line of the package; the options of tasks are there where `command` uses a model."""
    top = OneLineParser(prog="minibert", description="BERT fine-tuning in plain PyTorch", allow_abbrev=False)
    commands = top.add_subparsers(dest="command", required=True, metavar="train | fetch | predict | evaluate | new")

    commands.add_parser("train", help="fine-tune a model; minibert train --help lists the options", add_help=False)

    fetch = commands.add_parser("fetch", help="get and verify a published checkpoint", allow_abbrev=False)
    fetch.add_argument("name", help="a name of the manifest, or org/name[@revision] of the model hub")

    predict = commands.add_parser("predict", help="use a fine-tuned model", allow_abbrev=False)
    add_model(predict)
    predict.add_argument("text", nargs="+", help="texts, or - to read lines of UTF-8 from standard input; the "
                                                 "answer to an empty one is empty")
    predict.add_argument("--answers", type=Path, help="of a model that chooses replies: the file it chooses from, an "
                                                      "answer a line, or a table")
    predict.add_argument("--words", action="store_true", help="of a model that tags words: a text is words with blanks "
                                                              "between, which are not cut again")
    predict.add_argument("--offsets", choices=("characters", "utf16"), default="characters",
                         help="what start and end count with --json: characters as Python does, or UTF-16 units as "
                              "JavaScript and Java do (default: characters)")
    predict.add_argument("--json", action="store_true", help="one JSON object a line")

    evaluate = commands.add_parser("evaluate", help="score a fine-tuned model on labelled data", allow_abbrev=False)
    add_model(evaluate)
    evaluate.add_argument("--data", required=True, type=Path, help="folder with dev and test files, or one file")
    evaluate.add_argument("--split", choices=("train", "dev", "test"), help="only this one")
    evaluate.add_argument("--case-shapes", choices=("on", "off"), default="on",
                          help="off: as a library sees the model that leaves all token types at 0")
    evaluate.add_argument("--json", action="store_true", help="the scores as one JSON object")

    if command in ("predict", "evaluate"):
        add_later_options(predict, evaluate)

    new = commands.add_parser("new", help="make an untrained checkpoint: a vocabulary from text, random weights",
                              allow_abbrev=False)
    new.add_argument("folder", type=Path, help="a new folder, for --weights of training")
    new.add_argument("--text", required=True, type=Path, help="file of text whose words make the vocabulary")
    new.add_argument("--vocabulary", type=int, default=8000, help="pieces at most (default: 8000)")
    new.add_argument("--cased", action="store_true", help="keep capital letters and accents")
    for name, value, what in NEW_SIZES:
        new.add_argument(f"--{name}", type=int, default=value, help=f"{what} (default: {value})")
    new.add_argument("--seed", type=int, default=0, help="of the random weights (default: 0)")
    return top


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model, and of which task where it does not say."""
    parser.add_argument("run", help="run folder, which training wrote; or a model that was fine-tuned elsewhere: a "
                                    "folder with its config.json, or org/name[@revision] of the model hub")
    parser.add_argument("--task", help="what a model from elsewhere was trained for, where its class leaves that open: "
                                       "match for a classifier of pairs (default: classify)")


def add_later_options(*parsers: argparse.ArgumentParser) -> None:
    """Those of all tasks; which of them a model takes is known when it is loaded."""
    from minibert.options import add_option, later_options
    from minibert.tasks import TASKS
    for name, fields in later_options(*(kind.Options for kind in TASKS.values())).items():
        of = ", ".join(task for task, kind in TASKS.items() if name in later_options(kind.Options))
        what = ([f.metadata["help"] for f in fields] if len(fields) < 3 else
                [f"as {PROGRAM} --task TASK --help explains"])
        for p in parsers:
            add_option(p, fields[0], f"of {of}: {'; or '.join(what)} (default: as in training)")


def changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of tasks among the arguments."""
    from minibert.options import later_options
    from minibert.tasks import TASKS
    names = later_options(*(kind.Options for kind in TASKS.values()))
    return {name: value for name, value in vars(arguments).items() if name in names}


# those of minilm-l6: option, default, what it is
NEW_SIZES = (("layers", 6, "blocks"), ("hidden", 384, "numbers of a piece's state"), ("heads", 12, "attention heads"),
             ("feedforward", 1536, "numbers between the halves of a block"),
             ("positions", 512, "longest row in pieces"))


def run_new(arguments: argparse.Namespace) -> None:
    """Learn the vocabulary, write the folder, say what is in it."""
    from minibert.checkpoints.scratch import learn_vocabulary, new_checkpoint
    from minibert.core.config import BertConfig
    for name in ("vocabulary", *(name for name, _, _ in NEW_SIZES)):
        if not 1 <= getattr(arguments, name) <= 10 ** 6:
            raise MinibertError(f"--{name} is {getattr(arguments, name)}; it must be between 1 and 1,000,000")
    if not 0 <= arguments.seed < 2 ** 63:
        raise MinibertError(f"--seed is {arguments.seed}; it must be between 0 and 2^63 - 1")
    if arguments.hidden % arguments.heads:
        raise MinibertError(f"--hidden {arguments.hidden} does not divide into --heads {arguments.heads}")

    tokenizer = learn_vocabulary(arguments.text, arguments.vocabulary, arguments.cased)
    config = BertConfig(vocab_size=tokenizer.size, hidden_size=arguments.hidden, num_hidden_layers=arguments.layers,
                        num_attention_heads=arguments.heads, intermediate_size=arguments.feedforward,
                        max_position_embeddings=arguments.positions)
    new_checkpoint(arguments.folder, tokenizer, config, arguments.seed)
    print(f"{arguments.folder}: {tokenizer.size:,} pieces, {config.least_numbers:,} random numbers\n"
          f"next: {training_command()} --task mlm --weights {arguments.folder} --data DIR")


def run_train(words: list[str]) -> int:
    """train.py, which an installed minibert has among its files and a checkout above them; -> its exit code."""
    file = Path(__file__).resolve().parents[not INSTALLED] / "train.py"
    spec = importlib.util.spec_from_file_location("train", file)
    assert spec is not None and spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return program.main(words)


def run_fetch(arguments: argparse.Namespace) -> None:
    """Print where the verified checkpoint lies."""
    from minibert.checkpoints import hub
    announce(arguments.name, sys.stdout)
    print(hub.fetch(arguments.name))


def announce(name: str, stream: TextIO) -> None:
    """Say what is about to be fetched, if anything is. Raises MinibertError for what is no name."""
    from minibert.checkpoints import hub
    if not hub.at_hand(name):
        print(f"fetching {hub.describe(name)}", file=stream, flush=True)


def load_model(arguments: argparse.Namespace) -> "FineTuned":
    """The model of predict and evaluate."""
    from minibert.use.predict import from_elsewhere, is_run, load
    if not is_run(arguments.run):
        announce(str(from_elsewhere(arguments.run)), sys.stderr)               # standard output has the answers
    return load(arguments.run, task=arguments.task, **changes(arguments))


def tell(notices: Iterable[str]) -> None:
    """What is worth knowing, each thing once, a line each on standard error."""
    for note in dict.fromkeys(notices):
        print(f"note: {spelt_out(note)}", file=sys.stderr)


def run_predict(arguments: argparse.Namespace) -> None:
    """Print a result a text, as soon as it is there."""
    from_stream = arguments.text == ["-"]
    place, number = "standard input:" if from_stream else "text ", 0
    if not from_stream:
        refuse_unreadable(arguments.text)
    if arguments.offsets != "characters" and not arguments.json:
        raise MinibertError(f"--offsets {arguments.offsets} is for programs; add --json, or leave it out")
    model = load_model(arguments)
    tell(model.notices)
    if arguments.answers:
        model.task.read_candidates(arguments.answers)
    write_utf8()

    predict = functools.partial(model.predict, offsets=arguments.offsets)
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for texts in as_they_come(lines_of(sys.stdin)) if from_stream else [arguments.text]:
        given = [re.findall("[^ \t]+", text) if arguments.words else text for text in texts]
        for text, result in zip(texts, one_by_one(predict, given, place, number), strict=True):
            if arguments.json:
                print(json.dumps(result, ensure_ascii=False))
            else:
                print(model.task.render(result, colour) if text.strip() else "")
        number += len(texts)
        sys.stdout.flush()


def refuse_unreadable(texts: Sequence[str]) -> None:
    """Raise MinibertError for a text of the command line with bytes that are no letters where this runs."""
    for number, text in enumerate(texts, 1):
        if stray := re.search("[\udc80-\udcff]", text):
            raise MinibertError(f"text {number}: byte 0x{ord(stray[0]) - 0xdc00:02x} of {text[:60]!r} is no letter of "
                                "this locale; give the text in UTF-8, or by standard input (-)")


def write_utf8() -> None:
    """From now on standard output is UTF-8, whatever the locale; PYTHONIOENCODING still has its say."""
    if "PYTHONIOENCODING" not in os.environ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


def one_by_one(predict: Callable[[list[Given]], list[Answer]], texts: list[Given], place: str,
               before: int = 0) -> Iterator[Answer]:
    """predict(texts); where one of them is refused, the results of those before it come first.

    The refusal then names `place` and the number of the text, of which there were `before`, as predict() cannot.
    """
    try:
        yield from predict(texts)
    except MinibertError:
        for number, text in enumerate(texts, before + 1):
            try:
                yield from predict([text])
            except MinibertError as e:
                raise MinibertError(re.sub("^text 1(?=:)", f"{place}{number}", str(e))) from None


def as_they_come(lines: Iterable[bytes], most: int = 64) -> Iterator[list[str]]:
    """The lines of a stream in lists: all that wait already, up to `most`, and never waiting for a full list.

    So a file is read fast, and a program that writes one line and waits for its answer gets it. Raises MinibertError
    where the stream breaks or is no UTF-8, after the lines before that.
    """
    waiting: queue.Queue[str | None] = queue.Queue(maxsize=most)
    broken: list[MinibertError] = []               # what ended the reading, if not the end

    def feed() -> None:
        try:
            for number, line in enumerate(lines, 1):
                waiting.put(text_of_line(line, number))
        except MinibertError as e:
            broken.append(e)
        except (OSError, ValueError) as e:         # ValueError: of a stream that was closed
            broken.append(MinibertError(f"standard input: cannot be read ({e})"))
        finally:                                   # whatever happens, the reader must not wait forever
            waiting.put(None)

    threading.Thread(target=feed, daemon=True).start()
    while (line := waiting.get()) is not None:
        chunk: list[str | None] = [line]
        while len(chunk) < most and not waiting.empty() and chunk[-1] is not None:
            chunk.append(waiting.get())
        yield [text for text in chunk if text is not None]
        if chunk[-1] is None:
            break
    if broken:
        raise broken[0]


def lines_of(stream: TextIO | None) -> Iterator[bytes]:
    """The lines of a stream, read from the system: a thread that waits inside Python's own reader cannot be left."""
    rest = b""
    while stream is not None and (block := os.read(stream.fileno(), 2 ** 16)):
        *lines, rest = (rest + block).split(b"\n")
        yield from (line + b"\n" for line in lines)
    yield from [rest] if rest else []


def text_of_line(line: bytes, number: int) -> str:
    """A line without its end, the first without a byte order mark. Raises MinibertError for what is not UTF-8."""
    line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
    try:
        return line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError as e:
        raise MinibertError(f"standard input:{number}: byte 0x{line[e.start]:02x} is not UTF-8; convert the "
                            "text") from None


def run_evaluate(arguments: argparse.Namespace) -> None:
    """Print the scores of every split in the folder but train, in the precision of training."""
    from minibert.use.divide import divide_as_then
    from minibert.use.evaluate import predict_examples
    from minibert.use.prepare import Splits
    model = load_model(arguments)
    precision = model.settings["precision"]
    model.tokenizer.case_shapes &= arguments.case_shapes == "on"

    splits = divide_as_then(model.task, Splits(model.task.read(arguments.data)), arguments.data, model.settings)
    chosen = [arguments.split] if arguments.split else [s for s in splits if s != "train"]
    if not chosen or chosen[0] not in splits:
        raise MinibertError(f"{arguments.data}: no {arguments.split or 'dev or test'} file")
    model.task.note_unseen({split: splits[split] for split in chosen})
    tell(model.notices)

    scores = {}
    for split in chosen:
        examples = splits[split]
        guess = predict_examples(model, model.task, examples, model.encode_examples(examples), precision)
        scores[split] = model.task.score(guess, examples)
        if not arguments.json:
            print(f"{split}\n{model.task.report(scores[split])}\n")
    if arguments.json:
        print(json.dumps(scores, ensure_ascii=False))


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "fetch": run_fetch, "predict": run_predict, "evaluate": run_evaluate, "new": run_new}


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, 2 for something the user can mend (one line says what), 130 for Ctrl-C; of train as train.py."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["train"]:
        return run_train(words[1:])

    def work() -> None:
        try:
            arguments = parser(next(iter(words), None)).parse_args(words)
            COMMANDS[arguments.command](arguments)
            sys.stdout.flush()
        except BrokenPipeError:                    # `| head` closed its end: nothing is wrong
            lead_nowhere(sys.stdout)

    return exit_code(work, Advice())


if __name__ == "__main__":
    sys.exit(main())
