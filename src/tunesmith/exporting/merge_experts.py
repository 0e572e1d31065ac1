"""Merges updates into experts, which it fuses as transformers does and then splits into the base's tensors.

Files hold experts separately (`experts.0.gate_proj.weight`) or stacked; transformers' conversion mapping describes how
they become the 3-D parameters that were trained. Where files hold them separately, one expert is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import ModelError
from tunesmith.models.expert_packing import MXFP4_BLOCKS, MXFP4_SCALES, expert_parameters, pack_experts, unpack_experts
from tunesmith.models.experts import ExpertShape, expert_shapes


@dataclass(frozen=True)
class ExpertUpdate:
    """The LoRA update of one expert parameter: PEFT's A (experts·r x in) and B (out x r·experts), and their scale."""

    a: Tensor
    b: Tensor
    scale: float

    def of(self, experts: slice, shape: ExpertShape, *, transposed: bool) -> Tensor:
        """Returns s B A of the given experts, stacked, in the parameter's layout."""
        rank = len(self.a) // shape.experts
        a = self.a.view(shape.experts, rank, -1)[experts]
        b = self.b.view(len(self.b), rank, shape.experts).permute(2, 0, 1)[experts]
        update = torch.bmm(b, a) * self.scale
        return update.transpose(1, 2) if transposed else update


@dataclass
class _FusedExperts:
    """One expert parameter: its shape, and the file tensors that it consists of, by pattern, in order."""

    name: str
    shape: ExpertShape
    transposed: bool
    converter: Any = None
    sources: dict[str, list[str]] = field(default_factory=dict)

    @property
    def apart(self) -> bool:
        """Whether the files hold each expert separately."""
        return self.converter is not None and all(len(names) == self.shape.experts for names in self.sources.values())


