"""The harness that measures training engines: its table, its processes, its page, its models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.training import __main__ as harness
from benchmarks.training import clock, page, plots, table
from benchmarks.training.shapes import SHAPES, make_folder
from benchmarks.training.table import Row, Setting
from benchmarks.training.worker import Job, reason

TRL = Setting("trl", "tiny", "random", "1", 32, "no")


def row(setting: Setting, speed: float, peak: float, **more: str) -> Row:
    figures = {"tokens_s": f"{speed:.0f}", "tokens_s_p20": f"{speed - 1:.0f}", "tokens_s_p80": f"{speed + 1:.0f}"}
    figures |= {"peak_gib": f"{peak}", "ms_median": "10.0", "steps": "10"}
    return table.make(setting, commit="abc", device="a card", precision="bfloat16", **{**figures, **more})


def failed(setting: Setting, why: str) -> Row:
    return table.make(setting, commit="abc", device="a card", precision="", failure=why)


def test_table_keeps_rows_and_survives_a_cut(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    rows = [row(TRL, 100, 2.5), failed(replace(TRL, budget="8"), "out of memory, and a comma")]
    table.append(path, rows[0])
    with path.open("a") as file:
        file.write("2026-01-01T00:00:00Z,abc,a ca")  # a crash while writing
    assert table.read(path) == rows[:1]
    table.append(path, rows[1])
    assert table.read(path) == rows
    assert table.read(path)[1].setting == replace(TRL, budget="8")
    path.write_text("engine,tokens\n")
    with pytest.raises(SystemExit, match="another version's"):
        table.read(path)


def test_settings_of_a_process_go_from_small_to_large() -> None:
    given = harness._arguments(
        [
            "--engines",
            "trl,native,unsloth",
            "--shapes",
            "tiny,folder:/some/where/own",
            "--batches",
            "4x8,1x8,2x64",
            "--budgets",
            "6,8",
        ]
    )
    groups = list(harness.groups(given))
    assert [(group[0].engine, group[0].checkpointing, group[0].shape) for group in groups] == [
        (engine, way, shape)
        for shape in ("tiny", "own")  # where a folder lies is not written down
        for engine, way in (("trl", "no"), ("trl", "yes"), ("native", ""), ("unsloth", "no"), ("unsloth", "unsloth"))
    ]
    assert [(one.batch, one.length) for one in groups[0]] == [("1", 8), ("4", 8), ("2", 64)]
    assert [one.budget for one in groups[2]] == ["6", "8", ""] * 3
    with pytest.raises(SystemExit):
        harness._arguments(["--engines", "nonsense"])


def test_steps_over_rows(tmp_path: Path) -> None:
    words = ["--engines", "trl,unsloth,native", "--shapes", "tiny", "--rows", "x.jsonl", "--part", "finance"]
    packed = [(one.engine, one.packing) for (one,) in harness.groups(harness._arguments(words))]
    both = [("trl", "bfd"), ("trl", "padded")]
    assert packed == [*both, *both, ("unsloth", "bfd"), ("unsloth", "bfd"), ("native", "")]
    rows = [one.packing for (one,) in harness.groups(harness._arguments([*words, "--step", "8 rows"]))]
    assert rows == ["padded", "padded", "padded", "padded", ""]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scratch folder with the tiny model in it."""
    folder = tmp_path_factory.mktemp("scratch")
    make_folder("tiny", folder / "tiny", "cpu")
    return folder


def run_harness(tmp_path: Path, scratch: Path, words: str) -> list[Row]:
    out = tmp_path / "results.csv"
    fixed = ["--device", "cpu", "--shapes", "tiny", "--out", str(out), "--scratch", str(scratch)]
    harness.main([*fixed, "--commit", "abc", *words.split()])
    return table.read(out)


