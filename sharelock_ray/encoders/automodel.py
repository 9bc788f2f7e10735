"""Models of transformers, for language and vision: loaded so that missing weights show."""

from typing import Any

import torch
from transformers import AutoModel

from sharelock_ray.encoders.loading import WRAPPERS, listed, quietly


def load_model(source: str, dtype: str, kind: Any = AutoModel, **options: Any) -> tuple[Any, str]:
    """Loads a model, and describes its missing weights ("" if none).

    Missing weights are filled with NaN. Otherwise they would be random, and so would the embeddings.

    Args:
        source: name on the hub, or path of a folder.
        kind: the class of transformers that selects the model, such as `AutoModelForCausalLM`.
        options: more arguments of its `from_pretrained`.
    """
    with quietly():
        model, info = kind.from_pretrained(
            source,
            dtype=getattr(torch, dtype),
            key_mapping=WRAPPERS,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    missing = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    for name in missing:
        weights = model.get_parameter_or_buffer(name)
        if weights.is_floating_point():
            weights.detach().fill_(torch.nan)
    lacks = f"weights are missing or have the wrong shape: {listed(missing)}"
    if info["unexpected_keys"]:
        lacks += f"; unexpected: {listed(info['unexpected_keys'])}"
    return model, lacks if missing else ""


def layers_of(model: torch.nn.Module, layers: int) -> torch.nn.ModuleList | None:
    """Returns the `layers` layers of a model; None if not found."""
    stacks = [each for each in model.modules() if isinstance(each, torch.nn.ModuleList) and len(each) == layers]
    return stacks[-1] if stacks else None
