"""Runs transformers, and PEFT if there is an adapter, in a separate process, as a user of the exported files would.

Run by path, only by generation/from_folder.py; it imports nothing of the package and runs neither code nor pickles of
the folder. It reads one JSON object per line from stdin: the settings, then requests with an "id" ("replies", "render",
"tokens", "scores"; {"stop": id} cancels one). It writes answers with the request's id to stdout; loading has id 0. The
last line of an answer holds "done", or "refused" with the reason. All other output, including messages on stdout, goes
to stderr. One request is served at a time. The process ends when its stdin is closed.
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

FLOAT32_LIMIT = 4 << 30  # bytes of weights up to which a CPU computes in float32
HEARTBEAT_SECONDS = 1.0  # between progress messages while a batch is generated


def main() -> None:
    """Serve until stdin is closed. Exit code 1: a fatal error, reported on stderr or as the refusal of id 0."""
    settings = json.loads(sys.stdin.buffer.readline())
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    requests: SimpleQueue[dict[str, Any]] = SimpleQueue()
    stopped: set[int] = set()
    threading.Thread(target=_read_requests, args=(requests, stopped), daemon=True).start()

    def send(request_id: int, **fields: Any) -> None:
        answer.write(json.dumps({"id": request_id, **fields}) + "\n")
        answer.flush()

    try:
        _import_libraries(adapted=bool(settings["adapter"]))
        started = time.perf_counter()
        model = LoadedModel(**settings)
    except Exception as error:  # of any of three libraries; the parent decides what to do
        send(0, refused=_error_text(error))
        os._exit(1)  # a normal exit would wait for the thread that reads stdin
    send(0, done=True, seconds=time.perf_counter() - started, context=model.context, gpu_bytes=model.gpu_bytes)
    try:
        while True:
            _serve(model, requests.get(), stopped, send)
    except Exception as error:  # after an error of the GPU or of memory the state is unreliable
        sys.stderr.write(_error_text(error) + "\n")
        sys.stderr.flush()
        os._exit(1)


class LoadedModel:
    """The loaded model and its tokenizer."""

    def __init__(self, folder: str, adapter: str, bits: int, threads: int) -> None:
        """Raises what transformers and PEFT raise, and ValueError for weights that are missing or do not fit."""
        import torch
        from transformers import AutoTokenizer, GenerationConfig

        torch.set_num_threads(threads)
        tokenizer_folder = (
            Path(adapter) if adapter and (Path(adapter) / "tokenizer_config.json").exists() else Path(folder)
        )
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, trust_remote_code=False)
        self.base = self.model = _load_base(Path(folder), bits)
        if adapter:
            self.model = _load_adapter(self.base, Path(adapter))
        self.device = self.base.get_input_embeddings().weight.device
        eos = self.base.generation_config.eos_token_id
        self.stops = frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos])
        pad = self.tokenizer.pad_token_id
        self.pad = int(self.tokenizer.eos_token_id or 0) if pad is None else int(pad)  # masked
        self.base.generation_config = GenerationConfig(do_sample=False, pad_token_id=self.pad)  # greedy
        self.context = int(getattr(self.base.config.get_text_config(), "max_position_embeddings", None) or 0)

    @property
    def gpu_bytes(self) -> int:
        """GPU memory that torch has reserved, in bytes."""
        import torch

        return int(torch.cuda.memory_reserved()) if self.device.type == "cuda" else 0

    def render(self, messages: list[dict[str, str]]) -> str:
        """Render with the folder's own template, up to where the assistant begins."""
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def tokens(self, text: str) -> list[int]:
        """Return the token ids of a rendered text; the template writes the start token."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def batch(
        self,
        prompts: list[list[int]],
        limit: int,
        stop_ids: frozenset[int],
        stop_strings: Sequence[str],
        keep_going: Callable[[], bool],
    ) -> list[list[int]]:
        """Return the tokens after each prompt: at most `limit`, up to and including what ends the reply."""
        import torch

        width = max(map(len, prompts))
        ids = torch.tensor([[self.pad] * (width - len(prompt)) + prompt for prompt in prompts], device=self.device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=self.device)
        criteria = StoppingCriteria(width, len(prompts), stop_ids, stop_strings, self._decode, keep_going)
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=limit, stopping_criteria=[criteria]
            )
        return [row[width:][:length] for row, length in zip(out.tolist(), criteria.lengths, strict=True)]

    def reply(
        self, ids: list[int], stop_ids: frozenset[int], stop_strings: Sequence[str], *, special: bool
    ) -> list[Any]:
        """Return the text, whether it ended by itself, its token count, and the output from the stop string on.

        With `special` the text contains special tokens.
        """
        ended = bool(ids) and ids[-1] in stop_ids
        reply_ids = ids[:-1] if ended else ids
        text = self._decode(reply_ids, skip=not special)
        end = min((text.index(stop_string) for stop_string in stop_strings if stop_string in text), default=len(text))
        return [text[:end].strip(), ended and end == len(text), len(reply_ids), text[end:]]

    def scores(self, ids: list[int], start: int, top: int, send: Callable[[list[Any]], None]) -> None:
        """Send for each token from index `start` on: the token, -ln p, and the `top` likeliest tokens with ln p."""
        import torch

        count = len(ids) - start
        options = {"logits_to_keep": count + 1} if "logits_to_keep" in _forward_parameters(self.base) else {}
        with torch.inference_mode():
            logits = self.model(input_ids=torch.tensor([ids], device=self.device), use_cache=False, **options).logits[0]
            for token, row in zip(ids[start:], logits[-count - 1 : -1], strict=True):
                logprobs = row.float().log_softmax(-1)
                likeliest = logprobs.topk(min(top, len(logprobs)))
                pairs = list(zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True))
                send([token, -float(logprobs[token]), pairs])

    def _decode(self, ids: list[int], *, skip: bool = True) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False))


class StoppingCriteria:
    """Tells transformers which rows of a batch have ended, and records the length of each."""

    def __init__(
        self,
        width: int,
        rows: int,
        stop_ids: frozenset[int],
        stop_strings: Sequence[str],
        decode: Callable[[list[int]], str],
        keep_going: Callable[[], bool],
    ) -> None:
        """`width`: tokens of the padded prompts; `keep_going` is called at each token and may end all rows."""
        self.lengths: list[int | None] = [None] * rows
        self._width, self._stop_ids, self._stop_strings, self._decode, self._keep_going = (
            width,
            stop_ids,
            stop_strings,
            decode,
            keep_going,
        )
        self._tail_length = max(map(len, stop_strings), default=0) + 4  # a token adds a character or is part of one

    def __call__(self, ids: Any, scores: Any, **_: Any) -> Any:
        """Return one flag per row, on the device of the rows."""
        import torch

        count = ids.shape[1] - self._width
        tails = ids[:, max(self._width, ids.shape[1] - self._tail_length) :].tolist()
        for row, tail in enumerate(tails):
            if self.lengths[row] is None and (tail[-1] in self._stop_ids or self._has_stop_string(ids, row, tail)):
                self.lengths[row] = count
        cancelled = not self._keep_going()
        return torch.tensor([cancelled or length is not None for length in self.lengths], device=ids.device)

    def _has_stop_string(self, ids: Any, row: int, tail: list[int]) -> bool:
        """Decode the whole reply only if its last tokens seem to contain a stop string."""
        return self._contains(tail) and self._contains(ids[row, self._width :].tolist())

    def _contains(self, ids: list[int]) -> bool:
        text = self._decode(ids) if self._stop_strings else ""
        return any(stop_string in text for stop_string in self._stop_strings)


def _serve(model: LoadedModel, request: dict[str, Any], stopped: set[int], send: Callable[..., None]) -> None:
    request_id, method = request["id"], request["what"]
    if method == "replies":
        _write(model, request, stopped, send)
    elif method == "scores":
        model.scores(
            request["tokens"], request["start"], request["top"], lambda scored: send(request_id, scored=scored)
        )
    elif method == "tokens":
        send(request_id, value=model.tokens(request["text"]))
    else:
        try:
            send(request_id, value=model.render(request["messages"]))
        except Exception as error:  # a template may raise anything, which counts as a refusal
            send(request_id, refused=_error_text(error))
            return
    send(request_id, done=True, gpu_bytes=model.gpu_bytes)


def _write(model: LoadedModel, request: dict[str, Any], stopped: set[int], send: Callable[..., None]) -> None:
    request_id, prompts, limit, stop_strings = request["id"], request["prompts"], request["limit"], request["cuts"]
    stop_ids = model.stops | frozenset(request["stops"])
    last_sent = time.monotonic()

    def keep_going() -> bool:
        nonlocal last_sent
        if time.monotonic() - last_sent > HEARTBEAT_SECONDS:
            last_sent = time.monotonic()
            send(request_id, alive=True)
        return request_id not in stopped

    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    for start in range(0, len(order), request["batch"]):
        indices = order[start : start + request["batch"]]
        started = time.perf_counter()
        outputs = model.batch([prompts[index] for index in indices], limit, stop_ids, stop_strings, keep_going)
        if request_id in stopped:
            return
        replies = [model.reply(ids, stop_ids, stop_strings, special=request["special"]) for ids in outputs]
        send(
            request_id,
            spent=[sum(entry[2] for entry in replies), time.perf_counter() - started],
            gpu_bytes=model.gpu_bytes,
        )
        for index, reply in zip(indices, replies, strict=True):
            send(request_id, reply=[index, *reply])


def _import_libraries(*, adapted: bool) -> None:
    """Import everything first, so that the load time covers only the files."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig  # noqa: F401

    if adapted:
        import peft  # noqa: F401


