"""The tars of pictures: readable by their source, split by subject, the same bytes each time, and safe to interrupt."""

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib
import pyarrow.parquet as pq
import pytest
from PIL import Image

from crash import die
from sharelock_ray import storage
from sharelock_ray.demo import picture_tars
from sharelock_ray.demo.drawing import is_one_glyph
from sharelock_ray.demo.picture_tars import Material, write_pictures
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.sources.sample import Sample
from sharelock_ray.sources.webdataset import WebDatasetSource
from support import read_source

FONT = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
EMOJI = [text for text in map(chr, range(0x1F600, 0x1F640)) if is_one_glyph(text, str(FONT))][:50]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """50 emoji of two languages, and 21 stamps; one stamp is broken."""
    folder = tmp_path_factory.mktemp("packages")
    for language, word in (("en", "face"), ("de", "Gesicht")):
        names = "".join(
            f'<annotation cp="{text}" type="tts">{word} {chr(97 + i // 26)}{chr(97 + i % 26)}</annotation>'
            for i, text in enumerate(EMOJI)
        )
        (folder / "cldr/annotations").mkdir(parents=True, exist_ok=True)
        (folder / f"cldr/annotations/{language}.xml").write_text(f"<ldml>{names}</ldml>")
    for i in range(21):
        stamp = folder / "stamps" / ("medical" if i > 11 else "animals") / f"owl{i:02d}.png"
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.with_suffix(".txt").write_text(f"Owl {i}.\nde.utf8=Eule {i}.\n")
        Image.new("RGB", (20, 20), (i, 0, 0)).save(stamp)
    stamp.write_bytes(b"no picture")
    (folder / "clipart").mkdir()
    return Material(folder / "clipart", folder / "cldr", FONT, folder / "stamps", {"art": "1"})


@pytest.fixture(autouse=True)
def _small_tars(monkeypatch):
    monkeypatch.setattr(picture_tars, "PER_TAR", 16)


@pytest.fixture(scope="module")
def written(material, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picture_tars, "PER_TAR", 16)
        write_pictures(folder, material)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def samples(folder: Path, split: str) -> list[Sample]:
    found = read_source(WebDatasetSource(urls=str(folder / split / "*.tar")))
    assert all(isinstance(sample, Sample) for sample in found)
    return found


class TestWritten:
    def test_training_and_validation_share_all_pictures_and_no_subject(self, written):
        train, validation = (
            {sample.captions for sample in samples(written, split)} for split in ("train", "validation")
        )
        assert len(train) + len(validation) == 50
        assert train.isdisjoint(validation)
        assert 0 < len(validation) < len(train)

    def test_a_sample_has_a_picture_its_english_caption_and_a_label_where_its_folder_is_a_class(self, written):
        found = {sample.key: sample for sample in samples(written, "test")}
        assert found["00000/animals/owl03"].captions == ("Owl 3.",)
        assert Image.open(io.BytesIO(found["00000/animals/owl03"].image)).getpixel((11, 11)) == (3, 0, 0)
        assert (written / "classes.txt").read_text() == "animals\n"
        assert {sample.label for key, sample in found.items() if "animals" in key} == {0}
        assert {sample.label for key, sample in found.items() if "medical" in key} == {None}

    @pytest.mark.parametrize("split", ["train", "validation", "test"])
    def test_the_table_has_the_captions_of_every_sample_by_its_key(self, split, written):
        table = pq.read_table(written / "captions" / f"{split}.parquet")
        assert table.column_names == ["key", "language", "caption"]
        rows = table.to_pylist()
        english = {row["key"]: row["caption"] for row in rows if row["language"] == "en"}
        assert english == {sample.key: sample.captions[0] for sample in samples(written, split)}
        assert {row["key"] for row in rows if row["language"] == "de"} == english.keys()

    def test_the_titles_of_validation_are_written_in_other_styles(self, written):
        rows = pq.read_table(written / "captions" / "styles.parquet").to_pylist()
        titles = {sample.key: sample.captions[0].partition(",")[0] for sample in samples(written, "validation")}
        for key, title in titles.items():
            subject = title[0].lower() + title[1:]
            article = "An" if subject[0] in "aeiou" else "A"
            found = {row["language"]: row["caption"] for row in rows if row["key"] == key}
            assert found == {"title": title, "sentence": f"{article} {subject}.", "picture": f"a picture of {subject}"}
        assert {row["key"] for row in rows} == titles.keys()

    def test_a_picture_that_cannot_be_drawn_is_recorded_and_in_no_file(self, written):
        record = json.loads((written / "pictures.json").read_text())
        skipped = {name: why for tar in record["tars"].values() for name, why in tar["skipped"].items()}
        assert list(skipped) == ["medical/owl20"]
        assert "cannot identify" in skipped["medical/owl20"]
        assert sum(tar["pictures"] for tar in record["tars"].values()) == 70
        assert not any("owl20" in sample.key for sample in samples(written, "test"))

    def test_the_record_has_the_digest_of_each_tar(self, written):
        record = json.loads((written / "pictures.json").read_text())
        for name, tar in record["tars"].items():
            assert storage.sha256((written / name).read_bytes()) == tar["sha256"]

    def test_tars_have_no_times_and_owners(self, written):
        with tarfile.open(written / "test/00000.tar") as tar:
            assert {(member.mtime, member.uid, member.uname) for member in tar} == {(0, 0, "")}


