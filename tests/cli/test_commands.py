"""Commands: every error is one line with exit code 2 and nothing half-written; results are JSON."""

from __future__ import annotations

import json
import shutil
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

import echat
from echat.cli import app

SHIPPED = Path(echat.__file__).parent / "models" / "echat-tiny"
needs_shipped_model = pytest.mark.skipif(not SHIPPED.is_dir(), reason="the embedded model is not there yet")


def run(*arguments: object, stdin: str = ""):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def assert_one_line(result, *says: str, code: int = 2) -> None:
    assert result.exit_code == code, (result.output, result.exception)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    assert all(part in result.stderr for part in says), result.stderr


def tone(seconds: float, rate: int = 16000) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 220 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.fixture
def question(tmp_path) -> Path:
    path = tmp_path / "question.wav"
    soundfile.write(path, tone(1.0), 16000)
    return path


def _missing(path: Path) -> None:
    pass


def _empty(path: Path) -> None:
    path.touch()


def _header_only(path: Path) -> None:
    soundfile.write(path, np.zeros(0, np.float32), 16000)


def _ten_milliseconds(path: Path) -> None:
    soundfile.write(path, tone(0.01), 16000)


def _silence(path: Path) -> None:
    soundfile.write(path, np.zeros(16000, np.float32), 16000)


def _not_a_number(path: Path) -> None:
    samples = tone(1.0)
    samples[500] = np.nan
    soundfile.write(path, samples, 16000, subtype="FLOAT")


def _text(path: Path) -> None:
    path.write_text("this is a text and not a sound")


def _cut_short(path: Path) -> None:
    soundfile.write(path, tone(1.0), 16000)
    path.write_bytes(path.read_bytes()[:9000])


def _too_long(path: Path) -> None:
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(1)
        sound.setframerate(8000)
        sound.writeframes(bytes(range(64, 192)) * (8000 * 660 // 128))


def _folder(path: Path) -> None:
    path.mkdir()


BAD_SOUNDS = [
    (_missing, "found nothing"),
    (_empty, "0 bytes"),
    (_header_only, "found 0 ms"),
    (_ten_milliseconds, "found 10 ms"),
    (_silence, "silence"),
    (_not_a_number, "nan"),
    (_text, "found text"),
    (_cut_short, "cut off"),
    (_too_long, "660.0 s"),
    (_folder, "found a folder"),
]


@pytest.mark.parametrize(("make", "says"), BAD_SOUNDS, ids=lambda value: getattr(value, "__name__", "")[1:])
def test_a_bad_sound_is_named_and_nothing_is_written(tmp_path, make, says):
    bad, answer = tmp_path / "bad.wav", tmp_path / "answer.wav"
    make(bad)
    before = sorted(tmp_path.iterdir())
    assert_one_line(run("reply", bad, "-o", answer), str(bad), says)
    assert_one_line(run("understand", bad), str(bad), says)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize(("rate", "kind"), [(8000, "PCM_U8"), (44100, "PCM_24"), (16000, "FLOAT")])
def test_unusual_audio_formats_are_understood(tmp_path, random_model, channels, rate, kind):
    path = tmp_path / "odd.wav"
    soundfile.write(path, np.stack([tone(0.5, rate)] * channels, axis=1), rate, subtype=kind)
    result = run("understand", path, "--model", random_model, "--task", "emotion", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["task"] == "emotion"


def test_a_sound_longer_than_the_encoder_takes_is_named(tmp_path, random_model):
    path = tmp_path / "long.wav"
    soundfile.write(path, tone(40.0), 16000)
    assert_one_line(run("understand", path, "--model", random_model), "at most 30 s", "found 40.0 s")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["reply"], "Missing argument 'QUESTION'; see echat reply --help"),
        (["replay"], "No such command 'replay'"),
        (["reply", "QUESTION", "--think", "loudly"], "loudly"),
        (["reply", "QUESTION", "--sed", "1"], "--sed"),
        (["reply", "QUESTION", "--model", "echat-tny"], "echat-tny"),
        (["reply", "QUESTION", "--device", "toaster"], "toaster"),
        (["reply", "QUESTION", "-o", "answer.mp3"], "'.mp3'"),
        (["reply", "QUESTION", "-o", "absent/answer.wav"], "found none; create it"),
        (["reply", "QUESTION", "--history", "absent.json"], "absent.json"),
        (["reply", "QUESTION", "--voice", "slt"], "expected -o FILE"),
        (["understand", "QUESTION", "--task", "emotoin"], "did you mean 'emotion'?"),
        (["understand", "QUESTION", "--task", "s2s"], "use echat reply"),
        (["say", " ", "-o", "out.wav"], "expected words"),
        (["info", "absent"], "expected a model folder"),
        (["train", "absent.yaml"], "absent.yaml"),
        (["finetune", "echat-tny", "--data", "absent", "-o", "run"], "echat-tny"),
        (["report", "absent"], "expected the run folder of a training"),
        (["corpus", "speak", "absent.csv", "-o", "spoken"], "absent.csv"),
        (["corpus", "build", "absent.yaml"], "absent.yaml"),
        (["verify", "absent"], "absent"),
        (["eval", "understanding", "--manifest", "absent.jsonl"], "absent.jsonl"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments_are_named(question, arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_one_line(run(*(question if a == "QUESTION" else a for a in arguments)), says)
    assert list(tmp_path.iterdir()) == [question]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "config.yaml").write_text("knid: echat"), "unknown key 'knid'"),
        (lambda folder: (folder / "config.yaml").write_text("model: {"), "line 1"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"1234"), "found 4 bytes"),
        (lambda folder: (folder / "tokenizer" / "tokenizer.json").write_text("{}"), "tokenizer.json"),
        (
            lambda folder: (folder / "config.yaml").write_text(
                (folder / "config.yaml").read_text().replace("ffn: 16", "ffn: 24", 1)
            ),
            "of another shape",
        ),
    ],
    ids=["unknown key", "not yaml", "no weights", "broken weights", "broken tokenizer", "wrong size"],
)
def test_a_broken_model_is_named(tmp_path, random_model, question, damage, says):
    folder = tmp_path / "model"
    shutil.copytree(random_model, folder)
    damage(folder)
    assert_one_line(run("understand", question, "--model", folder), says, str(folder))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("not json", "expected JSON"),
        ("3", "a list of turns, found a int"),
        ('[{"reply": 3}]', "turn 0: expected an object"),
        ('{"reply": "hello", "question": {}}', "turn 0, question"),
        ('{"reply": "hi", "question": {"text": "hi"}, "speech_ids": ["a"]}', "speech_ids"),
        ('{"reply": "hi", "question": {"text": "hi"}, "thought": {"form": "loud"}}', "thought"),
        ('{"reply": "hi", "question": {"audio": "gone.wav"}}', "gone.wav"),
    ],
)
def test_a_bad_history_is_named(tmp_path, question, content, says):
    path = tmp_path / "history.json"
    path.write_text(content)
    assert_one_line(run("reply", question, "--history", path), says)


