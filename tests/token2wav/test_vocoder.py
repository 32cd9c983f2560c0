"""The vocoder; `echat verify` compares it with golden arrays."""


def test_limits_of_loud_output(vocoder, golden, close):
    g = golden("hift")
    bias, shift = vocoder.conv_post.bias, float(g["loud_bias_shift"])
    bias[:9] += shift
    try:
        close(vocoder.decode(g["mel"], g["source_zero_noise"]), g["wav_loud"], 1e-3)
    finally:
        bias[:9] -= shift
