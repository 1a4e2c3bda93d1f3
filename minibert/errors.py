"""The one exception of this package, and how what a file held is shown in a line."""
import re

UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")                    # what would break or hide a line
LONGEST = 1000                                     # characters of a message: a file may hold a line of a gigabyte


def spelt_out(text: str) -> str:
    """What would break or hide a line, or move the cursor, as Python writes it: an escape as \\x1b."""
    return UNSEEN.sub(lambda found: repr(found[0])[1:-1], text)


class MinibertError(Exception):
    """Something the user can mend: its text is one line that says what, where and what to do."""

    def __str__(self) -> str:
        # what the user typed or a file held may have anything in it
        text = spelt_out(super().__str__())
        half = LONGEST // 2                        # where it is stands at the beginning, what to do at the end
        return text if len(text) <= LONGEST else f"{text[:half]} ... {text[-half:]}"
