"""docs/performance.md and its plots, written from the table of results alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.training import table
from benchmarks.training.plots import plot, recomputed
from benchmarks.training.table import Row

BUDGETS = (5, 6, 8, 12, 16, 24, 40, 80, 140)  # GiB
OWN = ("native", "native-fast")
SAME = ("llama2-7b", "llama3.2-1b", "llama3.1-8b", "tiny")  # the order of shapes on the page; others follow
NAMES = {
    "native": "this project's engine, bfloat16 products",
    "native-fast": "this project's engine, fp8 products over the frozen weights",
    "trl": "transformers, PEFT and bitsandbytes as TRL's SFTTrainer runs them, its fused head included",
    "trl-liger": "the same with Liger's kernels and its fused linear cross-entropy",
    "peft": "transformers, PEFT and bitsandbytes with the model's own loss over all logits",
    "unsloth": "Unsloth's FastLanguageModel, its kernels and its fused loss",
}


def write(source: Path, docs: Path) -> list[Path]:
    """Writes the page and a plot for each device and shape; nothing when the table has no figure. Returns the files."""
    rows = [row for row in newest(table.read(source)) if not row.failure]
    if not rows:
        print(f"{source} has no figures yet; no page is written")
        return []
    folder = docs / "performance"
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for device, shape in _pairs(rows):
        drawn = [row for row in rows if (row.device, row.shape, row.data) == (device, shape, "random")]
        if drawn:
            made[device, shape] = folder / f"{_file(device)}-{_file(shape)}.svg"
            made[device, shape].write_text(plot(shape, drawn), encoding="utf-8")
    page = docs / "performance.md"
    plots = {key: file.relative_to(docs).as_posix() for key, file in made.items()}
    page.write_text("\n".join(text(newest(table.read(source)), plots)), encoding="utf-8")
    return [page, *made.values()]


def newest(rows: Sequence[Row]) -> list[Row]:
    """The last row of each setting on each device; a failure only where there is no figure at all."""
    good = {(row.device, row.setting): row for row in rows if not row.failure}
    found = {row.setting for row in good.values()}
    failed = {row.setting: row for row in rows if row.failure and row.setting not in found}
    return [*good.values(), *failed.values()]


def text(rows: Sequence[Row], plots: dict[tuple[str, str], str]) -> list[str]:
    """The page's lines."""
    good = [row for row in rows if not row.failure]
    lines = ["# Performance of training", "", *_about(good)]
    for device in dict.fromkeys(row.device for row in good):
        here = [row for row in good if row.device == device]
        lines += [f"## {device}", "", *_made_with(here)]
        for shape in dict.fromkeys(shape for _, shape in _pairs(here)):
            drawn = [row for row in here if (row.shape, row.data) == (shape, "random")]
            if drawn:
                lines += [f"### {shape}, random tokens", ""]
                lines += [f"![Tokens a second against peak memory]({plots[device, shape]})", ""]
                lines += _budgets(drawn)
                lines += _settings(drawn, _failed(rows, shape))
        lines += _conversations([row for row in here if row.data != "random"])
    return [*lines, *_repeat()]


def _failed(rows: Sequence[Row], shape: str) -> list[Row]:
    return [row for row in rows if row.failure and (row.shape, row.data) == (shape, "random")]


def _about(rows: Sequence[Row]) -> list[str]:
    engines = [name for name in NAMES if any(row.engine == name for row in rows)]
    return [
        "This page is written by `python -m benchmarks.training --page` from `benchmarks/results/training.csv`; it",
        "holds no figure that is not there.",
        "",
        "What is timed are whole optimizer steps: forward, backward, clipping, AdamW. The base is NF4 with doubly",
        "quantized scales and random weights, the adapter a LoRA on every linear layer of the decoder without dropout.",
        "With random tokens the loss is taken on every token, and a figure is the median of the steps after the third:",
        "ten steps, or as many as fit into five seconds, at least three. Peak memory is what torch allocated, the",
        "card's context apart; on a processor it is the process's resident size. Each engine, shape and way of",
        "checkpointing had a process of its own on the same machine, with the same files of weights.",
        "",
        *[f"- `{name}`: {NAMES[name]}" for name in engines],
        "",
    ]


def _made_with(rows: Sequence[Row]) -> list[str]:
    found = []
    for column in table.PACKAGES:
        versions = sorted({getattr(row, column) for row in rows if getattr(row, column)})
        found += [f"{column} {' and '.join(versions)}"] if versions else []
    commits = " and ".join(dict.fromkeys(row.commit for row in rows))
    days = sorted({row.time[:10] for row in rows})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return [f"Measured on {when} at {commits} with {', '.join(found)}.", ""]


