"""The strict reader agrees with gguf's on sound files, and gives an error, nothing worse, on all others."""

from __future__ import annotations

import math
import random
import re
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tunesmith.errors import ModelError
from tunesmith.models import gguf_header
from tunesmith.models.gguf_header import BLOCKS, Header, read_header

# --- files -----------------------------------------------------------------------------------------------------


def sound(path: Path) -> Path:
    """A small file with every kind of value and several types of tensors, by gguf's own writer."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 1)
    for kind, value in (("uint8", 200), ("int8", -3), ("uint16", 60000), ("int16", -300), ("int32", -70000)):
        getattr(writer, f"add_{kind}")(f"x.{kind}", value)
    writer.add_uint64("x.uint64", 1 << 40)
    writer.add_int64("x.int64", -(1 << 40))
    writer.add_float32("x.float32", 0.25)
    writer.add_float64("x.float64", math.pi)
    writer.add_bool("x.bool", True)
    writer.add_string("x.name", "Grüße")
    writer.add_array("x.tokens", ["<s>", "Grüße", "", "\0", "日本"])
    writer.add_array("x.scores", [0.5, -1.25])
    writer.add_array("x.types", [1, 2, 3])
    writer.add_array("x.bools", [True, False])
    writer.add_tensor("token_embd.weight", np.arange(64 * 3, dtype=np.float16).reshape(3, 64))
    packed = gguf.quants.quantize(np.ones((2, 2, 32), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.ffn_up.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.norm.weight", np.ones(5, np.float32))
    return close(writer, path)


def close(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def text(value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: bytes | str = "k", kind: int = 4, value: bytes = b"\1\0\0\0") -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: bytes | str = "t", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def file(pairs: list[bytes], tensors: list[bytes], data: int = 0, *, version: int = 3, align: int = 32) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs)) + b"".join(pairs) + b"".join(tensors)
    return head.ljust(-(-len(head) // align) * align, b"\0") + bytes(data) if tensors else head + bytes(data)


def read(data: bytes, folder: Path, **options: Any) -> Header:
    path = folder / "m.gguf"
    path.write_bytes(data)
    return read_header(path, **options)


# --- sound files -----------------------------------------------------------------------------------------------


def agrees(path: Path) -> Header:
    """Asserts that gguf's reader says the same of `path`."""
    header, other = read_header(path), gguf.GGUFReader(path)
    expected = {key: field.contents() for key, field in other.fields.items() if not key.startswith("GGUF.")}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in header.metadata.items()}
    assert plain == expected
    assert header.alignment == other.alignment
    assert header.data == other.data_offset
    assert [
        (tensor.name, list(tensor.shape), tensor.type, tensor.offset, tensor.bytes) for tensor in header.tensors
    ] == [
        (tensor.name, tensor.shape.tolist(), tensor.tensor_type.name, tensor.data_offset, tensor.n_bytes)
        for tensor in other.tensors
    ]
    return header


def test_it_agrees_with_gguf(tmp_path: Path) -> None:
    header = agrees(sound(tmp_path / "m.gguf"))
    assert header.version == 3
    assert header.metadata["x.tokens"] == ("<s>", "Grüße", "", "\0", "日本")
    assert header.metadata["x.bool"] is True
    assert [tensor.shape for tensor in header.tensors] == [(64, 3), (32, 2, 2), (5,)]
    assert header.tensors[1].bytes == 4 * 34
    data = (tmp_path / "m.gguf").read_bytes()
    begin, end = header.places["x.name"]
    assert data[begin:end] == pair("x.name", 8, text("Grüße"))


def test_without_values_arrays_are_left_out(tmp_path: Path) -> None:
    path = sound(tmp_path / "m.gguf")
    whole, short = read_header(path), read_header(path, values=False)
    assert short.metadata == {key: value for key, value in whole.metadata.items() if not isinstance(value, tuple)}
    assert (short.tensors, short.places, short.data) == (whole.tensors, whole.places, whole.data)


