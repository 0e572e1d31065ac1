"""A GGUF file as a base, and the file of the tuned model: each key about the tokenizer, there and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from adapters import made, shaken
from exporting.test_merge import job_of
from gguf_models import make_convertible, make_smol, opened
from models.test_gguf_weights import written
from tiny import make_tokenizer
from tunesmith.data.conversation import Turn
from tunesmith.exporting.convert import _PHI_3_TOKENS, _model_name
from tunesmith.exporting.quantize import rewrite_header
from tunesmith.exporting.targets import gguf as gguf_target
from tunesmith.models.gguf_header import read_header
from tunesmith.models.gguf_weights import convert_gguf
from tunesmith.prompt.tokens import encode_prompt

TEXTS = ("how to do t1 way 3?", " Open  the door", "a", "Tap Save.\n\n  12 then 345")
KEY = "tokenizer.ggml."
PIECES, BYTES = "pieces", "bytes"  # kinds of tokenizers: SentencePiece's, and BPE over bytes
TYPED = "token_type"
BOTH: list[tuple[str, Any]] = [
    ("add_bos_token", True), ("add_bos_token", False), ("add_eos_token", True), ("add_sep_token", True),
    ("add_space_prefix", True), ("add_space_prefix", False), ("remove_extra_whitespaces", True),
    ("escape_whitespaces", False), ("treat_whitespace_as_suffix", True), ("bos_token_id", 4), ("eos_token_id", 4),
    ("eot_token_id", 5), ("eom_token_id", 4), ("unknown_token_id", 3), ("padding_token_id", 4), ("mask_token_id", 4),
    (TYPED, 4),
]  # fmt: skip
CASES = [(PIECES, *case) for case in BOTH] + [(BYTES, *case) for case in BOTH] + [(BYTES, "pre", "starcoder")]
LONG = (pytest.mark.slow, pytest.mark.long)
QUICK = [(PIECES, "add_space_prefix", True), (PIECES, TYPED, 4), (BYTES, "add_eos_token", True)]
DECIDED = ("add_bos_token", "add_eos_token", "add_sep_token", "eos_token_id", "eot_token_id", TYPED)  # by the training


@pytest.fixture(scope="module")
def base_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """base_file(kind of tokenizer) -> a GGUF file of a tiny llama with it."""
    files: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in files:
            folder = tmp_path_factory.mktemp(kind)
            base = make_convertible(folder / "a") if kind == PIECES else make_smol(folder / "a", "llama")
            files[kind] = written(base, folder / "base.gguf")
        return files[kind]

    return make


def changed(source: Path, target: Path, key: str, value: Any, at: int) -> dict[str, Any]:
    """Copies the file with another value of one key, of `token_type` for the token `at`; returns its metadata."""
    target.write_bytes(source.read_bytes())
    name = KEY + key
    if key == TYPED:
        kinds = list(read_header(source).metadata[name])
        kinds[at] = value
        value = kinds
    rewrite_header(target, {name: value})
    return dict(read_header(target).metadata)


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [case if case in QUICK else pytest.param(*case, marks=LONG) for case in CASES],
)
def test_a_key_comes_back(tmp_path: Path, base_file: Callable[[str], Path], kind: str, key: str, value: Any) -> None:
    at = 300 if kind == PIECES else 5  # a word, found before anything is split then; by others the converter knows BPE
    before = changed(base_file(kind), tmp_path / "base.gguf", key, value, at)
    (tmp_path / "base").mkdir()
    convert_gguf(tmp_path / "base.gguf", tmp_path / "base")
    job = job_of(shaken(made(tmp_path / "base")), tmp_path, name="phi3-toy")  # a name that llama.cpp takes for a sign
    [file] = gguf_target.write(job, types=["f32"])
    after = read_header(file.path).metadata
    assert after[KEY + "tokens"] == before[KEY + "tokens"]
    for name, said in before.items():
        short = name.removeprefix(KEY)
        if name.startswith(KEY) and short not in (*DECIDED, "scores"):
            assert after[name] == said, name
    word = before[KEY + "tokens"][at].replace("▁", " ").replace("Ġ", " ")
    prompts = [(Turn("user", text),) for text in (*TEXTS, f"x{word}y {word}")]
    with opened(file.path, slots=1) as runtime:
        assert [runtime.tokens(runtime.render(prompt)) for prompt in prompts] == [
            encode_prompt(prompt, job.template) for prompt in prompts
        ]
        cuts = [runtime.cut(text) for text in TEXTS]
    with opened(tmp_path / "base.gguf", slots=1) as runtime:
        assert [runtime.cut(text) for text in TEXTS] == cuts


@pytest.mark.parametrize(
    ("name", "strips", "tokens", "written_as"),
    [
        ("shop", True, _PHI_3_TOKENS, "shop (phi-3)"), ("my-Phi-3", True, _PHI_3_TOKENS, "my-Phi-3"),
        ("shop", False, _PHI_3_TOKENS, "shop"),
        ("my-Phi-3", False, _PHI_3_TOKENS, "my-Phi 3"), ("phi3-shop", True, _PHI_3_TOKENS[:3], "Phi 3-shop"),
    ],
)  # fmt: skip
def test_the_name_says_to_llama_cpp_whether_whitespace_behind_control_tokens_goes(
    name: str, strips: bool, tokens: tuple[str, ...], written_as: str
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|user|>", rstrip=strips)]})
    assert _model_name(name, tokenizer, tokens) == written_as
