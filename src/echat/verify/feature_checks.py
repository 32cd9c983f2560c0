"""Checks of audio features: resampling, log-mels, filter banks. Always in float32 on the CPU."""

from collections.abc import Iterator

from echat.audio.features import (
    HOP,
    N_MELS,
    RELEASED_MEL,
    SAMPLE_RATE,
    WINDOW,
    kaldi_fbank,
    log_mel,
    mel_filterbank,
    vocoder_mel,
)
from echat.audio.resampling import resample
from echat.verify.comparison import Check, check_equal
from echat.verify.golden_folder import GoldenFolder
from echat.verify.tolerances import FBANK, FEATURE, FILTERS, LOG_MEL, ROUNDED_LOG_MEL

# --- of a model folder


def frontend_checks(golden: GoldenFolder) -> Iterator[Check]:
    """Waveform -> mono -> 16 kHz -> log-mel."""
    config, arrays, home = golden.config, golden.arrays("frontend.npz"), golden.backend.on_cpu
    yield check_equal(
        "sizes", [SAMPLE_RATE, WINDOW, HOP], [config[k] for k in ("sample_rate", "n_fft", "hop_length")]
    )
    for name in [key.removesuffix("_pcm") for key in arrays if key.endswith("_pcm")]:
        rate = int(arrays[f"{name}_rate"])
        waveform = resample((arrays[f"{name}_pcm"].float() / 32768).mean(dim=0), rate, SAMPLE_RATE)
        if f"{name}_resampled" in arrays:
            yield home.check_close(f"{name}_resampled", waveform, arrays[f"{name}_resampled"], LOG_MEL)
        mel = log_mel(waveform, config["num_mel_bins"])
        yield check_equal(f"{name}_len", len(mel), arrays[f"{name}_len"])
        yield home.check_close(f"{name}_logmel", mel, arrays[f"{name}_logmel"], LOG_MEL)
        if f"{name}_logmel_bf16" in arrays:
            rounded = arrays[f"{name}_logmel_bf16"]
            yield home.check_close(f"{name}_logmel_bf16", mel.bfloat16(), rounded, ROUNDED_LOG_MEL)
    bank = mel_filterbank(config.get("num_mel_bins", N_MELS), WINDOW, SAMPLE_RATE)
    yield home.check_close("mel_filters", bank, arrays["mel_filters"], FILTERS)


# --- of a token2wav folder


def resample_checks(golden: GoldenFolder) -> Iterator[Check]:
    """Windowed-sinc resampling between the rates in the names."""
    arrays, home = golden.arrays("resample.npz"), golden.backend.on_cpu
    for key in [key for key in arrays if key.startswith("in_")]:
        rates = key.removeprefix("in_")
        old, new = map(int, rates.split("_"))
        yield home.check_close(
            f"out_{rates}", resample(arrays[key], old, new), arrays[f"out_{rates}"], FEATURE
        )


def mel_checks(golden: GoldenFolder) -> Iterator[Check]:
    """The vocoder's mel."""
    arrays, home = golden.arrays("mel22k.npz"), golden.backend.on_cpu
    for key in [key for key in arrays if key.startswith("wav")]:
        name = key.replace("wav", "mel")
        yield home.check_close(name, vocoder_mel(arrays[key][0]).T[None], arrays[name], FEATURE)
    bank = mel_filterbank(RELEASED_MEL.n_mels, RELEASED_MEL.window, RELEASED_MEL.rate)
    yield home.check_close("mel_basis", bank, arrays["mel_basis"], FEATURE)


def whisper_checks(golden: GoldenFolder) -> Iterator[Check]:
    """The log-mel of the released speech tokenizer."""
    arrays, home = golden.arrays("whisper128.npz"), golden.backend.on_cpu
    mel = log_mel(arrays["wav0"][0], int(arrays["n_mels"]))
    yield home.check_close("logmel0", mel.T[None], arrays["logmel0"], FEATURE)


def fbank_checks(golden: GoldenFolder) -> Iterator[Check]:
    """The filter bank of the released speaker network, of the same waveform."""
    arrays, home = golden.arrays("fbank80.npz"), golden.backend.on_cpu
    waveform = golden.arrays("whisper128.npz")["wav0"][0]
    yield home.check_close("fbank0", kaldi_fbank(waveform), arrays["fbank0"], FBANK)
    yield home.check_close(
        "fbank_cmn0", kaldi_fbank(waveform, subtract_mean=True), arrays["fbank_cmn0"], FBANK
    )
