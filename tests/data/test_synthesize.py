"""Plans are read strictly, texts judged; rows are balanced, survive a kill, and say where they are from."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from chat_server import ChatServer, Once, serve, writer
from tunesmith.data.conversation import Turn
from tunesmith.data.formats import columns
from tunesmith.data.sources import read
from tunesmith.data.synthesis import generate, templates
from tunesmith.data.synthesis.candidates import fault, plain_answer, plain_prompt, prompt_fault, repeats, request_prompt
from tunesmith.data.synthesis.generate import SynthesisResult, generate_rows
from tunesmith.data.synthesis.plan import RowPlan, Server, fill_template, find_plan, read_plan, slot_names
from tunesmith.errors import DataError, ModelError, MultipleErrors, RecipeError, ResourceError, RunError, TunesmithError
from tunesmith.generation.from_server import ServerModel
from tunesmith.generation.text_model import Reply

ROOT = Path(__file__).parents[2]
TOPICS = """
    name: shop-help
    about: a customer of a shop
    out: rows.jsonl
    per_topic: 5
    styles: [polite, terse, angry]
    topics:
      - {name: reset password, about: how to get back in, answer: "1. Open it.\\n2. Tap Forgot."}
      - {name: track a parcel}
      - {name: cancel an order, about: before it is sent}
      - {name: return an item}
    server: {url: "URL", model: small, retries: 1, KEY}
"""
TEMPLATES = """
    name: letters
    out: letters.jsonl
    rows: 24
    templates:
      - prompt: ["Write a letter for {job} at {company}.", "I want to be {job} at {company}. Write my letter."]
        answer: "Dear team of {company}, I should like to be {job}."
        topic: letter
      - {prompt: "Say no to {company}.", answer: "No, thank you, {company}.", topic: refusal, style: short}
    fields:
      job: [a cook, a nurse, a smith, a clerk]
      company: [Ahorn, Birke, Linde]
"""


def write(folder: Path, text: str, url: str = "http://127.0.0.1:1/v1", key: str = "") -> Path:
    path = folder / "plan.yaml"
    path.write_text(textwrap.dedent(text).replace("URL", url).replace(", KEY", f", key: {key}" if key else ""))
    return path


def plan_of(folder: Path, text: str, **changes: Any) -> RowPlan:
    plan = read_plan(write(folder, text))
    changed = plan.model_copy(update=changes)
    changed._folder = plan._folder
    return changed


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def replies(turns: Sequence[Turn], seed: int) -> Reply:
    """The server's model, without the server."""
    written = writer({"messages": [{"content": turns[-1].text}], "seed": seed})
    return Reply(written[0], False, 1) if isinstance(written, tuple) else Reply(written, True, 1)


class Stops:
    """Stands for a user who stops the command at the n-th text."""

    def __init__(self, complete: Callable[[Sequence[Turn], int], Reply], after: int) -> None:
        self.complete, self.left = complete, after

    def __call__(self, turns: Sequence[Turn], seed: int) -> Reply:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.complete(turns, seed)


# --- a plan --------------------------------------------------------------------------------------------------


