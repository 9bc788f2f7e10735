"""Prompts: how names of classes are put into words. Needs no torch."""

from collections.abc import Sequence

from sharelock_ray.errors import RequestError

DEFAULT_TEMPLATES = ("a photo of a {}.",)


class TemplateError(RequestError, ValueError):
    """A template that no name can be put into. As a ValueError, it is the recipe field's own when one is read."""


def checked_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """These templates, each of which has one place for a name, `{}`, and no other braces.

    Raises:
        TemplateError: there are none, or one is wrong.
    """
    if not templates:
        raise TemplateError(f"there is no template: give at least one, such as {DEFAULT_TEMPLATES[0]!r}")
    for template in templates:
        before, place, after = template.partition("{}")
        if not place or set("{}") & set(before + after):
            raise TemplateError(
                f"the template {template!r} must have {{}} once, in place of the name, and no other braces, "
                f"such as {DEFAULT_TEMPLATES[0]!r}"
            )
    return tuple(templates)


def prompts_of(name: str, templates: Sequence[str]) -> list[str]:
    """The name in each of the templates; it may hold braces."""
    return [template.replace("{}", name) for template in templates]
