"""Names of other tools: each leads to a setting that exists, with a value that the recipe takes."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunesmith.cli import _option_hint
from tunesmith.commands.import_settings import import_settings
from tunesmith.config.aliases import ALIASES, advice, find_alias
from tunesmith.config.recipe import Recipe, read_recipe
from tunesmith.errors import RecipeError, RunError, TunesmithError

VALUES: dict[str, tuple[Any, str, Any]] = {  # another tool's name -> its value, our key, our value
    "r": (16, "adapter.rank", 16),
    "lora_r": (8, "adapter.rank", 8),
    "lora_alpha": (32, "adapter.alpha", 32),
    "target_modules": (["model.layers.q_proj", "v_proj"], "adapter.layers", ["q_proj", "v_proj"]),
    "lora_target": ("all", "adapter.layers", "all"),
    "use_rslora": (True, "adapter.scaling", "rs"),
    "modules_to_save": (["lm_head", "embed_tokens"], "adapter.train_also", ["embeddings", "head"]),
    "lr": (1e-4, "train.learning_rate", 1e-4),
    "num_train_epochs": (3, "train.epochs", 3),
    "max_seq_length": (2048, "prompt.max_tokens", 2048),
    "load_in_4bit": (True, "base.bits", 4),
    "gradient_checkpointing": (True, "train.recompute", "yes"),
    "max_grad_norm": (0.3, "train.clip", 0.3),
    "optim": ("paged_adamw_8bit", "train.optimizer", "paged_adamw_8bit"),
    "optimizer": ("adamw_torch_fused", "train.optimizer", "adamw"),
    "lr_scheduler_type": ("linear", "train.schedule", "linear"),
    "bf16": ("auto", "train.precision", "auto"),
    "train_on_inputs": (False, "prompt.learn", "answer"),
}


def test_every_key_of_the_table_is_a_setting() -> None:
    names = [name for alias in ALIASES for name in alias.names]
    assert len(names) == len(set(names))
    for alias in ALIASES:
        section: Any = Recipe
        for part in (alias.key or "").split(".") if alias.key else []:
            assert part in section.model_fields, alias.key
            section = section.model_fields[part].annotation


@pytest.mark.parametrize("name", VALUES)
def test_a_name_and_its_value_in_our_form(name: str, tmp_path: Path) -> None:
    theirs, key, ours = VALUES[name]
    alias = find_alias(name)
    assert alias is not None and (alias.key, alias.convert(theirs)) == (key, ours)
    section, field = key.split(".")
    plain: dict[str, Any] = {"name": "x", "base": {"model": "m"}, "data": {"source": "rows.csv"}}
    plain.setdefault(section, {})[field] = ours
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(plain))
    assert read_recipe(str(tmp_path / "x.yaml"))
    said = advice(name, theirs)
    assert said is not None and said.startswith(f"Its name here is {key}")


def test_what_has_no_counterpart_says_what_happens_instead() -> None:
    assert advice("sample_packing", True) == "Leave it out: rows are always packed without attention across them"
    assert advice("--max-grad-norm", 1.0) == "Its name here is train.clip: 1.0"
    assert advice("rank", 3) is None


def test_an_unknown_key_of_a_recipe_leads_to_ours(tmp_path: Path) -> None:
    plain = {"name": "x", "base": {"model": "m", "load_in_4bit": True}, "data": {"source": "rows.csv"},
             "adapter": {"lora_r": 8, "epochs": 3}, "train": {"num_train_epochs": 2, "epoch_s": 1}}  # fmt: skip
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(plain))
    with pytest.raises(TunesmithError) as caught:
        read_recipe(str(tmp_path / "x.yaml"))
    text = str(caught.value)
    for sentence in (
        "unknown key 'load_in_4bit'. Its name here is base.bits: 4",
        "unknown key 'lora_r'. Its name here is adapter.rank: 8",
        "unknown key 'epochs'. It belongs elsewhere: train.epochs",
        "unknown key 'num_train_epochs'. Its name here is train.epochs: 2",
        "unknown key 'epoch_s'. Did you mean 'epochs'?",
    ):
        assert sentence in text


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("train shopsphere --epochs 3", "--epochs is a setting of the recipe: write --set train.epochs=3"),
        ("train shopsphere --num-train-epochs=3.0", "write --set train.epochs=3"),
        ("run shopsphere --load_in_4bit true", "write --set base.bits=4"),
        ("run shopsphere --optim lion", "write --set 'train.optimizer=…'"),
        ("train --small", ""),  # an option of the command, although a setting has this name
        ("import --name x", ""),
        ("run shopsphere --nonsense 3", ""),
    ],
)
def test_a_setting_given_as_an_option(words: str, hint: str) -> None:
    text = _option_hint(words.split())
    assert text.endswith(hint) and bool(text) == bool(hint)


def test_options_and_import_on_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tunesmith"]
    done = subprocess.run([*command, "train", "shopsphere", "--epochs", "3"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--epochs is a setting of the recipe: write --set train.epochs=3" in done.stderr
    (tmp_path / "axolotl.yml").write_text(AXOLOTL)
    done = subprocess.run(
        [*command, "import", "axolotl.yml", "--name", "mine"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "import: made_up_setting: nothing corresponds" in done.stdout
    assert read_recipe(str(tmp_path / "mine.yaml")).adapter.rank == 32
    version = subprocess.run([*command, "--version"], capture_output=True, text=True)
    assert version.stdout == f"tunesmith {metadata.version('tunesmith')}\n"


AXOLOTL = """
base_model: NousResearch/Llama-3.2-1B
load_in_4bit: true
adapter: qlora
datasets:
  - path: teknium/GPT4-LLM-Cleaned
    type: alpaca
