"""Imports point one way: kernels <- dataloading <- trainer; deploy is a leaf that knows none of them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "kernels": {"kernels"},
    "dataloading": {"kernels", "dataloading"},
    "deploy": {"deploy"},
    "trainer": {"kernels", "dataloading", "deploy", "trainer"},
}
ONLY_IN = {
    "nvidia": r"dataloading/dali_\w+\.py",
    "triton": r"kernels/(\w+/fused|aot|backend)\.py",
    "ffcv": r"dataloading/ffcv_worker\.py",  # which another interpreter runs
}
SOURCES = sorted(path.relative_to(ROOT) for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_imports_point_one_way(source: Path) -> None:
    names = imported(ROOT / source)
    package = source.parts[0]
    wrong = (names & set(MAY_IMPORT)) - MAY_IMPORT[package]
    assert not wrong, f"{source} imports {wrong}; {package} may import {MAY_IMPORT[package]} (README: the house)"
    for library, where in ONLY_IN.items():
        assert library not in names or re.fullmatch(where, str(source)), f"{library} belongs in {where}, not {source}"
    if package == "deploy":
        assert "torch" not in names, f"{source}: deploy imports without torch"


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_files_stay_small(source: Path) -> None:
    """A longer file holds two nouns."""
    assert len((ROOT / source).read_text().splitlines()) <= 400
