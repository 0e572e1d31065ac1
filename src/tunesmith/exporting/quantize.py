"""A GGUF file in 16 or 32 bits in, the same model in smaller types out, as llama.cpp's quantiser writes it.

The source is read once for all mixes, 131,072 weights at a time, and each piece is encoded once for each type that any
mix wants of it. Blocks know nothing of each other, so pieces need not end with a row, and memory does not grow with the
tensors: a few MiB for each processor. Each target grows as `.NAME.part` beside a journal of its finished tensors, and
takes its name when it is whole; killed at any moment, the same call goes on behind the last finished tensor.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar

import libgguf
import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import ModelError, ResourceError
from tunesmith.exporting.quantization_types import MIXES, facts, in_order, types
from tunesmith.models.gguf_header import (
    ARRAY,
    BLOCKS,
    MAGIC,
    STRING,
    UINT32,
    Header,
    TensorInfo,
    padded,
    read_header,
    tensor_bytes,
)
from tunesmith.runs.run import hash_bytes, sync_folder, translate_disk_errors, write_atomic

_Result = TypeVar("_Result")
_Bytes: TypeAlias = NDArray[np.uint8]

PIECE = 1 << 17  # weights, whole blocks of any type: some milliseconds of work, 0.5 MiB as float32
WORKERS = min(os.cpu_count() or 1, 16)  # each holds about 6 MiB of pieces; disks are slower than sixteen
SPARE = 16 << 20  # bytes of disk left free beyond the files' own
PLAIN = ("F32", "F16", "BF16")  # types that are read
INT32, BOOL = 5, 7  # value types of the format, beside those of the header's reader
QUANTIZATION_VERSION = 2  # of llama.cpp's block formats, as files carry it
_SPLIT = ("split.no", "split.count", "split.tensors.count")  # of a file in parts, which targets are not
_SCALES = {  # the float16 numbers of a block, by their byte: all must be finite, as llama.cpp checks
    "Q8_0": (0,), "Q5_0": (0,), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip


@dataclass(frozen=True)
class Written:
    """A finished file: its bytes, its SHA-256, and how many tensors have each type."""

    path: Path
    bytes: int
    sha256: str
    types: Mapping[str, int]


@dataclass(frozen=True)
class _Plan:
    """A target as it will be: the bytes before its weights, and each tensor's place in order."""

    mix: str
    path: Path
    head: bytes
    tensors: tuple[TensorInfo, ...]
    alignment: int
    size: int


def quantise(
    source: Path,
    targets: Mapping[str, Path],
    tell: Callable[[int, int], None] = lambda done, of: None,
    *,
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Written]:
    """Writes `source` (weights in F32, F16 or BF16) in each mix of `targets` (a key of MIXES -> a file).

    `metadata` are keys that take the place of the source's (see `pair`), None for one to leave out. `tell` hears how
    many of the source's bytes are done. A file that stands at a target is replaced when the new one is whole. Raises
    ModelError for a source that cannot be read or encoded, RecipeError for an unknown mix, ResourceError when the disk
    is too small or full; what was done is kept, and the same call goes on.
    """
    header, stat = read_header(source), source.stat()
    if len({path.resolve() for path in (source, *targets.values())}) <= len(targets):
        raise ModelError("source and targets must be different files", where=str(source), next="Name other targets")
    plans = [_plan(source, header, mix, path, metadata or {}) for mix, path in targets.items()]
    _check_room(plans)
    made_from = [stat.st_size, stat.st_mtime_ns, _hash_start(source, header.data), version("libgguf")]
    with contextlib.ExitStack() as opened:
        parts = [opened.enter_context(_growing(plan, made_from)) for plan in plans]
        _encode_all(source, in_order(header.tensors), parts, tell)
        if (source.stat().st_size, source.stat().st_mtime_ns) != (stat.st_size, stat.st_mtime_ns):
            raise ModelError("changed while it was read", where=str(source), next="Give the same command again")
        for part in parts:  # all before the first takes its name, so that they appear together
            part.flush()
        return {part.plan.mix: part.finish() for part in parts}


