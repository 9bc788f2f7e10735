"""Rows of inputs that were first rejected join their set, which is sound before, meanwhile and after."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import support
from sharelock_ray import storage
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.errors import RunError
from sharelock_ray.features.featureset import FeatureSet, open_features
from sharelock_ray.features.recovery import recover
from sharelock_ray.features.soundness import audit
from sharelock_ray.features.writer import EncodedChunk
from sharelock_ray.sources.sample import DUPLICATE_KEY, Reject

VISION = VisionSpec(name="made-up", model="none")
LANGUAGE = LanguageSpec(name="made-up", model="none")
INPUTS = ["a/1", "a/2", "a/3", "b/1"]


def reject(key: str) -> Reject:
    return Reject(key, "decode", "OSError", "half a file")


@pytest.fixture
def first(tmp_path: Path) -> FeatureSet:
    """`a/2` and `b/1` were rejected."""
    parts = [
        [support.encoded("vision", ["a/1", "a/3"], rejects=[reject("a/2")])],
        [support.encoded("vision", [], rejects=[reject("b/1")])],
    ]
    return open_features(support.write_parts(str(tmp_path / "set"), VISION, parts))


def retried(
    folder: Path, keys: list[str], failed: tuple[str, ...] = (), modality: str = "vision", seconds: float = 0
) -> FeatureSet:
    chunk = support.encoded(modality, keys, seed=9, rejects=[reject(key) for key in failed], seconds=seconds)
    spec = VISION if modality == "vision" else LANGUAGE
    return open_features(support.write_parts(str(folder / "retried"), spec, [[chunk]]))


def test_recovered_rows_are_one_more_part(first: FeatureSet, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in Path(first.uri).glob("*.parquet")}
    again = retried(tmp_path, ["a/2"], failed=("b/1",))
    grown = recover(first, again)
    assert grown.keys.tolist() == ["a/1", "a/3", "a/2"]
    assert grown.embeddings[2].tolist() == again.embeddings[0].tolist()
    assert (grown.manifest.rows, grown.manifest.rejects, grown.manifest.keys) == (3, 1, 3)
    assert grown.rejects["key"].to_pylist() == ["b/1"]
    assert grown.rejected_at_first["key"].to_pylist() == ["a/2", "b/1"]
    assert {name: (Path(first.uri) / name).read_bytes() for name in before} == before
    assert grown.manifest.digest != first.manifest.digest
    assert audit(grown, INPUTS).problems == []
    assert audit(grown, INPUTS).rejects == 1


def test_may_happen_in_several_steps(first: FeatureSet, tmp_path: Path) -> None:
    grown = recover(recover(first, retried(tmp_path / "1", ["a/2"])), retried(tmp_path / "2", ["b/1"]))
    assert [part.recovered for part in grown.manifest.parts] == [0, 0, 1, 1]
    assert grown.rejects.num_rows == grown.manifest.rejects == 0
    assert audit(grown, INPUTS).problems == []


def test_a_repeated_step_changes_nothing(first: FeatureSet, tmp_path: Path) -> None:
    again = retried(tmp_path, ["a/2"])
    grown = recover(first, again)
    assert recover(grown, again).manifest == grown.manifest


def test_equal_retries_write_equal_bytes_however_long_they_took(first: FeatureSet, tmp_path: Path) -> None:
    other = Path(shutil.copytree(first.uri, tmp_path / "other"))
    grown = [
        recover(open_features(uri), retried(tmp_path / f"{seconds}", ["a/2"], seconds=seconds))
        for uri, seconds in ((first.uri, 1.25), (str(other), 2.5))
    ]
    assert [each.manifest.parts[-1].encoder_seconds for each in grown] == [1.25, 2.5]
    assert grown[0].manifest.digest == grown[1].manifest.digest
    name = "part-00002.parquet"
    assert (Path(first.uri) / name).read_bytes() == (other / name).read_bytes()


def test_a_step_that_was_killed_before_the_manifest_is_done_again(first: FeatureSet, tmp_path: Path) -> None:
    again = retried(tmp_path, ["a/2"])
    manifest = storage.read_bytes(f"{first.uri}/manifest.json")
    grown = recover(first, again)
    storage.write_bytes(f"{first.uri}/manifest.json", manifest)
    assert recover(open_features(first.uri), again).manifest == grown.manifest


def test_only_rejected_inputs_can_be_recovered(first: FeatureSet, tmp_path: Path) -> None:
    assert recover(first, retried(tmp_path, ["a/1", "c/9"])).manifest == first.manifest


def test_an_input_that_repeats_a_key_stays_a_reject(tmp_path: Path) -> None:
    again = [Reject(key, "read", DUPLICATE_KEY, "again") for key in ("a/1", "a/2")]
    chunk = support.encoded("vision", ["a/1"], rejects=[reject("a/2"), *again])
    first = open_features(support.write_parts(str(tmp_path / "set"), VISION, [[chunk]]))
    assert first.rejected_keys == {"a/2"}
    grown = recover(first, retried(tmp_path, ["a/1", "a/2"]))
    assert grown.keys.tolist() == ["a/1", "a/2"]
    assert [(r["key"], r["error"]) for r in grown.rejects.to_pylist()] == [
        ("a/1", DUPLICATE_KEY),
        ("a/2", DUPLICATE_KEY),
    ]
    assert (grown.manifest.rejects, grown.rejected_keys) == (2, set())


def test_a_sample_comes_back_once_none_of_its_captions_is_bad(tmp_path: Path) -> None:
    def captions(*bad: int) -> EncodedChunk:
        chunk = support.encoded("language", ["a/1", "a/2", "a/2", "a/2"])
        chunk.embeddings[[*bad]] = np.nan
        return chunk

    def encoded(name: str, *bad: int) -> FeatureSet:
        return open_features(support.write_parts(str(tmp_path / name), LANGUAGE, [[captions(*bad)]]))

    first = encoded("set", 2, 3)
    still = recover(first, encoded("one mended", 3))
    assert still.manifest == first.manifest
    assert still.rejected_keys == {"a/2"}
    grown = recover(still, encoded("both mended"))
    assert grown.columns["caption_id"].tolist() == [0, 0, 1, 2]
    assert grown.manifest.rejects == grown.rejects.num_rows == 0
    assert audit(grown, ["a/1", "a/2"]).problems == []


@contextmanager
def before_the_manifest(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> Iterator[None]:
    """Has something happen after a step of recovery has published its part, and before it names it."""
    write = storage.write_json

    def write_after(uri: str, value: object) -> None:
        monkeypatch.setattr(storage, "write_json", write)
        happens()
        write(uri, value)

    monkeypatch.setattr(storage, "write_json", write_after)
    yield
    monkeypatch.setattr(storage, "write_json", write)


def test_what_a_killed_step_has_published_is_named_by_the_next(
    first: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed() -> None:
        raise KeyboardInterrupt

    with before_the_manifest(monkeypatch, killed), pytest.raises(KeyboardInterrupt):
        recover(first, retried(tmp_path / "killed", ["a/2"]))
    published = (Path(first.uri) / "part-00002.parquet").read_bytes()
    grown = recover(first, retried(tmp_path / "next", ["a/2", "b/1"]))
    assert (Path(first.uri) / "part-00002.parquet").read_bytes() == published
    assert [part.rows for part in grown.manifest.parts] == [2, 0, 1, 1]
    assert audit(grown, INPUTS).problems == []


def test_a_step_that_another_has_overtaken_loses_none_of_its_rows(
    first: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = retried(tmp_path / "ours", ["a/2"]), retried(tmp_path / "theirs", ["a/2", "b/1"])
    with before_the_manifest(monkeypatch, lambda: recover(first, theirs)):
        grown = recover(first, ours)
    assert [part.recovered for part in grown.manifest.parts] == [0, 0, 1, 1]
    assert audit(grown, INPUTS).problems == []


def test_a_step_from_a_manifest_of_before_adds_to_the_one_of_now(first: FeatureSet, tmp_path: Path) -> None:
    recover(first, retried(tmp_path / "1", ["a/2"]))
    named = (Path(first.uri) / "part-00002.parquet").read_bytes()
    grown = recover(first, retried(tmp_path / "2", ["a/2", "b/1"]))
    assert (Path(first.uri) / "part-00002.parquet").read_bytes() == named
    assert grown.keys.tolist() == ["a/1", "a/3", "a/2", "b/1"]
    assert audit(grown, INPUTS).problems == []


def test_another_file_with_the_name_of_the_next_part_is_refused(first: FeatureSet, tmp_path: Path) -> None:
    other = Path(first.uri) / "part-00000.parquet"
    (Path(first.uri) / "part-00002.parquet").write_bytes(other.read_bytes())
    with pytest.raises(RunError, match=r"part-00002\.parquet is no part of rows that its set lacks: remove it"):
        recover(first, retried(tmp_path, ["a/2"]))


def test_the_audit_finds_a_recovery_of_what_was_no_reject(first: FeatureSet, tmp_path: Path) -> None:
    grown = recover(first, retried(tmp_path, ["a/2"]))
    parts = (*grown.manifest.parts[:-1], grown.manifest.parts[-1])
    first_part = parts[0].model_copy(update={"rejects": 0, "rejects_sha256": None})
    lying = grown.manifest.model_copy(update={"parts": (first_part, *parts[1:])})
    problems = audit(FeatureSet(grown.uri, lying)).problems
    assert "key 'a/2' was never rejected, so part-00002.parquet cannot have recovered it" in problems
