"""transformers, and PEFT where there is an adapter, in a process of their own: what a user of the shipped files has.

Run by path, by generation/from_folder.py alone; it imports nothing of the package, and neither code nor pickles of the
folder are ever run. JSON comes in on stdin, a line each: first the settings, then requests with an "id" of their own
("replies", "render", "tokens", "scores"; {"stop": id} ends one early). Answers go out on stdout with the request's id,
loading has id 0; the last line of each holds "done", or "refused" with the reason. Whatever else is said, chatter on
stdout included, goes to stderr. One request is served at a time. It lives as long as its stdin is open.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

SMALL = 4 << 30  # bytes of weights up to which a processor computes in float32, whatever the folder's number type
TICK = 1.0  # seconds between signs of life while a batch is written


def main() -> None:
    """Serves until stdin ends. Exit code 1: it could not go on; why is on stderr, or was told as id 0's refusal."""
    settings = json.loads(sys.stdin.buffer.readline())
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    asked: SimpleQueue[dict[str, Any]] = SimpleQueue()
    stopped: set[int] = set()
    threading.Thread(target=_listen, args=(asked, stopped), daemon=True).start()

    def tell(number: int, **what: Any) -> None:
        answer.write(json.dumps({"id": number, **what}) + "\n")
        answer.flush()

    try:
        _import(adapted=bool(settings["adapter"]))
        began = time.perf_counter()
        speaker = Speaker(**settings)
    except Exception as error:  # of any of three libraries; the one who asked decides what to do about it
        tell(0, refused=_words(error))
        os._exit(1)  # the ordinary way out stumbles over the thread that waits for stdin
    tell(0, done=True, seconds=time.perf_counter() - began, context=speaker.context, card=speaker.card)
    try:
        while True:
            _serve(speaker, asked.get(), stopped, tell)
    except Exception as error:  # what a card or memory leaves behind then is not to be relied on
        sys.stderr.write(_words(error) + "\n")
        sys.stderr.flush()
        os._exit(1)


