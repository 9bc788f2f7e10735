"""What a manifest records about the origin of embeddings: the device's name and the model's commit on the hub."""

from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, try_to_load_from_cache

if TYPE_CHECKING:
    import torch

_ANSWER_S = 10
_OPEN_CLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
# Every model on the hub has at least one of these.
_FILES = ("config.json", "model.safetensors", "pytorch_model.bin", "open_clip_config.json", *_OPEN_CLIP)
# The index is that of weights in several files.
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    *_OPEN_CLIP,
)


def device_name(device: "torch.device") -> str:
    """Returns `cpu` or the GPU's name."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def commit_now(repository: str, revision: str | None, file: str | None = None) -> str | None:
    """Returns the hub's current commit for `revision`; without an answer, that in this node's cache, or None.

    Args:
        file: as for `hub_commit`.
    """
    try:
        return HfApi().model_info(repository, revision=revision, timeout=_ANSWER_S).sha
    # Loading the model reports why the hub does not answer.
    except Exception:
        return hub_commit(repository, revision, file)


def hub_commit(repository: str, revision: str | None, file: str | None = None) -> str | None:
    """Returns the commit in this node's hub cache for `revision` (a branch or tag; None is the main branch).

    Args:
        file: path in the repository of the only file that is loaded, if any.
    """
    for name in (file,) if file else _FILES:
        path = try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(path, str):
            return Path(path).parents[name.count("/")].name
    return None


def has_weights(repository: str, revision: str | None, file: str | None = None) -> bool:
    """Returns whether this node's hub cache has weights for `revision`, rather than a configuration only.

    Args:
        file: as for `hub_commit`.
    """
    names = (file,) if file else _WEIGHTS
    return any(isinstance(try_to_load_from_cache(repository, name, revision=revision), str) for name in names)
