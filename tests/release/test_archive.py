"""Nothing of a strange archive reaches the disk but the wanted files, flat and as plain files."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from echat.release import archive
from echat.release.archive import extract

Members = list[tuple[tarfile.TarInfo, bytes]]


def member(name: str, content: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = "") -> Members:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.size = len(content) if kind == tarfile.REGTYPE else 0
    info.mode = 0o6777
    return [(info, content)]


def written(path: Path, members: Members, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


def wanted(name: str) -> bool:
    return name.endswith(".pt")


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_wanted_files_come_out_flat(tmp_path: Path, mode: str) -> None:
    members = [
        *member("release", kind=tarfile.DIRTYPE),
        *member("release/deep/flow.pt", b"flow"),
        *member("./hift.pt", b"hift"),
        *member("release/llm.onnx"),
    ]
    out = tmp_path / "out"
    out.mkdir()
    assert extract(written(tmp_path / "a.tar", members, mode), wanted, out) == ["llm.onnx"]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        "flow.pt": b"flow",
        "hift.pt": b"hift",
    }
    assert not (out / "flow.pt").stat().st_mode & 0o6111  # modes of the archive mean nothing


@pytest.mark.parametrize(
    ("members", "says"),
    [
        (member("../evil.pt"), "a path that leads out of it, '../evil.pt'"),
        (member("/tmp/evil.pt"), "a path that leads out of it"),
        (member("a/../../evil.pt"), "a path that leads out of it"),
        (member("..\\evil.pt"), "a path that leads out of it"),
        (member("flow.pt", kind=tarfile.SYMTYPE, link="/etc/passwd"), "a link or device, 'flow.pt'"),
        (member("flow.pt", kind=tarfile.LNKTYPE, link="../x"), "a link or device"),
        (member("flow.pt", kind=tarfile.CHRTYPE), "a link or device"),
        (member("flow.pt", kind=tarfile.FIFOTYPE), "a link or device"),
        (member("unwanted", kind=tarfile.SYMTYPE, link="/"), "a link or device"),
        (member("a/flow.pt") + member("b/flow.pt"), "found flow.pt twice"),
        (member("flow.pt", b"x" * 101), "at most 100 bytes, found more"),
        (member("flow.pt", b"x" * 60) + member("hift.pt", b"x" * 60), "at most 100 bytes, found more"),
        (member("a") + member("b") + member("c") + member("d"), "at most 3, found more"),
    ],
)
def test_what_could_do_harm_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: Members, says: str
) -> None:
    monkeypatch.setattr(archive, "MAX_BYTES", 100)
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    out = tmp_path / "home" / "out"
    out.mkdir(parents=True)
    with pytest.raises(ValueError, match="a.tar: expected an archive of plain files") as error:
        extract(written(tmp_path / "a.tar", members), wanted, out)
    assert says in str(error.value)
    assert all(path.is_file() and not path.is_symlink() for path in out.iterdir())
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["out"]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def _other(path: Path) -> None:
    path.write_bytes(b"no archive at all")


def _cut_gzip(path: Path) -> None:
    written(path, member("flow.pt", bytes(range(256)) * 40), "w:gz")
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize("spoil", [_cut, _other, _cut_gzip])
def test_a_broken_archive_is_one_line(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = written(tmp_path / "a.tar", member("flow.pt", b"x" * 5000))
    spoil(path)
    with pytest.raises(ValueError, match="a.tar: expected a whole tar archive, found .* download it again"):
        extract(path, wanted, tmp_path)
