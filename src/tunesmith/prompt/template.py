"""Renders conversations with a chat template, in transformers' Jinja sandbox."""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError, RecipeError, TunesmithError, raise_all
from tunesmith.prompt.reply import THINK_TAGS, ReplyFormat, ThoughtTags

Reasoning = Literal["learn", "drop"]

# For base models without a chat template (GPT-2, Llama-2-7b): plain words that every tokenizer knows.
PLAIN_TEMPLATE = (
    "{{ bos_token if starts_with_bos else '' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### Instruction:\n' + message['content'] + '\n\n' }}"
    "{% else %}{{ '### Response:\n' + message['content'] + eos_token + '\n\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
PROBE_QUESTION = "xq7question7qx"  # stand for a question, an answer and a thought when a template is examined
ANSWER_MARKER = "xq7answer7qx"
THOUGHT_MARKER = "xq7thought7qx"
# A thought left open at the end of the generation prompt, and an empty thought.
OPEN_THOUGHT = re.compile(r"<((?:\w+:)?(?:think|thinking|thought|reasoning))>\s*$")
EMPTY_THOUGHT = re.compile(r"(<((?:\w+:)?(?:think|thinking|thought|reasoning))>)(\s*)(</\2>)")
_DATE_CALL = re.compile(r"strftime_now\(\s*(?P<quote>['\"])(?P<format>[^'\"]*)(?P=quote)\s*\)")
_DATE_TEST = re.compile(r"\bstrftime_now\s+is\s+(?P<negated>not\s+)?defined\b")


@dataclass(frozen=True)
class RenderedAnswer:
    """The rendered text of a conversation that ends with an answer, as consecutive parts.

    `prompt` is what the model reads before it answers, `opening` what the template writes at the beginning of an answer
    (a header, an empty thought), `thought` the row's reasoning and its separator, `text` the answer, `ending` runs
    through the end-of-turn token, and `trailing` is what follows it.
    """

    prompt: str
    opening: str
    thought: str
    text: str
    ending: str
    trailing: str

    @property
    def through_end(self) -> str:
        """Everything through the end-of-turn token."""
        return self.prompt + self.opening + self.thought + self.text + self.ending


@dataclass(frozen=True)
class Template:
    """A chat template and the tokenizer that renders it.

    `source` says where the template comes from, `options` are variables passed to it (enable_thinking, date_string, …),
    and `reasoning` decides whether a row's reasoning is rendered.
    """

    tokenizer: Any
    text: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    reasoning: Reasoning = "learn"

    @functools.cached_property
    def starts_with_bos(self) -> bool:
        """Whether the tokenizer puts its start token (BOS) before a text."""
        return _adds_bos(self.tokenizer)

    @functools.cached_property
    def specials(self) -> re.Pattern[str]:
        """A pattern that matches special tokens in a text."""
        tokens = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        tokens |= set(self.tokenizer.all_special_tokens)
        words = sorted(tokens - {unknown_token(self.tokenizer)}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, words)) or r"(?!)")

    def render(self, turns: Sequence[Turn], *, generate: bool = False) -> str:
        """Renders the turns; with `generate`, up to where the assistant's answer begins.

        Raises ModelError if the template fails on the turns.
        """
        with_reasoning = self.reasoning == "learn" and self._reasoning_field
        return self._render([self._message(turn, with_reasoning) for turn in turns], generate=generate)

    def answer(self, turns: Sequence[Turn]) -> RenderedAnswer:
        """Returns the parts of the conversation around its last turn, an answer.

        Raises ModelError for a template whose answers cannot be trained on, DataError if it changes or leaves out the
        turn.
        """
        from tunesmith.prompt.answers import locate_answer

        return locate_answer(self, turns)

    @functools.cached_property
    def plain_answer(self) -> RenderedAnswer:
        """An answer without reasoning, with the marker ANSWER as its text."""
        return self.answer((Turn("user", PROBE_QUESTION), Turn("assistant", ANSWER_MARKER)))

    @functools.cached_property
    def end_before_next_turn(self) -> str:
        """What ends an answer that another turn follows; '' if that is not a special token.

        Templates such as GLM-4's write nothing after the last answer: the next turn's header ends it.
        """
        turns = (Turn("user", PROBE_QUESTION), Turn("assistant", ANSWER_MARKER), Turn("user", PROBE_QUESTION))
        following = self.render(turns).partition(ANSWER_MARKER)[2]
        match = self.specials.search(following)
        return following[: match.end()] if match and not following[: match.start()].strip() else ""

    @functools.cached_property
    def after_thought(self) -> str:
        """What the template writes between reasoning and text; '' if it writes no reasoning."""
        rendered = self.render((Turn("user", PROBE_QUESTION), Turn("assistant", ANSWER_MARKER, THOUGHT_MARKER)))
        return rendered.partition(THOUGHT_MARKER)[2].partition(ANSWER_MARKER)[0] if THOUGHT_MARKER in rendered else ""

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids of special tokens."""
        from tunesmith.prompt.tokens import special_ids

        return special_ids(self.tokenizer)

    @functools.cached_property
    def form(self) -> ReplyFormat:
        """How a model's output under this template splits into a thought and a reply."""
        answer = self.plain_answer
        thoughts = []
        if match := OPEN_THOUGHT.search(answer.prompt):
            thoughts.append(ThoughtTags("", f"</{match[1]}>"))
        elif (thought := self._thought_tags()) is not None:
            thoughts.append(thought)
        return ReplyFormat(answer.opening.strip(), tuple(dict.fromkeys((*thoughts, THINK_TAGS))), self.specials)

    def _thought_tags(self) -> ThoughtTags | None:
        """Returns the tags that the template writes around reasoning; None if it writes no reasoning."""
        try:
            answer = self.answer((Turn("user", PROBE_QUESTION), Turn("assistant", ANSWER_MARKER, THOUGHT_MARKER)))
        except TunesmithError:
            return None
        opening, marker, closing = (answer.opening + answer.thought).partition(THOUGHT_MARKER)
        start, end = opening.strip(), closing.strip()
        return ThoughtTags(start, end) if marker and start and end else None

    def _message(self, turn: Turn, with_reasoning: bool) -> dict[str, Any]:
        content: Any = [{"type": "text", "text": turn.text}] if self._wants_parts else turn.text
        message = {"role": turn.role, "content": content}
        if turn.reasoning and with_reasoning:  # the names that templates use for it
            message |= dict.fromkeys(("reasoning_content", "reasoning", "thinking"), turn.reasoning)
        return message

    @functools.cached_property
    def _wants_parts(self) -> bool:
        """Whether the template reads content only as a list of parts, as some of image-text models do."""
        messages = [{"role": "user", "content": PROBE_QUESTION}, {"role": "assistant", "content": ANSWER_MARKER}]
        parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
        return (
            not self._shows(messages) and self._shows(parts) and not self._shows(parts, f"'{ANSWER_MARKER}'")
        )  # no repr

    @functools.cached_property
    def _reasoning_field(self) -> bool:
        """Whether the template renders the reasoning of a message."""
        message = self._message(Turn("assistant", ANSWER_MARKER, THOUGHT_MARKER), with_reasoning=True)
        return self._shows([self._message(Turn("user", PROBE_QUESTION), with_reasoning=False), message], THOUGHT_MARKER)

    def _shows(self, messages: Sequence[Mapping[str, Any]], word: str = ANSWER_MARKER) -> bool:
        """Whether the rendered messages contain `word`."""
        try:
            return word in self._render(messages)
        except ModelError:
            return False

    def _render(self, messages: Sequence[Mapping[str, Any]], *, generate: bool = False) -> str:
        try:
            rendered = self.tokenizer.apply_chat_template(
                list(messages),
                chat_template=self.text,
                tokenize=False,
                add_generation_prompt=generate,
                starts_with_bos=self.starts_with_bos,
                **self.options,
            )
        except Exception as error:  # a template is foreign code and may raise anything
            has_system = any(message["role"] == "system" for message in messages)
            advice = "Leave the system message out" if has_system else "Use another prompt.template"
            raise ModelError(
                f"the chat template fails on the conversation: {error}", where=self.source, next=advice
            ) from error
        return str(rendered)


