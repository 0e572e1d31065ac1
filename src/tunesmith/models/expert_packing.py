"""Quantizes experts to NF4 while transformers loads them, so that at most one layer's experts are in 16 bits.

transformers 5 stores all experts of a layer in one 3-D parameter, which bitsandbytes leaves in 16 bits. Here each
expert's matrix is quantized as bitsandbytes quantizes a linear layer (Dettmers et al. 2023, arXiv:2305.14314).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from tunesmith.errors import ModelError
from tunesmith.models.weights import Weights, read_config, tensor_headers

NF4_BLOCK = 64  # elements per scale
NF4_NESTED = 256  # scales per second-level scale (double quantization)
QUANTIZER = "tunesmith_nf4"


def expert_parameters(module: nn.Module) -> list[str]:
    """Returns the names of a module's expert parameters, in registration order; empty for other modules."""
    if "Experts" not in type(module).__name__:
        return []
    return [name for name, value in module.named_parameters(recurse=False) if value.dim() == 3]


MXFP4_BLOCKS, MXFP4_SCALES = "_blocks", "_scales"  # suffixes of an MXFP4 tensor's 4-bit codes and 8-bit exponents


def loading_options(weights: Weights, config: Any, bits: int, dtype: torch.dtype, *, skip: list[str]) -> dict[str, Any]:
    """Returns options of `from_pretrained`: with 4 `bits`, NF4 except for the layers `skip`.

    MXFP4 experts (gpt-oss) are dequantized one parameter at a time; with 4 `bits` they are then packed in NF4. Raises
    ModelError for experts quantized separately, as transformers 4 did, which transformers 5 cannot stack.
    """
    from transformers import Mxfp4Config

    stored = read_config(weights.folder, weights.name).get("quantization_config") or {}
    if stored and any(".experts." in name and name.endswith(".absmax") for name in tensor_headers(weights.folder)):
        raise ModelError(
            "the files hold each expert separately in 4 bits, which transformers 5 cannot read", where=weights.name,
            next="Set base.model to the 16-bit model; base.bits 4 quantizes it while loading",
        )  # fmt: skip
    mxfp4 = stored.get("quant_method") == "mxfp4"
    if stored and not (mxfp4 and bits == 4):
        config.quantization_config = stored
    if bits == 4:
        packing = nf4_config(dtype)
        packing.llm_int8_skip_modules = skip
        return {"config": config, "quantization_config": packing}
    return {"config": config, **({"quantization_config": Mxfp4Config(dequantize=True)} if mxfp4 else {})}


def merge_mxfp4_names(names: Iterable[str]) -> list[str]:
    """Returns the tensor names, with one name for the codes and exponents of each MXFP4 tensor."""
    all_names = set(names)
    halved = {name.removesuffix(MXFP4_BLOCKS) for name in all_names if name.endswith(MXFP4_BLOCKS)}
    halved = {name for name in halved if name + MXFP4_SCALES in all_names}
    return sorted((all_names - {name + end for name in halved for end in (MXFP4_BLOCKS, MXFP4_SCALES)}) | halved)


