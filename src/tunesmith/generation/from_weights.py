"""Replies from a model in this process, with its adapter on or off."""

from __future__ import annotations

import contextlib
import functools
import re
import secrets
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch

from tunesmith.data.conversation import Turn
from tunesmith.generation.decoder import Decoder, unsupported_reasons
from tunesmith.generation.text_model import (
    IncrementalDetokenizer,
    Reply,
    ReplyFilter,
    bos_ids,
    build_reply,
    encode_untrusted,
    turn_markers,
)
from tunesmith.models.build import Model
from tunesmith.prompt.template import Template
from tunesmith.prompt.tokens import encode_prompt, stop_ids


class WeightsModel:
    """Greedy decoding: with our own decoder if it supports the model and the adapter, otherwise with transformers."""

    def __init__(self, model: Model, template: Template, *, tuned: bool, stop: Sequence[str] = ()) -> None:
        """`tuned` False turns the adapter off. A reply also ends before a string in `stop`."""
        self.model, self.template, self.tuned, self.texts = model, template, tuned, tuple(stop)
        self.stops, self.form = stop_ids(template), template.form
        self.pad = template.tokenizer.pad_token_id

    def replies(
        self, prompts: Sequence[Sequence[Turn]], *, max_new_tokens: int, batch: int
    ) -> Iterator[tuple[int, Reply]]:
        """Yield replies, which do not depend on `batch`."""
        encoded = [encode_prompt(prompt, self.template) for prompt in prompts]
        self.model.network.eval()
        if (decoder := self.decoder()) is not None:
            for place, ids in decoder.write(encoded, max_new_tokens, batch, self._has_ended, tuned=self.tuned):
                yield place, self._reply(ids)
            return
        if self.model.network.dtype in (torch.bfloat16, torch.float16):
            batch = 1  # a padded batch rounds differently than a single prompt
        order = sorted(range(len(encoded)), key=lambda index: (len(encoded[index]), index))
        for start in range(0, len(order), batch):
            indices = order[start : start + batch]
            outputs = self._generate([encoded[index] for index in indices], max_new_tokens)
            yield from zip(indices, outputs, strict=True)

    def decoder(self) -> Decoder | None:
        """Return the decoder that base and tuned model share; None if transformers generates."""
        model = self.model
        if unsupported_reasons(model):
            return None
        if model.decoder is None or model.decoder.variant is not model.variant:
            model.decoder = Decoder(model)
        return cast(Decoder, model.decoder)

    def _has_ended(self, ids: Sequence[int]) -> bool:
        if ids[-1] in self.stops:
            return True
        if not self.texts:
            return False
        length = max(map(len, self.texts)) + 4  # tokens: each adds at least a character, or is part of one
        tail = self._decode(list(ids[-length:]))
        return any(text in tail for text in self.texts)

    def stream(self, prompt: Sequence[Turn], *, max_new_tokens: int) -> Iterator[str]:
        """Yield one reply in pieces."""
        detokenizer, reply_filter = IncrementalDetokenizer(self.output), ReplyFilter(self.form, self.texts)
        for token in self.tokens(encode_prompt(prompt, self.template), max_new_tokens=max_new_tokens):
            if token in self.stops:
                break
            if visible := reply_filter.feed(detokenizer.feed(token)):
                yield visible
            if reply_filter.hit:
                return
        if visible := reply_filter.feed(detokenizer.flush()) + reply_filter.flush():
            yield visible

    def tokens(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Iterator[int]:
        """Yield the tokens after a prompt one by one, ending with a token of `stops`.

        Temperature 0 takes the likeliest token; otherwise the temperature is applied first, then `top_p`. `seed` None
        draws a different reply each time.
        """
        ids, cache = torch.tensor([list(prompt)], device=self.model.device), None
        generator = torch.Generator().manual_seed(secrets.randbits(63) if seed is None else seed % (1 << 63))
        self.model.network.eval()
        for _ in range(max_new_tokens):
            with self._adapter(), torch.inference_mode():  # left before each yield: others may use the model
                result = self.model.network(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = result.past_key_values
            token = sample_token(result.logits[0, -1], temperature, top_p, generator)
            yield token
            if token in self.stops:
                return
            ids = torch.tensor([[token]], device=self.model.device)

    def encode(self, prompt: Sequence[Turn] | str) -> list[int]:
        """Return the tokens of a conversation up to where the assistant begins, or of a text that is raw input.

        Text in a conversation is never read as a marker between turns. Raises ModelError if the template refuses it.
        """
        if isinstance(prompt, str):
            return [*bos_ids(self.template), *self._tokenize(prompt, start=True)]
        return encode_untrusted(prompt, render=self._render, tokenize=self._tokenize, markers=self._marks)

    @functools.cached_property
    def _marks(self) -> re.Pattern[str]:
        return turn_markers(self.template.specials, self._render)

    def _render(self, turns: Sequence[Turn]) -> str:
        return self.template.render(turns, generate=True)

    def _tokenize(self, text: str, *, start: bool) -> list[int]:
        return list(self.template.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens without special tokens."""
        return self._decode(list(ids))

    def output(self, ids: Sequence[int]) -> str:
        """Return the text of tokens as `form` divides it: with special tokens if they separate thought and reply."""
        return self._decode(list(ids), skip=not self.form.needs_special_tokens)

    def _generate(self, prompts: list[list[int]], max_new_tokens: int) -> list[Reply]:
        width = max(map(len, prompts))
        ids = torch.tensor([[self.pad] * (width - len(p)) + p for p in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.model.device)
        self.model.network.eval()
        with self._adapter(), torch.inference_mode():
            out = self.model.network.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                repetition_penalty=1.0,  # some models' generation_config.json sets another
                no_repeat_ngram_size=0,
                use_cache=True,
                eos_token_id=self.stops,
                pad_token_id=self.pad,
            )
        return [self._reply(row[width:]) for row in out.tolist()]

    def _reply(self, ids: list[int]) -> Reply:
        end = next((index for index, token in enumerate(ids) if token in self.stops), None)
        reply_ids = ids if end is None else ids[:end]
        return build_reply(self.output(reply_ids), self.form, self.texts, ended=end is not None, tokens=len(reply_ids))

    def _decode(self, ids: list[int], *, skip: bool = True) -> str:
        return str(self.template.tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False))

    def _adapter(self) -> Any:
        return contextlib.nullcontext() if self.tuned else self.model.base()


def sample_token(logits: torch.Tensor, temperature: float, top_p: float, rng: torch.Generator) -> int:
    """Sample a token id from logits [vocabulary]; temperature 0 takes the likeliest.

    Nucleus sampling (Holtzman et al. 2020, The Curious Case of Neural Text Degeneration) keeps the likeliest tokens up
    to the one with which their probabilities reach `top_p`.
    """
    if temperature <= 0.0:
        return int(logits.argmax())
    probabilities, order = (logits.double().cpu() / temperature).softmax(-1).sort(descending=True, stable=True)
    probabilities[probabilities.cumsum(-1) - probabilities >= top_p] = 0.0
    return int(order[torch.multinomial(probabilities, 1, generator=rng)])
