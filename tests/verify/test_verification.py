"""The golden checks pass here, fail for wrong values, and read every size from the folder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from echat.cli import app
from echat.devices import full_float32
from echat.verify.comparison import Backend, Check, Tolerance, check_close, check_equal, check_relative
from echat.verify.verification import bundled_folders, verify

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


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "kind"), [("fp32", "model"), ("bf16", "model"), ("fp32", "token2wav")])
def test_they_hold_through_a_converted_folder(precision: str, kind: str) -> None:
    folder = next(path for path in bundled_folders() if path.name == kind)
    backend = Backend.of("cpu", precision)
    direct, converted = verify([folder], backend), verify([folder], backend, converted=True)
    assert [str(check) for check in converted] == [str(check) for check in direct]  # the same numbers
    assert all(check.ok for check in converted)


def part_of(kind: str, target: Path, *names: str) -> Path:
    """A folder with the networks of a golden folder and only the named recordings."""
    target.mkdir()
    for path in (ASSETS / kind).iterdir():
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        elif path.name in ("config.json", "encoder.npz", "hift.npz", *names) or path.suffix == ".pt":
            shutil.copyfile(path, target / path.name)
    return target


@pytest.mark.parametrize(
    ("kind", "file", "array", "shift", "check"),
    [
        ("model", "frontend.npz", "wave_b_logmel", 1e-2, "frontend/wave_b_logmel"),
        ("model", "encoder.npz", "single_a/proj", 1e-3, "encoder/single_a/proj"),
        ("model", "encoder.npz", "batch_even/adapter_lengths", 1, "encoder/batch_even/adapter_lengths"),
        ("token2wav", "estimator.npz", "odd.out", 1e-3, "estimator/odd.out"),
        ("token2wav", "hift.npz", "conv_post_out", 1e-2, "hift/conv_post_out"),
    ],
)
def test_one_wrong_array_fails_one_check(
    kind: str, file: str, array: str, shift: float, check: str, tmp_path: Path
) -> None:
    folder = part_of(kind, tmp_path / "else", file)
    arrays = dict(np.load(folder / file))
    arrays[array] = arrays[array] + np.asarray(shift, arrays[array].dtype)
    np.savez(folder / file, **arrays)
    result = CliRunner().invoke(app, ["verify", str(folder)])
    failed = [line.split()[0] for line in result.stdout.splitlines() if line.endswith("FAIL")]
    assert failed == [f"else/{check}"]
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1].endswith(" passed, 1 failed")


def test_waveforms_cases_and_weights_may_have_any_name(tmp_path: Path) -> None:
    names = ("frontend.npz", "encoder.npz", "generate.json", "generate_logits.npz")
    folder = part_of("model", tmp_path / "renamed", *names)
    (folder / "tiny_echat.pt").rename(folder / "other.pt")
    for name, old, new in (
        ("frontend.npz", "wave_a", "kettle"),
        ("encoder.npz", "single", "lonely"),
        ("generate_logits.npz", "tts_b", "spoken"),
    ):
        arrays = {key.replace(old, new): value for key, value in np.load(folder / name).items()}
        np.savez(folder / name, **arrays)
    runs = json.loads((folder / "generate.json").read_text(encoding="utf-8"))
    kept = {"spoken": runs["tts_b"], "s2t_chat_a": runs["s2t_chat_a"]}
    (folder / "generate.json").write_text(json.dumps(kept).replace("wave_a", "kettle"), encoding="utf-8")
    checks = verify([folder])
    assert [str(check) for check in checks if not check.ok] == []
    assert {check.name.split("/")[2] for check in checks if "/generate/" in check.name} == set(kept)
    assert "renamed/frontend/kettle_logmel" in {check.name for check in checks}


def test_bfloat16_holds_and_names_what_stayed_in_float32(tmp_path: Path) -> None:
    backend = Backend.of("cpu", "bf16")
    model = part_of(
        "model", tmp_path / "model", "frontend.npz", "encoder.npz", "generate.json", "generate_logits.npz"
    )
    sound = part_of("token2wav", tmp_path / "sound", "estimator.npz", "token2wav.npz")
    checks = {check.name: check for check in verify([model, sound], backend)}
    assert [str(check) for check in checks.values() if not check.ok] == []
    rounded = checks["model/encoder/single_a/proj"]
    assert 1e-4 < rounded.error < rounded.tolerance  # it was computed in bfloat16
    assert checks["sound/token2wav/mel"].error > 1e-4
    assert {"model/frontend/wave_a_logmel (fp32)", "sound/token2wav/wav_speed0 (fp32)"} <= checks.keys()
    assert any(name.startswith("model/generate/s2s_b/output_ids (24 of 25: margin > ") for name in checks)


def test_bfloat16_notices_wrong_ids_and_arrays(tmp_path: Path) -> None:
    names = ("encoder.npz", "frontend.npz", "generate.json", "generate_logits.npz")
    folder = part_of("model", tmp_path / "model", *names)
    arrays = dict(np.load(folder / "encoder.npz"))
    arrays["single_a/proj"] = arrays["single_a/proj"] * 1.1
    np.savez(folder / "encoder.npz", **arrays)
    runs = {"tts_a": json.loads((folder / "generate.json").read_text(encoding="utf-8"))["tts_a"]}
    logits = dict(np.load(folder / "generate_logits.npz"))
    best, second = logits["tts_a/top_ids"][-2, :2].tolist()
    logits["tts_a/top_ids"][-2, :2] = second, best  # as if another id had been certain
    runs["tts_a"]["output_ids"][-2] = second
    np.savez(folder / "generate_logits.npz", **logits)
    (folder / "generate.json").write_text(json.dumps(runs), encoding="utf-8")
    failed = [
        check.name.split(" ")[0] for check in verify([folder], Backend.of("cpu", "bf16")) if not check.ok
    ]
    assert {"model/encoder/single_a/proj", "model/generate/tts_a/output_ids"} <= set(failed)
    assert not any("/single_b/" in name for name in failed)


def test_the_first_line_names_the_device() -> None:
    said = str(Backend.of("cpu", "bf16"))
    assert said.startswith("device cpu (") and "precision bf16" in said and torch.__version__ in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--device", "cuda:99"], "--device: expected auto or cpu"),
        (["--device", "toaster"], "found 'toaster'"),
        (["--device", "meta"], "found 'meta'"),
        (["--precision", "fp8"], "--precision: expected fp32 or bf16, found 'fp8'"),
    ],
)
def test_absent_devices_are_refused_in_one_line(options: list[str], says: str) -> None:
    result = CliRunner().invoke(app, ["verify", *options])
    assert result.exit_code == 2 and result.stdout == ""
    assert says in result.stderr and result.stderr.count("\n") == 1


def test_a_backend_converts_inputs_and_scales_tolerances() -> None:
    backend = Backend.of("cpu", "bf16")
    assert backend.to_device(torch.zeros(2)).dtype == torch.bfloat16
    assert backend.to_device(torch.tensor([1])).dtype == torch.long
    tolerance = Tolerance(1e-5, 0.01)
    assert backend.check_close("a", [10.05, 1.0], [10.0, 1.0], tolerance).ok
    assert (
        backend.check_close("a", [10.05, 1.0], [10.0, 1.0], tolerance, mask=[False, True]).tolerance == 0.01
    )
    assert not backend.check_close("a", [10.0, 1.2], [10.0, 1.0], tolerance).ok
    assert not Backend().check_close("a", [10.05], [10.0], tolerance).ok
    assert Backend(torch.device("cuda"), "bf16").on_cpu.remark == " (cpu fp32)"


def test_tf32_is_off_inside_and_as_before_after() -> None:
    matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_tf32
    matmul.allow_tf32 = True
    try:
        with full_float32():
            assert not matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
        assert matmul.allow_tf32
    finally:
        matmul.allow_tf32 = before


def test_the_error_of_an_incomplete_folder_names_the_file(tmp_path: Path) -> None:
    folder = part_of("model", tmp_path / "model", "encoder.npz")
    (folder / "tiny_echat.pt").unlink()
    with pytest.raises(ValueError, match=r"expected one file \*\.pt, found none"):
        verify([folder])


def test_unknown_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a folder of golden numbers .* found neither"):
        verify([tmp_path])
    with pytest.raises(ValueError, match="no such folder"):
        verify([tmp_path / "absent"])


def test_comparisons() -> None:
    assert check_close("a", [1.0, 2.0], [1.0, 2.1], 0.2).ok
    assert not check_close("a", [1.0, 2.0], [1.0, 2.1], 0.05).ok
    assert check_close("a", [1.0, 9.0], [1.0, 2.1], 0.05, mask=[True, False]).ok
    assert not check_close("a", [1.0], [1.0, 2.0], 9.0).ok
    assert not check_close("a", [float("nan")], [1.0], 9.0).ok
    assert (
        check_equal("a", [1, 2], [1, 2]).ok
        and not check_equal("a", [1, 2], [1, 3]).ok
        and not check_equal("a", [1], [1, 2]).ok
    )
    assert check_equal("a", "x", "x").ok and not check_equal("a", "x", "y").ok
    assert check_relative("a", 1.0005, 1.0, 1e-3).ok and not check_relative("a", 1.1, 1.0, 1e-3).ok
    assert check_relative("a", 0.0, 0.0, 1e-3).ok
    assert "FAIL" in str(Check("a", 1.0, 0.1)) and "ok" in str(Check("a", 0.0, 0.1))
