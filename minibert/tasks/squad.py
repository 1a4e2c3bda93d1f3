"""Files in the layout of SQuAD, 1.1 or 2.0, as examples."""
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from minibert.data.jsontext import JsonText
from minibert.data.records import LONGEST, read_values_of_json
from minibert.data.tables import read_json_parts, read_lines
from minibert.errors import MinibertError

Kind = TypeVar("Kind")
EXPECTED = "the layout of SQuAD: data, paragraphs, context, qas, question, answers, text, answer_start"


@dataclass(frozen=True)
class Example:
    """A question, a text, its right answers (text, first character), none if it has no answer; None: not known."""
    question: str
    context: str
    answers: tuple[tuple[str, int], ...] | None
    where: str                                     # file:line


# ------------------------------------------------------------------------------------------------------ the files


def read_squad(file: Path, notices: list[str]) -> list[Example]:
    """The examples of a file in the layout of SQuAD, or with a question an object: an object a line, or an array.

    A question without answers that says nothing of `is_impossible` has none, which `notices` counts. Raises
    MinibertError with file:line.
    """
    text = JsonText(file, read_json_parts(file), EXPECTED)
    flat = file.suffix.lower() == ".jsonl" or text.next() == "[" or an_object_a_line(file)
    examples = flat_questions(file) if flat else nested_questions(text)
    found, silent = [], []                         # silent: the places of those without answers
    for example, says_nothing in examples:
        found.append(example)
        silent += [example.where] if says_nothing else []
    if not found:
        raise MinibertError(f"{file}:1: no questions in it; expected the layout of SQuAD")
    if silent:
        notices.append(f"{len(silent):,} questions without an answer do not say that they are impossible; read as if "
                       f"they did, the first {silent[0]}")
    return found


def an_object_a_line(file: Path) -> bool:
    """Whether the first line is a whole question, as where .json is written a row at a time."""
    first = next((line for line in read_lines(file) if line.strip()), "")
    try:
        value = json.loads(first) if len(first) < LONGEST else None
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "context" in value


def flat_questions(file: Path) -> Iterator[tuple[Example, bool]]:
    """read_question() of objects with question, context and answers."""
    for line, question in read_values_of_json(file, read_json_parts(file)):
        where = f"{file}:{line}"
        yield read_question(question, member(question, "context", str, where), where)


def nested_questions(text: JsonText) -> Iterator[tuple[Example, bool]]:
    """read_question() of data, paragraphs, context and qas: a paragraph is in memory at a time."""
    for _ in text.each("data"):
        for _ in text.each("paragraphs"):
            line = text.line_next()
            paragraph, written = text.value()
            lines, where = QuestionLines(written, line), f"{text.file}:{line}"
            context = member(paragraph, "context", str, where)
            for question in member(paragraph, "qas", list, where):
                yield read_question(question, context, f"{text.file}:{lines.of(question)}")
    if text.next():
        raise text.damage("more follows", text.at)


class QuestionLines:
    """The line of each question of a paragraph, which a parser forgets: ids are looked for in their order."""

    def __init__(self, text: str, line: int):
        """`text`: the paragraph as it is written, from `line` on."""
        self.text, self.at, self.now = text, 0, line

    def of(self, question: object) -> int:
        """The line that has the question's id, a text; of other ids the last one found."""
        number = question.get("id") if isinstance(question, dict) else None
        forms = [json.dumps(number, ensure_ascii=ascii) for ascii in (False, True)] if isinstance(number, str) else []
        found = min((at for form in forms if (at := self.text.find(form, self.at)) >= 0), default=None)
        if found is not None:
            self.now += self.text.count("\n", self.at, found)
            self.at = found + 1
        return self.now


def read_question(question: object, context: str, where: str) -> tuple[Example, bool]:
    """(one entry of "qas", whether it has no answer without saying so)."""
    place = where
    if isinstance(question, dict) and isinstance(name := question.get("id"), str | int):
        where = f"{where}: question {str(name)[:40]}"      # a file may be one line
    asked = member(question, "question", str, where)
    for name, words in (("question", asked), ("context", context)):
        if not words.strip():
            raise MinibertError(f"{where}: the {name} is empty")
        if len(words) > LONGEST:
            raise MinibertError(f"{where}: the {name} has {len(words):,} characters, {LONGEST:,} at most; cut it up")
    assert isinstance(question, dict)              # member() has seen to it
    without = question.get("is_impossible")
    if not isinstance(without, bool | None):
        raise MinibertError(f"{where}: is_impossible is {repr(without)[:40]}, neither true nor false")
    if without:
        return Example(asked, context, (), place), False

    columns = isinstance(question.get("answers"), dict)
    answers = listed(question["answers"], where) if columns else member(question, "answers", list, where)
    empty = all(isinstance(a, dict) and a.get("text") == "" for a in answers)
    if empty and (answers or without is None):
        return Example(asked, context, (), place), True
    if not answers:
        raise MinibertError(f'{where}: no answer; a question without one says "is_impossible": true')
    return Example(asked, context, tuple(read_answer(answer, context, where) for answer in answers), place), False


def listed(columns: object, where: str) -> list[dict[str, object]]:
    """Answers in columns, {"text": [...], "answer_start": [...]}, as a list of them. Raises MinibertError."""
    texts, starts = (member(columns, name, list, where) for name in ("text", "answer_start"))
    if len(texts) != len(starts):
        raise MinibertError(f"{where}: {len(texts)} texts of answers, but {len(starts)} of answer_start; mend the file")
    return [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]


def read_answer(answer: object, context: str, where: str) -> tuple[str, int]:
    """(text, first character). Raises MinibertError unless it is a slice of the text."""
    text, start = member(answer, "text", str, where), member(answer, "answer_start", int, where)
    if not text.strip():
        raise MinibertError(f"{where}: an answer of blanks; leave it out")
    there = context[start:start + len(text)] if start >= 0 else ""
    if there != text:
        elsewhere = f"; it stands at {context.find(text)}" if context.count(text) == 1 else ""
        raise MinibertError(f"{where}: the answer {text[:40]!r} is not at character {start}, where the text has "
                            f"{there[:40]!r}{elsewhere}; answer_start counts characters from 0")
    return text.strip(), start + len(text) - len(text.lstrip())


def member(holder: object, name: str, kind: type[Kind], where: str) -> Kind:
    """holder[name], of this kind. Raises MinibertError where it is not there."""
    names = {list: "a list", str: "a text", int: "a whole number"}
    value = holder.get(name) if isinstance(holder, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise MinibertError(f"{where}: {name} is not {names[kind]}; expected {EXPECTED}")
    return value
