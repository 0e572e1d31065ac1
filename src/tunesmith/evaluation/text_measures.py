"""Measures of a single text, without row or model: repetition, numbered steps, speakers, JSON, style profile."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

GRAM = 4  # characters: about a syllable and its neighbors, so endings and small words count as much as topics


# --- equal texts ------------------------------------------------------------------------------------------------


def normalize_text(text: str, *, punctuation: bool) -> str:
    """Normalizes a text: NFC, case folded, spaces collapsed; unless `punctuation`, without Unicode categories P*.

    A text that is only punctuation keeps it: '?' is not '!'.
    """
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    if not punctuation:
        without = "".join(" " if unicodedata.category(sign).startswith("P") else sign for sign in folded)
        folded = without if without.strip() else folded
    return " ".join(folded.split())


# --- repetition -------------------------------------------------------------------------------------------------


def distinct_ngrams(words: Sequence[str], n: int) -> float | None:
    """Returns the share of distinct n-grams of `n` words, 0 to 1; None if the text has none."""
    total = len(words) - n + 1
    return len({tuple(words[at : at + n]) for at in range(total)}) / total if total > 0 else None


# --- numbered steps ---------------------------------------------------------------------------------------------

_STEP = re.compile(r"(\d+)\.\s+(\S.*)")
_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”")  # 'Tap "Save; then close"'
_BRACKETED = re.compile(r"\([^()]*\)|\[[^][]*\]")
_ABBREVIATION = re.compile(
    r"(?:e\.g|i\.e|etc|vs|approx|no|max|min|incl|inc|[ap]\.m|dr|prof|mrs?|ms|st|(?-i:[A-Z]))\.", re.I
)
_CLOSING_MARKS = "'’»*_"  # may follow the end of a sentence
_ACTION = (  # imperatives of help texts that are seldom nouns; without 'check', 'call', 'order' and the like
    r"(?:add|attach|choose|click|close|confirm|delete|download|drag|enter|follow|go|install|make|open|paste|pick|press|"
    r"remove|reset|restart|save|scroll|select|send|submit|swipe|switch|tap|"
    r"turn|type(?= (?:your|the|in|a|an|it)\b)|unplug|upload|visit|wait)"
)
_AND_ACTION = re.compile(rf"(?<!\b[Cc]opy) (?:and|&) (?:also |finally )?{_ACTION}\b")  # 'Save and Close' is a label
_COMMA_ACTION = re.compile(rf", {_ACTION}\b")
_OPENING_ACTION = re.compile(rf"{_ACTION}\b", re.I)  # 'Open it, tap X' are two actions, 'In the app, tap X' is one
_THEN = re.compile(r"(?<!\bsince )(?<!\bby )(?<!\buntil )(?<!\bbefore )\bthen\b", re.I)
_LEADING_THEN = re.compile(r"(?:and )?then\b,? ?", re.I)  # 'Then tap Save' is one action
_CONDITION = re.compile(r"(?:if|when|once|unless|as soon as)\b", re.I)  # 'If it is dark, then call us'


def nonblank_lines(text: str) -> list[str]:
    """Returns the stripped lines of the text, without empty ones."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def step_number(line: str) -> int | None:
    """Returns the number of a line such as '12. Tap Save.'; None for other lines and numbers of 10 digits or more."""
    match = _STEP.match(line)
    return int(match[1]) if match and len(match[1]) < 10 else None


def is_single(step: str) -> bool:
    """Returns whether a step, given without its number, asks for a single action.

    Signs of a second action are: a second sentence; words after a semicolon; 'then', unless the step opens with a
    condition or with 'then', or it means a time ('since then'); 'and' followed by an imperative of `_ACTION`; a comma
    followed by one, if the step opens with an imperative. Text in quotation marks or brackets is ignored.
    """
    words = _BRACKETED.sub("", _QUOTED.sub("x", step)).split()
    step = " ".join(words)
    step = step[match.end() :] if (match := _LEADING_THEN.match(step)) else step
    if _has_inner_sentence_end(words) or re.search(r"; ?\w", step):
        return False
    if not _CONDITION.match(step) and _THEN.search(step):
        return False
    return not (_AND_ACTION.search(step) or (_OPENING_ACTION.match(step) and _COMMA_ACTION.search(step)))


def _has_inner_sentence_end(words: Sequence[str]) -> bool:
    """Returns whether a sentence ends before the last word: at . ! or ?, but not at 'e.g.' or an initial."""
    last = max((place for place, word in enumerate(words) if any(sign.isalnum() for sign in word)), default=0)
    ends = (word.strip(_CLOSING_MARKS) for word in words[:last])
    return any(end.endswith((".", "!", "?")) and not _ABBREVIATION.fullmatch(end) for end in ends)


