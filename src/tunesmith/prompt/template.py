"""A conversation as the text that the model reads. Templates run in transformers' Jinja sandbox."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError, RecipeError

# For base models that bring no chat template (GPT-2, Llama-2-7b): plain words that every tokenizer knows.
PLAIN = (
    "{{ bos_token if starts_with_bos else '' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### Instruction:\n' + message['content'] + '\n\n' }}"
    "{% else %}{{ '### Response:\n' + message['content'] + eos_token + '\n\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Template:
    """A tokenizer and the template that it renders; `source` says where the template comes from."""

    tokenizer: Any
    text: str
    source: str

    @functools.cached_property
    def starts_with_bos(self) -> bool:
        """Whether the tokenizer itself would put its start token before a text."""
        return _adds_bos(self.tokenizer)

    @functools.cached_property
    def specials(self) -> re.Pattern[str]:
        """Finds special tokens written out in a text."""
        known = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        words = sorted(known - {self.tokenizer.unk_token}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, words)) or r"(?!)")

    def render(self, turns: Sequence[Turn], *, generate: bool = False) -> str:
        """The turns as text; with `generate`, up to the point where the assistant begins.

        Raises ModelError when the template refuses the turns.
        """
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        try:
            rendered = self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.text,
                tokenize=False,
                add_generation_prompt=generate,
                starts_with_bos=self.starts_with_bos,
            )
        except Exception as error:  # a template is foreign code: whatever it raises is its refusal
            has_system = any(turn.role == "system" for turn in turns)
            advice = "Leave the system message out" if has_system else "Give another prompt.template"
            raise ModelError(
                f"the chat template refuses the conversation: {error}", where=self.source, next=advice
            ) from error
        return str(rendered)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer that lies in `folder`, with a padding token set.

    Raises ModelError when there is none.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"no tokenizer can be read: {error}", where=str(folder), next="Choose another base.model"
        ) from error
    if not getattr(tokenizer, "is_fast", True):
        raise ModelError("the tokenizer gives no offsets", where=str(folder), next="Choose a model with tokenizer.json")
    if tokenizer.pad_token is None:  # padding is masked by place, never by this id, so any known token will do
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def load_template(tokenizer: Any, wanted: str, folder: Path) -> Template:
    """The template `wanted`: 'model', or a .jinja file relative to `folder`."""
    if wanted == "model":
        own = tokenizer.chat_template
        if isinstance(own, dict):  # several templates by name; the others are for tools and retrieval
            own = own.get("default")
        if isinstance(own, str) and own:
            return Template(tokenizer, own, "the model's own template")
        return Template(tokenizer, PLAIN, "the plain template (the model has none)")
    path = folder / wanted
    try:
        return Template(tokenizer, path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"the template cannot be read: {error}", where=str(path), next="Check prompt.template"
        ) from error


def _adds_bos(tokenizer: Any) -> bool:
    if tokenizer.bos_token_id is None:
        return False
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[0] == tokenizer.bos_token_id
