"""DINOv2 from an ONNX export: every weight where timm wants it, or one line."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from sharelock_ray.demo import dinov2
from sharelock_ray.errors import RequestError

onnx = pytest.importorskip("onnx", reason="needs the package onnx, which `make pictures` installs")

WIDTH, LAYERS, GRID = 8, 2, 2


def tiny() -> torch.nn.Module:
    """A model as DINOv2-S, but small."""
    torch.manual_seed(0)
    model = timm.create_model(
        dinov2.MODEL, embed_dim=WIDTH, depth=LAYERS, num_heads=2, img_size=14 * GRID, num_classes=0
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def exported(model: torch.nn.Module, path: Path, leave_out: str = "") -> str:
    """An ONNX file with the names that an export of Hugging Face's DINOv2 has."""
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    named: dict[str, np.ndarray] = {"backbone.embeddings.cls_token": weights["cls_token"]}
    nodes = []

    def constant(node: str, operation: str, value: np.ndarray) -> None:
        named[f"onnx::{operation}_{len(nodes)}"] = value
        inputs = ["x", f"onnx::{operation}_{len(nodes)}"]
        nodes.append(onnx.helper.make_node(operation, inputs, [f"y{len(nodes)}"], name=node))

    # A node of the same operation that takes no constant comes before.
    nodes.append(onnx.helper.make_node("Reshape", ["x", "y"], ["z"], name="/backbone/embeddings/Reshape"))
    constant("/backbone/embeddings/Concat_6", "Concat", weights["pos_embed"][:, :1])
    constant("/backbone/embeddings/Reshape_1", "Reshape", weights["pos_embed"][:, 1:])
    places = {"patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm"}
    for i in range(LAYERS):
        block, layer = f"blocks.{i}", f"encoder.layer.{i}"
        node = f"/backbone/encoder/layer.{i}"
        places |= {f"{block}.{norm}": f"{layer}.{norm}" for norm in ("norm1", "norm2")}
        for j in (1, 2):
            named[f"backbone.{layer}.layer_scale{j}.lambda1"] = weights[f"{block}.ls{j}.gamma"]
        linear = {"attn.proj": "attention.output.dense", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
        parts = {
            theirs: [weights[f"{block}.{ours}.{kind}"] for kind in ("weight", "bias")]
            for ours, theirs in linear.items()
        }
        for j, part in enumerate(("query", "key", "value")):
            rows = slice(j * WIDTH, (j + 1) * WIDTH)
            parts[f"attention.attention.{part}"] = [
                weights[f"{block}.attn.qkv.{kind}"][rows] for kind in ("weight", "bias")
            ]
        for part, (weight, bias) in parts.items():
            constant(f"{node}/{part.replace('.', '/')}/MatMul", "MatMul", weight.T)
            named[f"backbone.{layer}.{part}.bias"] = bias
    for ours, theirs in places.items():
        for kind in ("weight", "bias"):
            named[f"backbone.{theirs}.{kind}"] = weights[f"{ours}.{kind}"]
    tensors = [onnx.numpy_helper.from_array(np.ascontiguousarray(v), k) for k, v in named.items() if k != leave_out]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "tiny", [], [], tensors)), str(path))
    return str(path)


def test_every_weight_arrives_where_timm_wants_it(tmp_path):
    model = tiny()
    assert dinov2.write_dinov2(tmp_path / "w.safetensors", exported(model, tmp_path / "m.onnx"), model)
    found = load_file(tmp_path / "w.safetensors")
    assert found.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(found[name], value), name


def test_it_is_converted_once_until_the_file_changes(tmp_path):
    path, model = tmp_path / "w.safetensors", tiny()
    source = exported(model, tmp_path / "m.onnx")
    assert dinov2.write_dinov2(path, source, model)
    first = path.read_bytes()
    assert not dinov2.write_dinov2(path, source, model)
    with torch.no_grad():
        model.norm.weight.add_(1)
    assert dinov2.write_dinov2(path, exported(model, tmp_path / "m.onnx"), model)
    assert path.read_bytes() != first


@pytest.mark.parametrize(
    "name",
    [
        "backbone.layernorm.bias",
        "backbone.encoder.layer.0.layer_scale2.lambda1",
        "backbone.encoder.layer.1.mlp.fc1.bias",
    ],
)
def test_a_weight_that_is_not_there_is_named(name, tmp_path):
    source = exported(tiny(), tmp_path / "m.onnx", leave_out=name)
    with pytest.raises(RequestError, match=name):
        dinov2.write_dinov2(tmp_path / "w.safetensors", source, tiny())
    assert not (tmp_path / "w.safetensors").exists()


def test_weights_of_another_model_are_refused_in_one_line(tmp_path):
    source = exported(tiny(), tmp_path / "m.onnx")
    other = timm.create_model(dinov2.MODEL, embed_dim=WIDTH, depth=LAYERS + 1, num_heads=2, img_size=28, num_classes=0)
    with pytest.raises(RequestError, match=r"does not hold the weights .* missing or of another shape 14 \(blocks\.2"):
        dinov2.write_dinov2(tmp_path / "w.safetensors", source, other)


def test_a_package_that_is_not_installed_is_one_line(tmp_path):
    with pytest.raises(RequestError, match="no Python package 'not_installed'"):
        dinov2.write_dinov2(tmp_path / "w.safetensors", "package://not_installed/model.onnx", tiny())
