"""The inference engine: one loaded model, and the steps from a conversation to a reply.

It keeps no state between calls: the state of a conversation is passed in and out as `PromptCache`.
"""

import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from echat.dialogue.capabilities import UNRESTRICTED, Capabilities
from echat.dialogue.rendering import Segment, render
from echat.dialogue.tasks import DecodingDefaults, Profile, Task, get_task
from echat.dialogue.turns import Conversation, Turn, UserTurn, ask
from echat.dialogue.vocabulary import Vocabulary
from echat.errors import ModelError
from echat.infer.audio_input import holds_speech
from echat.infer.continuous_batching import ROWS, ContinuousBatch
from echat.infer.ctc_decoding import CTCDecoder
from echat.infer.decoding import DecodingRules, GenerationState
from echat.infer.events import Done, Event, Reply, Understanding
from echat.infer.generation import SequenceState, generate, prefill_sequence, prefill_with
from echat.infer.prompt_cache import Prompt, PromptCache, known_prefix, prepare_prompts
from echat.infer.reply_stream import ReplyRequest, StageTimer, build_reply, emit
from echat.infer.sampling import derived_seed
from echat.infer.text_to_speech import PieceRequest, SpokenPiece, TextToSpeech, Write
from echat.infer.truncation import match_training, truncate_history
from echat.model.model_folder import save_model
from echat.model.speech_llm import SpeechLLM
from echat.model.text_tokenizer import TextTokenizer
from echat.model_files import SPEECH_TOKENIZER_FOLDER, TOKEN2WAV_FOLDER
from echat.token2wav.noise import seeded_generator

if TYPE_CHECKING:
    from echat.kernels.packed_linear import Precision
    from echat.token2wav.token2wav import Token2Wav
    from echat.token2wav.voice import VoicePrompt


