"""Versions of the software that changes numbers, compared between nodes."""

import importlib.metadata
import platform
from collections.abc import Mapping

from sharelock_ray.health.check import Check

_PACKAGES = (
    "sharelock-ray",
    "ray",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "tokenizers",
    "open_clip_torch",
    "gguf",
    "pillow",
    "numpy",
    "pyarrow",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that are installed here."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def same_versions(here: Mapping[str, str], drivers: Mapping[str, str]) -> Check:
    """Checks that a node has the versions of the driver."""
    different = [
        f"{name} {here.get(name, 'is missing')} (driver: {drivers.get(name, 'none')})"
        for name in sorted(here.keys() | drivers.keys())
        if here.get(name) != drivers.get(name)
    ]
    if different:
        remedy = "install the same requirements.lock on every node, and start the cluster again"
        return Check("versions", "fail", ", ".join(different), remedy)
    return Check("versions", "ok", ", ".join(f"{name} {here[name]}" for name in ("ray", "torch") if name in here))
