"""A task for one test, with no more members than the test asks for."""
from typing import TypeVar

from minibert.tasks.base import Task

Kind = TypeVar("Kind", bound=type[Task])


def incomplete(kind: Kind) -> Kind:
    """The class, which may now be made although members without a default are missing."""
    kind.__abstractmethods__ = frozenset()
    return kind
