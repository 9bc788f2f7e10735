"""Checkpoints as the official ShareLock code writes them, by its definition (`models/projection.py`, `train.py`)."""

import copy
import sys
import types
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

SETTINGS: dict[str, Any] = {
    "seed": 42,
    "data": {"dataset": ["cc3m"], "caption_files": ["captions.json"]},
    "model": {
        "embedding_space_dim": 48,
        "vision_encoder": "dinov2_vits14",
        "vision_projector": {"hidden_size": 64, "num_layers": 0, "normalize": True},
        "language_encoder": "meta-llama/Meta-Llama-3-8B",
        "language_projector": {"hidden_size": 64, "num_layers": 4, "normalize": True},
    },
    "training": {
        "max_steps": 5000,
        "lr_warmup_steps": 150,
        "learning_rate": 0.001,
        "lr_schedule": "cosine",
        "batch_size": 1024,
        "accumulate_grad_batches": 16,
        "max_grad_norm": 1,
        "weight_decay": 0.0001,
    },
}
"""The official configuration, with a narrower projection."""
DIMS = {"vision": 384, "language": 32}
"""Widths of both encoders; the second is only in the weights."""


def settings(**changes: Any) -> dict[str, Any]:
    """`SETTINGS` with changed values, such as `model__vision_encoder="dinov2_vitb14"`."""
    changed = copy.deepcopy(SETTINGS)
    for name, value in changes.items():
        *path, last = name.split("__")
        place = changed
        for part in path:
            place = place[part]
        place[last] = value
    return changed


class Official(nn.Module):
    """The trained part of the official model, with running statistics as after a training."""

    def __init__(self, given: dict[str, Any], dims: dict[str, int] = DIMS, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        model = given["model"]
        depths = {side: model[f"{side}_projector"]["num_layers"] for side in dims}
        # The space of a locked side is the shared one.
        locked = [dims[side] for side in dims if not depths[side]]
        shared = locked[0] if locked else model["embedding_space_dim"]
        for side in dims:
            setattr(self, f"{side}_projector", nn.Module())
            layers = _layers(dims[side], model[f"{side}_projector"]["hidden_size"], shared, depths[side])
            getattr(self, f"{side}_projector").projection = layers
        for norm in self.modules():
            if isinstance(norm, nn.BatchNorm1d):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
                nn.init.normal_(norm.weight, 1, 0.1)
                nn.init.normal_(norm.bias, 0, 0.1)
        self.eval()

    @torch.no_grad()
    def project(self, side: str, features: torch.Tensor) -> torch.Tensor:
        projected = getattr(self, f"{side}_projector").projection(features)
        return projected / projected.norm(dim=1, keepdim=True)


def _layers(width: int, hidden: int, out: int, depth: int) -> nn.Module:
    if not depth:
        return nn.Identity()
    layers: list[nn.Module] = []
    for _ in range(depth - 1):
        layers += [nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.2)]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, out))


def write(path: Path, model: nn.Module, given: Any = SETTINGS, **more: Any) -> str:
    """Writes what Lightning does, with the settings as objects that are pickled as those of OmegaConf 2.3."""
    with pytest.MonkeyPatch.context() as patch:
        classes = _omegaconf(patch)
        content = {
            "epoch": 3,
            "global_step": 1500,
            "pytorch-lightning_version": "2.4.0",
            "state_dict": model.state_dict(),
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.001}]}],
            "hparams_name": "config",
            "hyper_parameters": _boxed(given, classes),
            "hparams_type": classes["DictConfig"],
        }
        torch.save(content | more, path)
    return str(path)


def _omegaconf(patch: pytest.MonkeyPatch) -> dict[str, type]:
    """Classes with the names of OmegaConf's, which pickle looks up by name."""
    patch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    classes = {}
    for module, names in {
        "dictconfig": ["DictConfig"],
        "listconfig": ["ListConfig"],
        "nodes": ["AnyNode"],
        "base": ["ContainerMetadata", "Metadata"],
    }.items():
        holder = types.ModuleType(f"omegaconf.{module}")
        patch.setitem(sys.modules, holder.__name__, holder)
        for name in names:
            classes[name] = type(name, (), {"__module__": holder.__name__})
            setattr(holder, name, classes[name])
    return classes


def _boxed(value: Any, classes: dict[str, type], parent: Any = None) -> Any:
    container = isinstance(value, dict | list)
    box = classes[{dict: "DictConfig", list: "ListConfig"}.get(type(value), "AnyNode")]()
    box._metadata = classes["ContainerMetadata" if container else "Metadata"]()
    box._metadata.__dict__ |= {"ref_type": Any, "object_type": type(value) if container else None, "key_type": int}
    box._metadata.resolver_cache = defaultdict(dict)
    box._parent = parent
    if isinstance(value, dict):
        box._content = {name: _boxed(each, classes, box) for name, each in value.items()}
    elif isinstance(value, list):
        box._content = [_boxed(each, classes, box) for each in value]
    else:
        box._val = value
    return box
