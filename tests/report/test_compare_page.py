"""The page of a comparison fetches nothing and trusts no text; its tables are read back as they were."""

import csv
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pages import Page
from sharelock_ray.evaluation.result import RetrievalRecord, ZeroShotRecord
from sharelock_ray.evaluation.statistics import Estimate
from sharelock_ray.evaluation.tasks.retrieval import retrieval
from sharelock_ray.evaluation.tasks.zero_shot import zero_shot
from sharelock_ray.report.compare_page import write_comparison
from sharelock_ray.report.comparison import Comparison, Model, PairedScore, compared, published_scores, run_scores

HOSTILE = '<script>alert("$x$")</script>'
EYE, LABELS = torch.eye(3), np.arange(3)
SCOPE: dict[str, Any] = {"split": "test", "model_step": 1}


@pytest.fixture
def found(tmp_path: Path) -> Comparison:
    """Two runs on ImageNet in numbers only, and on captions in two languages; one has hostile names."""
    scores = zero_shot(EYE, LABELS, EYE, ["a", "b", "c"])[0].model_copy(update={"images": 50_000})
    records = [
        ZeroShotRecord(**SCOPE, dataset="imagenet-1k", templates=("{}",), result=scores),
        *(
            RetrievalRecord(**SCOPE, dataset="pictures", language=code, result=retrieval(EYE, EYE, LABELS))
            for code in ("de", HOSTILE)
        ),
    ]
    runs = [Model(HOSTILE, vision="dinov2-s", language_model="minilm", data="1,234 pairs"), Model("other, or «ß»")]
    all_scores = [score for run in runs for score in run_scores(run, records, "runs/a/evaluation.json")]
    comparison = compared(all_scores, [f"a note on {HOSTILE}"], str(tmp_path / "compare.html"))
    comparison = replace(comparison, paired=tuple(paired(comparison, runs)))
    write_comparison(comparison, str(tmp_path))
    return comparison


def paired(comparison: Comparison, runs: list[Model]) -> Iterator[PairedScore]:
    """The second run in pairs with the first, on captions a bit better and on classes much worse."""
    for measure in comparison.main:
        value, p = (-0.25, 0.00001) if measure.metric == "top-1" else (0.02, 0.3)
        difference = Estimate(value=value, low=value - 0.05, high=value + 0.05)
        yield PairedScore(measure, *runs, difference, "McNemar", p, min(1.0, 5 * p), 7, 3)


def content(folder: Path) -> str:
    return (folder / "compare.html").read_text()


def test_parquet_has_every_score_with_typed_columns(found: Comparison, tmp_path: Path) -> None:
    table = pq.read_table(tmp_path / "compare.parquet")
    assert table.to_pylist() == [score.row() for score in found.scores]
    types = {name: table.schema.field(name).type for name in ("value", "low", "chance", "n", "published", "kind")}
    expected = [pa.float64(), pa.float64(), pa.float64(), pa.int64(), pa.bool_(), pa.string()]
    assert list(types.values()) == expected


def test_csv_has_the_same_scores(found: Comparison, tmp_path: Path) -> None:
    with open(tmp_path / "compare.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["model"] for row in rows] == [score.model.name for score in found.scores]
    assert [float(row["value"]) for row in rows] == [score.value for score in found.scores]
    assert rows[0].keys() == found.scores[0].row().keys()
    assert (rows[0]["low"], rows[-1]["low"]) == (str(found.scores[0].low), "")


def test_fetches_nothing_and_takes_texts_as_texts(found: Comparison, tmp_path: Path) -> None:
    html = content(tmp_path)
    for tag, attributes in Page(html).tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "img"}
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith("#"), f"{tag} {name}={value}"
    assert not re.search(r"@import|url\((?!#)|<script", html)
    text = Page(html).text
    assert text.count(HOSTILE) >= 3
    assert f"a note on {HOSTILE}" in text


def test_shows_runs_scores_and_published_rows_with_their_sources(found: Comparison, tmp_path: Path) -> None:
    text = Page(content(tmp_path)).text
    for shown in ("dinov2-s", "minilm", "1,234 pairs", "imagenet-1k: top-1", "50,000 queries", "100.0%"):
        assert shown in text
    for score in published_scores():
        assert score.model.name in text
        assert score.source in text
    assert "(read second-hand)" in text
    assert "ShareLock (2024), CC3M" in text


def test_the_overview_has_a_row_for_each_model_and_a_column_for_each_benchmark(
    found: Comparison, tmp_path: Path
) -> None:
    overview = content(tmp_path).partition("<h2>Overview</h2>")[2].partition("</table>")[0]
    rows = [row.split("<td")[1:] for row in overview.split("<tr")[2:]]
    columns = len(found.overview)
    assert [len(cells) for cells in rows] == [2 + columns] * len(rows)
    of_imagenet = [score.model for score in found.overview[found.scores[0].measure]]
    assert len(rows) == len(dict.fromkeys(of_imagenet))
    assert "other, or «ß»" in rows[1][0]
    assert "dinov2-s" in rows[0][1]
    assert rows[1][2].startswith(">100.0%<br>")


def test_draws_models_of_one_measure_and_languages_together(found: Comparison, tmp_path: Path) -> None:
    html = content(tmp_path)
    # One of ImageNet, and one of all languages in each direction.
    assert html.partition('<h2 id="paired">')[0].count("<svg") == 3
    for label in ("imagenet-1k: top-1 among all classes", "other, or «ß»", "pictures, by language", "de"):
        assert f"<!-- {label}" in html
    assert "ShareLock (2024), CC3M -->" in html


def test_pairs_are_in_tables_of_their_own(found: Comparison, tmp_path: Path) -> None:
    table = pq.read_table(tmp_path / "compare-paired.parquet")
    assert table.to_pylist() == [each.row() for each in found.paired]
    with open(tmp_path / "compare-paired.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    first = rows[0]
    assert (first["model"], first["compared_with"], first["metric"]) == ("other, or «ß»", HOSTILE, "top-1")
    assert [float(first[name]) for name in ("difference", "low", "high", "p")] == [-0.25, -0.3, -0.2, 0.00001]


def test_pairs_are_shown_with_both_p_values_and_drawn_around_0(found: Comparison, tmp_path: Path) -> None:
    html = content(tmp_path)
    section = html.partition('<h2 id="paired">')[2].partition("</details>")[0]
    rows = [row.partition("</tr>")[0] for row in section.split("<tr>")[2:]]
    assert len(rows) == 5
    for text in ("-25.0", "-30.0 to -20.0", "< 0.0001", "McNemar"):
        assert text in Page(rows[0]).text
    assert "Holm's correction is for all 5 comparisons" in Page(section).text
    assert section.count("<svg") == 1
    assert "difference in percentage points" in section
    assert 'href="#paired"' in html


def test_is_written_without_any_score_of_a_run(tmp_path: Path) -> None:
    write_comparison(compared([], ["nothing was scored"], str(tmp_path / "compare.html")), str(tmp_path))
    assert "nothing was scored" in Page(content(tmp_path)).text
    assert pq.read_table(tmp_path / "compare.parquet").num_rows == len(published_scores())
    assert pq.read_table(tmp_path / "compare-paired.parquet").num_rows == 0
    assert "paired" not in content(tmp_path)
