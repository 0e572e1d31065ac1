"""A GGUF file's header, read strictly: what native code may be handed.

The reader is plain Python, so a crafted file can raise an error and nothing worse. It takes what the format's
specification and llama.cpp's own reader allow, and less where real files need less: every length is compared with
what is left of the file before anything is made from it, and every tensor must lie in the file, one behind the other.
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
VERSIONS = (2, 3)  # 1 had 32-bit lengths and is read by nothing any more; 3 is 2 with big endian allowed
ALIGNMENT = 32  # where a file names none
MAX_ALIGNMENT = 1 << 20  # files have 32 or a page; 1 MiB of padding before each tensor is no model's wish
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

BLOCKS = {  # tensor type -> its number, the weights of a block, the block's bytes; those that no file holds left out
    "F32": (0, 1, 4), "F16": (1, 1, 2), "BF16": (30, 1, 2), "F64": (28, 1, 8),
    "I8": (24, 1, 1), "I16": (25, 1, 2), "I32": (26, 1, 4), "I64": (27, 1, 8),
    "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84), "Q3_K": (11, 256, 110), "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210), "IQ1_S": (19, 256, 50), "IQ1_M": (29, 256, 56), "IQ2_XXS": (16, 256, 66),
    "IQ2_XS": (17, 256, 74), "IQ2_S": (22, 256, 82), "IQ3_XXS": (18, 256, 98), "IQ3_S": (21, 256, 110),
    "IQ4_NL": (20, 32, 18), "IQ4_XS": (23, 256, 136), "TQ1_0": (34, 256, 54), "TQ2_0": (35, 256, 66),
    "MXFP4": (39, 32, 17), "NVFP4": (40, 64, 36), "Q1_0": (41, 128, 18), "Q2_0": (42, 64, 18),
}  # fmt: skip
_NAMES = {number: name for name, (number, _, _) in BLOCKS.items()}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: its shape with the fastest axis first, its type (a key of BLOCKS), its place in the file in bytes."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    bytes: int


@dataclass(frozen=True)
class Header:
    """What stands before the weights.

    `metadata` holds numbers, truth values, strings and tuples of these. `places` gives each key the first byte of its
    pair and the one behind it, `data` is where the weights begin; both count from the file's start.
    """

    version: int
    alignment: int
    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]
    places: Mapping[str, tuple[int, int]]
    data: int


def tensor_bytes(kind: str, elements: int) -> int:
    """Bytes of `elements` weights in the type `kind`, a key of BLOCKS; they must fill whole blocks."""
    _, block, size = BLOCKS[kind]
    return elements // block * size


def padded(size: int, alignment: int) -> int:
    """`size` bytes, rounded up to a multiple of `alignment`."""
    return -(-size // alignment) * alignment


def read_header(path: Path, *, values: bool = True) -> Header:
    """The header of a little-endian GGUF file of version 2 or 3.

    Without `values` arrays are checked for their lengths and left out. Raises ModelError for anything that the
    format does not allow, with the byte at which it stands.
    """
    try:
        with path.open("rb") as file:
            return _Reader(path, file, values).header()
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=str(path), next="Check the path") from error


class _Reader:
    """A place in the file, and as much of the file as was needed so far."""

    def __init__(self, path: Path, file: IO[bytes], values: bool) -> None:
        self.path, self.file, self.values = path, file, values
        self.size = os.fstat(file.fileno()).st_size
        self.held = bytearray()
        self.at = 0
        self.elements = 0

    def header(self) -> Header:
        version, tensors, pairs = self.opening()
        metadata, places = self.pairs(pairs)
        alignment = self.alignment(metadata)
        found = [self.tensor() for _ in range(tensors)]
        data = padded(self.at, alignment) if found else self.at
        placed = self.place(found, data, alignment)
        return Header(version, alignment, metadata, placed, places, data)

    def opening(self) -> tuple[int, int, int]:
        if self.size < 24 or self.take(4) != MAGIC:
            self.at = 0
            self.wrong("is no GGUF file")
        version = self.number("I")
        if version & 0xFFFF == 0:
            self.wrong("is a big-endian GGUF file, which is not read", next="Convert it on a little-endian machine")
        if version not in VERSIONS:
            self.wrong(f"is GGUF version {version}; read are {VERSIONS[0]} and {VERSIONS[-1]}")
        tensors, pairs = self.number("Q"), self.number("Q")
        for count, limit, least, what in ((tensors, MAX_TENSORS, 32, "tensors"), (pairs, MAX_PAIRS, 13, "pairs")):
            if count > limit or count * least > self.left:  # the fewest bytes that one takes
                self.wrong(f"claims {count:,} {what}, more than the file holds or the {limit:,} that are allowed")
        return version, tensors, pairs

    def pairs(self, count: int) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
        metadata: dict[str, Any] = {}
        places: dict[str, tuple[int, int]] = {}
        for _ in range(count):
            begin = self.at
            key = self.text(MAX_KEY, "a key")
            if key in places:
                self.wrong(f"has the key '{key[:80]}' twice")
            kind = self.number("I")
            if key == "general.alignment" and kind != UINT32:
                self.wrong("gives its alignment in another type than uint32")
            value = self.value(kind, 0)
            places[key] = begin, self.at
            if self.values or kind != ARRAY:
                metadata[key] = value
        return metadata, places

    def alignment(self, metadata: Mapping[str, Any]) -> int:
        found = int(metadata.get("general.alignment", ALIGNMENT))
        if not 8 <= found <= MAX_ALIGNMENT or found & (found - 1):
            self.wrong(f"has the alignment {found}, which is no power of two from 8 to {MAX_ALIGNMENT:,}")
        return found

    def tensor(self) -> TensorInfo:
        """A tensor as described, its offset still counted from where the weights begin."""
        name = self.text(MAX_NAME, "a tensor's name")
        dims = self.number("I")
        if not 1 <= dims <= MAX_DIMS:
            self.wrong(f"gives tensor '{name}' {dims} dimensions, not 1 to {MAX_DIMS}")
        shape, elements = self.numbers("Q", dims), 1
        for size in shape:
            elements *= size
        if not 0 < elements <= MAX_ELEMENTS:
            self.wrong(f"gives tensor '{name}' the impossible shape {shape}")
        number = self.number("I")
        if number not in _NAMES:
            self.wrong(f"gives tensor '{name}' the unknown type {number}")
        kind = _NAMES[number]
        if shape[0] % BLOCKS[kind][1]:
            self.wrong(f"gives tensor '{name}' rows of {shape[0]}, no multiple of {kind}'s {BLOCKS[kind][1]}")
        return TensorInfo(name, shape, kind, self.number("Q"), tensor_bytes(kind, elements))

    def place(self, tensors: list[TensorInfo], data: int, alignment: int) -> tuple[TensorInfo, ...]:
        """The tensors with their places in the file: one behind the other, padded, up to the file's end."""
        end, names, placed = data, set[str](), []
        for tensor in tensors:
            if tensor.name in names:
                self.wrong(f"has the tensor '{tensor.name}' twice")
            names.add(tensor.name)
            begin = padded(end - data, alignment)
            if tensor.offset != begin:
                self.wrong(f"puts tensor '{tensor.name}' at {tensor.offset:,} where {begin:,} is its place")
            end = data + begin + tensor.bytes
            if end > self.size:
                self.wrong(f"ends inside tensor '{tensor.name}': {self.size:,} bytes of at least {end:,}")
            placed.append(TensorInfo(tensor.name, tensor.shape, tensor.type, data + begin, tensor.bytes))
        if self.size > padded(end, alignment):
            self.wrong(f"goes on after its last tensor: {self.size:,} bytes where {padded(end, alignment):,} are used")
        return tuple(placed)

    def value(self, kind: int, depth: int) -> Any:
        if kind == STRING:
            return self.text(MAX_STRING, "a string", least=0)
        if kind == ARRAY:
            return self.array(depth + 1)
        return self.numbers(self.letter(kind), 1)[0]

    def array(self, depth: int) -> tuple[Any, ...]:
        if depth > MAX_DEPTH:
            self.wrong(f"nests arrays deeper than {MAX_DEPTH}")
        kind, count = self.number("I"), self.number("Q")
        least = {STRING: 8, ARRAY: 12}.get(kind) or struct.calcsize(self.letter(kind))
        self.elements += count
        if count * least > self.left or self.elements > MAX_VALUES:
            self.wrong(f"claims {count:,} values, more than the file holds or the {MAX_VALUES:,} that are allowed")
        if kind == STRING:
            return self.texts(count)
        if kind == ARRAY:
            return tuple(self.array(depth + 1) for _ in range(count))
        if self.values:
            return self.numbers(self.letter(kind), count)
        self.hold(count * least)
        self.at += count * least
        return ()

    def texts(self, count: int) -> tuple[str, ...]:
        """`count` strings. One loop over local names: vocabularies have 262,144 of them and more merges."""
        found, unpack, keep = [], struct.Struct("<Q").unpack_from, self.values
        for _ in range(count):
            begin = self.at + 8
            if begin > len(self.held):
                self.hold(8)
            (length,) = unpack(self.held, self.at)
            if length > MAX_STRING:
                self.wrong(f"has a string of {length:,} bytes; allowed are {MAX_STRING:,}")
            self.at = begin
            if begin + length > len(self.held):
                self.hold(length)
            self.at += length
            if keep:
                found.append(self.decoded(begin, self.at, "a string"))
        return tuple(found)

    def text(self, most: int, what: str, least: int = 1) -> str:
        """A string of `least` to `most` bytes; names (of one byte at least) hold no zero, which native code ends at."""
        length = self.number("Q")
        if not least <= length <= most:
            self.wrong(f"has {what} of {length:,} bytes; allowed are {least} to {most:,}")
        begin = self.at
        self.take(length)
        found = self.decoded(begin, self.at, what)
        if least and "\0" in found:
            self.wrong(f"has a zero byte in {what}")
        return found

    def decoded(self, begin: int, end: int, what: str) -> str:
        try:
            return self.held[begin:end].decode()
        except UnicodeDecodeError:
            self.wrong(f"has {what} that is not UTF-8")

    def letter(self, kind: int) -> str:
        if kind not in NUMBERS:
            self.wrong(f"has a value of the unknown type {kind}")
        return NUMBERS[kind]

    def number(self, letter: str) -> int:
        return int(self.numbers(letter, 1)[0])

    def numbers(self, letter: str, count: int) -> tuple[Any, ...]:
        """`count` numbers; `count` was compared with the file's size before."""
        taken = self.take(struct.calcsize(letter) * count)
        if letter == "?" and count and max(taken) > 1:
            self.wrong("has a truth value that is neither 0 nor 1")
        return struct.unpack(f"<{count}{letter}", taken)

    @property
    def left(self) -> int:
        """Bytes between here and the file's end."""
        return self.size - self.at

    def take(self, count: int) -> bytes:
        self.hold(count)
        self.at += count
        return bytes(self.held[self.at - count : self.at])

    def hold(self, count: int) -> None:
        """Reads on until the next `count` bytes are held."""
        need = self.at + count
        if need <= len(self.held):
            return
        if need > self.size:
            self.wrong(f"ends inside its header: {self.size:,} bytes")
        if need > MAX_HEADER:
            self.wrong(f"has a header of more than {MAX_HEADER:,} bytes")
        wanted = max(need, 2 * len(self.held), 1 << 16)
        self.held += self.file.read(wanted - len(self.held))
        if need > len(self.held):
            self.wrong("became shorter while it was read")

    def wrong(self, what: str, *, next: str = "Fetch or convert the file again, or choose another") -> NoReturn:
        raise ModelError(what, where=f"{self.path} byte {self.at:,}", next=next)
