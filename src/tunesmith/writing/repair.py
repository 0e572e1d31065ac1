"""Removes an unsupported claim from a text, or replaces it with what the fields say.

Nothing is reworded: the smallest piece that leaves grammatical English is removed, and never words of another claim.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from tunesmith.claims.extract import extract
from tunesmith.claims.fields import Fact, read_fields
from tunesmith.claims.match import check_claims
from tunesmith.writing.events import (
    DETERMINER,
    ClaimEvent,
    correct_article,
    filled_fields,
    list_line_start,
    sentence_span,
    widen_start,
)

_PREPOSITION = (
    r"(?:at|for|with|from|in|as|since|by|of|during|over|on|under|to|through|via|within|after|before|including|using|"
    r"such as|between|until|inside|across|worth)"
)
_GAP = re.compile(
    rf"(?:\s+{_PREPOSITION}\b|\s+(?:and|or|but|where|while|which|who|that|because|so|I|we)\b|\s*[,.;:!?)\n–—]|\s*$)"
)
_NOT_AN_ITEM = re.compile(
    r"\b(?:I|you|we|they|he|she|it|am|is|are|was|were|be|been|have|has|had|do|did|will|would|can|could|my|which|who|where|"
    r"that|because|if|when)\b|\b(?!(?:advanced|certified|applied|skilled|qualified)\b)\w{2,}ed\b", re.IGNORECASE
)  # fmt: skip
_CLAUSE = re.compile(
    r"(?:,?\s+(?:and|but|yet|so|while)\s+(?:I|my|we|our|it|they|he|she)\b|;\s+|,\s+(?:where|which|who|whose|whom|when)\b|"
    r"\s+where\s+(?=I\b|we\b|my\b)"
    r"|,\s+(?:having|holding|including|using|leading|with|as well as|plus|after|thanks to)\b"
    r"|\s+[–—-]\s+|,\s+and\s+(?=[^.;]*\b(?:are|is)\b))",
    re.IGNORECASE,
)
_VERB = (
    r"(?:also\s+|then\s+|later\s+)?(?:\w+ed|led|cut|built|made|make|ran|wrote|taught|won|sold|kept|keep|held|grew|"
    r"brought|drew|took|gave|saw|met|hold|have|manage|speak|know|run|use|write|teach|serve|bring|own|rely|handle|oversee|"
    r"develop|maintain|supervise|reduce|raise|solve|deliver|enjoy|work(?= (?:with|at|for|in|on|as|every|closely))|"
    r"(?:lead|cook|plan|train|design|prepare)(?= (?:an?|the|my|\d)))"
)
_PREDICATE = re.compile(rf",?\s+and\s+(?={_VERB}\b)", re.IGNORECASE)
_LEADING_WORD = re.compile(rf"(?:{_PREPOSITION}|having|holding|being|thanks to|drawing on)\b", re.IGNORECASE)
_CONJUNCTION = re.compile(r"^(?:and|but|yet|so|while)\s+", re.IGNORECASE)
_RATE = re.compile(
    r"\s+(?:an?|per|each|every)\s+(?:\w+\s+)?(?:hour|day|night|week|month|quarter|year|shift|season|winter|visit)\b"
)
_JOINT = re.compile(r"\s*(?:[-–—]|\bto\b|\band\b|\buntil\b)\s*")
_SENTENCE_START = re.compile(
    r"(?:\A|[.!?][\"'”’)]*\s|\n[ \t]*(?:(?:[-*•–]|\d{1,2}[.)])[ \t]+)?)\s*\Z|\A[ \t]*(?:[-*•–]|\d{1,2}[.)])[ \t]+\Z"
)
_CLOSING_MARKS = (",", ".", ";", ":", "!", "?", ")", "\n")
_SENTENCE_MARKS = (".", "!", "?", ";", "\n", "")
_COUNTED = re.compile(
    r"\s+(?!(?:and|or|to|of|in|at|by|as|per|each|every|a|an)\b)(?:[a-z][\w-]*\s+)?"
    r"(?:\w+(?<!s)s|people|staff|children|men|women|pupils|classes|businesses)\b(?!\s*['’])"
)
_UNSPECIFIC_STEMS = frozenset(
    {"the", "and", "with", "have", "had", "was", "for", "from", "team", "year", "day", "mont", "some"}
)
_AMOUNT_KINDS = ("number", "duration", "money", "percentage", "date")
_BEFORE_SUBJECT = re.compile(r"(?:\s+(?:in|of|within|on)\s+(?:the|this|that|my)?\s*[a-z]{1,20})?\s+(?=(?:I|we)\b)")
_LEADING_PREPOSITION = re.compile(
    rf"{_PREPOSITION}\s+(?:(?:the|my|our|past|last|over|about|almost|nearly|early|late|more than)\s+)*", re.IGNORECASE
)
_OF = re.compile(r"(?:['’]s?|\s+of)\s+(?=\w)")
_INCOMPLETE = re.compile(  # words that are incomplete without what follows
    r"\b(?:worked|work|experience|skilled|expert|experienced|interested|fluent|proficient|trained|responsible|degree|"
    r"am|was|are|is|were|been|be|budget|team|class|classes|ward|total|rate|errors|sales|costs|by|apply|applying|"
    r"application|position|role|job|post|knowledge|understanding|command|grasp|background|practice|member|head)$",
    re.IGNORECASE,
)
_COMPLETED_BY = {  # prepositions after which they are complete
    **dict.fromkeys(("worked", "work"), ("at", "for", "since", "from", "as", "during")),
    **dict.fromkeys(("experience", "team", "position", "role", "job", "post"), ("of", "at", "for", "with", "in")),
}
Span = tuple[int, int, str]


@dataclass(frozen=True)
class _Context:
    """A claim in its sentence, with the spans of the other claims."""

    text: str
    claim: ClaimEvent
    begin: int
    end: int
    others: tuple[tuple[int, int], ...]

    @property
    def start(self) -> int:
        """Start of the claim with its articles and adjectives."""
        return widen_start(self.text, self.claim.start, self.claim.end, self.begin)

    def free(self, start: int, end: int, new: str = "") -> bool:
        """Return whether the span holds no other claim, except those that `new`, its replacement, keeps."""
        inside = [self.text[first:last] for first, last in self.others if first < end and start < last]
        return all(statement in new for statement in inside)


def remove_claim(text: str, claim: ClaimEvent, others: Iterable[ClaimEvent] = ()) -> str:
    """Return `text` without `claim`: an item, a phrase, a clause or the sentence, whichever is smallest.

    `others` are the text's other claims; without them they are extracted here. If every removal would touch one, only
    the claim itself is removed, or `text` is returned unchanged if that leaves no sentence.
    """
    if text[claim.start : claim.end] != claim.text:
        return text
    start, end = sentence_span(text, claim.start, claim.end)
    context = _Context(text, claim, start, end, _other_spans(text, claim, others))
    for rule in _RULES:
        removal = rule(context)
        if removal and context.free(*removal):
            return _tidy(text, removal)
    return text


def find_replacement(
    text: str, claim: ClaimEvent, values: Mapping[str, str], *, today: date | None = None
) -> str | None:
    """Return the words of a field that belong in place of `claim`; None if no field or more than one value fits.

    Each candidate is inserted and checked: the fields must support it, and no other claim may get worse.
    """
    fields = filled_fields(values)
    if text[claim.start : claim.end] != claim.text:
        return None
    doubtful = sum(result.verdict != "supported" for result in check_claims(text, fields, today=today))
    for group in _candidates(text, claim, fields):
        matching = [
            words
            for words in group
            if _is_improvement(_replace(text, claim, words), claim, words, fields, doubtful, today)
        ]
        if len(matching) == 1:
            return matching[0]
    return None


def _is_improvement(
    replaced: tuple[str, int],
    claim: ClaimEvent,
    words: str,
    fields: Mapping[str, str],
    doubtful: int,
    today: date | None,
) -> bool:
    """Return whether the inserted words are supported and leave fewer unsupported claims than `doubtful`."""
    text, start = replaced
    results = check_claims(text, fields, today=today)
    inserted = [result for result in results if result.claim.start < start + len(words) and start < result.claim.end]
    fewer = sum(result.verdict != "supported" for result in results) < doubtful
    may_be_unclaimed = claim.kind in {"title", "employer", "name"}  # 'the job of Engineer' is no claim
    return fewer and (bool(inserted) or may_be_unclaimed) and all(result.verdict == "supported" for result in inserted)


def replace_claim(text: str, claim: ClaimEvent, values: Mapping[str, str], *, today: date | None = None) -> str | None:
    """Return `text` with the words of the fields in place of `claim`; None if `find_replacement` finds none."""
    words = find_replacement(text, claim, values, today=today)
    return None if words is None else _replace(text, claim, words)[0]


# --- removal rules, in order of preference in _RULES ------------------------------------------------------------------


def _list_line(context: _Context) -> Span | None:
    """Remove a list line without other claims, or a name below the closing."""
    text = context.text
    line = list_line_start(text, context.begin)
    if line is not None and context.free(context.begin, context.end):
        end = text.find("\n", context.end)
        return line, (end + 1 if end >= 0 else len(text)), ""
    if context.claim.kind == "name" and text[context.begin : context.end].strip() == context.claim.text:
        return max(0, context.begin - 1), context.end, ""
    return None


def _list_item(context: _Context) -> Span | None:
    """Remove an item of 'A, B and C'."""
    if context.claim.kind in _AMOUNT_KINDS:
        return None
    text, start, end = context.text, context.start, context.claim.end
    is_name = context.claim.kind in {"employer", "organisation", "title"}
    before, after = text[context.begin : start], text[end : context.end]
    head = re.search(r"(?P<comma>,\s+)?(?P<word>(?<!\w)(?:and|or)\s+)$|(?P<only>,\s+)$", before)
    tail = re.match(r"(?P<comma>,\s+)(?P<word>(?:and|or)\s+)?|(?P<alone>\s+(?:and|or)\s+)", after)
    following = after[tail.end() :] if tail else ""
    in_list = head is not None and _ends_with_item(before[: head.start()])
    # A[, X], B · A[, X] and B
    if head and head["only"] and in_list and tail and (tail["alone"] or _is_item(following)):
        is_last_pair = tail["word"] and not re.search(r",\s+\S", before[: head.start()])
        return context.begin + head.start(), end + (1 if is_last_pair else 0), ""
    if head and head["word"] and tail and tail["comma"] and _is_item(following):  # and [X, ]B, C and D
        return start, end + tail.end(), ""
    if head and head["word"] and in_list:  # A, B and [X]
        return _last_item(context, head)
    if head and head["only"] and in_list and _GAP.match(after) and not tail:
        return context.begin + head.start(), end, ""
    finite = tail and tail["word"] and re.search(r"\b(?:are|is|was|were)\b", re.split(r"[.;]", following)[0])
    # [X, ]B and C
    if not head and tail and _is_item(following) and not finite and (not is_name or following[:1].isupper()):
        shared = text[start : context.claim.start] and not re.match(rf"{DETERMINER}|my\b", following, re.IGNORECASE)
        return (context.claim.start if shared else start), end + tail.end(), ""
    return None


def _last_item(context: _Context, joint: re.Match[str]) -> Span | None:
    text, start = context.text, context.begin + joint.start()
    after = text[context.claim.end : context.end]
    if not _GAP.match(after) and not re.match(r"\s+\w+", after):
        return None
    head = text[context.begin : start]
    commas = list(re.finditer(r",\s+", head))
    items: list[int] = []
    for comma in reversed(commas):
        if not _is_item(head[comma.end() : items[-1] if items else len(head)] + ","):
            break
        items.append(comma.start())
    word = (joint["word"] or "and ").strip()
    if not items:
        return start, context.claim.end, ""
    list_start = context.begin + items[0]
    gap = text[list_start:start]
    oxford = ", " if joint["comma"] and len(items) > 1 else " "
    joined = f"{oxford}{word} {gap.strip(', ')}"
    return list_start, context.claim.end, joined


def _is_item(after: str) -> bool:
    """Return whether the text after a comma or 'and' is a list item."""
    piece = re.sub(r"^my\s+", "", re.split(r"[,.;:!?\n]|\s(?:and|or)\s", after, maxsplit=1)[0])
    return 0 < len(piece.split()) <= 10 and not re.match(rf"{_VERB}\b", piece) and not _NOT_AN_ITEM.search(piece)


def _ends_with_item(before: str) -> bool:
    piece = re.split(r"[,;:\n]|\s(?:and|or)\s", before)[-1]
    return bool(piece.strip()) and len(piece.split()) <= 8


def _amount(context: _Context) -> Span | None:
    """Remove a number with or without what it counts: 'a team[ of 12 people]', '[5 years of ]practice'."""
    text, claim = context.text, context.claim
    before, after = text[context.begin : context.start], text[claim.end : context.end]
    if claim.kind == "duration" and (match := _OF.match(after)) and re.match(r"[a-z]", after[match.end() :]):
        return context.start, claim.end + match.end(), ""
    if claim.kind != "number" or re.search(r"\b(?:one|1)$", claim.text) or not _COUNTED.match(after):
        return None
    noun = _COUNTED.match(after)
    rate = _RATE.match(after, noun.end()) if noun else None
    stop = claim.end + (rate.end() if rate else noun.end() if noun else 0)
    group = re.search(r"(?<!total)(?<!number)(?<!maximum)(?<!minimum)\s+of\s+$", before)
    if group and _GAP.match(text[stop : context.end] or "."):
        return context.begin + group.start(), stop, ""
    words = after[: noun.end()].lstrip() if noun else ""
    return context.start, stop, words


def _parenthesis(context: _Context) -> Span | None:
    text = context.text
    opening = text.rfind("(", context.begin, context.claim.start)
    closing = text.find(")", context.claim.end, context.end)
    if opening < 0 or closing < 0 or ")" in text[opening : context.claim.start]:
        return None
    return opening - len(text[context.begin : opening]) + len(text[context.begin : opening].rstrip()), closing + 1, ""


def _second_predicate(context: _Context) -> Span | None:
    """Remove the second of two predicates: '… and led 12 people'."""
    text = context.text
    matches = list(_PREDICATE.finditer(text, context.begin, context.claim.start))
    if not matches:
        return None
    last = matches[-1]
    if re.search(r"[,;]", text[last.end() : context.claim.start]):
        return None
    after = text[context.claim.end : context.end]
    stop = re.search(r"[,;.!?]|\s+(?:and|but)\s+", after)
    return last.start(), context.claim.end + (stop.start() if stop else len(after)), ""


def _phrase(context: _Context) -> Span | None:
    """Remove a preposition with its object: ' at X', ' for 5 years', ' as a Y'."""
    text = context.text
    before = text[context.begin : context.start]
    match = re.search(rf"(?:\s+|,\s+){_PREPOSITION}\s+$", before, re.IGNORECASE)
    if not match or not before[: match.start()].strip():
        return None
    if not _GAP.match(text[context.claim.end : context.end] or "."):
        return None
    lead, word = before[: match.start()].rstrip(), match[0].strip(" ,").lower()
    needs = _INCOMPLETE.search(lead)
    if needs and word not in _COMPLETED_BY.get(needs[0].lower(), ()):
        return None
    if re.search(r"\b(?:I|we|you|it)$", lead):
        return None
    return context.begin + len(lead), context.claim.end, ""


def _clause(context: _Context) -> Span | None:
    """Remove a clause of a longer sentence."""
    text, cuts = context.text, list(_CLAUSE.finditer(context.text, context.begin, context.end))
    ends = [(match.start(), match.end()) for match in cuts]
    earlier = [span for span in ends if span[0] < context.claim.start and span[1] <= context.claim.start]
    later = [span for span in ends if span[0] >= context.claim.end]
    mark = (
        context.end
        - len(text[context.begin : context.end])
        + len(text[context.begin : context.end].rstrip(".!?\"'”’)"))
    )
    stop = later[0][0] if later else mark
    if earlier:
        opener = text[earlier[-1][0] : earlier[-1][1]]
        inner = re.match(r",\s+(?!and|but|yet|so|while)", opener) or opener.strip() == "where"
        comma = text.find(",", context.claim.end, stop)
        if inner and comma >= 0 and not opener.startswith(";"):
            stop = comma
        return earlier[-1][0], stop, ""
    if later:
        following = text[later[0][0] : context.end].lstrip(" ,;–—-")
        if re.match(
            r"(?:where|which|who|whose|whom|when|having|holding|including|with|as well|plus)\b",
            following,
            re.IGNORECASE,
        ):
            return None
        return context.begin, context.end - len(_CONJUNCTION.sub("", following)), ""
    return None


def _leading_phrase(context: _Context) -> Span | None:
    """Remove a phrase at the start: '[With 12 years in ovens, ]I …', '[Since 2015 ]I …'."""
    text = context.text
    if not _LEADING_WORD.match(text, context.begin):
        return None
    bare = _BEFORE_SUBJECT.match(text, context.claim.end)
    if bare and _LEADING_PREPOSITION.fullmatch(text[context.begin : context.start]):
        return context.begin, bare.end(), ""
    comma = text.find(",", context.claim.end, context.end)
    following = text[comma + 1 : context.end].lstrip() if comma >= 0 else ""
    if not re.match(r"(?:I|my|we|you|the|it|this|that|your|our)\b", following, re.IGNORECASE):
        return None
    return context.begin, context.end - len(following), ""


def _first_predicate(context: _Context) -> Span | None:
    """Remove the first of two predicates: 'I [hold a degree and ]use SQL'."""
    text = context.text
    verb = re.search(
        r"(?P<lead>(?:^|,\s+|\b(?:I|we)\s+))(?:have |also |can |am |was )?[a-z]+\s+$",
        text[context.begin : context.start],
    )
    after = text[context.claim.end : context.end]
    joint = re.match(rf",?\s+and\s+(?={_VERB}\b)", after)
    if not verb or not joint:
        return None
    if verb["lead"].startswith(","):
        return context.begin + verb.start(), context.claim.end, ""
    return context.begin + verb.end("lead"), context.claim.end + joint.end(), ""


def _title(context: _Context) -> Span | None:
    """Remove a title if an employer follows ('I was[ a Head Chef] at X'); else replace it with 'part of the team'."""
    if context.claim.kind != "title":
        return None
    text = context.text
    if not re.search(r"\b(?:am|was|been|be|is|are|were)\s+$", text[context.begin : context.start]):
        return None
    if re.match(r"\s+(?:at|with|in)\s", text[context.claim.end : context.end]):
        return context.start, context.claim.end, ""
    if re.match(r"\s+(?:for|since|from)\s", text[context.claim.end : context.end]):
        return context.start, context.claim.end, "part of the team"
    return None


def _vaguer_words(context: _Context) -> Span | None:
    """Replace a duration that cannot be removed with 'some time', or years of something with 'experience'."""
    text, claim = context.text, context.claim
    before, after = text[context.begin : context.start], text[claim.end : context.end]
    if claim.kind != "duration":
        return None
    if re.search(r"\b(?:have|bring|offer|with)\s+$", before) and re.match(r"\s+of\s+(?=[A-Z])", after):
        return context.start, claim.end, "experience"
    if re.search(r"\b(?:in|during) (?:my|the)\s+$", text[context.begin : claim.start], re.IGNORECASE):
        return claim.start, claim.end, "time"
    if re.match(r"\s+(?:as|at|with|in|on)\b", after) and re.search(r"\b(?:spent|spend|and|:)\s+$|:\s+$", before):
        return context.start, claim.end, "some time"
    return None


def _whole_sentence(context: _Context) -> Span | None:
    """Remove the sentence."""
    return context.begin, context.end, ""


_RULES = (
    _list_line,
    _first_predicate,
    _list_item,
    _amount,
    _parenthesis,
    _second_predicate,
    _leading_phrase,
    _title,
    _phrase,
    _clause,
    _whole_sentence,
    _vaguer_words,
)


def _other_spans(text: str, claim: ClaimEvent, others: Iterable[ClaimEvent]) -> tuple[tuple[int, int], ...]:
    spans = [(other_claim.start, other_claim.end) for other_claim in others]
    spans = spans or [(other_claim.start, other_claim.end) for other_claim in extract(text)]
    return tuple((start, end) for start, end in spans if end <= claim.start or start >= claim.end)


def _tidy(text: str, span: Span) -> str:
    """Replace the span and adjust spaces, punctuation, capitals and articles around it."""
    before, after = text[: span[0]], span[2] + text[span[1] :]
    if _SENTENCE_START.search(before):
        after = after.lstrip(" \t")
        after = after[:1].upper() + after[1:]
    elif after[:1] in _CLOSING_MARKS or not after:
        before = before.rstrip(" \t")
        before = before.rstrip(",;:–—- ") if after[:1] in _SENTENCE_MARKS and text[span[0]] != "\n" else before
        after = after[1:] if after[:1] == "," and before[-1:] in ",;:" else after
    elif before[-1:] in " \t" and after[:1] in " \t":
        after = after.lstrip(" \t")
    elif before[-1:].isalnum() and after[:1].isalnum():
        after = f" {after}"
    if not after.strip():
        return before.rstrip()
    if after[0] == "\n":
        before = before.rstrip(" \t")
        after = after.lstrip("\n") if before.endswith("\n\n") or not before else after
    before, after = _with_article(before, after)
    return _renumbered(before, after)


def _with_article(before: str, after: str) -> tuple[str, str]:
    """Correct 'a' or 'an' at the end of `before` for the next word."""
    match = re.search(r"\b[Aa]n?\s+$", before)
    return (before[: match.start()], correct_article(match[0] + after)) if match else (before, after)


def _renumbered(before: str, after: str) -> str:
    """Join the parts and renumber the list lines after a removed one."""
    line, lines = before[before.rfind("\n") + 1 :], after.split("\n")
    last = re.findall(r"(?m)^(\d{1,2})[.)][ \t]", before)
    match = re.match(r"(\d{1,2})[.)][ \t]", lines[0])
    if line or not match:
        return before + after
    number = int(last[-1]) + 1 if last and int(match[1]) > 2 else int(match[1]) - 1
    if number + 1 != int(match[1]):
        return before + after
    for index, item in enumerate(lines):
        if not (match := re.match(r"(\d{1,2})([.)][ \t])", item)):
            break
        lines[index] = f"{number + index}{match[2]}{item[match.end() :]}"
    return before + "\n".join(lines)


# --- replacements from fields -----------------------------------------------------------------------------------------


def _candidates(text: str, claim: ClaimEvent, fields: Mapping[str, str]) -> list[list[str]]:
    """Return words of fields that may replace a claim: those of the contradicting fact, then all of its kind."""
    kinds = {"employer", "organisation"} if claim.kind in {"employer", "organisation"} else {claim.kind}
    if claim.kind == "skill" or claim.verdict == "supported":
        return []
    facts = [fact for fact in read_fields(fields, {}).facts if fact.claim.kind in kinds]
    contradicting = [fact for fact in facts if fact.field == claim.field and f"says {fact.claim.text!r}." in claim.why]
    side = "reader" if "The advert's fields" in claim.why else "writer"
    of_side = [fact for fact in facts if fact.side in {side, "both"}]
    if not _can_be_replaced(text, claim):
        return []
    if claim.kind == "number":
        contradicting, of_side = (
            [fact for fact in group if _counts_same(text, claim, fact)] for group in (contradicting, of_side)
        )
    return [_replacements(claim, fact) for fact in (contradicting, of_side)]


def _counts_same(text: str, claim: ClaimEvent, fact: Fact) -> bool:
    """Return whether a fact counts the same as the text: 40 loaves do not replace 40 cats."""
    around = f"{' '.join(text[: claim.start].split()[-3:])} {' '.join(text[claim.end :].split()[:3])}"
    claim_stems = {word[:4].casefold() for word in re.findall(r"[^\W\d_]{3,}", around)} - _UNSPECIFIC_STEMS
    return any(word[:4].casefold() in claim_stems for word in re.findall(r"[^\W\d_]{3,}", fact.piece))


def _can_be_replaced(text: str, claim: ClaimEvent) -> bool:
    """Return whether another value of its kind fits there: 'at PLC programming' names no employer."""
    after = text[claim.end : claim.end + 40]
    if claim.kind in {"employer", "organisation"}:
        if re.search(r"\b(?:position|role|job|post|title|work) (?:of|as) (?:an? |the )?$", text[: claim.start]):
            return False  # a title that was taken for an employer
        return bool(_GAP.match(after)) or after.startswith(("'", "’"))
    return claim.kind != "number" or not re.match(r"\s+[A-Z]", after)


def _replacements(claim: ClaimEvent, facts: Sequence[Fact]) -> list[str]:
    shaped = (_in_form_of(claim, fact.claim.text) for fact in facts)
    return list(dict.fromkeys(words for words in shaped if words and words != claim.text))


def _in_form_of(claim: ClaimEvent, words: str) -> str | None:
    """Return a fact's words in the form of the claim: '2014-2017' for '2009 and 2012'; None if they do not fit."""
    words = " ".join(words.split())
    if claim.kind == "number" and words in {"1", "one", "a", "an"}:
        return None  # the counted noun is plural
    if claim.kind == "date":
        joint, years = _JOINT.search(claim.text), _JOINT.split(words)
        if bool(joint) != (len(years) > 1):
            return None
        return joint[0].join((years[0], years[-1])) if joint else words
    return words


def _replace(text: str, claim: ClaimEvent, words: str) -> tuple[str, int]:
    """Return the text with `words` in place of the claim, and the position of the words."""
    before, after = text[: claim.start], text[claim.end :]
    if _SENTENCE_START.search(before) and claim.text[:1].isupper():
        words = words[:1].upper() + words[1:]
    before, inserted = _with_article(before, words + after)
    return before + inserted, len(before) + len(inserted) - len(words) - len(after)
