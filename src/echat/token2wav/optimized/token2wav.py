"""Quantized and packed token2wav for inference on a CPU: `optimize(model, "int8")`."""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from echat.kernels.packed_linear import Precision, at_least_int8, pack_merged, replace_linears
from echat.token2wav.flow import Flow, FlowMatching, Velocity
from echat.token2wav.optimized.estimator import FastEstimator
from echat.token2wav.optimized.vocoder import FastVocoder
from echat.token2wav.token2wav import Token2Wav


class OptimizedToken2Wav(Token2Wav):
    """Synthesis with optimized flow and vocoder; it cannot be trained, saved or moved."""

    def __init__(self, plain: Token2Wav, precision: Precision) -> None:
        nn.Module.__init__(self)
        kept = {name: value for name, value in vars(plain).items() if name not in vars(self)}
        vars(self).update(kept)
        self.flow = OptimizedFlow(plain.flow, precision)
        self.vocoder = FastVocoder(plain.vocoder)
        self.eval().requires_grad_(False)

    def save(self, folder: str | Path, dtype: torch.dtype | None = torch.float16) -> None:
        raise ValueError(f"{folder}: an optimized token2wav cannot be saved; save the one it was made of")


class OptimizedFlow(Flow):
    """The flow over packed layers."""

    def __init__(self, plain: Flow, precision: Precision) -> None:
        nn.Module.__init__(self)
        self.config = plain.config
        self.input_embedding = plain.input_embedding
        self.spk_embed_affine_layer = plain.spk_embed_affine_layer
        self.length_regulator = plain.length_regulator
        self.encoder = replace_linears(copy.deepcopy(plain.encoder))  # type: ignore[assignment]
        self.encoder_proj = pack_merged([plain.encoder_proj], many_rows=True)  # type: ignore[assignment]
        self.decoder = OptimizedFlowMatching(plain.decoder, precision)


class OptimizedFlowMatching(FlowMatching):
    """The solver over a fast estimator."""

    def __init__(self, plain: FlowMatching, precision: Precision) -> None:
        nn.Module.__init__(self)
        self.config = plain.config
        like = plain.estimator.final_proj.weight
        self.fast = FastEstimator(plain.estimator, [t for t, _ in plain.steps(like)], precision)

    def field(self, mu: Tensor, spks: Tensor, cond: Tensor) -> Velocity:
        guidance = self.config.inference_cfg_rate
        if not guidance:
            conditioned = self.fast.field(mu, spks, cond)
            return lambda x, step, _: conditioned(x, step)
        both = self.fast.field(*(torch.cat([given, torch.zeros_like(given)]) for given in (mu, spks, cond)))

        def guided(x: Tensor, step: int, _: Tensor) -> Tensor:
            with_condition, free = both(x, step).chunk(2)
            return torch.lerp(free, with_condition, 1 + guidance)

        return guided


def optimize(model: Token2Wav, precision: Precision = "fp32") -> Token2Wav:
    """A copy with packed weights; the model itself is not changed.

    Without `precision` the mel is that of the model up to the order of sums. `bf16` and `int8` round what
    the transformers of the flow multiply, nothing else; the vocoder always computes in float32. Move the
    model to its device before.
    """
    found = model.flow.input_embedding.weight.dtype
    if found != torch.float32:
        raise ValueError(
            f"optimize: expected weights in float32, found {found}; load them so, name the precision here"
        )
    return OptimizedToken2Wav(model, at_least_int8(precision))
