"""Files to ship, made and proven on a tiny model: whole, damaged, faulty, on a full disk, killed."""

from __future__ import annotations

import ast
import contextlib
import errno
import json
import random
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import tunesmith
import tunesmith.exporting.convert as converting
import tunesmith.exporting.merge as merging
import tunesmith.exporting.quantize as quantising
import tunesmith.exporting.targets.gguf as gguf_target
from gguf_models import make_convertible
from tiny import toy_rows
from tunesmith.config.recipe import Recipe, read_recipe
from tunesmith.errors import ResourceError
from tunesmith.generation import from_folder, from_gguf
from tunesmith.models.gguf_header import read_header
from tunesmith.runs.run import Run, hash_file, hash_json, hash_path, translate_disk_errors

TYPES = ["f16", "q8_0", "q4_k_m"]
FILES = {"adapter", "merged", "gguf_lora", *TYPES}
KILLS = 10


def write_recipe(folder: Path, **changes: Any) -> Path:
    plain: dict[str, Any] = {
        "name": "toy",
        "seed": 3,
        "base": {"model": str(folder / "base"), "bits": 4},
        "data": {
            "source": "rows.jsonl",
            "format": {"columns": {"prompt": "prompt", "answer": "completion", "group": "topic"}},
            "split": {"by": "group", "test": 0.15, "valid": 0.15, "unseen_groups": 1},
        },
        "prompt": {"max_tokens": 128},
        "adapter": {"rank": 8, "alpha": 16},
        "train": {"epochs": 12, "batch": "4 rows", "learning_rate": 1e-2, "evaluate_every": 50, "precision": "float32"},
        "evaluate": {"metrics": ["rouge", "stops"], "primary": "rougeL", "max_new_tokens": 24, "rows": 8},
        "export": {  # eight rows of a tiny model: a letter more or less is two per cent
            "files": ["adapter", "merged", {"gguf": {"types": TYPES}}, "gguf_lora"],
            "likelihood_rows": 2,
            "keep": 0.8,
            "keep_exact": 0.9,
            "agree_exact": 0.8,
        },
    }
    for key, value in changes.items():
        *sections, last = key.split("__")
        place = plain
        for section in sections:
            place = place[section]
        place[last] = value
    (folder / "toy.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    return folder / "toy.yaml"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base, rows, toy.yaml and runs/toy: trained and evaluated."""
    folder = tmp_path_factory.mktemp("export")
    make_convertible(folder / "base", ends=True, tie_word_embeddings=False)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toy_rows()))
    recipe = read_recipe(str(write_recipe(folder)))
    run = tunesmith.open_run(recipe, folder / "runs")
    tunesmith.prepare(recipe, run)
    tunesmith.train(recipe, run)
    tunesmith.evaluate(recipe, run)
    return folder


class Converter:
    """llama.cpp's converter, asked once for each input: the same input gives the same bytes (as the kills show)."""

    def __init__(self) -> None:
        self.real, self.known, self.asked = converting._run_converter, dict[str, bytes](), 0

    def __call__(self, script: str, words: list[str], job: Any) -> None:
        arguments = [hash_path(Path(word)) if Path(word).exists() else word for word in words[:-1]]
        key, out = hash_json([script, arguments]), Path(words[-1])
        self.asked += 1
        if key not in self.known:
            self.real(script, words, job)
            self.known[key] = out.read_bytes()
        out.write_bytes(self.known[key])


@pytest.fixture(scope="module")
def converter() -> Iterator[Converter]:
    with pytest.MonkeyPatch.context() as patched:
        fake_converter = Converter()
        patched.setattr(converting, "_run_converter", fake_converter)
        yield fake_converter


@pytest.fixture(scope="module")
def exported(trained: Path, converter: Converter) -> Path:
    """A copy of the run with every file made and proven."""
    shutil.copytree(trained / "runs", trained / "exported")
    recipe = read_recipe(str(trained / "toy.yaml"))
    tunesmith.export(recipe, tunesmith.open_run(recipe, trained / "exported"))
    return trained / "exported" / "toy"


@pytest.fixture
def recipe(trained: Path) -> Recipe:
    return read_recipe(str(write_recipe(trained)))


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Run:
    """Another copy, to be broken."""
    return Run(Path(shutil.copytree(exported, tmp_path / "runs" / "toy")))