def test_another_alignment_version_two_and_no_tensors(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_custom_alignment(256)
    writer.add_tensor("a", np.ones(3, np.float32))
    writer.add_tensor("b", np.ones(3, np.float32))
    header = agrees(close(writer, tmp_path / "a.gguf"))
    assert (header.alignment, header.data % 256, header.tensors[1].offset - header.data) == (256, 0, 256)
    assert read(file([pair()], [tensor()], 16, version=2), tmp_path).version == 2
    assert read(file([pair()], [tensor()], 32), tmp_path).tensors[0].bytes == 16  # with or without the last padding
    assert read(file([pair()], []), tmp_path).tensors == ()
    nested = struct.pack("<IQ", 9, 2) + struct.pack("<IQB", 0, 1, 7) + struct.pack("<IQ", 0, 0)
    assert read(file([pair("k", 9, nested)], []), tmp_path).metadata["k"] == ((7,), ())


def test_the_types_are_gguf_s() -> None:
    for kind in gguf.GGMLQuantizationType:
        if kind.name not in ("Q8_1", "Q8_K"):  # made while computing, never stored
            assert BLOCKS[kind.name] == (kind.value, *gguf.GGML_QUANT_SIZES[kind])


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with 262,144 tokens, as many scores and types, and 500,000 merges."""
    path = tmp_path_factory.mktemp("large") / "m.gguf"
    writer = gguf.GGUFWriter(path, "gemma")
    writer.add_array("tokenizer.ggml.tokens", [f"token{at}" for at in range(1 << 18)])
    writer.add_array("tokenizer.ggml.scores", [0.5 * at for at in range(1 << 18)])
    writer.add_array("tokenizer.ggml.token_type", [1] * (1 << 18))
    writer.add_array("tokenizer.ggml.merges", [f"to {at}" for at in range(500_000)])
    return close(writer, path)


def test_a_large_vocabulary_takes_a_second(vocabulary: Path) -> None:
    began = time.process_time()
    header = read_header(vocabulary)
    took = time.process_time() - began
    assert header.metadata["tokenizer.ggml.tokens"][-1] == "token262143"
    assert header.metadata["tokenizer.ggml.scores"][3] == 1.5
    assert len(header.metadata["tokenizer.ggml.merges"]) == 500_000
    assert took < 3  # 0.6 on an idle machine


# --- everything else -------------------------------------------------------------------------------------------

BIG = 1 << 62
LIST = struct.pack("<IQ", 9, 1)
SPOILT: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is not a GGUF file"),
    "magic": (b"GGML" + bytes(60), "is not a GGUF file"),
    "version 1": (file([], [], version=1), "is GGUF version 1; supported are 2 and 3"),
    "version 4": (file([], [], version=4), "is GGUF version 4"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is a big-endian GGUF file"),
    "many tensors": (b"GGUF" + struct.pack("<IQQ", 3, BIG, 0), "claims 4,611,686,018,427,387,904 tensors"),
    "more tensors than bytes": (b"GGUF" + struct.pack("<IQQ", 3, 9, 0) + bytes(200), "claims 9 tensors"),
    "many pairs": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 40), "claims 1,099,511,627,776 pairs"),
    "long key": (file([pair("k" * 65536)], []), "has a key of 65,536 bytes; allowed are 1 to 65,535"),
    "claimed key": (file([struct.pack("<Q", BIG) + bytes(40)], []), "has a key of 4,611,686"),
    "no key": (file([pair("")], []), "has a key of 0 bytes"),
    "key not UTF-8": (file([pair(b"\xff\xfe")], []), "has a key that is not UTF-8"),
    "zero in a key": (file([pair("a\0b")], []), "has a zero byte in a key"),
    "key twice": (file([pair(), pair()], []), "has the key 'k' twice"),
    "unknown value": (file([pair("k", 13)], []), "has a value of the unknown type 13"),
    "unknown element": (file([pair("k", 9, struct.pack("<IQ", 77, 1) + bytes(8))], []), "of the unknown type 77"),
    "truth": (file([pair("k", 7, b"\2")], []), "neither 0 nor 1"),
    "truths": (file([pair("k", 9, struct.pack("<IQ", 7, 3) + b"\1\0\3")], []), "neither 0 nor 1"),
    "long string": (file([pair("k", 8, struct.pack("<Q", 1 << 30) + bytes(40))], []), "has a string of 1,073,741,824"),
    "string past the end": (file([pair("k", 8, struct.pack("<Q", 4000) + bytes(40))], []), "ends inside its header"),
    "string not UTF-8": (file([pair("k", 8, text(b"\xc3("))], []), "has a string that is not UTF-8"),
    "element not UTF-8": (file([pair("k", 9, struct.pack("<IQ", 8, 1) + text(b"\xc3("))], []), "not UTF-8"),
    "long element": (file([pair("k", 9, struct.pack("<IQQ", 8, 1, BIG))], []), "has a string of 4,611,686"),
    "long array": (file([pair("k", 9, struct.pack("<IQ", 6, BIG) + bytes(40))], []), "claims 4,611,686,018,427"),
    "array past the end": (file([pair("k", 9, struct.pack("<IQ", 4, 11) + bytes(40))], []), "claims 11 values"),
    "deep": (file([pair("k", 9, LIST * 9 + struct.pack("<IQB", 0, 1, 1))], []), "nests arrays deeper than 4"),
    "alignment 0": (file([pair("general.alignment", 4, bytes(4))], []), "has the alignment 0"),
    "alignment 48": (file([pair("general.alignment", 4, b"\x30\0\0\0")], []), "has the alignment 48"),
    "alignment large": (file([pair("general.alignment", 4, b"\0\0\0\x40")], []), "has the alignment 1073741824"),
    "alignment long": (file([pair("general.alignment", 10, bytes(8))], []), "is not uint32"),
    "tensor twice": (file([pair()], [tensor(), tensor(offset=32)], 64), "has the tensor 't' twice"),
    "long name": (file([pair()], [tensor("n" * 64)], 64), "a tensor's name of 64 bytes; allowed are 1 to 63"),
    "zero in a name": (file([pair()], [tensor("a\0b")], 64), "has a zero byte in a tensor's name"),
    "no dimensions": (file([pair()], [tensor(shape=())], 64), "gives tensor 't' 0 dimensions, not 1 to 4"),
    "five dimensions": (file([pair()], [tensor(shape=(1, 1, 1, 1, 1))], 64), "gives tensor 't' 5 dimensions"),
    "empty dimension": (file([pair()], [tensor(shape=(4, 0))], 64), r"the impossible shape \(4, 0\)"),
    "overflow": (file([pair()], [tensor(shape=(1 << 32, 1 << 32, 4))], 64), "the impossible shape"),
    "negative": (file([pair()], [tensor(shape=((1 << 64) - 4,))], 64), "the impossible shape"),
    "unknown type": (file([pair()], [tensor(kind=4)], 64), "gives tensor 't' the unknown type 4"),
    "ragged row": (file([pair()], [tensor(shape=(48, 2), kind=8)], 128), "rows of 48, no multiple of Q8_0's 32"),
    "misaligned": (file([pair()], [tensor(offset=8)], 64), "puts tensor 't' at 8 where 0 is its place"),
    "overlapping": (file([pair()], [tensor("a"), tensor("b", offset=0)], 64), "puts tensor 'b' at 0 where 32 is"),
    "gap": (file([pair()], [tensor("a"), tensor("b", offset=64)], 96), "puts tensor 'b' at 64 where 32 is"),
    "out of the file": (file([pair()], [tensor(shape=(1 << 40,))], 64), "ends inside tensor 't'"),
    "cut": (file([pair()], [tensor()], 15), "ends inside tensor 't'"),
    "offset out of the file": (file([pair()], [tensor(offset=BIG)], 64), "puts tensor 't' at 4,611,686"),
    "more behind": (file([pair()], [tensor()], 33), "continues after its last tensor"),
    "more behind nothing": (file([pair()], [], 32), "continues after its last tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
@pytest.mark.parametrize("values", [True, False])
def test_what_is_wrong_is_said(name: str, values: bool, tmp_path: Path) -> None:
    if name in ("truths", "element not UTF-8") and not values:
        pytest.skip("not looked at without values")
    data, words = SPOILT[name]
    with pytest.raises(ModelError, match=words) as raised:
        read(data, tmp_path, values=values)
    assert re.fullmatch(rf"{re.escape(str(tmp_path))}/m\.gguf byte [\d,]+", raised.value.where.replace("\\", "/"))
    assert raised.value.next


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nothing\.gguf: cannot be read: No such file"):
        read_header(tmp_path / "nothing.gguf")
    with pytest.raises(ModelError, match="cannot be read"):
        read_header(tmp_path)


@pytest.mark.parametrize("limit", ["MAX_HEADER", "MAX_VALUES", "MAX_STRING", "MAX_PAIRS", "MAX_TENSORS"])
def test_limits_hold(limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sound(tmp_path / "m.gguf")
    monkeypatch.setattr(gguf_header, limit, 2)
    with pytest.raises(ModelError, match=r"more than|allowed"):
        read_header(path)


def test_claims_cost_no_memory(tmp_path: Path) -> None:
    """Files that claim exabytes are refused in the memory of their own size."""
    tracemalloc.start()
    try:
        for data, _ in SPOILT.values():
            with pytest.raises(ModelError):
                read(data, tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20


def flips(random: random.Random, data: bytearray) -> None:
    for _ in range(random.randint(1, 4)):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def numbers(random: random.Random, data: bytearray) -> None:
    """Writes a length or count that hurts somewhere in the header."""
    size = random.choice((4, 8))
    value = random.choice((0, 1, 2, 31, 255, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 62, (1 << 64) - 1))
    at = random.randrange(len(data) - size)
    data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")


def cut(random: random.Random, data: bytearray) -> None:
    del data[random.randrange(len(data)) :]


def insert(random: random.Random, data: bytearray) -> None:
    at = random.randrange(len(data))
    data[at:at] = random.randbytes(random.choice((1, 4, 8, 32)))


def remove(random: random.Random, data: bytearray) -> None:
    at = random.randrange(len(data))
    del data[at : at + random.choice((1, 4, 8, 32))]


def repeat(random: random.Random, data: bytearray) -> None:
    begin, size = random.randrange(len(data)), random.choice((8, 20, 60))
    at = random.randrange(len(data))
    data[at:at] = data[begin : begin + size]


@pytest.mark.parametrize("mutate", [flips, numbers, cut, insert, remove, repeat])
def test_no_mutation_gives_anything_but_an_error_or_a_sound_header(
    mutate: Callable[[random.Random, bytearray], None], tmp_path: Path
) -> None:
    """Of each kind of damage 1,500 seeded files."""
    original = sound(tmp_path / "sound.gguf").read_bytes()
    path, dice, refused, slowest = tmp_path / "m.gguf", random.Random(11), 0, 0.0
    for _ in range(1500):
        data = bytearray(original)
        mutate(dice, data)
        path.write_bytes(data)
        began = time.process_time()
        try:
            header = read_header(path, values=dice.random() < 0.8)
        except ModelError as error:
            assert error.what and error.where and error.next
            refused += 1
        else:
            check(header, len(data))
        slowest = max(slowest, time.process_time() - began)
    assert refused > 300  # damage to weights and to plain values cannot show
    assert slowest < 0.5


def check(header: Header, size: int) -> None:
    """Every tensor lies in the file behind the one before it, and has the bytes of its shape."""
    end = header.data
    for tensor in header.tensors:
        assert tensor.offset >= end
        assert (tensor.offset - header.data) % header.alignment == 0
        _, block, length = BLOCKS[tensor.type]
        assert tensor.bytes * block == math.prod(tensor.shape) * length
        end = tensor.offset + tensor.bytes
    assert end <= size
    assert len({tensor.name for tensor in header.tensors}) == len(header.tensors)
    assert all(0 < begin < end <= header.data for begin, end in header.places.values())
    str(header.metadata).encode()
