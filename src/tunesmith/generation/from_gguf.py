"""Replies from a GGUF file, as llama.cpp writes them: what a user of the shipped file will read.

llama.cpp runs in a process of its own (generation/llama_process.py). Decoding is greedy: of all its samplers only the
one that keeps the likeliest token is switched on, whatever the file's own metadata wish for.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tunesmith.data.conversation import Turn
from tunesmith.errors import MissingExtra, ModelError, TunesmithError
from tunesmith.generation.encode_untrusted import any_of, bos_of, encode_plainly, marks_of
from tunesmith.generation.llama_process import Child, Settings, Stream
from tunesmith.generation.llama_task import GREEDY, Clock, Task, sampling
from tunesmith.generation.subprocess_model import CONTEXT, PATIENCE, PROBE, Keeper
from tunesmith.generation.text_model import Facts, Reply, Scored
from tunesmith.hardware import idle_cores
from tunesmith.models.gguf_header import read_header
from tunesmith.models.gguf_tokenizer import CONTROL, USER_DEFINED
from tunesmith.prompt.reply import ReplyFormat
from tunesmith.prompt.template import FileTokenizer, Template
from tunesmith.prompt.tokens import encode_prompt

EVERY = 1 << 24  # entries, more than any vocabulary has


class FromGguf(Keeper[Child]):
    """One GGUF file, with an adapter's beside it or not, answering in `slots` at once."""

    def __init__(
        self,
        path: Path,
        *,
        lora: Path | None = None,
        stop: Sequence[str] = (),
        slots: int = 4,
        context: int | None = None,
        threads: int | None = None,
        template: Template | None = None,
        patience: float = PATIENCE,
    ) -> None:
        """Loads the file. `context`: tokens of each slot, prompt and reply together; None: as trained, at most CONTEXT.

        `threads` None takes as many as there are idle cores. They wait for each other spinning: where other work keeps
        a core busy, fewer are faster (two cores, one of them busy: 2 tokens/s with two threads, 47 with one).

        With `template` prompts are rendered and cut into tokens here, as in training; without it, by llama.cpp with the
        template in the file. A reply ends at a token that the file, or the template, ends replies with, and before a
        text in `stop`. With one slot a reply is the same to the last bit whenever it is asked for. With several, 16-bit
        weights are multiplied otherwise in company than alone: of 32 replies of 64 tokens 2 differed, with Q4_1 and
        Q8_0 none to the last bit. Use one slot where that matters.

        Raises ModelError for a file that is none, is damaged or cannot be run, and for a template that does not go with
        it; MissingExtra where llama.cpp is not installed.
        """
        super().__init__(path, "file", stop=stop, template=template, patience=patience)
        self.path = path
        trained = _trained(path, lora)
        context = min(CONTEXT, trained) if context is None else context
        if context > trained:
            raise self._too_long(context, trained)
        if importlib.util.find_spec("xllamacpp") is None:
            what, advice = "llama.cpp's runtime is not installed", "pip install xllamacpp"
            raise MissingExtra(what, where=str(path), next=advice)
        adapter = str(lora.absolute()) if lora else ""
        if template is None:
            self.form = self._own_form()
        threads = threads or idle_cores()
        special = self.form.keeps_specials
        self._settings = Settings(str(path.absolute()), adapter, slots, context, threads, special)
        self._clock = Clock()
        self._running()
        try:
            self.context = int(self._ask("/props")["default_generation_settings"]["n_ctx"])
            if template:
                self._compare(template)
        except BaseException:
            self.close()
            raise

    def replies(
        self, prompts: Sequence[Sequence[Turn]], *, max_new_tokens: int, batch: int
    ) -> Iterator[tuple[int, Reply]]:
        """See TextModel. As many as there are slots, and at most `batch`, are under way at once.

        Raises ModelError before the first reply when a prompt and its reply do not fit the context.
        """
        encoded = [self._encode(prompt, max_new_tokens) for prompt in prompts]
        tasks = [self._task(ids, max_new_tokens, reuse=False) for ids in encoded]
        with ThreadPoolExecutor(max_workers=max(1, min(batch, self._settings.slots))) as pool:
            asked = {pool.submit(task.whole): place for place, task in enumerate(tasks)}
            try:
                for done in as_completed(asked):
                    yield asked[done], done.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                for task in tasks:
                    task.stop()

    def stream(
        self,
        prompt: Sequence[Turn],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """See TextModel. With several slots, what is still known of an earlier prompt is not read again.

        The rest is as `sampling` has it; `stop` are texts besides the model's own that end this reply.
        """
        ids, reuse = self._encode(prompt, max_new_tokens), self._settings.slots > 1
        draw = sampling(temperature, top_p, seed)
        yield from self._task(ids, max_new_tokens, reuse=reuse, draw=draw, stop=stop).pieces()

    @property
    def slots(self) -> int:
        """How many replies are under way at once."""
        return self._settings.slots

    @property
    def alive(self) -> bool:
        """Whether the process can be asked now; one that cannot is started again when it is next asked."""
        child = self._child
        return child is not None and child.alive

    def running(self) -> Child:
        """The process, started again if it ended, for those who ask it by themselves. Waits until it is loaded."""
        return self._running()

    def encode(self, prompt: Sequence[Turn] | str) -> list[int]:
        """A conversation's tokens, up to where the assistant begins, or those of a text that is the model's raw input.

        What is said in a conversation is never taken for a token that separates turns, whatever is written there.
        Raises ModelError when the template refuses it.
        """
        if isinstance(prompt, str):
            return [*bos_of(self.template), *self._cut(prompt, start=True)]
        template = self.template
        render = self.render if template is None else lambda turns: template.render(turns, generate=True)
        return encode_plainly(prompt, render=render, cut=self._cut, marks=self._marks)

    @functools.cached_property
    def _marks(self) -> re.Pattern[str]:
        """Finds what separates turns for this model."""
        if self.template is not None:
            template = self.template
            return marks_of(template.specials, lambda turns: template.render(turns, generate=True))
        chat, tokens = self._file_tokens
        words = [
            text for text, kind in tokens if kind == CONTROL or (kind == USER_DEFINED and text.strip() and text in chat)
        ]
        return marks_of(any_of(words), self.render)

    @functools.cached_property
    def _file_tokens(self) -> tuple[str, list[tuple[str, int]]]:
        """The file's chat template, and its tokens that are no plain text, each with its type."""
        metadata = read_header(self.path).metadata
        kinds, texts = metadata.get("tokenizer.ggml.token_type", ()), metadata.get("tokenizer.ggml.tokens", ())
        marked = [pair for pair in zip(texts, kinds, strict=False) if pair[1] in (CONTROL, USER_DEFINED)]
        return str(metadata.get("tokenizer.chat_template", "")), marked

    def _own_form(self) -> ReplyFormat:
        """How the file's own template divides a reply; the usual way where it has none that can be read."""
        chat, tokens = self._file_tokens
        specials = [text for text, kind in tokens if kind == CONTROL]
        try:
            return Template(FileTokenizer(specials), chat, str(self.path)).form
        except TunesmithError:
            return ReplyFormat()

    def _cut(self, text: str, *, start: bool) -> list[int]:
        if self.template is not None:
            return list(self.template.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []
        return self._tokenized(text, start=start) if text or start else []

    def _tokenized(self, text: str, *, start: bool) -> list[int]:
        body = {"content": text, "add_special": start, "parse_special": True}
        return [int(token) for token in self._ask("/tokenize", body)["tokens"]]

    def render(self, turns: Sequence[Turn]) -> str:
        """The conversation as llama.cpp renders it with the template in the file, up to where the assistant begins.

        Raises ModelError when the template refuses it.
        """
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        return str(self._ask("/apply-template", {"messages": messages})["prompt"])

    def tokens(self, text: str) -> list[int]:
        """A rendered text as llama.cpp cuts it: special tokens are known, the file says whether a start token comes."""
        return self._tokenized(text, start=True)

    def cut(self, text: str) -> list[int]:
        """A text as llama.cpp cuts it, special tokens known and no start token put before it."""
        return self._tokenized(text, start=False)

    def text(self, tokens: Sequence[int]) -> str:
        """What tokens stand for, special ones written out."""
        return str(self._ask("/detokenize", {"tokens": list(tokens)})["content"])

    def scores(self, tokens: Sequence[int], *, start: int, top: int = 1) -> Iterator[Scored]:
        """What the model thinks of each given token from place `start` (at least 1) on, and of the `top` likeliest.

        The runtime tells probabilities of written tokens alone, so each given token is written by force, a request for
        each; what was read before is not read again. From `nats` follows the perplexity; from `top` a divergence of two
        models, over the whole vocabulary with top=EVERY, which takes about 90 bytes of JSON an entry and token.
        """
        plain = self.tokens("a")[-1]
        for place in range(start, len(tokens)):
            before, given = list(tokens[:place]), tokens[place]
            told = self._thoughts(before, given, top)
            if told is None:  # nothing is told of a part of a character; of all tokens beside another one it is
                every = self._thoughts(before, plain, EVERY) or (0.0, ())
                told = dict(every[1])[given], every[1][:top]
            yield Scored(given, -told[0], told[1][:top])

    def _thoughts(self, before: list[int], given: int, top: int) -> tuple[float, tuple[tuple[int, float], ...]] | None:
        """ln p of `given`, and of the likeliest; None where the runtime tells nothing."""
        body = {
            **GREEDY,
            "prompt": before,
            "n_predict": 1,
            "n_probs": max(1, top),
            "logit_bias": [[given, 1e9]],  # decides what is written, not what is told
            "cache_prompt": True,
            "response_fields": ["completion_probabilities"],
        }
        found = self._ask("/completion", body).get("completion_probabilities")
        if not found:
            return None
        best = tuple((int(each["id"]), _number(each["logprob"])) for each in found[0]["top_logprobs"])
        return _number(found[0]["logprob"]), best

    @property
    def facts(self) -> Facts:
        """See Facts; the memory is what it is now."""
        child, set_to = self._running(), self._settings
        size = sum(Path(each).stat().st_size for each in (set_to.model, set_to.lora) if each)
        tokens, seconds = self._clock.read()
        return Facts(child.seconds, size, child.memory, set_to.slots, self.context, set_to.threads, tokens, seconds)

    def _start(self) -> Child:
        return Child(self._settings, self.patience)

    def _task(
        self,
        ids: list[int],
        limit: int,
        *,
        reuse: bool,
        draw: Mapping[str, Any] = GREEDY,
        stop: Sequence[str] = (),
    ) -> Task:
        def start(body: dict[str, Any]) -> Stream:
            return self._running().stream("/completion", body)

        cuts = (*self.texts, *stop)
        return Task(
            start, ids, limit, stops=self.stops, cuts=cuts, clock=self._clock, reuse=reuse, form=self.form, draw=draw
        )

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        return self._running().ask(path, body)

    def _compare(self, template: Template) -> None:
        """Our tokens must mean to the file what they mean to us."""
        rendered = template.render(PROBE, generate=True)
        read = self.text(encode_prompt(PROBE, template))
        if read.split() != rendered.split():
            what = f"the template's tokens are others than the file's: it reads {read[:80]!r} for {rendered[:80]!r}"
            raise ModelError(what, where=str(self.path), next="Give the tokenizer that the file was made with")


def _number(told: float | None) -> float:
    """What is no number is told as null."""
    return math.nan if told is None else float(told)


def _trained(path: Path, lora: Path | None) -> int:
    """How many tokens the model was trained on, by the file's header; ModelError for files of another kind."""
    found = read_header(path, values=False).metadata
    kind = found.get("general.type", "model")
    length = found.get(f"{found.get('general.architecture')}.context_length")
    if kind != "model" or not isinstance(length, int) or length < 1:
        advice = "Give the model's file here, an adapter's as `lora`"
        raise ModelError(f"is no language model, but of the type '{kind}'", where=str(path), next=advice)
    if lora is not None and read_header(lora, values=False).metadata.get("general.type") != "adapter":
        raise ModelError("is no adapter", where=str(lora), next="Give a whole model's file as `path`, without `lora`")
    return length
