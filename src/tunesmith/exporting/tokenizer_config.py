"""Writes the tokenizer settings that other programs read: a portable configuration and the EOS tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.exporting.job import Job
from tunesmith.prompt.tokens import special_ids, stop_ids

GENERIC_CLASS = "PreTrainedTokenizerFast"  # transformers 4 and 5, vLLM and mlx_lm load tokenizer.json with it
_NOT_SHIPPED = ("auto_map", "backend", "is_local", "local_files_only", "name_or_path", "processor_class", "_commit_hash")  # noqa: E501  # fmt: skip


def portable_config(config: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """Converts a tokenizer_config.json of transformers 5 to a form that transformers 4.57 also reads.

    The class is the one in the `base` folder if transformers provides it, else the generic one: only transformers 5 has
    TokenizersBackend. A list of additional special tokens gets its old key, because the new one must be a mapping in
    transformers 4.
    """
    shipped = {key: value for key, value in config.items() if key not in _NOT_SHIPPED}
    base_config = _read_object(base / "tokenizer_config.json")
    names = [
        base_config.get("tokenizer_class") if "auto_map" not in base_config else None,
        config.get("tokenizer_class"),
    ]
    classes = (name for name in names if isinstance(name, str) and name != "TokenizersBackend")
    shipped["tokenizer_class"] = next(classes, GENERIC_CLASS)
    if isinstance(shipped.get("extra_special_tokens"), list):
        shipped["additional_special_tokens"] = shipped.pop("extra_special_tokens")
    return shipped


def eos_token_ids(job: Job) -> list[int]:
    """Returns all tokens that end a reply: those of the template and the tokenizer, then others of the base."""
    stops = stop_ids(job.template)
    base_ids = _read_object(job.weights.folder / "generation_config.json").get("eos_token_id")
    special = special_ids(job.template.tokenizer)
    additional = [token for token in (base_ids if isinstance(base_ids, list) else [base_ids]) if token in special]
    return list(dict.fromkeys([*stops, *additional]))


def _read_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file; empty if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
