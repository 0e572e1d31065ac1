"""One wrong name explains more than many wrong numbers: figures that are all another's are laid at the name's door."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tunesmith.claims.claim import Checked, Claim
from tunesmith.claims.subject import Mention, Subjects

GAIN = 2  # numbers that the other subject must bear out beyond those that the named one does
SPARE = 4  # of so many numbers one may be wrong of the other too

Judge = Callable[[Claim, str], Checked | None]


def reattributed(
    found: Sequence[Checked], text: str, subjects: Subjects, names: Sequence[str], judge: Judge
) -> list[Checked]:
    """The verdicts, the numbers of a wrongly named subject being judged as the right one's and its name contradicted.

    A name is wrong where another subject's field bears out at least GAIN more of the numbers said of it, and all of
    them (all but one of SPARE and more).
    """
    groups: dict[Mention, list[Checked]] = {}
    for each in found:
        anchor = subjects.anchor(text, each.claim.start)
        if anchor and each.claim.kind in {"number", "percentage"}:
            groups.setdefault(anchor, []).append(each)
    changed: dict[Claim, Checked] = {}
    for anchor, said in groups.items():
        own = sum(each.verdict == "supported" for each in said)
        named = next((each for each in found if each.claim.kind == "name" and _at(each, anchor)), None)
        if named is None or len(said) - own < GAIN:
            continue
        other, verdicts = _best(said, [name for name in names if name != anchor.name], judge)
        fit = sum(each.verdict == "supported" for each in verdicts)
        if fit - own >= GAIN and fit >= len(said) - (len(said) >= SPARE):
            changed.update({each.claim: each for each in verdicts})
            changed[named.claim] = replace(
                named, verdict="contradicted", field=other, reason=f"{other} has these figures"
            )
    return [changed.get(each.claim, each) for each in found]


def _best(said: Sequence[Checked], names: Sequence[str], judge: Judge) -> tuple[str, list[Checked]]:
    """The subject whose field bears out most of the claims, and its verdicts on them."""
    best: tuple[str, list[Checked]] = ("", [])
    most = 0
    for name in names:
        verdicts = [_own(judge(each.claim, name), name) or replace(each, verdict="unsupported") for each in said]
        fit = sum(each.verdict == "supported" for each in verdicts)
        if fit > most:
            best, most = (name, verdicts), fit
    return best


def _own(checked: Checked | None, name: str) -> Checked | None:
    """A verdict that rests on the subject's own field, no other's."""
    return checked if checked and (checked.verdict != "supported" or checked.field == name) else None


def _at(checked: Checked, mention: Mention) -> bool:
    return checked.claim.start <= mention.start < checked.claim.end
