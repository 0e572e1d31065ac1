"""Where a text ends although the model goes on: run-on is recognised before it is told, and cut."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from tunesmith.writing.repetition import Loops

HELD = 200  # characters
_CONTROL = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|</?s>|<(?:eos|bos|pad)>|<(?:start|end)_of_\w{1,20}>|\[/?INST\]|<</?SYS>>|<｜[^<>\s]{1,40}｜>"
)
_TURN = re.compile(r"[>*_ \t]*(?:User|USER|Human|HUMAN|Assistant|ASSISTANT)[*_]*\s?:")
_HEADING = re.compile(r"#{2,4} ?(?:Instructions?|User|Human|Input|Question|Response|Assistant|System)\b")
_ANSWER_HEADING = re.compile(r"#{2,4} ?Answer\b")
_QUESTION = re.compile(r"(?:Q|Question)\s?:")
_ANSWER = re.compile(r"A\s?:")
_MAY_TURN = re.compile(r"(?:[>*_ \t]*(?:User|USER|Human|HUMAN|Assistant|ASSISTANT|Q|A|Question)[*_]*\s?|#{1,4} ?\w*)")
_GREETING = re.compile(r"(?:Dear\b|To [Ww]hom\b|Hello\b|Hi\b|Subject:)")
_GREETED = re.compile(
    r"(?:Dear\b[^\n.!?;]{0,90}[,:]?|To [Ww]hom\b[^\n.!?;]{0,60}[,:]?|(?:Hello|Hi)\b[^\n.!?;]{0,60}[,:])"
)
_CLOSING = re.compile(
    r"[^\n.!?:]{0,40}\b(?:sincerely|regards|wishes|faithfully|truly|respectfully|yours|thanks|thank you|cheers|"
    r"gr(?:ü|ue)(?:ß|ss)en?|cordialement|salutations|saludos|atentamente|saluti|groet(?:en)?|hilsen|cumprimentos)"
    r"(?: [^\n.!?:]{0,20})?[,.!]?",
    re.IGNORECASE,
)
_BELONGS = re.compile(  # what people write below their name
    r"\W{0,3}(?:p\.? ?(?:p\.? ?)?s\b|encl|enclos|attach|cc\b|copy|phone|tel\b|mobile|e-?mail|address|www\.|https?:)"
    r"|[^\n]*@",
    re.IGNORECASE,
)
_SPOKEN = re.compile(r"[^\W\d_][\w .'’-]{0,30}:\s")  # a dialogue was asked for: its lines name who speaks
_RULE = re.compile(r"[-*_=]{3,}")
_CHANGE = r"(?:adjust|modify|customi[sz]e|edit|change|adapt|tweak|personali[sz]e|replace|tailor|revise|fill in|refine)"
_TALK = re.compile(  # what a chat model says behind the text it was asked for
    r"[\W_]{0,3}(?:note:|note that (?:this|I)\b|I hope (?:this|it) (?:helps|works for you|meets your)|"
    rf"(?:please )?feel free to {_CHANGE}\b|(?:remember|be sure|make sure|don['’]t forget) to {_CHANGE}\b|"
    r"(?:please )?let me know if you(?:['’]d| would)?(?: like| want| need| prefer| wish| have)\b[^.!?\n]{0,40}?"
    rf"\b(?:me to|any (?:other |further )?(?:changes|edits|adjustments)|{_CHANGE})\b|would you like me to\b|"
    r"is there anything else (?:that )?I can\b|if you(?:['’]d| would) (?:like|prefer), I can\b)",
    re.IGNORECASE,
)
_TALK_STARTS = (
    "note", "i hope", "feel free", "please feel", "remember to", "be sure", "make sure", "don't forget", "let me know",
    "please let", "would you like me", "is there anything", "if you'd", "if you would",
)  # fmt: skip
_FENCE = re.compile(r"[ \t]*```")
_BREAKS = frozenset("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")

TURN = "goes on as the other speaker"
CONTROL = "goes on behind an end-of-text token"
PROMPT = "says the prompt again"
SECOND = "begins a second letter"
BEHIND = "goes on behind the end"
CIRCLE = "runs in circles"


class Ending:
    """Takes the text's atoms behind its opening and tells what may be shown.

    `text` is all that came, of it the first `told` characters are shown. `why` is set when the rest is cut. For a
    `document` a second letter and talk behind the signature are run-on; `fields` and `echoes` are the prompt's own
    lines, `names` those with which the asker's lines open. `fenced`: an opening fence was left out; `quoted`: the
    quotation mark that will close the text.
    """

    def __init__(
        self,
        *,
        document: bool,
        fields: Mapping[str, str] | None = None,
        echoes: Iterable[str] = (),
        names: Collection[str] = (),
        question: str = "",
    ) -> None:
        self.text, self.told, self.why, self.fenced, self.quoted = "", 0, "", False, ""
        self._document, self._names = document, frozenset(names)
        self._asked = bool(re.search(r"(?m)^\s*(?:Q|A|Question|Answer)\s?[:.)]", question))
        self._fields = dict(fields or {}) if document else {}
        self._echoes = [words for line in echoes if len(words := line.casefold().split()) >= 4]
        self._loops = Loops()
        self._line, self._settled, self._code = 0, False, False
        self._greeted, self._closed, self._signed = False, False, False
        self._from = 0  # where the cut is
        self._behind: int | None = None  # where what stands behind the signature begins
        self._over: int | None = None  # behind the closing fence

    def add(self, atom: str) -> str:
        """What is shown of it and of what was held back."""
        if self.why:
            return ""
        start = len(self.text)
        self.text += atom
        if atom.isspace():
            return self._line_ends(start) if atom in _BREAKS else ""
        cut, hold = self._judged(atom, start)
        if cut is not None:
            return self._cut(cut)
        return self._show(min(hold, len(self.text)))

    def end(self, *, stopped: bool) -> str:
        """What was held back and is no run-on."""
        if self.why:
            return ""
        if self._over is not None:
            return self._show(self._over)
        if (at := self._line_done()) is not None:
            return self._cut(at)
        if not stopped and (at := self._loops.broken_off) is not None and at >= self.told:
            self.why = CIRCLE
            return self._cut(at)
        return self._show(len(self.text), last=True)

    @property
    def all_told(self) -> bool:
        """Whether nothing but blanks is held back."""
        return not self.why and not self.text[self.told :].strip()

    @property
    def removed(self) -> str:
        """What was cut off, as far as it had come."""
        return self.text[self._from :] if self.why else ""

    def _judged(self, atom: str, start: int) -> tuple[int | None, int]:
        """Where to cut, and from where on to hold back."""
        if self._over is not None:
            self.why = BEHIND
            return self._over, self._over
        found = _CONTROL.search(self.text, max(self.told, start))
        if found and (not self._code or found[0].startswith("<|")):
            self.why = CONTROL
            return found.start(), found.start()
        hold = len(self.text)
        if not self._settled:
            told = self._line_judged(self.text[self._line :], whole=False)
            if isinstance(told, str):
                self.why = told
                return self._from_where(told), self._line
            self._settled = told
            if not told:
                hold = self._behind if self._behind is not None else self._line
            if self._over is not None:
                return None, self._over
        self._loops.word(atom, start, code=self._code)
        if self._loops.cut is not None:
            self.why = CIRCLE
            return self._loops.cut, self._loops.cut
        if self._loops.hold is not None:
            hold = min(hold, self._loops.hold)
        if self.quoted and self.text.endswith(self.quoted):
            hold = min(hold, len(self.text) - 1)
        return None, hold

    def _show(self, until: int, *, last: bool = False) -> str:
        until = max(self.told, until)
        while until > self.told and self.text[until - 1].isspace():
            until -= 1
        if last and self.quoted and until > self.told and self.text[until - 1] == self.quoted:
            until -= 1
        shown, self.told = self.text[self.told : until], until
        return shown

    def _cut(self, at: int) -> str:
        self._from = max(self.told, at)
        shown = self._show(self._from)
        self._from = self.told
        return shown

    # --- lines ---------------------------------------------------------------------------------------------------

    def _line_ends(self, place: int) -> str:
        line = self.text[self._line : place].strip()
        if (at := self._line_done()) is not None:
            return self._cut(at)
        self._loops.line(code=self._code)
        if self._loops.cut is not None:
            self.why = CIRCLE
            return self._cut(self._loops.cut)
        if line and self._document and not self._code:
            self._follow(line)
        self._line, self._settled = place + 1, False
        return ""

    def _line_done(self) -> int | None:
        """Where to cut, now that the line is whole."""
        line = self.text[self._line :].rstrip()
        if self._settled or not line:
            return None
        told = self._line_judged(line, whole=True)
        if not isinstance(told, str):
            return None
        self.why = told
        return self._from_where(told)

    def _from_where(self, why: str) -> int:
        return self._behind if why == BEHIND and self._behind is not None else self._line

    def _follow(self, line: str) -> None:
        """How far the letter is: greeted, closed, signed."""
        if _GREETED.fullmatch(line):
            self._greeted = True
        if (
            self._closed
            and not self._signed
            and len(line) <= 60
            and line[-1] not in ".!?"
            and not _CLOSING.fullmatch(line)
        ):
            self._signed = True
        if _CLOSING.fullmatch(line) and len(line.split()) <= 6:
            self._closed = True

    def _line_judged(self, line: str, *, whole: bool) -> str | bool:
        """Why the text is cut at this line; else whether that is out of the question for the line."""
        if _FENCE.match(line):
            return self._fence()
        if self._code:
            return True
        place = bool(self.text[: self._line].strip())
        if place and not _SPOKEN.match(self.text) and (why := self._turned(line)):
            return why
        waits = not whole and place and _MAY_TURN.fullmatch(line) is not None
        echo = self._echoed(line) if place else True
        if isinstance(echo, str):
            return echo
        if not self._document or not place:
            return whole or not (waits or (echo is False))
        later = self._later(line, whole=whole)
        if isinstance(later, str):
            return later
        return whole or (later and not waits and echo)

    def _fence(self) -> bool:
        if self.fenced and not self._code:
            self._over = self._line
            return True
        self._code = not self._code
        return True

    def _turned(self, line: str) -> str:
        if _TURN.match(line) or _HEADING.match(line) or (_QUESTION.match(line) and not self._asked):
            return TURN
        if _ANSWER_HEADING.match(line) and "\n#" not in self.text[: self._line] and not self.text.startswith("#"):
            return TURN
        alone = "\n\n" in self.text[max(0, self._line - 3) : self._line]
        if alone and _ANSWER.match(line) and not self._asked and not _QUESTION.search(self.text[:12]):
            return TURN
        label, colon, _ = line.partition(":")
        return TURN if colon and label.strip() in self._names else ""

    def _echoed(self, line: str) -> str | bool:
        """Whether the line says a line of the prompt again: PROMPT; False while it may."""
        said, settled = line.casefold().split(), True
        for words in self._echoes:
            size = min(len(words), len(said), 8)
            if said[:size] == words[:size]:
                if size >= min(8, len(words)):
                    return PROMPT
                settled = False
        for name in self._names:
            settled = settled and not f"{name}:".startswith(line)
        for name, value in self._fields.items():
            if f"{name}:".startswith(line):
                settled = False
            elif line.startswith(f"{name}:"):
                if " " in name:
                    return PROMPT
                told, known = line[len(name) + 1 :].split(), value.split()
                size = min(len(told), len(known), 5)
                if told[:size] == known[:size]:
                    if size and size == min(len(known), 5):
                        return PROMPT
                    settled = False
        return settled

    def _later(self, line: str, *, whole: bool) -> str | bool:
        """A second letter, and what follows a text or its signature; False while it may be one."""
        if self._signed:
            return self._after(line, whole=whole)
        if _RULE.fullmatch(line.strip()):
            self._behind = self._line if self._behind is None else self._behind
            return whole
        told = self._talked(line, whole=whole)
        if told is True:
            told = self._greets(line, whole=whole)
        if told is True:
            self._behind = None
        return told

    def _talked(self, line: str, *, whole: bool) -> str | bool:
        if _TALK.match(line):
            return BEHIND
        said = line.casefold().lstrip("*_([>- ").replace("’", "'")
        may = any(said.startswith(each[: len(said)]) for each in _TALK_STARTS)
        return whole or not (may and len(line) < 100 and not any(sign in line for sign in ".!?"))

    def _greets(self, line: str, *, whole: bool) -> str | bool:
        if not self._greeted:
            return True
        if _GREETING.match(line):
            if whole:
                return SECOND if _GREETED.fullmatch(line.strip()) else True
            return len(line) > 100 or any(sign in line for sign in ".!?;")
        return whole or not any(each.startswith(line) for each in ("Dear", "To whom", "To Whom"))

    def _after(self, line: str, *, whole: bool) -> str | bool:
        if self._behind is None:
            self._behind = self._line
        if _BELONGS.match(line):
            self._behind = None
            return True
        if _GREETING.match(line):
            return SECOND if whole or len(line) > 5 else False
        if _RULE.fullmatch(line.strip()):
            return whole
        text = self.text[self._behind :].strip()
        if len(line) >= HELD or len(text) >= HELD or (line.rstrip()[-1:] in (".", "!", "?", ":") and len(line) >= 12):
            return BEHIND
        if whole:
            self._behind = None
        return whole
