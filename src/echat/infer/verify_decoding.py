"""Checks of a model folder that concern decoding: greedy generations id for id, and the rules one by one."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from echat.dialogue.layout import interleave
from echat.dialogue.rendering import Segment, plain_ids
from echat.dialogue.tasks import DecodingDefaults, Sampling, Task, get_task
from echat.dialogue.turns import AssistantTurn, Conversation, Turn, UserTurn
from echat.infer import sampling
from echat.infer.check import Check, close, same
from echat.infer.decoding import Writing
from echat.infer.generation import Step, generate
from echat.infer.sampling import AgeSlot, RepeatGuard

if TYPE_CHECKING:
    from echat.infer.verify_model import GoldenModel

LOGITS = 2e-4
SUM_OF_EMBEDDING = 2e-4  # sums over the width of one position
PROBABILITY = 1e-5
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


# --- generations


def generate_checks(golden: "GoldenModel") -> Iterator[Check]:
    """Every recorded generation: prompt, logits of each step, ids, and what the reference returned."""
    runs = golden.read_json("generate.json")
    arrays = golden.arrays("generate_logits.npz")
    for name, run in runs.items():
        values = {key.removeprefix(f"{name}/"): v for key, v in arrays.items() if key.startswith(f"{name}/")}
        for check in _run_checks(golden, runs, name, run, values):
            yield replace(check, name=f"{name}/{check.name}")


def _run_checks(
    golden: "GoldenModel", runs: dict[str, Run], name: str, run: Run, values: dict[str, Tensor]
) -> Iterator[Check]:
    engine, task = golden.engine, get_task(TASK_OF_MODE[run["mode"]])
    conversation = Conversation(_turns(golden, runs, name))
    segments = engine.render(conversation, task)
    embeds = engine.embed(segments)
    steps, writing = _write(golden, run, task, conversation, embeds)
    yield same("prefix_layout", _flat(segments), _flat_golden(golden, run["prefix_layout"]))
    yield same("prefix_length", embeds.shape[1], run["prefix_length"])
    yield close("prefix_embeds_sum", embeds[0].sum(-1), values["prefix_embeds_sum"], SUM_OF_EMBEDDING)
    yield same("output_ids", writing.ids, run["output_ids"])
    yield _top_logits(steps, values)
    yield close("first_logits", steps[0].logits, values["first_logits"], LOGITS)
    if "first_speech_logits" in values:
        first = next((step.logits for step in steps if step.is_speech), torch.empty(0))
        yield close("first_speech_logits", first, values["first_speech_logits"], LOGITS)
    if "text_ids" in run:
        yield same("text_ids", writing.text_ids, run["text_ids"])
    if "speech_ids" in run:
        yield same("speech_ids", writing.speech_ids, run["speech_ids"])
    yield from _returned(golden, task, run["reference_return"], writing)


def _returned(golden: "GoldenModel", task: Task, returned: Run, writing: Writing) -> Iterator[Check]:
    """The reply as the reference returned it; of mixed speech its callers drop the first marker."""
    reply = golden.engine.finish(writing, task)
    if "text" in returned:
        yield same("reference_return/text", reply.raw_text, returned["text"])
    if "speech_ids" in returned:
        boundary = golden.engine.vocabulary.speech_boundary
        spoken = [id_ for id_ in returned["speech_ids"] if id_ != boundary]
        yield same("reference_return/speech_ids", list(reply.speech_ids), spoken)


def _write(
    golden: "GoldenModel", run: Run, task: Task, conversation: Conversation, embeds: Tensor
) -> tuple[list[Step], Writing]:
    """Greedy, with the penalty and the limits of the run."""
    settings = run["reference_sampling"]
    rule = Sampling(repetition_penalty=settings.get("repetition_penalty", 1.0))
    limit = settings.get("max_total_generated", settings.get("max_new_tokens"))
    is_constrained = task.writes_text and task.writes_speech and "trigger" not in run.get("note", "")
    decoding = DecodingDefaults(rule, rule, limit, constrain_age=is_constrained)
    plan = golden.engine.plan(conversation, task, decoding)
    pairs = list(generate(golden.model, embeds, plan))
    return [step for step, _ in pairs], pairs[-1][1]


def _turns(golden: "GoldenModel", runs: dict[str, Run], name: str) -> list[Turn]:
    """The question of a run, after the turns that earlier runs of the same dialogue recorded."""
    run = runs[name]
    waves = [piece["wave"] for piece in run["prefix_layout"] if "wave" in piece]
    turns: list[Turn] = []
    for number, wave in enumerate(waves[:-1], start=1):
        past = runs[re.sub(r"turn\d+$", f"turn{number}", name)]
        codec_ids = [i for i in past["speech_ids"] if i != golden.engine.vocabulary.speech_boundary]
        turns.append(UserTurn(audio=golden.mel(wave)))
        turns.append(AssistantTurn(text_ids=past["text_ids"], speech_ids=codec_ids))
    audio = golden.mel(waves[-1]) if waves else None
    return [*turns, UserTurn(text=run.get("text"), audio=audio, prompt=run.get("prompt"))]


def _flat(segments: list[Segment]) -> list[str]:
    """One word per element, so that prompts can be compared place by place."""
    return ["audio" if kind == "audio" else f"{kind} {value}" for kind, value in plain_ids(segments)]


def _flat_golden(golden: "GoldenModel", layout: list[dict[str, Any]]) -> list[str]:
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


def _top_logits(steps: list[Step], values: dict[str, Tensor]) -> Check:
    """The logits of the recorded best ids, step by step; also right when two of them tie."""
    found = [step.logits[ids.long()] for step, ids in zip(steps, values["top_ids"])]
    return close("top_logits", torch.stack(found), values["top_logits"], LOGITS)


# --- rules


def processor_checks(golden: "GoldenModel") -> Iterator[Check]:
    """Repeat block, age slot, stop rules, interleaving and sampling filters, case by case."""
    cases = golden.read_json("processors.json")
    parts = {
        "ngram": _ngram,
        "stop": _stop,
        "max_tokens": _max_tokens,
        "interleave": _interleave,
        "interleave_think": _interleave,
        "sampling_filter": _sampling_filter,
    }
    for part, check in parts.items():
        for number, case in enumerate(cases.get(part, [])):
            yield check(golden, case, f"{part}/{number}")
    yield from _trigger(golden, cases.get("trigger", []))


def repeat_guard(config: dict[str, Any]) -> RepeatGuard:
    """The repeat block with the limits of a folder's `config.json`."""
    limits = config["generation"]["ngram"]
    return RepeatGuard(
        limits["speech_token_num"],
        limits["repeat_times"],
        limits["window_size"],
        limits["window_repeat"],
        {int(id_): times for id_, times in limits["special_repeat"].items()},
        {int(id_): tuple(pair) for id_, pair in limits["special_window"].items()},
    )


