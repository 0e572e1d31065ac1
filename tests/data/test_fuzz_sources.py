"""Damaged files of every kind: rows, bad rows or our own error, and nothing else, in bounded time and memory."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tunesmith.data.rows import BadRow
from tunesmith.data.sources import READERS, describe, read_all
from tunesmith.errors import DataError

KINDS = [kind + packing for kind in READERS for packing in ("", ".gz")]
SECONDS = 20.0  # for one file: a field of 8 MB takes less than one, on two busy cores a few
MEBIBYTES = 2048  # by which one file may raise the peak
TOPICS = ["grüner Tee", "une clé rouillée", "żółta łódka", "старый мост", "朝の市場", "plain bread", "🙂 signs"]


def plain_rows(rng: random.Random, count: int) -> list[dict[str, str]]:
    return [
        {
            "prompt": f"Write {rng.randint(2, 9)} lines about {rng.choice(TOPICS)}.",
            "answer": "\n".join(f'{rng.choice(TOPICS)}, "{rng.random():.3f}"' for _ in range(rng.randint(1, 4))),
            "kind": rng.choice(["short", "long", ""]),
        }
        for _ in range(count)
    ]


def separated(rows: list[dict[str, str]], delimiter: str) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def columnar(rows: list[dict[str, str]], kind: str, rng: random.Random) -> bytes:
    import pyarrow
    import pyarrow.parquet

    wide: list[dict[str, Any]] = [
        {**row, "turns": [{"role": "user", "content": row["prompt"]}], "score": rng.random()} for row in rows
    ]
    table, file = pyarrow.Table.from_pylist(wide), io.BytesIO()
    if kind == ".parquet":
        packing = rng.choice(["snappy", "gzip", "none"])
        pyarrow.parquet.write_table(table, file, compression=packing, row_group_size=5)
    else:
        with rng.choice([pyarrow.ipc.new_file, pyarrow.ipc.new_stream])(file, table.schema) as sink:
            sink.write_table(table, max_chunksize=5)
    return file.getvalue()


def valid(kind: str, rng: random.Random) -> bytes:
    rows = plain_rows(rng, rng.choice([1, 3, 12]))
    if kind in (".csv", ".tsv"):
        return separated(rows, "," if kind == ".csv" else rng.choice("\t\t;"))
    if kind == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in rows).encode()
    if kind == ".json":
        whole: Any = rows if rng.random() < 0.8 else {"version": 1, "data": rows}
        return json.dumps(whole, ensure_ascii=False, indent=rng.choice([None, None, 0, 2])).encode()
    return columnar(rows, kind, rng)


# --- what may happen to a file -------------------------------------------------------------------------------

Change = Callable[[bytes, random.Random], bytes]


def put_in(data: bytes, rng: random.Random, piece: bytes) -> bytes:
    place = rng.randint(0, len(data))
    return data[:place] + piece + data[place:]


def flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def remove(data: bytes, rng: random.Random) -> bytes:
    place = rng.randint(0, len(data))
    return data[:place] + data[place + rng.choice([1, 1, 5, 100]) :]


def insert(data: bytes, rng: random.Random) -> bytes:
    return put_in(data, rng, rng.randbytes(rng.choice([1, 2, 20])))


def duplicate(data: bytes, rng: random.Random) -> bytes:
    place = rng.randint(0, len(data))
    return put_in(data, rng, data[place : place + rng.choice([1, 10, 300])])


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randint(0, len(data))]


def empty(data: bytes, rng: random.Random) -> bytes:
    return rng.choice([b"", b"\n", b" ", b"\xef\xbb\xbf", b"\xff\xfe", b"\0" * 64])


def encoding(data: bytes, rng: random.Random) -> bytes:
    name = rng.choice(["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1251", "shift_jis", "gb18030"])
    return data.decode("utf-8", "replace").encode(name, "replace")


def sign(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 1, 3])):
        data = put_in(data, rng, rng.choice([b'"', b"'", b"\\", b'""', b",", b";", b"\t", b"\r", b"\n", b"{", b"]"]))
    return data


def kinds_of_value(data: bytes, rng: random.Random) -> bytes:
    values = [b"null", b"true", b"1", b"[]", b'{"a": {}}', b"NaN", b"Infinity", b"-Infinity", b"1e999999", b"9" * 5000]
    values += [b'"\\ud800"', b'"\\udc00\\ud800"', b"\xed\xa0\x80", b'{"a": 1, "a": 2}', b"-", b"0.5e", b"nul"]
    words = data.split(b'"')
    place = rng.randrange(len(words))
    words[place] = rng.choice(values)
    return rng.choice([b'"', b""]).join(words) if rng.random() < 0.2 else b'"'.join(words)


def zeros(data: bytes, rng: random.Random) -> bytes:
    return put_in(data, rng, b"\0" * rng.choice([1, 2, 50]))


def deep(data: bytes, rng: random.Random) -> bytes:
    opened, closed = rng.choice([(b"[", b"]"), (b'{"a":', b"}")])
    piece = opened * 100_000 + (b"1" + closed * 100_000 if rng.random() < 0.5 else b"")
    return rng.choice([piece, b"[" + piece + b"]", put_in(data, rng, piece)])


def huge(data: bytes, rng: random.Random) -> bytes:
    return put_in(data, rng, rng.choice([b"x", b"\n", b"\xc3\xa9", b'"', b"[1,", b"\\"]) * (1 << 22))


USUAL: list[Change] = [flip, remove, insert, duplicate, cut, encoding, sign, kinds_of_value, zeros]
RARE: list[Change] = [empty, deep]


def damaged(kind: str, rng: random.Random) -> bytes:
    packed = kind.endswith(".gz")
    data = valid(kind.removesuffix(".gz"), rng)
    chance = rng.random()
    changes = (
        [huge]
        if chance < 0.004
        else [rng.choice(RARE)]
        if chance < 0.03
        else rng.choices(USUAL, k=rng.choice([1, 1, 2, 4]))
    )
    inside = not packed or rng.random() < 0.6
    if not inside:
        data = gzip.compress(data, 1)
    for change in changes:
        data = change(data, rng)
    return gzip.compress(data, 1) if packed and inside else data


# --- what must come of it ------------------------------------------------------------------------------------


@contextmanager
def bounded(what: str) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"{what} took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) >> 10
    assert grown < MEBIBYTES, f"{what} took {grown} MiB"


def defects_of(path: Path, name: str | None) -> str:
    """'clean', 'bad rows' or 'error': what reading a file comes to."""
    bad = 0
    try:
        for row in read_all(path, name):
            assert row.origin.file == path.name
            assert row.origin.line > 0
            if isinstance(row, BadRow):
                bad += 1
                assert row.error.where.startswith(path.name)
                assert row.error.what
            elif ".parquet" not in path.name and ".arrow" not in path.name:
                json.dumps(dict(row.values), ensure_ascii=False).encode()  # it can be kept
    except DataError as error:
        assert error.where.startswith(path.name)
        assert error.next
        return "error"
    return "bad rows" if bad else "clean"


def told(path: Path) -> str | None:
    try:
        facts = describe(path)
    except DataError:
        return None
    return facts.encoding.name if facts.encoding else None


def run(count: int, seed: int) -> Counter[str]:
    seen: Counter[str] = Counter()
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        path = Path(f"a{kind}")
        path.write_bytes(damaged(kind, random.Random(f"{seed}/{number}")))
        with bounded(f"file {number} of seed {seed} ({kind})"):
            seen[defects_of(path, None)] += 1
            name = told(path)
            if name not in (None, "utf-8"):
                seen[f"by its encoding: {defects_of(path, name)}"] += 1
    return seen


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_some_hundred_damaged_files() -> None:
    seen = run(400, seed=1)
    assert seen["clean"] + seen["bad rows"] + seen["error"] == 400
    assert min(seen["clean"], seen["bad rows"], seen["error"]) > 20


@pytest.mark.long
@pytest.mark.slow
def test_ten_thousand_damaged_files() -> None:
    began = time.perf_counter()
    count = int(os.environ.get("FUZZ_FILES", "10000"))
    seen = run(count, seed=int(os.environ.get("FUZZ_SEED", "2")))
    print(count, dict(seen), f"{time.perf_counter() - began:.0f} s")
    assert seen["clean"] + seen["bad rows"] + seen["error"] == count


@pytest.mark.parametrize("kind", KINDS)
def test_undamaged_files_are_clean(kind: str) -> None:
    for number in range(8):
        path = Path(f"a{kind}")
        data = valid(kind.removesuffix(".gz"), random.Random(number))
        path.write_bytes(gzip.compress(data) if kind.endswith(".gz") else data)
        assert defects_of(path, None) == "clean"
        assert defects_of(path, told(path)) == "clean"
