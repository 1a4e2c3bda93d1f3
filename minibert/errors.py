"""The one exception of this package."""


LONGEST = 1000                                     # characters of a message: a file may hold a line of a gigabyte


class MinibertError(Exception):
    """Something the user can mend: its text is one line that says what, where and what to do."""

    def __str__(self) -> str:
        text = super().__str__().replace("\n", "\\n")       # what the user typed or a file held may have line breaks
        half = LONGEST // 2                        # where it is stands at the beginning, what to do at the end
        return text if len(text) <= LONGEST else f"{text[:half]} ... {text[-half:]}"
