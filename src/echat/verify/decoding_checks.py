"""Checks of the decoding rules one by one, without a network."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch

from echat.dialogue.interleaving import interleave
from echat.dialogue.tasks import DecodingDefaults, Sampling
from echat.dialogue.turns import Conversation, UserTurn
from echat.infer import sampling
from echat.infer.decoding import GenerationState
from echat.infer.sampling import LabelSlot, RepeatGuard
from echat.verify.comparison import Check, check_equal
from echat.verify.golden_folder import GoldenModel
from echat.verify.tolerances import PROBABILITY

Run = dict[str, Any]


def processor_checks(golden: GoldenModel) -> Iterator[Check]:
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


def _ngram(golden: GoldenModel, case: Run, name: str) -> Check:
    blocked = repeat_guard(golden.config).blocked(case["ids"]) if case["phase_on"] else []
    return check_equal(name, blocked, case["blocked"])


def _stop(golden: GoldenModel, case: Run, name: str) -> Check:
    """Text followed by speech ends with the second boundary (begin and end) after the text end."""
    rules = golden.engine.decoding_rules(Conversation([UserTurn(text="")]), "s2s")
    state, reasons = GenerationState(rules), []
    for id_ in case["ids"]:
        state.push(id_)
        reasons.append(state.finish_reason)
    return check_equal(name, "end" in reasons, case["stop"])


def _max_tokens(golden: GoldenModel, case: Run, name: str) -> Check:
    """A reply with one id less than the recorded length generates one more."""
    engine = golden.engine
    conversation = Conversation([UserTurn(text="")])
    rules = engine.decoding_rules(conversation, "t2t", DecodingDefaults(max_new_ids=case["max_tokens"]))
    state = GenerationState(rules, ids=[0] * (case["length"] - 1))
    state.next_id(torch.eye(engine.vocabulary.text_size)[0])
    return check_equal(name, state.finish_reason == "length", case["stop"])


def _interleave(golden: GoldenModel, case: Run, name: str) -> Check:
    refused = isinstance(case["result"], str)
    try:
        found = [
            _mix(text, speech, case["speech_offset"]) for text, speech in zip(case["text"], case["speech"])
        ]
    except ValueError:
        return check_equal(name, refused, True)
    if refused:
        return check_equal(name, "mixed", "refused")
    return check_equal(name, list(chain(*found)), list(chain(*case["result"])))


THOUGHT_END = (13708, 766, 835, 29)  # ids that these cases use for the end of a thought


def _mix(text: list[int], speech: list[int], offset: int) -> list[int]:
    lead = 0
    for start in range(len(text) - len(THOUGHT_END) + 1):
        if tuple(text[start : start + len(THOUGHT_END)]) == THOUGHT_END:
            lead = start + len(THOUGHT_END)
    chunks = interleave(text, speech, lead=lead)
    return [id_ + offset if chunk.is_speech else id_ for chunk in chunks for id_ in chunk.ids]


def _sampling_filter(golden: GoldenModel, case: Run, name: str) -> Check:
    settings = dict(case["settings"])
    rule = Sampling(sample=True, **settings)
    logits = sampling.penalise_repeats(
        torch.tensor(case["logits"]), case["generated_so_far"], rule.repetition_penalty
    )
    expected = torch.zeros(len(logits))
    for id_, probability in case["probabilities"].items():
        expected[int(id_)] = probability
    return golden.backend.on_cpu.check_close(
        name, sampling.probabilities(logits, rule), expected, PROBABILITY
    )


def _trigger(golden: GoldenModel, calls: list[Run]) -> Iterator[Check]:
    """Calls in order on one reply; `reset` begins another."""
    ids = golden.engine.vocabulary
    slot = LabelSlot(ids.age_trigger, ids.age_allowed)
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
        yield check_equal(f"trigger/{number}", str(found), str([expected, call["match_found_after"]]))
