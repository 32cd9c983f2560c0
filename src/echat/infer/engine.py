"""One loaded model, many conversations: every call takes its state as arguments and leaves nothing behind."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from echat.audio.waveform import read
from echat.checkpoint import TOKEN2WAV_FOLDER
from echat.dialogue import thinking
from echat.dialogue.rendering import Audio as AudioSegment
from echat.dialogue.rendering import Segment, render
from echat.dialogue.tasks import DecodingDefaults, Profile, Task, get_task
from echat.dialogue.turns import Conversation, UserTurn
from echat.dialogue.understanding import parse_understanding
from echat.dialogue.vocabulary import Vocabulary
from echat.infer import events
from echat.infer.decoding import Plan, Writing
from echat.infer.events import Event, Reply, Understanding
from echat.infer.generation import embed_prompt, generate
from echat.infer.hearing import listen, to_mel
from echat.infer.loading import load as load
from echat.infer.loading import load_released as load_released
from echat.infer.telling import Clock, Teller
from echat.model.model_folder import save_model
from echat.model.speech_llm import SpeechLLM
from echat.model.text_tokenizer import TextTokenizer

if TYPE_CHECKING:
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
    ) -> Iterator[Event]:
        """Answer the last user turn: Thought, Text, SpeechIds ..., Audio, Done, each as soon as it is known.

        A user turn's `audio` is a path, a 16 kHz waveform (samples,) or a mel (frames, n_mels). `seed` makes
        chance repeatable. `decoding` replaces the task's defaults. `voice` is a voice of the model or a
        prompt for another. Without `speak` the ids of speech are still written, but no waveform is made.
        """
        task = get_task(task)
        clock = Clock()
        segments = self.render(conversation, task)
        embeds = self.embed(segments)
        clock.lap("listen")
        plan = self.plan(conversation, task, decoding)
        teller = Teller(self, task)
        writing = None
        for step, writing in generate(self.model, embeds, plan, _generator(seed)):
            if step.is_speech and "write" not in clock.seconds:
                clock.lap("write")
            yield from teller.tell(writing)
        assert writing is not None
        yield from teller.tell(writing, is_last=True)
        clock.lap("speak" if task.writes_speech and "write" in clock.seconds else "write")
        reply = self.finish(writing, task)
        if speak and self.token2wav is not None and reply.speech_ids:
            reply = replace(reply, **self._synthesise(reply.speech_ids, voice, seed))
            clock.lap("synthesise")
            assert reply.waveform is not None and reply.rate is not None
            yield events.Audio(reply.waveform, reply.rate)
        yield events.Done(replace(reply, seconds=clock.total()))

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
    ) -> list[Reply]:
        """Many replies at once, each what `run` would give alone. Row i is drawn with `seed + i`."""
        from echat.infer.batch import generate_batch

        task = get_task(task)
        embeds = self.embed_many([self.render(conversation, task) for conversation in conversations])
        plans = [self.plan(conversation, task, decoding) for conversation in conversations]
        seeds = [None if seed is None else seed + row for row in range(len(plans))]
        writings = generate_batch(self.model, embeds, plans, [_generator(s) for s in seeds])
        replies = [self.finish(writing, task) for writing in writings]
        if speak and self.token2wav is not None:
            replies = [
                replace(reply, **self._synthesise(reply.speech_ids, voice, s)) if reply.speech_ids else reply
                for reply, s in zip(replies, seeds)
            ]
        return replies

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
        """Read a text aloud -> waveform (samples,), rate in Hz."""
        self._need_token2wav()
        reply = self.run(Conversation([UserTurn(text=text)]), "tts", seed=seed, voice=voice, **settings)
        if reply.waveform is None or reply.rate is None:
            raise ValueError(f"text {text!r}: expected speech, found none; give words that can be read aloud")
        return reply.waveform, reply.rate

    def voice_from(self, path: str | Path) -> "VoicePrompt":
        """The voice of a recording, to speak with."""
        waveform, rate = read(str(path))
        return self._need_token2wav().voice_prompt(waveform, rate, where=str(path))

    # --- steps of a reply, also used by the batch, the verification and the tests

    def render(self, conversation: Conversation, task: str | Task) -> list[Segment]:
        """The prompt as segments, in the dialect of this engine."""
        return render(conversation, task, self.tokenizer, self.vocabulary, self.profile)

    def embed(self, segments: Sequence[Segment]) -> Tensor:
        """Segments -> embeds (1, L, dim); sounds are encoded here."""
        return self.embed_many([segments])[0]

    def embed_many(self, prompts: Sequence[Sequence[Segment]]) -> list[Tensor]:
        """Prompts -> embeds (1, L_i, dim) each; all sounds of all prompts are encoded in one batch."""
        n_mels = self.model.config.encoder.n_mels
        sounds = [s.audio for segments in prompts for s in segments if isinstance(s, AudioSegment)]
        frames = iter(listen(self.model, [to_mel(sound, n_mels) for sound in sounds]))
        with torch.inference_mode():
            return [
                embed_prompt(
                    self.model, segments, [next(frames) for s in segments if isinstance(s, AudioSegment)]
                )
                for segments in prompts
            ]

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
        codec_ids = writing.codec_ids
        return Reply(
            text=parsed.reply if parsed else raw_text.strip(),
            raw_text=raw_text,
            thought=parsed.thought if parsed else None,
            reply_emotion=parsed.reply_emotion if parsed else None,
            wellformed=parsed.wellformed and (parsed.thought is not None) == bool(task.thinks)
            if parsed
            else True,
            text_ids=tuple(writing.text_ids),
            speech_ids=tuple(codec_ids),
            finish_reason=writing.finish_reason or "end",
        )

    def decode(self, writing: Writing, task: Task) -> str:
        """The text written so far. The reference loses the last id of a text that is followed by speech."""
        ids = writing.text_ids
        if self.profile == "reference" and task.writes_speech:
            ids = ids[:-1]
        return self.tokenizer.decode(ids)

    def _synthesise(
        self, speech_ids: Sequence[int], voice: "VoicePrompt | str | None", seed: int | None
    ) -> dict[str, Any]:
        token2wav = self._need_token2wav()
        waveform = token2wav.synthesize(speech_ids, voice, seed=seed)
        return {"waveform": waveform, "rate": token2wav.rate}

    def _need_token2wav(self) -> "Token2Wav":
        if self.token2wav is None:
            raise ValueError(
                f"model {self.name or 'without a name'}: expected a {TOKEN2WAV_FOLDER}/ folder to speak "
                "with, found none; add one to the model folder"
            )
        return self.token2wav

    # --- on disk

    def save(self, folder: str | Path, dtype: torch.dtype | None = torch.float16) -> None:
        """Write a model folder that `load` reads; `dtype` is the precision on disk."""
        save_model(folder, self.model, self.tokenizer, self.profile, self.name, dtype)
        if self.token2wav is not None:
            self.token2wav.save(Path(folder) / TOKEN2WAV_FOLDER)
        kept = self.home / SPEECH_TOKENIZER_FOLDER if self.home else None
        if kept is not None and kept.is_dir():
            shutil.copytree(kept, Path(folder) / SPEECH_TOKENIZER_FOLDER, dirs_exist_ok=True)


def _understanding(task: Task, reply: Reply) -> Understanding:
    parsed = parse_understanding(task, reply.raw_text)
    return Understanding(parsed.text, parsed.labels, reply.raw_text, parsed.reply, reply.finish_reason)


def _generator(seed: int | None) -> torch.Generator:
    """Chance of one reply, on the CPU whatever the device."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator
