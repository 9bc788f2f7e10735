"""Languages have a name, a script and a family, whatever the style of their code."""

import pytest

from sharelock_ray.evaluation.benchmark import read_benchmark, shipped
from sharelock_ray.report.languages import OTHER, language


@pytest.mark.parametrize(
    ("code", "name", "script", "family"),
    [
        ("de", "German", "Latin", "Germanic"),
        ("EN", "English", "Latin", "Germanic"),
        ("pt_BR", "Portuguese (BR)", "Latin", "Romance"),
        ("zh-Hant", "Chinese (Hant)", "Han", "Sino-Tibetan"),
        ("zh_TW", "Chinese (TW)", "Han", "Sino-Tibetan"),
        ("sr", "Serbian", "Cyrillic", "Slavic"),
        ("sr@latin", "Serbian (latin)", "Latin", "Slavic"),
        ("ca@valencia", "Catalan (valencia)", "Latin", "Romance"),
        # A region is no script: `ar` alone is Arabic.
        ("es_AR", "Spanish (AR)", "Latin", "Romance"),
    ],
)
def test_codes_of_every_style_are_read(code: str, name: str, script: str, family: str) -> None:
    found = language(code)
    assert (found.code, found.name, found.script, found.family) == (code, name, script, family)


@pytest.mark.parametrize("code", ["tlh", "", "title", "<b>"])
def test_a_code_that_is_not_known_is_shown_as_it_is_and_comes_last(code: str) -> None:
    found = language(code)
    assert (found.name, found.script, found.family) == (code, OTHER, OTHER)
    assert found.order > max(language(other).order for other in ("ko", "iu", "eo"))


def test_languages_of_one_script_and_of_one_family_follow_each_other() -> None:
    codes = sorted(["ru", "de", "sr@latin", "hi", "fr", "uk", "en", "pl", "es"], key=lambda code: language(code).order)
    assert codes == ["en", "de", "fr", "es", "pl", "sr@latin", "ru", "uk", "hi"]


def test_those_of_shipped_benchmarks_are_known() -> None:
    codes = {code for name in shipped() for code in read_benchmark(name).languages}
    assert [code for code in sorted(codes) if language(code).family == OTHER] == []
