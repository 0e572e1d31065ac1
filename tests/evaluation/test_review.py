"""Pairs, sides, judgments on disk, and what they add up to, against published and hand-computed figures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from tunesmith.data.conversation import Conversation, Origin, Turn
from tunesmith.errors import ResourceError, RunError
from tunesmith.evaluation.agreement import cohen_kappa, fleiss_kappa, wilson_interval
from tunesmith.evaluation.review import (
    QUESTIONS,
    Answer,
    Judgment,
    Model,
    Preference,
    ReviewPair,
    Reviews,
    pair_replies,
    read_replies,
    read_reviews,
    shuffle_for_reviewer,
    summarize,
)

# Fleiss 1971, table 1: 30 patients, each judged by 6 psychiatrists; how many chose each of 5 diagnoses.
DIAGNOSES = """
00060 03003 01401 00006 03030 20400 00402 20310 20040 00006 10050 11040 03300 10050 02031
00501 30012 51000 02040 10203 00006 01050 02013 20040 10041 05010 40002 02040 10500 00006
"""


def a_row(name: str, answer: str = "the answer", **fields: object) -> Conversation:
    turns = (Turn("system", "Be short."), Turn("user", f"ask {name}"), Turn("assistant", answer))
    return Conversation(name, turns, Origin("rows.jsonl", 1), "", fields)


def some_pairs(count: int, part: str = "test") -> list[ReviewPair]:
    rows = {part: [a_row(f"{part}{n}") for n in range(count)]}
    keys = [(part, row.id) for row in rows[part]]
    return pair_replies(rows, {k: f"old {k}" for k in keys}, {k: f"new {k}" for k in keys})[0]


def says(
    pair: ReviewPair,
    reviewer: str,
    preferred: str,
    *,
    left_is: Model = "base",
    base: Mapping[str, Answer] | None = None,
    tuned: Mapping[str, Answer] | None = None,
) -> Judgment:
    """A judgment told by model: who was preferred, and the answers that are not yes."""
    whole: dict[str, dict[str, Answer]] = {
        "base": {**dict.fromkeys(QUESTIONS, "yes"), **(base or {})},
        "tuned": {**dict.fromkeys(QUESTIONS, "yes"), **(tuned or {})},
    }
    right_is: Model = "tuned" if left_is == "base" else "base"
    preference: Preference = "tie" if preferred == "tie" else "left" if preferred == left_is else "right"
    return Judgment(
        pair.id,
        pair.part,
        reviewer,
        left_is=left_is,
        left=whole[left_is],
        right=whole[right_is],
        preference=preference,
        seconds=4.0,
        note="",
        time="2026-01-01T00:00:00Z",
    )


@pytest.mark.parametrize(("count", "of"), [(0, 1), (1, 1), (0, 20), (20, 20), (7, 9), (50, 100), (3, 1000)])
def test_the_interval_is_wilsons(count: int, of: int) -> None:
    expected = binomtest(count, of).proportion_ci(method="wilson")
    low, high = wilson_interval(count, of)
    assert low == pytest.approx(expected.low, abs=1e-12)
    assert high == pytest.approx(expected.high, abs=1e-12)
    assert 0 <= low <= count / of <= high <= 1


@pytest.mark.parametrize(("count", "of"), [(0, 0), (2, 1), (-1, 3)])
def test_no_interval_of_no_share(count: int, of: int) -> None:
    with pytest.raises(ValueError, match="not a proportion"):
        wilson_interval(count, of)


def test_fleiss_own_example() -> None:
    items = [[str(kind) for kind, n in enumerate(row) for _ in range(int(n))] for row in DIAGNOSES.split()]
    totals = Counter(answer for item in items for answer in item)
    assert [totals[str(kind)] for kind in range(5)] == [26, 26, 30, 55, 43]
    equal, kappa = fleiss_kappa(items)
    assert (round(equal, 3), round(kappa or 0, 3)) == (0.556, 0.430)  # as printed in the paper


def test_cohens_kappa_by_hand() -> None:
    # 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: p = 35/50, e = (25·30 + 25·20)/50² = 0.5, kappa = 0.4
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4, abs=1e-12)
    assert cohen_kappa(["a", "b"], ["b", "a"]) == -1
    assert cohen_kappa(["a", "b"], ["a", "b"]) == 1
    assert cohen_kappa(["a", "a"], ["a", "a"]) is None
    assert cohen_kappa(["a", "a"], ["a", "b"]) == 0
    with pytest.raises(ValueError, match="equal"):
        cohen_kappa(["a"], [])
    with pytest.raises(ValueError, match="same number"):
        fleiss_kappa([["a", "b"], ["a"]])
    assert fleiss_kappa([["a", "a", "a"]]) == (1.0, None)


def test_pairs_leave_out_equal_replies_and_tell_no_answer() -> None:
    fields: dict[str, Any] = {
        "skill": "sewing",
        "asked": "ask one",
        "letter": "the answer",
        "messages": [{"a": 1}],
        "whole": "x the answer",
        "years": 4,
    }
    rows = {"test": [a_row("one", **fields), a_row("two")], "probe": [a_row("three", answer="")]}
    base = {("test", "one"): "old", ("test", "two"): "same \n", ("probe", "three"): ""}
    tuned = {("test", "one"): "new", ("test", "two"): "same", ("probe", "three"): "something"}
    pairs, equal = pair_replies(rows, base, tuned)
    assert equal == 1
    assert [(p.part, p.base, p.tuned) for p in pairs] == [("test", "old", "new"), ("probe", "", "something")]
    assert pairs[0].fields == {"skill": "sewing", "years": "4"}
    assert [turn.role for turn in pairs[0].turns] == ["system", "user"]
    swapped = pair_replies(rows, tuned, base)[0]
    assert [p.id for p in pairs] == [p.id for p in swapped]  # the id does not tell whose is whose
    changed = pair_replies(rows, {**base, ("test", "one"): "another"}, tuned)[0]
    assert changed[0].id != pairs[0].id
    with pytest.raises(RunError, match="belong to other rows"):
        pair_replies({"test": rows["test"]}, base, tuned)


def test_each_reviewer_has_their_own_sides_again_and_again() -> None:
    pairs = some_pairs(40)
    r1, again, r2, reseeded = (
        shuffle_for_reviewer(pairs, 7, "a"),
        shuffle_for_reviewer(pairs[::-1], 7, "a"),
        shuffle_for_reviewer(pairs, 7, "b"),
        shuffle_for_reviewer(pairs, 8, "a"),
    )
    assert r1 == again
    sides = [{s.pair.id: s.left_is for s in shown_pairs} for shown_pairs in (r1, r2, reseeded)]
    orders = [[s.pair.id for s in shown_pairs] for shown_pairs in (r1, r2, reseeded)]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert sides[i] != sides[j]
        assert orders[i] != orders[j]
    for shown_pairs in (r1, r2, reseeded):
        assert Counter(s.left_is for s in shown_pairs) == {"base": 20, "tuned": 20}
        assert sorted(s.pair.id for s in shown_pairs) == sorted(p.id for p in pairs)
    assert (
        len({s.left_is for n in range(30) for s in shuffle_for_reviewer(pairs[:1], n, "a")}) == 2
    )  # an odd one's side is drawn too
    first = r1[0]
    assert {first.left, first.right} == {first.pair.base, first.pair.tuned}
    other_way = replace(first, pair=replace(first.pair, base=first.pair.tuned, tuned=first.pair.base))
    turned = replace(other_way, left_is="tuned" if first.left_is == "base" else "base")
    assert turned.key == first.key  # the same texts on the same sides have the same key, whoever wrote them


@pytest.mark.parametrize("name", ["", "Upper", "a b", "../a", "a.b", "x" * 33, "é", "a\n"])
def test_names_that_are_no_slugs(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="is not a valid reviewer name") as error:
        Reviews.open(tmp_path, name)
    assert "reviewer-1" in error.value.next
    assert list(tmp_path.iterdir()) == []


def test_judgements_are_kept_resumed_and_replaced(tmp_path: Path) -> None:
    one, two = some_pairs(2)
    reviews = Reviews.open(tmp_path / "reviews", "r1")
    reviews.add(says(one, "r1", "tuned", base={"correct": "no"}))
    reviews.add(says(two, "r1", "tie"))
    reviews.add(replace(says(one, "r1", "base", left_is="tuned"), note="ßé\u2028 \ud800"))
    again = Reviews.open(tmp_path / "reviews", "r1")
    assert again.judgments == reviews.judgments
    assert again.judgments[one.id].preferred == "base"
    assert again.torn == 0
    lines = reviews.path.read_bytes().split(b"\n")
    assert len(lines) == 4
    assert json.loads(lines[0]) == asdict(says(one, "r1", "tuned", base={"correct": "no"}))
    assert Reviews.open(tmp_path / "reviews", "r2").judgments == {}
    assert read_reviews(tmp_path / "reviews") == {"r1": reviews.judgments, "r2": {}}


@pytest.mark.parametrize("tail", [b'{"pair": "x', b"\0" * 40, b"{}", '{"note": "é'.encode()[:-1]])
def test_a_torn_last_line_is_passed_over(tmp_path: Path, tail: bytes) -> None:
    one, two = some_pairs(2)
    reviews = Reviews.open(tmp_path, "r1")
    reviews.add(says(one, "r1", "tuned"))
    whole = reviews.path.read_bytes()
    reviews.path.write_bytes(whole + tail)
    assert set(read_reviews(tmp_path)["r1"]) == {one.id}
    assert reviews.path.read_bytes() == whole + tail  # who only reads changes nothing
    again = Reviews.open(tmp_path, "r1")
    assert again.torn == len(tail)
    again.add(says(two, "r1", "base"))
    assert set(Reviews.open(tmp_path, "r1").judgments) == {one.id, two.id}
    assert reviews.path.read_bytes().startswith(whole)


@pytest.mark.parametrize(
    "change",
    [
        {"preference": "both"},
        {"left_is": "third"},
        {"left": {"correct": "yes"}},
        {"right": dict.fromkeys(QUESTIONS, "maybe")},
        {"reviewer": "r2"},
        {"seconds": None},
    ],
    ids=str,
)
def test_damage_is_told_with_its_line(tmp_path: Path, change: dict[str, object]) -> None:
    (one,) = some_pairs(1)
    good = asdict(says(one, "r1", "tuned"))
    (tmp_path / "r1.jsonl").write_text(json.dumps(good) + "\n" + json.dumps({**good, **change}) + "\n")
    with pytest.raises(RunError, match="cannot be read") as error:
        Reviews.open(tmp_path, "r1")
    assert error.value.where.endswith("r1.jsonl line 2")


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = some_pairs(2)
    reviews = Reviews.open(tmp_path, "r1")
    reviews.add(says(one, "r1", "tuned"))
    before = reviews.path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tunesmith.evaluation.review.os.fsync", full)
    with pytest.raises(ResourceError, match="disk is full"):
        reviews.add(says(two, "r1", "tuned"))
    assert reviews.path.read_bytes() == before
    assert set(reviews.judgments) == {one.id}


def test_a_judgement_seen_from_the_other_side() -> None:
    (one,) = some_pairs(1)
    judgment = says(one, "r1", "tuned", base={"clear": "no"})
    turned = judgment.with_left("tuned")
    assert (judgment.preference, turned.preference) == ("right", "left")
    for model in ("base", "tuned"):
        assert turned.about(model) == judgment.about(model)
    assert turned.preferred == judgment.preferred == "tuned"
    assert turned.with_left("base") == judgment.with_left("base") == judgment


def test_shares_of_one_reviewer() -> None:
    pairs = some_pairs(10)
    wins = ["tuned"] * 6 + ["base"] * 2 + ["tie"] * 2
    reviews = {
        p.id: says(p, "r1", w, left_is="tuned" if n % 2 else "base")
        for n, (p, w) in enumerate(zip(pairs, wins, strict=True))
    }
    reviews[pairs[0].id] = says(pairs[0], "r1", "tuned", base={"correct": "no", "format": "cannot say"})
    summary = summarize([*pairs, *some_pairs(1, "unseen")], 3, {"r1": reviews})
    assert (summary.pairs, summary.equal, summary.stale, summary.reviewers) == (11, 3, 0, {"r1": 10})
    assert list(summary.sections) == ["test"]
    description = summary.describe()
    expected = binomtest(6, 8).proportion_ci(method="wilson")
    tuned = description["sections"]["test"]["tuned"]
    assert (tuned["count"], tuned["of"], tuned["left_out"], tuned["share"]) == (6, 8, 2, 0.75)
    assert (tuned["low"], tuned["high"]) == (pytest.approx(expected.low), pytest.approx(expected.high))
    questions = description["sections"]["test"]["questions"]
    assert {k: questions["correct"]["base"][k] for k in ("count", "of", "left_out")} == {
        "count": 9,
        "of": 10,
        "left_out": 0,
    }
    assert {k: questions["format"]["base"][k] for k in ("count", "of", "left_out")} == {
        "count": 9,
        "of": 9,
        "left_out": 1,
    }
    assert questions["correct"]["tuned"]["share"] == 1
    assert description["left"]["count"] + description["left"]["left_out"] <= 10
    assert description["left"]["of"] == 8
    assert description["seconds"] == 4
    assert description["agreement"] == {}
    assert summary.verdict == (
        "No preference was shown: tuned won 6 of 8 decided pairs; 2 ties (p = 0.289). With other questions of this "
        "kind, the share won less the share lost would probably lie between -0.15 and +0.75."
    )
    json.dumps(description, allow_nan=False)


def test_verdicts() -> None:
    pairs = some_pairs(20)
    for winner, opening in (("tuned", "People preferred the tuned model"), ("base", "People preferred the base model")):
        reviews = {"r1": {p.id: says(p, "r1", winner) for p in pairs}}
        assert summarize(pairs, 0, reviews).verdict.startswith(f"{opening}: tuned won {20 * (winner == 'tuned')} of 20")
    ties = {"r1": {p.id: says(p, "r1", "tie") for p in pairs}}
    assert summarize(pairs, 0, ties).verdict == "No preference was shown: all 20 judged pairs are ties."
    assert summarize(pairs, 0, {"r1": {}}).verdict == "Nothing was judged yet."
    probes = some_pairs(1, "odd")
    odd = {"r1": {probes[0].id: says(probes[0], "r1", "tuned")}}
    assert "1 of 1 decided pairs of odd" in summarize(probes, 0, odd).verdict


@pytest.mark.parametrize(
    ("topics", "opening"), [(5, "Too few pairs"), (7, "No preference was shown"), (60, "People preferred")]
)
def test_topics_are_counted_and_not_single_pairs(topics: int, opening: str) -> None:
    pairs = [replace(pair, group=f"g{number % topics}") for number, pair in enumerate(some_pairs(60))]
    reviews = {"r1": {p.id: says(p, "r1", "base" if n % topics == 0 else "tuned") for n, p in enumerate(pairs)}}
    summary = summarize(pairs, 0, reviews)
    preference = summary.sections["test"].preference
    assert (preference.groups, preference.rows) == (topics, 60)
    assert summary.verdict.startswith(opening)
    if topics == 7:  # one topic for the base, six for the tuned model: rows alone would give p < 0.001
        assert preference.p > 0.05


def test_sections_stand_as_in_the_scores() -> None:
    pairs = [*some_pairs(2, "odd"), *some_pairs(3, "unseen"), *some_pairs(4, "test")]
    reviews = {"r1": {p.id: says(p, "r1", "tuned") for p in pairs}}
    sections = summarize(pairs, 0, reviews).sections
    assert {title: section.pairs for title, section in sections.items()} == {"all": 7, "test": 4, "unseen": 3, "odd": 2}
    assert list(sections) == ["all", "test", "unseen", "odd"]


def test_a_pair_counts_once_by_majority() -> None:
    one, two, three = some_pairs(3)
    removed = some_pairs(1, "unseen")[0]
    reviews = {
        "r1": {p.id: says(p, "r1", w) for p, w in ((one, "tuned"), (two, "tuned"), (three, "tie"), (removed, "base"))},
        "r2": {p.id: says(p, "r2", w) for p, w in ((one, "base"), (two, "tuned"), (three, "base"))},
        "r3": {two.id: says(two, "r3", "base", tuned={"robust": "no"})},
    }
    reviews["r2"][two.id] = says(two, "r2", "tuned", tuned={"robust": "no"})
    summary = summarize([one, two, three], 0, reviews)
    section = summary.sections["test"]
    assert (section.tuned.count, section.tuned.of, section.tuned.left_out) == (
        1,
        2,
        1,
    )  # one: split; two: 2 to 1; three: base
    assert section.questions["robust"]["tuned"].count == 2
    assert summary.stale == 1
    assert summary.reviewers == {"r1": 3, "r2": 3, "r3": 1}


def test_agreement_of_two_and_of_three() -> None:
    pairs = some_pairs(4)
    votes = {"r1": "tuned tuned base tie", "r2": "tuned base base tie", "r3": "tuned tuned base base"}
    reviews = {
        name: {
            p.id: says(p, name, w, left_is="tuned" if name == "r2" else "base")
            for p, w in zip(pairs, text.split(), strict=True)
        }
        for name, text in votes.items()
    }
    by_question = summarize(pairs, 0, reviews).describe()["agreement"]
    preference = {tuple(entry["reviewers"]): entry for entry in by_question["preference"]}
    assert set(preference) == {("r1", "r2"), ("r1", "r3"), ("r2", "r3"), ("r1", "r2", "r3")}
    # r1 and r2: p = 3/4, e = (2·1 + 1·2 + 1·1)/16 = 5/16, kappa = (12 - 5)/(16 - 5)
    assert preference["r1", "r2"]["equal"] == 0.75
    assert preference["r1", "r2"]["kappa"] == pytest.approx(7 / 11)
    # all: items' agreement 1, 1/3, 1, 1/3, mean 2/3; shares 5/12, 5/12, 2/12, e = 54/144; kappa = 7/15
    assert preference["r1", "r2", "r3"]["equal"] == pytest.approx(2 / 3)
    assert preference["r1", "r2", "r3"]["kappa"] == pytest.approx(7 / 15)
    assert preference["r1", "r2", "r3"]["items"] == 4
    assert by_question["correct"][0] == {"reviewers": ("r1", "r2"), "items": 8, "equal": 1.0, "kappa": None}
    del reviews["r3"]
    reviews["r2"].pop(pairs[1].id)
    (two,) = summarize(pairs, 0, reviews).agreement["preference"]
    assert (two.items, two.equal, two.kappa) == (3, 1.0, 1.0)


def test_replies_from_disk(tmp_path: Path) -> None:
    path = tmp_path / "base.jsonl"
    with pytest.raises(RunError, match="no replies yet"):
        read_replies(path)
    path.write_text(
        json.dumps({"id": "a", "part": "test", "text": "two\u2028lines"}, ensure_ascii=False) + "\n", "utf-8"
    )
    assert read_replies(path) == {("test", "a"): "two\u2028lines"}
    path.write_text('{"id": "a"}\n')
    with pytest.raises(RunError, match="damaged"):
        read_replies(path)
