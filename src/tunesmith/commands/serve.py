"""The verb serve: models behind an interface that OpenAI's clients know, for this machine or a named network."""

from __future__ import annotations

import contextlib
import ipaddress
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from tunesmith.commands import exported_files
from tunesmith.commands.shared import (
    Say,
    load_template_of,
    load_weights,
    model_file,
    open_run,
    refuse_other_template,
    silent,
)
from tunesmith.config.recipe import Recipe, is_recipe, read_recipe
from tunesmith.errors import ModelError, RecipeError, ResourceError
from tunesmith.runs.run import Run, hash_path

if TYPE_CHECKING:
    from tunesmith.serve.pairing import Pairing
    from tunesmith.serve.request_queue import Served
    from tunesmith.web.limits import Limits

PORT = 8765
SLOTS = 4


@dataclass(frozen=True)
class Wish:
    """What is to be served, and how. `models` are runs (folders, recipes) and GGUF files (paths, or names on the hub).

    `remote` is another server's URL, `model` its model, `key` the environment variable that holds its key. `recipe`
    goes with files and remote models, which name none. `slots` and `threads` and `context` are each GGUF's; None: four
    slots, the idle cores, what the model was trained on (at most 2,048 tokens).
    """

    models: Sequence[str] = ()
    port: int = PORT
    host: str | None = None
    allow: Sequence[str] = ()
    recipe: str | None = None
    remote: str | None = None
    model: str | None = None
    key: str | None = None
    slots: int | None = None
    threads: int | None = None
    context: int | None = None
    pair: bool = False
    runs: Path = Path("runs")


@dataclass(frozen=True)
class Serving:
    """A server that runs: its address, the file with its token, what it serves, its thread."""

    url: str
    token: Path
    models: Sequence[Served]
    thread: Thread


def serve(wish: Wish, say: Say = silent) -> None:
    """Serves until Ctrl-C. Raises what `serving` raises."""
    with contextlib.suppress(KeyboardInterrupt), serving(wish, say) as served:
        say(f"serve: {served.url}/v1 for {', '.join(each.name for each in served.models)}; the page {served.url}/docs")
        say(f"serve: every request needs the token in {served.token}; Ctrl-C ends the server")
        while served.thread.is_alive():
            served.thread.join(0.5)
    say("serve: ended")


@contextlib.contextmanager
def serving(wish: Wish, say: Say = silent, *, limits: Limits | None = None) -> Iterator[Serving]:
    """Inside the block the models are served.

    Raises RecipeError for wishes that do not go together, ModelError for a model that cannot be run, RunError for a run
    that is not finished or a token that others may read, ResourceError when the port is taken.
    """
    from tunesmith.serve.app import app
    from tunesmith.web.limits import Limits
    from tunesmith.web.local_server import LOOPBACK, listening
    from tunesmith.web.server import answering
    from tunesmith.web.token_file import read_token, token_path

    limits = limits or Limits()
    host = wish.host or LOOPBACK
    _check(wish, host)
    token = read_token()
    with listening(wish.port, host) as own, _models(wish, limits, say) as models:
        port = own.getsockname()[1]
        hosts = _hosts(host, port, wish.allow)
        if not _is_loopback(host):
            say(f"serve: open to the network on {host}; text and token cross it in clear unless TLS stands before it")
        made = app(models, token=token, hosts=hosts, limits=limits, pairing=_pairing(wish, say))
        with answering(made, own, limits) as thread:
            yield Serving(f"http://{hosts[0]}", token_path(), models, thread)


def _check(wish: Wish, host: str) -> None:
    if not wish.models and not wish.remote:
        raise RecipeError(
            "nothing to serve is named",
            where="serve",
            next="Name a run, a .gguf file, hub:OWNER/NAME/FILE.gguf, or --remote URL",
        )
    if wish.remote and not wish.model:
        raise RecipeError("--remote needs the model's name", where="--remote", next="Add --model NAME")
    if not wish.remote and (wish.model or wish.key):
        raise RecipeError("--model and --key go with --remote", where="serve", next="Add --remote URL, or leave them")
    if not _is_loopback(host) and not wish.allow:
        raise RecipeError(
            f"{host} is open to others, and no name is allowed for it", where="--host",
            next="Add --allow-host NAME, the name or address under which clients ask for it",
        )  # fmt: skip
    files = [name for name in wish.models if name.lower().endswith(".gguf") or Path(name).exists()]
    if wish.recipe and (len(files) < len(wish.models) or any(map(is_recipe, files))):
        raise RecipeError("a run has its own recipe", where="--recipe", next="Leave --recipe out")


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _hosts(host: str, port: int, allow: Sequence[str]) -> list[str]:
    """What may stand in the header Host, in small letters; the first is for this machine."""
    shown = f"[{host}]" if ":" in host else host
    anywhere = host in ("0.0.0.0", "::")  # noqa: S104 (asked for by name, with the names that are allowed)
    here = ["127.0.0.1", "localhost"] if anywhere or host in ("127.0.0.1", "localhost") else [shown]
    names = [f"{name}:{port}" for name in here]
    for name in allow:
        names += [name.lower(), f"{name.lower()}:{port}"]
    return names


