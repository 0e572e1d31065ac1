"""Small GGUF files made from seeds, the same bytes everywhere, that bring out every rule of the quantizer.

llama.cpp's own quantizer read these very files for tests/exporting/hashes.json; it asks for metadata, not for a model
that works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Shapes = dict[str, tuple[int, ...]]  # as GGUF counts: the row's length first


def weights(name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Bell-shaped float32 weights that hang on the name alone; RandomState's stream is frozen by numpy's promise."""
    count = int(np.prod(shape))
    random = np.random.RandomState(sum(name.encode()) * 7919 + count)
    values: np.ndarray[Any, Any] = (random.random_sample((4, count)).sum(axis=0) - 2) * 0.05
    return values.astype(np.float32)


def odd_blocks(values: np.ndarray[Any, Any], least: float, most: float) -> None:
    """Puts into the first 2,048 weights what encoders trip over, numbers as small as `least` and as large as `most`."""
    values[:256] = 0
    values[256:512] = 1
    values[512:768] = -0.25
    values[768:1024] = 0
    values[800] = most
    values[1024:1280] = np.float32(least) * (np.arange(256) % 5 - 2)
    values[1280:1536:2] = 0
    values[1536:1792] = np.abs(values[1536:1792])
    values[1792:2048] = np.arange(-128, 128) / 128


def write(path: Path, architecture: str, blocks: int, shapes: Shapes, kind: str, **more: Any) -> Path:
    """A GGUF file of `kind` matrices and F32 vectors; `more` are numbers of the architecture's metadata."""
    writer = gguf.GGUFWriter(path, architecture)
    numbers = {"context_length": 64, "embedding_length": 256, "block_count": blocks, "feed_forward_length": 256}
    numbers |= {"attention.head_count": 4, "attention.head_count_kv": 2, **more}
    for key, value in numbers.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{architecture}.{key.replace('__', '.')}", value)
    writer.add_string("general.name", f"a {architecture} for the tests")
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "</s>", "ä"])
    writer.add_file_type(1)
    for name, shape in shapes.items():
        values = weights(name, shape)
        if name == "token_embd.weight":
            odd_blocks(values, *{"F16": (6e-8, 6e4), "BF16": (1e-30, 3e4), "F32": (1e-40, 6e4)}[kind])
        values = values.reshape(shape[::-1])
        if len(shape) == 1 or kind == "F32":
            writer.add_tensor(name, values)
        elif kind == "F16":
            writer.add_tensor(name, values.astype(np.float16))
        else:
            packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.BF16)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def in_blocks(blocks: Iterable[int], parts: Shapes) -> Shapes:
    return {f"blk.{at}.{part}": shape for at in blocks for part, shape in parts.items()}


def dense(width: int, inner: int) -> Shapes:
    """A block's tensors, their rows as long as a model's of that width, but few."""
    return {
        "attn_norm.weight": (width,), "attn_q.weight": (width, 6), "attn_k.weight": (width, 4),
        "attn_v.weight": (width, 4), "attn_output.weight": (width, 8), "ffn_norm.weight": (width,),
        "ffn_gate.weight": (width, 5), "ffn_up.weight": (width, 5), "ffn_down.weight": (inner, 8),
    }  # fmt: skip


RMS = {"attention__layer_norm_rms_epsilon": 1e-5}
NORM = {"attention__layer_norm_epsilon": 1e-5}


def wide(path: Path) -> Path:
    """Blocks of 256 everywhere, a head of its own, an embedding in two pieces, blocks out of order."""
    shapes: Shapes = {"token_embd.weight": (256, 600), "output_norm.weight": (256,)}
    shapes |= in_blocks([10, 11, *range(10)], dense(256, 512)) | {"output.weight": (256, 30)}
    return write(path, "llama", 12, shapes, "F16", **RMS)


def odd(path: Path) -> Path:
    """Rows of whole 32s but not of 256s, the embedding as head, float32."""
    shapes = {"token_embd.weight": (96, 40), "output_norm.weight": (96,), **in_blocks(range(4), dense(96, 160))}
    return write(path, "qwen2", 4, shapes, "F32", embedding_length=96, **RMS)


def bent(path: Path) -> Path:
    """Some rows that nothing fits, and a matrix of one row, which counts as a vector."""
    shapes: Shapes = {"token_embd.weight": (64, 40), **in_blocks(range(2), dense(64, 72)), "blk.1.x.weight": (64, 1)}
    return write(path, "llama", 2, shapes, "F32", embedding_length=64, **RMS)