def test_everything_wrong_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    text = """\
    name: Shop Help
    out: rows.csv
    per_topik: 3
    topics:
      - {about: x}
      - {name: 7}
    styles: []
    server: {url: http://127.0.0.1/v1, model: m, key: sk-recognisable-4711, retries: -1}
    """
    path = write(tmp_path, text)
    with pytest.raises(MultipleErrors) as caught:
        read_plan(path)
    told = str(caught.value)
    for line, words in [
        (1, "name: string should match"), (2, "out: string should match"), (3, "'per_topik'.*mean 'per_topic'"),
        (5, "topics.0.name: 'name' is missing"), (6, "topics.1.name: input should be a valid string, not 7"),
        (7, "styles: list should have at least 1"), (8, "retries: input should be greater"), (8, "variable name"),
    ]:  # fmt: skip
        assert re.search(f"plan.yaml line {line}, .*{words}", told), (line, words, told)
    assert len(caught.value.errors) == 8
    assert "recognisable" not in told


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{name: a, out: a.jsonl}", "neither topics nor templates"),
        ("{name: a, out: a.jsonl, topics: [{name: x}], templates: [{prompt: p, answer: a}]}", "both topics and"),
        ("{name: a, out: a.jsonl, topics: [{name: x}]}", "'server' is missing"),
        ("{name: a, out: a.jsonl, rows: 3, topics: [{name: x}], server: {url: u, model: m}}", "'rows' has no effect"),
        ("{name: a, out: a.jsonl, styles: [x], templates: [{prompt: p, answer: a}]}", "'styles' has no effect"),
        (
            "{name: a, out: a.jsonl, topics: [{name: x}, {name: X.}], server: {url: u, model: m}}",
            "'X.' is listed twice",
        ),
        ("{name: a, out: a.jsonl, templates: [{prompt: 'p {b}', answer: a}]}", "there is no field 'b'"),
        ("{name: a, out: a.jsonl, templates: [{prompt: 'p {b.x}', answer: a}], fields: {b: [1]}}", "no field 'b.x'"),
        ("{name: a, out: a.jsonl, templates: [{prompt: 'p {b[0]}', answer: a}], fields: {b: [1]}}", "no field 'b.0.'"),
        (
            "{name: a, out: a.jsonl, templates: [{prompt: 'p {b!r}', answer: a}], fields: {b: [1]}}",
            "has a format specifier",
        ),
        (
            "{name: a, out: a.jsonl, templates: [{prompt: 'p {b:>9}', answer: a}], fields: {b: [1]}}",
            "a format specifier",
        ),
        ("{name: a, out: a.jsonl, templates: [{prompt: 'p {b', answer: a}], fields: {b: [1]}}", "is not a template"),
        ("{name: a, out: a.jsonl, templates: [{prompt: p, answer: a}], fields: {b: [1]}}", "no template uses 'b'"),
        (
            "{name: a, out: a.jsonl, templates: [{prompt: p, answer: 'a {b}'}], fields: {b: [1]}}",
            "teaches the model to invent",
        ),
        ("{name: a, out: a.jsonl, templates: [{prompt: 'p {b}', answer: a}], fields: {b: []}}", "'b' has no value"),
        (
            "{name: a, out: a.jsonl, templates: [{prompt: 'p {b}', answer: a}], fields: {b: [1, 1]}}",
            "'1' is listed twice",
        ),
        ("{name: a, out: a.jsonl, templates: [{prompt: 'p {b}', answer: a}], fields: {b: x}}", "'b' is not a list"),
        ("{name: a, out: a.jsonl, templates: [{prompt: p, answer: a}], fields: {file: no.csv}}", "no such file"),
        ("[1]", "not a mapping"),
    ],
)
def test_plans_that_make_no_sense(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(TunesmithError, match=expected) as caught:
        read_plan(write(tmp_path, text))
    assert re.search(r"plan\.yaml", str(caught.value))


def test_a_slot_is_a_name_and_nothing_else() -> None:
    assert slot_names("{a} {{b}} {Job Title} {a}") == ["a", "Job Title"]
    assert fill_template("{a}{{a}}", {"a": "{a.__class__}"}) == "{a.__class__}{a}"
    with pytest.raises(KeyError):
        fill_template("{a.__class__}", {"a": "x"})


# --- texts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("Where is it?", "Where is it?"),
        ('1. "Where is it?"', "Where is it?"),
        ("- Where is it?", "Where is it?"),
        ("“Where is it?”", "Where is it?"),
        ('Sure! Here is a message:\n\n"Where is it?"', "Where is it?"),
        ('"Where is my parcel?"\n\nThis message is polite.', "Where is my parcel?"),
        ("**Message:** Where is it?", "Where is it?"),
        ("**Where is it?**", "Where is it?"),
        ("<think>A parcel, hm.</think>\nWhere is it?", "Where is it?"),
        ("<think>A parcel, and so on", ""),
        ("```\nWhere is it?\n```", "Where is it?"),
        ('["Where is it?"]', "Where is it?"),
        ('{"message": "Where is it?"}', "Where is it?"),
        ('"It" is not "that"', '"It" is not "that"'),
        ("Here: my parcel is late", "Here: my parcel is late"),
        ("1. Where is it?\n2. And that?", "1. Where is it?\n2. And that?"),
        ('["a", "b"]', '["a", "b"]'),
        ("Where is 5. Avenue?", "Where is 5. Avenue?"),
        ("{not json", "{not json"),
    ],
)
def test_a_prompt_is_made_plain(written: str, plain: str) -> None:
    assert plain_prompt(written) == plain
    assert plain_prompt(plain) == plain


