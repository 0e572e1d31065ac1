"""Personal data: email, phone, card, IBAN, SSN and IP by pattern and checksum; names by the row's columns or by NER.

Why it hurts: a tuned model repeats what it has seen, to anyone.

Example: an answer that ends "write to the clerk at " and a real address.

What to do: set `data.pseudonyms` to a file outside the project: each value gets the same pseudonym in every row, and
only that file can reverse it. Without it the rows are reported and kept, or dropped with `do: drop`. `names` lists the
columns that contain names; `ner` is an installed spaCy pipeline (such as en_core_web_sm; extra `ner`), which also finds
the names of other people, though not all of them; `kinds` limits the search (url is searched only if listed). The
values themselves are never stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import CheckContext, Finding, Proposal, row_finding, span_finding
from tunesmith.data.privacy import KINDS, check_kinds, find_names, find_personal

SCOPE = "row"


def find_defects(
    rows: Sequence[Conversation],
    context: CheckContext,
    *,
    kinds: list | None = None,  # type: ignore[type-arg]
    names: list | None = None,  # type: ignore[type-arg]
    ner: str | None = None,
    do: Proposal = "keep",
) -> Iterator[Finding]:
    """Yields all personal data in any turn and its reasoning. Raises RecipeError for an unknown kind or pipeline."""
    check_kinds(kinds or ())
    searched_kinds = tuple(kinds or [kind for kind in KINDS if kind != "url"])
    texts = (text for row in rows for turn in row.turns for text in (turn.text, turn.reasoning))
    people = find_names(texts, model=ner) if ner and "name" in searched_kinds else repeat([])
    for row in rows:
        row_names = [str(row.fields[name]) for name in names or () if row.fields.get(name)]
        for turn_index, turn in enumerate(row.turns):
            for span in find_personal(turn.text, names=row_names, kinds=searched_kinds, people=next(people)):
                message = f"{span.kind} in the {turn.role}'s text"
                yield span_finding("personal", row, turn_index, (span.start, span.end), message, do, show=False)
            for span in find_personal(turn.reasoning, names=row_names, kinds=searched_kinds, people=next(people)):
                yield row_finding("personal", row, f"{span.kind} in the {turn.role}'s reasoning", do)
