"""Replies from a folder of safetensors, or from a PEFT adapter over one, as transformers writes them for its users.

transformers and PEFT run in a process of their own (generation/transformers_child.py) that knows the shipped files
alone: nothing of how training saw them reaches it. The two speak JSON over pipes; no port is opened.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import psutil

from tunesmith.data.conversation import Turn
from tunesmith.errors import ModelError
from tunesmith.generation.subprocess_model import (
    BURIAL,
    CONTEXT,
    LAST_WORDS,
    PATIENCE,
    PROBE,
    QUOTED,
    Keeper,
    ended,
    ending,
    last_words,
)
from tunesmith.generation.text_model import Facts, Reply, Scored
from tunesmith.hardware import cores
from tunesmith.models.weights import check_safe
from tunesmith.prompt.template import Template
from tunesmith.prompt.tokens import encode_prompt

_READ = (".safetensors", ".json", ".jinja", ".model", ".txt")
_CHILD = Path(__file__).with_name("folder_child.py")
_QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
_Line = dict[str, Any]


class _Child:
    """One process with one model. It is not started again: see FromFolder."""

    def __init__(self, settings: _Line, where: str, patience: float, spent: Callable[[int, float], None]) -> None:
        """Returns when the model is loaded; `spent` is told tokens and seconds of each batch.

        Raises ModelError when it cannot be loaded.
        """
        self.where, self.patience, self._spent = where, patience, spent
        self._lock, self._end_lock, self._numbers = threading.Lock(), threading.Lock(), itertools.count(1)
        self._boxes: dict[int, SimpleQueue[_Line | None]] = {0: SimpleQueue()}
        self._said: SimpleQueue[_Line | None] = SimpleQueue()
        self._words: deque[str] = deque(maxlen=LAST_WORDS)
        self._fault: str | None = None
        self._over, self._heard, self._card = False, time.monotonic(), 0
        self.process = subprocess.Popen(  # noqa: S603 (our own file, no shell)
            [sys.executable, "-P", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **_QUIET},
            start_new_session=True,  # Ctrl+C is for the one who asks; elsewhere than on POSIX it has no effect
        )
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._speak, self._hear, self._listen)]
        for thread in self._threads:
            thread.start()
        self._said.put(settings)
        try:
            ready = self._next(self._boxes[0])
            if "refused" in ready:
                what = f"transformers cannot load it: {ready['refused']}"
                raise ModelError(what, where=where, next="Make the files anew, or choose others")
        except BaseException:
            self.close()
            raise
        self.seconds, self.context = float(ready["seconds"]), int(ready["context"])

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._fault is None and self.process.poll() is None

    @property
    def memory(self) -> int:
        """Bytes that lie in memory for the child, with what torch holds on the card."""
        try:
            return int(psutil.Process(self.process.pid).memory_info().rss) + self._card
        except psutil.Error:
            return 0

    def ask(self, body: _Line) -> Generator[_Line]:
        """The lines of an answer, as they come.

        Raises ModelError for what the child refuses, and for its end or silence.
        """
        number, box = next(self._numbers), SimpleQueue[_Line | None]()
        with self._lock:
            self._boxes[number] = box
            if self._over:
                box.put(None)
        self._heard = time.monotonic()
        self._said.put({**body, "id": number})
        try:
            while "done" not in (line := self._next(box)):
                if "refused" in line:
                    what, advice = f"transformers refuses: {line['refused']}", "Change what is asked, or the files"
                    raise ModelError(what, where=self.where, next=advice)
                yield line
        except BaseException:  # a listener who leaves, too
            self._said.put({"stop": number})
            raise
        finally:
            with self._lock:
                del self._boxes[number]

    def close(self) -> None:
        """Ends the process; requests under way fail."""
        with self._end_lock:
            if self._fault is None:
                self._fault = "it was closed" if self.process.poll() is None else ending(self.process.returncode)
        self._said.put(None)
        self._wait()

    def _next(self, box: SimpleQueue[_Line | None]) -> _Line:
        """The child may be busy with what another thread asked: any line of it counts as a sign of life."""
        while (left := self._heard + self.patience - time.monotonic()) > 0:
            with contextlib.suppress(Empty):
                line = box.get(timeout=left)
                if line is None:
                    raise self._explain(silent=False)
                return line
        raise self._explain(silent=True)

    def _speak(self) -> None:
        """A thread's work, so that a child that no longer reads keeps nobody waiting longer than `patience`."""
        with contextlib.suppress(OSError), self.process.stdin as pipe:  # type: ignore[union-attr]
            while (line := self._said.get()) is not None:
                pipe.write(json.dumps(line).encode() + b"\n")
                pipe.flush()

    def _hear(self) -> None:
        with self.process.stdout as pipe:  # type: ignore[union-attr]
            for text in pipe:
                self._heard = time.monotonic()
                with contextlib.suppress(ValueError):  # half a line, when it was ended
                    self._take(json.loads(text))
        with self._lock:
            self._over = True
            for box in self._boxes.values():
                box.put(None)

    def _take(self, line: _Line) -> None:
        self._card = int(line.get("card", self._card))
        if "spent" in line:
            self._spent(*line["spent"])
        elif "alive" not in line:
            with self._lock:
                if box := self._boxes.get(line["id"]):
                    box.put(line)

    def _listen(self) -> None:
        with self.process.stderr as pipe:  # type: ignore[union-attr]
            for line in pipe:
                if text := line.decode("utf-8", "replace").strip():
                    self._words.append(text[:QUOTED])

    def _explain(self, *, silent: bool) -> ModelError:
        """The child is at its end, whatever the sign of it; the first sign is what everybody is told."""
        with self._end_lock:  # not the boxes' lock: the thread that hears needs that one to end
            if self._fault is None:
                alone = self._wait(0.0 if silent else BURIAL)
                self._fault = ending(self.process.returncode) if alone else f"no word came for {self.patience:g} s"
        advice = "Ask again: it is started anew. If that does not help, try a smaller batch, less context or bits=4"
        return ModelError(
            f"transformers broke off: {self._fault}{last_words(self._words)}", where=self.where, next=advice
        )

    def _wait(self, seconds: float = BURIAL) -> bool:
        """Whether it ended by itself within `seconds`; if not, it is ended. What it said last has been heard then."""
        try:
            return ended(self.process, seconds)
        finally:
            self._said.put(None)
            for thread in self._threads:
                if thread.is_alive():
                    thread.join(BURIAL)


