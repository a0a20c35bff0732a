"""A page's figures are what its own commands print."""

from __future__ import annotations

import importlib.util
import re
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


def printed(bench: ModuleType) -> dict[str, str]:
    """What each command of the page's blocks printed."""
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    return {found["command"].strip(): found["output"] for found in bench.BLOCK.finditer(page)}


def test_the_page_has_its_figures_in_such_blocks(bench: ModuleType) -> None:
    commands = printed(bench)
    for name in ("loader", "index", "memory", "kernels", "step", "train", "inference"):
        assert any(f"earlybird benchmark {name}" in command for command in commands), name


def test_readmes_headline_figures_are_the_blocks(bench: ModuleType) -> None:
    """Each number of a row stands in what its command printed; `same` is the command of the row above."""
    _, _, after = (ROOT / "README.md").read_text().partition("## Headline figures\n")
    rows = re.findall(r"^\| (.*) \| (.*) \| (.*) \|$", after.partition("\n## ")[0], re.M)
    blocks, command, checked = printed(bench), "", 0
    for what, figure, said in rows:
        command = said.strip("`") if said != "same" else command
        if command.startswith("earlybird benchmark"):
            numbers = set(re.findall(r"\d[\d,.]*\d|\d", blocks[command]))
            missing = [number for number in re.findall(r"\d[\d,.]*\d|\d", figure) if number not in numbers]
            assert not missing, f"{what}: {missing} are not in what `{command}` printed (docs/benchmarks.md)"
            checked += 1
    assert checked >= 5
