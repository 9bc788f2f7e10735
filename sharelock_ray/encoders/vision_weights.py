"""Weights files of vision models as their authors publish them, read and renamed for timm.

A file may hold a whole training state that contains the model. Its parameters may have the names of timm, Hugging
Face (ViT, DINOv2, CLIP), OpenAI or OpenCLIP (CLIP), under any prefix.
"""

import argparse
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from sharelock_ray.encoders.loading import PICKLED, listed, unwrapped
from sharelock_ray.encoders.passes import is_out_of_memory
from sharelock_ray.errors import RequestError, is_resource_fault

Weights = dict[str, torch.Tensor]

# Entries of a training state that hold a model, best first: averaged weights are those that their authors evaluate.
_ENTRIES = (
    *("state_dict_ema", "model_ema", "ema_model", "ema", "teacher", "target_encoder"),
    *("state_dict", "model_state_dict", "model", "net", "module", "encoder", "backbone"),
)
_AVERAGED = re.compile(r"ema|teacher|target")

# Patterns of names and what timm calls them, by who named them. A match starts where a part of a name starts. A file is
# of the kind if one of its names matches the first pattern.
_LAYER = r"(?:encoder\.)?layers?\.(\d+)\."
_HUGGING_FACE = {
    r"embeddings\.patch_embeddings?\.(?:projection\.)?": "patch_embed.proj.",
    r"embeddings\.class_embedding$|embeddings\.cls_token$": "cls_token",
    r"embeddings\.position_embedding(?:s|\.weight)$": "pos_embed",
    r"embeddings\.(mask_token|register_tokens)$": r"\1",
    rf"{_LAYER}(?:self_attn|attention)\.(?:attention\.)?(q|k|v)(?:uery|ey|alue|_proj)\.": r"blocks.\1.attn.\2.",
    rf"{_LAYER}(?:attention\.(?:output\.dense|o_proj)|self_attn\.out_proj)\.": r"blocks.\1.attn.proj.",
    rf"{_LAYER}(?:layernorm_before|layer_norm1|norm1)\.": r"blocks.\1.norm1.",
    rf"{_LAYER}(?:layernorm_after|layer_norm2|norm2)\.": r"blocks.\1.norm2.",
    rf"{_LAYER}(?:intermediate\.dense|mlp\.fc1|mlp\.weights_in)\.": r"blocks.\1.mlp.fc1.",
    rf"{_LAYER}(?:output\.dense|mlp\.fc2|mlp\.weights_out|mlp\.down_proj)\.": r"blocks.\1.mlp.fc2.",
    rf"{_LAYER}mlp\.(gate|up)_proj\.": r"blocks.\1.mlp.\2.",
    rf"{_LAYER}layer_scale(\d)\.lambda1$": r"blocks.\1.ls\2.gamma",
    r"pre_layrnorm\.": "norm_pre.",
    r"(?:post_)?layernorm\.": "norm.",
}
_OPENAI = {
    r"transformer\.resblocks\.(\d+)\.": r"blocks.\1.",
    r"conv1\.weight$": "patch_embed.proj.weight",
    r"class_embedding$": "cls_token",
    r"positional_embedding$": "pos_embed",
    r"ln_pre\.": "norm_pre.",
    r"ln_post\.": "norm.",
    r"ln_(\d)\.": r"norm\1.",
    r"attn\.in_proj_(weight|bias)$": r"attn.qkv.\1",
    r"attn\.out_proj\.": "attn.proj.",
    r"mlp\.c_fc\.": "mlp.fc1.",
    r"mlp\.c_proj\.": "mlp.fc2.",
}
# timm stacks what some libraries keep apart.
_STACKED = {"attn.qkv": ("attn.q", "attn.k", "attn.v"), "mlp.fc1": ("mlp.gate", "mlp.up")}
_DIMENSIONS = {"cls_token": 3, "pos_embed": 3}

# Parameters beside a backbone that only training or another output uses.
_BESIDE = re.compile(
    r"(mask_token|decoder_\w+|(dino|ibot|mim)_head|pooler|classifier|proj|logit_scale|logit_bias)(\.|$)"
)


