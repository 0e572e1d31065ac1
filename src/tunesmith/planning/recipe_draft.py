"""Drafts a recipe as YAML in which a comment gives the reason for each setting."""

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
from tunesmith.data.formats import DetectedFormat
from tunesmith.data.load import bad_answer_reason
from tunesmith.errors import RecipeError, ResourceError
from tunesmith.hardware import Machine
from tunesmith.planning.base_models import BASES, DRAFT_RANK, EXAMPLE_GPU, PACKAGED, Choice, choose, needs
from tunesmith.planning.survey import DEFECT_CHECKS, SampledRow, Survey, is_too_common, percentile, survey
from tunesmith.wording import show_bytes

MAX_LINES = 50  # a recipe should fit on a screen
MAX_TOKENS = 4096  # longer rows are documents, and memory grows with them
CPU_TOKENS_PER_SECOND = 300  # training the packaged model on two cores
SMALL_TOKEN_BUDGET = 150_000  # 8 minutes at that speed, which leaves 2 for validations
MAX_TRAIN_ROWS = 50_000  # a style is learned as well from a sample
LINE_WIDTH = 118
COMMENT_COLUMN = 34  # where comments start
_NAME_COLUMN = re.compile(
    r"(?i)^(?:name|surname|.*(?:full|first|last|given|applicant|candidate|customer|person)[ _]?name)$"
)


def draft(
    name: str,
    source: str,
    rows: Sequence[SampledRow],
    machine: Machine,
    *,
    total: int | None = None,
    remark: Callable[[str], None] | None = None,
) -> str:
    """Returns a recipe called `name` for the table at `source`, drafted from the sample `rows`, as YAML.

    `total` is the number of rows in the whole table (None: `rows` are all). `remark` is called with each line on rows
    or columns that the recipe does not use. Raises RecipeError for a name that a run's folder cannot have, DataError
    for rows that cannot be trained on.
    """
    pattern = recipe_schema()["properties"]["name"]["pattern"]
    if not re.search(pattern, name):
        advice = "Use lowercase letters, digits, dots and hyphens, and start with a letter or digit"
        raise RecipeError(f"'{name}' is not a valid name for a recipe", next=advice)
    facts = survey(rows, len(rows) if total is None else total)
    if remark:
        for line in facts.remarks():
            remark(line)
    shares = _SplitShares(facts)
    small_base = machine.device == "cpu"
    batch = 4 if shares.train < 400 else 8
    longest = _max_tokens(facts, machine, batch)
    choice = choose(EXAMPLE_GPU if small_base else machine, longest=longest, rows=batch)
    sampled = (
        f"all {facts.total:,} rows" if facts.sampled == facts.total else f"{facts.sampled} of {facts.total:,} rows"
    )
    lines = [
        f"# Drafted from {sampled} of a table. Comments give the reason for each choice; lengths are estimates.",
        "# Change what you know better. docs/recipe.md describes every setting.",
        f"name: {_yaml_inline(name)}",
        "seed: 7",
        *_base_section(choice, machine, longest, batch),
        *_data_section(source, facts, shares),
        _line(f"prompt: {{learn: answer, max_tokens: {longest}}}", _max_tokens_reason(facts, longest)),
        _line(
            f"adapter: {{rank: {DRAFT_RANK}, alpha: {DRAFT_RANK}, layers: all}}",
            "rank 16 on every linear layer, a common default",
        ),
        *_train_section(facts, shares, choice, small_base, batch, longest),
        *_evaluate_section(facts),
        *_small_section(facts, shares, longest, same_base=small_base),
    ]
    while len(lines) > MAX_LINES and (
        spare := [n for n, line in enumerate(lines) if n and line.lstrip().startswith("#")]
    ):
        del lines[spare[-1]]
    return "\n".join(lines) + "\n"


def written_source(source: str, folder: Path) -> str:
    """Returns `source`, relative to the current folder, as a path relative to a recipe in `folder`."""
    if source.startswith("hub:"):
        return source
    path = Path(source).expanduser().absolute()
    try:
        relative = Path(os.path.relpath(path, folder.absolute())).as_posix()
    except ValueError:  # another drive
        return path.as_posix()
    return f"./{relative}" if relative.startswith(("~", "hub:")) else relative


