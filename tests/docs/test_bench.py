"""A page's figures are what its own commands print."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench", ROOT / "docs" / "bench.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGE = """Text
```bench
$ echo one; \\
  echo two
old
```
between
```bench
$ pwd
```
```sh
$ echo left alone
old
```
```bench
$ echo half; false
kept
```
"""


def test_outputs_are_replaced_and_all_else_stays(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EARLYBIRD_DATA", str(tmp_path))
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert bench.rerun(page, listing=True) == 0
    assert page.read_text() == PAGE
    assert bench.rerun(page, only="pwd") == 0
    after_one = PAGE.replace("$ pwd\n", f"$ pwd\n{tmp_path}\n")
    assert page.read_text() == after_one
    assert bench.rerun(page) == 1, "the command that fails"
    assert page.read_text() == after_one.replace("echo two\nold\n", "echo two\none\ntwo\n")
    assert "exit code 1" in capfd.readouterr().err


def test_a_missing_folder_is_named(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARLYBIRD_DATA", str(tmp_path / "none"))
    (tmp_path / "page.md").write_text(PAGE)
    with pytest.raises(SystemExit, match="there is no folder"):
        bench.rerun(tmp_path / "page.md")


def test_readme_has_its_figures_in_such_blocks(bench: ModuleType) -> None:
    commands = [found["command"] for found in bench.BLOCK.finditer((ROOT / "README.md").read_text())]
    for name in ("loader", "index", "memory", "kernels", "step", "train", "inference"):
        assert any(f"earlybird benchmark {name}" in command for command in commands), name
