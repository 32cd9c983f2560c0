"""Checks of a token2wav folder: features, flow from ids to mel, vocoder from mel to sound, both together,
and in pieces."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echat.audio.features import (
    VOCODER_N_MELS,
    VOCODER_RATE,
    VOCODER_WINDOW,
    kaldi_fbank,
    log_mel,
    mel_22k,
    mel_filterbank,
)
from echat.audio.waveform import resample
from echat.infer.check import Check, close, same
from echat.token2wav.cosyvoice_weights import flow_config, fold_vocoder, read_weights, vocoder_config
from echat.token2wav.streaming import StreamState, flow_piece, speak_piece
from echat.token2wav.token2wav import Token2Wav, Token2WavConfig
from echat.token2wav.token_encoder import relative_positions
from echat.token2wav.voice import VoicePrompt

# Largest differences that equivalent programs may show, by quantity.
ENCODER, REGULATED, ESTIMATOR, MEL = 2e-5, 5e-5, 5e-5, 1e-4
PITCH, SOURCE, SOURCE_SPECTRUM, SPECTRUM, DECODED = 1e-3, 1e-4, 1e-5, 2e-4, 5e-5
LOUD, PITCHED_SOUND = 1e-3, 1e-3  # past the limiter; after the pitch was computed anew
FEATURE, FBANK = 1e-5, 1e-3
# Fourier transforms round differently from processor to processor, which shows where a bin is 8 decades
# below the peak.
LOG_MEL, LOG_MAGNITUDE = 1e-4, 5e-5
SOUND_SOURCE, SOUND = 5e-4, 3e-3  # a tiny pitch difference accumulates into phase
Values = dict[str, Tensor]


@dataclass(frozen=True)
class GoldenToken2Wav:
    """A token2wav folder, its parts read when first needed."""

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "config.json").read_text(encoding="utf-8"))

    @cached_property
    def model(self) -> Token2Wav:
        """The tiny networks in float32."""
        config = Token2WavConfig(
            flow=flow_config(self.config["flow"]), vocoder=vocoder_config(self.config["hift"])
        )
        model = Token2Wav(config).eval().requires_grad_(False)
        model.flow.load_state_dict(read_weights(self.folder / "tiny_flow.pt"))
        model.vocoder.load_state_dict(fold_vocoder(read_weights(self.folder / "tiny_hift.pt")))
        return model

    def arrays(self, name: str) -> Values:
        """All arrays of an `.npz`."""
        with np.load(self.folder / name) as archive:
            return {key: torch.from_numpy(np.asarray(archive[key])) for key in archive.files}

    def cases(self, name: str) -> dict[str, Values]:
        """The arrays called `case.name`, by case."""
        found: dict[str, Values] = {}
        for key, value in self.arrays(name).items():
            case, dot, rest = key.partition(".")
            if dot:
                found.setdefault(case, {})[rest] = value
        return found


def checks(folder: Path) -> Iterator[Check]:
    """Everything that the folder records."""
    golden = GoldenToken2Wav(folder)
    parts = (
        ("resample.npz", resample_checks),
        ("mel22k.npz", mel_checks),
        ("whisper128.npz", whisper_checks),
        ("fbank80.npz", fbank_checks),
        ("flow_encoder.npz", flow_encoder_checks),
        ("estimator.npz", estimator_checks),
        ("flow_inference.npz", flow_checks),
        ("tiny_hift_oldkeys.pt", weight_checks),
        ("hift.npz", vocoder_checks),
        ("token2wav.npz", sound_checks),
        ("streaming.npz", streaming_checks),
    )
    for file, part in parts:
        if (folder / file).is_file():
            with torch.no_grad():
                found = list(part(golden))
            for check in found:
                yield replace(check, name=f"{folder.name}/{Path(file).stem}/{check.name}")


# --- features


def resample_checks(golden: GoldenToken2Wav) -> Iterator[Check]:
    """Windowed-sinc resampling between the rates in the names."""
    arrays = golden.arrays("resample.npz")
    for key in [key for key in arrays if key.startswith("in_")]:
        rates = key.removeprefix("in_")
        old, new = map(int, rates.split("_"))
        yield close(f"out_{rates}", resample(arrays[key], old, new), arrays[f"out_{rates}"], FEATURE)


def mel_checks(golden: GoldenToken2Wav) -> Iterator[Check]:
    """The vocoder's mel."""
    arrays = golden.arrays("mel22k.npz")
    for key in [key for key in arrays if key.startswith("wav")]:
        name = key.replace("wav", "mel")
        yield close(name, mel_22k(arrays[key][0]).T[None], arrays[name], LOG_MAGNITUDE)
    bank = mel_filterbank(VOCODER_N_MELS, VOCODER_WINDOW, VOCODER_RATE)
    yield close("mel_basis", bank, arrays["mel_basis"], FEATURE)