def read_weights(path: Path, name: str) -> Weights:
    """Reads the model of a weights file: safetensors, or what `torch.save` wrote. Runs no code that the file may hold.

    Args:
        name: what the file is called in an error message.

    Raises:
        RequestError: the file cannot be read, holds no weights, or needs code to be read.
    """
    try:
        content = _read_pickled(path) if is_pickled(path) else load_file(path)
    except pickle.UnpicklingError:
        raise RequestError(f"cannot load {name}: {PICKLED}") from None
    except (SafetensorError, OSError, RuntimeError, EOFError) as error:
        if is_resource_fault(error) or is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise RequestError(f"cannot read the weights in {name}: {reason}") from None
    place = []
    while entry := next((each for each in _ENTRIES if isinstance(_entry(content, each), Mapping)), None):
        place.append(entry)
        content = content[entry]
    weights = {key: value for key, value in _items(content) if isinstance(value, torch.Tensor)}
    if not weights:
        held = f" ({'.'.join(place)})" if place else ""
        raise RequestError(f"{name} holds no weights{held}: {listed([key for key, _ in _items(content)])}")
    return weights


def named_as(expected: Iterable[str], weights: Weights, name: str) -> Weights:
    """Renames weights to the names of a timm model, without those of other models and towers in the same file.

    Args:
        expected: names of the model's parameters and buffers.
        name: what the file is called in an error message.

    Raises:
        RequestError: the file holds several such models.
    """
    weights = {unwrapped(key): value for key, value in weights.items()}
    for names in (_HUGGING_FACE, _OPENAI):
        kind = _pattern(next(iter(names)))
        if any(kind.search(key) for key in weights):
            weights = _shaped(_stacked({_renamed(key, names): value for key, value in weights.items()}))
    prefix = _prefix(set(expected), weights, name)
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def beside_the_backbone(name: str) -> bool:
    """Whether a parameter that a model lacks changes nothing of its features, by its name."""
    return _BESIDE.match(name) is not None


def is_pickled(path: Path) -> bool:
    """Whether a file is a zip or a pickle, and no safetensors file, which starts with the length of its JSON."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:9] != b"{" and head[:1] in (b"P", b"\x80")


def _read_pickled(path: Path) -> Any:
    # Training scripts of vision models store their command line beside the weights.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _entry(content: Any, name: str) -> Any:
    return content.get(name) if isinstance(content, Mapping) else None


def _items(content: Any) -> list[tuple[str, Any]]:
    return [(str(key), value) for key, value in content.items()] if isinstance(content, Mapping) else []


def _pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?:^|(?<=\.))(?:{pattern})")


def _renamed(name: str, names: dict[str, str]) -> str:
    for pattern, meant in names.items():
        name = _pattern(pattern).sub(meant, name)
    return name


def _stacked(weights: Weights) -> Weights:
    """Joins the parameters of `_STACKED`, each where its first part was."""
    for whole, parts in _STACKED.items():
        for key in [key for key in weights if f".{parts[0]}." in key]:
            keys = [key.replace(f".{parts[0]}.", f".{part}.") for part in parts]
            if all(each in weights for each in keys):
                weights[key.replace(f".{parts[0]}.", f".{whole}.")] = torch.cat([weights.pop(each) for each in keys])
    return weights


def _shaped(weights: Weights) -> Weights:
    """Adds the leading dimensions of one that timm has."""
    for key, value in weights.items():
        missing = _DIMENSIONS.get(key.rpartition(".")[2], 0) - value.ndim
        weights[key] = value.reshape((1,) * max(missing, 0) + value.shape)
    return weights


def _prefix(expected: set[str], weights: Weights, name: str) -> str:
    """Returns the prefix under which most of the expected names are; "" if that is less than half of them."""
    # The last part of a name is enough to find all prefixes, and few of the others.
    found: dict[str, int] = {}
    for key in weights:
        parts = key.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in expected:
                prefix = ".".join([*parts[:start], ""]) if start else ""
                found[prefix] = found.get(prefix, 0) + 1
    most = max(found.values(), default=0)
    if 2 * most < len(expected):
        return ""
    best = [prefix for prefix, count in found.items() if count == most]
    averaged = [prefix for prefix in best if _AVERAGED.search(prefix)]
    chosen = averaged if len(averaged) == 1 else best
    if len(chosen) > 1:
        raise RequestError(f"{name} holds {len(chosen)} such models ({', '.join(chosen)}): save the one that is meant")
    return chosen[0]
