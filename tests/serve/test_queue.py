"""The request queue of one model: running requests, their order, and rejection."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serve.loopback_servers import Parrot
from tunesmith.data.conversation import Turn
from tunesmith.serve.backend import RequestQueue, Sampling
from tunesmith.web.errors import BackendFailed, QueueFull, RateLimiter, ReplyTimeout

PLENTY = Sampling(100)


def say(text: str) -> list[Turn]:
    return [Turn("user", text)]


async def ask(desk: RequestQueue, text: str, done: list[str]) -> str:
    async with desk.writing(say(text), PLENTY) as writing:
        output = "".join([piece async for piece in writing])
    done.append(text)
    return output


def run(work: Any) -> Any:
    return asyncio.run(work)


def test_as_many_at_once_as_there_are_slots_in_the_order_they_came() -> None:
    async def work() -> None:
        parrot, completed = Parrot(slots=2, wait=0.002), list[str]()
        desk = RequestQueue(parrot, 20)
        texts = [f"word {n}" for n in range(12)]
        assert await asyncio.gather(*(ask(desk, text, completed) for text in texts)) == texts
        assert parrot.most == 2
        assert [heard[0].text for heard, _ in parrot.heard] == texts
        assert sorted(completed) == sorted(texts)
        assert (desk.busy, desk.waiting) == (0, 0)

    run(work())


def test_beyond_those_who_may_wait_one_is_sent_away_and_told_when_to_come() -> None:
    async def work() -> None:
        parrot = Parrot(slots=1, wait=0.01)
        desk, completed = RequestQueue(parrot, 2), list[str]()
        tasks = [asyncio.create_task(ask(desk, f"a {n}", completed)) for n in range(3)]
        await asyncio.sleep(0.001)
        assert (desk.busy, desk.waiting) == (1, 2)
        with pytest.raises(QueueFull, match=r"try again in \d+ s") as text:
            await ask(desk, "one too many", completed)
        assert 1 <= text.value.retry_after <= 60
        await asyncio.gather(*tasks)
        assert await ask(desk, "now", completed) == "now"

    run(work())


@pytest.mark.parametrize("at", ["waiting", "writing"])
def test_whoever_leaves_gives_the_place_to_the_next(at: str) -> None:
    async def work() -> None:
        parrot = Parrot(slots=1, wait=0.005)
        desk, completed = RequestQueue(parrot, 5), list[str]()
        tasks = [asyncio.create_task(ask(desk, f"b {n}", completed)) for n in range(4)]
        await asyncio.sleep(0.002)
        tasks[0 if at == "writing" else 1].cancel()
        result = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(item, asyncio.CancelledError) for item in result].count(True) == 1
        assert len(completed) == 3
        assert (desk.busy, desk.waiting, parrot.now) == (0, 0, 0)

    run(work())


def test_one_who_is_called_and_leaves_at_the_same_moment_loses_no_place() -> None:
    async def work() -> None:
        desk, completed = RequestQueue(Parrot(slots=1), 5), list[str]()
        first = desk.writing(say("x"), PLENTY)
        await first.__aenter__()
        second = asyncio.create_task(ask(desk, "second", completed))
        third = asyncio.create_task(ask(desk, "third", completed))
        await asyncio.sleep(0)
        await first.__aexit__(None, None, None)  # calls the second
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert await asyncio.wait_for(third, 1) == "third"
        assert (desk.busy, desk.waiting) == (0, 0)

    run(work())


def test_a_failure_frees_the_place() -> None:
    async def work() -> None:
        desk, completed = RequestQueue(Parrot(slots=1), 5), list[str]()
        for _ in range(3):
            with pytest.raises(BackendFailed):
                await ask(desk, "a BREAK", completed)
        assert await ask(desk, "fine", completed) == "fine"
        assert desk.busy == 0

    run(work())


def test_a_reply_may_take_so_long_and_no_longer() -> None:
    async def work() -> None:
        desk, completed = RequestQueue(Parrot(slots=1), 5, seconds=0.05), list[str]()
        with pytest.raises(ReplyTimeout, match=r"within 0\.05 s"):
            await ask(desk, "a HANG", completed)
        assert await ask(desk, "fine", completed) == "fine"

    run(work())


def test_the_rate() -> None:
    current = 0.0
    rate = RateLimiter(2.0, 3, clock=lambda: current)
    assert [rate.wait("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert rate.wait("b") == 0.0  # each has a bucket
    current = 0.5
    assert rate.wait("a") == 0.0
    assert rate.wait("a") == 0.5
    current = 100.0
    assert [rate.wait("a") for _ in range(4)].count(0.0) == 3  # no more than the burst is saved up