def whisper_checks(golden: GoldenToken2Wav) -> Iterator[Check]:
    """The log-mel of the released speech tokenizer."""
    arrays = golden.arrays("whisper128.npz")
    mel = log_mel(arrays["wav0"][0], int(arrays["n_mels"]))
    yield close("logmel0", mel.T[None], arrays["logmel0"], LOG_MEL)


def fbank_checks(golden: GoldenToken2Wav) -> Iterator[Check]:
    """The filter bank of the released speaker network, of the same waveform."""
    arrays = golden.arrays("fbank80.npz")
    waveform = golden.arrays("whisper128.npz")["wav0"][0]
    yield close("fbank0", kaldi_fbank(waveform), arrays["fbank0"], FBANK)
    yield close("fbank_cmn0", kaldi_fbank(waveform, subtract_mean=True), arrays["fbank_cmn0"], FBANK)


# --- flow


def flow_encoder_checks(golden: GoldenToken2Wav) -> Iterator[Check]:
    """Ids -> encoder -> projection -> length regulator."""
    flow = golden.model.flow
    for case, values in golden.cases("flow_encoder.npz").items():
        if case == "spk":
            yield close("spk.projected", flow.speaker(values["embedding"]), values["projected"], ENCODER)
        elif case == "batch":
            mask = torch.arange(values["token"].shape[1]) < values["lens"][:, None]
            x = flow.input_embedding(values["token"].clamp(min=0)) * mask[..., None]
            yield close("batch.encoder_out", flow.encoder(x, mask), values["encoder_out"], ENCODER, mask)
        else:
            for check in _flow_encoder_case(golden, values):
                yield replace(check, name=f"{case}.{check.name}")


def _flow_encoder_case(golden: GoldenToken2Wav, values: Values) -> Iterator[Check]:
    flow = golden.model.flow
    n_prompt, ids = int(values["n_prompt"]), values["token"]
    x = flow.input_embedding(ids)
    hidden = flow.encoder(x)
    yield close("encoder_out", hidden, values["encoder_out"], ENCODER)
    yield same("mel_len2", flow.config.mel_frames(int(values["n_token"])), values["mel_len2"])
    prompt_frames = int(values["mel_len1"])
    regulated = flow.regulate(ids[:, n_prompt:], ids[:, :n_prompt], prompt_frames)
    yield close("regulated", regulated.transpose(1, 2), values["regulated"], REGULATED)
    if "embed_out" not in values:
        return
    layer = flow.encoder.embed(x)
    positions = relative_positions(ids.shape[1], flow.encoder.config.output_size)
    yield close("embed_out", layer, values["embed_out"], ENCODER)
    yield close("pos_emb", positions.reshape(values["pos_emb"].shape), values["pos_emb"], ENCODER)
    for number, block in enumerate(flow.encoder.encoders):
        layer = block(layer, positions, None)
        yield close(f"layer{number}_out", layer, values[f"layer{number}_out"], ENCODER)
    yield close("proj_out", flow.encoder_proj(hidden), values["proj_out"], ENCODER)


