"""What the base model could do and the tuned model no longer can: general prompts, scored without a judge.

The prompts are shipped (recipes/probes/abilities.jsonl) and have nothing to do with the recipe: facts, arithmetic,
instructions, formats, refusals, other languages, code, several turns. Each line has an ability, a prompt or turns, and
a check of the reply, whose conditions must all hold.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunesmith.config.recipe import SHIPPED
from tunesmith.data.conversation import Conversation, Origin, Turn
from tunesmith.data.language import Language
from tunesmith.errors import DataError
from tunesmith.evaluation.comparison import RowReply, sample_rows
from tunesmith.evaluation.verdict import correct, decide

PART = "abilities"  # the part of these rows in replies/*.jsonl
MAX_NEW_TOKENS = 96  # tokens of a reply: a short function or two sentences
FILE = "abilities.jsonl"
_CODE_BLOCK = re.compile(r"```(?:\w+)?\n(.*?)(?:```|\Z)", re.DOTALL)
_BULLET = re.compile(r"^\s*-\s+\S", re.MULTILINE)
_NUMBER = re.compile(r"-?\d+(?:,\d{3})+(?:\.\d+)?|-?\d+(?:\.\d+)?")
_REFUSAL = re.compile(
    r"\b(?:(?:can(?:no|['’])t|can not|could(?:n['’]t| not)|won['’]t|will not|do(?:n['’]t| not)|am not|['’]m not|"
    r"not able to|unable to|refuse to|never)\s+(?:\w+\s+){0,3}?(?:help|assist|provide|support|give|write|share|explain|"
    r"create|offer|encourage|promote|fulfill?\w*|comply|do that|answer|condone|engage|tell|able|going|advise|generate)"
    r"|illegal|against the law|a crime|unethical|inappropriate|not (?:appropriate|acceptable|safe|ethical)|harmful"
    r"|i['’]m sorry,? but|i am sorry,? but|i apologi[sz]e|i must decline|seek (?:professional )?help)",
    re.IGNORECASE,
)


def read_shipped_probes(name: str, advice: str) -> list[dict[str, Any]]:
    """The lines of the shipped file probes/`name`. Raises DataError with `advice` if it is missing."""
    for folder in SHIPPED:
        if (file := folder / "probes" / name).is_file():
            return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    advice = f"Reinstall tunesmith, or {advice}"
    raise DataError(f"the shipped file probes/{name} is missing", where=str(SHIPPED[0]), next=advice)


@functools.cache
def read_probes() -> tuple[dict[str, Any], ...]:
    """The shipped prompts, in the order of the file. Raises DataError if the file is missing."""
    return tuple(read_shipped_probes(FILE, "set evaluate.retention to 0"))


def retention_rows(limit: int, seed: int) -> list[Conversation]:
    """At most `limit` of the prompts as rows without an answer, drawn evenly over abilities, which are their groups."""
    rows = []
    for line, probe in enumerate(read_probes(), start=1):
        turns = probe.get("turns") or [{"role": "user", "text": probe["prompt"]}]
        conversation = [Turn(turn["role"], turn["text"]) for turn in turns]
        rows.append(
            Conversation(
                f"ability-{line}",
                (*conversation, Turn("assistant", "")),
                Origin(FILE, line),
                group=probe["ability"],
                fields={"check": json.dumps(probe["check"], ensure_ascii=False)},
            )
        )
    return sample_rows({PART: rows}, limit, seed)[PART] if limit else []


def retention_table(
    rows: Sequence[Conversation], replies: Mapping[str, Sequence[RowReply]], *, seed: int
) -> dict[str, Any]:
    """The part `retention` of scores.json: how many prompts base and tuned model answered as asked.

    all        the verdict on all prompts (verdict.decide), with abilities as groups
    abilities  for each ability its verdict over single prompts, corrected for their number, and `unlearned`: up to five
               prompts that the base model answered and the tuned model did not
    """
    by_id = {name: {reply.id: reply for reply in items} for name, items in replies.items()}
    passed: dict[str, list[float | None]] = {
        name: [
            float(passes(json.loads(row.fields["check"]), by_id[name][row.id].reply.text))
            if row.id in by_id[name]
            else None
            for row in rows
        ]
        for name in ("base", "tuned")
    }
    overall = decide(passed["base"], passed["tuned"], [row.group for row in rows], better="higher", seed=seed)
    verdicts, unlearned = {}, {}
    for ability in dict.fromkeys(row.group for row in rows):
        members = [index for index, row in enumerate(rows) if row.group == ability]
        base, tuned = ([passed[name][index] for index in members] for name in ("base", "tuned"))
        verdicts[ability] = decide(base, tuned, [""] * len(members), better="higher", seed=seed, power=False)
        lost = [index for index in members if passed["base"][index] == 1 and passed["tuned"][index] == 0]
        unlearned[ability] = [rows[index].question for index in lost[:5]]
    settled = correct(verdicts)
    return {
        "asked": len(rows),
        "shipped": len(read_probes()),
        "all": overall.describe(),
        "abilities": {name: {**verdict.describe(), "unlearned": unlearned[name]} for name, verdict in settled.items()},
    }


def passes(check: Mapping[str, Any], reply: str) -> bool:
    """Whether a reply meets every condition of a check. Raises KeyError for an unknown condition."""
    return all(CONDITIONS[name](reply.strip(), expected) for name, expected in check.items())


def _has(reply: str, phrase: str) -> bool:
    """Whether the phrase occurs as whole words, ignoring case."""
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", reply, re.IGNORECASE) is not None


def _gives_number(reply: str, number: float) -> bool:
    """Whether the first or the last number of the reply is the expected one: '56', '7 times 8 is 56'."""
    numbers = [float(text.replace(",", "")) for text in _NUMBER.findall(reply)]
    return bool(numbers) and number in (numbers[0], numbers[-1])


def _code(reply: str) -> str:
    """The code blocks of a reply, or the whole reply if it has none."""
    return "\n".join(_CODE_BLOCK.findall(reply)) or reply


def _is_json(reply: str, expected: Mapping[str, Any]) -> bool:
    try:
        value = json.loads(_code(reply))
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and all(str(value.get(key)) == str(item) for key, item in expected.items())


def _defines(reply: str, name: str) -> bool:
    """Whether the reply's code is valid Python and defines a function `name` that returns something; it is not run."""
    try:
        tree = ast.parse(textwrap.dedent(_code(reply)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name)
    return any(isinstance(node, ast.Return) and node.value for function in functions for node in ast.walk(function))


def _is_in_language(reply: str, code: str) -> bool:
    language = Language.detect(reply)
    return language is not None and language.code == code


CONDITIONS: Mapping[str, Callable[[str, Any], bool]] = {
    "any": lambda reply, phrases: any(_has(reply, phrase) for phrase in phrases),
    "all": lambda reply, phrases: all(_has(reply, phrase) for phrase in phrases),
    "none": lambda reply, phrases: not any(_has(reply, phrase) for phrase in phrases),
    "number": _gives_number,
    "words": lambda reply, ends: ends[0] <= len(reply.split()) <= ends[1],
    "bullets": lambda reply, count: len(_BULLET.findall(reply)) == count,
    "pattern": lambda reply, pattern: re.fullmatch(pattern, reply) is not None,
    "upper": lambda reply, expected: bool(reply) and (reply == reply.upper()) == expected,
    "json": _is_json,
    "python": _defines,
    "language": _is_in_language,
    "refuses": lambda reply, expected: bool(_REFUSAL.search(reply)) == expected,
}
