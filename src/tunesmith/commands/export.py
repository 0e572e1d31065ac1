"""Exports files for other runtimes and verifies each with replies to the test rows in its runtime."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.commands import exported_files
from tunesmith.commands.chat import chat
from tunesmith.commands.shared import (
    Reporter,
    held_out,
    is_up_to_date,
    load_recipe_template,
    load_weights,
    require_same_settings,
    silent,
    train_index,
)
from tunesmith.config.recipe import TARGETS, NamedSetting, Recipe
from tunesmith.config.registry import check_options, entry_module, is_foreign, nearest, own_errors, packages
from tunesmith.data.conversation import Conversation, read_rows
from tunesmith.errors import (
    ExportFailed,
    ModelError,
    Paused,
    RecipeError,
    RunError,
    TunesmithError,
    VerificationFailed,
    raise_all,
)
from tunesmith.exporting.job import MARK, Staged, files_in
from tunesmith.models.weights import Weights
from tunesmith.runs.run import Run, command_for_product, hash_bytes, hash_json, hash_path

FOLDER = "export"
CONTEXT_STEP = 256  # tokens; context lengths are multiples of it
OnProgress = Callable[[str, int, int], None]


def check_export(recipe: Recipe, weights: Weights, template: Any, run: Run | None = None) -> list[TunesmithError]:
    """Returns what prevents the recipe's export.files, found without an adapter and without reading weights.

    Files of an earlier export in `run` count as written.
    """
    if not recipe.export.files:
        return []
    folder = (run.path if run else weights.folder) / FOLDER
    job = _job(recipe, weights, template, folder, adapter=Path("adapter"), precision="float32")
    names = [target.name for target in recipe.export.files]
    errors: list[TunesmithError] = [
        RecipeError(f"'{name}' is named twice", where="export.files", next=f"Put all options of {name} in one entry")
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    errors += _check_context(recipe, weights)
    for index, target in enumerate(recipe.export.files):
        errors += _target_errors(target, _request(recipe, job, index))
    return list({str(error): error for error in errors}.values())


def export_warnings(recipe: Recipe, weights: Weights, template: Any) -> list[str]:
    """Returns known problems of targets in export.files that can be written, one sentence each."""
    if not recipe.export.files:
        return []
    setting = recipe.train.precision
    precision = setting if setting in ("float32", "bfloat16", "float16") else ""  # others depend on the machine
    job = _job(recipe, weights, template, weights.folder / FOLDER, adapter=Path("adapter"), precision=precision)
    return [
        f"export.files: {target.name}: {warning}"
        for index, target in enumerate(recipe.export.files)
        if hasattr(module := _target(target.name), "warnings")
        for warning in module.warnings(_request(recipe, job, index), **target.options)
    ]


def export(
    recipe: Recipe, run: Run, log: Reporter = silent, on_progress: OnProgress | None = None, *, only: Sequence[str] = ()
) -> Path:
    """Writes the targets of export.files to export/, verifies each file on the test rows, and writes export.json.

    `only` selects targets. A target's files are written to a temporary folder and replace the existing ones when they
    are finished; replaced files are kept in old/. An interrupted export is resumed. If a target fails, the others are
    still exported; all errors are raised together at the end as ExportFailed, with VerificationFailed for files that
    did not pass verification, which are kept and marked.
    """
    require_same_settings(recipe, run)
    targets = _selected_targets(recipe, only)
    if not targets:
        return run / "export.json"
    exporter = Exporter(recipe, run, log, on_progress or (lambda label, count, total: None))
    for product in ("train", "evaluate"):
        run.fingerprint(product)  # raises when it is not finished
    entries: list[dict[str, Any]] = []
    failures: dict[str, TunesmithError] = {}
    for target in targets:
        try:
            with own_errors(target.name) if is_foreign(TARGETS, target.name) else contextlib.nullcontext():
                entries += exporter.export_target(target, failures)
        except Paused:
            raise
        except TunesmithError as error:
            failures[target.name] = error
            if len(targets) > 1:
                log(f"export: {target.name} was not written: {error}")
        entry_of = {entry["name"]: entry for entry in [*exported_files.export_entries(run), *entries]}
        if entry_of:
            run.write_json("export.json", {"merge_into": recipe.export.merge_into, "files": list(entry_of.values())})
    for entry in entries:
        log(f"export: {describe_entry(entry)}")
    _raise_failures(run, entries, failures)
    return run / "export.json"


def _raise_failures(run: Run, entries: Sequence[dict[str, Any]], failures: Mapping[str, TunesmithError]) -> None:
    faulty = [entry for entry in entries if entry["problems"]]
    errors = dict(failures)
    if faulty:
        problems = "; ".join(f"{entry['name']}: {entry['problems'][0]}" for entry in faulty)
        errors["export"] = VerificationFailed(
            f"not every file passed verification. {problems}",
            where=str(run / "export.json"),
            next="The files are kept and marked. Export another type, or lower export.keep and export.agree",
        )
    if len(errors) == 1 and (faulty or not entries):
        raise next(iter(errors.values()))
    if errors:
        raise ExportFailed(errors)


def describe_entry(entry: dict[str, Any]) -> str:
    """Describes an entry of export.json in one line."""
    words = [f"{entry['name']}, {entry['bytes'] / 1e6:,.0f} MB, {entry['path']}"]
    share = entry.get("share") or {}
    if share.get("share") is not None:
        words.append(f"keeps {100 * share['share']:.1f} % of the gain")
    if entry.get("facts"):
        words.append(f"{entry['facts']['rate']:.0f} tokens/s here")
    return f"{'verified' if not entry['problems'] else 'NOT VERIFIED'}: {'; '.join(words)}"


def _selected_targets(recipe: Recipe, only: Sequence[str]) -> list[NamedSetting]:
    names = [target.name for target in recipe.export.files]
    for name in only:
        if name not in names:
            advice = (
                nearest(name, names) if names else f"It is empty: add {name} to it, or --set 'export.files=[{name}]'"
            )
            raise RecipeError(f"export.files has no '{name}'", where="--only", next=advice)
    return [target for target in recipe.export.files if not only or target.name in only]


@dataclass
class Exporter:
    """Exports and verifies the targets of one recipe."""

    recipe: Recipe
    run: Run
    log: Reporter
    on_progress: OnProgress

    @functools.cached_property
    def job(self) -> Any:
        """The exporting.job.Job of the recipe."""
        recipe, run = self.recipe, self.run
        weights = load_weights(recipe, self.log)
        job = _job(
            recipe, weights, load_recipe_template(recipe, weights, run, self.log), run / FOLDER,
            adapter=run / "adapter",
            precision=str(run.read_json("machine.json")["precision"]),
        )  # fmt: skip
        return replace(job, card=self._card, say=lambda text: self.log(f"export: {text}"))

    def export_target(self, setting: NamedSetting, failures: Mapping[str, TunesmithError]) -> list[dict[str, Any]]:
        """Writes one target's files and verifies each; `failures` are the errors of earlier targets."""
        target = _target(setting.name)
        needed = target.needs(**setting.options) if hasattr(target, "needs") else ""
        if needed in failures:
            problem = f"{setting.name} needs {needed}, whose export failed"
            raise ModelError(problem, where=f"export.files: {setting.name}", next=f"Fix the error of {needed} first")
        inputs = self._inputs(setting, target)
        if not is_up_to_date(self.run, f"export-{setting.name}", inputs, self.log):
            return self._write(setting, target, inputs)
        files = self._files(setting, target)
        return [self._entry(setting, target, file, self._verify(setting, target, self.job, file)) for file in files]

    def _write(self, setting: NamedSetting, target: Any, inputs: dict[str, str]) -> list[dict[str, Any]]:
        """Writes the files that are missing or outdated, verifies them, and moves them to the export folder."""
        start = time.time()
        raise_all(_target_errors(setting, _request(self.recipe, self.job, self.recipe.export.files.index(setting))))
        staging = Staged(self.run, self.job.folder, setting.name, inputs, frozenset(getattr(target, "SELECT", ())))
        staging.begin()
        job = replace(self.job, place=staging.place, standing=staging.standing)
        files = [staging.there(file) for file in target.write(job, **setting.options)]
        staging.finish()
        verified = {file.name: self._verify(setting, target, job, file) for file in files}
        if aside := staging.swap(self._old_folder):
            self.log(f"export: the replaced files of {setting.name} are in {aside}")
        files = self._files(setting, target)
        staging.write_fingerprints([file.path for file in files], seconds=round(time.time() - start, 1))
        return [self._entry(setting, target, file, verified[file.name]) for file in files]

    def _files(self, setting: NamedSetting, target: Any) -> list[Any]:
        """Returns the target's files, all of which exist."""
        folder = self.job.folder / setting.name
        standing = frozenset(file.relative_to(folder).as_posix() for file in files_in(folder))
        return list(target.write(replace(self.job, standing=standing), **setting.options))

    def _inputs(self, setting: NamedSetting, target: Any) -> dict[str, str]:
        """Returns the inputs of the target's files; options that only select files are separate inputs."""
        from tunesmith.exporting.merge import shipped_template

        job, select = self.job, getattr(target, "SELECT", ())
        options = {key: value for key, value in setting.options.items() if key not in select}
        inputs = {
            "adapter": self.run.fingerprint("train"),
            "base": job.weights.fingerprint,
            "template": hash_bytes(shipped_template(job).encode()),
            "settings": hash_json([options, job.name, job.merge_into, job.stop, job.limit, job.context, job.system]),
            **{key: hash_json(setting.options.get(key)) for key in select},
            **packages(TARGETS, [setting.name]),
        }
        if hasattr(target, "check"):  # built from the model card and other targets' files
            sources = [(self.run.read_fingerprints(f"export-{name}") or {}).get("files") for name in ("gguf", "merged")]
            inputs["files"] = hash_json(sources)
            inputs["card"] = hash_bytes(self._card().encode()) if setting.name != "ollama" else ""
        return inputs

    @functools.cached_property
    def _old_folder(self) -> Path:
        """The folder for files that this export replaces."""
        return self.run / f"old/{time.strftime('%Y%m%d-%H%M%S')}"

    def _verify(self, setting: NamedSetting, target: Any, job: Any, file: Any) -> _Verification:
        """Returns a file's verification: an earlier one of the same bytes, or a new one."""
        inputs = {
            "file": hash_path(file.path),
            "scores": self.run.fingerprint("evaluate"),
            "wish": hash_json(
                [
                    self.recipe.export.model_dump(mode="json", exclude={"files"}),
                    self.recipe.evaluate.model_dump(mode="json"),
                ]
            ),
        }
        if is_up_to_date(self.run, f"verify-{file.name}", inputs, self.log):
            return _Verification(inputs, self.run.read_json(_verification_file(file.name)), None)
        self.log(f"export: verifying {file.name}")
        proof, replies = self._run_verification(setting, target, job, file, inputs)
        return _Verification(inputs, proof, replies)

    def _entry(self, setting: NamedSetting, target: Any, file: Any, verification: _Verification) -> dict[str, Any]:
        """Returns the entry of export.json for a file; marks a file that did not pass."""
        entry = {
            "name": file.name,
            "target": setting.name,
            "path": self.run.relative(file.path),
            "bytes": sum(member.stat().st_size for member in files_in(file.path)),
            "sha256": verification.inputs["file"],
            "exact": file.exact,
            **verification.measurements,
            "commands": dict(file.commands),  # the run may have been moved since the verification
            "notes": dict(file.notes),
        }
        if verification.replies is None:
            return entry
        if verification.replies:
            self.run.write(f"replies/export-{file.name}.jsonl", "".join(f"{line}\n" for line in verification.replies))
        (self.run / f"replies/export-{file.name}.part").unlink(missing_ok=True)
        self._mark(file.path, entry["problems"])
        self.run.write_json(_verification_file(file.name), entry)
        self.run.write_fingerprints(f"verify-{file.name}", verification.inputs, [_verification_file(file.name)])
        return entry

    def _run_verification(
        self, setting: NamedSetting, target: Any, job: Any, file: Any, inputs: dict[str, str]
    ) -> tuple[dict[str, Any], Sequence[str]]:
        """Verifies a file; returns the measurements as JSON values, and its replies as lines of JSON."""
        from tunesmith.exporting.acceptance import MissingReply
        from tunesmith.exporting.verification import prove

        if hasattr(target, "check"):
            problems = list(target.check(job, file))
            return {"problems": problems, "verified": not problems}, ()
        run, recipe = self.run, self.recipe
        base, tuned = self._replies
        examples, reference = self._reference
        partial_replies = run / f"replies/export-{file.name}.part"
        try:
            with contextlib.closing(target.opened(job, file)) as runtime:
                verified = prove(
                    file, runtime, template=job.template, rows=self._rows, parts=self._reply_rows, base=base,
                    adapter=tuned, examples=examples, reference=reference, settings=recipe.export,
                    evaluate=recipe.evaluate, seed=recipe.seed, reply_log_path=partial_replies, inputs=inputs,
                    training_answers=self._train_index,
                    on_progress=lambda label, count, total: self.on_progress(f"{file.name}, {label}", count, total),
                )  # fmt: skip
        except MissingReply as error:
            raise RunError(error.what, where=error.where, next=command_for_product("evaluate", run.path)) from error
        except ModelError as error:  # the file cannot be run
            return {"problems": [str(error)], "verified": False}, ()
        lines = [json.dumps(item.describe(), ensure_ascii=False) for item in verified.replies.answered]
        if verified.problems and hasattr(target, "warnings"):
            request = _request(recipe, job, [entry.name for entry in recipe.export.files].index(setting.name))
            causes = " ".join(f"A possible cause: {cause}." for cause in target.warnings(request, **setting.options))
            verified = replace(verified, problems=tuple(f"{text} {causes}".strip() for text in verified.problems))
        return {key: value for key, value in verified.describe().items() if key not in ("name", "exact")}, lines

    @functools.cached_property
    def _rows(self) -> list[Conversation]:
        """All held-out rows: the file must tokenize each prompt as training did."""
        return [row for part in ("test", "unseen") for row in read_rows(self.run / f"data/{part}.jsonl")]

    @functools.cached_property
    def _reply_rows(self) -> dict[str, list[Conversation]]:
        """The rows that base and tuned replied to, limited to export.rows."""
        from tunesmith.evaluation.comparison import sample_rows

        return sample_rows(held_out(self.recipe, self.run), self.recipe.export.rows, self.recipe.seed)

    @functools.cached_property
    def _train_index(self) -> Any:
        return train_index(self.run)

    @functools.cached_property
    def _replies(self) -> tuple[Any, Any]:
        from tunesmith.evaluation.comparison import read_row_replies

        base, tuned = (read_row_replies(self.run / f"replies/{which}.jsonl") for which in ("base", "tuned"))
        return base, tuned

    @functools.cached_property
    def _reference(self) -> tuple[Any, Any]:
        """Tokens with loss of some rows, and their likelihood under the adapter on the base model it was trained on."""
        from tunesmith.exporting.likelihood import examples, reference_scores

        wish = self.recipe.export
        scored_rows = examples(
            self._reply_rows, self.job.template, learn=self.recipe.prompt.learn, limit=wish.likelihood_rows,
            seed=self.recipe.seed,
        )  # fmt: skip
        return scored_rows, reference_scores(chat(self.recipe, self.run), scored_rows)

    def _card(self) -> str:
        from tunesmith.commands.card import card

        return card(self.recipe, self.run, self.log).read_text(encoding="utf-8")

    def _mark(self, path: Path, problems: Sequence[str]) -> None:
        mark = path.with_name(path.name + MARK)
        if problems:
            self.run.write(
                self.run.relative(path.parent) + "/" + mark.name, "".join(f"{problem}\n" for problem in problems)
            )
        else:
            mark.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Verification:
    """A file's verification: its inputs, measurements, and replies (None if it was verified before)."""

    inputs: dict[str, str]
    measurements: dict[str, Any]
    replies: Sequence[str] | None


