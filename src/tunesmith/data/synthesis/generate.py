"""Generates rows: prompts and canonical answers by topic with a model, or from templates and fields without one.

Every text is judged before it becomes a row (`candidates`). Every text, accepted or rejected, becomes a line of the
journal beside the rows, flushed to disk before the next request, so a killed run resumes after its last line. Each
topic and style gets the same number of rows; a slot that is still empty after `tries` texts is counted as missing.
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

from tunesmith.data.conversation import Turn, normalize
from tunesmith.data.synthesis.candidates import (
    WITHHELD,
    AcceptedPrompts,
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
from tunesmith.runs.run import hash_bytes, translate_disk_errors, write_atomic

REPORTED_REJECTIONS = 20  # rejected texts that are reported one by one; the journal has all
PROMPTS_IN_REQUEST = 6  # a topic's last prompts in the request: with more, small models copy them
TRIES_PER_ROW = 10  # combinations tried per requested row before giving up on templates


class Completion(Protocol):
    """A completion of a model, and whether it ended by itself."""

    @property
    def text(self) -> str:
        """The text of the completion."""
        ...

    @property
    def stopped(self) -> bool:
        """False for a text cut off at the limit."""
        ...


Complete = Callable[[Sequence[Turn], int], Completion]  # conversation and seed -> completion
Log = Callable[[str], None]


@dataclass(frozen=True)
class SynthesisResult:
    """The result of a plan: the file of rows, the journal, and counts."""

    file: Path
    journal: Path
    requested: int
    rows: int
    by_topic: Mapping[str, int]
    by_style: Mapping[str, int]
    rejected: Mapping[str, int]  # reason -> texts
    missing: Mapping[str, int]  # topic -> rows that could not be generated
    requests: int  # texts requested in this run

    def describe(self) -> list[str]:
        """The counts as lines of text."""
        lines = [f"{self.rows} of {self.requested} rows in {self.file}"]
        if len(self.by_topic) > 1:
            lines.append(f"rows by topic: {_spread(self.by_topic)}")
        if len(self.by_style) > 1:
            lines.append(f"rows by style: {_spread(self.by_style)}")
        if self.rejected:
            details = ", ".join(f"{count} {reason}" for reason, count in self.rejected.items())
            lines.append(f"{sum(self.rejected.values())} texts rejected: {details}. See {self.journal}")
        if self.missing:
            details = ", ".join(f"{topic} {count}" for topic, count in self.missing.items())
            lines.append(f"{sum(self.missing.values())} rows could not be generated: {details}")
        return lines


def _ignore(text: str) -> None:
    """Ignores messages."""


def generate_rows(
    plan: RowPlan,
    complete: Complete | None,
    folder: Path,
    say: Log = _ignore,
    *,
    host: str = "",
    again: bool = False,
    version: str = "",
) -> SynthesisResult:
    """Writes the rows of `plan` below `folder`, and resumes a stopped or killed run.

    A plan with topics needs `complete`, a model's completion function, and its `host`; templates need neither.
    `version` is recorded with each row. With `again`, files of another plan are renamed, not overwritten. Raises
    RunError for files of another plan or origin, DataError if no row could be generated, and what `complete` raises.
    """
    out = (folder / Path(plan.out).expanduser()).resolve()
    with translate_disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out):
        journal = Journal.open(out, plan, again=again, say=say)
        origin = {"plan": journal.header["plan"], "tunesmith": version}
        if plan.templates:
            rows, result = _from_templates(plan, journal, origin, say)
        else:
            if complete is None:
                raise ValueError("a plan with topics needs `complete`")
            rows, result = _ModelSynthesis(plan, complete, host, journal, say).rows(origin)
        if not rows:
            reasons = (
                ", ".join(f"{count} {reason}" for reason, count in result.rejected.items()) or "nothing was written"
            )
            advice = "Read the journal; try another model, or longer texts" if plan.topics else "Correct the templates"
            raise DataError(f"no row could be generated: {reasons}", where=str(journal.path), next=advice)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        journal.finish(hash_bytes(text.encode()))
        write_atomic(out, text)
        return result


# --- with a model --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Slot:
    """A row to be generated."""

    topic: Topic
    style: str
    number: int  # within the topic, from 0


def slots(plan: RowPlan) -> list[_Slot]:
    """A slot for each row in the order of generation: the first of each topic, then the second of each, and so on.

    Within each topic, and over all topics, the numbers of slots per style differ by at most one.
    """
    slot_list = []
    for number, (topic_index, topic) in itertools.product(range(plan.per_topic), enumerate(plan.topics)):
        style = plan.styles[(topic_index * plan.per_topic + number) % len(plan.styles)]
        slot_list.append(_Slot(topic, style, number))
    return slot_list


class _ModelSynthesis:
    """Requests and judges the texts of a plan with topics, one after another."""

    def __init__(self, plan: RowPlan, complete: Complete, host: str, journal: Journal, say: Log) -> None:
        self.plan, self.complete, self.host, self.journal, self.say = plan, complete, host, journal, say
        self.accepted, self.answers, self.requests, self.rejections = AcceptedPrompts(), dict[str, str](), 0, 0
        self.prompts: dict[str, list[str]] = {topic.name: [] for topic in plan.topics}
        self.earlier: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for entry in journal.entries:
            self.earlier.setdefault(_key(entry), []).append(entry)
            if entry["kind"] == "prompt" and not entry["why"]:
                self._accept(entry["text"], entry["topic"])

    def rows(self, origin: Mapping[str, Any]) -> tuple[list[dict[str, Any]], SynthesisResult]:
        """Fills the slots that are still empty and returns the rows in the order of topics."""
        if self.journal.entries:
            accepted_count = sum(not entry["why"] for entry in self.journal.entries if entry["kind"] == "prompt")
            self.say(f"synthesize: resuming with {accepted_count} rows")
        for topic in self.plan.topics:
            if (answer := topic.answer or self._answer(topic)) is not None:
                self.answers[topic.name] = answer
            if topic.answer and (problem := fault(topic.answer, language=self.plan.language)):
                self.say(f"synthesize: the answer given for '{topic.name}' is used, but has a problem: {problem}")
        open_slots = [slot for slot in slots(self.plan) if slot.topic.name in self.answers]
        filled: dict[tuple[str, int], dict[str, Any]] = {}
        for tried_count, slot in enumerate(open_slots, start=1):
            if (entry := self._prompt(slot)) is not None:
                filled[slot.topic.name, slot.number] = entry
            if self.requests and (tried_count % 20 == 0 or tried_count == len(open_slots)):
                self.say(f"synthesize: {len(filled)} rows, {tried_count} of {len(open_slots)} slots tried")
        row_list = []
        for topic, number in itertools.product(self.plan.topics, range(self.plan.per_topic)):
            if (entry := filled.get((topic.name, number))) is not None:
                row_list.append(self._row(topic, entry, origin))
        return row_list, self._counts(row_list)

    def _row(self, topic: Topic, entry: Mapping[str, Any], origin: Mapping[str, Any]) -> dict[str, Any]:
        entry_fields = {name: entry[name] for name in ("model", "host", "topic", "style", "seed")}
        answer = "given" if topic.answer else "written"
        row_origin = {"kind": "server", **entry_fields, "answer": answer, **origin, "made": self.journal.header["made"]}
        return _row(entry["text"], self.answers[topic.name], topic.name, entry["style"], row_origin)

    def _counts(self, rows: Sequence[Mapping[str, Any]]) -> SynthesisResult:
        topic_counts = Counter(row["topic"] for row in rows)
        by_topic = {topic.name: topic_counts[topic.name] for topic in self.plan.topics}
        styles = Counter(row["style"] for row in rows)
        missing = {name: self.plan.per_topic - n for name, n in by_topic.items() if n < self.plan.per_topic}
        requested = self.plan.per_topic * len(self.plan.topics)
        by_style = {style: styles[style] for style in self.plan.styles}
        return _result(self.journal, requested, by_topic, by_style, missing, self.requests)

    def _answer(self, topic: Topic) -> str | None:
        request = request_answer(self.plan.about, _plain(topic), self.plan.instruction)
        topics_by_answer = {normalize(answer): name for name, answer in self.answers.items()}

        def judge(text: str) -> str:
            if other_topic := topics_by_answer.get(normalize(text)):
                return f"repeated: the answer of '{other_topic}'"
            return "echo: repeats the request" if repeats(text, request) else ""

        entry = self._ask({"kind": "answer", "topic": topic.name}, request, plain_answer, judge)
        return None if entry is None else str(entry["text"])

    def _prompt(self, slot: _Slot) -> dict[str, Any] | None:
        topic = slot.topic.name
        slot_key = {"kind": "prompt", "topic": topic, "style": slot.style, "number": slot.number}
        recent_prompts = self.prompts[topic][-PROMPTS_IN_REQUEST:]
        request = request_prompt(self.plan.about, _plain(slot.topic), slot.style, recent_prompts)

        def judge(text: str) -> str:
            problem = prompt_fault(text, request, longest=self.plan.longest)
            return problem or self.accepted.repeated(text, topic, alike=self.plan.alike)

        earlier_tries = len(self.earlier.get(_key(slot_key), []))
        entry = self._ask(slot_key, request, plain_prompt, judge)
        if entry is not None and entry["try"] >= earlier_tries:
            self._accept(entry["text"], topic)
        return entry

    def _ask(
        self, slot_key: Mapping[str, Any], request: str, clean: Callable[[str], str], judge: Callable[[str], str]
    ) -> dict[str, Any] | None:
        """The accepted text for `slot_key`: the journal's, or the first sound one in the remaining tries."""
        earlier = self.earlier.get(_key(slot_key), [])
        for entry in earlier:
            if not entry["why"]:
                return entry
        for attempt in range(len(earlier), self.plan.tries):
            seed = _seed(self.plan.seed, *_key(slot_key), attempt)
            completion = self.complete([Turn("user", request)], seed)
            self.requests += 1
            text = clean(completion.text)
            reason = fault(text, language=self.plan.language) or judge(text)
            reason = reason if completion.stopped or reason == "empty" else "cut off: the model did not finish"
            entry = self._entry(slot_key, attempt, seed, text, reason)
            self.journal.add(entry)
            if not reason:
                return entry
            self._show(entry)
        return None

    def _entry(self, slot_key: Mapping[str, Any], attempt: int, seed: int, text: str, reason: str) -> dict[str, Any]:
        stored_text = "" if reason.startswith(WITHHELD) else text
        model = self.plan.server.model if self.plan.server else ""
        return {
            **slot_key,
            "try": attempt,
            "seed": seed,
            "model": model,
            "host": self.host,
            "text": stored_text,
            "why": reason,
        }

    def _accept(self, prompt: str, topic: str) -> None:
        self.accepted.add(prompt, topic)
        self.prompts[topic].append(prompt)

    def _show(self, entry: Mapping[str, Any]) -> None:
        self.rejections += 1
        _show(self.say, entry, self.rejections)


