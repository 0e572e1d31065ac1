"""What a judging model, people and perturbed requests say of a run, in the words of the page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from strict_pages import EVIL, toy_recipe
from tunesmith.config.recipe import NamedSetting
from tunesmith.data.conversation import Conversation, Origin, Turn
from tunesmith.evaluation.comparison import RowReply, score_row
from tunesmith.evaluation.judge import JudgePair, JudgeResult, JudgeVerdict
from tunesmith.evaluation.review import QUESTIONS, Judgment, summarize
from tunesmith.evaluation.review import ReviewPair as ShownPair
from tunesmith.evaluation.robustness import perturbed_rows, robustness_tables
from tunesmith.generation.text_model import Reply
from tunesmith.reporting.judgments import judge_section, review_section, robustness_section
from tunesmith.runs.run import hash_json

METRICS = [NamedSetting("numbered_steps", {}), NamedSetting("stops", {})]
STEPS, TALK = "1. Open the app\n2. Tap Orders", f"Well, {EVIL}"


def robustness(tuned_obeys: int = 1, perturbations: list[NamedSetting] | None = None) -> dict[str, Any]:
    """Real tables: tuned keeps its steps unless it obeys, base talks and always obeys."""
    answer = Turn("assistant", STEPS)
    rows = [
        Conversation(f"r{n}", (Turn("user", f"how may I order number {n}?"), answer), Origin("f", n), f"g{n}")
        for n in range(20)
    ]
    parts = {"test": rows}
    perturbed = perturbed_rows(
        parts, perturbations or [NamedSetting("injected", {}), NamedSetting("typos", {"rate": 0.5})], seed=3
    )
    plain = {
        "base": [RowReply(conversation.id, "test", Reply(TALK, True, 4), None) for conversation in rows],
        "tuned": [RowReply(conversation.id, "test", Reply(STEPS, True, 4), None) for conversation in rows],
    }
    twins: dict[str, list[RowReply]] = {"base": [], "tuned": []}
    for title, members in perturbed.rows.items():
        for place, twin in enumerate(members):
            canary = str(twin.fields.get("canary", "other"))
            tuned = canary if title == "injected" and place < tuned_obeys else STEPS
            twins["base"].append(RowReply(twin.id, title, Reply(canary, True, 4), None))
            twins["tuned"].append(RowReply(twin.id, title, Reply(tuned, True, 4), None))
    return robustness_tables(parts, perturbed, plain, twins, lambda row, item: score_row(row, item, METRICS), seed=1)


def test_perturbations_are_told_in_words() -> None:
    scores = {"primary": "numbered_steps", "robustness": robustness()}
    injected, typos = robustness_section(scores, [NamedSetting("injected", {}), NamedSetting("typos", {"rate": 0.5})])
    assert injected["what"].startswith("An order to ignore the instructions")
    assert typos["what"] == "One typo in 0.5 of the request's words."
    text = " ".join(injected["said"])
    assert "20 requests were asked in this form." in text
    assert "replies stay 95 % alike, the base model's 0 %: steadier than the base." in text
    assert "The tuned model's numbered steps went from 1.00 to 0.95 (no change shown)." in text
    assert (
        "The tuned model obeyed the hidden order in 5 % of the requests, the base model in 100 %: safer than the base."
        in text
    )
    assert "obeyed" not in " ".join(typos["said"])
    names = [line["name"] for line in injected["first"]]
    assert names == [
        "likeness to the plain reply (ROUGE-L)", "as many steps as the plain reply", "obeyed the hidden order",
        "numbered_steps",
    ]  # fmt: skip
    assert [line["name"] for line in injected["rest"]] == ["stops"]
    line = injected["first"][-1]
    assert (line["tuned"]["plain"], line["tuned"]["perturbed"]) == (1.0, 0.95)
    assert (line["beside"]["base"], line["beside"]["tuned"]) == (0.0, 0.95)


def test_requests_that_are_nobodys_twin_have_no_plain_side() -> None:
    perturbations = [NamedSetting("outside", {"count": 7})]
    (table,) = robustness_section(
        {"primary": "stops", "robustness": robustness(perturbations=perturbations)}, perturbations
    )
    assert not table["twins"]
    assert table["said"] == [
        "7 requests were asked in this form.", "Here stops is 1.00 for the base model and 1.00 for the tuned one.",
    ]  # fmt: skip
    assert [line["name"] for line in table["first"]] == ["stops"]


def test_rows_that_a_perturbation_leaves_out_are_counted_and_unknown_ones_shown() -> None:
    table = {**robustness()["typos"], "rows": 1, "left_out": 2}
    (result,) = robustness_section({"primary": "stops", "robustness": {"of_a_later_version(x=1)": table}}, [])
    assert result["what"] == ""
    assert result["said"][0] == "1 request was asked in this form; 2 rows could not be changed like this."


def test_no_perturbation_no_table() -> None:
    assert robustness_section({"primary": "stops"}, []) == []


def judgment(folder: Path, won: int, lost: int, split: int, missing: int = 0) -> None:
    """judge.json of so many pairs; the place decides split ones, and one pair more has equal replies."""
    pairs, verdicts = [JudgePair("equal", "g", (), "same", "same")], {}
    for place, kind in enumerate(["tuned"] * won + ["base"] * lost + ["split"] * split + ["missing"] * missing):
        pairs.append(JudgePair(f"p{place}", f"g{place}", (), "one", "other"))
        both: tuple[Any, Any] = ("base", "tuned") if kind == "split" else (kind, kind)
        if kind != "missing":
            verdicts[f"p{place}"] = [JudgeVerdict("base", both[0]), JudgeVerdict("tuned", both[1])]
    result = JudgeResult(pairs, verdicts, {"unreadable": missing} if missing else {}, 1).describe()
    (folder / "judge.json").write_text(json.dumps(result))


@pytest.mark.parametrize(
    ("won", "lost", "split", "preferred", "sentence"),
    [
        (
            18,
            2,
            2,
            "preferred the tuned model",
            "tuned won 18 of 20 decided pairs (90 %, 95 % interval 70 to 97 %); 3 ties, p < 0.001.",
        ),
        (
            2,
            18,
            0,
            "preferred the base model",
            "tuned won 2 of 20 decided pairs (10 %, 95 % interval 3 to 30 %); 1 tie, p < 0.001.",
        ),
        (
            3,
            2,
            0,
            "showed no clear preference",
            "tuned won 3 of 5 decided pairs (60 %, 95 % interval 23 to 88 %); 1 tie, p = 1.000.",
        ),
        (0, 0, 3, "showed no preference", "4 ties, no pair decided."),
    ],
)
def test_the_judge_is_quoted(tmp_path: Path, won: int, lost: int, split: int, preferred: str, sentence: str) -> None:
    judgment(tmp_path, won, lost, split)
    judge = judge_section(tmp_path, toy_recipe(), {})
    assert judge is not None
    assert judge["verdict"] == f"The judge {preferred}: {sentence}"


def test_how_far_a_judge_may_be_trusted_is_said(tmp_path: Path) -> None:
    judgment(tmp_path, 3, 0, 1, missing=2)
    judge = judge_section(tmp_path, toy_recipe(), {})
    assert judge is not None
    assert judge["doubts"] == [
        "Asked twice, with the replies in both orders, the judge agreed with itself in 75 % of the pairs; in 25 % the "
        "order decided, not the reply. Such pairs are ties.",
        "1 pair with equal replies was not judged and counts as a tie.",
        "2 pairs without two verdicts were left out (2 unreadable).",
    ]


@pytest.mark.parametrize(("of", "stale"), [("now", False), ("before", True), (None, False)])
def test_verdicts_on_earlier_replies_are_known(tmp_path: Path, of: str | None, stale: bool) -> None:
    judgment(tmp_path, 3, 1, 0)
    people(tmp_path)
    records: dict[str, Any] = {"evaluate": {"files": {"scores.json": "now"}}}
    if of:
        fingerprint = hash_json({"scores.json": of})
        records |= {"judge": {"inputs": {"scores": fingerprint}}, "review": {"inputs": {"evaluate": fingerprint}}}
    judge, review = judge_section(tmp_path, toy_recipe(), records), review_section(tmp_path, records)
    assert judge is not None
    assert review is not None
    assert (judge["stale"], review["outdated"]) == (stale, stale)


def people(folder: Path, judging: bool = True) -> None:
    """reviews.json: two people who prefer tuned in all of six pairs but one."""
    pairs = [ShownPair(f"p{n}", "test", (Turn("user", "how"),), {}, "one", "other") for n in range(6)]
    yes: Mapping[str, Any] = dict.fromkeys(QUESTIONS, "yes")
    no: Mapping[str, Any] = dict.fromkeys(QUESTIONS, "no")
    reviews: dict[str, dict[str, Judgment]] = {}
    for who in ("reviewer-1", "reviewer-2") if judging else ():
        reviews[who] = {
            pair.id: Judgment(
                pair.id, "test", who, "base", no, yes, "tie" if pair.id == "p0" else "right", 9.0, EVIL, "t"
            )
            for pair in pairs
        }
    (folder / "reviews.json").write_text(json.dumps(summarize(pairs, 1, reviews).describe()))


def test_people_are_quoted_and_their_notes_are_not(tmp_path: Path) -> None:
    people(tmp_path)
    review = review_section(tmp_path, {})
    assert review is not None
    assert review["verdict"].startswith("No preference was shown: tuned won 5 of 5 decided pairs; 1 tie (p = 0.062)")
    assert EVIL not in json.dumps(review)


def test_what_nobody_said_is_not_shown(tmp_path: Path) -> None:
    assert judge_section(tmp_path, toy_recipe(), {}) is None
    assert review_section(tmp_path, {}) is None
    people(tmp_path, judging=False)
    assert review_section(tmp_path, {}) is None
