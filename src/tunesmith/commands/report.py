"""Writes the report page of an evaluated run."""

from __future__ import annotations

from pathlib import Path

from tunesmith.commands.shared import (
    Reporter,
    evaluation_rows,
    is_up_to_date,
    require_same_settings,
    silent,
)
from tunesmith.config.recipe import Recipe
from tunesmith.runs.run import Run, hash_file, hash_json

OPTIONAL = ("judge.json", "reviews.json", "export.json", "seeds.json")  # shown in the report if they exist


def report(recipe: Recipe, run: Run, log: Reporter = silent, *, command: str = "") -> Path:
    """Writes report.html: one offline page that shows whether fine-tuning helped."""
    require_same_settings(recipe, run)
    inputs = {
        "scores": run.fingerprint("evaluate"),
        "adapter": run.fingerprint("train"),
        "about": recipe.about,
        "metrics": hash_json(recipe.evaluate.model_dump(mode="json", include={"metrics"})),
        **{name: hash_file(run / name) if (run / name).is_file() else "" for name in OPTIONAL},
    }
    if is_up_to_date(run, "report", inputs, log):
        return run / "report.html"
    from tunesmith.reporting.run_report import report_page

    products = ("prepare", "train", "evaluate", "judge", "review", "seeds")
    records = {name: run.read_fingerprints(name) or {} for name in products}
    run.write(
        "report.html", report_page(recipe, run.path, evaluation_rows(recipe, run), command=command, records=records)
    )
    run.write_fingerprints("report", inputs, ["report.html"])
    log(f"report: {run / 'report.html'}")
    return run / "report.html"
