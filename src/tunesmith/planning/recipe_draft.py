"""The drafted recipe as text: each chosen setting with its reason behind it."""

from __future__ import annotations

import contextlib
import math
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import yaml

from tunesmith.config.recipe import recipe_schema
from tunesmith.data.detect_format import REPEATS_ANSWER
from tunesmith.data.detect_row import DetectedFormat
from tunesmith.data.load import bad_answer_reason
from tunesmith.errors import RecipeError, ResourceError
from tunesmith.hardware import Machine
from tunesmith.planning.autograd import show_bytes
from tunesmith.planning.base_models import BASES, CARD, PACKAGED, RANK, Choice, choose, needs
from tunesmith.planning.survey import LOOKED_FOR, Drawn, Survey, percentile, survey, too_many

LINES = 50  # a recipe should be seen at a glance
LONGEST = 4096  # tokens: a row so long is a document; memory grows with it
SPEED = 300  # tokens a second that two processor cores train of the packaged model
SMALL = 150_000  # tokens: 8 minutes at that speed, which leaves 2 for the validations
LARGE = 50_000  # rows: of more, a sample teaches a manner as well
WIDTH = 118
COLUMN = 34  # where comments start
_NAMES = re.compile(r"(?i)^(?:name|surname|.*(?:full|first|last|given|applicant|candidate|customer|person)[ _]?name)$")


def draft(
    name: str,
    source: str,
    rows: Sequence[Drawn],
    machine: Machine,
    *,
    total: int | None = None,
    remark: Callable[[str], None] | None = None,
) -> str:
    """A recipe called `name` for the table at `source` (as a recipe writes it), of which `rows` were drawn.

    `total` is the number of rows in the whole table (none: `rows` are all). The text is YAML of at most 50 lines.
    `remark` is given each line on what the recipe does not use of the rows, or drops.
    Raises RecipeError for a name that no run's folder can have, DataError for rows that cannot be learnt.
    """
    pattern = recipe_schema()["properties"]["name"]["pattern"]
    if not re.search(pattern, name):
        advice = "Use small letters, digits, dots and hyphens, a letter or digit first"
        raise RecipeError(f"'{name}' is no name for a recipe", next=advice)
    facts = survey(rows, len(rows) if total is None else total)
    if remark:
        for line in facts.remarks():
            remark(line)
    shares = _Shares(facts)
    small_base = machine.device == "cpu"
    batch = 4 if shares.train < 400 else 8
    longest = _longest(facts, machine, batch)
    choice = choose(CARD if small_base else machine, longest=longest, rows=batch)
    looked = "all of them" if facts.looked == facts.total else f"{facts.looked} of them"
    lines = [
        f"# Drafted from a table of {facts.total:,} rows by looking at {looked}. Behind each choice stands its reason.",
        "# Lengths are estimates. Change what you know better; docs/recipe.md names every setting.",
        f"name: {_quoted(name)}",
        "seed: 7",
        *_base(choice, machine, longest, batch),
        *_data(source, facts, shares),
        _line(f"prompt: {{learn: answer, max_tokens: {longest}}}", _why_longest(facts, longest)),
        _line(f"adapter: {{rank: {RANK}, alpha: {RANK}, layers: all}}", "rank 16 on every linear layer, a usual start"),
        *_train(facts, shares, choice, small_base, batch, longest),
        *_evaluate(facts),
        *_small(facts, shares, longest, alike=small_base),
    ]
    while len(lines) > LINES and (spare := [n for n, line in enumerate(lines) if n and line.lstrip().startswith("#")]):
        del lines[spare[-1]]
    return "\n".join(lines) + "\n"


def written_source(source: str, folder: Path) -> str:
    """`source`, which is relative to where the command is given, as a recipe that lies in `folder` writes it."""
    if source.startswith("hub:"):
        return source
    path = Path(source).expanduser().absolute()
    try:
        written = Path(os.path.relpath(path, folder.absolute())).as_posix()
    except ValueError:  # another drive
        return path.as_posix()
    return f"./{written}" if written.startswith(("~", "hub:")) else written


# --- sections ------------------------------------------------------------------------------------------------


def _base(choice: Choice, machine: Machine, longest: int, batch: int) -> list[str]:
    base = choice.base
    about = f"{base.parameters / 1e9:.1f} billion parameters, {base.licence}"
    if machine.device == "cpu":
        why = f"no CUDA device here, so the smallest; a card with 24 GB would allow {base.model}"
        return ["base:", f"  # {why}", f"  model: {PACKAGED}"]
    room = f"of {show_bytes(machine.memory_free)} free on {machine.name}"
    if choice.plan is None:
        fit = f"the smallest, and it does not fit here: {choice.why_not}"
    else:
        again = ", activations recomputed" if choice.plan.recompute else ""
        fit = f"takes {show_bytes(choice.plan.peak)} {room} with {batch} rows of {longest} tokens a step{again}"
    lines = ["base:", _line(f"  model: {base.model}", about), f"  # {_comment(fit)}"]
    if choice.plan is not None and choice.above:
        lines.append(f"  # {_comment(f'not {choice.above}: {choice.why_not}')}")
    return [*lines, _line("  bits: 4", "NF4: a quarter of the memory of 16 bits")]


