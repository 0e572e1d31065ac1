"""Metrics. Each function takes a View and returns its scores; keyword-only parameters are its options."""

from __future__ import annotations

import functools
from typing import Any, Literal

from tunesmith.errors import RecipeError
from tunesmith.evaluation import text_measures
from tunesmith.evaluation.score import SHARE, Score, View

# --- against the row's own answer -------------------------------------------------------------------------------


def loss(view: View) -> list[Score]:
    """Mean negative log-likelihood of the row's own answer and stop token, in nats per token, at least 0."""
    return [] if view.loss is None else [Score("loss", view.loss, "lower")]


def perplexity(view: View) -> list[Score]:
    """The exponential of the rows' mean loss, at least 1: as uncertain as a choice among so many equally likely tokens.

    The value of a single row is its loss; several rows give the exponential of their mean (Jelinek et al. 1977).
    """
    return [] if view.loss is None else [Score("perplexity", view.loss, "lower", fold="exp")]


ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")  # names of the scores of `rouge`


def rouge(view: View, *, stemmer: bool = True) -> list[Score]:
    """ROUGE-1, -2, -L and -Lsum F-measures, 0 to 1, from the rouge-score library (Lin 2004), Lsum over lines.

    Rows without an answer of their own have no score.
    """
    if not view.row.answer:
        return []
    rouge_scores = _rouge_scorer(stemmer).score(view.row.answer, view.reply.text)
    return [Score(name, float(value.fmeasure), "higher", limits=SHARE) for name, value in rouge_scores.items()]


def exact_match(view: View, *, punctuation: bool = False) -> list[Score]:
    """1 if the reply equals the row's own answer, ignoring case, spaces and, unless `punctuation`, punctuation; else 0.

    Case is folded by Unicode; composed and decomposed letters are equal. Rows without an answer have no score.
    """
    if not view.row.answer.strip():
        return []
    reply_text, expected_text = (
        text_measures.normalize_text(text, punctuation=punctuation) for text in (view.reply.text, view.row.answer)
    )
    return [Score("exact_match", float(reply_text == expected_text), "higher", limits=SHARE)]


# --- numbered steps ---------------------------------------------------------------------------------------------


def numbered_steps(view: View, *, least: int = 2) -> list[Score]:
    """1 if the reply is only a numbered list: lines '1. …', '2. …' without a gap, at least `least` of them; else 0."""
    if view.row.fields.get("expect") == "no_steps":
        return []  # probes that should not be answered with a list are scored by `expected`
    return [Score("numbered_steps", float(_is_numbered_list(view.reply.text, least)), "higher", limits=SHARE)]


STEPS = ("steps_from_one", "steps_no_gap", "steps_no_preamble", "steps_no_tail", "steps_single_action")


def steps(view: View) -> list[Score]:
    """The criteria of `numbered_steps` one by one, each 0 or 1: the steps count from 1, have no gap, no line before the
    first and only steps after it; and the share of steps with a single action. A reply without a step has 0 in all.

    A step has several actions if it has a second sentence, a semicolon, 'then', or 'and' followed by an imperative such
    as 'tap'. Text in quotation marks and brackets is ignored.
    """
    if view.row.fields.get("expect") == "no_steps":
        return []
    parts = text_measures.step_parts(view.reply.text)
    return [Score(name, parts[name.removeprefix("steps_")], "higher", limits=SHARE) for name in STEPS]


def expected(view: View) -> list[Score]:
    """For rows with a field `expect` (steps or no_steps): 1 if the reply has numbered lines as expected, else 0."""
    form = view.row.fields.get("expect")
    if form == "steps":
        return [Score("expected", float(_is_numbered_list(view.reply.text, 2)), "higher", limits=SHARE)]
    if form == "no_steps":
        has_step = any(
            text_measures.step_number(line) is not None for line in text_measures.nonblank_lines(view.reply.text)
        )
        return [Score("expected", float(not has_step), "higher", limits=SHARE)]
    return []


# --- how a reply ends, and who speaks in it ---------------------------------------------------------------------


def stops(view: View) -> list[Score]:
    """1 if the reply ended with the stop token, 0 if it was cut."""
    return [Score("stops", float(view.reply.stopped), "higher", limits=SHARE)]


def run_on(view: View) -> list[Score]:
    """1 if the reply was cut at the length limit or continued after a stop string, else 0."""
    return [Score("run_on", float(not view.reply.stopped or bool(view.reply.cut.strip())), "lower", limits=SHARE)]


def self_dialogue(view: View) -> list[Score]:
    """1 if the reply continues as the other speaker, text that was cut after a stop string included; else 0.

    Signs are lines that open with 'User:', 'Human:', a heading such as '### Instruction', a marker of a chat template
    such as '<|im_start|>', 'Q:' after other text, or a name that opens at least two lines of the prompt ('Anna:').
    Signs that the row's own answer has too do not count: it may be a list of questions or a play.
    """
    names = text_measures.speaker_names(turn.text for turn in view.row.prompt if turn.role == "user")
    answer_turns = text_measures.other_speaker_turns(view.row.answer, names)
    reply_turns = text_measures.other_speaker_turns(f"{view.reply.text}\n{view.reply.cut}", names)
    return [Score("self_dialogue", float(any(sign not in answer_turns for sign in reply_turns)), "lower", limits=SHARE)]


# --- the reply's own words --------------------------------------------------------------------------------------


def length(view: View) -> list[Score]:
    """The reply's length in words (separated by spaces)."""
    return [Score("length", float(len(view.reply.text.split())), "neither")]


