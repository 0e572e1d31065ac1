"""`audit` and `undo` as a user calls them: on a bare file, on a recipe, with --fix, --checks, --pseudonyms."""

from __future__ import annotations

import csv
import json
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tunesmith.config.recipe import CHECKS
from tunesmith.config.registry import entries, entry_constant
from tunesmith.data.sources import read

Call = Callable[..., tuple[int, str, str]]
MAIL = "mira@mill.example.net"
ROWS = [
    *({"question": f"Who runs shop number {n}?", "answer": f"Shop {n} is run by its {n} owners."} for n in range(12)),
    {"question": "How do I pay?", "answer": "1. Open the tab. 2. Tap the cart. 3. Tap Pay."},
    {"question": "how do i pay", "answer": "1. Open the tab.\n2. Tap the cart.\n3. Tap Pay."},
    {"question": "Where is the caf\u00c3\u00a9?", "answer": "Near the mill.\r\nMail " + MAIL + "."},
    {"question": "Who am I?", "answer": ""},
    {"question": "Who writes the letters here?", "answer": "Dear team, this is [Your Name] speaking for all of us."},
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def table(here: Path) -> Path:
    path = here / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as sink:
        csv.writer(sink).writerows([list(ROWS[0]), *(list(row.values()) for row in ROWS)])
    return path


def counts(output: str) -> dict[str, list[str]]:
    """The table of findings: check -> its numbers."""
    lines = [line.split() for line in output.split("\n")]
    return {line[0]: line[1:] for line in lines if len(line) > 1 and line[-1].isdigit()}


def test_a_bare_file_is_audited_with_every_check_that_suits_it(call: Call, table: Path, here: Path) -> None:
    before = table.read_bytes()
    code, output, wrong = call("audit", "rows.csv")
    assert (code, wrong) == (0, "")
    assert table.read_bytes() == before
    folder = here / "audits/rows"
    assert sorted(file.name for file in folder.iterdir()) == ["audit.html", "audit.json", "findings.jsonl"]
    assert "audit: see audits/rows/audit.html" in output
    account = json.loads((folder / "audit.json").read_text())
    suited = {name for name in entries(CHECKS) if entry_constant(CHECKS, name, "SCOPE") != "split"} - {"ungrounded"}
    assert set(account["checks"]) == suited
    rows_of_check = {name: facts["rows"] for name, facts in account["checks"].items() if facts["found"]}
    expected = {"collapsed_list", "duplicate", "mojibake", "whitespace", "empty", "placeholder", "personal"}
    assert expected - {"duplicate"} <= rows_of_check.keys()
    assert (
        account["read"]
        == len(ROWS)
        == account["kept"] + sum(account["dropped"].values()) + sum(account["quarantined"].values())
    )
    findings = [json.loads(line) for line in (folder / "findings.jsonl").read_text().split("\n") if line]
    assert len(findings) == sum(facts["found"] for facts in account["checks"].values())
    assert MAIL not in "".join(file.read_text() for file in folder.iterdir())
    assert "The data of rows" in (folder / "audit.html").read_text()


def test_fix_writes_cleaned_rows_and_undo_takes_it_back(call: Call, table: Path, here: Path) -> None:
    code, output, wrong = call("audit", "rows.csv", "--fix", "--out", "looked")
    assert (code, wrong) == (0, "")
    assert "repaired: 2 rows" in output
    assert "tunesmith undo looked/rows.cleaned.diff.jsonl --out FILE" in output
    cleaned_rows = [dict(row.values) for row in read(here / "looked/rows.cleaned.csv")]
    assert "1. Open the tab.\n2. Tap the cart.\n3. Tap Pay." in {row["answer"] for row in cleaned_rows}
    assert "Where is the café?" in {row["question"] for row in cleaned_rows}
    assert not {"Who am I?", "Who writes the letters here?", "how do i pay"} & {row["question"] for row in cleaned_rows}
    code, output, wrong = call("undo", "looked/rows.cleaned.diff.jsonl", "--out", "back.csv")
    assert (code, wrong) == (0, "")
    assert f"undo: {len(ROWS)} original rows are in back.csv" in output
    assert [dict(row.values) for row in read(here / "back.csv")] == ROWS
    code, _, wrong = call("undo", "looked/rows.cleaned.diff.jsonl", "--out", "back.csv")
    assert code == 3
    assert "back.csv: this file already exists. Use another path with --out." in wrong
    code, _, wrong = call("undo", "looked/rows.cleaned.csv", "--out", "again.csv")
    assert code == 3
    assert "is not the diff of a cleaning" in wrong


def test_chosen_checks_alone_are_made(call: Call, table: Path, here: Path) -> None:
    code, output, wrong = call("audit", "rows.csv", "--checks", "empty, whitespace", "--out", "some")
    assert (code, wrong) == (0, "")
    assert counts(output) == {"empty": ["1", "1"], "whitespace": ["1", "1"]}
    account = json.loads((here / "some/audit.json").read_text())
    assert set(account["checks"]) == {"empty", "whitespace", "broken"}  # rows that cannot be read are always told
    code, output, _ = call("audit", "rows.csv", "--checks", "markup")
    assert (code, "audit: no defects found" in output) == (0, True)


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (["rows.csv", "--checks", "emtpy"], 2, "--checks: unknown name 'emtpy'. Did you mean 'empty'?"),
        (["rows.csv", "--small"], 2, "rows.csv: --small and --set need a recipe"),
        (["rows.csv", "--set", "seed=3"], 2, "rows.csv: --small and --set need a recipe"),
        (["gone.csv"], 3, "gone.csv: no such file"),
        (["rows.txt"], 3, "'.txt' files cannot be read"),
        (["nothing.csv"], 3, "no row could be read"),
        (["gone.yaml"], 2, "gone.yaml: this recipe file does not exist"),
    ],
)
def test_what_cannot_be_audited_is_said(
    call: Call, table: Path, here: Path, words: list[str], code: int, problem: str
) -> None:
    (here / "rows.txt").write_text("x")
    (here / "nothing.csv").write_text("question,answer\n")
    exit_code, output, wrong = call("audit", *words)
    assert (exit_code, output) == (code, "")
    assert problem in wrong
    assert not (here / "audits").exists()