def _data(source: str, facts: Survey, shares: _Shares) -> list[str]:
    where = "a data set of the hub" if source.startswith("hub:") else "relative to this file"
    lines = ["data:", _line(f"  source: {_quoted(source)}", where)]
    lines += _format(facts.format)
    if facts.left_out:
        reason = _comment(bad_answer_reason(facts.label))
        lines.append(f"    # {facts.left_out} of {facts.looked} rows looked at are left out: {reason}")
    mended = max((each.mended for each in facts.found.values()), default=0)
    why = f"at least {mended} of {facts.checked} rows looked at hold damage that can be mended with certainty"
    lines.append(_line(f"  repair: {_yes(mended)}", why if mended else "nothing to mend in the rows looked at"))
    lines += ["  checks: [", *_checks(facts), "  ]"]
    if facts.shared_prompt:
        lines.append(
            _line("  allow_leaks: true", "many rows share one prompt, which so stands on both sides; answers do not")
        )
    return lines + shares.lines()


def _format(format: DetectedFormat) -> list[str]:
    lines = [_line("  format:", format.why.partition(";")[0])]
    lines.append(_line(f"    {format.name}:" + ("" if format.options else " {}"), format.reasons.get("fields", "")))
    for option, value in format.options.items():
        lines.append(
            _line(f"      {option}: {_quoted(value)}", format.reasons.get(option, "") if option != "fields" else "")
        )
    by_reason: dict[str, list[str]] = {}
    for column, reason in format.left.items():
        by_reason.setdefault(reason, []).append(column)
    if by_reason:
        told = "; ".join(f"{_some(columns)} ({reason})" for reason, columns in by_reason.items())
        wrapper = textwrap.TextWrapper(WIDTH, "    # not used: ", "    #   ", max_lines=2, placeholder=" …")
        lines += wrapper.wrap(_comment(told))
    return lines + [f"    # {_comment(near)}" for near in format.near[:1]]


def _checks(facts: Survey) -> list[str]:
    """The checks, those with one reason on one line."""
    of = f"of {facts.checked} rows looked at"
    lines = []
    if facts.unfit or facts.format.name in ("chat", "sharegpt"):
        why = f" ({next(iter(facts.refused))}{', …' * (len(facts.refused) > 1)})" if facts.refused else ""
        told = f"{facts.unfit} of {facts.looked} rows looked at do not fit the format{why}: dropped"
        lines.append(_line("    broken,", told))
    copies = facts.found["near_duplicate"]
    why = "an empty answer teaches silence, a copy counts twice"
    if too_many(copies, facts.checked):
        lines.append(_line("    empty, duplicate,", why))
        why = f"{copies.taken} {of} are nearly copies, as if written from one form; kept"
        lines.append(_line("    near_duplicate: {do: keep},", why))
    else:
        lines.append(_line("    empty, duplicate, near_duplicate,", why))
    if not facts.shared_prompt:
        lines.append(_line("    leak, near_leak,", "a test prompt in the training rows turns the score into memory"))
        if facts.prompts < 1:
            lines.append(_line("    contradiction,", f"{1 - facts.prompts:.1%} of the rows repeat a prompt"))
    if facts.own_answers < 0.9:
        lines.append(_line("    imbalance,", f"{1 - facts.own_answers:.0%} of the rows repeat an answer"))
    names = [column for column in facts.format.options.get("fields", ()) if _NAMES.search(column)]
    personal = f"personal: {{names: {_quoted(names)}}}" if names else "personal"
    lines.append(_line(f"    {personal},", f"{facts.personal} {of}; told and kept, or set data.pseudonyms"))
    lines.append(_line("    secrets, too_long,", "keys and passwords are dropped; so is what max_tokens would cut"))
    return lines + _found(facts, of)


