"""What each family of tests/families.py does, found by doing it: the cells of docs/families.md.

A cell is "yes", or the reason that the product itself gives. Anything else that goes wrong is an error here.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import tunesmith.exporting.convert as converting
from adapters import IDS, logits, made, shaken
from families import FAMILY, make_family
from gguf_models import WORDS, make_shippable, opened
from stopping import at, interrupt
from tiny import toy_rows
from tunesmith.errors import Paused, TunesmithError

CLOSE = 1e-3  # relative, of losses in float32
YES, DIFFERENT = "yes", "llama.cpp's tokens differ from transformers'"
Cells = dict[str, str]


def told(check: Callable[[], None]) -> str:
    """The cell of a check that passes, or is refused by the product."""
    try:
        check()
    except TunesmithError as error:
        return error.errors[0].what if hasattr(error, "errors") else error.what
    return YES


# --- quick: one loading in each number of bits --------------------------------------------------------------------


def engine(folder: Path) -> str:
    """Which engine trains the family, as `plan` says it."""
    from tunesmith.models.architecture import architecture_from_weights
    from tunesmith.models.fused_config import unfused_config
    from tunesmith.models.weights import fetch_weights

    reasons = unfused_config(architecture_from_weights(fetch_weights(str(folder))).config.to_dict())
    return f"autograd: {'; '.join(reasons)}" if reasons else "fused"


def part(folder: Path, name: str) -> str:
    """What of the checkpoint is loaded."""
    from tunesmith.models.architecture import read_architecture

    return "text half" if read_architecture(folder, name).whole else "whole"


def losses(folder: Path, name: str) -> None:
    """The loss of a batch is transformers' own, with the weights as they are multiplied by, in 16 and in 4 bits."""
    import transformers

    from tunesmith.models.build import load_model
    from tunesmith.models.count_parameters import check_loaded, read_shape
    from tunesmith.models.weights import fetch_weights
    from tunesmith.prompt.pack import Batch
    from tunesmith.training.autograd_step import sum_cross_entropy

    batch = Batch(IDS.tolist(), torch.ones_like(IDS).tolist(), IDS.tolist())
    for bits in (16, 4):
        model = load_model(fetch_weights(str(folder)), bits=bits, device="cpu", precision="float32")
        check_loaded(read_shape(folder, name), model, bits=bits, bytes_per_element=4)
        loader = getattr(transformers, model.architecture.loader)
        own = loader.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            if bits == 4:
                copy_weights(model, own)
            theirs = own(input_ids=IDS, labels=IDS).loss.item()
            ours = sum_cross_entropy(model, batch).item() / batch.loss_tokens
        assert ours == pytest.approx(theirs, rel=CLOSE)


def copy_weights(model: Any, own: Any) -> None:
    """Gives transformers' model the dequantized weights of ours."""
    from tunesmith.models.experts import FrozenExperts
    from tunesmith.models.qlora import FrozenLinear

    for name, module in model.network.named_modules():
        if not isinstance(module, FrozenLinear | FrozenExperts):
            continue
        outside = own.get_submodule(model.architecture.outside(name))
        if isinstance(module, FrozenLinear):
            outside.weight.copy_(module.matrix().T if model.transposed else module.matrix())
        if isinstance(module, FrozenExperts):
            for each, weights in module.weights.items():
                getattr(outside, each).copy_(weights.matrices(range(weights.experts)))


# --- slow: an adapter, a training, files ---------------------------------------------------------------------------


def adapter(folder: Path, scratch: Path) -> None:
    """The adapter that is written is read by PEFT on the model that a user loads, with the same loss, in both bits.

    Merged, it is a folder that AutoModelForCausalLM loads with the same logits.
    """
    import transformers
    from peft import PeftModel

    from exporting.test_merge import job_of
    from tunesmith.exporting.merge import merge

    for bits in (16, 4):
        model = shaken(made(folder, bits=bits))
        here = scratch / f"bits-{bits}"
        here.mkdir(parents=True)
        job = job_of(model, here, bits=bits)
        base = getattr(transformers, model.architecture.loader).from_pretrained(folder, dtype=torch.float32)
        ours = logits(model.network)
        with torch.no_grad():
            plain = made(folder, bits=bits)
            copy_weights(plain_base(plain), base)
            theirs = PeftModel.from_pretrained(base, str(job.adapter)).eval()
            updated = sum(name.endswith("lora_A.default.weight") for name, _ in theirs.named_parameters())
            assert updated == len(model.lora) + len(model.lora_experts)
            torch.testing.assert_close(logits(theirs), ours, rtol=CLOSE, atol=CLOSE)
        merged, report = transformers.AutoModelForCausalLM.from_pretrained(
            merge(job, here / "merged", torch.float32), dtype=torch.float32, output_loading_info=True
        )
        assert not report["missing_keys"] and not report["unexpected_keys"]
        torch.testing.assert_close(logits(merged), ours, rtol=CLOSE, atol=CLOSE)


