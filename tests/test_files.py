"""What stands under a final name is whole."""

import os

import pytest

from resnetkit import files
from resnetkit.errors import MachineError, UsageError


def test_writing(tmp_path):
    files.write_text(tmp_path / "deep" / "a.txt", "ü")
    assert (tmp_path / "deep" / "a.txt").read_bytes() == "ü".encode()
    files.write_bytes(tmp_path / "deep" / "a.txt", b"2")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.txt"]
    assert (tmp_path / "deep" / "a.txt").read_bytes() == b"2"


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), files.atomic_write(path) as part:
        part.write_text("half")
        _ = 1 // 0
    with pytest.raises(ZeroDivisionError), files.atomic_write_folder(tmp_path / "folder") as part:
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
            with files.atomic_write_folder(target):
                pass
        else:
            files.write_text(target, "x")
    assert str(caught.value) == (
        f"error: cannot write: No space left on device\nwhere: {target}\nfix: make room, or write to another disk"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError) as caught:
        files.write_text(tmp_path / "file" / "below", "x")
    assert str(caught.value) == (
        f"error: cannot write: File exists\nwhere: {tmp_path / 'file' / 'below'}\nfix: name another place to write to"
    )


def test_what_numpy_says_of_a_full_disk(tmp_path):
    with pytest.raises(MachineError) as caught, files.atomic_write(tmp_path / "a"):
        raise OSError("1000 requested and 24 written")
    assert caught.value.what == "cannot write: 1000 requested and 24 written"
    assert caught.value.fix == "make room, or write to another disk"


def test_what_is_held_has_the_name(tmp_path, monkeypatch):
    """Who held it before gives it another name after this one has opened it."""
    path, locked, names = tmp_path / "a", files._try_lock, [tmp_path / "1", tmp_path / "2"]

    def meanwhile(handle):
        if names:
            path.rename(names.pop())
        return locked(handle)

    monkeypatch.setattr(files, "_try_lock", meanwhile)
    with files.lock_file(path) as mine:
        assert mine
        with files.lock_file(path) as other:
            assert not other
    assert sorted(each.name for each in tmp_path.iterdir()) == ["1", "2", "a"]


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_takes_no_name_of_another(tmp_path, monkeypatch, links):
    if not links:

        def refuse(*_, **__):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    path, part, record = tmp_path / "a", tmp_path / "a.part", tmp_path / "a.part.json"
    for one in (path, part, record):
        one.write_text(one.name)
    assert not files.publish(part, path, record)
    with pytest.raises(UsageError) as caught, files.atomic_write(path, exclusive=True) as made:
        made.write_text("new")
    assert str(caught.value) == (f"error: this file exists already\nwhere: {path}\nfix: name another, or remove it")
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == {n: n for n in ("a", "a.part", "a.part.json")}
    path.unlink()
    assert files.publish(part, path, record)
    with files.atomic_write(tmp_path / "b", exclusive=True) as made:
        made.write_text("new")
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == {"a": "a.part", "b": "new"}


def test_only_ordinary_files_are_written_to_and_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match=r"^this is no ordinary file$"):
            files.write_at(tmp_path / name, b"x")
    assert (tmp_path / "mine").read_text() == "mine"
    with pytest.raises(MachineError) as caught, files.lock_file(tmp_path / "pipe"):
        pass
    assert str(caught.value) == (
        f"error: cannot write: this is no ordinary file\nwhere: {tmp_path / 'pipe'}\nfix: name another place to write to"
    )
    with files.lock_file(tmp_path / "link") as mine:  # a card may be a link into a cache
        assert mine
    with pytest.raises(MachineError) as caught:
        files.hash_file(tmp_path / "pipe")
    assert str(caught.value) == (
        f"error: this is no ordinary file\nwhere: {tmp_path / 'pipe'}\nfix: put a copy of the file itself there"
    )


def test_what_one_name_left_half_written_is_swept(tmp_path):
    for name in (".a[1].abcdefgh.part", ".a1.abcdefgh.part", ".a[1].b.abcdefgh.part", "a[1].part"):
        (tmp_path / name).touch()
    files.remove_temporary(tmp_path, "a[1]")
    assert sorted(one.name for one in tmp_path.iterdir()) == [".a1.abcdefgh.part", ".a[1].b.abcdefgh.part", "a[1].part"]
