"""A recipe drafted from a table: what its rows are, which model fits the machine, every choice with its reason."""

from tunesmith.draft.survey import spread
from tunesmith.draft.write import draft, written_source

__all__ = ["draft", "spread", "written_source"]
