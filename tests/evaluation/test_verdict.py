"""What a verdict says: every example of a verdict that was wrong, and the rules that it follows."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tunesmith.evaluation.power import cohens_d
from tunesmith.evaluation.score import Better
from tunesmith.evaluation.sentences import ONE_TRAINING, headline, signed
from tunesmith.evaluation.verdict import (
    MIN_GROUPS,
    Verdict,
    WorstCase,
    correct,
    decide,
    level_interval,
    shown_direction,
)

RNG = np.random.default_rng(8)


def judged(base: Sequence[float | None], tuned: Sequence[float | None], groups: int = 0, **options: Any) -> Verdict:
    """Decides with rows that are dealt to so many groups in turn; 0: each is its own."""
    names = [f"t{index % groups}" if groups else "" for index in range(len(base))]
    return decide(base, tuned, names, **{"better": "higher", "seed": 1, "power": False, **options})


def said(verdict: Verdict, metric: str = "numbered_steps") -> str:
    return headline(verdict.describe(), metric, "topic")


def made(p: float, low: float, high: float, better: Better = "higher", **fields: Any) -> Verdict:
    return Verdict(better, 0, 0, (low + high) / 2, low, high, 1, 1, 1, 30, 30, p=p, asked=30, **fields)


# --- the examples that were wrong -------------------------------------------------------------------------------


def test_two_rows_show_nothing() -> None:
    verdict = judged([0.0, 0.0], [1.0, 0.5])
    assert (verdict.p, verdict.outcome) == (0.5, "too few to tell")
    text = said(verdict)
    assert text.startswith("Too few rows to tell: numbered steps went from 0.00 to 0.75 (higher is better), measured")
    assert text.endswith("at least 6 rows are needed.") and "helped" not in text


@pytest.mark.parametrize("groups", [2, 3])
def test_two_or_three_groups_show_nothing_however_many_rows_are_better(groups: int) -> None:
    verdict = judged([0.0] * 48, (0.5 + 0.3 * np.random.default_rng(1).random(48)).tolist(), groups)
    assert (verdict.wins, verdict.outcome) == (48, "too few to tell")
    assert f"With {groups} topics nothing can be shown" in said(verdict)


@pytest.mark.parametrize("groups", [4, 5])
def test_48_of_48_rows_better_have_an_interval_that_says_so(groups: int) -> None:
    gain = 0.5 + 0.3 * np.random.default_rng(1).random(48)
    verdict = judged([0.0] * 48, gain.tolist(), groups)
    means = [gain[group::groups].mean() for group in range(groups)]
    expected = stats.ttest_1samp(means, 0).confidence_interval(0.95)  # the bootstrap-t gave -1.750 to +0.981
    assert (verdict.low, verdict.high) == pytest.approx(
        (expected.low, expected.high), abs=1e-3
    )  # 5 groups: 10 or 9 rows
    assert verdict.low > 0.5
    assert (verdict.p, verdict.outcome) == (2 / 2**groups, "too few to tell")


def test_noise_beside_zero_does_not_decide() -> None:
    # every row gains or loses the same, but for rounding; the interval's end was 2.8e-17
    noise = 0.1 + 0.2 - 0.3
    assert noise != 0
    lows = judged([0.3] * 12, [0.1 + 0.2] * 12)
    assert (lows.difference, lows.low, lows.high, lows.p) == (0.0, 0.0, 0.0, 1.0)
    assert (lows.wins, lows.ties, lows.losses, lows.outcome) == (0, 12, 0, "no change shown")
    assert said(lows, "loss").count("0.300") == 0


@pytest.mark.parametrize("sign", [1, -1])
def test_an_interval_that_ends_in_noise_ends_at_zero(monkeypatch: pytest.MonkeyPatch, sign: int) -> None:
    from tunesmith.evaluation import verdict as module

    ends = (2.8e-17, 0.35) if sign > 0 else (-0.35, -2.8e-17)
    monkeypatch.setattr(module, "_ends", lambda *arguments: ends)
    monkeypatch.setattr(module, "permutation_p_value", lambda *arguments, **options: 0.01)
    verdict = judged([0.2] * 9, (0.2 + sign * 0.1 * RNG.random(9)).tolist())
    assert 0.0 in (verdict.low, verdict.high)
    assert verdict.outcome == "no change shown"


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_unit_of_a_score_does_not_matter(scale: float) -> None:
    base, gain = RNG.normal(2, 0.5, 30), np.random.default_rng(5).normal(0.4, 0.5, 30)
    verdict = judged((scale * base).tolist(), (scale * (base + gain)).tolist())
    assert (verdict.outcome, verdict.wins) == ("better", int((gain > 0).sum()))


def test_an_interval_without_a_small_p_shows_nothing() -> None:
    assert made(0.06, 0.1, 0.3).outcome == "no change shown"
    assert made(0.05, 0.1, 0.3).outcome == "better"
    assert made(0.001, 0.0, 0.3).outcome == "no change shown"
    assert made(0.001, -0.3, -0.1).outcome == "worse"


def test_zero_stays_in_the_interval_if_p_says_so() -> None:
    verdict = judged([0.0] * 6, [1.0] * 5 + [0.0])  # five of six: the exact interval of the share alone is above zero
    assert (verdict.p, verdict.low, verdict.outcome) == (2 / 2**5, 0.0, "no change shown")
    assert judged([0.0] * 6, [1.0] * 6).low == pytest.approx(0.025 ** (1 / 6))


def test_eighty_of_eighty_is_not_certainty() -> None:
    exact = stats.binomtest(80, 80).proportion_ci(0.95, method="exact").low
    verdict = judged([0.0] * 80, [1.0] * 80)
    assert verdict.low == pytest.approx(exact) and verdict.high == 1.0
    assert "between +0.95 and +1.00" in said(verdict)  # exactly: 0.9549
    assert (verdict.effect, verdict.describe()["effect"]) == (None, None)  # it was 0.000
    assert judged([0.0] * 80, [1.0] * 80, 20).low == pytest.approx(exact)
    same = judged([1.0] * 80, [1.0] * 80, 20)
    assert same.low == pytest.approx(-same.high) and same.high == pytest.approx(1 - exact)


@pytest.mark.parametrize("groups", [0, 3, 5, 20])
def test_a_share_and_its_difference_stay_in_their_range(groups: int) -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        base, tuned = (rng.random(40) < 0.1) * 1.0, (rng.random(40) < 0.95) * 1.0
        verdict = judged(base.tolist(), tuned.tolist(), groups)
        assert -1 <= verdict.low <= verdict.high <= 1
        parts = rng.beta(0.2, 0.2, 40)  # shares of each reply
        assert -1 <= judged(base.tolist(), parts.tolist(), groups, limits=(0, 1)).low <= 1
        names = [f"t{index % groups}" if groups else "" for index in range(40)]
        for values in (tuned.tolist(), parts.tolist()):
            ends = level_interval(values, names, limits=(0, 1))
            assert ends is not None and 0 <= ends[0] <= np.mean(values) <= ends[1] <= 1


def test_six_of_forty_measured_rows_cannot_help() -> None:
    for base in (0.0, 1.0):
        silent: list[float | None] = [1.0] * 6 + [None] * 34
        verdict = judged([0.0] * 6 + [base] * 34, silent)
        assert (verdict.rows, verdict.missing, verdict.asked) == (6, 34, 40)
        assert verdict.outcome == "too many missing"
        text = said(verdict)
        assert "measured in 6 of 40 held-out rows" in text and "helped" not in text
        assert f"the difference would be {'+0.15' if base == 0 else '-0.70'}." in text


def test_a_few_missing_rows_count_against_the_result() -> None:
    base, tuned = [0.0] * 12 + [1.0] * 28, [1.0] * 8 + [0.0] * 4 + [1.0] * 28
    whole = judged(base, tuned)
    assert (whole.outcome, whole.worst) == ("better", None)
    silent = [None if index >= 34 else value for index, value in enumerate(tuned)]
    verdict = judged(base, silent)  # six right answers of the base have no counterpart
    assert verdict.worst is not None and verdict.missing == 6
    assert verdict.worst.difference == pytest.approx((8 - 6) / 40)
    assert shown_direction(verdict.low, verdict.high, verdict.p) == 1  # what the measured rows alone say
    assert verdict.outcome == "no change shown"
    missing = (
        "6 rows have a score for one of the models only; if all spoke against this, the difference would be +0.05."
    )
    assert missing in said(verdict)
    # the other way round, a missing base score is taken as right
    other, filled = judged([None, *[0.0] * 11], [1.0] * 12), judged([1.0, *[0.0] * 11], [1.0] * 12)
    assert other.worst == WorstCase(filled.difference, filled.low, filled.high, filled.p)
    assert (filled.difference, filled.p) == (11 / 12, 2 / 2**11)


@pytest.mark.parametrize(("missing", "outcome"), [(1, "better"), (2, "too many missing")])
def test_a_score_without_limits_may_miss_5_percent(missing: int, outcome: str) -> None:
    base = [2.0 + 0.01 * index for index in range(30)]
    tuned: list[float | None] = [value - 0.5 - 0.03 * (index % 3) for index, value in enumerate(base)]
    tuned[:missing] = [None] * missing
    verdict = judged(base, tuned, better="lower")
    assert (verdict.outcome, verdict.worst) == (outcome, None)


def test_a_loss_over_unseen_topics_alone_shows_nothing() -> None:
    base = RNG.normal(2, 0.1, 20)
    verdict = judged(base.tolist(), (base - 1).tolist(), 4, better="lower")
    assert verdict.wins == 20 and verdict.outcome == "too few to tell"
    assert "With 4 topics nothing can be shown" in said(verdict, "loss")


# --- the rules --------------------------------------------------------------------------------------------------


def test_six_groups_are_the_fewest_that_can_show_something() -> None:
    assert MIN_GROUPS == 6 == next(n for n in range(1, 20) if 2 / 2**n <= 0.05)
    assert judged([0.0] * 60, (1 + 0.1 * RNG.random(60)).tolist(), 6).outcome == "better"
    assert judged([0.0] * 60, (1 + 0.1 * RNG.random(60)).tolist(), 5).outcome == "too few to tell"


@pytest.mark.parametrize(
    ("better", "step", "outcome", "wins", "losses"),
    [
        ("higher", 1.0, "better", 12, 0),
        ("higher", -1.0, "worse", 0, 12),
        ("lower", 1.0, "worse", 0, 12),
        ("lower", -1.0, "better", 12, 0),
        ("neither", 1.0, "higher", 12, 0),
        ("neither", -1.0, "lower", 0, 12),
        ("higher", 0.0, "no change shown", 0, 0),
        ("neither", 0.0, "no change shown", 0, 0),
    ],
)
def test_the_sign_is_tuned_minus_base_and_the_outcome_knows_what_is_good(
    better: Better, step: float, outcome: str, wins: int, losses: int
) -> None:
    base = [2.0, 2.5, 1.0, 3.0, 2.0, 0.0] * 2
    verdict = judged(base, [value + step for value in base], 6, better=better)
    assert verdict.difference == pytest.approx(step) and verdict.outcome == outcome
    assert verdict.low <= step <= verdict.high and (verdict.low < step or step == 0)
    assert (verdict.wins, verdict.ties, verdict.losses) == (wins, 12 - wins - losses, losses)


@pytest.mark.parametrize(("better", "counts"), [("higher", (2, 3, 1)), ("lower", (1, 3, 2)), ("neither", (2, 3, 1))])
def test_wins_ties_and_losses(better: Better, counts: tuple[int, int, int]) -> None:
    verdict = judged([0, 0, 1, 1, 0.5, 0.3], [1, 0, 1, 0, 0.6, 0.1 + 0.2], better=better)
    assert (verdict.wins, verdict.ties, verdict.losses) == counts


def test_rows_of_one_topic_count_together() -> None:
    gain = np.repeat([1.0, 1.0, 1.0, 1.0, -0.5], 8)
    names = [f"t{index // 8}" for index in range(40)]
    grouped = decide([0.0] * 40, gain.tolist(), names, better="higher", seed=1, power=False)
    assert grouped.p == 4 / 2**5  # flipping all, none, or the small one
    assert judged([0.0] * 40, gain.tolist()).p < 0.001


def test_one_dominant_group_cannot_decide_alone() -> None:
    rng = np.random.default_rng(3)
    gain = np.concatenate([np.full(60, 1.0), rng.normal(0, 0.5, 27)])
    names = ["big"] * 60 + [f"t{index // 3}" for index in range(27)]
    verdict = decide([0.0] * 87, (gain + rng.normal(0, 0.05, 87)).tolist(), names, better="higher", seed=1, power=False)
    assert verdict.difference > 0.6 and verdict.outcome == "no change shown"


def test_the_seed_decides_the_flips_and_the_rows_order_nothing() -> None:
    base, tuned = RNG.normal(size=40).tolist(), RNG.normal(0.3, 1, 40).tolist()
    first = judged(base, tuned, seed=3)
    assert first == judged(base, tuned, seed=3)
    assert first.p != judged(base, tuned, seed=4).p
    turned = judged(base[::-1], tuned[::-1], seed=3)
    assert (turned.low, turned.high) == pytest.approx((first.low, first.high), abs=1e-12)


@pytest.mark.parametrize(
    ("base", "tuned", "groups"),
    [([], [], []), ([1.0], [1.0, 2.0], ["a"]), ([1.0], [1.0], ["a", "b"]), ([None], [1.0], ["a"])],
)
def test_lists_that_do_not_pair_are_refused(base: list[Any], tuned: list[Any], groups: list[str]) -> None:
    with pytest.raises(ValueError, match="a verdict needs"):
        decide(base, tuned, groups, better="higher", seed=1)


def test_a_described_verdict_is_json() -> None:
    for verdict in (judged([0.0], [1.0]), judged([0.0] * 9 + [1.0], [1.0] * 9 + [None]), judged([2.0] * 9, [1.5] * 9)):
        values = verdict.describe()
        assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert judged([0.0], [1.0]).describe()["low"] is None


# --- several scores ---------------------------------------------------------------------------------------------


def test_scores_of_one_section_are_corrected_for_one_another() -> None:
    verdicts = {
        "sure": made(0.001, 0.1, 0.3),
        "lower": made(0.002, -0.3, -0.1, "lower"),
        "lost in the number": made(0.03, 0.1, 0.3),
        "over zero": made(0.004, -0.1, 0.3),
        "length": made(0.0001, 3, 9, "neither"),
    }
    settled = correct(verdicts)
    assert [result.adjusted for result in settled.values()] == [0.004, 0.006, 0.03, 0.008, None]
    outcomes = ["better", "better", "better", "no change shown", "higher"]
    assert [result.outcome for result in settled.values()] == outcomes
    assert [result.narrow for result in settled.values()] == [False, False, True, False, False]
    more = correct({**verdicts, "another": made(0.2, -1, 1), "third": made(0.04, 0.1, 0.2)})
    assert (more["lost in the number"].adjusted, more["lost in the number"].outcome) == (0.09, "no change shown")


def test_the_score_named_before_the_run_is_decided_alone() -> None:
    verdicts = {"main": made(0.04, 0.1, 0.3), "other": made(0.04, 0.1, 0.3), "third": made(0.9, -1, 1)}
    settled = correct(verdicts, primary="main")
    assert [result.adjusted for result in settled.values()] == pytest.approx([0.12, 0.12, 0.9])
    outcomes = ["better", "no change shown", "no change shown"]
    assert [result.outcome for result in settled.values()] == outcomes
    for worse in (made(0.06, 0.1, 0.3), made(0.01, -0.1, 0.3)):
        assert correct({"main": worse}, primary="main")["main"].outcome == "no change shown"


def test_the_worst_case_is_corrected_too() -> None:
    unsure = made(0.001, 0.1, 0.3, missing=1, worst=WorstCase(0.1, 0.01, 0.2, 0.04))
    assert (unsure.tested_p, unsure.outcome) == (0.04, "better")
    assert correct({"a": unsure, "b": made(0.9, -1, 1)})["a"].outcome == "no change shown"
    over = made(0.001, 0.1, 0.3, missing=1, worst=WorstCase(0.1, -0.01, 0.2, 0.04))
    assert over.outcome == "no change shown"


# --- the effect -------------------------------------------------------------------------------------------------


def test_the_effect_by_hand() -> None:
    # mean 2.5, standard deviation sqrt(5/3), J = 1 - 3 / 11
    assert cohens_d(np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(2.5 / math.sqrt(5 / 3) * 8 / 11)
    assert cohens_d(-np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(-1.408358, abs=1e-6)


@pytest.mark.parametrize("gain", [[0.3] * 5, [0.1 + 0.2, 0.3, 0.3], [2.0], [0.0, 0.0], [1.0] * 80])
def test_no_spread_no_effect(gain: list[float]) -> None:
    assert cohens_d(np.array(gain)) is None


def test_the_effect_of_few_rows_is_not_biased() -> None:
    samples = np.random.default_rng(3).normal(0.5, 1, (20_000, 8))
    assert np.mean([cohens_d(gain) or 0.0 for gain in samples]) == pytest.approx(0.5, abs=0.012)  # without J: 0.56
    assert np.mean(samples.mean(1) / samples.std(1, ddof=1)) > 0.55


# --- exponentials of means, and levels --------------------------------------------------------------------------


def test_a_folded_score_is_compared_by_its_folded_figures() -> None:
    base = RNG.normal(2, 0.5, 60)
    tuned = base - 0.3 + RNG.normal(0, 0.2, 60)
    raw = judged(base.tolist(), tuned.tolist(), 20, better="lower")
    verdict = judged(base.tolist(), tuned.tolist(), 20, better="lower", fold="exp")
    assert (verdict.base, verdict.tuned) == pytest.approx((math.exp(base.mean()), math.exp(tuned.mean())))
    assert verdict.difference == pytest.approx(verdict.tuned - verdict.base)
    assert verdict.low < verdict.difference < verdict.high < 0
    assert (verdict.p, verdict.effect, verdict.wins) == (raw.p, raw.effect, raw.wins)
    # by the delta method the figure's standard error is that of exp(mean) d(mean)
    leaning = (math.exp(tuned.mean()) * tuned - math.exp(base.mean()) * base).reshape(3, 20).mean(0)
    half = stats.t(19).ppf(0.975) * leaning.std(ddof=1) / math.sqrt(20)
    assert verdict.low <= verdict.difference - half + 1e-9 and verdict.high >= verdict.difference + half - 1e-9
    assert verdict.high - verdict.low < 2.3 * half


def test_the_interval_of_one_models_score() -> None:
    count = level_interval([1.0] * 79 + [0.0], [""] * 80)
    exact = stats.binomtest(79, 80).proportion_ci(0.95, method="exact")
    assert count == pytest.approx((exact.low, exact.high))
    losses = RNG.normal(2, 0.3, 30)
    expected = stats.ttest_1samp(losses, 0).confidence_interval(0.95)
    low, high = level_interval(losses.tolist(), [""] * 30) or (0, 0)
    assert expected.low - 0.02 < low <= expected.low + 1e-9 and expected.high - 1e-9 <= high < expected.high + 0.02
    folded = level_interval(losses.tolist(), [""] * 30, fold="exp")
    assert folded == pytest.approx((math.exp(low), math.exp(high)))
    assert level_interval([0.1, 0.4], ["a", "a"]) is None


# --- sentences --------------------------------------------------------------------------------------------------


def test_the_headline_says_what_a_reader_needs() -> None:
    base = [2.0 + 0.1 * (index % 7) for index in range(40)]
    tuned = [value - 0.9 - 0.1 * (index % 5) for index, value in enumerate(base)]
    text = said(judged(base, tuned, 20, better="lower"), "loss")
    assert text.startswith(
        "Tuning helped: loss went from 2.29 to 1.19 (lower is better), measured in 40 of 40 held-out rows in 20 topics "
        "(p < 0.001). With other questions of this kind the difference would probably lie between -1."
    )
    assert "missed" not in text


def test_the_headline_says_what_would_be_missed() -> None:
    unsure = made(0.4, -0.05, 0.25, detectable=0.214)
    assert said(unsure).endswith(
        f"would probably lie between -0.05 and +0.25. Smaller changes than 0.21 would usually be missed. {ONE_TRAINING}"
    )
    assert "Smaller changes than 0.004 would" in said(made(0.4, -0.05, 0.25, detectable=0.0042))
    for verdict in (made(0.001, 0.01, 0.25, detectable=0.2), made(0.4, -0.05, 0.25)):
        assert said(verdict).endswith(f"+0.25. {ONE_TRAINING}")


@pytest.mark.parametrize(
    ("p", "low", "high", "better", "opening"),
    [
        (0.001, 0.05, 0.15, "higher", "gguf is better than adapter"),
        (0.001, -0.15, -0.05, "higher", "gguf is worse than adapter"),
        (0.03, 0.05, 0.15, "higher", "gguf is better than adapter"),
        (0.4, -0.15, 0.05, "higher", "No difference was shown between gguf and adapter"),
        (0.001, 0.05, 0.15, "neither", "gguf differs from adapter"),
    ],
)
def test_headlines_about_two_named_models(p: float, low: float, high: float, better: Better, opening: str) -> None:
    verdict = made(p, low, high, better)
    text = headline(verdict.describe(), "steps", "topic", name="gguf", against="adapter")
    assert text.startswith(f"{opening}: steps is 0.00 against 0.00")
    assert text.endswith("The result is narrow: a few other rows could have hidden it.") is (p == 0.03)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0.00"), (0.5, "+0.50"), (-1.02, "-1.02"), (0.0034, "+0.003"), (-2e-4, "-0.0002")]
)
def test_a_difference_that_is_not_zero_does_not_look_like_it(value: float, text: str) -> None:
    assert signed(value) == text
