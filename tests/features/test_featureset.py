"""Opening feature sets, mapping their embeddings, and joining them by key."""

import hashlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

import support
from sharelock_ray import storage
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.features import featureset
from sharelock_ray.features.cache import cache_folder, folder_of, limit, made_once, room
from sharelock_ray.features.featureset import FeatureSet, Pairs, join, open_features
from sharelock_ray.sources.sample import Reject

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


def cached(pattern: str) -> list[Path]:
    """Files of that name that the node keeps, of all feature sets."""
    return sorted(cache_folder().glob(f"*/{pattern}"))


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
        (file,) = cached("embeddings.bin")
        assert file.stat().st_size == embeddings.numel() * 2 == feature_set.nbytes
        assert str(file) in Path("/proc/self/maps").read_text()
        # A person who frees a disk sees what is whose.
        assert file.parent.name.startswith("pairs-train-vision-made-up-")

    def test_of_two_processes_share_one_file(self, feature_set: FeatureSet) -> None:
        total = float(feature_set.embeddings.double().sum())
        (before,) = ((path, path.stat().st_ino, path.stat().st_mtime_ns) for path in cached("embeddings.bin"))
        code = (
            "import sys; from sharelock_ray import open_features; "
            "print(float(open_features(sys.argv[1]).embeddings.double().sum()))"
        )
        other = subprocess.run(
            [sys.executable, "-c", code, feature_set.uri], capture_output=True, text=True, check=True
        )
        assert float(other.stdout) == total
        assert [(path, path.stat().st_ino, path.stat().st_mtime_ns) for path in cached("embeddings.bin")] == [before]

    def test_cannot_be_spoiled_by_who_writes_to_them(self, feature_set: FeatureSet) -> None:
        kept = feature_set.embeddings.clone()
        feature_set.embeddings.zero_()
        assert open_features(feature_set.uri).embeddings.tolist() == kept.tolist()

    def test_of_sets_with_the_same_content_are_decoded_once(self, feature_set: FeatureSet, tmp_path: Path) -> None:
        parts = [[support.encoded("vision", ["a/2", "a/1"])]]
        for name in ("x", "y"):
            assert len(open_features(support.write_parts(str(tmp_path / name), VISION, parts)).embeddings) == 2
        assert len(cached("embeddings.bin")) == 1

    def test_of_many_parts_and_batches_lie_where_they_belong(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        parts = [[support.encoded("vision", [f"{p}/{i:03d}" for i in range(40 + p)], seed=p)] for p in range(9)]
        feature_set = open_features(support.write_parts(str(tmp_path / "many"), VISION, parts))
        monkeypatch.setattr(featureset, "_DECODED_BYTES", 7 * feature_set.manifest.dim * 2)
        tables = [pq.read_table(part_of(feature_set, i))["embedding"] for i in range(9)]
        assert feature_set.embeddings.tolist() == [row for table in tables for row in table.to_pylist()]

    def test_of_a_set_on_an_object_store_are_decoded_here(self, bucket: str) -> None:
        parts = [[support.encoded("vision", ["a/2", "a/1"])], [support.encoded("vision", ["b/1"], seed=1)]]
        feature_set = open_features(support.write_parts(f"{bucket}/vision", VISION, parts))
        stored = [row for i in range(2) for row in feature_set.part(i)["embedding"].to_pylist()]
        assert feature_set.embeddings.tolist() == stored
        assert feature_set.keys.tolist() == ["a/1", "a/2", "b/1"]
        storage.remove(f"{bucket}/vision/part-00001.parquet")
        assert len(open_features(feature_set.uri).embeddings) == 3


class TestColumns:
    def test_carry_a_hash_of_each_key(self, feature_set: FeatureSet) -> None:
        expected = [int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") for key in feature_set.keys]
        assert feature_set.columns["key_hash"].tolist() == expected

    def test_of_labels_take_minus_one_for_none(self, tmp_path: Path) -> None:
        chunk = support.encoded("vision", ["a", "b", "c"])
        chunk.columns["label"][:] = [2, -1, None]
        uri = support.write_parts(str(tmp_path / "set"), VisionSpec(name="v", model="none"), [[chunk]])
        assert str(open_features(uri).labels.tolist()) == "[2.0, nan, nan]"

    def test_are_read_once_for_the_node(self, feature_set: FeatureSet) -> None:
        keys = feature_set.keys.tolist()
        for part in (0, 1):
            part_of(feature_set, part).unlink()
        again = open_features(feature_set.uri)
        assert again.keys.tolist() == keys
        assert sorted(again.columns) == ["key", "key_hash", "label"]


class TestCache:
    """Each file is made by one process of the node, whole or not at all."""

    def test_of_many_processes_one_makes_a_file_and_all_have_it(self, tmp_path: Path) -> None:
        code = (
            "import sys, time; from pathlib import Path; from sharelock_ray.features.cache import made_once\n"
            "def make(path):\n"
            "    path.write_bytes(b'half'); time.sleep(0.3); path.write_bytes(b'whole'); print('made')\n"
            "print(made_once(Path(sys.argv[1]), make, 5).read_text())"
        )
        target = tmp_path / "set" / "file"
        processes = [
            subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True)
            for _ in range(4)
        ]
        outputs = sorted(process.communicate()[0].split() for process in processes)
        assert outputs == [["made", "whole"], ["whole"], ["whole"], ["whole"]]

    def test_goes_on_after_the_process_that_made_a_file_was_killed(self, tmp_path: Path) -> None:
        code = (
            "import sys, time; from pathlib import Path; from sharelock_ray.features.cache import made_once\n"
            "def make(path): path.write_bytes(b'ha'); print('begun', flush=True); time.sleep(60)\n"
            "made_once(Path(sys.argv[1]), make)"
        )
        target = tmp_path / "set" / "file"
        process = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "begun\n"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not target.exists()
        assert made_once(target, lambda path: path.write_bytes(b"whole")).read_bytes() == b"whole"

    def test_of_a_disk_that_is_too_small_is_one_clear_line(self, feature_set: FeatureSet) -> None:
        code = (
            "import resource, sys; from sharelock_ray import open_features\n"
            "from sharelock_ray.errors import RunError\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))\n"
            "try: open_features(sys.argv[1]).embeddings\n"
            "except RunError as error: print(error)"
        )
        other = subprocess.run(
            [sys.executable, "-c", code, feature_set.uri], capture_output=True, text=True, check=True
        )
        (line,) = other.stdout.splitlines()
        assert "embeddings.bin cannot be written (File too large): free space on that disk" in line
        assert "SHARELOCK_CACHE" in line
        assert cached("embeddings.bin*") == [Path(f"{folder_of(feature_set.manifest)}/embeddings.bin.lock")]

    def test_knows_what_it_has_yet_to_take_of_the_disk(self, feature_set: FeatureSet) -> None:
        assert feature_set.unmade_nbytes == feature_set.nbytes == 5 * 4 * 2
        partial = folder_of(feature_set.manifest) / "embeddings.bin.partial"
        partial.parent.mkdir(parents=True)
        # As another process leaves it, which has reserved the space of the whole file or some.
        for taken in (10, 40):
            partial.write_bytes(bytes(taken))
            assert feature_set.unmade_nbytes == 40 - taken
        _ = feature_set.embeddings
        assert not partial.exists()
        assert feature_set.unmade_nbytes == 0

    def test_shows_by_its_time_when_a_set_was_last_used(self, feature_set: FeatureSet) -> None:
        _ = feature_set.embeddings
        folder = folder_of(feature_set.manifest)
        os.utime(folder, (0, 0))
        _ = open_features(feature_set.uri).embeddings
        assert time.time() - folder.stat().st_mtime < 60

    def test_over_its_limit_removes_what_no_process_has_open_the_oldest_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def used(name: str, day: int) -> FeatureSet:
            uri = support.write_parts(str(tmp_path / name), VISION, [[support.encoded("vision", [name])]])
            feature_set = open_features(uri)
            _ = feature_set.embeddings
            os.utime(folder_of(feature_set.manifest), (86400 * day, 86400 * day))
            return feature_set

        def kept() -> list[bool]:
            return [folder_of(each).exists() for each in manifests]

        sets = [used(name, day) for name, day in (("a", 3), ("b", 1), ("c", 2))]
        manifests = [each.manifest for each in sets]
        first = sets[0].embeddings.tolist()
        # As of other runs that have ended: only `b` is still open.
        del sets[0], sets[1]
        # One row of 4 numbers of 2 bytes each.
        monkeypatch.setenv("SHARELOCK_CACHE_BYTES", "24")
        used("d", 4)
        assert kept() == [True, True, False]
        monkeypatch.setenv("SHARELOCK_CACHE_BYTES", "0")
        last = used("e", 5)
        assert kept() == [False, True, False]
        assert len(list(cache_folder().iterdir())) == 2
        assert open_features(str(tmp_path / "a")).embeddings.tolist() == first
        assert len(last.embeddings) == 1

    def test_of_another_process_that_has_it_open_stays(
        self, feature_set: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        code = (
            "import sys; from sharelock_ray import open_features\n"
            "features = open_features(sys.argv[1]); features.keys; print('open', flush=True); input()"
        )
        monkeypatch.setenv("SHARELOCK_CACHE_BYTES", "0")
        command = [sys.executable, "-c", code, feature_set.uri]
        other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert other.stdout.readline() == "open\n"
        small = [support.write_parts(str(tmp_path / n), VISION, [[support.encoded("vision", [n])]]) for n in "ab"]
        _ = open_features(small[0]).embeddings
        assert folder_of(feature_set.manifest).exists()
        other.communicate("\n")
        _ = open_features(small[1]).embeddings
        assert not folder_of(feature_set.manifest).exists()

    def test_counts_what_it_may_remove_as_room(self, feature_set: FeatureSet, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1000, free=100))
        assert (room(), limit()) == (100, 500)
        opened = [open_features(feature_set.uri) for _ in range(2)]
        taken = [each.embeddings.nbytes for each in opened]
        del opened[0]
        assert room() == 100
        opened.clear()
        assert room() == 100 + taken[0]
        monkeypatch.setenv("SHARELOCK_CACHE_BYTES", "half")
        with pytest.raises(RequestError, match="SHARELOCK_CACHE_BYTES is 'half': give a whole number, at least 0"):
            limit()

    def test_leaves_alone_what_others_have_put_beside_it(
        self, feature_set: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A person may let SHARELOCK_CACHE name a folder with features of its own."""
        others = [cache_folder() / "mine" / "part-00000.parquet", cache_folder() / f"mine-{'0' * 16}" / "train" / "a"]
        for path in others:
            path.parent.mkdir(parents=True)
            path.write_bytes(bytes(100))
            os.utime(path.parent, (0, 0))
        monkeypatch.setenv("SHARELOCK_CACHE_BYTES", "0")
        _ = feature_set.embeddings
        assert [path.read_bytes() for path in others] == [bytes(100)] * 2

    def test_that_was_removed_is_made_again(self, feature_set: FeatureSet) -> None:
        kept = feature_set.embeddings.tolist()
        shutil.rmtree(cache_folder())
        assert open_features(feature_set.uri).embeddings.tolist() == kept


def test_travels_to_another_process_without_what_is_mapped_here(feature_set: FeatureSet) -> None:
    before = pickle.dumps(feature_set)
    used = (feature_set.embeddings, feature_set.keys)
    assert pickle.dumps(feature_set) == before
    other = pickle.loads(before)
    assert (other.uri, other.manifest) == (feature_set.uri, feature_set.manifest)
    assert other.keys.tolist() == used[1].tolist()


class TestPartEmbeddings:
    def test_are_rows_of_the_part_that_are_read_from_storage(self, feature_set: FeatureSet) -> None:
        found = [feature_set.part_embeddings(1, np.array(rows, np.int64)) for rows in ([0, 2], [], [0, 1, 2])]
        assert cached("embeddings.bin") == []
        assert feature_set.part_starts.tolist() == [0, 2, 5]
        for values, rows in zip(found, ([2, 4], [], [2, 3, 4]), strict=True):
            assert values.dtype == np.float16
            assert values.tolist() == feature_set.embeddings[rows].tolist()

    def test_of_a_large_part_are_decoded_a_few_rows_at_a_time(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keys = [f"{i:03d}" for i in range(100)]
        uri = support.write_parts(str(tmp_path), VISION, [[support.encoded("vision", keys)]])
        # Three rows of four numbers.
        monkeypatch.setattr(featureset, "_DECODED_BYTES", 24)
        rows = np.array([0, 2, 3, 50, 99])
        assert open_features(uri).part_embeddings(0, rows).tolist() == open_features(uri).embeddings[rows].tolist()


class TestDamage:
    @pytest.mark.parametrize("offset", [10, -10])
    def test_to_a_byte_of_a_part_is_an_error_that_names_it(self, feature_set: FeatureSet, offset: int) -> None:
        data = bytearray(part_of(feature_set, 1).read_bytes())
        data[offset] ^= 1
        part_of(feature_set, 1).write_bytes(data)
        for read in (lambda: feature_set.embeddings, lambda: feature_set.part_embeddings(1, np.array([0]))):
            with pytest.raises(RunError, match=r"part-00001\.parquet is not what its manifest says"):
                read()
        assert cached("embeddings.bin") == cached("*.partial") == []

    def test_to_a_label_or_a_caption_is_an_error_also_where_no_embedding_is_read(self, tmp_path: Path) -> None:
        for spec, column in ((VISION, "label"), (LANGUAGE, "text")):
            chunk = support.encoded(spec.modality, [f"a/{i}" for i in range(50)])
            feature_set = open_features(support.write_parts(str(tmp_path / spec.modality), spec, [[chunk]]))
            path = part_of(feature_set, 0)
            whole, rows = path.read_bytes(), feature_set.part(0)
            group = pq.read_metadata(path).row_group(0)
            place = next(c for i in range(group.num_columns) if (c := group.column(i)).path_in_schema == column)
            end = place.data_page_offset + place.total_compressed_size
            # The page's content ends the column.
            for offset in range(end - place.total_compressed_size // 2, end, 5):
                path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
                with pytest.raises(RunError, match=r"part-00000\.parquet cannot be read"):
                    feature_set.part(0)
            path.write_bytes(whole)
            assert feature_set.part(0) == rows

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

    def test_by_other_keys_than_the_manifest_counts_is_an_error_that_names_the_part(
        self, feature_set: FeatureSet
    ) -> None:
        part_of(feature_set, 1).write_bytes(part_of(feature_set, 0).read_bytes())
        with pytest.raises(RunError, match=r"part-00001\.parquet is not what its manifest says \(its keys differ\)"):
            _ = feature_set.keys

    @pytest.mark.parametrize("is_known", [False, True], ids=["new", "known-to-the-node"])
    def test_to_the_rows_of_two_parts_is_an_error_and_spoils_no_other_set(
        self, feature_set: FeatureSet, is_known: bool
    ) -> None:
        if is_known:
            _ = feature_set.embeddings, feature_set.keys
        first, second = feature_set.manifest.parts
        parts = (first.model_copy(update={"rows": 3}), second.model_copy(update={"rows": 2}))
        lying = FeatureSet(feature_set.uri, feature_set.manifest.model_copy(update={"parts": parts}))
        said = r"part-0000\d\.parquet is not what its manifest says \(it has \d rows, not \d\)"
        for read in (
            lambda: lying.embeddings,
            lambda: lying.keys,
            lambda: lying.part_embeddings(0, np.array([0])),
        ):
            with pytest.raises(RunError, match=said):
                read()
        stored = [row for i in range(2) for row in pq.read_table(part_of(feature_set, i))["embedding"].to_pylist()]
        assert open_features(feature_set.uri).embeddings.tolist() == stored

    @pytest.mark.parametrize("is_known", [False, True], ids=["new", "known-to-the-node"])
    @pytest.mark.parametrize(("field", "value"), [("rows", 4), ("keys", 6), ("keys_sha256", "other")])
    def test_to_a_total_of_the_manifest_is_an_error_that_names_it(
        self, feature_set: FeatureSet, field: str, value: object, is_known: bool
    ) -> None:
        if is_known:
            _ = feature_set.embeddings, feature_set.keys
        lying = FeatureSet(feature_set.uri, feature_set.manifest.model_copy(update={field: value}))
        for read in (lambda: lying.embeddings, lambda: lying.keys):
            with pytest.raises(RunError, match=rf"manifest\.json is damaged \({field} is"):
                read()

    @pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
    def test_to_a_file_of_rejects_is_an_error_that_names_it(self, tmp_path: Path, damage: str) -> None:
        rejects = [Reject(f"b/{i}", "decode", "OSError", "half a file") for i in range(3)]
        parts = [[support.encoded("vision", ["a/1"], rejects=rejects)]]
        feature_set = open_features(support.write_parts(str(tmp_path / "set"), VISION, parts))
        path = Path(feature_set.uri) / "rejects" / "part-00000.parquet"
        data = bytearray(path.read_bytes())
        # In a key: another one is read as well as the right one.
        data[data.index(b"b/0") + 1] ^= 1
        path.unlink()
        if damage != "missing":
            path.write_bytes(data if damage == "flipped" else data[:-20])
        for read in (lambda: feature_set.rejects, lambda: feature_set.rejected_keys):
            with pytest.raises(RunError, match=r"rejects/part-00000\.parquet is (not what|missing)"):
                read()

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema_version": 1}', b"\xff"])
    def test_to_the_manifest_is_an_error_that_names_it(self, feature_set: FeatureSet, content: bytes) -> None:
        (Path(feature_set.uri) / "manifest.json").write_bytes(content)
        with pytest.raises(RunError, match=r"manifest\.json is damaged") as error:
            open_features(feature_set.uri)
        assert "\n" not in str(error.value)

    def test_to_the_cache_is_mended(self, feature_set: FeatureSet) -> None:
        kept = feature_set.embeddings.tolist()
        (file,) = cached("embeddings.bin")
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

    @pytest.mark.parametrize("seed", range(3))
    def test_is_that_of_a_dictionary_of_keys(self, tmp_path: Path, seed: int) -> None:
        random = np.random.default_rng(seed)
        vision, language = ([f"k{i}" for i in random.permutation(60)[:45]] for _ in range(2))
        language = [key for key in language for _ in range(random.integers(1, 4))]
        cut = int(random.integers(1, 40))
        pairs = joined(tmp_path, [vision[:cut], vision[cut:]], [language[:cut], language[cut:]])
        rows: dict[str, list[int]] = {}
        for row, key in enumerate(pairs.language.keys):
            rows.setdefault(key, []).append(row)
        both = [row for row, key in enumerate(pairs.vision.keys) if key in rows]
        assert pairs.vision_rows.tolist() == both
        captions = np.split(pairs.caption_rows, pairs.caption_start[1:-1])
        assert [each.tolist() for each in captions] == [rows[pairs.vision.keys[row]] for row in both]

    def test_is_found_once_for_the_node(self, tmp_path: Path) -> None:
        pairs = joined(tmp_path, [["a", "b"]], [["b", "b"]])
        for file in cached("columns.arrow"):
            file.unlink()
        shutil.rmtree(pairs.vision.uri)
        again = join(pairs.vision, pairs.language)
        assert [again.vision_rows.tolist(), again.caption_rows.tolist()] == [[1], [0, 1]]

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
