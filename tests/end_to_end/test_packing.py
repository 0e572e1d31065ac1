"""A run is packed, carried, gone on with elsewhere. What is wrong with an archive is found before anything is there."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from finished_runs import finish, journal, make_recipe
from stopping import at, crash
from tiny import CHATML
from tunesmith.commands import unpack
from tunesmith.commands.evaluate import _evaluation_inputs
from tunesmith.commands.runs import list_runs
from tunesmith.config.recipe import Recipe, read_recipe
from tunesmith.errors import DataError, ResourceError, RunError, TunesmithError
from tunesmith.runs import archive
from tunesmith.runs.archive import MANIFEST, Member
from tunesmith.runs.run import Run, hash_file, hash_json

ADAPTER = "adapter/adapter_model.safetensors"


def tree(folder: Path) -> dict[str, str]:
    """Every file of a folder but its locks, by what it holds."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".lock")]
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in files}


def begun(path: Path, folder: Path) -> tuple[Recipe, Run]:
    recipe = read_recipe(str(path))
    run = tunesmith.open_run(recipe, folder)
    tunesmith.prepare(recipe, run)
    return recipe, run


def members_of(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return tar.getnames()


# --- going on elsewhere ------------------------------------------------------------------------------------


def stopping_before_tuned(which: str, count: int, of: int) -> None:
    if which == "tuned":
        raise KeyboardInterrupt


def products(recipe: Recipe, run: Run, command: str) -> list[str]:
    """Makes every product, and returns what was said."""
    log_lines: list[str] = []
    tunesmith.prepare(recipe, run, log_lines.append)
    tunesmith.train(recipe, run, log_lines.append)
    tunesmith.evaluate(recipe, run, log_lines.append)
    tunesmith.report(recipe, run, log_lines.append, command=command)
    tunesmith.card(recipe, run, log_lines.append)
    return log_lines


def moved_in(target: Path, folder: Path, runs: Path, log_lines: list[str]) -> tuple[Recipe, Run]:
    """The run that was packed, opened as the command line opens a run's folder."""
    recipe = read_recipe(str(tunesmith.unpack(target, folder, log_lines.append)))
    run = tunesmith.open_run(recipe, runs)
    assert run.path == folder.resolve() and not runs.exists()
    return recipe, run


def test_a_run_whose_template_is_gone_is_carried_with_its_copy(
    recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "own.jinja").write_text(CHATML)
    recipe, run = begun(recipe_file(prompt__template="own.jinja", train__epochs=1), tmp_path / "first")
    (tmp_path / "own.jinja").unlink()
    products(recipe, run, "")
    tunesmith.pack(run, tmp_path / "toy.tar")
    assert [name for name in members_of(tmp_path / "toy.tar") if "jinja" in name] == ["data/template.jinja"]
    shutil.rmtree(run.path)
    recipe, run = moved_in(tmp_path / "toy.tar", tmp_path / "other/toy", tmp_path / "runs", [])
    assert [text.split(",")[0] for text in products(recipe, run, "")] == [
        f"{product}: up to date" for product in ("prepare", "train", "evaluate", "report", "card")
    ]
    tunesmith.pack(run, tmp_path / "again.tar")
    assert hash_file(tmp_path / "again.tar") == hash_file(tmp_path / "toy.tar")
    tunesmith.prepare(read_recipe(str(run.path), settings={"data.split.test": 0.3}), run)  # anew, from the copy
    assert (run / "data/template.jinja").read_text() == CHATML


def test_runs_that_are_carried_go_on_as_if_they_had_stayed(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    """One is finished; one stops in training and in evaluation. Behind them rows, probes, template and run are gone."""
    inputs = tmp_path / "home"
    inputs.mkdir()
    (inputs / "own.jinja").write_text(CHATML)
    (inputs / "more.jsonl").write_text('{"prompt": "how to do 9?", "kind": "far"}\n')
    shutil.move(tmp_path / "rows.jsonl", inputs / "rows.jsonl")
    path = recipe_file(
        data__source="home/*.jsonl",  # the probes are rows with no answer, which are dropped
        data__checks=["broken", "empty"],
        prompt__template="home/own.jinja",
        evaluate__probes="home/more.jsonl",
        train__evaluate_every=3,
        adapter__dropout=0.1,
    )
    recipe, whole = begun(path, tmp_path / "whole")
    products(recipe, whole, "tunesmith run toy.yaml")
    expected = tree(whole.path)
    finished = tunesmith.pack(whole, tmp_path / "drive/whole.tar.gz")
    recipe, run = begun(path, tmp_path / "first")
    with pytest.raises(KeyboardInterrupt):
        tunesmith.train(recipe, run, watch=at("step", 8, crash))
    log_lines: list[str] = []
    stopped = tunesmith.pack(run, tmp_path / "drive/toy.tar", log_lines.append)
    assert log_lines[0].startswith("pack: toy, stopped, 8 of 10 steps; ")
    assert "pack: files that the recipe reads: inputs/more.jsonl, inputs/own.jinja, inputs/rows.jsonl" in log_lines
    assert log_lines[-1] == "pack: copy it to the other machine, then run there: tunesmith unpack toy.tar"
    for folder in (whole.path, run.path, inputs):
        shutil.rmtree(folder)
    path.unlink()

    recipe, run = moved_in(finished, tmp_path / "other/toy", tmp_path / "runs", [])
    assert [text.split(",")[0] for text in products(recipe, run, "tunesmith run other/toy")] == [
        f"{product}: up to date" for product in ("prepare", "train", "evaluate", "report", "card")
    ]
    actual = tree(run.path)
    new = {"recipe.yaml", "inputs/rows.jsonl", "inputs/more.jsonl", "inputs/own.jinja"}
    assert {name for name in {*expected, *actual} if expected.get(name) != actual.get(name)} == new
    (row,) = list_runs(tmp_path / "other")
    assert (row.state, row.note) == ("reported", "")

    log_lines.clear()
    recipe, run = moved_in(stopped, tmp_path / "elsewhere/toy", tmp_path / "runs", log_lines)
    assert "unpack: the training is not finished; it can be resumed on a machine that supports float32" in log_lines
    assert log_lines[-1] == f"unpack: to continue: tunesmith run {tmp_path / 'elsewhere/toy'}"
    log_lines.clear()
    tunesmith.prepare(recipe, run, log_lines.append)
    assert log_lines == ["prepare: up to date"]
    events: list[dict[str, Any]] = []
    tunesmith.train(recipe, run, watch=events.append)
    assert [(event["kind"], event["step"]) for event in events][:2] == [("resume", 6), ("step", 7)]
    assert hash_file(run / ADAPTER) == expected[ADAPTER]
    with pytest.raises(KeyboardInterrupt):
        tunesmith.evaluate(recipe, run, on_progress=stopping_before_tuned)
    half = tunesmith.pack(run, tmp_path / "drive/half.tar", without=["checkpoints"])
    assert not [name for name in members_of(half) if name.startswith("checkpoints")]
    shutil.rmtree(run.path)

    tunesmith.unpack(half, tmp_path / "third/of another name").rename(tmp_path / "moved")
    recipe = read_recipe(str(tmp_path / "moved"))  # its inputs lie inside, so it may be moved as any run
    run = tunesmith.open_run(recipe, tmp_path / "runs")
    header = json.loads((run / "replies/base.part").read_text().splitlines()[0])
    assert header == {"inputs": _evaluation_inputs(recipe, run)}  # what is there is gone on from
    log_lines = products(recipe, run, "tunesmith run moved")
    assert [text.split(",")[0] for text in log_lines[:2]] == ["prepare: up to date", "train: up to date"]
    assert {name: hash_file(run / name) for name in ("scores.json", "replies/base.jsonl", "replies/tuned.jsonl")} == {
        name: expected[name] for name in ("scores.json", "replies/base.jsonl", "replies/tuned.jsonl")
    }


def test_the_command_line(call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    stocked(tmp_path)
    code, output, _ = call("pack", "toy")
    assert (code, output.splitlines()[-1]) == (
        0,
        "pack: copy it to the other machine, then run there: tunesmith unpack toy.tar",
    )
    assert call("pack", "runs/toy", "--out", "b.tar.gz", "--without", "sources,checkpoints")[0] == 0
    code, output, _ = call("unpack", "b.tar.gz", "--into", "new place")
    assert (code, output.splitlines()[-1]) == (0, "unpack: to continue: tunesmith run 'new place'")
    code, _, wrong = call("unpack", "toy.tar")
    assert (code, wrong.strip()) == (
        5, "tunesmith: runs/toy: this folder already exists. Give a new folder with --into.",
    )  # fmt: skip
    shutil.rmtree("runs")
    assert call("unpack", "toy.tar")[0] == 0
    assert Path("runs/toy/recipe.yaml").is_file()
    code, _, wrong = call("pack", "nothing")
    assert (code, wrong.strip()) == (
        5, "tunesmith: runs: there is no run 'nothing'. List the runs: tunesmith runs",
    )  # fmt: skip
    assert not Path("nothing").exists()


# --- what is packed ----------------------------------------------------------------------------------------


def stocked(folder: Path, **changes: Any) -> Run:
    """A finished run, no model needed, with its rows beside it."""
    (folder / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    recipe = make_recipe("toy", data__source=str(folder / "rows.jsonl"), **changes)
    run = finish(recipe, folder / "runs/toy")
    run.write("checkpoints/step-0000012/tensors.safetensors", random.Random(1).randbytes(3000))
    return run


def content(tar: tarfile.TarFile, member: str | tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def test_the_manifest_tells_what_is_inside(tmp_path: Path) -> None:
    run = stocked(tmp_path)
    log_lines: list[str] = []
    target = tunesmith.pack(run, tmp_path / "toy.tar", log_lines.append)
    with tarfile.open(target) as tar:
        assert tar.getnames()[0] == MANIFEST
        manifest = json.loads(content(tar, MANIFEST))
        for member in manifest["members"]:
            data = content(tar, member["name"])
            assert (len(data), hashlib.sha256(data).hexdigest()) == (member["size"], member["sha256"])
        owners = {(info.uid, info.gid, info.uname, info.gname, info.mode) for info in tar}
    assert owners == {(0, 0, "", "", 0o644)}
    assert [member["name"] for member in manifest["members"]] == members_of(target)[1:]
    assert {key: manifest[key] for key in ("format", "name", "state", "steps", "products", "left_out")} == {
        "format": 1, "name": "toy", "state": "reported", "steps": [12, 12], "left_out": [],
        "products": ["evaluate", "prepare", "report", "train"],
    }  # fmt: skip
    assert manifest["base"] == {"model": "someone/base", "revision": None, "bits": 4, "fingerprint": "w" * 64}
    assert (
        "pack: the base model someone/base, fingerprint wwwwwwwwwwww is not packed; it is downloaded there" in log_lines
    )


@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
def test_the_same_run_gives_the_same_bytes_even_after_a_journey(tmp_path: Path, ending: str) -> None:
    run = stocked(tmp_path)
    os.utime(run / "scores.json", (1_700_000_000.7,) * 2)
    one, two, three = (tmp_path / f"{name}{ending}" for name in ("one", "two", "three"))
    tunesmith.pack(run, one)
    tunesmith.pack(run, two)
    assert one.read_bytes() == two.read_bytes()
    folder = tunesmith.unpack(one, tmp_path / "new/toy")
    tunesmith.pack(Run(folder), three)
    assert one.read_bytes() == three.read_bytes()
    assert (folder / "scores.json").stat().st_mtime == 1_700_000_000


def test_what_is_no_product_is_left_out(tmp_path: Path) -> None:
    run = stocked(tmp_path)
    for name in (
        ".lock.owner", ".env", "reviews/.ann.lock", ".report.html.12.tmp", "x.tmp", "y.part", "replies/base.part",
        "checkpoints/.step-0000013.9.tmp/state.json", "reviews/ann.jsonl", "inputs/stray.txt",
    ):  # fmt: skip
        run.write(name, "x")
    log_lines: list[str] = []
    before = tree(run.path)
    target = tunesmith.pack(run, tmp_path / "toy.tar", log_lines.append)
    names = set(members_of(target)) - {MANIFEST}
    assert {name for name in before if name not in names} == {
        ".env", "reviews/.ann.lock", ".report.html.12.tmp", "x.tmp", "y.part", "inputs/stray.txt",
        "checkpoints/.step-0000013.9.tmp/state.json",
    }  # fmt: skip
    assert names - {*before} == {"inputs/rows.jsonl"}
    assert "pack: not packed: .env, x.tmp, y.part" in log_lines


def test_inputs_of_one_name_and_a_folder_of_probes(tmp_path: Path) -> None:
    for place in ("a", "b", "probes/x", "probes/y"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "rows.jsonl").write_text(f'{{"prompt": "{place}"}}\n')
    sources = [str(tmp_path / "b/*.jsonl"), "hub:owner/rows", str(tmp_path / "a")]
    recipe = make_recipe("toy", data__source=sources, evaluate__probes=str(tmp_path / "probes"))
    run = finish(recipe, tmp_path / "runs/toy")
    inner = run.write("curve/25/recipe.yaml", (run / "recipe.yaml").read_text())
    target = tunesmith.pack(run, tmp_path / "toy.tar")
    shutil.rmtree(tmp_path / "a")
    folder = tunesmith.unpack(target, tmp_path / "new")
    plain = read_recipe(str(folder))
    assert plain.data.source == ["inputs/rows.jsonl", "hub:owner/rows", "inputs/2/rows.jsonl"]
    assert [plain.path(plain.data.source[at]).read_text() for at in (0, 2)] == [
        '{"prompt": "b"}\n',
        '{"prompt": "a"}\n',
    ]
    assert plain.evaluate.probes == "inputs/probes"
    assert (folder / "inputs/probes/y/rows.jsonl").read_text() == '{"prompt": "probes/y"}\n'
    point = read_recipe(str(folder / inner.relative_to(run.path).parent))
    assert point.path(point.data.source[2]) == (folder / "inputs/2/rows.jsonl").resolve()
    assert (folder / "curve/25/.lock").exists()


def test_personal_data_stays(tmp_path: Path, recipe_file: Callable[..., Path]) -> None:
    (tmp_path / "apart").mkdir()
    path = recipe_file(data__pseudonyms="apart/book.json", data__checks=["empty", "personal"])
    recipe = read_recipe(str(path))
    run = tunesmith.open_run(recipe, tmp_path / "runs")
    with pytest.raises(
        RunError, match=r"they contain what data.pseudonyms replaces.*not prepared yet.*tunesmith prepare"
    ):
        tunesmith.pack(run, tmp_path / "toy.tar")
    tunesmith.prepare(recipe, run)
    log_lines: list[str] = []
    target = tunesmith.pack(run, tmp_path / "toy.tar", log_lines.append)
    assert log_lines[0].startswith("pack: to protect personal data, the pseudonym map and the files")
    assert not [name for name in members_of(target) if name.startswith("inputs")]
    shutil.rmtree(tmp_path / "apart")
    (tmp_path / "rows.jsonl").unlink()
    folder = tunesmith.unpack(target, tmp_path / "new")
    recipe = read_recipe(str(folder))
    run = tunesmith.open_run(recipe, tmp_path)
    log_lines.clear()
    tunesmith.prepare(recipe, run, log_lines.append)
    assert log_lines[1:] == ["prepare: up to date"] and "were not packed with the run" in log_lines[0]
    again = tunesmith.pack(run, tmp_path / "again.tar")  # and goes on being so
    assert again.read_bytes() == target.read_bytes()
    changed = read_recipe(str(folder), settings={"data.split.test": 0.3})
    with pytest.raises(DataError, match="no such file"):
        tunesmith.prepare(changed, run)


@pytest.mark.parametrize(
    ("without", "why"),
    [
        ("nothing", "there is no 'nothing' to exclude. The run contains: adapter, audit.json, checkpoints"),
        ("../toy", "there is no"),
        ("data", "'data' must be packed: data/train.jsonl is a finished product"),
        ("adapter/adapter_config.json", "adapter is a finished product. Omit it from --without"),
        ("recipe.yaml", "recipe.yaml is the recipe"),
        (".fingerprints/train.json", ".fingerprints is the record of finished products"),
    ],
)
def test_what_cannot_be_left_out(tmp_path: Path, without: str, why: str) -> None:
    with pytest.raises(RunError) as caught:
        tunesmith.pack(stocked(tmp_path), tmp_path / "toy.tar", without=[without])
    assert why in str(caught.value)


def test_a_half_done_training_keeps_its_checkpoints(tmp_path: Path) -> None:
    recipe = make_recipe("toy", data__source="hub:owner/rows")
    run = finish(recipe, tmp_path / "runs/toy", until="prepare")
    run.write("journal.jsonl", "".join(json.dumps(event) + "\n" for event in journal(7, 54)))
    run.write("checkpoints/step-0000005/state.json", "{}")
    with pytest.raises(RunError, match="checkpoints is required to resume the training"):
        tunesmith.pack(run, tmp_path / "toy.tar", without=["checkpoints"])


@pytest.mark.parametrize(
    ("out", "why"),
    [
        ("toy.zip", "the name must end in .tar or .tar.gz"),
        ("runs/toy/toy.tar", "cannot be inside the run"),
        ("mine.tar", "exists, and is not a valid archive of this run"),
        ("other.tar", "already contains the run other"),
        ("rows.jsonl/toy.tar", "nothing was packed"),
    ],
)
def test_where_an_archive_cannot_lie(tmp_path: Path, out: str, why: str) -> None:
    run = stocked(tmp_path)
    (tmp_path / "mine.tar").write_text("mine")
    second_run = finish(make_recipe("other", data__source="hub:owner/rows"), tmp_path / "runs/other", until="prepare")
    tunesmith.pack(second_run, tmp_path / "other.tar")
    before = tree(tmp_path)
    with pytest.raises(RunError, match=why):
        tunesmith.pack(run, tmp_path / out)
    assert tree(tmp_path) == before


def test_a_newer_archive_of_the_same_run_takes_the_place_of_the_older(tmp_path: Path) -> None:
    run, log_lines = stocked(tmp_path), list[str]()
    tunesmith.pack(run, tmp_path / "toy.tar")
    run.write("card.md", "new")
    tunesmith.pack(run, tmp_path / "toy.tar", log_lines.append)
    assert "card.md" in members_of(tmp_path / "toy.tar")
    assert any(text.endswith("it replaces an older one") for text in log_lines)


def test_a_run_at_work_a_link_and_a_missing_input_are_refused(tmp_path: Path) -> None:
    run = stocked(tmp_path)
    target = tmp_path / "toy.tar"
    with run.lock(), pytest.raises(RunError, match="another process"):
        tunesmith.pack(run, target)
    (run / "more").symlink_to(tmp_path)
    with pytest.raises(RunError, match=r"more is a link or not a regular file\. Replace it.*--without more"):
        tunesmith.pack(run, target)
    (run / "more").unlink()
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(DataError, match=r"no such file\. Put it where data.source says.*--without sources"):
        tunesmith.pack(run, target)
    assert not target.exists()
    assert tunesmith.pack(run, target, without=["sources"]) == target


@pytest.mark.parametrize("text", ["measured and longer", "x", "same"])
def test_a_file_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    run = stocked(tmp_path)
    run.write("card.md", "meas")
    begins = archive._new_archive

    def changing(target: Path) -> Any:
        run.write("card.md", text)
        return begins(target)

    monkeypatch.setattr(archive, "_new_archive", changing)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(RunError, match=r"card\.md was changed while it was packed"):
        tunesmith.pack(run, tmp_path / "toy.tar")
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("moment", ["tarfile.TarFile.addfile", "os.fsync"])
def test_killed_while_packing_nothing_has_the_archives_name(tmp_path: Path, moment: str) -> None:
    run = stocked(tmp_path)
    code = f"""
import os, signal, sys, tarfile
from pathlib import Path
import tunesmith
from tunesmith.runs.run import Run
whole = {moment}
calls = []
def killed(*given):
    calls.append(given)
    if "{moment}" == "os.fsync" or len(calls) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*given)
{moment} = killed
tunesmith.pack(Run(Path(sys.argv[1])), Path(sys.argv[2]))
"""
    target = tmp_path / "drive/toy.tar"
    process = subprocess.run([sys.executable, "-c", code, str(run.path), str(target)], capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    (remaining,) = target.parent.iterdir()
    assert remaining.name.startswith(".toy.tar.") and remaining.name.endswith(".tmp")
    tunesmith.pack(run, target)  # the next one clears away what the killed one left
    assert list(target.parent.iterdir()) == [target]
    tunesmith.unpack(target, tmp_path / "new")


def test_a_full_disk_while_packing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stocked(tmp_path)

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(ResourceError, match="disk is full"):
        tunesmith.pack(run, tmp_path / "drive/toy.tar")
    assert list((tmp_path / "drive").iterdir()) == []


# --- what is wrong with an archive -------------------------------------------------------------------------


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return tunesmith.pack(stocked(tmp_path), tmp_path / "toy.tar")


def refused(path: Path, kind: type[TunesmithError] = DataError) -> str:
    """What is said; nothing may have appeared."""
    home = path.parent / "out"
    with pytest.raises(kind) as caught:
        tunesmith.unpack(path, home / "toy")
    assert not home.exists() or list(home.iterdir()) == []
    assert caught.value.what and caught.value.where and caught.value.next
    return str(caught.value)


@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
def test_cut_off_anywhere(tmp_path: Path, ending: str) -> None:
    data = tunesmith.pack(stocked(tmp_path), tmp_path / f"toy{ending}").read_bytes()
    cut = tmp_path / f"cut{ending}"
    places = [0, 1, 100, 511, 513, len(data) // 3, len(data) // 2, len(data) - 11_000, len(data) - 1]
    if ending == ".tar":
        places[-1] = len(data.rstrip(b"\0")) + 500  # what fills the last record up may go, the end's mark may not
    for length in places:
        cut.write_bytes(data[: max(0, length)])
        assert re.search("truncated|not an archive", refused(cut))
    cut.write_bytes(data)
    tunesmith.unpack(cut, tmp_path / "whole")


@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path: Path, ending: str) -> None:
    """At random places: in names, sizes, bytes, the manifest, the packing, and in what fills a block."""
    data = tunesmith.pack(stocked(tmp_path), tmp_path / f"toy{ending}").read_bytes()
    expected = tree(tunesmith.unpack(tmp_path / f"toy{ending}", tmp_path / "whole"))
    forged, chance, detected = tmp_path / f"forged{ending}", random.Random(5), 0
    for number in range(60):
        place = chance.randrange(len(data))
        flipped = bytearray(data)
        flipped[place] ^= 1 << chance.randrange(8)
        forged.write_bytes(flipped)
        target = tmp_path / f"out/{number}"
        try:
            tunesmith.unpack(forged, target)
        except (DataError, RunError) as error:
            assert error.where and error.next
            assert not target.exists()
            detected += 1
        else:
            assert tree(target) == expected
    assert detected > 50


def test_what_fills_a_block_is_looked_at(packed: Path) -> None:
    with tarfile.open(packed) as tar:
        info = next(info for info in tar if info.name == "recipe.yaml")
    data = bytearray(packed.read_bytes())
    data[info.offset_data + info.size] = 1
    packed.write_bytes(data)
    assert "is damaged or truncated after recipe.yaml" in refused(packed)


def forge(
    packed: Path, change: Callable[[dict[str, Any], list[tuple[tarfile.TarInfo, bytes]]], None], *, check: bool = True
) -> Path:
    """The archive with its manifest and members changed; `check`: the manifest vouches for itself again."""
    with tarfile.open(packed) as tar:
        members = [(info, content(tar, info)) for info in tar]
    manifest = json.loads(members[0][1])
    change(manifest, members)
    if check:
        manifest.pop("check", None)
        manifest["check"] = hash_json(manifest)
    text = json.dumps(manifest).encode()
    members[0][0].size = len(text)
    members[0] = (members[0][0], text)
    path = packed.with_name("forged.tar")
    with tarfile.open(path, "w") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return path


def named(name: str, **facts: Any) -> Callable[[dict[str, Any], list[tuple[tarfile.TarInfo, bytes]]], None]:
    """One more member of this name, told in the manifest as it should be, but for `facts`."""

    def change(manifest: dict[str, Any], members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        info, data = tarfile.TarInfo(name), facts.pop("data", b"abc")
        info.size = len(data)
        for key, value in facts.items():
            setattr(info, key, value)
        members.append((info, data))
        line = {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest["members"].append(line)

    return change


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../evil", "'../evil' is outside the run's folder"),
        ("/etc/evil", "is outside the run's folder"),
        ("a/../../evil", "is outside the run's folder"),
        ("a//b", "is outside the run's folder"),
        ("C:/evil", "a character that some systems do not allow"),
        ("a\\..\\..\\evil", "a character that some systems do not allow"),
        ("a\nb", "a character that some systems do not allow"),
        (".env", "is hidden"),
        ("a/.lock", "is hidden"),
        ("x" * 300, "is too long"),
        ("recipe.yaml", "is listed twice"),
        ("MANIFEST.json", "is listed twice"),
        ("recipe.yaml/x", "is inside another file"),
    ],
)
def test_names_that_are_not_unpacked(packed: Path, name: str, why: str) -> None:
    assert why in refused(forge(packed, named(name)))
    assert not (packed.parent / "evil").exists()


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE,
     tarfile.CONTTYPE],
)  # fmt: skip
def test_only_plain_files_are_unpacked(packed: Path, kind: bytes) -> None:
    link = named("more", type=kind, linkname="../../rows.jsonl", data=b"")
    assert "more is a link, a device or not a regular file" in refused(forge(packed, link))


def test_other_forgeries(packed: Path) -> None:
    def unlisted(manifest: dict[str, Any], members: list[Any]) -> None:
        named("more")({"members": []}, members)

    def missing(manifest: dict[str, Any], members: list[Any]) -> None:
        manifest["members"].append({"name": "more", "size": 3, "sha256": "0" * 64})

    def other(manifest: dict[str, Any], members: list[Any]) -> None:
        members[3] = (members[3][0], bytes(len(members[3][1])))

    def size(manifest: dict[str, Any], members: list[Any]) -> None:
        manifest["members"][2]["size"] += 1

    def negative(manifest: dict[str, Any], members: list[Any]) -> None:
        manifest["members"][2]["size"] = -1

    def late(manifest: dict[str, Any], members: list[Any]) -> None:
        members[3][0].mtime = 1 << 40

    def no_run(manifest: dict[str, Any], members: list[Any]) -> None:
        manifest["name"] = "../toy"

    def nothing(manifest: dict[str, Any], members: list[Any]) -> None:
        manifest["members"] = []

    for change, why in (
        (unlisted, "data after the last file is not in its manifest"),
        (missing, "is truncated or damaged before more"),
        (other, "is damaged. Copy the archive again"),
        (size, "where its manifest lists"),
        (negative, "has no size or hash"),
        (late, "not a regular file"),
        (no_run, "is not an archive of a run"),
        (nothing, "its list of files is empty"),
    ):
        assert why in refused(forge(packed, change))

    def renamed(manifest: dict[str, Any], members: list[Any]) -> None:
        manifest["name"] = "another"

    assert "its manifest is damaged" in refused(forge(packed, renamed, check=False))

    def newer(manifest: dict[str, Any], members: list[Any]) -> None:
        manifest.update(format=2, tunesmith="7.1")

    message = refused(forge(packed, newer, check=False), RunError)
    assert "was packed by tunesmith 7.1 in format 2; this version reads 1. Unpack it with that version" in message


def test_what_is_no_archive(packed: Path, tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "none.tar")
    odd = tmp_path / "odd.tar"
    for data in (b"", b"x" * 2000, b"\x1f\x8b"):
        odd.write_bytes(data)
        assert "is damaged, truncated or not an archive" in refused(odd)
    odd.write_bytes(bytes(10240))
    assert "is not an archive of a run" in refused(odd)
    with tarfile.open(tmp_path / "foreign.tar", "w") as tar:
        tar.add(tmp_path / "rows.jsonl", "rows.jsonl")
    assert "is not an archive of a run. Give a file that tunesmith pack wrote" in refused(tmp_path / "foreign.tar")
    for text in (b"[]", b"{}", b'{"format": true}', b'{"format": 1, "check": "x"}', b"[" * 100_000, b"\xff"):
        with tarfile.open(odd, "w") as tar:
            info = tarfile.TarInfo(MANIFEST)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
        refused(odd)


def test_a_header_that_would_fill_the_memory(packed: Path, tmp_path: Path) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 1 << 40
    (tmp_path / "bomb.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + packed.read_bytes())
    assert "a header of 1099511627776 bytes" in refused(tmp_path / "bomb.tar")
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 12
    chain = (header.tobuf(tarfile.USTAR_FORMAT) + b"12 comment=x".ljust(512, b"\0")) * 3000
    (tmp_path / "chain.tar").write_bytes(chain + packed.read_bytes())
    refused(tmp_path / "chain.tar")


def test_too_little_room(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        almost_full = type(shutil.disk_usage(tmp_path))(10, 5, 5)
        patched.setattr(f"{unpack.__name__}.shutil.disk_usage", lambda path: almost_full)
        assert "the disk has 5 bytes left, but the run needs" in refused(packed, ResourceError)
    plain = Path.open

    def full(self: Path, mode: str = "r", *arguments: Any, **more: Any) -> Any:
        if "x" in mode and self.name == "scores.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(self, mode, *arguments, **more)

    monkeypatch.setattr(Path, "open", full)
    assert "the disk is full" in refused(packed, ResourceError)


def test_a_folder_that_is_there_is_never_touched(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    existing = tmp_path / "taken"
    existing.mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for folder in (existing, tmp_path / "rows.jsonl", tmp_path / "dangling"):
        with pytest.raises(RunError, match=r"this folder already exists\. Give a new folder with --into"):
            tunesmith.unpack(packed, folder)
    extract, late = archive.Reader.extract, tmp_path / "late"

    def slow(self: archive.Reader, folder: Path) -> None:
        extract(self, folder)
        late.mkdir()
        (late / "mine").write_text("mine")

    monkeypatch.setattr(archive.Reader, "extract", slow)
    with pytest.raises(RunError, match="this folder already exists"):
        tunesmith.unpack(packed, late)
    assert (late / "mine").read_text() == "mine"


def test_a_base_that_is_a_folder(tmp_path: Path) -> None:
    base = tmp_path / "model"
    base.mkdir()
    log_lines: list[str] = []
    target = tunesmith.pack(stocked(tmp_path, base__model=str(base)), tmp_path / "toy.tar", log_lines.append)
    assert any("is not packed: the folder" in text and "--set base.model=FOLDER" in text for text in log_lines)
    tunesmith.unpack(target, tmp_path / "one", log_lines.append)
    assert log_lines[-2].endswith("it exists")
    base.rmdir()
    tunesmith.unpack(target, tmp_path / "two", log_lines.append)
    assert log_lines[-2].endswith("it must exist at the same path, or be given with --set base.model=FOLDER")


def test_a_base_that_is_a_file(tmp_path: Path) -> None:
    base = tmp_path / "model.gguf"
    base.write_bytes(b"GGUF")
    log_lines: list[str] = []
    target = tunesmith.pack(stocked(tmp_path, base__model=str(base)), tmp_path / "toy.tar", log_lines.append)
    assert any("is not packed: the file" in text for text in log_lines)
    tunesmith.unpack(target, tmp_path / "one", log_lines.append)
    assert log_lines[-2].endswith("it exists")


def test_names_that_are_not_packed(tmp_path: Path) -> None:
    for name in ("a:b", "a\\b", "a\x01", "\udcff"):
        with pytest.raises(RunError, match="has a character that some systems do not allow"):
            archive.write(tmp_path / "x.tar", [Member(name, b"")], {})
    assert (archive.safe_name("..a:b"), archive.safe_name(".")) == ("a_b", "_")
