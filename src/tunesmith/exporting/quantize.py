"""Quantizes a GGUF file in 16 or 32 bits to smaller types, with the same output as llama.cpp's quantizer.

The source is read once for all quantization types, 131,072 weights at a time, and each piece is encoded once for each
tensor type. Blocks are independent, so pieces need not end with a row, and memory does not grow with the tensors: a few
MiB per CPU core. Each target is written as `.NAME.part` beside a journal of its finished tensors and renamed when it is
complete. After an interruption, the same call resumes after the last finished tensor.
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
from tunesmith.exporting.quantization_types import QUANTIZATION_TYPES, read_facts, sort_tensors, tensor_types
from tunesmith.models.gguf_header import (
    ARRAY,
    BLOCKS,
    MAGIC,
    STRING,
    UINT32,
    Header,
    TensorInfo,
    pad_to_alignment,
    read_header,
    tensor_bytes,
)
from tunesmith.runs.run import hash_bytes, sync_folder, translate_disk_errors, write_atomic

_Result = TypeVar("_Result")
_Bytes: TypeAlias = NDArray[np.uint8]

PIECE = 1 << 17  # weights, whole blocks of any type: some milliseconds of work, 0.5 MiB as float32
WORKERS = min(os.cpu_count() or 1, 16)  # each holds about 6 MiB of pieces; no disk keeps up with more than 16
SPARE = 16 << 20  # bytes of disk to leave free
FLOAT_TYPES = ("F32", "F16", "BF16")  # the source's tensors must have one of these
INT32, BOOL = 5, 7  # value types of the format that the header's reader does not name
QUANTIZATION_VERSION = 2  # of llama.cpp's block formats: general.quantization_version
_SPLIT = ("split.no", "split.count", "split.tensors.count")  # keys of files in parts; targets are single files
_SCALES = {  # byte offsets of a block's float16 numbers, which must all be finite, as llama.cpp checks
    "Q8_0": (0,), "Q5_0": (0,), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip


@dataclass(frozen=True)
class QuantizedFile:
    """A finished file: its size in bytes, its SHA-256, and the number of tensors of each type."""

    path: Path
    bytes: int
    sha256: str
    types: Mapping[str, int]


@dataclass(frozen=True)
class _FilePlan:
    """The layout of a target: the bytes before its weights, and each tensor's position, in file order."""

    quantization_type: str
    path: Path
    head: bytes
    tensors: tuple[TensorInfo, ...]
    alignment: int
    size: int


def quantize(
    source: Path,
    targets: Mapping[str, Path],
    on_progress: Callable[[int, int], None] = lambda done, of: None,
    *,
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, QuantizedFile]:
    """Quantizes `source` (weights in F32, F16 or BF16) to each of `targets` (a key of QUANTIZATION_TYPES -> a file).

    `metadata` replaces keys of the source (see `encode_pair`); None removes a key. `on_progress` receives the source's
    bytes done and in total. An existing target is replaced when the new file is complete. Raises ModelError for a
    source that cannot be read or encoded, RecipeError for an unknown type, ResourceError if the disk is too small or
    full; finished tensors are kept, and the same call resumes.
    """
    header, stat = read_header(source), source.stat()
    if len({path.resolve() for path in (source, *targets.values())}) <= len(targets):
        raise ModelError("source and targets must be different files", where=str(source), next="Choose other targets")
    plans = [
        _plan(source, header, quantization_type, path, metadata or {}) for quantization_type, path in targets.items()
    ]
    _check_disk_space(plans)
    inputs = [stat.st_size, stat.st_mtime_ns, _hash_start(source, header.data), version("libgguf")]
    with contextlib.ExitStack() as stack:
        parts = [stack.enter_context(_open_part(plan, inputs)) for plan in plans]
        _encode_all(source, sort_tensors(header.tensors), parts, on_progress)
        if (source.stat().st_size, source.stat().st_mtime_ns) != (stat.st_size, stat.st_mtime_ns):
            raise ModelError("changed while it was read", where=str(source), next="Run the same command again")
        for part in parts:  # all before the first is renamed, so that they appear together
            part.flush()
        return {part.plan.quantization_type: part.finish() for part in parts}


