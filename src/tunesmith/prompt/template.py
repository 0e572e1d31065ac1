"""A conversation as the text that the model reads. Templates run in transformers' Jinja sandbox."""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError, RecipeError, raise_all

if TYPE_CHECKING:
    from tunesmith.prompt.reply import ReplyFormat

Reasoning = Literal["learn", "drop"]

# For base models that bring no chat template (GPT-2, Llama-2-7b): plain words that every tokenizer knows.
PLAIN = (
    "{{ bos_token if starts_with_bos else '' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### Instruction:\n' + message['content'] + '\n\n' }}"
    "{% else %}{{ '### Response:\n' + message['content'] + eos_token + '\n\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
PROBE = "xq7question7qx"  # stands for a question, an answer and a thought where a template is examined
ANSWER = "xq7answer7qx"
THOUGHT = "xq7thought7qx"
# A thought that the generation prompt leaves open, and one that a template writes empty.
OPEN_THOUGHT = re.compile(r"<((?:\w+:)?(?:think|thinking|thought|reasoning))>\s*$")
EMPTY_THOUGHT = re.compile(r"(<((?:\w+:)?(?:think|thinking|thought|reasoning))>)(\s*)(</\2>)")
_DATE_CALL = re.compile(r"strftime_now\(\s*(?P<quote>['\"])(?P<format>[^'\"]*)(?P=quote)\s*\)")
_DATE_TEST = re.compile(r"\bstrftime_now\s+is\s+(?P<negated>not\s+)?defined\b")


@dataclass(frozen=True)
class Answer:
    """The rendered text of a conversation that ends with an answer, in parts that follow each other.

    `prompt` is what the model reads before it answers; `opening` is the template's own beginning of an answer (a
    header, an empty thought); `thought` is the row's reasoning with what separates it from the text; `text` is the
    answer; `ending` goes up to the end of the end-of-turn token; `rest` is what stands behind that.
    """

    prompt: str
    opening: str
    thought: str
    text: str
    ending: str
    rest: str

    @property
    def through(self) -> str:
        """Everything up to the end of the end-of-turn token."""
        return self.prompt + self.opening + self.thought + self.text + self.ending


@dataclass(frozen=True)
class Template:
    """A tokenizer and the chat template that it renders.

    `source` says where the template comes from, `options` are variables that it is given (enable_thinking,
    date_string, …), `reasoning` says whether a row's reasoning is rendered.
    """

    tokenizer: Any
    text: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    reasoning: Reasoning = "learn"

    @functools.cached_property
    def starts_with_bos(self) -> bool:
        """Whether the tokenizer itself would put its start token before a text."""
        return _adds_bos(self.tokenizer)

    @functools.cached_property
    def specials(self) -> re.Pattern[str]:
        """Finds special tokens written out in a text."""
        known = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        known |= set(self.tokenizer.all_special_tokens)
        words = sorted(known - {unknown_token(self.tokenizer)}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, words)) or r"(?!)")

    def render(self, turns: Sequence[Turn], *, generate: bool = False) -> str:
        """The turns as text; with `generate`, up to the point where the assistant begins.

        Raises ModelError when the template refuses the turns.
        """
        field_known = self.reasoning == "learn" and self._reasoning_field
        return self._render([self._message(turn, field_known) for turn in turns], generate=generate)

    def answer(self, turns: Sequence[Turn]) -> Answer:
        """The last turn, an answer, as the model reads what comes before it and should write it.

        Raises ModelError for a template under which no answer can be learned, and DataError for a turn that it changes
        or leaves out.
        """
        from tunesmith.prompt.answers import locate

        return locate(self, turns)

    @functools.cached_property
    def plain_answer(self) -> Answer:
        """How an answer without reasoning is written, with the marker ANSWER in place of its text."""
        return self.answer((Turn("user", PROBE), Turn("assistant", ANSWER)))

    @functools.cached_property
    def next_end(self) -> str:
        """What ends an answer when the conversation goes on: '' where no special token does.

        Templates such as GLM-4's write nothing behind the last answer: the next turn's header ends it.
        """
        turns = (Turn("user", PROBE), Turn("assistant", ANSWER), Turn("user", PROBE))
        behind = self.render(turns).partition(ANSWER)[2]
        match = self.specials.search(behind)
        return behind[: match.end()] if match and not behind[: match.start()].strip() else ""

    @functools.cached_property
    def after_thought(self) -> str:
        """What the template writes between reasoning and text; '' where it writes no reasoning."""
        written = self.render((Turn("user", PROBE), Turn("assistant", ANSWER, THOUGHT)))
        return written.partition(THOUGHT)[2].partition(ANSWER)[0] if THOUGHT in written else ""

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """Tokens that stand for no text."""
        from tunesmith.prompt.tokens import special_ids

        return special_ids(self.tokenizer)

    @functools.cached_property
    def form(self) -> ReplyFormat:
        """How a model's output under this template divides into a thought and a reply."""
        from tunesmith.prompt.reply import ReplyFormat

        return ReplyFormat.of(self)

    def _message(self, turn: Turn, field_known: bool) -> dict[str, Any]:
        content: Any = [{"type": "text", "text": turn.text}] if self._wants_parts else turn.text
        message = {"role": turn.role, "content": content}
        if turn.reasoning and field_known:  # the names that templates know it by
            message |= dict.fromkeys(("reasoning_content", "reasoning", "thinking"), turn.reasoning)
        return message

    @functools.cached_property
    def _wants_parts(self) -> bool:
        """Whether the template reads content as a list of parts only, as those of image-text models may."""
        messages = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": ANSWER}]
        parts = [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in messages]
        return not self._shows(messages) and self._shows(parts) and not self._shows(parts, f"'{ANSWER}'")  # no repr

    @functools.cached_property
    def _reasoning_field(self) -> bool:
        """Whether the template renders the reasoning of a message."""
        message = self._message(Turn("assistant", ANSWER, THOUGHT), field_known=True)
        return self._shows([self._message(Turn("user", PROBE), field_known=False), message], THOUGHT)

    def _shows(self, messages: Sequence[Mapping[str, Any]], word: str = ANSWER) -> bool:
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
        except Exception as error:  # a template is foreign code: whatever it raises is its refusal
            has_system = any(message["role"] == "system" for message in messages)
            advice = "Leave the system message out" if has_system else "Give another prompt.template"
            raise ModelError(
                f"the chat template refuses the conversation: {error}", where=self.source, next=advice
            ) from error
        return str(rendered)


