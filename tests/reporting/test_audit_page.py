"""The page about the data: every row accounted for, every finding shown with its proof, nothing made markup."""

from __future__ import annotations

import re
from typing import Any

import pytest

from strict_pages import (
    EVIL,
    MONEY,
    TOPIC,
    Page,
    account,
    check_foreign_text,
    check_nothing_is_fetched,
    check_plots_and_ids,
    finding,
    told,
    toy_recipe,
)
from tunesmith.config.recipe import CHECKS
from tunesmith.config.registry import entries
from tunesmith.reporting.audit_page import SHOWN, SHOWN_REPAIRS, audit_page, check_documentation

KINDS = ("mojibake", "whitespace", "collapsed_list")


def mended(count: int = 1) -> dict[str, Any]:
    examples = [
        {
            "where": f"rows.jsonl line {n}",
            "column": "topic",
            "before": f"{EVIL}\r\n",
            "after": f"{EVIL}\n",
            "kind": kind,
        }
        for kind in KINDS
        for n in range(count)
    ]
    return {"rows": count, "pseudonyms": 0, "kinds": dict.fromkeys(KINDS, count), "examples": examples}


def split_page(**changes: Any) -> str:
    example = [(f"<s>[INST] {EVIL}", False), (f"{EVIL}</s>", True)]
    plain = account(**{"repaired": mended(), **changes})
    return audit_page(
        "toy", toy_recipe().data, plain, limit=1024, example=example, stop="</s>", template=f"{EVIL}.jinja"
    )


def looked_page(**changes: Any) -> str:
    """The page of rows that were looked at and not split."""
    whole = {"parts": None, "groups": None, "leaks": None, "not_drawn": None, "kept": 1233, "unread": 0}
    return audit_page("toy", toy_recipe().data, account(**{"repaired": mended(), **whole, **changes}))


@pytest.fixture(params=[split_page, looked_page], ids=["split", "looked at"])
def page(request: pytest.FixtureRequest) -> str:
    html: str = request.param()
    return html


def test_foreign_text_is_text_and_never_markup(page: str) -> None:
    check_foreign_text(page)


def test_nothing_is_fetched(page: str) -> None:
    check_nothing_is_fetched(page)


def test_plots_say_what_they_show_and_links_lead_somewhere(page: str) -> None:
    check_plots_and_ids(page)


def items(page: str) -> list[str]:
    return [" ".join(item.split()) for item in re.findall(r"<li>(.*?)</li>", page)]


def test_the_page_accounts_for_the_rows() -> None:
    page = split_page()
    read = Page(page)
    assert items(page) == [
        "<b>1,234</b> rows read",
        "<b>−1</b> dropped: too long",
        "<b>1,000</b> for training",
        "<b>9</b> for validation",
        "<b>4</b> for testing, topics known",
        "<b>2</b> for testing, topics never seen",
    ]
    assert "Longest row: 1057 tokens, of 1024 allowed." in read.text
    assert f"Held out as a whole: unseen {TOPIC}." in read.text
    assert f"{EVIL} line 3" in read.text
    *_, start = [n for n, (name, _) in enumerate(read.tags) if name == "mark"]
    assert read.tags[start - 1][0] == "pre"
    labels = [svg["aria-label"] for svg in read.named("svg")]
    assert {
        "Histogram of words in the prompt",
        "Histogram of words in the answer",
        "Histogram of tokens in the row",
    } <= set(labels)
    assert [label for label in labels if str(label).startswith("Bars")] == [
        "Bars of rows",
        "Bars of prompts",
        "Bars of answers",
    ]
    assert MONEY in read.text and "返品 <b>" in read.text  # labels of bars too, $ included


def test_rows_quarantined_and_not_drawn_are_told_apart() -> None:
    page = split_page(quarantined={"machine_tell": 3}, not_drawn=7)
    assert items(page)[:4] == [
        "<b>1,234</b> rows read",
        "<b>−1</b> dropped: too long",
        "<b>−3</b> quarantined: machine tell",
        "<b>−7</b> not drawn",
    ]


def test_rows_that_were_looked_at_want_a_decision() -> None:
    page = looked_page(quarantined={"generic": 2})
    assert items(page) == [
        "<b>1,234</b> rows read",
        "<b>−1</b> drop: too long",
        "<b>−2</b> quarantine: generic",
        "<b>1,233</b> to keep",
    ]
    text = Page(page).text
    assert "Nothing was changed." in text
    assert "leak into the training" not in text and "Held out as a whole" not in text


NONE = "No. None of the 1,000 training rows has the prompt of one of the 15 held-out rows"


@pytest.mark.parametrize(
    ("leaks", "words"),
    [
        ({"prompts": 0, "near_prompts": 0, "threshold": 0.8}, f"{NONE}, and none is 80 % alike."),
        ({"prompts": 0}, f"{NONE}."),
        ({"prompts": 3}, "Yes: 3 training rows have the same prompt as a held-out row, or nearly."),
        (
            {"prompts": 1, "near_prompts": 4, "threshold": 0.8, "example": f"{TOPIC} 2 and f 9"},
            f"Yes: 4 training rows have the same prompt as a held-out row, or nearly ({TOPIC} 2 and f 9).",
        ),
        ({"held": 0, "prompts": 0}, "No row is held out."),
        ({"prompts": 0, "answers": 5}, "5 training rows have the same answer as a held-out row, to another prompt."),
    ],
)  # fmt: skip
def test_leaks_are_told_first(leaks: dict[str, Any], words: str) -> None:
    page = split_page(leaks={"held": 15, "answers": 0, "pairs": 0, **leaks})
    assert words in " ".join(Page(page).text.split())


