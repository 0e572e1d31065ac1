"""A table's format, judged by many rows: names, contents, what is left out and why, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tunesmith.config.registry import resolve
from tunesmith.data.detect_format import detect_format
from tunesmith.data.formats import DetectedFormat, auto, detect_row_format
from tunesmith.errors import DataError

Row = dict[str, Any]
SAID = (
    "amber bridge candle dune ember fern gravel harbour ivory jetty kettle lantern meadow needle orchard pebble quarry "
    "river saddle thistle umber valley willow yarrow zephyr anvil barley copper drizzle elder"
)
WORDS = SAID.split()


def words(number: int, count: int) -> str:
    """`count` words, others for each number."""
    return " ".join(WORDS[(number * 7 + place * (number % 5 + 1)) % len(WORDS)] + str(number) for place in range(count))


def rows(make: Callable[[int], Row], count: int = 60) -> list[Row]:
    return [make(number) for number in range(count)]


def judged(make: Callable[[int], Row], count: int = 60) -> DetectedFormat:
    """The guess, which must fit the rows it was made from."""
    table = rows(make, count)
    found = detect_format(table)
    parse = resolve("tunesmith.data.formats", found.name)
    for values in table:
        turns, _ = parse(values, **found.options)
        assert len(turns) >= 2
    assert found.why
    return found


def letter(number: int) -> Row:
    return {
        "split": "train" if number % 5 else "test",
        "Job Title": f"{WORDS[number % 30]} keeper",
        "Skills": f"{WORDS[number % 7]}, {WORDS[(number + 3) % 11]}",
        "Years": number % 9,
        "Country": "Norway",
        "Advert Link": f"https://example.org/{number}",
        "applicant_id": number,
        "Cover Letter": f"Dear reader, {words(number, 40)}",
    }


def test_short_columns_and_a_letter_are_fields() -> None:
    found = judged(letter)
    assert found.name == "fields"
    assert found.options["fields"] == ["Job Title", "Skills", "Years"]
    assert found.options["answer"] == "Cover Letter"
    assert "cover letter" in found.options["instruction"]
    assert set(found.left) == {"split", "Country", "Advert Link", "applicant_id"}
    assert "Norway" in found.left["Country"]
    assert found.left["Advert Link"] == "addresses"
    assert set(found.reasons) == {"fields", "answer", "instruction"}


def support(number: int) -> Row:
    return {
        "channel": "web",
        "instruction": f"how do I {words(number, 5)}",
        "intent": f"intent {number % 6}",
        "category": f"category {number % 2}",
        "start_offset": number % 13,
        "response": words(number + 99, 30),
    }


def test_a_known_pair_takes_a_group_and_leaves_labels_out() -> None:
    found = judged(support)
    assert found.name == "columns"
    assert found.options == {"prompt": "instruction", "answer": "response", "group": "intent"}
    assert set(found.left) == {"channel", "category", "start_offset"}
    assert any("category" in near for near in found.near)
    assert "6 values" in found.reasons["group"]


def test_texts_beside_a_question_stand_before_it() -> None:
    found = judged(
        lambda n: {
            "question": words(n, 8),
            "about_me": words(n + 1, 9),
            "mood": f"m{n % 3}",
            "response": words(n + 2, 40),
        }
    )
    assert found.name == "columns"
    assert found.options == {"prompt": "{about_me}\n\n{question}", "answer": "response", "group": "mood"}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda row, n: {**row, "context": row["context"] * (n % 3 > 0)}, id="often empty"),
        pytest.param(
            lambda row, n: {("the {context}" if k == "context" else k): v for k, v in row.items()},
            id="braces in a name",
        ),
    ],
)
def test_a_template_that_would_leave_holes_becomes_fields(change: Callable[[Row, int], Row]) -> None:
    def make(number: int) -> Row:
        row = {"context": words(number, 12), "question": words(number + 1, 8), "answer": words(number + 2, 20)}
        return change(row, number)

    found = judged(make)
    assert found.name == "fields"
    assert found.options["fields"][-1] == "question"
    assert len(found.options["fields"]) == 2


@pytest.mark.parametrize(
    ("make", "name", "options"),
    [
        (lambda n: {"quote": words(n, 12)}, "lines", {"line": "quote"}),
        (lambda n: {"quotes": words(n, 12), "topic": f"t{n % 5}"}, "lines", {"line": "quotes", "group": "topic"}),
        (lambda n: {"prompt": words(n, 4), "line": words(n, 9)}, "columns", {"prompt": "prompt", "answer": "line"}),
        (lambda n: {"mr": words(n, 8), "ref": words(n + 1, 20)}, "columns", {"prompt": "mr", "answer": "ref"}),
        (lambda n: {"problem": words(n, 9), "solution": n * 3}, "columns", {"prompt": "problem", "answer": "solution"}),
        (lambda n: {"seed": words(n, 5), "prose": words(n, 60)}, "columns", {"prompt": "seed", "answer": "prose"}),
        (
            lambda n: {"instruction": words(n, 5), "input": "", "output": words(n, 9), "topic": f"t{n % 4}"},
            "alpaca",
            {"group": "topic"},
        ),
        (
            lambda n: {
                "id": n,
                "talk": 1,
                "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            },
            "chat",
            {},
        ),
        (
            lambda n: {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            "sharegpt",
            {},
        ),
    ],
)  # fmt: skip
def test_other_tables(make: Callable[[int], Row], name: str, options: dict[str, Any]) -> None:
    found = judged(make)
    assert found.name == name
    asked = dict(found.options)
    if name == "lines":
        assert len(set(asked.pop("ask"))) == 3
        assert "replace" in found.reasons["ask"]
    assert asked == options


def test_the_longest_texts_are_the_answer_and_a_near_one_is_told() -> None:
    found = judged(lambda n: {"alpha": words(n, 30), "beta": words(n + 1, 34), "gamma": words(n, 3)})
    assert found.options["answer"] == "beta"
    assert "longest" in found.reasons["answer"]
    assert any("alpha" in near for near in found.near)
    clear = judged(lambda n: {"alpha": words(n, 10), "beta": words(n + 1, 34)})
    assert not clear.near


def test_a_copy_of_the_answer_is_never_a_field() -> None:
    found = judged(
        lambda n: {"name": words(n, 1), "town": words(n + 5, 1), "story": words(n, 20), "raw": f"## {words(n, 20)}"}
    )
    assert found.options["fields"] == ["name", "town"]
    assert found.left == {"raw": "a copy of the answer"}


def test_a_short_answer_in_a_passage_is_no_copy() -> None:
    found = judged(lambda n: {"passage": words(n, 40), "question": words(n + 1, 6), "answer": words(n, 2)})
    assert found.options["prompt"] == "{passage}\n\n{question}"


@pytest.mark.parametrize(
    ("topic", "is_group"),
    [
        (lambda n: f"t{n % 5}", True),
        (lambda n: n % 5, True),
        (lambda n: f"t{n % 30}", False),  # more than a quarter of the rows
        (lambda n: f"t{n % 5}" if n % 10 else "", False),  # a split by group needs one in every row
        (lambda n: "t", False),
        (lambda n: f"t{n % 3}" if n < 50 else f"t{n}", False),  # ten values stand alone
    ],
)
def test_a_group_has_few_values_each_repeated(topic: Callable[[int], Any], is_group: bool) -> None:
    found = judged(lambda n: {"question": words(n, 6), "answer": words(n, 20), "topic": topic(n)})
    assert ("group" in found.options) == is_group
    assert ("topic" in found.left) != is_group


def test_a_field_that_sorts_the_rows_stays_a_field_but_a_label_does_not() -> None:
    found = judged(
        lambda n: {"genre": f"g{n % 4}", "hero": words(n, 2), "place": words(n + 3, 2), "story": words(n, 30)}
    )
    assert found.options["fields"] == ["genre", "hero", "place"]
    assert found.options["group"] == "genre"
    found = judged(
        lambda n: {"label": f"g{n % 4}", "hero": words(n, 2), "place": words(n + 3, 2), "story": words(n, 30)}
    )
    assert found.options["fields"] == ["hero", "place"]
    assert found.options["group"] == "label"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda n: {"prompt": "a", "chosen": "b", "rejected": "c"}, "preference pair"),
        (lambda n: {"conversations": [{"from": "function_call", "value": "{}"}]}, "tool calls"),
        (lambda n: {"messages": [{"role": "assistant", "content": "", "tool_calls": [1]}]}, "tool calls"),
        (lambda n: {"rec_id": n, "name": words(n, 1), "postcode": n * 7}, "no column has texts"),
        (lambda n: {"box": {"a": n}, "tokens": ["a", "b"]}, "no column has texts"),
        (lambda n: {}, "no column has texts"),
    ],
)  # fmt: skip
def test_refusals(make: Callable[[int], Row], says: str) -> None:
    with pytest.raises(DataError, match=says) as told:
        detect_format(rows(make))
    assert told.value.next


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        detect_format([])


def test_a_few_rows_of_another_kind_do_not_decide() -> None:
    talk = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    call = {"conversations": [{"from": "human", "value": "a"}, {"from": "observation", "value": "b"}]}
    found = detect_format([talk] * 9 + [call] + [{"note": "x"}])
    assert found.name == "sharegpt"
    assert "1 of 11 rows are tool calls" in found.near[0]


def test_one_row_is_still_recognised_as_before() -> None:
    values = {"question": "q", "answer": "a", "more": "m"}
    assert detect_row_format(values).options == {"prompt": "question", "answer": "answer"}
    assert auto(values).notes.unused == {"more": 1}
    assert [turn.text for turn in auto(values)[0]] == ["q", "a"]
