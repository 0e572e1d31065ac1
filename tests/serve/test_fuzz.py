"""Requests generated from the server's own API description, valid and invalid, with and without the token."""

from __future__ import annotations

from collections import Counter
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from serve.loopback_servers import FREE, TOKEN, Parrot, Running, running

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

OPEN = {("GET", "/health"), ("POST", "/v1/pair")}
NO_KEY: dict[str, str] = {}
WRONG = {"Authorization": "Bearer wrong"}
RIGHT = {"Authorization": f"Bearer {TOKEN}"}


def fuzz(server: Running, requests: int) -> Counter[Any]:
    """Statuses by whether the token was there. Every answer must be one that the description tells."""
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    expected = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    ]
    description = server.client.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(description)
    schema.config.update(base_url=server.url)
    operations = [item.ok() for item in schema.get_all_operations()]
    posts = [item for item in operations if item.method.upper() == "POST"]
    visited: Counter[Any] = Counter()
    share = requests // (4 * len(posts) + len(operations) - len(posts))  # those that take a body are asked more
    for operation in operations:
        kinds = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE] if operation in posts else [GenerationMode.POSITIVE]
        for kind in kinds:
            count = share * (2 if operation in posts else 1)

            @hypothesis.settings(
                max_examples=count, deadline=None, database=None, derandomize=True, phases=[hypothesis.Phase.generate],
                suppress_health_check=list(hypothesis.HealthCheck),
            )  # fmt: skip
            @hypothesis.given(
                case=operation.as_strategy(generation_mode=kind), key=st.sampled_from([RIGHT] * 8 + [NO_KEY, WRONG])
            )
            def ask(case: Any, key: dict[str, str]) -> None:
                if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                    case.body["model"] = "parrot"  # a drawn name would never be ours
                case.headers = {
                    n: v for n, v in (case.headers or {}).items() if n.lower() not in ("authorization", "host")
                }
                answer = case.call(headers=key, timeout=20)
                free = (case.method.upper(), case.path) in OPEN
                visited[(key is RIGHT, answer.status_code)] += 1
                assert key is RIGHT or free or answer.status_code in (401, 404), case  # 404: a path that is none
                case.validate_response(answer, checks=expected, headers=key)

            ask()
    return visited


@pytest.mark.parametrize("requests", [300, pytest.param(10_000, marks=(pytest.mark.slow, pytest.mark.long))])
def test_nothing_is_served_that_should_not_be(requests: int) -> None:
    parrot = Parrot(context=64)
    with running(parrot, limits=FREE) as server:
        result = fuzz(server, requests)
        assert server.client.get("/health").json()["status"] == "ok"
    assert sum(result.values()) >= 0.9 * requests
    assert not [status for _, status in result if status >= 500]
    assert {True, False} == {right for right, _ in result}
    assert result[(True, 200)] > requests / 20  # right requests are answered
    assert result[(True, 400)] > requests / 20  # and wrong ones refused
    assert parrot.now == 0
