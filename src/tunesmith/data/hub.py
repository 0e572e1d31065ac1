"""Rows of a data set on the hub, written hub:owner/name@REVISION?config=NAME&split=NAME. No foreign code is run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from logging import CRITICAL
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qsl, urlencode

from tunesmith.config.registry import nearest
from tunesmith.data.conversation import Origin
from tunesmith.data.rows import Row
from tunesmith.errors import DataError

BATCH = 1000  # rows as Python values at once
_FORM = "Write it as hub:owner/name@REVISION?config=NAME&split=NAME; all behind the name may be left out"
_SOURCE = re.compile(
    r"hub:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^@?#\s]+))?(?:\?(?P<query>[^#\s]*))?", re.ASCII
)
_TABLES = {"parquet", "arrow", "json", "csv", "text"}  # the builders that only read tables
_ENDINGS = [
    f"*.{kind}{packing}" for kind in (*_TABLES, "jsonl", "tsv", "txt") for packing in ("", ".gz", ".zst", ".bz2", ".xz")
]
_ONLINE = "Go online once (HF_HUB_OFFLINE unset), then it is kept"
_CARD = ["README.md", ".huggingface.yaml"]


@dataclass(frozen=True)
class HubSource:
    """A part of a data set on the hub; None: the hub's main revision, the only config, the train split."""

    owner_name: str
    revision: str | None = None
    config: str | None = None
    split: str | None = None

    def __str__(self) -> str:
        """The source again, in the form that `parse` reads."""
        options = urlencode({k: v for k, v in (("config", self.config), ("split", self.split)) if v is not None})
        revision = f"@{self.revision}" if self.revision else ""
        return f"hub:{self.owner_name}{revision}{'?' if options else ''}{options}"


@dataclass(frozen=True)
class _Part:
    """One split on this machine: `files` by their path in the data set."""

    source: HubSource
    commit: str
    config: str
    split: str
    files: Mapping[str, Path]
    builder: Any


def parse(source: str) -> HubSource:
    """The parts of a source that begins with `hub:`. Raises DataError when it is written otherwise."""
    match = _SOURCE.fullmatch(source)
    if not match:
        raise DataError("is no name of a data set on the hub", where=source, next=_FORM)
    try:
        pairs = parse_qsl(match["query"] or "", keep_blank_values=True, strict_parsing=bool(match["query"]))
    except ValueError as error:
        raise DataError(f"its part behind '?' cannot be read: {error}", where=source, next=_FORM) from error
    options = dict(pairs)
    for name, value in pairs:
        if name not in ("config", "split"):
            raise DataError(f"unknown option '{name}'", where=source, next=nearest(name, ["config", "split"]))
        if not value or value != options[name]:
            raise DataError(f"'{name}' is {'named twice' if value else 'empty'}", where=source, next=_FORM)
    return HubSource(match["name"], match["revision"], options.get("config"), options.get("split"))


def read_hub(source: str) -> Iterator[Row]:
    """The rows of one split, in order, from the Arrow table that `datasets` maps into memory.

    Labels that are kept as numbers come out as their names. Raises DataError when the data set, revision, config or
    split is missing, when the hub wants its terms accepted first, when there is neither a network nor a copy in the
    cache, and when its files cannot be read.
    """
    wanted = parse(source)
    part = _open(wanted)
    file = f"hub:{wanted.owner_name}"
    with _said(source):
        part.builder.download_and_prepare()
        table = part.builder.as_dataset(split=part.split)
        labels = {name: kind.names for name, kind in table.features.items() if hasattr(kind, "names")}
        number = 0
        for batch in table.with_format("arrow").iter(batch_size=BATCH):
            for values in batch.to_pylist():
                number += 1
                yield Row(_named(values, labels), Origin(file, number, "row"))


def pin(source: str) -> str:
    """The source with everything named, the revision as its commit: it stays the same when the hub's changes.

    Raises as `read_hub`.
    """
    part = _open(parse(source))
    return str(HubSource(part.source.owner_name, part.commit, part.config, part.split))


def fingerprint(source: str) -> str:
    """SHA-256 over name, commit, config, split and the content of each of the split's files.

    The fingerprint that `datasets` gives itself is not used: it changes with the cache's place. Raises as `read_hub`.
    """
    part = _open(parse(source))
    told = [part.source.owner_name, part.commit, part.config, part.split]
    told += [f"{name}\0{_content(path)}" for name, path in sorted(part.files.items())]
    return hashlib.sha256("\1".join(told).encode()).hexdigest()


