"""Versions, compared between nodes."""

import importlib.metadata
import platform

import pytest

from sharelock_ray.health.software import same_versions, versions


def test_those_installed_here_are_named() -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] == importlib.metadata.version("torch")
    assert same_versions(found, found).state == "ok"


def test_a_package_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", lacking)
    assert list(versions()) == ["python"]


def test_a_difference_fails_and_both_sides_are_said() -> None:
    check = same_versions({"torch": "2.13", "gguf": "0.19"}, {"torch": "2.15", "timm": "1.0"})
    assert check.state == "fail"
    assert check.found == "gguf 0.19 (driver: none), timm is missing (driver: 1.0), torch 2.13 (driver: 2.15)"