def from_mxfp4(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Dequantizes gpt-oss' MXFP4 codes and exponents to experts x in x out."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    halves = blocks.to(torch.uint8), scales.to(torch.uint8)
    return cast(Tensor, convert_moe_packed_tensors(*halves, dtype=dtype))


def nf4_config(dtype: torch.dtype) -> Any:
    """Returns a transformers config that quantizes linear layers and experts to NF4 while loading."""
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    _register_quantizer()
    config.quant_method = QUANTIZER
    return config


@functools.cache
def _register_quantizer() -> None:
    """Registers QUANTIZER with transformers: bitsandbytes' quantizer that packs experts as well."""
    from transformers.core_model_loading import ConversionOps, WeightConverter
    from transformers.quantizers.auto import register_quantizer
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

    class _Pack(ConversionOps):  # type: ignore[misc]
        def __init__(self, usual: Any) -> None:
            self.usual = usual

        def convert(self, input_dict: dict[str, Any], model: Any = None, **more: Any) -> dict[str, Any]:
            packed = {}
            for name in list(input_dict):
                if _is_expert(model, name):
                    value = input_dict.pop(name)
                    packed[name] = pack_parameter(value[0] if isinstance(value, list) else value)
            return {**packed, **(self.usual.convert(input_dict, model=model, **more) if input_dict else {})}

    class _FromMxfp4(ConversionOps):  # type: ignore[misc]
        def convert(self, input_dict: dict[str, Any], full_layer_name: str = "", **more: Any) -> dict[str, Any]:
            halves = {name: value[0] if isinstance(value, list) else value for name, value in input_dict.items()}
            blocks, scales = (
                next(v for n, v in halves.items() if n.endswith(end)) for end in (MXFP4_BLOCKS, MXFP4_SCALES)
            )
            dtype = blocks.dtype if blocks.dtype.is_floating_point else torch.bfloat16  # the loader casts codes as well
            return {full_layer_name: from_mxfp4(blocks, scales, dtype)}

    @register_quantizer(QUANTIZER)
    class _Quantizer(Bnb4BitHfQuantizer):  # type: ignore[misc]
        def param_needs_quantization(self, model: Any, param_name: str, **more: Any) -> bool:
            usual = super().param_needs_quantization(model, param_name, **more)
            return usual or _is_expert(model, param_name)

        def get_quantize_ops(self) -> Any:
            return _Pack(super().get_quantize_ops())

        def get_weight_conversions(self) -> list[Any]:
            from_mxfp4_ops = [
                WeightConverter([part + MXFP4_BLOCKS, part + MXFP4_SCALES], part, [_FromMxfp4()])
                for part in ("gate_up_proj", "down_proj")
            ]
            return [*super().get_weight_conversions(), *from_mxfp4_ops]


def _is_expert(model: nn.Module, name: str) -> bool:
    module, _, part = name.rpartition(".")
    return part in expert_parameters(model.get_submodule(module))


class PackedExperts(NamedTuple):
    """Experts in NF4: codes (experts x bytes), 8-bit scales, their 32-bit scales and offsets, and code books."""

    codes: Tensor
    scales: Tensor
    nested: Tensor
    offsets: Tensor
    book: Tensor
    scale_book: Tensor
    dtype: torch.dtype


def pack_experts(weight: Tensor) -> PackedExperts:
    """Quantizes each matrix of `weight` (experts x rows x columns) as bitsandbytes quantizes a linear layer."""
    from bitsandbytes.functional import quantize_4bit

    padding = -math.prod(weight.shape[1:]) % NF4_BLOCK
    parts = []
    for matrix in weight.detach():
        flat = nn.functional.pad(matrix.reshape(-1), (0, padding)) if padding else matrix.contiguous()
        codes, state = quantize_4bit(flat, blocksize=NF4_BLOCK, quant_type="nf4", compress_statistics=True)
        parts.append((codes.reshape(-1), state.absmax, state.state2.absmax, state.offset.reshape(())))
    codes, scales, nested, offsets = (torch.stack(part) for part in zip(*parts, strict=True))
    return PackedExperts(
        codes, scales, nested, offsets.float(), state.code.float(), state.state2.code.float(), weight.dtype
    )


def unpack_experts(packed: PackedExperts, shape: Sequence[int]) -> Tensor:
    """Dequantizes to `shape` (experts x rows x columns), in the dtype before packing."""
    from bitsandbytes.functional import QuantState, dequantize_4bit

    nested = packed.nested.repeat_interleave(NF4_NESTED, dim=1)[:, : packed.scales.shape[1]]
    scales = packed.scale_book[packed.scales.int()] * nested + packed.offsets[:, None]
    size = packed.scales.shape[1] * NF4_BLOCK
    state = QuantState(
        absmax=scales.reshape(-1), shape=torch.Size((len(scales), size)), dtype=packed.dtype, blocksize=NF4_BLOCK,
        code=packed.book, quant_type="nf4",
    )  # fmt: skip
    flat = cast(Tensor, dequantize_4bit(packed.codes.reshape(-1, 1), state))
    return flat.view(len(scales), size)[:, : math.prod(shape[1:])].reshape(tuple(shape))


def pack_parameter(weight: Tensor) -> nn.Parameter:
    """Returns the codes as a parameter with the quantization state as attribute, as bitsandbytes does."""
    packed = pack_experts(weight)
    parameter = nn.Parameter(packed.codes, requires_grad=False)
    parameter.experts = packed, tuple(weight.shape)  # type: ignore[attr-defined]
    return parameter


def packed_parameters(module: nn.Module) -> dict[str, tuple[PackedExperts, tuple[int, ...]]]:
    """Returns the module's parameters that were packed while loading, and their shapes, by name."""
    return {name: value.experts for name, value in module.named_parameters(recurse=False) if hasattr(value, "experts")}
