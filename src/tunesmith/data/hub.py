"""Reads a Hub data set, written hub:owner/name@REVISION?config=NAME&split=NAME, without running its code."""

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

BATCH = 1000  # rows converted to Python values at a time
_SYNTAX = "Write it as hub:owner/name@REVISION?config=NAME&split=NAME; everything after the name is optional"
_SOURCE = re.compile(
    r"hub:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^@?#\s]+))?(?:\?(?P<query>[^#\s]*))?", re.ASCII
)
_TABLES = {"parquet", "arrow", "json", "csv", "text"}  # the builders that only read tables
_PATTERNS = [
    f"*.{kind}{packing}" for kind in (*_TABLES, "jsonl", "tsv", "txt") for packing in ("", ".gz", ".zst", ".bz2", ".xz")
]
_GO_ONLINE = "Go online once (unset HF_HUB_OFFLINE) to download it into the cache"
_CARD = ["README.md", ".huggingface.yaml"]


@dataclass(frozen=True)
class HubSource:
    """A part of a Hub data set; None means the main revision, the only config, the train split."""

    owner_name: str
    revision: str | None = None
    config: str | None = None
    split: str | None = None

    def __str__(self) -> str:
        """The source in the form that `parse` reads."""
        options = urlencode({k: v for k, v in (("config", self.config), ("split", self.split)) if v is not None})
        revision = f"@{self.revision}" if self.revision else ""
        return f"hub:{self.owner_name}{revision}{'?' if options else ''}{options}"


@dataclass(frozen=True)
class _Part:
    """One downloaded split; `files` maps paths in the data set to local paths."""

    source: HubSource
    commit: str
    config: str
    split: str
    files: Mapping[str, Path]
    builder: Any


def parse_hub_source(source: str) -> HubSource:
    """Parses a source that begins with `hub:`. Raises DataError if it is not well formed."""
    match = _SOURCE.fullmatch(source)
    if not match:
        raise DataError("is not the name of a data set on the Hub", where=source, next=_SYNTAX)
    try:
        pairs = parse_qsl(match["query"] or "", keep_blank_values=True, strict_parsing=bool(match["query"]))
    except ValueError as error:
        raise DataError(f"the options after '?' cannot be read: {error}", where=source, next=_SYNTAX) from error
    options = dict(pairs)
    for name, value in pairs:
        if name not in ("config", "split"):
            raise DataError(f"unknown option '{name}'", where=source, next=nearest(name, ["config", "split"]))
        if not value or value != options[name]:
            raise DataError(f"'{name}' is {'given twice' if value else 'empty'}", where=source, next=_SYNTAX)
    return HubSource(match["name"], match["revision"], options.get("config"), options.get("split"))


def read_hub(source: str) -> Iterator[Row]:
    """The rows of one split, in order, from the memory-mapped Arrow table of `datasets`.

    Class labels are converted to their names. Raises DataError if the data set, revision, config or split is missing,
    its terms must be accepted first, there is neither a network nor a cached copy, or its files cannot be read.
    """
    hub_source = parse_hub_source(source)
    part = _open(hub_source)
    file = f"hub:{hub_source.owner_name}"
    with _as_data_error(source):
        part.builder.download_and_prepare()
        table = part.builder.as_dataset(split=part.split)
        labels = {name: kind.names for name, kind in table.features.items() if hasattr(kind, "names")}
        number = 0
        for batch in table.with_format("arrow").iter(batch_size=BATCH):
            for values in batch.to_pylist():
                number += 1
                yield Row(_with_label_names(values, labels), Origin(file, number, "row"))


def pin(source: str) -> str:
    """The source with commit, config and split, so that it stays the same when the Hub changes.

    Raises like `read_hub`.
    """
    part = _open(parse_hub_source(source))
    return str(HubSource(part.source.owner_name, part.commit, part.config, part.split))


def fingerprint(source: str) -> str:
    """SHA-256 of name, commit, config, split and the content of each file of the split.

    The fingerprint of `datasets` is not used, because it depends on the cache's path. Raises like `read_hub`.
    """
    part = _open(parse_hub_source(source))
    parts = [part.source.owner_name, part.commit, part.config, part.split]
    parts += [f"{name}\0{_content(path)}" for name, path in sorted(part.files.items())]
    return hashlib.sha256("\1".join(parts).encode()).hexdigest()


