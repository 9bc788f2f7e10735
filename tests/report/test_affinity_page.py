"""The page of an affinity fetches nothing and trusts no text; it says how the score was chosen and what it can show."""

import csv
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pages import Page
from sharelock_ray.report.affinity_page import write_affinity
from sharelock_ray.report.affinity_text import choice, rows, table, verdict
from sharelock_ray.study.affinity_study import Affinity, Seen, analyse
from sharelock_ray.study.language_scores import ScoredModel

HOSTILE = '<script>alert("$x$")</script>'
NAMES = [HOSTILE, *(f"model-{letter}" for letter in "bcdefgh")]


def found(
    slope: float = 1.0, metric: str = "MMLU-Pro", new: tuple[str, ...] = ("new=0.3",), **changes: Any
) -> Affinity:
    """Eight models of four families with a score from .1 to .45, and little noise."""
    noise = 0.02 * np.random.default_rng(0).standard_normal(8)
    seen, scores = [], {}
    for i, name in enumerate(NAMES):
        value = 0.1 + 0.05 * i
        fields: dict[str, Any] = {"error": 0.004, "chance": 0.111, "family": f"family {i // 2}", "params_b": 2.0**i}
        scores[name] = ScoredModel(name, metric, "5-shot", value, source=f"report of {name}", **fields)
        seen.append(Seen(name, "m", (f"run-{i}",), (0.5 + slope * value + noise[i],), (0.01,)))
    other = [{name: ScoredModel(name, "HellaSwag", "10-shot", 0.9 - score.value**2) for name, score in scores.items()}]
    fields = {"others": other, "new": new, "notes": [f"a note on {HOSTILE}"]} | changes
    return analyse("shapes: top-1", "100 queries", seen, scores, **fields)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Affinity, Path]:
    folder = tmp_path_factory.mktemp("affinity")
    affinity = found()
    write_affinity(affinity, str(folder))
    return affinity, folder


class TestTables:
    def test_have_a_row_for_each_model(self, page: tuple[Affinity, Path]) -> None:
        affinity, folder = page
        parquet = pq.read_table(folder / "affinity.parquet")
        assert parquet.column("encoder").to_pylist() == NAMES
        assert parquet.column("r_without").to_pylist() == [affinity.without_model[name] for name in NAMES]
        assert parquet.schema.field("params_b").type == pa.float64()
        with open(folder / "affinity.csv", newline="") as stream:
            lines = list(csv.DictReader(stream))
        assert [line["source"] for line in lines] == [point.source for point in affinity.points]
        assert lines[0]["at_chance"] == "true"


class TestPage:
    def test_fetches_nothing_and_takes_texts_as_texts(self, page: tuple[Affinity, Path]) -> None:
        html = (page[1] / "affinity.html").read_text()
        for tag, attributes in Page(html).tags:
            assert tag not in {"script", "link", "iframe", "object", "embed", "base", "img"}
            for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                value = attributes.get(name)
                assert value is None or value.startswith("#"), f"{tag} {name}={value}"
        assert not re.search(r"@import|url\((?!#)|<script", html)
        assert f"a note on {HOSTILE}" in Page(html).text

    def test_shows_every_statistic_model_and_source(self, page: tuple[Affinity, Path]) -> None:
        affinity, folder = page
        text = Page((folder / "affinity.html").read_text()).text
        for shown in (choice(affinity), verdict(affinity), *(text for row in rows(affinity) for text in row)):
            assert shown in text
        for point in affinity.points:
            assert point.encoder in text
            assert point.source in text
        assert text.count("(at chance)") == 1

    def test_draws_names_families_and_predicted_models(self, page: tuple[Affinity, Path]) -> None:
        html = (page[1] / "affinity.html").read_text()
        assert html.count("<svg") == 2
        for label in ("model-b", "new=0.3", "MMLU-Pro", "family 1 (family)", "Pearson's r without it"):
            assert f"<!-- {label}" in html

    def test_is_written_for_four_models_without_families(self, tmp_path: Path) -> None:
        seen = [Seen(f"m{i}", "m", ("r",), (of,), (None,)) for i, of in enumerate([0.1, 0.3, 0.2, 0.5])]
        scores = {f"m{i}": ScoredModel(f"m{i}", "M", "h", float(i)) for i in range(4)}
        affinity = analyse("top-1", "", seen, scores)
        write_affinity(affinity, str(tmp_path))
        text = Page((tmp_path / "affinity.html").read_text()).text
        assert "over models –; over families –" in text
        assert "(family)" not in (tmp_path / "affinity.html").read_text()


class TestWords:
    def test_say_whether_the_score_was_chosen_before(self) -> None:
        affinity = found()
        assert choice(affinity) == "MMLU-Pro, 5-shot. Named by the command, as chosen before the run."
        assert choice(found(named=False)).endswith("Not named by the command: the only language score of its files.")
        changed = affinity.model_copy(update={"before": ("HellaSwag, 10-shot",)})
        assert "chosen before" not in choice(changed)
        assert choice(changed).endswith("this folder had an analysis with HellaSwag, 10-shot.")

    def test_say_what_is_found_and_what_can_be(self) -> None:
        assert "r = 0.997 over 8 language models of 4 families, 95 % interval" in verdict(found())
        assert "better language models see better" in verdict(found())
        assert "better ones see worse" in verdict(found(-1))
        assert "better language models see better" in verdict(found(-1, "bits per byte"))
        assert "No correlation is shown, and none is excluded." in verdict(found(0))
        assert "|r| from 0.71 is significant at 5 %, and a true |r| of 0.83 is found with 80 % power" in verdict(
            found()
        )

    def test_say_that_predictions_leave_the_study(self) -> None:
        text = dict(rows(found(new=("far=0.9",))))["predicted: far=0.9"]
        assert text.endswith("(language score 0.9, outside the study)")

    def test_fill_a_table_for_a_terminal(self) -> None:
        console = Console(width=140, record=True, file=io.StringIO())
        console.print(table(found()))
        said = console.export_text()
        for text in ("Pearson's r", "Kendall's tau", "r given log parameters", "other score: HellaSwag", "a note on"):
            assert text in said
