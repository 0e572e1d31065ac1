"""The commands as functions: a recipe is a path, a name, a dict or a Recipe, rows may be Python objects.

    run = tunesmith.run({"name": "toy", "base": {"model": "…"}, "data": {"source": rows}})

Functions that take a recipe work in the run of that recipe: in `run`, or in the folder `runs` under the recipe's name.
Each takes `log`, which is called with every line that the command line would print; by default nothing is printed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tunesmith.commands.shared import Reporter, silent
from tunesmith.config import recipe as recipes
from tunesmith.config.recipe import Recipe
from tunesmith.errors import DataError, RecipeError, RunError, TunesmithError
from tunesmith.runs.run import Run

if TYPE_CHECKING:
    from tunesmith.commands.audit import AuditResult
    from tunesmith.commands.check import CheckResult
    from tunesmith.commands.doctor import Diagnosis
    from tunesmith.commands.import_settings import ImportedSettings
    from tunesmith.commands.runs import RunRow
    from tunesmith.data.synthesis.generate import SynthesisResult
    from tunesmith.planning.autograd import Plan
    from tunesmith.reporting.runs_page import RunComparison

PathInput: TypeAlias = str | PathLike[str]
RecipeInput: TypeAlias = Recipe | Run | Mapping[str, Any] | str | PathLike[str]
RunInput: TypeAlias = Run | str | PathLike[str] | None
OnProgress: TypeAlias = Callable[[str, int, int], None]
ROWS_FOLDER = ".rows"  # in the folder of runs: rows that were given as Python objects


# --- recipes and runs ----------------------------------------------------------------------------------------


def read_recipe(
    recipe: RecipeInput,
    *,
    small: bool = False,
    settings: Mapping[str, Any] | None = None,
    runs: PathInput = "runs",
) -> Recipe:
    """Returns a recipe from a file, a run's folder, the name of a shipped recipe, or a dict with a recipe's sections.

    `settings` maps dotted keys to values ({"train.epochs": 3}); `small` applies the section `small` first. In a dict,
    `data.source` and `data.mix_in.source` may be rows: a list of dicts, a DataFrame, a dataset; they are written to
    `runs`/.rows. Raises MultipleErrors with all errors, RecipeError for another type.
    """
    if isinstance(recipe, Recipe):
        if small or settings:
            raise RecipeError("a Recipe cannot be changed", where="settings", next="Give the file or the dict instead")
        return recipe
    if isinstance(recipe, Run):
        return recipes.read_recipe(str(recipe.path), small=small, settings=settings)
    if isinstance(recipe, (str, PathLike)):
        return recipes.read_recipe(fspath(recipe), small=small, settings=settings)
    if isinstance(recipe, Mapping):
        return recipes.recipe_from_values(_with_row_file(recipe, Path(runs)), small=small, settings=settings)
    kinds = "a path, the name of a shipped recipe, a dict, a Recipe or a Run"
    raise RecipeError(f"a recipe is {kinds}, not {type(recipe).__name__}", where="recipe")


def open_run(recipe: RecipeInput, runs: PathInput = "runs", *, create: bool = True) -> Run:
    """Opens the run of a recipe in the folder `runs`; a new run gets a recipe.yaml with every default filled in.

    Raises RunError if the run does not exist and `create` is False.
    """
    from tunesmith.commands.shared import open_run as open_folder

    return open_folder(read_recipe(recipe, runs=runs), Path(runs), create=create)


def _with_row_file(values: Mapping[str, Any], runs: Path) -> dict[str, Any]:
    """Returns a recipe's values with the rows of data.source and data.mix_in.source in files."""
    from tunesmith.data.rows_in_memory import is_rows, write_rows

    def in_file(section: Mapping[str, Any]) -> dict[str, Any]:
        if not is_rows(section.get("source")):
            return dict(section)
        return {**section, "source": str(write_rows(section["source"], runs / ROWS_FOLDER).resolve())}

    data = values.get("data")
    if not isinstance(data, Mapping):
        return dict(values)
    mix_in = data.get("mix_in")
    return {**values, "data": in_file({**data, "mix_in": in_file(mix_in)} if isinstance(mix_in, Mapping) else data)}


