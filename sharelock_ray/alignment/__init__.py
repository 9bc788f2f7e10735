"""ALIGNMENT: projections, contrastive losses, optimizers and the training step.

Plain torch, on one process or a process group; independent of recipes and Ray.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sharelock_ray.alignment.loss import contrastive_loss as contrastive_loss
    from sharelock_ray.alignment.projection import Projection as Projection

_PUBLIC = {"Projection": "projection", "contrastive_loss": "loss"}


def __getattr__(name: str) -> Any:
    # Lazy imports, since reading settings needs no torch.
    from importlib import import_module

    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
