"""Checks of greedy generations: prompt, logits of each step, ids, and what the reference returned.

In bfloat16 one different id would change every later step. There the recorded ids are forced, logits are
compared at each of them, and an id is compared only where rounding cannot have decided it.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from echat.dialogue.rendering import Segment, plain_ids
from echat.dialogue.tasks import DecodingDefaults, Sampling, Task, get_task
from echat.dialogue.turns import AssistantTurn, Conversation, Turn, UserTurn
from echat.infer.decoding import DecodingRules, ForcedDecoding, GenerationState
from echat.infer.generation import SequenceState, generate
from echat.infer.prompt_cache import Prompt
from echat.infer.reply_stream import parse_output
from echat.verify.comparison import Check, check_equal
from echat.verify.golden_folder import GoldenModel
from echat.verify.tolerances import LOGITS, SUM_OF_EMBEDDING

TASK_OF_MODE = {
    "understanding": "asr",
    "s2t_chat": "s2t",
    "s2t_chat_think": "s2t_think_label",
    "t2t": "t2t",
    "tts": "tts",
    "s2s": "s2s",
    "s2s_think": "s2s_think_label",
    "s2s multi-turn": "s2s",
}
Run = dict[str, Any]
Values = dict[str, Tensor]


def generate_checks(golden: GoldenModel) -> Iterator[Check]:
    """Every recorded generation: prompt, logits of each step, ids, and what the reference returned."""
    runs = golden.read_json("generate.json")
    arrays = golden.arrays("generate_logits.npz")
    for name, run in runs.items():
        values = {key.removeprefix(f"{name}/"): v for key, v in arrays.items() if key.startswith(f"{name}/")}
        for check in _run_checks(golden, runs, name, run, values):
            yield replace(check, name=f"{name}/{check.name}")


def _run_checks(
    golden: GoldenModel, runs: dict[str, Run], name: str, run: Run, values: Values
) -> Iterator[Check]:
    engine, backend, task = golden.engine, golden.backend, _task(run)
    conversation = Conversation(_turns(golden, runs, name))
    segments = engine.render(conversation, task)
    embeds = engine.embed(segments)
    rules = engine.decoding_rules(conversation, task, _decoding(run, task))
    state = ForcedDecoding(rules, forced_ids=run["output_ids"]) if backend.is_bf16 else GenerationState(rules)
    steps = list(generate(golden.model, SequenceState(Prompt(embeds), state)))
    yield check_equal("prefix_layout", _flat(segments), _flat_golden(golden, run["prefix_layout"]))
    yield check_equal("prefix_length", embeds.shape[1], run["prefix_length"])
    embed_sums = embeds[0].float().sum(-1)
    yield backend.check_close("prefix_embeds_sum", embed_sums, values["prefix_embeds_sum"], SUM_OF_EMBEDDING)
    found = [step.logits[ids.long()] for step, ids in zip(steps, values["top_ids"])]  # also right in a tie
    yield backend.check_close("top_logits", torch.stack(found), values["top_logits"], LOGITS)
    yield backend.check_close("first_logits", steps[0].logits, values["first_logits"], LOGITS)
    if "first_speech_logits" in values:
        first = next((step.logits for step in steps if step.is_speech), torch.empty(0))
        yield backend.check_close("first_speech_logits", first, values["first_speech_logits"], LOGITS)
    if isinstance(state, ForcedDecoding):
        yield _certain_ids(golden, rules, state, values)
    else:
        yield from _written(golden, run, state)


# --- output


def _written(golden: GoldenModel, run: Run, state: GenerationState) -> Iterator[Check]:
    """Generated ids, their parts, and the reply parsed from them."""
    yield check_equal("output_ids", state.ids, run["output_ids"])
    if "text_ids" in run:
        yield check_equal("text_ids", state.text_ids, run["text_ids"])
    if "speech_ids" in run:
        yield check_equal("speech_ids", state.speech_ids, run["speech_ids"])
    yield from _returned(golden, run["reference_return"], state)


def _returned(golden: GoldenModel, returned: Run, state: GenerationState) -> Iterator[Check]:
    """The reply as the reference returned it; of mixed speech its callers drop the first marker."""
    reply = parse_output(golden.engine.tokenizer, state)
    if "text" in returned:
        yield check_equal("reference_return/text", reply.raw_text, returned["text"])
    if "speech_ids" in returned:
        boundary = golden.engine.vocabulary.speech_boundary
        spoken = [id_ for id_ in returned["speech_ids"] if id_ != boundary]
        yield check_equal("reference_return/speech_ids", list(reply.speech_ids), spoken)


def _certain_ids(golden: GoldenModel, rules: DecodingRules, state: ForcedDecoding, values: Values) -> Check:
    """The choices at the steps whose golden margin exceeds the tolerance of the logits."""
    allowed = golden.backend.allowed(values["top_logits"], LOGITS)
    ids = golden.engine.vocabulary
    shaken = ForcedDecoding(rules, forced_ids=state.forced_ids)
    for best, logits, id_ in zip(values["top_ids"], values["top_logits"], state.forced_ids):
        classes = ids.speech_classes if shaken.next_is_speech else ids.text_size
        scores = torch.full((classes,), float(logits.min()))  # no other id has more
        scores[best.long()] = logits
        scores[id_] -= allowed
        shaken.next_id(scores)
    certain = [n for n, (a, b) in enumerate(zip(shaken.free_choices, state.forced_ids)) if a == b]
    name = f"output_ids ({len(certain)} of {len(state.forced_ids)}: margin > {allowed:.1g})"
    return check_equal(name, [state.free_choices[n] for n in certain], [state.forced_ids[n] for n in certain])


# --- input


def _task(run: Run) -> Task:
    if run["mode"] not in TASK_OF_MODE:
        raise ValueError(
            f"generate.json: expected a mode of {', '.join(TASK_OF_MODE)}, found {run['mode']!r}; record "
            "the run under one of these names"
        )
    return get_task(TASK_OF_MODE[run["mode"]])


def _decoding(run: Run, task: Task) -> DecodingDefaults:
    """Greedy, with the penalty and the limits of the run."""
    settings = run["reference_sampling"]
    rule = Sampling(repetition_penalty=settings.get("repetition_penalty", 1.0))
    limit = settings.get("max_total_generated", settings.get("max_new_tokens"))
    is_constrained = task.writes_text and task.writes_speech and "trigger" not in run.get("note", "")
    return DecodingDefaults(rule, rule, limit, constrain_age=is_constrained)


def _turns(golden: GoldenModel, runs: dict[str, Run], name: str) -> list[Turn]:
    """The question of a run, after the turns that earlier runs of the same dialogue recorded."""
    run = runs[name]
    waves = [piece["wave"] for piece in run["prefix_layout"] if "wave" in piece]
    turns: list[Turn] = []
    for number, wave in enumerate(waves[:-1], start=1):
        past = runs[re.sub(r"turn\d+$", f"turn{number}", name)]
        turns.append(UserTurn(audio=golden.mel(wave)))
        turns.append(AssistantTurn(text_ids=past["text_ids"], raw_speech_ids=past["speech_ids"]))
    audio = golden.mel(waves[-1]) if waves else None
    return [*turns, UserTurn(text=run.get("text"), audio=audio, prompt=run.get("prompt"))]


def _flat(segments: list[Segment]) -> list[str]:
    """One string per element, so that prompts can be compared element by element."""
    return ["audio" if kind == "audio" else f"{kind} {value}" for kind, value in plain_ids(segments)]


def _flat_golden(golden: GoldenModel, layout: list[dict[str, Any]]) -> list[str]:
    words: list[str] = []
    for piece in layout:
        if "wave" in piece:
            words.append("audio")
        elif "speech_ids" in piece:
            words += [f"speech {i}" for i in piece["speech_ids"]]
        else:
            ids = piece["text_ids"] if "text_ids" in piece else golden.engine.tokenizer.encode(piece["text"])
            words += [f"text {i}" for i in ids]
    return words
