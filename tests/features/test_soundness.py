"""The audit finds whatever is missing, changed, added or unaccounted for."""

import shutil
from pathlib import Path

import pytest

import support
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.errors import RunError
from sharelock_ray.features.featureset import FeatureSet, open_features
from sharelock_ray.features.soundness import audit, audit_split
from sharelock_ray.features.writer import EncodedChunk
from sharelock_ray.sources.sample import DUPLICATE_KEY, Reject, Shard
from sharelock_ray.sources.webdataset import WebDatasetSource

VISION = VisionSpec(name="made-up", model="none")
LANGUAGE = LanguageSpec(name="made-up", model="none")
INPUTS = ["a/1", "a/2", "a/3", "b/1", "b/2"]


def bad(key: str) -> Reject:
    return Reject(key, "decode", "OSError", "half a file")


@pytest.fixture
def feature_set(tmp_path: Path) -> FeatureSet:
    """Two parts; `a/3` could not be read."""
    return vision(
        tmp_path,
        [support.encoded("vision", ["a/1", "a/2"], rejects=[bad("a/3")])],
        [support.encoded("vision", ["b/1", "b/2"], seed=1)],
    )


def vision(folder: Path, *parts: list[EncodedChunk]) -> FeatureSet:
    return open_features(support.write_parts(str(folder), VISION, list(parts)))


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
    rejects = [Reject("d", "encode", "NonFiniteEmbedding", "caption 1")]
    chunk = support.encoded("language", ["a", "a", "b", "c"], rejects=rejects)
    report = audit(open_features(support.write_parts(str(tmp_path), LANGUAGE, [[chunk]])), ["a", "b", "c", "d"])
    assert (report.problems, report.rows, report.keys, report.rejects) == ([], 4, 3, 1)


def test_inputs_that_repeat_a_key_are_each_a_reject(tmp_path: Path) -> None:
    again = Reject("a", "read", DUPLICATE_KEY, "again")
    feature_set = vision(tmp_path, [support.encoded("vision", ["a"], rejects=[again, again])])
    report = audit(feature_set, ["a"] * 3)
    assert (report.problems, report.inputs, report.rows, report.rejects) == ([], 3, 1, 2)
    for inputs in (["a"] * 2, ["a"] * 4):
        assert audit(feature_set, inputs).problems == [
            f"of {len(inputs)} inputs with key 'a', 3 are in rows or rejects"
        ]


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


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param(
            [support.encoded("vision", ["a", "b"]), support.encoded("vision", ["b", "c"])], id="rows-of-parts"
        ),
        pytest.param([support.encoded("vision", ["a", "b", "b"])], id="rows-of-a-part"),
        pytest.param([support.encoded("vision", ["a", "b"], rejects=[bad("b")])], id="row-and-reject"),
        pytest.param(
            [support.encoded("vision", ["b"]), support.encoded("vision", ["a"], rejects=[bad("b")])], id="across-parts"
        ),
        pytest.param([support.encoded("vision", ["a"], rejects=[bad("b"), bad("b")])], id="rejects"),
    ],
)
def test_finds_a_key_in_two_places(tmp_path: Path, chunks: list[EncodedChunk]) -> None:
    assert audit(vision(tmp_path, *[[chunk] for chunk in chunks])).problems == ["key 'b' is in more than one place"]


@pytest.mark.parametrize("numbers", [[0, 0], [0, 2], [1, 2]])
def test_finds_captions_that_are_twice_or_missing(tmp_path: Path, numbers: list[int]) -> None:
    chunk = support.encoded("language", ["a", "b", "b"])
    chunk.columns["caption_id"] = [0, *numbers]
    feature_set = open_features(support.write_parts(str(tmp_path), LANGUAGE, [[chunk]]))
    assert audit(feature_set).problems == ["the captions of key 'b' are not numbered from 0 on"]


