"""Files appear whole or not at all, and a failed write says what to do."""

import errno
import os

import pytest

from difftool.errors import OutputError
from difftool.files import TEMPORARY, make_folder, place_new, remove_temporaries, write_atomic, write_temporary


def test_a_write_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("old")
    write_atomic(path, b"new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["x.json"]


@pytest.mark.parametrize(
    ("code", "message", "hint"),
    [
        (errno.ENOSPC, "No space left on device", "free some space"),
        (errno.EROFS, "Read-only file system", "read-only"),
        (errno.EFBIG, "File too large", "size limit"),
    ],
)
def test_a_failed_write_keeps_the_old_file_and_says_what_to_do(tmp_path, monkeypatch, code, message, hint):
    path = tmp_path / "x.json"
    path.write_text("old")

    def fail(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match=message) as error:
        write_atomic(path, b"new")
    assert hint in error.value.hint and error.value.exit_code == 9
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x.json"]


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        make_folder(tmp_path / "file" / "folder")


def test_a_file_that_vanishes_keeps_no_other_from_being_removed(tmp_path):
    (tmp_path / "plan.json").touch()
    (tmp_path / f".gone.png.1{TEMPORARY}").symlink_to("nowhere")  # like one that another run finishes meanwhile
    (tmp_path / "deeper").mkdir()
    left = tmp_path / "deeper" / f".left.png.nobody{TEMPORARY}"
    left.touch()
    remove_temporaries(tmp_path, since=tmp_path / "plan.json")
    assert not left.exists()


def test_a_taken_name_stays_what_it_is(tmp_path):
    taken = tmp_path / "x.png"
    taken.write_text("mine")
    temporary = write_temporary(taken, b"other")
    assert not place_new(temporary, taken)
    assert taken.read_text() == "mine" and temporary.read_bytes() == b"other"


def test_without_hard_links_a_file_still_gets_its_name(tmp_path, monkeypatch):
    def unsupported(*args):
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(os, "link", unsupported)
    target = tmp_path / "x.png"
    assert place_new(write_temporary(target, b"data"), target) and target.read_bytes() == b"data"
    assert not place_new(write_temporary(target, b"more"), target) and target.read_bytes() == b"data"
