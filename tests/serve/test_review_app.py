"""The review server: authentication, what it must not reveal, what it stores; and the command around it."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from strict_pages import EVIL, Page
from tunesmith.commands.review import review, serve_review, write_summary
from tunesmith.config.recipe import Recipe, read_recipe
from tunesmith.errors import ResourceError, RunError
from tunesmith.evaluation.review import QUESTIONS, Reviews, read_reviews, shuffle_for_reviewer
from tunesmith.runs.run import Run
from tunesmith.serve.review_app import MAX_BODY, MAX_NOTE, PAGES_FOLDER, review_app
from tunesmith.web.server import listen

HOST = "127.0.0.1:8000"
TOKEN = "t0ken"
GIVEN: dict[str, Any] = {
    "left": dict.fromkeys(QUESTIONS, "yes"),
    "right": dict.fromkeys(QUESTIONS, "cannot say"),
    "preference": "left",
    "seconds": 2.54,
    "note": " one \n",
}


def write_run(folder: Path, rows: int = 4, equal: int = 1) -> tuple[Recipe, Run]:
    """A recipe and its run as evaluate leaves it: `rows` test rows, the last `equal` with the same reply twice."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe_file = folder / "toy.yaml"
    recipe_file.write_text("name: toy\nseed: 3\nbase: {model: none}\ndata: {source: rows.jsonl}\n")
    run = Run(folder / "runs" / "toy")
    origin = {"file": "rows.jsonl", "line": 1, "unit": "line"}
    plain, base, tuned = [], [], []
    for n in range(rows):
        turns = [{"role": "user", "content": f"Question {n}: {EVIL}"}, {"role": "assistant", "content": "wanted"}]
        fields = {"skill": f"skill {n} {EVIL}", "letter": "wanted"}
        plain.append({"id": f"row-{n}", "group": "", "messages": turns, "origin": origin, "fields": fields})
        common = {"id": f"row-{n}", "part": "test", "stopped": True, "tokens": 3, "cut": "", "loss": 0.5}
        identical = n >= rows - equal
        base.append({**common, "text": "same" if identical else f"1. First of {n} {EVIL}\n2. two\u2028lines"})
        tuned.append(
            {**common, "text": "same" if identical else f"Other of {n}\n\n{EVIL}", "stopped": False, "loss": 0.25}
        )
    for name, values in (("data/test", plain), ("replies/base", base), ("replies/tuned", tuned)):
        run.write(f"{name}.jsonl", "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))
    run.write("data/unseen.jsonl", "")
    run.write_fingerprints("evaluate", {}, ["replies/base.jsonl", "replies/tuned.jsonl"])
    return read_recipe(str(recipe_file)), run


def app_of(folder: Path, reviewer: str = "r1") -> Any:
    from tunesmith.commands.review import review_pairs

    recipe, run = write_run(folder)
    pairs, equal = review_pairs(recipe, run)
    reviews = Reviews.open(run / "reviews", reviewer)
    blind = shuffle_for_reviewer(pairs, recipe.seed, reviewer)
    return (
        review_app(blind, equal, reviews, name="toy", token=TOKEN, hosts=[HOST, "localhost:8000"]),
        blind,
        reviews,
    )


def client_of(app: Any, **headers: str) -> TestClient:
    """A client as the page is one; `headers` change what it sends, an empty one is left out."""
    sent = {"Authorization": f"Bearer {TOKEN}", "Origin": f"http://{HOST}", "Host": HOST}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    return TestClient(app, base_url=f"http://{HOST}", headers={name: value for name, value in sent.items() if value})


@pytest.fixture
def page(tmp_path: Path) -> TestClient:
    return client_of(app_of(tmp_path)[0])


def given(client: TestClient, place: int, **changes: Any) -> dict[str, Any]:
    return {"key": client.get(f"/api/pairs/{place}").json()["key"], **GIVEN, **changes}


def test_a_judgement_is_kept_with_its_sides(tmp_path: Path) -> None:
    app, blind, reviews = app_of(tmp_path)
    page = client_of(app)
    state = page.get("/api/state").json()
    assert (state["of"], state["done"], state["open"], state["equal"], state["reviewer"]) == (3, 0, 0, 1, "r1")
    assert [item["name"] for item in state["questions"]] == list(QUESTIONS)
    output = page.get("/api/pairs/1").json()
    assert (output["left"], output["right"], output["given"]) == (blind[1].left, blind[1].right, None)
    assert output["turns"] == [{"role": "user", "text": blind[1].pair.turns[0].text}]
    assert [field["name"] for field in output["fields"]] == ["skill"]
    assert page.post("/api/judgments", json=given(page, 1)).json() == {"of": 3, "done": 1, "open": 0}
    (stored,) = read_reviews(reviews.path.parent)["r1"].values()
    assert (stored.pair, stored.part, stored.left_is, stored.preference) == (
        blind[1].pair.id,
        "test",
        blind[1].left_is,
        "left",
    )
    assert (stored.left["clear"], stored.right["clear"], stored.seconds, stored.note) == (
        "yes",
        "cannot say",
        2.5,
        "one",
    )
    assert stored.preferred == blind[1].left_is


def test_back_and_another_answer(page: TestClient, tmp_path: Path) -> None:
    page.post("/api/judgments", json=given(page, 0))
    before = page.get("/api/pairs/0").json()["given"]
    assert before == {**GIVEN, "seconds": 2.5, "note": "one"}
    assert page.post("/api/judgments", json=given(page, 0, preference="tie")).json()["done"] == 1
    assert page.get("/api/pairs/0").json()["given"]["preference"] == "tie"
    assert len((tmp_path / "runs/toy/reviews/r1.jsonl").read_text().splitlines()) == 2


def test_it_goes_on_where_it_was_left(tmp_path: Path) -> None:
    first = client_of(app_of(tmp_path)[0])
    first.post("/api/judgments", json=given(first, 0))
    path = tmp_path / "runs/toy/reviews/r1.jsonl"
    path.write_bytes(path.read_bytes() + b'{"pair": "torn')
    again = client_of(app_of(tmp_path)[0])
    assert again.get("/api/state").json()["open"] == 1
    for place in (1, 2):
        text = again.post("/api/judgments", json=given(again, place)).json()
    assert text == {"of": 3, "done": 3, "open": None}
    assert len(path.read_text().splitlines()) == 3
    other_client = client_of(app_of(tmp_path, "r2")[0])
    assert other_client.get("/api/state").json()["done"] == 0


def test_nothing_tells_which_reply_is_whose(tmp_path: Path) -> None:
    app, blind, _ = app_of(tmp_path)
    page = client_of(app)
    answers = [page.get(path) for path in ("/", "/review.js", "/review.css", "/api/state")]
    for place in range(len(blind)):
        answers += [page.get(f"/api/pairs/{place}"), page.post("/api/judgments", json=given(page, place))]
        answers += [page.get(f"/api/pairs/{place}")]
    answers += [page.post("/api/judgments", json={}), page.get("/api/pairs/99"), page.get("/api/summary")]
    for answer in answers:
        headers = {name: value for name, value in answer.headers.items() if name != "content-security-policy"}
        whole = answer.text.lower() + str(headers).lower()
        for word in ("base", "tuned", "left_is", "row-", "stopped", "loss", "tokens"):
            assert word not in whole, (answer.url, word)
    output = [page.get(f"/api/pairs/{place}").json() for place in range(3)]
    keys = {"place", "key", "turns", "fields", "left", "right", "given"}
    assert [set(item) for item in output] == [keys] * 3
    # the same texts on the same sides, written by the other model: the very same bytes
    swapped = [
        item.__class__(
            item.pair.__class__(**{**item.pair.__dict__, "base": item.pair.tuned, "tuned": item.pair.base}),
            "tuned" if item.left_is == "base" else "base",
            item.reviewer,
        )
        for item in blind
    ]
    other_reviews = Reviews.open(tmp_path / "other", "r1")
    mirrored = client_of(review_app(swapped, 1, other_reviews, name="toy", token=TOKEN, hosts=[HOST]))
    assert [{**item, "given": None} for item in output] == [
        mirrored.get(f"/api/pairs/{place}").json() for place in range(3)
    ]


ASKED: list[tuple[str, str]] = [("GET", "/api/state"), ("GET", "/api/pairs/0"), ("POST", "/api/judgments")]


@pytest.mark.parametrize(("method", "path"), ASKED)
@pytest.mark.parametrize(
    "sent", ["", "Bearer", "Bearer wrong", TOKEN, f"Basic {TOKEN}", f"bearer {TOKEN}x", "Bearer é"]
)
def test_no_token_no_answer(tmp_path: Path, method: str, path: str, sent: str) -> None:
    client = client_of(app_of(tmp_path)[0], Authorization="")
    headers = [(b"Authorization", sent.encode())] if sent else []
    answer = client.request(method, path, json=GIVEN if method == "POST" else None, headers=headers)
    assert answer.status_code == 401
    assert client.request(method, f"{path}?token={TOKEN}").status_code == 401
    assert (tmp_path / "runs/toy/reviews/r1.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "127.0.0.1", "127.0.0.1:9", "[::1]:8000", "127.0.0.1:8000.evil.example", ""],
)
@pytest.mark.parametrize("path", ["/", "/review.js", "/api/state"])
def test_another_host_is_refused(tmp_path: Path, host: str, path: str) -> None:
    client = client_of(app_of(tmp_path)[0])
    answer = client.get(path, headers={"Host": host})
    assert answer.status_code == 421
    assert client.get(path, headers={"Host": "LOCALHOST:8000"}).status_code == 200


@pytest.mark.parametrize(
    "origin",
    ["", "null", "http://evil.example", "https://127.0.0.1:8000", "http://127.0.0.1:9", "http://localhost:8000"],
)
def test_another_pages_writing_is_refused(tmp_path: Path, origin: str) -> None:
    client = client_of(app_of(tmp_path)[0], Origin=origin)
    assert client.post("/api/judgments", json=given(client, 0)).status_code == 403
    assert client.get("/api/state").json()["done"] == 0


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""])
def test_only_json_is_read(page: TestClient, kind: str) -> None:
    headers = {"Content-Type": kind} if kind else {}
    answer = page.post("/api/judgments", content=json.dumps(given(page, 0)), headers=headers)
    assert answer.status_code == 415
    assert page.get("/api/state").json()["done"] == 0