def files(run: Path) -> dict[str, str]:
    """Every file to ship, by its name, with its hash."""
    paths = (path for path in (run / "export").rglob("*") if path.is_file())
    names = (path.relative_to(run).as_posix() for path in paths)
    return {name: hash_file(run / name) for name in names if "/." not in name}


def entries(run: Path) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in json.loads((run / "export.json").read_text())["files"]}


def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("something is made or asked")

    monkeypatch.setattr(converting, "_run_converter", never)
    monkeypatch.setattr(from_gguf, "LlamaProcess", never)
    monkeypatch.setattr(from_folder, "_Child", never)


def test_every_file_is_made_proven_and_shown(exported: Path, recipe: Recipe) -> None:
    entry_of = entries(exported)
    assert entry_of.keys() == FILES
    proven = {"primary", "share", "replies", "likelihood", "prompts", "facts"}
    common_keys = {"name", "target", "path", "bytes", "sha256", "exact", "commands", "notes", "problems", "verified"}
    for name, entry in entry_of.items():
        assert entry.keys() == common_keys | proven
        assert entry["verified"] and entry["problems"] == []
        path = exported / entry["path"]
        assert entry["sha256"] == hash_path(path)
        assert entry["bytes"] == sum(part.stat().st_size for part in [path, *path.rglob("*")] if part.is_file())
        assert entry["exact"] == (name != "q4_k_m")
        assert entry["commands"] and str(path.name) in " ".join(entry["commands"].values())
        assert entry["share"]["share"] > 0.8 and entry["share"]["rows"] == entry["replies"]["rows"] == 8
        assert entry["prompts"]["rows"] == 11 and entry["prompts"]["unlike"] == 0
        assert entry["likelihood"]["tokens"] > 20 and entry["likelihood"]["divergence"] < 0.05
        assert entry["facts"]["rate"] > 0 and entry["facts"]["memory_bytes"] > 1 << 20
        assert entry["replies"]["scores"]["stops"]["file"] == 1.0
        assert len((exported / f"replies/export-{name}.jsonl").read_text().splitlines()) == 8
    assert entry_of["q4_k_m"]["bytes"] < entry_of["q8_0"]["bytes"] < entry_of["f16"]["bytes"]
    assert json.loads((exported / "export.json").read_text())["merge_into"] == "quantized"
    assert not list(exported.rglob("*.part*")) and not (exported / "export/.work").exists()
    assert not list(exported.rglob("*.UNVERIFIED.txt"))
    page = tunesmith.report(recipe, Run(exported)).read_text(encoding="utf-8")
    assert "Exported files" in page and "toy.q4_k_m.gguf" in page and "is not verified" not in page