def test_pseudonyms_come_with_fix_and_the_pseudonym_map_lies_apart(call: Call, table: Path, here: Path) -> None:
    (here / "apart").mkdir()
    code, output, wrong = call("audit", "rows.csv", "--fix", "--out", "o", "--pseudonyms", "apart/book.json")
    assert (code, wrong) == (0, "")
    assert "1 pseudonyms for personal data" in output
    assert MAIL not in output + "".join(file.read_text() for file in (here / "o").iterdir())
    assert MAIL in (here / "apart/book.json").read_text()
    assert stat.S_IMODE((here / "apart/book.json").stat().st_mode) == 0o600
    code, _, wrong = call("undo", "o/rows.cleaned.diff.jsonl", "--out", "back.csv")
    assert code == 3
    assert "personal data was replaced" in wrong
    assert not (here / "back.csv").exists()


def test_a_recipe_is_audited_with_its_own_checks_and_tokens(
    call: Call, recipe_file: Callable[..., Path], rows_file: Path, here: Path
) -> None:
    rows_file.write_text(rows_file.read_text() + json.dumps({"topic": "t0", "prompt": " ", "completion": "x"}) + "\n")
    path = str(recipe_file(data__checks=["empty", {"too_long": {"max_tokens": 16, "do": "quarantine"}}]))
    code, output, wrong = call("audit", path)
    assert (code, "Traceback" in wrong) == (0, False)
    account = json.loads((here / "audits/toy/audit.json").read_text())
    assert set(account["checks"]) == {"empty", "too_long", "broken"}
    assert (account["read"], account["dropped"]) == (37, {"empty": 1})
    assert account["quarantined"]["too_long"] > 0
    assert account["profile"]["lengths"]["tokens"]["max"] > 16
    assert counts(output)["empty"] == ["1", "1"]
    code, _, _ = call("audit", path, "--checks", "too_long,duplicate", "--set", "data.repair=true", "--out", "o")
    account = json.loads((here / "o/audit.json").read_text())
    assert code == 0
    assert set(account["checks"]) == {"too_long", "duplicate", "broken"}
    assert account["checks"]["too_long"]["proposals"] == {"quarantine": account["checks"]["too_long"]["found"]}


def test_a_recipe_whose_model_is_not_here_is_audited_without_tokens(
    call: Call, recipe_file: Callable[..., Path], here: Path
) -> None:
    code, output, _ = call("audit", str(recipe_file(base__model="./nowhere")))
    assert code == 0
    assert "audit: tokens are not counted, because the model is not available" in output
    assert "tokens" not in json.loads((here / "audits/toy/audit.json").read_text())["profile"]["lengths"]


def test_many_rows_are_looked_at_by_several_processes_as_by_one(table: Path, here: Path) -> None:
    """The command itself, on more rows than one process takes: its findings are those of the small pieces."""
    rows: list[dict[str, Any]] = [
        {"prompt": f"Who lit lamp {n}?", "answer": f"The lamp of room {n} is old.{chr(13) if n % 9 == 0 else ''}"}
        for n in range(4100)
    ]
    (here / "large.jsonl").write_text("".join(json.dumps(finding) + "\n" for finding in rows))
    command = [
        str(Path(sys.executable).with_name("tunesmith")),
        "audit",
        "large.jsonl",
        "--checks",
        "whitespace,markup",
    ]
    process = subprocess.run(command, capture_output=True, text=True, cwd=here)
    assert (process.returncode, process.stderr) == (0, "")
    findings = [json.loads(line) for line in (here / "audits/large/findings.jsonl").read_text().split("\n") if line]
    assert [finding["line"] for finding in findings] == [n + 1 for n in range(0, 4100, 9)]


def test_ctrl_c_ends_every_process_with_one_line(here: Path) -> None:
    path = here / "many.jsonl"
    with path.open("w") as sink:
        for number in range(60_000):
            words = " ".join(f"word{number * 7 + place}" for place in range(30))
            sink.write(json.dumps({"prompt": f"What of {number}?", "answer": f"It is {words}."}) + "\n")
    command = [sys.executable, "-m", "tunesmith.cli", "audit", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        pool: list[psutil.Process] = []
        while len(pool) < 2 and process.poll() is None:  # one that looks and the one that tracks what they share
            time.sleep(0.05)
            pool = psutil.Process(process.pid).children(recursive=True)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in out + err and "tunesmith: stopped." in err
    _, alive = psutil.wait_procs(pool, timeout=20)  # the tracker of shared things ends a moment after the others
    assert [member.cmdline() for member in alive if member.status() != psutil.STATUS_ZOMBIE] == []
    assert not list(here.glob("audits/many/*.jsonl"))
