"""Model folder: a speech language model on disk, `config.yaml`, `model.safetensors` and `tokenizer/`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch

from echat.checkpoint import assign_strict, write_tensors
from echat.config import Config, load_config, save_config
from echat.dialogue.capabilities import Capabilities
from echat.dialogue.tasks import Profile
from echat.dialogue.vocabulary import Vocabulary
from echat.model.speech_llm import SpeechLLM, SpeechLLMConfig, model_on_meta
from echat.model.text_tokenizer import TextTokenizer
from echat.model_files import CONFIG_FILE, TOKENIZER_FOLDER, WEIGHTS_FILE
from echat.quantized_weights import Quantization, float_dtype, read_weights


class ModelFolderConfig(Config):
    """`config.yaml` of a model folder."""

    renamed: ClassVar = {"spells": "ctc"}
    OMITTED_AT_DEFAULT: ClassVar = frozenset({"quantization"})

    kind: Literal["echat"] = "echat"
    name: str = ""  # for people
    profile: Profile = "echat"  # prompt layout that the weights were trained with
    ctc: bool = False  # were the encoder's frames trained by CTC over the text table?
    learned: Capabilities = Capabilities()  # of texts and conversations
    quantization: Quantization = {}  # of the weights on disk
    model: SpeechLLMConfig  # every size


@dataclass(frozen=True)
class ModelFolder:
    """A loaded model folder."""

    config: ModelFolderConfig
    model: SpeechLLM
    tokenizer: TextTokenizer

    @property
    def vocabulary(self) -> Vocabulary:
        """Sizes and special ids, looked up in the tokenizer."""
        model = self.config.model
        return self.tokenizer.vocabulary(model.speech_codec_size, model.llm.vocab_size)


def save_model(
    folder: str | Path,
    model: SpeechLLM,
    tokenizer: TextTokenizer,
    profile: Profile = "echat",
    name: str = "",
    dtype: torch.dtype | None = None,
    ctc: bool = False,
    learned: Capabilities | None = None,
) -> None:
    """Write the three parts, each whole or not at all; other files of the folder stay. `dtype` is that on
    disk."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS_FILE, model.state_dict(), dtype)
    tokenizer.save(folder / TOKENIZER_FOLDER)
    config = ModelFolderConfig(
        name=name, profile=profile, ctc=ctc, learned=learned or Capabilities(), model=model.config
    )
    save_config(config, folder / CONFIG_FILE)


def load_model(folder: str | Path, dtype: torch.dtype | None = torch.float32) -> ModelFolder:
    """Read the three parts, strictly. Weights stored in `dtype` (None: any) stay memory-mapped, others are
    cast; quantized ones are dequantized (None: to the precision of the plain ones)."""
    folder = Path(folder)
    config = load_config(ModelFolderConfig, folder / CONFIG_FILE)
    tokenizer = TextTokenizer.from_folder(folder / TOKENIZER_FOLDER)
    check_tokenizer(tokenizer, config.model, folder)
    path = folder / WEIGHTS_FILE
    stored = read_weights(path, config.quantization)
    if config.quantization:
        dtype = dtype or float_dtype(path)
    model = model_on_meta(config.model, stored.tensors, str(path))
    assign_strict(model, stored.tensors, str(path), dtype)
    model.reset_tables()
    model = model.to(dtype or model.projection.weight.dtype).eval()
    stored.mark_int4(model)
    return ModelFolder(config, model, tokenizer)


def check_tokenizer(tokenizer: TextTokenizer, config: SpeechLLMConfig, where: str | Path) -> None:
    """Every id of the tokenizer must have a row in the text table, and the special ones must be there."""
    if tokenizer.largest_id >= config.llm.vocab_size:
        raise ValueError(
            f"{where}: expected a tokenizer of at most {config.llm.vocab_size} ids (rows of the text "
            f"table), found the id {tokenizer.largest_id}; copy the tokenizer that the model was trained with"
        )
    try:
        tokenizer.vocabulary(config.speech_codec_size, config.llm.vocab_size)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{where}: expected the tokenizer of the model, found another ({error})") from error


def stored_dtype(folder: str | Path) -> torch.dtype:
    """The precision of the weights of a model folder, of those that are not quantized."""
    return float_dtype(Path(folder) / WEIGHTS_FILE)
