"""The tokenizer that a GGUF file describes, built so that it cuts texts as llama.cpp does with the same file.

A file has a vocabulary with a type for each token, merges or scores, and the name of the rule that splits texts before
merging (`tokenizer.ggml.pre`). generation/gguf_check.py compares the result with llama.cpp itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.models.gguf_config import ADVICE

HEADER = "gguf_tokenizer.json"  # beside the converted weights: what the file said that no tokenizer.json holds
_ELSEWHERE = ("tokens", "scores", "merges")  # long lists, which the tokenizer's own files hold
UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 2, 3, 4, 5, 6  # types of tokens (gguf.TokenType); 1 is a normal one

# How texts are split before merges, one pattern after another, each within the pieces of the one before. The patterns
# are those of the models' own tokenizer.json; names are llama.cpp's.
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
_WHOLE = {"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2", "tekken"}
_STARTS = _WHOLE  # of byte-level vocabularies: rules whose files begin texts with the start token unless they say no


def build_tokenizer(metadata: Mapping[str, Any], name: str, where: str) -> Any:
    """The tokenizer of a file with this `metadata`, as transformers' class, with the file's chat template.

    `name` is what it is called. Raises ModelError for a kind of vocabulary or a rule that is not known.
    """
    from transformers import PreTrainedTokenizerFast

    tokens = list(metadata.get("tokenizer.ggml.tokens", ()))
    kind = str(metadata.get("tokenizer.ggml.model", ""))
    types = list(metadata.get("tokenizer.ggml.token_type", ())) or [1] * len(tokens)
    if not tokens or kind not in ("gpt2", "llama") or len(types) != len(tokens):
        what = f"has a tokenizer of the kind '{kind}'; supported are gpt2 and llama" if tokens else "has no tokenizer"
        raise ModelError(what, where=where, next=ADVICE)
    made = _byte_level(metadata, tokens, where) if kind == "gpt2" else _pieces(metadata, tokens, types)
    _add_tokens(made, metadata, tokens, types)
    ids = {
        key: metadata.get(f"tokenizer.ggml.{known}_token_id")
        for key, known in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    named = {f"{key}_token": tokens[at] for key, at in ids.items() if isinstance(at, int) and at < len(tokens)}
    _add_start_and_end(made, metadata, kind, named)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, name_or_path=name, **named)
    if isinstance(chat := metadata.get("tokenizer.chat_template"), str):
        tokenizer.chat_template = chat
    return tokenizer


def write_header_keys(metadata: Mapping[str, Any], folder: Path) -> None:
    """Keeps what a file says about its tokenizer, so that a file made of the tuned model can say the same."""
    kept = {
        key: list(value) if isinstance(value, list | tuple) else value
        for key, value in metadata.items()
        if key.startswith("tokenizer.ggml.") and key.rpartition(".")[2] not in _ELSEWHERE
    }
    (folder / HEADER).write_text(json.dumps(kept), encoding="utf-8")


def read_header_keys(folder: Path) -> dict[str, Any]:
    """What `write_header_keys` kept; empty for a base that was no GGUF file."""
    path = folder / HEADER
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def put_usual_start(folder: Path, keys: Mapping[str, Any], start: str | None) -> None:
    """Makes the tokenizer in `folder` put around a text what models with its rule of splitting usually do.

    `keys` are those of `read_header_keys`. llama.cpp's converter knows a byte-level vocabulary by its tokens of one
    text, start token included, so a file that says something else about that would not be recognized.
    """
    from tokenizers import Tokenizer, processors

    path = folder / "tokenizer.json"
    made = Tokenizer.from_file(str(path))
    made.post_processor = processors.ByteLevel(trim_offsets=False)  # adds nothing
    kind, rule = str(keys["tokenizer.ggml.model"]), {"tokenizer.ggml.pre": keys.get("tokenizer.ggml.pre")}
    _add_start_and_end(made, rule, kind, {"bos_token": start} if start else {})
    made.save(str(path))


def strips_behind_control_tokens(name: str) -> bool:
    """Whether llama.cpp takes the whitespace behind control tokens away, which it knows by general.name alone."""
    return any(each in name.lower() for each in STRIPPING)


def _byte_level(metadata: Mapping[str, Any], tokens: Sequence[str], where: str) -> Any:
    """BPE over bytes that are written as printable characters, as in GPT-2."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    rule = str(metadata.get("tokenizer.ggml.pre", "default"))
    if rule not in SPLITS:
        raise ModelError(f"splits texts by the rule '{rule}', which is not known", where=where, next=ADVICE)
    vocabulary = {token: index for index, token in reversed(list(enumerate(tokens)))}
    pairs = [tuple(merge.split(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges", ())]
    merges = [pair for pair in pairs if len(pair) == 2 and {*pair, "".join(pair)} <= vocabulary.keys()]
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=rule in _WHOLE))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS[rule]]
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    return made


