"""SmolLM2 out of a GGUF file as a folder of Hugging Face, its vocabulary cut to what a dialogue needs.

    python scripts/smollm2_from_gguf.py model.gguf FOLDER [--size 16384] [TEXT ...]    (needs `gguf`)

A TEXT is a `.jsonl` or `.yaml` file whose strings are tokenised; the tokens that they use most stay, with
those that these are merged from, and the earliest merges fill the rest up to `--size`, for they are the most
frequent of the original training. Our prompts and labels always keep their ids, the given texts nearly always
(the share that does not is printed), and any text is still encoded, in more pieces. The Chinese words of
labels and prompts, which SmolLM2 writes byte by byte, become one id each. `kept_ids.json` lists the original
id of each row.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from echat.data.tools.text_tokenizer_training import fixed_texts, save_tokenizer
from echat.dialogue.vocabulary import CHATML, UNKNOWN

SPECIAL = CHATML.special_tokens
ROWS_MULTIPLE = 64  # of the text table, so that products with it are fast
_OTHER_SCRIPT = re.compile(r"[^\x00-\x7f]+")
Merge = tuple[str, str]


def make_tokenizer(tokens: Sequence[str], merges: Sequence[Merge]) -> Tokenizer:
    """Byte-level BPE as SmolLM2 splits text: digits one by one, then words with their leading space."""
    tokenizer = Tokenizer(
        models.BPE(vocab={token: id for id, token in enumerate(tokens)}, merges=list(merges))
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def cut(tokens: Sequence[str], merges: Sequence[Merge], texts: Iterable[str], size: int) -> list[int]:
    """The ids that stay, rising: specials, bytes, prompts and labels, what `texts` use, frequent merges.

    Ids that texts use come by how often, each with those that it is merged from; what no longer fits is left
    out. Raises ValueError where what must stay needs more than `size`.
    """
    ids = {token: number for number, token in enumerate(tokens)}
    parents = {left + right: (left, right) for left, right in reversed(merges)}  # the earliest wins
    whole = make_tokenizer(tokens, merges)

    def with_parents(token: int) -> set[int]:
        found, todo = set(), {token}
        while todo:
            one = todo.pop()
            found.add(one)
            todo |= {ids[part] for part in parents.get(tokens[one], ())} - found
        return found

    bytes_there = ids.keys() & set(pre_tokenizers.ByteLevel.alphabet())  # some control bytes have no id
    kept = {ids[token] for token in (*SPECIAL, *bytes_there)}
    for text in fixed_texts():
        kept |= {one for token in whole.encode(text).ids for one in with_parents(token)}
    if len(kept) > size:
        raise ValueError(
            f"vocabulary: expected room for the {len(kept)} ids of prompts and labels, found {size}"
        )
    used = Counter(token for text in texts for token in whole.encode(text).ids)
    for token, _ in used.most_common():
        added = with_parents(token) - kept
        kept |= added if len(kept) + len(added) <= size else set()
    for left, right in merges:
        if len(kept) < size and ids[left] in kept and ids[right] in kept:
            kept.add(ids[left + right])
    return sorted(kept)


def cut_tokenizer(tokens: Sequence[str], merges: Sequence[Merge], kept: Sequence[int]) -> Tokenizer:
    """The tokenizer of the kept ids, numbered from zero, and `new_tokens` behind them."""
    own = [tokens[number] for number in kept]
    there = set(own)
    tokenizer = make_tokenizer(own, [m for m in merges if {*m, m[0] + m[1]} <= there])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in new_tokens()])
    return tokenizer


def new_tokens() -> list[str]:
    """What becomes an id of its own: words in another script in prompts and labels, the unknown label."""
    return [*sorted({word for text in fixed_texts() for word in _OTHER_SCRIPT.findall(text)}), UNKNOWN]


def share_changed(whole: Tokenizer, small: Tokenizer, kept: Sequence[int], texts: Iterable[str]) -> float:
    """The share of the texts that the cut writes in other ids than before."""
    new, changed, count = new_tokens(), 0, 0
    for text in texts:
        count += 1
        if not any(token in text for token in new):
            changed += [kept[number] for number in small.encode(text).ids] != whole.encode(text).ids
    return changed / max(count, 1)


def strings_of(path: Path) -> Iterator[str]:
    """Every string in a `.jsonl` or `.yaml` file."""
    content = path.read_text(encoding="utf-8")
    rows = map(json.loads, content.splitlines()) if path.suffix == ".jsonl" else [yaml.safe_load(content)]
    for row in rows:
        yield from _strings(row)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def hugging_face_tensors(reader: Any, heads: int, kv_heads: int) -> dict[str, Tensor]:
    """All tensors in float32 under the names of transformers."""
    from gguf.quants import dequantize

    tensors = {}
    for entry in reader.tensors:
        weight = torch.from_numpy(dequantize(entry.data, entry.tensor_type).copy())
        if ".attn_q." in entry.name or ".attn_k." in entry.name:
            weight = halves_apart(weight, heads if ".attn_q." in entry.name else kv_heads)
        tensors[_name(entry.name)] = weight
    return tensors


def halves_apart(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys from GGUF's order, rotary pairs side by side, to halves of a head."""
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


_NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def _name(name: str) -> str:
    if name in ("token_embd.weight", "output_norm.weight"):
        return {"t": "model.embed_tokens.weight", "o": "model.norm.weight"}[name[0]]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{_NAMES[part]}.{kind}"


def config_of(reader: Any, rows: int) -> dict[str, Any]:
    """`config.json` for a text table of so many rows."""

    def value(name: str) -> Any:
        return reader.fields[f"llama.{name}"].contents()

    return {
        "model_type": "llama",
        "vocab_size": rows,
        "hidden_size": value("embedding_length"),
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": value("attention.head_count"),
        "num_key_value_heads": value("attention.head_count_kv"),
        "max_position_embeddings": value("context_length"),
        "rms_norm_eps": round(value("attention.layer_norm_rms_epsilon"), 9),
        "rope_theta": value("rope.freq_base"),
        "tie_word_embeddings": True,
        "hidden_act": "silu",
    }


def convert(source: Path, folder: Path, texts: Sequence[Path], size: int) -> tuple[list[int], float]:
    """Write the folder; returns the original ids that stay, and the share of texts that are changed."""
    from gguf import GGUFReader

    reader = GGUFReader(source)
    tokens: list[str] = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in reader.fields["tokenizer.ggml.merges"].contents()]
    strings = [string for path in texts for string in strings_of(path)]
    kept = cut(tokens, merges, strings, size - len(new_tokens()))
    small = cut_tokenizer(tokens, merges, kept)
    changed = share_changed(make_tokenizer(tokens, merges), small, kept, strings)
    config = config_of(reader, -(-(len(kept) + len(new_tokens())) // ROWS_MULTIPLE) * ROWS_MULTIPLE)
    tensors = hugging_face_tensors(reader, config["num_attention_heads"], config["num_key_value_heads"])
    table = tensors["model.embed_tokens.weight"]
    rows = table.mean(0).repeat(config["vocab_size"], 1)  # what is new begins as an average word
    rows[: len(kept)] = table[kept]
    save_tokenizer(small, folder)
    save_file(tensors | {"model.embed_tokens.weight": rows}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    (folder / "kept_ids.json").write_text(json.dumps(kept), encoding="utf-8")
    return kept, changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("texts", type=Path, nargs="*")
    parser.add_argument("--size", type=int, default=16_384, help="rows of the text table")
    arguments = parser.parse_args()
    kept, changed = convert(arguments.source, arguments.folder, arguments.texts, arguments.size)
    print(f"{arguments.folder}: {len(kept)} ids; {changed:.1%} of the texts have other ids than before")


if __name__ == "__main__":
    main()
