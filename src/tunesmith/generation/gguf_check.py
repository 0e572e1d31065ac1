"""Whether a converted GGUF file is still the same model: llama.cpp reads the file itself, and both are compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.generation.from_gguf import FromGguf
from tunesmith.hardware import look as detect
from tunesmith.models.build import load
from tunesmith.models.gguf_config import ADVICE
from tunesmith.models.gguf_header import read_header
from tunesmith.models.weights import Weights, headers
from tunesmith.prompt.template import load_tokenizer

CONTEXT = 256  # tokens; the longest text has about 60
SCORED = "The order was shipped on Monday. If it has not arrived after five days, please write to us again."
TEXTS = (
    SCORED,
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
AROUND = "{0}user\n{0} text{0}{0}\nmore {0}"  # a special token stands before letters, spaces, breaks, and itself
SPECIALS = 24  # of them, at most
NATS = 0.2  # a token, in the mean over SCORED; llama.cpp's products with 4-bit weights cost up to 0.03


def compare(gguf: Path, folder: Path, say: Callable[[str], None]) -> None:
    """Compares the converted model in `folder` with llama.cpp reading `gguf`: its tokens, and how it judges a text.

    The second loads the model in 32 bits and is left out, and said to be, where memory does not suffice. Raises
    ModelError where the two differ: what was trained would be another model than the file's.
    """
    tokenizer = load_tokenizer(folder)
    trained = read_header(gguf, values=False).metadata
    context = min(CONTEXT, int(trained[f"{trained['general.architecture']}.context_length"]))
    with FromGguf(gguf, slots=1, context=context, threads=1) as runtime:
        compare_tokens(gguf, runtime, tokenizer)
        stored = sum(math.prod(shape) for _, shape, _ in headers(folder).values())
        if 5 * stored > detect("auto").memory_free // 2:
            say(f"{gguf.name}: its tokens are llama.cpp's; the weights were not compared, for lack of memory")
            return
        network = load(Weights(gguf.name, folder, ""), bits=16, device="cpu", precision="float32").network
        compare_likelihood(gguf, runtime, tokenizer, network)
    say(f"{gguf.name}: tokens and likelihoods of the converted model are llama.cpp's")


def compare_tokens(gguf: Path, runtime: FromGguf, tokenizer: Any) -> None:
    """Cuts texts into tokens with both. Raises ModelError for the first text whose tokens differ."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special][:SPECIALS]
    for text in (*TEXTS, *(AROUND.format(token) for token in special)):
        ours, theirs = list(tokenizer(text, add_special_tokens=False)["input_ids"]), runtime.cut(text)
        if ours != theirs:
            same = next((at for at, pair in enumerate(zip(ours, theirs, strict=False)) if len({*pair}) > 1), 0)
            here, there = (tokenizer.convert_ids_to_tokens(ids[same : same + 3]) for ids in (ours, theirs))
            raise ModelError(
                f"its tokenizer cannot be rebuilt: in {text[:60]!r} llama.cpp reads {there} where {here} were found",
                where=str(gguf),
                next=ADVICE,
            )


def compare_likelihood(gguf: Path, runtime: FromGguf, tokenizer: Any, network: Any) -> None:
    """How likely both find an English text. Raises ModelError where they differ by more than NATS a token."""
    import torch

    start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    ids = (start + list(tokenizer(SCORED, add_special_tokens=False)["input_ids"]))[: runtime.context - 1]
    theirs = [each.nats for each in runtime.scores(ids, start=1)]
    with torch.inference_mode():
        table = network(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].float().log_softmax(-1)
    ours = (-table.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]).tolist()
    apart = sum(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / len(ours)
    if not apart <= NATS:  # also where it is no number
        raise ModelError(
            f"the converted model is another one: {apart:.2f} nats a token from llama.cpp's likelihoods",
            where=str(gguf),
            next=ADVICE,
        )
