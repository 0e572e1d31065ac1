"""Data sets from the hub: the real client and `datasets`, against a cache laid out by hand and a hub on this machine.

Both libraries read their settings when they are imported, so each setting has a process of its own.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tunesmith.data.hub import HubSource, parse_hub_source
from tunesmith.errors import DataError

FORM = "Write it as hub:owner/name@REVISION?config=NAME&split=NAME; everything after the name is optional"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hub:tea/recipes", HubSource("tea/recipes")),
        ("hub:tea", HubSource("tea")),
        ("hub:tea/recipes@v1.0", HubSource("tea/recipes", "v1.0")),
        ("hub:tea/recipes@refs/pr/3?split=test", HubSource("tea/recipes", "refs/pr/3", None, "test")),
        ("hub:tea/re-ci_pes.2?split=a&config=b%20c", HubSource("tea/re-ci_pes.2", None, "b c", "a")),
    ],
)
def test_the_parts_of_a_source(source: str, expected: HubSource) -> None:
    assert parse_hub_source(source) == expected
    assert parse_hub_source(str(expected)) == expected


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("hub:", "is not the name of a data set on the Hub"),
        ("hub:a/b/c", "is not the name of a data set on the Hub"),
        ("hub:a/b@", "is not the name of a data set on the Hub"),
        ("hub:a b/c", "is not the name of a data set on the Hub"),
        ("a/b", "is not the name of a data set on the Hub"),
        ("hub:a/b?config", "the options after '?' cannot be read: bad query field: 'config'"),
        ("hub:a/b?config=", "'config' is empty"),
        ("hub:a/b?split=x&split=y", "'split' is given twice"),
        ("hub:a/b?splt=x", "unknown option 'splt'"),
    ],
)
def test_sources_that_are_written_otherwise(source: str, what: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_hub_source(source)
    assert (caught.value.where, caught.value.what) == (source, what)
    assert caught.value.next == ("Did you mean 'split'? Choose from: config, split" if "splt" in source else FORM)


# --- a cache, and a hub ----------------------------------------------------------------------------------------

CARD = b"""---
configs:
- config_name: short
  data_files:
  - split: train
    path: short/train-*.parquet
  - split: test
    path: short/test-*.parquet
- config_name: long
  data_files: [{split: valid, path: long/valid.parquet}, {split: test, path: [long/test.parquet]}]
---
Rows about tea.
"""
MAIN, OLD = "a" * 40, "b" * 40


def parquet(*rows: dict[str, Any]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)
    return file.getvalue()


def labeled() -> bytes:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "kind": ClassLabel(names=["green", "black"])})
    file = io.BytesIO()
    Dataset.from_dict({"text": ["sencha", "assam"], "kind": [0, 1]}, features=features).to_parquet(file)
    return file.getvalue()


def tea() -> dict[str, bytes]:
    return {
        "README.md": CARD,
        "short/train-0.parquet": parquet({"q": "how hot?", "a": "70 °C"}, {"q": "how long?", "a": None}),
        "short/train-1.parquet": parquet({"q": "how much?", "a": "two spoons"}),
        "short/test-0.parquet": parquet({"q": "what cup?", "a": "a wide one"}),
        "long/valid.parquet": parquet({"q": "why?", "a": "because"}),
        "long/test.parquet": parquet({"q": "where?", "a": "here"}),
        "script.py": b"raise SystemExit('run')",
    }


def old_tea() -> dict[str, bytes]:
    return {
        **{name: data for name, data in tea().items() if "long" not in name},
        "short/train-1.parquet": parquet({"q": "how old?", "a": "a year"}),
    }


def keep(home: Path, name: str, commit: str, ref: str, files: dict[str, bytes]) -> None:
    """A snapshot as huggingface_hub lays it out."""
    root = home / "hub" / f"datasets--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / ref).write_text(commit)
    for path, data in files.items():
        blob, link = root / "blobs" / hashlib.sha256(data).hexdigest(), root / "snapshots" / commit / path
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(data)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))


LINES = b'{"text": "steep it"}\n{"text": "pour it"}\n'
DATA_SETS: dict[str, dict[str, bytes]] = {
    "tea/lines": {"rows.jsonl": LINES, "README.md": b"no settings here\n"},
    "tea/splits": {"validation.csv": b"q,a\n1,x\n", "test.csv": b"q,a\n2,y\n"},
    "tea/labels": {"train.parquet": b""},
    "tea/broken": {"train.parquet": b"PAR1 but no more"},
    "tea/script": {"script.py": b"raise SystemExit('run')", "a.txt": b"one\ntwo\n"},
    "tea/pictures": {"cup.png": b"\x89PNG"},
    "tea/card": {"README.md": b"---\nconfigs: 7\n---\n", "rows.jsonl": LINES},
}
ASK = """
import json, sys
from tunesmith.data import hub
from tunesmith.errors import TunesmithError
found = {}
for source in json.loads(sys.stdin.read()):
    try:
        rows = list(hub.read_hub(source))
        found[source] = [[dict(row.values) for row in rows], [str(row.origin) for row in rows]]
        found[source] += [hub.fingerprint(source), hub.pin(source)]
    except TunesmithError as error:
        found[source] = [error.where, error.what, error.next]