class FromFolder(Keeper[_Child]):
    """A folder that transformers reads, with an adapter that PEFT reads over it or not, answering in batches."""

    def __init__(
        self,
        folder: Path,
        *,
        adapter: Path | None = None,
        bits: int = 16,
        stop: Sequence[str] = (),
        template: Template | None = None,
        context: int | None = None,
        threads: int | None = None,
        patience: float = PATIENCE,
    ) -> None:
        """Loads the folder, on the first card if there is one; `bits` 4 quantises it to NF4 while loading.

        A processor computes in float32 where the weights fit 4 GiB so, otherwise in the folder's own number type, and
        a card in that. With `bits` 4 and AVX512-BF16 bitsandbytes rounds to bfloat16 all the same, except under DoRA.
        Where numbers have 16 bits a reply in company may differ from the same reply alone.

        The tokenizer and its template are the adapter's where they lie beside it, else the folder's. With `template`
        prompts are rendered and cut into tokens here, as in training; without it, there. A reply ends at a token that
        the folder's generation_config.json, or the template, ends replies with, and before a text in `stop`.
        `context`: tokens of a prompt and its reply together; None: as trained. `threads` None takes all cores.
        `patience`: seconds without a sign of progress until the process counts as hung.

        Raises ModelError for a folder or an adapter that is damaged, does not fit, holds only pickled weights or brings
        its own code, and for a template that does not go with it.
        """
        super().__init__(folder, "folder", stop=stop, template=template, patience=patience)
        check_safe(folder, str(folder))
        if adapter is not None:
            _check_adapter(adapter)
        self.folder, self.adapter, self._threads = folder, adapter, threads or cores()
        self._settings = {
            "folder": str(folder.absolute()),
            "adapter": str(adapter.absolute()) if adapter else "",
            "bits": bits,
            "threads": self._threads,
        }
        self._tokens, self._seconds = 0, 0.0
        trained = self._running().context
        try:
            self.context = self._allowed(context, trained)
            if template:
                self._compare(template)
        except BaseException:
            self.close()
            raise

    def replies(
        self, prompts: Sequence[Sequence[Turn]], *, max_new_tokens: int, batch: int
    ) -> Iterator[tuple[int, Reply]]:
        """See TextModel. `batch` are written at once, those with the shortest prompts first.

        Raises ModelError before the first reply when a prompt and its reply do not fit the context.
        """
        encoded = [self._encode(prompt, max_new_tokens) for prompt in prompts]
        if max_new_tokens < 1:
            yield from ((place, Reply("", False, 0)) for place in range(len(encoded)))
            return
        lines = self._ask(
            "replies",
            prompts=encoded,
            limit=max_new_tokens,
            batch=max(1, batch),
            stops=sorted(self.stops),
            cuts=self.texts,
            special=self.form.keeps_specials,
        )
        with contextlib.closing(lines):
            for line in lines:
                place, output, stopped, tokens, cut = line["reply"]
                reasoning, text = self.form.split(output)
                yield place, Reply(text, stopped, tokens, cut, reasoning)

    def render(self, turns: Sequence[Turn]) -> str:
        """The conversation as the tokenizer renders it with its own template, up to where the assistant begins.

        Raises ModelError when the template refuses it, or there is none.
        """
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        (line,) = self._ask("render", messages=messages)
        return str(line["value"])

    def tokens(self, text: str) -> list[int]:
        """A rendered text as the tokenizer cuts it, nothing put before it."""
        (line,) = self._ask("tokens", text=text)
        return list(line["value"])

    def scores(self, tokens: Sequence[int], *, start: int, top: int = 1) -> Iterator[Scored]:
        """What the model thinks of each given token from place `start` (at least 1) on, and of the `top` likeliest.

        One pass over the text; the logarithms are taken in float32. Raises ModelError when it does not fit the context.
        """
        if start < 1:
            raise AssertionError("nothing stands before the first token")
        if len(tokens) > self.context:
            what = f"a text of {len(tokens)} tokens does not fit the context of {self.context}"
            raise ModelError(what, where=str(self.folder), next="Give more context, or shorten the text")
        lines = self._ask("scores", tokens=list(tokens), start=start, top=top)
        with contextlib.closing(lines):
            for line in lines:
                token, nats, best = line["scored"]
                yield Scored(token, nats, tuple((int(each), float(value)) for each, value in best))

    @property
    def facts(self) -> Facts:
        """See Facts; the memory is what it is now, on the card and beside it."""
        child = self._running()
        read = [file for folder in (self.folder, self.adapter) if folder for file in folder.iterdir()]
        size = sum(file.stat().st_size for file in read if file.suffix in _READ)
        return Facts(child.seconds, size, child.memory, 1, self.context, self._threads, self._tokens, self._seconds)

    def _start(self) -> _Child:
        return _Child(self._settings, str(self.adapter or self.folder), self.patience, self._spent)

    def _ask(self, what: str, **body: Any) -> Generator[_Line]:
        return self._running().ask({"what": what, **body})

    def _spent(self, tokens: int, seconds: float) -> None:
        self._tokens, self._seconds = self._tokens + tokens, self._seconds + seconds

    def _allowed(self, context: int | None, trained: int) -> int:
        if context is None or not trained:
            return context or trained or CONTEXT
        if context > trained:
            raise self._too_long(context, trained)
        return context

    def _compare(self, template: Template) -> None:
        """Our tokens must mean to the folder what they mean to us."""
        rendered = template.render(PROBE, generate=True)
        if self.tokens(rendered) != encode_prompt(PROBE, template):
            what = f"the template's tokens are others than the folder's for {rendered[:80]!r}"
            raise ModelError(what, where=str(self.folder), next="Give the tokenizer that lies in the folder")


def _check_adapter(adapter: Path) -> None:
    """Before PEFT looks for another file, a pickled one among them."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (adapter / name).is_file():
            raise ModelError(
                f"holds no {name}", where=str(adapter), next="Give the folder of an adapter in safetensors"
            )