def test_finds_a_part_of_another_width_and_no_reader_takes_it_for_one_of_the_set(tmp_path: Path) -> None:
    narrow, wide = (support.encoded("vision", [key], dim=dim) for key, dim in (("a", 4), ("b", 6)))
    feature_set = vision(tmp_path, [narrow], [wide])
    assert audit(feature_set).problems == [
        "part-00001.parquet has other columns, or embeddings of another width or type, than the manifest says"
    ]
    with pytest.raises(RunError, match=r"part-00001\.parquet is not what its manifest says .*another width"):
        _ = feature_set.embeddings


def test_finds_files_that_are_no_part_of_the_set(feature_set: FeatureSet, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "rejects" / "part-00000.parquet", tmp_path / "rejects" / "part-00001.parquet")
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".DS_Store").touch()
    assert audit(feature_set, INPUTS).problems == [
        "notes.txt is not in the manifest",
        "rejects/part-00001.parquet is not in the manifest",
    ]


@pytest.mark.parametrize("field", ["rows", "rejects", "keys", "keys_sha256", "min", "max", "tokens", "encoder_seconds"])
def test_finds_totals_that_are_not_those_of_the_parts(feature_set: FeatureSet, field: str) -> None:
    changed = feature_set.manifest.model_copy(update={field: "0" * 64 if field == "keys_sha256" else 7})
    (problem,) = audit(FeatureSet(feature_set.uri, changed)).problems
    assert problem.startswith(f"{field} of the manifest is {getattr(changed, field)}, and ")


@pytest.mark.parametrize("change", [{"dim": 9}, {"dtype": "float32"}])
def test_finds_a_width_or_type_that_its_parts_have_not(feature_set: FeatureSet, change: dict[str, object]) -> None:
    changed = feature_set.manifest.model_copy(update=change)
    assert [problem.partition(" has")[0] for problem in audit(FeatureSet(feature_set.uri, changed)).problems] == [
        "part-00000.parquet",
        "part-00001.parquet",
    ]


@pytest.mark.parametrize("field", ["rows", "bytes", "keys_sha256", "min"])
def test_finds_a_part_that_the_manifest_describes_otherwise(feature_set: FeatureSet, field: str) -> None:
    first, second = feature_set.manifest.parts
    changed = second.model_copy(update={field: "0" * 64 if field == "keys_sha256" else 7})
    manifest = feature_set.manifest.model_copy(update={"parts": (first, changed)})
    problems = audit(FeatureSet(feature_set.uri, manifest)).problems
    assert problems[0] == f"part-00001.parquet has other {field} than the manifest says"


def test_finds_rejects_that_the_manifest_counts_otherwise(feature_set: FeatureSet) -> None:
    first, second = feature_set.manifest.parts
    manifest = feature_set.manifest.model_copy(update={"parts": (first, second.model_copy(update={"rejects": 7}))})
    problems = audit(FeatureSet(feature_set.uri, manifest)).problems
    assert problems[0] == "part-00001.parquet has 0 rejects, and the manifest says 7"


def test_finds_a_set_of_which_no_input_could_be_encoded(tmp_path: Path) -> None:
    lost = [bad("a"), bad("b"), Reject("c", "read", "MissingImage", "the sample has no image")]
    report = audit(vision(tmp_path, [support.encoded("vision", [], rejects=lost)]), ["a", "b", "c"])
    problem = "it has no rows, since none of its 3 inputs could be encoded (a: OSError: half a file)"
    assert report.problems == [problem]


def test_finds_a_set_of_no_inputs(tmp_path: Path) -> None:
    report = audit(vision(tmp_path, [support.encoded("vision", [])]), [])
    assert report.problems == ["it has no rows, since its inputs hold no samples"]


def test_a_set_is_sound_whose_inputs_have_nothing_for_its_encoder(tmp_path: Path) -> None:
    lost = [Reject(key, "read", "MissingCaption", "the sample has no caption") for key in "ab"]
    chunk = support.encoded("language", [], rejects=lost)
    assert audit(open_features(support.write_parts(str(tmp_path), LANGUAGE, [[chunk]])), ["a", "b"]).problems == []


