"""Characters as other languages count them: JavaScript, Java and C# in UTF-16 units, of which an emoji has two."""
from itertools import accumulate

from minibert.tasks.base import Result

UNITS = ("characters", "utf16")                    # what offsets may count; Python counts characters


def in_utf16(result: Result) -> Result:
    """The result with every "start" and "end" in UTF-16 units of its "text", to which all of a result refer.

    >>> in_utf16({"text": "🌧 in Oslo", "entities": [{"text": "Oslo", "start": 5, "end": 9}]})["entities"]
    [{'text': 'Oslo', 'start': 6, 'end': 10}]
    """
    units = [0, *accumulate(1 + (c > "\uffff") for c in result.get("text", ""))]

    def counted(name: str, value: object) -> object:
        if isinstance(value, dict):
            return {key: counted(key, inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [counted(name, inner) for inner in value]
        return units[value] if name in ("start", "end") and isinstance(value, int) else value

    return {name: counted(name, value) for name, value in result.items()}
