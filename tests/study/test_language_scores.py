"""Language scores: one metric of one harness, and one line for whatever is wrong with a table."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest

from sharelock_ray import storage
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.evaluation.statistics import Estimate
from sharelock_ray.study.language_scores import SHIPPED, LanguageScore, read_scores, select

HEADER = "model,metric,harness,value"
LIKELIHOOD, CHAIN = "option log-likelihood", "CoT generation"


def table(folder: Path, *rows: str, header: str = HEADER) -> str:
    path = folder / "scores.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def measured(folder: Path, name: str, **changes: Any) -> str:
    fields: dict[str, Any] = {
        "model": name,
        "kind": "causal",
        "bits_per_byte": Estimate(value=0.8, low=0.78, high=0.82),
        "text_sha256": "0123456789abcdef" * 4,
        "tokens": 100,
        "bytes": 400,
    }
    path = str(folder / f"{name}.json")
    storage.write_json(path, LanguageScore(**(fields | changes)).content())
    return path


class TestShippedTable:
    def test_has_a_source_and_a_harness_for_each_value(self) -> None:
        with open(SHIPPED, newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert len(rows) == len(read_scores()) == 401
        assert all(row["source"] and row["source_date"] and row["harness"] and row["value"] for row in rows)

    @pytest.mark.parametrize(
        ("metric", "harness", "models"),
        [
            ("mmlu_pro", "log-likelihood", 161),
            ("MMLU-Pro", "TIGER-Lab", 19),
            ("mmlu pro", "qwen3", 22),
            ("hellaswag", None, 67),
        ],
    )
    def test_is_read_by_metric_and_harness(self, metric: str, harness: str | None, models: int) -> None:
        assert len(select(read_scores(), metric, harness)) == models

    def test_values_have_the_error_of_their_questions(self) -> None:
        found = select(read_scores(), "mmlu_pro", "TIGER-Lab")["meta-llama/Meta-Llama-3-8B"]
        assert found.error == pytest.approx(math.sqrt(found.value * (1 - found.value) / 12_032))
        assert found.error == pytest.approx(0.0043, abs=1e-4)

    def test_small_models_are_at_chance_in_mmlu_pro_and_differ_in_hellaswag(self) -> None:
        of_questions = select(read_scores(), "mmlu_pro", "log-likelihood")
        small = [each for each in of_questions.values() if each.params_b is not None and each.params_b < 1]
        at_chance = [each.model for each in small if each.at_chance]
        assert (len(at_chance), len(small)) == (16, 22)
        assert not of_questions["Qwen/Qwen2.5-7B"].at_chance
        hellaswag = select(read_scores(), "hellaswag")
        values = [hellaswag[name].value for name in ("EleutherAI/pythia-160m-deduped", "EleutherAI/pythia-12b-deduped")]
        assert values[1] - values[0] > 0.3

    def test_sizes_of_0_and_below_are_unknown(self) -> None:
        assert select(read_scores(), "mmlu_pro", "log-likelihood")["google/umt5-base"].params_b is None


class TestSelection:
    def test_mixing_harnesses_is_refused_and_names_them(self, tmp_path: Path) -> None:
        scores = read_scores([table(tmp_path, f"a,MMLU-Pro,{LIKELIHOOD},0.3", f"b,MMLU-Pro,{CHAIN},0.4")])
        with pytest.raises(RequestError, match=r"one harness of MMLU-Pro compare, and these are of 2 \(CoT gen.*; opt"):
            select(scores, "mmlu_pro")
        assert list(select(scores, "mmlu_pro", "cot")) == ["b"]

    def test_a_part_of_several_harnesses_is_refused(self, tmp_path: Path) -> None:
        scores = read_scores([table(tmp_path, "a,M,5-shot,0.3", "b,M,25-shot,0.4")])
        with pytest.raises(RequestError, match="these are of 2"):
            select(scores, "m", "shot")
        # The whole name is not a part.
        assert list(select(scores, "m", "5-shot")) == ["a"]

    def test_an_unknown_name_gives_the_nearest(self) -> None:
        with pytest.raises(RequestError, match="there is no metric 'helaswag': did you mean 'HellaSwag'"):
            select(read_scores(), "helaswag")
        with pytest.raises(RequestError, match="there is no harness of HellaSwag 'v9': did you mean 'Open LLM"):
            select(read_scores(), "hellaswag", "v9")

    def test_the_only_metric_need_not_be_named(self, tmp_path: Path) -> None:
        assert list(select(read_scores([table(tmp_path, "a,M,h,0.3")]), None)) == ["a"]
        with pytest.raises(RequestError, match=r"one metric compare, and these are of 4 \(ARC-C; HellaSwag; "):
            select(read_scores(), None)

    def test_a_duplicate_model_is_refused(self, tmp_path: Path) -> None:
        scores = read_scores([table(tmp_path, "a,M,h,0.3", "a,M,other,0.3", "a,M,h,0.3")])
        with pytest.raises(RequestError, match=r"the model a has two scores in M \(h\): keep one"):
            select(scores, "m", "h")
        assert list(select(scores, "m", "other")) == ["a"]


class TestMeasured:
    def test_documents_are_scores(self, tmp_path: Path) -> None:
        [found] = read_scores([measured(tmp_path, "gemma", family="Gemma", parameters=268_000_000)])
        assert (found.model, found.metric, found.value, found.family) == ("gemma", "bits per byte", 0.8, "Gemma")
        assert found.error == pytest.approx(0.02 / 1.96, rel=1e-4)
        assert found.params_b == 0.268
        assert not found.at_chance

    def test_causal_and_masked_models_do_not_mix(self, tmp_path: Path) -> None:
        scores = read_scores([measured(tmp_path, "a"), measured(tmp_path, "b", kind="masked")])
        with pytest.raises(RequestError, match="causal, text 01234567; masked, text 01234567"):
            select(scores, None)
        assert list(select(scores, None, "masked")) == ["b"]

    def test_nor_do_those_of_two_texts(self, tmp_path: Path) -> None:
        scores = read_scores([measured(tmp_path, "a"), measured(tmp_path, "b", text_sha256="f" * 64)])
        with pytest.raises(RequestError, match="text 01234567; causal, text ffffffff"):
            select(scores, "bits_per_byte")

    def test_a_damaged_document_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text("{}")
        with pytest.raises(RunError, match=r"a\.json is damaged .*: name a document of `sharelock language-score`"):
            read_scores([str(tmp_path / "a.json")])


class TestTables:
    def test_rows_without_a_value_are_left_out(self, tmp_path: Path) -> None:
        assert [each.model for each in read_scores([table(tmp_path, "a,M,h,", "b,M,h,0.5")])] == ["b"]

    def test_quoted_texts_may_hold_commas_and_lines(self, tmp_path: Path) -> None:
        [found] = read_scores([table(tmp_path, 'a,M,"5-shot,\nno CoT",0.5')])
        assert found.harness == "5-shot,\nno CoT"

    def test_the_number_of_questions_may_be_given(self, tmp_path: Path) -> None:
        found = read_scores([table(tmp_path, "a,Own,h,0.5,100", "b,Own,h,0.5,", header=f"{HEADER},n")])
        assert [each.error for each in found] == [0.05, None]

    @pytest.mark.parametrize(
        ("rows", "header", "message"),
        [
            (["a,M,h,high"], HEADER, r"scores\.csv, row 1: `value` must be a number \(it is 'high'\)"),
            (["a,M,h,nan"], HEADER, "row 1: `value` must be a number"),
            ([",M,h,0.5"], HEADER, "row 1: `model` is empty"),
            (["a,M,0.5"], "model,metric,value", "has no column `harness`: a table of scores has model, metric"),
            (['a,M,"h,0.5'], HEADER, "is not a CSV file after line 1: unexpected end"),
        ],
    )
    def test_a_fault_is_one_line_that_names_its_place(
        self, rows: list[str], header: str, message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(RequestError, match=message) as error:
            read_scores([table(tmp_path, *rows, header=header)])
        assert "\n" not in str(error.value)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match=r"no table of scores at .*: check the path"):
            read_scores([str(tmp_path / "nowhere.csv")])

    def test_a_table_without_values_has_no_scores(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="hold no values"):
            select(read_scores([table(tmp_path, "a,M,h,")]), "m")
