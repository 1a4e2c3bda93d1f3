"""One helper for every test of an error that the user can mend."""
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from minibert.errors import MinibertError


@contextmanager
def refused(*parts: str) -> Iterator[None]:
    """MinibertError of one line that holds every part."""
    with pytest.raises(MinibertError) as caught:
        yield
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and message.strip(), message
    for part in parts:
        assert str(part) in message, f"{part!r} is not in {message!r}"