def _content(path: Path) -> str:
    """A file's hash: the name of the blob that the cache links to, which is one, or the hash of its bytes."""
    if path.is_symlink():
        return path.resolve().name
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _named(values: dict[str, Any], labels: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    for column, names in labels.items():
        number = values[column]
        if isinstance(number, int) and 0 <= number < len(names):
            values[column] = names[number]
    return values


def _open(source: HubSource) -> _Part:
    import datasets  # here: it takes a second

    folder, config = _snapshot(source)
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(CRITICAL)  # what it logs as an error it raises too
    with _said(str(source)):
        builder = datasets.load_dataset_builder(str(folder), name=config)
    if builder.__module__.split(".")[-1] not in _TABLES:
        raise DataError("holds no table", where=str(source), next="Choose one with Parquet, JSON, CSV or text files")
    splits = {str(name): list(files) for name, files in (builder.config.data_files or {}).items()}
    split = _choose("split", source.split, list(splits), "train", source)
    files = {_inside(Path(file), folder): Path(file) for file in splits[split]}
    return _Part(source, folder.name, config or "default", split, files, builder)


def _inside(file: Path, folder: Path) -> str:
    return str(file.relative_to(folder)) if file.is_relative_to(folder) else file.name


def _snapshot(source: HubSource) -> tuple[Path, str | None]:
    """The folder of the revision, called by its commit, with the files of the chosen config; and that config."""
    folder = _fetch(source, _CARD)
    same = replace(source, revision=folder.name)  # main may move meanwhile
    configs = _configs(folder, source)
    if not configs:
        if source.config not in (None, "default"):
            raise DataError(f"has no config '{source.config}'", where=str(source), next="It has none: leave config out")
        return _fetch(same, [*_CARD, *_ENDINGS]), None
    default = next((name for name, config in configs.items() if config.get("default")), "default")
    name = _choose("config", source.config, list(configs), default, source)
    first = next(iter(configs))  # datasets looks at its files to learn their kind
    patterns = [pattern for config in dict.fromkeys((first, name)) for pattern in _patterns(configs[config])]
    listed = all("data_files" in config for config in configs.values())
    folder = _fetch(same, [*_CARD, *(patterns if listed else _ENDINGS)])
    if listed and not any(file.match(pattern) for pattern in _patterns(configs[name]) for file in _files(folder)):
        raise DataError(f"there are no files of config '{name}'", where=str(source), next=_ONLINE)
    return folder, name


def _files(folder: Path) -> list[PurePosixPath]:
    return [PurePosixPath(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]


def _configs(folder: Path, source: HubSource) -> dict[str, dict[str, Any]]:
    """The configs that the data set's card lists, by name."""
    from huggingface_hub import DatasetCard

    card = folder / "README.md"
    if not card.is_file():
        return {}
    try:
        listed = DatasetCard.load(card, ignore_metadata_errors=True).data.get("configs") or []
        return {str(config["config_name"]): config for config in listed}
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"its card cannot be read: {error}", where=str(source), next="Tell its owner") from error


def _patterns(config: Mapping[str, Any]) -> list[str]:
    """The files of a config: a pattern, a list of patterns, or a list of splits with either as `path`."""
    found: list[str] = []
    listed = config.get("data_files") or []
    for entry in [listed] if isinstance(listed, str | dict) else listed:
        paths = entry.get("path", []) if isinstance(entry, dict) else entry
        found += [paths] if isinstance(paths, str) else [str(path) for path in paths]
    return found


def _choose(kind: str, wanted: str | None, names: Sequence[str], usual: str, source: HubSource) -> str:
    """The wanted one, the only one or the usual one."""
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    if wanted is not None and wanted not in names:
        raise DataError(f"has no {kind} '{wanted}'", where=str(source), next=f"It has: {listed}")
    if wanted is None and len(names) > 1 and usual not in names:
        raise DataError(f"has {len(names)} {kind}s", where=str(source), next=f"Add {kind}= and one of: {listed}")
    return wanted or (names[0] if len(names) == 1 else usual)


def _fetch(source: HubSource, patterns: list[str]) -> Path:
    from huggingface_hub import errors, snapshot_download

    where, name = str(source), source.owner_name
    try:
        return Path(
            snapshot_download(
                name, repo_type="dataset", revision=source.revision, allow_patterns=patterns, max_workers=4
            )
        )
    except errors.GatedRepoError as error:
        advice = f"Accept its terms on https://huggingface.co/datasets/{name}, then: hf auth login"
        raise DataError("is given only to those who accepted its terms", where=where, next=advice) from error
    except errors.RevisionNotFoundError as error:
        raise DataError(
            f"has no revision '{source.revision}'", where=where, next="Check what stands behind @"
        ) from error
    except errors.RepositoryNotFoundError as error:
        advice = "Check the name; for a private one: hf auth login"
        raise DataError("no such data set on the hub", where=where, next=advice) from error
    except errors.HFValidationError as error:
        raise DataError("is no name of a data set", where=where, next=_FORM) from error
    except errors.LocalEntryNotFoundError as error:
        at = f" at revision '{source.revision}'" if source.revision else ""
        what = f"the hub cannot be reached, and the cache does not hold all of it{at}"
        raise DataError(what, where=where, next=_ONLINE) from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise DataError(f"the hub cannot give it: {_short(error)}", where=where, next="Try again later") from error


@contextmanager
def _said(where: str) -> Iterator[None]:
    """What reading the fetched files raises, as a DataError: `datasets` passes on its readers' own errors."""
    try:
        yield
    except (GeneratorExit, DataError):
        raise
    except Exception as error:
        cause = error.__cause__ or error
        raise DataError(
            f"cannot be read: {_short(cause)}", where=where, next="Choose another revision or split"
        ) from error


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(". ")