def _pieces(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> Any:
    """SentencePiece's BPE: the best scored neighbors are joined first; unknown characters become bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = {token: index for index, token in reversed(list(enumerate(tokens)))}
    scores = list(metadata.get("tokenizer.ggml.scores", ())) or [0.0] * len(tokens)
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    made = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=_merges(vocabulary, scores, types), byte_fallback=True, fuse_unk=True,
            unk_token=tokens[unknown],
        )
    )  # fmt: skip
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    spaces = normalizers.Replace(" ", "▁")
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return made


def _merges(vocabulary: Mapping[str, int], scores: Sequence[float], types: Sequence[int]) -> list[tuple[str, str]]:
    """Every way to make a token of two others, the best score first."""
    found = []
    for token, index in vocabulary.items():
        if types[index] in (UNKNOWN, CONTROL, UNUSED, BYTE):
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-scores[index], index, vocabulary[left], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _add_tokens(made: Any, metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> None:
    """Control tokens and those a user defined are found in texts before anything is split."""
    from tokenizers import AddedToken

    strips = strips_behind_control_tokens(str(metadata.get("general.name", "")))
    for kind in (CONTROL, USER_DEFINED):
        wanted = [
            AddedToken(
                token, normalized=False, special=kind == CONTROL,
                rstrip=strips and kind == CONTROL and token not in ("<unk>", "<s>", "<|endoftext|>"),
            )
            for token, own in zip(tokens, types, strict=True)
            if own == kind and token
        ]  # fmt: skip
        (made.add_special_tokens if kind == CONTROL else made.add_tokens)(wanted)


def _add_start_and_end(made: Any, metadata: Mapping[str, Any], kind: str, named: Mapping[str, str]) -> None:
    """Puts start and end token around a text where the file says so."""
    from tokenizers import processors

    usual = kind == "llama" or metadata.get("tokenizer.ggml.pre") in _STARTS
    start = bool(metadata.get("tokenizer.ggml.add_bos_token", usual)) and "bos_token" in named
    end = bool(metadata.get("tokenizer.ggml.add_eos_token", False)) and "eos_token" in named
    around = [named["bos_token"]] if start else [], [named["eos_token"]] if end else []
    if start or end:
        special = {token: made.token_to_id(token) for part in around for token in part}
        made.post_processor = processors.TemplateProcessing(
            single=[*around[0], "$A", *around[1]],
            pair=[*around[0], "$A", *around[1], *(f"{token}:1" for token in around[0]), "$B:1",
                  *(f"{token}:1" for token in around[1])],
            special_tokens=list(special.items()),
        )  # fmt: skip


def sentencepiece_model(metadata: Mapping[str, Any]) -> bytes | None:
    """The file's vocabulary as a tokenizer.model, which llama.cpp's converter reads; None for byte-level ones.

    The types of tokens are SentencePiece's own numbers (sentencepiece_model.proto).
    """
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    if metadata.get("tokenizer.ggml.model") != "llama":
        return None
    tokens = metadata["tokenizer.ggml.tokens"]
    scores = metadata.get("tokenizer.ggml.scores") or [0.0] * len(tokens)
    made: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    for token, score, kind in zip(tokens, scores, metadata["tokenizer.ggml.token_type"], strict=True):
        made.pieces.add(piece=token, score=score, type=kind)
    made.trainer_spec.model_type = made.trainer_spec.BPE
    made.trainer_spec.vocab_size, made.trainer_spec.byte_fallback = len(tokens), True
    for name, key in (("unk", "unknown"), ("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        setattr(made.trainer_spec, f"{name}_id", metadata.get(f"tokenizer.ggml.{key}_token_id", -1))
    made.normalizer_spec.name, made.normalizer_spec.remove_extra_whitespaces = "identity", False
    made.normalizer_spec.add_dummy_prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    data: bytes = made.SerializeToString()
    try:
        SentencePieceProcessor(model_proto=data)
    except RuntimeError:  # a vocabulary that SentencePiece does not take, with a token twice
        return None
    return data
