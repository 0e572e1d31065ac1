"""What all pages share: folders, the chosen run, and the tabs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.runs.run import child_folder

if TYPE_CHECKING:
    from tunesmith.config.recipe import Recipe
    from tunesmith.runs.run import Run

TABS = ("start", "data", "recipe", "train", "compare", "write", "review", "export")
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # for events that return at once
SLOW: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private"}  # for events that take a while


@dataclass(frozen=True)
class State:
    """Folders and components that the pages share. It never changes: results live in folders, choices in the browser.

    `runs`, `audits` and `recipes` are folders; `home` is a temporary folder of this process (mode 0700). `run` is a
    gr.Dropdown with the name of the chosen run ('' or None if there is none): use it as an input, or listen to
    `run.change`. `tabs` is the gr.Tabs: return `gr.Tabs(selected="write")` to it to switch tabs (ids: TABS). `blocks`
    is the gr.Blocks, for `load`. `rows` is a gr.State with the path of rows to draft a recipe from, '' at first.
    """

    runs: Path
    audits: Path
    recipes: Path
    home: Path
    run: Any
    tabs: Any
    blocks: Any
    rows: Any

    @property
    def data(self) -> Path:
        """The folder of uploaded rows."""
        return self.audits.parent / "data"

    def folder(self, name: str | None) -> Path:
        """Returns the folder of the run `name`. Raises RunError if it is empty, not a valid name, or does not exist."""
        return child_folder(self.runs, name, "run")

    def open_run(self, name: str | None) -> tuple[Recipe, Run]:
        """Returns the recipe and the run called `name`. Raises RunError, RecipeError."""
        import tunesmith
        from tunesmith.config.recipe import read_recipe

        recipe = read_recipe(str(self.folder(name)))
        return recipe, tunesmith.open_run(recipe, self.runs, create=False)

    def has_runs(self) -> bool:
        """Returns whether there is a run, without reading any."""
        from tunesmith.commands.runs import run_folders

        return self.runs.is_dir() and any(run_folders(self.runs))

    def run_names(self) -> list[str]:
        """Returns the names of the runs, newest first."""
        from tunesmith.commands.runs import list_runs

        return [row.name for row in list_runs(self.runs)] if self.runs.is_dir() else []

    def select_run(self, name: str | None = None) -> Any:
        """Returns an update for `run` with the current choices; selects `name` if it exists, else the newest."""
        import gradio as gr

        names = self.run_names()
        return gr.Dropdown(choices=names, value=name if name in names else next(iter(names), None))