WRONG: list[dict[str, Any]] = [
    {"note": "x" * (MAX_NOTE + 1)},
    {"preference": "both"},
    {"preference": None},
    {"seconds": -1},
    {"seconds": "3"},
    {"seconds": 1e9},
    {"left": {}},
    {"left": {**GIVEN["left"], "more": "yes"}},
    {"right": dict.fromkeys(QUESTIONS, "maybe")},
    {"more": 1},
    {"key": 3},
]


@pytest.mark.parametrize("change", WRONG, ids=lambda change: str(change)[:40])
def test_a_judgement_of_another_shape_is_refused(page: TestClient, change: dict[str, Any]) -> None:
    assert page.post("/api/judgments", json=given(page, 0, **change)).status_code == 422
    assert page.get("/api/state").json()["done"] == 0


def test_replies_that_are_gone_and_places_that_are_none(page: TestClient) -> None:
    assert page.post("/api/judgments", json=given(page, 0, key="another")).status_code == 409
    assert [page.get(f"/api/pairs/{place}").status_code for place in ("3", "-1", "x")] == [404, 404, 422]
    assert page.get("/api/state").json()["done"] == 0


def test_the_longest_note_fits(page: TestClient) -> None:
    answer = page.post("/api/judgments", json=given(page, 0, note="🙂" * MAX_NOTE))
    assert answer.status_code == 200


