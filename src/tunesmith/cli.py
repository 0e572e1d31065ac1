"""The command line: one command a verb. It parses, calls, prints."""

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
    help="A table of examples becomes a measured, deployable writing model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, a shipped recipe's name, or a run's folder.")
]
Small = Annotated[bool, typer.Option("--small", help="Apply the recipe's 'small' section: a laptop, offline, minutes.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. train.epochs=3.")
]
Runs = Annotated[Path, typer.Option("--runs", help="The folder that runs are kept in.")]
Again = Annotated[bool, typer.Option("--again", help="Train anew; the old adapter is kept aside.")]


@app.command()
def run(
    name: RecipeName, small: Small = False, set: Set = None, runs: Runs = Path("runs"), again: Again = False
) -> None:
    """Go through check, prepare, train, evaluate, export, report."""
    import tunesmith
    from tunesmith.commands.shared import refuse_parting

    with _opened(name, small, set, runs) as (recipe, folder):
        if not again:
            refuse_parting(recipe, folder)
        if new := folder.read_seal("prepare") is None:
            _show(tunesmith.check(recipe, _say))
        tunesmith.prepare(recipe, folder, _say)
        if not new:
            _check_export(recipe, folder)
        with _training() as watch:
            tunesmith.train(recipe, folder, _say, watch, again=again)
        with _answering() as tell:
            tunesmith.evaluate(recipe, folder, _say, tell)
        failed = _export(recipe, folder, [])
        tunesmith.report(recipe, folder, _say, command=_command())
        _show_commands(folder)
        if failed:
            raise failed


@app.command()
def check(name: RecipeName, small: Small = False, set: Set = None) -> None:
    """Read recipe and rows and report everything wrong at once. Shows some rows as the model sees them."""
    import tunesmith

    recipe = _read(name, small, set)
    _show(tunesmith.check(recipe, _say))


@app.command()
def prepare(name: RecipeName, small: Small = False, set: Set = None, runs: Runs = Path("runs")) -> None:
    """Check and split the rows; write the audit page."""
    import tunesmith

    with _opened(name, small, set, runs) as (recipe, folder):
        tunesmith.prepare(recipe, folder, _say)


@app.command()
def audit(
    what: Annotated[str, typer.Argument(help="A data file, folder or hub:OWNER/NAME; or a recipe, for its data.")],
    out: Annotated[Path | None, typer.Option("--out", help="The folder to write into; audits/NAME by default.")] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Also write cleaned rows, and a diff that undo takes back.")
    ] = False,
    checks: Annotated[str, typer.Option("--checks", help="Only these, with commas between; all by default.")] = "",
    pseudonyms: Annotated[
        Path | None,
        typer.Option("--pseudonyms", help="With --fix: replace personal data; the key is kept in this file."),
    ] = None,
    small: Small = False,
    set: Set = None,
) -> None:
    """Look for what is wrong with rows, and write a page about it. Needs no model and changes nothing."""
    import tunesmith
    from tunesmith.commands.audit import to_audit
    from tunesmith.commands.read_rows import cpu_count

    chosen = [name.strip() for name in checks.split(",") if name.strip()]
    name, data, base, recipe = to_audit(what, chosen, small=small, settings=_settings(set))
    keep_apart = {"pseudonyms": str(pseudonyms.resolve())} if pseudonyms else {}
    data = data.model_copy(update={"repair": data.repair or fix, **keep_apart})
    found = tunesmith.audit(
        name, data, base, out or Path("audits") / name, _say, recipe=recipe, fix=fix, processes=cpu_count()
    )
    _show_audit(found)


@app.command()
def undo(
    diff: Annotated[Path, typer.Argument(help="The …cleaned.diff.jsonl that audit --fix wrote.")],
    out: Annotated[Path, typer.Option("--out", help="The file for the rows as they were, .csv, .tsv or .jsonl.")],
) -> None:
    """Write the rows as they were before audit --fix."""
    import tunesmith

    if out.exists():
        from tunesmith.errors import DataError

        raise DataError("there is a file already", where=str(out), next="Name another with --out")
    _say(f"undo: {tunesmith.undo(diff, out)} rows as they were, in {out}")


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="The recipe's name; the file is NAME.yaml.")],
    source: Annotated[str, typer.Option("--from", metavar="SOURCE", help="A data file, folder or hub:OWNER/NAME.")],
    folder: Annotated[Path, typer.Option("--into", help="The folder for the recipe.")] = Path(),
) -> None:
    """Write a commented recipe for a table of your own. Format, checks, a base that fits: each guess is explained."""
    import tunesmith

    tunesmith.new(name, source, folder / f"{name}.yaml", _say)


