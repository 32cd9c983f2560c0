"""A model by name: fetched from a hub on this machine, converted where it is foreign, then kept."""

import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tests.release.test_hub import LLM, TAR, WEIGHTS, Hub

from echat.release import hub_models
from echat.verify.comparison import Backend
from echat.verify.golden_folder import GoldenFolder, cosyvoice_yaml
from echat.verify.verification import bundled_folders

SPEECH, DIALOGUE = (
    next(path for path in bundled_folders() if path.name == name) for name in ("token2wav", "model")
)
NOWHERE = "http://127.0.0.1:9"
CODE = """
import sys
from echat.release import conversion
conversion.stated_heads = lambda weights: {"encoder_heads": 4}  # the released ones have twenty
from echat.cli import main
main()
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub({}, set())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.wav"
    soundfile.write(path, 0.3 * np.sin(np.arange(8000) / 10), 16_000)
    return path


def understand(cache: Path, url: str, model: str, clip: Path) -> tuple[int, str, str]:
    """`echat understand -m MODEL` in a process of its own: the hub library reads its settings once."""
    settings = {"HF_HOME": str(cache / "hub"), "XDG_CACHE_HOME": str(cache), "HF_ENDPOINT": url}
    settings |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, "understand", str(clip), "-m", model, "--task", "emotion", "--json"],
        env=os.environ | settings,
        text=True,
        capture_output=True,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_a_published_folder_is_fetched_once_and_nothing_else_of_it(hub, random_model, clip, tmp_path):
    names = [path.relative_to(random_model).as_posix() for path in random_model.rglob("*") if path.is_file()]
    hub.files = {f"someone/model/{name}": (random_model / name).read_bytes() for name in names}
    hub.files |= {
        f"someone/model/{name}": b"?" for name in ("training.pt", "tokenizer/../../out", "x/config.yaml")
    }
    fetched = understand(tmp_path, hub.url, "someone/model", clip)
    assert fetched[0] == 0, fetched[2]
    code, direct, err = understand(tmp_path, NOWHERE, str(random_model), clip)
    assert code == 0 and fetched[1] == direct, err
    brought = {path.name for path in (tmp_path / "hub").rglob("snapshots/**/*") if not path.is_dir()}
    assert brought == {Path(name).name for name in names}
    assert understand(tmp_path, NOWHERE, "someone/model", clip)[:2] == fetched[:2]  # without a network


@pytest.mark.slow
def test_released_weights_are_converted_once(hub, clip, tmp_path):
    home = tmp_path / "release"
    home.mkdir()
    for ours, theirs in (("tiny_flow.pt", "flow.pt"), ("tiny_hift.pt", "hift.pt")):
        (home / theirs).write_bytes((SPEECH / ours).read_bytes())
    (home / "cosyvoice.yaml").write_text(cosyvoice_yaml(GoldenFolder(SPEECH, Backend()).config))
    with tarfile.open(tmp_path / "release.tar", "w") as tar:
        tar.add(home, "CosyVoice-300M-25Hz")
    hub.files = {
        WEIGHTS: (DIALOGUE / "tiny_echat.pt").read_bytes(),
        TAR: (tmp_path / "release.tar").read_bytes(),
    }
    hub.large = {WEIGHTS, TAR}
    hub.files |= {f"{LLM}/{path.name}": path.read_bytes() for path in (DIALOGUE / "llm").iterdir()}
    hub.files.setdefault(f"{LLM}/tokenizer_config.json", b"{}")

    code, out, err = understand(tmp_path, hub.url, "osum-echat", clip)
    folder = tmp_path / "echat" / "models" / "osum-echat-language"
    assert code == 0 and err == f"converting language_think_final.pt into {folder}, once\n", err
    assert json.loads(out)["task"] == "emotion"
    assert {path.name for path in folder.iterdir()} >= {"config.yaml", "model.safetensors", "token2wav"}
    for name in ("osum-echat", "osum-echat-language", "ASLP-lab/OSUM-EChat"):  # without a network
        assert understand(tmp_path, NOWHERE, name, clip) == (0, out, "")


@pytest.mark.parametrize("name", ["osum-echat-label", "someone/model"])
@pytest.mark.slow
def test_without_a_network_it_is_one_line(name, clip, tmp_path):
    code, out, err = understand(tmp_path, NOWHERE, name, clip)
    assert (code, out) == (2, "") and err.startswith(f"error: model '{name}': ") and err.count("\n") == 1
    assert "no connection to" in err and "run this online once" in err
    assert not list(tmp_path.rglob("config.yaml"))


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("osum-echat", True),
        ("owner/name-1.5", True),
        ("echat-tny", False),
        ("a/b/c", False),
        ("./a/b", False),
        ("../b", False),
        ("/a/b", False),
        ("a/..", False),
    ],
)
def test_names_of_the_hub_are_no_paths(name, is_one):
    assert hub_models.is_hub_name(name) == is_one