def _found(facts: Survey, of: str) -> list[str]:
    """The checks that found something, or that this kind of data needs: the plain ones four to a line."""
    lines, kept, plain = [], [], []
    for name in (name for name in LOOKED_FOR if name in facts.found and _wants(name, facts)):
        count = facts.found[name].taken
        if too_many(facts.found[name], facts.checked):
            kept.append(name)
        elif name == "ungrounded":
            copies = any(reason == REPEATS_ANSWER for reason in facts.format.left.values())
            believed = f": {{fields: {_quoted(facts.format.options['fields'])}}}" if copies else ""
            lines.append(_line(f"    {name}{believed},", f"{count} {of} state what their fields do not: set aside"))
        elif name == "generic" and facts.format.name == "fields":
            lines.append(_line(f"    {name},", f"{count} {of} would fit any other row: set aside"))
        elif name == "generic":
            lines.append(_line(f"    {name}: {{do: keep}},", f"{count} {of} seem to fit any prompt; told and kept"))
        else:
            plain.append(name)
    for few in (kept[start : start + 2] for start in range(0, len(kept), 2)):
        counts = " and ".join(str(facts.found[name].taken) for name in few)
        options = ", ".join(f"{name}: {{do: keep}}" for name in few)
        lines.append(_line(f"    {options},", f"{counts} {of}: too many to set aside unread; kept"))
    for few in (plain[start : start + 4] for start in range(0, len(plain), 4)):
        counts = ", ".join(str(facts.found[name].taken + facts.found[name].mended) for name in few)
        lines.append(_line(f"    {', '.join(few)},", f"found in {counts} {of}"))
    return lines


def _wants(name: str, facts: Survey) -> bool:
    """Whether a check is worth its line: it found something, or it is what this kind of data most suffers from."""
    found = facts.found[name]
    fields = facts.format.name == "fields"
    if name == "generic" and (facts.shared_prompt or (facts.own_answers < 0.9 and not fields)):
        return False  # one canonical answer to many prompts is meant
    return bool(found.taken or found.mended) or (fields and name in ("ungrounded", "generic"))


class _Shares:
    """How the rows are divided: as shares, whole groups and drawn rows, with the numbers to be expected."""

    def __init__(self, facts: Survey) -> None:
        rows = facts.total * (1 - (facts.unfit + facts.left_out) / facts.looked) * facts.distinct * facts.sound
        self.total, self.groups, self.one_prompt = facts.total, facts.groups, facts.shared_prompt
        self.test = 0.2 if rows < 200 else 0.1 if rows < 2_000 else 0.05 if rows < 20_000 else 0.02
        self.valid = 0.1 if rows < 2_000 else 0.05 if rows < 20_000 else 0.01
        self.held = facts.groups // 8
        left = rows * (1 - self.held / facts.groups) if facts.groups else rows
        self.valid_rows = max(1, int(left * self.valid))
        self.train = max(1, int(left * (1 - self.test - self.valid)))
        self.sampled = self.train > LARGE
        if self.sampled:
            self.train = LARGE // 2

    def lines(self) -> list[str]:
        """The recipe's lines."""
        parts = [f"by: {'group' if self.groups else 'rows'}", f"test: {self.test}", f"valid: {self.valid}"]
        parts += [f"unseen_groups: {self.held}"] * bool(self.held) + ["together: null"] * self.one_prompt
        why = "few rows: a score needs a larger share" if self.test > 0.1 else "enough rows for a score"
        if self.groups:
            why = f"a share of each of {self.groups} groups"
            why += f", {self.held} whole ones for the test" if self.held else ""
        lines = [_line(f"  split: {{{', '.join(parts)}}}", why)]
        if self.sampled:
            why = "a manner is learnt from fewer rows; more cost time"
            lines.append(_line(f"  sample: {{train: {self.train}, valid: 200, test: 500}}", why))
        return lines


def _train(facts: Survey, shares: _Shares, choice: Choice, small_base: bool, batch: int, longest: int) -> list[str]:
    rows = shares.train
    epochs = _epochs(rows)
    steps = epochs * math.ceil(rows / batch)
    little = small_base or choice.base.parameters < 10**9
    minutes = epochs * rows * _mean(facts, longest) / SPEED / 60
    slow = f", {_about(minutes)} on two cores" if small_base else ""
    why = "usual for an adapter on a small model; halve it where the loss jumps" if little else "usual for an adapter"
    return [
        "train:",
        _line(f"  epochs: {epochs}", f"for some {rows:,} training rows{slow}; fewer rows need more"),
        _line(f"  batch: {batch} rows", f"a step; some {steps:,} steps in all"),
        _line(f"  learning_rate: {'5e-4' if little else '2e-4'}", why),
        _line(f"  evaluate_every: {max(5, steps // 8)}", "steps; some eight validations show where it stops learning"),
    ]


def _about(minutes: float) -> str:
    whole = max(1, round(minutes))
    return f"{whole} minute{'s' * (whole > 1)}"


def _epochs(rows: int) -> int:
    """Passes over the training rows: few rows need several."""
    return 5 if rows < 100 else 3 if rows < 1_000 else 2 if rows < 10_000 else 1


