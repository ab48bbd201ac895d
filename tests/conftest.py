"""What every test runs under: no network, no settings from outside, one seed."""

import ipaddress
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

# Read by huggingface_hub when it is imported, so before any test module is.
os.environ["HF_HUB_OFFLINE"] = "1"


def is_local(host: object) -> bool:
    """Whether the host is this machine; None is, since it stands for the wildcard address."""
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(name)).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that looks up or connects to any machine but this one."""
    connect, connect_ex, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def check(host: object) -> None:
        if not is_local(host):
            # Derives from BaseException, so that no `except Exception` of the tested code hides it.
            pytest.fail(f"The test asks the network for {host!r}.")

    def checked_connect(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            check(address[0])
        connect(self, address)

    def checked_connect_ex(self: socket.socket, address: Any) -> int:
        if self.family != socket.AF_UNIX:
            check(address[0])
        return connect_ex(self, address)

    def checked_getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        check(host)
        return getaddrinfo(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", checked_connect)
    monkeypatch.setattr(socket.socket, "connect_ex", checked_connect_ex)
    monkeypatch.setattr(socket, "getaddrinfo", checked_getaddrinfo)


@pytest.fixture(autouse=True)
def no_outside_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget `COMPRESS_...` variables of the shell that runs the tests."""
    for name in [name for name in os.environ if name.startswith("COMPRESS_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers for every test, in whatever order; torch is not imported for those that do without."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny teacher's checkpoint, the same for all tests."""
    from tests.command import save_teacher

    return save_teacher(tmp_path_factory.mktemp("teacher") / "teacher.pt")


@pytest.fixture(scope="session")
def labels_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The names of its classes."""
    from tests.command import LABELS

    path = tmp_path_factory.mktemp("labels") / "labels.txt"
    path.write_text("\n".join(LABELS) + "\n", encoding="utf-8")
    return path