def _plain(topic: Topic) -> dict[str, str]:
    return {"name": topic.name, "about": topic.about}


def _key(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return entry["kind"], entry["topic"], entry.get("style", ""), entry.get("number", 0)


def _seed(*parts: Any) -> int:
    """A seed of 31 bits, because some servers store it as a signed number."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:4], "big") >> 1


# --- without a model -----------------------------------------------------------------------------------------


def _from_templates(
    plan: RowPlan, journal: Journal, origin: Mapping[str, Any], say: Log
) -> tuple[list[dict[str, Any]], SynthesisResult]:
    rows: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    accepted, rejected = AcceptedPrompts(), 0
    for filled in itertools.islice(all_filled(plan), TRIES_PER_ROW * plan.rows):
        reason = fault(filled.prompt, language=plan.language) or fault(filled.answer, language=plan.language)
        reason = reason or accepted.repeated(filled.prompt, filled.topic)
        slot_key = {"kind": "template", "topic": filled.topic, "style": filled.style, "number": filled.number}
        entries.append({**slot_key, "text": "" if reason.startswith(WITHHELD) else filled.prompt, "why": reason})
        if reason:
            rejected += 1
            _show(say, entries[-1], rejected)
            continue
        accepted.add(filled.prompt, filled.topic)
        row_origin = {
            "kind": "template",
            "template": filled.number,
            "fields": dict(filled.values),
            "topic": filled.topic,
        }
        row_origin |= {"style": filled.style, "seed": plan.seed, **origin}
        rows.append(_row(filled.prompt, filled.answer, filled.topic, filled.style, row_origin))
        if len(rows) == plan.rows:
            break
    journal.replace(entries)
    by_topic = Counter(row["topic"] for row in rows)
    by_style = Counter(row["style"] for row in rows if row["style"])
    missing_count = plan.rows - len(rows)
    missing = {"no more combinations of the fields": missing_count} if missing_count else {}
    return rows, _result(journal, plan.rows, dict(by_topic), dict(by_style), missing, 0)


# --- shared --------------------------------------------------------------------------------------------------


def _row(prompt: str, answer: str, topic: str, style: str, origin: Mapping[str, Any]) -> dict[str, Any]:
    return {"prompt": prompt, "completion": answer, "topic": topic, "style": style, "origin": dict(origin)}


def _result(
    journal: Journal,
    requested: int,
    by_topic: Mapping[str, int],
    by_style: Mapping[str, int],
    missing: Mapping[str, int],
    requests: int,
) -> SynthesisResult:
    reasons = Counter(entry["why"].partition(":")[0] for entry in journal.entries if entry["why"])
    out = journal.path.with_name(journal.path.name.removesuffix(".journal"))
    rejected, rows = dict(reasons.most_common()), sum(by_topic.values())
    return SynthesisResult(out, journal.path, requested, rows, by_topic, by_style, rejected, missing, requests)


def _show(say: Log, entry: Mapping[str, Any], number: int) -> None:
    if number <= REPORTED_REJECTIONS:
        text = " ".join(entry["text"].split())
        quoted = f" «{text[:80]}{'…' if len(text) > 80 else ''}»" if text else ""
        say(f"synthesize: rejected in '{entry['topic']}', {entry['why']}{quoted}")
    elif number == REPORTED_REJECTIONS + 1:
        say("synthesize: more texts were rejected; the journal has them all")


def _spread(counts: Mapping[str, int]) -> str:
    if len(set(counts.values())) == 1:
        return f"{next(iter(counts.values()))} each"
    return ", ".join(f"{name} {count}" for name, count in counts.items())