val_set_size: 0.1
sequence_len: 2048
sample_packing: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 3
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
gradient_checkpointing: true
warmup_ratio: 0.1
weight_decay: 0.01
flash_attention: true
made_up_setting: 3
"""
FACTORY = """
model_name_or_path: meta-llama/Llama-3.2-3B-Instruct
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: tips
template: llama3
cutoff_len: 1024
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
bf16: true
"""
SCRIPT = """
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer
import torch, os

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
os.remove("never.txt")
rows = load_dataset("json", data_files="rows.jsonl", split="train")
model = AutoModelForCausalLM.from_pretrained(MODEL, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
peft = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
trainer = SFTTrainer(model, SFTConfig(max_length=512, num_train_epochs=2, per_device_train_batch_size=4,
                     gradient_accumulation_steps=2, learning_rate=3e-4, optim="adamw_torch", logging_steps=1), rows)
"""


def imported(folder: Path, file: str, text: str, rows: str | None = None) -> tuple[Recipe, list[str]]:
    (folder / file).write_text(text)
    result = import_settings(folder / file, "mine", folder / "mine.yaml", rows=rows)
    return read_recipe(str(folder / "mine.yaml")), result.unmatched


def test_an_axolotl_file(tmp_path: Path) -> None:
    recipe, unmatched = imported(tmp_path, "axolotl.yml", AXOLOTL)
    assert recipe.base.model == "NousResearch/Llama-3.2-1B" and recipe.base.bits == 4
    assert recipe.data.source == "hub:teknium/GPT4-LLM-Cleaned?split=train"
    assert recipe.data.format.name == "alpaca" and recipe.data.split.valid == 0.1
    assert (recipe.adapter.rank, recipe.adapter.alpha, recipe.adapter.layers) == (32, 16, "all")
    assert recipe.train.batch == "8 rows"  # 2 rows on a GPU, 4 times accumulated
    assert (recipe.train.epochs, recipe.train.recompute, recipe.train.weight_decay) == (3, "yes", 0.01)
    assert (recipe.train.optimizer.name, recipe.train.learning_rate) == ("adamw_8bit", 2e-4)
    assert {line.split(":")[0] for line in unmatched} == {"sample_packing", "flash_attention", "made_up_setting"}
    assert "# - made_up_setting: nothing corresponds" in (tmp_path / "mine.yaml").read_text()


def test_a_llama_factory_file_with_its_registered_data_set(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/dataset_info.json").write_text('{"tips": {"file_name": "tips.json", "formatting": "sharegpt"}}')
    recipe, unmatched = imported(tmp_path, "factory.yaml", FACTORY)
    assert recipe.base.bits == 16  # no quantization_bit: LoRA over the weights as they are
    assert str(recipe.data.source).endswith("data/tips.json") and recipe.data.format.name == "sharegpt"
    assert (recipe.train.epochs, recipe.train.batch, recipe.train.precision) == (3, "8 rows", "bfloat16")
    assert any(line.startswith("template: llama3") for line in unmatched)


def test_a_script_is_parsed_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "never.txt").write_text("still here")
    recipe, unmatched = imported(tmp_path, "train.py", SCRIPT)
    assert (tmp_path / "never.txt").exists()
    assert recipe.base.model == "HuggingFaceTB/SmolLM2-135M-Instruct" and recipe.base.bits == 4
    assert recipe.data.source == "rows.jsonl"
    assert (recipe.adapter.rank, recipe.adapter.layers, recipe.prompt.max_tokens) == (16, "all", 512)
    assert (recipe.train.batch, recipe.train.epochs, recipe.train.learning_rate) == ("8 rows", 2, 3e-4)
    assert [line.split(":")[0] for line in unmatched] == ["task_type", "logging_steps"]


def test_what_cannot_be_imported_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"names nothing for data\.source"):
        imported(tmp_path, "axolotl.yml", "base_model: x/y\nlora_r: 8\n")
    with pytest.raises(TunesmithError, match=r"adapter\.rank"):
        imported(tmp_path, "axolotl.yml", "base_model: x/y\nlora_r: 8000\n", rows="rows.csv")
    with pytest.raises(RecipeError, match="cannot be read"):
        imported(tmp_path, "train.py", "x = (")
    assert not (tmp_path / "mine.yaml").exists()
    (tmp_path / "mine.yaml").write_text("mine")
    with pytest.raises(RunError, match="not overwritten"):
        imported(tmp_path, "axolotl.yml", AXOLOTL)
    assert (tmp_path / "mine.yaml").read_text() == "mine"
