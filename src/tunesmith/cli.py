"""The command line: parses arguments, calls the functions of commands/, and prints."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tunesmith.config.recipe import Recipe
    from tunesmith.runs.run import Run

app = typer.Typer(
    help="Turns a table of examples into a measured, deployable writing model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, a shipped recipe's name, or a run's folder.")
]
Small = Annotated[
    bool, typer.Option("--small", help="Apply the recipe's 'small' section, to run offline on a laptop in minutes.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. train.epochs=3.")
]
Runs = Annotated[Path, typer.Option("--runs", help="The folder of all runs.")]
Again = Annotated[bool, typer.Option("--again", help="Train again; the old adapter is kept in old/.")]


def _print_version(requested: bool) -> None:
    if requested:
        from tunesmith import __version__

        print(f"tunesmith {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Turns a table of examples into a measured, deployable writing model."""


@app.command()
def run(
    name: RecipeName,
    small: Small = False,
    set: Set = None,
    runs: Runs = Path("runs"),
    again: Again = False,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Train this many times with different seeds, to judge the recipe.")
    ] = 1,
) -> None:
    """Run check, prepare, train, evaluate, export and report."""
    from tunesmith.commands.run import run_stages

    with _open_run(name, small, set, runs) as (recipe, folder):
        failure = run_stages(
            recipe, folder, _print, on_check=_show_check, training=_training_progress, answering=_reply_progress,
            again=again, seeds=seeds, command=_command(),
        )  # fmt: skip
        _show_commands(folder)
        if failure:
            raise failure


@app.command()
def check(name: RecipeName, small: Small = False, set: Set = None) -> None:
    """Report all problems of recipe, rows and model at once. Shows some rows as the model sees them."""
    import tunesmith

    recipe = _read_recipe(name, small, set)
    _show_check(tunesmith.check(recipe, _print))


@app.command()
def prepare(name: RecipeName, small: Small = False, set: Set = None, runs: Runs = Path("runs")) -> None:
    """Check and split the rows, and write the audit page."""
    import tunesmith

    with _open_run(name, small, set, runs) as (recipe, folder):
        tunesmith.prepare(recipe, folder, _print)


@app.command()
def audit(
    recipe_or_source: Annotated[str, typer.Argument(help="A data file, a folder, hub:OWNER/NAME, or a recipe.")],
    out: Annotated[Path | None, typer.Option("--out", help="The output folder; audits/NAME by default.")] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Also write cleaned rows, and a diff for tunesmith undo.")] = False,
    checks: Annotated[
        str, typer.Option("--checks", help="Run only these checks, separated by commas; all by default.")
    ] = "",
    pseudonyms: Annotated[
        Path | None,
        typer.Option("--pseudonyms", help="With --fix: replace personal data, and store the pseudonyms in this file."),
    ] = None,
    small: Small = False,
    set: Set = None,
) -> None:
    """Check rows for defects and write a page about them. Needs no model and does not change the rows."""
    from tunesmith.commands.audit import audit as audit_rows
    from tunesmith.commands.audit import audit_arguments
    from tunesmith.commands.read_rows import cpu_count

    names = [name.strip() for name in checks.split(",") if name.strip()]
    name, data, base, recipe = audit_arguments(recipe_or_source, names, small=small, settings=_settings(set))
    pseudonym_setting = {"pseudonyms": str(pseudonyms.resolve())} if pseudonyms else {}
    data = data.model_copy(update={"repair": data.repair or fix, **pseudonym_setting})
    result = audit_rows(
        name, data, base, out or Path("audits") / name, _print, recipe=recipe, fix=fix, processes=cpu_count()
    )
    _show_audit(result)