def plain_base(model: Any) -> Any:
    """The same model without its updates around the frozen layers."""
    for name, layer in list(model.lora.items()):
        model.network.set_submodule(name, layer.base)
    return model


def training(folder: Path, scratch: Path) -> Cells:
    """Trains, stops and resumes, evaluates, and writes the same replies one by one and in a batch."""
    import tunesmith
    from tunesmith.config.recipe import read_recipe
    from tunesmith.runs.run import hash_file
    from tunesmith.training.job import read_journal

    scratch.mkdir(parents=True, exist_ok=True)
    (scratch / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toy_rows(4, 4)))
    (scratch / "toy.yaml").write_text(yaml.safe_dump(recipe_of(folder)))
    recipe = read_recipe(str(scratch / "toy.yaml"))

    def started(name: str) -> Any:
        run = tunesmith.open_run(recipe, scratch / name)
        tunesmith.prepare(recipe, run)
        return run

    whole = started("whole")
    cells = {"train": told(lambda: ignored(tunesmith.train(recipe, whole)))}
    if cells["train"] != YES:
        return cells
    steps = [event["loss"] for event in read_journal(whole / "journal.jsonl") if event["kind"] == "step"]
    assert steps[-1] < steps[0]
    stopped = started("stopped")

    with pytest.raises(Paused):
        tunesmith.train(recipe, stopped, watch=at("step", 2, interrupt))
    tunesmith.train(recipe, stopped)
    adapters = [hash_file(run / "adapter/adapter_model.safetensors") for run in (whole, stopped)]
    assert adapters[0] == adapters[1]
    cells["resume"] = YES
    cells["evaluate"] = told(lambda: ignored(tunesmith.evaluate(recipe, whole)))
    cells["replies"] = told(lambda: replies(recipe, whole, folder))
    return cells


def recipe_of(folder: Path) -> dict[str, Any]:
    return {
        "name": "toy", "seed": 3, "base": {"model": str(folder), "bits": 4},
        "data": {
            "source": "rows.jsonl",
            "format": {"columns": {"prompt": "prompt", "answer": "completion", "group": "topic"}},
            "split": {"by": "group", "test": 0.25, "valid": 0.25, "unseen_groups": 0},
        },
        "prompt": {"max_tokens": 128}, "adapter": {"rank": 4, "alpha": 8},
        "train": {
            "epochs": 2, "batch": "4 rows", "learning_rate": 2e-2, "evaluate_every": 2, "precision": "float32",
        },
        "evaluate": {"metrics": ["loss", "rouge"], "primary": "loss", "max_new_tokens": 6, "rows": 3},
    }  # fmt: skip


def ignored(_: Any) -> None:
    """Nothing of what a command returns is needed."""


def replies(recipe: Any, run: Any, folder: Path) -> None:
    """The tuned model's replies, one by one and in a batch, are what its own network says greedily."""
    from tunesmith.data.conversation import Turn
    from tunesmith.generation.from_weights import WeightsModel
    from tunesmith.models.adapter import load_adapter
    from tunesmith.models.build import load_model
    from tunesmith.models.weights import fetch_weights
    from tunesmith.prompt.template import load_template, load_tokenizer
    from tunesmith.prompt.tokens import encode_prompt

    model = load_model(fetch_weights(str(folder)), bits=4, device="cpu", precision="float32")
    load_adapter(model, run / "adapter")
    template = load_template(load_tokenizer(folder), "model", folder)
    text = WeightsModel(model, template, tuned=True)
    prompts = [(Turn("user", words),) for words in ("a", "how to do 1 way 2?", "where")]
    alone = {place: reply.text for place, reply in text.replies(prompts, max_new_tokens=6, batch=1)}
    together = {place: reply.text for place, reply in text.replies(prompts, max_new_tokens=6, batch=3)}
    assert alone == together
    ids = encode_prompt(prompts[1], template)
    said: list[int] = []
    with torch.no_grad():
        for _ in range(6):
            asked = torch.tensor([ids + said])
            said.append(int(model.network(input_ids=asked, use_cache=False).logits[0, -1].argmax()))
            if said[-1] in text.stops:
                break
    spoken = [each for each in said if each not in text.stops]
    assert alone[1].strip() == template.tokenizer.decode(spoken).strip()