class ExpertTensors:
    """The file tensors that belong to experts, and their merged values."""

    def __init__(
        self,
        network: nn.Module,
        names: Iterable[str],
        read: Callable[[str], Tensor],
        packed_from: torch.dtype | None,
    ) -> None:
        """Assigns the file tensors `names`, which `read` loads, to the experts of `network` on the meta device.

        `packed_from` is the dtype that training quantized to NF4 from; None merges into the original weights.
        """
        self.network, self.read, self.packed_from = network, read, packed_from
        self.updates: dict[str, ExpertUpdate] = {}
        self._fused: dict[str, _FusedExperts] = {}
        self._owner: dict[str, tuple[_FusedExperts, str]] = {}
        shapes = expert_shapes(network)
        if shapes:
            self._assign(shapes, names)
        self._piece = lru_cache(2)(self._converted)

    def _assign(self, shapes: Mapping[str, ExpertShape], names: Iterable[str]) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        network: Any = self.network
        mapping = get_model_conversion_mapping(network)
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
        state, prefix = network.state_dict(), network.base_model_prefix
        for name in sorted(names, key=dot_natural_key):
            target, pattern = rename_source_key(name, renamings, converters, prefix, state)
            if target not in shapes:
                continue
            module = network.get_submodule(target.rpartition(".")[0])
            new = _FusedExperts(target, shapes[target], bool(getattr(module, "is_transposed", False)))
            fused = self._fused.setdefault(target, new)
            fused.converter = by_pattern[pattern] if pattern else None
            fused.sources.setdefault(pattern or "", []).append(name)
            self._owner[name] = fused, pattern or ""

    def take(self, updates: Mapping[str, ExpertUpdate]) -> None:
        """Sets the updates, by the name of the expert parameter."""
        self.updates = dict(updates)

    def __contains__(self, name: str) -> bool:
        """Returns whether the file tensor `name` belongs to experts."""
        return name in self._owner

    def merged(self, name: str) -> Tensor:
        """Returns the file tensor `name` with its update added, in float32."""
        fused, pattern = self._owner[name]
        if fused.converter is None:
            return self._updated(fused, self.read(name), slice(None))
        expert = fused.sources[pattern].index(name) if fused.apart else None
        pieces: dict[str, list[Tensor]] = self._piece(fused.name, expert)
        return pieces[pattern][0 if fused.apart else fused.sources[pattern].index(name)]

    def _converted(self, parameter: str, expert: int | None) -> dict[str, list[Tensor]]:
        """Returns the merged tensors of one expert, or of all, by pattern."""
        fused = self._fused[parameter]
        forward = deepcopy(fused.converter)
        for pattern, names in fused.sources.items():
            for name in names if expert is None else [names[expert]]:
                forward.add_tensor(parameter, name, pattern, self.read(name))
        network: Any = self.network
        (stacked,) = forward.convert(parameter, model=network, config=network.config).values()
        stacked = stacked[0] if isinstance(stacked, list) else stacked
        experts = slice(None) if expert is None else slice(expert, expert + 1)
        updated = self._updated(fused, stacked, experts)
        back = deepcopy(fused.converter).reverse_transform()
        key, pattern = back.rename_source_key(parameter)
        back.add_tensor(key, parameter, pattern, updated)
        split = back.convert(key, model=network, config=network.config)
        tensors = [value[0] if isinstance(value, list) else value for value in split.values()]
        count = len(tensors) // len(fused.sources)
        pieces_by_pattern: dict[str, list[Tensor]] = {pattern: [] for pattern in fused.sources}
        for name, tensor in zip(split, tensors, strict=True):
            pieces_by_pattern[self._pattern(fused, name)].append(tensor)
        if any(len(pieces) != count for pieces in pieces_by_pattern.values()):
            raise ModelError(f"transformers cannot split '{parameter}' into the base's tensors", where="export.files")
        return pieces_by_pattern

    def _pattern(self, fused: _FusedExperts, name: str) -> str:
        for pattern in fused.sources:
            if name.endswith(pattern.rpartition("*")[2]):
                return pattern
        return next(iter(fused.sources))

    def _updated(self, fused: _FusedExperts, stacked: Tensor, experts: slice) -> Tensor:
        if self.packed_from is not None:
            weights = stacked.to(self.packed_from)
            stacked = unpack_experts(pack_experts(weights), weights.shape)
        stacked = stacked.float()
        update = self.updates.get(fused.name)
        if update is None:
            return stacked
        return stacked + update.of(experts, fused.shape, transposed=fused.transposed)


def dequantized_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces the codes and exponents of each MXFP4 tensor by the header of the dequantized bfloat16 tensor.

    `headers` and the result map a tensor's name to its file, shape and dtype.
    """
    plain = {}
    for name, (path, shape, kind) in headers.items():
        base = name.removesuffix(MXFP4_BLOCKS)
        if base != name and base + MXFP4_SCALES in headers:
            experts, outputs, blocks, size = shape
            plain[base] = path, (experts, 2 * blocks * size, outputs), "BF16"
        elif name.removesuffix(MXFP4_SCALES) + MXFP4_BLOCKS not in headers:
            plain[name] = path, shape, kind
    return plain


def expert_updates(
    network: nn.Module, targets: Iterable[str], updates: Mapping[str, ExpertUpdate]
) -> tuple[dict[str, ExpertUpdate], set[str]]:
    """Returns the updates by expert parameter, and the names of the PEFT modules that held them.

    PEFT nests the wrappers of one module's parameters, the last parameter's outermost. `targets` are the adapter's
    target_parameters.
    """
    tails = tuple(f".{target}" for target in targets)
    updates_by_parameter, wrapper_names = {}, set[str]()
    for name, module in network.named_modules():
        parts = [part for part in expert_parameters(module) if f"{name}.{part}".endswith(tails)]
        for depth, part in zip(reversed(range(len(parts))), parts, strict=True):
            wrapper = name + ".base_layer" * depth
            if wrapper in updates:
                updates_by_parameter[f"{name}.{part}"] = updates[wrapper]
                wrapper_names.add(wrapper)
    return updates_by_parameter, wrapper_names
