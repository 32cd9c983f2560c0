"""Synthesis in pieces as the released code does it; `echat verify` compares it with golden arrays."""

import torch

from echat.token2wav.voice import VoicePrompt
from echat.verify.reference_streaming import stream_reference


def voice_from_file(g) -> VoicePrompt:
    return VoicePrompt(g["prompt_token"][0].long(), g["prompt_feat"][0], g["embedding"][0])


def test_two_streams_do_not_disturb_each_other(golden_token2wav, golden):
    g = golden("streaming")
    voice, ids = voice_from_file(g), g["token"][0].tolist()
    alone = list(stream_reference(golden_token2wav, ids, voice, hop=11))
    woven = [[], []]
    streams = [stream_reference(golden_token2wav, row, voice, hop=11) for row in (ids, ids[::-1])]
    for a, b in zip(*streams, strict=True):
        woven[0].append(a)
        woven[1].append(b)
    assert len(alone) == 3
    assert all(torch.equal(a, b) for a, b in zip(alone, woven[0], strict=True))
    assert golden_token2wav.config.flow.mel_frames(int(g["overlap"])) == int(g["mel_overlap_len"])
    whole = golden_token2wav.config.flow.mel_frames(len(ids)) * 256
    assert abs(sum(len(piece) for piece in alone) - whole) <= 2 * 256