def _plan(source: Path, header: Header, mix: str, path: Path, metadata: Mapping[str, Any]) -> _Plan:
    known = facts(header.metadata, str(source))
    if header.metadata.get("split.count", 0) not in (0, 1):
        raise ModelError("is one of several parts", where=str(source), next="Convert the model into one file")
    try:
        chosen = types(header.tensors, known, mix)
    except ModelError as error:
        raise ModelError(error.what, where=str(source), next=error.next) from error
    tensors, at = [], 0
    for tensor in in_order(header.tensors):
        kind = chosen[tensor.name]
        if kind != tensor.type and tensor.type not in PLAIN:
            what = f"tensor '{tensor.name}' is {tensor.type} already; quantising twice loses more than once"
            raise ModelError(what, where=str(source), next="Begin with a file in f16, bf16 or f32")
        size = tensor_bytes(kind, prod(tensor.shape))
        tensors.append(TensorInfo(tensor.name, tensor.shape, kind, at, size))
        at = padded(at + size, header.alignment)
    new = {"general.quantization_version": QUANTIZATION_VERSION, "general.file_type": MIXES[mix].number}
    head = _head(source, header, {**metadata, **new}, tensors)
    placed = tuple(TensorInfo(t.name, t.shape, t.type, len(head) + t.offset, t.bytes) for t in tensors)
    return _Plan(mix, path, head, placed, header.alignment, len(head) + at)


def rewrite_header(path: Path, metadata: Mapping[str, Any]) -> None:
    """Replaces a file by the same weights under other `metadata` (as `quantise` takes it)."""
    header = read_header(path)
    tensors = [TensorInfo(t.name, t.shape, t.type, t.offset - header.data, t.bytes) for t in header.tensors]
    part = _part(path)
    with translate_disk_errors(path):
        with path.open("rb") as old, part.open("wb") as new:
            new.write(_head(path, header, metadata, tensors))
            old.seek(header.data)
            shutil.copyfileobj(old, new, 1 << 20)
            new.flush()
            os.fsync(new.fileno())
        part.replace(path)
        sync_folder(path.parent)


def pair(key: str, value: Any) -> bytes:
    """A key and its value as a file holds them: text, a truth value, a whole number, or a list of whole numbers."""
    if isinstance(value, str):
        return _text(key) + struct.pack("<I", STRING) + _text(value)
    if isinstance(value, bool):
        return _text(key) + struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return _text(key) + struct.pack("<II", UINT32, value)
    return _text(key) + struct.pack(f"<IIQ{len(value)}i", ARRAY, INT32, len(value), *value)


def _head(source: Path, header: Header, new: Mapping[str, Any], tensors: Sequence[TensorInfo]) -> bytes:
    """All bytes before the weights: the source's metadata but for the keys of `new`, which stand last."""
    kept = [key for key in header.places if key not in (*new, *_SPLIT)]
    written = [pair(key, value) for key, value in new.items() if value is not None]
    head = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(kept) + len(written))]
    with source.open("rb") as file:
        for key in kept:
            begin, end = header.places[key]
            file.seek(begin)
            head.append(file.read(end - begin))
    head += written
    for tensor in tensors:
        last = max(at for at, size in enumerate(tensor.shape) if at == 0 or size > 1)  # sizes of 1 behind it go unsaid
        shape = tensor.shape[: last + 1]
        described = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, BLOCKS[tensor.type][0], tensor.offset)
        head.append(_text(tensor.name) + described)
    joined = b"".join(head)
    return joined.ljust(padded(len(joined), header.alignment), b"\0")


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _check_room(plans: Sequence[_Plan]) -> None:
    """Raises ResourceError when a disk cannot take what is still to be written to it."""
    wanted: Counter[int] = Counter()
    folders: dict[int, Path] = {}
    for plan in plans:
        with translate_disk_errors(plan.path):
            plan.path.parent.mkdir(parents=True, exist_ok=True)
        device = plan.path.parent.stat().st_dev
        folders[device] = plan.path.parent
        part = _part(plan.path)
        wanted[device] += plan.size - min(plan.size, part.stat().st_size if part.exists() else 0)
    for device, folder in folders.items():
        need, free = wanted[device] + SPARE, shutil.disk_usage(folder).free
        if need > free:
            raise ResourceError(
                f"the files need {need / 1e6:,.0f} MB more, and {free / 1e6:,.0f} MB are free",
                where=str(folder),
                next="Free some space, or ask for fewer types, and give the same command again",
            )


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _journal(path: Path) -> Path:
    return path.with_name(f".{path.name}.part.jsonl")


def _hash_start(path: Path, size: int) -> str:
    with path.open("rb") as file:
        return hash_bytes(file.read(size))


