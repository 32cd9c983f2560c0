"""A Qwen2, Qwen2.5 or Llama folder of Hugging Face as a start: language model, shape and tokenizer."""

from pathlib import Path

from torch import Tensor

from echat.model.folder_weights import read_folder_tensors
from echat.model.llm import LLMConfig

PREFIX = "llm."  # of our names in `SpeechLLM`; behind it the names are those of transformers
_HEAD = "lm_head.weight"


def read_llm(folder: Path, config: LLMConfig) -> dict[str, Tensor]:
    """Tensors under the names of `SpeechLLM`; a head that is the text table once more is left out."""
    tensors = read_folder_tensors(folder)
    if config.tie_embeddings:
        tensors.pop(_HEAD, None)
    return {PREFIX + name: tensor for name, tensor in tensors.items()}
