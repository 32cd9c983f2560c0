"""Speaker embeddings of 192 values: the released CAM++ network, or statistics of the mel."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echat.audio.features import VOCODER_RATE, kaldi_fbank, vocoder_mel
from echat.audio.resampling import resample
from echat.token2wav.onnx_session import onnx_session

MEL_STATISTICS = 192


class MelStatistics:
    """Speaker embedding without a network: how the log mel is spread.

    Of the frames louder than the clip's median: 80 means over time and 80 standard deviations; of all
    frames: 32 means of the frame-to-frame change in groups of bins. Each part is centred, so that loudness
    drops out.
    """

    def __init__(self, rate: int = VOCODER_RATE) -> None:
        self.rate = rate  # Hz of the waveforms that are given

    def __call__(self, waveform: Tensor, waveform_16k: Tensor) -> Tensor:
        """`(samples,)` at `rate` -> `(192,)`; the 16 kHz copy is not used."""
        mel = vocoder_mel(resample(waveform, self.rate, VOCODER_RATE))  # (frames, 80)
        loudness = mel.mean(1)
        loud = mel[loudness >= loudness.median()]
        change = mel.diff(dim=0).abs().mean(0) if len(mel) > 1 else torch.zeros(mel.shape[1])
        motion = torch.nn.functional.adaptive_avg_pool1d(change[None], MEL_STATISTICS - 160)[0]
        parts = (loud.mean(0), loud.std(0, unbiased=False), motion)
        return torch.cat([part - part.mean() for part in parts])


class CampPlus:
    """The released CAM++ speaker network (`campplus.onnx`)."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._session: Any = onnx_session(self.path)

    def __call__(self, waveform: Tensor, waveform_16k: Tensor) -> Tensor:
        """`(samples,)` at 16 kHz in [-1, 1] -> `(192,)`; the copy of another rate is not used."""
        fbank = kaldi_fbank(waveform_16k, subtract_mean=True)
        name = self._session.get_inputs()[0].name
        embedding = torch.from_numpy(self._session.run(None, {name: fbank[None].numpy()})[0].flatten())
        if embedding.numel() != MEL_STATISTICS:
            raise ValueError(
                f"{self.path}: expected an embedding of {MEL_STATISTICS} values, found {embedding.numel()}; "
                "this is another network, take the campplus.onnx of CosyVoice-300M-25Hz"
            )
        return embedding
