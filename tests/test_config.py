"""A name covers what differs from the defaults, and the fields that were there when names began to."""

from typing import Literal

import pytest

from sharelock_ray.alignment.spec import AlignmentSpec, ProjectionSpec
from sharelock_ray.config import Config, content_hash, hashed
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec


class LaterProjection(ProjectionSpec):
    """As the class may be in a later version."""

    bias: bool = True


class LaterAlignment(AlignmentSpec):
    vision: LaterProjection = LaterProjection()
    language: LaterProjection = LaterProjection(depth=4, width=4096, dropout=0.2)
    head: LaterProjection = LaterProjection()
    betas: tuple[float, float] = (0.9, 0.999)


class LaterVision(VisionSpec):
    tokens: int | None = None


class TestANewFieldWithADefault:
    def test_renames_nothing(self) -> None:
        assert content_hash(LaterAlignment()) == content_hash(AlignmentSpec())
        given = {"language": {"depth": 2}, "steps": 7}
        assert content_hash(LaterAlignment(**given)) == content_hash(AlignmentSpec(**given))
        spec = {"name": "dinov2", "model": "vit_small_patch14_dinov2.lvd142m"}
        assert LaterVision(**spec).folder() == VisionSpec(**spec).folder()
        assert LaterVision(**spec).forward_key() == VisionSpec(**spec).forward_key()

    @pytest.mark.parametrize(
        "changes",
        [{"betas": (0.9, 0.99)}, {"head": {"depth": 1}}, {"language": {"depth": 4, "bias": False}}],
        ids=str,
    )
    def test_names_its_other_values(self, changes: dict[str, object]) -> None:
        rest = {"language": {"depth": 4}}
        assert content_hash(LaterAlignment(**(rest | changes))) != content_hash(LaterAlignment(**rest))


def test_a_field_of_the_first_names_counts_at_its_default_too() -> None:
    assert hashed(ProjectionSpec()) == ProjectionSpec().model_dump(mode="json")
    assert hashed(LanguageSpec(name="l", model="m")) == LanguageSpec(name="l", model="m").model_dump(mode="json")


def test_tags_always_count() -> None:
    class One(Config):
        name: Literal["one"] = "one"
        scale: float = 1.0

    class Other(Config):
        name: Literal["other"] = "other"
        scale: float = 1.0

    assert content_hash(One()) != content_hash(Other())
    assert hashed([One(), {"other": Other(scale=2.0)}]) == [
        {"name": "one"},
        {"other": {"name": "other", "scale": 2.0}},
    ]
