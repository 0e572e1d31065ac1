"""Topics to prompts and canonical answers, through whatever completes a text; or templates and fields, without a model.

Every text is judged before it becomes a row (`candidates`), and every one, taken or rejected, is a line of the journal
beside the rows, flushed to the disk before the next is asked for: a killed run goes on behind its last line. Rows are
wanted in equal numbers for each topic and style; a place that stays empty after `tries` texts is counted, never filled
with another's.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tunesmith.data.conversation import Turn, normalise
from tunesmith.data.synthesis.candidates import (
    WITHHELD,
    Accepted,
    fault,
    plain_answer,
    plain_prompt,
    prompt_fault,
    repeats,
    request_answer,
    request_prompt,
)
from tunesmith.data.synthesis.journal import Journal, locked
from tunesmith.data.synthesis.plan import RowPlan, Topic
from tunesmith.data.synthesis.templates import all_filled
from tunesmith.errors import DataError
from tunesmith.runs.run import disk, hash_bytes, write_atomic

SHOWN = 20  # rejected texts that are told one by one; all stand in the journal
REMEMBERED = 6  # a topic's last prompts, told to the model: more push small models to copy them
DRAWS = 10  # combinations tried for each row wanted, before templates are given up


class Written(Protocol):
    """What a model wrote, and whether it ended by itself."""

    @property
    def text(self) -> str:
        """The words."""
        ...

    @property
    def stopped(self) -> bool:
        """False for a text cut off at the limit."""
        ...


Complete = Callable[[Sequence[Turn], int], Written]  # a conversation and a seed -> what the model wrote
Say = Callable[[str], None]


@dataclass(frozen=True)
class Made:
    """What became of a plan: the file of rows, the journal, and counts."""

    file: Path
    journal: Path
    wanted: int
    rows: int
    by_topic: Mapping[str, int]
    by_style: Mapping[str, int]
    rejected: Mapping[str, int]  # reason -> texts
    missing: Mapping[str, int]  # topic -> rows that could not be had
    asked: int  # texts that were asked for this time

    def describe(self) -> list[str]:
        """The counts in words, a line each."""
        lines = [f"{self.rows} of {self.wanted} rows in {self.file}"]
        if len(self.by_topic) > 1:
            lines.append(f"rows by topic: {_spread(self.by_topic)}")
        if len(self.by_style) > 1:
            lines.append(f"rows by style: {_spread(self.by_style)}")
        if self.rejected:
            told = ", ".join(f"{count} {reason}" for reason, count in self.rejected.items())
            lines.append(f"{sum(self.rejected.values())} texts rejected: {told}. See {self.journal}")
        if self.missing:
            told = ", ".join(f"{topic} {count}" for topic, count in self.missing.items())
            lines.append(f"{sum(self.missing.values())} rows could not be had: {told}")
        return lines


def _silent(text: str) -> None:
    """Says nothing."""


def run(
    plan: RowPlan,
    complete: Complete | None,
    folder: Path,
    say: Say = _silent,
    *,
    host: str = "",
    again: bool = False,
    version: str = "",
) -> Made:
    """Writes the rows of `plan` below `folder`; goes on where a stopped or killed run was.

    `complete` answers for a plan with topics, `host` is where its model is; templates need neither. `version` is
    recorded with each row. With `again` what another plan made is put aside, not overwritten. Raises RunError for files
    of another plan or origin, DataError when no row could be had, and whatever `complete` raises.
    """
    out = (folder / Path(plan.out).expanduser()).resolve()
    with disk(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out):
        journal = Journal.open(out, plan, again=again, say=say)
        origin = {"plan": journal.header["plan"], "tunesmith": version}
        if plan.templates:
            rows, made = _from_templates(plan, journal, origin, say)
        else:
            if complete is None:
                raise ValueError("a plan with topics needs something that completes")
            rows, made = _Work(plan, complete, host, journal, say).rows(origin)
        if not rows:
            told = ", ".join(f"{count} {reason}" for reason, count in made.rejected.items()) or "nothing was written"
            advice = "Read the journal; try another model, or longer texts" if plan.topics else "Mend the templates"
            raise DataError(f"no row could be had: {told}", where=str(journal.path), next=advice)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        journal.finish(hash_bytes(text.encode()))
        write_atomic(out, text)
        return made


# --- with a model --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Slot:
    """A place for one row."""

    topic: Topic
    style: str
    number: int  # within the topic, from 0


def slots(plan: RowPlan) -> list[_Slot]:
    """A place for each row, in the order they are filled: one for each topic, then the next for each.

    Each topic's, and all topics' together, number the same for every style, or one more.
    """
    listed = []
    for number, (place, topic) in itertools.product(range(plan.per_topic), enumerate(plan.topics)):
        style = plan.styles[(place * plan.per_topic + number) % len(plan.styles)]
        listed.append(_Slot(topic, style, number))
    return listed


class _Work:
    """One plan's texts, asked for and judged one after another."""

    def __init__(self, plan: RowPlan, complete: Complete, host: str, journal: Journal, say: Say) -> None:
        self.plan, self.complete, self.host, self.journal, self.say = plan, complete, host, journal, say
        self.accepted, self.answers, self.asked, self.shown = Accepted(), dict[str, str](), 0, 0
        self.prompts: dict[str, list[str]] = {topic.name: [] for topic in plan.topics}
        self.before: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for entry in journal.entries:
            self.before.setdefault(_key(entry), []).append(entry)
            if entry["kind"] == "prompt" and not entry["why"]:
                self._take(entry["text"], entry["topic"])

    def rows(self, origin: Mapping[str, Any]) -> tuple[list[dict[str, Any]], Made]:
        """Fills what is still empty; the rows in the order of topics."""
        if self.journal.entries:
            taken = sum(not entry["why"] for entry in self.journal.entries if entry["kind"] == "prompt")
            self.say(f"synthesize: going on with {taken} rows")
        for topic in self.plan.topics:
            if (answer := topic.answer or self._answer(topic)) is not None:
                self.answers[topic.name] = answer
            if topic.answer and (why := fault(topic.answer, language=self.plan.language)):
                self.say(f"synthesize: the answer given for '{topic.name}' is kept, but: {why}")
        listed = [slot for slot in slots(self.plan) if slot.topic.name in self.answers]
        filled: dict[tuple[str, int], dict[str, Any]] = {}
        for done, slot in enumerate(listed, start=1):
            if (entry := self._prompt(slot)) is not None:
                filled[slot.topic.name, slot.number] = entry
            if self.asked and (done % 20 == 0 or done == len(listed)):
                self.say(f"synthesize: {len(filled)} rows, {done} of {len(listed)} places tried")
        made = []
        for topic, number in itertools.product(self.plan.topics, range(self.plan.per_topic)):
            if (entry := filled.get((topic.name, number))) is not None:
                made.append(self._row(topic, entry, origin))
        return made, self._counts(made)

    def _row(self, topic: Topic, entry: Mapping[str, Any], origin: Mapping[str, Any]) -> dict[str, Any]:
        own = {name: entry[name] for name in ("model", "host", "topic", "style", "seed")}
        answer = "given" if topic.answer else "written"
        told = {"kind": "server", **own, "answer": answer, **origin, "made": self.journal.header["made"]}
        return _row(entry["text"], self.answers[topic.name], topic.name, entry["style"], told)

    def _counts(self, rows: Sequence[Mapping[str, Any]]) -> Made:
        has = Counter(row["topic"] for row in rows)
        by_topic = {topic.name: has[topic.name] for topic in self.plan.topics}
        styles = Counter(row["style"] for row in rows)
        missing = {name: self.plan.per_topic - n for name, n in by_topic.items() if n < self.plan.per_topic}
        wanted = self.plan.per_topic * len(self.plan.topics)
        by_style = {style: styles[style] for style in self.plan.styles}
        return _made(self.journal, wanted, by_topic, by_style, missing, self.asked)

    def _answer(self, topic: Topic) -> str | None:
        request = request_answer(self.plan.about, _plain(topic), self.plan.instruction)
        others = {normalise(answer): name for name, answer in self.answers.items()}

        def judge(text: str) -> str:
            if other := others.get(normalise(text)):
                return f"repeated: the answer of '{other}'"
            return "echo: repeats the request" if repeats(text, request) else ""

        entry = self._ask({"kind": "answer", "topic": topic.name}, request, plain_answer, judge)
        return None if entry is None else str(entry["text"])

    def _prompt(self, slot: _Slot) -> dict[str, Any] | None:
        topic = slot.topic.name
        place = {"kind": "prompt", "topic": topic, "style": slot.style, "number": slot.number}
        told = self.prompts[topic][-REMEMBERED:]
        request = request_prompt(self.plan.about, _plain(slot.topic), slot.style, told)

        def judge(text: str) -> str:
            wrong = prompt_fault(text, request, longest=self.plan.longest)
            return wrong or self.accepted.repeated(text, topic, alike=self.plan.alike)

        had = len(self.before.get(_key(place), []))
        entry = self._ask(place, request, plain_prompt, judge)
        if entry is not None and entry["try"] >= had:
            self._take(entry["text"], topic)
        return entry

    def _ask(
        self, place: Mapping[str, Any], request: str, clean: Callable[[str], str], judge: Callable[[str], str]
    ) -> dict[str, Any] | None:
        """The text taken for `place`: the journal's, or the first sound one of those the model may still write."""
        before = self.before.get(_key(place), [])
        for entry in before:
            if not entry["why"]:
                return entry
        for attempt in range(len(before), self.plan.tries):
            seed = _seed(self.plan.seed, *_key(place), attempt)
            written = self.complete([Turn("user", request)], seed)
            self.asked += 1
            text = clean(written.text)
            why = fault(text, language=self.plan.language) or judge(text)
            why = why if written.stopped or why == "empty" else "cut off: the model did not end"
            entry = self._entry(place, attempt, seed, text, why)
            self.journal.add(entry)
            if not why:
                return entry
            self._show(entry)
        return None

    def _entry(self, place: Mapping[str, Any], attempt: int, seed: int, text: str, why: str) -> dict[str, Any]:
        told = "" if why.startswith(WITHHELD) else text
        model = self.plan.server.model if self.plan.server else ""
        return {**place, "try": attempt, "seed": seed, "model": model, "host": self.host, "text": told, "why": why}

    def _take(self, prompt: str, topic: str) -> None:
        self.accepted.add(prompt, topic)
        self.prompts[topic].append(prompt)

    def _show(self, entry: Mapping[str, Any]) -> None:
        self.shown += 1
        _show(self.say, entry, self.shown)