def _load_base(folder: Path, bits: int) -> Any:
    import torch
    import transformers
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, BitsAndBytesConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    dtype = config.get_text_config().dtype or torch.bfloat16
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if device == "cpu" and size / dtype.itemsize * torch.float32.itemsize <= FLOAT32_LIMIT:
        dtype = torch.float32
    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": device}, "trust_remote_code": False}
    if bits == 4:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING  # otherwise an image-text model
    loader = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForImageTextToText
    model, loading_info = loader.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **options)
    if missing := sorted(loading_info["missing_keys"]):  # transformers would initialize them randomly
        raise ValueError(f"{len(missing)} weights are missing in the files, such as '{missing[0]}'")
    return model.eval()


def _load_adapter(base: Any, adapter: Path) -> Any:
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    model = PeftModel.from_pretrained(base, str(adapter))
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        file_keys = set(file.keys())
    model_keys = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if mismatched := sorted(file_keys ^ model_keys):  # PEFT would ignore unknown weights and initialize missing ones
        side = "unknown to the base" if mismatched[0] in file_keys else "missing in the adapter"
        raise ValueError(f"the adapter does not fit this base: '{mismatched[0]}' is {side}, {len(mismatched)} in all")
    if any(getattr(config, "use_dora", False) for config in model.peft_config.values()):
        _disable_avx512_packing(base)
    return model.eval()


def _disable_avx512_packing(base: Any) -> None:
    """Keep bitsandbytes from packing weights for AVX512-BF16: PEFT would take DoRA's norms from packed weights.

    With bitsandbytes 0.50.2 and PEFT 0.21.2 that is wrong by 0.2 to 0.7 nats per token on random models.
    """
    for layer in base.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def _forward_parameters(model: Any) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


def _read_requests(requests: SimpleQueue[dict[str, Any]], stopped: set[int]) -> None:
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if "stop" in request:
            stopped.add(request["stop"])
        else:
            requests.put(request)
    os._exit(0)  # from this thread, to end in the middle of a computation as well


def _error_text(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


if __name__ == "__main__":
    main()
