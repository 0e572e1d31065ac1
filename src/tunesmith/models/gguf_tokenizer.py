"""Builds the tokenizer of a GGUF file, with the same tokenization as llama.cpp.

A file has a vocabulary with a type for each token, merges or scores, and the name of the pre-tokenizer
(`tokenizer.ggml.pre`). generation/gguf_check.py compares the result with llama.cpp itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.models.gguf_config import ADVICE

HEADER = "gguf_tokenizer.json"  # beside the converted weights: keys that tokenizer.json cannot hold
_LONG_LISTS = ("tokens", "scores", "merges")  # in the tokenizer's own files
UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 2, 3, 4, 5, 6  # types of tokens (gguf.TokenType); 1 is a normal one

# Patterns that split texts before merging, each applied to the pieces of the one before. The patterns are those of the
# models' own tokenizer.json; names are llama.cpp's.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_END = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_END}"
_QWEN2 = rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_END}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_END = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|{_CASED_END}"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SHORT}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SHORT}?"
    rf"|\p{{N}}{{1,3}}|{_CASED_END}"
)
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt", "jais", "trillion", "granite-docling"), (_GPT2,)),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), (r"\p{N}", _GPT2)
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2", "dbrx", "smaug-bpe", "glm4",
         "chatglm-bpe"), (_LLAMA3,),
    ),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez", "solar-open"), (_QWEN2,)),
    "qwen35": (_QWEN2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"),),
    "tekken": (_TEKKEN,),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), (_GPT4O,)),
    "deepseek-v3": (r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK3),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}"),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
}  # fmt: skip
STRIPPING = ("phi-3", "phi3")
_IGNORE_MERGES = {"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2", "tekken"}
_ADDS_BOS = _IGNORE_MERGES  # byte-level pre-tokenizers that add the start token by default


def build_tokenizer(metadata: Mapping[str, Any], name: str, where: str) -> Any:
    """Builds the transformers tokenizer of a file with this `metadata`, with its chat template.

    `name` becomes name_or_path. Raises ModelError for an unknown vocabulary type or pre-tokenizer.
    """
    from transformers import PreTrainedTokenizerFast

    tokens = list(metadata.get("tokenizer.ggml.tokens", ()))
    kind = str(metadata.get("tokenizer.ggml.model", ""))
    types = list(metadata.get("tokenizer.ggml.token_type", ())) or [1] * len(tokens)
    if not tokens or kind not in ("gpt2", "llama") or len(types) != len(tokens):
        problem = (
            f"has a tokenizer of the kind '{kind}'; supported are gpt2 and llama" if tokens else "has no tokenizer"
        )
        raise ModelError(problem, where=where, next=ADVICE)
    backend = _byte_level(metadata, tokens, where) if kind == "gpt2" else _sentencepiece(metadata, tokens, types)
    _add_tokens(backend, metadata, tokens, types)
    ids = {
        key: metadata.get(f"tokenizer.ggml.{gguf_key}_token_id")
        for key, gguf_key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    special_tokens = {
        f"{key}_token": tokens[token_id]
        for key, token_id in ids.items()
        if isinstance(token_id, int) and token_id < len(tokens)
    }
    _add_start_and_end(backend, metadata, kind, special_tokens)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, name_or_path=name, **special_tokens)
    if isinstance(chat := metadata.get("tokenizer.chat_template"), str):
        tokenizer.chat_template = chat
    return tokenizer


def write_header_keys(metadata: Mapping[str, Any], folder: Path) -> None:
    """Saves a file's tokenizer keys, so that an exported file of the tuned model can have the same ones."""
    keys = {
        key: list(value) if isinstance(value, list | tuple) else value
        for key, value in metadata.items()
        if key.startswith("tokenizer.ggml.") and key.rpartition(".")[2] not in _LONG_LISTS
    }
    (folder / HEADER).write_text(json.dumps(keys), encoding="utf-8")


def read_header_keys(folder: Path) -> dict[str, Any]:
    """Reads the keys of `write_header_keys`; empty for a base that was not a GGUF file."""
    path = folder / HEADER
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def restore_default_bos(folder: Path, keys: Mapping[str, Any], bos: str | None) -> None:
    """Makes the tokenizer in `folder` add the start token that is the default of its pre-tokenizer.

    `keys` are those of `read_header_keys`. llama.cpp's converter recognizes a byte-level vocabulary by the tokens of a
    fixed text, start token included, so it would not recognize a tokenizer with another setting.
    """
    from tokenizers import Tokenizer, processors

    path = folder / "tokenizer.json"
    backend = Tokenizer.from_file(str(path))
    backend.post_processor = processors.ByteLevel(trim_offsets=False)  # adds nothing
    kind, rule = str(keys["tokenizer.ggml.model"]), {"tokenizer.ggml.pre": keys.get("tokenizer.ggml.pre")}
    _add_start_and_end(backend, rule, kind, {"bos_token": bos} if bos else {})
    backend.save(str(path))