def _evaluate(facts: Survey) -> list[str]:
    metrics = ["loss", "rouge", "stops", "length", *["numbered_steps"] * (facts.listed >= 0.5)]
    steps = f"{facts.listed:.0%} of the answers are numbered lists" if facts.listed >= 0.5 else ""
    return [
        "evaluate:",
        _line(f"  metrics: [{', '.join(metrics)}]", steps),
        _line("  primary: loss", "of the held-out answers: needs no long test, and no wording has to match"),
        _line(f"  max_new_tokens: {_reply(facts)}", "a quarter more than the longest answers but 1 %"),
    ]


def _small(facts: Survey, shares: _Shares, longest: int, *, alike: bool) -> list[str]:
    """Settings under which the packaged model learns within ten minutes on two cores; `alike`: it is the base too."""
    mean = _mean(facts, longest)
    most = max(1, int(SMALL / mean))
    drawn = most < 0.6 * shares.train  # a number of rows must be there: checks and split may take more than expected
    rows = most if drawn else shares.train
    epochs = max(1, min(_epochs(shares.train), most // rows))
    if not drawn and most < rows:
        rows, drawn = max(1, int(0.6 * shares.train)), True
    steps = epochs * math.ceil(rows / 8)
    lines = [
        _line("small:", "--small: a model from a package, no account, under ten minutes on two cores"),
        *[f"  base.model: {PACKAGED}"] * (not alike),
    ]
    sample = [f"train: {rows}"] * drawn + ["valid: 16"] * (shares.valid_rows >= 40)
    if sample:
        lines.append(f"  data.sample: {{{', '.join(sample)}}}")
    minutes = epochs * rows * mean / SPEED / 60
    return [
        *lines,
        _line(
            f"  train.epochs: {epochs}",
            f"{rows} rows of {mean:.0f} tokens: {minutes:.1f} minutes at {SPEED} tokens a second",
        ),
        *["  train.batch: 8 rows"] * (shares.train < 400),
        *["  train.learning_rate: 5e-4"] * (not alike),
        f"  train.evaluate_every: {max(3, steps // 3)}",
        "  evaluate.rows: 16",
        *["  evaluate.max_new_tokens: 128"] * (_reply(facts) > 128),
    ]


# --- lengths and words ---------------------------------------------------------------------------------------


def _longest(facts: Survey, machine: Machine, batch: int) -> int:
    """The power of two that 99 % of the rows do not exceed, halved until the smallest base can learn such a row."""
    longest = min(LONGEST, max(128, 1 << math.ceil(math.log2(percentile(facts.lengths, 0.99)))))
    while longest > 128:
        with contextlib.suppress(ResourceError):
            needs(BASES[0], machine, longest=longest, rows=batch)
            break
        longest //= 2
    return longest


def _why_longest(facts: Survey, longest: int) -> str:
    if percentile(facts.lengths, 0.99) <= longest:
        cover = percentile(facts.lengths, 0.99)
        return f"99 % of the rows have some {cover} tokens or fewer; answers alone are learnt"
    longer = sum(length > longest for length in facts.lengths) / len(facts.lengths)
    return f"{longer:.0%} of the rows are longer and are dropped; answers alone are learnt"


def _reply(facts: Survey) -> int:
    """Room for replies: a quarter more tokens than all but the longest 1 % of the answers."""
    return min(1024, 32 * math.ceil(1.25 * percentile(facts.answers, 0.99) / 32))


def _mean(facts: Survey, longest: int) -> float:
    """Tokens of an average row that is not too long."""
    kept = [length for length in facts.lengths if length <= longest] or [longest]
    return sum(kept) / len(kept)


def _line(text: str, reason: str) -> str:
    """A line of YAML with a comment behind it."""
    return f"{text:<{COLUMN}}  # {_comment(reason)}" if reason else text


def _comment(text: str) -> str:
    """A text that may stand in a comment: one line of characters that YAML allows."""
    return "".join(mark if mark.isprintable() else "?" for mark in " ".join(text.split()))


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(name if len(name) <= 40 else f"{name[:37]}…" for name in names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown


def _quoted(value: str | Iterable[str]) -> str:
    """A value as YAML in one line; texts that could be read as something else stand in quotes."""
    if not isinstance(value, str):
        return f"[{', '.join(_quoted(each) for each in value)}]"
    plain = re.fullmatch(r"[A-Za-z][\w./ -]*", value, re.ASCII) and not value.endswith(" ")
    if plain and yaml.safe_load(value) == value:
        return value
    return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=1 << 20).rstrip("\n")


def _yes(value: object) -> str:
    return "true" if value else "false"
