"""Phrases typical of a language model: it mentions itself, refuses, writes a preamble, offers further help.

Why it hurts: the tuned model repeats them to its users; refusals spread to questions that deserve an answer.

Example: "As an AI language model, I cannot write cover letters. Sure! Here is one:"

What to do: remove the phrase if the rest is good, or quarantine the row. Preambles, offers and notes are
not reported if a tenth or more of the answers have them: then they are the style of the chat.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tunesmith.data.conversation import Conversation
from tunesmith.data.finding import CheckContext, Defect, Finding, Proposal, Severity, defect_findings, make_defect
from tunesmith.data.language import mask

_EAGER = "sure|certainly|of course|absolutely|great question|good question|no problem|gladly|got it|understood|okay|ok"
_PIECE = (
    "letter|draft|version|sample|example|text|response|answer|template|rewrite|revision|summary|email|e-mail|paragraph"
    "|document|output|content|essay|message|note"
)
_MADE = "written|generated|created|drafted|prepared|composed|produced|rewritten|revised"
_CHANGE = (
    r"adjust|modify|customi[sz](?:e|ing)|edit|change|adapt|tweak|personali[sz](?:e|ing)|replace|tailor|revise|fill in"
    r"|refine|rephrase"
)
_UNABLE = r"I(?:'m| am)? (?:can(?:'t|not)|unable to|not able to)"
_HEAD = 400  # characters of a text that are searched for an opening


@dataclass(frozen=True)
class _Tell:
    """Patterns of one kind, tried only on texts that contain one of `signs` (lower case): most contain none."""

    severity: Severity
    why: str
    signs: tuple[str, ...]
    patterns: tuple[str, ...]
    head: bool = False  # the patterns are searched in the opening only
    exact: bool = False  # case-sensitive

    def compiled(self) -> re.Pattern[str]:
        """The patterns as one expression that also accepts typographic apostrophes."""
        return re.compile("|".join(self.patterns).replace("'", "['’]"), 0 if self.exact else re.IGNORECASE)


_TELLS = (
    _Tell("error", "a model speaks of itself", (" ai", "artificial", "language model"), (
        r"\bas an? (?:AI|artificial intelligence|(?:large )?language model)\b"
        r"(?=,| (?:language|assistant|chat|model|I\b))",
        r"\bas I(?:'m| am) an AI\b",
        r"\bI(?:'m| am) (?:just |only )?an? (?:large |AI )?language model\b",
    )),
    _Tell("error", "a model speaks of its training", ("my knowledge", "my training", "my last"), (
        r"\b(?:as of|up to|until|since) my (?:last )?(?:knowledge|training)(?: update| cut-?off| data)?\b",
        r"\bmy knowledge cut-?off\b|\bmy training data (?:only|ends|goes|includes|is stored|does|was last)\b",
    )),
    _Tell("warning", "a refusal", ("can't", "cannot", "unable to", "not able to"), (
        r"\bI(?:'m| am) sorry, but I (?:can(?:'t|not| not)|am (?:un|not )able to)\b"
        r"(?! (?:make|come|attend|log|find|join|wait|stay))",
        r"\bI (?:can(?:'t|not)|am unable to|am not able to) "
        r"(?:assist|help (?:you )?with|fulfil+|comply|provide|answer|engage in|browse|generate)\b",
    )),
    _Tell("warning", "a refusal", ("can't", "cannot", "able to", "so that i can", "so i can",
                                   "i don't have", "i do not have"), (
        rf"\A[^\n]{{0,80}}\b(?:sorry|apologi[sz]e|unfortunately)\b[^.!?\n]{{0,60}}\b{_UNABLE} "
        rf"(?:write|create|{_CHANGE}|produce|complete|fulfil+|help|do that|speak for|have access)\b",
        rf"\A[^\n]{{0,80}}\b{_UNABLE} (?:write|create|produce|complete) (?:(?:an?|the|this|your|that) )?(?:\w+ )?"
        rf"(?:{_PIECE})s?\b",
        r"\A[^\n]{0,60}\bI (?:don't|do not) have (?:enough|sufficient) (?:information|details|context)\b",
        r"\A[^\n]{0,100}\b(?:missing|incomplete|not (?:been )?(?:provided|included|given|supplied))\b[^\n]{0,60}"
        r"\bplease (?:share|provide|give|send|supply)\b[^.?\n]{0,60}\bso (?:that )?I can (?:help|assist|write)\b"
        r"[^\n]{0,60}\Z",
    ), head=True),
    _Tell("warning", "a preamble", ("here", "below", "following", "happy to", "glad to", "have", "'ve"), (
        rf"\A\W{{0,3}}(?:{_EAGER})\b[,.! ][^\n]{{0,80}}?\b(?:here(?:'s| is| are)|below (?:is|are)|the following"
        rf"|please find|I(?:'ve| have) (?:{_MADE})|I(?:'d| would) be (?:happy|glad|delighted) to)\b"
        rf"[^.:!\n]{{0,60}}\b(?:{_PIECE})\b",
        r"\A(?:\W{0,3}[^\n]{1,40}\n\s{1,3})?\W{0,3}"
        rf"(?:here(?:'s| is| are)|below (?:is|are|you)|(?:this|the following) is|I(?:'ve| have) (?:{_MADE}))\b"
        rf"[^\n]{{0,60}}?\b(?:{_PIECE})\b[^\n]{{0,160}}[:.](?=\s{{0,9}}\n)",
        rf"\A[^\n]{{0,160}}?\b(?:requested|asked for|provided|given|shared|supplied)\b[^\n]{{0,60}}\bI(?:'ve| have) "
        rf"(?:{_MADE})\b",
    ), head=True),
    _Tell("warning", "praise of a question", ("question",), (
        r"\A\W{0,3}(?:great|good|excellent) question\b",
    ), head=True),
    _Tell("warning", "an offer to go on", ("let me know if", "feel free to", "like me to", "want me to", "i can",
                                           "anything else"), (
        rf"\blet me know if you(?:'d| would)? (?:like|want|need|prefer|wish)\b[^.!?\n]{{0,40}}?"
        rf"\b(?:me to|any (?:other |further )?changes|{_CHANGE})\b",
        rf"\bfeel free to (?:{_CHANGE})\b[^.!?\n]{{0,30}}\b(?:{_PIECE}|it|this|details|as needed)\b",
        rf"\bif you(?:'d| would) (?:like|prefer), I can (?:make|write|add|shorten|expand|rewrite|continue|{_CHANGE})\b",
        r"\b(?:would you like|do you want) me to "
        rf"(?:make|write|add|shorten|expand|rewrite|continue|{_CHANGE})\b[^.!\n]{{0,100}}\?",
        r"\bis there anything else (?:that )?I can (?:help|assist|do|add)\b[^.!\n]{0,60}\?",
    )),
    _Tell("warning", "a note about the text", ("language model", " ai", "gpt", "remember to", "sure to", "forget to",
                                               "end of", "word count", "here are",
                                               "this is"), (
        rf"\b(?:this|the) (?:{_PIECE}) (?:was|is|has been) (?:automatically )?(?:{_MADE}) (?:by|with|using) "
        r"(?:an? )?(?:AI|artificial|(?:large )?language model|chat ?bot|(?:Chat ?)?GPT)\b",
        rf"\b(?:remember|be sure|make sure|don't forget) to (?:{_CHANGE})\b[^.\n]{{0,60}}"
        r"\b(?:your own|details|brackets|placeholders?|information|before (?:sending|you send))\b",
        rf"(?m:^)\W{{0,3}}(?:end|start) of (?:the )?(?:generated )?(?:{_PIECE})\W{{0,3}}$|\bword count: ?\d+",
        rf"\bthis is (?:just |only )?an? (?:sample|template|draft|generic|example)\b[^.\n]{{0,60}}\b(?:{_CHANGE})",
        rf"\bhere are (?:a few|some|several) (?:tips|notes|suggestions|ideas) (?:for|on|about|to) (?:{_CHANGE})\b",
    )),
    _Tell("error", "a part of the prompt", ("##", "assistant:", "response:", "output:", "ai:", "<|", "inst]", "sys>>",
                                            "<s>", "</s>"), (
        r"(?m:^)\s{0,9}#{2,3} ?(?:Response|Instruction|Input|Human|Assistant|User|System):",
        r"\A\s{0,9}(?:ASSISTANT|Assistant|Response|Output|AI): ?(?=\S)",
        r"<\|(?:im_start|im_end|endoftext|eot_id|end|user|assistant|system)\|>",
        r"\[/?INST\]|<</?SYS>>|\A<s>|</s>\s{0,9}\Z",
    ), exact=True),
    _Tell("note", "a cliché", ("delv", "tapestry", "game", "in today", "hope this", "testament", "embark",
                               "important to", "unlock", "navigat"), (
        r"\bdelv(?:e|es|ing) (?:deep(?:er)? )?into\b|\btapestry of\b|\brich tapestry\b|\bgame[- ]changer\b",
        r"\bin today's (?:fast-paced|digital|ever-changing|competitive) (?:world|age|landscape)\b",
        r"\bI hope this (?:email|letter|message) finds you well\b|\ba testament to\b|\bembark(?:ing)? on a journey\b",
        r"\bit(?: i|')s important to (?:note|remember) that\b|\bunlock(?:ing)? the (?:full )?(?:power|potential) of\b",
        r"\bnavigat(?:e|ing) the complexit(?:y|ies)\b",
    )),
)  # fmt: skip
_COMPILED = [(tell, tell.compiled()) for tell in _TELLS]
_CLOSING = r"(?:sincerely|regards|faithfully|wishes|yours|truly|respectfully|thanks|thank you)"
_SIGN_OFF = re.compile(rf"{_CLOSING},?\s*\n[^\n]{{1,60}}\n\s*$", re.IGNORECASE)
_GREETED = re.compile(  # a sentence, and then a letter's salutation
    r"\A\s*(?!\d|(?:subject|re|date|to|from|cc)\b)(?P<words>[^\n]{3,300}[.!:])\s*\n\s*"
    r"(?=(?:Dear|Hello|Hi|Good (?:morning|afternoon|evening|day)|To (?:whom|the)|Greetings)\b[^\n.!?]{0,60}[,:]?\n)",
    re.IGNORECASE,
)
_SIGNED = re.compile(  # a signature, and then a sentence
    rf"\b{_CLOSING},?[ ]*\n+[^\n.!?]{{2,60}}\n\s*\n\W{{0,3}}(?!p\.? ?s\b|encl|attach|cc\b|phone|tel|mobile|e-?mail)"
    r"(?P<words>[^\n@]{12,400}[.!?])\W{0,4}\s*\Z",
    re.IGNORECASE,
)
_HELPS = re.compile(r"\bI hope (?:this|that|it) (?:helps|works for you|meets your|is what you)\b", re.IGNORECASE)


def detect(text: str) -> Iterator[Defect]:
    """Yields phrases in which a model mentions itself or its training, refuses, or repeats its prompt.

    Also yields what a chat model writes around the requested text: a preamble, an offer to go on, a note on the text.
    Around a letter this is any sentence before the salutation or after the signature. Refusals and such frames are
    warnings; clichés are notes, because people write them too. 'I hope this helps' counts only after a signature.
    """
    masked = mask(text)
    plain = masked.lower().replace("’", "'")
    for tell, pattern in _COMPILED:
        if any(sign in plain for sign in tell.signs):
            for match in pattern.finditer(masked[:_HEAD] if tell.head else masked):
                yield make_defect("machine_tell", text, *match.span(), tell.why, tell.severity)
    yield from _around_a_letter(text, masked)
    if "i hope " in plain:
        for match in _HELPS.finditer(masked):
            if _SIGN_OFF.search(masked[max(0, match.start() - 200) : match.start()]):
                yield make_defect("machine_tell", text, *match.span(), "an offer to go on")


def _around_a_letter(text: str, masked: str) -> Iterator[Defect]:
    """Yields sentences before a letter's salutation or after its signature, which are not part of the letter."""
    if frame := _GREETED.match(masked[:_HEAD]):
        yield make_defect("machine_tell", text, *frame.span("words"), "words before the letter")
    for frame in _SIGNED.finditer(masked, max(0, len(masked) - 2 * _HEAD)):
        yield make_defect("machine_tell", text, *frame.span("words"), "words after the letter")


