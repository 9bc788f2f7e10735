"""Templates of prompts for class names. Imports no torch."""

from collections.abc import Sequence

from sharelock_ray.errors import RequestError

DEFAULT_TEMPLATES = ("a photo of a {}.",)


class TemplateError(RequestError, ValueError):
    """An invalid template. It is also a ValueError, so that a recipe reports it for its field."""


def checked_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Returns the templates after checking that each has exactly one `{}` and no other braces.

    Raises:
        TemplateError: there are no templates, or one is invalid.
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
