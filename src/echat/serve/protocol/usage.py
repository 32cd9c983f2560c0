"""Usage of a reply (input, output and cached tokens), and its thought as JSON values."""

from __future__ import annotations

from typing import Any

from echat.dialogue.thinking import LabelThought, Thought
from echat.infer.events import Reply


def usage(reply: Reply | None) -> dict[str, Any]:
    """Token counts by modality."""
    counts = reply.counts if reply else {}
    read = counts.get("prefilled_tokens", 0)
    cached = counts.get("cached_tokens", 0)
    audio_in = counts.get("audio_tokens", 0)
    text_out = len(reply.text_ids) if reply else 0
    audio_out = len(reply.speech_ids) if reply else 0
    return {
        "total_tokens": read + cached + text_out + audio_out,
        "input_tokens": read + cached,
        "output_tokens": text_out + audio_out,
        "input_token_details": {
            "text_tokens": read + cached - audio_in,
            "audio_tokens": audio_in,
            "cached_tokens": cached,
        },
        "output_token_details": {"text_tokens": text_out, "audio_tokens": audio_out},
    }


def thought_values(thought: Thought) -> dict[str, Any]:
    """A thought as JSON values: `form`, and its text or labels."""
    form = "label" if isinstance(thought, LabelThought) else "language"
    return {"form": form, **label_values(thought)}


def label_values(thought: Thought) -> dict[str, Any]:
    """The labels or the text of a thought, without unknown ones."""
    return {name: value for name, value in thought.as_dict().items() if value}
