"""What other programs read about a tokenizer: its configuration, and the tokens that end a reply."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.exporting.job import Job
from tunesmith.prompt.tokens import special_ids, stop_ids

GENERIC = "PreTrainedTokenizerFast"  # transformers 4 and 5, vLLM and mlx_lm read tokenizer.json under this name
_NOT_SHIPPED = ("auto_map", "backend", "is_local", "local_files_only", "name_or_path", "processor_class", "_commit_hash")  # noqa: E501  # fmt: skip


def portable(config: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """tokenizer_config.json as transformers 5 wrote it, in the form that transformers 4.57 reads as well.

    The class is the one that the `base` folder names, where transformers itself has it, and else the generic one:
    TokenizersBackend is known to transformers 5 alone. A list of further special tokens gets its old name, since the
    new one must be a mapping in transformers 4.
    """
    shipped = {key: value for key, value in config.items() if key not in _NOT_SHIPPED}
    own = _read(base / "tokenizer_config.json")
    names = [own.get("tokenizer_class") if "auto_map" not in own else None, config.get("tokenizer_class")]
    known = (name for name in names if isinstance(name, str) and name != "TokenizersBackend")
    shipped["tokenizer_class"] = next(known, GENERIC)
    if isinstance(shipped.get("extra_special_tokens"), list):
        shipped["additional_special_tokens"] = shipped.pop("extra_special_tokens")
    return shipped


def ends_of(job: Job) -> list[int]:
    """Every token that ends a reply: those of the template and the tokenizer, then others that the base names."""
    stops = stop_ids(job.template)
    named = _read(job.weights.folder / "generation_config.json").get("eos_token_id")
    special = special_ids(job.template.tokenizer)
    more = [each for each in (named if isinstance(named, list) else [named]) if each in special]
    return list(dict.fromkeys([*stops, *more]))


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
