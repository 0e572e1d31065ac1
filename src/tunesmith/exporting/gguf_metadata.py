"""Metadata of an exported GGUF file: its name, its base, its chat template and its tokenizer settings.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. llama.cpp's converter names a file after its folder,
knows the end-of-turn tokens of only some families, and guesses from tokenizer files whether start and end tokens are
added. Here the training tokenizer decides; if the base was a GGUF file, its own tokenizer keys are copied.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.data.conversation import Turn
from tunesmith.exporting.chat_template import pinned_for_llama_cpp
from tunesmith.exporting.job import Job
from tunesmith.exporting.merge import shipped_template, starts_with_bos
from tunesmith.models.gguf_header import Header
from tunesmith.models.gguf_tokenizer import CONTROL, STRIPPING, read_header_keys, strips_after_control_tokens
from tunesmith.prompt.tokens import stop_ids

_TYPE_SUFFIX = re.compile(r"[.-](?:I?Q\d\w*|T?Q\d_\d|BF16|F16|F32)$", re.IGNORECASE)
_HUB = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_PHI_3_TOKENS = ("</s>", "<unk>", "<s>", "<|endoftext|>")
_NAMES, _TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"


def gguf_metadata(job: Job, header: Header, *, adapter: bool = True) -> dict[str, Any]:
    """Returns the keys to set, None for a key to remove; `adapter` False is for a file of the base alone."""
    changes = _general(job, adapter=adapter)
    if _NAMES in header.metadata:
        changes |= _base_tokenizer(job, header.metadata)
        changes |= _end_tokens(job, {**header.metadata, **changes})
        changes |= _special_tokens(job, header.metadata)
        changes["general.name"] = _model_name(changes["general.name"], job.template.tokenizer, header.metadata[_NAMES])
        changes["tokenizer.chat_template"] = pinned_for_llama_cpp(shipped_template(job), job.template)
    return changes


def base_name(job: Job) -> tuple[str, str]:
    """Returns the base's name without folders, file type and quantization, and its Hub owner ('' if there is none)."""
    hub_name = job.weights.name.removesuffix("/")
    name = _TYPE_SUFFIX.sub("", Path(hub_name).name.removesuffix(".gguf"))
    parts = Path(hub_name).parts
    local = hub_name.startswith((".", "/", "~")) or job.weights.folder.parts[-len(parts) :] == parts
    return name, hub_name.split("/")[0] if _HUB.fullmatch(hub_name) and not local else ""


def _general(job: Job, *, adapter: bool) -> dict[str, Any]:
    base, owner = base_name(job)
    changes: dict[str, Any] = {
        "general.name": job.name if adapter else base,
        "general.basename": base,
        "general.finetune": job.name if adapter else None,
        "general.version": None,
        "general.organization": None,
        "general.base_model.count": 1,
        "general.base_model.0.name": base,
    }
    if owner:
        changes["general.base_model.0.organization"] = owner
        changes["general.base_model.0.repo_url"] = f"https://huggingface.co/{job.weights.name}"
    return changes


def _base_tokenizer(job: Job, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tokenizer keys of the base's own GGUF file; empty if the base was not a GGUF file."""
    base_keys = read_header_keys(job.weights.folder)
    types, converted_types = list(base_keys.get(_TYPES, ())), list(metadata.get(_TYPES, ()))
    if types:
        base_keys[_TYPES] = types + converted_types[len(types) :]
    return base_keys


def _special_tokens(job: Job, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Makes llama.cpp add the same start token and space prefix as training, and nothing after a prompt.

    A prompt ends where the answer starts, so no end token may follow it.
    """
    tokenizer, adds_bos = job.template.tokenizer, starts_with_bos(job)
    changes: dict[str, Any] = {"tokenizer.ggml.add_bos_token": adds_bos}
    if tokenizer.bos_token_id is not None:
        changes["tokenizer.ggml.bos_token_id"] = tokenizer.bos_token_id
    changes |= dict.fromkeys(("tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_sep_token"), False)
    if metadata.get("tokenizer.ggml.model") == "llama":
        special = job.template.specials.search(job.template.render((Turn("user", "a"),), generate=True))
        before = special[0] if special else ""
        pieces = tokenizer.convert_ids_to_tokens(tokenizer(f"{before}a", add_special_tokens=False)["input_ids"])
        changes["tokenizer.ggml.add_space_prefix"] = pieces[bool(before)].startswith("▁")
    return changes


def _model_name(name: str, tokenizer: Any, tokens: Sequence[str]) -> str:
    """Returns the name with or without `phi-3`, which makes llama.cpp strip whitespace after control tokens.

    For such a name llama.cpp also requires the tokens in `_PHI_3_TOKENS`, and does not load a file without them.
    """
    strips = any(token.rstrip for token in tokenizer.added_tokens_decoder.values() if token.special)
    if strips and {*_PHI_3_TOKENS} <= {*tokens}:
        return name if strips_after_control_tokens(name) else f"{name} ({STRIPPING[0]})"
    return re.sub("phi-?3", "Phi 3", name, flags=re.IGNORECASE)


def _end_tokens(job: Job, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the end tokens, and makes each a control token, which is not shown."""
    stop, *others = stop_ids(job.template)
    names = metadata[_NAMES]
    eos = metadata.get("tokenizer.ggml.eos_token_id", others[0] if others else stop)
    changes: dict[str, Any] = {"tokenizer.ggml.eos_token_id": eos}
    if stop != eos:
        changes["tokenizer.ggml.eot_token_id"] = stop
    if "<|eom_id|>" in names:
        changes["tokenizer.ggml.eom_token_id"] = names.index("<|eom_id|>")
    types = list(metadata.get(_TYPES, ()))
    ends = [token for token in (stop, *others) if token < len(types)]
    if any(types[token] != CONTROL for token in ends):
        for token in ends:
            types[token] = CONTROL
        changes[_TYPES] = types
    return changes