class TestAgain:
    def test_the_same_packages_give_the_same_bytes(self, written, material, tmp_path):
        write_pictures(tmp_path, material)
        assert contents(tmp_path) == contents(written)

    def test_a_finished_set_is_left_alone(self, written, material, monkeypatch):
        monkeypatch.setattr(picture_tars, "clip_art", unexpected)
        assert write_pictures(written, material).complete

    def test_a_tar_that_was_lost_is_drawn_again_and_the_others_are_not(self, written, material, tmp_path):
        write_pictures(tmp_path, material)
        (tmp_path / "train/00001.tar").unlink()
        before = times(tmp_path)
        write_pictures(tmp_path, material)
        assert contents(tmp_path) == contents(written)
        assert before.items() <= times(tmp_path).items()

    def test_changed_packages_replace_what_they_change_and_no_other_tar(self, written, material, tmp_path):
        write_pictures(tmp_path, material)
        (tmp_path / "train/00009.tar").write_bytes(b"of an earlier version")
        before = times(tmp_path)
        changed = replace(material, versions={"art": "2"})
        record = write_pictures(tmp_path, changed)
        assert record.made_from["art"] == "2"
        assert times(tmp_path) == {name: time for name, time in before.items() if name != "train/00009.tar"}


def times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.tar")}


def unexpected(*_: object) -> None:
    raise AssertionError


def stop_after(tars: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Ctrl-C once so many tars are written."""
    write, left = storage.write_json, iter(range(tars - 1))

    def interrupted(uri: str, value: object) -> None:
        write(uri, value)
        if next(left, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(storage, "write_json", interrupted)
    return lambda: monkeypatch.setattr(storage, "write_json", write)


def test_an_interrupted_build_is_continued(written, material, tmp_path, monkeypatch):
    go_on = stop_after(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        write_pictures(tmp_path, material)
    go_on()
    before = times(tmp_path)
    assert len(before) == 2
    write_pictures(tmp_path, material)
    assert before.items() <= times(tmp_path).items()
    assert contents(tmp_path) == contents(written)


def test_a_process_that_dies_is_one_line(material, tmp_path, monkeypatch):
    monkeypatch.setattr(picture_tars, "drawn", die)
    with pytest.raises(RunError, match=r"pictures of train/00000\.tar died"):
        write_pictures(tmp_path, material)


def test_packages_without_captions_are_one_line(material, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(RequestError, match="no pictures with captions for the test split"):
        write_pictures(tmp_path, replace(material, stamps=tmp_path / "none"))
