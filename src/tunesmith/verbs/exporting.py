"""The verb export: files that run elsewhere, each of which has answered the test rows in its own runtime."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.conversation import Conversation, read_rows
from tunesmith.errors import RecipeError, RunError, Unverified
from tunesmith.find import nearest
from tunesmith.recipe import Named, Recipe
from tunesmith.run import Run, hash_bytes, hash_path, hash_plain, write_atomic
from tunesmith.verbs import shipped
from tunesmith.verbs.comparing import chat, held_out, learnt
from tunesmith.verbs.shared import Say, is_fresh, load_template_of, load_weights, silent

FOLDER = "export"
MARK = ".UNVERIFIED.txt"  # beside a file that did not pass
STEP = 256  # tokens; a context is a multiple of it
Tell = Callable[[str, int, int], None]


def export(recipe: Recipe, run: Run, say: Say = silent, tell: Tell | None = None, *, only: Sequence[str] = ()) -> Path:
    """Writes what export.files names below export/, asks each the test rows, and writes export.json.

    `only` leaves all other targets out. Stopped, it goes on. Raises Unverified at the end, when all is written, for
    files that are not the model that was tested: they are kept and marked.
    """
    wanted = _wanted(recipe, only)
    if not wanted:
        return run / "export.json"
    work = _Work(recipe, run, say, tell or (lambda what, done, of: None))
    entries = []
    for named in wanted:
        entries += work.shipped(named)
        known = {entry["name"]: entry for entry in [*shipped.entries(run), *entries]}
        run.write_json("export.json", {"onto": recipe.export.onto, "files": list(known.values())})
    for entry in entries:
        say(f"export: {told(entry)}")
    failed = [entry for entry in entries if entry["problems"]]
    if failed:
        what = "; ".join(f"{entry['name']}: {entry['problems'][0]}" for entry in failed)
        raise Unverified(
            f"not every file is the model that was tested. {what}",
            where=str(run / "export.json"),
            next="The files are kept and marked; export another type, or loosen export.keep and export.agree",
        )
    return run / "export.json"


def push(recipe: Recipe, run: Run, say: Say = silent, *, dry_run: bool = False) -> None:
    """Sends what the target `hub` laid out; with `dry_run` says what would go.

    Raises RunError when nothing is laid out, Unverified when it did not pass, and what targets/hub.py's push raises.
    """
    from tunesmith.export.targets import hub

    named = next((named for named in recipe.export.files if named.name == "hub"), None)
    entry = next((entry for entry in shipped.entries(run) if entry["target"] == "hub"), None)
    if named is None or entry is None:
        raise RunError(
            "nothing is laid out for the hub", where=str(run.path),
            next="Add {hub: {repo: owner/name}} to export.files, and run: tunesmith export RECIPE",
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
            raise RecipeError(f"export.files has no '{name}'", where="--only", next=nearest(name, names))
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
        from tunesmith.export.job import Job

        recipe, run = self.recipe, self.run
        run.fingerprint("train")  # raises when there is no finished adapter
        weights = load_weights(recipe, self.say)
        return Job(
            name=recipe.name,
            folder=run / FOLDER,
            weights=weights,
            adapter=run / "adapter",
            template=load_template_of(recipe, weights, run),
            stop=tuple(recipe.prompt.stop),
            onto=recipe.export.onto,
            bits=recipe.base.bits,
            precision=str(run.read_json("machine.json")["precision"]),
            limit=recipe.evaluate.max_new_tokens,
            context=_context(recipe, weights.folder),
            seed=recipe.seed,
            card=self._card,
            say=lambda text: self.say(f"export: {text}"),
            system=recipe.prompt.system,
        )

    def shipped(self, named: Named) -> list[dict[str, Any]]:
        """Writes one target's files and proves each."""
        target = importlib.import_module(f"tunesmith.export.targets.{named.name}")
        files = self._written(named, target)
        return [self._entry(named, target, file) for file in files]

    def _written(self, named: Named, target: Any) -> list[Any]:
        made_from = {
            "adapter": self.run.fingerprint("train"),
            "base": self.job.weights.fingerprint,
            "template": hash_bytes(self.job.template.text.encode()),
            "settings": hash_plain(
                [named.options, self.job.onto, self.job.stop, self.job.limit, self.job.context, self.job.system]
            ),
        }
        product = f"export-{named.name}"
        if not is_fresh(self.run, product, made_from, self.say):
            began = time.time()
            self._clear_others(named.name, made_from)
            files = target.write(self.job, **named.options)
            paths = self._to_seal(self.job.folder / named.name, files)
            self.run.seal(product, made_from, paths, seconds=round(time.time() - began, 1))
            shutil.rmtree(self.job.folder / ".work", ignore_errors=True)
            return list(files)
        return list(target.write(self.job, **named.options))  # finds all there

    def _clear_others(self, name: str, made_from: dict[str, str]) -> None:
        """Takes away what was made of something else or is damaged; what a stopped export left is gone on with."""
        folder = self.job.folder
        folder.mkdir(parents=True, exist_ok=True)
        mark, seal, same = folder / f".{name}.json", self.run / f".seals/export-{name}.json", False
        with contextlib.suppress(OSError, ValueError):
            same = json.loads(mark.read_text(encoding="utf-8")) == made_from
        if same and not seal.exists():
            return
        shutil.rmtree(folder / name, ignore_errors=True)
        if not same:
            shutil.rmtree(folder / ".work", ignore_errors=True)
            write_atomic(mark, json.dumps(made_from))
        seal.unlink(missing_ok=True)  # so that what is made from here on is gone on with

    def _to_seal(self, folder: Path, files: Sequence[Any]) -> list[str]:
        """All that a target wrote into its folder, a base beside an adapter among it, and files elsewhere."""
        made = [each for each in _inside(folder) if not each.name.startswith(".") and not each.name.endswith(MARK)]
        made += [file.path for file in files if not file.path.is_relative_to(folder)]
        return sorted({self._relative(each) for each in made})

    def _entry(self, named: Named, target: Any, file: Any) -> dict[str, Any]:
        product = f"verify-{file.name}"
        place = f"{FOLDER}/.proofs/{file.name}.json"
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
        if is_fresh(self.run, product, made_from, self.say):
            found: dict[str, Any] = self.run.read_json(place)
            return {**found, "commands": dict(file.commands), "notes": dict(file.notes)}  # the run may have moved
        self.say(f"export: verifying {file.name}")
        entry = {
            "name": file.name,
            "target": named.name,
            "path": self._relative(file.path),
            "bytes": sum(each.stat().st_size for each in _inside(file.path)),
            "sha256": made_from["file"],
            "exact": file.exact,
            "commands": dict(file.commands),
            "notes": dict(file.notes),
            **self._proof(target, file, made_from),
        }
        self._mark(file.path, entry["problems"])
        self.run.write_json(place, entry)
        self.run.seal(product, made_from, [place])
        return entry

    def _proof(self, target: Any, file: Any, made_from: dict[str, str]) -> dict[str, Any]:
        from tunesmith.errors import ModelError
        from tunesmith.export.proof import prove

        if hasattr(target, "check"):
            problems = list(target.check(self.job, file))
            return {"problems": problems, "verified": not problems}
        run, recipe = self.run, self.recipe
        base, tuned = self._answers
        examples, reference = self._reference
        kept = run / f"replies/export-{file.name}.part"
        try:
            with contextlib.closing(target.opened(self.job, file)) as runtime:
                proof = prove(
                    file, runtime, template=self.job.template, rows=self._rows, parts=self._asked, base=base,
                    adapter=tuned, examples=examples, reference=reference, wish=recipe.export,
                    evaluate=recipe.evaluate, seed=recipe.seed, kept=kept, made_from=made_from,
                    known=self._known,
                    tell=lambda what, done, of: self.tell(f"{file.name}, {what}", done, of),
                )  # fmt: skip
        except ModelError as error:  # it cannot be run at all
            return {"problems": [str(error)], "verified": False}
        lines = [json.dumps(item.describe(), ensure_ascii=False) for item in proof.replies.answered]
        run.write(f"replies/export-{file.name}.jsonl", "".join(f"{line}\n" for line in lines))
        kept.unlink(missing_ok=True)
        return {key: value for key, value in proof.describe().items() if key not in ("name", "exact")}

    @functools.cached_property
    def _rows(self) -> list[Conversation]:
        """Every held-out row: each one's prompt must become the same tokens."""
        return [row for part in ("test", "unseen") for row in read_rows(self.run / f"data/{part}.jsonl")]

    @functools.cached_property
    def _asked(self) -> dict[str, list[Conversation]]:
        """The rows that base and tuned answered, or as many of them as a file is asked."""
        from tunesmith.evaluate.compare import choose

        return choose(held_out(self.recipe, self.run), self.recipe.export.rows, self.recipe.seed)

    @functools.cached_property
    def _known(self) -> Any:
        return learnt(self.run)

    @functools.cached_property
    def _answers(self) -> tuple[Any, Any]:
        from tunesmith.evaluate.compare import read_answered

        base, tuned = (read_answered(self.run / f"replies/{which}.jsonl") for which in ("base", "tuned"))
        return base, tuned

    @functools.cached_property
    def _reference(self) -> tuple[Any, Any]:
        """Learnt tokens of some rows, and what the adapter over the base as it was trained thinks of them."""
        from tunesmith.export.likelihood import examples, reference_scores

        wish = self.recipe.export
        chosen = examples(
            self._asked, self.job.template, learn=self.recipe.prompt.learn, limit=wish.likelihood_rows,
            seed=self.recipe.seed,
        )  # fmt: skip
        return chosen, reference_scores(chat(self.recipe, self.run, self.say), chosen)

    def _card(self) -> str:
        from tunesmith.verbs.listing import card

        return card(self.recipe, self.run, self.say).read_text(encoding="utf-8")

    def _relative(self, path: Path) -> str:
        return path.resolve().relative_to(self.run.path.resolve()).as_posix()

    def _mark(self, path: Path, problems: Sequence[str]) -> None:
        mark = path.with_name(path.name + MARK)
        if problems:
            self.run.write(self._relative(path.parent) + "/" + mark.name, "".join(f"{each}\n" for each in problems))
        else:
            mark.unlink(missing_ok=True)


def _inside(path: Path) -> Iterator[Path]:
    yield from (each for each in ([path] if path.is_file() else path.rglob("*")) if each.is_file())


def _context(recipe: Recipe, folder: Path) -> int:
    """Tokens for the longest prompt and the longest reply, no more than the model was trained on."""
    from tunesmith.model.weights import read_config

    wanted = -(-(recipe.prompt.max_tokens + recipe.evaluate.max_new_tokens) // STEP) * STEP
    config = read_config(folder, recipe.base.model)
    trained = config.get("max_position_embeddings") or config.get("n_positions") or wanted
    return min(wanted, int(trained))
