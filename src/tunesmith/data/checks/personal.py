"""Personal data: e-mail, phone, card, IBAN, SSN, IP by pattern and checksum, names by the row's own columns or NER.

Why it hurts: a tuned model repeats what it has seen, to anybody.

Example: an answer that ends "write to the clerk at " and a real address.

What to do: set `data.pseudonyms` to a file outside the project: each value gets the same stand-in in every row, and
only that file can turn them back. Without it the rows are told and kept, or dropped with `do: drop`. `names` lists
the columns that hold names; `ner` names an installed spaCy pipeline (en_core_web_sm, say; extra `ner`), which finds
the names of other people too, and not all of them; `kinds` narrows what is looked for (url is left out unless named).
The values themselves are never written down.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import Context, Finding, Proposal, of_place, of_row
from tunesmith.data.ner import find_names
from tunesmith.data.privacy import KINDS, check_kinds, find_personal

SCOPE = "row"


def look(
    rows: Sequence[Conversation],
    context: Context,
    *,
    kinds: list | None = None,  # type: ignore[type-arg]
    names: list | None = None,  # type: ignore[type-arg]
    ner: str | None = None,
    do: Proposal = "keep",
) -> Iterator[Finding]:
    """Every place that holds personal data, in any turn and its reasoning.

    Raises RecipeError for an unknown kind or pipeline.
    """
    check_kinds(kinds or ())
    wanted = tuple(kinds or [kind for kind in KINDS if kind != "url"])
    texts = (text for row in rows for turn in row.turns for text in (turn.text, turn.reasoning))
    people = find_names(texts, model=ner) if ner and "name" in wanted else repeat([])
    for row in rows:
        own = [str(row.fields[name]) for name in names or () if row.fields.get(name)]
        for place, turn in enumerate(row.turns):
            for span in find_personal(turn.text, names=own, kinds=wanted, people=next(people)):
                message = f"{span.kind} in the {turn.role}'s text"
                yield of_place("personal", row, place, (span.start, span.end), message, do, show=False)
            for span in find_personal(turn.reasoning, names=own, kinds=wanted, people=next(people)):
                yield of_row("personal", row, f"{span.kind} in the {turn.role}'s reasoning", do)
