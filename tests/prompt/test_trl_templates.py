"""Under every chat template of the installed TRL, each answer carries loss as a whole or its row is refused."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
from tools import templates
from tools.templates import conversation, names, template

from tunesmith.data.conversation import Conversation, Origin, Turn
from tunesmith.errors import DataError, ModelError
from tunesmith.prompt.reply import ReplyStream
from tunesmith.prompt.template import Template, pin_date, writes_date
from tunesmith.prompt.tokens import Example, encode, encode_prompt, expand, special_ids

NO_SYSTEM = {"gemma", "gemma_training"}
EMPTY_THOUGHT_PROMPT = {"qwen3_5_nothink", "qwen3_5_nothink_training"}
MORE = 2000  # random conversations


TEMPLATES = names()


def learned(example: Example, chat_template: Template) -> list[list[int]]:
    """Returns the runs of tokens with loss."""
    pairs = itertools.groupby(zip(example.ids, example.loss_mask, strict=True), key=lambda pair: pair[1])
    return [[token for token, _ in run] for with_loss, run in pairs if with_loss]


def check(row: Conversation, chat_template: Template) -> str:
    """Asserts from the tokens alone that every answer carries loss; returns 'in place' or 'expanded'."""
    rows = expand(row, chat_template)
    examples = [encode(part, chat_template) for part in rows]
    runs = [run for example in examples for run in learned(example, chat_template)]
    answers = [turn for turn in row.turns if turn.role == "assistant" and turn.learn]
    assert len(runs) == len(answers)
    special = special_ids(chat_template.tokenizer)
    for turn, run in zip(answers, runs, strict=True):
        text = chat_template.tokenizer.decode(run[:-1])
        assert run[-1] in special
        assert text.rstrip().endswith(turn.text.strip())  # so the token with loss after it ends it
        before = text.rstrip().removesuffix(turn.text.strip())
        thought = turn.reasoning.strip() if chat_template.reasoning == "learn" else ""
        assert thought in before
    for part, example in zip(rows, examples, strict=True):
        last = max(place for place, turn in enumerate(part.turns) if turn.role == "assistant" and turn.learn)
        prompt = encode_prompt(part.turns[:last], chat_template)
        assert list(example.ids[: len(prompt)]) == prompt
        assert example.loss_mask[len(prompt)] and not example.loss_mask[len(prompt) - 1]
    return "in place" if len(rows) == 1 else "expanded"


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_answer_of_every_template(name: str) -> None:
    chat_template = template(name)
    for answers, system, reasoning in itertools.product((1, 2, 3), (False, True), (False, True)):
        row = conversation(answers, system=system, reasoning=reasoning)
        if system and name in NO_SYSTEM:
            with pytest.raises(ModelError, match="System role not supported"):
                expand(row, chat_template)
            continue
        if reasoning and name in EMPTY_THOUGHT_PROMPT:
            with pytest.raises(
                DataError, match=r"has no place for the row's reasoning\. Set prompt\.reasoning to drop"
            ):
                expand(row, chat_template)
            assert check(row, template(name, "drop"))
            continue
        outcome = check(row, chat_template)
        assert outcome == "in place" if answers == 1 else outcome


@pytest.mark.parametrize("name", [name for name in TEMPLATES if not name.endswith("_training")])
def test_a_reply_is_what_follows_the_opening_and_the_thought(name: str) -> None:
    chat_template = template(name)
    form = chat_template.form
    for reasoning in (False, True) if name not in EMPTY_THOUGHT_PROMPT else (False,):
        row = conversation(1, system=False, reasoning=reasoning)
        (run,) = learned(encode(row, chat_template), chat_template)
        written = [
            chat_template.tokenizer.decode([token], skip_special_tokens=not form.needs_special_tokens)
            for token in run[:-1]
        ]
        whole = chat_template.tokenizer.decode(run[:-1], skip_special_tokens=not form.needs_special_tokens)
        assert form.split(whole) == (row.turns[-1].reasoning, row.answer)
        stream = ReplyStream(form)
        ascii_only = [piece for piece in written if piece.isascii()]
        shown = "".join(map(stream.feed, ascii_only)) + stream.rest()
        assert shown.strip() == row.answer.encode("ascii", "ignore").decode().strip()


@pytest.mark.parametrize("name", [name for name in TEMPLATES if "llama3_2" in name or "gptoss" in name])
def test_a_date_is_pinned(name: str) -> None:
    import datetime

    text = template(name).text
    assert writes_date(text)
    pinned = pin_date(text, datetime.date(2026, 2, 3))
    assert "strftime_now" not in pinned
    rendered = Template(template(name).tokenizer, pinned, name).render((Turn("user", "Hello?"),), generate=True)
    assert "03 Feb 2026" in rendered or "2026-02-03" in rendered


WORDS = [
    "road",
    "1. Go",
    "\n",
    "\n\n",
    " ",
    "  ",
    "日本",
    "é",
    "a",
    "```py\n    x = 1\n```",
    "<b>",
    "{{ x }}",
    "'",
    '"',
    "\t",
    "#",
]


def random_conversation(draw: random.Random) -> Conversation:
    def text() -> str:
        return "".join(draw.choices(WORDS, k=draw.randint(1, 8))) + draw.choice(["", "x", "."])

    turns = [Turn("system", text())] if draw.random() < 0.3 else []
    for _ in range(draw.randint(1, 4)):
        thought = text() if draw.random() < 0.3 else ""
        turns += [Turn("user", text()), Turn("assistant", text(), thought, draw.random() < 0.85)]
    return Conversation("r", tuple(turns), Origin("rows.jsonl", 1))


def outcomes(seed: int, pairs: Iterator[tuple[str, Conversation]]) -> dict[str, int]:
    counts = {"in place": 0, "expanded": 0, "refused": 0}
    for name, row in pairs:
        try:
            counts[check(row, template(name))] += 1
        except (DataError, ModelError) as error:
            assert error.what and error.next
            counts["refused"] += 1
    return counts


def test_no_row_of_random_conversations_is_silent() -> None:
    draw = random.Random(20)
    pairs = ((draw.choice(TEMPLATES), random_conversation(draw)) for _ in range(MORE))
    counts = outcomes(20, pairs)
    assert sum(counts.values()) == MORE
    assert counts["refused"] < MORE / 5


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", TEMPLATES)
def test_no_row_of_random_conversations_is_silent_under_any_template(name: str) -> None:
    draw = random.Random(name)
    counts = outcomes(21, ((name, random_conversation(draw)) for _ in range(MORE)))
    assert sum(counts.values()) == MORE


def test_the_table_in_the_docs_is_up_to_date() -> None:
    assert templates.PAGE.read_text(encoding="utf-8") == templates.page(), "run: python -m tools.templates"
