"""Published scores are typed, name their source, and leave out what it does not state."""

import pytest
from pydantic import ValidationError

from sharelock_ray.evaluation.benchmark import read_benchmark
from sharelock_ray.evaluation.published import PublishedModel, Report, published

SYSTEMS = ("CLIP", "LiT", "ShareLock (2024)", "ShareLock (2025)", "SAIL", "freeze-align", "dino.txt", "SigLIP 2")
TASKS = {
    "top-1": {"zero_shot_classification"},
    "recall@1": {"retrieval"},
    "score": {"two_images_two_captions", "one_image_many_captions"},
}


def of(model: str, data: str) -> PublishedModel:
    (found,) = [each for each in published() if (each.model, each.data) == (model, data)]
    return found


@pytest.mark.parametrize("system", SYSTEMS)
def test_each_system_has_scores(system: str) -> None:
    assert any(each.model.startswith(system) for each in published())


def test_each_model_is_listed_once_and_each_source_is_named() -> None:
    names = [(each.model, each.data) for each in published()]
    assert len(set(names)) == len(names)
    for each in published():
        for report in each.reports:
            assert "arXiv" in report.source or "revision" in report.source


def test_a_metric_is_one_of_the_benchmarks_task() -> None:
    for each in published():
        for report in each.reports:
            for benchmark, scores in report.scores.items():
                for metric in scores:
                    assert read_benchmark(benchmark).task in TASKS[metric.rpartition(" ")[2]], (each.model, metric)


def test_values_are_those_that_the_sources_print() -> None:
    old, new = (of(f"ShareLock ({year})", "CC12M") for year in (2024, 2025))
    assert [old.reports[0].scores["imagenet-1k"], new.reports[0].scores["imagenet-1k"]] == [
        {"top-1": 59.1},
        {"top-1": 62.0},
    ]
    assert (old.vision, new.vision) == ("DINOv2 ViT-B/14", None)
    sail = of("SAIL-L (NV2)", "23M pairs").reports[0]
    assert sail.scores["winoground"] == {"text score": 40.25, "image score": 18.75, "group score": 15.0}
    assert not sail.second_hand


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"imagenet": {"top-1": 50}}, "there is no benchmark 'imagenet'"),
        ({"imagenet-1k": {"top-3": 50}}, "Input should be 'top-1'"),
        ({"imagenet-1k": {"top-1": 101}}, "less than or equal to 100"),
        ({"imagenet-1k": {}}, "at least 1 item"),
    ],
)
def test_a_wrong_entry_is_refused(scores: dict[str, dict[str, float]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Report(source="a paper", scores=scores)
