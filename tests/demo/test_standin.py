"""The stand-in vision encoder: what ships is small and fits its model, and the script that makes it learns."""

import timm
import torch
from safetensors.torch import load
from torch.nn.functional import normalize

from sharelock_ray import storage
from sharelock_ray.demo.shapes import CLASS_NAMES, COLOURS, HELD_OUT, SHAPES
from sharelock_ray.demo.standin import MODEL, draw, normalise, train

SHIPPED = "package://sharelock_ray/demo/standin_vision.safetensors"


def test_shipped_weights_are_small_and_tell_colours_and_shapes_apart() -> None:
    assert storage.size(SHIPPED) <= 4 << 20
    model = timm.create_model(MODEL, num_classes=0).eval()
    model.load_state_dict(load(storage.read_bytes(SHIPPED)))
    pictures, labels = draw(512)
    with torch.inference_mode():
        features = normalize(model(normalise(pictures)))
    for task in (0, 1):
        centres = torch.stack([features[labels[:, task] == value].mean(0) for value in range(8)])
        assert ((features @ normalize(centres).T).argmax(1) == labels[:, task]).float().mean() > 0.8


def test_its_scenes_never_hold_a_held_out_pair() -> None:
    _, labels = draw(96)
    pairs = {f"{list(COLOURS)[colour]} {list(SHAPES)[shape]}" for colour, shape in labels[:, :2].tolist()}
    assert len(pairs) == 48
    assert pairs.isdisjoint(CLASS_NAMES[label] for label in HELD_OUT)


def test_training_is_repeatable() -> None:
    pictures, labels = draw(256)
    first, again = (train(pictures, labels, epochs=1).state_dict() for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, again[name])
