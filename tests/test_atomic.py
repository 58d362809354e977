"""A file is written whole or not at all, and a folder is left as it was."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from llavacot_mlx.atomic import check_can_write, replace_folder, write_file
from llavacot_mlx.errors import UserError


def refused(file: Path) -> str:
    """What is said of a file that cannot be written, beforehand and when it is tried."""
    with pytest.raises(UserError) as before:
        check_can_write(file)
    with pytest.raises(UserError) as then:
        write_file(file, b"data")
    assert str(before.value) == str(then.value)
    return str(then.value)


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    file = tmp_path / "a"
    for data in (b"one", b"two"):
        check_can_write(file)
        write_file(file, data)
        assert file.read_bytes() == data
        assert list(tmp_path.iterdir()) == [file]


def test_checking_creates_nothing_and_changes_nothing(tmp_path: Path) -> None:
    check_can_write(tmp_path / "new")
    (tmp_path / "old").write_bytes(b"old")
    check_can_write(tmp_path / "old")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_bytes() == b"old"


def test_its_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    """Temporary files are for their owner alone, and a renamed one would stay so."""
    (tmp_path / "usual").touch()
    write_file(tmp_path / "ours", b"")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_missing_folder_and_a_folder(tmp_path: Path) -> None:
    missing = tmp_path / "nix" / "a"
    assert refused(missing) == f"{missing}: there is no folder {missing.parent}"
    assert refused(tmp_path) == f"{tmp_path}: is a folder; name a file in it"
    (tmp_path / "file").touch()
    assert refused(tmp_path / "file" / "a").endswith(": cannot be written: Not a directory")
    assert refused(tmp_path / ("x" * 300)).startswith(str(tmp_path / "xxx"))
    (tmp_path / "loop").symlink_to("loop")
    assert str(tmp_path / "loop") in refused(tmp_path / "loop")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


def test_a_name_as_long_as_names_can_be(tmp_path: Path) -> None:
    file = tmp_path / ("x" * 255)
    write_file(file, b"data")
    assert file.read_bytes() == b"data"


def test_a_link_stays_and_what_it_points_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    write_file(tmp_path / "link", b"data")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"data"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that Linux has")
def test_a_device_is_written_to_and_never_replaced() -> None:
    write_file(Path("/dev/null"), b"data")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    with pytest.raises(UserError, match="/dev/full: cannot be written: No space left"):
        write_file(Path("/dev/full"), b"data")
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_protected_folder_and_a_protected_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "file").chmod(0o444)
    assert refused(tmp_path / "file") == f"{tmp_path / 'file'}: is write-protected"
    tmp_path.chmod(0o555)
    assert refused(tmp_path / "new").endswith(": cannot be written: Permission denied")
    tmp_path.chmod(0o755)


def test_a_disk_that_becomes_full_leaves_the_old_file(tmp_path: Path) -> None:
    """The file size limit stands in for the full disk; its signal is ignored, as Python does."""
    file = tmp_path / "a"
    file.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match=f"{file}: cannot be written: File too large"):
            write_file(file, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.processes
def test_being_stopped_while_writing_leaves_nothing_half_written(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys\n"
        "from llavacot_mlx.atomic import write_file\n"
        "def replace(*_): raise KeyboardInterrupt\n"
        "pathlib.Path.replace = replace\n"
        "write_file(pathlib.Path(sys.argv[1]), b'data')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a")], capture_output=True, text=True
    )
    assert "KeyboardInterrupt" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    for text in ("old", "new"):
        with replace_folder(folder) as partial:
            (partial / "file").write_text(text)
        assert (folder / "file").read_text() == text
        assert list(folder.parent.iterdir()) == [folder]


def test_a_folder_that_fails_half_way_is_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "file").write_text("old")

    def fail() -> None:
        with replace_folder(folder) as partial:
            (partial / "file").write_text("new")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert (folder / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_folders_above_one_that_fails_go_again(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), replace_folder(tmp_path / "a" / "b" / "out"):
        raise ValueError("stop")
    assert not list(tmp_path.iterdir())