@contextlib.contextmanager
def _opened(recipe: RecipeInput, run: RunInput, runs: PathInput) -> Iterator[tuple[Recipe, Run]]:
    """Yields recipe and run; a run that is not given as a Run is locked, and keeps the recipe if the block succeeds."""
    loaded = read_recipe(recipe, runs=runs)
    if run is None and isinstance(recipe, Run):
        run = recipe
    if isinstance(run, Run):
        yield loaded, run
        return
    if run is not None and not isinstance(run, (str, PathLike)):
        raise RunError(f"a run is a Run or the path of its folder, not {type(run).__name__}", where="run")
    if run is not None:
        folder = Run(Path(run))
        if not (folder / "recipe.yaml").exists():
            raise RunError("this run does not exist", where=fspath(run), next="Omit it to begin a run in `runs`")
    else:
        folder = open_run(loaded, runs)
    with folder.lock():
        yield loaded, folder
        folder.write_recipe()


# --- rows ----------------------------------------------------------------------------------------------------


def audit(
    rows: Any,
    out: PathInput | None = None,
    log: Reporter = silent,
    *,
    checks: Sequence[str] = (),
    fix: bool = False,
    processes: int = 1,
) -> AuditResult:
    """Checks rows for defects; writes audit.html, audit.json and findings.jsonl to `out` (audits/NAME by default).

    `rows` is a file, a folder, hub:OWNER/NAME, a recipe (path, dict or Recipe), a list of dicts, a DataFrame or a
    dataset. `checks` selects checks; `fix` also writes cleaned rows and a diff for `undo`. The rows are not changed.
    """
    from tunesmith.commands.audit import audit as audit_rows
    from tunesmith.commands.audit import audit_arguments
    from tunesmith.data.rows_in_memory import is_rows, write_rows

    if isinstance(rows, (Recipe, Run, Mapping)):
        name, data, base, recipe = audit_arguments(read_recipe(rows), checks)
    elif isinstance(rows, (str, PathLike)):
        name, data, base, recipe = audit_arguments(fspath(rows), checks)
    elif is_rows(rows):
        file = write_rows(rows, Path(out or "audits/rows") / ROWS_FOLDER)
        name, data, base, recipe = audit_arguments(str(file), checks)
        name = "rows"
    else:
        raise DataError(f"rows are a path, a recipe, dicts or a DataFrame, not {type(rows).__name__}", where="rows")
    data = data.model_copy(update={"repair": data.repair or fix})
    target = Path(out) if out is not None else Path("audits") / name
    return audit_rows(name, data, base, target, log, recipe=recipe, fix=fix, processes=processes)


def undo(diff: PathInput, out: PathInput) -> int:
    """Writes the rows as they were before `audit` with `fix` wrote `diff` to `out`. Returns their number."""
    from tunesmith.commands.undo import undo as restore

    return restore(Path(diff), Path(out))


def new(name: str, rows: Any, path: PathInput | None = None, log: Reporter = silent) -> Path:
    """Writes a recipe called `name` for rows (a file, a list of dicts, a DataFrame) to `path`, NAME.yaml by default.

    Each line has its reason. Raises RunError if `path` exists, DataError if the rows cannot be trained on.
    """
    from tunesmith.commands.new import new as write_recipe
    from tunesmith.data.rows_in_memory import is_rows, write_rows

    source = str(write_rows(rows, Path("runs") / ROWS_FOLDER)) if is_rows(rows) else fspath(rows)
    return write_recipe(name, source, Path(path or f"{name}.yaml"), log)


def import_settings(
    source: PathInput, name: str, path: PathInput | None = None, log: Reporter = silent, *, rows: str | None = None
) -> ImportedSettings:
    """Writes the recipe `name` from a configuration of Axolotl or LLaMA-Factory, or from a training script."""
    from tunesmith.commands.import_settings import import_settings as convert

    return convert(Path(source), name, Path(path or f"{name}.yaml"), log, rows=rows)


def synthesize(plan: PathInput, folder: PathInput, log: Reporter = silent, *, again: bool = False) -> SynthesisResult:
    """Writes the rows of a plan into `folder`, through the plan's server or from its templates."""
    from tunesmith.commands.synthesize import synthesize as write

    return write(fspath(plan), Path(folder), log, again=again)


# --- a run ---------------------------------------------------------------------------------------------------