SCOPE = "table"  # a phrase that many rows have is intended
FRAMES = (
    "a preamble",
    "praise of a question",
    "an offer to go on",
    "a note about the text",
    "words before the letter",
    "words after the letter",
)  # around a text that was asked for
USUAL = 0.1  # of the rows: a phrase that more of them have is intended
_ASKS = re.compile(r"\?|^\W*(?:wh\w+|how|is|are|can|do|does)\b", re.IGNORECASE)
MIN_ROWS = 30  # rows: with fewer, a share means nothing


def find_defects(
    rows: Sequence[Conversation], context: CheckContext, *, do: Proposal | None = None
) -> Iterator[Finding]:
    """Yields phrases in which a model mentions itself, offers help, or refuses."""
    question_ids = {row.id for row in rows if _ASKS.search(row.question)}
    findings = [
        finding
        for finding in defect_findings("machine_tell", rows, detect, do)
        if finding.message != "praise of a question" or finding.row not in question_ids
    ]
    row_counts = {frame: len({finding.row for finding in findings if finding.message == frame}) for frame in FRAMES}
    usual = {frame for frame in FRAMES if len(rows) >= MIN_ROWS and row_counts[frame] >= USUAL * len(rows)}
    yield from (finding for finding in findings if finding.message not in usual)
