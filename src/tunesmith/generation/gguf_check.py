"""Checks that a converted GGUF file is still the same model, by comparing it with llama.cpp's reading of the file."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.generation.from_gguf import GgufModel
from tunesmith.hardware import detect_hardware as detect
from tunesmith.models.build import load_model
from tunesmith.models.gguf_config import ADVICE
from tunesmith.models.gguf_header import read_header
from tunesmith.models.weights import Weights, tensor_headers
from tunesmith.prompt.template import load_tokenizer

CONTEXT = 256  # tokens; the longest text has about 60
SCORED_TEXT = "The order was shipped on Monday. If it has not arrived after five days, please write to us again."
TEXTS = (
    SCORED_TEXT,
    "Hello, world!",
    " leading space",
    "  two  spaces   three    four     ",
    "line\nbreaks\n\nand\n\n\nmore\r\n\ttabs\t\there",
    "1234567890 3.14159 12,345.67 2024-02-29 007",
    "I'm sure they'll say it's what we'd've done. DON'T",
    "Größe, naïve café, El Niño, Łódź, ĲSSELMEER",
    "Привет, мир! Это проверка.",
    "日本語のテキスト、漢字とかな。한국어 문장 中文字符",
    "שלום عالم नमस्ते ภาษาไทย",
    "emoji 😀 👩‍👩‍👧 🇩🇪 and → arrows ≠ ≤ ½ № ™",
    "def f(x):\n    return {'a': [1, 2], \"b\": x**2}  # comment\n\n\nclass A:\n\tpass",
    "https://example.org/a?b=c&d=%20#e user@example.org C:\\temp\\x",
    "UPPER lower MiXeD camelCase snake_case kebab-case a.b.c",
    "...!!! ??? --- *** ### ~~~ $$$ %% && || <<>> [[]] {{}}",
    "\u00a0no-break\u2009thin\u3000wide\u200bzero\ufeffmark",
    "a",
    " ",
    "\n",
    "",
)
SPECIALS_TEXT = "{0}user\n{0} text{0}{0}\nmore {0}"  # before letters, spaces, breaks and itself
MAX_SPECIAL_TOKENS = 24  # tested
MAX_DIFFERENCE = 0.2  # nats per token, mean over SCORED_TEXT; llama.cpp's 4-bit products differ by up to 0.03


def compare_with_llama_cpp(gguf: Path, folder: Path, report: Callable[[str], None]) -> None:
    """Compare the converted model in `folder` with llama.cpp reading `gguf`: tokenization and the likelihood of a text.

    The likelihood needs the model in float32; it is skipped, with a message, if memory does not suffice. Raises
    ModelError if the two differ, because the trained model would not be the model in the file.
    """
    tokenizer = load_tokenizer(folder)
    trained = read_header(gguf, values=False).metadata
    context = min(CONTEXT, int(trained[f"{trained['general.architecture']}.context_length"]))
    with GgufModel(gguf, slots=1, context=context, threads=1) as runtime:
        compare_tokens(gguf, runtime, tokenizer)
        parameter_count = sum(math.prod(shape) for _, shape, _ in tensor_headers(folder).values())
        if 5 * parameter_count > detect("auto").memory_free // 2:
            report(f"{gguf.name}: tokens match llama.cpp's; too little memory to compare the weights")
            return
        network = load_model(Weights(gguf.name, folder, ""), bits=16, device="cpu", precision="float32").network
        compare_likelihood(gguf, runtime, tokenizer, network)
    report(f"{gguf.name}: tokens and likelihoods of the converted model match llama.cpp's")


def compare_tokens(gguf: Path, runtime: GgufModel, tokenizer: Any) -> None:
    """Tokenize texts with both. Raises ModelError for the first text whose tokens differ."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special][:MAX_SPECIAL_TOKENS]
    for text in (*TEXTS, *(SPECIALS_TEXT.format(token) for token in special)):
        ours, theirs = list(tokenizer(text, add_special_tokens=False)["input_ids"]), runtime.cut(text)
        if ours != theirs:
            first = next((index for index, pair in enumerate(zip(ours, theirs, strict=False)) if len({*pair}) > 1), 0)
            our_tokens, their_tokens = (
                tokenizer.convert_ids_to_tokens(ids[first : first + 3]) for ids in (ours, theirs)
            )
            raise ModelError(
                f"its tokenizer cannot be rebuilt: in {text[:60]!r} llama.cpp reads {their_tokens}, not {our_tokens}",
                where=str(gguf),
                next=ADVICE,
            )


def compare_likelihood(gguf: Path, runtime: GgufModel, tokenizer: Any, network: Any) -> None:
    """Compare the likelihood of a text. Raises ModelError for a difference of more than MAX_DIFFERENCE per token."""
    import torch

    start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    ids = (start + list(tokenizer(SCORED_TEXT, add_special_tokens=False)["input_ids"]))[: runtime.context - 1]
    theirs = [score.nats for score in runtime.scores(ids, start=1)]
    with torch.inference_mode():
        logprobs = network(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].float().log_softmax(-1)
    ours = (-logprobs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]).tolist()
    difference = sum(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / len(ours)
    if not difference <= MAX_DIFFERENCE:  # also if it is NaN
        raise ModelError(
            f"the converted model differs from the file: {difference:.2f} nats per token from llama.cpp's likelihoods",
            where=str(gguf),
            next=ADVICE,
        )
