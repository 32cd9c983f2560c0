"""Loading of an engine: from a built-in name, a model folder, the hub, or a released `.pt` file."""

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from echat.checkpoint import CheckpointError
from echat.dialogue.tasks import Profile
from echat.model.model_folder import check_tokenizer, load_model, stored_dtype
from echat.model.text_tokenizer import TextTokenizer
from echat.model_files import CONFIG_FILE, TOKEN2WAV_FOLDER
from echat.release import osum_weights

if TYPE_CHECKING:
    from echat.infer.engine import Engine

MODELS_FOLDER = "models"  # of the package: the built-in models


def load(name_or_path: str | Path, device: str = "cpu", dtype: torch.dtype | None = None) -> "Engine":
    """An engine from a built-in name (`echat-tiny`), a model folder, a released `.pt` with its Qwen2
    folder, `osum-echat` (fetched and converted once), or `OWNER/NAME` on the hub.

    Weights are memory-mapped; those stored in `dtype` are used where they lie, others are cast. Without
    `dtype` it computes in bfloat16 where the weights are stored so or the device is no CPU, else in float32.
    """
    from echat.devices import present_device

    device = str(present_device(device))
    path = find_model(name_or_path)
    if (path / CONFIG_FILE).is_file():
        return _load_folder(path, device, dtype)
    return _load_released(path, device, dtype)


def built_in_models() -> dict[str, Path]:
    """Name -> folder of the models inside the package."""
    folders = Path(str(files("echat"))) / MODELS_FOLDER
    return {path.parent.name: path.parent for path in sorted(folders.glob(f"*/{CONFIG_FILE}"))}


def find_model(name_or_path: str | Path) -> Path:
    """The folder or `.pt` file of a path, a built-in name, or a name on the hub (fetched when it is new)."""
    path = Path(name_or_path)
    if path.exists():
        return path
    built_in = built_in_models()
    if str(name_or_path) in built_in:
        return built_in[str(name_or_path)]
    from echat.release.hub_models import fetch_model, is_hub_name

    if not is_hub_name(str(name_or_path)):
        raise CheckpointError(
            f"model {str(name_or_path)!r}: expected a model folder, a released .pt file, a built-in name "
            f"({', '.join(built_in) or 'none is installed'}), osum-echat or OWNER/NAME on the hub, found "
            "nothing there; check the path"
        )
    try:
        return fetch_model(str(name_or_path))
    except ValueError as error:
        raise CheckpointError(f"model {str(name_or_path)!r}: no folder of that name here; {error}") from error


def _load_folder(folder: Path, device: str, dtype: torch.dtype | None) -> "Engine":
    from echat.infer.engine import Engine

    loaded = load_model(folder, dtype or _default_dtype(stored_dtype(folder), device))
    token2wav = None
    if (folder / TOKEN2WAV_FOLDER).is_dir():
        from echat.token2wav.token2wav import Token2Wav

        token2wav = Token2Wav.from_folder(folder / TOKEN2WAV_FOLDER).requires_grad_(False).to(device)
    return Engine(
        loaded.model.to(device).requires_grad_(False),
        loaded.tokenizer,
        loaded.vocabulary,
        loaded.config.profile,
        token2wav,
        name=loaded.config.name or folder.name,
        home=folder,
        has_ctc=loaded.config.ctc,
        capabilities=loaded.config.learned,
    )


def _default_dtype(stored: torch.dtype, device: str) -> torch.dtype:
    """The precision to compute in when none is asked for."""
    is_cpu = torch.device(device).type == "cpu"
    return torch.float32 if is_cpu and stored != torch.bfloat16 else torch.bfloat16


def _load_released(path: Path, device: str, dtype: torch.dtype | None) -> "Engine":
    """A released `.pt`, or the folder with one; the Qwen2 folder (config.json, tokenizer.json) lies beside
    or in `llm`."""
    weights = sorted(path.glob("*.pt")) if path.is_dir() else [path]
    if len(weights) != 1 or weights[0].suffix != ".pt":
        raise CheckpointError(
            f"{path}: expected a model folder with {CONFIG_FILE}, or one released .pt file beside its Qwen2 "
            f"folder, found {len(weights)} .pt files; check the path"
        )
    llm_folder = osum_weights.llm_folder_beside(weights[0])
    dtype = dtype or _default_dtype(osum_weights.stored_dtype(weights[0]), device)
    engine = load_released(weights[0], llm_folder, dtype=dtype, **osum_weights.stated_heads(weights[0]))
    engine.model.to(device).requires_grad_(False)
    return engine


def load_released(
    weights: Path,
    llm_folder: Path,
    profile: Profile = "osum",
    encoder_heads: int | None = None,
    adapter_heads: int | None = None,
    dtype: torch.dtype | None = torch.float32,
) -> "Engine":
    """A released `.pt` and its Qwen2 folder. Heads are needed only at sizes other than the released ones."""
    from echat.infer.engine import Engine

    model = osum_weights.load_osum(weights, llm_folder, encoder_heads, adapter_heads, dtype)
    tokenizer = TextTokenizer.from_folder(llm_folder)
    config = model.config
    check_tokenizer(tokenizer, config, llm_folder)
    vocabulary = tokenizer.vocabulary(config.speech_codec_size, config.llm.vocab_size)
    return Engine(model.eval(), tokenizer, vocabulary, profile, name=weights.stem)
