"""A held port belongs to one holder, and a server that is told its number can listen there."""

import socket
from collections.abc import Iterator

import pytest

from led_sglang import launch
from led_sglang.serving.ports import CannotListen, HeldPort, refuse_taken


@pytest.fixture
def held() -> Iterator[HeldPort]:
    with HeldPort() as port:
        yield port


@pytest.fixture
def taken() -> Iterator[int]:
    """Where somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_held_port_is_given_to_nobody_else() -> None:
    """Of some 28,000 that the kernel gives out; without holding, 600 have six twins."""
    ports = [HeldPort() for _ in range(600)]  # fewer than the files that a process may have open
    try:
        assert len({port.number for port in ports}) == len(ports)
    finally:
        for port in ports:
            port.release()


def test_nobody_answers_before_a_server_listens(held: HeldPort) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", held.number), timeout=5)


def test_a_server_that_is_given_the_number_can_listen(held: HeldPort) -> None:
    for _ in range(2):  # and again after it went away
        with socket.create_server(("127.0.0.1", held.number)):
            socket.create_connection(("127.0.0.1", held.number), timeout=5).close()


def test_a_released_port_is_free(held: HeldPort) -> None:
    held.release()
    with socket.socket() as plain:
        plain.bind(("127.0.0.1", held.number))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_a_taken_port_is_refused(host: str, taken: int) -> None:
    with pytest.raises(CannotListen, match=f"--host {host} --port {taken}: Address already in use; name another"):
        refuse_taken(host, taken)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost", ""])
def test_a_port_that_is_only_held_is_not(host: str, held: HeldPort) -> None:
    refuse_taken(host, held.number)


@pytest.mark.parametrize(
    ("host", "port", "why"),
    [
        ("192.0.2.1", 30000, "Cannot assign requested address"),
        ("no host", 30000, "not known"),
        ("127.0.0.1", 70000, "from 1 to 65535"),
    ],
)
def test_a_place_that_cannot_be(host: str, port: int, why: str) -> None:
    with pytest.raises(CannotListen, match=f"--host '?{host}'? --port {port}: .*{why}"):
        refuse_taken(host, port)


def test_the_launcher_refuses_at_once(taken: int, capsys: pytest.CaptureFixture[str]) -> None:
    """SGLang alone loads its weights, fails to listen, and hangs."""
    assert launch.main(["--port", str(taken)]) == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith(f"led_sglang: cannot listen on --host 127.0.0.1 --port {taken}")
    )
