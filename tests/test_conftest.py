import socket

import pytest


def test_a_test_that_asks_the_network_fails() -> None:
    # 192.0.2.1 belongs to nobody: RFC 5737.
    with pytest.raises(pytest.fail.Exception, match=r"asks the network for '192\.0\.2\.1'"):
        socket.create_connection(("192.0.2.1", 80), timeout=0.1)
    with socket.socket() as unconnected, pytest.raises(pytest.fail.Exception, match="asks the network"):
        unconnected.connect_ex(("192.0.2.1", 80))


def test_a_test_may_talk_to_its_own_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
