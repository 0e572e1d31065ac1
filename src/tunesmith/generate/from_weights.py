"""Replies from a loaded model, with its adapter on or off."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from tunesmith.data.conversation import Turn
from tunesmith.generate.text import Reply
from tunesmith.model.build import Model
from tunesmith.prompt.template import Template
from tunesmith.prompt.tokens import encode_prompt, stop_ids


class FromWeights:
    """Greedy decoding with transformers; prompts of like lengths side by side, padded on the left and masked."""

    def __init__(self, model: Model, template: Template, *, tuned: bool) -> None:
        """`tuned` False answers with the adapter off."""
        self.model, self.template, self.tuned = model, template, tuned
        self.stops = stop_ids(template)
        self.pad = template.tokenizer.pad_token_id

    def replies(
        self, prompts: Sequence[Sequence[Turn]], *, max_new_tokens: int, batch: int
    ) -> Iterator[tuple[int, Reply]]:
        """See TextModel."""
        encoded = [encode_prompt(prompt, self.template) for prompt in prompts]
        order = sorted(range(len(encoded)), key=lambda index: (len(encoded[index]), index))
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            written = self._write([encoded[index] for index in chosen], max_new_tokens)
            yield from zip(chosen, written, strict=True)

    def stream(self, prompt: Sequence[Turn], *, max_new_tokens: int) -> Iterator[str]:
        """See TextModel."""
        ids = torch.tensor([encode_prompt(prompt, self.template)], device=self.model.device)
        written: list[int] = []
        shown, cache = "", None
        self.model.network.eval()
        while len(written) < max_new_tokens:
            with self._adapter(), torch.inference_mode():  # left before each yield: others may use the model then
                result = self.model.network(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = result.past_key_values
            chosen = int(result.logits[0, -1].argmax())
            if chosen in self.stops:
                break
            written.append(chosen)
            text = self._decode(written)
            if not text.endswith("\ufffd"):  # an unfinished UTF-8 character waits for its rest
                yield text[len(shown) :]
                shown = text
            ids = torch.tensor([[chosen]], device=self.model.device)
        rest = self._decode(written)[len(shown) :]
        if rest:
            yield rest

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
        return Reply(self._decode(kept).strip(), end is not None, len(kept))

    def _decode(self, ids: list[int]) -> str:
        return str(self.template.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _adapter(self) -> Any:
        return contextlib.nullcontext() if self.tuned else self.model.base()
