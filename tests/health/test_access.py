"""Token, ports and clocks of a cluster; each check is broken once."""

import socket
from pathlib import Path

import pytest

from ports import free_ports
from sharelock_ray.health.access import Peer, clock, ports, ray_token


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("secret")
    path.chmod(0o600)
    return path


class TestToken:
    def variables(self, path: Path) -> dict[str, str]:
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}

    def test_a_private_file_or_a_variable_is_ok_and_never_shown(self, token: Path) -> None:
        found = [ray_token(self.variables(token)), ray_token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "secret"})]
        assert [each.state for each in found] == ["ok", "ok"]
        assert "secret" not in str(found)

    def test_a_cluster_without_one_warns(self) -> None:
        check = ray_token({})
        assert check.state == "warn"
        assert "RAY_AUTH_MODE=token" in check.remedy

    def test_a_file_that_others_read_warns(self, token: Path) -> None:
        token.chmod(0o644)
        assert ray_token(self.variables(token)).remedy == f"chmod 600 {token}"

    def test_a_missing_an_empty_and_a_binary_file_fail(self, token: Path, tmp_path: Path) -> None:
        (tmp_path / "binary").write_bytes(b"\xff")
        token.write_text("\n")
        for path in (tmp_path / "none", tmp_path / "binary", token):
            check = ray_token(self.variables(path))
            assert (check.state, str(path) in check.found) == ("fail", True)

    def test_rays_own_file_is_the_default(self, token: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        assert ray_token({"RAY_AUTH_MODE": "token"}).state == "fail"
        (tmp_path / ".ray").mkdir()
        token.rename(tmp_path / ".ray" / "auth_token")
        assert ray_token({"RAY_AUTH_MODE": "token"}).state == "ok"


def test_a_port_that_does_not_answer_fails_and_is_named() -> None:
    (closed,) = free_ports(1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = Peer("a", "127.0.0.1", server.getsockname()[1])
        assert ports([there]).found == "reaches 1 other nodes"
        check = ports([there, Peer("b", "127.0.0.1", closed)])
    assert check.state == "fail"
    assert check.found.startswith(f"does not reach b at 127.0.0.1:{closed}")


@pytest.mark.parametrize(
    ("answered", "state", "found"),
    [
        (100.2, "ok", "0.0 s from the driver"),
        (90.0, "warn", "10.0 s from the driver"),
        (111.0, "warn", "10.5 s from the driver"),
        (1000.0, "fail", "899.5 s from the driver"),
    ],
)
def test_a_clock_must_lie_between_call_and_answer(answered: float, state: str, found: str) -> None:
    check = clock(sent=100.0, answered=answered, received=100.5)
    assert (check.state, check.found) == (state, found)
