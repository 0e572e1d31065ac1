"""The verb export: files that run elsewhere, each of which has answered the test rows in its own runtime."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.commands import exported_files
from tunesmith.commands.evaluate import chat, held_out, learnt
from tunesmith.commands.shared import Say, is_fresh, load_template_of, load_weights, refuse_changed, silent
from tunesmith.config.recipe import Named, Recipe
from tunesmith.config.registry import check_options, nearest
from tunesmith.data.conversation import Conversation, read_rows
from tunesmith.errors import (
    ExportFailed,
    ModelError,
    Paused,
    RecipeError,
    RunError,
    TunesmithError,
    Unverified,
    raise_all,
)
from tunesmith.exporting.staging import MARK, Staged, files_in
from tunesmith.models.weights import Weights
from tunesmith.runs.run import Run, hash_bytes, hash_path, hash_plain

FOLDER = "export"
STEP = 256  # tokens; a context is a multiple of it
Tell = Callable[[str, int, int], None]


def check_export(recipe: Recipe, weights: Weights, template: Any, run: Run | None = None) -> list[TunesmithError]:
    """What stands in the way of the recipe's export.files, found without an adapter and without reading weights.

    Files that an earlier export left in `run` count as written.
    """
    if not recipe.export.files:
        return []
    folder = (run.path if run else weights.folder) / FOLDER
    job = _job(recipe, weights, template, folder, adapter=Path("adapter"), precision="float32")
    names = [named.name for named in recipe.export.files]
    wrong: list[TunesmithError] = [
        RecipeError(f"'{name}' is named twice", where="export.files", next=f"Give {name} all its options in one entry")
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    wrong += _too_long(recipe, weights)
    for place, named in enumerate(recipe.export.files):
        wrong += _refusals(named, _request(recipe, job, place))
    return list({str(error): error for error in wrong}.values())


def export_warnings(recipe: Recipe, weights: Weights, template: Any) -> list[str]:
    """What is known to go wrong with the recipe's export.files, although they can be written."""
    if not recipe.export.files:
        return []
    wish = recipe.train.precision
    precision = wish if wish in ("float32", "bfloat16", "float16") else ""  # others depend on the machine
    job = _job(recipe, weights, template, weights.folder / FOLDER, adapter=Path("adapter"), precision=precision)
    return [
        f"export.files: {named.name}: {warning}"
        for place, named in enumerate(recipe.export.files)
        if hasattr(target := _target(named.name), "warnings")
        for warning in target.warnings(_request(recipe, job, place), **named.options)
    ]


def export(recipe: Recipe, run: Run, say: Say = silent, tell: Tell | None = None, *, only: Sequence[str] = ()) -> Path:
    """Writes what export.files names below export/, verifies each file on the test rows, and writes export.json.

    `only` leaves all other targets out. Each target's files are written beside those that are there and take their
    place when they are finished; what they replace is kept in old/. Run again after an interruption, it resumes. A
    target that fails does not stop the others: their errors are raised together at the end, as ExportFailed, and so is
    Unverified for files that are not the model that was tested, which are kept and marked.
    """
    refuse_changed(recipe, run)
    wanted = _wanted(recipe, only)
    if not wanted:
        return run / "export.json"
    work = _Work(recipe, run, say, tell or (lambda what, done, of: None))
    for product in ("train", "evaluate"):
        run.fingerprint(product)  # raises when it is not finished
    entries: list[dict[str, Any]] = []
    failures: dict[str, TunesmithError] = {}
    for named in wanted:
        try:
            entries += work.shipped(named, failures)
        except Paused:
            raise
        except TunesmithError as error:
            failures[named.name] = error
            if len(wanted) > 1:
                say(f"export: {named.name} was not written: {error}")
        known = {entry["name"]: entry for entry in [*exported_files.entries(run), *entries]}
        if known:
            run.write_json("export.json", {"onto": recipe.export.onto, "files": list(known.values())})
    for entry in entries:
        say(f"export: {told(entry)}")
    _raise_what_failed(run, entries, failures)
    return run / "export.json"


