"""Random weights in the layout and size of the released files, to test the whole path without them.

    python scripts/full_size_checkpoint.py FOLDER [--size full|half|tiny]

writes into FOLDER `weights.pt` (888 keys and 7 GB at full size), `llm/` (configuration and a tokenizer of the
right size) and `CosyVoice-300M-25Hz.tar`. The `.pt` is laid out first and filled through a memory map, part
by part: its weights are never in memory together.
"""

import argparse
import json
import mmap
import re
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn

from echat.model.adapter import AdapterConfig
from echat.model.blocks import sinusoids
from echat.model.llm import LLMConfig
from echat.model.speech_encoder import EncoderConfig
from echat.model.speech_llm import SpeechLLMConfig, model_on_meta
from echat.release import cosyvoice_weights
from echat.release.osum_weights import map_key
from echat.token2wav.estimator import EstimatorConfig
from echat.token2wav.flow import Flow, FlowConfig
from echat.token2wav.hift.vocoder import F0PredictorConfig, Vocoder, VocoderConfig
from echat.token2wav.token_encoder import TokenEncoderConfig
from echat.verify.golden_folder import cosyvoice_yaml

WEIGHTS, LLM, TAR = "weights.pt", "llm", "CosyVoice-300M-25Hz.tar"
PART_BYTES = 1 << 30  # of the file that are filled before its mapping is opened anew
TEXT_TABLE = "llama_model.model.embed_tokens.weight"
TIED = ("llama_model.lm_head.weight", "embed_tokens.weight", "lm_head.weight")
SPECIAL_TOKENS = 22  # of Qwen2.5, the first three of them named here
NAMED_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

TINY_MODEL = SpeechLLMConfig(
    encoder=EncoderConfig(dim=64, blocks=1, heads=1, ffn=64),
    adapter=AdapterConfig(dim=64, blocks=1, heads=4, ffn=64),
    llm=LLMConfig(vocab_size=512, dim=64, layers=2, heads=2, kv_heads=1, mlp=64),
)
HALF_MODEL = SpeechLLMConfig(
    llm=LLMConfig(dim=896, layers=24, heads=14, kv_heads=2, mlp=4864)
)  # Qwen2.5-0.5B
MODELS = {"full": SpeechLLMConfig(), "half": HALF_MODEL, "tiny": TINY_MODEL}
TINY_FLOW = FlowConfig(
    input_size=32,
    encoder=TokenEncoderConfig(
        input_size=32, output_size=32, attention_heads=2, linear_units=32, num_blocks=1
    ),
    estimator=EstimatorConfig(
        channels=(16, 16), attention_head_dim=8, num_heads=2, n_blocks=1, num_mid_blocks=1
    ),
)
TINY_VOCODER = VocoderConfig(base_channels=16, f0_predictor=F0PredictorConfig(cond_channels=16))

# our names -> released names, what `our_name` undoes
RENAMES = (
    (r"^encoder\.conv1\.", "encoder.embed.conv.0."),
    (r"^encoder\.conv2\.", "encoder.embed.conv.2."),
    (r"^adapter\.input\.", "speech_transformer.embed.out.0."),
    (r"^adapter\.input_norm\.", "speech_transformer.embed.out.1."),
    (r"^adapter\.", "speech_transformer."),
    (r"^(encoder|speech_transformer)\.blocks\.", r"\1.encoders."),
    (r"\.attention_norm\.", ".norm1."),
    (r"\.feed_forward_norm\.", ".norm2."),
    (r"\.final_norm\.", ".after_norm."),
    (r"\.attention\.query\.", ".self_attn.linear_q."),
    (r"\.attention\.key\.", ".self_attn.linear_k."),
    (r"\.attention\.value\.", ".self_attn.linear_v."),
    (r"\.attention\.out\.", ".self_attn.linear_out."),
    (r"\.feed_forward\.expand\.", ".feed_forward.w_1."),
    (r"\.feed_forward\.contract\.", ".feed_forward.w_2."),
    (r"^subsampler\.convs\.0\.", "down_sample_2.conv.1."),
    (r"^subsampler\.convs\.1\.", "down_sample_2.conv.4."),
    (r"^subsampler\.convs\.2\.", "down_sample_2.conv.7."),
    (r"^projection\.", "speech_llama_proj."),
    (r"^llm\.", "llama_model."),
    (r"^speech_embedding\.", "speech_token_emded."),
)


def released_name(ours: str) -> str:
    """The name in a released file of one of our parameters."""
    name = ours
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    assert map_key(name) == ours, (ours, name)
    return name


def key_shapes(config: SpeechLLMConfig) -> dict[str, tuple[int, ...]]:
    """Every key of a released file but the further names of the text table."""
    state = model_on_meta(config).state_dict()
    shapes = {released_name(name): tuple(tensor.shape) for name, tensor in state.items()}
    encoder, adapter = config.encoder, config.adapter
    shapes |= {f"ln_speech.{part}": (encoder.dim,) for part in ("weight", "bias")}
    shapes["encoder.embed.pos_enc.pe"] = (1, encoder.max_frames, encoder.dim)
    shapes["speech_transformer.embed.pos_enc.pe"] = (1, adapter.max_frames, adapter.dim)
    return shapes


