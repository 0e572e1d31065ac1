"""Seconds and memory of shipping a model: merging, converting, quantising, on this machine.

    python -m benchmarks.export --shape llama2-7b --tokenizer FOLDER --scratch FOLDER --types q4_k_m

The base is made once in the scratch folder (random NF4 weights, see training/shapes.py), with a random adapter of rank
16 on every linear layer. Stages run in a process of their own; its largest resident size and that of the converter it
starts are told beside the largest tensor's bytes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.training.shapes import SHAPES, make_folder

FIELDS = (
    "date", "machine", "shape", "types", "merge_s", "convert_s", "quantize_s", "total_s", "peak_gib", "converter_gib",
    "largest_tensor_gib", "source_gib", "written_gib",
)  # fmt: skip
OUT = Path("benchmarks/results/export.csv")
RANK = 16


def main() -> None:
    """Makes what is missing, ships it, adds a row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export", description=__doc__)
    parser.add_argument("--shape", default="llama2-7b", choices=SHAPES)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder whose tokenizer llama.cpp knows")
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--types", type=lambda text: text.split(","), default=["q4_k_m"])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(_ship(given)))
        return
    base = make_folder(given.shape, given.scratch / given.shape, "cpu", given.tokenizer)
    _make_adapter(base, given.scratch / "adapter")
    done = subprocess.run([sys.executable, "-m", "benchmarks.export", *sys.argv[1:], "--worker"], capture_output=True, text=True, check=False)  # noqa: E501  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    row = json.loads(done.stdout.strip().splitlines()[-1])
    new = not given.out.exists()
    with given.out.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(row)


def _make_adapter(base: Path, folder: Path) -> None:
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    if (folder / "adapter_config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    config = AutoConfig.from_pretrained(base)
    del config.quantization_config
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    head, tensors, leaves = network.get_output_embeddings(), {}, set()
    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.Linear) and layer is not head:
            leaves.add(name.rsplit(".", 1)[-1])
            tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(RANK, layer.in_features) * 0.01
            tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(layer.out_features, RANK) * 0.01
    save_file(tensors, folder / "adapter_model.safetensors")
    plain = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=sorted(leaves), task_type="CAUSAL_LM").to_dict()
    text = json.dumps(plain, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
    (folder / "adapter_config.json").write_text(text)


def _ship(given: argparse.Namespace) -> dict[str, Any]:
    from tunesmith.exporting import convert, merge, quantize
    from tunesmith.exporting.job import Job
    from tunesmith.exporting.targets import gguf
    from tunesmith.hardware import detect_hardware
    from tunesmith.models.weights import fetch_weights, tensor_headers
    from tunesmith.prompt.template import load_template, load_tokenizer

    base = given.scratch / given.shape
    seconds: dict[str, float] = {}
    for module, name in ((merge, "merge"), (convert, "convert"), (quantize, "quantize")):
        setattr(gguf, name, _timed(getattr(module, name), name, seconds))
    template = load_template(load_tokenizer(base), "model", base)
    job = Job(
        name=given.shape, folder=given.scratch / "export", weights=fetch_weights(str(base)),
        adapter=given.scratch / "adapter", template=template, stop=(), merge_into="quantized", bits=4,
        precision="bfloat16", limit=256, context=1024, seed=1, card=lambda: "",
    )  # fmt: skip
    began = time.perf_counter()
    files = gguf.write(job, types=given.types)
    total = time.perf_counter() - began
    own, child = _high_water(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    shape = SHAPES[given.shape]
    machine = detect_hardware()
    return {
        "date": date.today().isoformat(), "machine": f"{machine.name}, {os.cpu_count()} cores", "shape": given.shape,
        "types": " ".join(given.types), **{f"{name}_s": f"{value:.0f}" for name, value in seconds.items()},
        "total_s": f"{total:.0f}", "peak_gib": f"{own / 2**20:.2f}", "converter_gib": f"{child / 2**20:.2f}",
        "largest_tensor_gib": f"{2 * shape['hidden_size'] * max(shape['vocab_size'], shape['intermediate_size']) / 2**30:.2f}",  # noqa: E501
        "source_gib": f"{sum(path.stat().st_size for path in {path for path, _, _ in tensor_headers(base).values()}) / 2**30:.1f}",  # noqa: E501
        "written_gib": f"{sum(file.path.stat().st_size for file in files) / 2**30:.2f}",
    }  # fmt: skip


def _high_water() -> int:
    """KiB of this process's largest resident size; ru_maxrss would begin at that of the process which started it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))


def _timed(call: Any, name: str, seconds: dict[str, float]) -> Any:
    def timed(*given: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(*given, **named)
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began

    return timed


if __name__ == "__main__":
    main()