def test_a_second_call_does_nothing(
    exported: Path, recipe: Recipe, call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_work(monkeypatch)
    before = {path: path.stat().st_mtime_ns for path in (exported / "export").rglob("*")}
    code, out, err = call("export", str(recipe.folder / "toy.yaml"), "--runs", str(exported.parent))
    assert (code, err) == (0, "")
    expected = {f"export-{name}: up to date" for name in ("adapter", "merged", "gguf", "gguf_lora")}
    assert set(out.splitlines()) >= expected | {f"verify-{name}: up to date" for name in FILES}
    assert out.count("export: verified: ") == len(FILES)
    assert "q8_0 with llama.cpp: llama-server -m" in out
    assert {path: path.stat().st_mtime_ns for path in (exported / "export").rglob("*")} == before


def test_only_one_target(
    copy: Run, recipe: Recipe, call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_work(monkeypatch)
    words = ["export", str(recipe.folder / "toy.yaml"), "--runs", str(copy.path.parent), "--only"]
    code, _, err = call(*words, "gguff")
    target_names = ", ".join(sorted(target.name for target in recipe.export.files))
    assert code == 2 and f"export.files has no 'gguff'. Did you mean 'gguf'? Choose from: {target_names}." in err
    code, _, err = call(*words, "ollama")
    assert code == 2 and f"export.files has no 'ollama'. Choose from: {target_names}." in err
    code, _, err = call(*words, "gguf", "--set", "export.files=[]")
    assert code == 2 and "no 'gguf'. It is empty: add gguf to it, or --set 'export.files=[gguf]'" in err
    code, out, _ = call(*words, "gguf")
    assert code == 0 and "export-merged" not in out
    assert entries(copy.path).keys() == FILES  # what stands is still told


# --- damaged, and made again -----------------------------------------------------------------------------------


def flip(path: Path, at: float = 0.7) -> None:
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 4
    path.write_bytes(data)


def test_what_is_damaged_is_made_again(
    exported: Path, copy: Run, recipe: Recipe, converter: Converter, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, log_lines = copy / "export", list[str]()
    flip(folder / "gguf/toy.q8_0.gguf")
    cut = folder / "gguf/toy.f16.gguf"
    cut.write_bytes(cut.read_bytes()[:-100])
    flip(folder / "gguf_lora/base.f16.gguf")  # the file beside the file
    (folder / "merged/model.safetensors").unlink()
    monkeypatch.setattr(from_folder, "_Child", None)  # they are what was proven before, so nothing is asked
    monkeypatch.setattr(from_gguf, "LlamaProcess", None)
    tunesmith.export(recipe, copy, log_lines.append)
    assert files(copy.path) == files(exported)
    for target, name, reason in [
        ("gguf", "gguf/toy.q8_0.gguf", "was edited or is damaged"),
        ("gguf", "gguf/toy.f16.gguf", "was edited or is damaged"),
        ("gguf_lora", "gguf_lora/base.f16.gguf", "was edited or is damaged"),
        ("merged", "merged/model.safetensors", "is missing"),
    ]:
        (line,) = [entry for entry in log_lines if entry.startswith(f"export-{target}: running again")]
        assert f"export/{name} {reason}" in line
    assert "export-adapter: up to date" in log_lines
    assert {entry["verified"] for entry in entries(copy.path).values()} == {True}


def test_another_adapter_makes_other_files(exported: Path, copy: Run, trained: Path) -> None:
    recipe, log_lines = read_recipe(str(write_recipe(trained, seed=4, train__epochs=10))), list[str]()
    tunesmith.prepare(recipe, copy)
    tunesmith.train(recipe, copy, again=True)
    tunesmith.evaluate(recipe, copy)
    tunesmith.export(recipe, copy, log_lines.append, only=["gguf"])
    assert "export-gguf: running again, because adapter changed" in log_lines
    old, new = entries(exported), entries(copy.path)
    for name in TYPES:
        assert old[name]["sha256"] != new[name]["sha256"] == hash_file(copy / f"export/gguf/toy.{name}.gguf")
        [former] = copy.path.glob(f"old/*/export/gguf/toy.{name}.gguf")
        assert hash_file(former) == old[name]["sha256"]


# --- other settings --------------------------------------------------------------------------------------------


def everything(run: Run) -> dict[str, str]:
    """Every file of the run, hidden ones included, with its hash."""
    return {str(path.relative_to(run.path)): hash_file(path) for path in run.path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[{gguf: {types: [q4_km]}}]", "unknown type 'q4_km'. Did you mean 'q4_k_m'?"),
        ("[merged, {gguf: {types: [q4_0]}}]", "unknown type 'q4_0'. Did you mean 'q8_0'?"),
        ("[{gguf: {types: q8_0}}]", "'types' must be a list of types, not 'q8_0'"),
        ("[{gguf: {typos: [q8_0]}}]", "unknown option 'typos'"),
        ("[{hub: {repo: toys}}]", "'toys' is not a repository name"),
        ("[{ollama: {parameters: {num_ctxx: 3}}}]", "unknown parameter 'num_ctxx'"),
        ("[gguff]", "unknown name 'gguff'"),
    ],
)
@pytest.mark.parametrize("command", ["export", "report"])
def test_a_wrong_setting_leaves_every_byte_in_place(
    copy: Run, call: Callable[..., tuple[int, str, str]], command: str, value: str, message: str
) -> None:
    before = everything(copy)
    code, _, err = call(command, str(copy.path), "--set", f"export.files={value}")
    assert code == 2 and message in " ".join(err.split()) and "--set" in err
    assert everything(copy) == before


def test_other_types_leave_the_former_files(
    exported: Path, copy: Run, call: Callable[..., tuple[int, str, str]], converter: Converter
) -> None:
    former = files(copy.path)
    code, _, err = call("export", str(copy.path), "--set", "export.files=[{gguf: {types: [q6_k]}}]")
    assert code == 0, err
    assert {name: digest for name, digest in files(copy.path).items() if "q6_k" not in name} == former
    assert entries(copy.path).keys() == FILES | {"q6_k"}
    assert all(digest["verified"] for digest in entries(copy.path).values())
    assert read_recipe(str(copy.path)).dump()["export"]["files"] == [{"gguf": {"types": ["q6_k"]}}]
    assert not (copy / "old").exists() and not (copy / "export/.new").exists()
    conversions = converter.asked
    code, _, _ = call("export", str(copy.path), "--set", f"export.files=[{{gguf: {{types: [{', '.join(TYPES)}]}}}}]")
    assert code == 0 and converter.asked == conversions  # they stand as they are
    assert {name: digest for name, digest in files(copy.path).items() if "q6_k" not in name} == former


@pytest.mark.parametrize("stopped", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_an_export_that_stops_leaves_the_former_files_verified(
    copy: Run, trained: Path, converter: Converter, monkeypatch: pytest.MonkeyPatch, stopped: Any
) -> None:
    changed = read_recipe(str(write_recipe(trained, prompt={"max_tokens": 128, "stop": ["never"]})))
    former, export_json = files(copy.path), (copy / "export.json").read_bytes()

    def stop(*_: Any) -> None:
        raise stopped

    for module, name in ((merging, "_write_tensor"), (quantising._PartialFile, "finish_tensor")):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, stop)
            with pytest.raises((KeyboardInterrupt, ResourceError)):
                tunesmith.export(changed, copy, only=["gguf"])
        assert files(copy.path) == former and (copy / "export.json").read_bytes() == export_json
    tunesmith.export(changed, copy, only=["gguf"])
    assert files(copy.path) == former  # the same bytes: a stop text stands in no file
    assert not (copy / "export/.new").exists()


def test_a_target_that_cannot_work_does_not_stop_the_others(
    copy: Run, trained: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    text, former = (copy / "recipe.yaml").read_bytes(), files(copy.path)
    shutil.rmtree(copy / "export/merged")
    lora = {"gguf_lora": {"base": "q8_0"}}
    path = write_recipe(trained, adapter={"rank": 8, "alpha": 16, "dora": True}, export__files=[lora, "merged"])
    code, _, err = call("export", str(path), "--runs", str(copy.path.parent))
    assert code == 5 and "trained with other settings or data: adapter changed" in err
    assert (copy / "recipe.yaml").read_bytes() == text
    seal = json.loads((copy / ".fingerprints/train.json").read_text(encoding="utf-8"))
    seal["inputs"] |= {"adapter": hash_json(read_recipe(str(path)).adapter.model_dump(mode="json"))}
    copy.write_json(".fingerprints/train.json", seal)  # as if it had been trained with these magnitudes
    code, out, err = call("export", str(path), "--runs", str(copy.path.parent))
    assert code == 2
    assert "gguf_lora: export.files: gguf_lora: a GGUF adapter cannot hold the magnitudes of adapter.dora" in err
    assert "verified: merged" in out and "merged with vLLM" in out
    assert files(copy.path) == former and entries(copy.path).keys() == FILES  # the one that failed is left as it was
    assert (copy / "recipe.yaml").read_bytes() == text
    write_recipe(trained)


def test_commands_can_be_pasted(exported: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    run = Run(Path(shutil.copytree(exported, tmp_path / "my runs (2)" / "toy")))
    code, out, err = call("export", str(run.path), "--runs", "my runs (2)")
    assert code == 0, err
    commands = [line.split(": ", 1) for line in out.splitlines() if " with " in line.split(": ")[0]]
    assert len(commands) >= 2 * len(TYPES) + 2
    for runtime, command in commands:
        if "Python" in runtime:
            names = [ast.literal_eval(node) for node in ast.walk(ast.parse(command)) if isinstance(node, ast.Constant)]
        else:
            names = [word for word in shlex.split(command) if "my runs (2)" in word]
        assert names and all((tmp_path / name).exists() for name in names), command


# --- files that are not the model ------------------------------------------------------------------------------


def place(path: Path, key: str) -> int:
    """Where the value of a key of the header ends."""
    return read_header(path).places[key][1]


def other_template(path: Path) -> None:
    data = path.read_bytes()
    assert data.count(b"<|im_start|>assistant") == 1
    path.write_bytes(data.replace(b"<|im_start|>assistant", b"<|im_start|>Assistant"))


def other_end(path: Path) -> None:
    """What every answer begins with ends it."""
    words = list(read_header(path).metadata["tokenizer.ggml.tokens"])
    data, end = bytearray(path.read_bytes()), place(path, "tokenizer.ggml.eos_token_id")
    data[end - 4 : end] = struct.pack("<I", words.index("1"))
    path.write_bytes(data)


def swapped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    one, partner = (t for t in read_header(path).tensors if t.name in ("blk.0.ffn_up.weight", "blk.1.ffn_up.weight"))
    assert one.bytes == partner.bytes
    first, second = (slice(t.offset, t.offset + t.bytes) for t in (one, partner))
    data[first], data[second] = data[second], data[first]
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def shipped_as(run: Run, name: str) -> None:
    """Seals what lies there as if it had been written so."""
    seal = run.read_fingerprints("export-gguf")
    assert seal is not None and name in seal["files"]
    run.write_fingerprints("export-gguf", seal["inputs"], list(seal["files"]))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (other_template, "template and tokenizer produce other tokens than training for 11 of 11 prompts"),
        (other_end, "of the adapter's gain on 'rougeL'"),
        (swapped, "likeliest token is the adapter's at"),
        (cut_off, "ends inside tensor 'blk.1.ffn_up.weight'"),
    ],
)
def test_a_file_that_is_not_the_model_is_kept_and_marked(
    copy: Run,
    recipe: Recipe,
    call: Callable[..., tuple[int, str, str]],
    fault: Callable[[Path], None],
    message: str,
) -> None:
    path = copy / "export/gguf/toy.f16.gguf"
    whole = path.read_bytes()
    fault(path)
    broken = path.read_bytes()
    assert broken != whole
    shipped_as(copy, "export/gguf/toy.f16.gguf")
    words = ["export", str(recipe.folder / "toy.yaml"), "--runs", str(copy.path.parent), "--only", "gguf"]
    for _ in range(2):  # the second time from what is known of it
        code, out, err = call(*words)
        assert code == 9
        stderr = " ".join(err.split())
        assert "export.json: not every file passed verification. f16: " in stderr  # where, and what
        assert "The files are kept and marked. Export another type" in stderr  # what next
        assert "NOT VERIFIED: f16" in out and "verified: q8_0" in out
        assert "f16 with llama.cpp" not in out and "q8_0 with llama.cpp" in out
    assert path.read_bytes() == broken
    mark = path.with_name("toy.f16.gguf.UNVERIFIED.txt")
    assert message in mark.read_text(encoding="utf-8")
    entry = entries(copy.path)["f16"]
    assert not entry["verified"] and any(message in problem for problem in entry["problems"])
    page = tunesmith.report(recipe, copy).read_text(encoding="utf-8")
    assert "f16 is not verified" in page
    path.write_bytes(whole)
    shipped_as(copy, "export/gguf/toy.f16.gguf")
    tunesmith.export(recipe, copy, only=["gguf"])
    assert entries(copy.path)["f16"]["verified"] and not mark.exists()


# --- stopped ---------------------------------------------------------------------------------------------------


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def small(run: Callable[..., Any]) -> Callable[..., Any]:
    """A process whose files may have 50 kB, which says what numpy says on a full disk."""

    def limited(*words: Any, **how: Any) -> Any:
        import resource

        return run(*words, **how, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)))

    return limited


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process's files are not known there")
def test_a_full_disk_is_said_and_the_same_command_goes_on(
    exported: Path, trained: Path, recipe: Recipe, converter: Converter, tmp_path: Path
) -> None:
    run = Run(Path(shutil.copytree(trained / "runs", tmp_path / "runs")) / "toy")
    at_work: list[str] = []

    def export() -> Path:
        return tunesmith.export(recipe, run, at_work.append, only=["gguf"])

    def stopped(where: str) -> None:
        at_work.clear()
        with pytest.raises(ResourceError, match="the disk is full") as caught:
            export()
        assert where in caught.value.where and "run the same command again" in caught.value.next
        assert not (run / "export/gguf").exists() or not list((run / "export/gguf").glob("*.gguf"))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(merging, "_write_tensor", full)
        stopped("model.safetensors")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gguf_target, "check_base", lambda job: None)  # its file is as small
        patched.setattr(converting, "_run_converter", converter.real)
        patched.setattr("tunesmith.exporting.convert.subprocess.run", small(subprocess.run))
        stopped("export")
    with pytest.MonkeyPatch.context() as patched:
        real, remaining = quantising._PartialFile.finish_tensor, [20]

        def close(part: Any) -> None:
            remaining[0] -= 1
            if remaining[0] == 0:
                with translate_disk_errors(part.plan.path):
                    full()
            real(part)

        patched.setattr(quantising._PartialFile, "finish_tensor", close)
        stopped(".gguf")
    at_work.clear()
    export()
    assert "export: merging the adapter into the base" not in at_work  # nor was it converted again
    expected = {name: digest for name, digest in files(exported).items() if name.startswith("export/gguf/")}
    assert {name: digest for name, digest in files(run.path).items() if name.startswith("export/gguf/")} == expected


