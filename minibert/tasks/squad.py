"""Files in the layout of SQuAD, 1.1 or 2.0, as examples."""
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from minibert.data.tables import LONGEST, encodable, read_lines
from minibert.errors import MinibertError

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Example:
    """A question, a text, its right answers (text, first character), none if it has no answer; None: not known."""
    question: str
    context: str
    answers: tuple[tuple[str, int], ...] | None
    where: str                                     # file:line


# ------------------------------------------------------------------------------------------------------ the files


def read_squad(file: Path) -> list[Example]:
    """The examples of a file in the layout of SQuAD. Raises MinibertError with file:line."""
    text = "".join(read_lines(file))
    try:
        whole = json.loads(text)
    except ValueError as e:
        line = e.lineno if isinstance(e, json.JSONDecodeError) else 1          # a number of 5,000 digits is another
        raise MinibertError(f"{file}:{line}: not JSON ({e}); expected the layout of SQuAD") from None
    except RecursionError:
        raise MinibertError(f"{file}:1: JSON nested too deeply; expected the layout of SQuAD") from None
    if "\\ud" in text.lower() and not encodable(whole):
        raise MinibertError(f"{file}: \\ud... is half of a pair that UTF-8 cannot write; mend the file")

    lines = QuestionLines(text)
    found: list[Example] = []
    for article in member(whole, "data", list, f"{file}:1"):
        for paragraph in member(article, "paragraphs", list, f"{file}:{lines.now}"):
            context = member(paragraph, "context", str, f"{file}:{lines.now}")
            for question in member(paragraph, "qas", list, f"{file}:{lines.now}"):
                found.append(read_question(question, context, f"{file}:{lines.of(question)}"))
    if not found:
        raise MinibertError(f"{file}:1: no questions in it; expected the layout of SQuAD")
    return found


class QuestionLines:
    """The line of each question of a JSON file, which a parser forgets: ids are looked for in their order."""

    def __init__(self, text: str):
        self.text, self.at, self.now = text, 0, 1

    def of(self, question: object) -> int:
        """The line that has the question's id, a text; of other ids the last one found."""
        number = question.get("id") if isinstance(question, dict) else None
        forms = [json.dumps(number, ensure_ascii=ascii) for ascii in (False, True)] if isinstance(number, str) else []
        found = min((at for form in forms if (at := self.text.find(form, self.at)) >= 0), default=None)
        if found is not None:
            self.now += self.text.count("\n", self.at, found)
            self.at = found + 1
        return self.now


def read_question(question: object, context: str, where: str) -> Example:
    """One entry of "qas"."""
    asked = member(question, "question", str, where)
    for name, words in (("question", asked), ("context", context)):
        if not words.strip():
            raise MinibertError(f"{where}: the {name} is empty")
        if len(words) > LONGEST:
            raise MinibertError(f"{where}: the {name} has {len(words):,} characters, {LONGEST:,} at most; cut it up")
    assert isinstance(question, dict)              # member() has seen to it
    without = question.get("is_impossible", False)
    if not isinstance(without, bool):
        raise MinibertError(f"{where}: is_impossible is {repr(without)[:40]}, neither true nor false")
    answers = [] if without else member(question, "answers", list, where)
    if not answers and not without:
        raise MinibertError(f'{where}: no answer; a question without one says "is_impossible": true')
    return Example(asked, context, tuple(read_answer(answer, context, where) for answer in answers), where)


def read_answer(answer: object, context: str, where: str) -> tuple[str, int]:
    """(text, first character). Raises MinibertError unless it is a slice of the text."""
    text, start = member(answer, "text", str, where), member(answer, "answer_start", int, where)
    there = context[start:start + len(text)] if start >= 0 else ""
    if not text.strip() or there != text:
        raise MinibertError(f"{where}: the answer {text[:40]!r} is not at character {start}, where the text has "
                            f"{there[:40]!r}; answer_start counts characters from 0")
    return text.strip(), start + len(text) - len(text.lstrip())


def member(holder: object, name: str, kind: type[Kind], where: str) -> Kind:
    """holder[name], of this kind. Raises MinibertError where it is not there."""
    names = {list: "a list", str: "a text", int: "a whole number"}
    value = holder.get(name) if isinstance(holder, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise MinibertError(f"{where}: {name} is not {names[kind]}; expected the layout of SQuAD: data, paragraphs, "
                            "context, qas, question, answers, text, answer_start")
    return value
