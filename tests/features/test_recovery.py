"""Rows of inputs that were first rejected join their set, which is sound before, meanwhile and after."""

from pathlib import Path

import pytest

import support
from sharelock_ray import storage
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.features.audit import audit
from sharelock_ray.features.featureset import FeatureSet, open_features
from sharelock_ray.features.recovery import recover
from sharelock_ray.sources.sample import Reject

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


def retried(folder: Path, keys: list[str], failed: tuple[str, ...] = (), modality: str = "vision") -> FeatureSet:
    chunk = support.encoded(modality, keys, seed=9, rejects=[reject(key) for key in failed])
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


def test_a_step_that_was_killed_before_the_manifest_is_done_again(first: FeatureSet, tmp_path: Path) -> None:
    again = retried(tmp_path, ["a/2"])
    manifest = storage.read_bytes(f"{first.uri}/manifest.json")
    grown = recover(first, again)
    storage.write_bytes(f"{first.uri}/manifest.json", manifest)
    assert recover(open_features(first.uri), again).manifest == grown.manifest


def test_only_rejected_inputs_can_be_recovered(first: FeatureSet, tmp_path: Path) -> None:
    assert recover(first, retried(tmp_path, ["a/1", "c/9"])).manifest == first.manifest


def test_of_a_key_with_several_captions_only_the_missing_ones_come(tmp_path: Path) -> None:
    chunk = support.encoded("language", ["a/1", "a/1"], rejects=[reject("a/1"), reject("a/2")])
    first = open_features(support.write_parts(str(tmp_path / "set"), LANGUAGE, [[chunk]]))
    grown = recover(first, retried(tmp_path, ["a/1", "a/1", "a/1", "a/2"], modality="language"))
    assert list(zip(grown.keys, grown.columns["caption_id"].tolist(), strict=True)) == [
        ("a/1", 0),
        ("a/1", 1),
        ("a/1", 2),
        ("a/2", 0),
    ]
    assert grown.manifest.rejects == 0
    assert audit(grown, ["a/1", "a/2"]).problems == []


def test_the_audit_finds_a_recovery_of_what_was_no_reject(first: FeatureSet, tmp_path: Path) -> None:
    grown = recover(first, retried(tmp_path, ["a/2"]))
    parts = (*grown.manifest.parts[:-1], grown.manifest.parts[-1])
    first_part = parts[0].model_copy(update={"rejects": 0, "rejects_sha256": None})
    lying = grown.manifest.model_copy(update={"parts": (first_part, *parts[1:])})
    problems = audit(FeatureSet(grown.uri, lying)).problems
    assert "key 'a/2' was never rejected, so part-00002.parquet cannot have recovered it" in problems
