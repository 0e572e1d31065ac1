"""The pages: nothing from a row, a reply or a recipe is markup, and nothing is fetched."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.conversation import Conversation, Origin, Turn
from tunesmith.evaluate.compare import Answered, compare
from tunesmith.generate.text import Reply
from tunesmith.recipe import Recipe
from tunesmith.report import plots
from tunesmith.report.page import number
from tunesmith.report.pages_of_run import audit_page, report_page

TOPIC = "<img onerror>"
MONEY = 'costs $5 & $6 "a\'b"'
EVIL = f"</pre></code></style><script>alert(1)</script> {MONEY} <b onclick=x> {{{{ 7*7 }}}} --> http://evil.example/x"
LINE = "two\u2028lines"  # JSON leaves this line separator as it is
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Reads a page strictly: every tag must close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.styles: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.styles if self.open and self.open[-1] == "style" else self.texts).append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def recipe() -> Recipe:
    return Recipe.model_validate(
        {
            "name": "toy",
            "about": f"{EVIL}.",
            "base": {"model": f"{EVIL}/base"},
            "data": {
                "source": "rows.jsonl",
                "format": {"columns": {"group": "topic"}},
                "checks": ["empty", "too_long"],
            },
            "evaluate": {"metrics": ["numbered_steps", "loss", "length", "expected"], "primary": "numbered_steps"},
        }
    )


def account(**changes: Any) -> dict[str, Any]:
    finding = {
        "check": "too_long",
        "row": "r",
        "file": EVIL,
        "line": 3,
        "unit": "line",
        "message": EVIL,
        "proposal": "drop",
    }
    return {
        "read": 1234,
        "dropped": {"too_long": 1},
        "not_drawn": 0,
        "parts": {"train": 1000, "valid": 9, "test": 4, "unseen": 2},
        "groups": {"train": [TOPIC, MONEY], "valid": [], "test": [TOPIC], "unseen": [f"unseen {TOPIC}"]},
        "findings": [finding],
        "profile": {
            "rows": 3,
            "prompt_words": [3, 4, 9],
            "answer_words": [5, 5, 5],
            "tokens": [30, 41, 1057],
            "groups": {"": 1, TOPIC: 2, MONEY: 1, "返品 <b>": 3},
            "prompt_ngrams": [("how do <i>", 4), (EVIL, 2)],
            "answer_ngrams": [("tap & go", 3)],
        },
        **changes,
    }


def audited(recipe: Recipe, **changes: Any) -> str:
    return audit_page(
        recipe, account(**changes), [(f"<s>[INST] {EVIL}", False), (f"{EVIL}</s>", True)], "</s>", f"{EVIL}.jinja"
    )


ROWS = {
    "test": [
        Conversation(f"t{n}", (Turn("user", f"{EVIL} {n}"), Turn("assistant", f"1. {EVIL}")), Origin("f", n), TOPIC)
        for n in range(3)
    ],
    "unseen": [Conversation("u", (Turn("user", "how"), Turn("assistant", "1. Go")), Origin("f", 9), f"unseen {TOPIC}")],
    "outside the domain": [
        Conversation(
            "p",
            (Turn("user", EVIL), Turn("assistant", "")),
            Origin("p", 1),
            "",
            {"expect": "no_steps", "good_reply": EVIL},
        )
    ],
}


@pytest.fixture
def reported(recipe: Recipe, tmp_path: Path) -> Callable[..., str]:
    """reported(**parts to leave out or change) -> the page of a small run."""

    def make(audit: dict[str, Any] | None = None, events: list[dict[str, Any]] | None = None) -> str:
        said = {"base": f"{EVIL} {LINE} base", "tuned": f"1. {EVIL}\n2. tuned"}
        answers = {
            which: [
                Answered(row.id, part, Reply(text, which == "tuned", 5), 2.0 if row.answer else None)
                for part, members in ROWS.items()
                for row in members
            ]
            for which, text in said.items()
        }
        scores = compare(
            ROWS,
            answers["base"],
            answers["tuned"],
            recipe.evaluate.metrics,
            primary="numbered_steps",
            kind="topic",
            seed=1,
        )
        machine = {"name": EVIL, "device": "cpu", "cores": 2, "precision": "float32", "why": EVIL}
        plain = {
            "scores.json": scores,
            "audit.json": audit or account(),
            "machine.json": {**machine, "versions": {"torch": "2 <b>"}},
            "plan.json": {"peak": 2 << 30, "measured": 300 << 20},
        }
        for name, value in plain.items():
            (tmp_path / name).write_text(json.dumps(value))
        default = [
            {"kind": "start", "step": 0},
            {"kind": "valid", "step": 0, "loss": 3.0},
            {"kind": "step", "step": 1, "loss": 2.5},
            {"kind": "note", "step": 1, "text": EVIL},
            {"kind": "step", "step": 2, "loss": 2.0},
            {"kind": "valid", "step": 2, "loss": 2.1},
        ]
        events = default if events is None else events
        (tmp_path / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        (tmp_path / "replies").mkdir(exist_ok=True)
        for which, items in answers.items():
            lines = "".join(json.dumps(item.describe(), ensure_ascii=False) + "\n" for item in items)
            (tmp_path / f"replies/{which}.jsonl").write_text(lines, encoding="utf-8")
        summary = {"steps": 1200, "best_step": 2, "best_loss": 2.1, "tokens": 12345, "seconds": 61.5}
        seals = {
            "prepare": {"seconds": 1.2},
            "train": {"seconds": 62.0, "summary": summary, "weights": "w" * 64, "files": {"adapter": "a" * 64}},
            "evaluate": {},
        }
        return report_page(recipe, tmp_path, ROWS, command=f"tunesmith train {EVIL}", seals=seals)

    return make


@pytest.fixture(params=["audit", "report"])
def page(request: pytest.FixtureRequest, recipe: Recipe, reported: Callable[..., str]) -> str:
    return audited(recipe) if request.param == "audit" else reported()


def test_foreign_text_is_text_and_never_markup(page: str) -> None:
    read = Page(page)
    names = {name for name, _ in read.tags}
    assert not names & {"script", "img", "iframe", "object", "embed", "link", "form", "base", "b onclick=x"}
    assert all(attributes == {} for attributes in read.named("b"))  # ours; the foreign <b onclick> would have one
    assert not [key for _, attributes in read.tags for key in attributes if key.startswith("on")]
    assert read.text.count(EVIL) >= 4  # whole, character by character
    assert TOPIC in read.text
    assert "<script" not in page and "<img" not in page


def test_nothing_is_fetched(page: str) -> None:
    read = Page(page)
    places = {"src", "href", "xlink:href", "action", "poster", "srcset", "data", "background", "formaction", "cite"}
    links = {value for _, attributes in read.tags for key, value in attributes.items() if key in places}
    assert all(re.fullmatch(r"#\w+|audit\.html", str(link)) for link in links)
    styles = [*read.styles, *(str(a.get("style") or "") for _, a in read.tags)]
    assert len(read.styles) > 1
    assert not [style for style in styles if "@import" in style or "http" in style]
    urls = [url for _, a in read.tags for value in a.values() for url in re.findall(r"url\((.*?)\)", value or "")]
    assert urls and all(re.fullmatch(r"#\w+", url) for url in urls)
    policies = [meta["content"] for meta in read.named("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_plots_say_what_they_show_and_ids_are_unique(page: str) -> None:
    read = Page(page)
    plotted = read.named("svg")
    assert len(plotted) >= 2
    assert all(svg["role"] == "img" and len(svg["aria-label"] or "") > 10 for svg in plotted)
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert sorted(ids, key=str) == sorted(set(ids), key=str)
    wanted = {attributes["aria-labelledby"] for attributes in read.named("section")}
    assert wanted and wanted <= set(ids)
    used = {(attributes["xlink:href"] or "")[1:] for attributes in read.named("use")}
    assert used and used <= set(ids)


def test_the_audit_page_accounts_for_the_rows(recipe: Recipe) -> None:
    read = Page(audited(recipe))
    items = [" ".join(item.split()) for item in re.findall(r"<li>(.*?)</li>", audited(recipe))]
    assert items == [
        "<b>1,234</b> rows read",
        "<b>−1</b> too long",
        "<b>1,000</b> to learn from",
        "<b>9</b> to watch the training",
        "<b>4</b> to test, topics known",
        "<b>2</b> to test, topics never seen",
    ]
    assert "Longest row: 1057 tokens, of 1024 allowed." in read.text
    assert f"Held out as a whole: unseen {TOPIC}." in read.text
    assert f"{EVIL} line 3" in read.text
    (start,) = [n for n, (name, _) in enumerate(read.tags) if name == "mark"]
    assert read.tags[start - 1][0] == "pre"
    assert [svg["aria-label"] for svg in read.named("svg")] == [
        "Histogram of words in the prompt",
        "Histogram of words in the answer",
        "Histogram of tokens in the row",
        "Bars of rows",
        "Bars of prompts",
        "Bars of answers",
    ]
    assert MONEY in read.text and "返品 <b>" in read.text  # labels of bars too, $ included


def test_an_audit_without_groups_findings_or_repeats(recipe: Recipe) -> None:
    profile = {**account()["profile"], "groups": {"": 3}, "prompt_ngrams": [], "answer_ngrams": []}
    parts = {"train": 3, "valid": 0, "test": 0, "unseen": 0}
    groups = {part: [] for part in parts}
    read = Page(audited(recipe, profile=profile, findings=[], dropped={}, parts=parts, groups=groups))
    assert len(read.named("svg")) == 3
    assert "The checks (empty, too long) found nothing." in read.text
    assert "No row was dropped." in read.text and "never seen" not in read.text


def test_more_findings_than_a_page_holds_are_counted(recipe: Recipe) -> None:
    findings = [{**account()["findings"][0], "line": n, "proposal": "keep"} for n in range(700)]
    read = Page(audited(recipe, findings=findings))
    assert "The first 500 of 700; all are in audit.json." in read.text
    assert len(read.named("tr")) == 501


def test_the_report_says_what_was_found(reported: Callable[..., str]) -> None:
    text = reported()
    read = Page(text)
    assert '<div class="card verdict better">' in text
    verdict = "Tuning helped: numbered steps went from 0.00 to 1.00 over 4 held-out rows in 2 topics"
    for words in [
        verdict,
        "All held-out rows (4 rows in 2 topics)",
        "New questions, topics known from training (3 rows in 1 topic)",
        "Only 2 topics: rows of one topic resemble each other",
        "Asked about other things, the tuned model did what it should in 0 % of the prompts (base: 100 %).",
        "4 questions in 2 topics were asked.",
        "1200 steps in 61.5 seconds, 12,345 tokens. The adapter of step 2 was kept",
        "planned 2.0 GiB, measured 300 MiB while training",
        "cut: did not stop by itself.",
        LINE,
        "wwwwwwwwwwwwwwww",
        "torch 2 <b>",
    ]:
        assert words in " ".join(read.text.split(" ")), words
    assert (len(read.named("details")), text.count("<details open>")) == (7, 3)
    assert [svg["aria-label"] for svg in read.named("svg")] == [
        "Differences with 95 % intervals",
        "Loss falling over training steps",
    ]
    assert "What a good reply does" in read.text
    cells = re.findall(r"<td>numbered steps.*?</tr>", text)[0]
    assert re.findall(r'<td class="n">(.*?)</td>', cells) == [
        "0.000",
        "1.000",
        "1.000",
        "1.000 to 1.000",
        "4 / 0 / 0",
    ]
    (length,) = re.findall(r"<td>length.*?</tr>", text)[:1]
    assert '<td class="n">–</td>' in length  # no side is good, so no row is better


def test_a_report_without_held_out_groups_says_so(reported: Callable[..., str]) -> None:
    parts = {"train": 1000, "valid": 9, "test": 4, "unseen": 0}
    assert "No whole group was held out" in reported(audit=account(parts=parts))
    assert "No whole group was held out" not in reported()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0.000"),
        (-0.0, "0.000"),
        (-0.0004, "0.000"),
        (-0.0006, "−0.001"),
        (0.5, "0.500"),
        (1, "1.000"),
        (-1.2345, "−1.234"),
        (9.9994, "9.999"),
        (9.9996, "10.0"),
        (-9.9996, "−10.0"),
        (10.0, "10.0"),
        (1234.56, "1,234.6"),
        (-1234567.0, "−1,234,567.0"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        (TOPIC, TOPIC),
        ("$x^2$ & $y$", "$x^2$ & $y$"),
        ("one $", "one $"),
        (r"\alpha\$", r"\alpha\$"),
        ("two\nlines\tand  gaps", "two lines and gaps"),
        ("日本語 😀", "日本語 😀"),
        ("x" * 47, "x" * 47),
        ("x" * 48, "x" * 45 + "…"),
        ("-->", "-->"),
    ],
)
def test_labels_are_drawn_as_they_stand(label: str, shown: str) -> None:
    for drawn in (plots.bars([(label, 3), ("other", 2)], "rows"), plots.intervals([(label, -1, 0, 1)])):
        assert shown in Page(drawn).texts


def test_a_plot_is_the_same_each_time() -> None:
    assert plots.histogram([1, 2, 2], "words") == plots.histogram([1, 2, 2], "words")
    assert plots.curves([(1, 2.0)], [(1, 2.5)], 1) == plots.curves([(1, 2.0)], [(1, 2.5)], 1)


def test_the_kept_step_is_marked() -> None:
    assert "kept: step 2" in Page(plots.curves([(1, 2.0), (2, 1.0)], [(2, 1.5)], 2)).texts
    assert "kept" not in plots.curves([(1, 2.0)], [], None)
