"""An evaluation that stopped finds the replies that were written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.evaluation.reply_log import ReplyLog
from tunesmith.generation.text_model import Reply

FROM = {"adapter": "1", "data": "2"}
ONE, TWO = Reply('a line\u2028and "more"\nbelow', True, 7), Reply("日本", False, 3, "User: and")


def test_replies_are_found_again(tmp_path: Path) -> None:
    first = ReplyLog(tmp_path / "replies/base.part", FROM)
    assert first.replies == {}
    first.add("test", "1", ONE)
    first.add("unseen", "1", TWO)
    first.close()
    again = ReplyLog(tmp_path / "replies/base.part", FROM)
    assert again.replies == {("test", "1"): ONE, ("unseen", "1"): TWO}


def test_other_weights_or_rows_begin_anew(tmp_path: Path) -> None:
    first = ReplyLog(tmp_path / "base.part", FROM)
    first.add("test", "1", ONE)
    first.close()
    assert ReplyLog(tmp_path / "base.part", {**FROM, "adapter": "other"}).replies == {}
    assert ReplyLog(tmp_path / "base.part", FROM).replies == {}


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_torn_line_costs_one_reply(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "base.part"
    first = ReplyLog(path, FROM)
    first.add("test", "1", ONE)
    first.add("test", "2", TWO)
    first.close()
    path.write_bytes(path.read_bytes()[:-cut])
    again = ReplyLog(path, FROM)
    assert ("test", "1") in again.replies
    again.add("test", "3", ONE)
    again.close()
    logged = ReplyLog(path, FROM).replies
    assert logged["test", "1"] == logged["test", "3"] == ONE
    assert (("test", "2") in logged) == (cut == 1)