def run(
    recipe: RecipeInput,
    run: RunInput = None,
    log: Reporter = silent,
    *,
    again: bool = False,
    seeds: int = 1,
    runs: PathInput = "runs",
) -> Run:
    """Runs check, prepare, train, evaluate, export and report, as far as they are not up to date. Returns the run.

    With `again` a new adapter is trained and the old one is kept. With `seeds` above 1 the recipe is trained so many
    times with different seeds and judged over all trainings (seeds.json). Raises what the stages raise; the report is
    written also if a file failed its verification.
    """
    from tunesmith.commands.run import run_stages

    with _opened(recipe, run, runs) as (loaded, folder):
        failure: TunesmithError | None = run_stages(
            loaded,
            folder,
            log,
            on_check=lambda result: None,
            training=lambda: contextlib.nullcontext(lambda event: None),
            answering=lambda command: contextlib.nullcontext(lambda label, count, total: None),
            again=again,
            seeds=seeds,
        )
    if failure is not None:
        raise failure
    return folder


def check(recipe: RecipeInput, log: Reporter = silent, *, runs: PathInput = "runs") -> CheckResult:
    """Validates recipe, rows, model and chat template, and reports all problems at once, before any work is done.

    The warnings also say what the held-out rows can never show, and, if the recipe's run in `runs` was evaluated
    before, whether the base model left no room for a gain.
    """
    from tunesmith.commands.check import check as validate
    from tunesmith.commands.shared import existing_run

    loaded = read_recipe(recipe, runs=runs)
    return validate(loaded, log, existing_run(loaded, Path(runs)))


def prepare(recipe: RecipeInput, run: RunInput = None, log: Reporter = silent, *, runs: PathInput = "runs") -> Path:
    """Checks the rows and splits them into data/*.jsonl; writes audit.json, audit.html and findings.jsonl."""
    from tunesmith.commands.prepare import prepare as command

    with _opened(recipe, run, runs) as (loaded, folder):
        return command(loaded, folder, log)


def plan(recipe: RecipeInput, run: RunInput = None, log: Reporter = silent, *, runs: PathInput = "runs") -> Plan:
    """Returns the memory and time that training on the prepared rows needs here. Loads no weights, writes nothing."""
    from tunesmith.commands.plan import plan as command

    with _opened(recipe, run, runs) as (loaded, folder):
        return command(loaded, folder, log)


def train(
    recipe: RecipeInput,
    run: RunInput = None,
    log: Reporter = silent,
    watch: Callable[[dict[str, Any]], None] | None = None,
    *,
    again: bool = False,
    runs: PathInput = "runs",
) -> Path:
    """Fine-tunes on data/train.jsonl and writes adapter/. Resumes an interrupted training.

    `watch` is called with every event of the journal. With `again` a new adapter is trained and the old one is kept.
    """
    from tunesmith.commands.train import train as command

    with _opened(recipe, run, runs) as (loaded, folder):
        return command(loaded, folder, log, watch, again=again)


def evaluate(
    recipe: RecipeInput,
    run: RunInput = None,
    log: Reporter = silent,
    on_progress: OnProgress | None = None,
    *,
    runs: PathInput = "runs",
) -> Path:
    """Lets the base and the tuned model reply to the held-out rows; writes replies/*.jsonl and scores.json."""
    from tunesmith.commands.evaluate import evaluate as command

    with _opened(recipe, run, runs) as (loaded, folder):
        return command(loaded, folder, log, on_progress)


def export(
    recipe: RecipeInput,
    run: RunInput = None,
    log: Reporter = silent,
    on_progress: OnProgress | None = None,
    *,
    only: Sequence[str] = (),
    runs: PathInput = "runs",
) -> Path:
    """Writes the targets of export.files to export/, verifies each file on the test rows, and writes export.json.

    `only` selects targets. Raises ExportFailed with every target that failed; the others are written.
    """
    from tunesmith.commands.export import export as command

    with _opened(recipe, run, runs) as (loaded, folder):
        return command(loaded, folder, log, on_progress, only=only)


def push(
    recipe: RecipeInput,
    run: RunInput = None,
    log: Reporter = silent,
    *,
    dry_run: bool = False,
    runs: PathInput = "runs",
) -> None:
    """Uploads the folder of the export target `hub`; with `dry_run` only logs what would be uploaded."""
    from tunesmith.commands.push import push as command

    with _opened(recipe, run, runs) as (loaded, folder):
        command(loaded, folder, log, dry_run=dry_run)


def report(
    recipe: RecipeInput, run: RunInput = None, log: Reporter = silent, *, command: str = "", runs: PathInput = "runs"
) -> Path:
    """Writes report.html: one offline page that shows whether fine-tuning helped. `command` is shown on it."""
    from tunesmith.commands.report import report as write_report

    with _opened(recipe, run, runs) as (loaded, folder):
        return write_report(loaded, folder, log, command=command)


