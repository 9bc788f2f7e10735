"""Writing a feature set: the same bytes whatever the order and the repetitions, and no manifest before all is there."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import support
from sharelock_ray import storage
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.features.featureset import open_features
from sharelock_ray.features.manifest import Origin
from sharelock_ray.features.soundness import audit
from sharelock_ray.features.writer import EncodedChunk, FeatureSetWriter, StagedPart
from sharelock_ray.sources.sample import DUPLICATE_KEY, Reject, Shard

VISION = VisionSpec(name="made-up", model="none")
LANGUAGE = LanguageSpec(name="made-up", model="none")
SHARDS = [Shard(0, "a", "data/a.tar", 10, "10 bytes of then"), Shard(1, "b", "data/b.tar", 20, "20 bytes of now")]
CHUNKS = [support.encoded("vision", [f"a/{i}{j}" for i in "dacb"], seed=j) for j in range(3)]
ORIGIN = Origin(
    dataset="d", split="s", encoder=VISION.model_dump(mode="json"), weights_sha256=None, software={"x": "1"}
)


def writer(folder: Path, modality: str = "vision", dtype: str = "float16") -> FeatureSetWriter:
    return FeatureSetWriter(str(folder), modality, dtype)


def write_part(to: FeatureSetWriter, order: list[int]) -> bytes:
    """Part 0 of CHUNKS, staged in an order; its file."""
    for index in order:
        to.stage(0, index, index == 2, "data/a.tar", CHUNKS[index])
    to.seal(0)
    return (Path(to.uri) / "part-00000.parquet").read_bytes()


class TestParts:
    def test_have_the_columns_of_the_contract(self, tmp_path: Path) -> None:
        vision = support.write_parts(str(tmp_path / "v"), VISION, [[support.encoded("vision", ["k"])]])
        language = support.write_parts(str(tmp_path / "l"), LANGUAGE, [[support.encoded("language", ["k"])]])
        key = pa.field("key", pa.string(), nullable=False)
        embedding = pa.field(
            "embedding", pa.list_(pa.field("element", pa.float16(), nullable=False), 4), nullable=False
        )
        text = [pa.field("caption_id", pa.int32(), nullable=False), pa.field("text", pa.string(), nullable=False)]
        for uri, extra in ((vision, [pa.field("label", pa.int32())]), (language, text)):
            schema = pq.read_schema(f"{uri}/part-00000.parquet")
            assert schema.equals(pa.schema([key, *extra, embedding]), check_metadata=True)

    def test_hold_what_was_encoded_sorted_by_key(self, tmp_path: Path) -> None:
        support.write_parts(str(tmp_path), VISION, [CHUNKS])
        table = pq.read_table(tmp_path / "part-00000.parquet")
        expected = {
            key: (label, row)
            for chunk in CHUNKS
            for key, label, row in zip(chunk.columns["key"], chunk.columns["label"], chunk.embeddings, strict=True)
        }
        assert table["key"].to_pylist() == sorted(expected)
        assert table["label"].to_pylist() == [expected[key][0] for key in sorted(expected)]
        rows = np.stack([expected[key][1] for key in sorted(expected)]).astype(np.float16)
        assert table["embedding"].to_pylist() == rows.tolist()

    def test_keep_several_captions_of_a_key_in_order(self, tmp_path: Path) -> None:
        chunk = support.encoded("language", ["b", "a", "a", "b", "a"])
        support.write_parts(str(tmp_path), LANGUAGE, [[chunk]])
        table = pq.read_table(tmp_path / "part-00000.parquet", columns=["key", "caption_id", "text"])
        assert [tuple(row.values()) for row in table.to_pylist()] == [
            (key, i, f"text {i} of {key}") for key, count in (("a", 3), ("b", 2)) for i in range(count)
        ]

    def test_store_float32_exactly(self, tmp_path: Path) -> None:
        spec = VISION.model_copy(update={"stored_dtype": "float32"})
        support.write_parts(str(tmp_path), spec, [[support.encoded("vision", ["a", "b"])]])
        table = pq.read_table(tmp_path / "part-00000.parquet")
        assert table.schema.field("embedding").type.value_type == pa.float32()
        assert table["embedding"].to_pylist() == support.encoded("vision", ["a", "b"]).embeddings.tolist()

    def test_may_lack_labels(self, tmp_path: Path) -> None:
        chunk = support.encoded("vision", ["a", "b"], columns={"key": ["a", "b"], "label": [None, 2]})
        support.write_parts(str(tmp_path), VISION, [[chunk]])
        assert pq.read_table(tmp_path / "part-00000.parquet")["label"].to_pylist() == [None, 2]

    def test_of_nothing_but_rejects_are_empty(self, tmp_path: Path) -> None:
        chunk = support.encoded("vision", [], rejects=[Reject("a", "decode", "OSError", "half a file")])
        support.write_parts(str(tmp_path), VISION, [[chunk]])
        feature_set = open_features(str(tmp_path))
        assert (feature_set.manifest.rows, feature_set.manifest.rejects) == (0, 1)
        assert (feature_set.manifest.min, feature_set.manifest.max) == (None, None)
        assert feature_set.embeddings.shape == (0, 4)


class TestRepetition:
    def test_any_order_of_chunks_gives_the_same_bytes(self, tmp_path: Path) -> None:
        first, *others = (write_part(writer(tmp_path / f"{o}"), o) for o in ([0, 1, 2], [2, 0, 1], [1, 2, 0]))
        assert others == [first, first]

    def test_a_chunk_staged_twice_is_there_once(self, tmp_path: Path) -> None:
        expected = write_part(writer(tmp_path / "once"), [0, 1, 2])
        assert write_part(writer(tmp_path / "twice"), [0, 1, 1, 2, 0]) == expected

    def test_a_part_sealed_again_has_the_same_bytes(self, tmp_path: Path) -> None:
        to = writer(tmp_path)
        first = write_part(to, [0, 1, 2])
        record = storage.read_bytes(f"{tmp_path}/staging/00000.json")
        assert write_part(to, [2, 1, 0]) == first
        assert storage.read_bytes(f"{tmp_path}/staging/00000.json") == record

    def test_a_changed_listing_is_refused(self, tmp_path: Path) -> None:
        writer(tmp_path).start(SHARDS, 2)
        writer(tmp_path).start(SHARDS, 2)
        larger = [SHARDS[0], Shard(1, "b", "data/b.tar", 21)]
        for changed in (SHARDS[:1], SHARDS[::-1], larger):
            with pytest.raises(RequestError, match="begun from other inputs"):
                writer(tmp_path).start(changed, 2)

    def test_what_the_first_run_said_holds_for_the_next(self, tmp_path: Path) -> None:
        first = writer(tmp_path).start(SHARDS, 2, commit="0123")
        assert (first.chunk_size, first.commit) == (2, "0123")
        assert writer(tmp_path).start(SHARDS, 4, commit="4567") == first

    def test_a_listing_may_move_to_another_place(self, tmp_path: Path) -> None:
        writer(tmp_path).start(SHARDS, 2)
        writer(tmp_path).start([Shard(s.index, s.name, f"s3://elsewhere/{s.name}.tar", s.bytes) for s in SHARDS], 2)


class TestStaged:
    def test_tells_which_chunks_are_there(self, tmp_path: Path) -> None:
        to = writer(tmp_path)
        to.start(SHARDS, 2)
        assert to.staged() == {}
        to.stage(0, 1, False, "a", CHUNKS[1])
        assert to.staged() == {0: StagedPart(frozenset({1}), None)}
        to.stage(0, 2, True, "a", CHUNKS[2])
        to.stage(1, 0, True, "b", CHUNKS[0])
        assert to.staged() == {0: StagedPart(frozenset({1, 2}), 2), 1: StagedPart(frozenset({0}), 0)}
        assert {part: staged.is_whole for part, staged in to.staged().items()} == {0: False, 1: True}
        to.stage(0, 0, False, "a", CHUNKS[0])
        assert to.staged()[0].is_whole

    def test_tells_which_parts_are_sealed(self, tmp_path: Path) -> None:
        to = writer(tmp_path)
        write_part(to, [0, 1, 2])
        assert to.staged() == {0: StagedPart(sealed=True)}
        to.stage(0, 0, False, "a", CHUNKS[0])  # As a kill between the record and the removal of chunks leaves it.
        assert to.staged() == {0: StagedPart(sealed=True)}
        assert to.staged()[0].is_whole

    def test_does_not_see_half_a_chunk(self, tmp_path: Path) -> None:
        to = writer(tmp_path)
        to.stage(0, 0, False, "a", CHUNKS[0])
        (tmp_path / "staging" / "00000" / ".tmp-abc").write_bytes(b"half")
        assert to.staged() == {0: StagedPart(frozenset({0}), None)}


class TestStagingOfOthers:
    """What a desktop, a network filesystem or a broken disk has left among what is staged."""

    def test_files_that_are_not_ours_are_left_out_and_alone(self, tmp_path: Path) -> None:
        strays = [
            ".DS_Store",
            ".nfs000000000a1b2c",
            "Thumbs.db",
            "00000.arrow~",
            "notes.json",
            "\u00b2.json",
            "1.parquet",
        ]

        def scattered(*folders: str) -> None:
            for folder in folders:
                for name in strays:
                    (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (tmp_path / folder / name).write_bytes(b"of others")

        to = writer(tmp_path)
        scattered("", "rejects", "staging", "staging/00000", "staging/00001")
        to.start(SHARDS[:1], 2)
        to.stage(0, 0, False, "a", CHUNKS[0])
        assert to.staged() == {0: StagedPart(frozenset({0})), 1: StagedPart()}
        expected = write_part(writer(tmp_path / "other"), [0, 1, 2])
        assert write_part(to, [1, 2]) == expected
        to.finish(SHARDS[:1], ORIGIN, gpus=0, wall_seconds=0)
        assert open_features(to.uri).manifest.rows == 12
        assert [path.name for path in sorted((tmp_path / "rejects").iterdir())] == sorted(strays)

    @pytest.mark.parametrize("length", [0, 100, -20])
    def test_a_chunk_that_is_cut_short_is_made_anew_by_the_next_run(self, tmp_path: Path, length: int) -> None:
        expected = write_part(writer(tmp_path / "whole"), [0, 1, 2])
        to = writer(tmp_path / "set")
        for index in (0, 1, 2):
            to.stage(0, index, index == 2, "data/a.tar", CHUNKS[index])
        chunk = tmp_path / "set" / "staging" / "00000" / "00001.arrow"
        chunk.write_bytes(chunk.read_bytes()[:length])
        with pytest.raises(RunError, match=r"00001\.arrow is damaged \(.*\): run extract again, which makes it anew"):
            to.seal(0)
        assert to.staged() == {0: StagedPart(frozenset({0, 2}), 2)}
        assert write_part(to, [1]) == expected

    @pytest.mark.parametrize("content", [b"", b'{"index": 0, "sha', b"[]", b"{}"])
    def test_a_record_that_is_damaged_is_made_anew_by_the_next_run(self, tmp_path: Path, content: bytes) -> None:
        to = writer(tmp_path)
        to.start(SHARDS[:1], 2)
        expected = write_part(to, [0, 1, 2])
        (tmp_path / "staging" / "00000.json").write_bytes(content)
        with pytest.raises(RunError, match=r"00000\.json is damaged \(.*\): run extract again, which makes it anew"):
            to.finish(SHARDS[:1], ORIGIN, gpus=0, wall_seconds=0)
        assert to.staged() == {}
        assert write_part(to, [0, 1, 2]) == expected
        assert to.finish(SHARDS[:1], ORIGIN, gpus=0, wall_seconds=0).rows == 12

    @pytest.mark.parametrize("content", [b'{"listing": [', b"[]", b"{}", b'{"listing": [], "chunk_size": null}'])
    def test_a_beginning_that_is_damaged_is_an_error_that_names_it(self, tmp_path: Path, content: bytes) -> None:
        writer(tmp_path).start(SHARDS, 2)
        (tmp_path / "staging" / "begun.json").write_bytes(content)
        with pytest.raises(
            RunError, match=r"staging/begun\.json is damaged \(.*\): delete its folder and run extract again"
        ):
            writer(tmp_path).start(SHARDS, 2)


class TestNumbersThatCannotBeStored:
    @pytest.mark.parametrize(
        ("value", "dtype", "shown"),
        [
            (math.nan, "float16", "nan"),
            (math.nan, "float32", "nan"),
            (math.inf, "float32", "inf"),
            (-math.inf, "float16", "-inf"),
            pytest.param(1e6, "float16", "1e+06", marks=pytest.mark.filterwarnings("ignore:overflow")),
            pytest.param(-65520, "float16", "-65520", marks=pytest.mark.filterwarnings("ignore:overflow")),
        ],
    )
    def test_make_a_reject_that_names_dimension_and_value(
        self, tmp_path: Path, value: float, dtype: str, shown: str
    ) -> None:
        chunk = support.encoded("vision", ["a", "b", "c"], rejects=[Reject("d", "read", "E", "m")])
        chunk.embeddings[1, 2] = value
        spec = VISION.model_copy(update={"stored_dtype": dtype})
        support.write_parts(str(tmp_path), spec, [[chunk]])
        feature_set = open_features(str(tmp_path))
        assert feature_set.keys.tolist() == ["a", "c"]
        assert feature_set.rejects.to_pylist() == [
            {
                "key": "b",
                "source": "memory/00000.tar",
                "stage": "encode",
                "error": "NonFiniteEmbedding",
                "message": f"dimension 2 is {shown}, which {dtype} cannot hold",
            },
            {"key": "d", "source": "memory/00000.tar", "stage": "read", "error": "E", "message": "m"},
        ]

    def test_of_one_caption_make_a_reject_of_its_sample(self, tmp_path: Path) -> None:
        again = Reject("a", "read", DUPLICATE_KEY, "m")
        chunk = support.encoded("language", ["a", "b", "b", "b", "c"], rejects=[again])
        chunk.embeddings[2:4, 1] = math.nan
        support.write_parts(str(tmp_path), LANGUAGE, [[chunk]])
        feature_set = open_features(str(tmp_path))
        assert feature_set.keys.tolist() == ["a", "c"]
        assert [(r["key"], r["error"], r["message"]) for r in feature_set.rejects.to_pylist()] == [
            ("a", "DuplicateKey", "m"),
            ("b", "NonFiniteEmbedding", "caption 1, dimension 1 is nan, which float16 cannot hold"),
        ]

    @pytest.mark.filterwarnings("error:overflow")
    def test_are_not_also_warned_about(self, tmp_path: Path) -> None:
        chunk = support.encoded("vision", ["a"], embeddings=np.array([[1e6]], np.float32))
        writer(tmp_path).stage(0, 0, True, "a", chunk)

    def test_leave_the_largest_that_can(self, tmp_path: Path) -> None:
        chunk = EncodedChunk({"key": ["a"], "label": [None]}, np.array([[65504, -65504]], np.float32))
        support.write_parts(str(tmp_path), VISION, [[chunk]])
        assert open_features(str(tmp_path)).embeddings.tolist() == [[65504, -65504]]


class TestManifest:
    def test_is_written_last(self, tmp_path: Path) -> None:
        to = writer(tmp_path)
        to.start(SHARDS, 2)
        with pytest.raises(RequestError, match="is not complete") as error:
            open_features(to.uri)
        assert "sharelock extract" in str(error.value)
        write_part(to, [0, 1, 2])
        with pytest.raises(RunError, match="lacks parts: run extract again"):  # Part 1 is not sealed.
            to.finish(SHARDS, ORIGIN, gpus=0, wall_seconds=1.234)
        with pytest.raises(RequestError, match="is not complete"):
            open_features(to.uri)
        to.stage(1, 0, True, "b", support.encoded("vision", ["b/x"]))
        to.seal(1)
        with pytest.raises(RequestError, match="is not complete"):
            open_features(to.uri)
        to.finish(SHARDS, ORIGIN, gpus=0, wall_seconds=1.234)
        assert open_features(to.uri).manifest.rows == 13
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "manifest.json",
            "part-00000.parquet",
            "part-00001.parquet",
        ]

    def test_adds_up_its_parts(self, tmp_path: Path) -> None:
        to = writer(tmp_path, "language", "float32")
        chunks = [
            support.encoded("language", ["a", "a", "b"], seed=1, seconds=1.5, tokens=10, truncated=1),
            support.encoded("language", ["c"], seed=2, seconds=2, tokens=5, rejects=[Reject("d", "read", "E", "m")]),
        ]
        to.start(SHARDS, 2)
        for part, chunk in enumerate(chunks):
            to.stage(part, 0, True, SHARDS[part].uri, chunk)
            to.seal(part)
        manifest = to.finish(SHARDS, ORIGIN, gpus=2, wall_seconds=1.234)
        values = np.concatenate([chunk.embeddings for chunk in chunks])
        assert (manifest.rows, manifest.keys, manifest.rejects) == (4, 3, 1)
        assert (manifest.tokens, manifest.truncated, manifest.non_finite) == (15, 1, 0)
        assert (manifest.min, manifest.max) == (values.min(), values.max())
        assert (manifest.encoder_seconds, manifest.wall_seconds) == (3.5, 1.23)
        assert manifest.gpu_hours == pytest.approx(7 / 3600, abs=1e-6)
        assert [i.model_dump() for i in manifest.inputs] == [
            {"name": s.name, "uri": s.uri, "bytes": s.bytes, "version": s.version} for s in SHARDS
        ]
        for part in manifest.parts:
            data = (tmp_path / f"part-{part.index:05d}.parquet").read_bytes()
            assert (part.sha256, part.bytes) == (storage.sha256(data), len(data))
        assert [part.rejects_sha256 is None for part in manifest.parts] == [True, False]
        assert open_features(to.uri).manifest == manifest

    @pytest.mark.parametrize(("joules", "total"), [((1.25, 2.5), 3.75), ((1.25, None), None), ((None, None), None)])
    def test_adds_up_energy_unless_a_part_has_none(
        self, tmp_path: Path, joules: tuple[float | None, ...], total: float | None
    ) -> None:
        chunks = [[support.encoded("vision", [key], joules=each)] for key, each in zip("ab", joules, strict=True)]
        feature_set = open_features(support.write_parts(str(tmp_path), VISION, chunks))
        assert [part.joules for part in feature_set.manifest.parts] == list(joules)
        assert feature_set.manifest.joules == total
        assert audit(feature_set).problems == []

    def test_of_the_same_rows_has_the_same_digest_and_of_others_another(self, tmp_path: Path) -> None:
        uris = [support.write_parts(str(tmp_path / name), VISION, [CHUNKS]) for name in "ab"]
        other = support.write_parts(str(tmp_path / "c"), VISION, [CHUNKS[:2]])
        digests = [open_features(uri).manifest.digest for uri in [*uris, other]]
        assert digests[0] == digests[1] != digests[2]


def test_works_on_an_object_store() -> None:
    uri = "memory://writer-test/set"
    try:
        support.write_parts(uri, VISION, [CHUNKS, [support.encoded("vision", ["b"])]])
        assert storage.names(uri) == ["manifest.json", "part-00000.parquet", "part-00001.parquet"]
        assert len(open_features(uri).embeddings) == 13
    finally:
        storage.remove("memory://writer-test")