@app.command()
def undo(
    diff: Annotated[Path, typer.Argument(help="The …cleaned.diff.jsonl that audit --fix wrote.")],
    out: Annotated[Path, typer.Option("--out", help="The output file for the original rows, .csv, .tsv or .jsonl.")],
) -> None:
    """Restore the rows as they were before audit --fix."""
    import tunesmith

    if out.exists():
        from tunesmith.errors import DataError

        raise DataError("this file already exists", where=str(out), next="Use another path with --out")
    _print(f"undo: {tunesmith.undo(diff, out)} original rows are in {out}")


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="The recipe's name; the file is NAME.yaml.")],
    source: Annotated[str, typer.Option("--from", metavar="SOURCE", help="A data file, folder or hub:OWNER/NAME.")],
    folder: Annotated[Path, typer.Option("--into", help="The folder for the recipe.")] = Path(),
) -> None:
    """Write a recipe for your own table. Format, checks and a base model that fits are chosen and explained."""
    import tunesmith

    tunesmith.new(name, source, folder / f"{name}.yaml", _print)


@app.command("import")
def import_settings(
    source: Annotated[
        Path, typer.Argument(metavar="FILE", help="A configuration of Axolotl or LLaMA-Factory, or a script.")
    ],
    name: Annotated[str, typer.Option("--name", help="The recipe's name; the file is NAME.yaml.")] = "imported",
    rows: Annotated[str | None, typer.Option("--from", metavar="SOURCE", help="Rows to use instead of FILE's.")] = None,
    folder: Annotated[Path, typer.Option("--into", help="The folder for the recipe.")] = Path(),
) -> None:
    """Write a recipe from another trainer's settings. What has no counterpart is listed. Scripts are not run."""
    from tunesmith.commands.import_settings import import_settings as write_recipe

    write_recipe(source, name, folder / f"{name}.yaml", _print, rows=rows)


@app.command()
def synthesize(
    plan: Annotated[str, typer.Argument(help="A plan file, or the name of a shipped plan.")],
    folder: Annotated[Path, typer.Option("--into", help="The folder for the rows.")] = Path(),
    again: Annotated[bool, typer.Option("--again", help="Write all rows again; the old files are renamed.")] = False,
) -> None:
    """Write rows from a plan, with templates or through a server. Works with any OpenAI-compatible server."""
    import tunesmith

    for line in tunesmith.synthesize(plan, folder, _print, again=again).describe():
        _print(f"synthesize: {line}")


@app.command()
def plan(name: RecipeName, small: Small = False, set: Set = None, runs: Runs = Path("runs")) -> None:
    """Show how much memory and time the training needs here. Loads no weights and writes nothing."""
    import tunesmith

    with _open_run(name, small, set, runs, keep=False) as (recipe, folder):
        tunesmith.plan(recipe, folder, _print)


@app.command()
def train(
    name: RecipeName,
    small: Small = False,
    set: Set = None,
    runs: Runs = Path("runs"),
    again: Again = False,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="Train on this number of GPUs of this machine.")] = 1,
) -> None:
    """Fine-tune on the prepared rows. Run the same command again to resume an interrupted training."""
    import tunesmith

    if gpus > 1:
        _launch_on_gpus(gpus, name, small, set, runs, again)
    with _open_run(name, small, set, runs, together=True) as (recipe, folder), _training_progress() as watch:
        tunesmith.train(recipe, folder, _print, watch, again=again)


@app.command()
def evaluate(name: RecipeName, small: Small = False, set: Set = None, runs: Runs = Path("runs")) -> None:
    """Compare the base model and the tuned model on held-out rows."""
    import tunesmith

    with _open_run(name, small, set, runs) as (recipe, folder), _reply_progress() as tell:
        tunesmith.evaluate(recipe, folder, _print, tell)


@app.command()
def export(
    name: RecipeName,
    only: Annotated[list[str] | None, typer.Option("--only", help="Export only this target of export.files.")] = None,
    small: Small = False,
    set: Set = None,
    runs: Runs = Path("runs"),
) -> None:
    """Export files for other runtimes, and verify each of them. Verification compares replies to test rows."""
    import tunesmith
    from tunesmith.errors import ExportFailed, VerificationFailed

    with _open_run(name, small, set, runs) as (recipe, folder):
        try:
            with _reply_progress("export") as tell:
                tunesmith.export(recipe, folder, _print, tell, only=only or [])
        except (ExportFailed, VerificationFailed):
            _show_commands(folder)
            raise
        _show_commands(folder)


