"""Recognizes where a text ends although the model continues, before the run-on is shown."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from tunesmith.writing.repetition import LoopDetector

MAX_HELD = 200  # characters
_CONTROL_TOKEN = re.compile(
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
_POSTSCRIPT = re.compile(  # what people write below their signature
    r"\W{0,3}(?:p\.? ?(?:p\.? ?)?s\b|encl|enclos|attach|cc\b|copy|phone|tel\b|mobile|e-?mail|address|www\.|https?:)"
    r"|[^\n]*@",
    re.IGNORECASE,
)
_DIALOGUE = re.compile(r"[^\W\d_][\w .'’-]{0,30}:\s")  # a requested dialogue: its lines name the speaker
_RULE = re.compile(r"[-*_=]{3,}")
_CHANGE = r"(?:adjust|modify|customi[sz]e|edit|change|adapt|tweak|personali[sz]e|replace|tailor|revise|fill in|refine)"
_TALK = re.compile(  # what a chat model says after the requested text
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
_LINE_BREAKS = frozenset("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")

OTHER_SPEAKER = "continues as the other speaker"
END_OF_TEXT = "continues after an end-of-text token"
PROMPT_ECHO = "repeats the prompt"
SECOND_LETTER = "starts a second letter"
AFTER_END = "continues after the end"
LOOP = "repeats itself"


class RunOnFilter:
    """Takes the words after the preamble and returns what may be shown.

    `text` is everything received; its first `shown_length` characters are shown. `reason` is set once the rest is cut.
    In a `document`, a second letter and talk after the signature are run-on. `fields` and `prompt_lines` come from the
    prompt, `names` are speaker labels of the user. `fenced`: the preamble opened a code fence; `quoted`: the quotation
    mark that closes the text.
    """

    def __init__(
        self,
        *,
        document: bool,
        fields: Mapping[str, str] | None = None,
        prompt_lines: Iterable[str] = (),
        names: Collection[str] = (),
        question: str = "",
    ) -> None:
        self.text, self.shown_length, self.reason, self.fenced, self.quoted = "", 0, "", False, ""
        self._document, self._names = document, frozenset(names)
        self._has_question_labels = bool(re.search(r"(?m)^\s*(?:Q|A|Question|Answer)\s?[:.)]", question))
        self._fields = dict(fields or {}) if document else {}
        self._prompt_lines = [words for line in prompt_lines if len(words := line.casefold().split()) >= 4]
        self._loops = LoopDetector()
        self._line, self._settled, self._code = 0, False, False
        self._greeted, self._closed, self._signed = False, False, False
        self._cut_at = 0
        self._after_start: int | None = None  # where the text after the signature begins
        self._fence_end: int | None = None  # start of the closing fence

    def add(self, word: str) -> str:
        """Return what may be shown of the word and of what was held back."""
        if self.reason:
            return ""
        start = len(self.text)
        self.text += word
        if word.isspace():
            return self._end_line(start) if word in _LINE_BREAKS else ""
        cut, hold = self._check_word(word, start)
        if cut is not None:
            return self._cut(cut)
        return self._show(min(hold, len(self.text)))

    def finish(self, *, stopped: bool) -> str:
        """Return what was held back and is no run-on."""
        if self.reason:
            return ""
        if self._fence_end is not None:
            return self._show(self._fence_end)
        if (cut := self._finish_line()) is not None:
            return self._cut(cut)
        if not stopped and (cut := self._loops.open_loop) is not None and cut >= self.shown_length:
            self.reason = LOOP
            return self._cut(cut)
        return self._show(len(self.text), last=True)

    @property
    def all_shown(self) -> bool:
        """Whether only whitespace is held back."""
        return not self.reason and not self.text[self.shown_length :].strip()

    @property
    def removed(self) -> str:
        """What was cut off, as far as it had arrived."""
        return self.text[self._cut_at :] if self.reason else ""

    def _check_word(self, word: str, start: int) -> tuple[int | None, int]:
        """Return where to cut, or None, and from where on to hold back."""
        if self._fence_end is not None:
            self.reason = AFTER_END
            return self._fence_end, self._fence_end
        match = _CONTROL_TOKEN.search(self.text, max(self.shown_length, start))
        if match and (not self._code or match[0].startswith("<|")):
            self.reason = END_OF_TEXT
            return match.start(), match.start()
        hold = len(self.text)
        if not self._settled:
            verdict = self._check_line(self.text[self._line :], whole=False)
            if isinstance(verdict, str):
                self.reason = verdict
                return self._cut_position(verdict), self._line
            self._settled = verdict
            if not verdict:
                hold = self._after_start if self._after_start is not None else self._line
            if self._fence_end is not None:
                return None, self._fence_end
        self._loops.add_word(word, start, code=self._code)
        if self._loops.cut is not None:
            self.reason = LOOP
            return self._loops.cut, self._loops.cut
        if self._loops.hold is not None:
            hold = min(hold, self._loops.hold)
        if self.quoted and self.text.endswith(self.quoted):
            hold = min(hold, len(self.text) - 1)
        return None, hold

    def _show(self, until: int, *, last: bool = False) -> str:
        until = max(self.shown_length, until)
        while until > self.shown_length and self.text[until - 1].isspace():
            until -= 1
        if last and self.quoted and until > self.shown_length and self.text[until - 1] == self.quoted:
            until -= 1
        text, self.shown_length = self.text[self.shown_length : until], until
        return text

    def _cut(self, position: int) -> str:
        self._cut_at = max(self.shown_length, position)
        text = self._show(self._cut_at)
        self._cut_at = self.shown_length
        return text

    # --- lines ---------------------------------------------------------------------------------------------------

    def _end_line(self, position: int) -> str:
        line = self.text[self._line : position].strip()
        if (cut := self._finish_line()) is not None:
            return self._cut(cut)
        self._loops.end_line(code=self._code)
        if self._loops.cut is not None:
            self.reason = LOOP
            return self._cut(self._loops.cut)
        if line and self._document and not self._code:
            self._track_letter(line)
        self._line, self._settled = position + 1, False
        return ""

    def _finish_line(self) -> int | None:
        """Return where to cut now that the line is complete, or None."""
        line = self.text[self._line :].rstrip()
        if self._settled or not line:
            return None
        verdict = self._check_line(line, whole=True)
        if not isinstance(verdict, str):
            return None
        self.reason = verdict
        return self._cut_position(verdict)

    def _cut_position(self, reason: str) -> int:
        return self._after_start if reason == AFTER_END and self._after_start is not None else self._line

    def _track_letter(self, line: str) -> None:
        """Update how far the letter is: greeted, closed, signed."""
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

    def _check_line(self, line: str, *, whole: bool) -> str | bool:
        """Return why to cut at this line, else whether the line can no longer become run-on."""
        if _FENCE.match(line):
            return self._fence()
        if self._code:
            return True
        has_text = bool(self.text[: self._line].strip())
        if has_text and not _DIALOGUE.match(self.text) and (reason := self._check_speaker(line)):
            return reason
        may_turn = not whole and has_text and _MAY_TURN.fullmatch(line) is not None
        echo = self._check_echo(line) if has_text else True
        if isinstance(echo, str):
            return echo
        if not self._document or not has_text:
            return whole or not (may_turn or (echo is False))
        document_verdict = self._check_document(line, whole=whole)
        if isinstance(document_verdict, str):
            return document_verdict
        return whole or (document_verdict and not may_turn and echo)

    def _fence(self) -> bool:
        if self.fenced and not self._code:
            self._fence_end = self._line
            return True
        self._code = not self._code
        return True

    def _check_speaker(self, line: str) -> str:
        if _TURN.match(line) or _HEADING.match(line) or (_QUESTION.match(line) and not self._has_question_labels):
            return OTHER_SPEAKER
        if _ANSWER_HEADING.match(line) and "\n#" not in self.text[: self._line] and not self.text.startswith("#"):
            return OTHER_SPEAKER
        after_blank_line = "\n\n" in self.text[max(0, self._line - 3) : self._line]
        if (
            after_blank_line
            and _ANSWER.match(line)
            and not self._has_question_labels
            and not _QUESTION.search(self.text[:12])
        ):
            return OTHER_SPEAKER
        label, colon, _ = line.partition(":")
        return OTHER_SPEAKER if colon and label.strip() in self._names else ""

    def _check_echo(self, line: str) -> str | bool:
        """Return PROMPT_ECHO if the line repeats a line of the prompt, else whether it cannot any more."""
        line_words, settled = line.casefold().split(), True
        for words in self._prompt_lines:
            size = min(len(words), len(line_words), 8)
            if line_words[:size] == words[:size]:
                if size >= min(8, len(words)):
                    return PROMPT_ECHO
                settled = False
        for name in self._names:
            settled = settled and not f"{name}:".startswith(line)
        for name, value in self._fields.items():
            if f"{name}:".startswith(line):
                settled = False
            elif line.startswith(f"{name}:"):
                if " " in name:
                    return PROMPT_ECHO
                line_value, field_value = line[len(name) + 1 :].split(), value.split()
                size = min(len(line_value), len(field_value), 5)
                if line_value[:size] == field_value[:size]:
                    if size and size == min(len(field_value), 5):
                        return PROMPT_ECHO
                    settled = False
        return settled

    def _check_document(self, line: str, *, whole: bool) -> str | bool:
        """Return why to cut a second letter or talk after the end, else whether the line cannot be one."""
        if self._signed:
            return self._check_after_signature(line, whole=whole)
        if _RULE.fullmatch(line.strip()):
            self._after_start = self._line if self._after_start is None else self._after_start
            return whole
        verdict = self._check_talk(line, whole=whole)
        if verdict is True:
            verdict = self._check_greeting(line, whole=whole)
        if verdict is True:
            self._after_start = None
        return verdict

    def _check_talk(self, line: str, *, whole: bool) -> str | bool:
        if _TALK.match(line):
            return AFTER_END
        plain = line.casefold().lstrip("*_([>- ").replace("’", "'")
        may_be_talk = any(plain.startswith(start[: len(plain)]) for start in _TALK_STARTS)
        return whole or not (may_be_talk and len(line) < 100 and not any(mark in line for mark in ".!?"))

    def _check_greeting(self, line: str, *, whole: bool) -> str | bool:
        if not self._greeted:
            return True
        if _GREETING.match(line):
            if whole:
                return SECOND_LETTER if _GREETED.fullmatch(line.strip()) else True
            return len(line) > 100 or any(mark in line for mark in ".!?;")
        return whole or not any(start.startswith(line) for start in ("Dear", "To whom", "To Whom"))

    def _check_after_signature(self, line: str, *, whole: bool) -> str | bool:
        if self._after_start is None:
            self._after_start = self._line
        if _POSTSCRIPT.match(line):
            self._after_start = None
            return True
        if _GREETING.match(line):
            return SECOND_LETTER if whole or len(line) > 5 else False
        if _RULE.fullmatch(line.strip()):
            return whole
        following = self.text[self._after_start :].strip()
        if (
            len(line) >= MAX_HELD
            or len(following) >= MAX_HELD
            or (line.rstrip()[-1:] in (".", "!", "?", ":") and len(line) >= 12)
        ):
            return AFTER_END
        if whole:
            self._after_start = None
        return whole