@dataclass(frozen=True)
class Engine:
    """Generates replies, transcripts and speech. Safe to share between threads."""

    model: SpeechLLM
    tokenizer: TextTokenizer
    vocabulary: Vocabulary
    profile: Profile = "echat"
    token2wav: "Token2Wav | None" = None  # None: replies have speech ids but no audio
    name: str = ""
    home: Path | None = None  # the folder it came from
    has_ctc: bool = False  # do frames give CTC logits over the text table? Then quotes are decoded jointly
    capabilities: Capabilities = UNRESTRICTED  # declared limits of the training data

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
        """Answer the last user turn: Thought, TextPiece ..., Text, SpeechIds ..., Audio, Done, as they come.

        A user turn's `audio` is a path, a 16 kHz waveform (samples,) or a mel (frames, n_mels). `seed` makes
        sampling repeatable. `decoding` replaces the task's defaults. `voice` is a voice of the model or a
        voice prompt. Without `speak` speech ids are still generated, but not synthesized; with `stream` audio
        comes in pieces during generation.

        `prompt_cache` saves work: that of the reply to an earlier turn (`Reply.prompt_cache`), the result of
        `prefill`, or `PromptCache()` for a new conversation whose cache is to be returned. Once `cancel` is
        set, the reply stops before its next id, as it does when the iterator is closed. With `show_thinking`
        a thought also comes in ThoughtPieces.
        """
        timer = StageTimer()
        settings = seed, decoding, voice, speak, stream, prompt_cache, cancel, show_thinking
        request = ReplyRequest(conversation, get_task(task), *settings)
        # 1. Encode the audio. 2. Embed the prompt, from the end of the prompt cache on.
        (sequence,) = self.new_sequences([request])
        timer.lap("listen")
        # 3. Prefill: read the prompt in chunks.
        prefill_sequence(self.model, sequence)
        timer.lap("read")
        # 4. Generate one id after the other, each when it is asked for.
        steps = generate(self.model, sequence)
        # 5. Emit events: detokenize text, synthesize speech.
        yield from emit(self.tokenizer, self.token2wav, request, sequence, steps, timer)

    def run(self, conversation: Conversation, task: str | Task, **settings: Any) -> Reply:
        """The finished reply; settings as for `reply`."""
        *_, last = self.reply(conversation, task, **settings)
        assert isinstance(last, Done)
        return last.reply

    def run_with_retry(
        self, conversation: Conversation, task: str | Task, seed: int | None = None, **settings: Any
    ) -> Reply:
        """`run`, with one retry for a reply with a defect: sampled, under a seed that follows from the first.
        Raises ModelError where that has a defect too.
        """
        reply = self.run(conversation, task, seed=seed, **settings)
        if reply.defect is None:
            return reply
        settings["decoding"] = get_task(task).decoding_for(self.profile).with_sampling()
        seed = None if seed is None else derived_seed(seed, 1)
        again = self.run(conversation, task, seed=seed, **settings)
        if again.defect is None:
            return again
        raise ModelError(
            f"answer: expected a reply that can be read, found {again.defect} in two tries "
            f"(the model wrote {again.raw_text[:80]!r}); try another --seed or --think, or a clearer "
            "recording"
        )

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
        """Many replies in batches of at most `rows`, each as `run` gives it, row i with `seed + i`."""
        task = get_task(task)
        if task.reads_aloud and not task.writes_text and self.profile != "reference":

            def write(pieces: Sequence[PieceRequest]) -> list[Reply]:
                made = [ReplyRequest(ask(text=p.text), task, p.seed, decoding, speak=False) for p in pieces]
                return self._run_requests(made, rows)

            texts = [conversation.question.text or "" for conversation in conversations]
            return self._reader.read_batch(texts, self.token2wav if speak else None, voice, seed, write)
        requests = [
            ReplyRequest(conversation, task, None if seed is None else seed + row, decoding, voice, speak)
            for row, conversation in enumerate(conversations)
        ]
        return self._run_requests(requests, rows, [self.prefill((), task)] if len(requests) > 1 else [])

    def _run_requests(
        self, requests: Sequence[ReplyRequest], rows: int, shared: Sequence[PromptCache] = ()
    ) -> list[Reply]:
        """Replies by continuous batching; each prompt starts from its own prompt cache or a `shared` one."""
        rows_of: dict[SequenceState, int] = {}
        replies: dict[int, Reply] = {}

        def sequences() -> Iterator[SequenceState]:
            for start in range(0, len(requests), rows):  # audio is encoded `rows` at a time
                started = self.new_sequences(requests[start : start + rows], shared)
                for row, sequence in enumerate(started, start):
                    rows_of[sequence] = row
                    yield sequence

        for sequence in ContinuousBatch(self.model, rows).run(sequences()):
            row = rows_of.pop(sequence)
            replies[row] = build_reply(self.tokenizer, self.token2wav, requests[row], sequence, StageTimer())
        return [replies[row] for row in range(len(requests))]

    def prefill(
        self, turns: Sequence[Turn], task: str | Task, prompt_cache: PromptCache | None = None
    ) -> PromptCache:
        """Prefill a prompt cache ahead of the next question: system prompt and finished turns.

        Most layouts leave nothing to do after `Reply.prompt_cache`; where the history of a turn differs from
        its generated ids (thoughts are dropped, text and speech are no longer interleaved), this moves the
        cost out of the next reply. `turns` may end with a question that is still being spoken: the pieces of
        audio so far are prefilled.
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
        """Transcript and labels of a path, a 16 kHz waveform or a mel; settings as for `reply`."""
        reply = self.run(Conversation([UserTurn(audio=audio)]), task, **settings)
        return Understanding.of(get_task(task), reply)

    def understand_batch(
        self, audios: Sequence[Any], task: str | Task = "understand", **settings: Any
    ) -> list[Understanding]:
        """`understand` in batches."""
        conversations = [Conversation([UserTurn(audio=audio)]) for audio in audios]
        replies = self.run_batch(conversations, task, **settings)
        return [Understanding.of(get_task(task), reply) for reply in replies]

    def say(
        self, text: str, voice: "VoicePrompt | str | None" = None, *, seed: int | None = None, **settings: Any
    ) -> tuple[Tensor, int]:
        """Text-to-speech of a whole text -> waveform (samples,), rate in Hz."""
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
        """`say` in pieces, each as soon as it is synthesized, with a flag for a doubtful length."""

        def write_alone(text: str, seed: int | None) -> Reply:
            return self.run(ask(text=text), "tts", seed=seed, speak=False, cancel=cancel, decoding=decoding)

        token2wav = self.need_token2wav()
        yield from self._reader.read_aloud(text, token2wav, voice, seed, cancel, write or write_alone)

    @property
    def _reader(self) -> TextToSpeech:
        return TextToSpeech(self.tokenizer, None if self.profile == "reference" else self.capabilities)

    def voice_from(self, path: str | Path) -> "VoicePrompt":
        """A voice prompt made of a recording."""
        return self.need_token2wav().voice_from_file(path)

    # --- steps of a reply, also used by the batch, the verification and the tests

    def render(self, conversation: Conversation, task: str | Task) -> list[Segment]:
        """The prompt as segments, in the profile of this engine, of the truncated conversation."""
        return self._segments(self.fitted(conversation, task), task)

    def fitted(self, conversation: Conversation, task: str | Task) -> Conversation:
        """The conversation in the form of the training data, truncated; as it is for the reference."""
        if self.profile == "reference":
            return conversation
        known = match_training(conversation, get_task(task), self.capabilities)
        return truncate_history(known, partial(self._segments, task=task), self.model.config)

    def _segments(self, conversation: Conversation, task: str | Task) -> list[Segment]:
        return render(conversation, task, self.tokenizer, self.vocabulary, self.profile)

    def new_sequences(
        self, requests: Sequence[ReplyRequest], shared: Sequence[PromptCache] = ()
    ) -> list[SequenceState]:
        """Sequences before prefill; all their new audio is encoded in one batch. Each starts from the prompt
        cache of its request or one of the `shared`, whichever has the longest common prefix."""
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
        """The initial state; a transcription of audio in which the VAD finds no speech is over at once."""
        task, frames = request.task, prompt.last_audio
        quote_processor = None
        if self.has_ctc and frames is not None:
            prefill = partial(prefill_with, self.model, prompt)
            quote_processor = self._ctc_decoder.quote_processor(frames, task, prefill, request.cancel)
        rules = self.decoding_rules(conversation, task, request.decoding)
        state = GenerationState(rules, seeded_generator(request.seed), quote_processor)
        if task.writes_only_words and self.lead_in and not holds_speech(conversation.question.audio):
            state.finish_reason = "end"
        return state

    @property
    def lead_in(self) -> bool:
        """Is audio checked for speech and given a lead-in of silence? The reference takes it as it is."""
        return self.profile != "reference"

    @cached_property
    def _ctc_decoder(self) -> CTCDecoder:
        return CTCDecoder(self.model, self.tokenizer)

    def embed(self, segments: Sequence[Segment]) -> Tensor:
        """The embeddings (1, L, dim) of a prompt; its audio is encoded here."""
        (prompt,) = prepare_prompts(self.model, [segments], lead_in=self.lead_in)
        return prompt.embeds

    def decoding_rules(
        self, conversation: Conversation, task: str | Task, decoding: DecodingDefaults | None = None
    ) -> DecodingRules:
        """The decoding rules of a reply to the conversation."""
        task = get_task(task)
        text = conversation.question.text
        read_aloud = len(self.tokenizer.encode(text)) if text and not task.writes_text else 0
        return DecodingRules.make(task, self.vocabulary, self.profile, decoding, read_aloud)

    def need_token2wav(self) -> "Token2Wav":
        """The synthesis. Raises ValueError for a model without it."""
        if self.token2wav is None:
            raise ValueError(
                f"model {self.name or 'without a name'}: expected a {TOKEN2WAV_FOLDER}/ folder to speak "
                "with, found none; add one to the model folder"
            )
        return self.token2wav

    def optimized(self, precision: "Precision") -> "Engine":
        """A copy optimized for this CPU, in fp32, bf16, int8 or int4 (quantized); it is not moved or saved.

        Its quality is measured in `benchmarks/README.md`. The synthesis has no int4: int8 there.
        """
        from echat.model.optimized import optimize
        from echat.token2wav.optimized.token2wav import optimize as optimize_token2wav

        token2wav = self.token2wav and optimize_token2wav(self.token2wav, precision)
        return replace(self, model=optimize(self.model, precision), token2wav=token2wav)

    def save(self, folder: str | Path, dtype: torch.dtype | None = torch.float16) -> None:
        """Write a model folder that `load` reads; `dtype` is the precision on disk."""
        about = self.profile, self.name, dtype, self.has_ctc, self.capabilities
        save_model(folder, self.model, self.tokenizer, *about)
        if self.token2wav is not None:
            self.token2wav.save(Path(folder) / TOKEN2WAV_FOLDER)
        if self.home and (kept := self.home / SPEECH_TOKENIZER_FOLDER).is_dir():
            shutil.copytree(kept, Path(folder) / SPEECH_TOKENIZER_FOLDER, dirs_exist_ok=True)