def _plan(source: Path, header: Header, quantization_type: str, path: Path, metadata: Mapping[str, Any]) -> _FilePlan:
    model_facts = read_facts(header.metadata, str(source))
    if header.metadata.get("split.count", 0) not in (0, 1):
        raise ModelError("is one of several parts", where=str(source), next="Convert the model to a single file")
    try:
        types = tensor_types(header.tensors, model_facts, quantization_type)
    except ModelError as error:
        raise ModelError(error.what, where=str(source), next=error.next) from error
    tensors, weights_end = [], 0
    for tensor in sort_tensors(header.tensors):
        kind = types[tensor.name]
        if kind != tensor.type and tensor.type not in FLOAT_TYPES:
            problem = f"tensor '{tensor.name}' is {tensor.type} already; quantizing twice loses more precision"
            raise ModelError(problem, where=str(source), next="Use a source file in f16, bf16 or f32")
        size = tensor_bytes(kind, prod(tensor.shape))
        tensors.append(TensorInfo(tensor.name, tensor.shape, kind, weights_end, size))
        weights_end = pad_to_alignment(weights_end + size, header.alignment)
    quantization_pairs = {
        "general.quantization_version": QUANTIZATION_VERSION,
        "general.file_type": QUANTIZATION_TYPES[quantization_type].number,
    }
    head = _head(source, header, {**metadata, **quantization_pairs}, tensors)
    placed = tuple(TensorInfo(t.name, t.shape, t.type, len(head) + t.offset, t.bytes) for t in tensors)
    return _FilePlan(quantization_type, path, head, placed, header.alignment, len(head) + weights_end)


def rewrite_header(path: Path, metadata: Mapping[str, Any]) -> None:
    """Replaces a file by one with the same weights and changed `metadata` (as in `quantize`)."""
    header = read_header(path)
    tensors = [TensorInfo(t.name, t.shape, t.type, t.offset - header.data, t.bytes) for t in header.tensors]
    part = _part_path(path)
    with translate_disk_errors(path):
        with path.open("rb") as old, part.open("wb") as new:
            new.write(_head(path, header, metadata, tensors))
            old.seek(header.data)
            shutil.copyfileobj(old, new, 1 << 20)
            new.flush()
            os.fsync(new.fileno())
        part.replace(path)
        sync_folder(path.parent)


def encode_pair(key: str, value: Any) -> bytes:
    """Encodes a key and its value: a string, a boolean, an integer, or a list of integers."""
    if isinstance(value, str):
        return _encode_text(key) + struct.pack("<I", STRING) + _encode_text(value)
    if isinstance(value, bool):
        return _encode_text(key) + struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return _encode_text(key) + struct.pack("<II", UINT32, value)
    return _encode_text(key) + struct.pack(f"<IIQ{len(value)}i", ARRAY, INT32, len(value), *value)


def _head(source: Path, header: Header, changes: Mapping[str, Any], tensors: Sequence[TensorInfo]) -> bytes:
    """Returns all bytes before the weights: the source's metadata without the keys of `changes`, then `changes`."""
    copied_keys = [key for key in header.places if key not in (*changes, *_SPLIT)]
    new_pairs = [encode_pair(key, value) for key, value in changes.items() if value is not None]
    head = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(copied_keys) + len(new_pairs))]
    with source.open("rb") as file:
        for key in copied_keys:
            begin, end = header.places[key]
            file.seek(begin)
            head.append(file.read(end - begin))
    head += new_pairs
    for tensor in tensors:
        last_axis = max(
            axis for axis, size in enumerate(tensor.shape) if axis == 0 or size > 1
        )  # trailing sizes of 1 are not written
        shape = tensor.shape[: last_axis + 1]
        info = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, BLOCKS[tensor.type][0], tensor.offset)
        head.append(_encode_text(tensor.name) + info)
    data = b"".join(head)
    return data.ljust(pad_to_alignment(len(data), header.alignment), b"\0")


def _encode_text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _check_disk_space(plans: Sequence[_FilePlan]) -> None:
    """Raises ResourceError if a disk has too little space for the bytes that are still to be written to it."""
    missing_bytes: Counter[int] = Counter()
    folders: dict[int, Path] = {}
    for plan in plans:
        with translate_disk_errors(plan.path):
            plan.path.parent.mkdir(parents=True, exist_ok=True)
        device = plan.path.parent.stat().st_dev
        folders[device] = plan.path.parent
        part = _part_path(plan.path)
        missing_bytes[device] += plan.size - min(plan.size, part.stat().st_size if part.exists() else 0)
    for device, folder in folders.items():
        required, free = missing_bytes[device] + SPARE, shutil.disk_usage(folder).free
        if required > free:
            raise ResourceError(
                f"the files need {required / 1e6:,.0f} MB more, and {free / 1e6:,.0f} MB are free",
                where=str(folder),
                next="Free some space, or choose fewer types, and run the same command again",
            )


def _part_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _journal_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.part.jsonl")


def _hash_start(path: Path, size: int) -> str:
    with path.open("rb") as file:
        return hash_bytes(file.read(size))


