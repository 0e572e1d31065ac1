"""Which rows are kept away from training. The split depends on seed, group and content, not on the rows' order."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence

from tunesmith.data.conversation import Conversation
from tunesmith.errors import DataError

PARTS = ("train", "valid", "test", "unseen")


def split(
    rows: Sequence[Conversation], *, by: str, test: float, valid: float, unseen_groups: int, seed: int
) -> dict[str, str]:
    """Row id -> train, valid, test (rows unseen, groups seen) or unseen (whole groups held out).

    With by='group' each remaining group gives its own share, at least one row where the share is not zero, as long
    as one is left for training.
    Raises DataError when groups are missing or nothing is left to train on.
    """
    groups: dict[str, list[Conversation]] = defaultdict(list)
    for row in rows:
        groups[row.group if by == "group" else ""].append(row)
    if by == "group" and (not rows or any(not name for name in groups)):
        raise DataError("data.split.by is group, but rows have no group", next="Set group in data.format to a column")
    if unseen_groups >= len(groups) > 0 and unseen_groups:
        raise DataError(f"{unseen_groups} unseen groups of {len(groups)} leave none to train on", next="Hold out fewer")
    held = set(sorted(groups, key=lambda name: _key(seed, "group", name))[:unseen_groups])
    parts: dict[str, str] = {}
    for name, members in groups.items():
        if name in held:
            parts |= {row.id: "unseen" for row in members}
            continue
        ordered = sorted(members, key=lambda row: _key(seed, row.question, row.answer, row.id))
        tests = min(_share(test, len(ordered)), len(ordered) - 1)  # a group's last row is for training
        valids = min(_share(valid, len(ordered)), len(ordered) - 1 - tests)
        for index, row in enumerate(ordered):
            parts[row.id] = "test" if index < tests else "valid" if index < tests + valids else "train"
    if test > 0 and not {"test", "unseen"} & set(parts.values()):
        raise DataError("every group has one row, so none can be held out", next="Set data.split.by to rows")
    if not any(part == "train" for part in parts.values()):
        raise DataError("the split leaves no row to train on", next="Lower data.split.test and data.split.valid")
    return parts


def _share(share: float, count: int) -> int:
    return max(1, math.floor(share * count + 0.5)) if share > 0 else 0


def _key(seed: int, *texts: str) -> str:
    return hashlib.sha256("\x1f".join((str(seed), *texts)).encode()).hexdigest()
