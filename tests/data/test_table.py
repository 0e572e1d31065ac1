"""The table on disk gives back the very conversations that were written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handmade import many, row
from tunesmith.data.conversation import Conversation, Origin, Turn
from tunesmith.data.table import Table

BATCH = 1000
ANY = st.text(st.characters(), max_size=12)  # lone surrogates too
VALUES = st.one_of(ANY, st.integers(), st.booleans(), st.floats(allow_nan=False))
CONVERSATIONS = st.builds(
    Conversation,
    id=ANY,
    turns=st.lists(
        st.builds(Turn, role=st.sampled_from(["system", "user", "assistant"]), text=ANY), min_size=1, max_size=4
    ).map(tuple),
    origin=st.builds(Origin, file=ANY, line=st.integers(0, 1 << 40), unit=st.sampled_from(["line", "row"])),
    group=ANY,
    fields=st.dictionaries(ANY, VALUES, max_size=3),
)


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(CONVERSATIONS, max_size=6))
def test_what_is_written_comes_back(tmp_path: Path, rows: list[Conversation]) -> None:
    table = Table.write(tmp_path / "rows.table", rows)
    assert list(table) == rows
    assert [table[place] for place in range(len(table))] == rows
    assert list(Table(tmp_path / "rows.table")) == rows


def test_half_a_surrogate_pair_comes_back(tmp_path: Path) -> None:
    rows = [row(1, "half \ud83d", "and \udc00 half", group="\udfff", x="\ud800")]
    assert list(Table.write(tmp_path / "rows.table", rows)) == rows


def test_slices_and_selections(tmp_path: Path) -> None:
    rows = many(5, BATCH // 2 + 7)
    assert len(rows) > 2 * BATCH
    table = Table.write(tmp_path / "folder" / "rows.table", iter(rows))
    assert len(table) == len(rows)
    for cut in (slice(3, 9), slice(BATCH - 2, BATCH + 2), slice(None, None, 400), slice(-3, None), slice(5, 2)):
        assert list(table[cut]) == rows[cut]
        assert isinstance(table[cut], Table)
    places = [BATCH, 0, BATCH - 1, 7, 7]
    chosen = table.take(places)
    assert list(chosen) == [rows[place] for place in places]
    assert list(chosen[1:4]) == [rows[place] for place in places[1:4]]
    assert list(chosen.take([4, 0])) == [rows[7], rows[BATCH]]
    assert chosen.path == table.path  # a selection shares the file
    assert table[-1] == rows[-1]
    assert list(reversed(table[:3])) == rows[2::-1]
    with pytest.raises(IndexError):
        _ = table[len(rows)]
    assert list(Table(table.path, chosen.indices)) == list(chosen)  # as another process opens it


def test_an_empty_table(tmp_path: Path) -> None:
    table = Table.write(tmp_path / "rows.table", [])
    assert (len(table), list(table), list(table[:5]), list(table.take([]))) == (0, [], [], [])
    (tmp_path / "nothing").touch()
    assert list(Table(tmp_path / "nothing")) == []


def test_rows_are_written_as_they_come(tmp_path: Path) -> None:
    """One batch is held at a time: the first lies on disk before the last is asked for."""
    path = tmp_path / "rows.table"
    sizes = []

    def given_rows() -> Iterator[Conversation]:
        for each in many(1, 3 * BATCH):
            sizes.append(path.stat().st_size)
            yield each

    table = Table.write(path, given_rows())
    assert len(table) == 3 * BATCH
    assert sizes[BATCH - 1] < sizes[-1]


def test_a_writer_that_fails_raises_its_error(tmp_path: Path) -> None:
    def broken() -> Iterator[Conversation]:
        yield row(1, "q")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        Table.write(tmp_path / "rows.table", broken())
