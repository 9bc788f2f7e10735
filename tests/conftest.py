"""Shared fixtures: one local Ray and one S3 server per session, and tiny models on disk."""

import io
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import object_store
import support
from sharelock_ray import progress
from sharelock_ray.concepts.wordnet import INSTALLED, WordNet, open_wordnet
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.storage.object_store import ObjectStore

# More threads do not speed up small matrix products, and Ray's workers need the cores.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs files that use Ray first, so that the test processes end at about the same time."""
    longest = {item.path for item in items if "local_ray" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path not in longest)


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
    """The local Ray of all engine tests."""
    from sharelock_ray.engine import cluster

    with pytest.MonkeyPatch.context() as patch:
        # Workers must be able to import the test modules.
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
        with cluster.connected():
            yield


@pytest.fixture(scope="session")
def whole_wordnet() -> WordNet:
    """WordNet 3.0, fetched once into the user's cache if the system has none: for tests that are marked as real."""
    if not INSTALLED.exists() and shutil.which("apt-get") is None:
        pytest.skip("needs WordNet 3.0 in /usr/share/wordnet, or apt-get to fetch it")
    return open_wordnet()


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """The messages to the user, also while other output is redirected to a log file."""
    stream = io.StringIO()
    monkeypatch.setattr(progress, "_user", stream)
    return stream


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARELOCK_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint of the session's S3 server."""
    with object_store.running_server() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def s3(s3_server: str) -> Any:
    """An independent client of that server."""
    return object_store.client(s3_server)


@pytest.fixture
def s3_environment(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a user of that server, without the settings of this machine."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "SHARELOCK_S3_"))]:
        monkeypatch.delenv(name)
    for name, value in object_store.environment(s3_server).items():
        monkeypatch.setenv(name, value)
    # fsspec would reuse a filesystem with the earlier credentials.
    ObjectStore.clear_instance_cache()


@pytest.fixture
def bucket(s3: Any, s3_environment: None) -> str:
    """The URI of a new bucket."""
    name = f"bucket-{uuid.uuid4().hex}"
    s3.create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture
def chaos(s3_server: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[object_store.ChaosProxy]:
    """A proxy in front of the server; it injects no faults until `choose` is set."""
    with object_store.ChaosProxy(s3_server).running() as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy
