"""A template has one place for a name."""

import pytest

from sharelock_ray.alignment.prompts import DEFAULT_TEMPLATES, TemplateError, checked_templates


def test_the_default_is_sound() -> None:
    assert checked_templates(DEFAULT_TEMPLATES) == DEFAULT_TEMPLATES


@pytest.mark.parametrize(
    "wrong", ["no place", "", "a {c}.", "a {name}.", "a {} and a {}.", "a {0}.", "a {{}}.", "a {} of {c}.", "a } {}."]
)
def test_what_has_not_one_place_is_refused(wrong: str) -> None:
    with pytest.raises(TemplateError, match=r"must have \{\} once") as error:
        checked_templates(["a {}.", wrong])
    assert repr(wrong) in str(error.value)
    assert "\n" not in str(error.value)


def test_no_template_is_refused() -> None:
    with pytest.raises(TemplateError, match="there is no template"):
        checked_templates([])