def estimator_checks(golden: GoldenToken2Wav) -> Iterator[Check]:
    """Single calls of the velocity network."""
    estimator = golden.model.flow.decoder.estimator
    for case, values in golden.cases("estimator.npz").items():
        arguments = [values[name] for name in ("x", "mask", "mu", "t", "spks", "cond")]
        yield close(f"{case}.time_emb", estimator.time_mlp(values["t"]), values["time_emb"], ESTIMATOR)
        yield close(f"{case}.out", estimator(*arguments), values["out"], ESTIMATOR)


def flow_checks(golden: GoldenToken2Wav) -> Iterator[Check]:
    """Whole flows with given noise, and what the velocity network saw on the way."""
    flow = golden.model.flow
    grid = flow.decoder._warp(torch.linspace(0, 1, flow.config.steps + 1))
    yield close("t_span", grid, golden.arrays("flow_inference.npz")["t_span"], FEATURE)
    for case, values in golden.cases("flow_inference.npz").items():
        seen: list[tuple[Tensor, Tensor]] = []
        hook = flow.decoder.estimator.register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.append((inputs[0], inputs[3]))
        )
        voice = (values["prompt_token"].long(), values["prompt_feat"], values["embedding"])
        mel = flow(values["token"], *voice, values["z"])
        hook.remove()
        drawn = torch.randn(values["z"].shape, generator=torch.Generator().manual_seed(int(values["z_seed"])))
        yield close(f"{case}.z", drawn, values["z"], FEATURE)
        yield close(f"{case}.t_seen", [float(t[0]) for _, t in seen], values["t_seen"], FEATURE)
        yield close(f"{case}.x_step1", seen[1][0][0], values["x_step1"], MEL)
        yield close(f"{case}.mel", mel, values["mel"], MEL)


# --- vocoder


def weight_checks(golden: GoldenToken2Wav) -> Iterator[Check]:
    """Both key layouts of the vocoder hold the same weights."""
    old = fold_vocoder(read_weights(golden.folder / "tiny_hift_oldkeys.pt"))
    new = golden.model.vocoder.state_dict()
    yield same("names", sorted(old), sorted(new))
    error = max(float((old[name] - new[name]).abs().max()) for name in old.keys() & new.keys())
    yield Check("weights", error, 0.0)


def vocoder_checks(golden: GoldenToken2Wav) -> Iterator[Check]:
    """Mel -> pitch -> source -> sound."""
    vocoder, values = golden.model.vocoder, golden.arrays("hift.npz")
    mel, phase, noise = values["mel"], values["phase"], values["noise"]
    still, quiet = torch.zeros_like(phase), torch.zeros_like(noise)
    yield close("f0", vocoder.f0_predictor(mel), values["f0"], PITCH)
    yield close("source", vocoder.m_source(values["f0"], phase, noise), values["source"], SOURCE)
    zero_noise = vocoder.m_source(values["f0"], still, quiet)
    yield close("source_zero_noise", zero_noise, values["source_zero_noise"], SOURCE)
    given = vocoder.m_source(values["f0_given"], phase, noise)
    yield close("source_f0_given", given, values["source_f0_given"], SOURCE)
    voiced = values["f0_given"] > vocoder.config.nsf_voiced_threshold
    yield same("uv_f0_given", voiced[..., None].float(), values["uv_f0_given"])
    yield close("s_stft", vocoder.source_spectrum(values["source"]), values["s_stft"], SOURCE_SPECTRUM)
    spectrum = vocoder.spectrum(mel, values["source"])
    yield close("conv_post_out", spectrum, values["conv_post_out"], SPECTRUM)
    yield close("wav", vocoder.decode(mel, values["source"]), values["wav"], DECODED)
    golden_source = values["source_zero_noise"]
    yield close("wav_zero_noise", vocoder.decode(mel, golden_source), values["wav_zero_noise"], PITCHED_SOUND)
    silent = vocoder.decode(mel, torch.zeros_like(golden_source))
    yield close("wav_zero_source", silent, values["wav_zero_source"], DECODED)
    sound, source = vocoder(mel, values["cache_source"], still, quiet)
    yield close("source_cached", source, values["source_cached"], SOUND_SOURCE)
    yield close("wav_cached", sound, values["wav_cached"], PITCHED_SOUND)
    yield close("wav_loud", _loud(golden, values), values["wav_loud"], LOUD)


