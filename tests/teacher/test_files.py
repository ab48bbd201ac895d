import os
import socket
from pathlib import Path

import pytest

from compress.pipeline.errors import InputError, UsageError
from compress.pipeline.teacher.readers import files
from compress.pipeline.teacher.readers.files import memory_limit, read_file


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\0content\xff")
    assert read_file(tmp_path / "file") == b"\0content\xff"


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_file(tmp_path / "link") == b"content"


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no file '.*nowhere\.pt'\.") as caught:
        read_file(tmp_path / "nowhere.pt")
    assert caught.value.exit_code == 2


def test_a_path_through_a_file_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be read: Not a directory"):
        read_file(tmp_path / "file" / "teacher.pt")


def test_a_name_that_no_file_can_have_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: File name too long"):
        read_file(tmp_path / ("x" * 300))


def test_links_that_go_in_circles_are_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(UsageError, match="cannot be read: Too many levels of symbolic links"):
        read_file(tmp_path / "one")


def test_a_file_without_permission_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, flags: int) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "_open_without_waiting", refuse)
    with pytest.raises(UsageError, match="cannot be read: Permission denied"):
        read_file(tmp_path / "teacher.pt")


def test_a_folder_is_no_regular_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a regular file"):
        read_file(tmp_path)


def test_a_named_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is not a regular file"):
        read_file(tmp_path / "pipe")


def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with pytest.raises(InputError, match="is not a regular file"):
            read_file(Path("socket"))


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/tty"])
def test_a_device_is_refused(device: str) -> None:
    with pytest.raises(InputError, match="is not a regular file"):
        read_file(Path(device))


def test_a_file_that_the_system_makes_up_is_refused() -> None:
    with pytest.raises(InputError, match="changed while it was read"):
        read_file(Path("/proc/self/maps"))


@pytest.mark.parametrize("difference", [-1, 1])
def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, difference: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(10))
    whole = files._read_exactly

    def after_a_change(file: object, size: int, path: Path) -> bytearray:
        path.write_bytes(bytes(size + difference))
        return whole(file, size, path)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "_read_exactly", after_a_change)
    with pytest.raises(InputError, match="changed while it was read"):
        read_file(path)


def test_a_file_larger_than_any_checkpoint_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match="has 1,099,511,627,776 bytes; a checkpoint may have 34,359,738,368"):
        read_file(tmp_path / "sparse")


def test_the_memory_limit_is_three_times_the_file_and_a_gibibyte() -> None:
    assert memory_limit(10) == 30 + 2**30
