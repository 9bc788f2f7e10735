"""What `import sharelock_ray` offers."""

import pytest

import sharelock_ray
from sharelock_ray import alignment


@pytest.mark.parametrize(
    ("package", "name"),
    [
        (sharelock_ray, "open_features"),
        (sharelock_ray, "join"),
        (sharelock_ray, "load_model"),
        (alignment, "Projection"),
        (alignment, "contrastive_loss"),
    ],
)
def test_every_public_name_can_be_imported(package: object, name: str) -> None:
    assert getattr(package, name).__name__ == name