@app.command()
def synthesize(
    plan: Annotated[str, typer.Argument(help="A plan file, or a shipped plan's name.")],
    folder: Annotated[Path, typer.Option("--into", help="The folder that the plan's rows are written into.")] = Path(),
    again: Annotated[bool, typer.Option("--again", help="Write anew; the old rows are kept aside.")] = False,
) -> None:
    """Write rows from a plan, by templates or through a server. Any server with OpenAI's chat completions will do."""
    import tunesmith

    for line in tunesmith.synthesize(plan, folder, _say, again=again).describe():
        _say(f"synthesize: {line}")


@app.command()
def plan(name: RecipeName, small: Small = False, set: Set = None, runs: Runs = Path("runs")) -> None:
    """Say how much memory and time the training needs here. Loads no weights and writes nothing."""
    import tunesmith

    with _opened(name, small, set, runs, keep=False) as (recipe, folder):
        tunesmith.plan(recipe, folder, _say)


@app.command()
def train(
    name: RecipeName,
    small: Small = False,
    set: Set = None,
    runs: Runs = Path("runs"),
    again: Again = False,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="Train on so many cards of this machine.")] = 1,
) -> None:
    """Fine-tune on the prepared rows. Stopped or killed, the same command goes on."""
    import tunesmith

    if gpus > 1:
        _several(gpus, name, small, set, runs, again)
    with _opened(name, small, set, runs, together=True) as (recipe, folder), _training() as watch:
        tunesmith.train(recipe, folder, _say, watch, again=again)


@app.command()
def evaluate(name: RecipeName, small: Small = False, set: Set = None, runs: Runs = Path("runs")) -> None:
    """Compare the base model and the tuned one on held-out rows."""
    import tunesmith

    with _opened(name, small, set, runs) as (recipe, folder), _answering() as tell:
        tunesmith.evaluate(recipe, folder, _say, tell)


@app.command()
def export(
    name: RecipeName,
    only: Annotated[list[str] | None, typer.Option("--only", help="Only this target of export.files.")] = None,
    small: Small = False,
    set: Set = None,
    runs: Runs = Path("runs"),
) -> None:
    """Write files that run elsewhere, and verify each of them. For that it answers the test rows in its own runtime."""
    from tunesmith.errors import ExportFailed, Unverified

    with _opened(name, small, set, runs) as (recipe, folder):
        failed = _export(recipe, folder, only or [])
        if failed is None or isinstance(failed, ExportFailed | Unverified):
            _show_commands(folder)
        if failed:
            raise failed


@app.command()
def push(
    name: RecipeName,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and send nothing.")] = False,
    small: Small = False,
    set: Set = None,
    runs: Runs = Path("runs"),
) -> None:
    """Send the folder of the target hub to the hub. It is searched for personal data first; the token is HF_TOKEN."""
    import tunesmith

    with _opened(name, small, set, runs, keep=False) as (recipe, folder):
        tunesmith.push(recipe, folder, _say, dry_run=dry_run)


def _export(recipe: Recipe, folder: Run, only: list[str]) -> Exception | None:
    """Exports; returns what failed, so that what is there can still be reported."""
    import tunesmith
    from tunesmith.errors import Paused, TunesmithError

    try:
        with _answering("export") as tell:
            tunesmith.export(recipe, folder, _say, tell, only=only)
    except Paused:
        raise
    except TunesmithError as error:
        return error
    return None


def _show_commands(folder: Run) -> None:
    """How to talk to what was exported."""
    if not (folder / "export.json").is_file():
        return
    for entry in folder.read_json("export.json")["files"]:
        for runtime, command in entry["commands"].items():
            if not entry["problems"]:
                _say(f"{entry['name']} with {runtime}: {command}")


