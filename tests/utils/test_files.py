"""Files are written whole or not at all."""

import os
import stat
import threading

import pytest

from vae.utils.files import write_atomically


def fail(*args, **kwargs):
    raise OSError(28, "No space left on device")


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize("content", [b"", b"new", bytes(3_000_000)], ids=len)
def test_new_file_has_the_content(tmp_path, content):
    write_atomically(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == content
    write_atomically(tmp_path / "file", content, b"", memoryview(b"end"))
    assert (tmp_path / "file").read_bytes() == content + b"end"
    assert os.listdir(tmp_path) == ["file"]


def test_old_file_is_replaced_by_a_shorter_one(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"something much longer than the new content")
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_file_is_readable_by_everybody(tmp_path):
    write_atomically(tmp_path / "file", b"new")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


@pytest.mark.parametrize("old", [b"old", None], ids=["replacing", "new"])
@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize(
    "failure, error", [(fail, OSError), (interrupt, KeyboardInterrupt)], ids=["full", "^C"]
)
def test_failure_leaves_the_old_file_or_none(tmp_path, monkeypatch, old, call, failure, error):
    file = tmp_path / "file"
    if old is not None:
        file.write_bytes(old)
    monkeypatch.setattr(os, call, failure)
    with pytest.raises(error):
        write_atomically(file, b"new")
    assert os.listdir(tmp_path) == ([] if old is None else ["file"])
    assert old is None or file.read_bytes() == old


def test_interruption_after_the_renaming_is_passed_on_and_leaves_the_new_file(
    tmp_path, monkeypatch
):
    replace = os.replace

    def interrupt_late(source, target):
        replace(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt_late)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_content_is_synchronised_before_the_file_is_renamed(tmp_path, monkeypatch):
    calls = []

    def record(name):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args: (calls.append(name), call(*args)))

    record("fsync")
    record("replace")
    write_atomically(tmp_path / "file", b"new")
    assert calls == ["fsync", "replace"]


def test_file_has_the_old_content_until_it_is_renamed(tmp_path, monkeypatch):
    file, contents = tmp_path / "file", []
    file.write_bytes(b"old")
    replace = os.replace

    def recording_replace(*args):
        contents.append(file.read_bytes())
        replace(*args)
        contents.append(file.read_bytes())

    monkeypatch.setattr(os, "replace", recording_replace)
    write_atomically(file, b"new")
    assert contents == [b"old", b"new"]


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(OSError):
        write_atomically(tmp_path / "missing" / "file", b"new")


def test_concurrent_writers_leave_the_content_of_one_of_them(tmp_path):
    contents = [bytes([n]) * 1_000_000 for n in range(4)]
    writers = [
        threading.Thread(target=write_atomically, args=(tmp_path / "file", content))
        for content in contents
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert (tmp_path / "file").read_bytes() in contents
    assert os.listdir(tmp_path) == ["file"]
