"""Synthesis in pieces as the released code does it."""

import torch

from echat.token2wav.voice import VoicePrompt
from echat.verify.reference_streaming import stream_reference, synthesize_piece


def voice_of(g) -> VoicePrompt:
    return VoicePrompt(g["prompt_token"][0].long(), g["prompt_feat"][0], g["embedding"][0])


def test_pieces(golden_token2wav, golden, close, monkeypatch):
    g = golden("streaming")
    hop, voice, state = int(g["hop"]), voice_of(g), None
    mels, given = [], []
    flow_mel, decode = golden_token2wav.flow.mel_from, golden_token2wav.vocoder.decode
    monkeypatch.setattr(golden_token2wav.flow, "mel_from", lambda *a: mels.append(flow_mel(*a)) or mels[-1])
    monkeypatch.setattr(
        golden_token2wav.vocoder, "decode", lambda mel, s: given.append(mel.shape[2]) or decode(mel, s)
    )
    for index, n in enumerate(g["chunk_token_lens"].tolist()):
        ids = g["token"][0, index * hop : index * hop + n]
        sound, state = synthesize_piece(
            golden_token2wav, ids, voice, state, index == 2, g[f"z{index}"], torch.zeros(1, 9, 1),
            quiet_source=True,
        )  # fmt: skip
        close(mels[index], g[f"flow_mel{index}"], 1e-4)
        assert given[index] == int(g[f"hift_mel_len{index}"])
        close(sound, g[f"wav{index}"][0], 3e-3)
    assert state is None
    assert golden_token2wav.config.flow.mel_frames(int(g["overlap"])) == int(g["mel_overlap_len"])


def test_two_streams_do_not_disturb_each_other(golden_token2wav, golden):
    g = golden("streaming")
    voice, ids = voice_of(g), g["token"][0].tolist()
    alone = list(stream_reference(golden_token2wav, ids, voice, hop=11))
    woven = [[], []]
    streams = [stream_reference(golden_token2wav, row, voice, hop=11) for row in (ids, ids[::-1])]
    for a, b in zip(*streams, strict=True):
        woven[0].append(a)
        woven[1].append(b)
    assert len(alone) == 3
    assert all(torch.equal(a, b) for a, b in zip(alone, woven[0], strict=True))
    whole = golden_token2wav.config.flow.mel_frames(len(ids)) * 256
    assert abs(sum(len(piece) for piece in alone) - whole) <= 2 * 256