def _raise_what_failed(run: Run, entries: Sequence[dict[str, Any]], failures: Mapping[str, TunesmithError]) -> None:
    faulty = [entry for entry in entries if entry["problems"]]
    errors = dict(failures)
    if faulty:
        what = "; ".join(f"{entry['name']}: {entry['problems'][0]}" for entry in faulty)
        errors["export"] = Unverified(
            f"not every file is the model that was tested. {what}",
            where=str(run / "export.json"),
            next="The files are kept and marked; export another type, or loosen export.keep and export.agree",
        )
    if len(errors) == 1 and (faulty or not entries):
        raise next(iter(errors.values()))
    if errors:
        raise ExportFailed(errors)


def push(recipe: Recipe, run: Run, say: Say = silent, *, dry_run: bool = False) -> None:
    """Sends what the target `hub` laid out; with `dry_run` says what would go.

    Raises RunError when nothing is laid out, Unverified when it did not pass, and what targets/hub.py's push raises.
    """
    from tunesmith.exporting.targets import hub

    named = next((named for named in recipe.export.files if named.name == "hub"), None)
    entry = next((entry for entry in exported_files.entries(run) if entry["target"] == "hub"), None)
    if named is None or entry is None:
        command = f"tunesmith export {shlex.quote(str(run.path))}"
        raise RunError(
            "nothing is laid out for the hub", where=str(run.path),
            next=f"Add {{hub: {{repo: owner/name}}}} to export.files, and run: {command}",
        )  # fmt: skip
    if entry["problems"]:
        raise Unverified(f"the folder for the hub is faulty: {entry['problems'][0]}", where=entry["path"])
    work = _Work(recipe, run, say, lambda what, done, of: None)
    (file,) = hub.write(work.job, **named.options)
    private = file.notes["private"] == "yes"
    sent = hub.push(work.job, file, repo=file.notes["repo"], private=private, dry_run=dry_run)
    for each in sent:
        say(f"push: {each.bytes:>13,} {each.sha256[:12]} {each.path}{'' if each.searched else ' (not searched)'}")
    where = f"{file.notes['repo']} ({'private' if private else 'public'})"
    say(f"push: {len(sent)} files {'would go' if dry_run else 'went'} to {where}")


def told(entry: dict[str, Any]) -> str:
    """One line about an entry of export.json."""
    words = [f"{entry['name']}, {entry['bytes'] / 1e6:,.0f} MB, {entry['path']}"]
    share = entry.get("share") or {}
    if share.get("share") is not None:
        words.append(f"keeps {100 * share['share']:.1f} % of the gain")
    if entry.get("facts"):
        words.append(f"{entry['facts']['rate']:.0f} tokens/s here")
    return f"{'verified' if not entry['problems'] else 'NOT VERIFIED'}: {'; '.join(words)}"


def _wanted(recipe: Recipe, only: Sequence[str]) -> list[Named]:
    names = [named.name for named in recipe.export.files]
    for name in only:
        if name not in names:
            advice = (
                nearest(name, names) if names else f"It is empty: add {name} to it, or --set 'export.files=[{name}]'"
            )
            raise RecipeError(f"export.files has no '{name}'", where="--only", next=advice)
    return [named for named in recipe.export.files if not only or named.name in only]


