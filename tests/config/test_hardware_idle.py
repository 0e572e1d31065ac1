"""How many cores are idle."""

from __future__ import annotations

import os

import psutil
import pytest

from tunesmith.hardware import core_count, idle_cores


@pytest.mark.parametrize(("busy", "share"), [(0.0, 1.0), (50.0, 0.5), (100.0, 0.0)])
def test_busy_cores_are_not_counted(monkeypatch: pytest.MonkeyPatch, busy: float, share: float) -> None:
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: busy)
    assert idle_cores() == max(1, min(core_count(), round((os.cpu_count() or 1) * share)))