@pytest.mark.slow
def test_goes_on_where_it_stopped_and_outlives_a_failing_engine(tmp_path: Path, scratch: Path) -> None:
    already = row(TRL, 123, 1)
    table.append(tmp_path / "results.csv", already)
    words = "--engines unsloth,trl --checkpointing no --batches 1x32,2x32"
    rows = run_harness(tmp_path, scratch, words)
    assert rows[0] == already  # not measured again
    broken = [one for one in rows if one.engine == "unsloth"]
    assert len(broken) == 2
    assert all(one.failure and not one.tokens_s for one in broken)  # there is no card here
    measured = rows[-1]
    assert (measured.setting, measured.failure) == (replace(TRL, batch="2"), "")
    low, middle, high = (float(value) for value in (measured.tokens_s_p20, measured.tokens_s, measured.tokens_s_p80))
    assert 0 < low <= middle <= high
    assert middle == pytest.approx(2 * 32 / float(measured.ms_median) * 1e3, rel=0.01)
    assert int(measured.steps) == clock.STEPS
    assert measured.bitsandbytes and measured.torch == torch.__version__
    assert run_harness(tmp_path, scratch, words) == rows


def test_a_setting_that_takes_too_long_is_given_up(tmp_path: Path, scratch: Path) -> None:
    rows = run_harness(tmp_path, scratch, "--engines peft --batches 1x32 --limit 0")
    assert [one.failure for one in rows] == ["exit 124: one setting took more than 0 s"] * 2
    assert harness._worth_again(rows[0])
    assert not harness._worth_again(failed(TRL, "out of memory"))


def test_nothing_starts_after_the_last_minute(tmp_path: Path, scratch: Path) -> None:
    assert run_harness(tmp_path, scratch, "--engines peft --batches 1x32 --minutes -1") == []


def test_a_job_is_one_word_of_a_command_line(tmp_path: Path) -> None:
    job = Job((TRL, replace(TRL, batch="2")), tmp_path / "a.csv", tmp_path, "cpu", "abc", deadline=1.5, model="tiny")
    assert Job.loads(job.dumps()) == job
    assert reason(torch.OutOfMemoryError("CUDA out of memory. Tried 3 GiB")) == "out of memory"
    assert reason(OSError("/home/someone/here/model.safetensors is gone")) == "OSError: model.safetensors is gone"


def test_clock() -> None:
    taken: list[float] = []
    found = clock.timed(lambda: taken.append(1.0), 100, "cpu")
    assert len(taken) == clock.WARM + clock.STEPS
    assert len(found.seconds) == clock.STEPS
    fixed = clock.Timed((1.0, 2.0, 3.0, 4.0, 5.0, 6.0), 60, 0, 0)
    assert fixed.rates == pytest.approx((60 / 5, 60 / 3.5, 60 / 2))
    draw, again = (clock.random_ids(2, 5, 300, "cpu") for _ in range(2))
    assert torch.equal(draw(), again())
    assert not torch.equal(draw(), draw())


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [("llama2-7b", 6_738_415_616), ("llama3.2-1b", 1_235_814_400), ("llama3.1-8b", 8_030_261_248)],
)
def test_shapes_are_the_published_sizes(shape: str, parameters: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        network = LlamaForCausalLM(LlamaConfig(**SHAPES[shape]))
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.slow
def test_every_engine_reads_the_same_weights(tmp_path: Path) -> None:
    import bitsandbytes as bnb
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tunesmith.models.build import load_model
    from tunesmith.models.weights import fetch_weights

    folder = make_folder("tiny", tmp_path / "tiny", "cpu")
    stamp = (folder / "config.json").stat().st_mtime_ns
    assert make_folder("tiny", tmp_path / "tiny", "cpu") == folder
    assert (folder / "config.json").stat().st_mtime_ns == stamp  # made once
    stock: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert stock.is_loaded_in_4bit and stock.hf_quantizer is not None
    packed = {name: layer for name, layer in stock.named_modules() if isinstance(layer, bnb.nn.Linear4bit)}
    assert len(packed) == 2 * 7
    own = load_model(fetch_weights(str(folder)), bits=4, device="cpu", precision="bfloat16").frozen()
    assert own.keys() == packed.keys()
    for name, layer in packed.items():
        assert layer.weight.quant_state.nested and layer.weight.quant_state.quant_type == "nf4"
        matrix = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        assert torch.equal(matrix, own[name].matrix())
        assert 0.018 < matrix.float().std() < 0.022
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) <= stock.config.vocab_size
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id}) == 4