def card(
    recipe: RecipeInput, run: RunInput = None, log: Reporter = silent, *, license: str = "", runs: PathInput = "runs"
) -> Path:
    """Writes card.md, the README.md of a model repository, from the run's measurements."""
    from tunesmith.commands.card import card as command

    with _opened(recipe, run, runs) as (loaded, folder):
        return command(loaded, folder, log, license=license)


def curve(
    recipe: RecipeInput,
    run: RunInput = None,
    log: Reporter = silent,
    watch: Callable[[dict[str, Any]], None] | None = None,
    on_progress: OnProgress | None = None,
    *,
    shares: Sequence[int] = (25, 50, 100),
    raw: bool = False,
    again: bool = False,
    command: str = "",
    runs: PathInput = "runs",
) -> Path:
    """Trains the recipe on nested `shares` (percent) of its training rows; writes curve.json and curve.html.

    With `raw` also on the rows as they came, without repairs.
    """
    from tunesmith.commands.curve import curve as draw_curve

    with _opened(recipe, run, runs) as (loaded, folder):
        return draw_curve(
            loaded, folder, log, watch, on_progress, shares=shares, raw=raw, again=again, command=command
        )  # fmt: skip


def review(
    recipe: RecipeInput,
    run: RunInput = None,
    reviewer: str = "reviewer",
    log: Reporter = silent,
    *,
    port: int = 0,
    runs: PathInput = "runs",
) -> Path:
    """Serves pairs of replies for blind judgments until Ctrl-C, then writes all judgments to reviews.json."""
    from tunesmith.commands.review import review as command

    with _opened(recipe, run, runs) as (loaded, folder):
        return command(loaded, folder, reviewer, log, port=port)


def chat(
    recipe: RecipeInput, run: RunInput = None, log: Reporter = silent, *, tuned: bool = True, runs: PathInput = "runs"
) -> Any:
    """Loads the run's tuned model, or its base model, to `stream` replies."""
    from tunesmith.commands.chat import chat as command

    with _opened(recipe, run, runs) as (loaded, folder):
        return command(loaded, folder, log, tuned=tuned)


def chat_file(path: PathInput) -> Any:
    """Loads a GGUF file to `stream` replies with the chat template in the file. The caller closes it.

    Raises ModelError if the file is not GGUF, is damaged or cannot be run.
    """
    from tunesmith.commands.chat import chat_file as command

    return command(Path(path))


def serve_models(*models: PathInput, log: Reporter = print, **options: Any) -> None:
    """Serves runs and GGUF files over an OpenAI-compatible API until Ctrl-C.

    `options` are the fields of tunesmith.commands.serve.ServeOptions, such as `port`.
    """
    from tunesmith.commands.serve import ServeOptions
    from tunesmith.commands.serve import serve as command

    command(replace(ServeOptions(), models=[fspath(model) for model in models], **options), log)


# --- runs ----------------------------------------------------------------------------------------------------


def list_runs(runs: PathInput = "runs") -> list[RunRow]:
    """Lists the runs in a folder, newest first, unfinished and damaged ones included."""
    from tunesmith.commands.runs import list_runs as command

    return command(Path(runs))


def compare_runs(
    names: Sequence[PathInput], runs: PathInput = "runs", log: Reporter = silent, *, out: PathInput | None = None
) -> RunComparison:
    """Compares finished runs (folders, or names in `runs`) with the first, on the rows that all were evaluated on."""
    from tunesmith.commands.compare import compare_runs as command

    return command([fspath(name) for name in names], Path(runs), log, out=Path(out) if out is not None else None)


def pack(run: RunInput, target: PathInput, log: Reporter = silent, *, without: Sequence[str] = ()) -> Path:
    """Writes the run, and the files that its recipe reads, into one archive `target`, .tar or .tar.gz."""
    from tunesmith.commands.pack import pack as command

    if run is None:
        raise RunError("a run is a Run or the path of its folder, not None", where="run")
    return command(run if isinstance(run, Run) else Run(Path(run)), Path(target), log, without=without)


def unpack(path: PathInput, folder: PathInput | None = None, log: Reporter = silent) -> Path:
    """Restores the run packed in `path` into the new `folder` (runs/NAME by default)."""
    from tunesmith.commands.unpack import unpack as command

    return command(Path(path), Path(folder) if folder is not None else None, log)


def doctor(folder: PathInput = ".") -> Diagnosis:
    """Looks at Python, the machine, the disk of `folder`, the installed extras and entry points. Changes nothing."""
    from tunesmith.commands.doctor import doctor as command

    return command(Path(folder))