def strips_after_control_tokens(name: str) -> bool:
    """Returns whether llama.cpp strips whitespace after control tokens, which it decides by general.name."""
    return any(word in name.lower() for word in STRIPPING)


def _byte_level(metadata: Mapping[str, Any], tokens: Sequence[str], where: str) -> Any:
    """Builds byte-level BPE as in GPT-2."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    rule = str(metadata.get("tokenizer.ggml.pre", "default"))
    if rule not in SPLITS:
        raise ModelError(f"has the pre-tokenizer '{rule}', which is not supported", where=where, next=ADVICE)
    vocabulary = {token: index for index, token in reversed(list(enumerate(tokens)))}
    pairs = [tuple(merge.split(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges", ())]
    merges = [pair for pair in pairs if len(pair) == 2 and {*pair, "".join(pair)} <= vocabulary.keys()]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=rule in _IGNORE_MERGES))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS[rule]]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> Any:
    """Builds SentencePiece BPE: neighbors with the best score merge first; unknown characters become bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = {token: index for index, token in reversed(list(enumerate(tokens)))}
    scores = list(metadata.get("tokenizer.ggml.scores", ())) or [0.0] * len(tokens)
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=_merges(vocabulary, scores, types), byte_fallback=True, fuse_unk=True,
            unk_token=tokens[unknown],
        )
    )  # fmt: skip
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    spaces = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend


def _merges(vocabulary: Mapping[str, int], scores: Sequence[float], types: Sequence[int]) -> list[tuple[str, str]]:
    """Returns every pair of tokens that forms another token, the best score first."""
    merges = []
    for token, index in vocabulary.items():
        if types[index] in (UNKNOWN, CONTROL, UNUSED, BYTE):
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                merges.append((-scores[index], index, vocabulary[left], left, right))
    return [(left, right) for *_, left, right in sorted(merges)]


def _add_tokens(backend: Any, metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> None:
    """Adds control tokens and user-defined tokens, which are matched before texts are split."""
    from tokenizers import AddedToken

    strips = strips_after_control_tokens(str(metadata.get("general.name", "")))
    for kind in (CONTROL, USER_DEFINED):
        added_tokens = [
            AddedToken(
                token, normalized=False, special=kind == CONTROL,
                rstrip=strips and kind == CONTROL and token not in ("<unk>", "<s>", "<|endoftext|>"),
            )
            for token, token_type in zip(tokens, types, strict=True)
            if token_type == kind and token
        ]  # fmt: skip
        (backend.add_special_tokens if kind == CONTROL else backend.add_tokens)(added_tokens)


def _add_start_and_end(
    backend: Any, metadata: Mapping[str, Any], kind: str, special_by_role: Mapping[str, str]
) -> None:
    """Makes the tokenizer add start and end token to a text if the file says so."""
    from tokenizers import processors

    default = kind == "llama" or metadata.get("tokenizer.ggml.pre") in _ADDS_BOS
    start = bool(metadata.get("tokenizer.ggml.add_bos_token", default)) and "bos_token" in special_by_role
    end = bool(metadata.get("tokenizer.ggml.add_eos_token", False)) and "eos_token" in special_by_role
    around = [special_by_role["bos_token"]] if start else [], [special_by_role["eos_token"]] if end else []
    if start or end:
        special = {token: backend.token_to_id(token) for part in around for token in part}
        backend.post_processor = processors.TemplateProcessing(
            single=[*around[0], "$A", *around[1]],
            pair=[*around[0], "$A", *around[1], *(f"{token}:1" for token in around[0]), "$B:1",
                  *(f"{token}:1" for token in around[1])],
            special_tokens=list(special.items()),
        )  # fmt: skip


def sentencepiece_model(metadata: Mapping[str, Any]) -> bytes | None:
    """Returns the vocabulary as a tokenizer.model for llama.cpp's converter; None for byte-level vocabularies.

    Token types are SentencePiece's own numbers (sentencepiece_model.proto).
    """
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    if metadata.get("tokenizer.ggml.model") != "llama":
        return None
    tokens = metadata["tokenizer.ggml.tokens"]
    scores = metadata.get("tokenizer.ggml.scores") or [0.0] * len(tokens)
    model: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    for token, score, kind in zip(tokens, scores, metadata["tokenizer.ggml.token_type"], strict=True):
        model.pieces.add(piece=token, score=score, type=kind)
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.vocab_size, model.trainer_spec.byte_fallback = len(tokens), True
    for name, key in (("unk", "unknown"), ("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        setattr(model.trainer_spec, f"{name}_id", metadata.get(f"tokenizer.ggml.{key}_token_id", -1))
    model.normalizer_spec.name, model.normalizer_spec.remove_extra_whitespaces = "identity", False
    model.normalizer_spec.add_dummy_prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    data: bytes = model.SerializeToString()
    try:
        SentencePieceProcessor(model_proto=data)
    except RuntimeError:  # SentencePiece refuses a vocabulary with duplicate tokens
        return None
    return data
