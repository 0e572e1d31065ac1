"""Measures of a text alone: what it repeats, how its steps are written, who speaks in it. No row, no model."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

GRAM = 4  # characters: about a syllable and its neighbours, so endings and small words count as much as topics


# --- equal texts ------------------------------------------------------------------------------------------------


def plain(text: str, *, punctuation: bool) -> str:
    """NFC, case folded, spaces collapsed; without `punctuation` no sign of Unicode's categories P*.

    A text of signs alone keeps them: '?' is not '!'.
    """
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    if not punctuation:
        left = "".join(" " if unicodedata.category(sign).startswith("P") else sign for sign in folded)
        folded = left if left.strip() else folded
    return " ".join(folded.split())


# --- repetition -------------------------------------------------------------------------------------------------


def distinct(words: Sequence[str], n: int) -> float | None:
    """Different runs of `n` words over all such runs, 0 to 1; None where the text has none."""
    total = len(words) - n + 1
    return len({tuple(words[at : at + n]) for at in range(total)}) / total if total > 0 else None


# --- numbered steps ---------------------------------------------------------------------------------------------

_STEP = re.compile(r"(\d+)\.\s+(\S.*)")
_LABELS = re.compile(r"\"[^\"]*\"|“[^”]*”")  # 'Tap "Save; then close"'
_ASIDES = re.compile(r"\([^()]*\)|\[[^][]*\]")
_SHORT = re.compile(r"(?:e\.g|i\.e|etc|vs|approx|no|max|min|incl|inc|[ap]\.m|dr|prof|mrs?|ms|st|(?-i:[A-Z]))\.", re.I)
_CLOSING = "'’»*_"  # behind a sentence's end
_ACT = (  # orders of help texts that are seldom nouns; 'check', 'call', 'order' and the like are left out
    r"(?:add|attach|choose|click|close|confirm|delete|download|drag|enter|follow|go|install|make|open|paste|pick|press|"
    r"remove|reset|restart|save|scroll|select|send|submit|swipe|switch|tap|"
    r"turn|type(?= (?:your|the|in|a|an|it)\b)|unplug|upload|visit|wait)"
)
_AND_ACT = re.compile(rf"(?<!\b[Cc]opy) (?:and|&) (?:also |finally )?{_ACT}\b")  # 'Save and Close' is a label
_COMMA_ACT = re.compile(rf", {_ACT}\b")
_OPENS = re.compile(rf"{_ACT}\b", re.I)  # 'Open it, tap X' are two actions, 'In the app, tap X' is one
_THEN = re.compile(r"(?<!\bsince )(?<!\bby )(?<!\buntil )(?<!\bbefore )\bthen\b", re.I)
_FIRST = re.compile(r"(?:and )?then\b,? ?", re.I)  # 'Then tap Save' is one action
_IF = re.compile(r"(?:if|when|once|unless|as soon as)\b", re.I)  # 'If it is dark, then call us'


def lines(text: str) -> list[str]:
    """The text's lines without outer spaces, empty ones left out."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def number(line: str) -> int | None:
    """The number of a line such as '12. Tap Save.'; None for any other line and for numbers beyond 9 digits."""
    match = _STEP.match(line)
    return int(match[1]) if match and len(match[1]) < 10 else None


def is_single(step: str) -> bool:
    """Whether a step's words, its number left out, ask for one action, by these signs of another one.

    A second sentence; a semicolon with words behind it; 'then', unless the step opens with a condition or 'then' itself
    or tells a time ('since then'); 'and' with an order of `_ACT` behind it; a comma with one, where the step opens
    with an order. What stands in quotation marks or brackets is a label or an aside and is not read.
    """
    words = _ASIDES.sub("", _LABELS.sub("x", step)).split()
    step = " ".join(words)
    step = step[match.end() :] if (match := _FIRST.match(step)) else step
    if _ends_inside(words) or re.search(r"; ?\w", step):
        return False
    if not _IF.match(step) and _THEN.search(step):
        return False
    return not (_AND_ACT.search(step) or (_OPENS.match(step) and _COMMA_ACT.search(step)))


def _ends_inside(words: Sequence[str]) -> bool:
    """Whether a sentence ends before the last word: at . ! or ?, but not at 'e.g.' or the initial of a name."""
    last = max((place for place, word in enumerate(words) if any(sign.isalnum() for sign in word)), default=0)
    ends = (word.strip(_CLOSING) for word in words[:last])
    return any(end.endswith((".", "!", "?")) and not _SHORT.fullmatch(end) for end in ends)


