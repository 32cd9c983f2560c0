"""Safe extraction of an untrusted tar: only the wanted files, flat into one folder, nothing executed.

Contents are copied by us under their bare names, so no path, owner or mode of the archive reaches the disk.
An archive that holds a link, a device or a path that leads out of it is refused as a whole.
"""

import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

MAX_MEMBERS = 10_000
MAX_BYTES = 8 << 30  # of all wanted files together; the release has about 1.1 GB of them


def extract(archive: Path, is_wanted: Callable[[str], bool], folder: Path) -> list[str]:
    """Copy the wanted files (by bare name) into `folder` -> bare names of the files left in the archive."""
    skipped: list[str] = []
    try:
        with tarfile.open(archive) as tar:
            bytes_left = MAX_BYTES
            for member in _checked_members(tar, archive):
                name = PurePosixPath(member.name).name
                if not is_wanted(name):
                    skipped.append(name)
                    continue
                bytes_left -= member.size
                if bytes_left < 0:
                    raise _refused(archive, f", at most {MAX_BYTES} bytes", "more")
                if (folder / name).exists():
                    raise _refused(archive, ", each once", f"{name} twice")
                source = tar.extractfile(member)
                assert source is not None  # it is a regular file
                with source, open(folder / name, "wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
    except (tarfile.TarError, EOFError, OverflowError, zlib.error) as error:
        raise ValueError(
            f"{archive}: expected a whole tar archive, found {archive.stat().st_size} bytes that cannot be "
            f"read ({' '.join(str(error).split())}); download it again"
        ) from error
    return skipped


def _checked_members(tar: tarfile.TarFile, archive: Path) -> Iterator[tarfile.TarInfo]:
    """The regular files; anything that could reach out of the archive is an error."""
    for number, member in enumerate(tar):
        path = PurePosixPath(member.name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            raise _refused(archive, "", f"a path that leads out of it, {member.name!r}")
        if not (member.isreg() or member.isdir()):
            raise _refused(archive, "", f"a link or device, {member.name!r}")
        if number >= MAX_MEMBERS:
            raise _refused(archive, f", at most {MAX_MEMBERS}", "more")
        if member.isreg():
            yield member


def _refused(archive: Path, limit: str, found: str) -> ValueError:
    return ValueError(
        f"{archive}: expected an archive of plain files{limit}, found {found}; unpack by hand what you trust "
        "and give the folder"
    )
