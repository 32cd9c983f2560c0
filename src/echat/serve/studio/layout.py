"""Layout of the studio: Gradio tabs over `backend.Studio`."""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import echat
from echat.dialogue.tasks import TASKS, get_task, reply_task
from echat.dialogue.turns import ask
from echat.infer.engine import Engine
from echat.serve.origins import Origins
from echat.serve.studio import backend
from echat.serve.studio.backend import PartialAnswer, Studio
from echat.serve.studio.origin_middleware import OriginMiddleware

if TYPE_CHECKING:
    import gradio as gr

KEPT_SECONDS = 3600  # lifetime of uploads and pictures
SAVE: list[Any] = ["download"]  # Gradio's sharing button would upload the audio to another host
FORMS = ("label", "language")
EXAMPLE = Path(echat.__file__).parent / "models" / "echat-tiny" / "examples" / "question.wav"


def run(engine: Engine, host: str, port: int) -> None:
    """Run the studio until Ctrl-C."""
    with tempfile.TemporaryDirectory(prefix="echat-studio-") as folder:
        blocks = start(engine, host, port, Path(folder))
        print(f"echat studio is open at {blocks.local_url} (Ctrl-C closes it)", file=sys.stderr)
        blocks.block_thread()


def start(engine: Engine, host: str, port: int | None, folder: Path) -> gr.Blocks:
    """Start the studio, without analytics and sharing; `folder` is for its pictures."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "0")
    import gradio as gr
    from starlette.middleware import Middleware

    blocks = build(Studio(engine, folder))
    blocks.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        footer_links=[],
        allowed_paths=[str(folder)],
        max_file_size="100mb",
        app_kwargs={"middleware": [Middleware(OriginMiddleware, origins=Origins(host))]},
        # Local fonts: the default theme would fetch some from another host.
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    )
    return blocks


def build(studio: Studio) -> gr.Blocks:
    """Build the tabs."""
    import gradio as gr

    with gr.Blocks(title="echat studio", delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as blocks:
        gr.Markdown(f"# echat studio\n{studio.name}")
        with gr.Tab("Ask"):
            _ask_tab(studio)
        with gr.Tab("Every task"):
            _task_tab(studio)
        if studio.engine.token2wav is not None:
            with gr.Tab("Read aloud"):
                _speech_tab(studio)
        with gr.Tab("Many files"):
            _batch_tab(studio)
    blocks.queue(default_concurrency_limit=1)
    return blocks


# --- one question, answered with both forms of thought side by side


def _ask_tab(studio: Studio) -> None:
    import gradio as gr

    with gr.Row():
        question = gr.Audio(sources=["upload", "microphone"], type="filepath", buttons=SAVE, label="Question")
        asked = gr.Image(label="Spectrogram of the question", interactive=False, buttons=[])
    with gr.Row():
        voice, seed = _voice(studio), _seed()
        button = gr.Button("Answer", variant="primary")
    columns: list[list[Any]] = []
    with gr.Row():
        for title in ("Thinks in labels", "Thinks in words"):
            with gr.Column():
                gr.Markdown(f"### {title}")
                columns.append(_answer_fields())
    gr.Examples([[str(EXAMPLE)]], inputs=[question], label="Examples")
    outputs = [asked, *columns[0], *columns[1]]

    def answer(path: str | None, voice: str | None, seed: float | None) -> Iterator[list[Any]]:
        waveform = studio.question(path)
        picture = studio.picture(waveform, backend.SAMPLE_RATE, "question")
        shown = [PartialAnswer(), PartialAnswer()]
        speaks = studio.engine.token2wav is not None
        for column, form in enumerate(FORMS):
            task = reply_task(form, speaks)
            answers = studio.answer(ask(audio=waveform), task, voice, _to_int(seed))
            for shown[column] in answers:
                yield [picture, *_values(shown[0]), *_values(shown[1])]

    button.click(_with_gradio_errors(answer), [question, voice, seed], outputs)


def _answer_fields() -> list[Any]:
    """Output fields of one answer, in the order of `_values`."""
    import gradio as gr

    return [
        gr.Textbox(label="Thought", lines=4),
        gr.Textbox(label="Reply"),
        gr.Audio(label="Speech", interactive=False, buttons=SAVE),
        gr.Image(label="Spectrogram of the speech", interactive=False, buttons=[]),
        gr.Textbox(label="Time", lines=2),
    ]


def _values(shown: PartialAnswer) -> list[Any]:
    labels = ", ".join(f"{kind.replace('_', ' ')}: {value}" for kind, value in shown.labels.items())
    thought = "\n".join(part for part in (shown.thought, labels) if part)
    return [thought, shown.text, shown.audio, shown.picture, shown.seconds]


# --- every task


def _task_tab(studio: Studio) -> None:
    import gradio as gr

    with gr.Row():
        task = gr.Dropdown(list(TASKS), value="understand", label="Task")
        voice, seed = _voice(studio), _seed()
    with gr.Row():
        clip = gr.Audio(sources=["upload", "microphone"], type="filepath", buttons=SAVE, label="Sound")
        text = gr.Textbox(label="Text, for tasks that read", lines=3, visible=False)
    button = gr.Button("Run", variant="primary")
    with gr.Row():
        with gr.Column():
            labels = gr.Dataframe(
                headers=["what", "found"],
                label="Found",
                interactive=False,
                wrap=True,
                column_widths=["30%", "70%"],
            )
            thought = gr.Textbox(label="Thought")
            reply = gr.Textbox(label="Text")
        with gr.Column():
            sound = gr.Audio(label="Speech", interactive=False, buttons=SAVE)
            picture = gr.Image(label="Spectrogram of the speech", interactive=False, buttons=[])
    with gr.Row():
        raw, seconds = gr.Textbox(label="As the model wrote it"), gr.Textbox(label="Time")
    gr.Examples([[str(EXAMPLE)]], inputs=[clip], label="Examples")

    def fields_of(name: str) -> list[Any]:
        has_audio_input = get_task(name).input_modality == "audio"
        return [gr.update(visible=has_audio_input), gr.update(visible=not has_audio_input)]

    def answer(
        name: str, path: str | None, words: str, voice: str | None, seed: float | None
    ) -> Iterator[list[Any]]:
        if get_task(name).input_modality == "audio":
            conversation = ask(audio=studio.question(path))
        elif words.strip():
            conversation = ask(text=words)
        else:
            raise ValueError("text: expected words, found none; write some")
        for shown in studio.answer(conversation, name, voice, _to_int(seed)):
            rows = [[kind.replace("_", " "), value] for kind, value in shown.labels.items()]
            yield [rows, shown.thought, shown.text, shown.audio, shown.picture, shown.raw_text, shown.seconds]

    task.change(fields_of, [task], [clip, text])
    outputs = [labels, thought, reply, sound, picture, raw, seconds]
    button.click(_with_gradio_errors(answer), [task, clip, text, voice, seed], outputs)


# --- text to speech


def _speech_tab(studio: Studio) -> None:
    import gradio as gr

    with gr.Row():
        with gr.Column():
            text = gr.Textbox(label="Words to speak", lines=4)
            voice, seed = _voice(studio), _seed()
            own = gr.Audio(
                sources=["upload", "microphone"],
                type="filepath",
                buttons=SAVE,
                label="Or a recording of another voice, 3 to 10 s",
            )
            button = gr.Button("Speak", variant="primary")
        with gr.Column():
            sound = gr.Audio(label="Speech", interactive=False, buttons=SAVE)
            picture = gr.Image(label="Spectrogram of the speech", interactive=False, buttons=[])
    gr.Examples([["it is good to hear your voice again"]], inputs=[text], label="Examples")

    def say(words: str, name: str | None, path: str | None, seed: float | None) -> Iterator[list[Any]]:
        yield list(studio.say(words, studio.voice(name, path), _to_int(seed)))

    button.click(_with_gradio_errors(say), [text, voice, own, seed], [sound, picture])


# --- many files


def _batch_tab(studio: Studio) -> None:
    import gradio as gr

    with gr.Row():
        files = gr.File(file_count="multiple", file_types=["audio"], label="Sound files")
        with gr.Column():
            names = [name for name, task in TASKS.items() if task.input_modality == "audio"]
            task, seed = gr.Dropdown(names, value="understand", label="Task"), _seed()
            button = gr.Button("Run", variant="primary")
    table = gr.Dataframe(
        headers=backend.TABLE_HEADERS,
        label="Found",
        wrap=True,
        interactive=False,
        column_widths=["15%", "30%", "25%", "15%", "15%"],
    )
    results = gr.File(label="Download", file_count="multiple", interactive=False)

    def batch(paths: list[str] | None, name: str, seed: float | None) -> Iterator[tuple[Any, Any]]:
        yield studio.batch(paths or [], name, _to_int(seed))

    button.click(_with_gradio_errors(batch), [files, task, seed], [table, results])


# --- shared fields


def _voice(studio: Studio) -> Any:
    import gradio as gr

    token2wav = studio.engine.token2wav
    names = list(token2wav.voices) if token2wav is not None else []
    return gr.Dropdown(names, value=names[0] if names else None, label="Voice", visible=bool(names))


def _seed() -> Any:
    import gradio as gr

    return gr.Number(label="Seed (empty: random)", value=0, precision=0)


def _to_int(number: float | None) -> int | None:
    return None if number is None else int(number)


def _with_gradio_errors(work_of: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Show a ValueError as an error message in the browser."""
    import gradio as gr

    @functools.wraps(work_of)
    def stream(*values: Any) -> Iterator[Any]:
        try:
            yield from work_of(*values)
        except ValueError as error:
            raise gr.Error(str(error)) from error

    return stream