def test_a_model_without_token2wav_is_named(tmp_path, random_model, question):
    answer = tmp_path / "answer.wav"
    assert_one_line(run("reply", question, "-o", answer, "--model", random_model), "token2wav")
    assert not answer.exists()


@pytest.mark.parametrize("think", ["label", "language", "off"])
@needs_shipped_model
def test_a_json_reply_is_the_history_of_the_next(tmp_path, think):
    question = SHIPPED / "examples" / "question.wav"
    settings = ["--think", think, "--json", "--seed", 1]
    first = run("reply", question, *settings)
    assert first.exit_code == 0, first.stderr
    record = json.loads(first.stdout)
    assert record["task"].startswith("s2t") and record["question"] == {"audio": str(question)}
    history = tmp_path / "turn1.json"
    history.write_text(first.stdout)
    second = run("reply", question, *settings, "--history", history)
    assert second.exit_code == 0, second.stderr
    assert second.stderr == "note: echat-tiny learned single turns: 1 earlier turn is left out\n"
    assert json.loads(second.stdout)["raw_text"] == record["raw_text"]


@pytest.mark.parametrize("think", ["label", "language"])
def test_an_answer_that_cannot_be_read_is_an_error(random_model, question, think):
    result = run("reply", question, "--model", random_model, "--think", think, "--seed", 1)
    assert_one_line(result, "expected a reply that can be read", "in two tries", "try another --seed", code=1)


