"""Align any frozen vision encoder with any frozen language model (ShareLock, arXiv 2410.07173), at any scale."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sharelock_ray.features.featureset import join as join
    from sharelock_ray.features.featureset import open_features as open_features
    from sharelock_ray.runs.model import load_model as load_model

_PUBLIC = {"load_model": "runs.model", "join": "features.featureset", "open_features": "features.featureset"}


def __getattr__(name: str) -> Any:
    # Imported when asked for, so that `import sharelock_ray` costs nothing and no part drags in another's libraries.
    from importlib import import_module

    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
