"""Runs side by side: the same rows only, differences that can be recomputed, and a page that holds text as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from finished_runs import finish, held_rows, make_recipe
from handmade import row
from strict_pages import EVIL, Page, check_nothing_is_fetched, check_read_by_ear_and_keyboard
from tunesmith.errors import RunError
from tunesmith.evaluation.statistics import holm_adjust
from tunesmith.evaluation.verdict import decide
from tunesmith.reporting.runs_page import RunComparison, compare_run_folders, page_name, runs_page
from tunesmith.runs.run import Run


def two(tmp_path: Path, **second: Any) -> RunComparison:
    first = finish(make_recipe("one"), tmp_path / "one", gain=0.5)
    second_run = finish(make_recipe("two"), tmp_path / "two", gain=0.9, **second)
    return compare_run_folders([first.path, second_run.path])


def test_differences_are_those_of_the_rows(tmp_path: Path) -> None:
    comparison = two(tmp_path)
    assert list(comparison.sections) == ["all", "test", "unseen"]
    tuned = [
        {item["id"]: item["tuned"]["loss"] for item in Run(tmp_path / name).read_json("scores.json")["rows"]}
        for name in ("one", "two")
    ]
    groups = {item.id: item.group for part in held_rows().values() for item in part}
    loss = comparison.sections["all"]["loss"]
    gains = [tuned[1][key] - tuned[0][key] for key in groups]
    assert loss["against"]["two"]["difference"] == pytest.approx(float(np.mean(gains)), abs=1e-12)
    one, other = ([item[key] for key in groups] for item in tuned)
    by_hand = decide(one, other, list(groups.values()), better="lower", seed=5)
    assert (loss["against"]["two"]["low"], loss["against"]["two"]["high"]) == (by_hand.low, by_hand.high)
    assert (loss["rows"], loss["groups"]) == (60, 20)  # whole topics are drawn, not rows
    assert loss["runs"] == {"one": pytest.approx(np.mean([*tuned[0].values()])), "two": pytest.approx(by_hand.tuned)}
    assert comparison.sections["unseen"]["loss"]["rows"] == 12
    (verdict,) = comparison.verdicts
    assert verdict[0] == "better"
    assert verdict[1].startswith(
        "two is better than one: loss is 1.10 against 1.50 (lower is better), measured in 60 of 60"
    )
    assert "60 held-out rows in 20 topics (p < 0.001). With other questions of this kind" in verdict[1]


def test_trainings_of_one_recipe_are_called_so(tmp_path: Path) -> None:
    trained = [
        finish(make_recipe(f"seed-{seed}", train__seed=seed), tmp_path / f"seed-{seed}", gain=gain).path
        for seed, gain in ((7, 0.5), (8, 0.9), (9, 0.5))
    ]
    comparison = compare_run_folders(trained)
    assert [key for key, _ in comparison.recipe] == ["train.seed"]
    texts = [text for _, text in comparison.verdicts]
    assert texts[0].startswith("Of these two trainings, seed-8 is better than seed-7: loss is 1.10 against 1.5")
    assert texts[1].startswith("Of these two trainings, no difference was shown between seed-9 and seed-7: loss is")
    note = "these are trainings of one recipe, so a difference is between adapters, not between recipes"
    assert note in comparison.notes and note in Page(runs_page(comparison)).text
    loss = [scores["against"] for scores in comparison.sections["all"].values() if scores["better"] != "neither"]
    adjusted = [item["adjusted"] for against in loss for item in against.values()]
    assert len(adjusted) == 4 and adjusted == pytest.approx(
        holm_adjust([item["p"] for against in loss for item in against.values()])
    )  # over both comparisons and both scores
    other = finish(make_recipe("rank", adapter__rank=64), tmp_path / "rank", gain=0.9)
    comparison = compare_run_folders([trained[0], other.path])
    assert comparison.verdicts[0][1].startswith("rank is better than seed-7")
    assert any(note.startswith("each run counts with one training") for note in comparison.notes)


def test_only_rows_with_the_same_words_are_compared(tmp_path: Path) -> None:
    rows = held_rows()
    rows["test"] = [row(0, "how about 0, 0?", "Another answer.", group="t0"), *rows["test"][1:]]
    rows["unseen"] = [*rows["unseen"][:-2], row(999, "only here?", group="t99")]
    comparison = two(tmp_path, rows=rows)
    assert comparison.rows == {
        "one": {"asked": 60, "common": 57, "elsewhere_not": 2, "other_words": 1},
        "two": {"asked": 59, "common": 57, "elsewhere_not": 1, "other_words": 1},
    }
    assert comparison.sections["all"]["loss"]["rows"] == 57
    words = "2 were not asked everywhere, 1 have another prompt or answer elsewhere"
    assert f"one: 57 of 60 rows are common to all runs, {words}" in comparison.lines()


def test_rows_that_change_sides_are_compared_in_all_alone(tmp_path: Path) -> None:
    rows = held_rows()
    comparison = two(tmp_path, rows={"test": rows["test"][:-3], "unseen": [*rows["test"][-3:], *rows["unseen"]]})
    counts = {part: scores["loss"]["rows"] for part, scores in comparison.sections.items()}
    assert counts == {"all": 60, "test": 45, "unseen": 12}


def test_nothing_in_common_is_refused(tmp_path: Path) -> None:
    rows = {"test": [row(n, f"else {n}?", group="t") for n in range(4)]}
    with pytest.raises(RunError, match=r"one: 60 rows, two: 4 rows: no row was asked in all of these runs\. Compare"):
        two(tmp_path, rows=rows)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"weights": "x" * 64}, "because the runs have different ones"),
        ({"base_text": "the base says no"}, "because 60 of its 60 replies differ"),
    ],
)
def test_the_base_has_a_column_only_when_it_is_one(tmp_path: Path, change: dict[str, str], why: str) -> None:
    assert two(tmp_path / "same").sections["all"]["loss"]["base"] == pytest.approx(2.0)
    comparison = two(tmp_path / "other", **change)
    assert comparison.sections["all"]["loss"]["base"] is None
    assert any(why in note for note in comparison.notes)
    assert "Base</th>" not in runs_page(comparison)


def test_losses_over_other_tokens_are_not_compared(tmp_path: Path) -> None:
    comparison = two(tmp_path, tokenizer="another")
    assert "loss" not in comparison.sections["all"] and "stops" in comparison.sections["all"]
    assert "left out, because the runs count tokens differently: loss" in comparison.notes
    assert comparison.verdicts == [
        ("not measured", "'loss' was not measured on the same rows, so there is no verdict.")
    ]
    assert "there is no verdict" in Page(runs_page(comparison)).text


def test_recipes_differ_in_what_was_set_defaults_included(tmp_path: Path) -> None:
    one = finish(make_recipe("one"), tmp_path / "one")
    two = finish(make_recipe("two", adapter__rank=64, data__format="auto"), tmp_path / "two")
    plain = yaml.safe_load((two / "recipe.yaml").read_text())
    del plain["train"]["epochs"]  # as a recipe of a version without this setting
    plain["data"]["source"] = yaml.safe_load((one / "recipe.yaml").read_text())["data"]["source"]
    two.write("recipe.yaml", yaml.safe_dump(plain))
    comparison = compare_run_folders([one.path, two.path])
    assert comparison.recipe == [
        ("data.format.columns.group", ["topic", "–"]),
        ("adapter.rank", ["16", "64"]),
        ("data.format", ["–", "auto"]),
    ]
    plain["adapter"]["rank"] = 8
    two.write("recipe.yaml", yaml.safe_dump(plain))
    assert (
        "two: the recipe was changed after training (adapter), so what differs may not be why"
        in compare_run_folders([one.path, two.path]).notes
    )


def test_scores_that_are_damaged_or_old_are_refused(tmp_path: Path) -> None:
    one, two = (finish(make_recipe(name), tmp_path / name) for name in ("one", "two"))
    half = finish(make_recipe("half"), tmp_path / "half", until="train")
    with pytest.raises(RunError, match=r"evaluate is not finished\. Run: tunesmith evaluate"):
        compare_run_folders([one.path, half.path])
    scores = (two / "scores.json").read_text()
    two.write("scores.json", scores.replace("0.", "1.", 1))
    with pytest.raises(RunError, match=r"scores\.json is missing or was changed"):
        compare_run_folders([one.path, two.path])
    two.write("scores.json", scores)
    (two / "data/test.jsonl").unlink()
    with pytest.raises(RunError, match=r"data/test\.jsonl is missing"):
        compare_run_folders([one.path, two.path])
    two.write("adapter/adapter_config.json", "{}")
    two.write_fingerprints("train", {}, ["adapter"])
    with pytest.raises(RunError, match="its scores are older than its adapter"):
        compare_run_folders([one.path, two.path])


def test_the_page_holds_text_as_text_and_fetches_nothing(tmp_path: Path) -> None:
    runs = [finish(make_recipe("one"), tmp_path / "one"), finish(make_recipe("two", about=EVIL), tmp_path / "two")]
    runs.append(finish(make_recipe("three", train__epochs=4), tmp_path / "<b onclick=x>three", gain=0.2))
    page = runs_page(compare_run_folders([run.path for run in runs]))
    read = Page(page)
    assert EVIL in read.text and "<b onclick=x>three" in read.text
    assert not {"script", "img", "b", "form", "a"} & {name for name, _ in read.tags}
    assert not [key for _, attributes in read.tags for key in attributes if key.startswith("on")]
    check_nothing_is_fetched(page)
    assert page.count("<svg") == 1 and "loss: a run minus the first" in read.text  # one plot: ids stay unique


def test_the_page_is_read_by_ear_by_keyboard_and_without_colour(tmp_path: Path) -> None:
    page = runs_page(two(tmp_path))
    read = Page(page)
    check_read_by_ear_and_keyboard(read)
    assert "better" in read.text and "no difference shown" in read.text and "lower is better" in read.text
    assert "−0.3" in read.text or "−0.4" in read.text


def test_one_group_has_no_interval(tmp_path: Path) -> None:
    rows = {"test": [row(n, f"how {n}?", group="t") for n in range(4)]}
    runs = [finish(make_recipe(name), tmp_path / name, rows=rows) for name in ("one", "two")]
    comparison = compare_run_folders([run.path for run in runs])
    assert "With 1 topic nothing can be shown" in comparison.verdicts[0][1]
    assert "<svg" not in runs_page(comparison)


def test_names_are_told_apart_and_fit_a_file_system(tmp_path: Path) -> None:
    runs = [finish(make_recipe("toy"), tmp_path / folder / "runs/toy") for folder in ("a", "b")]
    assert compare_run_folders([run.path for run in runs]).labels == ("a/runs/toy", "b/runs/toy")
    assert page_name(("a/toy", "b c")) == "compare-a_toy-b_c.html"
    long = [page_name((f"{'x' * 300}{n}", "y")) for n in range(2)]
    assert long[0] != long[1] and all(len(name) < 200 for name in long)


def test_what_may_be_chance_among_many_is_not_shown(tmp_path: Path) -> None:
    """Runs alike but for noise are corrected for one another."""
    runs = [finish(make_recipe(f"r{n}"), tmp_path / f"r{n}", gain=0.9) for n in range(1, 9)]
    comparison = compare_run_folders([run.path for run in runs])
    against = comparison.sections["all"]["loss"]["against"].values()
    raw, adjusted = zip(*sorted((difference["p"], difference["adjusted"]) for difference in against), strict=True)
    assert adjusted[0] == pytest.approx(min(1, 14 * raw[0]))  # 7 runs, and their `stops` too
    assert all(difference["verdict"] == "no change shown" for difference in against if difference["adjusted"] > 0.05)


def test_figures_that_are_folded_are_compared_folded(tmp_path: Path) -> None:
    metrics = {"evaluate__metrics": ["perplexity"], "evaluate__primary": "perplexity"}
    runs = [finish(make_recipe(name, **metrics), tmp_path / name, gain=gain) for name, gain in (("a", 0.5), ("b", 1.0))]
    comparison = compare_run_folders([run.path for run in runs]).sections["all"]["perplexity"]
    logs = [[row["tuned"]["perplexity"] for row in run.read_json("scores.json")["rows"]] for run in runs]
    figures = [float(np.exp(np.mean(values))) for values in logs]
    assert comparison["base"] == pytest.approx(np.exp(2.0))
    assert [*comparison["runs"].values()] == pytest.approx(figures)
    assert comparison["against"]["b"]["difference"] == pytest.approx(figures[1] - figures[0])
