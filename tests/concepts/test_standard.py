"""Sources of concepts: names, lists in files, and proposed splits of a user's own copy."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from sharelock_ray.concepts.standard import proposed_split, read_source
from sharelock_ray.errors import RequestError

NAMES = ("dog", "cat", "crane", "sea+dog")


def write_proposed(folder: Path, **changes: object) -> Path:
    """The two files of a data set of eight images, as xlsa17 has them: classes 1 and 3 are seen."""
    labels = np.array([[1], [1], [2], [2], [3], [3], [4], [4]])
    names = np.empty((len(NAMES), 1), object)
    names[:, 0] = [np.array([name]) for name in NAMES]
    locations = {"trainval_loc": [[1], [5]], "test_seen_loc": [[2], [6]], "test_unseen_loc": [[3], [4], [7], [8]]}
    folder.mkdir(exist_ok=True)
    savemat(folder / "att_splits.mat", {"allclasses_names": names, **locations, **changes})
    savemat(folder / "res101.mat", {"labels": labels, "features": np.zeros((4, 8))})
    return folder / "att_splits.mat"


class TestASource:
    def test_is_names_separated_by_commas(self, wordnet, wnids):
        found = read_source(f"dog, sea dog,{wnids['cat']}", wordnet)
        assert list(map(str, found)) == ["dog", "sea dog", f"cat ({wnids['cat']})"]

    def test_is_a_list_in_a_file(self, wordnet, tmp_path):
        (tmp_path / "classes.txt").write_text("dog\ncat\n")
        assert list(map(str, read_source(str(tmp_path / "classes.txt"), wordnet))) == ["dog", "cat"]
        with pytest.raises(RequestError, match=r"no concepts at none\.txt"):
            read_source("none.txt", wordnet)

    def test_may_be_in_another_language(self, wordnet):
        (found,) = read_source("Hund", wordnet, "de")
        assert found.language == "de"

    def test_without_names_is_one_line(self, wordnet):
        with pytest.raises(RequestError, match="the list has no concepts"):
            read_source(" , ", wordnet)

    def test_that_is_not_standard_is_told_with_those_that_are(self, wordnet):
        with pytest.raises(RequestError, match=r"no standard concepts 'imagenet-3-hops': use imagenet-1k, .*own"):
            read_source("standard://imagenet-3-hops", wordnet)


class TestAProposedSplit:
    def test_is_read_from_the_labels_of_its_images(self, tmp_path):
        assert proposed_split(str(write_proposed(tmp_path / "AWA2"))) == {
            "seen": ["dog", "crane"],
            "unseen": ["cat", "sea+dog"],
            "all": list(NAMES),
        }

    def test_gives_each_side_as_a_source(self, wordnet, tmp_path, wnids):
        found = read_source(f"{write_proposed(tmp_path)}#unseen", wordnet)
        assert [concept.words for concept in found] == ["cat", "sea dog"]

    def test_needs_a_side(self, wordnet, tmp_path):
        path = write_proposed(tmp_path)
        with pytest.raises(RequestError, match="must end in one of #seen, #unseen, #all"):
            read_source(str(path), wordnet)

    def test_of_other_content_is_one_line(self, tmp_path):
        path = write_proposed(tmp_path, test_unseen_loc=[[9]])
        with pytest.raises(RequestError, match=r"att_splits\.mat is no att_splits\.mat of a proposed split: index 8"):
            proposed_split(str(path))
        savemat(path, {"att": [[1]]})
        with pytest.raises(RequestError, match="of a proposed split: 'allclasses_names'"):
            proposed_split(str(path))

    def test_that_is_damaged_or_missing_is_one_line(self, tmp_path):
        path = write_proposed(tmp_path)
        (tmp_path / "res101.mat").write_bytes(b"not MATLAB's" * 99)
        with pytest.raises(RequestError, match=r"res101\.mat is not a file of MATLAB 5") as error:
            proposed_split(str(path))
        assert "\n" not in str(error.value)
        (tmp_path / "res101.mat").unlink()
        with pytest.raises(RequestError, match=r"no file of a proposed split at .*res101\.mat"):
            proposed_split(str(path))