def _content(path: Path) -> str:
    """The hash of a file: the name of the blob that the cache links to, or the SHA-256 of its bytes."""
    if path.is_symlink():
        return path.resolve().name
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _with_label_names(values: dict[str, Any], labels: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    for column, names in labels.items():
        number = values[column]
        if isinstance(number, int) and 0 <= number < len(names):
            values[column] = names[number]
    return values


def _open(source: HubSource) -> _Part:
    import datasets  # imported here: it takes a second

    folder, config = _snapshot(source)
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(CRITICAL)  # it also raises what it logs as an error
    with _as_data_error(str(source)):
        builder = datasets.load_dataset_builder(str(folder), name=config)
    if builder.__module__.split(".")[-1] not in _TABLES:
        raise DataError("has no table", where=str(source), next="Choose one with Parquet, JSON, CSV or text files")
    splits = {str(name): list(files) for name, files in (builder.config.data_files or {}).items()}
    split = _choose("split", source.split, list(splits), "train", source)
    files = {_relative_name(Path(file), folder): Path(file) for file in splits[split]}
    return _Part(source, folder.name, config or "default", split, files, builder)


def _relative_name(file: Path, folder: Path) -> str:
    return str(file.relative_to(folder)) if file.is_relative_to(folder) else file.name


def _snapshot(source: HubSource) -> tuple[Path, str | None]:
    """The folder of the revision, named by its commit, with the files of the chosen config; and that config."""
    folder = _fetch(source, _CARD)
    pinned = replace(source, revision=folder.name)  # main may move in the meantime
    configs = _configs(folder, source)
    if not configs:
        if source.config not in (None, "default"):
            raise DataError(f"has no config '{source.config}'", where=str(source), next="It has none: remove config=")
        return _fetch(pinned, [*_CARD, *_PATTERNS]), None
    default = next((name for name, config in configs.items() if config.get("default")), "default")
    name = _choose("config", source.config, list(configs), default, source)
    first = next(iter(configs))  # datasets reads its files to learn their kind
    patterns = [pattern for config in dict.fromkeys((first, name)) for pattern in _patterns(configs[config])]
    all_listed = all("data_files" in config for config in configs.values())
    folder = _fetch(pinned, [*_CARD, *(patterns if all_listed else _PATTERNS)])
    if all_listed and not any(file.match(pattern) for pattern in _patterns(configs[name]) for file in _files(folder)):
        raise DataError(f"has no files of config '{name}'", where=str(source), next=_GO_ONLINE)
    return folder, name


def _files(folder: Path) -> list[PurePosixPath]:
    return [PurePosixPath(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]


def _configs(folder: Path, source: HubSource) -> dict[str, dict[str, Any]]:
    """The configs in the data set's card, by name."""
    from huggingface_hub import DatasetCard

    card = folder / "README.md"
    if not card.is_file():
        return {}
    try:
        entries = DatasetCard.load(card, ignore_metadata_errors=True).data.get("configs") or []
        return {str(config["config_name"]): config for config in entries}
    except (ValueError, TypeError, KeyError) as error:
        advice = "Report it to the owner of the data set"
        raise DataError(f"its card cannot be read: {error}", where=str(source), next=advice) from error


def _patterns(config: Mapping[str, Any]) -> list[str]:
    """The file patterns of a config: one, a list of them, or a list of splits with either as `path`."""
    patterns: list[str] = []
    entries = config.get("data_files") or []
    for entry in [entries] if isinstance(entries, str | dict) else entries:
        paths = entry.get("path", []) if isinstance(entry, dict) else entry
        patterns += [paths] if isinstance(paths, str) else [str(path) for path in paths]
    return patterns


def _choose(kind: str, requested: str | None, names: Sequence[str], default: str, source: HubSource) -> str:
    """The requested name, the only name, or the usual one."""
    choices = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    if requested is not None and requested not in names:
        raise DataError(f"has no {kind} '{requested}'", where=str(source), next=f"It has: {choices}")
    if requested is None and len(names) > 1 and default not in names:
        raise DataError(f"has {len(names)} {kind}s", where=str(source), next=f"Add {kind}= with one of: {choices}")
    return requested or (names[0] if len(names) == 1 else default)


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
        raise DataError("is gated: its terms must be accepted first", where=where, next=advice) from error
    except errors.RevisionNotFoundError as error:
        raise DataError(
            f"has no revision '{source.revision}'", where=where, next="Check the revision after @"
        ) from error
    except errors.RepositoryNotFoundError as error:
        advice = "Check the name; for a private data set: hf auth login"
        raise DataError("does not exist on the Hub", where=where, next=advice) from error
    except errors.HFValidationError as error:
        raise DataError("is not the name of a data set", where=where, next=_SYNTAX) from error
    except errors.LocalEntryNotFoundError as error:
        at_revision = f" at revision '{source.revision}'" if source.revision else ""
        message = f"the Hub cannot be reached, and the cache does not have all of it{at_revision}"
        raise DataError(message, where=where, next=_GO_ONLINE) from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise DataError(f"the download failed: {_short(error)}", where=where, next="Try again later") from error


@contextmanager
def _as_data_error(where: str) -> Iterator[None]:
    """Turns errors of reading the downloaded files into DataError; `datasets` passes on those of its readers."""
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
