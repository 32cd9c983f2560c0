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
from echat.dialogue.learned import UNDECLARED, Learned
from echat.dialogue.rendering import Segment, render
from echat.dialogue.tasks import DecodingDefaults, Profile, Task, get_task
from echat.dialogue.turns import Conversation, Turn, UserTurn
from echat.dialogue.understanding import parse_understanding
from echat.dialogue.vocabulary import Vocabulary
from echat.infer import events
from echat.infer.batch import ROWS, Batch
from echat.infer.decoding import Plan, Writing
from echat.infer.events import Event, Reply, Understanding
from echat.infer.fitting import as_learned, within_positions
from echat.infer.generation import Strand, read_prompt, read_with, run
from echat.infer.hearing import holds_speech
from echat.infer.loading import load as load
from echat.infer.loading import load_released as load_released
from echat.infer.memory import Memory
from echat.infer.prompting import Prompt, known_ahead, prepare
from echat.infer.reading_aloud import Spoken, Write, read_aloud, read_batch
from echat.infer.replying import Request, defect_of, finished, tell
from echat.infer.sampling import seeded
from echat.infer.spelling import Listener, Spelling
from echat.infer.telling import Clock
from echat.model.model_folder import save_model
from echat.model.speech_llm import SpeechLLM
from echat.model.text_tokenizer import TextTokenizer

