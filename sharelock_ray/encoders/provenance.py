"""What a manifest records of where embeddings came from: the device's name, and the exact commit of a hub's model."""

from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, try_to_load_from_cache

if TYPE_CHECKING:
    import torch

_ANSWER_S = 10
# A model of the hub has at least one of these.
_FILES = ("config.json", "model.safetensors", "pytorch_model.bin")


def device_name(device: "torch.device") -> str:
    """`cpu`, or the GPU's own name."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def commit_now(repository: str, revision: str | None) -> str | None:
    """The commit that the hub has for `revision` now; where it does not answer, that of this node's cache, or None."""
    try:
        return HfApi().model_info(repository, revision=revision, timeout=_ANSWER_S).sha
    # Whatever keeps the hub from answering, loading the model will say.
    except Exception:
        return hub_commit(repository, revision)


def hub_commit(repository: str, revision: str | None) -> str | None:
    """The commit that this node's hub cache holds for `revision` (a branch, a tag; None is the main branch)."""
    for name in _FILES:
        path = try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(path, str):
            return Path(path).parent.name
    return None
