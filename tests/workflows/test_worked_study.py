"""The parts of the worked study that are its own; what it runs has tests of its own, and `make study` runs all."""

from pathlib import Path

import numpy as np
import pytest

from nouns import write_wordnet
from sharelock_ray.concepts.relations import Rules
from sharelock_ray.concepts.wordnet import open_wordnet
from sharelock_ray.recipe.load import read_recipe
from sharelock_ray.report.results_page import Plot, Section, write_results
from sharelock_ray.workflows import concepts, worked_study


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A folder of a tiny WordNet."""
    write_wordnet(tmp_path / "wordnet")
    return str(tmp_path / "wordnet")


@pytest.mark.parametrize(
    ("caption", "subject"),
    [
        ("A dog.", "dog"),
        ("A brown dog, sitting.", "dog"),
        ("Two dogs - good friends", "dogs"),
        ("The xanthia!", "the xanthia"),
    ],
)
def test_the_subject_of_a_caption_is_its_longest_end_that_wordnet_knows(
    caption: str, subject: str, folder: str
) -> None:
    assert worked_study._subject(caption, open_wordnet(folder)) == subject


def test_its_three_studies_share_features_and_differ_in_one_axis() -> None:
    recipe = read_recipe(worked_study.RECIPE)
    found = worked_study._recipes(recipe, [])
    axes = {name: list(of.tuning.space) for name, of in found.items() if of.tuning}
    assert axes == {"language": ["language"], "direction": ["direction"], "scale": ["alignment.training_pairs"]}
    assert {of.features_folder for of in found.values()} == {recipe.features_folder}
    assert len({of.output for of in found.values()}) == 3
    scored = [encoder for encoder in recipe.encoders if encoder.modality == "language" and "minilm" not in encoder.name]
    # Those that pool the last token, whose bits per byte differ.
    assert sum(encoder.pooling == "last" for encoder in scored) >= 12


def test_recall_is_that_of_seen_and_of_strictly_unseen_subjects(tmp_path: Path, folder: str) -> None:
    (tmp_path / "captions.txt").write_text("a dog\na red car\n")
    captions = concepts.CaptionCorpus(str(tmp_path / "captions.txt"))
    audited = concepts.audit(None, "dog,cat", Rules(), concepts.Inputs(folder), captions=captions)
    found = worked_study._unseen(audited, (["dog", "dog", "cat", "cat"], np.array([0, 20, 3, 4])))
    assert [row[:2] for row in found.rows[1:]] == [("named in training, or related", "2"), ("strictly unseen", "2")]
    assert [row[2].split()[0] for row in found.rows[1:]] == ["50.0%", "100.0%"]
    assert "1 are strictly unseen" in found.text[0]


def test_text_is_escaped_in_both_forms(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    section = Section(hostile, (hostile,), (("a", "b|c"), (hostile, "d")), (Plot("plot", "<svg></svg>", hostile),))
    page = Path(write_results(hostile, [hostile], [section], str(tmp_path))).read_text()
    assert hostile not in page
    assert "<svg></svg>" in page
    text = (tmp_path / "results.md").read_text()
    assert "| a | b\\|c |\n|---|---|\n" in text
    assert (tmp_path / "plot.svg").read_text() == "<svg></svg>"
