"""Checks of a token2wav folder: features, flow matching from ids to mel, vocoder from mel to audio, both
together, and streaming."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from echat.release.cosyvoice_weights import fold_vocoder, read_weights
from echat.token2wav.token_encoder import relative_positions
from echat.token2wav.voice import VoicePrompt
from echat.verify import feature_checks
from echat.verify.comparison import Backend, Check, check_equal
from echat.verify.golden_folder import GoldenToken2Wav
from echat.verify.reference_streaming import StreamState, flow_piece, synthesize_piece
from echat.verify.tolerances import (
    DECODED,
    ENCODER,
    ESTIMATOR,
    FEATURE,
    LOUD,
    MEL,
    PITCH,
    PITCHED_SOUND,
    REGULATED,
    SOUND,
    SOUND_SOURCE,
    SOURCE,
    SOURCE_SPECTRUM,
    SPECTRUM,
)

Values = dict[str, Tensor]


def checks(folder: Path, backend: Backend, converted: bool = False) -> Iterator[Check]:
    """Everything that the folder records."""
    golden = GoldenToken2Wav(folder, backend, converted)
    parts = (
        ("resample.npz", feature_checks.resample_checks),
        ("mel22k.npz", feature_checks.mel_checks),
        ("whisper128.npz", feature_checks.whisper_checks),
        ("fbank80.npz", feature_checks.fbank_checks),
        ("flow_encoder.npz", flow_encoder_checks),
        ("estimator.npz", estimator_checks),
        ("flow_inference.npz", flow_checks),
        ("*hift_oldkeys.pt", weight_checks),
        ("hift.npz", vocoder_checks),
        ("token2wav.npz", sound_checks),
        ("streaming.npz", streaming_checks),
    )
    for pattern, part in parts:
        for file in sorted(folder.glob(pattern)):
            with torch.no_grad():
                found = list(part(golden))
            for check in found:
                yield replace(check, name=f"{folder.name}/{file.stem}/{check.name}")


# --- flow


def flow_encoder_checks(golden: GoldenToken2Wav) -> Iterator[Check]:
    """Ids -> encoder -> projection -> length regulator."""
    flow, backend = golden.model.flow, golden.backend
    for case, values in golden.cases("flow_encoder.npz").items():
        if case == "spk":
            yield backend.check_close(
                "spk.projected", flow.speaker(values["embedding"]), values["projected"], ENCODER
            )
        elif case == "batch":
            mask = torch.arange(values["token"].shape[1], device=backend.device) < values["lens"][:, None]
            x = flow.input_embedding(values["token"].clamp(min=0)) * mask[..., None]
            yield backend.check_close(
                "batch.encoder_out", flow.encoder(x, mask), values["encoder_out"], ENCODER, mask
            )
        else:
            for check in _flow_encoder_case(golden, values):
                yield replace(check, name=f"{case}.{check.name}")


def _flow_encoder_case(golden: GoldenToken2Wav, values: Values) -> Iterator[Check]:
    flow, backend = golden.model.flow, golden.backend
    n_prompt, ids = int(values["n_prompt"]), values["token"]
    x = flow.input_embedding(ids)
    hidden = flow.encoder(x)
    yield backend.check_close("encoder_out", hidden, values["encoder_out"], ENCODER)
    yield check_equal("mel_len2", flow.config.mel_frames(int(values["n_token"])), values["mel_len2"])
    prompt_frames = int(values["mel_len1"])
    regulated = flow.regulate(ids[:, n_prompt:], ids[:, :n_prompt], prompt_frames)
    yield backend.check_close("regulated", regulated.transpose(1, 2), values["regulated"], REGULATED)
    if "embed_out" not in values:
        return
    layer = flow.encoder.embed(x)
    positions = relative_positions(ids.shape[1], flow.encoder.config.output_size).to(x)
    yield backend.check_close("embed_out", layer, values["embed_out"], ENCODER)
    yield backend.on_cpu.check_close(
        "pos_emb", positions.reshape(values["pos_emb"].shape), values["pos_emb"], ENCODER
    )
    for number, block in enumerate(flow.encoder.encoders):
        layer = block(layer, positions, None)
        yield backend.check_close(f"layer{number}_out", layer, values[f"layer{number}_out"], ENCODER)
    yield backend.check_close("proj_out", flow.encoder_proj(hidden), values["proj_out"], ENCODER)


def estimator_checks(golden: GoldenToken2Wav) -> Iterator[Check]:
    """Single calls of the velocity network."""
    estimator, backend = golden.model.flow.decoder.estimator, golden.backend
    for case, values in golden.cases("estimator.npz").items():
        arguments = [values[name] for name in ("x", "mask", "mu", "t", "spks", "cond")]
        yield backend.check_close(
            f"{case}.time_emb", estimator.time_mlp(values["t"]), values["time_emb"], ESTIMATOR
        )
        yield backend.check_close(f"{case}.out", estimator(*arguments), values["out"], ESTIMATOR)


def flow_checks(golden: GoldenToken2Wav) -> Iterator[Check]:
    """Whole ODE solutions with given noise, and the inputs of the velocity network on the way."""
    flow, backend = golden.model.flow, golden.backend
    grid = flow.decoder._warp(torch.linspace(0, 1, flow.config.steps + 1, device=backend.device))
    yield backend.in_fp32.check_close("t_span", grid, golden.arrays("flow_inference.npz")["t_span"], FEATURE)
    for case, values in golden.cases("flow_inference.npz").items():
        seen: list[tuple[Tensor, Tensor]] = []
        hook = flow.decoder.estimator.register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.append((inputs[0], inputs[3]))
        )
        voice = (values["prompt_token"].long(), values["prompt_feat"], values["embedding"])
        mel = flow(values["token"], *voice, values["z"])
        hook.remove()
        z = torch.randn(values["z"].shape, generator=torch.Generator().manual_seed(int(values["z_seed"])))
        yield backend.on_cpu.check_close(f"{case}.z", z, values["z"], FEATURE)
        yield backend.in_fp32.check_close(
            f"{case}.t_seen", [float(t[0]) for _, t in seen], values["t_seen"], FEATURE
        )
        yield backend.check_close(f"{case}.x_step1", seen[1][0][0], values["x_step1"], MEL)
        yield backend.check_close(f"{case}.mel", mel, values["mel"], MEL)


# --- vocoder


def weight_checks(golden: GoldenToken2Wav) -> Iterator[Check]:
    """Both key layouts of the vocoder hold the same weights."""
    old = fold_vocoder(read_weights(golden.weights("*hift_oldkeys.pt")))
    new = {name: value.cpu() for name, value in golden.exact.vocoder.state_dict().items()}
    yield check_equal("names", sorted(old), sorted(new))
    error = max(float((old[name] - new[name]).abs().max()) for name in old.keys() & new.keys())
    yield Check("weights", error, 0.0)


def vocoder_checks(golden: GoldenToken2Wav) -> Iterator[Check]:
    """Mel -> pitch -> source -> audio."""
    vocoder, values, backend = golden.exact.vocoder, golden.inputs("hift.npz"), golden.backend.in_fp32
    mel, phase, noise = values["mel"], values["phase"], values["noise"]
    still, quiet = torch.zeros_like(phase), torch.zeros_like(noise)
    yield backend.check_close("f0", vocoder.f0_predictor(mel), values["f0"], PITCH)
    yield backend.check_close(
        "source", vocoder.m_source(values["f0"], phase, noise), values["source"], SOURCE
    )
    zero_noise = vocoder.m_source(values["f0"], still, quiet)
    yield backend.check_close("source_zero_noise", zero_noise, values["source_zero_noise"], SOURCE)
    given = vocoder.m_source(values["f0_given"], phase, noise)
    yield backend.check_close("source_f0_given", given, values["source_f0_given"], SOURCE)
    voiced = values["f0_given"] > vocoder.config.nsf_voiced_threshold
    yield check_equal("uv_f0_given", voiced[..., None].float(), values["uv_f0_given"])
    yield backend.check_close(
        "s_stft", vocoder.source_spectrum(values["source"]), values["s_stft"], SOURCE_SPECTRUM
    )
    spectrum = vocoder.spectrum(mel, values["source"])
    yield backend.check_close("conv_post_out", spectrum, values["conv_post_out"], SPECTRUM)
    yield backend.check_close("wav", vocoder.decode(mel, values["source"]), values["wav"], DECODED)
    golden_source = values["source_zero_noise"]
    yield backend.check_close(
        "wav_zero_noise", vocoder.decode(mel, golden_source), values["wav_zero_noise"], PITCHED_SOUND
    )
    silent = vocoder.decode(mel, torch.zeros_like(golden_source))
    yield backend.check_close("wav_zero_source", silent, values["wav_zero_source"], DECODED)
    sound, source = vocoder(mel, values["cache_source"], still, quiet)
    yield backend.check_close("source_cached", source, values["source_cached"], SOUND_SOURCE)
    yield backend.check_close("wav_cached", sound, values["wav_cached"], PITCHED_SOUND)
    yield backend.check_close("wav_loud", _loud(golden, values), values["wav_loud"], LOUD)


def _loud(golden: GoldenToken2Wav, values: Values) -> Tensor:
    """Decoded with a raised magnitude bias, so that both limits of the vocoder act; on a copy of the
    network."""
    vocoder = copy.deepcopy(golden.exact.vocoder)
    assert vocoder.conv_post.bias is not None
    vocoder.conv_post.bias[: vocoder.config.istft_n_fft // 2 + 1] += values["loud_bias_shift"]
    return vocoder.decode(values["mel"], values["source_zero_noise"])


# --- both


def _voice(values: Values) -> VoicePrompt:
    return VoicePrompt(values["prompt_token"][0].long(), values["prompt_feat"][0], values["embedding"][0])


def sound_checks(golden: GoldenToken2Wav) -> Iterator[Check]:
    """Ids to audio at several speeds with given noise, and once with a seed."""
    model, values, backend = golden.exact, golden.inputs("token2wav.npz"), golden.backend.in_fp32
    ids, voice = values["token"][0], _voice(values)
    mel = golden.model.mel(golden.model.check_ids(ids), voice, values["z"])
    yield golden.backend.check_close("mel", mel, values["mel"], MEL)
    f0 = model.vocoder.f0_predictor(values["mel"] if backend.remark else mel)
    frames = values["mel"].shape[2]
    phase, quiet = _still(golden, frames)
    yield backend.check_close("f0", f0, values["f0"], PITCH)
    source = model.vocoder.m_source(values["f0"], phase, quiet)
    yield backend.check_close("source", source, values["source"], SOUND_SOURCE)
    for number, speed in enumerate(values["speeds"].tolist()):
        _, quiet = _still(golden, frames if speed == 1 else int(frames / speed))
        sound = model.synthesize(ids, voice, speed=speed, z=values["z"], phase=phase, noise=quiet)
        yield backend.check_close(f"wav_speed{number}", sound[None], values[f"wav_speed{number}"], SOUND)
    seeded = model.synthesize(ids, voice, seed=int(values["seed"]))
    yield backend.check_close("wav_seeded", seeded[None], values["wav_seeded"], SOUND)


def _still(golden: GoldenToken2Wav, frames: int) -> tuple[Tensor, Tensor]:
    """Start phases and noise of a source without randomness."""
    config = golden.exact.config.vocoder
    noise = torch.zeros(1, config.nb_harmonics + 1, frames * config.samples_per_frame)
    return noise[:, :, :1].to(golden.backend.device), noise.to(golden.backend.device)


def streaming_checks(golden: GoldenToken2Wav) -> Iterator[Check]:
    """Ids to audio in pieces, as the released code does it."""
    model, values, backend = golden.exact, golden.inputs("streaming.npz"), golden.backend.in_fp32
    ids, voice, hop = values["token"][0], _voice(values), int(values["hop"])
    phase, _ = _still(golden, 1)
    lengths = values["chunk_token_lens"].tolist()
    state: StreamState | None = None
    for number, length in enumerate(lengths):
        piece, z = ids[number * hop : number * hop + length], values[f"z{number}"]
        mel, _, _ = flow_piece(golden.model, piece, voice, state, z, None)
        is_last = number == len(lengths) - 1
        sound, state = synthesize_piece(model, piece, voice, state, is_last, z, phase, quiet_source=True)
        kept = 0 if state is None else state.speech.shape[1]
        frames = (len(sound) + kept) // model.config.vocoder.samples_per_frame
        yield golden.backend.check_close(f"flow_mel{number}", mel, values[f"flow_mel{number}"], MEL)
        yield check_equal(f"hift_mel_len{number}", frames, values[f"hift_mel_len{number}"])
        yield backend.check_close(f"wav{number}", sound[None], values[f"wav{number}"], SOUND)
