"""Fine-tuning on one's own dialogues: a table of spoken questions and answers in, a model folder out.

It writes a recipe, ``finetune.yaml`` in the output folder (low-rank adapters, the tasks that the records
serve, held-out records, replay data), and trains it as any other.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from echat.checkpoint import atomic_path
from echat.data.defects import DataError
from echat.data.eligibility import can_serve
from echat.data.formats.manifest import read_manifest
from echat.data.sample import Sample
from echat.devices import DTYPES
from echat.dialogue.tasks import TASKS
from echat.infer.loading import find_model
from echat.model_files import SPEECH_TOKENIZER_FOLDER, TOKEN2WAV_FOLDER
from echat.release.weight_sources import WeightSource, open_weight_source
from echat.train.recipe import load_recipe
from echat.train.tools.finetune_data import Preparation, prepare_pairs, with_speech_ids
from echat.train.trainer import run
from echat.train.weights.init_weights import inherited_learned, init_has_ctc

RECIPE = "finetune.yaml"
STEPS = 120  # enough for some fifty dialogues of a small model; more dialogues want more
# Share of each task among the dialogues that serve it; understanding protects speech recognition.
TASK_WEIGHTS = {
    "s2s_think_label": 2.0,
    "s2s_think_language": 1.0,
    "s2t_think_label": 1.0,
    "s2t_think_language": 1.0,
    "s2s": 1.0,
    "s2t": 1.0,
    "understand": 1.5,
    "asr": 0.5,
}


@dataclass(frozen=True)
class FineTune:
    """What to fine-tune, on what."""

    model: str  # a built-in name, a model folder, or a released .pt with its Qwen2 folder
    data: str  # folder with metadata.csv or metadata.jsonl, or the table itself
    output: Path
    columns: Mapping[str, str] = field(default_factory=dict)  # our field -> column of the table
    replay: Sequence[str] = ()  # manifests of replay data, such as the model was trained on
    replay_share: float = 0.5  # share of replay data in the mixture
    speech_tokenizer: Path | None = None  # folder; None: that of the model
    skip_bad: bool = False  # go on without the records that cannot be used
    info: Callable[[str], None] = print


def finetune(job: FineTune, overrides: Sequence[str] = (), resume: bool = False) -> Path:
    """Prepare the data, train, and return the folder of the fine-tuned model.

    ``overrides`` are ``key.path=value`` on the recipe. ``resume`` continues a run that was stopped, with
    its recipe and its data. Raises ValueError that names what to mend.
    """
    model_path = find_model(job.model)
    path = job.output / RECIPE
    if not (resume and path.is_file()):
        values = write_recipe(job, model_path)
        with atomic_path(path) as temporary:
            temporary.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), "utf-8")
    folder = run(load_recipe(path, overrides), resume)
    if folder.is_dir():
        _copy_untrained_parts(folder, model_path)
    return folder


def write_recipe(job: FineTune, model_path: Path) -> dict[str, Any]:
    """The values of the recipe, which say only what differs from the defaults; its data are prepared."""
    source = open_weight_source(str(model_path))
    if source.model is None:
        raise ValueError(
            f"{model_path}: expected a whole model to fine-tune, found {', '.join(source.parts)} alone"
        )
    preparation = Preparation(
        _speech_tokenizer(job, model_path),
        source.model.speech_codec_size,
        job.columns,
        job.skip_bad,
        job.info,
    )
    manifest = prepare_pairs(job.data, job.output / "data", preparation)
    samples = read_manifest(manifest)
    training = [sample for sample in samples if sample.split == "train"]
    tasks = _tasks(training, job.data)
    held_out = sum(sample.split == "dev" for sample in samples)
    job.info(f"{len(training)} training dialogues, {held_out} held out; tasks {', '.join(tasks)}")
    own = {"path": str(manifest), "tasks": tasks}
    old = _replay_sources(job, preparation)
    share = job.replay_share if old else 0.0
    validation = [own | {"split": "dev"}] if held_out else []
    return _recipe(source, model_path, job.output) | {
        "data": {
            "sources": [own | {"split": "train", "weight": 1 - share}]
            + [source | {"weight": share / len(old)} for source in old],
            "validation": validation + old,
            "validation_records": 16,
            "batch_cost": 2000,
        }
    }


def _recipe(source: WeightSource, model_path: Path, output: Path) -> dict[str, Any]:
    dtype = next(iter(source.tensors.values())).dtype
    return {
        "objective": "speech_llm",
        "output": str(output),
        "init_from": {"all": str(model_path)},
        "profile": source.profile or "echat",
        # Written out, so that an override changes one of its fields.
        "learned": inherited_learned({"all": str(model_path)}).model_dump(mode="json", exclude_defaults=True),
        "export_dtype": next((name for name, known in DTYPES.items() if known == dtype), "fp32"),
        "lora": {"rank": 16, "alpha": 32.0, "targets": list(_adapter_targets(model_path))},
        "optimizer": {"lr": 1e-3, "weight_decay": 0.0, "warmup_steps": 20},
        "budget": {"steps": STEPS},
        "validate_steps": STEPS // 4,
        "decode": {"every_steps": STEPS // 2, "records": 8, "samples": 2, "voice": _voice(model_path)},
        "checkpoint": {"every_steps": STEPS // 4},
    }


def _adapter_targets(model_path: Path) -> tuple[str, ...]:
    """Layers with adapters. An encoder trained by CTC stays frozen: few voices would harm its recognition."""
    return ("llm.*",) if init_has_ctc({"all": str(model_path)}) else ("*",)


def _replay_sources(job: FineTune, preparation: Preparation) -> list[dict[str, Any]]:
    """Sources of the replay data."""
    sources = []
    for number, given in enumerate(job.replay, 1):
        path = with_speech_ids(given, job.output / f"replay-{number}", preparation)
        sources.append({"path": str(path), "tasks": _tasks(read_manifest(path), given)})
    return sources


def _tasks(samples: Sequence[Sample], where: str) -> dict[str, float]:
    """The tasks that some of the samples serve, with their weights."""
    served = {
        name: weight
        for name, weight in TASK_WEIGHTS.items()
        if any(can_serve(sample, TASKS[name]) for sample in samples)
    }
    if not served:
        raise DataError(
            f"{where}: expected records with a question as sound and a reply as text (split train, if splits "
            "are named), found none; `echat data show` prints what was read"
        )
    return served


def _speech_tokenizer(job: FineTune, model_path: Path) -> Path | None:
    """The folder that turns answers into speech ids."""
    model_folder = model_path if model_path.is_dir() else model_path.parent
    found = job.speech_tokenizer or model_folder / SPEECH_TOKENIZER_FOLDER
    if found.is_dir():
        return found
    if job.speech_tokenizer is not None:
        raise ValueError(f"--speech-tokenizer: expected a folder at {found}, found nothing; check the path")
    job.info(f"{model_folder} has no {SPEECH_TOKENIZER_FOLDER} folder: answers are trained as text alone")
    return None


def _voice(model_path: Path) -> str | None:
    """The model folder whose token2wav synthesizes sampled answers."""
    return str(model_path) if (model_path / TOKEN2WAV_FOLDER).is_dir() else None


def _copy_untrained_parts(folder: Path, model_path: Path) -> None:
    """Copy token2wav, speech tokenizer and licence of the initial model, so that the folder is complete."""
    model_folder = model_path if model_path.is_dir() else model_path.parent
    for name in (TOKEN2WAV_FOLDER, SPEECH_TOKENIZER_FOLDER):
        if (model_folder / name).is_dir() and not (folder / name).exists():
            with atomic_path(folder / name) as temporary:
                shutil.copytree(model_folder / name, temporary)
    if (model_folder / "LICENSE").is_file():
        shutil.copyfile(model_folder / "LICENSE", folder / "LICENSE")
    card = (
        f"# {folder.parent.name}\n\n"
        f"Fine-tuned from {model_folder.name} by `echat finetune`; its licence holds.\n"
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