def experts(path: Path) -> Path:
    """Eight experts, bfloat16."""
    parts = {name: shape for name, shape in dense(256, 256).items() if not name.startswith(("ffn_up", "ffn_gate"))}
    parts = {name: shape for name, shape in parts.items() if not name.startswith("ffn_down")}
    parts |= {"ffn_gate_inp.weight": (256, 8), "ffn_up_exps.weight": (256, 3, 8), "ffn_down_exps.weight": (256, 3, 8)}
    shapes = {"token_embd.weight": (256, 40), "output.weight": (256, 40), **in_blocks(range(9), parts)}
    return write(path, "llama", 9, shapes, "BF16", expert_count=8, expert_used_count=2, **RMS)


def joined(path: Path) -> Path:
    """Queries, keys and values in one, biases, positions."""
    parts = {"attn_norm.weight": (256,), "attn_qkv.weight": (256, 8), "attn_qkv.bias": (768,)}
    parts |= {"attn_output.weight": (256, 8), "ffn_up.weight": (256, 8), "ffn_down.weight": (512, 8)}
    shapes: Shapes = {"token_embd.weight": (256, 40), "position_embd.weight": (256, 8), **in_blocks(range(8), parts)}
    return write(path, "gpt2", 8, shapes, "F16", **NORM)


def falcon(path: Path) -> Path:
    """The family with rules of its own."""
    parts: Shapes = {"attn_qkv.weight": (256, 8), "attn_output.weight": (256, 8), "ffn_down.weight": (256, 8)}
    shapes: Shapes = {"token_embd.weight": (256, 40), "output.weight": (256, 40), **in_blocks(range(16), parts)}
    return write(path, "falcon", 16, shapes, "F16", **NORM)


def seventy(path: Path) -> Path:
    """As many blocks as a 70B, with values only."""
    shapes = {"token_embd.weight": (256, 40), **in_blocks(range(80), {"attn_v.weight": (256, 2)})}
    return write(path, "llama", 80, shapes, "F16", **RMS)


# The tests' tiny models, their tensors as llama.cpp's converter names and joins them; mistral's are llama's.
TINY: Shapes = {
    "attn_norm.weight": (64,), "attn_q.weight": (64, 64), "attn_k.weight": (64, 32), "attn_v.weight": (64, 32),
    "attn_output.weight": (64, 64), "ffn_norm.weight": (64,), "ffn_gate.weight": (64, 128),
    "ffn_up.weight": (64, 128), "ffn_down.weight": (128, 64),
}  # fmt: skip
FAMILIES: dict[str, tuple[Shapes, dict[str, Any]]] = {
    "llama": (TINY, RMS),
    "qwen2": (TINY | {"attn_q.bias": (64,), "attn_k.bias": (32,), "attn_v.bias": (32,)}, RMS),
    "qwen3": (TINY | {"attn_q_norm.weight": (16,), "attn_k_norm.weight": (16,)}, RMS),
    "gemma": (TINY, RMS),
    "gemma2": (
        TINY | {"post_attention_norm.weight": (64,), "post_ffw_norm.weight": (64,)},
        RMS | {"attention__sliding_window": 256, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "phi3": (
        {name: TINY[name] for name in ("attn_norm.weight", "attn_output.weight", "ffn_norm.weight", "ffn_down.weight")}
        | {"attn_qkv.weight": (64, 128), "ffn_up.weight": (64, 256)},
        RMS | {"rope__dimension_count": 16, "rope__scaling__original_context_length": 64},
    ),
    "gpt2": (
        {name: TINY[name] for name in ("attn_norm.weight", "attn_output.weight", "ffn_norm.weight")}
        | {"attn_qkv.weight": (64, 192), "ffn_up.weight": (64, 256), "ffn_down.weight": (256, 64)}
        | {"attn_qkv.bias": (192,), "attn_output.bias": (64,), "ffn_up.bias": (256,), "ffn_down.bias": (64,)},
        NORM,
    ),
}


def tiny(path: Path, architecture: str) -> Path:
    """One of the tests' tiny models."""
    parts, more = FAMILIES[architecture]
    shapes: Shapes = {"token_embd.weight": (64, 261), "output_norm.weight": (64,), **in_blocks(range(2), parts)}
    if architecture == "gpt2":
        shapes["position_embd.weight"] = (64, 512)
    return write(path, architecture, 2, shapes, "F16", embedding_length=64, **more)


SOURCES: dict[str, Callable[[Path], Path]] = {
    **{source.__name__: source for source in (wide, odd, bent, experts, joined, falcon, seventy)},
    **{f"tiny {architecture}": partial(tiny, architecture=architecture) for architecture in FAMILIES},
}