@contextlib.contextmanager
def _open_part(plan: _FilePlan, inputs: list[Any]) -> Iterator[_PartialFile]:
    """Opens a target's partial file, positioned after the tensors of an interrupted call that are intact."""
    first_line = _json_line({"inputs": inputs, "type": plan.quantization_type, "head": hash_bytes(plan.head)})
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
    with (
        translate_disk_errors(plan.path),
        os.fdopen(os.open(_part_path(plan.path), flags, 0o666), "r+b", buffering=0) as file,
    ):
        part = _PartialFile(plan, file)
        lines = part.verified_lines(first_line)
        file.truncate(part.end if lines else 0)
        file.seek(0, os.SEEK_END)
        if not lines:
            part.write(plan.head)
        write_atomic(_journal_path(plan.path), "".join(lines or [first_line]))
        with _journal_path(plan.path).open("a", encoding="ascii", newline="\n") as part.lines:
            yield part


class _PartialFile:
    """A target that is being written. Its journal has one line with its inputs, then one for each finished tensor."""

    lines: IO[str]

    def __init__(self, plan: _FilePlan, file: IO[bytes]) -> None:
        self.plan, self.file, self.finished = plan, file, 0
        self.file_hash = hashlib.sha256(plan.head)  # of the file so far
        self.tensor_hash = hashlib.sha256()  # of the current tensor

    def verified_lines(self, first_line: str) -> list[str]:
        """Returns the journal's lines that match the plan and the bytes on disk; none if the first does not match."""
        path = _journal_path(self.plan.path)
        lines = path.read_bytes().decode("ascii", "replace").splitlines(keepends=True) if path.exists() else []
        if (
            not lines
            or lines[0] != first_line
            or b"".join(_read_chunks(self.file, len(self.plan.head))) != self.plan.head
        ):
            return []
        for line, tensor in zip(lines[1:], self.plan.tensors, strict=False):
            file_hash, tensor_hash, padding = self.file_hash.copy(), hashlib.sha256(), self.padding(tensor)
            for chunk in _read_chunks(self.file, tensor.bytes):
                file_hash.update(chunk)
                tensor_hash.update(chunk)
            if (
                line != _journal_line(tensor, tensor_hash.hexdigest())
                or b"".join(_read_chunks(self.file, len(padding))) != padding
            ):
                break
            file_hash.update(padding)
            self.file_hash, self.finished = file_hash, self.finished + 1
        return lines[: self.finished + 1]

    @property
    def end(self) -> int:
        """The offset of the next tensor, or the file's size after the last one."""
        tensors = self.plan.tensors
        return tensors[self.finished].offset if self.finished < len(tensors) else self.plan.size

    def padding(self, tensor: TensorInfo) -> bytes:
        """Returns the padding after a tensor."""
        return bytes(pad_to_alignment(tensor.bytes, self.plan.alignment) - tensor.bytes)

    def write(self, data: bytes | memoryview) -> None:
        """Appends all of `data`. Raises ResourceError if the disk is full."""
        remaining = memoryview(data).cast("B")
        with translate_disk_errors(self.plan.path):
            while remaining:
                remaining = remaining[self.file.write(remaining) :]

    def append(self, data: memoryview) -> None:
        """Appends a piece of the current tensor."""
        self.write(data)
        self.file_hash.update(data)
        self.tensor_hash.update(data)

    def finish_tensor(self) -> None:
        """Pads the tensor and adds it to the journal; a resumed call skips it."""
        tensor = self.plan.tensors[self.finished]
        padding = self.padding(tensor)
        self.write(padding)
        self.file_hash.update(padding)
        with translate_disk_errors(self.plan.path):
            self.lines.write(_journal_line(tensor, self.tensor_hash.hexdigest()))
            self.lines.flush()
        self.tensor_hash, self.finished = hashlib.sha256(), self.finished + 1

    def flush(self) -> None:
        """Flushes the file to disk."""
        with translate_disk_errors(self.plan.path):
            os.fsync(self.file.fileno())

    def finish(self) -> QuantizedFile:
        """Renames the partial file to its final name."""
        self.file.close()
        self.lines.close()
        _part_path(self.plan.path).replace(self.plan.path)
        sync_folder(self.plan.path.parent)
        _journal_path(self.plan.path).unlink()
        counts = Counter(tensor.type for tensor in self.plan.tensors)
        return QuantizedFile(self.plan.path, self.plan.size, self.file_hash.hexdigest(), dict(counts))


def _json_line(value: Any) -> str:
    return json.dumps(value) + "\n"


def _journal_line(tensor: TensorInfo, digest: str) -> str:
    return _json_line({"name": tensor.name, "offset": tensor.offset, "bytes": tensor.bytes, "sha256": digest})


def _read_chunks(file: IO[bytes], size: int) -> Iterator[bytes]:
    """Yields `size` bytes of a file, or fewer at its end, 1 MiB at a time."""
    while size and (chunk := file.read(min(size, 1 << 20))):
        size -= len(chunk)
        yield chunk


