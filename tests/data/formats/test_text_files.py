"""Whatever program saved a list or a table, its rows are the same."""

from __future__ import annotations

import codecs
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echat.data.defects import DataError
from echat.data.formats import jsonl as lines
from echat.data.formats.corpus import open_corpus
from echat.data.formats.jsonl import JsonLines
from echat.data.formats.manifest import read_manifest
from echat.data.formats.text_files import TextForm, form_of, known_encoding, raw_lines, text_of
from echat.data.tabular.importer import ImportConfig, import_corpus
from echat.data.tools.check import CheckConfig, check
from echat.data.tools.cleaning import clean

ROWS = [{"key": "a", "text": "héllo"}, {"key": "b", "text": "你好 \u2028"}, {"key": "c", "text": "𝄞"}]
FORMS = {
    "UTF-8": ("utf-8", b""),
    "UTF-8 with a mark": ("utf-8", codecs.BOM_UTF8),
    "UTF-16 of PowerShell": ("utf-16-le", codecs.BOM_UTF16_LE),
    "UTF-16 big-endian": ("utf-16-be", codecs.BOM_UTF16_BE),
    "UTF-16 without a mark": ("utf-16-le", b""),
    "UTF-32": ("utf-32-le", codecs.BOM_UTF32_LE),
}
ENDS = {"LF": "\n", "CRLF": "\r\n", "CR": "\r"}
LINES = "{0}\n{1}\n\n{2}\n"
ARRAY = "[\n {0},\n {1} ,{2}\n]\n"


def saved(text: str, form: str, end: str = "LF") -> bytes:
    encoding, mark = FORMS[form]
    return mark + text.replace("\n", ENDS[end]).encode(encoding)


def cases():
    return [(form, end) for form in FORMS for end in ENDS if end != "CR" or "UTF-8" in form]


@pytest.mark.parametrize("layout", [LINES, LINES.rstrip("\n"), ARRAY])
@pytest.mark.parametrize(("form", "end"), cases())
def test_a_list_of_any_form_holds_the_same_rows(tmp_path, form, end, layout):
    text = layout.format(*(json.dumps(row, ensure_ascii=form == "UTF-16 without a mark") for row in ROWS))
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(saved(text, form, end))
    corpus = open_corpus(tmp_path)
    assert [(sample.key, sample.text) for sample in corpus] == [tuple(row.values()) for row in ROWS]
    assert [sample.key for sample in corpus] == ["a", "b", "c"] and corpus.find("c") == 2
    if layout is not ARRAY:
        assert [sample.text for sample in read_manifest(path)] == [row["text"] for row in ROWS]


@pytest.mark.parametrize("form", FORMS)
def test_names_of_tars_are_read_in_any_form(published, form):
    names = published / "shard" / "shards_list.txt"
    names.write_bytes(saved(names.read_text(), form, "CRLF"))
    assert len(open_corpus(published / "shard")) == 6


def test_a_bad_row_is_named_by_its_line_in_lines_and_in_arrays(tmp_path):
    rows = (b'{"key": "a", "text": "x"}', b'{"key": "b", "text": \xff}', b'{"key": "c", "text": "z"}')
    for name, data in (("lines", b"\n".join(rows)), ("array", b"[" + b",\n".join(rows) + b"]")):
        (tmp_path / name).write_bytes(data)
        found = check(CheckConfig(source=str(tmp_path / name)))
        assert found.totals.records == 2 and found.bad == [1]
        assert [defect.place for defect in found.defects] == ["line 2"]


def test_the_rows_of_an_array_are_cleaned_into_lines(published, tmp_path):
    names = next((published / "combine").glob("shards_*.list"))
    rows = [json.loads(line) for line in names.read_text("utf-8").splitlines()]
    names.write_text(json.dumps([*rows, {"key": "nowhere"}], indent=1), "utf-8")
    source = CheckConfig(source=str(published / "combine"))
    found = check(source)
    clean(source, found.bad, tmp_path / "clean")
    assert found.bad == [6] and len(open_corpus(tmp_path / "clean")) == 6


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"PAR1" + bytes(99), "a Parquet file; echat data import reads it"),
        (b"PK\x03\x04" + bytes(99), "an Excel workbook"),
        (b"\x1f\x8b" + bytes(99), "a gzip file; unpack it"),
        (b"RIFF" + bytes(99), "a sound"),
        (bytes(257) + b"ustar" + bytes(300), "a tar archive"),
        (b"path,sentence\na.wav,hi\nb.wav,you\n", "echat data import"),
        (b"", "an empty list"),
    ],
)
def test_a_file_that_is_no_list_is_named_in_one_line(tmp_path, data, says):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(DataError, match=says) as caught:
        open_corpus(tmp_path / "x")
    assert str(tmp_path / "x") in str(caught.value)


# No NUL: before one, the mark of UTF-16 is the mark of UTF-32.
@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=9),
    st.sampled_from(list(FORMS)),
)
def test_splitting_gives_each_line_back(tmp_path_factory, line, form):
    encoding, mark = FORMS[form]
    path = str(tmp_path_factory.mktemp("lines") / "x")
    text = f"{line}\r\nbetween\n{line}"
    with open(path, "wb") as stream:
        stream.write(mark + text.encode(encoding))
    known = TextForm(encoding, len(mark), "\n".encode(encoding))
    found = [text_of(raw, known, path) for _, raw in raw_lines(path, known)]
    assert found == [line, "between", line] if line else found[:2] == ["", "between"]
    if mark:
        assert form_of(path) == known


def test_an_unknown_encoding_is_refused_with_examples(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"id,text\na,b\n")
    for name in ("nosuch", "base64", "rot13", "zlib"):
        with pytest.raises(DataError, match="latin-1"):
            known_encoding(name)
        with pytest.raises(DataError, match="encoding"):
            import_corpus(
                ImportConfig(source=str(tmp_path / "t.csv"), out=str(tmp_path / "o"), encoding=name)
            )
    assert not (tmp_path / "o").exists()


def test_a_sidecar_of_speech_ids_may_carry_a_mark(tmp_path):
    (tmp_path / "manifest.jsonl").write_text('{"key": "a", "text": "hi"}\n')
    row = json.dumps({"key": "a", "speech_ids": [1] * 9})
    (tmp_path / "speech_ids.jsonl").write_bytes(saved(row + "\n", "UTF-8 with a mark", "CRLF"))
    assert (
        open_corpus(tmp_path)[0].speech_ids
        == read_manifest(tmp_path / "manifest.jsonl")[0].speech_ids
        == (1,) * 9
    )


def test_the_same_index_serves_any_form(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "_WORTH_KEEPING", 0)
    path = tmp_path / "m.jsonl"
    path.write_bytes(saved(LINES.format(*map(json.dumps, ROWS)), "UTF-16 of PowerShell"))
    first = [JsonLines(str(path))[n] for n in range(3)]
    lines._contents.clear()
    assert (tmp_path / "m.jsonl.index").is_file() and [JsonLines(str(path))[n] for n in range(3)] == first