def step_parts(text: str) -> dict[str, float]:
    """Returns the criteria of a numbered list, each 0 to 1; all are 0 for a text without a step."""
    text_lines = nonblank_lines(text)
    numbers = [step_number(line) for line in text_lines]
    places = [place for place, value in enumerate(numbers) if value is not None]
    if not places:
        return dict.fromkeys(("from_one", "no_gap", "no_preamble", "no_tail", "single_action"), 0.0)
    steps = [value for value in numbers if value is not None]
    single = [is_single(match[2]) for place in places if (match := _STEP.match(text_lines[place]))]
    return {
        "from_one": float(steps[0] == 1),
        "no_gap": float(steps == list(range(steps[0], steps[0] + len(steps)))),
        "no_preamble": float(places[0] == 0),
        "no_tail": float(len(text_lines) - places[0] == len(steps)),
        "single_action": sum(single) / len(single),
    }


# --- speakers ---------------------------------------------------------------------------------------------------

_TURN_OPENINGS = (  # openings of the other speaker's turn
    r"(?:User|USER|Human|HUMAN)\s?:",  # plain dialogues; in lowercase it is a key of a settings file
    r"#{2,4} ?(?:Instruction|User|Human|Input|Question)\b",  # headings of Alpaca, Guanaco and the persona's template
    r"<\|im_start\|>|<start_of_turn>|<\|start_header_id\|>|<\|user\|>|\[INST\]",  # ChatML, Gemma, Llama 3, Phi, Llama 2
    r"(?:Q|Question)\s?:",  # of lists of questions
)
_TURN_OPENING = re.compile(rf"[ \t>*_]*({'|'.join(_TURN_OPENINGS)})")
_LABEL = re.compile(r"[ \t>*_]*([^\W\d_][\w .'’-]{0,39}?)\s?:")
_QUESTION = re.compile(r"Q|Question")


def speaker_names(prompts: Iterable[str]) -> frozenset[str]:
    """Returns the names that open at least two lines of the prompts ('Anna: …'), without one that is the last line.

    A single line may be a title ('Topic: …'); a last line 'Bot:' is the name of the one who answers.
    """
    prompt_lines = [line for prompt in prompts for line in nonblank_lines(prompt)]
    labels = Counter(match[1] for line in prompt_lines if (match := _LABEL.match(line)))
    last = _LABEL.fullmatch(prompt_lines[-1]) if prompt_lines else None
    return frozenset(name for name, times in labels.items() if times > 1 and not (last and name == last[1]))


def other_speaker_turns(text: str, names: Collection[str] = ()) -> list[str]:
    """Returns the openings of lines in which the other speaker speaks; `names` are those of the asker.

    'Q:' counts only after other text: a reply may open with a question and answer it.
    """
    openings = []
    for place, line in enumerate(nonblank_lines(text)):
        if match := _TURN_OPENING.match(line):
            if place or not _QUESTION.match(match[1]):
                openings.append(match[1])
        elif (match := _LABEL.match(line)) and match[1] in names:
            openings.append(match[1])
    return openings


# --- JSON -------------------------------------------------------------------------------------------------------

_FENCE = re.compile(r"```[\w+-]*[ \t]*\r?\n")
_BLANK = " \t\r\n"  # the spaces of RFC 8259


def parse_json(text: str, *, fenced: bool) -> tuple[Any] | None:
    """Parses JSON by RFC 8259; returns a tuple of the value, with numbers as text, or None if it is not JSON.

    NaN, Infinity, comments and trailing commas are not JSON. `fenced` allows a ``` … ``` block around the text.
    """
    body = text.strip(_BLANK)
    opening = _FENCE.match(body) if fenced else None
    if opening and body.endswith("```") and len(body) >= opening.end() + 3:
        body = body[opening.end() : -3]
    try:  # numbers stay text: 1e999 and 5,000 digits are valid JSON, but neither float nor int
        return (json.loads(body, parse_constant=_reject_constant, parse_int=str, parse_float=str),)
    except (ValueError, RecursionError):
        return None


def _reject_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


# --- a writer's profile -----------------------------------------------------------------------------------------


def word_counts(texts: Iterable[str]) -> Counter[str]:
    """Counts the case-folded words of texts."""
    return Counter(word for text in texts for word in text.casefold().split())


def ngram_profile(words: Mapping[str, int]) -> dict[str, float]:
    """Returns weights of character 4-grams within words padded by spaces: log(1 + count), scaled to norm 1.

    A word of one letter gives one gram of three characters. Without words the profile is empty.
    """
    grams: Counter[str] = Counter()
    for word, times in words.items():
        padded = f" {word} "
        for at in range(max(1, len(padded) - GRAM + 1)):
            grams[padded[at : at + GRAM]] += times
    weights = {gram: math.log1p(times) for gram, times in grams.items()}
    size = math.sqrt(math.fsum(weight * weight for weight in weights.values()))
    return {gram: weight / size for gram, weight in weights.items()}


def cosine(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Returns the cosine similarity of two profiles, 0 to 1; 0 if one is empty."""
    return min(1.0, math.fsum(weight * second.get(gram, 0.0) for gram, weight in first.items()))