@contextlib.contextmanager
def _models(wish: Wish, limits: Limits, say: Say) -> Iterator[list[Served]]:
    """Everything that is to be served, loaded; ended with the block."""
    from tunesmith.serve.request_queue import Desk, Served

    other = read_recipe(wish.recipe) if wish.recipe else None
    found: list[Served] = []
    with contextlib.ExitStack() as ending:

        def add(backend: Any, recipe: Recipe | None) -> None:
            ending.callback(backend.close)
            if any(each.name == backend.name for each in found):
                what, advice = f"two models are called {backend.name}", "Rename one, or serve it on another port"
                raise RecipeError(what, where="serve", next=advice)
            found.append(Served(backend.name, Desk(backend, limits.waiting, seconds=limits.reply_seconds), recipe))

        for name in wish.models:
            if (path := model_file(name, say)) is not None:
                add(_file(path, wish, say, other), other)
            else:
                recipe = read_recipe(name)
                add(_run(recipe, open_run(recipe, wish.runs, create=False), wish, say), recipe)
        if wish.remote:
            add(_remote(wish, other), other)
            say(f"serve: {wish.model}: asked for at {wish.remote}")
        yield found


def _file(path: Path, wish: Wish, say: Say, recipe: Recipe | None) -> Any:
    stop = tuple(recipe.prompt.stop) if recipe else ()
    return _gguf(path.stem, path, wish, say, stop=stop, template=None, why="a file")


def _run(recipe: Recipe, run: Run, wish: Wish, say: Say) -> Any:
    """The run's best verified GGUF, or its adapter."""
    run.fingerprint("train")  # raises when there is no finished adapter
    refuse_other_template(recipe, run)
    if (entry := verified(run, say)) is None:
        return _adapter(recipe, run, say)
    why = f"{entry['name']}, verified"
    template = _template(recipe, run, say)
    return _gguf(recipe.name, run / entry["path"], wish, say, stop=recipe.prompt.stop, template=template, why=why)


def _gguf(name: str, path: Path, wish: Wish, say: Say, *, stop: Sequence[str], template: Any, why: str) -> Any:
    from tunesmith.generation.from_gguf import FromGguf
    from tunesmith.serve.gguf_backend import GgufBackend

    model = FromGguf(
        path, stop=stop, slots=wish.slots or SLOTS, context=wish.context, threads=wish.threads, template=template
    )
    facts = model.facts
    with_threads = f"{facts.threads} thread{'s' * (facts.threads > 1)}"
    say(f"serve: {name}: {path} ({why}), {facts.slots} slots of {facts.context:,} tokens, {with_threads}")
    return GgufBackend(name, model)


def _template(recipe: Recipe, run: Run, say: Say) -> Any:
    """What prompts were rendered with in training. Without the base's tokenizer the file's own, proven alike."""
    try:
        return load_template_of(recipe, load_weights(recipe, say), run, say)
    except (ModelError, ResourceError) as error:
        say(f"serve: the file's own template renders prompts, for the base's tokenizer is not here: {error}")
        return None


def _adapter(recipe: Recipe, run: Run, say: Say) -> Any:
    from tunesmith.commands.evaluate import chat
    from tunesmith.serve.weights_backend import WeightsBackend

    model = chat(recipe, run, say)
    trained = getattr(model.model.network.config, "max_position_embeddings", None)
    command = f"tunesmith export {shlex.quote(str(run.path))}"
    say(f"serve: {recipe.name}: {run / 'adapter'}, one reply at a time; for several: {command}")
    return WeightsBackend(recipe.name, model, int(trained) if trained else None)


def _remote(wish: Wish, recipe: Recipe | None) -> Any:
    from tunesmith.generation.from_server_async import FromServerAsync
    from tunesmith.serve.remote_backend import SLOTS as MANY
    from tunesmith.serve.remote_backend import RemoteBackend

    name = wish.model or ""
    server = FromServerAsync(wish.remote or "", name, key=wish.key)
    return RemoteBackend(name, server, wish.slots or MANY, recipe.prompt.stop if recipe else ())


def revoke_pairing(which: str, say: Say = silent) -> None:
    """Lets paired extensions in no more: those called `which`, or all. Raises RunError where none is called so."""
    from tunesmith.serve import pairing

    gone = pairing.unpair("" if which == "all" else which)
    say(f"serve: unpaired: {', '.join(each.name or each.origin for each in gone) or 'there was none'}")


def verified(run: Run, say: Say = silent) -> dict[str, Any] | None:
    """The entry of the run's best GGUF file that is verified, of the adapter as it is now, and undamaged."""
    usable = exported_files.verified(run)
    if usable and not exported_files.of_this_adapter(run):
        command = f"tunesmith export {shlex.quote(str(run.path))}"
        say(f"serve: the exported GGUF files are of an older adapter; to make them anew: {command}")
        return None
    for entry in usable:
        if (run / entry["path"]).is_file() and hash_path(run / entry["path"]) == entry["sha256"]:
            return entry
        say(f"serve: {entry['path']} is gone or was changed since it was verified; it is passed over")
    return None


def _pairing(wish: Wish, say: Say) -> Pairing:
    """What lets extensions in: those that were paired, and with --pair one more."""
    from tunesmith.serve.pairing import SECONDS, Pairing

    made = Pairing()
    if wish.pair:
        say(f"serve: to let an extension in, enter this code there within {SECONDS // 60} minutes: {made.code()}")
    return made