def write_weights(path: Path, config: SpeechLLMConfig, dtype: torch.dtype) -> None:
    """A released `.pt` of random weights: names and offsets first, then values into the mapped file."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        state = {name: torch.empty(shape, dtype=dtype) for name, shape in key_shapes(config).items()}
        state |= {name: state[TEXT_TABLE] for name in TIED}
        with torch.serialization.skip_data(materialize_fake_tensors=True):
            torch.save(state, path)
    torch.manual_seed(0)
    names, filled = sorted(key_shapes(config)), 0
    tensors = map_file(path)
    for name in names:
        if filled > PART_BYTES:
            del tensors  # before the next mapping
            tensors, filled = map_file(path), 0
        fill(name, tensors[name])
        filled += tensors[name].nbytes


def map_file(path: Path) -> dict[str, Tensor]:
    """The memory-mapped tensors of a file; what is assigned to them is stored in the file."""
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


def fill(name: str, tensor: Tensor) -> None:
    """Values with which activations stay of size one: norms 1, biases small, matrices by their fan-in."""
    if name.endswith("pos_enc.pe"):
        layout = "halves" if name.startswith("encoder") else "interleaved"
        tensor[0] = sinusoids(*tensor.shape[1:], layout)  # type: ignore[arg-type]
    elif tensor.ndim == 1:
        is_norm = "norm" in name or name.startswith("ln_speech") or name.endswith("embed.out.1.weight")
        tensor.normal_(1.0 if is_norm and name.endswith("weight") else 0.0, 0.02)
    else:
        tensor.normal_(0.0, 0.02 if "embed" in name or "emded" in name else tensor[0].numel() ** -0.5)


def write_llm(folder: Path, config: LLMConfig) -> None:
    """`config.json` of the language model, and a tokenizer with as many ids as Qwen2.5 has."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = config.to_transformers().to_dict() | {"model_type": "qwen2"}
    (folder / "config.json").write_text(json.dumps(settings, default=str), encoding="utf-8")
    ids = min(151_643, config.vocab_size - SPECIAL_TOKENS)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = letters + [f"word{number}" for number in range(ids - len(letters))]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    more = [f"<|special_{number}|>" for number in range(SPECIAL_TOKENS - len(NAMED_TOKENS))]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in (*NAMED_TOKENS, *more)])
    tokenizer.save(str(folder / "tokenizer.json"))


def write_synthesis(path: Path, flow: FlowConfig, vocoder: VocoderConfig) -> None:
    """The tar of the synthesis: networks under the released (old) names, and their sizes."""
    with TemporaryDirectory() as scratch:
        home = Path(scratch)
        torch.save(random_state(Flow, flow), home / "flow.pt")
        torch.save(random_state(Vocoder, vocoder), home / "hift.pt")
        (home / "cosyvoice.yaml").write_text(cosyvoice_yaml(stated(flow, vocoder)), encoding="utf-8")
        with tarfile.open(path, "w") as tar:
            tar.add(home, path.stem)


def released_shapes(module: nn.Module, layout: str = "old") -> dict[str, list[int]]:
    """Names and shapes that the released file of `module` has; a vocoder's in one of the two layouts."""
    normed = _weight_normed(module) if isinstance(module, Vocoder) else set()
    magnitude, direction = cosyvoice_weights.WEIGHT_NORM_LAYOUTS[layout]
    shapes: dict[str, list[int]] = {}
    for name, tensor in module.state_dict().items():
        prefix = name.removesuffix("weight")
        if name.endswith(".weight") and prefix[:-1] in normed:
            shapes[prefix + magnitude] = [tensor.shape[0]] + [1] * (tensor.ndim - 1)
            shapes[prefix + direction] = list(tensor.shape)
        else:
            shapes[name] = list(tensor.shape)
    return shapes


def _weight_normed(vocoder: Vocoder) -> set[str]:
    """Every convolution except those that bring in the source."""
    return {
        name
        for name, module in vocoder.named_modules()
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d) and not name.startswith("source_downs.")
    }


def random_state(network: type[nn.Module], config: FlowConfig | VocoderConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        module = network(config)
    torch.manual_seed(0)
    shapes = released_shapes(module)
    state = {name: torch.empty(shape) for name, shape in shapes.items()}
    for name, tensor in state.items():
        fill(name, tensor)
    return state


def stated(flow: FlowConfig, vocoder: VocoderConfig) -> dict[str, dict[str, object]]:
    """Both configurations under the names of the released recipe."""
    values = flow.model_dump(mode="json")
    cfm = ("sigma_min", "training_cfg_rate", "inference_cfg_rate", "t_scheduler")
    values["cfm"] = {name: values[name] for name in cfm}
    values["length_regulator"] = {"sampling_ratios": [1] * flow.regulator_layers}
    hift = vocoder.model_dump(mode="json", exclude={"istft_n_fft", "istft_hop"})
    hift["istft_params"] = {"n_fft": vocoder.istft_n_fft, "hop_len": vocoder.istft_hop}
    return {"flow": values, "hift": hift}


def make(folder: Path, size: str, dtype: torch.dtype = torch.bfloat16) -> None:
    """Whatever is not there yet; the `.pt` last, so that it stands for a complete folder."""
    folder.mkdir(parents=True, exist_ok=True)
    is_tiny = size == "tiny"
    write_llm(folder / LLM, MODELS[size].llm)
    write_synthesis(
        folder / TAR,
        TINY_FLOW if is_tiny else FlowConfig(),
        TINY_VOCODER if is_tiny else VocoderConfig(),
    )
    unfinished = folder / f"unfinished.{WEIGHTS}"
    write_weights(unfinished, MODELS[size], dtype)
    unfinished.rename(folder / WEIGHTS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=MODELS, default="full")
    options = parser.parse_args()
    make(options.folder, options.size)
