"""What a GGUF file says besides its weights: its name, its base, its chat template, and how it cuts texts into tokens.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. llama.cpp's converter names a file after its folder,
knows the end-of-turn tokens of some families only, and guesses from a tokenizer's files what stands around a text.
Training's tokenizer decides that here, and where the base was a GGUF file, what that said is said again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.data.conversation import Turn
from tunesmith.exporting.chat_template import pinned_for_llama_cpp
from tunesmith.exporting.job import Job
from tunesmith.exporting.merge import shipped_template, writes_start
from tunesmith.models.gguf_header import Header
from tunesmith.models.gguf_tokenizer import CONTROL, STRIPPING, read_header_keys, strips_behind_control_tokens
from tunesmith.prompt.tokens import stop_ids

_TYPE_SUFFIX = re.compile(r"[.-](?:I?Q\d\w*|T?Q\d_\d|BF16|F16|F32)$", re.IGNORECASE)
_HUB = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_PHI_3 = ("</s>", "<unk>", "<s>", "<|endoftext|>")
_NAMES, _TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"


def metadata_of(job: Job, header: Header, *, adapter: bool = True) -> dict[str, Any]:
    """The keys that a file gets, None for one that it loses; `adapter` False: the base alone."""
    changes = _general(job, adapter=adapter)
    if _NAMES in header.metadata:
        changes |= _of_base(job, header.metadata)
        changes |= _ends(job, {**header.metadata, **changes})
        changes |= _around(job, header.metadata)
        changes["general.name"] = _name(changes["general.name"], job.template.tokenizer, header.metadata[_NAMES])
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


def _of_base(job: Job, known: Mapping[str, Any]) -> dict[str, Any]:
    """What the base's own file said about its tokenizer; nothing where the base was no GGUF file."""
    kept = read_header_keys(job.weights.folder)
    types, own = list(kept.get(_TYPES, ())), list(known.get(_TYPES, ()))
    if types:
        kept[_TYPES] = types + own[len(types) :]
    return kept


def _around(job: Job, known: Mapping[str, Any]) -> dict[str, Any]:
    """What llama.cpp puts around a text, and before what stands behind a special token: what training had there.

    A prompt of the training ends where the answer begins, so nothing may be put behind it.
    """
    tokenizer, starts = job.template.tokenizer, writes_start(job)
    changes: dict[str, Any] = {"tokenizer.ggml.add_bos_token": starts}
    if tokenizer.bos_token_id is not None:
        changes["tokenizer.ggml.bos_token_id"] = tokenizer.bos_token_id
    changes |= dict.fromkeys(("tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_sep_token"), False)
    if known.get("tokenizer.ggml.model") == "llama":
        special = job.template.specials.search(job.template.render((Turn("user", "a"),), generate=True))
        before = special[0] if special else ""
        pieces = tokenizer.convert_ids_to_tokens(tokenizer(f"{before}a", add_special_tokens=False)["input_ids"])
        changes["tokenizer.ggml.add_space_prefix"] = pieces[bool(before)].startswith("▁")
    return changes


def _name(name: str, tokenizer: Any, tokens: Sequence[str]) -> str:
    """The name, with or without the word by which llama.cpp takes whitespace behind control tokens away.

    By that word it also looks for `_PHI_3`, and does not load a file without them.
    """
    strips = any(token.rstrip for token in tokenizer.added_tokens_decoder.values() if token.special)
    if strips and {*_PHI_3} <= {*tokens}:
        return name if strips_behind_control_tokens(name) else f"{name} ({STRIPPING[0]})"
    return re.sub("phi-?3", "Phi 3", name, flags=re.IGNORECASE)


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
    types = list(known.get(_TYPES, ()))
    ends = [each for each in (stop, *others) if each < len(types)]
    if any(types[each] != CONTROL for each in ends):
        for each in ends:
            types[each] = CONTROL
        changes[_TYPES] = types
    return changes
