"""What stands under a final name is whole."""

import os

import pytest

from resnetkit import files
from resnetkit.errors import MachineError


def test_writing(tmp_path):
    files.write_text(tmp_path / "deep" / "a.txt", "ü")
    assert (tmp_path / "deep" / "a.txt").read_bytes() == "ü".encode()
    files.write_bytes(tmp_path / "deep" / "a.txt", b"2")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.txt"]
    assert (tmp_path / "deep" / "a.txt").read_bytes() == b"2"


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), files.replacing(path) as part:
        part.write_text("half")
        _ = 1 // 0
    with pytest.raises(ZeroDivisionError), files.new_folder(tmp_path / "folder") as part:
        (part / "x").write_text("half")
        _ = 1 // 0
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


@pytest.mark.parametrize("name", ["fsync", "replace", "rename"])
def test_a_failing_disk_is_an_error_of_the_machine(tmp_path, monkeypatch, name):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, name, fail)
    target = tmp_path / "a"
    with pytest.raises(MachineError) as caught:
        if name == "rename":
            with files.new_folder(target):
                pass
        else:
            files.write_text(target, "x")
    assert str(caught.value) == f"error: cannot write: No space left on device\nwhere: {target}"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot write"):
        files.write_text(tmp_path / "file" / "below", "x")
