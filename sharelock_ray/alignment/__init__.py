"""ALIGNMENT: the small trained part: projections, the contrastive loss, the optimizers and the training step.

Plain torch on one process or on any process group; knows nothing of recipes or Ray.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sharelock_ray.alignment.loss import contrastive_loss as contrastive_loss
    from sharelock_ray.alignment.projection import Projection as Projection

_PUBLIC = {"Projection": "projection", "contrastive_loss": "loss"}


def __getattr__(name: str) -> Any:
    # Imported when asked for, since reading settings or metrics needs no torch.
    from importlib import import_module

    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
