"""Large files are read or refused within their bounds, and sizes.py sees what is beyond; `make torture` has 100 MB."""
import dataclasses

import pytest
from sizes import KEPT, MB, fault, readers, results, tried
from tiny import write_tiny_folder

from minibert.errors import MinibertError


@pytest.mark.parametrize("shape", ["rows of 100 bytes", "one text", "one line", "deep", "one list"])
def test_a_few_megabytes_of_any_shape(shape):
    found = list(results(MB, shape))
    assert len(found) == len(readers()) and not [(what, wrong) for what, wrong, _ in found if wrong]
    assert all("read" in said["said"] or "refused" in said["said"] for _, _, said in found)


def read_badly(what: str):
    def read(file):
        if what == "memory":
            KEPT.append(b"x" * (260 * MB))
        elif what == "line":
            raise MinibertError("no such thing")
        else:
            raise KeyError("hidden_size")
    return read


@pytest.mark.parametrize("what, said", [("memory", "beyond the size"), ("trace", "KeyError: 'hidden_size'"),
                                        ("line", "")])
def test_what_is_a_fault(tmp_path, what, said):
    write_tiny_folder(tmp_path)
    reader = dataclasses.replace(readers()[0], read=read_badly(what))
    wrong, found = tried(reader, "deep", 2 * MB, tmp_path)
    assert (said in wrong) if said else (not wrong and found["said"] == "refused: no such thing")


def test_time_is_counted_by_the_size_of_the_file():
    slow = {"said": "read", "bytes": 0, "seconds": 70.0}
    assert "70 s" in fault(slow, 100 * MB) and not fault(slow, 200 * MB)
    assert "beyond" in fault({**slow, "seconds": 1.0, "bytes": 301 * MB}, 100 * MB)
    assert not fault({**slow, "seconds": 1.0, "bytes": 299 * MB}, 100 * MB)
