"""Turn detection as a state machine: probabilities in, signals out, without audio and without waiting."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echat.audio.vad import FRAME_SECONDS
from echat.serve.realtime.turn_detection import (
    EagerEndOfTurn,
    Signal,
    SpeechDismissed,
    SpeechStarted,
    SpeechSuspected,
    TurnConfig,
    TurnEnded,
    TurnPhase,
    TurnResumed,
    TurnStateMachine,
)

YES, NO = 0.95, 0.02


class FrameFeeder:
    """Feeds a state machine and keeps its clock."""

    def __init__(self, **config: object) -> None:
        self.turns = TurnStateMachine(TurnConfig.model_validate(config))
        self.now = 0.0

    def feed(self, probability: float, seconds: float, replying: bool = False) -> list[Signal]:
        signals = []
        for _ in range(round(seconds / FRAME_SECONDS)):
            self.now += FRAME_SECONDS
            signals += self.turns.process(probability, self.now, replying)
        return signals


def kinds(signals: list[Signal]) -> list[type]:
    return [type(signal) for signal in signals]


def test_a_turn():
    feeder = FrameFeeder()
    assert feeder.feed(NO, 1.0) == []
    (started,) = feeder.feed(YES, 2.0)
    assert isinstance(started, SpeechStarted)
    assert abs(started.start - 0.7) < 2 * FRAME_SECONDS  # moved back by the prefix
    eager_end, ended = feeder.feed(NO, 1.0)
    assert isinstance(eager_end, EagerEndOfTurn) and abs(eager_end.end - 3.2) < 2 * FRAME_SECONDS
    assert isinstance(ended, TurnEnded) and abs(ended.end - 3.5) < 2 * FRAME_SECONDS
    assert ended.eager_end is eager_end and not ended.is_forced


def test_a_word_of_a_fifth_of_a_second_is_a_turn():
    feeder = FrameFeeder()
    feeder.feed(NO, 0.5)
    assert kinds(feeder.feed(YES, 0.2) + feeder.feed(NO, 1.0)) == [SpeechStarted, EagerEndOfTurn, TurnEnded]


def test_a_click_is_no_turn():
    feeder = FrameFeeder()
    feeder.feed(NO, 0.5)
    assert feeder.feed(YES, FRAME_SECONDS) + feeder.feed(NO, 1.0) == []
    assert feeder.turns.phase is TurnPhase.QUIET


def test_speech_after_a_short_silence_resumes_the_turn():
    feeder = FrameFeeder()
    signals = feeder.feed(YES, 1.0) + feeder.feed(NO, 0.3) + feeder.feed(YES, 1.0) + feeder.feed(NO, 1.0)
    assert kinds(signals) == [SpeechStarted, EagerEndOfTurn, TurnResumed, EagerEndOfTurn, TurnEnded]


def test_three_minutes_of_silence_and_uncertain_music_are_no_turn():
    feeder = FrameFeeder()
    assert feeder.feed(NO, 180) == []
    assert feeder.feed(0.45, 180) == []


def test_five_minutes_are_one_turn_and_eleven_are_cut():
    assert kinds(FrameFeeder().feed(YES, 300)) == [SpeechStarted]
    feeder = FrameFeeder()
    signals = feeder.feed(YES, 660)
    assert kinds(signals)[:2] == [SpeechStarted, TurnEnded]
    ended = signals[1]
    assert isinstance(ended, TurnEnded) and ended.is_forced and abs(ended.end - 600) < 0.1
    assert kinds(signals)[2:] == [SpeechStarted]  # and what follows is another turn


def test_a_cough_does_not_stop_a_reply_but_speech_does():
    feeder = FrameFeeder()
    cough = feeder.feed(YES, 0.096, replying=True) + feeder.feed(NO, 0.5, replying=True)
    assert kinds(cough) == [SpeechSuspected, SpeechDismissed]
    begin = feeder.now
    signals = []
    while not any(isinstance(signal, SpeechStarted) for signal in signals):
        signals = feeder.feed(YES, FRAME_SECONDS, replying=True)
    assert feeder.now - begin <= 0.2


@pytest.mark.parametrize(("probability", "at_least", "at_most"), [(0.99, 0.07, 0.1), (0.6, 0.2, 0.26)])
def test_more_certain_speech_interrupts_sooner(probability, at_least, at_most):
    feeder = FrameFeeder()
    while not any(
        isinstance(s, SpeechStarted) for s in feeder.feed(probability, FRAME_SECONDS, replying=True)
    ):
        assert feeder.now < 1
    assert at_least < feeder.now < at_most


def test_a_sigh_is_as_long_as_a_word_and_less_certain():
    sigh = [0.3, 0.55, 0.62, 0.7, 0.6, 0.55, 0.3, 0.1, 0.05, 0.02, 0.02, 0.02]
    feeder = FrameFeeder()
    signals = [signal for p in sigh for signal in feeder.feed(p, FRAME_SECONDS, replying=True)]
    assert kinds(signals) == [SpeechSuspected, SpeechDismissed]


def test_a_second_cough_does_not_add_to_the_first():
    feeder = FrameFeeder()
    for _ in range(5):
        cough = feeder.feed(YES, 0.096, replying=True) + feeder.feed(NO, 0.15, replying=True)
        assert kinds(cough) == [SpeechSuspected, SpeechDismissed]


def test_certainty_is_measured_from_the_threshold():
    feeder = FrameFeeder(threshold=0.9)
    assert SpeechStarted not in kinds(feeder.feed(0.92, 0.2, replying=True))
    assert SpeechStarted in kinds(feeder.feed(0.9995, 0.1, replying=True))


def test_a_higher_threshold_lets_backchannels_pass():
    feeder = FrameFeeder(interrupt_seconds=0.5)
    uhuh = feeder.feed(YES, 0.4, replying=True) + feeder.feed(NO, 0.5, replying=True)
    assert kinds(uhuh) == [SpeechSuspected, SpeechDismissed]
    assert SpeechStarted in kinds(feeder.feed(YES, 0.6, replying=True))


def test_two_questions_in_a_row_while_it_thinks():
    feeder = FrameFeeder()
    first = feeder.feed(YES, 1.0) + feeder.feed(NO, 0.6)
    second = feeder.feed(YES, 1.0, replying=True) + feeder.feed(NO, 0.6)
    assert kinds(first) == [SpeechStarted, EagerEndOfTurn, TurnEnded]
    assert kinds(second) == [SpeechSuspected, SpeechStarted, EagerEndOfTurn, TurnEnded]


def test_adaptive_waiting_is_longer_after_long_pauses():
    feeder = FrameFeeder(adaptive=True)
    feeder.feed(YES, 1.0)
    feeder.feed(NO, 0.45)
    feeder.feed(YES, 1.0)
    assert 0.6 < feeder.turns.silence_needed < 0.8
    assert TurnEnded not in kinds(feeder.feed(NO, 0.6))
    assert TurnEnded in kinds(feeder.feed(NO, 0.3))


def test_a_detector_shortens_or_lengthens_the_wait():
    for opinion, needed in ((1.0, 0.5), (0.0, 4.0)):
        feeder = FrameFeeder(adaptive=True)
        feeder.feed(YES, 1.0)
        feeder.feed(NO, 0.3)
        feeder.turns.set_completeness(opinion)
        assert feeder.turns.silence_needed == needed


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 40), st.booleans()), max_size=40),
    st.booleans(),
)
def test_signals_are_in_order_for_any_input(stretches, adaptive):
    feeder = FrameFeeder(adaptive=adaptive, max_turn_seconds=5.0)
    signals: list[Signal] = []
    for probability, frames, replying in stretches:
        signals += feeder.feed(probability, frames * FRAME_SECONDS, replying)
    in_turn = is_eager = False
    last_end = 0.0
    for signal in signals:
        match signal:
            case SpeechStarted():
                assert not in_turn
                in_turn = True
            case EagerEndOfTurn():
                assert in_turn and not is_eager
                is_eager = True
            case TurnResumed():
                assert is_eager
                is_eager = False
            case TurnEnded(end, found, _):
                assert in_turn and (found is not None) == is_eager and end > last_end
                last_end, in_turn, is_eager = end, False, False
            case SpeechSuspected() | SpeechDismissed():
                assert not in_turn
    assert (feeder.turns.phase is TurnPhase.SPEAKING) == in_turn