@dataclass
class _Work:
    """What all targets of one export share."""

    recipe: Recipe
    run: Run
    say: Say
    tell: Tell

    @functools.cached_property
    def job(self) -> Any:
        recipe, run = self.recipe, self.run
        weights = load_weights(recipe, self.say)
        job = _job(
            recipe, weights, load_template_of(recipe, weights, run, self.say), run / FOLDER, adapter=run / "adapter",
            precision=str(run.read_json("machine.json")["precision"]),
        )  # fmt: skip
        return replace(job, card=self._card, say=lambda text: self.say(f"export: {text}"))

    def shipped(self, named: Named, failures: Mapping[str, TunesmithError]) -> list[dict[str, Any]]:
        """Writes one target's files and verifies each; `failures` are those of the targets before it."""
        target = _target(named.name)
        needed = target.needs(**named.options) if hasattr(target, "needs") else ""
        if needed in failures:
            what = f"{named.name} needs {needed}, which was not written"
            raise ModelError(what, where=f"export.files: {named.name}", next=f"See what is said of {needed}")
        made_from = self._made_from(named, target)
        if not is_fresh(self.run, f"export-{named.name}", made_from, self.say):
            return self._made(named, target, made_from)
        files = self._files(named, target)
        return [self._entry(named, target, file, self._verified(named, target, self.job, file)) for file in files]

    def _made(self, named: Named, target: Any, made_from: dict[str, str]) -> list[dict[str, Any]]:
        """Writes the files that are missing or outdated, verifies them, and puts them in their places."""
        began = time.time()
        raise_all(_refusals(named, _request(self.recipe, self.job, self.recipe.export.files.index(named))))
        staged = Staged(self.run, self.job.folder, named.name, made_from, frozenset(getattr(target, "SELECT", ())))
        staged.begin()
        job = replace(self.job, place=staged.place, standing=staged.standing)
        files = [staged.there(file) for file in target.write(job, **named.options)]
        staged.finish()
        verified = {file.name: self._verified(named, target, job, file) for file in files}
        if aside := staged.swap(self._aside):
            self.say(f"export: the former files of {named.name} are now in {aside}")
        files = self._files(named, target)
        staged.seal([file.path for file in files], seconds=round(time.time() - began, 1))
        return [self._entry(named, target, file, verified[file.name]) for file in files]

    def _files(self, named: Named, target: Any) -> list[Any]:
        """The target's files, all of which are in place."""
        folder = self.job.folder / named.name
        standing = frozenset(each.relative_to(folder).as_posix() for each in files_in(folder))
        return list(target.write(replace(self.job, standing=standing), **named.options))

    def _made_from(self, named: Named, target: Any) -> dict[str, str]:
        """What the target's files depend on; options that only select files stand apart."""
        from tunesmith.exporting.merge import shipped_template

        job, select = self.job, getattr(target, "SELECT", ())
        options = {key: value for key, value in named.options.items() if key not in select}
        made_from = {
            "adapter": self.run.fingerprint("train"),
            "base": job.weights.fingerprint,
            "template": hash_bytes(shipped_template(job).encode()),
            "settings": hash_plain([options, job.name, job.onto, job.stop, job.limit, job.context, job.system]),
            **{key: hash_plain(named.options.get(key)) for key in select},
        }
        if hasattr(target, "check"):  # made of the card and of other targets' files
            sources = [(self.run.read_seal(f"export-{name}") or {}).get("files") for name in ("gguf", "merged")]
            made_from["files"] = hash_plain(sources)
            made_from["card"] = hash_bytes(self._card().encode()) if named.name != "ollama" else ""
        return made_from

    @functools.cached_property
    def _aside(self) -> Path:
        """The folder for what this export replaces."""
        return self.run / f"old/{time.strftime('%Y%m%d-%H%M%S')}"

    def _verified(self, named: Named, target: Any, job: Any, file: Any) -> _Verified:
        """What is known of a file: from an earlier verification of the same bytes, or measured now."""
        made_from = {
            "file": hash_path(file.path),
            "scores": self.run.fingerprint("evaluate"),
            "wish": hash_plain(
                [
                    self.recipe.export.model_dump(mode="json", exclude={"files"}),
                    self.recipe.evaluate.model_dump(mode="json"),
                ]
            ),
        }
        if is_fresh(self.run, f"verify-{file.name}", made_from, self.say):
            return _Verified(made_from, self.run.read_json(_proof_of(file.name)), None)
        self.say(f"export: verifying {file.name}")
        proof, replies = self._proof(named, target, job, file, made_from)
        return _Verified(made_from, proof, replies)

    def _entry(self, named: Named, target: Any, file: Any, known: _Verified) -> dict[str, Any]:
        """The entry of export.json for a file that is in its place; marks a file that did not pass."""
        entry = {
            "name": file.name,
            "target": named.name,
            "path": self._relative(file.path),
            "bytes": sum(each.stat().st_size for each in files_in(file.path)),
            "sha256": known.made_from["file"],
            "exact": file.exact,
            **known.proof,
            "commands": dict(file.commands),  # the run may have moved since the proof
            "notes": dict(file.notes),
        }
        if known.replies is None:
            return entry
        if known.replies:
            self.run.write(f"replies/export-{file.name}.jsonl", "".join(f"{line}\n" for line in known.replies))
        (self.run / f"replies/export-{file.name}.part").unlink(missing_ok=True)
        self._mark(file.path, entry["problems"])
        self.run.write_json(_proof_of(file.name), entry)
        self.run.seal(f"verify-{file.name}", known.made_from, [_proof_of(file.name)])
        return entry

    def _proof(
        self, named: Named, target: Any, job: Any, file: Any, made_from: dict[str, str]
    ) -> tuple[dict[str, Any], Sequence[str]]:
        """What was measured of a file as plain values, and its replies as lines of JSON."""
        from tunesmith.exporting.verification import prove

        if hasattr(target, "check"):
            problems = list(target.check(job, file))
            return {"problems": problems, "verified": not problems}, ()
        run, recipe = self.run, self.recipe
        base, tuned = self._answers
        examples, reference = self._reference
        kept = run / f"replies/export-{file.name}.part"
        try:
            with contextlib.closing(target.opened(job, file)) as runtime:
                proof = prove(
                    file, runtime, template=job.template, rows=self._rows, parts=self._asked, base=base,
                    adapter=tuned, examples=examples, reference=reference, wish=recipe.export,
                    evaluate=recipe.evaluate, seed=recipe.seed, kept=kept, made_from=made_from,
                    known=self._known,
                    tell=lambda what, done, of: self.tell(f"{file.name}, {what}", done, of),
                )  # fmt: skip
        except ModelError as error:  # it cannot be run at all
            return {"problems": [str(error)], "verified": False}, ()
        lines = [json.dumps(item.describe(), ensure_ascii=False) for item in proof.replies.answered]
        if proof.problems and hasattr(target, "warnings"):
            request = _request(recipe, job, [each.name for each in recipe.export.files].index(named.name))
            known = " ".join(f"Known cause: {each}." for each in target.warnings(request, **named.options))
            proof = replace(proof, problems=tuple(f"{each} {known}".strip() for each in proof.problems))
        return {key: value for key, value in proof.describe().items() if key not in ("name", "exact")}, lines

    @functools.cached_property
    def _rows(self) -> list[Conversation]:
        """Every held-out row: each one's prompt must become the same tokens."""
        return [row for part in ("test", "unseen") for row in read_rows(self.run / f"data/{part}.jsonl")]

    @functools.cached_property
    def _asked(self) -> dict[str, list[Conversation]]:
        """The rows that base and tuned answered, or as many of them as a file is asked."""
        from tunesmith.evaluation.comparison import choose

        return choose(held_out(self.recipe, self.run), self.recipe.export.rows, self.recipe.seed)

    @functools.cached_property
    def _known(self) -> Any:
        return learnt(self.run)

    @functools.cached_property
    def _answers(self) -> tuple[Any, Any]:
        from tunesmith.evaluation.comparison import read_answered

        base, tuned = (read_answered(self.run / f"replies/{which}.jsonl") for which in ("base", "tuned"))
        return base, tuned

    @functools.cached_property
    def _reference(self) -> tuple[Any, Any]:
        """Learnt tokens of some rows, and what the adapter over the base as it was trained thinks of them."""
        from tunesmith.exporting.likelihood import examples, reference_scores

        wish = self.recipe.export
        chosen = examples(
            self._asked, self.job.template, learn=self.recipe.prompt.learn, limit=wish.likelihood_rows,
            seed=self.recipe.seed,
        )  # fmt: skip
        return chosen, reference_scores(chat(self.recipe, self.run), chosen)

    def _card(self) -> str:
        from tunesmith.commands.runs import card

        return card(self.recipe, self.run, self.say).read_text(encoding="utf-8")

    def _relative(self, path: Path) -> str:
        return path.resolve().relative_to(self.run.path.resolve()).as_posix()

    def _mark(self, path: Path, problems: Sequence[str]) -> None:
        mark = path.with_name(path.name + MARK)
        if problems:
            self.run.write(self._relative(path.parent) + "/" + mark.name, "".join(f"{each}\n" for each in problems))
        else:
            mark.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Verified:
    """A file's verification: what it depends on, its figures, its replies (None when they were known before)."""

    made_from: dict[str, str]
    proof: dict[str, Any]
    replies: Sequence[str] | None