def _budgets(rows: Sequence[Row]) -> list[str]:
    """For each budget the fastest setting of whose peak it is no less, ours and any rival's."""
    rivals = [row for row in rows if row.engine not in OWN]
    own = [name for name in OWN if any(row.engine == name for row in rows)]
    if not rivals or not own:
        return []
    head = ["memory", "fastest rival that fits", "tokens/s"]
    for name in own:
        head += [f"{name}", "tokens/s", "times"]
    lines = ["The fastest setting whose measured peak fits into a budget:", "", *_head(head)]
    for budget in BUDGETS:
        best = _best(rivals, budget)
        cells = [f"{budget} GiB", _name(best) if best else "none fits", _speed(best)]
        for name in own:
            ours = _best([row for row in rows if row.engine == name], budget)
            times = f"{float(ours.tokens_s) / float(best.tokens_s):.2f}" if ours and best else ""
            cells += [_name(ours, short=True) if ours else "none fits", _speed(ours), times]
        lines.append(_line(cells))
    return [*lines, ""]


def _best(rows: Sequence[Row], budget: float) -> Row | None:
    fits = [row for row in rows if float(row.peak_gib) <= budget]
    return max(fits, key=lambda row: float(row.tokens_s), default=None)


def _name(row: Row, *, short: bool = False) -> str:
    step = f"{row.batch} x {row.length}"
    return f"{step}{', recomputed' if recomputed(row) else ''}" + ("" if short else f", {row.engine}")


def _speed(row: Row | None) -> str:
    return f"{float(row.tokens_s):,.0f}" if row else ""


def _settings(rows: Sequence[Row], failed: Sequence[Row]) -> list[str]:
    head = ["engine", "rows x tokens", "budget", "how", "tokens/s", "quintiles", "ms a step", "peak GiB", "planned GiB"]
    lines = ["Every setting:", "", *_head(head)]
    for row in sorted(rows, key=_order):
        how = row.note or (row.checkpointing and f"checkpointing {row.checkpointing}")
        cells = [row.engine, f"{row.batch} x {row.length}", row.budget_gib, how, _speed(row)]
        cells += [f"{float(row.tokens_s_p20):,.0f} to {float(row.tokens_s_p80):,.0f}", row.ms_median, row.peak_gib]
        lines.append(_line([*cells, row.planned_gib]))
    if failed:
        lines += ["", "Without a figure:", ""]
        for row in sorted(failed, key=_order):
            how = f", checkpointing {row.checkpointing}" if row.checkpointing else ""
            budget = f" in {row.budget_gib} GiB" if row.budget_gib else ""
            lines.append(f"- `{row.engine}` {row.batch} x {row.length}{budget}{how}: {row.failure}")
    return [*lines, ""]


def _order(row: Row) -> tuple[str, int, int, str, float]:
    rows = int(row.batch.split()[0])
    return row.engine, rows * int(row.length), int(row.length), row.checkpointing, float(row.budget_gib or "inf")


def _conversations(rows: Sequence[Row]) -> list[str]:
    """Whole fine-tunes over real rows: tokens that are not padding, over the time from first step to last."""
    if not rows:
        return []
    head = ["rows", "shape", "engine", "how", "step", "rank", "tokens", "seconds", "tokens/s", "peak GiB"]
    lines = ["### Real conversations, answers only, one epoch", ""]
    lines += [
        "Counted are tokens that are not padding, over the time from the first step's start to the last's end.",
        "",
    ]
    lines += _head(head)
    for row in sorted(rows, key=lambda row: (row.data, row.shape, row.batch, row.engine, row.packing)):
        how = [row.packing and f"packing {row.packing}", row.checkpointing and f"checkpointing {row.checkpointing}"]
        cells = [row.data, row.shape, row.engine, ", ".join(filter(None, how)), row.batch, row.rank]
        lines.append(_line([*cells, f"{int(row.tokens):,}", row.seconds, _speed(row), row.peak_gib]))
    return [*lines, ""]


def _repeat() -> list[str]:
    return [
        "## How to repeat it",
        "",
        "```",
        "python -m benchmarks.training --engines native,native-fast,trl,trl-liger,unsloth \\",
        "  --shapes llama2-7b,llama3.2-1b,llama3.1-8b --batches 1x512,4x512,16x512,8x2048 \\",
        f"  --budgets {','.join(map(str, BUDGETS))}",
        "python -m benchmarks.training --rows FILE --part support --shapes llama3.2-1b --tokenizer FOLDER",
        "python -m benchmarks.training --page",
        "```",
        "",
        "The same command goes on where it stopped. `--device cpu` measures on the processor, `--shapes folder:PATH` a",
        "model of your own. The rivals need `trl`, `liger-kernel` and `unsloth` beside this project's packages.",
        "",
    ]


def _pairs(rows: Sequence[Row]) -> list[tuple[str, str]]:
    place: Callable[[str], int] = lambda shape: SAME.index(shape) if shape in SAME else len(SAME)  # noqa: E731
    found = list(dict.fromkeys((row.device, row.shape) for row in rows))
    return sorted(found, key=lambda pair: (pair[0], place(pair[1]), pair[1]))


def _file(name: str) -> str:
    kept = "".join(letter if letter.isalnum() or letter == "." else "-" for letter in name.lower())
    return "-".join(filter(None, kept.split("-")))


def _head(cells: Sequence[str]) -> list[str]:
    return [_line(cells), _line(["---"] * len(cells))]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
