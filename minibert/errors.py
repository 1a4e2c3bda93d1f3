"""The one exception of this package."""


class MinibertError(Exception):
    """Something the user can mend: its text is one line that says what, where and what to do."""

    def __str__(self) -> str:
        return super().__str__().replace("\n", "\\n")       # what the user typed or a file held may have line breaks
