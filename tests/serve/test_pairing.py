"""Pairing: a code pairs one extension, which gets its own token, and only a hash is stored in a private file."""

from __future__ import annotations

import hashlib
import hmac
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from serve.loopback_servers import Parrot, Running, running
from tunesmith.errors import RunError
from tunesmith.serve.pairing import CODE_LETTERS, CODE_SECONDS, MAX_TRIES, Pairing, pairs_path, read_pairs, unpair
from tunesmith.web.errors import ApiError

ONE = f"chrome-extension://{'a' * 32}"
OTHER = f"chrome-extension://{'b' * 32}"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config" / "paired.json"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pairs(file: Path, clock: Clock) -> Pairing:
    return Pairing(file, clock=clock)


def wrong(pairs: Pairing, code: str, origin: str = ONE) -> str:
    with pytest.raises(ApiError) as refused:
        pairs.pair(code, origin)
    assert refused.value.status == 403
    return str(refused.value.code)


def test_a_code_is_eight_clear_letters(pairs: Pairing) -> None:
    codes = {pairs.code() for _ in range(50)}
    assert len(codes) == 50
    for code in codes:
        assert len(code) == 9 and code[4] == "-"
        assert set(code.replace("-", "")) <= set(CODE_LETTERS)


def test_a_code_works_once_however_it_is_typed(pairs: Pairing) -> None:
    code = pairs.code()
    token = pairs.pair(f" {code.lower().replace('-', ' ')} ", ONE, "Chrome")
    assert len(token) == 43
    assert pairs.accepts_token(token, ONE)
    assert wrong(pairs, code) == "pairing_failed"
    assert wrong(pairs, code, OTHER) == "pairing_failed"


def test_a_code_lives_ten_minutes(pairs: Pairing, clock: Clock) -> None:
    code = pairs.code()
    clock.now += CODE_SECONDS - 0.5
    assert pairs.allows_origin(ONE, "/v1/pair")
    assert CODE_SECONDS == 600
    late = Pairing(pairs._path, clock=clock)
    assert wrong(late, code) == "pairing_failed"  # of another server
    clock.now += 1
    assert not pairs.allows_origin(ONE, "/v1/pair")
    assert wrong(pairs, code) == "pairing_failed"


def test_five_wrong_tries_end_a_code(pairs: Pairing) -> None:
    code = pairs.code()
    for _ in range(MAX_TRIES - 1):
        wrong(pairs, "AAAA-AAAA")
    assert pairs.pair(code, ONE)  # four are allowed
    code = pairs.code()
    for _ in range(MAX_TRIES):
        wrong(pairs, "AAAA-AAAA")
    assert wrong(pairs, code) == "pairing_failed"
    assert MAX_TRIES == 5
    assert pairs.pair(pairs.code(), ONE)  # a new one is not hurt by it


def test_a_new_code_ends_the_one_before(pairs: Pairing) -> None:
    old, new = pairs.code(), pairs.code()
    wrong(pairs, old)
    assert pairs.pair(new, ONE)


def test_no_code_no_pairing(pairs: Pairing) -> None:
    assert not pairs.allows_origin(ONE, "/v1/pair")
    for code in ("", "\0" * 8, "AAAAAAAA"):
        assert wrong(pairs, code) == "pairing_failed"


@pytest.mark.parametrize(
    "origin", ["", "null", "https://evil.example", "http://127.0.0.1:8765", "chrome-extension://short",
               f"chrome-extension://{'z' * 32}", f"{ONE}/x", f"{ONE}\n", f"https://{ONE}"],
)  # fmt: skip
def test_only_extensions_are_paired_and_known(pairs: Pairing, origin: str) -> None:
    code = pairs.code()
    assert wrong(pairs, code, origin) == "origin_not_allowed"
    assert not pairs.allows_origin(origin, "/v1/pair")
    assert pairs.pair(code, ONE)  # the wrong origin has not used it up


def test_a_token_is_its_origins_own(pairs: Pairing) -> None:
    first, second = pairs.pair(pairs.code(), ONE), pairs.pair(pairs.code(), OTHER)
    assert pairs.accepts_token(first, ONE) and pairs.accepts_token(second, OTHER)
    assert pairs.accepts_token(first, "")  # Chrome names no origin with GET
    assert not pairs.accepts_token(first, OTHER)
    assert not pairs.accepts_token(second, ONE)
    for token in ("", first[:-1], f"{first} ", hashlib.sha256(first.encode()).hexdigest(), "\ud800"):
        assert not pairs.accepts_token(token, ONE)
    assert pairs.allows_origin(ONE, "/v1/models") and not pairs.allows_origin(
        f"chrome-extension://{'c' * 32}", "/v1/models"
    )


def test_pairing_again_replaces_the_token(pairs: Pairing, file: Path) -> None:
    old = pairs.pair(pairs.code(), ONE, "Chrome")
    new = pairs.pair(pairs.code(), ONE, "Chrome again")
    assert not pairs.accepts_token(old, ONE)
    assert pairs.accepts_token(new, ONE)
    assert [item.name for item in read_pairs(file)] == ["Chrome again"]


def test_only_hashes_are_kept_in_a_private_file(pairs: Pairing, file: Path) -> None:
    token = pairs.pair(pairs.code(), ONE, "My\x1b[31m\nChrome")
    text = file.read_text()
    assert token not in text
    assert hashlib.sha256(token.encode()).hexdigest() in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    (stored,) = read_pairs(file)
    assert (stored.origin, stored.name) == (ONE, "My [31m Chrome")
    assert set(json.loads(text)["pairs"][0]) == {"origin", "name", "sha256", "made"}


