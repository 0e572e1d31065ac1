"""Scores of a row. Each function takes a View and returns its scores; keyword-only parameters are its options."""

from __future__ import annotations

import functools
from typing import Any, Literal

from tunesmith.errors import RecipeError
from tunesmith.evaluation import text_measures
from tunesmith.evaluation.score import Score, View

# --- against the row's own answer -------------------------------------------------------------------------------


def loss(view: View) -> list[Score]:
    """Mean negative log-likelihood of the row's own answer and stop token, in nats a token, 0 and up."""
    return [] if view.loss is None else [Score("loss", view.loss, "lower")]


def perplexity(view: View) -> list[Score]:
    """The exponential of the rows' mean loss, 1 and up: among so many tokens of equal chance the model wavers.

    A row's own value is its loss; figures of several rows are exponentials of means (Jelinek et al. 1977).
    """
    return [] if view.loss is None else [Score("perplexity", view.loss, "lower", fold="exp")]


ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")  # the scores of `rouge`; others are called as their metric


def rouge(view: View, *, stemmer: bool = True) -> list[Score]:
    """ROUGE-1, -2, -L and -Lsum F-measures, 0 to 1, by the rouge-score library (Lin 2004), Lsum over lines.

    A row without an answer of its own has none.
    """
    if not view.row.answer:
        return []
    found = _scorer(stemmer).score(view.row.answer, view.reply.text)
    return [Score(name, float(value.fmeasure), "higher") for name, value in found.items()]


def exact_match(view: View, *, punctuation: bool = False) -> list[Score]:
    """1 when the reply is the row's own answer but for case, spaces and, unless `punctuation`, punctuation; else 0.

    Case is folded by Unicode, composed and decomposed letters are the same. A row without an answer has none.
    """
    if not view.row.answer.strip():
        return []
    said, own = (text_measures.plain(text, punctuation=punctuation) for text in (view.reply.text, view.row.answer))
    return [Score("exact_match", float(said == own), "higher")]


# --- numbered steps ---------------------------------------------------------------------------------------------


def numbered_steps(view: View, *, least: int = 2) -> list[Score]:
    """1 when the reply is a numbered list and nothing else: lines '1. …', '2. …' without a gap, at least `least`."""
    if view.row.fields.get("expect") == "no_steps":
        return []  # a probe that asks for no list is scored by `expected`
    return [Score("numbered_steps", float(_is_numbered(view.reply.text, least)), "higher")]


STEPS = ("steps_from_one", "steps_no_gap", "steps_no_preamble", "steps_no_tail", "steps_single_action")


def steps(view: View) -> list[Score]:
    """The parts of `numbered_steps`: 1 when the steps count from 1, without a gap, with no line before the first one
    and none but steps after it; and the share of steps that ask for one action. A reply without a step has 0 in all.

    A step asks for several actions by these signs: a second sentence, a semicolon, 'then', 'and' with an order such as
    'tap' behind it. Words in quotation marks and brackets are not read.
    """
    if view.row.fields.get("expect") == "no_steps":
        return []
    found = text_measures.step_parts(view.reply.text)
    return [Score(name, found[name.removeprefix("steps_")], "higher") for name in STEPS]


def expected(view: View) -> list[Score]:
    """For rows with a field `expect` (steps or no_steps): 1 when the reply has, or has not, numbered lines."""
    wanted = view.row.fields.get("expect")
    if wanted == "steps":
        return [Score("expected", float(_is_numbered(view.reply.text, 2)), "higher")]
    if wanted == "no_steps":
        has_step = any(text_measures.number(line) is not None for line in text_measures.lines(view.reply.text))
        return [Score("expected", float(not has_step), "higher")]
    return []


# --- how a reply ends, and whose words it holds -----------------------------------------------------------------


def stops(view: View) -> list[Score]:
    """1 when the reply ended with the stop token, 0 when it had to be cut."""
    return [Score("stops", float(view.reply.stopped), "higher")]


def run_on(view: View) -> list[Score]:
    """1 when the reply was cut at the length limit or went on behind a stop string, else 0."""
    return [Score("run_on", float(not view.reply.stopped or bool(view.reply.cut.strip())), "lower")]


def self_dialogue(view: View) -> list[Score]:
    """1 when the reply goes on as the other speaker, what was cut behind a stop string included, else 0.

    Signs are lines that open with 'User:', 'Human:', a heading such as '### Instruction', a mark of a chat template
    such as '<|im_start|>', 'Q:' behind other words, or a name with which two lines of the asker open ('Anna:'). A sign
    that the row's own answer has is none: a list of questions, a play.
    """
    names = text_measures.askers(turn.text for turn in view.row.prompt if turn.role == "user")
    own = text_measures.turns_of_other(view.row.answer, names)
    said = text_measures.turns_of_other(f"{view.reply.text}\n{view.reply.cut}", names)
    return [Score("self_dialogue", float(any(sign not in own for sign in said)), "lower")]


# --- the reply's own words --------------------------------------------------------------------------------------


def length(view: View) -> list[Score]:
    """The reply's length in words, which are what spaces separate."""
    return [Score("length", float(len(view.reply.text.split())), "neither")]