@dataclass(frozen=True)
class _Piece:
    """Some weights of tensor number `index` as the source stores them, and the types to encode them in."""

    index: int
    tensor: TensorInfo
    data: _Bytes
    types: tuple[str, ...]
    last: bool


def _encode_all(
    source: Path, tensors: Sequence[TensorInfo], parts: Sequence[_PartialFile], on_progress: Callable[[int, int], None]
) -> None:
    """Appends to each part the tensors that it lacks; `tensors` are in the parts' order."""
    bytes_up_to = list(accumulate(tensor.bytes for tensor in tensors))
    with source.open("rb", buffering=0) as file, ThreadPoolExecutor(WORKERS) as pool:
        pieces = _pieces(file, tensors, parts)
        for piece, encoded in _map_ahead(pool, lambda piece: (piece, _encode(piece, source)), pieces):
            unfinished = [part for part in parts if part.finished == piece.index]
            for part in unfinished:
                part.append(encoded[part.plan.tensors[piece.index].type].data)
                if piece.last:
                    part.finish_tensor()
            if piece.last:
                on_progress(bytes_up_to[piece.index], bytes_up_to[-1])


def _pieces(file: IO[bytes], tensors: Sequence[TensorInfo], parts: Sequence[_PartialFile]) -> Iterator[_Piece]:
    """Lazily reads the weights of the source that any part lacks."""
    for index, tensor in enumerate(tensors):
        types = tuple(sorted({part.plan.tensors[index].type for part in parts if part.finished <= index}))
        size, remaining = tensor_bytes(tensor.type, PIECE), tensor.bytes if types else 0
        file.seek(tensor.offset)
        while remaining:
            data = b"".join(_read_chunks(file, min(size, remaining)))
            if len(data) < min(size, remaining):
                raise ModelError("became shorter while it was read", where=str(file.name), next="Convert it again")
            remaining -= len(data)
            yield _Piece(index, tensor, np.frombuffer(data, np.uint8), types, not remaining)


def _map_ahead(
    pool: ThreadPoolExecutor, work: Callable[[_Piece], _Result], pieces: Iterable[_Piece]
) -> Iterator[_Result]:
    """Yields the results of `work` in order, with up to two pieces per worker in flight."""
    futures: deque[Future[_Result]] = deque()
    for piece in pieces:
        futures.append(pool.submit(work, piece))
        if len(futures) > 2 * WORKERS:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


def _encode(piece: _Piece, source: Path) -> dict[str, _Bytes]:
    """Encodes a piece in each of its types. Raises ModelError for values that are infinite or NaN, before or after."""
    tensor = piece.tensor
    if tensor.type not in FLOAT_TYPES:
        return {tensor.type: piece.data}
    numbers = _to_float32(piece.data, tensor.type)
    if not np.isfinite(numbers).all():
        problem = f"tensor '{tensor.name}' holds values that are infinite or NaN"
        raise ModelError(problem, where=str(source), next="Export an earlier checkpoint, or train again")
    encoded_by_type = {kind: piece.data if kind == tensor.type else _encode_as(kind, numbers) for kind in piece.types}
    for kind, encoded in encoded_by_type.items():
        if not _is_finite(encoded, kind):
            problem = f"tensor '{tensor.name}' holds values too large for {kind}"
            raise ModelError(problem, where=str(source), next="Choose the type bf16 or f32")
    return encoded_by_type


def _to_float32(data: _Bytes, kind: str) -> NDArray[np.float32]:
    """Converts the bytes of a floating-point type to float32, exactly."""
    if kind == "BF16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return data.view(np.float16 if kind == "F16" else np.float32).astype(np.float32, copy=False)


def _encode_as(kind: str, numbers: NDArray[np.float32]) -> _Bytes:
    """Encodes float32 values (whole blocks) in another type with libgguf, which releases the GIL."""
    if kind == "F32":
        return numbers.view(np.uint8)
    encoded = np.empty(tensor_bytes(kind, numbers.size), np.uint8)
    libgguf.quantize_rows_into_raw(BLOCKS[kind][0], numbers, encoded, 1, numbers.size, None)
    return encoded


def _is_finite(encoded: _Bytes, kind: str) -> bool:
    """Returns whether the floating-point numbers in encoded blocks are finite."""
    if kind in FLOAT_TYPES:
        return bool(np.isfinite(_to_float32(encoded, kind)).all())
    blocks = encoded.reshape(-1, BLOCKS[kind][2])
    scales = (blocks[:, at : at + 2].copy().view(np.float16) for at in _SCALES[kind])
    return all(bool(np.isfinite(scale).all()) for scale in scales)