def gguf(name: str, scratch: Path) -> Cells:
    """Merged and written as GGUF, the runtime says transformers' greedy tokens; so does the adapter beside the base."""
    from exporting.test_families import PROMPTS, greedy_as, merged_model
    from exporting.test_merge import job_of
    from tunesmith.exporting.convert import check_adapter, check_base, convert, convert_adapter
    from tunesmith.exporting.merge import merge
    from tunesmith.exporting.targets import gguf_lora
    from tunesmith.models.architecture import architecture_from_weights
    from tunesmith.prompt.tokens import encode_prompt

    make_shippable(scratch / "base", name)
    job = job_of(shaken(made(scratch / "base")), scratch)
    prompts = [encode_prompt(prompt, job.template) for prompt in PROMPTS]
    networks: list[Any] = []

    def whole() -> None:
        check_base(job)
        folder, network = merged_model(job, scratch / "merged")
        networks.append(network)
        with opened(convert(job, folder, scratch / "model.gguf", "f32"), slots=1) as runtime:
            greedy_as(network, runtime, prompts)

    def beside() -> None:
        gguf_lora._check_adapter(job)
        check_adapter(job, "all")
        base = convert(job, merge(job, scratch / "plain", torch.float32, adapter=False), scratch / "base.gguf", "f32")
        lora = convert_adapter(job, scratch / "lora.gguf", "f32")
        with opened(base, lora=lora, slots=1) as runtime:
            greedy_as(networks[0], runtime, prompts)

    with recognized(scratch) if name.startswith("qwen3_5") else contextlib.nullcontext():
        known = converting.DIFFERENCES.get(architecture_from_weights(job.weights).family, "")
        cells = {"GGUF": shortened(whole)}
        if known and cells["GGUF"] == DIFFERENT:
            cells["GGUF"] = known
        assert not known or cells["GGUF"] == known  # what `check` warns of is what is found
        cells["GGUF LoRA"] = shortened(beside) if cells["GGUF"] == YES else "no GGUF"
    return cells


@contextlib.contextmanager
def recognized(scratch: Path) -> Iterator[None]:
    """llama.cpp's converters take the stand-in tokenizer of a family whose own one they know by a hash.

    transformers forces Qwen 3.5's way of cutting texts onto every tokenizer of that family, so that no other fits.
    """
    real = converting._converter_folder()
    folder = scratch / "scripts"
    folder.mkdir()
    for script in ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py"):
        (folder / script).write_text(
            f"import runpy, sys\nsys.path.insert(0, {str(real)!r})\nfrom conversion import base\n"
            "base.TextModel.get_vocab_base_pre = lambda self, tokenizer: 'smollm'\n"
            f"runpy.run_path({str(real / script)!r}, run_name='__main__')\n"
        )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(converting, "_converter_folder", lambda: folder)
        yield


def shortened(check: Callable[[], None]) -> str:
    """A cell without the words that name a file or differ from run to run."""
    try:
        cell = told(check)
    except AssertionError:
        return DIFFERENT
    if "Its last " in cell or "cannot load" in cell:
        return "llama.cpp cannot load the file"
    return cell.replace("llama.cpp's converter cannot write this model:", "the converter says:").split("\n")[0][:90]


QUICK: tuple[str, ...] = ("loaded", "engine", "loss")
SLOW: tuple[str, ...] = ("train", "resume", "evaluate", "replies", "adapter, merge", "GGUF", "GGUF LoRA")


def quick(name: str, folder: Path) -> Cells:
    """The cells that one loading in each number of bits gives."""
    make_family(folder, name)
    return {"loaded": part(folder, name), "engine": engine(folder), "loss": told(lambda: losses(folder, name))}


def slow(name: str, folder: Path, scratch: Path) -> Cells:
    """The other cells; `folder` holds the family's tiny model."""
    cells = training(folder, scratch / "training")
    cells["adapter, merge"] = told(lambda: adapter(folder, scratch / "adapter"))
    return {**cells, **gguf(name, scratch / "gguf")}


__all__ = ["FAMILY", "QUICK", "SLOW", "WORDS", "quick", "slow"]