@app.command()
def report(name: RecipeName, small: Small = False, set: Set = None, runs: Runs = Path("runs")) -> None:
    """Write the page that says whether the tuning helped."""
    import tunesmith

    with _opened(name, small, set, runs) as (recipe, folder):
        tunesmith.report(recipe, folder, _say, command=_command())


@app.command("runs")
def list_runs(runs: Runs = Path("runs")) -> None:
    """List the runs of a folder, the newest first. How far each came, what it scored, what it weighs."""
    from tunesmith.commands.runs import list_runs

    _show_runs(list_runs(runs), runs)


@app.command()
def compare(
    names: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Runs: folders, or names in --runs.")],
    runs: Runs = Path("runs"),
    out: Annotated[Path | None, typer.Option("--out", help="The folder for the page; --runs by default.")] = None,
) -> None:
    """Compare finished runs with the first of them, on a page. Only rows that all were asked count."""
    import tunesmith

    tunesmith.compare_runs(names, runs, _say, out=out)


@app.command()
def curve(
    name: RecipeName,
    small: Small = False,
    set: Set = None,
    runs: Runs = Path("runs"),
    shares: Annotated[
        str, typer.Option("--shares", help="Percents of the training rows, 100 among them.")
    ] = "25,50,100",
    raw: Annotated[bool, typer.Option("--raw", help="Also the rows as they came: did cleaning help?")] = False,
    again: Again = False,
) -> None:
    """Find out whether more rows would help. Trains on growing shares of the rows; all are asked the same ones."""
    import tunesmith
    from tunesmith.commands.curve import to_shares

    wanted = to_shares(shares)
    with _opened(name, small, set, runs) as (recipe, folder), _training() as watch, _answering() as tell:
        tunesmith.curve(recipe, folder, _say, watch, tell, shares=wanted, raw=raw, again=again, command=_command())


@app.command()
def card(
    name: RecipeName,
    small: Small = False,
    set: Set = None,
    runs: Runs = Path("runs"),
    license: Annotated[str, typer.Option("--license", help="The adapter's licence, as the hub writes it.")] = "",
) -> None:
    """Write the model card from what was measured. It is the README.md of a model repository."""
    import tunesmith

    with _opened(name, small, set, runs) as (recipe, folder):
        tunesmith.card(recipe, folder, _say, license=license)


@app.command()
def review(
    name: RecipeName,
    small: Small = False,
    set: Set = None,
    runs: Runs = Path("runs"),
    reviewer: Annotated[
        str, typer.Option("--as", metavar="NAME", help="Who judges: small letters, digits, hyphens.")
    ] = "reviewer",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="The port on 127.0.0.1; 0 is any free one.")
    ] = 0,
) -> None:
    """Judge pairs of replies in the browser, blind. One is the base model's, the other the tuned one's."""
    import tunesmith

    recipe = _read(name, small, set)
    tunesmith.review(recipe, tunesmith.open_run(recipe, runs, create=False), reviewer, _say, port=port)


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
    base: Annotated[bool, typer.Option("--base", help="Talk to the base model instead of the tuned one.")] = False,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Longest reply.")] = 512,
) -> None:
    """Talk to the tuned model (or the base) in the terminal. An empty line ends it; /new forgets what was said."""
    import tunesmith
    from tunesmith.commands.evaluate import chat_file
    from tunesmith.commands.shared import model_file
    from tunesmith.data.conversation import Turn

    if (file := model_file(name, _say)) is not None:
        with chat_file(file) as model:
            _talk(model, [], tokens)
        return
    recipe = _read(name, small, set)
    model = tunesmith.chat(recipe, tunesmith.open_run(recipe, runs, create=False), _say, tuned=not base)
    _talk(model, [Turn("system", recipe.prompt.system)] if recipe.prompt.system else [], tokens)


