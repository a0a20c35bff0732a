"""README and the pages in docs/ name only what is there: files, headings, commands, options, settings, rooms."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from trainer.cli import app
from trainer.recipes.catalogue import recipe
from trainer.settings import setting_names

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = ("kernels", "dataloading", "trainer", "deploy")
FENCED = re.compile(r"^```.*?^```$", re.M | re.S)
# A line that begins with earlybird, behind a prompt or variables; or any that runs the module.
CALLED = re.compile(r"(?:^\s*(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?earlybird|-m (?:-- )?trainer)((?: .*)?)$")


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^ {4,}.*$", "", FENCED.sub("", page.read_text()), flags=re.M)


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.M):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(next(name for name in (slug, *(f"{slug}-{n}" for n in range(1, 99))) if name not in found))
    return found


def calls(page: Path) -> Iterator[list[str]]:
    """The words after `earlybird` of every call in code, up to a pipe or a comment; continued lines are one."""
    text = page.read_text()
    spans = re.findall(r"`([^`\n]+)`", prose(page))
    for line in (*re.sub(r"\\\n| *\n {8,}(?=\[)", " ", text).splitlines(), *spans):
        for said in CALLED.findall(re.sub(r" # .*| +\| .*|;.*", "", line)):
            yield re.sub(r"[][()]", " ", said).split()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target}"
        assert file.is_relative_to(ROOT), f"{page.name}: {target} leaves the repository"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page: Path) -> None:
    """A word in capitals stands for what a reader puts there: it ends the commands of a line."""
    settings, root = setting_names(recipe("demo")), typer.main.get_command(app)
    for words in calls(page):
        command, rest = root, list(words)
        while (known := getattr(command, "commands", None)) and rest and not rest[0].isupper() and rest[0][0] != "-":
            assert rest[0] in known, f"{page.name}: earlybird {' '.join(words)}"
            command = known[rest.pop(0)]
        options = {"--help"}.union(*([*param.opts, *param.secondary_opts] for param in command.params))
        for place, word in enumerate(rest):
            after = "".join(rest[place + 1 : place + 2])
            if word.startswith("--"):
                assert word.partition("=")[0] in options, f"{page.name}: {word} of earlybird {' '.join(words)}"
            if word == "--vary":
                names = after.strip("\"'").partition("=")[0].split(":")
                assert set(names) <= set(settings), f"{page.name}: --vary {after}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_exist(page: Path) -> None:
    """Behind --set, and in code of its own."""
    settings = setting_names(recipe("demo"))
    groups = {name.partition(".")[0] for name in settings}
    text = page.read_text()
    named = set(re.findall(r"--set ([a-z_]+\.[a-z_]+)=", text)) - {"group.field"}
    named |= {
        name
        for name in re.findall(r"`([a-z_]+\.(?!(?:py|json)`)[a-z_]+)(?:=[^`]*)?`", text)
        if name.partition(".")[0] in groups
    }
    assert named <= set(settings), page.name


def test_calls_are_found() -> None:
    """What the two tests above look at is there."""
    found = [" ".join(words) for page in PAGES for words in calls(page)]
    for begins in ("prepare ", "benchmark step ", "sweep demo --vary", "train RECIPE --run-folder", "exporter"):
        assert any(begins in one for one in found), begins
    assert len(found) > 100


def test_sections_of_the_method_that_code_names() -> None:
    numbers = set(re.findall(r"^## (\d+)\. ", (ROOT / "docs" / "method.md").read_text(), re.M))
    for file in (file for package in (*PACKAGES, "tests") for file in (ROOT / package).rglob("*.py")):
        for first, second in re.findall(r"METHOD(?:\.md)? sections? (\d+)(?: and (\d+))?", file.read_text()):
            assert {first, second} - {""} <= numbers, file


def test_the_picture_of_the_house_has_every_room() -> None:
    readme = (ROOT / "README.md").read_text()
    for package in ("dataloading", "trainer", "deploy"):
        for room in {file.parent.relative_to(ROOT) for file in (ROOT / package).rglob("*.py")}:
            assert f"{room}/" in readme, f"README, The house: {room} is missing"