def test_a_large_body_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with serve_review(*write_run(tmp_path), "r1") as served:
        port, token = int(served.url.split(":")[2].split("/")[0]), served.url.split("#")[1]
        headers = {
            "Authorization": f"Bearer {token}",
            "Origin": f"http://127.0.0.1:{port}",
            "Content-Type": "application/json",
        }

        def ask(body: Any, **more: str) -> int:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            try:
                connection.request(
                    "POST", "/api/judgments", body, {**headers, **more}, encode_chunked="Transfer-Encoding" in more
                )
                return connection.getresponse().status
            finally:
                connection.close()

        assert ask(None, **{"Content-Length": str(MAX_BODY + 1)}) == 413
        assert (
            ask(
                (b'{"note": "' + b"x" * 4096 for _ in range(MAX_BODY // 4096 + 1)),
                **{"Transfer-Encoding": "chunked"},
            )
            == 413
        )
        assert ask(b"{}") == 422
    assert served.reviews.judgments == {}


def test_every_answer_has_the_headers(page: TestClient) -> None:
    answers = [
        page.get("/"),
        page.get("/api/state"),
        page.get("/nothing"),
        page.get("/", headers={"Host": "evil.example"}),
    ]
    answers.append(page.post("/api/judgments", json={}))
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert not any(name.startswith("access-control") for name in answer.headers)
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "path",
    [
        "/docs",
        "/redoc",
        "/openapi.json",
        "/api/summary",
        "/review.py",
        "/../review_app.py",
        "/%2e%2e/guard.py",
        "/reviews/r1.jsonl",
        "/pages/review.html",
    ],
)
def test_nothing_else_is_served(page: TestClient, path: str) -> None:
    assert page.get(path).status_code == 404
    assert page.get(path, headers={"Authorization": ""}).status_code == 401


def test_the_page_is_whole_and_asks_nothing_of_others() -> None:
    whole = Page((PAGES_FOLDER / "review.html").read_text(encoding="utf-8"))
    assert all("style" not in result and not any(name.startswith("on") for name in result) for _, result in whole.tags)
    assert [result["src"] for result in whole.named("script")] == ["review.js"]
    assert {result["for"] for result in whole.named("label") if "for" in result} == {"progress", "note"}
    identities = [result["id"] for _, result in whole.tags if "id" in result]
    assert len(identities) == len(set(identities))
    texts = {file.name: file.read_text(encoding="utf-8") for file in PAGES_FOLDER.iterdir()}
    assert set(texts) == {"review.html", "review.css", "review.js"}
    for text in texts.values():
        assert "http:" not in text
        assert "https:" not in text
        assert "//cdn" not in text
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "DOMParser", "srcdoc"):
        assert way not in texts["review.js"]
    element_ids = re.findall(r'\bat\("([^"]+)"\)', texts["review.js"])
    assert set(element_ids) <= set(identities)


