"""Lines of the doctor: what is wrong is told, and no broken part hides another."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.config import resolve
from trainer.doctor.finding import Finding, examined, together, worst
from trainer.doctor.machine import open_files, shared_memory
from trainer.doctor.run_folder import run_folder, space
from trainer.doctor.software import agreement


def test_every_line_that_is_no_pass_has_a_remedy() -> None:
    with pytest.raises(ValueError, match="remedy"):
        Finding("a", "warn", "b")
    with pytest.raises(ValueError, match="remedy"):
        Finding("a", "pass", "b", "c")


def test_what_breaks_off_is_a_line() -> None:
    def look() -> Iterator[Finding]:
        yield Finding("first", "pass", "fine")
        raise OSError("the disk\nis gone")

    found = examined("second", look)
    assert [(line.subject, line.state) for line in found] == [("first", "pass"), ("second", "fail")]
    assert found[1].said == "the disk is gone"
    assert worst(found) == "fail"
    assert worst(found[:1]) == "pass"


def test_lines_of_one_machine_name_it() -> None:
    shared, odd = Finding("a", "pass", "same"), Finding("b", "fail", "odd", "mend")
    found = together([("n1", [shared]), ("n2", [shared, odd])])
    assert [line.said for line in found] == ["same", "n2: odd"]


@pytest.mark.parametrize(
    ("free", "state"), [(None, "fail"), (64 << 20, "fail"), (512 << 20, "warn"), (2 << 30, "pass")]
)
def test_shared_memory(free: int | None, state: str) -> None:
    assert shared_memory(free).state == state


@pytest.mark.parametrize(
    ("soft", "state"), [(100, "fail"), (1024, "warn"), (65_536, "pass"), (resource.RLIM_INFINITY, "pass")]
)
def test_open_files(soft: int, state: str) -> None:
    assert open_files(soft, 1 << 20).state == state


@pytest.mark.parametrize(
    ("its_cuda", "torch_cuda", "state"),
    [((13, 0), "13.0", "pass"), ((13, 0), "12.8", "pass"), ((12, 4), "13.0", "fail"), ((11, 8), "11.8", "fail")],
)
def test_driver_serves_torch_and_dali(its_cuda: tuple[int, int], torch_cuda: str, state: str) -> None:
    assert agreement("550.54", its_cuda, torch_cuda).state == state


def test_space_beside_what_a_run_keeps() -> None:
    config = resolve("demo", ["checkpoint.keep=3"])
    assert space(4 * 100, 100, config, 1e9).state == "pass"
    assert space(4 * 100 - 1, 100, config, 1e9).state == "fail"
    assert space(10**12, 10**11, config, 1e9).state == "warn"


def test_run_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    found = list(run_folder(tmp_path / "runs" / "demo", resolve("demo", []), 14))
    assert [line.state for line in found] == ["pass", "pass"]
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    assert next(run_folder(tmp_path / "file", resolve("demo", []), 14)).state == "fail"
