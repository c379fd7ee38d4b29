"""JSON from others: parsed or refused in one line, and what passes a schema is of the kinds it names."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from incoming import COUNT, NUMBER, SHARE, TEXT, check, one_of, optional, parse_json, read_object
from utils import UserError

SCHEMA = {
    "epoch": COUNT,
    "test": {str: SHARE},
    "names": [one_of("a", "b")],
    "data": {"all": TEXT},
    "mb": optional(NUMBER),
}
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.text(max_size=4),
    st.just("\ud800"),
    st.just("a"),
)
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*SCHEMA, "all", "x\n"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=200, derandomize=True, database=None, deadline=None)
@given(JSON)
def test_what_passes_a_schema_is_of_its_kinds(value):
    try:
        check(value, SCHEMA, "f.json", "fix it")
    except UserError as error:
        message = str(error)
        assert message.startswith("f.json: ") and message.endswith("; fix it") and "\n" not in message
        message.encode()
        return
    assert isinstance(value, dict)
    assert type(value.get("epoch", 0)) is int and value.get("epoch", 0) >= 0
    for share in value.get("test", {}).values():
        assert isinstance(share, (int, float)) and not isinstance(share, bool) and 0 <= share <= 1
    assert set(value.get("names", [])) <= {"a", "b"}
    value.get("data", {}).get("all", "").encode()
    assert value.get("mb") is None or abs(value["mb"]) < float("inf")


@pytest.mark.parametrize(
    "content, word",
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff{}", "is not JSON"),
        (b"[" * 10**5, "nested too deeply"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "is not JSON"),
        (b"{" + b" " * 10**6 + b"}", "over 1 MB"),
        (b"[1]", "is not a JSON object"),
    ],
)
def test_files_that_hold_no_object(tmp_path, content, word):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.json: {word}|a\.json: is not JSON \({word}") as caught:
        read_object(path, "fix it")
    assert str(caught.value).endswith("; fix it")


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_object(tmp_path / "a.json", "fix it")


def test_parse_json_returns_what_json_does():
    assert parse_json('{"a": [1, 2.5, null]}') == json.loads('{"a": [1, 2.5, null]}')
