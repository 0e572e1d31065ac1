"""The server under load on this machine, beside llama.cpp's own server with the same settings.

    python -m benchmarks.serving MODEL.gguf --seconds 120 --requests 2000

Three parts, each with servers of its own in processes of their own, all asked over HTTP by this one:

- load: clients who ask again as soon as they have an answer, half of them streamed. Every 200 must be, to the letter,
  what the same prompt gets alone; anything but 200 and 429 is an error.
- overhead: the same prompts to our server and to llama.cpp's (xllamacpp.Server), in turns, one client and as many as
  there are slots: seconds to the first token and tokens a second, medians over the rounds, and what ours costs in %.
- memory: resident size of our process and its child while so many requests are answered one after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import psutil

OUT = Path("benchmarks/results/serving.csv")
FIELDS = ("date", "machine", "model", "slots", "threads", "part", "what", "ours", "llama.cpp", "overhead_percent")
SUBJECTS = (
    "parcel", "blender", "refund", "coupon", "address", "courier", "invoice", "basket", "password", "account",
    "voucher", "receipt",
)  # fmt: skip
SPIN = {"GOMP_SPINCOUNT": "1000"}  # as our command line sets it: threads that spin spoil both where others work
OWN = """
import json, sys, xllamacpp
model, slots, context, threads, key = json.loads(sys.argv[1])
params = xllamacpp.CommonParams()
params.model.path, params.n_parallel, params.n_ctx = model, slots, slots * context
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [key]
params.offline, params.ui, params.warmup, params.fit_params = True, False, False, False
params.cache_ram_mib = params.n_ctx_checkpoints = 0
params.sse_ping_interval, params.verbosity = 0, 0
server = xllamacpp.Server(params)
print("AT", server.listening_address, flush=True)
sys.stdin.read()
"""


@dataclass
class Server:
    """A server that runs, under `name`."""

    name: str
    url: str
    key: str
    model: str
    process: subprocess.Popen[str]

    def busy(self) -> float:
        """Seconds of processor time that the process itself, its children apart, has used."""
        found = psutil.Process(self.process.pid).cpu_times()
        return float(found.user + found.system)

    def sizes(self) -> list[int]:
        """Resident bytes of the process and of its children."""
        own = psutil.Process(self.process.pid)
        return [each.memory_info().rss for each in (own, *own.children(recursive=True))]


@dataclass
class Told:
    """One answer."""

    status: int
    text: str = ""
    first: float = 0.0
    seconds: float = 0.0
    tokens: int = 0
    note: str = ""


def main() -> None:
    """Measures and adds rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=["load", "overhead", "memory"])
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120.0, help="of the load")
    parser.add_argument("--tokens", type=int, default=48, help="of a reply at most, under load")
    parser.add_argument("--rounds", type=int, default=5, help="of the comparison")
    parser.add_argument("--requests", type=int, default=2000, help="of the memory part")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for part in given.parts:
        for row in {"load": load, "overhead": overhead, "memory": memory}[part](given):
            print(json.dumps(row), flush=True)
            rows.append(row)
    _write(given, rows)


# --- the parts -----------------------------------------------------------------------------------------------