def test_an_answer_keeps_its_steps() -> None:
    steps = "1. Open it.\n2. Tap."
    assert plain_answer(f"Certainly! Here are the steps:\n\n{steps}  \n") == "1. Open it.\n2. Tap."
    assert plain_answer(f"<think>\nhm\n</think>\n```text\n{steps}\n```") == steps


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (" ", "empty"),
        ("As an AI language model, I cannot ask.", "machine tell"),
        ("Dear [Your Name], where is it?", "placeholder"),
        ("I would like to know where my parcel is and the", "truncated"),
        ("Write to jane.roe@mail.example.com about it.", "personal: email"),
        ("My key is sk-proj-" + "a1B2c3D4" * 6, "secret"),
        ("Where is caf\u00c3\u00a9 Linde?", "mojibake"),
        ("A half \ud83d letter", "broken letters"),
        ("Where is my parcel? It is late.", ""),
    ],
)
def test_faults(text: str, kind: str) -> None:
    assert fault(text).startswith(kind)
    assert bool(fault(text)) == bool(kind)


def test_another_language_is_a_fault_only_where_one_is_wanted() -> None:
    text = "Wo ist das Paket, das ich gestern bei Ihnen für meine Tochter bestellt habe, und wird es noch kommen?"
    assert fault(text) == fault(text, language="de") == ""
    assert fault(text, language="en").startswith("wrong language")


def test_what_is_not_one_message() -> None:
    request = request_prompt(
        "a customer", {"name": "track a parcel", "about": "where it is"}, "polite", ["Where is the tiny blue parcel?"]
    )
    assert prompt_fault("x" * 11, request, longest=10).startswith("too long")
    assert prompt_fault("1. Where?\n2. When?", request, longest=99).startswith("several")
    assert prompt_fault('["Where?", "When?"]', request, longest=99).startswith("several")
    assert repeats("It has no quotation marks, no number in it", request)
    assert repeats("Write one message that could come from a customer.", request)
    assert repeats("message that could come from a customer", request)
    assert repeats("This is it: Track a parcel: where it is.", request)
    assert not repeats("Where is the tiny blue parcel?", request)
    assert not repeats("I want to track a parcel, please.", request)
    assert prompt_fault("Could you tell me where it is?", request, longest=99) == ""


# --- with a model --------------------------------------------------------------------------------------------


def test_rows_are_balanced_checked_and_say_where_they_are_from(tmp_path: Path) -> None:
    plan, said = plan_of(tmp_path, TOPICS), list[str]()
    made = generate_rows(plan, replies, tmp_path / "out", said.append, host="here:1", version="9.9")
    rows = rows_of(made.file)
    assert made.rows == made.requested == len(rows) == 20
    assert Counter(row["topic"] for row in rows) == {topic.name: 5 for topic in plan.topics} == made.by_topic
    assert sorted(made.by_style.values()) == [6, 7, 7]
    by_topic_and_style = Counter((row["topic"], row["style"]) for row in rows)
    assert set(by_topic_and_style.values()) == {1, 2}
    assert [row["topic"] for row in rows] == [topic.name for topic in plan.topics for _ in range(5)]
    assert len({row["prompt"] for row in rows}) == 20
    for row in rows:
        assert row["prompt"].startswith("Why is my ")
        origin = row["origin"]
        assert origin["kind"] == "server"
        assert (origin["model"], origin["host"], origin["tunesmith"]) == ("small", "here:1", "9.9")
        assert (origin["topic"], origin["style"]) == (row["topic"], row["style"])
        assert origin["plan"] == plan.fingerprint()
        assert origin["answer"] == ("given" if row["topic"] == "reset password" else "written")
        assert origin["made"][:2] == "20"
    answers = {row["topic"]: row["completion"] for row in rows}
    assert len(set(answers.values())) == 4
    assert len({(row["topic"], row["completion"]) for row in rows}) == 4
    assert answers["reset password"] == "1. Open it.\n2. Tap Forgot."
    assert answers["return an item"].startswith("1. Open the ")
    entries = rows_of(made.journal)
    rejected = [entry for entry in entries if entry.get("why")]
    assert rejected
    assert sum(made.rejected.values()) == len(rejected) == sum("rejected in" in line for line in said)
    assert {"machine tell", "cut off", "empty"} >= set(made.rejected)
    assert made.requests == len([entry for entry in entries if entry["kind"] in ("answer", "prompt")])
    assert any("20 of 20 rows" in line for line in made.describe())


