"""Files are whole or not there."""

import os
import stat
import threading

import pytest

from vae.files import write_atomically


def failing(*args, **kwargs):
    raise OSError(28, "No space left on device")


def interrupted(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize("content", [b"", b"new", bytes(3_000_000)], ids=len)
def test_a_new_file_has_the_content(tmp_path, content):
    write_atomically(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


def test_an_old_file_is_replaced_whole(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"something much longer than what comes")
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_everybody_may_read_it(tmp_path):
    write_atomically(tmp_path / "file", b"new")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


@pytest.mark.parametrize("old", [b"old", None], ids=["replacing", "new"])
@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize(
    "failure, error", [(failing, OSError), (interrupted, KeyboardInterrupt)], ids=["full", "^C"]
)
def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch, old, call, failure, error):
    file = tmp_path / "file"
    if old is not None:
        file.write_bytes(old)
    monkeypatch.setattr(os, call, failure)
    with pytest.raises(error):
        write_atomically(file, b"new")
    assert os.listdir(tmp_path) == ([] if old is None else ["file"])
    assert old is None or file.read_bytes() == old


def test_an_interruption_after_the_renaming_is_one(tmp_path, monkeypatch):
    replace = os.replace

    def late(source, target):
        replace(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", late)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_the_content_is_on_the_disk_before_it_has_the_name(tmp_path, monkeypatch):
    calls = []

    def record(name):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args: (calls.append(name), call(*args)))

    record("fsync")
    record("replace")
    write_atomically(tmp_path / "file", b"new")
    assert calls == ["fsync", "replace"]


def test_the_file_is_never_seen_in_part(tmp_path, monkeypatch):
    """Right before the renaming the old content stands, and right after the new."""
    file, seen = tmp_path / "file", []
    file.write_bytes(b"old")
    replace = os.replace

    def watched(*args):
        seen.append(file.read_bytes())
        replace(*args)
        seen.append(file.read_bytes())

    monkeypatch.setattr(os, "replace", watched)
    write_atomically(file, b"new")
    assert seen == [b"old", b"new"]


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(OSError):
        write_atomically(tmp_path / "missing" / "file", b"new")


def test_two_writers_leave_one_whole_file(tmp_path):
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