@contextlib.contextmanager
def _growing(plan: _Plan, made_from: list[Any]) -> Iterator[_Part]:
    """A target's unfinished file, behind what an earlier call left there as far as it proves right."""
    first = _line({"made_from": made_from, "mix": plan.mix, "head": hash_bytes(plan.head)})
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
    with (
        translate_disk_errors(plan.path),
        os.fdopen(os.open(_part(plan.path), flags, 0o666), "r+b", buffering=0) as file,
    ):
        part = _Part(plan, file)
        lines = part.proven(first)
        file.truncate(part.end if lines else 0)
        file.seek(0, os.SEEK_END)
        if not lines:
            part.put(plan.head)
        write_atomic(_journal(plan.path), "".join(lines or [first]))
        with _journal(plan.path).open("a", encoding="ascii", newline="\n") as part.lines:
            yield part


class _Part:
    """A target while it grows. Its journal has a line of what it is made from, then one for each finished tensor."""

    lines: IO[str]

    def __init__(self, plan: _Plan, file: IO[bytes]) -> None:
        self.plan, self.file, self.done = plan, file, 0
        self.whole = hashlib.sha256(plan.head)  # of the file so far
        self.hash = hashlib.sha256()  # of the tensor that grows

    def proven(self, first: str) -> list[str]:
        """The journal's lines that agree with the plan and with the bytes on disk; none when the first does not."""
        path = _journal(self.plan.path)
        lines = path.read_bytes().decode("ascii", "replace").splitlines(keepends=True) if path.exists() else []
        if not lines or lines[0] != first or b"".join(_read(self.file, len(self.plan.head))) != self.plan.head:
            return []
        for line, tensor in zip(lines[1:], self.plan.tensors, strict=False):
            whole, found, gap = self.whole.copy(), hashlib.sha256(), self.gap(tensor)
            for chunk in _read(self.file, tensor.bytes):
                whole.update(chunk)
                found.update(chunk)
            if line != _finished(tensor, found.hexdigest()) or b"".join(_read(self.file, len(gap))) != gap:
                break
            whole.update(gap)
            self.whole, self.done = whole, self.done + 1
        return lines[: self.done + 1]

    @property
    def end(self) -> int:
        """Where the next tensor begins, or the file ends."""
        tensors = self.plan.tensors
        return tensors[self.done].offset if self.done < len(tensors) else self.plan.size

    def gap(self, tensor: TensorInfo) -> bytes:
        """The padding behind a tensor."""
        return bytes(padded(tensor.bytes, self.plan.alignment) - tensor.bytes)

    def put(self, data: bytes | memoryview) -> None:
        """Appends all of `data`. Raises ResourceError when the disk is full."""
        left = memoryview(data).cast("B")
        with translate_disk_errors(self.plan.path):
            while left:
                left = left[self.file.write(left) :]

    def grow(self, data: memoryview) -> None:
        """Appends a piece of the tensor that grows."""
        self.put(data)
        self.whole.update(data)
        self.hash.update(data)

    def close_tensor(self) -> None:
        """Pads the tensor and writes its line; from here on it need not be made again."""
        tensor = self.plan.tensors[self.done]
        gap = self.gap(tensor)
        self.put(gap)
        self.whole.update(gap)
        with translate_disk_errors(self.plan.path):
            self.lines.write(_finished(tensor, self.hash.hexdigest()))
            self.lines.flush()
        self.hash, self.done = hashlib.sha256(), self.done + 1

    def flush(self) -> None:
        """Waits until the file is on the disk."""
        with translate_disk_errors(self.plan.path):
            os.fsync(self.file.fileno())

    def finish(self) -> Written:
        """Gives the file its name."""
        self.file.close()
        self.lines.close()
        _part(self.plan.path).replace(self.plan.path)
        sync_folder(self.plan.path.parent)
        _journal(self.plan.path).unlink()
        kinds = Counter(tensor.type for tensor in self.plan.tensors)
        return Written(self.plan.path, self.plan.size, self.whole.hexdigest(), dict(kinds))


def _line(value: Any) -> str:
    return json.dumps(value) + "\n"


def _finished(tensor: TensorInfo, digest: str) -> str:
    return _line({"name": tensor.name, "offset": tensor.offset, "bytes": tensor.bytes, "sha256": digest})


def _read(file: IO[bytes], size: int) -> Iterator[bytes]:
    """`size` bytes of a file, or what is left of it, 1 MiB at a time."""
    while size and (chunk := file.read(min(size, 1 << 20))):
        size -= len(chunk)
        yield chunk


