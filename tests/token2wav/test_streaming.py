"""Sound while ids still come: independent of slices, complete, bounded, without clicks, near the whole."""

from __future__ import annotations

from importlib.resources import files
from itertools import pairwise

import pytest
import torch

from echat.audio.resampling import resample
from echat.audio.waveform import read
from echat.token2wav import streaming
from echat.token2wav.hift.vocoder_stream import cross_fade, push_mel, start_vocoder_stream
from echat.token2wav.noise import frame_noise
from echat.token2wav.streaming import StreamConfig, begin, push, speak_stream
from echat.token2wav.token2wav import Token2Wav
from echat.token2wav.token_encoder import stretch, stretch_at
from echat.token2wav.voice import VoicePrompt

SMALL = StreamConfig(pieces=(5, 7, 11), context=8, lookahead=2)
HOP = 256


@pytest.fixture(scope="module")
def voice(golden) -> VoicePrompt:
    g = golden("streaming")
    return VoicePrompt(g["prompt_token"][0].long(), g["prompt_feat"][0], g["embedding"][0])


def ids_of(n: int) -> list[int]:
    return [(37 * i + i // 5) % 96 for i in range(n)]


def speak(model, slices, voice, config=SMALL, seed=0) -> torch.Tensor:
    return torch.cat([torch.zeros(0), *speak_stream(model, slices, voice, seed, config)])


@torch.inference_mode()
def whole_mel(model, ids, voice, seed=0) -> torch.Tensor:
    """The obvious twin: all ids at once, on the frames and from the noise of the stream."""
    flow, frames = model.flow, model.config.flow.mel_frames(len(ids))
    prompt_ids, prompt_mel, embedding = model.voice_tensors(voice)
    h = flow.encode(torch.cat([prompt_ids, model.check_ids(ids)[None]], dim=1))
    n = prompt_ids.shape[1]
    places = (torch.arange(frames) + 0.5) * flow.config.ids_per_frame - 0.5
    mu = flow.length_regulator(
        torch.cat([stretch(h[:, :n], prompt_mel.shape[1]), stretch_at(h[:, n:], places)], 1).mT
    )
    z = frame_noise(seed, "flow", mu.shape[1], -prompt_mel.shape[1], frames) * flow.config.temperature
    return flow.mel_from(mu, prompt_mel, embedding, z)


def streamed_mel(model, ids, voice, monkeypatch, config) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Mel and sound of a stream, and the frames at which its pieces meet."""
    mels = []

    def spy(vocoder, sound, mel, now, seed):
        mels.append(mel[:, :, :now])
        return push_mel(vocoder, sound, mel, now, seed)

    monkeypatch.setattr(streaming, "push_mel", spy)
    sound = speak(model, [ids], voice, config)
    seams = torch.tensor([mel.shape[2] for mel in mels]).cumsum(0)[:-1]
    return torch.cat(mels, dim=2), sound, [int(seam) for seam in seams]


# --- what a caller may rely on


def test_slices_do_not_matter(golden_token2wav, voice):
    ids = ids_of(15)
    at_once, state = push(golden_token2wav, begin(golden_token2wav, voice, config=SMALL), ids, final=True)
    assert state.is_finished
    for cuts in (range(16), (0, 7, 14, 15), (0, 0, 5, 5, 15, 15)):
        slices = [ids[a:b] for a, b in pairwise(cuts)]
        assert torch.equal(speak(golden_token2wav, slices, voice), at_once)


@pytest.mark.parametrize("n", [0, 1, 5, 6, 12, 31])
def test_the_sound_is_complete(golden_token2wav, voice, n):
    sound = speak(golden_token2wav, [ids_of(n)], voice)
    assert sound.shape == (HOP * golden_token2wav.config.flow.mel_frames(n),)
    assert torch.isfinite(sound).all()


def test_first_sound_comes_with_the_first_piece(golden_token2wav, voice):
    stream, heard = begin(golden_token2wav, voice, config=SMALL), []
    for n, number in enumerate(ids_of(13), start=1):
        sound, stream = push(golden_token2wav, stream, [number])
        heard += [n] * bool(len(sound))
    assert heard == [5, 12]
    sound, stream = push(golden_token2wav, stream, [], final=True)
    assert len(sound) and stream.is_finished


def test_a_state_is_a_value(golden_token2wav, voice):
    ids = ids_of(16)
    first, stream = push(golden_token2wav, begin(golden_token2wav, voice, config=SMALL), ids[:8])
    once, _ = push(golden_token2wav, stream, ids[8:], final=True)
    other = speak(golden_token2wav, [ids], voice, seed=3)
    again, _ = push(golden_token2wav, stream, ids[8:], final=True)
    assert torch.equal(once, again)
    assert torch.equal(torch.cat([first, once]), speak(golden_token2wav, [ids], voice))
    assert not torch.equal(other, torch.cat([first, once]))


def test_cost_of_a_piece_is_bounded(golden_token2wav, voice, monkeypatch):
    seen, frames = golden_token2wav.flow.mel_from, []
    monkeypatch.setattr(
        golden_token2wav.flow, "mel_from", lambda mu, *rest: frames.append(mu.shape[2]) or seen(mu, *rest)
    )
    config = golden_token2wav.config.flow
    stream = begin(golden_token2wav, voice, config=SMALL)
    for _ in range(6):
        _, stream = push(golden_token2wav, stream, ids_of(11))
        assert len(stream.ids) < SMALL.context + max(SMALL.pieces)
        assert stream.vocoder.mel.shape[2] <= golden_token2wav.config.vocoder.reach
    assert max(frames) <= len(voice.mel) + config.mel_frames(SMALL.context + max(SMALL.pieces)) + 2
    assert max(frames[4:]) - min(frames[4:]) <= 2  # the same work, however much was said


def test_what_is_refused(golden_token2wav, voice):
    stream = begin(golden_token2wav, voice, config=SMALL)
    with pytest.raises(ValueError, match="0..95, found 96 at position 1"):
        push(golden_token2wav, stream, [1, 96])
    _, finished = push(golden_token2wav, stream, [1, 2], final=True)
    with pytest.raises(ValueError, match="after the final push"):
        push(golden_token2wav, finished, [3])
    with pytest.raises(ValueError, match="longer than lookahead 4, found"):
        StreamConfig(pieces=(4, 9))
    with pytest.raises(ValueError, match="context: expected at least lookahead 4, found 3"):
        StreamConfig(context=3)


# --- how near it is to the whole


def test_one_piece_is_the_whole(golden_token2wav, voice, close):
    """Nothing was cut, so nothing may differ."""
    ids, frames = ids_of(9), golden_token2wav.config.flow.mel_frames(9)
    phase = begin(golden_token2wav, voice).vocoder.phase
    noise = frame_noise(0, "source", phase.shape[1], 0, frames, HOP)
    twin = whole_mel(golden_token2wav, ids, voice)
    with torch.inference_mode():
        expected = golden_token2wav.vocoder(twin, phase=phase, noise=noise)[0][0]
        z = frame_noise(0, "flow", 80, -len(voice.mel), frames)
        released = golden_token2wav.mel(golden_token2wav.check_ids(ids), voice, z)
    close(speak(golden_token2wav, [ids], voice, StreamConfig()), expected, 1e-4)
    # The released stretching fits the ids into a whole number of frames, ours lets the last one be cut.
    assert (released - twin).abs().mean() < 0.05 * twin.std()


@pytest.mark.parametrize("griffin_lim_iters", [0, 2])
def test_the_vocoder_goes_on_in_phase(golden_token2wav, golden, close, griffin_lim_iters, monkeypatch):
    """Cut anywhere, with enough final mel at the right, the sound is that of the whole mel."""
    vocoder = golden_token2wav.vocoder
    monkeypatch.setattr(
        vocoder, "config", vocoder.config.model_copy(update={"griffin_lim_iters": griffin_lim_iters})
    )
    mel = golden("hift")["mel"][:1]
    mel = torch.cat([mel] * (1 + 120 // mel.shape[2]), dim=2)[:, :, :120]
    phase = torch.linspace(-3, 3, vocoder.config.nb_harmonics + 1)[None, :, None]
    with torch.inference_mode():
        noise = frame_noise(1, "source", phase.shape[1], 0, 120, HOP)
        expected = vocoder(mel, phase=phase.clone(), noise=noise)[0][0]
        sound, pieces = start_vocoder_stream(80, phase), []
        for stop in (40, 41, 77, 120):
            ahead = mel[:, :, sound.frames : stop + vocoder.config.reach + 6]
            piece, sound = push_mel(vocoder, sound, ahead, stop - sound.frames, 1)
            pieces.append(piece)
    close(torch.cat(pieces), expected, 1e-4)


def test_fading_adds_up_to_one():
    ones = torch.ones(1, 2, 9)
    assert torch.equal(cross_fade(ones[..., :4], ones), ones)
    mixed = cross_fade(torch.zeros(5), torch.ones(8))
    assert (mixed.diff() >= 0).all() and 0 < mixed[0] < mixed[4] < 1 == mixed[5]
    assert torch.equal(cross_fade(torch.zeros(0), torch.ones(3)), torch.ones(3))


def test_random_networks_stay_near_the_whole(golden_token2wav, voice, monkeypatch):
    """Noise that belongs to the frame keeps a stream nearer to the whole than another seed is."""
    ids = ids_of(40)
    twin = whole_mel(golden_token2wav, ids, voice)
    other = whole_mel(golden_token2wav, ids, voice, seed=1)
    mel, _, seams = streamed_mel(golden_token2wav, ids, voice, monkeypatch, SMALL)
    assert mel.shape == twin.shape and len(seams) >= 3
    assert (mel - twin).abs().mean() < 0.2 * (other - twin).abs().mean()


@pytest.fixture(scope="module")
def spoken() -> tuple[Token2Wav, list[int]]:
    """The bundled voice, and what it says: the question that comes with it."""
    folder = files("echat") / "models" / "echat-tiny"
    model = Token2Wav.from_folder(str(folder / "token2wav")).requires_grad_(False)
    waveform, rate = read(str(folder / "examples" / "question.wav"))
    return model, model.tokenizer.encode([resample(waveform, rate, 16_000)])[0]


def test_bundled_voice(spoken, monkeypatch):
    """Near the whole, and no click where pieces meet."""
    model, ids = spoken
    config = StreamConfig(pieces=(15, 15, 20), context=40)
    voice = model.voice(None)
    mel, sound, seams = streamed_mel(model, ids, voice, monkeypatch, config)
    twin = whole_mel(model, ids, voice)
    assert mel.shape == twin.shape and len(seams) >= 2
    assert (mel - twin).abs().mean() < 0.15 * twin.std()
    jumps = sound.diff().diff().abs()
    for seam in (HOP * seam for seam in seams):
        around = jumps[max(0, seam - 1500) : seam + 1500]
        assert jumps[seam - 4 : seam + 4].max() <= 1.2 * around.max()
        assert jumps[seam - 4 : seam + 4].max() <= 0.3