# --- sections ------------------------------------------------------------------------------------------------


def _base_section(choice: Choice, machine: Machine, longest: int, batch: int) -> list[str]:
    base = choice.base
    description = f"{base.parameters / 1e9:.1f} billion parameters, {base.license}"
    if machine.device == "cpu":
        why = f"no CUDA device here, so the smallest model; a GPU with 24 GB would allow {base.model}"
        return ["base:", f"  # {why}", f"  model: {PACKAGED}"]
    room = f"of {show_bytes(machine.memory_free)} free on {machine.name}"
    if choice.plan is None:
        fit = f"the smallest model, but it does not fit here: {choice.why_not}"
    else:
        recompute_note = ", activations recomputed" if choice.plan.recompute else ""
        fit = (
            f"takes {show_bytes(choice.plan.peak)} {room} with {batch} rows of {longest} tokens a step{recompute_note}"
        )
    lines = ["base:", _line(f"  model: {base.model}", description), f"  # {_comment(fit)}"]
    if choice.plan is not None and choice.next_larger:
        lines.append(f"  # {_comment(f'not {choice.next_larger}: {choice.why_not}')}")
    return [*lines, _line("  bits: 4", "NF4: a quarter of the memory of 16 bits")]


def _data_section(source: str, facts: Survey, shares: _SplitShares) -> list[str]:
    comment = "a dataset of the Hugging Face hub" if source.startswith("hub:") else "relative to this file"
    lines = ["data:", _line(f"  source: {_yaml_inline(source)}", comment)]
    lines += _format_lines(facts.format)
    if facts.left_out:
        reason = _comment(bad_answer_reason(facts.label))
        lines.append(f"    # {facts.left_out} of {facts.sampled} sampled rows are left out: {reason}")
    repaired = max((findings.repaired for findings in facts.check_counts.values()), default=0)
    why = f"at least {repaired} of {facts.checked} sampled rows have defects that can be repaired reliably"
    lines.append(
        _line(f"  repair: {_yaml_bool(repaired)}", why if repaired else "nothing to repair in the sampled rows")
    )
    lines += ["  checks: [", *_check_lines(facts), "  ]"]
    if facts.shared_prompt:
        lines.append(
            _line(
                "  allow_leaks: true",
                "many rows share one prompt, so it is on both sides of the split; answers are not",
            )
        )
    return lines + shares.lines()


def _format_lines(format: DetectedFormat) -> list[str]:
    lines = [_line("  format:", format.why.partition(";")[0])]
    lines.append(_line(f"    {format.name}:" + ("" if format.options else " {}"), format.reasons.get("fields", "")))
    for option, value in format.options.items():
        lines.append(
            _line(
                f"      {option}: {_yaml_inline(value)}", format.reasons.get(option, "") if option != "fields" else ""
            )
        )
    by_reason: dict[str, list[str]] = {}
    for column, reason in format.left.items():
        by_reason.setdefault(reason, []).append(column)
    if by_reason:
        unused = "; ".join(f"{_list_some(columns)} ({reason})" for reason, columns in by_reason.items())
        wrapper = textwrap.TextWrapper(LINE_WIDTH, "    # not used: ", "    #   ", max_lines=2, placeholder=" …")
        lines += wrapper.wrap(_comment(unused))
    return lines + [f"    # {_comment(alternative)}" for alternative in format.near[:1]]