def test_telemetry_stays_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9/")
    inner = app_of(tmp_path)[0]._app
    assert not any(inner._telemetry[name] for name in ("tracing", "metrics", "logs", "auto_configure"))


def test_a_full_disk_is_told_and_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = client_of(app_of(tmp_path)[0])

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("tunesmith.evaluation.review.os.fsync", full)
        answer = page.post("/api/judgments", json=given(page, 0))
    assert answer.status_code == 507
    assert "disk is full" in answer.json()["detail"]
    assert page.get("/api/state").json()["done"] == 0
    assert page.post("/api/judgments", json=given(page, 0)).status_code == 200


def post(url: str, **changes: Any) -> dict[str, Any]:
    """Judges the first open pair of a server that runs."""
    address, token = url.split("/#")
    headers = {"Authorization": f"Bearer {token}", "Origin": address, "Content-Type": "application/json"}

    def ask(path: str, body: Any = None) -> Any:
        request = urllib.request.Request(address + path, body and json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    key = ask(f"/api/pairs/{ask('/api/state')['open']}")["key"]
    return dict(ask("/api/judgments", {"key": key, **GIVEN, **changes}))


def test_the_server_listens_here_alone_and_ends(tmp_path: Path) -> None:
    recipe, run = write_run(tmp_path)
    lines: list[str] = []
    with serve_review(recipe, run, "r1", lines.append) as served:
        assert served.url.startswith("http://127.0.0.1:")
        assert len(served.url.split("#")[1]) >= 43  # 256 bits
        port = int(served.url.split(":")[2].split("/")[0])
        assert post(served.url)["done"] == 1
        with pytest.raises(RunError, match="r1 is already judging"), serve_review(recipe, run, "r1"):
            pass
        with serve_review(recipe, run, "r2") as second:
            assert second.url.split("#")[1] != served.url.split("#")[1]
            assert post(second.url, preference="tie")["done"] == 1
        with pytest.raises(ResourceError, match=f"port {port} is already in use"), listen(port):
            pass
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/state", timeout=10)
        assert refused.value.code == 401
        refused.value.close()
    assert not served.thread.is_alive()
    with pytest.raises(OSError, match=r"refused"), socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
    with listen(port):  # the port is free again at once
        pass
    assert lines == ["review: 1 of 4 rows have two equal replies and are not shown"]
    summary = write_summary(recipe, run)
    assert summary.reviewers == {"r1": 1, "r2": 1}
    assert run.read_json("reviews.json")["sections"]["test"]["pairs"] in (1, 2)
    assert run.changed("review", {"evaluate": run.fingerprint("evaluate")}) == []


def test_before_evaluate_there_is_nothing_to_judge(tmp_path: Path) -> None:
    recipe, run = write_run(tmp_path)
    (run / ".fingerprints/evaluate.json").unlink()
    with pytest.raises(RunError, match="evaluate is not finished") as error:
        review(recipe, run, "r1")
    assert error.value.next == f"Run: tunesmith evaluate {run.path}"
    assert not (run / "reviews.json").exists()


def test_equal_replies_throughout(tmp_path: Path) -> None:
    recipe, run = write_run(tmp_path, rows=3, equal=3)
    with pytest.raises(RunError, match="equal replies to all 3 rows"):
        review(recipe, run, "r1")


def test_a_bad_name_is_refused_before_anything_is_served(tmp_path: Path) -> None:
    recipe, run = write_run(tmp_path)
    with pytest.raises(RunError, match="is not a valid reviewer name"):
        review(recipe, run, "../r1")
    assert not (run / "reviews").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_ends_the_review_with_its_summary(tmp_path: Path) -> None:
    _, run = write_run(tmp_path)
    code = (
        "import sys; from pathlib import Path; from tunesmith.config.recipe import read_recipe\n"
        "from tunesmith.runs.run import Run; from tunesmith.commands.review import review\n"
        "say = lambda text: print(text, flush=True)\n"
        "print(review(read_recipe(sys.argv[1]), Run(Path(sys.argv[2])), 'r1', say))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "toy.yaml"), str(run.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        lines: list[str] = []
        while not lines or "open http" not in lines[-1]:
            lines.append(process.stdout.readline())
            assert lines[-1], process.communicate()[1]
        url = lines[-1].split()[-1]
        assert post(url)["done"] == 1
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert err == ""
    assert "review: r1 has judged 1 of 3 pairs" in out
    assert out.strip().endswith("reviews.json")
    result = run.read_json("reviews.json")
    assert result["sections"]["test"]["tuned"]["of"] == 1
    assert result["reviewers"] == {"r1": 1}
