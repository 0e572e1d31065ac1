"""Serves models over an OpenAI-compatible API."""

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
    Reporter,
    load_recipe_template,
    load_weights,
    model_file,
    open_run,
    require_same_template,
    silent,
)
from tunesmith.config.recipe import Recipe, is_recipe, read_recipe
from tunesmith.errors import ModelError, RecipeError, ResourceError
from tunesmith.runs.run import Run, hash_path

if TYPE_CHECKING:
    from tunesmith.serve.backend import ServedModel
    from tunesmith.serve.pairing import Pairing
    from tunesmith.web.errors import Limits

PORT = 8765
SLOTS = 4


@dataclass(frozen=True)
class ServeOptions:
    """Options of `serve`. `models` are runs (folders, recipes) and GGUF files (paths, or names on the Hub).

    `remote` is another server's URL, `model` its model, `key` the environment variable with its API key. `recipe` is
    for files and remote models, which have none. `slots`, `threads` and `context` apply to each GGUF file; None: four
    slots, the idle cores, and the model's own context, at most 2,048 tokens.
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
class RunningServer:
    """A running server: its URL, the file with its token, the served models, and its thread."""

    url: str
    token: Path
    models: Sequence[ServedModel]
    thread: Thread


def serve(wish: ServeOptions, log: Reporter = silent) -> None:
    """Serves until Ctrl-C. Raises what `start_server` raises."""
    with contextlib.suppress(KeyboardInterrupt), start_server(wish, log) as served:
        names = ", ".join(model.name for model in served.models)
        log(f"serve: {served.url}/v1 for {names}; documentation at {served.url}/docs")
        log(f"serve: requests need the token in {served.token}; Ctrl-C stops the server")
        while served.thread.is_alive():
            served.thread.join(0.5)
    log("serve: stopped")


@contextlib.contextmanager
def start_server(
    wish: ServeOptions, log: Reporter = silent, *, limits: Limits | None = None
) -> Iterator[RunningServer]:
    """Serves the models inside the block.

    Raises RecipeError for options that exclude each other, ModelError for a model that cannot be run, RunError for a
    run that is not finished or a token file that others can read, ResourceError if the port is in use.
    """
    from tunesmith.serve.app import create_app
    from tunesmith.web.errors import Limits
    from tunesmith.web.server import LOOPBACK, listen, serve_with_limits
    from tunesmith.web.token_file import read_token, token_path

    limits = limits or Limits()
    host = wish.host or LOOPBACK
    _check(wish, host)
    token = read_token()
    with listen(wish.port, host) as listener, _models(wish, limits, log) as models:
        port = listener.getsockname()[1]
        hosts = _hosts(host, port, wish.allow)
        if not _is_loopback(host):
            log(
                f"serve: reachable from the network on {host}; use a TLS proxy, or texts and token are sent unencrypted"
            )
        api = create_app(models, token=token, hosts=hosts, limits=limits, pairing=_pairing(wish, log))
        with serve_with_limits(api, listener, limits) as thread:
            yield RunningServer(f"http://{hosts[0]}", token_path(), models, thread)


def _check(wish: ServeOptions, host: str) -> None:
    if not wish.models and not wish.remote:
        raise RecipeError(
            "no model is given",
            where="serve",
            next="Give a run, a .gguf file, hub:OWNER/NAME/FILE.gguf, or --remote URL",
        )
    if wish.remote and not wish.model:
        raise RecipeError("--remote needs the model's name", where="--remote", next="Add --model NAME")
    if not wish.remote and (wish.model or wish.key):
        raise RecipeError("--model and --key need --remote", where="serve", next="Add --remote URL, or omit them")
    if not _is_loopback(host) and not wish.allow:
        raise RecipeError(
            f"{host} is reachable from the network, but no host name is allowed", where="--host",
            next="Add --allow-host NAME, the name or address that clients use",
        )  # fmt: skip
    files = [name for name in wish.models if name.lower().endswith(".gguf") or Path(name).exists()]
    if wish.recipe and (len(files) < len(wish.models) or any(map(is_recipe, files))):
        raise RecipeError("a run has its own recipe", where="--recipe", next="Omit --recipe")


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _hosts(host: str, port: int, allow: Sequence[str]) -> list[str]:
    """Returns the allowed values of the Host header, in lower case; the first one is for this machine."""
    address = f"[{host}]" if ":" in host else host
    anywhere = host in ("0.0.0.0", "::")  # noqa: S104 (the user asked for it, and gave the allowed names)
    here = ["127.0.0.1", "localhost"] if anywhere or host in ("127.0.0.1", "localhost") else [address]
    names = [f"{name}:{port}" for name in here]
    for name in allow:
        names += [name.lower(), f"{name.lower()}:{port}"]
    return names


@contextlib.contextmanager
def _models(wish: ServeOptions, limits: Limits, log: Reporter) -> Iterator[list[ServedModel]]:
    """Loads all models to serve; closes them at the end of the block."""
    from tunesmith.serve.backend import RequestQueue, ServedModel

    file_recipe = read_recipe(wish.recipe) if wish.recipe else None
    served: list[ServedModel] = []
    with contextlib.ExitStack() as ending:

        def add(backend: Any, recipe: Recipe | None) -> None:
            ending.callback(backend.close)
            if any(model.name == backend.name for model in served):
                problem, advice = f"two models are named {backend.name}", "Rename one, or serve it on another port"
                raise RecipeError(problem, where="serve", next=advice)
            served.append(
                ServedModel(backend.name, RequestQueue(backend, limits.waiting, seconds=limits.reply_seconds), recipe)
            )

        for name in wish.models:
            if (path := model_file(name, log)) is not None:
                add(_file(path, wish, log, file_recipe), file_recipe)
            else:
                recipe = read_recipe(name)
                add(_run(recipe, open_run(recipe, wish.runs, create=False), wish, log), recipe)
        if wish.remote:
            add(_remote(wish, file_recipe), file_recipe)
            log(f"serve: {wish.model}: requests go to {wish.remote}")
        yield served


def _file(path: Path, wish: ServeOptions, log: Reporter, recipe: Recipe | None) -> Any:
    stop = tuple(recipe.prompt.stop) if recipe else ()
    return _gguf(path.stem, path, wish, log, stop=stop, template=None, why="a file")


def _run(recipe: Recipe, run: Run, wish: ServeOptions, log: Reporter) -> Any:
    """Loads the run's best verified GGUF file, or its adapter."""
    run.fingerprint("train")  # raises when there is no finished adapter
    require_same_template(recipe, run)
    if (entry := best_verified_gguf(run, log)) is None:
        return _adapter(recipe, run, log)
    why = f"{entry['name']}, verified"
    template = _template(recipe, run, log)
    return _gguf(recipe.name, run / entry["path"], wish, log, stop=recipe.prompt.stop, template=template, why=why)


