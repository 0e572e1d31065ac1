"""What a GGUF file says besides its weights: its name, its base, its chat template, and the tokens that end a reply.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. llama.cpp's converter names a file after its folder and
knows the end-of-turn tokens of some families only, so these keys are written here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.exporting.chat_template import pinned_for_llama_cpp
from tunesmith.exporting.job import Job
from tunesmith.exporting.merge import shipped_template
from tunesmith.models.gguf_header import Header
from tunesmith.models.gguf_tokenizer import CONTROL
from tunesmith.prompt.tokens import stop_ids

_TYPE_SUFFIX = re.compile(r"[.-](?:I?Q\d\w*|T?Q\d_\d|BF16|F16|F32)$", re.IGNORECASE)
_HUB = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_NAMES = "tokenizer.ggml.tokens"


def metadata_of(job: Job, header: Header, *, adapter: bool = True) -> dict[str, Any]:
    """The keys that a file gets, None for one that it loses; `adapter` False: the base alone."""
    changes = _general(job, adapter=adapter)
    if _NAMES in header.metadata:
        changes |= _ends(job, header.metadata)
        changes["tokenizer.chat_template"] = pinned_for_llama_cpp(shipped_template(job), job.template)
    return changes


def base_name(job: Job) -> tuple[str, str]:
    """The base's name without folders, file type and quantization; and its owner on the hub, '' for other bases."""
    given = job.weights.name.removesuffix("/")
    name = _TYPE_SUFFIX.sub("", Path(given).name.removesuffix(".gguf"))
    parts = Path(given).parts
    local = given.startswith((".", "/", "~")) or job.weights.folder.parts[-len(parts) :] == parts
    return name, given.split("/")[0] if _HUB.fullmatch(given) and not local else ""


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


def _ends(job: Job, known: Mapping[str, Any]) -> dict[str, Any]:
    """The end tokens, each of a type that is not shown."""
    stop, *others = stop_ids(job.template)
    names = known[_NAMES]
    eos = known.get("tokenizer.ggml.eos_token_id", others[0] if others else stop)
    changes: dict[str, Any] = {"tokenizer.ggml.eos_token_id": eos}
    if stop != eos:
        changes["tokenizer.ggml.eot_token_id"] = stop
    if "<|eom_id|>" in names:
        changes["tokenizer.ggml.eom_token_id"] = names.index("<|eom_id|>")
    types = list(known.get("tokenizer.ggml.token_type", ()))
    ends = [each for each in (stop, *others) if each < len(types)]
    if any(types[each] != CONTROL for each in ends):
        for each in ends:
            types[each] = CONTROL
        changes["tokenizer.ggml.token_type"] = types
    return changes