print(json.dumps(found))
"""


def ask(sources: list[str], home: Path, **settings: str) -> tuple[dict[str, list[Any]], str]:
    """What the module says about each source in a process with these settings; and what it wrote aside."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    env |= {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*", **settings}
    done = subprocess.run(
        [sys.executable, "-c", ASK], input=json.dumps(sources), capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


OFFLINE = {
    "hub:tea/recipes?config=short": [
        [{"q": "how hot?", "a": "70 °C"}, {"q": "how long?", "a": None}, {"q": "how much?", "a": "two spoons"}],
        ["hub:tea/recipes row 1", "hub:tea/recipes row 2", "hub:tea/recipes row 3"],
        f"hub:tea/recipes@{MAIN}?config=short&split=train",
    ],
    "hub:tea/recipes@v1?config=short&split=test": [
        [{"q": "what cup?", "a": "a wide one"}],
        ["hub:tea/recipes row 1"],
        f"hub:tea/recipes@{OLD}?config=short&split=test",
    ],
    "hub:tea/recipes?config=long&split=test": [
        [{"q": "where?", "a": "here"}],
        ["hub:tea/recipes row 1"],
        f"hub:tea/recipes@{MAIN}?config=long&split=test",
    ],
    "hub:tea/lines": [
        [{"text": "steep it"}, {"text": "pour it"}],
        ["hub:tea/lines row 1", "hub:tea/lines row 2"],
        f"hub:tea/lines@{MAIN}?config=default&split=train",
    ],
    f"hub:tea/lines@{MAIN}?config=default&split=train": [
        [{"text": "steep it"}, {"text": "pour it"}],
        ["hub:tea/lines row 1", "hub:tea/lines row 2"],
        f"hub:tea/lines@{MAIN}?config=default&split=train",
    ],
    "hub:tea/labels": [
        [{"text": "sencha", "kind": "green"}, {"text": "assam", "kind": "black"}],
        ["hub:tea/labels row 1", "hub:tea/labels row 2"],
        f"hub:tea/labels@{MAIN}?config=default&split=train",
    ],
    "hub:tea/script": [
        [{"text": "one"}, {"text": "two"}],
        ["hub:tea/script row 1", "hub:tea/script row 2"],
        f"hub:tea/script@{MAIN}?config=default&split=train",
    ],
}
ONLINE = "Go online once (unset HF_HUB_OFFLINE) to download it into the cache"
REFUSED = {
    "hub:tea/recipes": ["has 2 configs", "Add config= with one of: short, long"],
    "hub:tea/recipes?config=tiny": ["has no config 'tiny'", "It has: short, long"],
    "hub:tea/recipes?config=short&split=dev": ["has no split 'dev'", "It has: train, test"],
    "hub:tea/recipes?config=long": ["has 2 splits", "Add split= with one of: valid, test"],
    "hub:tea/recipes@v1?config=long": ["has no files of config 'long'", ONLINE],
    "hub:tea/recipes@v2?config=long": [
        "the Hub cannot be reached, and the cache does not have all of it at revision 'v2'",
        ONLINE,
    ],
    "hub:tea/none": ["the Hub cannot be reached, and the cache does not have all of it", ONLINE],
    "hub:tea/splits": ["has 2 splits", "Add split= with one of: validation, test"],
    "hub:tea/lines?config=x": ["has no config 'x'", "It has none: remove config="],
    "hub:tea/--": ["is not the name of a data set", FORM],
}
VAGUE = {"hub:tea/broken": "cannot be read: ", "hub:tea/pictures": "", "hub:tea/card": "its card cannot be read: "}


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    home = tmp_path_factory.mktemp("home")
    keep(home, "tea/recipes", MAIN, "main", tea())
    keep(home, "tea/recipes", OLD, "v1", old_tea())
    for name, files in DATA_SETS.items():
        keep(home, name, MAIN, "main", {**files, "train.parquet": labeled()} if name == "tea/labels" else files)
    return ask([*OFFLINE, *REFUSED, *VAGUE], home, HF_HUB_OFFLINE="1")[0]


@pytest.mark.parametrize("source", OFFLINE)
def test_rows_from_the_cache(offline: dict[str, list[Any]], source: str) -> None:
    rows, origins, fingerprint, pinned = offline[source]
    assert [rows, origins, pinned] == OFFLINE[source]
    assert len(fingerprint) == 64


@pytest.mark.parametrize("source", REFUSED)
def test_what_the_cache_does_not_hold(offline: dict[str, list[Any]], source: str) -> None:
    assert offline[source] == [source, *REFUSED[source]]


@pytest.mark.parametrize("source", VAGUE)
def test_files_that_are_no_tables(offline: dict[str, list[Any]], source: str) -> None:
    where, what, after = offline[source]
    assert where == source
    assert what.startswith(VAGUE[source])
    assert after


def test_a_fingerprint_is_the_contents(offline: dict[str, list[Any]], tmp_path: Path) -> None:
    source, old = "hub:tea/recipes?config=short", "hub:tea/recipes@v1?config=short&split=test"
    assert len({found[2] for name, found in offline.items() if name in OFFLINE}) == len(OFFLINE) - 1
    assert offline["hub:tea/lines"] == offline[f"hub:tea/lines@{MAIN}?config=default&split=train"]
    keep(tmp_path / "elsewhere", "tea/recipes", MAIN, "main", tea())
    changed = {**tea(), "short/train-1.parquet": parquet({"q": "how much?", "a": "one spoon"})}
    keep(tmp_path / "changed", "tea/recipes", MAIN, "main", changed)
    moved = ask([source], tmp_path / "elsewhere", HF_HUB_OFFLINE="1")[0]
    other = ask([source], tmp_path / "changed", HF_HUB_OFFLINE="1")[0]
    assert moved[source][2] == offline[source][2]
    assert other[source][2] not in (offline[source][2], offline[old][2])


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as its client asks for."""

    seen: ClassVar[list[tuple[str, str]]] = []

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("Authorization", "")))
        path = self.path.split("?")[0]
        name = "/".join(path.removeprefix("/api").removeprefix("/datasets/").split("/")[:2])
        if name != "tea/recipes":
            gated = name == "tea/gated"
            self.answer(403 if gated else 401, b"{}", {"X-Error-Code": "GatedRepo" if gated else "RepoNotFound"})
        elif "nope" in path:
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith("/api/") and "/tree/" in path:
            listed = [{"type": "file", "path": p, "size": len(d), "oid": self.tag(d)} for p, d in tea().items()]
            self.answer(200, json.dumps(listed).encode(), {})
        elif path.startswith("/api/"):
            told = {"id": name, "sha": MAIN, "siblings": [{"rfilename": file} for file in tea()]}
            self.answer(200, json.dumps(told).encode(), {})
        else:
            file = path.split(f"/resolve/{MAIN}/")[-1]
            data = tea().get(file)
            headers = {"X-Repo-Commit": MAIN, "ETag": f'"{self.tag(data or b"")}"'}
            self.answer(404 if data is None else 200, data or b"", headers)

    def tag(self, data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    def answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_hub_is_asked_for_no_more_than_the_config(hub: str, tmp_path: Path) -> None:
    source = "hub:tea/recipes?config=short&split=test"
    secret = "hf_" + "notARealToken"
    wanted = [source, "hub:tea/gated", "hub:tea/nobody", "hub:tea/recipes@nope"]
    found, aside = ask(wanted, tmp_path, HF_ENDPOINT=hub, HF_TOKEN=secret)
    assert found[source][0] == [{"q": "what cup?", "a": "a wide one"}]
    terms = "Accept its terms on https://huggingface.co/datasets/tea/gated, then: hf auth login"
    assert found["hub:tea/gated"] == ["hub:tea/gated", "is gated: its terms must be accepted first", terms]
    nobody = ["hub:tea/nobody", "does not exist on the Hub", "Check the name; for a private data set: hf auth login"]
    assert found["hub:tea/nobody"] == nobody
    assert found["hub:tea/recipes@nope"][1] == "has no revision 'nope'"
    fetched = {path.split("/")[-1] for path, _ in Hub.seen if "/resolve/" in path}
    assert {"README.md", "train-0.parquet", "train-1.parquet", "test-0.parquet"} <= fetched
    assert not {"script.py", "valid.parquet"} & fetched
    assert any(secret in sent for _, sent in Hub.seen)  # the client sends it, and nobody writes it down
    assert secret not in aside + json.dumps(found)
    kept, _ = ask([source], tmp_path, HF_HUB_OFFLINE="1")
    assert kept[source] == found[source]