def repetition(view: View, *, n: Literal[1, 2, 3, 4, 5, 6, 8] = 4) -> list[Score]:
    """1 minus the share of distinct n-grams among the reply's n-grams of `n` words, 0 (none repeated) to below 1 (rep-n
    of Welleck et al. 2020, arXiv:1908.04319).

    Words are separated by spaces and case-folded. A reply of fewer than `n` words has 0.
    """
    share = text_measures.distinct_ngrams(view.reply.text.casefold().split(), n)
    return [Score("repetition", 0.0 if share is None else 1.0 - share, "lower", limits=SHARE)]


DISTINCT = ("distinct_1", "distinct_2")


def distinct(view: View) -> list[Score]:
    """The share of distinct words, and of distinct word pairs, in the reply, 0 to 1 (distinct-1 and -2 of Li et al.
    2016, arXiv:1510.03055). Longer replies have lower values.

    Words are separated by spaces and case-folded. A reply without a word, or without a pair, has no score.
    """
    words = view.reply.text.casefold().split()
    shares = ((name, text_measures.distinct_ngrams(words, n)) for n, name in enumerate(DISTINCT, start=1))
    return [Score(name, value, "neither", limits=SHARE) for name, value in shares if value is not None]


def valid_json(view: View, *, fenced: bool = True, keys: list | None = None) -> list[Score]:  # type: ignore[type-arg]
    """1 if the reply is only JSON (RFC 8259: no NaN, no comments) and, with `keys`, an object that has all of them;
    else 0. `fenced` allows a ``` … ``` block around it.
    """
    parsed = text_measures.parse_json(view.reply.text, fenced=fenced)
    valid = parsed is not None and (not keys or (isinstance(parsed[0], dict) and all(key in parsed[0] for key in keys)))
    return [Score("valid_json", float(valid), "higher", limits=SHARE)]


# --- against the row's fields -----------------------------------------------------------------------------------

GROUNDED = ("grounded", "coverage")


def grounded(view: View, *, fields: list | None = None) -> list[Score]:  # type: ignore[type-arg]
    """The share of the reply's claims that its row's fields support, and the share of the fields' key facts it states.

    A claim about the writer must be supported by the writer's fields. `fields` names the columns; without it, all but
    the answer's are used. A reply without claims has no `grounded` score; `coverage` shows that.
    """
    result = _claim_score(view, fields)
    values = (("grounded", result.precision), ("coverage", result.coverage)) if result else ()
    return [Score(name, value, "higher", limits=SHARE) for name, value in values if value is not None]


def contradicted(view: View, *, fields: list | None = None) -> list[Score]:  # type: ignore[type-arg]
    """The share of the reply's claims that its row's fields contradict, 0 to 1, such as another number, employer or
    degree. Claims that the fields do not mention are not contradicted; `grounded` counts them.

    `fields` names the columns; without it, all but the answer's are used. A reply without claims has no score.
    """
    result = _claim_score(view, fields)
    return (
        [Score("contradicted", result.contradictions / result.claims, "lower", limits=SHARE)]
        if result and result.claims
        else []
    )


# --- against what was trained on --------------------------------------------------------------------------------

MEMORIZED = ("memorized", "memorized_whole", "memorized_excess")


def memorized(view: View, *, run: int = 50) -> list[Score]:
    """The longest run of words that the reply copies verbatim from one training answer, as a share of the reply's
    words, 0 to 1; and 1 if that run has `run` words or more (50 as in Carlini et al. 2023, arXiv:2202.07646, who count
    tokens), else 0. Where the row has an answer of its own, also how much the share exceeds that answer's.

    Words are separated by spaces. Good answers on a narrow topic share phrases with the training answers too, and short
    ones share words by chance. So the share alone is neither good nor bad; its excess over the row's own answer is.
    Raises RecipeError unless `run` is at least 1.
    """
    if run < 1:
        raise RecipeError(
            f"'run' must be 1 or more, not {run}",
            where="evaluate.metrics.memorized",
            next="Change it, or leave it out for the default, 50",
        )
    if not view.training.answers:
        return []
    from tunesmith.evaluation.train_index import phrase_index

    index, words, answer = phrase_index(view.training), view.reply.text.split(), view.row.answer.split()
    longest = index.longest(words)
    share = longest / max(1, len(words))
    scores = [
        Score("memorized", share, "neither", limits=SHARE),
        Score("memorized_whole", float(longest >= run), "lower", limits=SHARE),
    ]
    if answer:
        excess = max(0.0, share - index.longest(answer) / len(answer))
        scores.append(Score("memorized_excess", excess, "lower", limits=SHARE))
    return scores


def likeness(view: View) -> list[Score]:
    """How similar the reply's style is to the training answers: the cosine similarity, 0 to 1, of character 4-grams
    within words, counts damped by log(1 + n) (author profiles: Stamatatos 2009, doi:10.1002/asi.21001).

    It also rises with the reply's length, so compare only replies of similar length.
    """
    if not any(answer.strip() for answer in view.training.answers):
        return []
    from tunesmith.evaluation.train_index import training_profile

    reply_profile = text_measures.ngram_profile(text_measures.word_counts([view.reply.text]))
    return [
        Score("likeness", text_measures.cosine(reply_profile, training_profile(view.training)), "higher", limits=SHARE)
    ]


def _is_numbered_list(text: str, least: int) -> bool:
    lines = text_measures.nonblank_lines(text)
    return len(lines) >= least and [text_measures.step_number(line) for line in lines] == list(range(1, len(lines) + 1))


def _claim_score(view: View, fields: list[str] | None) -> Any:
    """Returns the claims.score.Score of the reply's claims; None if the row has no fields."""
    from tunesmith.claims.match import check_claims, score_claims

    columns = view.row.own_fields(fields)
    return score_claims(view.reply.text, columns, check_claims(view.reply.text, columns)) if columns else None


@functools.cache
def _rouge_scorer(stemmer: bool) -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(list(ROUGE), use_stemmer=stemmer)
