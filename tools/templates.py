"""Writes the table of docs/templates.md: how rows are trained on under each chat template that TRL ships."""

from __future__ import annotations

import functools
import importlib.util
import re
from importlib.metadata import version
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tunesmith.data.conversation import Conversation, Origin, Turn
from tunesmith.errors import DataError, ModelError
from tunesmith.prompt.template import OPEN_THOUGHT, Reasoning, Template
from tunesmith.prompt.tokens import expand, stop_ids

PAGE = Path(__file__).parents[1] / "docs/templates.md"
BEGIN, END = "<!-- table: python -m tools.templates -->", "<!-- end of the table -->"
SPECIAL = re.compile(
    r"<\|[^<>|\s'\"]+\|>|<\|[a-z_]+>|<[a-z_]+\|>|<｜[^<>｜\s]+｜>|</s>|<(?:start|end)_of_\w+>|\[/?INST\]"
)
PLAIN = ("<think>", "</think>")  # current tokenizers have these as tokens that are not special


def folder() -> Path:
    """Returns the folder of TRL's templates."""
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("trl")
    return Path(spec.origin).parent / "chat_templates"


def names() -> list[str]:
    """Returns the names of TRL's templates."""
    return sorted(path.stem for path in folder().glob("*.jinja"))


@functools.cache
def template(name: str, reasoning: Reasoning = "learn") -> Template:
    """Returns one of TRL's templates with a byte-level tokenizer that has the special tokens in it."""
    text = (folder() / f"{name}.jinja").read_text(encoding="utf-8")
    special = list(dict.fromkeys(["<PAD>", "<BOS>", "<EOS>", *SPECIAL.findall(text)]))
    words = [*special, *PLAIN, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE(vocab={word: place for place, word in enumerate(words)}, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<BOS>",  # noqa: S106  (tokens of text)
        eos_token="<EOS>",  # noqa: S106
        pad_token="<PAD>",  # noqa: S106
        additional_special_tokens=special[3:],
    )
    tokenizer.add_tokens(list(PLAIN))
    return Template(tokenizer, text, name, {}, reasoning)


def conversation(answers: int, *, system: bool = False, reasoning: bool = False) -> Conversation:
    """Returns a row with this many answers."""
    turns = [Turn("system", "Be kind.")] if system else []
    for n in range(answers):
        thought = f"Thought {n}:\nleft?\n\nright." if reasoning else ""
        turns += [Turn("user", f"How about {n}?"), Turn("assistant", f"Take road {n}.\n\n1. Go 日", thought)]
    return Conversation("r", tuple(turns), Origin("rows.jsonl", 3))


def outcome(chat_template: Template, row: Conversation) -> str:
    """Returns whether a row is trained on in place, expanded, or refused (with the reason)."""
    try:
        return "in place" if len(expand(row, chat_template)) == 1 else "one row per answer"
    except (DataError, ModelError) as error:
        return f"refused: {error.what.rsplit(': ', 1)[-1]}"


def table() -> str:
    """Returns the table in Markdown."""
    lines = [
        f"TRL {version('trl')}:",
        "",
        "| template | several answers | system message | reasoning | end of an answer | generation prompt |",
        "|---|---|---|---|---|---|",
    ]
    for name in names():
        if name.endswith("_training"):
            continue
        chat_template = template(name)
        form, prompt = chat_template.form, chat_template.plain_answer.prompt
        reasoning = outcome(chat_template, conversation(1, reasoning=True))
        if reasoning == "in place":
            start = form.thoughts[0].start or "(opened by the prompt)"
            reasoning = f"`{start} … {form.thoughts[0].end}`"
        (end,) = chat_template.tokenizer.convert_ids_to_tokens(stop_ids(chat_template)[:1])
        opens = "opens a thought" if OPEN_THOUGHT.search(prompt) else ""
        cells = [
            name,
            outcome(chat_template, conversation(2)),
            outcome(chat_template, conversation(1, system=True)),
            reasoning,
            f"`{end}`",
            opens,
        ]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def page() -> str:
    """Returns docs/templates.md with a new table."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