@app.command()
def push(
    name: RecipeName,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be uploaded, and send nothing.")] = False,
    small: Small = False,
    set: Set = None,
    runs: Runs = Path("runs"),
) -> None:
    """Upload the folder of the export target hub to the Hub. Searches it for personal data; uses HF_TOKEN."""
    import tunesmith

    with _open_run(name, small, set, runs, keep=False) as (recipe, folder):
        tunesmith.push(recipe, folder, _print, dry_run=dry_run)


def _show_commands(folder: Run) -> None:
    """Prints commands that run the exported files."""
    if not (folder / "export.json").is_file():
        return
    for entry in folder.read_json("export.json")["files"]:
        for runtime, command in entry["commands"].items():
            if not entry["problems"]:
                _print(f"{entry['name']} with {runtime}: {command}")


@app.command()
def report(name: RecipeName, small: Small = False, set: Set = None, runs: Runs = Path("runs")) -> None:
    """Write the page that shows whether fine-tuning helped."""
    import tunesmith

    with _open_run(name, small, set, runs) as (recipe, folder):
        tunesmith.report(recipe, folder, _print, command=_command())


@app.command("runs")
def list_runs(runs: Runs = Path("runs")) -> None:
    """List the runs in a folder, newest first. Shows the state, scores and size of each."""
    from tunesmith.commands.runs import list_runs

    _show_runs(list_runs(runs), runs)


@app.command()
def compare(
    names: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Folders of runs, or names in --runs.")],
    runs: Runs = Path("runs"),
    out: Annotated[Path | None, typer.Option("--out", help="The folder for the page; --runs by default.")] = None,
) -> None:
    """Compare finished runs with the first one on a page. Only rows that all were evaluated on count."""
    import tunesmith

    tunesmith.compare_runs(names, runs, _print, out=out)


@app.command()
def curve(
    name: RecipeName,
    small: Small = False,
    set: Set = None,
    runs: Runs = Path("runs"),
    shares: Annotated[
        str, typer.Option("--shares", help="Percentages of the training rows, including 100.")
    ] = "25,50,100",
    raw: Annotated[
        bool, typer.Option("--raw", help="Also train on the raw rows, to see whether cleaning helped.")
    ] = False,
    again: Again = False,
) -> None:
    """Find out whether more rows would help. Trains on growing shares of the rows, with the same test rows."""
    import tunesmith
    from tunesmith.commands.curve import parse_shares

    percents = parse_shares(shares)
    with (
        _open_run(name, small, set, runs) as (recipe, folder),
        _training_progress() as watch,
        _reply_progress() as tell,
    ):
        tunesmith.curve(recipe, folder, _print, watch, tell, shares=percents, raw=raw, again=again, command=_command())


@app.command()
def card(
    name: RecipeName,
    small: Small = False,
    set: Set = None,
    runs: Runs = Path("runs"),
    license: Annotated[str, typer.Option("--license", help="The adapter's license, as an identifier of the Hub.")] = "",
) -> None:
    """Write the model card from the run's measurements. It is the README.md of a model repository."""
    import tunesmith

    with _open_run(name, small, set, runs) as (recipe, folder):
        tunesmith.card(recipe, folder, _print, license=license)


@app.command()
def review(
    name: RecipeName,
    small: Small = False,
    set: Set = None,
    runs: Runs = Path("runs"),
    reviewer: Annotated[
        str, typer.Option("--as", metavar="NAME", help="Your name: lower-case letters, digits, hyphens.")
    ] = "reviewer",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="The port on 127.0.0.1; 0 is any free one.")
    ] = 0,
) -> None:
    """Judge pairs of replies in the browser. Which model wrote which reply is hidden."""
    import tunesmith

    recipe = _read_recipe(name, small, set)
    tunesmith.review(recipe, tunesmith.open_run(recipe, runs, create=False), reviewer, _print, port=port)