def test_the_rows_are_read_as_columns(tmp_path: Path) -> None:
    made = generate_rows(plan_of(tmp_path, TOPICS), replies, tmp_path)
    parsed = [columns(row.values, prompt="prompt", answer="completion", group="topic") for row in read(made.file)]
    assert [group for _, group in parsed][:6] == ["reset password"] * 5 + ["track a parcel"]
    assert parsed[0][0][-1] == Turn("assistant", "1. Open it.\n2. Tap Forgot.")


def test_styles_are_shared_out_evenly() -> None:
    plan = RowPlan.model_validate(
        {
            "name": "a",
            "out": "a.jsonl",
            "per_topic": 7,
            "styles": list("abcde"),
            "topics": [{"name": n} for n in "pqrs"],
        }
    )
    places = generate.slots(plan)
    assert sorted(Counter(slot.style for slot in places).values()) == [5, 5, 6, 6, 6]
    for topic in plan.topics:
        assert set(Counter(slot.style for slot in places if slot.topic is topic).values()) == {1, 2}


def test_what_cannot_be_had_is_counted_and_nothing_takes_its_place(tmp_path: Path) -> None:
    def stubborn(turns: Sequence[Turn], seed: int) -> Reply:
        if "track a parcel" in turns[-1].text and "Write the answer" in turns[-1].text:
            return Reply("As an AI language model, I cannot.", True, 1)
        if "cancel an order" in turns[-1].text and "Write one" in turns[-1].text:
            return Reply("Please cancel my order before it is sent.", True, 1)
        return replies(turns, seed)

    plan = plan_of(tmp_path, TOPICS, tries=8)
    made = generate_rows(plan, stubborn, tmp_path)
    assert made.by_topic == {"reset password": 5, "track a parcel": 0, "cancel an order": 1, "return an item": 5}
    assert made.missing == {"track a parcel": 5, "cancel an order": 4}
    assert made.rejected["repeated"] == 4 * 8
    assert made.rejected["machine tell"] >= 8
    assert any("9 rows could not be generated: track a parcel 5, cancel an order 4" in line for line in made.describe())
    once_more = generate_rows(plan, stubborn, tmp_path)
    assert (once_more.requests, once_more.rows, once_more.missing) == (0, 11, made.missing)
    more = generate_rows(
        plan.model_copy(update={"tries": 30}), replies, tmp_path
    )  # more tries go on, with what was had kept
    assert (more.rows, more.missing) == (20, {})


def test_nearly_the_same_prompt_is_rejected_whatever_its_topic(tmp_path: Path) -> None:
    said = iter([f"Where on earth is the parcel that I ordered last {week}?" for week in ("week", "weeks")])

    def two(turns: Sequence[Turn], seed: int) -> Reply:
        return Reply(next(said), True, 1)

    plan = plan_of(tmp_path, TOPICS, per_topic=1, tries=1)
    topics = [topic.model_copy(update={"answer": f"1. {topic.name}"}) for topic in plan.topics[:2]]
    made = generate_rows(plan.model_copy(update={"topics": topics}), two, tmp_path)
    assert made.by_topic == {"reset password": 1, "track a parcel": 0}
    assert set(made.rejected) == {"near repeat"}


