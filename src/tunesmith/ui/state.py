"""What every page is given: where things lie, which run is chosen, how to get to another tab."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.runs.run import inside

if TYPE_CHECKING:
    from tunesmith.config.recipe import Recipe
    from tunesmith.runs.run import Run

TABS = ("start", "data", "recipe", "train", "compare", "write", "review", "export")
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # for an event that answers at once
SLOW: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private"}  # for one that takes a while


@dataclass(frozen=True)
class State:
    """What pages share. Nothing in it changes: what was done lies in folders, what is chosen in the browser's page.

    `runs`, `audits` and `recipes` are the folders of runs, of audits and of recipes that are drafted or saved here;
    `home` is a folder of this process alone (0700), gone when it ends. `run` is a gr.Dropdown whose value is the name
    of the chosen run ('' or None: none is there): take it as an input, or listen to `run.change`. `tabs` is the
    gr.Tabs: return `gr.Tabs(selected="write")` to it to go there (ids: TABS). `blocks` is the gr.Blocks, for `load`.
    `rows` is a gr.State: the path of rows that a recipe shall be drafted from, '' at first.
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
        """The folder that uploaded rows are kept in."""
        return self.audits.parent / "data"

    def folder(self, name: str | None) -> Path:
        """The folder of the run `name`. Raises RunError where none is chosen, it is no name, or it is not there."""
        return inside(self.runs, name, "run")

    def opened(self, name: str | None) -> tuple[Recipe, Run]:
        """Recipe and run of the run `name`. Raises RunError, RecipeError."""
        import tunesmith
        from tunesmith.config.recipe import read_recipe

        recipe = read_recipe(str(self.folder(name)))
        return recipe, tunesmith.open_run(recipe, self.runs, create=False)

    def names(self) -> list[str]:
        """The names of the runs, the newest first."""
        from tunesmith.commands.runs import list_runs

        return [row.name for row in list_runs(self.runs)] if self.runs.is_dir() else []

    def chosen(self, name: str | None = None) -> Any:
        """An update for `run`: what there is to choose now, `name` chosen if it is there, else the newest."""
        import gradio as gr

        names = self.names()
        return gr.Dropdown(choices=names, value=name if name in names else next(iter(names), None))


def present(folder: Path, names: Sequence[str]) -> list[str]:
    """Those of `names` that are files in `folder`."""
    return [name for name in names if (folder / name).is_file()]
