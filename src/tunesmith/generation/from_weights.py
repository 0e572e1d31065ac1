"""Replies from a loaded model, with its adapter on or off."""

from __future__ import annotations

import contextlib
import functools
import re
import secrets
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch

from tunesmith.data.conversation import Turn
from tunesmith.generation.decoder import Decoder, reasons
from tunesmith.generation.encode_untrusted import bos_of, encode_plainly, marks_of
from tunesmith.generation.stop_strings import Growing, ReplyFilter, reply_of
from tunesmith.generation.text_model import Reply
from tunesmith.models.build import Model
from tunesmith.prompt.template import Template
from tunesmith.prompt.tokens import encode_prompt, stop_ids


class FromWeights:
    """Greedy decoding: by our own decoder where the family and the adapter allow it, otherwise with transformers."""

    def __init__(self, model: Model, template: Template, *, tuned: bool, stop: Sequence[str] = ()) -> None:
        """`tuned` False answers with the adapter off. A reply also ends before a text in `stop`."""
        self.model, self.template, self.tuned, self.texts = model, template, tuned, tuple(stop)
        self.stops, self.form = stop_ids(template), template.form
        self.pad = template.tokenizer.pad_token_id

    def replies(
        self, prompts: Sequence[Sequence[Turn]], *, max_new_tokens: int, batch: int
    ) -> Iterator[tuple[int, Reply]]:
        """See TextModel. The same replies whatever `batch` is."""
        encoded = [encode_prompt(prompt, self.template) for prompt in prompts]
        self.model.network.eval()
        if (decoder := self.decoder()) is not None:
            for place, ids in decoder.write(encoded, max_new_tokens, batch, self._ended, tuned=self.tuned):
                yield place, self._reply(ids)
            return
        if self.model.network.dtype in (torch.bfloat16, torch.float16):
            batch = 1  # a padded batch rounds otherwise than a single prompt
        order = sorted(range(len(encoded)), key=lambda index: (len(encoded[index]), index))
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            written = self._write([encoded[index] for index in chosen], max_new_tokens)
            yield from zip(chosen, written, strict=True)

    def decoder(self) -> Decoder | None:
        """What writes the replies of base and tuned alike; None where transformers does."""
        model = self.model
        if reasons(model):
            return None
        if model.decoder is None or model.decoder.variant is not model.variant:
            model.decoder = Decoder(model)
        return cast(Decoder, model.decoder)

    def _ended(self, ids: Sequence[int]) -> bool:
        if ids[-1] in self.stops:
            return True
        if not self.texts:
            return False
        end = self._decode(
            list(ids[-max(map(len, self.texts)) - 4 :])
        )  # a token has a character at least, or is joined
        return any(text in end for text in self.texts)

    def stream(self, prompt: Sequence[Turn], *, max_new_tokens: int) -> Iterator[str]:
        """See TextModel."""
        text, reply = Growing(self.output), ReplyFilter(self.form, self.texts)
        for chosen in self.tokens(encode_prompt(prompt, self.template), max_new_tokens=max_new_tokens):
            if chosen in self.stops:
                break
            if shown := reply.feed(text.feed(chosen)):
                yield shown
            if reply.hit:
                return
        if shown := reply.feed(text.rest()) + reply.rest():
            yield shown

    def tokens(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Iterator[int]:
        """What is written behind the tokens of a prompt, one by one, a token of `stops` the last.

        Temperature 0 takes the likeliest; otherwise first the temperature, then the likeliest that reach `top_p`
        together. `seed` None draws anew each time.
        """
        ids, cache = torch.tensor([list(prompt)], device=self.model.device), None
        source = torch.Generator().manual_seed(secrets.randbits(63) if seed is None else seed % (1 << 63))
        self.model.network.eval()
        for _ in range(max_new_tokens):
            with self._adapter(), torch.inference_mode():  # left before each yield: others may use the model then
                result = self.model.network(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = result.past_key_values
            chosen = draw(result.logits[0, -1], temperature, top_p, source)
            yield chosen
            if chosen in self.stops:
                return
            ids = torch.tensor([[chosen]], device=self.model.device)

    def encode(self, prompt: Sequence[Turn] | str) -> list[int]:
        """A conversation's tokens, up to where the assistant begins, or those of a text that is the model's raw input.

        What is said in a conversation is never taken for a token that separates turns, whatever is written there.
        Raises ModelError when the template refuses it.
        """
        if isinstance(prompt, str):
            return [*bos_of(self.template), *self._cut(prompt, start=True)]
        return encode_plainly(prompt, render=self._render, cut=self._cut, marks=self._marks)

    @functools.cached_property
    def _marks(self) -> re.Pattern[str]:
        return marks_of(self.template.specials, self._render)

    def _render(self, turns: Sequence[Turn]) -> str:
        return self.template.render(turns, generate=True)

    def _cut(self, text: str, *, start: bool) -> list[int]:
        return list(self.template.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        return self._decode(list(ids))

    def output(self, ids: Sequence[int]) -> str:
        """The text of tokens as `form` divides it: with special tokens where they separate thought and reply."""
        return self._decode(list(ids), skip=not self.form.keeps_specials)

    def _write(self, prompts: list[list[int]], max_new_tokens: int) -> list[Reply]:
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
                repetition_penalty=1.0,  # some models' generation_config.json asks for another
                no_repeat_ngram_size=0,
                use_cache=True,
                eos_token_id=self.stops,
                pad_token_id=self.pad,
            )
        return [self._reply(row[width:]) for row in out.tolist()]

    def _reply(self, written: list[int]) -> Reply:
        end = next((place for place, token in enumerate(written) if token in self.stops), None)
        kept = written if end is None else written[:end]
        return reply_of(self.output(kept), self.form, self.texts, ended=end is not None, tokens=len(kept))

    def _decode(self, ids: list[int], *, skip: bool = True) -> str:
        return str(self.template.tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False))

    def _adapter(self) -> Any:
        return contextlib.nullcontext() if self.tuned else self.model.base()


def draw(logits: torch.Tensor, temperature: float, top_p: float, source: torch.Generator) -> int:
    """A token by its logits [vocabulary]; temperature 0 takes the likeliest.

    Of the rest (Holtzman et al. 2020, The Curious Case of Neural Text Degeneration) the likeliest are kept up to the
    one with which they reach `top_p`.
    """
    if temperature <= 0.0:
        return int(logits.argmax())
    chances, order = (logits.double().cpu() / temperature).softmax(-1).sort(descending=True, stable=True)
    chances[chances.cumsum(-1) - chances >= top_p] = 0.0
    return int(order[torch.multinomial(chances, 1, generator=source)])
