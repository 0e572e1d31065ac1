"""What a model says before the text that it was asked for: recognised while it comes, and left out.

Held back is only what may still be such chatter, at most `HELD` characters at a time. A beginning that is no chatter as
a whole sentence or line stays as it is: 'Certainly my years at …', 'Here is what I bring'.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

HELD = 200  # characters
ECHO = 4  # words that a line of the prompt must have to be known again

_EAGER = (
    r"(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|alright|all right|great|gladly|got it|understood"
    r"|perfect|no problem|happy to help|with pleasure|thank you|thanks)"
)
_PIECE = (
    r"(?:(?:cover(?:ing)?|application|motivation) letter|letter|draft|version|sample|example|text|response|answer|reply"
    r"|template|rewrite|revision|summary|e-?mail|message|document|output|essay|note)s?"
)
_MADE = r"(?:written|drafted|prepared|created|composed|put together|generated|crafted|tailored)"
_HERE = (
    rf"(?:here(?:['’]s| is| are| you go| it is)|below (?:is|are|you(?:['’]ll| will) find)|please find(?: below)?"
    rf"|the following is|this is|I(?:['’]ve| have) {_MADE})\b"
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

# Any recipe: an eager word with an offer or an announcement behind it.
_ALWAYS = (
    rf"{_EAGER}[!,.:—–-]*\s+(?:{_OFFER}{_END}|{_HERE}{_END}|(?:the|your|my) {_PIECE}\b[^\n]*:)",
    rf"as requested[,:]?\s+(?:{_HERE}|the |your ){_END}",
    r"the answer(?: to (?:this|the|your|that)(?: above)? (?:question|puzzle|problem))?(?: is)?:",
)
# Recipes that write one document: what announces it needs no eager word, and titles are none of it.
_DOCUMENT = (
    rf"{_EAGER}[!.]",
    rf"{_HERE}[^\n]*\b{_PIECE}\b[^\n]*[:.!]",
    rf"{_OFFER}[^\n]*\b(?:you|with|{_PIECE})\b{_END}",
    rf"(?:the|your|my) {_PIECE}(?: (?:for|to|from|based|that)\b[^:\n]{{0,90}})?"
    r"(?: is| reads?| would be| could be| could read)?(?: as follows| below| like this)?:",
    rf"(?:based on|using|with|given) (?:the|your|these) (?:\w+ )?(?:information|details|fields|data|facts)\b[^\n]*"
    rf"\b(?:here|below|I(?:['’]ve| have))\b{_END}",
    r"(?:thank you|thanks) for (?:providing|sharing|giving)\b[^\n]*"
    r"(?::|\b(?:information|details|data|fields|background|profile)[.!]|\b(?:here|below)\b[^\n]*[.!])",
    rf"as an? (?:AI|artificial|(?:large )?language model)\b{_END}",
)
_TITLES = (rf"{_TITLE}:", rf"{_TITLE}(?: (?:for|to|of|from)\b[^.!?\n]{{0,110}})?:?")  # the second one a line of its own
_LABEL = re.compile(  # whose turn it is, in front of the answer
    r"(?:#{1,4} ?(?:Response|Answer|Assistant|Output)\s?:?[ \t]*(?=\n)|#{1,4} ?(?:Response|Answer|Assistant)\s?:"
    r"|(?:\*\*)?(?:Assistant|ASSISTANT|Response|AI|Bot)(?:\*\*)?\s?:(?:\*\*)?)(?=\s)"
)
_ANSWER = re.compile(r"(?:A|Answer|Output)\s?:(?=\s)")
_CHOICE = re.compile(r"(?m)^[ \t]*(?:A|B|Q|Question|Answer)\s?[:.)]")
_FENCE = re.compile(r"```[\w+-]*[ \t]*\n")
_RULE = re.compile(r"(?:[-*_=]{3,})[ \t]*\n")
_UNIT = re.compile(r"\n|[.!?:…][\"'”’*_)]*(?=\s)")
_EAGER_MARK = re.compile(rf"{_EAGER}[!.:]+[*_]*[ \t]+(?=\S)", re.IGNORECASE)
_EAGER_ALONE = re.compile(rf"{_EAGER}[!.:]+[*_]*[ \t]*", re.IGNORECASE)
_MARKS = re.compile(r"^[\s*_#>\"“]+|[\s*_\"”]+$")
_QUOTES = {'"': '"', "“": "”"}
_GREETING = re.compile(r"[\s*_\"“]*(?:Dear|Hello|Hi|To [Ww]hom|To the)\b")

_EAGER_WORDS = (  # the words that chatter can begin with; anything else is let through at once
    "sure|certainly|of course|absolutely|okay|ok|alright|all right|great|gladly|got it|understood|perfect|no problem|"
    "happy to help|with pleasure|as requested|the answer"
)
_ANNOUNCING = (
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
_STARTS = tuple(tuple(each.split()) for each in _EAGER_WORDS.split("|"))
_DOCUMENT_STARTS = tuple(tuple(each.split()) for each in _ANNOUNCING.split("|"))
_BEHIND = "here|here's|below|i|i'd|i'm|i'll|i've|let|allow|please|the|your|my|this"
_FOLLOWING = frozenset(_BEHIND.split("|"))  # behind an eager word: 'Certainly, every …' is no chatter


class Opening:
    """Takes a text's atoms until it is clear where the text itself begins.

    `document`: one document is wanted, no talk. `labels` are names of fields, `echoes` lines of the prompt, `question`
    is what the user said. `dropped` is what was left out; `fenced` and `quoted` say what it opened.
    """

    def __init__(
        self, *, document: bool, fields: Mapping[str, str] | None = None, echoes: Iterable[str] = (), question: str = ""
    ) -> None:
        self._document, self._held = document, ""
        self._choices = bool(_CHOICE.search(question))
        self._echoes = [words for line in echoes if len(words := line.split()) >= ECHO]
        self._fields, self._listing = dict(fields or {}) if document else {}, False
        self._starts = (*_STARTS, *(_DOCUMENT_STARTS if document else ()))
        shapes = (*_ALWAYS, *(_DOCUMENT if document else ()))
        self._shapes = re.compile("|".join(f"(?:{each})" for each in shapes), re.IGNORECASE)
        self.dropped, self.fenced, self.quoted, self.open = "", False, "", True

    def add(self, atom: str) -> str:
        """What the text begins with, '' while that is open."""
        self._held += atom
        return self._settle(ended=False)

    def end(self, *, stopped: bool) -> str:
        """What is left when nothing more comes; chatter that the limit of tokens broke off is none of it."""
        if not self.open:
            return ""
        text = self._held.strip()
        if not stopped and self.dropped.strip() and self._may_be(text):
            self.dropped, self._held = self.dropped + self._held, ""
            return ""
        return self._settle(ended=True)

    def _settle(self, *, ended: bool) -> str:
        while self._held:
            size = self._chatter(self._held, ended=ended)
            if size is None:
                return ""
            if size == 0:
                self.open = False
                text, self._held = self._held, ""
                return text
            self.dropped += self._held[:size]
            self._held = self._held[size:]
        return ""

    def _chatter(self, held: str, *, ended: bool) -> int | None:
        """How many characters in front are no part of the text; None while it is open."""
        blank = len(held) - len(held.lstrip())
        text = held[blank:]
        if blank or not text:
            return blank
        if found := self._sign(text):
            return found
        if (listed := self._listed(text, ended)) is None or listed:
            return listed
        if (echo := self._echo(text)) is None or echo:
            return echo if echo or not ended else 0
        if self._may_be_sign(text) and not ended:
            return None
        return self._said(text, ended)

    def _sign(self, text: str) -> int:
        """Fences, rules, quotation marks and labels in front."""
        if found := _LABEL.match(text):
            return found.end()
        if (found := _ANSWER.match(text)) and (self._document or (found[0][0] == "A" and not self._choices)):
            return found.end() if found[0] in ("A:", "A :") or self._document else 0
        if self._document and (found := _FENCE.match(text)):
            self.fenced = True
            return found.end()
        if self.dropped.strip() and (found := _RULE.match(text)):
            return found.end()
        if self._document and self.dropped.strip() and text[0] in _QUOTES and _GREETING.match(text):
            self.quoted = _QUOTES[text[0]]
            return 1
        return 0

    def _may_be_sign(self, text: str) -> bool:
        if len(text) >= HELD or "\n" in text:
            return False
        if re.fullmatch(
            r"#{1,4} ?\w*\s?:?[ \t]*|(?:\*\*)?(?:Assistant|ASSISTANT|Response|AI|Bot|A|Answer|Output)[*: ]*", text
        ):
            return True
        if self._document and re.fullmatch(r"```[\w+-]*[ \t]*", text):
            return True
        return bool(self.dropped.strip()) and bool(re.fullmatch(r"[-*_=]{3,}[ \t]*|[\"“]\S{0,8}[ ]?", text))

    def _said(self, text: str, ended: bool) -> int | None:
        """A sentence or line that announces, offers or entitles."""
        if not ended and _EAGER_ALONE.fullmatch(_lead(text)):
            return None  # what it is eager for decides
        end, line = _unit(text)
        if end is None:
            if ended:
                end, line = len(text), True
            elif len(text) < HELD and self._may_be(text):
                return None
            else:
                return 0
        unit = _MARKS.sub("", text[:end])
        if end <= HELD and self._is_chatter(unit, line):
            return end
        if line and self._document and end <= HELD and unit[-1:] in (".", ":", "!"):
            return self._greeted(text, end, ended)
        return 0

    def _is_chatter(self, unit: str, line: bool) -> bool:
        if not unit:
            return False
        if self._shapes.fullmatch(unit):
            return line or unit[-1] in ".:!…"
        if not self._document:
            return False
        return any(re.fullmatch(shape, unit, re.IGNORECASE) for shape in (_TITLES if line else _TITLES[:1]))

    def _may_be(self, text: str) -> bool:
        """Whether a sentence that begins so can be chatter."""
        words = [word for word in (_MARKS.sub("", each).casefold().replace("’", "'") for each in text.split()) if word]
        plain = [word.strip("!,.:;—–-") for word in words]
        for start in self._starts:
            size = min(len(start), len(plain))
            if tuple(plain[:size]) == start[:size]:
                return len(plain) <= len(start) or start not in _STARTS or self._goes_on(words, plain, len(start))
        return not words

    def _goes_on(self, words: list[str], plain: list[str], size: int) -> bool:
        """Whether what stands behind an eager word can make it chatter."""
        if plain[:size] in (["the", "answer"], ["as", "requested"]):
            return True
        marked = words[size - 1][-1] in "!,.:—–-"
        return (marked and plain[size] in _FOLLOWING) or plain[size] in ("here", "here's")

    def _greeted(self, text: str, end: int, ended: bool) -> int | None:
        """A line that ends a sentence, and then a letter's greeting: whoever wrote the letter did not write it."""
        rest = text[end:].lstrip()
        if _GREETING.match(text):
            return 0
        if not rest or (not ended and " " not in rest and "\n" not in rest):
            return 0 if ended else None
        return end if _GREETING.match(rest) else 0

    def _echo(self, text: str) -> int | None:
        """A line of the prompt that is said again; None while it may be."""
        said = text.split()
        for words in self._echoes:
            size = min(len(words), len(said))
            if [each.casefold() for each in said[:size]] == [each.casefold() for each in words[:size]]:
                if size < len(words):
                    return None if len(text) < HELD else 0
                found = re.match(r"\s+".join(map(re.escape, words)), text, re.IGNORECASE)
                return found.end() if found else 0
        return 0

    def _listed(self, text: str, ended: bool) -> int | None:
        """The prompt's own fields, line by line: 'Job Title: …' and the next one; None while it may be."""
        label = next((name for name in self._fields if text.startswith(f"{name}:")), None)
        line = text.find("\n")
        if label is None:
            begun = any(f"{name}:".startswith(text) for name in self._fields)
            return None if begun and not ended else 0
        if self._listing:
            return line + 1 if line >= 0 else len(text) if ended else None
        if line < 0:
            return None if not ended and len(text) < HELD else 0
        rest = text[line:].lstrip()
        other = any(" " in each and rest.startswith(f"{name}:") for name in self._fields for each in (name, label))
        if other:
            self._listing = True
            return line + 1
        may = any(f"{name}:".startswith(rest) for name in self._fields) and not ended
        return None if may else 0


def _unit(text: str) -> tuple[int | None, bool]:
    """Where the first sentence or line ends, and whether the line does; an eager word is joined to what follows."""
    eager = _EAGER_MARK.match(_lead(text))
    begin = len(text) - len(_lead(text)) + (eager.end() if eager and "\n" not in eager[0] else 0)
    found = _UNIT.search(text, begin)
    if found is None:
        return None, False
    if found[0] == "\n":
        return found.start(), True
    rest = text[found.end() :]
    return found.end(), rest[: len(rest) - len(rest.lstrip(" \t"))].endswith("\n") or rest.lstrip(" \t").startswith(
        "\n"
    )


def _lead(text: str) -> str:
    return text.lstrip('*_#>"“ ')