def _check_lines(facts: Survey) -> list[str]:
    """Returns the lines of the checks; checks with the same reason share a line."""
    of_rows = f"of {facts.checked} sampled rows"
    lines = []
    if facts.unfit or facts.format.name in ("chat", "sharegpt"):
        why = f" ({next(iter(facts.refused))}{', …' * (len(facts.refused) > 1)})" if facts.refused else ""
        unfit_comment = f"{facts.unfit} of {facts.sampled} sampled rows do not fit the format{why}: dropped"
        lines.append(_line("    broken,", unfit_comment))
    copies = facts.check_counts["near_duplicate"]
    why = "empty answers train silence, copies count twice"
    if is_too_common(copies, facts.checked):
        lines.append(_line("    empty, duplicate,", why))
        why = f"{copies.removed} {of_rows} are near-duplicates, as if from one template; kept"
        lines.append(_line("    near_duplicate: {do: keep},", why))
    else:
        lines.append(_line("    empty, duplicate, near_duplicate,", why))
    if not facts.shared_prompt:
        lines.append(_line("    leak, near_leak,", "with test prompts in the training rows the score measures memory"))
        if facts.distinct_prompts < 1:
            lines.append(_line("    contradiction,", f"{1 - facts.distinct_prompts:.1%} of the rows repeat a prompt"))
    if facts.distinct_answers < 0.9:
        lines.append(_line("    imbalance,", f"{1 - facts.distinct_answers:.0%} of the rows repeat an answer"))
    names = [column for column in facts.format.options.get("fields", ()) if _NAME_COLUMN.search(column)]
    personal = f"personal: {{names: {_yaml_inline(names)}}}" if names else "personal"
    lines.append(_line(f"    {personal},", f"{facts.personal} {of_rows}; reported and kept, or set data.pseudonyms"))
    lines.append(_line("    secrets, too_long,", "drops keys, passwords and rows longer than max_tokens"))
    return lines + _defect_checks(facts, of_rows)


def _defect_checks(facts: Survey, of_rows: str) -> list[str]:
    """Returns the lines of checks with findings, or that this kind of data needs."""
    lines, too_common, plain = [], [], []
    for name in (name for name in DEFECT_CHECKS if name in facts.check_counts and _is_useful(name, facts)):
        count = facts.check_counts[name].removed
        if is_too_common(facts.check_counts[name], facts.checked):
            too_common.append(name)
        elif name == "ungrounded":
            copies = any(reason == REPEATS_ANSWER for reason in facts.format.left.values())
            options_text = f": {{fields: {_yaml_inline(facts.format.options['fields'])}}}" if copies else ""
            lines.append(
                _line(f"    {name}{options_text},", f"{count} {of_rows} state what their fields do not say: set aside")
            )
        elif name == "generic" and facts.format.name == "fields":
            lines.append(_line(f"    {name},", f"{count} {of_rows} would fit any other row: set aside"))
        elif name == "generic":
            lines.append(
                _line(f"    {name}: {{do: keep}},", f"{count} {of_rows} seem to fit any prompt; reported and kept")
            )
        else:
            plain.append(name)
    for names in (too_common[start : start + 2] for start in range(0, len(too_common), 2)):
        counts = " and ".join(str(facts.check_counts[name].removed) for name in names)
        options = ", ".join(f"{name}: {{do: keep}}" for name in names)
        lines.append(_line(f"    {options},", f"{counts} {of_rows}: too many to set aside unread; kept"))
    for names in (plain[start : start + 4] for start in range(0, len(plain), 4)):
        counts = ", ".join(str(facts.check_counts[name].removed + facts.check_counts[name].repaired) for name in names)
        lines.append(_line(f"    {', '.join(names)},", f"found in {counts} {of_rows}"))
    return lines


def _is_useful(name: str, facts: Survey) -> bool:
    """Returns whether to list a check: it has findings, or its defect is common in this kind of data."""
    findings = facts.check_counts[name]
    fields = facts.format.name == "fields"
    if name == "generic" and (facts.shared_prompt or (facts.distinct_answers < 0.9 and not fields)):
        return False  # one standard answer to many prompts is intended
    return bool(findings.removed or findings.repaired) or (fields and name in ("ungrounded", "generic"))


