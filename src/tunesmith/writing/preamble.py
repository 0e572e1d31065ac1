"""Recognizes and removes what a model says before the requested text, while it arrives.

Text is held back only while it may still be such chatter, at most `MAX_HELD` characters. A beginning stays unless a
whole sentence or line of it is chatter: 'Certainly my years at …' and 'Here is what I bring' stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

MAX_HELD = 200  # characters
MIN_ECHO_WORDS = 4  # a repeated line of the prompt counts only with this many words

_EAGER = (
    r"(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|alright|all right|great|gladly|got it|understood"
    r"|perfect|no problem|happy to help|with pleasure|thank you|thanks)"
)
_PIECE = (
    r"(?:(?:cover(?:ing)?|application|motivation) letter|letter|draft|version|sample|example|text|response|answer|reply"
    r"|template|rewrite|revision|summary|e-?mail|message|document|output|essay|note)s?"
)
_WRITTEN = r"(?:written|drafted|prepared|created|composed|put together|generated|crafted|tailored)"
_ANNOUNCEMENT = (
    rf"(?:here(?:['’]s| is| are| you go| it is)|below (?:is|are|you(?:['’]ll| will) find)|please find(?: below)?"
    rf"|the following is|this is|I(?:['’]ve| have) {_WRITTEN})\b"
)
_OFFER = (
    r"(?:I(?:['’]d| would)(?: be)? (?:happy|glad|delighted|love|pleased) to"
    r"|I(?:['’]m| am)(?: \w+)? (?:happy|glad|here|ready|able) to"
    r"|I(?: can|['’]ll| will| could)(?: \w+ly)?|let me|allow me to)"
    r" (?:help|assist|do that|write|draft|create|provide|give|prepare|compose|craft)\b"
)
_TITLE = (
    rf"(?:(?:the|my|your|a|an) )?(?:(?:draft|sample|final|revised|new) )?"
    rf"(?:(?:cover(?:ing)?|application|motivation) letter|{_PIECE})"
)
_END = r"[^\n]*[.:!…]"

# Any recipe: an eager word followed by an offer or an announcement.
_TALK_PATTERNS = (
    rf"{_EAGER}[!,.:—–-]*\s+(?:{_OFFER}{_END}|{_ANNOUNCEMENT}{_END}|(?:the|your|my) {_PIECE}\b[^\n]*:)",
    rf"as requested[,:]?\s+(?:{_ANNOUNCEMENT}|the |your ){_END}",
    r"the answer(?: to (?:this|the|your|that)(?: above)? (?:question|puzzle|problem))?(?: is)?:",
)
# Recipes for one document: announcements need no eager word, and titles are not part of it.
_DOCUMENT_PATTERNS = (
    rf"{_EAGER}[!.]",
    rf"{_ANNOUNCEMENT}[^\n]*\b{_PIECE}\b[^\n]*[:.!]",
    rf"{_OFFER}[^\n]*\b(?:you|with|{_PIECE})\b{_END}",
    rf"(?:the|your|my) {_PIECE}(?: (?:for|to|from|based|that)\b[^:\n]{{0,90}})?"
    r"(?: is| reads?| would be| could be| could read)?(?: as follows| below| like this)?:",
    rf"(?:based on|using|with|given) (?:the|your|these) (?:\w+ )?(?:information|details|fields|data|facts)\b[^\n]*"
    rf"\b(?:here|below|I(?:['’]ve| have))\b{_END}",
    r"(?:thank you|thanks) for (?:providing|sharing|giving)\b[^\n]*"
    r"(?::|\b(?:information|details|data|fields|background|profile)[.!]|\b(?:here|below)\b[^\n]*[.!])",
    rf"as an? (?:AI|artificial|(?:large )?language model)\b{_END}",
)
_TITLE_PATTERNS = (
    rf"{_TITLE}:",
    rf"{_TITLE}(?: (?:for|to|of|from)\b[^.!?\n]{{0,110}})?:?",
)  # the second one only as a whole line
_LABEL = re.compile(  # a speaker label before the answer
    r"(?:#{1,4} ?(?:Response|Answer|Assistant|Output)\s?:?[ \t]*(?=\n)|#{1,4} ?(?:Response|Answer|Assistant)\s?:"
    r"|(?:\*\*)?(?:Assistant|ASSISTANT|Response|AI|Bot)(?:\*\*)?\s?:(?:\*\*)?)(?=\s)"
)
_ANSWER = re.compile(r"(?:A|Answer|Output)\s?:(?=\s)")
_CHOICE = re.compile(r"(?m)^[ \t]*(?:A|B|Q|Question|Answer)\s?[:.)]")
_FENCE = re.compile(r"```[\w+-]*[ \t]*\n")
_RULE = re.compile(r"(?:[-*_=]{3,})[ \t]*\n")
_UNIT_END = re.compile(r"\n|[.!?:…][\"'”’*_)]*(?=\s)")
_EAGER_MARK = re.compile(rf"{_EAGER}[!.:]+[*_]*[ \t]+(?=\S)", re.IGNORECASE)
_EAGER_ALONE = re.compile(rf"{_EAGER}[!.:]+[*_]*[ \t]*", re.IGNORECASE)
_MARKS = re.compile(r"^[\s*_#>\"“]+|[\s*_\"”]+$")
_QUOTES = {'"': '"', "“": "”"}
_GREETING = re.compile(r"[\s*_\"“]*(?:Dear|Hello|Hi|To [Ww]hom|To the)\b")

_EAGER_WORDS = (  # chatter begins with one of these; other text passes at once
    "sure|certainly|of course|absolutely|okay|ok|alright|all right|great|gladly|got it|understood|perfect|no problem|"
    "happy to help|with pleasure|as requested|the answer"
)
_DOCUMENT_WORDS = (
    "here's|here is|here are|here you|here it|below is|below are|below you|please find|the following is|this is|i've|"
    "i have|i'd be|i'd love|i would be|i would love|i'm|i am|i can|i'll|i will|i could|let me|allow me|based on the|"
    "based on your|based on these|using the|using your|using these|with the|with your|with these|given the|"
    "given your|given these|thank you|thanks for|as an ai|as a language|as a large|as an artificial|cover|covering|"
    "application|motivation|letter|draft|version|sample|example|text|response|answer|reply|template|rewrite|revision|"
    "summary|email|e-mail|message|document|output|essay|note|the cover|the covering|the application|the motivation|"
    "the letter|the draft|the text|the response|the reply|the email|the document|the output|your cover|your letter|"
    "your draft|your application|my cover|my letter|my application|a cover|a letter|a sample|a draft|an application|"
    "final|revised|new"
)
_EAGER_STARTS = tuple(tuple(start.split()) for start in _EAGER_WORDS.split("|"))
_DOCUMENT_STARTS = tuple(tuple(start.split()) for start in _DOCUMENT_WORDS.split("|"))
_AFTER_EAGER = "here|here's|below|i|i'd|i'm|i'll|i've|let|allow|please|the|your|my|this"
_AFTER_EAGER_WORDS = frozenset(
    _AFTER_EAGER.split("|")
)  # after an eager word and a mark: 'Certainly, every …' is no chatter


class PreambleFilter:
    """Takes words until it is clear where the text itself begins.

    `document`: the reply is one document, not a chat answer. `prompt_lines` are lines of the prompt, `question` is the
    user's message. Afterwards `dropped` is what was removed; `fenced` and `quoted` say whether it opened a code fence
    or a quote.
    """

    def __init__(
        self,
        *,
        document: bool,
        fields: Mapping[str, str] | None = None,
        prompt_lines: Iterable[str] = (),
        question: str = "",
    ) -> None:
        self._document, self._pending = document, ""
        self._choices = bool(_CHOICE.search(question))
        self._prompt_lines = [words for line in prompt_lines if len(words := line.split()) >= MIN_ECHO_WORDS]
        self._fields, self._in_field_list = dict(fields or {}) if document else {}, False
        self._starts = (*_EAGER_STARTS, *(_DOCUMENT_STARTS if document else ()))
        shapes = (*_TALK_PATTERNS, *(_DOCUMENT_PATTERNS if document else ()))
        self._shapes = re.compile("|".join(f"(?:{shape})" for shape in shapes), re.IGNORECASE)
        self.dropped, self.fenced, self.quoted, self.open = "", False, "", True

    def add(self, word: str) -> str:
        """Return the beginning of the text, or '' while it is undecided."""
        self._pending += word
        return self._settle(ended=False)

    def finish(self, *, stopped: bool) -> str:
        """Return what is left at the end of the reply, without chatter that the token limit cut off."""
        if not self.open:
            return ""
        text = self._pending.strip()
        if not stopped and self.dropped.strip() and self._may_be_chatter(text):
            self.dropped, self._pending = self.dropped + self._pending, ""
            return ""
        return self._settle(ended=True)

    def _settle(self, *, ended: bool) -> str:
        while self._pending:
            size = self._chatter(self._pending, ended=ended)
            if size is None:
                return ""
            if size == 0:
                self.open = False
                text, self._pending = self._pending, ""
                return text
            self.dropped += self._pending[:size]
            self._pending = self._pending[size:]
        return ""

    def _chatter(self, pending: str, *, ended: bool) -> int | None:
        """Return the number of characters to drop; None while undecided."""
        blank = len(pending) - len(pending.lstrip())
        text = pending[blank:]
        if blank or not text:
            return blank
        if marker := self._marker(text):
            return marker
        if (field_list := self._field_list(text, ended)) is None or field_list:
            return field_list
        if (echo := self._echo(text)) is None or echo:
            return echo if echo or not ended else 0
        if self._may_be_marker(text) and not ended:
            return None
        return self._announcement(text, ended)

    def _marker(self, text: str) -> int:
        """Return the length of a fence, rule, quotation mark or label at the start."""
        if match := _LABEL.match(text):
            return match.end()
        if (match := _ANSWER.match(text)) and (self._document or (match[0][0] == "A" and not self._choices)):
            return match.end() if match[0] in ("A:", "A :") or self._document else 0
        if self._document and (match := _FENCE.match(text)):
            self.fenced = True
            return match.end()
        if self.dropped.strip() and (match := _RULE.match(text)):
            return match.end()
        if self._document and self.dropped.strip() and text[0] in _QUOTES and _GREETING.match(text):
            self.quoted = _QUOTES[text[0]]
            return 1
        return 0

    def _may_be_marker(self, text: str) -> bool:
        if len(text) >= MAX_HELD or "\n" in text:
            return False
        if re.fullmatch(
            r"#{1,4} ?\w*\s?:?[ \t]*|(?:\*\*)?(?:Assistant|ASSISTANT|Response|AI|Bot|A|Answer|Output)[*: ]*", text
        ):
            return True
        if self._document and re.fullmatch(r"```[\w+-]*[ \t]*", text):
            return True
        return bool(self.dropped.strip()) and bool(re.fullmatch(r"[-*_=]{3,}[ \t]*|[\"“]\S{0,8}[ ]?", text))

    def _announcement(self, text: str, ended: bool) -> int | None:
        """Return the length of a sentence or line that announces, offers or is a title; None while undecided."""
        if not ended and _EAGER_ALONE.fullmatch(_without_marks(text)):
            return None  # the next words decide
        end, line = _first_unit_end(text)
        if end is None:
            if ended:
                end, line = len(text), True
            elif len(text) < MAX_HELD and self._may_be_chatter(text):
                return None
            else:
                return 0
        unit = _MARKS.sub("", text[:end])
        if end <= MAX_HELD and self._is_chatter(unit, line):
            return end
        if line and self._document and end <= MAX_HELD and unit[-1:] in (".", ":", "!"):
            return self._before_greeting(text, end, ended)
        return 0

    def _is_chatter(self, unit: str, line: bool) -> bool:
        if not unit:
            return False
        if self._shapes.fullmatch(unit):
            return line or unit[-1] in ".:!…"
        if not self._document:
            return False
        return any(
            re.fullmatch(shape, unit, re.IGNORECASE) for shape in (_TITLE_PATTERNS if line else _TITLE_PATTERNS[:1])
        )

    def _may_be_chatter(self, text: str) -> bool:
        """Return whether a sentence with this beginning can be chatter."""
        words = [word for word in (_MARKS.sub("", word).casefold().replace("’", "'") for word in text.split()) if word]
        plain = [word.strip("!,.:;—–-") for word in words]
        for start in self._starts:
            size = min(len(start), len(plain))
            if tuple(plain[:size]) == start[:size]:
                return (
                    len(plain) <= len(start)
                    or start not in _EAGER_STARTS
                    or self._eager_goes_on(words, plain, len(start))
                )
        return not words

    def _eager_goes_on(self, words: list[str], plain: list[str], size: int) -> bool:
        """Return whether the words after an eager word can make it chatter."""
        if plain[:size] in (["the", "answer"], ["as", "requested"]):
            return True
        marked = words[size - 1][-1] in "!,.:—–-"
        return (marked and plain[size] in _AFTER_EAGER_WORDS) or plain[size] in ("here", "here's")

    def _before_greeting(self, text: str, end: int, ended: bool) -> int | None:
        """Return the length of a line that is followed by a letter's greeting, as it cannot be part of the letter."""
        following = text[end:].lstrip()
        if _GREETING.match(text):
            return 0
        if not following or (not ended and " " not in following and "\n" not in following):
            return 0 if ended else None
        return end if _GREETING.match(following) else 0

    def _echo(self, text: str) -> int | None:
        """Return the length of a repeated line of the prompt; None while undecided."""
        text_words = text.split()
        for words in self._prompt_lines:
            size = min(len(words), len(text_words))
            if [word.casefold() for word in text_words[:size]] == [word.casefold() for word in words[:size]]:
                if size < len(words):
                    return None if len(text) < MAX_HELD else 0
                match = re.match(r"\s+".join(map(re.escape, words)), text, re.IGNORECASE)
                return match.end() if match else 0
        return 0

    def _field_list(self, text: str, ended: bool) -> int | None:
        """Return the length of a repeated field of the prompt ('Job Title: …', then the next); None while undecided."""
        label = next((name for name in self._fields if text.startswith(f"{name}:")), None)
        line_end = text.find("\n")
        if label is None:
            may_begin = any(f"{name}:".startswith(text) for name in self._fields)
            return None if may_begin and not ended else 0
        if self._in_field_list:
            return line_end + 1 if line_end >= 0 else len(text) if ended else None
        if line_end < 0:
            return None if not ended and len(text) < MAX_HELD else 0
        following = text[line_end:].lstrip()
        next_label = any(
            " " in label_name and following.startswith(f"{name}:")
            for name in self._fields
            for label_name in (name, label)
        )
        if next_label:
            self._in_field_list = True
            return line_end + 1
        may_follow = any(f"{name}:".startswith(following) for name in self._fields) and not ended
        return None if may_follow else 0


def _first_unit_end(text: str) -> tuple[int | None, bool]:
    """Return where the first sentence or line ends, and whether a line ends there.

    An eager word is joined with the sentence after it.
    """
    eager = _EAGER_MARK.match(_without_marks(text))
    start = len(text) - len(_without_marks(text)) + (eager.end() if eager and "\n" not in eager[0] else 0)
    match = _UNIT_END.search(text, start)
    if match is None:
        return None, False
    if match[0] == "\n":
        return match.start(), True
    return match.end(), text[match.end() :].lstrip(" \t").startswith("\n")


def _without_marks(text: str) -> str:
    return text.lstrip('*_#>"“ ')