@pytest.mark.long
@pytest.mark.slow
def test_killed_at_ten_moments(trained: Path, tmp_path: Path) -> None:
    """SIGKILL of the whole command; what it wrote in the end is what it writes uninterrupted, byte by byte."""
    path = write_recipe(trained, export__files=[{"gguf": {"types": TYPES}}, "gguf_lora", "merged"])
    log, chance, reached = tmp_path / "said.log", random.Random(KILLS), list[str]()

    def begun(name: str) -> subprocess.Popen[bytes]:
        if not (tmp_path / name).exists():
            shutil.copytree(trained / "runs", tmp_path / name)
        words = [sys.executable, "-u", "-m", "tunesmith", "export", str(path)]
        with log.open("wb") as out:
            return subprocess.Popen([*words, "--runs", str(tmp_path / name)], stdout=out, stderr=out)

    began = time.monotonic()
    assert begun("whole").wait() == 0, log.read_text()
    stretch, rounds = (time.monotonic() - began) / 4, 1
    while len(reached) < KILLS:
        process = begun(f"killed{rounds}")
        while process.poll() is None and "export: " not in log.read_text():  # until it works, to strike in what follows
            time.sleep(0.05)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0, stretch))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            reached.append(log.read_text().splitlines()[-1])
        else:  # it came to its end; what is left of the ten strikes another run
            assert process.returncode == 0, f"{log.read_text()}; killed at {reached}"
            rounds += 1
    assert begun(f"killed{rounds}").wait() == 0, f"{log.read_text()}; killed at {reached}"
    whole = tmp_path / "whole/toy"
    expected = {name: export_entry["sha256"] for name, export_entry in entries(whole).items()}
    for number in range(1, rounds + 1):
        killed = tmp_path / f"killed{number}/toy"
        assert files(killed) == files(whole), f"killed at {reached}"
        entry_of = entries(killed)
        assert {
            name: export_entry["sha256"] for name, export_entry in entry_of.items()
        } == expected and expected.keys() == FILES - {"adapter"}
        assert all(entry["verified"] for entry in entry_of.values())
        assert not list(killed.rglob("*.part*")) and not (killed / "export/.work").exists()
    assert len(set(reached)) > 3, reached  # the moments were spread
    print("\n".join(reached))


@pytest.mark.slow
def test_an_adapter_with_the_scale_of_rslora_ships_with_that_scale(tmp_path: Path) -> None:
    """llama.cpp scales an update by alpha / rank, rsLoRA by alpha / sqrt(rank)."""
    make_convertible(tmp_path / "base", ends=True, tie_word_embeddings=False)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toy_rows()))
    path = write_recipe(tmp_path, export__files=["gguf_lora"], adapter__scaling="rs", train__epochs=6)
    recipe = read_recipe(str(path))
    run = tunesmith.open_run(recipe, tmp_path / "runs")
    for command in (tunesmith.prepare, tunesmith.train, tunesmith.evaluate, tunesmith.export):
        command(recipe, run)
    (entry,) = run.read_json("export.json")["files"]
    assert entry["verified"]
    assert read_header(run / entry["path"]).metadata["adapter.lora.alpha"] == pytest.approx(16 * 8**0.5)
