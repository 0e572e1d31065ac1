"""Reads and validates a GGUF file's header before native code opens the file.

The reader is plain Python, so a crafted file can only raise an error. It accepts what the format's specification and
llama.cpp's own reader allow, with tighter limits where real files need less: every length is compared with the rest of
the file before memory is allocated, and tensors must be inside the file, in order and without gaps or overlaps.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from tunesmith.errors import ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # 1 had 32-bit lengths and is no longer supported anywhere; 3 is 2 with big endian allowed
ALIGNMENT = 32  # default
MAX_ALIGNMENT = 1 << 20  # real files use 32 or the page size
MAX_HEADER = 256 << 20  # the largest vocabularies (262,144 tokens, 515,000 merges) take about 20 MiB
MAX_PAIRS = 1 << 16  # models have about 40, those with a pair per layer a few hundred
MAX_TENSORS = 1 << 17  # 61 layers with 256 unmerged experts of 3 matrices are 47,000
MAX_KEY = (1 << 16) - 1  # bytes; the specification's
MAX_STRING = 16 << 20  # bytes; chat templates have up to 100 KiB
MAX_VALUES = 1 << 23  # elements of all arrays together, each a Python object; large vocabularies have 1.3 million
MAX_DEPTH = 4  # arrays in arrays; no known file has any
MAX_NAME = 63  # bytes of a tensor's name: llama.cpp keeps 64 with the closing zero
MAX_DIMS = 4  # llama.cpp's
MAX_ELEMENTS = (1 << 63) - 1  # native code counts in signed 64 bits

NUMBERS = {  # value type -> its struct letter; 8 is a string, 9 an array
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
STRING, ARRAY, UINT32 = 8, 9, 4

BLOCKS = {  # tensor type -> its number, weights per block, bytes per block; without types that no file contains
    "F32": (0, 1, 4), "F16": (1, 1, 2), "BF16": (30, 1, 2), "F64": (28, 1, 8),
    "I8": (24, 1, 1), "I16": (25, 1, 2), "I32": (26, 1, 4), "I64": (27, 1, 8),
    "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84), "Q3_K": (11, 256, 110), "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210), "IQ1_S": (19, 256, 50), "IQ1_M": (29, 256, 56), "IQ2_XXS": (16, 256, 66),
    "IQ2_XS": (17, 256, 74), "IQ2_S": (22, 256, 82), "IQ3_XXS": (18, 256, 98), "IQ3_S": (21, 256, 110),
    "IQ4_NL": (20, 32, 18), "IQ4_XS": (23, 256, 136), "TQ1_0": (34, 256, 54), "TQ2_0": (35, 256, 66),
    "MXFP4": (39, 32, 17), "NVFP4": (40, 64, 36), "Q1_0": (41, 128, 18), "Q2_0": (42, 64, 18),
}  # fmt: skip
_TYPE_NAMES = {number: name for name, (number, _, _) in BLOCKS.items()}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor: its shape with the fastest axis first, its type (a key of BLOCKS), its offset and size in bytes."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    bytes: int


@dataclass(frozen=True)
class Header:
    """The part of the file before the weights.

    `metadata` holds numbers, booleans, strings and tuples of these. `places` maps each key to the start and end offset
    of its pair; `data` is the offset of the weights. All offsets count from the start of the file.
    """

    version: int
    alignment: int
    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]
    places: Mapping[str, tuple[int, int]]
    data: int


def tensor_bytes(kind: str, elements: int) -> int:
    """Returns the bytes of `elements` weights of type `kind`, a key of BLOCKS; they must fill whole blocks."""
    _, block, size = BLOCKS[kind]
    return elements // block * size


def pad_to_alignment(size: int, alignment: int) -> int:
    """Returns `size` rounded up to a multiple of `alignment`."""
    return -(-size // alignment) * alignment


def read_header(path: Path, *, values: bool = True) -> Header:
    """Reads the header of a little-endian GGUF file of version 2 or 3.

    Without `values`, only the lengths of arrays are checked, and arrays are omitted. Raises ModelError, with the byte
    offset, for anything that the format does not allow.
    """
    try:
        with path.open("rb") as file:
            return _Reader(path, file, values).header()
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=str(path), next="Check the path") from error


class _Reader:
    """A position in the file, and the part of the file that was read so far."""

    def __init__(self, path: Path, file: IO[bytes], values: bool) -> None:
        self.path, self.file, self.values = path, file, values
        self.size = os.fstat(file.fileno()).st_size
        self.buffer = bytearray()
        self.at = 0
        self.elements = 0

    def header(self) -> Header:
        version, tensors, pairs = self.prologue()
        metadata, places = self.pairs(pairs)
        alignment = self.alignment(metadata)
        tensor_infos = [self.tensor() for _ in range(tensors)]
        data = pad_to_alignment(self.at, alignment) if tensor_infos else self.at
        placed = self.locate(tensor_infos, data, alignment)
        return Header(version, alignment, metadata, placed, places, data)

    def prologue(self) -> tuple[int, int, int]:
        if self.size < 24 or self.take(4) != MAGIC:
            self.at = 0
            self.fail("is not a GGUF file")
        version = self.number("I")
        if version & 0xFFFF == 0:
            self.fail("is a big-endian GGUF file, which is not supported", next="Convert it on a little-endian machine")
        if version not in VERSIONS:
            self.fail(f"is GGUF version {version}; supported are {VERSIONS[0]} and {VERSIONS[-1]}")
        tensors, pairs = self.number("Q"), self.number("Q")
        for count, limit, min_bytes, noun in ((tensors, MAX_TENSORS, 32, "tensors"), (pairs, MAX_PAIRS, 13, "pairs")):
            if count > limit or count * min_bytes > self.remaining:  # min_bytes: the smallest size of one
                self.fail(f"claims {count:,} {noun}, more than the file holds or the {limit:,} that are allowed")
        return version, tensors, pairs

    def pairs(self, count: int) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
        metadata: dict[str, Any] = {}
        places: dict[str, tuple[int, int]] = {}
        for _ in range(count):
            begin = self.at
            key = self.text(MAX_KEY, "a key")
            if key in places:
                self.fail(f"has the key '{key[:80]}' twice")
            kind = self.number("I")
            if key == "general.alignment" and kind != UINT32:
                self.fail("has an alignment that is not uint32")
            value = self.value(kind, 0)
            places[key] = begin, self.at
            if self.values or kind != ARRAY:
                metadata[key] = value
        return metadata, places

    def alignment(self, metadata: Mapping[str, Any]) -> int:
        value = int(metadata.get("general.alignment", ALIGNMENT))
        if not 8 <= value <= MAX_ALIGNMENT or value & (value - 1):
            self.fail(f"has the alignment {value}, which is not a power of two from 8 to {MAX_ALIGNMENT:,}")
        return value

    def tensor(self) -> TensorInfo:
        """Reads a tensor's description; its offset counts from the start of the weights."""
        name = self.text(MAX_NAME, "a tensor's name")
        dims = self.number("I")
        if not 1 <= dims <= MAX_DIMS:
            self.fail(f"gives tensor '{name}' {dims} dimensions, not 1 to {MAX_DIMS}")
        shape, elements = self.numbers("Q", dims), 1
        for size in shape:
            elements *= size
        if not 0 < elements <= MAX_ELEMENTS:
            self.fail(f"gives tensor '{name}' the impossible shape {shape}")
        number = self.number("I")
        if number not in _TYPE_NAMES:
            self.fail(f"gives tensor '{name}' the unknown type {number}")
        kind = _TYPE_NAMES[number]
        if shape[0] % BLOCKS[kind][1]:
            self.fail(f"gives tensor '{name}' rows of {shape[0]}, no multiple of {kind}'s {BLOCKS[kind][1]}")
        return TensorInfo(name, shape, kind, self.number("Q"), tensor_bytes(kind, elements))

    def locate(self, tensors: list[TensorInfo], data: int, alignment: int) -> tuple[TensorInfo, ...]:
        """Returns the tensors with offsets from the start of the file; they must be contiguous up to its end."""
        end, names, placed = data, set[str](), []
        for tensor in tensors:
            if tensor.name in names:
                self.fail(f"has the tensor '{tensor.name}' twice")
            names.add(tensor.name)
            begin = pad_to_alignment(end - data, alignment)
            if tensor.offset != begin:
                self.fail(f"puts tensor '{tensor.name}' at {tensor.offset:,} where {begin:,} is its place")
            end = data + begin + tensor.bytes
            if end > self.size:
                self.fail(f"ends inside tensor '{tensor.name}': {self.size:,} bytes of at least {end:,}")
            placed.append(TensorInfo(tensor.name, tensor.shape, tensor.type, data + begin, tensor.bytes))
        if self.size > pad_to_alignment(end, alignment):
            self.fail(
                f"continues after its last tensor: {self.size:,} bytes, "
                f"of which {pad_to_alignment(end, alignment):,} are used"
            )
        return tuple(placed)

    def value(self, kind: int, depth: int) -> Any:
        if kind == STRING:
            return self.text(MAX_STRING, "a string", min_bytes=0)
        if kind == ARRAY:
            return self.array(depth + 1)
        return self.numbers(self.struct_code(kind), 1)[0]

    def array(self, depth: int) -> tuple[Any, ...]:
        if depth > MAX_DEPTH:
            self.fail(f"nests arrays deeper than {MAX_DEPTH}")
        kind, count = self.number("I"), self.number("Q")
        min_bytes = {STRING: 8, ARRAY: 12}.get(kind) or struct.calcsize(self.struct_code(kind))
        self.elements += count
        if count * min_bytes > self.remaining or self.elements > MAX_VALUES:
            self.fail(f"claims {count:,} values, more than the file holds or the {MAX_VALUES:,} that are allowed")
        if kind == STRING:
            return self.texts(count)
        if kind == ARRAY:
            return tuple(self.array(depth + 1) for _ in range(count))
        if self.values:
            return self.numbers(self.struct_code(kind), count)
        self.read_ahead(count * min_bytes)
        self.at += count * min_bytes
        return ()

    def texts(self, count: int) -> tuple[str, ...]:
        """Reads `count` strings in one loop over local variables: vocabularies have 262,144 of them and more merges."""
        strings, unpack, keep_values = [], struct.Struct("<Q").unpack_from, self.values
        for _ in range(count):
            begin = self.at + 8
            if begin > len(self.buffer):
                self.read_ahead(8)
            (length,) = unpack(self.buffer, self.at)
            if length > MAX_STRING:
                self.fail(f"has a string of {length:,} bytes; allowed are {MAX_STRING:,}")
            self.at = begin
            if begin + length > len(self.buffer):
                self.read_ahead(length)
            self.at += length
            if keep_values:
                strings.append(self.decode(begin, self.at, "a string"))
        return tuple(strings)

    def text(self, max_bytes: int, noun: str, min_bytes: int = 1) -> str:
        """Reads a string of `min_bytes` to `max_bytes` bytes; names (`min_bytes` 1) may not contain a zero byte."""
        length = self.number("Q")
        if not min_bytes <= length <= max_bytes:
            self.fail(f"has {noun} of {length:,} bytes; allowed are {min_bytes} to {max_bytes:,}")
        begin = self.at
        self.take(length)
        string = self.decode(begin, self.at, noun)
        if min_bytes and "\0" in string:
            self.fail(f"has a zero byte in {noun}")
        return string

    def decode(self, begin: int, end: int, noun: str) -> str:
        try:
            return self.buffer[begin:end].decode()
        except UnicodeDecodeError:
            self.fail(f"has {noun} that is not UTF-8")

    def struct_code(self, kind: int) -> str:
        if kind not in NUMBERS:
            self.fail(f"has a value of the unknown type {kind}")
        return NUMBERS[kind]

    def number(self, letter: str) -> int:
        return int(self.numbers(letter, 1)[0])

    def numbers(self, letter: str, count: int) -> tuple[Any, ...]:
        """Reads `count` numbers; the caller has compared `count` with the size of the file."""
        data = self.take(struct.calcsize(letter) * count)
        if letter == "?" and count and max(data) > 1:
            self.fail("has a boolean that is neither 0 nor 1")
        return struct.unpack(f"<{count}{letter}", data)

    @property
    def remaining(self) -> int:
        """The number of bytes up to the end of the file."""
        return self.size - self.at

    def take(self, count: int) -> bytes:
        self.read_ahead(count)
        self.at += count
        return bytes(self.buffer[self.at - count : self.at])

    def read_ahead(self, count: int) -> None:
        """Reads until the buffer contains the next `count` bytes."""
        end = self.at + count
        if end <= len(self.buffer):
            return
        if end > self.size:
            self.fail(f"ends inside its header: {self.size:,} bytes")
        if end > MAX_HEADER:
            self.fail(f"has a header of more than {MAX_HEADER:,} bytes")
        target = max(end, 2 * len(self.buffer), 1 << 16)
        self.buffer += self.file.read(target - len(self.buffer))
        if end > len(self.buffer):
            self.fail("became shorter while it was read")

    def fail(self, problem: str, *, next: str = "Download or convert the file again, or choose another") -> NoReturn:
        raise ModelError(problem, where=f"{self.path} byte {self.at:,}", next=next)