class FileTokenizer:
    """What Template needs of a tokenizer, for the chat template of a GGUF file: rendering, and special tokens."""

    added_tokens_decoder: Mapping[int, Any] = {}
    unk_token = bos_token_id = None

    def __init__(self, specials: Sequence[str]) -> None:
        """`specials` are the file's control tokens."""
        self.all_special_tokens = list(specials)

    def apply_chat_template(
        self, messages: list[Mapping[str, Any]], *, chat_template: str, add_generation_prompt: bool, **given: Any
    ) -> str:
        """The messages as transformers' sandbox renders them; start and end tokens are left out."""
        from transformers.utils.chat_template_utils import render_jinja_template

        given.pop("tokenize", None)
        end = next(iter(self.all_special_tokens), "")
        rendered, _ = render_jinja_template(
            conversations=[messages],
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            **{"bos_token": "", "eos_token": end, **given},
        )
        return str(rendered[0])


def unknown_token(tokenizer: Any) -> str | None:
    """The token that stands for text which the tokenizer does not know; None where it ends or begins texts as well.

    GPT-2's tokenizer names its end of text here, and SmolLM2's too: that is no sign for unknown text.
    """
    unknown = tokenizer.unk_token
    return unknown if unknown and "unk" in unknown.lower() else None


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


def load_template(
    tokenizer: Any,
    wanted: str,
    folder: Path,
    *,
    options: Mapping[str, Any] | None = None,
    reasoning: Reasoning = "learn",
    today: datetime.date | None = None,
) -> Template:
    """The template `wanted`: 'model', or a .jinja file relative to `folder`.

    The date that it writes is fixed to `today`, so that a run which goes on later renders the same text. Raises
    RecipeError for a file that cannot be read, and what `wrong_options` finds of the options.
    """
    text, source = _template_text(tokenizer, wanted, folder)
    if options:
        from tunesmith.prompt.options import wrong_options

        raise_all(wrong_options(text, options))
    return Template(tokenizer, pin_date(text, today or datetime.date.today()), source, options or {}, reasoning)


def _template_text(tokenizer: Any, wanted: str, folder: Path) -> tuple[str, str]:
    if wanted == "model":
        own = tokenizer.chat_template
        if isinstance(own, dict):  # several templates by name; the others are for tools and retrieval
            own = own.get("default")
        if isinstance(own, str) and own:
            return own, "the model's own template"
        return PLAIN, "the plain template (the model has none)"
    path = folder / wanted
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"the template cannot be read: {error}", where=str(path), next="Check prompt.template"
        ) from error


def writes_date(text: str) -> bool:
    """Whether the template asks for today's date."""
    return "strftime_now" in text


def pin_date(text: str, today: datetime.date) -> str:
    """The template with `today` written out wherever it asks for the date of the moment.

    Raises ModelError for a template that puts the date's format together while it runs.
    """

    def written(match: re.Match[str]) -> str:
        return json.dumps(today.strftime(match["format"]))

    pinned = _DATE_TEST.sub(lambda match: "false" if match["negated"] else "true", _DATE_CALL.sub(written, text))
    if writes_date(pinned):
        raise ModelError(
            "the chat template computes the format of today's date, so the date cannot be fixed for the run",
            next="Copy the template into a .jinja file, write the date into it, and name it as prompt.template",
        )
    return pinned


def _adds_bos(tokenizer: Any) -> bool:
    if tokenizer.bos_token_id is None:
        return False
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[0] == tokenizer.bos_token_id
