"""What a manifest records of where embeddings came from: the device's name, and the exact commit of a hub's model."""

from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache


def device_name(device: torch.device) -> str:
    """`cpu`, or the GPU's own name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def hub_commit(repository: str, *files: str, revision: str | None = None) -> str | None:
    """The commit that this node's hub cache holds for `revision` (a branch, a tag; None is the main branch).

    Args:
        files: names of which the model has at least one.
    """
    for name in files:
        path = try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(path, str):
            return Path(path).parent.name
    return None
