"""Finds names that are wrong because the numbers stated of them belong to another subject."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tunesmith.claims.claim import CheckedClaim, Claim
from tunesmith.claims.subject import Mention, Subjects

MIN_GAIN = 2  # supported numbers that the other subject must be ahead of the named one
ALLOW_ONE_MISS_FROM = 4  # with this many numbers, the other subject may miss one

Judge = Callable[[Claim, str], CheckedClaim | None]


def reattribute(
    results: Sequence[CheckedClaim], text: str, subjects: Subjects, names: Sequence[str], judge: Judge
) -> list[CheckedClaim]:
    """Return the results, with each wrong name contradicted and its numbers checked against the right subject.

    A name is wrong if another subject's field supports at least MIN_GAIN more of the numbers stated of it, and all of
    them (all but one if there are ALLOW_ONE_MISS_FROM or more).
    """
    groups: dict[Mention, list[CheckedClaim]] = {}
    for result in results:
        anchor = subjects.anchor(text, result.claim.start)
        if anchor and result.claim.kind in {"number", "percentage"}:
            groups.setdefault(anchor, []).append(result)
    replacements: dict[Claim, CheckedClaim] = {}
    for anchor, group in groups.items():
        own_count = sum(result.verdict == "supported" for result in group)
        name_result = next(
            (result for result in results if result.claim.kind == "name" and _covers(result, anchor)), None
        )
        if name_result is None or len(group) - own_count < MIN_GAIN:
            continue
        best_name, verdicts = _best_subject(group, [name for name in names if name != anchor.name], judge)
        fit_count = sum(result.verdict == "supported" for result in verdicts)
        if fit_count - own_count >= MIN_GAIN and fit_count >= len(group) - (len(group) >= ALLOW_ONE_MISS_FROM):
            replacements.update({result.claim: result for result in verdicts})
            replacements[name_result.claim] = replace(
                name_result, verdict="contradicted", field=best_name, reason=f"{best_name} has these figures"
            )
    return [replacements.get(result.claim, result) for result in results]


def _best_subject(
    results: Sequence[CheckedClaim], names: Sequence[str], judge: Judge
) -> tuple[str, list[CheckedClaim]]:
    """Return the subject whose field supports most of the claims, and the results against it."""
    best: tuple[str, list[CheckedClaim]] = ("", [])
    best_count = 0
    for name in names:
        verdicts = [
            _from_own_field(judge(result.claim, name), name) or replace(result, verdict="unsupported")
            for result in results
        ]
        count = sum(result.verdict == "supported" for result in verdicts)
        if count > best_count:
            best, best_count = (name, verdicts), count
    return best


def _from_own_field(result: CheckedClaim | None, name: str) -> CheckedClaim | None:
    """Return the result, or None if it is supported by the field of another subject."""
    return result if result and (result.verdict != "supported" or result.field == name) else None


def _covers(result: CheckedClaim, mention: Mention) -> bool:
    return result.claim.start <= mention.start < result.claim.end
