"""Tiny random models of families."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from families import make_family


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """family(name) -> the folder of a tiny random model, made once for a file's tests."""
    return functools.cache(lambda name: make_family(tmp_path_factory.mktemp(name), name))