def test_a_page_without_groups_findings_or_repeats() -> None:
    profile = {**account()["profile"], "groups": {"": 3}, "prompt_ngrams": [], "answer_ngrams": []}
    parts = {"train": 3, "valid": 0, "test": 0, "unseen": 0}
    page = split_page(
        profile=profile,
        checks={"empty": told(), "too_long": told()},
        dropped={},
        repaired={"rows": 0, "pseudonyms": 0, "kinds": {}, "examples": []},
        parts=parts,
        groups={part: [] for part in parts},
    )
    read = Page(page)
    assert all(str(svg["aria-label"]).startswith("Histogram") for svg in read.named("svg"))
    assert "1,234 rows read. Nothing was found." in read.text
    assert "Nothing found by: empty, too long." in read.text
    assert "No row was left out." in read.text and "never seen" not in read.text


def test_findings_are_told_with_their_words_and_why_they_matter() -> None:
    tell = finding(check="machine_tell", proposal="quarantine", file="a.csv", excerpt="so ⟦As an AI⟧ I")
    checks = {
        "too_short": told(finding(check="too_short", proposal="keep", excerpt="")),
        "machine_tell": told(tell, {**tell, "row": "r2", "line": 4}),
        "imbalance": told(finding(check="imbalance", row="", file="", line=0, unit="", proposal="keep", excerpt="")),
        "empty": told(finding(check="empty", excerpt="")),
        "duplicate": told(),
    }
    page = split_page(checks=checks, quarantined={"machine_tell": 2})
    order = re.findall(r'<details id="check-(\w+)"', page)
    assert order == ["empty", "machine_tell", "too_short", "imbalance"]  # the gravest first, then the most rows
    assert "As an AI" in re.findall(r"<mark>(.*?)</mark>", page)
    read = " ".join(Page(page).text.split())
    assert "2 rows, 2 findings: quarantine" in read
    assert "the whole table" in read
    for check in order:
        documentation = check_documentation(check)
        assert documentation is not None
        assert documentation.what.split("`")[0] in read
        assert documentation.advice.split("`")[0] in read
    assert "Nothing found by: duplicate." in read


def test_more_findings_than_a_page_holds_are_counted() -> None:
    findings = [finding(line=n, row=f"r{n}", proposal="keep") for n in range(30)]
    facts = {**told(*findings), "found": 700, "rows": 700}
    page = split_page(checks={"too_long": facts})
    assert f"The first {SHOWN} of 700; all are in findings.jsonl." in Page(page).text
    assert page.count('<td class="where">') == SHOWN + len(KINDS)


def test_repairs_are_shown_in_turns_of_their_kinds_and_visibly() -> None:
    page = split_page(repaired=mended(9))
    section = page[page.index('id="repairs"') : page.index('id="seen"')]
    assert section.count("<tr>") == SHOWN_REPAIRS + 1
    assert "9 rows; 9 mojibake, 9 whitespace, 9 collapsed list" in Page(page).text
    assert "␍⏎" in section  # a carriage return can be seen
    assert "rows.jsonl line 3" in section and "rows.jsonl line 4" not in section  # a kind does not fill the page
    replaced = split_page(repaired={**mended(), "pseudonyms": 5})
    assert "1 rows were repaired, 5 personal values replaced." in Page(replaced).text


@pytest.mark.parametrize("name", entries(CHECKS))
def test_every_check_has_a_page(name: str) -> None:
    page = check_documentation(name)
    assert page is not None
    assert page.what.endswith((".", ")"))
    assert min(len(page.what), len(page.why), len(page.example), len(page.advice)) > 20


def test_what_became_of_conversations_and_reasoning_is_said() -> None:
    page = split_page(
        expanded={"conversations": 1, "rows": 3}, reasoning_left_out=1, turns={"answers with reasoning": 1}
    )
    assert " 1 conversation became 3 rows, one for each answer." in page
    assert "<dd>in the conversations: 1 answer with reasoning</dd>" in page
    assert "<dd>the reasoning of 1 row is left out (prompt.reasoning: drop)</dd>" in page
    many = split_page(expanded={"conversations": 1200, "rows": 3600}, reasoning_left_out=2)
    assert "1,200 conversations became 3,600 rows" in many and "the reasoning of 2 rows is left out" in many


MIXED_IN: dict[str, Any] = {
    "asked": 300, "read": 191, "drawn": 188, "not_drawn": 0, "left_out": {"held_out_prompt": 2, "too_long": 1},
    "pseudonyms": 4,
    "sources": [{"file": f"{TOPIC}.jsonl", "bytes": 1, "encoding": "", "notes": [EVIL], "rows": 191}],
}  # fmt: skip


def test_rows_mixed_into_the_training_are_counted_on_the_page() -> None:
    html = split_page(mixed_in=MIXED_IN, parts={"train": 1188, "valid": 9, "test": 4, "unseen": 2})
    check_foreign_text(html)
    check_plots_and_ids(html)
    text = Page(html).text
    for words in (
        "188 of the 1,188 training rows are mixed in (data.mix_in); 191 rows were read, 3 were left out "
        "(the prompt of a held-out row, or nearly: 2, too long: 1). data.mix_in.rows asks for 300 rows, but only 188 "
        "can be used.",
        "+188 mixed in from another table (data.mix_in)",
        "1,188 for training, 188 of them mixed in",
        "4 personal values were replaced.",
    ):
        assert words in text, words
    assert "mixed in" not in Page(split_page()).text
