"""Tar members are found where tarfile finds them, whatever wrote the archive; damage is refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloading import tar

part = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=70).filter(
    lambda text: text not in (".", "..")
)
contents = st.dictionaries(st.lists(part, min_size=1, max_size=4).map("/".join), st.binary(max_size=1200), max_size=6)


def write(path: Path, files: dict[str, bytes], kind: int) -> None:
    with tarfile.open(path, "w", format=kind) as archive:
        archive.addfile(_folder("folder"))
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def _folder(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return info


@given(contents, st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
@settings(max_examples=60, deadline=None)
def test_agrees_with_tarfile(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], kind: int) -> None:
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    write(path, files, kind)
    raw = path.read_bytes()
    found = {member.name: raw[member.offset : member.offset + member.size] for member in tar.members(str(path))}
    assert found == {name.rstrip("/"): content for name, content in files.items()}


@given(contents)
@settings(max_examples=30, deadline=None)
def test_tarfile_reads_what_is_written_here(files: dict[str, bytes]) -> None:
    raw = b"".join(tar.member(name, content) for name, content in files.items()) + tar.END
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        read = {info.name: archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]
    assert read == files
    assert raw == b"".join(tar.member(name, content) for name, content in files.items()) + tar.END


def test_reads_a_tar_inside_a_tar(tmp_path: Path) -> None:
    write(tmp_path / "inner.tar", {"1.jpg": b"one", "2.jpg": b"two"}, tarfile.USTAR_FORMAT)
    write(tmp_path / "outer.tar", {"x.tar": b"", "n1.tar": (tmp_path / "inner.tar").read_bytes()}, tarfile.USTAR_FORMAT)
    raw = (tmp_path / "outer.tar").read_bytes()
    (outer,) = (member for member in tar.members(str(tmp_path / "outer.tar")) if member.name == "n1.tar")
    inner = tar.members(str(tmp_path / "outer.tar"), outer.offset, outer.offset + outer.size)
    assert [raw[m.offset : m.offset + m.size] for m in inner] == [b"one", b"two"]


def test_hard_links_give_their_targets_bytes_and_other_links_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("a/1.jpg")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"one"))
        for name, kind in (("b/1.jpg", tarfile.LNKTYPE), ("c/1.jpg", tarfile.SYMTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "a/1.jpg"
            archive.addfile(link)
    first, second = tar.members(str(path))
    assert (second.name, second.offset, second.size) == ("b/1.jpg", first.offset, 3)


def test_members_of_more_than_8_gib(tmp_path: Path) -> None:
    """GNU's base-256 size field; the file is sparse, so that nothing is written."""
    info = tarfile.TarInfo("big")
    info.size = 9 * 2**30
    with open(tmp_path / "a.tar", "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.seek(512 + info.size)
        file.write(tar.member("after", b"x") + tar.END)
    big, after = tar.members(str(tmp_path / "a.tar"))
    assert (big.size, after.name, after.offset) == (info.size, "after", 512 + info.size + 512)


@pytest.mark.parametrize(("cut", "message"), [(700, "cut off"), (1, "checksum")])
def test_damage_is_refused(tmp_path: Path, cut: int, message: str) -> None:
    path = tmp_path / "a.tar"
    raw = bytearray(tar.member("1.jpg", b"x" * 600) + tar.END)
    path.write_bytes(raw[:cut] if cut > 1 else b"y" + raw[1:])
    with pytest.raises(ValueError, match=message):
        list(tar.members(str(path)))