def _proof_of(name: str) -> str:
    return f"{FOLDER}/.proofs/{name}.json"


def _target(name: str) -> Any:
    return importlib.import_module(f"tunesmith.exporting.targets.{name}")


def _job(recipe: Recipe, weights: Weights, template: Any, folder: Path, *, adapter: Path, precision: str) -> Any:
    from tunesmith.exporting.job import Job

    return Job(
        name=recipe.name,
        folder=folder,
        weights=weights,
        adapter=adapter,
        template=template,
        stop=tuple(recipe.prompt.stop),
        onto=recipe.export.onto,
        bits=recipe.base.bits,
        precision=precision,
        limit=recipe.evaluate.max_new_tokens,
        context=_context(recipe, weights.folder),
        seed=recipe.seed,
        card=lambda: "",
        system=recipe.prompt.system,
    )


def _request(recipe: Recipe, job: Any, place: int) -> Any:
    """What is asked of the target at `place` in export.files."""
    from tunesmith.exporting.job import Request

    before = tuple(recipe.export.files[:place])
    named = (each for target in before if target.name == "gguf" for each in target.options.get("types", ["q4_k_m"]))
    there = (path.name.removeprefix(f"{job.name}.").removesuffix(".gguf") for path in (job.folder / "gguf").glob("*.gguf"))  # noqa: E501  # fmt: skip
    return Request(recipe, job, before, frozenset([*named, *there]))


