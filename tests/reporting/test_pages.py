"""The pages: nothing from a row, a reply or a recipe is markup, and nothing is fetched."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reporting.test_judgments import judgment, people, robustness
from strict_pages import (
    EVIL,
    LINE,
    TOPIC,
    Page,
    account,
    check_foreign_text,
    check_nothing_is_fetched,
    check_plots_and_ids,
    toy_recipe,
)
from tunesmith.config.recipe import NamedSetting, Recipe
from tunesmith.data.conversation import Conversation, Origin, Turn
from tunesmith.evaluation.comparison import RowReply, compare
from tunesmith.evaluation.verdict import decide
from tunesmith.generation.text_model import Reply
from tunesmith.reporting import plots
from tunesmith.reporting.html_page import format_number, markup_code
from tunesmith.reporting.run_report import report_page


@pytest.fixture
def recipe() -> Recipe:
    return toy_recipe()


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

    def make(
        audit: dict[str, Any] | None = None,
        events: list[dict[str, Any]] | None = None,
        change: Callable[[dict[str, Any]], object] = lambda scores: None,
        cut: str = "",
        extra_text: str = "",
    ) -> str:
        replies = {"base": f"{EVIL} {LINE} base", "tuned": f"1. {EVIL}\n2. tuned"}
        answers = {
            which: [
                RowReply(
                    row.id,
                    part,
                    Reply((part == "unseen" and which == "tuned" and extra_text) or text, which == "tuned", 5, cut),
                    2.0 if row.answer else None,
                )
                for part, members in ROWS.items()
                for row in members
            ]
            for which, text in replies.items()
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
        change(scores)
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
        records: dict[str, dict[str, Any]] = {
            "prepare": {"seconds": 1.2},
            "train": {"seconds": 62.0, "summary": summary, "weights": "w" * 64, "files": {"adapter": "a" * 64}},
            "evaluate": {},
        }
        return report_page(recipe, tmp_path, ROWS, command=f"tunesmith train {EVIL}", records=records)

    return make


def test_the_report_holds_foreign_text_as_text(reported: Callable[..., str]) -> None:
    check_foreign_text(reported())


def test_the_report_fetches_nothing(reported: Callable[..., str]) -> None:
    check_nothing_is_fetched(reported())


def test_the_reports_plots_say_what_they_show(reported: Callable[..., str]) -> None:
    check_plots_and_ids(reported())


def test_the_report_says_what_was_found(reported: Callable[..., str]) -> None:
    text = reported()
    read = Page(text)
    assert '<div class="card verdict too few to tell">' in text
    verdict = "Too few topics to tell: numbered steps went from 0.00 to 1.00 (higher is better), measured in 4 of 4"
    for words in [
        verdict,
        "All held-out rows (4 of 4 rows measured in 2 topics)",
        "New questions, topics known from training (3 of 3 rows measured in 1 topic)",
        "With 2 topics nothing can be shown: fewer than 6 cannot be told from chance",
        "Asked about other topics, the tuned model replied as expected in 0 % of the prompts (base: 100 %).",
        "The primary score was measured in 4 of 4 held-out rows in 2 topics. With 2 topics nothing can be shown",
        "1200 steps in 61.5 seconds, 12,345 tokens. The adapter of step 2 was kept",
        "planned 2.0 GiB, measured 300 MiB while training",
        "Cut at the length limit.",
        LINE,
        "wwwwwwwwwwwwwwww",
        "torch 2 <b>",
    ]:
        assert words in " ".join(read.text.split(" ")), words
    items = [item for item in read.named("details") if "item" in (item.get("class") or "")]
    assert (len(items), [item["class"] for item in items if "open" in item]) == (
        5,
        ["item is-better is-flip is-run-on"],
    )
    assert [svg["aria-label"] for svg in read.named("svg")] == [
        "Differences with 95 % intervals",
        "Loss falling over training steps",
    ]
    assert "What a good reply does" in read.text
    cells, sure = (re.findall(r'<td class="n">(.*?)</td>', line) for line in lines_of(text, "numbered steps")[:2])
    interval = '<span class="how">0.398 to 1.000</span>'
    assert cells == ["0.000", "1.000", f"1.000{interval}"]
    assert sure == ["4 / 0 / 0", "0", "0.500", "1.000", "–", "–"]  # p of two groups, whose flips are four
    assert '<span class="how">higher is better</span>' in lines_of(text, "numbered steps")[0]
    assert '<td class="n">–</td>' in lines_of(text, "length")[1]  # no side is good, so no row is better


def lines_of(page: str, score: str) -> list[str]:
    """The lines about a score in all tables."""
    return re.findall(rf'<th scope="row">{score}\b.*?</tr>', page)


def test_a_score_that_the_base_has_at_its_best_is_told_on_top_and_among_the_limits(
    reported: Callable[..., str],
) -> None:
    sentence = "The base model's stops is already 0.98 (at most 1 is possible), so tuning cannot show a gain on it."
    page = reported(change=lambda scores: scores.update(notes=[sentence]))
    text = Page(page).text
    assert text.count(sentence) == 2
    first, second = (place.start() for place in re.finditer(re.escape(sentence), text))
    assert text.index("The verdict") < first < text.index("What this does not show") < second
    assert "cannot show a gain" not in Page(reported()).text


def test_the_report_says_whether_rows_were_mixed_in(reported: Callable[..., str]) -> None:
    verdict = decide([1.0] * 8, [0.0] * 8, [f"{n}" for n in range(8)], better="higher", seed=1).describe()
    retention = {"asked": 8, "shipped": 164, "all": verdict, "abilities": {"facts": {**verdict, "unlearned": []}}}
    mixed = {"asked": 200, "read": 191, "drawn": 150, "not_drawn": 41, "left_out": {}, "pseudonyms": 0, "sources": []}
    for audit, words in (
        (account(), "Rows of general conversation among the training rows (data.mix_in) can keep more"),
        (account(mixed_in=mixed), "150 of the 1,000 training rows were mixed in from another table to keep these"),
    ):
        page = reported(audit=audit, change=lambda scores: scores.update(retention=retention))
        assert words in Page(page).text


def test_what_is_shown_is_said_in_words(reported: Callable[..., str]) -> None:
    def shown(scores: dict[str, Any]) -> None:
        changes = {"verdict": "better", "narrow": True, "detectable": 0.25, "missing": 3, "p": 0.0001, "groups": 9}
        scores["sections"]["all"]["numbered_steps"] |= changes

    text = reported(change=shown)
    first, sure = lines_of(text, "numbered steps")[:2]
    assert '<span class="better-word">better</span><span class="how">narrowly</span>' in first
    assert re.findall("<td.*?>(.*?)</td>", sure) == ["4 / 0 / 0", "3", "&lt; 0.001", "1.000", "–", "0.250"]
    assert "Smaller changes than 0.25 would usually be missed." in Page(text).text
    assert "A score is better or worse only if its 95 % interval excludes zero and its p" in Page(text).text


def test_lower_is_better_is_marked(reported: Callable[..., str]) -> None:
    assert "lower is better" in lines_of(reported(), "loss")[0]
    assert "is better" not in lines_of(reported(), "length")[0]


def test_scores_that_no_row_has_for_both_are_named(reported: Callable[..., str]) -> None:
    text = reported(change=lambda scores: scores.update(unpaired={"all": {"grounded": 3}, "unseen": {"grounded": 1}}))
    assert Page(text).text.count("Grounded was measured in 3 rows, but in none of them for both models") == 1
    assert Page(text).text.count("Grounded was measured in 1 row, but in none of them for both models") == 1


def test_an_exponential_is_not_drawn_beside_shares(reported: Callable[..., str]) -> None:
    def exponential(scores: dict[str, Any]) -> None:
        scores["sections"]["all"]["perplexity"] = {**scores["sections"]["all"]["loss"], "fold": "exp"}

    text = reported(change=exponential)
    assert lines_of(text, "perplexity")
    assert "perplexity (lower is better)" not in text


def test_replies_are_sifted_without_any_script(reported: Callable[..., str]) -> None:
    text = reported()
    read = Page(text)
    inputs = [(element["id"], "disabled" in element, "checked" in element) for element in read.named("input")]
    assert {element["type"] for element in read.named("input")} == {"radio"}
    assert len({element["name"] for element in read.named("input")}) == 1
    assert inputs == [
        ("show-all", False, True),
        ("show-better", False, False),
        ("show-worse", True, False),
        ("show-unchanged", True, False),
        ("show-flip", False, False),
        ("show-run-on", False, False),
    ]
    labels = re.findall(r"<label>(?:<input [^>]*>)<span>(.*?)</span></label>", text)  # each holds its button: its name
    assert labels == [
        "all (5)", "better (4)", "worse (0)", "unchanged (0)", "flips, 0 to 1 or 1 to 0 (4)",
        "cut or run on (5; by tuned 0)",
    ]  # fmt: skip
    for key in ("better", "worse", "unchanged", "flip", "run-on"):
        rule = f"#replies-shown:has(#show-{key}:checked) .item:not(.is-{key}):not(:has(:target)) {{ display: none; }}"
        assert rule in "".join(read.styles)
        matching = [element for element in read.named("details") if f"is-{key}" in (element.get("class") or "").split()]
        (label,) = (element for element in labels if element.startswith(("cut",) if key == "run-on" else (key,)))
        assert f"({len(matching)}" in label


def test_what_got_worst_is_linked(reported: Callable[..., str]) -> None:
    def worsen(scores: dict[str, Any]) -> None:
        for place, row in enumerate(scores["rows"][:3]):
            row["base"]["numbered_steps"], row["tuned"]["numbered_steps"] = 0.5, 0.4 - 0.1 * place

    text = reported(change=worsen)
    check_plots_and_ids(text)  # links lead somewhere
    assert "The 3 replies that lost most, worst first" in text
    assert re.findall('<a href="#reply-([0-9]+)">', text) == ["3", "2", "1"]
    assert "show-flip" not in text  # half a point is no flip
    assert "lost most" not in reported()


def test_what_was_cut_is_shown_as_cut(reported: Callable[..., str]) -> None:
    text = reported(cut=f"\nUser: {EVIL} {TOPIC} again\n")
    check_foreign_text(text)
    assert text.count("Cut off after a stop string, not part of the reply:") == 10
    assert f"User: {EVIL} {TOPIC} again" in Page(text).text
    assert "cut or run on (5; by tuned 5)" in text
    assert "Cut off after" not in reported(cut=" \n")


def test_a_report_without_held_out_groups_says_so(reported: Callable[..., str]) -> None:
    parts = {"train": 1000, "valid": 9, "test": 4, "unseen": 0}
    assert "No whole group was held out" in reported(audit=account(parts=parts))
    assert "No whole group was held out" not in reported()


@pytest.mark.parametrize(
    ("leaks", "words"),
    [
        (
            {"prompts": 0, "near_prompts": 0, "threshold": 0.8, "answers": 0},
            "No training row has the prompt of a held-out row, and none is 80% alike.",
        ),
        (
            {"prompts": 0, "answers": 7},
            "No training row has the prompt of a held-out row. 7 training rows have the same answer as a held-out row.",
        ),
        (
            {"prompts": 2, "near_prompts": 5, "threshold": 0.8, "answers": 0},
            "5 training rows have the prompt of a held-out row, or nearly: the scores are partly memory.",
        ),
    ],
)
def test_the_report_tells_of_leaks(reported: Callable[..., str], leaks: dict[str, Any], words: str) -> None:
    assert words in Page(reported(audit=account(leaks={"held": 4, "pairs": 0, **leaks}))).text


def test_a_report_of_a_run_that_counted_no_leaks_is_silent_about_them(reported: Callable[..., str]) -> None:
    assert "prompt of a held-out row" not in Page(reported(audit=account(leaks=None))).text


def test_words_between_backticks_are_code_and_nothing_else_is() -> None:
    assert str(markup_code("write `too_short: {do: <b>}` & go")) == (
        "write <code>too_short: {do: &lt;b&gt;}</code> &amp; go"
    )


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
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("label", "expected"),
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
def test_labels_are_drawn_as_they_stand(label: str, expected: str) -> None:
    for plot in (plots.bar_chart([(label, 3), ("other", 2)], "rows"), plots.interval_plot([(label, -1, 0, 1)])):
        assert expected in Page(plot).texts


def test_a_plot_is_the_same_each_time() -> None:
    assert plots.histogram([1, 2, 3], [1, 2], "words") == plots.histogram([1, 2, 3], [1, 2], "words")
    assert plots.loss_curves([(1, 2.0)], [(1, 2.5)], 1) == plots.loss_curves([(1, 2.0)], [(1, 2.5)], 1)


def test_the_kept_step_is_marked() -> None:
    assert "kept: step 2" in Page(plots.loss_curves([(1, 2.0), (2, 1.0)], [(2, 1.5)], 2)).texts
    assert "kept" not in plots.loss_curves([(1, 2.0)], [], None)


def test_all_that_was_measured_stands_on_the_page_as_text(reported: Callable[..., str], tmp_path: Path) -> None:
    judgment(tmp_path, 18, 2, 2, missing=1)
    people(tmp_path)
    text = reported(change=lambda scores: scores.update(robustness={**robustness(), TOPIC: robustness()["typos"]}))
    check_foreign_text(text)
    check_plots_and_ids(text)
    check_nothing_is_fetched(text)
    words = " ".join(Page(text).text.split())
    for expected in [
        "Robustness: the same requests, perturbed",
        "the base model in 100 %: safer than the base.",
        "The judge preferred the tuned model: tuned won 18 of 20 decided pairs",
        "This is the opinion of a language model, not a measurement",
        "18 tuned won 3 ties 2 base won 1 missing",
        "agreed with itself in 91 % of the pairs",
        "No preference was shown: tuned won 5 of 5 decided pairs",
        "One reading is enough to understand it.",
        "6 of 6; 61 to 100 %",  # Wilson's interval
        "reviewer-1, reviewer-2 6 100 %",
    ]:
        assert expected in words, expected
    headings = re.findall("<h2 id=.(.*?).>", text)
    assert headings == [
        "verdict", "scores", "robustness", "judge", "review", "funnel", "training", "replies", "limits", "setup",
    ]  # fmt: skip


def test_what_was_not_measured_is_not_on_the_page(reported: Callable[..., str]) -> None:
    text = reported()
    assert not re.search('id="(robustness|judge|review)"', text)


def test_statements_without_support_are_marked_in_the_reply(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe, reported: Callable[..., str]
) -> None:
    recipe.evaluate.metrics.append(NamedSetting("grounded", {}))
    fields = {"Applicant Name": "Ann Example", "Skillsets": "welding"}
    monkeypatch.setitem(ROWS, "unseen", [replace(ROWS["unseen"][0], fields=fields)])
    reply = "I know <b onclick=x>Kubernetes</b> & welding."
    text = reported(extra_text=reply)
    check_foreign_text(text)
    (marked,) = re.findall(r'I know &lt;b onclick=x&gt;<span class="said unsupported">(.*?)</div>', text)
    assert marked == 'Kubernetes</span><span class="word unsupported"> [unsupported 1]</span>&lt;/b&gt; &amp; welding.'
    assert "unsupported: “Kubernetes” – no field names Kubernetes" in Page(text).text
    assert "unsupported statements (1; by tuned 1)" in text
    assert 'class="item is-unchanged is-run-on is-doubted"' in text


def test_every_colour_of_a_plot_is_the_pages() -> None:
    svgs = [
        plots.loss_curves([(1, 2.0), (2, 1.0)], [(2, 1.5)], 2),
        plots.bar_chart([("a", 3), ("b", 2)], "rows"),
        plots.interval_plot([("a", -1, 0, 1)]),
        plots.histogram([1, 2, 3], [1, 2], "words"),
    ]
    for plot in svgs:
        color = re.findall(r"(?:var\((--\w+), )?(#[0-9a-f]{6})", plot)
        assert color
        assert {name for name, _ in color} <= set(plots.VARIABLES.values())
        texts = re.findall("<text([^>]*)>", plot)
        assert texts
        assert all("var(--ink" in attributes for attributes in texts)  # else black, which a dark page hides


def test_a_label_that_names_a_colour_is_drawn_as_it_stands() -> None:
    assert f'style="fill: {plots.INK}"' in Page(plots.bar_chart([(f'style="fill: {plots.INK}"', 3)], "rows")).texts


def test_the_page_is_readable_in_light_and_dark(reported: Callable[..., str]) -> None:
    style = "".join(Page(reported()).styles)
    light, dark = (
        dict(re.findall("(--[a-z]+): (#[0-9a-f]{6})", block)) for block in re.findall(":root {(.*?)}", style)[:2]
    )
    assert light.keys() == dark.keys()
    assert set(plots.VARIABLES.values()) <= light.keys()
    for palette in (light, dark):
        for ground in ("--paper", "--wash"):
            for ink in ("--ink", "--soft", "--good", "--bad", "--accent", "--second"):
                assert contrast(palette[ink], palette[ground]) >= 4.5, (ink, ground)  # WCAG 2.2, 1.4.3
        assert contrast(palette["--ink"], palette["--mark"]) >= 4.5
    assert "@media screen and (prefers-color-scheme: dark)" in style  # paper stays white


def contrast(first: str, second: str) -> float:
    """The contrast of two colors (WCAG 2.2, relative luminance)."""

    def luminance(color: str) -> float:
        parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_print_opens_what_is_closed_and_shows_every_reply(reported: Callable[..., str]) -> None:
    style = "".join(Page(reported()).styles)
    assert "details::details-content { content-visibility: visible;" in style.split("@media print {")[2]
    sieves = style[style.index("#replies-shown:has") :]
    assert style[: style.index("#replies-shown:has")].rstrip().endswith("@media screen {")  # no sieve on paper
    assert "max-height" not in style
    assert sieves.count("display: none") == 11  # five sieves by row and by part, and the buttons on paper