def _verification_file(name: str) -> str:
    return f"{FOLDER}/.proofs/{name}.json"


def _target(name: str) -> Any:
    return entry_module(TARGETS, name)


def _job(recipe: Recipe, weights: Weights, template: Any, folder: Path, *, adapter: Path, precision: str) -> Any:
    from tunesmith.exporting.job import Job

    return Job(
        name=recipe.name,
        folder=folder,
        weights=weights,
        adapter=adapter,
        template=template,
        stop=tuple(recipe.prompt.stop),
        merge_into=recipe.export.merge_into,
        bits=recipe.base.bits,
        precision=precision,
        limit=recipe.evaluate.max_new_tokens,
        context=_context_length(recipe, weights.folder),
        seed=recipe.seed,
        card=lambda: "",
        system=recipe.prompt.system,
    )


def _request(recipe: Recipe, job: Any, index: int) -> Any:
    """Returns the request for the target at `index` in export.files."""
    from tunesmith.exporting.job import Request

    before = tuple(recipe.export.files[:index])
    gguf_types = (
        type_name for target in before if target.name == "gguf" for type_name in target.options.get("types", ["q4_k_m"])
    )
    existing = (path.name.removeprefix(f"{job.name}.").removesuffix(".gguf") for path in (job.folder / "gguf").glob("*.gguf"))  # noqa: E501  # fmt: skip
    return Request(recipe, job, before, frozenset([*gguf_types, *existing]))


