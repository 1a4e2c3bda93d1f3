"""The one exception of this package."""


class MinibertError(Exception):
    """Something the user can mend: its text is one line that says what, where and what to do."""