@app.command()
def chat(
    name: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|FILE", help="A recipe, a run's folder, a .gguf file, or hub:OWNER/NAME/FILE.gguf."
        ),
    ],
    small: Small = False,
    set: Set = None,
    runs: Runs = Path("runs"),
    base: Annotated[bool, typer.Option("--base", help="Use the base model instead of the tuned model.")] = False,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Maximum tokens of a reply.")] = 512,
) -> None:
    """Chat with the tuned model or the base model in the terminal. An empty line ends it; /new starts over."""
    import tunesmith
    from tunesmith.commands.chat import chat_file
    from tunesmith.commands.shared import model_file
    from tunesmith.data.conversation import Turn

    if (file := model_file(name, _print)) is not None:
        with chat_file(file) as model:
            _chat_loop(model, [], tokens)
        return
    recipe = _read_recipe(name, small, set)
    model = tunesmith.chat(recipe, tunesmith.open_run(recipe, runs, create=False), _print, tuned=not base)
    _chat_loop(model, [Turn("system", recipe.prompt.system)] if recipe.prompt.system else [], tokens)


@app.command()
def serve(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN|FILE...", help="Runs, recipes with a run, .gguf files, hub:OWNER/NAME/FILE.gguf."),
    ] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port; 0 is any free one.")] = 8765,
    host: Annotated[
        str | None, typer.Option("--host", help="Listen on another address than loopback; needs --allow-host.")
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option("--allow-host", metavar="NAME", help="A host name that clients may use.")
    ] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="The recipe for a file or a remote model.")] = None,
    remote: Annotated[
        str | None, typer.Option("--remote", metavar="URL", help="Forward to another OpenAI-compatible server, …/v1.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="With --remote: the name of the model on that server.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="ENV", help="With --remote: the environment variable with its API key."),
    ] = None,
    slots: Annotated[
        int | None, typer.Option("--slots", min=1, max=256, help="Concurrent replies; 4 by default.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads of llama.cpp; the idle cores by default.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option("--context", min=16, help="Tokens of prompt and reply together; at most 2048 by default."),
    ] = None,
    pair: Annotated[bool, typer.Option("--pair", help="Show a code to pair a browser extension.")] = False,
    unpair: Annotated[
        str | None, typer.Option("--unpair", metavar="NAME", help="Revoke a paired extension, or 'all'.")
    ] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Serve models over an OpenAI-compatible API. Local only by default; the browser extension uses it too."""
    import signal

    from tunesmith.commands.serve import ServeOptions, revoke_pairing, serve

    if unpair is not None:
        revoke_pairing(unpair, _print)
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service manager stops it as cleanly as Ctrl-C
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # see _read_recipe
    wish = ServeOptions(
        names or [], port=port, host=host, allow=allow or [], recipe=recipe, remote=remote, model=model, key=key,
        slots=slots, threads=threads, context=context, pair=pair, runs=runs,
    )  # fmt: skip
    serve(wish, _print)


def _chat_loop(model: Any, start: list[Any], tokens: int) -> None:
    from tunesmith.data.conversation import Turn

    turns = list(start)
    while line := _read_line():
        if line == "/new":
            turns = list(start)
            continue
        turns.append(Turn("user", line))
        reply = ""
        for piece in model.stream(turns, max_new_tokens=tokens):
            print(piece, end="", flush=True)
            reply += piece
        print()
        turns.append(Turn("assistant", reply))


@app.command()
def ui(
    name: Annotated[
        str,
        typer.Argument(metavar="[RUN]", help="The run to show first: its folder, or its name in --runs."),
    ] = "",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="The port on 127.0.0.1; 0 is any free one.")
    ] = 7861,
    runs: Runs = Path("runs"),
) -> None:
    """Open pages for all commands in the browser. They are served on this machine only."""
    from tunesmith.ui.app import serve_ui

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uploads are deleted then too
    folder = Path(name).resolve()
    if name and (folder / "recipe.yaml").is_file():
        runs, name = folder.parent, folder.name
    with serve_ui(runs, run=name, port=port) as served:
        _print(f"ui: open {served.url}")
        _print("ui: keep this address private, it gives access. Ctrl-C stops the server; jobs continue")
        with contextlib.suppress(KeyboardInterrupt):
            served.thread.join()


@app.command()
def doctor() -> None:
    """Show the machine and what is installed or missing."""
    import tunesmith
    from tunesmith.commands.doctor import describe

    diagnosis = tunesmith.doctor()
    for line in describe(diagnosis):
        print(line)


@app.command()
def recipes() -> None:
    """List the shipped recipes."""
    from tunesmith.config.recipe import SHIPPED, read_recipe

    for folder in SHIPPED:
        for file in sorted(folder.glob("*.yaml")) if folder.is_dir() else []:
            recipe = read_recipe(str(file))
            print(f"{recipe.name:16} {recipe.about}  ({recipe.base.model})")


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    import json

    from tunesmith.config.recipe import recipe_schema as make

    print(json.dumps(make(), indent=1))


@app.command()
def pack(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or its name in --runs.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The archive, .tar or .tar.gz; NAME.tar here by default.")
    ] = None,
    without: Annotated[
        str, typer.Option("--without", help="Exclude these, separated by commas: sources, or paths in the run.")
    ] = "",
    runs: Runs = Path("runs"),
) -> None:
    """Pack a run into one archive. It can be continued on another machine."""
    import tunesmith
    from tunesmith.commands.shared import find_run
    from tunesmith.runs.run import Run

    left_out = [entry.strip() for entry in without.split(",") if entry.strip()]
    folder = Run(find_run(name, runs))
    tunesmith.pack(folder, out or Path(f"{folder.path.resolve().name}.tar"), _print, without=left_out)


@app.command()
def unpack(
    archive: Annotated[Path, typer.Argument(metavar="FILE", help="The archive that pack wrote.")],
    into: Annotated[
        Path | None, typer.Option("--into", help="The run's new folder; runs/NAME here by default.")
    ] = None,
) -> None:
    """Restore a packed run after checking every file."""
    import tunesmith

    tunesmith.unpack(archive, into, _print)


# --- printing ----------------------------------------------------------------------------------------------


def main() -> None:
    """Entry point: turns errors into one message and an exit code."""
    from tunesmith.config.extras import missing_extras_named
    from tunesmith.errors import TunesmithError

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns that it cannot fetch kernels from a hub
    try:
        with missing_extras_named(next((word for word in sys.argv[1:] if not word.startswith("-")), "")):
            app()
    except TunesmithError as error:
        print(f"\ntunesmith: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except MemoryError:
        print("\ntunesmith: memory is full. Close other programs, or choose a smaller base.model.", file=sys.stderr)
        sys.exit(6)
    except SystemExit as system_exit:
        if system_exit.code == 2 and (hint := _option_hint(sys.argv[1:])):
            print(f"\ntunesmith: {hint}", file=sys.stderr)
        if system_exit.code != 130 or isinstance(system_exit, _AlreadyReported):  # typer exits with 130 after Ctrl-C
            raise
        print("\ntunesmith: stopped. Run the same command again to resume.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


def _option_hint(words: list[str]) -> str:
    """How to write a setting that was given as an option, such as `--epochs 3`; '' if there is none among `words`."""
    from typer.main import get_command

    from tunesmith.config.aliases import converted_text, find_alias
    from tunesmith.config.recipe import keys_named, parse_setting

    commands: dict[str, Any] = getattr(get_command(app), "commands", {})
    command = next((commands[word] for word in words if word in commands), None)
    options = {option for parameter in command.params for option in parameter.opts} if command else set()
    for index, word in enumerate(words):
        name, equals, text = word.partition("=")
        if not name.startswith("--") or name in options:
            continue
        text = text if equals else " ".join(words[index + 1 : index + 2])
        alias = find_alias(name)
        if alias and alias.key:
            keys, text = [alias.key], converted_text(alias, parse_setting(f"{alias.key}={text}")[1]) or "…"
        else:
            keys = list(keys_named(name[2:].replace("-", "_")))
        if len(keys) == 1:
            return f"{name} is a setting of the recipe: write --set {shlex.quote(f'{keys[0]}={text}')}"
    return ""


def _print(text: str) -> None:
    print(text, flush=True)


def _read_line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _command() -> str:
    return shlex.join(["tunesmith", *sys.argv[1:]])


def _settings(settings: list[str] | None) -> dict[str, Any]:
    from tunesmith.config.recipe import parse_setting

    return dict(parse_setting(text) for text in settings or [])


def _show_audit(result: Any) -> None:
    """Prints the findings as a table, and the path of the page."""
    from rich.console import Console
    from rich.table import Table

    table = Table("check", "rows", "drop", "quarantine", "repair", "review", box=None, pad_edge=False)
    for check, facts in result.account["checks"].items():
        if facts["found"]:
            counts = [facts["proposals"].get(decision, 0) for decision in ("drop", "quarantine", "repair", "keep")]
            cells = [f"{count:,}" if count else "" for count in (facts["rows"], *counts)]
            table.add_row(check.replace("_", " "), *cells)
    console = Console(highlight=False)
    if table.row_count:
        console.print(table)
    else:
        _print("audit: no defects found")
    for file in result.cleaned:
        _print(f"audit: {file.kept} rows in {file.file}, {file.changed} of them changed; {file.left_out} left out")
        _print(f"audit: to undo it: {shlex.join(['tunesmith', 'undo', str(file.diff)])} --out FILE")
    _print(f"audit: see {result.folder / 'audit.html'}")


_COLUMNS = (  # from wide to narrow; the first that fits the terminal is used
    [
        "run",
        "state",
        "base model",
        "rows",
        "steps",
        "score",
        "base → tuned",
        "95 % interval",
        "verdict",
        "date",
        "size",
    ],
    ["run", "state", "rows", "steps", "score", "base → tuned", "verdict", "date", "size"],
    ["run", "state", "score", "base → tuned", "verdict"],
)
_RIGHT = {"rows", "steps", "base → tuned", "95 % interval", "size"}


def _show_runs(rows: list[Any], folder: Path) -> None:
    """Prints the runs as a table that fits the terminal, or as one line each; then the notes."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        _print(f"runs: there are no runs in {folder}")
    console = Console(highlight=False)
    wide = console.options.update(width=10_000)
    cells = [row.cells() for row in rows]
    for row_cells in cells:  # only the last part of pypi:PACKAGE==VERSION/FILE and of folders
        row_cells["base model"] = row_cells["base model"].rstrip("/").rpartition("/")[2]
    for names in _COLUMNS if cells else ():
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in names:
            table.add_column(name, justify="right" if name in _RIGHT else "left", no_wrap=True)
        for row_cells in cells:
            table.add_row(*(Text(row_cells[name]) for name in names))  # a folder may be called [bold]
        if console.measure(table, options=wide).maximum <= console.width:
            console.print(table)
            break
    else:
        for row_cells in cells:
            facts = ", ".join(f"{name} {row_cells[name]}" for name in _COLUMNS[0][2:] if row_cells[name])
            _print(f"{row_cells['run']}: {row_cells['state']}{', ' * bool(facts)}{facts}")
    for row_cells in cells:
        if row_cells["note"]:
            _print(f"{row_cells['run']}: {row_cells['note']}")


def _read_recipe(name: str, small: bool, settings: list[str] | None) -> Recipe:
    from tunesmith.config.recipe import read_recipe

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else the tokenizer warns after a fork
    # Threads spin while they wait at a barrier. If another program keeps a core busy, the default costs 4/5 of the
    # speed (66 instead of 175 tokens/s for two trainings on two cores), else it gains at most 5 % (dev/LOG.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

    return read_recipe(name, small=small, settings=_settings(settings))


class _AlreadyReported(SystemExit):
    """Exit of a process after another process printed the error."""


def _launch_on_gpus(gpus: int, name: str, small: bool, settings: list[str] | None, runs: Path, again: bool) -> None:
    """Runs the same command in `gpus` processes and exits with their status."""
    from tunesmith.errors import RunError
    from tunesmith.runs.run import process_count
    from tunesmith.training.launch import launch

    if process_count() > 1:
        raise RunError("torchrun already started several processes", where="--gpus", next="Omit it under torchrun")
    changes = [word for setting in settings or [] for word in ("--set", setting)]
    flags = ["--small"] * small + ["--again"] * again
    sys.stdout.flush()
    raise _AlreadyReported(launch(["train", name, *flags, *changes, "--runs", str(runs)], gpus))


@contextlib.contextmanager
def _join_processes(together: bool) -> Iterator[None]:
    """Joins the processes that torchrun started, if any, for the block."""
    from tunesmith.errors import RunError
    from tunesmith.runs.run import process_count

    if process_count() == 1:
        yield
        return
    from tunesmith.training.distributed import process_group

    try:
        with process_group():
            if not together:
                raise RunError(
                    "only train supports several processes", where="torchrun", next="Run this command without torchrun"
                )
            yield
    except SystemExit as system_exit:  # another process printed the error
        raise _AlreadyReported(system_exit.code) from None


@contextlib.contextmanager
def _open_run(
    name: str, small: bool, settings: list[str] | None, runs: Path, *, together: bool = False, keep: bool = True
) -> Iterator[tuple[Recipe, Run]]:
    """Yields recipe and run for a command, with the run locked; `together` allows several processes.

    With `keep` the recipe, with changed settings, becomes the run's recipe.yaml if the command succeeds.
    """
    import tunesmith

    with _join_processes(together):
        recipe = _read_recipe(name, small, settings)
        folder = tunesmith.open_run(recipe, runs)
        with folder.lock():
            folder.log(_command())
            try:
                yield recipe, folder
            except Exception as error:
                folder.log(f"{type(error).__name__}: {error}")
                raise
            if keep:
                folder.write_recipe()


def _show_check(result: Any) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    answers = f", {result.answers} answers" if result.answers != result.rows else ""
    _print(f"check: {result.rows} rows{answers}, the longest has {result.longest} tokens; {result.template}")
    for example in result.shown:
        _print(f"check: {example.title} ({example.where}):")
        if console.is_terminal:
            parts = [(piece, "bold green" if learned else "dim") for piece, learned in example.pieces]
            console.print(Text.assemble(*parts))
        else:  # without color, tokens with loss are in brackets
            _print("".join(f"⟦{piece}⟧" if learned else piece for piece, learned in example.pieces))
    marked = "in green" if console.is_terminal else "in ⟦brackets⟧"
    _print(f"check: the part {marked} is trained on; its stop token is {result.stop}")
    for warning in result.warnings:
        _print(f"check: {warning}")


@contextlib.contextmanager
def _training_progress() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields a callback that shows training progress: a live line in a terminal, else a line every 10 steps."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    state: dict[str, Any] = {}
    with (
        Live(console=console, auto_refresh=False, transient=True)
        if console.is_terminal
        else contextlib.nullcontext() as live
    ):

        def watch(event: dict[str, Any]) -> None:
            if event["kind"] == "step":
                state.update(event)
                line = _progress(state)
                if live:
                    live.update(Text(line), refresh=True)
                elif event["step"] % 10 == 0 or event["step"] == event["total"]:
                    console.print(line, markup=False)
            elif event["kind"] == "valid":
                state["valid"] = event["loss"]
                console.print(f"train: step {event['step']}, validation loss {event['loss']:.4f}", markup=False)
            elif event["kind"] in ("note", "resume"):
                text = event.get("text") or f"resuming after step {event['step']} of {event['total']}"
                console.print(f"train: {text}", markup=False)

        yield watch


def _progress(event: dict[str, Any]) -> str:
    speed = f", {event['tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in event else ""
    remaining = f", {_minutes(event['eta'])} left" if "eta" in event else ""
    valid = f", validation {event['valid']:.3f}" if "valid" in event else ""
    return f"train: step {event['step']} of {event['total']}, loss {event['loss']:.3f}{valid}{speed}{remaining}"


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


@contextlib.contextmanager
def _reply_progress(command: str = "evaluate") -> Iterator[Callable[[str, int, int], None]]:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)

    def tell(model: str, count: int, total: int) -> None:
        if count == total or (console.is_terminal and count % 4 == 0):
            console.print(f"{command}: {model}: {count} of {total}", markup=False, end="\n" if count == total else "\r")

    yield tell


if __name__ == "__main__":
    main()
