"""Opening feature sets, mapping their embeddings, and joining them by key."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import support
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.features.featureset import FeatureSet, Pairs, cache_folder, join, open_features

VISION = VisionSpec(name="made-up", model="none")
LANGUAGE = LanguageSpec(name="made-up", model="none")


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARELOCK_CACHE", str(tmp_path / "own-cache"))


@pytest.fixture
def feature_set(tmp_path: Path) -> FeatureSet:
    parts = [[support.encoded("vision", ["a/2", "a/1"])], [support.encoded("vision", ["b/1", "b/3", "b/2"], seed=1)]]
    return open_features(support.write_parts(str(tmp_path / "vision"), VISION, parts))


def joined(folder: Path, vision: list[list[str]], language: list[list[str]]) -> Pairs:
    """A join of sets whose parts have these keys."""
    sets = [
        support.write_parts(
            str(folder / spec.modality), spec, [[support.encoded(spec.modality, keys)] for keys in parts]
        )
        for spec, parts in ((VISION, vision), (LANGUAGE, language))
    ]
    return join(*map(open_features, sets))


def part_of(feature_set: FeatureSet, index: int) -> Path:
    return Path(feature_set.uri) / f"part-{index:05d}.parquet"


class TestEmbeddings:
    def test_are_the_rows_of_the_parts_in_order(self, feature_set: FeatureSet) -> None:
        assert feature_set.keys.tolist() == ["a/1", "a/2", "b/1", "b/2", "b/3"]
        assert feature_set.columns["label"].tolist() == [sum(key.encode()) % 3 for key in feature_set.keys]
        stored = [row for i in range(2) for row in pq.read_table(part_of(feature_set, i))["embedding"].to_pylist()]
        assert feature_set.embeddings.tolist() == stored
        assert str(feature_set.embeddings.dtype) == "torch.float16"
        assert feature_set.rejects.num_rows == 0

    def test_are_mapped_from_the_cache(self, feature_set: FeatureSet) -> None:
        embeddings = feature_set.embeddings
        (file,) = cache_folder().iterdir()
        assert file.stat().st_size == embeddings.numel() * 2
        assert str(file) in Path("/proc/self/maps").read_text()

    def test_of_two_processes_share_one_file(self, feature_set: FeatureSet) -> None:
        total = float(feature_set.embeddings.double().sum())
        (before,) = ((path, path.stat().st_ino, path.stat().st_mtime_ns) for path in cache_folder().iterdir())
        code = (
            "import sys; from sharelock_ray import open_features; "
            "print(float(open_features(sys.argv[1]).embeddings.double().sum()))"
        )
        other = subprocess.run(
            [sys.executable, "-c", code, feature_set.uri], capture_output=True, text=True, check=True
        )
        assert float(other.stdout) == total
        assert [(path, path.stat().st_ino, path.stat().st_mtime_ns) for path in cache_folder().iterdir()] == [before]

    def test_cannot_be_spoiled_by_who_writes_to_them(self, feature_set: FeatureSet) -> None:
        kept = feature_set.embeddings.clone()
        feature_set.embeddings.zero_()
        assert open_features(feature_set.uri).embeddings.tolist() == kept.tolist()

    def test_of_sets_with_the_same_content_are_decoded_once(self, feature_set: FeatureSet, tmp_path: Path) -> None:
        parts = [[support.encoded("vision", ["a/2", "a/1"])]]
        for name in ("x", "y"):
            assert len(open_features(support.write_parts(str(tmp_path / name), VISION, parts)).embeddings) == 2
        assert len(list(cache_folder().iterdir())) == 1


class TestDamage:
    @pytest.mark.parametrize("offset", [10, -10])
    def test_to_a_byte_of_a_part_is_an_error_that_names_it(self, feature_set: FeatureSet, offset: int) -> None:
        data = bytearray(part_of(feature_set, 1).read_bytes())
        data[offset] ^= 1
        part_of(feature_set, 1).write_bytes(data)
        with pytest.raises(RunError, match=r"part-00001\.parquet is not what its manifest says"):
            _ = feature_set.embeddings
        assert list(cache_folder().iterdir()) == []

    def test_by_removal_of_a_part_is_an_error_that_names_it(self, feature_set: FeatureSet) -> None:
        part_of(feature_set, 1).unlink()
        with pytest.raises(RunError, match=r"part-00001\.parquet"):
            _ = feature_set.embeddings

    @pytest.mark.parametrize("damage", ["truncated", "missing"])
    def test_to_the_keys_of_a_part_is_an_error_that_names_it(self, feature_set: FeatureSet, damage: str) -> None:
        path = part_of(feature_set, 1)
        if damage == "truncated":
            path.write_bytes(path.read_bytes()[:-100])
        else:
            path.unlink()
        with pytest.raises(RunError, match=r"part-00001\.parquet"):
            _ = feature_set.keys

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema_version": 1}', b"\xff"])
    def test_to_the_manifest_is_an_error_that_names_it(self, feature_set: FeatureSet, content: bytes) -> None:
        (Path(feature_set.uri) / "manifest.json").write_bytes(content)
        with pytest.raises(RunError, match=r"manifest\.json is damaged") as error:
            open_features(feature_set.uri)
        assert "\n" not in str(error.value)

    def test_to_the_cache_is_mended(self, feature_set: FeatureSet) -> None:
        kept = feature_set.embeddings.tolist()
        (file,) = cache_folder().iterdir()
        file.write_bytes(file.read_bytes()[:4])
        assert open_features(feature_set.uri).embeddings.tolist() == kept


def test_a_folder_without_a_set_is_a_wrong_request(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist"):
        open_features(str(tmp_path / "nothing"))
    with pytest.raises(RequestError, match="is not complete"):
        open_features(str(tmp_path))


class TestJoin:
    def test_aligns_by_key_whatever_the_order_of_parts(self, tmp_path: Path) -> None:
        pairs = joined(tmp_path, [["a", "b"], ["c", "d"]], [["c", "d"], ["b", "a"]])
        assert pairs.keys.tolist() == ["a", "b", "c", "d"]
        assert pairs.vision.keys[pairs.vision_rows].tolist() == pairs.keys.tolist()
        assert pairs.language.keys[pairs.caption_rows].tolist() == pairs.keys.tolist()
        assert pairs.lost == {"vision": 0, "language": 0}

    def test_says_how_many_keys_each_side_lost(self, tmp_path: Path) -> None:
        pairs = joined(tmp_path, [["a", "b", "c", "d"]], [["b", "b", "d", "x", "x", "y", "z"]])
        assert pairs.keys.tolist() == ["b", "d"]
        assert pairs.lost == {"vision": 2, "language": 3}

    def test_keeps_all_captions_of_an_image_in_order(self, tmp_path: Path) -> None:
        pairs = joined(tmp_path, [["a", "b", "c"]], [["c", "a", "c"], ["x", "b", "b", "b"]])
        texts = pairs.language.columns["text"]
        captions = {
            key: texts[pairs.caption_rows[pairs.caption_start[i] : pairs.caption_start[i + 1]]].tolist()
            for i, key in enumerate(pairs.keys)
        }
        assert captions == {
            "a": ["text 0 of a"],
            "b": ["text 0 of b", "text 1 of b", "text 2 of b"],
            "c": ["text 0 of c", "text 1 of c"],
        }

    def test_of_sets_with_no_key_in_common_is_empty(self, tmp_path: Path) -> None:
        pairs = joined(tmp_path, [["a"]], [["b"]])
        assert len(pairs) == 0
        assert pairs.caption_start.tolist() == [0]
        assert pairs.lost == {"vision": 1, "language": 1}

    def test_refuses_two_sets_of_one_modality(self, feature_set: FeatureSet) -> None:
        with pytest.raises(RequestError, match="is a vision set, not a language set"):
            join(feature_set, feature_set)

    def test_refuses_sides_in_the_wrong_order(self, tmp_path: Path) -> None:
        pairs = joined(tmp_path, [["a"]], [["a"]])
        with pytest.raises(RequestError, match="is a language set, not a vision set"):
            join(pairs.language, pairs.vision)

    def test_refuses_sets_of_two_datasets(self, tmp_path: Path, feature_set: FeatureSet) -> None:
        chunk = support.encoded("language", ["a/1"])
        other = open_features(support.write_parts(str(tmp_path / "l"), LANGUAGE, [[chunk]], dataset="other"))
        with pytest.raises(RequestError, match=r"is of pairs/train, but .* of other/train"):
            join(feature_set, other)


class TestSelect:
    @pytest.mark.parametrize("mask", [[True, False, True], [False, True, False], [True] * 3, [False] * 3], ids=str)
    def test_keeps_the_pairs_of_the_mask_with_all_their_captions(self, tmp_path: Path, mask: list[bool]) -> None:
        pairs = joined(tmp_path, [["a", "b", "c"]], [["c", "a", "c", "b", "b", "b", "x"]])
        chosen = pairs.select(np.array(mask))
        keys = [key for key, keep in zip("abc", mask, strict=True) if keep]
        assert chosen.keys.tolist() == chosen.vision.keys[chosen.vision_rows].tolist() == keys
        owners = np.repeat(chosen.keys, np.diff(chosen.caption_start))
        assert owners.tolist() == chosen.language.keys[chosen.caption_rows].tolist()
        assert len(owners) == sum({"a": 1, "b": 3, "c": 2}[key] for key in keys)