def _plain(topic: Topic) -> dict[str, str]:
    return {"name": topic.name, "about": topic.about}


def _key(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return entry["kind"], entry["topic"], entry.get("style", ""), entry.get("number", 0)


def _seed(*parts: Any) -> int:
    """31 bits: some servers keep a seed as a signed number."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:4], "big") >> 1


# --- without one ---------------------------------------------------------------------------------------------


def _from_templates(
    plan: RowPlan, journal: Journal, origin: Mapping[str, Any], say: Say
) -> tuple[list[dict[str, Any]], Made]:
    rows: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    accepted, rejected = Accepted(), 0
    for filled in itertools.islice(all_filled(plan), DRAWS * plan.rows):
        why = fault(filled.prompt, language=plan.language) or fault(filled.answer, language=plan.language)
        why = why or accepted.repeated(filled.prompt, filled.topic)
        place = {"kind": "template", "topic": filled.topic, "style": filled.style, "number": filled.number}
        entries.append({**place, "text": "" if why.startswith(WITHHELD) else filled.prompt, "why": why})
        if why:
            rejected += 1
            _show(say, entries[-1], rejected)
            continue
        accepted.add(filled.prompt, filled.topic)
        told = {"kind": "template", "template": filled.number, "fields": dict(filled.values), "topic": filled.topic}
        told |= {"style": filled.style, "seed": plan.seed, **origin}
        rows.append(_row(filled.prompt, filled.answer, filled.topic, filled.style, told))
        if len(rows) == plan.rows:
            break
    journal.replace(entries)
    by_topic = Counter(row["topic"] for row in rows)
    by_style = Counter(row["style"] for row in rows if row["style"])
    short = plan.rows - len(rows)
    missing = {"the fields give no more": short} if short else {}
    return rows, _made(journal, plan.rows, dict(by_topic), dict(by_style), missing, 0)


# --- shared --------------------------------------------------------------------------------------------------


def _row(prompt: str, answer: str, topic: str, style: str, origin: Mapping[str, Any]) -> dict[str, Any]:
    return {"prompt": prompt, "completion": answer, "topic": topic, "style": style, "origin": dict(origin)}


def _made(
    journal: Journal,
    wanted: int,
    by_topic: Mapping[str, int],
    by_style: Mapping[str, int],
    missing: Mapping[str, int],
    asked: int,
) -> Made:
    reasons = Counter(entry["why"].partition(":")[0] for entry in journal.entries if entry["why"])
    out = journal.path.with_name(journal.path.name.removesuffix(".journal"))
    rejected, rows = dict(reasons.most_common()), sum(by_topic.values())
    return Made(out, journal.path, wanted, rows, by_topic, by_style, rejected, missing, asked)


def _show(say: Say, entry: Mapping[str, Any], number: int) -> None:
    if number <= SHOWN:
        text = " ".join(entry["text"].split())
        shown = f" «{text[:80]}{'…' if len(text) > 80 else ''}»" if text else ""
        say(f"synthesize: rejected in '{entry['topic']}', {entry['why']}{shown}")
    elif number == SHOWN + 1:
        say("synthesize: more are rejected; the journal has them all")


def _spread(counts: Mapping[str, int]) -> str:
    if len(set(counts.values())) == 1:
        return f"{next(iter(counts.values()))} each"
    return ", ".join(f"{name} {count}" for name, count in counts.items())