class _SplitShares:
    """Shares, whole groups and samples of the split, with the expected numbers of rows."""

    def __init__(self, facts: Survey) -> None:
        rows = (
            facts.total * (1 - (facts.unfit + facts.left_out) / facts.sampled) * facts.distinct_rows * facts.kept_share
        )
        self.total, self.groups, self.one_prompt = facts.total, facts.groups, facts.shared_prompt
        self.test = 0.2 if rows < 200 else 0.1 if rows < 2_000 else 0.05 if rows < 20_000 else 0.02
        self.valid = 0.1 if rows < 2_000 else 0.05 if rows < 20_000 else 0.01
        self.held = facts.groups // 8
        divided_rows = rows * (1 - self.held / facts.groups) if facts.groups else rows
        self.valid_rows = max(1, int(divided_rows * self.valid))
        self.train = max(1, int(divided_rows * (1 - self.test - self.valid)))
        self.sampled = self.train > MAX_TRAIN_ROWS
        if self.sampled:
            self.train = MAX_TRAIN_ROWS // 2

    def lines(self) -> list[str]:
        """Returns the recipe's lines."""
        parts = [f"by: {'group' if self.groups else 'rows'}", f"test: {self.test}", f"valid: {self.valid}"]
        parts += [f"unseen_groups: {self.held}"] * bool(self.held) + ["together: null"] * self.one_prompt
        why = "few rows, so the test needs a larger share" if self.test > 0.1 else "enough rows for the test"
        if self.groups:
            why = f"a share of each of {self.groups} groups"
            why += f", {self.held} whole ones for the test" if self.held else ""
        lines = [_line(f"  split: {{{', '.join(parts)}}}", why)]
        if self.sampled:
            why = "fewer rows are enough to learn a style; more cost time"
            lines.append(_line(f"  sample: {{train: {self.train}, valid: 200, test: 500}}", why))
        return lines


def _train_section(
    facts: Survey, shares: _SplitShares, choice: Choice, small_base: bool, batch: int, longest: int
) -> list[str]:
    rows = shares.train
    epochs = _epochs(rows)
    steps = epochs * math.ceil(rows / batch)
    small_model = small_base or choice.base.parameters < 10**9
    minutes = epochs * rows * _mean_tokens(facts, longest) / CPU_TOKENS_PER_SECOND / 60
    duration = f", {_minutes_text(minutes)} on two cores" if small_base else ""
    why = (
        "common for an adapter on a small model; halve it if the loss jumps" if small_model else "common for an adapter"
    )
    return [
        "train:",
        _line(f"  epochs: {epochs}", f"for about {rows:,} training rows{duration}; fewer rows need more"),
        _line(f"  batch: {batch} rows", f"per step; about {steps:,} steps in all"),
        _line(f"  learning_rate: {'5e-4' if small_model else '2e-4'}", why),
        _line(
            f"  evaluate_every: {max(5, steps // 8)}",
            "steps; about eight validations show when the model stops improving",
        ),
    ]


def _minutes_text(minutes: float) -> str:
    whole = max(1, round(minutes))
    return f"{whole} minute{'s' * (whole > 1)}"


def _epochs(rows: int) -> int:
    """Returns the number of epochs: few rows need several."""
    return 5 if rows < 100 else 3 if rows < 1_000 else 2 if rows < 10_000 else 1


def _evaluate_section(facts: Survey) -> list[str]:
    metrics = ["loss", "rouge", "stops", "length", *["numbered_steps"] * (facts.numbered_lists >= 0.5)]
    steps = f"{facts.numbered_lists:.0%} of the answers are numbered lists" if facts.numbered_lists >= 0.5 else ""
    return [
        "evaluate:",
        _line(f"  metrics: [{', '.join(metrics)}]", steps),
        _line("  primary: loss", "of held-out answers: precise with few rows, and independent of wording"),
        _line(f"  max_new_tokens: {_max_new_tokens(facts)}", "a quarter more than the 99th percentile of answers"),
    ]


