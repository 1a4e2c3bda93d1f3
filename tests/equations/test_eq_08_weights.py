"""Chapter 08: a safetensors file byte by byte, bf16 bit by bit, and how many numbers a BERT is; the page's numbers."""
import itertools
import json
import math
import os
import pickle
import random
import re
import struct
import tomllib
from fractions import Fraction
from pathlib import Path

import pytest
import safetensors.torch
import torch
from refusing import refused
from safetensors import safe_open

from minibert import AdamW
from minibert.adapt.grow import grow_types
from minibert.checkpoints import weights
from minibert.checkpoints.names import BLOCK_NAMES, EMBEDDING_NAMES, POOLER_NAMES
from minibert.core.config import BertConfig
from minibert.core.heads import TokenHead
from minibert.core.model import Bert

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "08-weights.md").read_text("utf-8")
WORDS = " ".join(PAGE.split())
BERT_BASE = BertConfig(vocab_size=30522, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
                       intermediate_size=3072)
MINILM = BertConfig(vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
                    intermediate_size=1536)
ITEMSIZE = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8}
FORMATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@pytest.fixture
def mixed(tmp_path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file of four formats and shapes from no axis to three, as the library writes it; and what went in."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (5, 7), "b": (11,), "c": (2, 3, 6), "d": ()}
    tensors = {f"{kind}.{name}": torch.randn(shape, generator=generator).to(FORMATS[kind])
               for kind, (name, shape) in itertools.product(FORMATS, shapes.items())}
    safetensors.torch.save_file(tensors, tmp_path / "mixed.safetensors", metadata={"format": "pt"})
    return tmp_path / "mixed.safetensors", tensors


def by_hand(file: Path) -> tuple[bytes, int, dict]:
    """(all bytes, header length, header without metadata); the length summed up byte by byte."""
    raw = file.read_bytes()
    length = sum(256 ** k * raw[k] for k in range(8))
    header = json.loads(raw[8:8 + length])
    header.pop("__metadata__", None)
    return raw, length, header


def from_page() -> bytes:
    """The bytes of the page's hex dump."""
    lines = re.findall(r"^[0-9a-f]{8}  ((?:[0-9a-f]{2} +)+) *\|(.+)\|$", PAGE, flags=re.M)
    raw = b"".join(bytes.fromhex(numbers) for numbers, _ in lines)
    assert "".join(letters for _, letters in lines) == "".join(chr(b) if 32 <= b < 127 else "." for b in raw)
    return raw


# ------------------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("length", [2, 120, 255, 256, 65_537, 300_000])
def test_header_length_is_eight_bytes_lowest_first_FILE_1(tmp_path, length):
    """{"k": "xxx…"} of exactly `length` bytes, its length written digit by digit to base 256, zeros behind it."""
    header = ('{"k":"' + "x" * (length - 8) + '"}' if length > 8 else "{}").encode()
    assert len(header) == length
    digits = [length // 256 ** k % 256 for k in range(8)]
    (tmp_path / "f").write_bytes(bytes(digits) + header + bytes(400_000))
    assert weights.read_header(tmp_path / "f") == json.loads(header)


def test_a_header_may_fill_the_file_and_not_more_FILE_1_FILE_2(tmp_path, monkeypatch):
    """50 bytes: 42 are the most a header can have. Then the limit of any header, in a file that is mostly a hole."""
    file = tmp_path / "f"
    file.write_bytes(struct.pack("<Q", 42) + b"{" + b" " * 40 + b"}")
    assert weights.read_header(file) == {} and file.stat().st_size == 50
    file.write_bytes(struct.pack("<Q", 41) + b"{" + b" " * 39 + b"}.")
    assert weights.read_header(file) == {}
    file.write_bytes(struct.pack("<Q", 0x2b) + b"{" + b" " * 40 + b"}")
    with refused("header of 43 bytes in a file of 50"):
        weights.read_header(file)
    assert weights.MAX_HEADER == 4 * 10 ** 6
    file.write_bytes(struct.pack("<Q", 4 * 10 ** 6 + 1) + b"{}")
    os.truncate(file, 4 * 10 ** 6 + 20)
    with refused("header of 4000001 bytes"):
        weights.read_header(file)
    monkeypatch.setattr(weights, "MAX_HEADER", 30)
    file.write_bytes(struct.pack("<Q", 30) + b"{" + b" " * 28 + b"}" + b"data")
    assert weights.read_header(file) == {}
    for short in (b"\x02", b"\x00" * 7):
        file.write_bytes(short)
        with refused(f"header of {len(short)} bytes in a file of {len(short)}"):
            weights.read_header(file)


def test_offsets_say_where_and_how_long_FILE_3_FILE_4_FILE_6(mixed):
    file, tensors = mixed
    raw, length, header = by_hand(file)
    assert set(header) == set(tensors) == set(weights.read_header(file)) - {"__metadata__"}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        size = ITEMSIZE[entry["dtype"]] * math.prod(entry["shape"])           # [FILE-3]
        at = 8 + length + begin                                               # [FILE-4]
        assert end - begin == size == len(tensors[name].reshape(-1).tolist()) * tensors[name].element_size()
        assert raw[at:at + size] == bytes(tensors[name].reshape(-1).view(torch.uint8).tolist())
    whole = 8 + length + sum(e["data_offsets"][1] - e["data_offsets"][0] for e in header.values())  # [FILE-6]
    assert file.stat().st_size == whole
    assert (8 + length) % 8 == 0


def test_elements_row_by_row_FILE_5(mixed):
    file, tensors = mixed
    raw, length, header = by_hand(file)
    code = {"F64": "<d", "F32": "<f", "F16": "<e"}
    for kind, form in code.items():
        begin, _ = header[f"{kind}.a"]["data_offsets"]
        rows, columns = header[f"{kind}.a"]["shape"]
        for i, j in itertools.product(range(rows), range(columns)):
            number = i * columns + j                                          # [FILE-5]
            (value,) = struct.unpack_from(form, raw, 8 + length + begin + ITEMSIZE[kind] * number)
            assert value == float(tensors[f"{kind}.a"][i, j])


def test_our_own_files_are_such_files_FILE_3_FILE_6(tiny_folder):
    file = tiny_folder / "model.safetensors"
    _, length, header = by_hand(file)
    numbers = sum(math.prod(e["shape"]) for e in header.values())
    assert {e["dtype"] for e in header.values()} == {"F32"}
    assert file.stat().st_size == 8 + length + 4 * numbers


# ------------------------------------------------------------------------------------------------------- the bits


def bits(values: torch.Tensor) -> list[int]:
    """The four bytes of each float32, lowest first, as one whole number."""
    return [int.from_bytes(struct.pack("<f", x), "little") for x in values.tolist()]


def test_what_four_bytes_mean_FILE_7():
    draw = torch.Generator().manual_seed(1)
    values = torch.randn(300, generator=draw) * 2.0 ** torch.randint(-100, 100, (300,), generator=draw)
    for u, x in zip(bits(values), values.tolist(), strict=True):
        s, e, f = u >> 31, u >> 23 & 255, u & (1 << 23) - 1
        value = Fraction(-1) ** s * Fraction(2) ** (e - 127) * (1 + Fraction(f, 2 ** 23))  # [FILE-7]
        assert value == Fraction(x)


def bf16_numbers() -> list[int]:
    """All 65,536, without infinities and what is not a number."""
    return [v for v in range(2 ** 16) if v >> 7 & 255 != 255]


def test_bf16_is_the_upper_half_FILE_8():
    vs = bf16_numbers()
    stored = torch.tensor(vs, dtype=torch.uint16).view(torch.bfloat16)
    for v, x in zip(vs, stored.float().tolist(), strict=True):
        u = 2 ** 16 * v                                                       # [FILE-8]
        assert struct.pack("<f", x) == u.to_bytes(4, "little")


def test_a_bf16_file_is_widened_so_by_the_loader_FILE_8(tmp_path):
    raw = struct.pack("<6H", 0x3dcd, 0xbf80, 0x0001, 0x7f7f, 0x8000, 0x4049)
    header = b'{"x":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}'
    (tmp_path / "f").write_bytes(struct.pack("<Q", len(header)) + header + raw)
    with safe_open(tmp_path / "f", framework="pt") as tensors:
        x = weights.read_weight("x", tmp_path / "f", tensors.get_slice("x"), (2, 3))
    assert x.dtype == torch.float32
    assert [u - 2 ** 16 * v for u, v in zip(bits(x.flatten()), struct.unpack("<6H", raw), strict=True)] == [0] * 6


def test_rounding_to_the_nearest_bf16_and_ties_to_even_FILE_9():
    """Against a search among the neighbours in exact fractions, and against torch; every upper half near a tie."""
    draw = random.Random(2)
    values = torch.tensor([h * 2 ** 16 + low for h in draw.sample(range(0x80, 0x7f7f), 800)
                           for low in (0, 1, 0x7fff, 0x8000, 0x8001, 0xffff, draw.randrange(2 ** 16))])
    worst = {"rounded": 0, "cut": 0}
    for u in values.tolist():
        v = (u + 2 ** 15 - 1 + u // 2 ** 16 % 2) // 2 ** 16                   # [FILE-9]
        def exact(upper: int) -> Fraction:
            return Fraction(*struct.unpack("<f", struct.pack("<I", upper << 16)))
        (x,) = struct.unpack("<f", struct.pack("<I", u))
        below = u >> 16
        nearest = min((below, below + 1), key=lambda w: (abs(exact(w) - Fraction(x)), w % 2))
        assert v == nearest == int(torch.tensor(x).to(torch.bfloat16).view(torch.uint16))
        for kind, w in (("rounded", v), ("cut", below)):
            worst[kind] = max(worst[kind], abs(exact(w) / Fraction(x) - 1))
    assert 0.0038 < worst["rounded"] <= 2 ** -8 and 2 * 0.0038 < worst["cut"] < 2 ** -7


# -------------------------------------------------------------------------------------- names, and how many numbers


def embedding_numbers(c: BertConfig) -> int:
    V, T, U, H = c.vocab_size, c.max_position_embeddings, c.type_vocab_size, c.hidden_size
    return (V + T + U + 2) * H                                                # [SIZE-1]


def block_numbers(c: BertConfig) -> int:
    H, F = c.hidden_size, c.intermediate_size
    return 4 * H ** 2 + 2 * H * F + 9 * H + F                                 # [SIZE-2]


def encoder_numbers(c: BertConfig) -> int:
    H, L = c.hidden_size, c.num_hidden_layers
    return embedding_numbers(c) + L * block_numbers(c) + H ** 2 + H           # [SIZE-3]


def count(module: torch.nn.Module) -> int:
    return sum(len(p.detach().flatten().tolist()) for p in module.parameters())


def test_numbers_of_the_model_counted_one_by_one_SIZE_1_SIZE_2_SIZE_3(tiny_config):
    bert, c = Bert(tiny_config), tiny_config
    assert count(bert.embeddings) == embedding_numbers(c) and count(bert.blocks[1]) == block_numbers(c)
    assert count(bert) == encoder_numbers(c) == count(Bert(c, pooler=False)) + c.hidden_size * (c.hidden_size + 1)
    grown = grow_types(bert, ("lower", "title", "upper", "mixed"))
    assert count(grown) == encoder_numbers(grown.config) == encoder_numbers(c) + 6 * c.hidden_size


def test_the_published_numbers_SIZE_1_SIZE_2_SIZE_3():
    """31038 · 768 = 23,837,184; 4 · 589824 + 2 · 2359296 + 6912 + 3072 = 7,087,872, times 12; 768 · 769 = 590,592."""
    assert embedding_numbers(BERT_BASE) == 31038 * 768 == 23_837_184
    assert block_numbers(BERT_BASE) == 7_087_872 and 12 * 7_087_872 == 85_054_464
    assert encoder_numbers(BERT_BASE) == 109_482_240 == 23_837_184 + 85_054_464 + 590_592


def test_the_file_of_minilm_to_the_byte_SIZE_3():
    """8 + 11,408 of header + 512 positions of 8 bytes + 4 bytes a number."""
    known = tomllib.loads((ROOT / "minibert" / "checkpoints" / "manifest.toml").read_text("utf-8"))["minilm-l6"]
    assert encoder_numbers(MINILM) == 22_713_216
    assert known["size"] == 8 + 11_408 + 512 * 8 + 4 * 22_713_216 == 90_868_376
    assert 0x90 + 256 * 0x2c == 11_408


def test_bytes_in_training_SIZE_4(tiny_config):
    """One update of AdamW, then every tensor it needs is put on the scales."""
    bert = Bert(tiny_config)
    optimizer = AdamW(bert.parameters(), lr=1e-3)
    for p in bert.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    held = [t for p in bert.parameters() for t in (p, p.grad, optimizer.state[p]["m"], optimizer.state[p]["s"])]
    claimed = 4 * 4 * encoder_numbers(tiny_config)                            # [SIZE-4]
    assert sum(t.untyped_storage().nbytes() for t in held) == claimed
    assert sum(isinstance(x, torch.Tensor) for s in optimizer.state.values() for x in s.values()) == len(held) // 2
    assert f"{16 * encoder_numbers(BERT_BASE):,} bytes" in PAGE


def test_the_pages_table_is_the_programs_table(tiny_config):
    """Every row, and no row more; the shapes with H = 30, F = 44, V = 95, 40 positions, 2 types."""
    shapes = {k: list(p.shape) for k, p in Bert(tiny_config).state_dict().items()}
    sizes = {"V": 95, "H": 30, "F": 44, "Tmax": 40, "U": 2}
    rows = [*EMBEDDING_NAMES, *BLOCK_NAMES, *POOLER_NAMES]
    table = re.findall(r"^\| (`[^|]*`) \| `([^|`]*)` \| `([^|`]*)` \| \[([^]|]*)\] \|$", PAGE, flags=re.M)
    assert [s for symbols, *_ in table for s in symbols.strip("`").split("`, `")] == [n.symbol for n in rows]
    plain = {(n.ours.rpartition(".")[0], n.published.rpartition(".")[0]) for n in rows}
    assert {(ours, published) for _, ours, published, _ in table} == plain and len(table) == len(plain)
    for _, ours, _, axes in table:
        assert shapes[ours.format(i=1) + ".weight"] == [sizes[a] for a in axes.split(",")]


# ---------------------------------------------------------------------------------------------------- the examples


def test_worked_example_of_a_whole_file_FILE_1_FILE_6(tmp_path):
    """The bytes of the page are those that the library writes; 78 hex is 120; 8 + 120 + 24 + 4 = 156."""
    raw, file = from_page(), tmp_path / "page.safetensors"
    w, b = torch.tensor([[1, -2, 0.5], [3, 0.1, -0.75]]), torch.tensor([1, 0.1]).to(torch.bfloat16)
    assert raw == safetensors.torch.save({"w": w, "b": b})
    assert len(raw) == 8 + 120 + 24 + 4 == 156 and raw[8:128].rstrip() == raw[8:121]
    file.write_bytes(raw)
    assert weights.read_header(file) == {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
                                         "b": {"dtype": "BF16", "shape": [2], "data_offsets": [24, 28]}}
    loaded = safetensors.torch.load_file(file)
    assert torch.equal(loaded["w"], w) and torch.equal(loaded["b"], b)


def test_worked_example_of_single_numbers_FILE_5_FILE_7_FILE_9():
    """w[1][1] at 128 + 4 · 4 = 144; 3dcccccd is 2^-4 (1 + 5033165/2^23) = 13421773/2^27; b[1] at 128 + 24 + 2."""
    raw = from_page()
    assert struct.unpack("<4f", raw[128:144]) == (1, -2, 0.5, 3)
    assert raw[144:148].hex(" ") == "cd cc cc 3d"
    u = int.from_bytes(raw[144:148], "little")
    assert (u, u >> 31, u >> 23 & 255, u & 0x7fffff) == (0x3dcccccd, 0, 123, 5_033_165)
    value = Fraction(*struct.unpack("<f", raw[144:148]))
    assert value == Fraction(1, 16) * (1 + Fraction(5_033_165, 8_388_608)) == Fraction(13_421_773, 134_217_728)
    assert round(float(value - Fraction(1, 10)) * 1e9, 1) == 1.5
    assert raw[154:156].hex(" ") == "cd 3d" and u & 0xffff == 0xcccd > 0x8000
    for v, x in (0x3dcd, "0.10009765625"), (0x3dcc, "0.099609375"):
        assert struct.unpack("<f", struct.pack("<I", v << 16)) == (float(x),) and x in PAGE


def test_what_the_library_lets_pass_and_we_do_not(tmp_path):
    entry = '"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    for header, error in ((f"{{{entry},{entry}}}", "'x' stands twice"), (f"{{{entry}}}", "not finite")):
        file = tmp_path / "f.safetensors"
        file.write_bytes(struct.pack("<Q", len(header)) + header.encode() + struct.pack("<f", math.nan))
        assert safetensors.torch.load_file(file)["x"].isnan().all()
        with refused(error), safe_open(file, framework="pt") as tensors:
            weights.read_header(file)
            weights.read_weight("x", file, tensors.get_slice("x"), (1,))
    with refused("is [1], but config.json asks for [5]"), safe_open(file, framework="pt") as tensors:
        weights.read_weight("x", file, tensors.get_slice("x"), (5,))


def test_the_pages_load_report(tmp_path, tiny_folder, tiny_config):
    tensors = safetensors.torch.load_file(tiny_folder / "model.safetensors")
    H = tiny_config.hidden_size
    extra = {"cls.predictions.bias": (95,), "cls.predictions.transform.dense.weight": (H, H),
             "cls.seq_relationship.weight": (2, H), "adapter.down": (5, H)}
    tensors |= {name: torch.ones(shape) for name, shape in extra.items()}
    tensors["bert.embeddings.position_ids"] = torch.arange(40)[None]
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((tiny_folder / "config.json").read_bytes())
    _, report = weights.load(tmp_path, TokenHead(tiny_config, 9), new_head=True)
    assert f"```\n{report}\n```" in PAGE
    assert len(report.loaded) == 5 + 16 * tiny_config.num_hidden_layers + 2 == 39


def test_a_pickle_is_a_program():
    """The page's 23 bytes import a module and call a function of it by being opened."""
    program = re.search(r"```\n(cmath\n.*?)\n```", PAGE, flags=re.S)[1].encode()
    assert len(program) == 23 and pickle.loads(program) == 120
    assert f"{len(program)} bytes" in WORDS
