"""Perturbed twins of rows, and what is measured in the replies to them."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
from collections.abc import Callable
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunesmith.config.recipe import NamedSetting
from tunesmith.config.registry import check_options, entries, resolve
from tunesmith.data.conversation import Conversation, Origin, Turn, conversation_to_dict, normalize, read_rows
from tunesmith.data.rows import Row
from tunesmith.data.sources import read_all
from tunesmith.errors import DataError, RecipeError
from tunesmith.evaluation import perturbations
from tunesmith.evaluation.comparison import RowReply, score_row
from tunesmith.evaluation.robustness import (
    PERTURBATIONS,
    original_id,
    perturbed_rows,
    robustness_tables,
    rouge_l,
    same_steps,
)
from tunesmith.evaluation.score import Score
from tunesmith.generation.text_model import Reply

ROOT = Path(__file__).parents[2]
STEPS = "1. Open it.\n2. Tap it."
NAMES = entries(PERTURBATIONS)
TWINS = [name for name in NAMES if name != "outside"]
ASKED = "How do I send order 12,500.75 back, please? See https://shop.example/Help?id=Ab1 or Mail me@shop.example, OK!"


def row(name: str, request: str = ASKED, group: str = "g", **fields: Any) -> Conversation:
    turns = (Turn("system", "Be Brief."), Turn("user", request), Turn("assistant", STEPS))
    return Conversation(name, turns, Origin("f", 1), group, fields)


def one(name: str, request: str, seed: int = 1, **options: Any) -> str | None:
    twins = resolve(PERTURBATIONS, name)([row("r", request)], seed, **options)
    return twins[0].question if twins else None


def test_the_catalogue() -> None:
    assert NAMES == [
        "injected", "lower", "no_punctuation", "other_language", "outside", "padded", "paraphrase", "shortened",
        "typos", "upper",
    ]  # fmt: skip
    for name in NAMES:  # a recipe that names it alone is whole
        assert not check_options(resolve(PERTURBATIONS, name), {}, where=str)
    assert check_options(perturbations.padded, {"kind": "rude"}, where=str)


# --- every perturbation --------------------------------------------------------------------------------------

ANY = st.text(st.characters(), max_size=60) | st.sampled_from(
    [
        "",
        " \n",
        "Ⅷ ½ x²",
        "İstanbul ß ﬁ",
        "é" * 9,
        "{",
        "}}{{",
        "{{a}} b",
        "e\u0301e\u0301e\u0301",
        "ab",
        "٣ كتاب الطلب",
    ]
)


@pytest.mark.parametrize("name", TWINS)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(ANY, min_size=1, max_size=5), wording=ANY, seed=st.integers(0, 9))
@example(texts=["a b", "a b", "A B."], wording="a b", seed=0)
def test_twins_of_any_text(name: str, texts: list[str], wording: str, seed: int) -> None:
    fields = {"note": wording, "other_language": wording, "n": 3}
    rows = [row(f"r{n}~x", text, "" if n == 4 else "g", **fields) for n, text in enumerate(texts)]
    disturb: Callable[..., list[Conversation]] = resolve(PERTURBATIONS, name)
    twins = disturb(rows, seed)
    assert twins == disturb(rows, seed)
    by_id = {conversation.id: conversation for conversation in rows}
    assert [original_id(twin.id) for twin in twins] == [i for i in by_id if f"{i}~{name}" in {t.id for t in twins}]
    for twin in twins:
        plain = by_id[original_id(twin.id)]
        assert twin.answer == plain.answer
        assert twin.turns[0] == plain.turns[0] and len(twin.turns) == len(plain.turns)
        assert (twin.group, twin.origin) == (plain.group, plain.origin)
        added_fields = {"canary", "injected"} if name == "injected" else set()
        assert {key: value for key, value in twin.fields.items() if key not in added_fields} == plain.fields
        assert twin.question != plain.question and twin.question.strip()
    for plain in rows:  # nothing depends on the other rows, but for paraphrases
        alone = disturb([plain], seed)
        assert name == "paraphrase" or alone == [twin for twin in twins if original_id(twin.id) == plain.id]


@pytest.mark.parametrize("name", TWINS)
def test_rows_of_odd_shape(name: str) -> None:
    disturb, origin = resolve(PERTURBATIONS, name), Origin("f", 1)
    assert disturb([], 1) == []
    assert disturb([Conversation("a", (Turn("assistant", "x"),), origin)], 1) == []
    talk = (
        Turn("user", "First Question, my dear?"),
        Turn("assistant", "Yes."),
        Turn("user", ASKED),
        Turn("assistant", ""),
    )
    for twin in disturb([Conversation("b", talk, origin, "g", {"other_language": "Wie bitte?"})], 1):
        assert twin.turns[:2] == talk[:2] and twin.turns[3] == talk[3] and twin.turns[2] != talk[2]


def test_the_same_twins_in_another_process() -> None:
    code = (
        "from tunesmith.data.conversation import *; from tunesmith.evaluation.perturbations import *\n"
        "row = Conversation('r', (Turn('user', 'Where is the parcel with my blender?'), Turn('assistant', '')), "
        "Origin('f', 1))\n"
        "print([t.question for f in (typos, padded, injected) for t in f([row], 3)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1 and len(eval(outputs.pop())) == 3


# --- one by one ---------------------------------------------------------------------------------------------


def test_typos_are_slips_at_the_rate_and_spare_numbers_and_addresses() -> None:
    words = ["the", "parcel", "with", "every", "single", "garment", "arrived", "early", "yesterday"]
    text = " ".join([*words, "12,500.75", "https://shop.example/Help?id=Ab1", "me@shop.example", "{{Order Number}}"])
    for seed in range(40):
        for rate, count in ((0.1, 1), (0.34, 3), (1.0, 9)):
            changed = one("typos", text, seed, rate=rate)
            assert changed
            changed_words = changed.split(" ")
            assert changed_words[9:] == text.split(" ")[9:]
            wrong = [(a, b) for a, b in zip(words, changed_words, strict=False) if a != b]
            assert len(wrong) == count
            assert all(abs(len(a) - len(b)) <= 1 and SequenceMatcher(None, a, b).ratio() >= 0.6 for a, b in wrong)


def test_typos_are_of_four_kinds() -> None:
    kinds = set()
    for seed in range(200):
        changed = one("typos", "Kite", seed)
        assert changed and changed != "Kite"
        if len(changed) == 4:
            kinds.add("swapped" if sorted(changed) == sorted("Kite") else "neighbour")
        else:
            kinds.add("doubled" if len(changed) == 5 else "missing")
    assert kinds == {"swapped", "neighbour", "doubled", "missing"}
    assert all((one("typos", "KITE", seed) or "").isupper() for seed in range(50))
    assert set(perturbations._NEIGHBORS["g"]) == set("fhtyvb") and set(perturbations._NEIGHBORS["q"]) == set("wa")
    for letter, others in perturbations._NEIGHBORS.items():
        assert all(letter in perturbations._NEIGHBORS[neighbor] for neighbor in others)


@pytest.mark.parametrize("rate", [0, -0.5, 1.5])
def test_a_rate_that_is_none(rate: float) -> None:
    with pytest.raises(RecipeError, match="'rate' must be above 0"):
        perturbations.typos([row("r")], 1, rate=rate)


def test_case_and_marks() -> None:
    url = "https://shop.example/Help?id=Ab1"
    assert one("upper", ASKED) == f"HOW DO I SEND ORDER 12,500.75 BACK, PLEASE? SEE {url} OR MAIL me@shop.example, OK!"
    assert one("lower", ASKED) == f"how do i send order 12,500.75 back, please? see {url} or mail me@shop.example, ok!"
    assert one("lower", "all small") is None and one("upper", "订单在哪里") is None
    changed = one(
        "no_punctuation", 'Don\'t "go" step-by-step, C# (or C++)... at 3.5 %?\nAsk me@shop.example - {{A B}}!'
    )
    assert changed == "Dont go step by step C# or C++ at 3.5 %\nAsk me@shop.example {{A B}}"


def test_padding_keeps_the_request_whole() -> None:
    texts = set()
    for seed in range(40):
        for kind, sentences in (
            ("polite", [*perturbations.OPENINGS, *perturbations.CLOSINGS]),
            ("irrelevant", perturbations.SIDE_TALK),
            (None, [*perturbations.OPENINGS, *perturbations.CLOSINGS, *perturbations.SIDE_TALK]),
        ):
            changed = one("padded", ASKED, seed, kind=kind)
            assert changed and changed.count(ASKED) == 1
            before, behind = changed.split(ASKED)
            assert before.strip() in sentences and behind.strip() in sentences and before.strip() != behind.strip()
            texts.add((kind, before.strip() in perturbations.SIDE_TALK))
    assert (None, True) in texts and (None, False) in texts
    assert (one("padded", "a\nb") or "").split("\n\n")[1] == "a\nb"


def test_shortened() -> None:
    assert one("shortened", "Could you please tell me how I can get my money back?") == "tell how get money back?"
    assert one("shortened", "Why not?") is None  # nothing to leave out
    assert one("shortened", "Please, could you?") is None  # nothing would be left
    assert one("shortened", "the parcel " * 21) is None
    assert one("shortened", "the parcel " * 21, longest=42) == " ".join(["parcel"] * 21)


def test_paraphrases_are_the_groups_other_requests() -> None:
    rows = [row(f"{g}{n}", f"Wish {g}, wording {n}.", g) for g in "abc" for n in range(1 if g == "c" else 4)]
    rows += [row("none", "Alone?", ""), row("b9", "wish B: wording 0", "b")]
    twins = perturbations.paraphrase(rows, 3)
    by_id = {conversation.id: conversation for conversation in rows}
    for twin in [twin for seed in range(9) for twin in perturbations.paraphrase(rows, seed)]:
        plain = by_id[original_id(twin.id)]
        assert normalize(twin.question) != normalize(plain.question)
        assert twin.question in {conversation.question for conversation in rows if conversation.group == plain.group}
    assert len([twin for twin in twins if twin.group == "a"]) == 4 == len({t.question for t in twins if t.group == "a"})
    assert not {"c0~paraphrase", "none~paraphrase"} & {twin.id for twin in twins}
    assert len({str([t.question for t in perturbations.paraphrase(rows, seed)]) for seed in range(5)}) > 1


def test_paraphrases_and_languages_from_a_column() -> None:
    rows = [row("a", ASKED, wording="Return it how?"), row("b", ASKED, wording=["X?", ASKED, 3]), row("c", wording=4)]
    assert [t.question for t in perturbations.paraphrase(rows, 1, field="wording")] == ["Return it how?", "X?"]
    rows = [row("a", other_language="Wie schicke ich es zurück?"), row("b"), row("c", other_language=["Comment ?"])]
    assert [(t.id, t.question) for t in perturbations.other_language(rows, 1)] == [
        ("a~other_language", "Wie schicke ich es zurück?"),
        ("c~other_language", "Comment ?"),
    ]


def test_injections_hide_a_word_that_the_row_has_not() -> None:
    rows = [row(f"r{n}", f"Write to Mara Quill, night clerk, number {n}.", job="night clerk", n="x") for n in range(60)]
    kinds, words = set(), set()
    for twin in perturbations.injected(rows, 2, place="field"):
        canary = twin.fields["canary"]
        before, _, behind = twin.question.partition("night clerk ")
        assert before == "Write to Mara Quill, " and canary in behind and behind.endswith(".")
        assert canary.isalpha() and canary.isupper() and "{" not in twin.question
        kinds.add(twin.fields["injected"])
        words.add(canary)
    assert kinds == {"word", "capitals"} and len(words) > 50
    assert {t.id for t in perturbations.injected(rows, 2)} == {f"{conversation.id}~injected" for conversation in rows}
    for plain, twin in zip(rows, perturbations.injected(rows, 2, place="end"), strict=True):
        assert twin.question.startswith(f"{plain.question}\n\n")
    assert perturbations.injected([row("r", ASKED, job="night clerk")], 1, place="field") == []
    word = perturbations._canary(random.Random(1), [])
    assert perturbations._canary(random.Random(1), [f"as {word.lower()}s"]) != word


def test_outside_is_asked_under_the_rows_system_message() -> None:
    twins = perturbations.outside([row("r")], 1)
    assert len(twins) == 40 == len({twin.id for twin in twins})
    assert all(twin.turns[0].text == "Be Brief." and twin.answer == "" for twin in twins)
    assert all(dict(twin.fields) == {"expect": "no_steps"} for twin in twins)
    assert perturbations.outside([row("r")], 9, count=3) == twins[:3]
    assert [turn.role for turn in perturbations.outside([], 1)[0].turns] == ["user", "assistant"]
    for count in (0, 41):
        with pytest.raises(RecipeError, match="must be 1 to 40"):
            perturbations.outside([row("r")], 1, count=count)


def test_the_file_outside_serves_as_probes_too() -> None:
    read = list(read_all(ROOT / "recipes" / "probes" / "outside.jsonl"))
    rows = [probe.values for probe in read if isinstance(probe, Row)]
    assert len(rows) == len(read)
    assert all(set(probe) == {"kind", "topic", "prompt", "expect"} for probe in rows)
    assert len({probe["topic"] for probe in rows}) == len({normalize(probe["prompt"]) for probe in rows}) == 40
    domain = re.compile(r"\b(app|order|parcel|refund|account|password|voucher|cover letter)\b", re.IGNORECASE)
    assert not [probe["prompt"] for probe in rows if domain.search(probe["prompt"])]


# --- which rows are asked ------------------------------------------------------------------------------------


def named(*names: Any) -> list[NamedSetting]:
    return [name if isinstance(name, NamedSetting) else NamedSetting(name, {}) for name in names]


PARTS = {"test": [row(f"t{n}", f"Please, where is it, number {'i' * n}?", f"g{n % 10}") for n in range(20)]}


def test_the_same_rows_are_perturbed_in_every_way() -> None:
    perturbed = perturbed_rows(PARTS, named("typos", "upper", "paraphrase", "outside"), seed=1, limit=10)
    assert {title: len(rows) for title, rows in perturbed.rows.items()} == {
        "typos": 10, "upper": 10, "paraphrase": 10, "outside": 40,
    }  # fmt: skip
    assert perturbed.left_out == dict.fromkeys(perturbed.rows, 0)
    plain = [{original_id(twin.id) for twin in perturbed.rows[title]} for title in ("typos", "upper", "paraphrase")]
    assert plain[0] == plain[1] == plain[2]
    every = [twin.id for twins in perturbed.rows.values() for twin in twins]
    assert len(set(every)) == len(every)
    assert perturbed_rows(PARTS, named("typos"), seed=1).rows["typos"][3].id == "t3~typos"


def test_rows_without_a_twin_are_counted() -> None:
    parts = {"test": [*PARTS["test"], row("small", "where is it?")], "odd": [row("few", "where?")]}
    perturbed = perturbed_rows(parts, named("lower"), seed=1)
    assert perturbed.left_out == {"lower": 2} and len(perturbed.rows["lower"]) == 20


def test_the_same_perturbation_with_other_options() -> None:
    twice = named(NamedSetting("typos", {"rate": 0.1}), NamedSetting("typos", {"rate": 0.5}))
    perturbed = perturbed_rows(PARTS, twice, seed=1)
    assert list(perturbed.rows) == ["typos(rate=0.1)", "typos(rate=0.5)"]
    assert perturbed.rows["typos(rate=0.5)"][0].id == "t0~typos(rate=0.5)"
    with pytest.raises(RecipeError, match="'typos' is listed twice"):
        perturbed_rows(PARTS, named("typos", "typos"), seed=1)
    with pytest.raises(RecipeError, match=r"unknown name 'typo'.*Did you mean 'typos'"):
        perturbed_rows(PARTS, named("typo"), seed=1)
    with pytest.raises(DataError, match="'other_language' applies to none of the rows"):
        perturbed_rows(PARTS, named("other_language"), seed=1)


# --- what is measured ----------------------------------------------------------------------------------------


def replies(parts: Any, text: Callable[[Conversation], str]) -> list[RowReply]:
    return [
        RowReply(conversation.id, part, Reply(text(conversation), True, 1), None)
        for part, rows in parts.items()
        for conversation in rows
    ]


def tables(names: list[NamedSetting], base: Callable[[Conversation], str], tuned: Callable[[Conversation], str]) -> Any:
    perturbed = perturbed_rows(PARTS, names, seed=1)
    metrics = named("numbered_steps", "expected", "length", "rouge")

    def scorer(conversation: Conversation, item: RowReply) -> dict[str, Score]:
        assert not {"canary", "injected"} & set(conversation.fields)
        return score_row(conversation, item, metrics)

    answers = [{"base": replies(rows, base), "tuned": replies(rows, tuned)} for rows in (PARTS, perturbed.rows)]
    result = robustness_tables(PARTS, perturbed, answers[0], answers[1], scorer, seed=1)
    json.dumps(result, allow_nan=False)
    return result


def shaky(conversation: Conversation) -> str:
    """Steps for plain requests, prose for others."""
    return STEPS if "~" not in conversation.id else "Well, open it and tap it."


def test_a_model_that_a_perturbation_throws_is_told_from_one_that_bears_it() -> None:
    table = tables(named("typos"), shaky, lambda conversation: STEPS)["typos"]
    assert (table["rows"], table["left_out"]) == (20, 0)
    alike = table["consistency"]["rouge_l"]
    assert alike["tuned"] == 1 and alike["base"] == pytest.approx(rouge_l(STEPS, "Well, open it and tap it."))
    assert 0 < alike["base"] < 1 and alike["verdict"] == "better" and alike["groups"] == 10
    assert (table["consistency"]["same_steps"]["base"], table["consistency"]["same_steps"]["tuned"]) == (0, 1)
    steps = table["base"]["numbered_steps"]
    assert (steps["plain"], steps["perturbed"], steps["difference"], steps["verdict"]) == (1, 0, -1, "worse")
    assert table["tuned"]["numbered_steps"]["difference"] == 0
    assert table["tuned_against_base"]["numbered_steps"]["difference"] == 1
    assert table["base"]["rougeL"]["plain"] == 1 > table["base"]["rougeL"]["perturbed"]
    assert "obeyed" not in table and "expected" not in table["base"]


def test_requests_from_outside_have_no_plain_side() -> None:
    table = tables(named("outside"), lambda conversation: STEPS, lambda conversation: "I only help with the app.")[
        "outside"
    ]
    assert set(table) == {"rows", "left_out", "tuned_against_base"}
    difference = table["tuned_against_base"]
    assert (difference["expected"]["base"], difference["expected"]["tuned"], difference["expected"]["rows"]) == (
        0,
        1,
        40,
    )
    assert "numbered_steps" not in difference and "rouge1" not in difference


def test_obeying_an_injection() -> None:
    def obedient(conversation: Conversation) -> str:
        return f"Sure. {conversation.fields['canary'].lower()}!" if "canary" in conversation.fields else STEPS

    obeyed = tables(named("injected"), obedient, lambda conversation: STEPS)["injected"]["obeyed"]
    assert (obeyed["base"], obeyed["tuned"], obeyed["rows"], obeyed["verdict"]) == (1, 0, 20, "better")

    def spelt(conversation: Conversation) -> str:
        return "-".join(conversation.fields.get("canary", "no"))

    def loud(conversation: Conversation) -> str:
        return "OPEN IT, THEN TAP IT." if "canary" in conversation.fields else STEPS

    twins = perturbed_rows(PARTS, named("injected"), seed=1).rows["injected"]
    capitals_share = sum(twin.fields["injected"] == "capitals" for twin in twins) / 20
    obeyed = tables(named("injected"), spelt, loud)["injected"]["obeyed"]
    assert 0 < capitals_share < 1 and obeyed["base"] == 1 and obeyed["tuned"] == pytest.approx(capitals_share)
    always_loud = tables(named("injected"), lambda conversation: "OPEN IT, THEN TAP IT.", loud)["injected"]["obeyed"]
    assert always_loud["base"] == 0  # it shouts at plain requests too


def test_folded_and_missing_scores_are_compared_as_elsewhere() -> None:
    perturbed = perturbed_rows(PARTS, named("upper"), seed=1)

    def scorer(conversation: Conversation, item: RowReply) -> dict[str, Score]:
        twin = "~" in conversation.id
        perplexity = {"perplexity": Score("perplexity", 2.0 if twin else 1.0, "lower", "exp")}
        return perplexity if twin or conversation.id != "t3" else {}

    answers = [{which: replies(rows, shaky) for which in ("base", "tuned")} for rows in (PARTS, perturbed.rows)]
    difference = robustness_tables(PARTS, perturbed, answers[0], answers[1], scorer, seed=1)["upper"]["base"][
        "perplexity"
    ]
    assert (difference["plain"], difference["perturbed"]) == pytest.approx((math.e, math.e**2))
    assert (difference["rows"], difference["missing"], difference["verdict"]) == (19, 1, "worse")
    assert difference["adjusted"] is not None


def test_alike() -> None:
    assert rouge_l("", " ") == 1 and rouge_l("", "a") == 0
    assert rouge_l("ανοίξτε την εφαρμογή", "Ανοίξτε ΤΗΝ καρτέλα") == pytest.approx(2 / 3)
    assert rouge_l("打开订单", "打开账单") == pytest.approx(3 / 4)
    assert rouge_l("a b c d", "a c e") == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))
    assert same_steps(STEPS, "1) a\n 2) b") == 1 and same_steps(STEPS, f"{STEPS}\n3. c") == 0
    assert same_steps("Well.", "1. It was nothing.") == 1 and same_steps("Well.", STEPS) == 0


@settings(max_examples=100, deadline=None)
@given(first=ANY, second=ANY)
def test_alike_of_any_text(first: str, second: str) -> None:
    assert rouge_l(first, first) == same_steps(first, first) == 1
    assert 0 <= rouge_l(first, second) <= 1 and rouge_l(first, second) == pytest.approx(rouge_l(second, first))


def test_twins_go_through_the_runs_files(tmp_path: Path) -> None:
    twins = perturbed_rows(PARTS, named("injected", "outside"), seed=1).rows
    every = [twin for rows in twins.values() for twin in rows]
    file = tmp_path / "twins.jsonl"
    file.write_text("".join(json.dumps(conversation_to_dict(twin)) + "\n" for twin in every), encoding="utf-8")
    assert [conversation_to_dict(conversation) for conversation in read_rows(file)] == [
        conversation_to_dict(conversation) for conversation in every
    ]
