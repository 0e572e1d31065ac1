"""Finds names that contradict their sentence: a team that beats itself, a player who leads another team."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise

from tunesmith.claims.fields import ParsedFields
from tunesmith.claims.fold import contains_phrase, words
from tunesmith.claims.subject import Mention, Subjects

_BRACKET = re.compile(r"\([^)]*\)")
_BREAK = re.compile(r"[,;:.]|\b(?:and|or|while|but|as|than|where|when|who|which|if|because|so|though|although)\b")
_PARTICIPLE = re.compile(r"^[^,;]*,\s+(?:as\s+(?:they|he|she|it)\s+\w+|[\w-]+ing)\s+(?:the\s+)?$")  # ', outscoring the'
_PLACE = re.compile(r"\b(?:in|at|near)\s+(?:the\s+)?$")  # 'the Boston Celtics won in Boston'
_LEADS = re.compile(r"^[^,;]{0,60}\b(?:for|led|leads|leading|paced|paces|pacing|carried|headed)\s+(?:the\s+)?$")
_LED = re.compile(r"^[^,;]{0,30}\b(?:led|paced|carried|headed)\s+by\b[^,;]{0,60}$")


def member_groups(parsed: ParsedFields, subjects: Collection[str]) -> dict[str, str]:
    """Return, for each subject whose field names exactly one other subject, that subject: a player's team."""
    groups = {}
    for source in parsed.sources:
        if source.name in subjects:
            others = [name for name in subjects if name != source.name and contains_phrase(source.words, words(name))]
            if len(others) == 1:
                groups[source.name] = others[0]
    return groups


def find_misplaced(text: str, subjects: Subjects, group_of: Mapping[str, str]) -> Iterator[tuple[Mention, str]]:
    """Yield mentions that contradict their sentence, with a reason. `group_of` maps a member to its group."""
    mentions = [mention for mention in subjects.mentions if not mention.pronoun]
    for first, second in pairwise(mentions):
        between = _BRACKET.sub("", text[first.end : second.start])
        if not first.name or not second.name or ". " in between or "\n" in between:
            continue
        if first.name == second.name:
            if (
                between.strip()
                and not _PLACE.search(between)
                and (not _BREAK.search(between) or _PARTICIPLE.search(between))
            ):
                yield second, f"the sentence relates {first.name} to itself"
        elif second.name in group_of.values() and group_of.get(first.name, second.name) != second.name:
            if _LEADS.search(between):
                yield second, f"{first.name} says {group_of[first.name]!r}"
        elif (
            first.name in group_of.values()
            and group_of.get(second.name, first.name) != first.name
            and _LED.search(between)
        ):
            yield first, f"{second.name} says {group_of[second.name]!r}"
