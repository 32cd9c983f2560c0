"""The speech language model, as in the figure of the paper: mel -> speech encoder -> subsampler -> adapter ->
language model -> text and speech heads.

Legend: B batch, T mel frames (10 ms), D audio frames for the language model (80 ms), L positions of the
language model, dim width of the language model, V text classes, C codec ids.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from echat.audio.speech_tokens import CODEC_SIZE
from echat.checkpoint import SAME_MODEL
from echat.config import Config
from echat.dialogue.vocabulary import AUDIO, SPEECH, TEXT, speech_classes, speech_rows
from echat.model.adapter import Adapter, AdapterConfig
from echat.model.llm import KVCache, LanguageModel, LLMConfig, import_transformers
from echat.model.speech_encoder import EncoderConfig, SpeechEncoder, Subsampler
from echat.safe_loading import build_on_meta


class SpeechLLMConfig(Config):
    """Everything that fixes the shape of the model; the defaults are the released size."""

    encoder: EncoderConfig = EncoderConfig()
    adapter: AdapterConfig = AdapterConfig()
    llm: LLMConfig = LLMConfig()
    speech_codec_size: int = Field(CODEC_SIZE, gt=0)  # ids of the speech tokenizer


class SpeechLLM(nn.Module):
    """Speech and text in, text and speech ids out; one model for every task."""

    def __init__(self, config: SpeechLLMConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = SpeechEncoder(config.encoder)
        self.subsampler = Subsampler(config.encoder.dim, config.encoder.subsampler_strides)
        self.adapter = Adapter(config.adapter, config.encoder.dim, config.encoder.llm_frame_seconds)
        self.projection = nn.Linear(config.adapter.dim, config.llm.dim)
        self.llm = LanguageModel(config.llm)
        self.speech_embedding = nn.Embedding(speech_rows(config.speech_codec_size), config.llm.dim)
        self.speech_head = nn.Linear(config.llm.dim, speech_classes(config.speech_codec_size))
        if not self.speech_head.weight.is_meta:
            nn.init.normal_(self.speech_embedding.weight, std=0.02)  # as the text table of Qwen2
            nn.init.normal_(self.speech_head.weight, std=0.02)
            nn.init.zeros_(self.speech_head.bias)
            nn.init.normal_(self.projection.weight, std=0.1 * config.adapter.dim**-0.5)  # as small as text

    def encode(self, mel: Tensor, mel_lens: Tensor, released_padding: bool = False) -> tuple[Tensor, Tensor]:
        """Audio embeddings: mel (B, T, n_mels), mel_lens (B,) -> frames (B, D, dim), lens (B,).

        D = `EncoderConfig.llm_frames(T)`. `released_padding`: see `SpeechEncoder.forward`.
        """
        frames, lens = self.encoder(mel, mel_lens, released_padding)  # (B, T / 2, encoder dim)
        frames, lens = self.subsampler(frames, lens)  # (B, T / 8, encoder dim)
        frames = self.adapter(frames, lens)  # (B, T / 8, adapter dim)
        return self.projection(frames), lens  # (B, T / 8, dim)

    def assemble(self, kinds: Tensor, ids: Tensor, audio_frames: Tensor | None = None) -> Tensor:
        """Input embeddings from text, speech and audio: kinds (B, L), ids (B, L) -> embeds (B, L, dim).

        kinds: PAD (a zero vector), TEXT (ids: rows of the text table), SPEECH (rows of the speech table,
        markers included), AUDIO (rows of `audio_frames` (n, dim), the valid frames of the batch, flattened).
        """
        table = self.llm.text_embedding.weight
        shape = (*kinds.shape, table.shape[1])
        kinds, ids = kinds.flatten(), ids.flatten()
        all_indices: list[Tensor] = []
        vectors: list[Tensor] = []
        for kind, rows in ((TEXT, table), (SPEECH, self.speech_embedding.weight), (AUDIO, audio_frames)):
            indices = (kinds == kind).nonzero()[:, 0]
            if rows is not None and len(indices):
                all_indices.append(indices)
                vectors.append(F.embedding(ids[indices], rows).to(table.dtype))
        embeds = table.new_zeros(len(kinds), table.shape[1])
        if all_indices:
            embeds = embeds.index_copy(0, torch.cat(all_indices), torch.cat(vectors))
        return embeds.view(shape)

    def hidden(
        self,
        embeds: Tensor,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Tensor, KVCache | None]:
        """Language model: embeds (B, L, dim) -> last hidden states (B, L, dim), and the longer cache when one
        was given.

        mask: True = keep, (B, L), or (B, cached + L) with a cache. Padding on the right needs none.
        """
        if cache is None:
            return self.llm(embeds, mask, positions), None
        return self.llm.extend(embeds, cache, mask, positions)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """(..., dim) -> (..., V)."""
        return self.llm.logits(hidden)

    def speech_logits(self, hidden: Tensor) -> Tensor:
        """(..., dim) -> (..., C + 1)."""
        return self.speech_head(hidden)

    def combined_logits(self, hidden: Tensor) -> Tensor:
        """(..., dim) -> (..., V + C + 1), the classes of the tasks that write speech."""
        return torch.cat([self.text_logits(hidden), self.speech_logits(hidden)], dim=-1)

    @property
    def head_weights(self) -> tuple[Tensor, ...]:
        """What the two heads compute with."""
        return (*self.llm.head_weights, *self.speech_head.parameters())

    def reset_tables(self) -> None:
        """Compute position tables and rotary frequencies again (after construction on the meta device)."""
        self.encoder.positions.reset()
        self.adapter.positions.reset()
        self.llm.reset_tables()


def model_on_meta(
    config: SpeechLLMConfig,
    tensors: Mapping[str, Tensor] | None = None,
    where: str = "model",
    mend: str = SAME_MODEL,
) -> SpeechLLM:
    """A model of any size without memory, to be given its parameters: these, where they are known.

    Raises CheckpointError where they do not fit the configuration.
    """
    import_transformers(config.llm.architecture)
    return build_on_meta(lambda: SpeechLLM(config), tensors, where, mend=mend)
