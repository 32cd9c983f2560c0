"""The golden checks pass here, notice what is wrong, and read every size from the folder."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from echat.infer.check import Check, close, relative, same
from echat.infer.verify import verify

ASSETS = Path(__file__).parent.parent / "assets"


@pytest.mark.parametrize(("folder", "count"), [("model", 526), ("token2wav", 72)])
def test_golden_folders_hold(folder: str, count: int) -> None:
    checks = verify([ASSETS / folder])
    assert [str(check) for check in checks if not check.ok] == []
    assert len(checks) == count


def test_the_bundled_folders_hold() -> None:
    checks = verify()
    assert [str(check) for check in checks if not check.ok] == []
    assert {check.name.split("/")[0] for check in checks} == {"model", "token2wav"}
    assert len(checks) == 248


def test_a_wrong_array_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tiny_echat.pt"):
        shutil.copyfile(ASSETS / "model" / name, folder / name)
    shutil.copytree(ASSETS / "model" / "llm", folder / "llm")
    arrays = dict(np.load(ASSETS / "model" / "encoder.npz"))
    arrays["single_a/proj"] = arrays["single_a/proj"] + 1e-3
    np.savez(folder / "encoder.npz", **arrays)
    failed = [check.name for check in verify([folder]) if not check.ok]
    assert failed == ["model/encoder/single_a/proj"]


def test_unknown_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a folder of golden numbers .* found neither"):
        verify([tmp_path])
    with pytest.raises(ValueError, match="no such folder"):
        verify([tmp_path / "absent"])


def test_comparisons() -> None:
    assert close("a", [1.0, 2.0], [1.0, 2.1], 0.2).ok
    assert not close("a", [1.0, 2.0], [1.0, 2.1], 0.05).ok
    assert close("a", [1.0, 9.0], [1.0, 2.1], 0.05, mask=[True, False]).ok
    assert not close("a", [1.0], [1.0, 2.0], 9.0).ok
    assert not close("a", [float("nan")], [1.0], 9.0).ok
    assert same("a", [1, 2], [1, 2]).ok and not same("a", [1, 2], [1, 3]).ok and not same("a", [1], [1, 2]).ok
    assert same("a", "x", "x").ok and not same("a", "x", "y").ok
    assert relative("a", 1.0005, 1.0, 1e-3).ok and not relative("a", 1.1, 1.0, 1e-3).ok
    assert relative("a", 0.0, 0.0, 1e-3).ok
    assert "FAIL" in str(Check("a", 1.0, 0.1)) and "ok" in str(Check("a", 0.0, 0.1))
