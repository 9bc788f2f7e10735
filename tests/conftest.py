"""What several test modules share: one local Ray for the whole session, and tiny models on disk."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import support
from sharelock_ray import progress, ray_environment  # noqa: F401  (before any test imports ray)
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec

# Small products gain nothing from more threads, and Ray's workers need the cores.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the session's tiny models."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def vision_spec(models: Path) -> VisionSpec:
    return support.tiny_vision(models)


@pytest.fixture(scope="session")
def language_spec(models: Path) -> LanguageSpec:
    return support.tiny_language(models)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """The one Ray that every engine test uses."""
    from sharelock_ray import engine

    with engine.connected():
        yield


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What the user is told, also while Ray's chatter goes to a log file."""
    stream = io.StringIO()
    monkeypatch.setattr(progress, "_user", stream)
    return stream


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARELOCK_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
