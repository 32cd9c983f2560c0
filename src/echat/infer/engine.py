"""One loaded model, many conversations: every call takes its state as arguments and leaves nothing behind."""

import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from echat.checkpoint import TOKEN2WAV_FOLDER
from echat.dialogue import thinking
from echat.dialogue.capabilities import UNRESTRICTED, Capabilities
from echat.dialogue.rendering import Segment, render
from echat.dialogue.tasks import DecodingDefaults, Profile, Task, get_task
from echat.dialogue.turns import Conversation, Turn, UserTurn
from echat.dialogue.understanding import parse_understanding
from echat.dialogue.vocabulary import Vocabulary
from echat.infer.audio_input import holds_speech
from echat.infer.continuous_batching import ROWS, ContinuousBatch
from echat.infer.ctc_decoding import CTCDecoder, CTCQuoteProcessor
from echat.infer.decoding import DecodingRules, GenerationState
from echat.infer.events import Done, Event, Reply, Understanding
from echat.infer.generation import SequenceState, generate_sequence, prefill_sequence, prefill_with
from echat.infer.prompt_cache import Prompt, PromptCache, known_prefix, prepare_prompts
from echat.infer.reply_stream import ReplyRequest, StageTimer, build_reply, emit, find_defect
from echat.infer.sampling import seeded_generator
from echat.infer.text_to_speech import SpokenPiece, Write, read_aloud, speak_batch
from echat.infer.truncation import match_training, truncate_history
from echat.model.model_folder import save_model
from echat.model.speech_llm import SpeechLLM
from echat.model.text_tokenizer import TextTokenizer

if TYPE_CHECKING:
    from echat.kernels.packed_linear import Precision
    from echat.token2wav.token2wav import Token2Wav
    from echat.token2wav.voice import VoicePrompt

SPEECH_TOKENIZER_FOLDER = "speech_tokenizer"