@dataclass(frozen=True)
class _Piece:
    """Some weights of the tensor `at` as they stand in the source, and the types that are wanted of them."""

    at: int
    tensor: TensorInfo
    data: _Bytes
    wanted: tuple[str, ...]
    last: bool


def _encode_all(
    source: Path, tensors: Sequence[TensorInfo], parts: Sequence[_Part], tell: Callable[[int, int], None]
) -> None:
    """Appends to each part what it lacks of `tensors`, which stand in the parts' order."""
    done = list(accumulate(tensor.bytes for tensor in tensors))
    with source.open("rb", buffering=0) as file, ThreadPoolExecutor(WORKERS) as pool:
        pieces = _pieces(file, tensors, parts)
        for piece, encoded in _ahead(pool, lambda piece: (piece, _encoded(piece, source)), pieces):
            growing = [part for part in parts if part.done == piece.at]
            for part in growing:
                part.grow(encoded[part.plan.tensors[piece.at].type].data)
                if piece.last:
                    part.close_tensor()
            if piece.last:
                tell(done[piece.at], done[-1])


def _pieces(file: IO[bytes], tensors: Sequence[TensorInfo], parts: Sequence[_Part]) -> Iterator[_Piece]:
    """What the parts lack of the source, read when asked for."""
    for at, tensor in enumerate(tensors):
        wanted = tuple(sorted({part.plan.tensors[at].type for part in parts if part.done <= at}))
        size, left = tensor_bytes(tensor.type, PIECE), tensor.bytes if wanted else 0
        file.seek(tensor.offset)
        while left:
            data = b"".join(_read(file, min(size, left)))
            if len(data) < min(size, left):
                raise ModelError("became shorter while it was read", where=str(file.name), next="Convert it again")
            left -= len(data)
            yield _Piece(at, tensor, np.frombuffer(data, np.uint8), wanted, not left)


def _ahead(pool: ThreadPoolExecutor, work: Callable[[_Piece], _Result], pieces: Iterable[_Piece]) -> Iterator[_Result]:
    """The results of `work` in order, three pieces for each processor on their way."""
    waiting: deque[Future[_Result]] = deque()
    for piece in pieces:
        waiting.append(pool.submit(work, piece))
        if len(waiting) > 2 * WORKERS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _encoded(piece: _Piece, source: Path) -> dict[str, _Bytes]:
    """A piece's bytes in each wanted type. Raises ModelError for numbers that are infinite or none, before or after."""
    tensor = piece.tensor
    if tensor.type not in PLAIN:
        return {tensor.type: piece.data}
    numbers = _numbers(piece.data, tensor.type)
    if not np.isfinite(numbers).all():
        what = f"tensor '{tensor.name}' holds values that are infinite or no numbers"
        raise ModelError(what, where=str(source), next="Export an adapter from before they arose")
    found = {kind: piece.data if kind == tensor.type else _as(kind, numbers) for kind in piece.wanted}
    for kind, encoded in found.items():
        if not _is_finite(encoded, kind):
            what = f"tensor '{tensor.name}' holds values too large for {kind}"
            raise ModelError(what, where=str(source), next="Choose the mix bf16 or f32")
    return found


def _numbers(data: _Bytes, kind: str) -> NDArray[np.float32]:
    """A plain type's bytes as float32, exactly."""
    if kind == "BF16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return data.view(np.float16 if kind == "F16" else np.float32).astype(np.float32, copy=False)


def _as(kind: str, numbers: NDArray[np.float32]) -> _Bytes:
    """Float32 numbers (whole blocks of them) in another type, by libgguf, which lets other threads run meanwhile."""
    if kind == "F32":
        return numbers.view(np.uint8)
    encoded = np.empty(tensor_bytes(kind, numbers.size), np.uint8)
    libgguf.quantize_rows_into_raw(BLOCKS[kind][0], numbers, encoded, 1, numbers.size, None)
    return encoded


def _is_finite(encoded: _Bytes, kind: str) -> bool:
    """Whether the floating-point numbers in encoded blocks are finite."""
    if kind in PLAIN:
        return bool(np.isfinite(_numbers(encoded, kind)).all())
    blocks = encoded.reshape(-1, BLOCKS[kind][2])
    scales = (blocks[:, at : at + 2].copy().view(np.float16) for at in _SCALES[kind])
    return all(bool(np.isfinite(scale).all()) for scale in scales)