def test_personal_data_and_secrets_of_a_model_are_written_nowhere(tmp_path: Path) -> None:
    def tells(turns: Sequence[Turn], seed: int) -> Reply:
        if seed % 3 == 0:
            return Reply("My address is jane.roe@mail.example.com, where is it?", True, 1)
        return replies(turns, seed)

    said: list[str] = []
    made = generate_rows(plan_of(tmp_path, TOPICS, tries=40), tells, tmp_path, said.append)
    assert made.rejected["personal"] > 0
    assert made.rows == 20
    for text in (*said, made.journal.read_text(), made.file.read_text()):
        assert "jane" not in text


def test_a_plan_from_which_no_row_comes_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row could be generated: 16 empty"):
        generate_rows(
            plan_of(tmp_path, TOPICS, per_topic=1), lambda turns, seed: Reply("", True, 0), tmp_path, version="1"
        )


# --- stopped and killed --------------------------------------------------------------------------------------


def undisturbed(folder: Path) -> SynthesisResult:
    return generate_rows(plan_of(folder, TOPICS), replies, folder / "undisturbed")


def same_rows(one: Path, other: Path) -> bool:
    def undated(path: Path) -> list[Any]:
        return [{**row, "origin": {**row["origin"], "made": ""}} for row in rows_of(path)]

    return undated(one) == undated(other)


def test_stopped_at_any_text_it_ends_with_the_same_rows(tmp_path: Path) -> None:
    whole = undisturbed(tmp_path)
    for stop in (0, 1, 2, 5, 11, whole.requests - 1):
        plan, folder = plan_of(tmp_path, TOPICS), tmp_path / f"stop{stop}"
        with pytest.raises(KeyboardInterrupt):
            generate_rows(plan, Stops(replies, stop), folder)
        assert not (folder / "rows.jsonl").exists()
        with (folder / "rows.jsonl.journal").open("a") as file:
            file.write('{"kind": "prompt", "top')  # a line that a kill cut off
        said: list[str] = []
        rest = generate_rows(plan, replies, folder, said.append)
        assert rest.requests == whole.requests - stop
        assert same_rows(rest.file, whole.file)
        assert rest.rejected == whole.rejected
        assert ("resuming with" in " ".join(said)) == (stop > 0)
        assert generate_rows(plan, replies, folder).requests == 0  # the journal is whole again


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("SHOP_KEY", "sk-recognisable-4711")
    with serve(writer) as running:
        yield running


def through_server(path: Path, folder: Path, say: Callable[[str], None] = print) -> SynthesisResult:
    plan = read_plan(path)
    server = plan.server
    assert server is not None
    with ServerModel(server.url, server.model, key=server.key, retries=server.retries) as model:

        def complete(turns: Sequence[Turn], seed: int) -> Reply:
            return model.complete(turns, max_new_tokens=99, temperature=server.temperature, seed=seed)

        return generate_rows(plan, complete, folder, say, host=model.host)


def test_killed_it_ends_with_the_same_rows_and_the_key_is_nowhere(
    tmp_path: Path, server: ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, TOPICS, server.url, "SHOP_KEY")
    whole = through_server(path, tmp_path / "whole")
    asked = len(server.told)
    assert whole.requests == asked
    assert server.told[0].headers["authorization"] == "Bearer sk-recognisable-4711"

    code = f"import sys; sys.path[:0] = [{str(ROOT / 'tests' / 'data')!r}, {str(ROOT / 'tests')!r}]\n"
    code += "from pathlib import Path; from test_synthesize import through_server\n"
    code += f"through_server(Path({str(path)!r}), Path({str(tmp_path / 'killed')!r}))"
    server.told.clear()
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def kill() -> None:
        if len(server.told) == 9:
            os.kill(child.pid, signal.SIGKILL)

    server.before = [kill]
    output, _ = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL, output
    server.before = []
    assert len(rows_of(tmp_path / "killed" / "rows.jsonl.journal")) == 1 + 8
    rest = through_server(path, tmp_path / "killed")
    assert rest.requests == asked - 8
    assert same_rows(rest.file, whole.file)
    shown = capsys.readouterr()
    for text in (output, shown.out, shown.err, *(f.read_text() for f in tmp_path.rglob("*") if f.is_file())):
        assert "recognisable" not in text