def load(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Many clients at once. Ends the program where a reply is wrong, mixed or lost."""
    texts = [f"How do I change the {one} of my {two}?" for one in SUBJECTS for two in SUBJECTS if one != two][:64]
    with ours(given) as server:
        alone = asyncio.run(_in_turn(server, texts, given.tokens))
        found, seconds = asyncio.run(_crowd(server, texts, given))
    statuses = Counter(told.status for _, told in found)
    wrong = [(text, told) for text, told in found if told.status == 200 and told.text != alone[text].text]
    odd = [told for _, told in found if told.status not in (200, 429)]
    good = [told for _, told in found if told.status == 200]
    yield {"part": "load", "what": f"{given.clients} clients, seconds", "ours": round(seconds, 1)}
    yield {"part": "load", "what": "answers 200", "ours": statuses[200]}
    yield {"part": "load", "what": "answers 429", "ours": statuses[429]}
    yield {"part": "load", "what": "other answers, or none", "ours": len(odd)}
    yield {"part": "load", "what": "replies other than alone", "ours": len(wrong)}
    yield {"part": "load", "what": "tokens/s", "ours": round(sum(told.tokens for told in good) / seconds, 1)}
    for share in (50, 99):
        value = statistics.quantiles([told.seconds for told in good], n=100)[share - 1]
        yield {"part": "load", "what": f"seconds to the end, {share} %", "ours": round(value, 2)}
    if odd or wrong:
        shown = [told.note or told.status for told in odd[:3]]
        raise SystemExit(f"{len(odd)} odd answers {shown}, {len(wrong)} wrong replies, such as {wrong[:1]}")


def overhead(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Ours and llama.cpp's own, in turns, so that a slow minute of the machine falls on both."""
    text = "Tell me at length, step by step, how I send back a {} that does not work, and what happens then."
    with ours(given) as one, theirs(given) as other:
        for clients in (1, given.slots):
            rates: dict[str, list[float]] = {one.name: [], other.name: []}
            firsts: dict[str, list[float]] = {one.name: [], other.name: []}
            busy, written = 0.0, 0
            for turn in range(given.rounds + 1):
                if turn == 1:  # the first warms up
                    busy, written = one.busy(), 0
                texts = [text.format(f"{SUBJECTS[turn % len(SUBJECTS)]} {n}") for n in range(clients)]
                servers = (one, other) if turn % 2 else (other, one)
                for server in servers:
                    began = time.perf_counter()
                    told = asyncio.run(_together(server, texts, 128))
                    seconds = time.perf_counter() - began
                    written += sum(each.tokens for each in told) if server is one else 0
                    if turn:
                        rates[server.name].append(sum(each.tokens for each in told) / seconds)
                        firsts[server.name].append(statistics.median(each.first for each in told))
            cost = 1e6 * (one.busy() - busy) / written
            yield {"part": "overhead", "what": f"processor µs a token, {clients} at once", "ours": round(cost, 1)}
            for what, found, less in (("tokens/s", rates, False), ("seconds to the first token", firsts, True)):
                mine, own = statistics.median(found[one.name]), statistics.median(found[other.name])
                ratio = mine / own - 1 if less else own / mine - 1
                yield {
                    "part": "overhead", "what": f"{what}, {clients} at once", "ours": round(mine, 4),
                    "llama.cpp": round(own, 4), "overhead_percent": round(100 * ratio, 1),
                }  # fmt: skip


def memory(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Sizes while requests come one after the other: behind the first tenth, and at the end."""
    with ours(given) as server:
        sizes = asyncio.run(_sizes(server, given.requests))
    for place, name in enumerate(("server", "llama.cpp's process")):
        series = [each[place] for each in sizes]
        early, late = series[len(series) // 10], series[-1]
        mib = f"{early / 2**20:.1f} -> {late / 2**20:.1f}"
        yield {"part": "memory", "what": f"MiB of the {name} over {given.requests} requests", "ours": mib}
        yield {"part": "memory", "what": f"growth of the {name} in %", "ours": round(100 * (late / early - 1), 2)}


# --- asking --------------------------------------------------------------------------------------------------


async def _ask(server: Server, text: str, tokens: int, *, stream: bool, client: Any) -> Told:
    body = {
        "model": server.model, "messages": [{"role": "user", "content": text}], "max_tokens": tokens,
        "temperature": 0, "stream": stream, **({"stream_options": {"include_usage": True}} if stream else {}),
    }  # fmt: skip
    began = time.perf_counter()
    found = Told(0)
    try:
        async with client.stream("POST", f"{server.url}/v1/chat/completions", json=body) as answer:
            found.status = answer.status_code
            if answer.status_code != 200 or not stream:
                plain = json.loads(await answer.aread())
                if answer.status_code == 200:
                    found.text, found.tokens = (
                        plain["choices"][0]["message"]["content"],
                        plain["usage"]["completion_tokens"],
                    )
                else:
                    found.note = str(plain)[:200]
            else:
                await _read(answer, found, began)
    except Exception as error:  # whatever it is, the reply is lost
        found.status, found.note = 0, f"{type(error).__name__}: {error}"
    found.seconds = time.perf_counter() - began
    return found


async def _read(answer: Any, found: Told, began: float) -> None:
    ended = False
    async for line in answer.aiter_lines():
        if line == "data: [DONE]":
            ended = True
        elif line.startswith("data: "):
            piece = json.loads(line[6:])
            for choice in piece.get("choices", []):
                if said := choice["delta"].get("content"):
                    found.first = found.first or time.perf_counter() - began
                    found.text += said
            if piece.get("usage"):
                found.tokens = piece["usage"]["completion_tokens"]
            if "error" in piece:
                found.note = str(piece)
    if not ended:
        found.status = 0


@contextlib.asynccontextmanager
async def _client(server: Server) -> AsyncIterator[Any]:
    import httpx2

    limits = httpx2.Limits(max_connections=None)
    headers = {"Authorization": f"Bearer {server.key}"}
    async with httpx2.AsyncClient(headers=headers, timeout=600, limits=limits, trust_env=False) as made:
        yield made


async def _in_turn(server: Server, texts: list[str], tokens: int) -> dict[str, Told]:
    async with _client(server) as client:
        return {text: await _ask(server, text, tokens, stream=False, client=client) for text in texts}


async def _together(server: Server, texts: list[str], tokens: int) -> list[Told]:
    async with _client(server) as client:
        return list(await asyncio.gather(*(_ask(server, text, tokens, stream=True, client=client) for text in texts)))


async def _crowd(server: Server, texts: list[str], given: argparse.Namespace) -> tuple[list[tuple[str, Told]], float]:
    found: list[tuple[str, Told]] = []
    began = time.perf_counter()

    async def one(number: int, client: Any) -> None:
        turn = number
        while time.perf_counter() - began < given.seconds:
            text = texts[turn % len(texts)]
            told = await _ask(server, text, given.tokens, stream=turn % 2 == 0, client=client)
            found.append((text, told))
            if told.status == 429:
                await asyncio.sleep(0.5)
            turn += 7

    async with _client(server) as client:
        await asyncio.gather(*(one(number, client) for number in range(given.clients)))
    return found, time.perf_counter() - began


async def _sizes(server: Server, requests: int) -> list[list[int]]:
    found = []
    async with _client(server) as client:
        for turn in range(requests):
            text = f"Where is my {SUBJECTS[turn % len(SUBJECTS)]} number {turn}?"
            told = await _ask(server, text, 8, stream=turn % 2 == 0, client=client)
            if told.status != 200:
                raise SystemExit(f"request {turn} was answered with {told.status}: {told.note}")
            if turn % 20 == 19 or turn == requests - 1:
                found.append(server.sizes())
    return found


# --- servers -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def ours(given: argparse.Namespace) -> Iterator[Server]:
    """`tunesmith serve FILE`, as anybody starts it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "tunesmith", "serve", str(given.model), "--port", "0", "--slots", str(given.slots),
            "--threads", str(given.threads), "--context", "1024",
        ]  # fmt: skip
        env = {**os.environ, **SPIN, "XDG_CONFIG_HOME": folder}
        with _started(command, env) as (process, lines):
            line = next(line for line in lines if "http://" in line)
            url = next(word for word in line.split() if word.startswith("http://")).removesuffix("/v1")
            key = (Path(folder) / "tunesmith" / "token").read_text().strip()
            yield Server("tunesmith", url, key, given.model.stem, process)


@contextlib.contextmanager
def theirs(given: argparse.Namespace) -> Iterator[Server]:
    """llama.cpp's own, from the same package that ours runs."""
    settings = json.dumps([str(given.model.absolute()), given.slots, 1024, given.threads, "a-key"])
    with _started([sys.executable, "-c", OWN, settings], {**os.environ, **SPIN}) as (process, lines):
        line = next(line for line in lines if line.startswith("AT "))
        yield Server("llama.cpp", line.split()[1], "a-key", given.model.stem, process)


@contextlib.contextmanager
def _started(command: list[str], env: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], Iterator[str]]]:
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env
    )
    try:
        assert process.stdout
        yield process, iter(process.stdout.readline, "")
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()


def _write(given: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    machine = f"{os.cpu_count()} cores"
    with contextlib.suppress(OSError):
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        machine = f"{names[0].split(': ', 1)[1]}, {machine}" if names else machine
    same = {
        "date": date.today().isoformat(), "machine": machine, "model": given.model.name, "slots": given.slots,
        "threads": given.threads,
    }  # fmt: skip
    new = not given.out.exists()
    with given.out.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        if new:
            writer.writeheader()
        writer.writerows({**same, **row} for row in rows)


if __name__ == "__main__":
    main()