def _ngram(golden: "GoldenModel", case: Run, name: str) -> Check:
    blocked = repeat_guard(golden.config).blocked(case["ids"]) if case["phase_on"] else []
    return same(name, blocked, case["blocked"])


def _stop(golden: "GoldenModel", case: Run, name: str) -> Check:
    ids = golden.engine.vocabulary
    return same(
        name, sampling.is_spoken_to_the_end(case["ids"], ids.text_end, ids.speech_boundary), case["stop"]
    )


def _max_tokens(golden: "GoldenModel", case: Run, name: str) -> Check:
    """A reply that has one id less than the recorded length writes one more."""
    engine = golden.engine
    conversation = Conversation([UserTurn(text="")])
    plan = engine.plan(conversation, "t2t", DecodingDefaults(max_new_ids=case["max_tokens"]))
    writing = Writing(plan, ids=[0] * (case["length"] - 1))
    writing.next_id(torch.eye(engine.vocabulary.text_size)[0])
    return same(name, writing.finish_reason == "length", case["stop"])


def _interleave(golden: "GoldenModel", case: Run, name: str) -> Check:
    refused = isinstance(case["result"], str)
    try:
        found = [
            _mix(text, speech, case["speech_offset"]) for text, speech in zip(case["text"], case["speech"])
        ]
    except ValueError:
        return same(name, refused, True)
    if refused:
        return same(name, "mixed", "refused")
    return same(name, list(chain(*found)), list(chain(*case["result"])))


THOUGHT_END = (13708, 766, 835, 29)  # ids that these cases use for the end of a thought


def _mix(text: list[int], speech: list[int], offset: int) -> list[int]:
    lead = 0
    for start in range(len(text) - len(THOUGHT_END) + 1):
        if tuple(text[start : start + len(THOUGHT_END)]) == THOUGHT_END:
            lead = start + len(THOUGHT_END)
    chunks = interleave(text, speech, lead=lead)
    return [id_ + offset if chunk.is_speech else id_ for chunk in chunks for id_ in chunk.ids]


def _sampling_filter(golden: "GoldenModel", case: Run, name: str) -> Check:
    settings = dict(case["settings"])
    rule = Sampling(sample=True, **settings)
    logits = sampling.penalise_repeats(
        torch.tensor(case["logits"]), case["generated_so_far"], rule.repetition_penalty
    )
    expected = torch.zeros(len(logits))
    for id_, probability in case["probabilities"].items():
        expected[int(id_)] = probability
    return close(name, sampling.probabilities(logits, rule), expected, PROBABILITY)


def _trigger(golden: "GoldenModel", calls: list[Run]) -> Iterator[Check]:
    """Calls in order on one reply; `reset` begins another."""
    ids = golden.engine.vocabulary
    slot = AgeSlot(ids.age_trigger, ids.age_allowed)
    given = False
    for number, call in enumerate(calls):
        if call["op"] == "reset":
            given = False
            continue
        logits = torch.zeros(ids.text_size)
        if not given and slot.matches(call["ids"]):
            logits, given = slot.constrain(logits), True
        left = torch.isfinite(logits).nonzero()[:, 0].tolist()
        expected = list(range(ids.text_size)) if call["unmasked"] == "all" else call["unmasked"]
        found = [left, given]
        yield same(f"trigger/{number}", str(found), str([expected, call["match_found_after"]]))
