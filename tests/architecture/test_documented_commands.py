"""Every command in README and docs exists, with its options, and every setting in a --set is one of a recipe."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from tunesmith.cli import app
from tunesmith.config.recipe import parse_setting, read_recipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
GROUP: Any = get_command(app)


def commands(text: str) -> Iterator[str]:
    """The commands in code blocks and between backticks, without the program's name."""
    blocks = re.findall(r"^```(?:sh|bash|console|text)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += [" ".join(code.split()) for code in re.findall(r"`(tunesmith [^`]+)`", prose)]
    for line in lines:
        if found := re.match(r"(?:\$ )?(?:\.venv/bin/|python -m )?tunesmith ([a-z].*)", line):
            yield found[1]


def problem(command: str) -> str:
    """Why the command line would refuse a command; '' if it would run it."""
    name, *words = ["2" if word == "N" else word for word in shlex.split(command, comments=True)]
    if name not in GROUP.commands:
        return f"no command {name}"
    if not words or any(word.isupper() and word.startswith("-") for word in words):
        return ""  # the name of a command alone
    try:
        context = GROUP.commands[name].make_context(name, words)
    except Exception as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        return "" if "Missing" in message and len(words) < 2 else message
    for setting in context.params.get("set") or ():
        key = parse_setting(setting)[0]
        try:
            read_recipe("shopsphere", settings={key: object()})
        except Exception as error:
            if "unknown key" in str(error):
                return str(error)
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_documented_commands_exist(page: Path) -> None:
    found = {command: problem(command) for command in commands(page.read_text(encoding="utf-8"))}
    assert {command: text for command, text in found.items() if text} == {}


def test_wrong_commands_are_seen() -> None:
    block = "tunesmith trian x\ntunesmith train x --agian\ntunesmith run x --set train.epoch=3"
    text = f"```\n{block}\n```\n`tunesmith plan x --y`"
    assert [bool(problem(command)) for command in commands(text)] == [True, True, True, True]
