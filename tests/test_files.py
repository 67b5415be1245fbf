"""Files are written completely or not at all."""

import os
import subprocess
import sys
from unittest.mock import Mock

import pytest

from resnetkit import files
from resnetkit.errors import MachineError, UsageError


def read_all(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_write(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    files.write_text(path, "ü")
    assert path.read_bytes() == "ü".encode()
    files.write_bytes(path, b"2")
    assert read_all(tmp_path / "deep") == {"a.txt": "2"}


def test_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), files.atomic_write(path) as temporary:
        temporary.write_text("half")
        _ = 1 // 0
    with pytest.raises(ZeroDivisionError), files.atomic_write_folder(tmp_path / "folder") as temporary:
        (temporary / "x").write_text("half")
        _ = 1 // 0
    assert read_all(tmp_path) == {"a.txt": "old"}


@pytest.mark.parametrize("name", ["fsync", "replace", "rename"])
def test_failing_disk_is_a_machine_error(tmp_path, monkeypatch, name):
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
        f"error: cannot write: No space left on device\nwhere: {target}\n"
        "fix: free some disk space, or write to another disk"
    )
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk_space(tmp_path, monkeypatch):
    folder = tmp_path / "new" / "run"
    files.check_free_space(folder, 1, "a checkpoint")
    with pytest.raises(MachineError) as caught:
        files.check_free_space(folder, 10**18, "a checkpoint")
    assert caught.value.what.startswith("not enough disk space for a checkpoint: needs 1,000,000,000.0 GB, ")
    assert caught.value.what.endswith(" free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: Mock(free=209_990_000))
    with pytest.raises(MachineError, match="a checkpoint: needs 210 MB, slightly less is free\n"):
        files.check_free_space(folder, 210_000_000, "a checkpoint")
    assert (caught.value.where, caught.value.fix) == (
        (str(folder),),
        "free some disk space, or write to another disk: --out",
    )
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError) as caught:
        files.write_text(tmp_path / "file" / "below", "x")
    assert str(caught.value) == (
        f"error: cannot write: File exists\nwhere: {tmp_path / 'file' / 'below'}\nfix: write to another folder"
    )


def test_full_disk_as_numpy_reports_it(tmp_path):
    with pytest.raises(MachineError) as caught, files.atomic_write(tmp_path / "a"):
        raise OSError("1000 requested and 24 written")
    assert caught.value.what == "cannot write: 1000 requested and 24 written"
    assert caught.value.fix == "free some disk space, or write to another disk"


def lock_in_another_process(path):
    code = "import sys, pathlib; from resnetkit.files import lock_file\nwith lock_file(pathlib.Path(sys.argv[1])) as is_locked: print(is_locked)"
    return subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True, text=True).stdout.strip()


def test_lock_excludes_other_processes(tmp_path):
    path = tmp_path / "a"
    with files.lock_file(path) as is_locked:
        assert is_locked
        path.write_text("half")
        path.rename(tmp_path / "b")  # the lock belongs to the name, not to the file that has it
        assert lock_in_another_process(path) == "False"
        with files.lock_file(path) as is_locked_again:
            assert not is_locked_again
    assert lock_in_another_process(path) == "True"
    with files.lock_file(path) as is_locked:
        assert is_locked
    assert read_all(tmp_path) == {"b": "half"}


def test_lock_of_a_killed_process_is_free(tmp_path):
    (tmp_path / ".a.lock").touch()
    with files.lock_file(tmp_path / "a") as is_locked:
        assert is_locked
    assert list(tmp_path.iterdir()) == []


def test_lock_in_a_folder_that_is_missing(tmp_path):
    with (
        pytest.raises(MachineError, match="cannot write: No such file or directory"),
        files.lock_file(tmp_path / "none" / "a"),
    ):
        pass


def test_new_file_never_replaces_another(tmp_path):
    path, temporary, record = tmp_path / "a", tmp_path / "a.part", tmp_path / "a.part.json"
    for file in (path, temporary, record):
        file.write_text(file.name)
    assert not files.publish(temporary, path, record)
    with pytest.raises(UsageError) as caught, files.atomic_write(path, exclusive=True) as new:
        new.write_text("new")
    assert str(caught.value) == f"error: this file already exists\nwhere: {path}\nfix: name another, or remove it"
    assert read_all(tmp_path) == {name: name for name in ("a", "a.part", "a.part.json")}
    path.unlink()
    assert files.publish(temporary, path, record)
    with files.atomic_write(tmp_path / "b", exclusive=True) as new:
        new.write_text("new")
    assert read_all(tmp_path) == {"a": "a.part", "b": "new"}


def test_only_regular_files_are_written_and_read(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "target").write_text("target")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match=r"^not a regular file$"):
            files.write_at(tmp_path / name, b"x")
    assert (tmp_path / "target").read_text() == "target"
    with pytest.raises(MachineError) as caught, files.atomic_write(pipe):
        pass
    assert str(caught.value) == (
        f"error: cannot write: not a regular file\nwhere: {pipe}\nfix: write to another folder"
    )
    with files.lock_file(tmp_path / "link") as is_locked:  # a card may be a link into a cache
        assert is_locked
    with pytest.raises(MachineError) as caught:
        files.hash_file(pipe)
    assert str(caught.value) == (f"error: not a regular file\nwhere: {pipe}\nfix: put a copy of the file itself there")


def test_temporary_files_of_a_name_are_removed(tmp_path):
    for name in (".a[1].abcdefgh.part", ".a1.abcdefgh.part", ".a[1].b.abcdefgh.part", "a[1].part"):
        (tmp_path / name).touch()
    files.remove_temporary(tmp_path, "a[1]")
    assert set(read_all(tmp_path)) == {".a1.abcdefgh.part", ".a[1].b.abcdefgh.part", "a[1].part"}


def test_a_log_replaces_a_hard_link_and_refuses_a_symbolic_one(tmp_path):
    path, backup = tmp_path / "log", tmp_path / "backup"
    log = files.LogFile(path)
    log.add("1")
    backup.hardlink_to(path)
    log.add("2")
    log.add("3")
    assert (path.read_text(), backup.read_text()) == ("1\n2\n3\n", "1\n")
    path.unlink()
    path.symlink_to(backup)
    log.add("4")
    with pytest.raises(MachineError):
        log.sync()
    assert backup.read_text() == "1\n"
    path.unlink()
    assert files.LogFile(path).sync() == 0
