"""Parts that improved in a retry replace the old ones; the set is sound before, meanwhile and after."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import support
from sharelock_ray import storage
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.features.featureset import FeatureSet, open_features
from sharelock_ray.features.manifest import Part, totals
from sharelock_ray.features.replacement import rejected_parts, remove_unnamed_parts, replace_parts
from sharelock_ray.features.soundness import audit
from sharelock_ray.features.writer import EncodedChunk, content, parquet, part_files
from sharelock_ray.sources.sample import DUPLICATE_KEY, Reject, Shard

VISION = VisionSpec(name="made-up", model="none")
LANGUAGE = LanguageSpec(name="made-up", model="none")
INPUTS = ["00000/1", "00000/2", "00000/3", "00001/1", "00002/1"]


def reject(key: str, error: str = "OSError") -> Reject:
    return Reject(key, "decode", error, "half a file")


@pytest.fixture
def first(tmp_path: Path) -> FeatureSet:
    """`00000/2` and `00001/1` were rejected."""
    return made(tmp_path / "set", {0: ["00000/1", "00000/3"], 1: [], 2: ["00002/1"]})


def made(folder: Path, parts: dict[int, list[str]], modality: str = "vision") -> FeatureSet:
    """A set of some of the shards; of their inputs, those without a row are rejects."""
    shards = [Shard(i, f"{i:05d}", f"memory/{i:05d}.tar", 100 + len(rows)) for i, rows in parts.items()]
    spec = VISION if modality == "vision" else LANGUAGE
    chunks = []
    for index, rows in parts.items():
        lost = [reject(key) for key in INPUTS if key.startswith(f"{index:05d}/") and key not in rows]
        chunks.append([support.encoded(modality, rows, seed=len(rows), rejects=lost)])
    return open_features(support.write_parts(str(folder), spec, chunks, shards=shards))


def names(feature_set: FeatureSet) -> set[str]:
    return {name for part in feature_set.manifest.parts for name in part.files}


def test_only_parts_with_rejects_are_extracted_again(first: FeatureSet, tmp_path: Path) -> None:
    assert [part.index for part in rejected_parts(first)] == [0, 1]
    chunk = support.encoded("vision", ["00000/1"], rejects=[reject("00000/1", DUPLICATE_KEY)])
    repeated = open_features(support.write_parts(str(tmp_path / "repeated"), VISION, [[chunk]]))
    assert rejected_parts(repeated) == []


def test_a_better_part_replaces_the_old_one(first: FeatureSet, tmp_path: Path) -> None:
    before = {name: (Path(first.uri) / name).read_bytes() for name in names(first)}
    again = made(tmp_path / "again", {1: ["00001/1"]})
    grown = replace_parts(first.uri, again)
    assert grown.keys.tolist() == ["00000/1", "00000/3", "00001/1", "00002/1"]
    assert grown.embeddings[2].tolist() == again.embeddings[0].tolist()
    assert (grown.manifest.rows, grown.manifest.rejects, grown.manifest.keys) == (4, 1, 4)
    assert grown.rejects["key"].to_pylist() == ["00000/2"]
    assert [part.retried for part in grown.manifest.parts] == [False, True, False]
    # The manifest says what the part is made of now.
    assert [each.bytes for each in grown.manifest.inputs] == [102, 101, 101]
    # Other parts are untouched, and the replaced one is gone.
    name = grown.manifest.parts[1].name
    assert storage.names(first.uri) == sorted(
        ["manifest.json", "rejects", "part-00000.parquet", name, "part-00002.parquet"]
    )
    assert all((Path(first.uri) / each).read_bytes() == before[each] for each in names(grown) & before.keys())
    assert part_files(first.uri) == names(grown)
    assert grown.manifest.digest != first.manifest.digest
    assert audit(grown, INPUTS).problems == []


def test_a_part_may_improve_more_than_once(tmp_path: Path) -> None:
    first = made(tmp_path / "set", {0: ["00000/1"]})
    better = replace_parts(first.uri, made(tmp_path / "1", {0: ["00000/1", "00000/2"]}))
    assert better.rejects["key"].to_pylist() == ["00000/3"]
    best = replace_parts(first.uri, made(tmp_path / "2", {0: ["00000/1", "00000/2", "00000/3"]}))
    assert (best.manifest.rows, best.manifest.rejects) == (3, 0)
    assert part_files(first.uri) == names(best)
    assert audit(best, INPUTS[:3]).problems == []


@pytest.mark.parametrize("rows", [["00000/1", "00000/3"], ["00000/1", "00000/2"], ["00000/3"]])
def test_a_part_that_is_no_better_or_loses_a_row_is_left_out(
    first: FeatureSet, tmp_path: Path, rows: list[str]
) -> None:
    assert replace_parts(first.uri, made(tmp_path / "again", {0: rows})).manifest == first.manifest


def test_a_part_that_loses_rows_is_left_out_even_with_fewer_rejects(first: FeatureSet, tmp_path: Path) -> None:
    chunk = support.encoded("vision", ["00000/1", "00000/2"])
    again = open_features(support.write_parts(str(tmp_path / "again"), VISION, [[chunk]]))
    assert replace_parts(first.uri, again).manifest == first.manifest


def test_a_sample_comes_back_once_none_of_its_captions_is_bad(tmp_path: Path) -> None:
    def captions(*bad: int) -> EncodedChunk:
        chunk = support.encoded("language", ["00000/1", "00000/2", "00000/2", "00000/2"])
        chunk.embeddings[[*bad]] = np.nan
        return chunk

    def encoded(name: str, *bad: int) -> FeatureSet:
        return open_features(support.write_parts(str(tmp_path / name), LANGUAGE, [[captions(*bad)]]))

    first = encoded("set", 2, 3)
    assert replace_parts(first.uri, encoded("one mended", 3)).manifest == first.manifest
    grown = replace_parts(first.uri, encoded("both mended"))
    assert grown.columns["caption_id"].tolist() == [0, 0, 1, 2]
    assert grown.manifest.rejects == grown.rejects.num_rows == 0
    assert audit(grown, INPUTS[:2]).problems == []


def test_shards_are_matched_by_name(first: FeatureSet, tmp_path: Path) -> None:
    chunk = support.encoded("vision", ["00001/1"])
    shards = [Shard(0, "00001", "memory/00001.tar", 7)]
    again = open_features(support.write_parts(str(tmp_path / "again"), VISION, [[chunk]], shards=shards))
    assert replace_parts(first.uri, again).keys.tolist() == ["00000/1", "00000/3", "00001/1", "00002/1"]


class TestKilled:
    @pytest.mark.parametrize("step", range(5))
    def test_at_any_step_leaves_a_set_that_opens_and_that_the_next_retry_completes(
        self, first: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
    ) -> None:
        again = made(tmp_path / "again", {0: INPUTS[:3], 1: ["00001/1"]})
        undisturbed = replace_parts(str(shutil.copytree(first.uri, tmp_path / "other")), again)
        steps = 0

        def killed_at(work: Callable[..., None]) -> Callable[..., None]:
            def counted(*arguments: object) -> None:
                nonlocal steps
                if steps == step:
                    raise KeyboardInterrupt
                steps += 1
                work(*arguments)

            return counted

        with monkeypatch.context() as patch:
            # `write_json` publishes by `write_bytes`: two parts, the manifest, then removals.
            patch.setattr(storage, "write_bytes", killed_at(storage.write_bytes))
            patch.setattr(storage, "remove", killed_at(storage.remove))
            with pytest.raises(KeyboardInterrupt):
                replace_parts(first.uri, again)
        left = open_features(first.uri)
        assert left.manifest == (first.manifest if step < 3 else undisturbed.manifest)
        assert len(left.embeddings) == left.manifest.rows
        remove_unnamed_parts(first.uri)
        assert audit(left, INPUTS).problems == []
        done = replace_parts(first.uri, again)
        assert done.manifest == undisturbed.manifest
        assert part_files(first.uri) == names(done)


def test_two_retries_at_once_leave_no_manifest_that_names_a_missing_file(
    first: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = made(tmp_path / "ours", {0: ["00000/1", "00000/3"], 1: ["00001/1"]})
    theirs = made(tmp_path / "theirs", {0: INPUTS[:3], 1: ["00001/1"]})
    write = storage.write_json

    def late(uri: str, value: object) -> None:
        # The other retry begins and ends between our reading of the manifest and our replacing it.
        monkeypatch.setattr(storage, "write_json", write)
        replace_parts(first.uri, theirs)
        write(uri, value)

    monkeypatch.setattr(storage, "write_json", late)
    replace_parts(first.uri, ours)
    grown = open_features(first.uri)
    assert names(grown) <= part_files(first.uri)
    assert len(grown.embeddings) == grown.manifest.rows
    assert audit(grown, INPUTS).problems == []


class TestOlderSetsWithRecoveredRows:
    @pytest.fixture
    def older(self, first: FeatureSet) -> FeatureSet:
        """As retries of earlier versions left it: `00000/2` is a row of a fourth part, its reject on record."""
        rows = made(Path(first.uri).parent / "recovered", {0: ["00000/2"]}).part(0)
        data = parquet(rows)
        storage.write_bytes(f"{first.uri}/part-00003.parquet", data)
        part = Part(
            index=3,
            rejects=0,
            rejects_sha256=None,
            recovered=1,
            encoder_seconds=0,
            tokens=0,
            truncated=0,
            devices=("cpu",),
            revisions=(),
            **content(rows, data),
        )
        manifest = first.manifest.model_copy(update=totals([*first.manifest.parts, part]))
        stored = manifest.content() | {"schema_version": 1}
        for each in stored["parts"]:
            del each["retried"]
        storage.write_json(f"{first.uri}/manifest.json", stored)
        return open_features(first.uri)

    def test_open_and_count_right(self, older: FeatureSet) -> None:
        assert older.keys.tolist() == ["00000/1", "00000/3", "00002/1", "00000/2"]
        assert (older.manifest.rows, older.manifest.rejects) == (4, 1)
        assert older.rejects["key"].to_pylist() == ["00001/1"]
        assert audit(older, INPUTS).problems == []
        assert audit(older).rejects == 1

    def test_the_audit_finds_a_recovery_of_what_was_no_reject(self, older: FeatureSet) -> None:
        first_part, *others = older.manifest.parts
        changed = first_part.model_copy(update={"rejects": 0, "rejects_sha256": None})
        lying = older.manifest.model_copy(update={"parts": (changed, *others)})
        problems = audit(FeatureSet(older.uri, lying)).problems
        assert "key '00000/2' was never rejected, so part-00003.parquet cannot have recovered it" in problems

    def test_a_retry_replaces_all_parts_with_rejects_and_the_recovered_rows(
        self, older: FeatureSet, tmp_path: Path
    ) -> None:
        assert [part.index for part in rejected_parts(older)] == [0, 1]
        # Neither a retry of fewer shards nor one that loses the recovered row.
        assert replace_parts(older.uri, made(tmp_path / "1", {1: ["00001/1"]})).manifest == older.manifest
        lost = made(tmp_path / "2", {0: ["00000/1", "00000/3"], 1: ["00001/1"]})
        assert replace_parts(older.uri, lost).manifest == older.manifest
        grown = replace_parts(older.uri, made(tmp_path / "3", {0: INPUTS[:3], 1: ["00001/1"]}))
        assert grown.keys.tolist() == INPUTS
        assert (grown.manifest.rejects, len(grown.manifest.parts)) == (0, 3)
        assert part_files(older.uri) == names(grown)
        assert audit(grown, INPUTS).problems == []