if TYPE_CHECKING:
    from echat.model.packed_linear import Precision
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
    spells: bool = False  # do the frames of a sound spell its words? Then they have a say in quoting them
    learned: Learned = UNDECLARED  # of texts and conversations; what is not declared has no limit

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
        memory: Memory | None = None,
        cancel: threading.Event | None = None,
        show_thinking: bool = False,
    ) -> Iterator[Event]:
        """Answer the last user turn: Thought, TextPiece ..., Text, SpeechIds ..., Audio, Done, each as soon
        as it is known.

        A user turn's `audio` is a path, a 16 kHz waveform (samples,) or a mel (frames, n_mels). `seed` makes
        chance repeatable. `decoding` replaces the task's defaults. `voice` is a voice of the model or a
        prompt for another. Without `speak` the ids of speech are still written, but no waveform is made; with
        `stream` it comes in pieces while the ids are written.

        `memory` spares work: what the reply to an earlier turn left (`Reply.memory`), what `read_ahead` gave,
        or `Memory()` to begin a conversation that shall be remembered. Once `cancel` is set, the reply stops
        before its next id; closing the iterator stops it as well. With `show_thinking` a thought also comes
        in ThoughtPieces while it is written.
        """
        clock = Clock()
        request = Request(
            conversation, get_task(task), seed, decoding, voice, speak, stream, memory, cancel, show_thinking
        )
        (strand,) = self.strands([request])
        clock.lap("listen")
        read_prompt(self.model, strand)
        clock.lap("read")
        yield from tell(self, request, strand, run(self.model, strand), clock)

    def run(self, conversation: Conversation, task: str | Task, **settings: Any) -> Reply:
        """The finished reply; settings as for `reply`."""
        *_, last = self.reply(conversation, task, **settings)
        assert isinstance(last, events.Done)
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
        """Many replies, at most `rows` side by side, each what `run` would give alone. Row i is drawn with
        `seed + i`."""
        task = get_task(task)
        if task.name == "tts" and self.profile != "reference":
            texts = [conversation.question.text or "" for conversation in conversations]
            return read_batch(self, texts, voice, seed, speak, rows, decoding)
        requests = [
            Request(conversation, task, None if seed is None else seed + row, decoding, voice, speak)
            for row, conversation in enumerate(conversations)
        ]
        shared = [self.read_ahead((), task)] if len(requests) > 1 else []
        rows_of: dict[Strand, int] = {}
        replies: dict[int, Reply] = {}

        def strands() -> Iterator[Strand]:
            for start in range(0, len(requests), rows):  # sounds are encoded `rows` at a time
                for row, strand in enumerate(self.strands(requests[start : start + rows], shared), start):
                    rows_of[strand] = row
                    yield strand

        for strand in Batch(self.model, rows).run(strands()):
            row = rows_of.pop(strand)
            replies[row] = finished(self, requests[row], strand, Clock())
        return [replies[row] for row in range(len(requests))]

    def read_ahead(self, turns: Sequence[Turn], task: str | Task, memory: Memory | None = None) -> Memory:
        """Read what comes before the next question, whatever it may be: system prompt and finished turns.

        To be called while nobody waits. Most layouts leave nothing to do after `Reply.memory`; where the
        history of a turn differs from what was written (thoughts are not kept, text and speech are no longer
        mixed), this moves the cost of reading it out of the next reply. `turns` may end with a question that
        is still being asked: the pieces of sound given so far are read.
        """
        task = get_task(task)
        known = known_ahead(turns, task, partial(self.render, task=task))
        (prompt,) = prepare(self.model, [known], [[memory or Memory()]], self.lead_in)
        strand = Strand(prompt, Writing(Plan.make(task, self.vocabulary, self.profile)), remembers=True)
        read_prompt(self.model, strand)
        strand.end(self.model, strand.cache)
        assert strand.memory is not None
        return strand.memory

    def understand(self, audio: Any, task: str | Task = "understand", **settings: Any) -> Understanding:
        """Words and labels of a path, a 16 kHz waveform or a mel; settings as for `reply`."""
        reply = self.run(Conversation([UserTurn(audio=audio)]), task, **settings)
        return _understanding(get_task(task), reply)

    def understand_batch(
        self, audios: Sequence[Any], task: str | Task = "understand", **settings: Any
    ) -> list[Understanding]:
        """`understand` for many sounds at once."""
        conversations = [Conversation([UserTurn(audio=audio)]) for audio in audios]
        return [
            _understanding(get_task(task), reply) for reply in self.run_batch(conversations, task, **settings)
        ]

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
    ) -> Iterator[Spoken]:
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
        """The conversation as this model learned such, in as many turns as it has room for. The reference
        gets it as it is."""
        if self.profile == "reference":
            return conversation
        known = as_learned(conversation, get_task(task), self.learned)
        return within_positions(
            known, partial(self._segments, task=task), self.model.config.llm.max_positions
        )

    def _segments(self, conversation: Conversation, task: str | Task) -> list[Segment]:
        return render(conversation, task, self.tokenizer, self.vocabulary, self.profile)

    def strands(self, requests: Sequence[Request], shared: Sequence[Memory] = ()) -> list[Strand]:
        """Replies ready to be read and written; all their new sounds are encoded in one batch. Each starts
        from its request's memory or from one of the `shared`, whichever spares most."""
        known = [self.fitted(request.conversation, request.task) for request in requests]
        prompts = prepare(
            self.model,
            [self._segments(conversation, request.task) for conversation, request in zip(known, requests)],
            [[*shared, *([request.memory] if request.memory else [])] for request in requests],
            self.lead_in,
        )
        return [
            Strand(
                prompt,
                self._writing(conversation, request, prompt),
                request.cancel,
                remembers=request.memory is not None,
                turns_left_out=len(request.conversation.history) - len(conversation.history),
            )
            for prompt, conversation, request in zip(prompts, known, requests)
        ]

    def _writing(self, conversation: Conversation, request: Request, prompt: Prompt) -> Writing:
        """A reply of which nothing is written; of words that nobody spoke nothing ever is."""
        writing = Writing(
            self.plan(conversation, request.task, request.decoding),
            seeded(request.seed),
            self.listener(prompt, request.task, request.cancel),
        )
        is_judged = request.task.writes_only_words and self.lead_in
        if is_judged and not holds_speech(conversation.question.audio):
            writing.finish_reason = "end"
        return writing

    @property
    def lead_in(self) -> bool:
        """May sounds be judged and quiet be put before them? The reference takes them as they are."""
        return self.profile != "reference"

    def listener(self, prompt: Prompt, task: Task, cancel: threading.Event | None = None) -> Listener | None:
        """What the question's sound has to say while it is quoted; None where it does not spell."""
        frames = prompt.last_sound
        if not self.spells or frames is None:
            return None
        return self._spelling.listener(frames, task, partial(read_with, self.model, prompt), cancel)

    @cached_property
    def _spelling(self) -> Spelling:
        return Spelling(self.model, self.tokenizer)

    def embed(self, segments: Sequence[Segment]) -> Tensor:
        """Segments -> embeds (1, L, dim); sounds are encoded here."""
        return self.embed_many([segments])[0]

    def embed_many(self, prompts: Sequence[Sequence[Segment]]) -> list[Tensor]:
        """Prompts -> embeds (1, L_i, dim) each; all sounds of all prompts are encoded in one batch."""
        return [prompt.embeds for prompt in prepare(self.model, prompts, lead_in=self.lead_in)]

    def plan(
        self, conversation: Conversation, task: str | Task, decoding: DecodingDefaults | None = None
    ) -> Plan:
        """The rules under which the reply is written."""
        task = get_task(task)
        text = conversation.question.text
        read_aloud = len(self.tokenizer.encode(text)) if text and not task.writes_text else 0
        return Plan.make(task, self.vocabulary, self.profile, decoding, read_aloud)

    def finish(self, writing: Writing, task: Task) -> Reply:
        """Take the written ids apart: thought, emotion, text, speech."""
        raw_text = self.decode(writing, task)
        parsed = thinking.parse_reply(raw_text) if not task.understands else None
        reply = Reply(
            text=parsed.reply if parsed else raw_text.strip(),
            raw_text=raw_text,
            thought=parsed.thought if parsed else None,
            reply_emotion=parsed.reply_emotion if parsed else None,
            wellformed=parsed is None
            or (parsed.wellformed and (parsed.thought is not None) == bool(task.thinks)),
            text_ids=tuple(writing.text_ids),
            speech_ids=tuple(writing.codec_ids),
            raw_speech_ids=tuple(writing.speech_ids),
            finish_reason=writing.finish_reason or "end",
        )
        return replace(reply, defect=defect_of(reply, task))

    def decode(self, writing: Writing, task: Task) -> str:
        """The text written so far."""
        return self.tokenizer.decode(self.told_ids(writing, task))

    def told_ids(self, writing: Writing, task: Task) -> list[int]:
        """Ids of the text written so far. The reference loses the last one of a text that is followed by
        speech."""
        is_cut = self.profile == "reference" and task.writes_speech
        return writing.text_ids[:-1] if is_cut else writing.text_ids

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
        from echat.model.packing import pack

        token2wav = self.token2wav
        if token2wav is not None:
            from echat.token2wav.prepared import prepare as prepare_synthesis

            token2wav = prepare_synthesis(token2wav, "int8" if precision == "int4" else precision)
        return replace(self, model=pack(self.model, precision), token2wav=token2wav)

    # --- on disk

    def save(self, folder: str | Path, dtype: torch.dtype | None = torch.float16) -> None:
        """Write a model folder that `load` reads; `dtype` is the precision on disk."""
        about = (self.profile, self.name, dtype, self.spells, self.learned)
        save_model(folder, self.model, self.tokenizer, *about)
        if self.token2wav is not None:
            self.token2wav.save(Path(folder) / TOKEN2WAV_FOLDER)
        kept = self.home / SPEECH_TOKENIZER_FOLDER if self.home else None
        if kept is not None and kept.is_dir():
            shutil.copytree(kept, Path(folder) / SPEECH_TOKENIZER_FOLDER, dirs_exist_ok=True)


def _understanding(task: Task, reply: Reply) -> Understanding:
    parsed = parse_understanding(task, reply.raw_text)
    return Understanding(parsed.text, parsed.labels, reply.raw_text, parsed.reply, reply.finish_reason)