@app.command()
def serve(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN|FILE...", help="Runs, recipes that have one, .gguf files, hub:OWNER/NAME/FILE.gguf."
        ),
    ] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port; 0 is any free one.")] = 8765,
    host: Annotated[
        str | None, typer.Option("--host", help="Another address than loopback; needs --allow-host.")
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option("--allow-host", metavar="NAME", help="A name under which clients may ask.")
    ] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="The recipe of a file or a remote model.")] = None,
    remote: Annotated[
        str | None, typer.Option("--remote", metavar="URL", help="Ask another OpenAI-compatible server, …/v1.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="With --remote: the model's name there.")] = None,
    key: Annotated[
        str | None, typer.Option("--key", metavar="ENV", help="With --remote: the variable that holds its key.")
    ] = None,
    slots: Annotated[int | None, typer.Option("--slots", min=1, max=256, help="Replies at once; 4 by default.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Of llama.cpp; the idle cores.")] = None,
    context: Annotated[
        int | None, typer.Option("--context", min=16, help="Tokens of prompt and reply; at most 2048 by default.")
    ] = None,
    pair: Annotated[bool, typer.Option("--pair", help="Show a code that lets one browser extension in.")] = False,
    unpair: Annotated[
        str | None, typer.Option("--unpair", metavar="NAME", help="Let a paired extension in no more, or 'all'.")
    ] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Serve models over an OpenAI-compatible API. On this machine alone, with a token; the extension uses it too."""
    import signal

    from tunesmith.commands.serve import Wish, revoke_pairing, serve

    if unpair is not None:
        revoke_pairing(unpair, _say)
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service manager's end is as clean as Ctrl-C's
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # see _read
    wish = Wish(
        names or [], port=port, host=host, allow=allow or [], recipe=recipe, remote=remote, model=model, key=key,
        slots=slots, threads=threads, context=context, pair=pair, runs=runs,
    )  # fmt: skip
    serve(wish, _say)


def _talk(model: Any, start: list[Any], tokens: int) -> None:
    from tunesmith.data.conversation import Turn

    turns = list(start)
    while line := _ask():
        if line == "/new":
            turns = list(start)
            continue
        turns.append(Turn("user", line))
        written = ""
        for piece in model.stream(turns, max_new_tokens=tokens):
            print(piece, end="", flush=True)
            written += piece
        print()
        turns.append(Turn("assistant", written))


@app.command()
def ui(
    name: Annotated[
        str,
        typer.Argument(metavar="[RUN]", help="The run that the pages show first: its folder, or its name in --runs."),
    ] = "",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="The port on 127.0.0.1; 0 is any free one.")
    ] = 7861,
    runs: Runs = Path("runs"),
) -> None:
    """Open pages in the browser that do what the commands do. For this machine alone."""
    from tunesmith.ui.app import serving_ui

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was uploaded goes then too
    folder = Path(name).resolve()
    if name and (folder / "recipe.yaml").is_file():
        runs, name = folder.parent, folder.name
    with serving_ui(runs, run=name, port=port) as served:
        _say(f"ui: open {served.url}")
        _say("ui: the address lets a browser in; it is for this machine alone. Ctrl-C ends the pages; runs go on")
        with contextlib.suppress(KeyboardInterrupt):
            served.thread.join()


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
    """Print the recipe's JSON schema, for editors."""
    import json

    from tunesmith.config.recipe import schema as make

    print(json.dumps(make(), indent=1))


@app.command()
def pack(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or its name in --runs.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The archive, .tar or .tar.gz; NAME.tar here by default.")
    ] = None,
    without: Annotated[
        str, typer.Option("--without", help="Leave these out, with commas between: sources, or paths in the run.")
    ] = "",
    runs: Runs = Path("runs"),
) -> None:
    """Make one archive of a run, to go on on another machine. The run may be half-done; each file is checked."""
    import tunesmith
    from tunesmith.commands.pack import to_pack

    left_out = [each.strip() for each in without.split(",") if each.strip()]
    folder = to_pack(name, runs)
    tunesmith.pack(folder, out or Path(f"{folder.path.resolve().name}.tar"), _say, without=left_out)


@app.command()
def unpack(
    archive: Annotated[Path, typer.Argument(metavar="FILE", help="The archive that pack wrote.")],
    into: Annotated[
        Path | None, typer.Option("--into", help="The run's new folder; runs/NAME here by default.")
    ] = None,
) -> None:
    """Restore a packed run, every byte of it checked first."""
    import tunesmith

    tunesmith.unpack(archive, into, _say)


# --- printing ----------------------------------------------------------------------------------------------


def main() -> None:
    """The command's entry: errors become one message and an exit code."""
    from tunesmith.errors import TunesmithError

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns that it cannot fetch kernels from a hub
    try:
        app()
    except TunesmithError as error:
        print(f"\ntunesmith: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except MemoryError:
        print("\ntunesmith: memory is full. Close other programs, or choose a smaller base.model.", file=sys.stderr)
        sys.exit(6)
    except SystemExit as ended:
        if ended.code != 130 or isinstance(ended, _Said):  # 130 is what typer makes of Ctrl-C
            raise
        print("\ntunesmith: stopped. What was finished is kept; the same command goes on.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


def _say(text: str) -> None:
    print(text, flush=True)


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _command() -> str:
    return shlex.join(["tunesmith", *sys.argv[1:]])


def _settings(given: list[str] | None) -> dict[str, Any]:
    from tunesmith.config.recipe import parse_setting

    return dict(parse_setting(text) for text in given or [])


def _show_audit(found: Any) -> None:
    """The findings as a table, the gravest first, and where the page is."""
    from rich.console import Console
    from rich.table import Table

    table = Table("check", "rows", "drop", "set aside", "mend", "look at", box=None, pad_edge=False)
    for check, facts in found.account["checks"].items():
        if facts["found"]:
            wishes = [facts["proposals"].get(each, 0) for each in ("drop", "quarantine", "repair", "keep")]
            cells = [f"{count:,}" if count else "" for count in (facts["rows"], *wishes)]
            table.add_row(check.replace("_", " "), *cells)
    console = Console(highlight=False)
    if table.row_count:
        console.print(table)
    else:
        _say("audit: nothing was found")
    for file in found.cleaned:
        _say(f"audit: {file.kept} rows in {file.file}, {file.changed} of them changed; {file.left_out} left out")
        _say(f"audit: to take it back: {shlex.join(['tunesmith', 'undo', str(file.diff)])} --out FILE")
    _say(f"audit: see {found.folder / 'audit.html'}")


_COLUMNS = (  # the widest first; the first that fits the terminal is drawn
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
    """The runs as a table that fits the terminal, as a line a run where none does; then what is to be said of some."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        _say(f"runs: there is none in {folder}")
    console = Console(highlight=False)
    wide = console.options.update(width=10_000)
    cells = [row.cells() for row in rows]
    for each in cells:  # of pypi:PACKAGE==VERSION/FILE and of folders the last part
        each["base model"] = each["base model"].rstrip("/").rpartition("/")[2]
    for names in _COLUMNS if cells else ():
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in names:
            table.add_column(name, justify="right" if name in _RIGHT else "left", no_wrap=True)
        for each in cells:
            table.add_row(*(Text(each[name]) for name in names))  # a folder may be called [bold]
        if console.measure(table, options=wide).maximum <= console.width:
            console.print(table)
            break
    else:
        for each in cells:
            told = ", ".join(f"{name} {each[name]}" for name in _COLUMNS[0][2:] if each[name])
            _say(f"{each['run']}: {each['state']}{', ' * bool(told)}{told}")
    for each in cells:
        if each["note"]:
            _say(f"{each['run']}: {each['note']}")


def _read(name: str, small: bool, settings: list[str] | None) -> Recipe:
    from tunesmith.config.recipe import read_recipe

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a fork of the tokenizer's threads would warn
    # Threads that wait at a barrier spin. With another busy program on a processor the default costs 4/5 of the speed
    # (66 tokens/s against 175, two trainings on two cores), alone it gains at most 5 % (dev/LOG.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

    return read_recipe(name, small=small, settings=_settings(settings))


class _Said(SystemExit):
    """The end of a command whose other processes have said why."""


def _several(gpus: int, name: str, small: bool, settings: list[str] | None, runs: Path, again: bool) -> None:
    """Ends this process with what the same command in `gpus` processes ends with."""
    from tunesmith.errors import RunError
    from tunesmith.runs.run import processes
    from tunesmith.training.launch import launch

    if processes() > 1:
        raise RunError("these processes train together already", where="--gpus", next="Leave it out under torchrun")
    changes = [word for setting in settings or [] for word in ("--set", setting)]
    flags = ["--small"] * small + ["--again"] * again
    sys.stdout.flush()
    raise _Said(launch(["train", name, *flags, *changes, "--runs", str(runs)], gpus))


@contextlib.contextmanager
def _joined(together: bool) -> Iterator[None]:
    """Inside the block the processes that torchrun started, if it did, know each other."""
    from tunesmith.errors import RunError
    from tunesmith.runs.run import processes

    if processes() == 1:
        yield
        return
    from tunesmith.training.distributed import joined

    try:
        with joined():
            if not together:
                raise RunError("only train is for several processes", where="torchrun", next="Start this one alone")
            yield
    except SystemExit as ended:  # another process has said why
        raise _Said(ended.code) from None


@contextlib.contextmanager
def _opened(
    name: str, small: bool, settings: list[str] | None, runs: Path, *, together: bool = False, keep: bool = True
) -> Iterator[tuple[Recipe, Run]]:
    """Recipe and run for a command; `together` says that several processes may give it as one.

    With `keep` the recipe, changed settings included, becomes the run's own when the command has succeeded.
    """
    import tunesmith

    with _joined(together):
        recipe = _read(name, small, settings)
        folder = tunesmith.open_run(recipe, runs)
        with folder.lock():
            folder.log(_command())
            try:
                yield recipe, folder
            except Exception as error:
                folder.log(f"{type(error).__name__}: {error}")
                raise
            if keep:
                folder.keep_recipe()


def _check_export(recipe: Recipe, folder: Run) -> None:
    """Refuses files that cannot be exported before anything is trained."""
    from tunesmith.commands.export import check_export
    from tunesmith.commands.shared import load_template_of, load_weights
    from tunesmith.errors import raise_all

    if recipe.export.files and folder.read_seal("train") is None:
        weights = load_weights(recipe, _say)
        raise_all(check_export(recipe, weights, load_template_of(recipe, weights, folder), folder))


def _show(found: Any) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    answers = f", {found.answers} answers" if found.answers != found.rows else ""
    _say(f"check: {found.rows} rows{answers}, the longest has {found.longest} tokens; {found.template}")
    for shown in found.shown:
        _say(f"check: {shown.title} ({shown.where}):")
        if console.is_terminal:
            parts = [(piece, "bold green" if learned else "dim") for piece, learned in shown.pieces]
            console.print(Text.assemble(*parts))
        else:  # without color the part with loss stands in brackets
            _say("".join(f"⟦{piece}⟧" if learned else piece for piece, learned in shown.pieces))
    marked = "in green" if console.is_terminal else "in ⟦brackets⟧"
    _say(f"check: the part {marked} is learned; its stop token is {found.stop}")
    for warning in found.warnings:
        _say(f"check: {warning}")


@contextlib.contextmanager
def _training() -> Iterator[Callable[[dict[str, Any]], None]]:
    """A line that is drawn anew at each step on a terminal; a line now and then elsewhere."""
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
                text = event.get("text") or f"going on after step {event['step']} of {event['total']}"
                console.print(f"train: {text}", markup=False)

        yield watch


def _progress(event: dict[str, Any]) -> str:
    speed = f", {event['tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in event else ""
    left = f", {_minutes(event['eta'])} left" if "eta" in event else ""
    valid = f", validation {event['valid']:.3f}" if "valid" in event else ""
    return f"train: step {event['step']} of {event['total']}, loss {event['loss']:.3f}{valid}{speed}{left}"


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


@contextlib.contextmanager
def _answering(verb: str = "evaluate") -> Iterator[Callable[[str, int, int], None]]:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)

    def tell(which: str, done: int, of: int) -> None:
        if done == of or (console.is_terminal and done % 4 == 0):
            console.print(f"{verb}: {which}: {done} of {of}", markup=False, end="\n" if done == of else "\r")

    yield tell


if __name__ == "__main__":
    main()
