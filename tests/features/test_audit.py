"""The audit finds whatever is missing, changed, added or unaccounted for."""

from pathlib import Path

import pytest

import support
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.errors import RunError
from sharelock_ray.features.audit import audit
from sharelock_ray.features.featureset import FeatureSet, open_features
from sharelock_ray.sources.sample import Reject

INPUTS = ["a/1", "a/2", "a/3", "b/1", "b/2"]


@pytest.fixture
def feature_set(tmp_path: Path) -> FeatureSet:
    """Two parts; `a/3` could not be read."""
    parts = [
        [support.encoded("vision", ["a/1", "a/2"], rejects=[Reject("a/3", "decode", "OSError", "half a file")])],
        [support.encoded("vision", ["b/1", "b/2"], seed=1)],
    ]
    return open_features(support.write_parts(str(tmp_path), VisionSpec(name="made-up", model="none"), parts))


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_a_sound_set_has_no_problems(feature_set: FeatureSet) -> None:
    report = audit(feature_set, INPUTS)
    assert report.problems == []
    assert (report.rows, report.keys, report.rejects, report.inputs) == (4, 4, 1, 5)
    assert report.require() is report


def test_inputs_may_be_left_out(feature_set: FeatureSet) -> None:
    report = audit(feature_set)
    assert (report.problems, report.inputs) == ([], None)


def test_several_captions_of_a_key_are_one_place(tmp_path: Path) -> None:
    rejects = [Reject("b", "encode", "NonFiniteEmbedding", f"caption {i}") for i in range(2)]
    chunk = support.encoded("language", ["a", "a", "b", "c"], rejects=rejects)
    spec = LanguageSpec(name="made-up", model="none")
    report = audit(open_features(support.write_parts(str(tmp_path), spec, [[chunk]])), ["a", "b", "c"])
    assert (report.problems, report.rows, report.keys, report.rejects) == ([], 4, 3, 2)


def test_finds_a_part_that_is_gone(feature_set: FeatureSet, tmp_path: Path) -> None:
    (tmp_path / "part-00001.parquet").unlink()
    assert audit(feature_set, INPUTS).problems == [
        "part-00001.parquet is missing",
        "input 'b/1' is in neither rows nor rejects",
        "input 'b/2' is in neither rows nor rejects",
    ]


@pytest.mark.parametrize("offset", [0, 60, 200, -1])
def test_finds_one_changed_bit(feature_set: FeatureSet, tmp_path: Path, offset: int) -> None:
    flip(tmp_path / "part-00000.parquet", offset)
    assert audit(feature_set).problems == ["part-00000.parquet is not what the manifest says (SHA-256 differs)"]


def test_finds_a_part_that_is_cut_short(feature_set: FeatureSet, tmp_path: Path) -> None:
    path = tmp_path / "part-00000.parquet"
    path.write_bytes(path.read_bytes()[:100])
    assert audit(feature_set).problems == ["part-00000.parquet is not what the manifest says (SHA-256 differs)"]


def test_finds_parts_in_each_others_place(feature_set: FeatureSet, tmp_path: Path) -> None:
    first, second = (tmp_path / f"part-0000{i}.parquet" for i in range(2))
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    assert len(audit(feature_set).problems) == 2


def test_finds_a_part_too_many(feature_set: FeatureSet, tmp_path: Path) -> None:
    (tmp_path / "part-00002.parquet").write_bytes((tmp_path / "part-00001.parquet").read_bytes())
    assert audit(feature_set, INPUTS).problems == ["part-00002.parquet is not in the manifest"]


def test_finds_an_input_that_is_nowhere(feature_set: FeatureSet) -> None:
    assert audit(feature_set, [*INPUTS, "b/3"]).problems == ["input 'b/3' is in neither rows nor rejects"]


@pytest.mark.parametrize("key", ["a/1", "a/3"], ids=["row", "reject"])
def test_finds_a_key_of_no_input(feature_set: FeatureSet, key: str) -> None:
    assert audit(feature_set, [k for k in INPUTS if k != key]).problems == [f"key {key!r} is of no input"]


def test_finds_a_damaged_file_of_rejects(feature_set: FeatureSet, tmp_path: Path) -> None:
    flip(tmp_path / "rejects" / "part-00000.parquet", 50)
    problems = audit(feature_set, INPUTS).problems
    assert problems[0] == "rejects/part-00000.parquet is not what the manifest says (SHA-256 differs)"
    assert problems[-1] == "input 'a/3' is in neither rows nor rejects"


def test_finds_a_file_of_rejects_that_is_gone(feature_set: FeatureSet, tmp_path: Path) -> None:
    (tmp_path / "rejects" / "part-00000.parquet").unlink()
    assert audit(feature_set).problems[0] == "rejects/part-00000.parquet is missing"


def test_finds_a_key_in_two_parts(tmp_path: Path) -> None:
    parts = [[support.encoded("vision", ["a", "b"])], [support.encoded("vision", ["b", "c"])]]
    uri = support.write_parts(str(tmp_path), VisionSpec(name="made-up", model="none"), parts)
    assert audit(open_features(uri)).problems == ["key 'b' is in more than one place"]


def test_finds_an_image_twice_in_one_part(tmp_path: Path) -> None:
    chunk = support.encoded("vision", ["a", "b", "b"])
    uri = support.write_parts(str(tmp_path), VisionSpec(name="made-up", model="none"), [[chunk]])
    assert audit(open_features(uri)).problems == ["key 'b' is in more than one place"]


@pytest.mark.parametrize("field", ["rows", "rejects", "keys"])
def test_finds_totals_that_are_not_the_sum_of_the_parts(feature_set: FeatureSet, field: str) -> None:
    changed = feature_set.manifest.model_copy(update={field: getattr(feature_set.manifest, field) + 1})
    assert len(audit(FeatureSet(feature_set.uri, changed)).problems) == 1


@pytest.mark.parametrize("field", ["rows", "rejects", "keys_sha256"])
def test_finds_a_part_that_the_manifest_describes_otherwise(feature_set: FeatureSet, field: str) -> None:
    first, second = feature_set.manifest.parts
    changed = second.model_copy(update={field: "0" * 64 if field == "keys_sha256" else 7})
    manifest = feature_set.manifest.model_copy(update={"parts": (first, changed)})
    problems = audit(FeatureSet(feature_set.uri, manifest)).problems
    assert problems[0] == "part-00001.parquet has other rows, rejects or keys than the manifest says"


def test_require_says_the_first_problem_in_one_line(feature_set: FeatureSet, tmp_path: Path) -> None:
    (tmp_path / "part-00000.parquet").unlink()
    with pytest.raises(RunError) as error:
        audit(feature_set, INPUTS).require()
    assert str(error.value) == (
        f"{tmp_path}: part-00000.parquet is missing (and 3 more): delete the set and run extract again"
    )
