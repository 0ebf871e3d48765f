"""JSON files: numbers that are not finite become null, and damage is an empty object."""

import json
import math

import pytest

from vae.utils.files import read_json, write_json


def test_numbers_that_are_not_finite_are_written_as_null(tmp_path):
    content = {"a": [math.nan, 1.5], "b": {"c": -math.inf, "d": 2}}
    write_json(tmp_path / "file", content)
    text = (tmp_path / "file").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": [None, 1.5],
        "b": {"c": None, "d": 2},
    }


def test_a_written_file_is_read_again(tmp_path):
    write_json(tmp_path / "file", {"a": [1, "b"], "c": None})
    assert read_json(tmp_path / "file") == {"a": [1, "b"], "c": None}


@pytest.mark.parametrize("content", [None, b"", b"[1]", b'{"a": ', b"\xff\xfe"])
def test_a_missing_or_damaged_file_is_an_empty_object(tmp_path, content):
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    assert read_json(tmp_path / "file") == {}
