"""Tolerances of all golden values: absolute in fp32, relative to the largest value of the array in bf16.

fp32: a few times what equivalent float32 programs differ by.
bf16: the recording's own bfloat16 run differed from its float32 run by 1.1e-2 of 1.7 (frames for the language
model, 0.65 %), 0.17 of 13 (label logits, 1.3 %) and 5.1e-4 (loss), and bfloat16 linears move a mel by up to
0.04 of 5 (0.8 %). Another program or chip rounds differently, so four times that is allowed.
"""

from echat.verify.comparison import Tolerance

# --- features
LOG_MEL, FEATURE, FBANK, FILTERS = map(Tolerance, (1e-4, 1e-5, 1e-3, 1e-6))
ROUNDED_LOG_MEL = Tolerance(5e-2)  # recorded after a cast to bfloat16

# --- model
FRAMES = Tolerance(2e-5, 0.026)
LOGITS = Tolerance(2e-4, 0.052)
LOSS = Tolerance(1e-5, 0.04)
# Sums over the width of a position: values cancel there, roundings do not.
SUM_OF_EMBEDDING, SUM_OF_HIDDEN = Tolerance(2e-4, 0.05), Tolerance(4e-4, 0.15)
SUM_OF_LOGITS = Tolerance(1e-5, 0.15)  # fp32: per class
# Of a norm, in parts of it. A gradient goes with the probabilities that are still wrong, and a logit that is
# off by 0.17 is a probability off by a fifth; twice that is allowed.
GRADIENT = Tolerance(1e-3, 0.4)
PROBABILITY = Tolerance(1e-5)

# --- token2wav
ENCODER, REGULATED, ESTIMATOR = Tolerance(2e-5, 0.03), Tolerance(5e-5, 0.03), Tolerance(5e-5, 0.03)
MEL = Tolerance(1e-4, 0.032)
PITCH, SOURCE, SOURCE_SPECTRUM, SPECTRUM, DECODED = map(Tolerance, (1e-3, 1e-4, 1e-5, 2e-4, 5e-5))
LOUD, PITCHED_SOUND = Tolerance(1e-3), Tolerance(1e-3)  # past the limiter; after the pitch was computed anew
SOUND_SOURCE, SOUND = Tolerance(5e-4), Tolerance(3e-3)  # a tiny pitch difference accumulates into phase