def _loud(golden: GoldenToken2Wav, values: Values) -> Tensor:
    """Decoded with a raised magnitude bias, so that both limits of the vocoder act; on a copy of the
    network."""
    vocoder = type(golden.model.vocoder)(golden.model.config.vocoder).eval().requires_grad_(False)
    vocoder.load_state_dict(golden.model.vocoder.state_dict())
    assert vocoder.conv_post.bias is not None
    vocoder.conv_post.bias[: vocoder.config.istft_n_fft // 2 + 1] += values["loud_bias_shift"]
    return vocoder.decode(values["mel"], values["source_zero_noise"])


# --- both


def _voice(values: Values) -> VoicePrompt:
    return VoicePrompt(values["prompt_token"][0].long(), values["prompt_feat"][0], values["embedding"][0])


def sound_checks(golden: GoldenToken2Wav) -> Iterator[Check]:
    """Ids to sound at several speeds with given noise, and once with a seed."""
    model, values = golden.model, golden.arrays("token2wav.npz")
    ids, voice = values["token"][0], _voice(values)
    mel = model.mel(model.checked_ids(ids), voice, values["z"])
    f0 = model.vocoder.f0_predictor(mel)
    config = model.config.vocoder
    phase = torch.zeros(1, config.nb_harmonics + 1, 1)
    quiet = torch.zeros(1, config.nb_harmonics + 1, mel.shape[2] * config.samples_per_frame)
    yield close("mel", mel, values["mel"], MEL)
    yield close("f0", f0, values["f0"], PITCH)
    yield close("source", model.vocoder.m_source(values["f0"], phase, quiet), values["source"], SOUND_SOURCE)
    for number, speed in enumerate(values["speeds"].tolist()):
        frames = mel.shape[2] if speed == 1 else int(mel.shape[2] / speed)
        noise = torch.zeros(1, config.nb_harmonics + 1, frames * config.samples_per_frame)
        sound = model.synthesize(ids, voice, speed=speed, z=values["z"], phase=phase, noise=noise)
        yield close(f"wav_speed{number}", sound[None], values[f"wav_speed{number}"], SOUND)
    drawn = model.synthesize(ids, voice, seed=int(values["seed"]))
    yield close("wav_seeded", drawn[None], values["wav_seeded"], SOUND)


def streaming_checks(golden: GoldenToken2Wav) -> Iterator[Check]:
    """Ids to sound in pieces, as the released code does it."""
    model, values = golden.model, golden.arrays("streaming.npz")
    ids, voice, hop = values["token"][0], _voice(values), int(values["hop"])
    phase = torch.zeros(1, model.config.vocoder.nb_harmonics + 1, 1)
    lengths = values["chunk_token_lens"].tolist()
    state: StreamState | None = None
    for number, length in enumerate(lengths):
        piece, z = ids[number * hop : number * hop + length], values[f"z{number}"]
        mel, _, _ = flow_piece(model, piece, voice, state, z, None)
        is_last = number == len(lengths) - 1
        sound, state = speak_piece(model, piece, voice, state, is_last, z, phase, quiet_source=True)
        kept = 0 if state is None else state.speech.shape[1]
        frames = (len(sound) + kept) // model.config.vocoder.samples_per_frame
        yield close(f"flow_mel{number}", mel, values[f"flow_mel{number}"], MEL)
        yield same(f"hift_mel_len{number}", frames, values[f"hift_mel_len{number}"])
        yield close(f"wav{number}", sound[None], values[f"wav{number}"], SOUND)