def test_tokens_are_compared_in_constant_time(pairs: Pairing, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = list[Any]()
    real = hmac.compare_digest

    def spy(one: Any, second: Any) -> bool:
        compared.append((one, second))
        return real(one, second)

    monkeypatch.setattr("tunesmith.serve.pairing.hmac.compare_digest", spy)
    token = pairs.pair(pairs.code(), ONE)
    pairs.pair(pairs.code(), OTHER)
    assert len(compared) == 2
    assert pairs.accepts_token(token, ONE)
    assert len(compared) == 4  # every pair is looked at, wherever the right one stands
    assert all(len(one) == len(second) for one, second in compared)


def test_extensions_are_listed_and_let_in_no_more_while_the_server_runs(pairs: Pairing, file: Path) -> None:
    first, second = pairs.pair(pairs.code(), ONE, "Chrome"), pairs.pair(pairs.code(), OTHER, "Edge")
    with pytest.raises(RunError, match="no paired extension is called 'Opera'"):
        unpair("Opera", file)
    assert [item.origin for item in unpair("Chrome", file)] == [ONE]
    assert not pairs.accepts_token(first, ONE) and not pairs.allows_origin(ONE, "/v1/models")
    assert pairs.accepts_token(second, OTHER)
    assert [item.name for item in unpair("", file)] == ["Edge"]
    assert not pairs.accepts_token(second, OTHER)
    assert read_pairs(file) == [] and unpair("", file) == []


def test_pairs_outlive_the_server(pairs: Pairing, file: Path) -> None:
    token = pairs.pair(pairs.code(), ONE)
    assert Pairing(file).accepts_token(token, ONE)
    assert read_pairs(file.with_name("none.json")) == []


def test_a_file_that_others_read_or_that_is_damaged_is_refused(pairs: Pairing, file: Path) -> None:
    token = pairs.pair(pairs.code(), ONE)
    file.chmod(0o644)
    file.touch()
    assert not pairs.accepts_token(token, ONE)  # a server that runs goes on, and lets nobody in
    with pytest.raises(RunError, match="other users may read"):
        Pairing(file)
    file.chmod(0o600)
    for text in ("{", "[]", '{"pairs": [{"origin": 5}]}', '{"pairs": 5}'):
        file.write_text(text)
        with pytest.raises(RunError, match="is damaged"):
            Pairing(file)


def test_the_file_lies_with_the_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert pairs_path() == tmp_path / "tunesmith" / "paired.json"


# --- over HTTP ----------------------------------------------------------------------------------------------------


@pytest.fixture
def server(pairs: Pairing) -> Iterator[Running]:
    with running(Parrot(), pairing=pairs) as running_server:
        yield running_server


def ask(server: Running, code: str, origin: str | None = ONE, **more: Any) -> httpx2.Response:
    headers = {"Origin": origin} if origin else {}
    return httpx2.post(f"{server.url}/v1/pair", json={"code": code, "name": "Chrome", **more}, headers=headers)


def test_an_extension_is_let_in_and_may_ask(server: Running, pairs: Pairing) -> None:
    answer = ask(server, pairs.code())
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ONE
    assert set(answer.json()) == {"token"}
    own_headers = {"Authorization": f"Bearer {answer.json()['token']}", "Origin": ONE}
    assert httpx2.get(f"{server.url}/v1/models", headers=own_headers).status_code == 200
    del own_headers["Origin"]
    assert httpx2.get(f"{server.url}/v1/models", headers=own_headers).status_code == 200
    assert httpx2.get(f"{server.url}/v1/models", headers={**own_headers, "Origin": OTHER}).status_code == 403
    unpair("", pairs._path)
    assert httpx2.get(f"{server.url}/v1/models", headers=own_headers).status_code == 401


def test_wrong_codes_and_pages_are_refused(server: Running, pairs: Pairing) -> None:
    code = pairs.code()
    for _ in range(MAX_TRIES):
        answer = ask(server, "AAAA-AAAA")
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "pairing_failed"
        assert answer.headers["access-control-allow-origin"] == ONE
    assert ask(server, code).status_code == 403
    code = pairs.code()
    for origin in ("https://evil.example", "null", None, server.url):
        assert ask(server, code, origin).status_code == 403
    bodies: tuple[Any, ...] = ({"code": 12345678}, {"code": "short"}, {"code": code, "more": 1}, {"code": "x" * 99}, [])
    for body in bodies:
        answer = httpx2.post(f"{server.url}/v1/pair", json=body, headers={"Origin": ONE})
        assert answer.status_code == 400
    assert ask(server, code).status_code == 200


def test_preflight_is_answered_for_extensions_alone(server: Running, pairs: Pairing) -> None:
    def preflight(path: str, origin: str) -> int:
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        return int(httpx2.request("OPTIONS", server.url + path, headers=headers).status_code)

    assert preflight("/v1/pair", ONE) == 403
    code = pairs.code()
    assert preflight("/v1/pair", ONE) == 204
    assert preflight("/v1/chat/completions", ONE) == 403
    assert preflight("/v1/pair", "https://evil.example") == 403
    ask(server, code)
    assert preflight("/v1/chat/completions", ONE) == 204
    assert preflight("/v1/chat/completions", OTHER) == 403


def test_the_description_has_the_pairing(server: Running) -> None:
    way = server.client.get("/openapi.json").json()["paths"]["/v1/pair"]["post"]
    assert "security" not in way