@dataclass(frozen=True)
class Engine:
    """Listens, thinks, replies and speaks. Safe to share between threads."""

    model: SpeechLLM
    tokenizer: TextTokenizer
    vocabulary: Vocabulary
    profile: Profile = "echat"
    token2wav: "Token2Wav | None" = None  # None: replies have speech ids but no sound
    name: str = ""
    home: Path | None = None  # the folder it came from
    has_ctc: bool = False  # are the frames CTC logits over the text table? Then quotes are decoded jointly
    learned: Capabilities = UNRESTRICTED  # of texts and conversations; what is not declared has no limit

    # --- replies

    def reply(
        self,
        conversation: Conversation,
        task: str | Task,
        *,
        seed: int | None = None,
        decoding: DecodingDefaults | None = None,
        voice: "VoicePrompt | str | None" = None,
        speak: bool = True,
        stream: bool = False,
        prompt_cache: PromptCache | None = None,
        cancel: threading.Event | None = None,
        show_thinking: bool = False,
    ) -> Iterator[Event]:
        """Answer the last user turn: Thought, TextPiece ..., Text, SpeechIds ..., Audio, Done, each as known.

        A user turn's `audio` is a path, a 16 kHz waveform (samples,) or a mel (frames, n_mels). `seed` makes
        chance repeatable. `decoding` replaces the task's defaults. `voice` is a voice of the model or a
        prompt for another. Without `speak` the ids of speech are still written, but no waveform is made; with
        `stream` it comes in pieces while the ids are written.

        `prompt_cache` spares work: what the reply to an earlier turn left (`Reply.prompt_cache`), what
        `prefill` gave, or `PromptCache()` to begin a conversation that shall be kept. Once `cancel` is set,
        the reply stops before its next id, as it does when the iterator is closed. With `show_thinking` a
        thought also comes in ThoughtPieces.
        """
        timer = StageTimer()
        settings = seed, decoding, voice, speak, stream, prompt_cache, cancel, show_thinking
        request = ReplyRequest(conversation, get_task(task), *settings)
        (sequence,) = self.new_sequences([request])
        timer.lap("listen")
        prefill_sequence(self.model, sequence)
        timer.lap("read")
        yield from emit(self, request, sequence, generate_sequence(self.model, sequence), timer)

    def run(self, conversation: Conversation, task: str | Task, **settings: Any) -> Reply:
        """The finished reply; settings as for `reply`."""
        *_, last = self.reply(conversation, task, **settings)
        assert isinstance(last, Done)
        return last.reply

    def run_batch(
        self,
        conversations: Sequence[Conversation],
        task: str | Task,
        *,
        seed: int | None = None,
        decoding: DecodingDefaults | None = None,
        voice: "VoicePrompt | str | None" = None,
        speak: bool = False,
        rows: int = ROWS,
    ) -> list[Reply]:
        """Many replies, at most `rows` side by side, each what `run` gives alone, row i with `seed + i`."""
        task = get_task(task)
        if task.name == "tts" and self.profile != "reference":
            texts = [conversation.question.text or "" for conversation in conversations]
            return speak_batch(self, texts, voice, seed, speak, rows, decoding)
        requests = [
            ReplyRequest(conversation, task, None if seed is None else seed + row, decoding, voice, speak)
            for row, conversation in enumerate(conversations)
        ]
        shared = [self.prefill((), task)] if len(requests) > 1 else []
        rows_of: dict[SequenceState, int] = {}
        replies: dict[int, Reply] = {}

        def sequences() -> Iterator[SequenceState]:
            for start in range(0, len(requests), rows):  # sounds are encoded `rows` at a time
                started = self.new_sequences(requests[start : start + rows], shared)
                for row, sequence in enumerate(started, start):
                    rows_of[sequence] = row
                    yield sequence

        for sequence in ContinuousBatch(self.model, rows).run(sequences()):
            row = rows_of.pop(sequence)
            replies[row] = build_reply(self, requests[row], sequence, StageTimer())
        return [replies[row] for row in range(len(requests))]

    def prefill(
        self, turns: Sequence[Turn], task: str | Task, prompt_cache: PromptCache | None = None
    ) -> PromptCache:
        """Read what comes before the next question, whatever it may be: system prompt and finished turns.

        To be called while nobody waits. Most layouts leave nothing to do after `Reply.prompt_cache`; where
        the history of a turn differs from what was written (thoughts are not kept, text and speech are no
        longer mixed), this moves the cost of reading it out of the next reply. `turns` may end with a
        question that is still being asked: the pieces of sound given so far are read.
        """
        task = get_task(task)
        known = known_prefix(turns, task, partial(self.render, task=task))
        (prompt,) = prepare_prompts(self.model, [known], [[prompt_cache or PromptCache()]], self.lead_in)
        state = GenerationState(DecodingRules.make(task, self.vocabulary, self.profile))
        sequence = SequenceState(prompt, state, keeps_cache=True)
        prefill_sequence(self.model, sequence)
        sequence.end(self.model, sequence.cache)
        assert sequence.prompt_cache is not None
        return sequence.prompt_cache

    def understand(self, audio: Any, task: str | Task = "understand", **settings: Any) -> Understanding:
        """Words and labels of a path, a 16 kHz waveform or a mel; settings as for `reply`."""
        reply = self.run(Conversation([UserTurn(audio=audio)]), task, **settings)
        return _understanding(get_task(task), reply)

    def understand_batch(
        self, audios: Sequence[Any], task: str | Task = "understand", **settings: Any
    ) -> list[Understanding]:
        """`understand` for many sounds at once."""
        conversations = [Conversation([UserTurn(audio=audio)]) for audio in audios]
        replies = self.run_batch(conversations, task, **settings)
        return [_understanding(get_task(task), reply) for reply in replies]

    def say(
        self, text: str, voice: "VoicePrompt | str | None" = None, *, seed: int | None = None, **settings: Any
    ) -> tuple[Tensor, int]:
        """Read a text aloud, every sentence of it -> waveform (samples,), rate in Hz."""
        parts = list(self.read_aloud(text, voice, seed=seed, **settings))
        return torch.cat([part.waveform for part in parts]), parts[0].rate

    def read_aloud(
        self,
        text: str,
        voice: "VoicePrompt | str | None" = None,
        *,
        seed: int | None = None,
        cancel: threading.Event | None = None,
        write: Write | None = None,
        decoding: DecodingDefaults | None = None,
    ) -> Iterator[SpokenPiece]:
        """`say` in pieces, each as soon as it is spoken; a piece tells whether its length fits its words."""
        return read_aloud(self, text, voice, seed, cancel, write, decoding)

    def voice_from(self, path: str | Path) -> "VoicePrompt":
        """The voice of a recording, to speak with."""
        return self.need_token2wav().voice_of(path)

    # --- steps of a reply, also used by the batch, the verification and the tests

    def render(self, conversation: Conversation, task: str | Task) -> list[Segment]:
        """The prompt as segments, in the dialect of this engine, of what it is given of a conversation."""
        return self._segments(self.fitted(conversation, task), task)

    def fitted(self, conversation: Conversation, task: str | Task) -> Conversation:
        """The conversation as this model learned such, in as many turns as fit; whole for the reference."""
        if self.profile == "reference":
            return conversation
        known = match_training(conversation, get_task(task), self.learned)
        return truncate_history(
            known, partial(self._segments, task=task), self.model.config.llm.max_positions
        )

    def _segments(self, conversation: Conversation, task: str | Task) -> list[Segment]:
        return render(conversation, task, self.tokenizer, self.vocabulary, self.profile)

    def new_sequences(
        self, requests: Sequence[ReplyRequest], shared: Sequence[PromptCache] = ()
    ) -> list[SequenceState]:
        """Replies ready to be read and written; all their new sounds are encoded in one batch. Each starts
        from its request's prompt cache or from one of the `shared`, whichever spares most."""
        known = [self.fitted(request.conversation, request.task) for request in requests]
        prompts = prepare_prompts(
            self.model,
            [self._segments(conversation, request.task) for conversation, request in zip(known, requests)],
            [[*shared, *([request.prompt_cache] if request.prompt_cache else [])] for request in requests],
            self.lead_in,
        )
        return [
            SequenceState(
                prompt,
                self._state(conversation, request, prompt),
                request.cancel,
                keeps_cache=request.prompt_cache is not None,
                turns_left_out=len(request.conversation.history) - len(conversation.history),
            )
            for prompt, conversation, request in zip(prompts, known, requests)
        ]

    def _state(self, conversation: Conversation, request: ReplyRequest, prompt: Prompt) -> GenerationState:
        """A reply of which nothing is written; of words that nobody spoke nothing ever is."""
        state = GenerationState(
            self.decoding_rules(conversation, request.task, request.decoding),
            seeded_generator(request.seed),
            self.quote_processor(prompt, request.task, request.cancel),
        )
        is_judged = request.task.writes_only_words and self.lead_in
        if is_judged and not holds_speech(conversation.question.audio):
            state.finish_reason = "end"
        return state

    @property
    def lead_in(self) -> bool:
        """May sounds be judged and quiet be put before them? The reference takes them as they are."""
        return self.profile != "reference"

    def quote_processor(
        self, prompt: Prompt, task: Task, cancel: threading.Event | None = None
    ) -> CTCQuoteProcessor | None:
        """What the question's sound has to say while it is quoted; None without a CTC head."""
        frames = prompt.last_audio
        if not self.has_ctc or frames is None:
            return None
        prefill = partial(prefill_with, self.model, prompt)
        return self._ctc_decoder.quote_processor(frames, task, prefill, cancel)

    @cached_property
    def _ctc_decoder(self) -> CTCDecoder:
        return CTCDecoder(self.model, self.tokenizer)

    def embed(self, segments: Sequence[Segment]) -> Tensor:
        """Segments -> embeds (1, L, dim); sounds are encoded here."""
        return self.embed_many([segments])[0]

    def embed_many(self, prompts: Sequence[Sequence[Segment]]) -> list[Tensor]:
        """Prompts -> embeds (1, L_i, dim) each; all sounds of all prompts are encoded in one batch."""
        return [prompt.embeds for prompt in prepare_prompts(self.model, prompts, lead_in=self.lead_in)]

    def decoding_rules(
        self, conversation: Conversation, task: str | Task, decoding: DecodingDefaults | None = None
    ) -> DecodingRules:
        """The rules under which the reply is written."""
        task = get_task(task)
        text = conversation.question.text
        read_aloud = len(self.tokenizer.encode(text)) if text and not task.writes_text else 0
        return DecodingRules.make(task, self.vocabulary, self.profile, decoding, read_aloud)

    def parse_output(self, state: GenerationState, task: Task) -> Reply:
        """Take the written ids apart: thought, emotion, text, speech."""
        raw_text = self.decode(state, task)
        parsed = thinking.parse_reply(raw_text) if not task.understands else None
        reply = Reply(
            text=parsed.reply if parsed else raw_text.strip(),
            raw_text=raw_text,
            thought=parsed.thought if parsed else None,
            reply_emotion=parsed.reply_emotion if parsed else None,
            wellformed=parsed is None
            or (parsed.wellformed and (parsed.thought is not None) == bool(task.thinks)),
            text_ids=tuple(state.text_ids),
            speech_ids=tuple(state.codec_ids),
            raw_speech_ids=tuple(state.speech_ids),
            finish_reason=state.finish_reason or "end",
        )
        return replace(reply, defect=find_defect(reply, task))

    def decode(self, state: GenerationState, task: Task) -> str:
        """The text written so far."""
        return self.tokenizer.decode(self.visible_text_ids(state, task))

    def visible_text_ids(self, state: GenerationState, task: Task) -> list[int]:
        """Ids of the text written so far; the reference loses the last one of a text before speech."""
        is_cut = self.profile == "reference" and task.writes_speech
        return state.text_ids[:-1] if is_cut else state.text_ids

    def need_token2wav(self) -> "Token2Wav":
        """What speaks; a model without it is refused by name."""
        if self.token2wav is None:
            raise ValueError(
                f"model {self.name or 'without a name'}: expected a {TOKEN2WAV_FOLDER}/ folder to speak "
                "with, found none; add one to the model folder"
            )
        return self.token2wav

    def packed(self, precision: "Precision") -> "Engine":
        """A faster twin for replies on this CPU: fp32, bf16, int8 or int4; it is not moved or saved.

        What it costs in quality is measured in `benchmarks/README.md`. The synthesis has no int4: int8 there.
        """
        from echat.model.optimized import optimize

        token2wav = self.token2wav
        if token2wav is not None:
            from echat.token2wav.optimized.token2wav import optimize as optimize_token2wav

            token2wav = optimize_token2wav(token2wav, "int8" if precision == "int4" else precision)
        return replace(self, model=optimize(self.model, precision), token2wav=token2wav)

    # --- on disk

    def save(self, folder: str | Path, dtype: torch.dtype | None = torch.float16) -> None:
        """Write a model folder that `load` reads; `dtype` is the precision on disk."""
        about = (self.profile, self.name, dtype, self.has_ctc, self.learned)
        save_model(folder, self.model, self.tokenizer, *about)
        if self.token2wav is not None:
            self.token2wav.save(Path(folder) / TOKEN2WAV_FOLDER)
        kept = self.home / SPEECH_TOKENIZER_FOLDER if self.home else None
        if kept is not None and kept.is_dir():
            shutil.copytree(kept, Path(folder) / SPEECH_TOKENIZER_FOLDER, dirs_exist_ok=True)


def _understanding(task: Task, reply: Reply) -> Understanding:
    parsed = parse_understanding(task, reply.raw_text)
    return Understanding(parsed.text, parsed.labels, reply.raw_text, parsed.reply, reply.finish_reason)
