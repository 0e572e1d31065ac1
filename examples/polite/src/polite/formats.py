"""Formats: functions of a row's values that return its turns and its group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.data.conversation import Turn
from tunesmith.data.formats import ParsedRow
from tunesmith.data.messages import ReadNotes
from tunesmith.errors import DataError


def ticket(values: Mapping[str, Any], *, question: str = "question", reply: str = "reply") -> ParsedRow:
    """A support ticket: a subject, a question and a reply; tickets with the same subject form a group."""
    for column in (question, reply):
        if not values.get(column):
            raise DataError(f"the column '{column}' is empty or missing", next=f"Columns: {', '.join(values)}")
    subject = str(values.get("subject", ""))
    prompt = f"{subject}\n\n{values[question]}" if subject else str(values[question])
    return ParsedRow([Turn("user", prompt), Turn("assistant", str(values[reply]))], subject, ReadNotes())