def _refusals(named: Named, request: Any) -> list[TunesmithError]:
    """Why a target cannot work: its options first, since the rest builds on them."""
    target, where = _target(named.name), f"export.files: {named.name}"
    wrong: list[TunesmithError] = [*check_options(target.write, named.options, where=lambda name: f"{where}.{name}")]
    if not wrong and hasattr(target, "validate"):
        try:
            wrong += target.validate(request, **named.options)
        except TunesmithError as error:
            wrong.append(error)
    return wrong


def _too_long(recipe: Recipe, weights: Weights) -> Iterator[TunesmithError]:
    trained = _trained(recipe, weights.folder)
    if trained and recipe.evaluate.max_new_tokens >= trained:
        yield RecipeError(
            f"the base was trained on {trained} tokens, which a reply of evaluate.max_new_tokens: "
            f"{recipe.evaluate.max_new_tokens} fills alone", where="export.files",
            next="Set evaluate.max_new_tokens to less than half of that",
        )  # fmt: skip


def _context(recipe: Recipe, folder: Path) -> int:
    """Tokens for the longest prompt and the longest reply, no more than the model was trained on."""
    wanted = -(-(recipe.prompt.max_tokens + recipe.evaluate.max_new_tokens) // STEP) * STEP
    return min(wanted, _trained(recipe, folder) or wanted)


def _trained(recipe: Recipe, folder: Path) -> int:
    """How many tokens the base was trained on at once; 0 where its configuration does not say."""
    from tunesmith.models.weights import read_config

    config = read_config(folder, recipe.base.model)
    text = config.get("text_config") or {}
    keys = ("max_position_embeddings", "n_positions")
    return int(next((each[key] for each in (config, text) for key in keys if each.get(key)), 0))