class Speaker:
    """The loaded model and its tokenizer."""

    def __init__(self, folder: str, adapter: str, bits: int, threads: int) -> None:
        """Raises what transformers and PEFT raise, and ValueError for weights that are missing or fit nowhere."""
        import torch
        from transformers import AutoTokenizer, GenerationConfig

        torch.set_num_threads(threads)
        own = Path(adapter) if adapter and (Path(adapter) / "tokenizer_config.json").exists() else Path(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(own, trust_remote_code=False)
        self.base = self.model = _base(Path(folder), bits)
        if adapter:
            self.model = _adapted(self.base, Path(adapter))
        self.device = self.base.get_input_embeddings().weight.device
        wish = self.base.generation_config.eos_token_id
        self.stops = frozenset(wish if isinstance(wish, list) else [] if wish is None else [wish])
        pad = self.tokenizer.pad_token_id
        self.pad = int(self.tokenizer.eos_token_id or 0) if pad is None else int(pad)  # masked by its place
        self.base.generation_config = GenerationConfig(do_sample=False, pad_token_id=self.pad)  # no wish but greed
        self.context = int(getattr(self.base.config.get_text_config(), "max_position_embeddings", None) or 0)

    @property
    def card(self) -> int:
        """Bytes that torch holds on the card."""
        import torch

        return int(torch.cuda.memory_reserved()) if self.device.type == "cuda" else 0

    def render(self, messages: list[dict[str, str]]) -> str:
        """By the folder's own template, up to where the assistant begins."""
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def tokens(self, text: str) -> list[int]:
        """A rendered text; a start token is the template's to write."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def batch(
        self,
        prompts: list[list[int]],
        limit: int,
        stops: frozenset[int],
        cuts: Sequence[str],
        go_on: Callable[[], bool],
    ) -> list[list[int]]:
        """What is written behind each prompt, at most `limit` tokens, up to and with what ends it."""
        import torch

        width = max(map(len, prompts))
        ids = torch.tensor([[self.pad] * (width - len(each)) + each for each in prompts], device=self.device)
        mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts], device=self.device)
        ending = Ending(width, len(prompts), stops, cuts, self._decode, go_on)
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=limit, stopping_criteria=[ending]
            )
        return [row[width:][:length] for row, length in zip(out.tolist(), ending.lengths, strict=True)]

    def reply(self, written: list[int], stops: frozenset[int], cuts: Sequence[str], *, special: bool) -> list[Any]:
        """Text, whether it ended by itself, how many tokens, and what came behind a text that ends replies.

        With `special` the text holds special tokens written out.
        """
        ended = bool(written) and written[-1] in stops
        kept = written[:-1] if ended else written
        text = self._decode(kept, skip=not special)
        at = min((text.index(each) for each in cuts if each in text), default=len(text))
        return [text[:at].strip(), ended and at == len(text), len(kept), text[at:]]

    def scores(self, ids: list[int], start: int, top: int, tell: Callable[[list[Any]], None]) -> None:
        """Tells of each token from place `start` on: itself, -ln p, and the `top` likeliest with ln p."""
        import torch

        wanted = len(ids) - start
        room = {"logits_to_keep": wanted + 1} if "logits_to_keep" in _parameters(self.base) else {}
        with torch.inference_mode():
            logits = self.model(input_ids=torch.tensor([ids], device=self.device), use_cache=False, **room).logits[0]
            for token, row in zip(ids[start:], logits[-wanted - 1 : -1], strict=True):
                table = row.float().log_softmax(-1)
                best = table.topk(min(top, len(table)))
                pairs = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
                tell([token, -float(table[token]), pairs])

    def _decode(self, ids: list[int], *, skip: bool = True) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False))


class Ending:
    """Tells transformers which rows of a batch have ended, and keeps at how many tokens each did."""

    def __init__(
        self,
        width: int,
        rows: int,
        stops: frozenset[int],
        cuts: Sequence[str],
        decode: Callable[[list[int]], str],
        go_on: Callable[[], bool],
    ) -> None:
        """`width`: tokens of the prompts; `go_on` is asked at each token and may end them all."""
        self.lengths: list[int | None] = [None] * rows
        self._width, self._stops, self._cuts, self._decode, self._go_on = width, stops, cuts, decode, go_on
        self._reach = max(map(len, cuts), default=0) + 4  # a token has a character at least, or is joined

    def __call__(self, ids: Any, scores: Any, **_: Any) -> Any:
        """A flag a row, on the rows' device."""
        import torch

        count = ids.shape[1] - self._width
        tails = ids[:, max(self._width, ids.shape[1] - self._reach) :].tolist()
        for row, tail in enumerate(tails):
            if self.lengths[row] is None and (tail[-1] in self._stops or self._cut(ids, row, tail)):
                self.lengths[row] = count
        over = not self._go_on()
        return torch.tensor([over or length is not None for length in self.lengths], device=ids.device)

    def _cut(self, ids: Any, row: int, tail: list[int]) -> bool:
        """Looks at the end first: the whole is decoded only where the end seems to hold a text."""
        return self._holds(tail) and self._holds(ids[row, self._width :].tolist())

    def _holds(self, ids: list[int]) -> bool:
        text = self._decode(ids) if self._cuts else ""
        return any(each in text for each in self._cuts)


def _serve(speaker: Speaker, asked: dict[str, Any], stopped: set[int], tell: Callable[..., None]) -> None:
    number, what = asked["id"], asked["what"]
    if what == "replies":
        _write(speaker, asked, stopped, tell)
    elif what == "scores":
        speaker.scores(asked["tokens"], asked["start"], asked["top"], lambda scored: tell(number, scored=scored))
    elif what == "tokens":
        tell(number, value=speaker.tokens(asked["text"]))
    else:
        try:
            tell(number, value=speaker.render(asked["messages"]))
        except Exception as error:  # a template is foreign code: whatever it raises is its refusal
            tell(number, refused=_words(error))
            return
    tell(number, done=True, card=speaker.card)


def _write(speaker: Speaker, asked: dict[str, Any], stopped: set[int], tell: Callable[..., None]) -> None:
    number, prompts, limit, cuts = asked["id"], asked["prompts"], asked["limit"], asked["cuts"]
    stops = speaker.stops | frozenset(asked["stops"])
    last = time.monotonic()

    def go_on() -> bool:
        nonlocal last
        if time.monotonic() - last > TICK:
            last = time.monotonic()
            tell(number, alive=True)
        return number not in stopped

    order = sorted(range(len(prompts)), key=lambda place: (len(prompts[place]), place))
    for begin in range(0, len(order), asked["batch"]):
        chosen = order[begin : begin + asked["batch"]]
        began = time.perf_counter()
        written = speaker.batch([prompts[place] for place in chosen], limit, stops, cuts, go_on)
        if number in stopped:
            return
        found = [speaker.reply(ids, stops, cuts, special=asked["special"]) for ids in written]
        tell(number, spent=[sum(each[2] for each in found), time.perf_counter() - began], card=speaker.card)
        for place, reply in zip(chosen, found, strict=True):
            tell(number, reply=[place, *reply])


def _import(*, adapted: bool) -> None:
    """So that the time of loading is the files' alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig  # noqa: F401

    if adapted:
        import peft  # noqa: F401


def _base(folder: Path, bits: int) -> Any:
    import torch
    import transformers
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, BitsAndBytesConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    dtype = config.get_text_config().dtype or torch.bfloat16
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if device == "cpu" and size / dtype.itemsize * torch.float32.itemsize <= SMALL:
        dtype = torch.float32
    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": device}, "trust_remote_code": False}
    if bits == 4:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING  # else an image-text model, whose text half has the adapter
    loader = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForImageTextToText
    model, found = loader.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **options)
    if missing := sorted(found["missing_keys"]):  # transformers would go on with random numbers
        raise ValueError(f"the files lack the weight '{missing[0]}', {len(missing)} in all")
    return model.eval()


def _adapted(base: Any, adapter: Path) -> Any:
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    model = PeftModel.from_pretrained(base, str(adapter))
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        held = set(file.keys())
    wanted = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if odd := sorted(held ^ wanted):  # PEFT would leave out the one and start the other anew
        side = "does not know" if odd[0] in held else "misses"
        raise ValueError(f"the adapter does not fit this base: it {side} '{odd[0]}', {len(odd)} in all")
    if any(getattr(each, "use_dora", False) for each in model.peft_config.values()):
        _keep_plain(base)
    return model.eval()


def _keep_plain(base: Any) -> None:
    """DoRA takes the weights' norms, and PEFT would take them of what bitsandbytes has packed for AVX512-BF16.

    With bitsandbytes 0.50.2 and PEFT 0.21.2 that is wrong by 0.2 to 0.7 nats a token on random models.
    """
    for layer in base.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def _parameters(model: Any) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


def _listen(asked: SimpleQueue[dict[str, Any]], stopped: set[int]) -> None:
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if "stop" in request:
            stopped.add(request["stop"])
        else:
            asked.put(request)
    os._exit(0)  # from a thread of its own, so that it ends in the middle of a product, too


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


if __name__ == "__main__":
    main()