def test_a_server_that_fails_ends_it_and_the_same_command_goes_on(
    tmp_path: Path, server: ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, TOPICS, server.url, "SHOP_KEY")
    failing = [
        ([Once(500, "{}", {"retry-after-ms": "1"})] * 2, ResourceError),
        ([Once(401, "sk-recognisable-4711")], ModelError),
        ([Once(200, "sk-recognisable-4711 garbage")], ModelError),
    ]
    for number, (answers, kind) in enumerate(failing):
        server.told.clear()

        def fail(answers: list[Once] = answers, at: int = 6) -> None:
            if len(server.told) == at:
                server.once = list(answers)

        server.before = [fail]
        with pytest.raises(kind) as caught:
            through_server(path, tmp_path / str(number))
        assert "recognisable" not in str(caught.value)
        server.before = []
        assert through_server(path, tmp_path / str(number)).rows == 20
    assert "recognisable" not in capsys.readouterr().out


# --- files ---------------------------------------------------------------------------------------------------


def test_a_finished_plan_asks_nothing(tmp_path: Path) -> None:
    first = undisturbed(tmp_path)
    before = first.file.read_bytes(), first.journal.read_bytes()
    again = undisturbed(tmp_path)
    assert again.requests == 0
    assert (first.file.read_bytes(), first.journal.read_bytes()) == before


def test_files_of_others_are_not_touched(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, TOPICS)
    (tmp_path / "rows.jsonl").write_text("mine\n")
    with pytest.raises(RunError, match="was not written by this plan"):
        generate_rows(plan, replies, tmp_path)
    assert (tmp_path / "rows.jsonl").read_text() == "mine\n"
    generate_rows(plan, replies, tmp_path, again=True)
    aside = next(tmp_path.glob("rows.jsonl.*.old"))
    assert aside.read_text() == "mine\n"
    with pytest.raises(RunError, match="was written with another plan"):
        generate_rows(plan.model_copy(update={"seed": 8}), replies, tmp_path)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(RunError, match="was edited after it was written"):
        generate_rows(plan, replies, tmp_path)


def test_another_address_is_the_same_plan(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, TOPICS)
    assert plan.server is not None
    moved = plan.model_copy(update={"server": plan.server.model_copy(update={"url": "http://127.0.0.1:2/v1"})})
    other = plan.model_copy(update={"server": plan.server.model_copy(update={"model": "large"})})
    assert moved.fingerprint() == plan.fingerprint() != other.fingerprint()


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    made = undisturbed(tmp_path)
    lines = made.journal.read_text().split("\n")
    made.journal.write_text("\n".join([*lines[:3], "{rubbish", *lines[4:]]))
    with pytest.raises(RunError, match=r"rows\.jsonl\.journal line 4: the journal is damaged"):
        undisturbed(tmp_path)


def test_two_do_not_write_the_same_rows(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, TOPICS)

    def second(turns: Sequence[Turn], seed: int) -> Reply:
        generate_rows(plan, replies, tmp_path)
        return Reply("", True, 0)

    with pytest.raises(RunError, match="another process"):
        generate_rows(plan, second, tmp_path)


# --- without a model -----------------------------------------------------------------------------------------


def test_templates_and_lists(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, TEMPLATES)
    made = generate_rows(plan, None, tmp_path / "one", version="9.9")
    rows = rows_of(made.file)
    assert made.by_topic == {"letter": 21, "refusal": 3}  # of refusals there are no more; the others take their places
    assert made.missing == {}
    assert len({row["prompt"] for row in rows}) == 24
    for row in rows:
        own = row["origin"]["fields"]
        assert row["completion"] == (
            f"Dear team of {own['company']}, I should like to be {own['job']}."
            if row["topic"] == "letter"
            else f"No, thank you, {own['company']}."
        )
        assert row["origin"]["kind"] == "template"
        assert row["origin"]["plan"] == plan.fingerprint()
        assert row["origin"]["tunesmith"] == "9.9"
    again = generate_rows(plan, None, tmp_path / "two", version="9.9")
    assert again.file.read_bytes() == made.file.read_bytes()
    assert generate_rows(plan, None, tmp_path / "one", version="9.9").rows == 24
    other = generate_rows(plan.model_copy(update={"seed": 8}), None, tmp_path / "three")
    assert [row["prompt"] for row in rows_of(other.file)] != [row["prompt"] for row in rows]