def made_table(path: Path) -> list[Row]:
    shape = "llama2-7b"
    rows = [
        row(Setting("unsloth", shape, "random", "4", 512, "unsloth"), 11000, 4.7),
        row(Setting("unsloth", shape, "random", "4", 512, "no"), 14000, 12.2),
        row(Setting("trl", shape, "random", "4", 512, "yes"), 5900, 6.7),
        row(Setting("native", shape, "random", "4", 512, budget="8"), 15000, 7.5, planned_gib="7.9", note="micro"),
        row(Setting("native", shape, "random", "16", 512, budget="80"), 21000, 39.0, note="micro-batches of 16"),
        failed(Setting("trl", shape, "random", "16", 512, "no"), "out of memory"),
        row(
            Setting("trl", "llama3.2-1b", "finance", "8192 tokens", 1024, "no", "bfd"),
            30000,
            9,
            tokens="290000",
            seconds="9.67",
        ),
    ]
    for one in rows:
        table.append(path, one)
    return rows


def test_page_holds_what_the_table_holds(tmp_path: Path) -> None:
    made_table(tmp_path / "results.csv")
    files = page.write(tmp_path / "results.csv", tmp_path / "docs")
    assert [file.name for file in files] == ["performance.md", "a-card-llama2-7b.svg"]
    text = files[0].read_text()
    lines = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("|")}
    assert lines["| 5 GiB"] == "| 5 GiB | 4 x 512, recomputed, unsloth | 11,000 | none fits |  |  |"
    assert lines["| 8 GiB"] == "| 8 GiB | 4 x 512, recomputed, unsloth | 11,000 | 4 x 512 | 15,000 | 1.36 |"
    assert lines["| 40 GiB"] == "| 40 GiB | 4 x 512, unsloth | 14,000 | 16 x 512 | 21,000 | 1.50 |"
    assert "- `trl` 16 x 512, checkpointing no: out of memory" in text
    assert (
        "| finance | llama3.2-1b | trl | packing bfd, checkpointing no | 8192 tokens | 16 | 290,000 | 9.67 | 30,000 |"
        in text
    )
    assert "native-fast" not in text.split("## How to repeat it")[0]  # not measured, not spoken of
    svg = files[1].read_text()
    assert svg.count("4×512") == 4
    assert ">unsloth<" in svg
    before = [file.read_text() for file in files]
    assert [file.read_text() for file in page.write(tmp_path / "results.csv", tmp_path / "docs")] == before


def test_no_figures_no_page(tmp_path: Path) -> None:
    table.append(tmp_path / "results.csv", failed(TRL, "out of memory"))
    assert page.write(tmp_path / "results.csv", tmp_path / "docs") == []
    assert not (tmp_path / "docs").exists()


def test_a_later_figure_takes_the_place_of_a_failure() -> None:
    again = [failed(TRL, "exit 1: no card"), row(TRL, 5, 1), row(TRL, 7, 1)]
    assert [one.tokens_s for one in page.newest(again)] == ["7"]


def test_labels_cover_nothing() -> None:
    taken: list[plots.Box] = [(100.0, 100.0, 110.0, 110.0)]
    placed = []
    for _ in range(9):
        found = plots._free(105, 105, 30, 10, taken, (0, 0, 400, 400))
        assert found
        assert not any(plots._meet(found, other) for other in taken)
        taken.append(found)
        placed.append(found)
    assert len(set(placed)) == 9
    assert plots._free(105, 105, 30, 10, [(0.0, 0.0, 400.0, 400.0)], (0, 0, 400, 400)) is None