def step_parts(text: str) -> dict[str, float]:
    """What makes a numbered list, part by part, each 0 to 1; a text without a step has 0 in all."""
    found = lines(text)
    numbers = [number(line) for line in found]
    places = [place for place, value in enumerate(numbers) if value is not None]
    if not places:
        return dict.fromkeys(("from_one", "no_gap", "no_preamble", "no_tail", "single_action"), 0.0)
    steps = [value for value in numbers if value is not None]
    single = [is_single(match[2]) for place in places if (match := _STEP.match(found[place]))]
    return {
        "from_one": float(steps[0] == 1),
        "no_gap": float(steps == list(range(steps[0], steps[0] + len(steps)))),
        "no_preamble": float(places[0] == 0),
        "no_tail": float(len(found) - places[0] == len(steps)),
        "single_action": sum(single) / len(single),
    }


# --- whose words ------------------------------------------------------------------------------------------------

_ASKS = (  # how the other speaker's turn opens, and where
    r"(?:User|USER|Human|HUMAN)\s?:",  # plain dialogues; in small letters it is a key of a settings file
    r"#{2,4} ?(?:Instruction|User|Human|Input|Question)\b",  # headings of Alpaca, Guanaco and the persona's template
    r"<\|im_start\|>|<start_of_turn>|<\|start_header_id\|>|<\|user\|>|\[INST\]",  # ChatML, Gemma, Llama 3, Phi, Llama 2
    r"(?:Q|Question)\s?:",  # of lists of questions
)
_ASK = re.compile(rf"[ \t>*_]*({'|'.join(_ASKS)})")
_LABEL = re.compile(r"[ \t>*_]*([^\W\d_][\w .'’-]{0,39}?)\s?:")
_QUESTION = re.compile(r"Q|Question")


def askers(prompts: Iterable[str]) -> frozenset[str]:
    """Names with which the asker's words open: at least two lines 'Anna: …', but not one that the last line ends with.

    One line may be a title ('Topic: …'); a last line 'Bot:' gives the word to the one who answers.
    """
    said = [line for prompt in prompts for line in lines(prompt)]
    labels = Counter(match[1] for line in said if (match := _LABEL.match(line)))
    last = _LABEL.fullmatch(said[-1]) if said else None
    return frozenset(name for name, times in labels.items() if times > 1 and not (last and name == last[1]))


def turns_of_other(text: str, names: Collection[str] = ()) -> list[str]:
    """The openings of lines in which the other speaker begins to speak, `names` being the asker's.

    'Q:' is one behind other words only: a text may open with a question and answer it.
    """
    found = []
    for place, line in enumerate(lines(text)):
        if match := _ASK.match(line):
            if place or not _QUESTION.match(match[1]):
                found.append(match[1])
        elif (match := _LABEL.match(line)) and match[1] in names:
            found.append(match[1])
    return found


# --- JSON -------------------------------------------------------------------------------------------------------

_FENCE = re.compile(r"```[\w+-]*[ \t]*\r?\n")
_BLANK = " \t\r\n"  # the spaces of RFC 8259


def parse(text: str, *, fenced: bool) -> tuple[Any] | None:
    """The value of a text that is JSON by RFC 8259, its numbers as text, in a tuple; None for any other text.

    NaN, Infinity, comments and trailing commas are none. With `fenced` one block of ``` … ``` may stand around it.
    """
    body = text.strip(_BLANK)
    opening = _FENCE.match(body) if fenced else None
    if opening and body.endswith("```") and len(body) >= opening.end() + 3:
        body = body[opening.end() : -3]
    try:  # numbers are kept as text: 1e999 and 5,000 digits are JSON, but no float and no int
        return (json.loads(body, parse_constant=_refuse, parse_int=str, parse_float=str),)
    except (ValueError, RecursionError):
        return None


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


# --- a writer's profile -----------------------------------------------------------------------------------------


def counted(whole: Iterable[str]) -> Counter[str]:
    """The words of texts, case folded, and how often each stands there."""
    return Counter(word for text in whole for word in text.casefold().split())


def profile(words: Mapping[str, int]) -> dict[str, float]:
    """Character 4-grams within counted words, spaces around each word: log(1 + count), scaled to length 1.

    A word of one letter is one gram of three characters. No words give an empty profile.
    """
    grams: Counter[str] = Counter()
    for word, times in words.items():
        padded = f" {word} "
        for at in range(max(1, len(padded) - GRAM + 1)):
            grams[padded[at : at + GRAM]] += times
    weights = {gram: math.log1p(times) for gram, times in grams.items()}
    size = math.sqrt(math.fsum(weight * weight for weight in weights.values()))
    return {gram: weight / size for gram, weight in weights.items()}


def cosine(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """The cosine of two profiles, 0 to 1; 0 where one is empty."""
    return min(1.0, math.fsum(weight * other.get(gram, 0.0) for gram, weight in one.items()))