def repetition(view: View, *, n: Literal[1, 2, 3, 4, 5, 6, 8] = 4) -> list[Score]:
    """1 less the share of different runs among the reply's runs of `n` words, 0 (none twice) to below 1 (rep-n of
    Welleck et al. 2020, arXiv:1908.04319).

    Words are what spaces separate, their case folded. A reply of fewer words repeats nothing.
    """
    found = text_measures.distinct(view.reply.text.casefold().split(), n)
    return [Score("repetition", 0.0 if found is None else 1.0 - found, "lower")]


DISTINCT = ("distinct_1", "distinct_2")


def distinct(view: View) -> list[Score]:
    """Different words, and different pairs of neighbouring words, over all of them in the reply, 0 to 1 (distinct-1 and
    -2 of Li et al. 2016, arXiv:1510.03055). Long replies have less.

    Words are what spaces separate, their case folded. A reply without a word, or a pair, has none.
    """
    words = view.reply.text.casefold().split()
    found = ((name, text_measures.distinct(words, n)) for n, name in enumerate(DISTINCT, start=1))
    return [Score(name, value, "neither") for name, value in found if value is not None]


def valid_json(view: View, *, fenced: bool = True, keys: list | None = None) -> list[Score]:  # type: ignore[type-arg]
    """1 when the reply is JSON (RFC 8259: no NaN, no comment) and nothing else, with `keys` an object that has them
    all; else 0. `fenced` allows a block of ``` … ``` around it.
    """
    found = text_measures.parse(view.reply.text, fenced=fenced)
    has = found is not None and (not keys or (isinstance(found[0], dict) and all(key in found[0] for key in keys)))
    return [Score("valid_json", float(has), "higher")]


# --- against the row's fields -----------------------------------------------------------------------------------

GROUNDED = ("grounded", "coverage")


def grounded(view: View, *, fields: list | None = None) -> list[Score]:  # type: ignore[type-arg]
    """How much of what the reply states its fields support (of 1), and how many of the fields' key facts it names.

    A statement about the writer must come from the writer's fields. `fields` names the columns; none takes all but the
    answer's. A reply that states nothing has no `grounded`; `coverage` is there to show it.
    """
    found = _claims(view, fields)
    told = (("grounded", found.precision), ("coverage", found.coverage)) if found else ()
    return [Score(name, value, "higher") for name, value in told if value is not None]


def contradicted(view: View, *, fields: list | None = None) -> list[Score]:  # type: ignore[type-arg]
    """The share of the reply's statements that its fields contradict, 0 to 1: another number, employer or degree than
    theirs. What the fields do not speak of is not contradicted; `grounded` counts it.

    `fields` names the columns; none takes all but the answer's. A reply that states nothing has none.
    """
    found = _claims(view, fields)
    return [Score("contradicted", found.contradictions / found.claims, "lower")] if found and found.claims else []


# --- against what was trained on --------------------------------------------------------------------------------

MEMORISED = ("memorised", "memorised_whole")


def memorised(view: View, *, run: int = 50) -> list[Score]:
    """The longest run of words that the reply has from one training answer letter by letter, as a share of the reply's
    words, 0 to 1; and 1 when that run has `run` words or more (50 as in Carlini et al. 2023, arXiv:2202.07646, who
    count tokens), else 0.

    Words are what spaces separate. Short replies share much by chance: what they would have shared untrained is the
    base model's figure. Raises RecipeError unless `run` is at least 1.
    """
    if run < 1:
        raise RecipeError(
            f"'run' must be 1 or more, not {run}", where="evaluate.metrics.memorised", next="Or leave it out"
        )
    if not view.known.answers:
        return []
    from tunesmith.evaluation.train_index import runs

    words = view.reply.text.split()
    longest = runs(view.known).longest(words)
    values = (longest / max(1, len(words)), float(longest >= run))
    return [Score(name, value, "lower") for name, value in zip(MEMORISED, values, strict=True)]


def likeness(view: View) -> list[Score]:
    """How much the reply reads like the training answers: the cosine, 0 to 1, of its and of their character 4-grams
    within words, counts damped by log(1 + n) (profiles of a writer: Stamatatos 2009, doi:10.1002/asi.21001).

    It rises with the reply's length too, so it tells apart replies of like length.
    """
    if not any(answer.strip() for answer in view.known.answers):
        return []
    from tunesmith.evaluation.train_index import writer

    own = text_measures.profile(text_measures.counted([view.reply.text]))
    return [Score("likeness", text_measures.cosine(own, writer(view.known)), "higher")]


def _is_numbered(text: str, least: int) -> bool:
    lines = text_measures.lines(text)
    return len(lines) >= least and [text_measures.number(line) for line in lines] == list(range(1, len(lines) + 1))


def _claims(view: View, fields: list[str] | None) -> Any:
    """The reply's statements in figures (a claims.score.Score); None where the row has no fields."""
    from tunesmith.claims.match import check
    from tunesmith.claims.score import score

    own = view.row.own_fields(fields)
    return score(view.reply.text, own, check(view.reply.text, own)) if own else None


@functools.cache
def _scorer(stemmer: bool) -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(list(ROUGE), use_stemmer=stemmer)