def _small_section(facts: Survey, shares: _SplitShares, longest: int, *, same_base: bool) -> list[str]:
    """Returns settings that train the packaged model in under ten minutes on two cores.

    `same_base` says that the packaged model is also the recipe's base.
    """
    mean = _mean_tokens(facts, longest)
    budget_rows = max(1, int(SMALL_TOKEN_BUDGET / mean))
    sampled = (
        budget_rows < 0.6 * shares.train
    )  # sample only if enough rows are certain to remain after checks and split
    rows = budget_rows if sampled else shares.train
    epochs = max(1, min(_epochs(shares.train), budget_rows // rows))
    if not sampled and budget_rows < rows:
        rows, sampled = max(1, int(0.6 * shares.train)), True
    steps = epochs * math.ceil(rows / 8)
    lines = [
        _line("small:", "--small: a model from PyPI, no account needed, under ten minutes on two cores"),
        *[f"  base.model: {PACKAGED}"] * (not same_base),
    ]
    sample = [f"train: {rows}"] * sampled + ["valid: 16"] * (shares.valid_rows >= 40)
    if sample:
        lines.append(f"  data.sample: {{{', '.join(sample)}}}")
    minutes = epochs * rows * mean / CPU_TOKENS_PER_SECOND / 60
    return [
        *lines,
        _line(
            f"  train.epochs: {epochs}",
            f"{rows} rows of {mean:.0f} tokens: {minutes:.1f} minutes at {CPU_TOKENS_PER_SECOND} tokens a second",
        ),
        *["  train.batch: 8 rows"] * (shares.train < 400),
        *["  train.learning_rate: 5e-4"] * (not same_base),
        f"  train.evaluate_every: {max(3, steps // 3)}",
        "  evaluate.rows: 16",
        *["  evaluate.max_new_tokens: 128"] * (_max_new_tokens(facts) > 128),
    ]


# --- lengths and words ---------------------------------------------------------------------------------------


def _max_tokens(facts: Survey, machine: Machine, batch: int) -> int:
    """Returns a power of two that 99 % of the rows do not exceed, halved until the smallest base fits."""
    longest = min(MAX_TOKENS, max(128, 1 << math.ceil(math.log2(percentile(facts.lengths, 0.99)))))
    while longest > 128:
        with contextlib.suppress(ResourceError):
            needs(BASES[0], machine, longest=longest, rows=batch)
            break
        longest //= 2
    return longest


def _max_tokens_reason(facts: Survey, longest: int) -> str:
    if percentile(facts.lengths, 0.99) <= longest:
        cover = percentile(facts.lengths, 0.99)
        return f"99 % of the rows have at most about {cover} tokens; only answers are trained on"
    longer = sum(length > longest for length in facts.lengths) / len(facts.lengths)
    return f"{longer:.0%} of the rows are longer and are dropped; only answers are trained on"


def _max_new_tokens(facts: Survey) -> int:
    """Returns a quarter more tokens than the 99th percentile of answers, at most 1024."""
    return min(1024, 32 * math.ceil(1.25 * percentile(facts.answers, 0.99) / 32))


def _mean_tokens(facts: Survey, longest: int) -> float:
    """Returns the mean tokens of the rows that are not too long."""
    usable = [length for length in facts.lengths if length <= longest] or [longest]
    return sum(usable) / len(usable)


def _line(text: str, reason: str) -> str:
    """Returns a line of YAML with its reason as a comment."""
    return f"{text:<{COMMENT_COLUMN}}  # {_comment(reason)}" if reason else text


def _comment(text: str) -> str:
    """Returns `text` as one line of printable characters for a YAML comment."""
    return "".join(mark if mark.isprintable() else "?" for mark in " ".join(text.split()))


def _list_some(names: Sequence[str]) -> str:
    listed = ", ".join(name if len(name) <= 40 else f"{name[:37]}…" for name in names[:4])
    return f"{listed} and {len(names) - 4} more" if len(names) > 4 else listed


def _yaml_inline(value: str | Iterable[str]) -> str:
    """Returns a value as YAML on one line; ambiguous texts are quoted."""
    if not isinstance(value, str):
        return f"[{', '.join(_yaml_inline(item) for item in value)}]"
    plain = re.fullmatch(r"[A-Za-z][\w./ -]*", value, re.ASCII) and not value.endswith(" ")
    if plain and yaml.safe_load(value) == value:
        return value
    return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=1 << 20).rstrip("\n")


def _yaml_bool(value: object) -> str:
    return "true" if value else "false"