def test_a_reply_with_a_defect_is_sampled_once_more_with_a_seed_of_its_own(
    question, random_model, monkeypatch
):
    from dataclasses import replace

    from echat.infer.engine import Engine
    from echat.infer.events import Reply
    from echat.infer.sampling import derived_seed

    seeds = []

    def run_once_well(self, *arguments, seed, decoding=None, **settings):
        seeds.append((seed, decoding is not None and decoding.text.sample))
        reply = Reply("well", "well")
        return reply if len(seeds) == 2 else replace(reply, defect="unreadable thought")

    monkeypatch.setattr(Engine, "run", run_once_well)
    result = run("reply", question, "--model", random_model, "--seed", 5, "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["reply"] == "well"
    assert seeds == [(5, False), (derived_seed(5, 1), True)]


@needs_shipped_model
@pytest.mark.parametrize("text", ["...", "-", "😀", "你好"])
def test_a_text_that_cannot_be_read_aloud_is_named_and_nothing_is_written(tmp_path, text):
    assert_one_line(run("say", text, "-o", tmp_path / "out.wav"), "text", "expected")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@needs_shipped_model
def test_doubtful_pieces_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr("echat.infer.text_to_speech.QUIET_IDS", -1000)  # nothing is ever short enough
    out = tmp_path / "out.wav"
    result = run("say", "Come home soon.", "-o", out, "--seed", 0, "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["doubtful"] and out.exists()
    assert result.stderr.startswith("note: words may be missing or made up in 'Come")


@needs_shipped_model
def test_chat_notes_once_that_earlier_turns_are_left_out():
    result = run("chat", "--json", stdin="i am sad\nI lost my job\nhello\n")
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 3
    assert result.stderr == "note: echat-tiny learned single turns: 1 earlier turn is left out\n"


@needs_shipped_model
def test_a_line_that_has_no_answer_is_named_and_the_chat_goes_on():
    result = run("chat", "--json", stdin="i lost my job\n你好\ni am sad\n")
    questions = [json.loads(line)["question"]["text"] for line in result.stdout.splitlines()]
    assert questions == ["i lost my job", "i am sad"] and result.exit_code == 2
    assert (
        result.stderr.startswith("error: text: expected text in en") and "1 earlier turn is" in result.stderr
    )


def test_the_same_seed_gives_the_same_words(random_model, question):
    asked = ["reply", question, "--model", random_model, "--think", "off", "--seed", 3, "--json"]
    replies = [run(*asked) for _ in range(2)]
    texts = [json.loads(reply.stdout)["raw_text"] for reply in replies]
    assert texts[0] == texts[1]


def test_chat_answers_each_line(random_model):
    result = run("chat", "--model", random_model, "--json", stdin="hello\nhow are you\n\nnever read\n")
    assert result.exit_code == 0, result.stderr
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["question"] for record in records] == [{"text": "hello"}, {"text": "how are you"}]


def test_info_describes_the_installation_and_a_model(random_model):
    facts = json.loads(run("info", "--json").stdout)
    assert facts["echat"] == echat.__version__ and "s2s_think_label" in facts["tasks"]
    model = json.loads(run("info", random_model, "--json").stdout)
    assert model["config"]["model"]["speech_codec_size"] == 32
    assert model["parameters"]["model.safetensors"]["speech_embedding"] == 35 * 16
    assert "speech_codec_size: 32" in run("info", random_model).stdout


def test_an_unexpected_exception_is_one_line_too(question, monkeypatch):
    def explode(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("echat.load", explode)
    assert_one_line(run("understand", question), "unexpected ZeroDivisionError: a bug", code=1)
    monkeypatch.setenv("ECHAT_DEBUG", "1")
    assert isinstance(run("understand", question).exception, ZeroDivisionError)


def test_a_missing_extra_names_its_remedy(question, monkeypatch):
    def lack(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'jiwer'", name="jiwer")

    monkeypatch.setattr("echat.load", lack)
    assert_one_line(run("understand", question), "pip install 'echat-speech[eval]'")


@needs_shipped_model
def test_the_shipped_model_answers_in_speech(tmp_path):
    answer = tmp_path / "answer.wav"
    question = SHIPPED / "examples" / "question.wav"
    result = run("reply", question, "-o", answer, "--seed", 0, "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["reply"] and record["thought"]["form"] == "language"
    assert soundfile.info(answer).duration == pytest.approx(record["duration_s"], abs=1e-3)
    assert list(tmp_path.iterdir()) == [answer]


@needs_shipped_model
def test_the_output_for_people_names_the_speech_file(tmp_path):
    answer = tmp_path / "answer.wav"
    said = run("say", "I am glad you told me.", "-o", answer, "--seed", 0)
    assert said.exit_code == 0, said.stderr
    assert "speech:" in said.stdout and soundfile.info(answer).duration > 0.5
    heard = run("understand", answer)
    assert heard.exit_code == 0 and heard.stdout
