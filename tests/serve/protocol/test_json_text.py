"""Parsed JSON is limited and safe; written JSON is valid UTF-8."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echat.serve.protocol.json_text import MAX_DEPTH, read_json, sanitize, write_json
from echat.serve.protocol.wire import ProtocolError

ANY_TEXT = st.text(st.characters(codec=None, categories=None), max_size=20)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(ANY_TEXT, VALUES, max_size=4))
def test_whatever_is_read_can_be_written_and_sent(values):
    sent = write_json(read_json(json.dumps(values))).encode()  # lone surrogates cannot be encoded
    assert read_json(sent.decode()) == read_json(json.dumps(values))


def test_a_lone_surrogate_is_replaced_and_a_pair_is_kept():
    assert read_json('{"a\\ud83d": ["x\\udc00", "\\ud83d\\ude00"]}') == {"a\ufffd": ["x\ufffd", "😀"]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "5",
        '"text"',
        "[" * 100_000,
        '{"a":' * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1),
        '{"a": ' + "9" * 5000 + "}",
        '{"a": 1e999}',
        '{"a": NaN}',
    ],
    ids=range(10),
)
def test_unsafe_json_is_refused(text):
    with pytest.raises(ProtocolError) as refused:
        read_json(text)
    assert refused.value.code == "invalid_json"


def test_nesting_up_to_the_limit_is_fine():
    deep = '{"a":' * MAX_DEPTH + "1" + "}" * MAX_DEPTH
    assert write_json(read_json(deep)).replace(" ", "") == deep


def test_one_kind_of_number():
    values = read_json('{"a": 500.0, "b": 0.5, "c": 1e300, "d": -0.0}')
    assert [type(value) for value in values.values()] == [int, float, float, int]
    assert sanitize({"a": 500.0}) == {"a": 500.0}