def test_require_says_the_first_problem_in_one_line(feature_set: FeatureSet, tmp_path: Path) -> None:
    (tmp_path / "part-00000.parquet").unlink()
    with pytest.raises(RunError) as error:
        audit(feature_set, INPUTS).require()
    assert str(error.value) == (
        f"{tmp_path}: part-00000.parquet is missing (and 2 more): restore it, or delete the set and run extract again"
    )


class TestAgainstASource:
    """Sets of two tars of two samples each; in both, the first image of the second tar is bad."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> WebDatasetSource:
        return WebDatasetSource(urls=support.write_pairs(tmp_path / "data", shards=2, samples=2))

    @pytest.fixture
    def sets(self, source: WebDatasetSource, tmp_path: Path) -> list[FeatureSet]:
        found = []
        for spec in (VISION, LANGUAGE):
            whole = [support.encoded(spec.modality, ["00000/0000", "00000/0001"])]
            part = [support.encoded(spec.modality, ["00001/0001"], rejects=[bad("00001/0000")])]
            uri = support.write_parts(str(tmp_path / spec.modality), spec, [whole, part], shards=source.shards())
            found.append(open_features(uri))
        return found

    def test_only_the_keys_are_read(
        self, sets: list[FeatureSet], source: WebDatasetSource, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def read(*_: object) -> None:
            raise AssertionError

        monkeypatch.setattr(WebDatasetSource, "read", read)
        compared: list[int] = []
        reports = audit_split(sets, source, map, compared.append)
        assert [(r.problems, r.inputs, r.rows, r.keys, r.rejects) for r in reports] == [([], 4, 3, 3, 1)] * 2
        assert compared == [2, 2]

    def test_what_the_keys_alone_leave_open_is_decided_by_reading(
        self, sets: list[FeatureSet], source: WebDatasetSource, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(WebDatasetSource, "keys_of", lambda self, shard: iter([f"{shard.name}/other"]))
        assert [report.problems for report in audit_split(sets, source, map)] == [[], []]

    def test_finds_inputs_of_another_size_that_are_new_or_gone(
        self, sets: list[FeatureSet], source: WebDatasetSource, tmp_path: Path
    ) -> None:
        # The second has a reject, so it may have been mended.
        for tar in ("00000.tar", "00001.tar"):
            with (tmp_path / "data" / tar).open("ab") as stream:
                stream.write(bytes(1024))
        (tmp_path / "data" / "new.tar").write_bytes(b"")
        assert [report.problems for report in audit_split(sets, source, map)] == [
            ["the input shard 00000 is of another size", "the input shard new is new"]
        ] * 2
        (tmp_path / "data" / "00000.tar").unlink()
        (tmp_path / "data" / "new.tar").unlink()
        report, _ = audit_split(sets, source, map)
        assert (report.problems, report.inputs) == (["the input shard 00000 is gone"], 2)

    def test_finds_samples_that_another_tar_of_the_same_size_has_lost(
        self, sets: list[FeatureSet], source: WebDatasetSource, tmp_path: Path
    ) -> None:
        support.write_pairs(tmp_path / "data", shards=2, samples=1)
        assert [report.problems for report in audit_split(sets, source, map)] == [
            [
                "key '00000/0001' is of no input",
                "key '00001/0001' is of no input",
            ]
        ] * 2

    def test_sets_that_list_shards_otherwise_are_each_held_to_their_own_parts(
        self, sets: list[FeatureSet], source: WebDatasetSource, tmp_path: Path
    ) -> None:
        first, second = source.shards()
        shards = [Shard(0, second.name, second.uri, second.bytes), Shard(1, first.name, first.uri, first.bytes)]
        parts = [
            [support.encoded("vision", ["00001/0000", "00001/0001"])],
            [support.encoded("vision", ["00000/0000"], rejects=[bad("00000/0001")])],
        ]
        turned = open_features(support.write_parts(str(tmp_path / "turned"), VISION, parts, shards=shards))
        assert [report.problems for report in audit_split([sets[0], turned], source, map)] == [[], []]