def _target_errors(setting: NamedSetting, request: Any) -> list[TunesmithError]:
    """Returns why a target cannot be exported: errors of its options, or else of its own validation."""
    target, where = _target(setting.name), f"export.files: {setting.name}"
    errors: list[TunesmithError] = [*check_options(target.write, setting.options, where=lambda name: f"{where}.{name}")]
    if not errors and hasattr(target, "validate"):
        try:
            errors += target.validate(request, **setting.options)
        except TunesmithError as error:
            errors.append(error)
    return errors


def _check_context(recipe: Recipe, weights: Weights) -> Iterator[TunesmithError]:
    trained = _base_context(recipe, weights.folder)
    if trained and recipe.evaluate.max_new_tokens >= trained:
        yield RecipeError(
            f"the base model's context is {trained} tokens, and a reply of evaluate.max_new_tokens: "
            f"{recipe.evaluate.max_new_tokens} leaves no room for a prompt", where="export.files",
            next="Set evaluate.max_new_tokens to less than half of that",
        )  # fmt: skip


def _context_length(recipe: Recipe, folder: Path) -> int:
    """Returns the context length for the longest prompt and reply, at most the base model's."""
    tokens = -(-(recipe.prompt.max_tokens + recipe.evaluate.max_new_tokens) // CONTEXT_STEP) * CONTEXT_STEP
    return min(tokens, _base_context(recipe, folder) or tokens)


def _base_context(recipe: Recipe, folder: Path) -> int:
    """Returns the base model's context length in tokens; 0 if its configuration does not say."""
    from tunesmith.models.weights import read_config

    config = read_config(folder, recipe.base.model)
    text = config.get("text_config") or {}
    keys = ("max_position_embeddings", "n_positions")
    return int(next((section[key] for section in (config, text) for key in keys if section.get(key)), 0))