def _gguf(
    name: str, path: Path, wish: ServeOptions, log: Reporter, *, stop: Sequence[str], template: Any, why: str
) -> Any:
    from tunesmith.generation.from_gguf import GgufModel
    from tunesmith.serve.gguf_backend import GgufBackend

    model = GgufModel(
        path, stop=stop, slots=wish.slots or SLOTS, context=wish.context, threads=wish.threads, template=template
    )
    facts = model.facts
    with_threads = f"{facts.threads} thread{'s' * (facts.threads > 1)}"
    log(f"serve: {name}: {path} ({why}), {facts.slots} slots of {facts.context:,} tokens, {with_threads}")
    return GgufBackend(name, model)


def _template(recipe: Recipe, run: Run, log: Reporter) -> Any:
    """Returns the training template; None, for the file's own, if the base model's tokenizer is not available."""
    try:
        return load_recipe_template(recipe, load_weights(recipe, log), run, log)
    except (ModelError, ResourceError) as error:
        log(f"serve: using the file's own chat template, because the base model's tokenizer is not available: {error}")
        return None


def _adapter(recipe: Recipe, run: Run, log: Reporter) -> Any:
    from tunesmith.commands.chat import chat
    from tunesmith.serve.weights_backend import WeightsBackend

    model = chat(recipe, run, log)
    trained = getattr(model.model.network.config, "max_position_embeddings", None)
    command = f"tunesmith export {shlex.quote(str(run.path))}"
    log(f"serve: {recipe.name}: {run / 'adapter'}, one reply at a time; to serve several at once: {command}")
    return WeightsBackend(recipe.name, model, int(trained) if trained else None)


def _remote(wish: ServeOptions, recipe: Recipe | None) -> Any:
    from tunesmith.generation.from_server import AsyncServerModel
    from tunesmith.serve.remote_backend import SLOTS as MANY
    from tunesmith.serve.remote_backend import RemoteBackend

    name = wish.model or ""
    server = AsyncServerModel(wish.remote or "", name, key=wish.key)
    return RemoteBackend(name, server, wish.slots or MANY, recipe.prompt.stop if recipe else ())


def revoke_pairing(client: str, log: Reporter = silent) -> None:
    """Revokes the paired extension `client`, or all. Raises RunError if there is none with this name."""
    from tunesmith.serve import pairing

    revoked = pairing.unpair("" if client == "all" else client)
    names = ", ".join(extension.name or extension.origin for extension in revoked)
    log(f"serve: unpaired: {names or 'none was paired'}")


def best_verified_gguf(run: Run, log: Reporter = silent) -> dict[str, Any] | None:
    """Returns the entry of the best verified and intact GGUF file of the current adapter, or None."""
    usable = exported_files.verified_ggufs(run)
    if usable and not exported_files.is_of_current_adapter(run):
        command = f"tunesmith export {shlex.quote(str(run.path))}"
        log(f"serve: the exported GGUF files are of an older adapter; to export again: {command}")
        return None
    for entry in usable:
        if (run / entry["path"]).is_file() and hash_path(run / entry["path"]) == entry["sha256"]:
            return entry
        log(f"serve: skipping {entry['path']}: it is missing or was changed since it was verified")
    return None


def _pairing(wish: ServeOptions, log: Reporter) -> Pairing:
    """Returns the pairings of browser extensions; with --pair, logs the code for another one."""
    from tunesmith.serve.pairing import CODE_SECONDS, Pairing

    pairings = Pairing()
    if wish.pair:
        log(f"serve: to pair a browser extension, enter within {CODE_SECONDS // 60} minutes: {pairings.code()}")
    return pairings