def test_templates_in_equal_shares(tmp_path: Path) -> None:
    made = generate_rows(plan_of(tmp_path, TEMPLATES, rows=6), None, tmp_path)
    assert made.by_topic == {"letter": 3, "refusal": 3}


def test_what_the_fields_do_not_give_is_counted(tmp_path: Path) -> None:
    made = generate_rows(plan_of(tmp_path, TEMPLATES, rows=500), None, tmp_path)
    assert made.rows == 2 * 4 * 3 + 3
    assert made.missing == {"no more combinations of the fields": 500 - 27}


def test_templates_and_a_table(tmp_path: Path) -> None:
    (tmp_path / "cities.csv").write_text("city,hour,note\nAxton,8,a\nByford,9,b\nByford,9,c\nColby,[Your Name],d\n")
    text = """
    name: hours
    out: hours.jsonl
    templates:
      - {prompt: "When does {city} open{mark}", answer: "{city} opens at {hour}."}
    fields: {file: cities.csv, mark: ["?", " on Sunday?"]}
    """
    plan, said = plan_of(tmp_path, text), list[str]()
    made = generate_rows(plan, None, tmp_path, said.append)
    prompts = {row["prompt"]: row["completion"] for row in rows_of(made.file)}
    assert prompts == {
        f"When does {city} open{mark}": f"{city} opens at {hour}."
        for city, hour in (("Axton", 8), ("Byford", 9))
        for mark in ("?", " on Sunday?")
    }
    assert made.rejected == {"placeholder": 2}
    assert sum("rejected in 'hours', placeholder" in line for line in said) == 2
    fingerprint = plan.fingerprint()
    (tmp_path / "cities.csv").write_text("city,hour\nAxton,7\n")
    assert plan.fingerprint() != fingerprint


def test_of_very_many_combinations_only_those_asked_for_are_made() -> None:
    order = templates._order(10**30, "a")
    first = [next(order) for _ in range(1000)]
    assert len(set(first)) == 1000
    assert min(first) >= 0
    assert 0.4e30 < sum(first) / 1000 < 0.6e30
    assert sorted(templates._order(1000, "a")) == list(range(1000))
    assert list(templates._order(50, "a")) != list(templates._order(50, "b"))


def test_plans_by_name() -> None:
    assert find_plan("shopsphere") == ROOT / "recipes" / "plans" / "shopsphere.yaml"
    assert find_plan("no/such.yaml") == Path("no/such.yaml")
    with pytest.raises(RecipeError, match="Did you mean 'shopsphere'"):
        find_plan("shopspere")
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        read_plan(Path("no/such.yaml"))


def test_the_plans_in_the_documentation(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "synthesize.md").read_text(encoding="utf-8")
    plans = [block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if block.startswith("name:")]
    assert len(plans) == 2
    (tmp_path / "jobs.csv").write_text("job,company\ncook,Ahorn\nsmith,Birke\n")
    kinds = [bool(read_plan(write(tmp_path, block)).topics) for block in plans]
    assert kinds == [False, True]
    for name in re.findall(r"^\| `([\w.]+)`", text, re.MULTILINE):
        section, _, key = name.rpartition(".")
        assert key in (Server if section else RowPlan).model_fields, name


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "plans").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_plans(path: Path, tmp_path: Path) -> None:
    plan = read_plan(path)
    if plan.templates:
        made = generate_rows(plan, None, tmp_path)
        assert made.rows == made.requested == plan.rows
        assert not made.rejected
        assert max(made.by_topic.values()) - min(made.by_topic.values()) <= 1
