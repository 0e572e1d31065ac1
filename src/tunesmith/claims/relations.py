"""Names that cannot stand where they stand: a team that beats itself, a player who leads another team than his."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise

from tunesmith.claims.fields import Known
from tunesmith.claims.fold import holds, words
from tunesmith.claims.subject import Mention, Subjects

_BRACKET = re.compile(r"\([^)]*\)")
_BREAK = re.compile(r"[,;:.]|\b(?:and|or|while|but|as|than|where|when|who|which|if|because|so|though|although)\b")
_GOES_ON = re.compile(r"^[^,;]*,\s+(?:as\s+(?:they|he|she|it)\s+\w+|[\w-]+ing)\s+(?:the\s+)?$")  # ', outscoring the'
_PLACE = re.compile(r"\b(?:in|at|near)\s+(?:the\s+)?$")  # 'the Boston Celtics won in Boston'
_LEADS = re.compile(r"^[^,;]{0,60}\b(?:for|led|leads|leading|paced|paces|pacing|carried|headed)\s+(?:the\s+)?$")
_LED = re.compile(r"^[^,;]{0,30}\b(?:led|paced|carried|headed)\s+by\b[^,;]{0,60}$")


def members(known: Known, subjects: Collection[str]) -> dict[str, str]:
    """Each subject whose field names exactly one other subject in full, and that one: a player and his team."""
    found = {}
    for source in known.sources:
        if source.name in subjects:
            others = [name for name in subjects if name != source.name and holds(source.words, words(name))]
            if len(others) == 1:
                found[source.name] = others[0]
    return found


def misplaced(text: str, subjects: Subjects, group: Mapping[str, str]) -> Iterator[tuple[Mention, str]]:
    """Mentions that contradict their sentence, with a reason. `group` gives a member's group."""
    named = [each for each in subjects.mentions if not each.pronoun]
    for one, other in pairwise(named):
        between = _BRACKET.sub("", text[one.end : other.start])
        if not one.name or not other.name or ". " in between or "\n" in between:
            continue
        if one.name == other.name:
            if (
                between.strip()
                and not _PLACE.search(between)
                and (not _BREAK.search(between) or _GOES_ON.search(between))
            ):
                yield other, f"{one.name} stands to itself"
        elif other.name in group.values() and group.get(one.name, other.name) != other.name:
            if _LEADS.search(between):
                yield other, f"{one.name} says {group[one.name]!r}"
        elif one.name in group.values() and group.get(other.name, one.name) != one.name and _LED.search(between):
            yield one, f"{other.name} says {group[other.name]!r}"