class TemplateTokenizer:
    """A stand-in for the tokenizer of a GGUF file, with what Template needs: rendering and special tokens."""

    added_tokens_decoder: Mapping[int, Any] = {}
    unk_token = bos_token_id = None

    def __init__(self, specials: Sequence[str]) -> None:
        """`specials` are the file's control tokens."""
        self.all_special_tokens = list(specials)

    def apply_chat_template(
        self, messages: list[Mapping[str, Any]], *, chat_template: str, add_generation_prompt: bool, **variables: Any
    ) -> str:
        """Renders the messages in transformers' sandbox, without a start token."""
        from transformers.utils.chat_template_utils import render_jinja_template

        variables.pop("tokenize", None)
        end = next(iter(self.all_special_tokens), "")
        rendered, _ = render_jinja_template(
            conversations=[messages],
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            **{"bos_token": "", "eos_token": end, **variables},
        )
        return str(rendered[0])


def unknown_token(tokenizer: Any) -> str | None:
    """Returns the tokenizer's token for unknown text; None if it names another token, as GPT-2 and SmolLM2 do.

    These two name their end-of-text token as `unk_token`.
    """
    unknown = tokenizer.unk_token
    return unknown if unknown and "unk" in unknown.lower() else None


def load_tokenizer(folder: Path) -> Any:
    """Loads the tokenizer in `folder` and sets a padding token. Raises ModelError if there is no fast tokenizer."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"the tokenizer cannot be loaded: {error}", where=str(folder), next="Choose another base.model"
        ) from error
    if not getattr(tokenizer, "is_fast", True):
        raise ModelError(
            "the tokenizer gives no character offsets", where=str(folder), next="Choose a model with a tokenizer.json"
        )
    if tokenizer.pad_token is None:  # padding is masked by position, never by this id, so any token will do
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def load_template(
    tokenizer: Any,
    name: str,
    folder: Path,
    *,
    options: Mapping[str, Any] | None = None,
    reasoning: Reasoning = "learn",
    today: datetime.date | None = None,
) -> Template:
    """Loads the template `name`: 'model', or a .jinja file relative to `folder`.

    The date that it writes is fixed to `today`, so that a run resumed later renders the same text. Raises RecipeError
    for a file that cannot be read and for the errors that `wrong_options` returns.
    """
    text, source = _template_text(tokenizer, name, folder)
    if options:
        from tunesmith.prompt.options import check_template_options

        raise_all(check_template_options(text, options))
    return Template(tokenizer, pin_date(text, today or datetime.date.today()), source, options or {}, reasoning)


def _template_text(tokenizer: Any, name: str, folder: Path) -> tuple[str, str]:
    if name == "model":
        text = tokenizer.chat_template
        if isinstance(text, dict):  # several templates by name; the others are for tools and retrieval
            text = text.get("default")
        if isinstance(text, str) and text:
            return text, "the model's own template"
        return PLAIN_TEMPLATE, "the plain template (the model has none)"
    path = folder / name
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"the template cannot be read: {error}", where=str(path), next="Check prompt.template"
        ) from error


def writes_date(text: str) -> bool:
    """Whether the template reads today's date."""
    return "strftime_now" in text


def pin_date(text: str, today: datetime.date) -> str:
    """Returns the template with `today` in place of the current date.

    Raises ModelError for a template that computes the date's format.
    """

    def format_date(match: re.Match[str]) -> str:
        return json.dumps(today.strftime(match["format"]))

    pinned = _DATE_TEST.sub(lambda match: "false" if match["negated"] else "true", _DATE_CALL.sub(format_date, text))
    if writes_date(pinned):
        raise ModelError(
            "the chat template computes the format of today's date, so the date cannot be fixed for the run",
            next="Copy the template into a .jinja file, write the date into it, and set prompt.template to that file",
        )
    return pinned


def _adds_bos(tokenizer: Any) -> bool:
    if tokenizer.bos_token_id is None:
        return False
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[0] == tokenizer.bos_token_id
