"""Trains the demo's small stand-in vision encoder.

`python -m sharelock_ray.demo.standin OUT.safetensors` reproduces `standin_vision.safetensors` in about two minutes on
two cores. The encoder learns colour, shape, size and background as separate tasks on its own scenes, which contain none
of the pairs in `shapes.HELD_OUT`: to recognise such a pair, an alignment has to compose it.
"""

import argparse
import time

import numpy as np
import timm
import torch
from safetensors.torch import save
from torch import nn
from torch.nn import functional

from sharelock_ray import storage
from sharelock_ray.demo.shapes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    TRAINING,
    encode_jpeg,
    random_scene,
    render,
)
from sharelock_ray.encoders.images import Preprocessing, decode_image

# Its first strides overlap: on shapes of 20 pixels it learns faster in three epochs than small ConvNeXts in six.
MODEL = "test_resnet"
PREPROCESSING = Preprocessing(image_size=64, resize=64, interpolation="bicubic")
MEAN = STD = (0.5, 0.5, 0.5)

_TASKS = tuple(list(values) for values in (COLOURS, SHAPES, SIZES, BACKGROUNDS))
_SEED = 514_229  # Unlike the small seeds of recipes, so that the demo's images are new to the encoder.
_SCENES = 16_384
_EPOCHS = 6
_BATCH = 128
_LEARNING_RATE = 3e-3
_WARM_UP = 100


def draw(scenes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random scenes of the training classes.

    Returns:
        (N, 3, S, S) uint8 images, encoded and decoded like the demo's, and (N, 4) int64 task labels.
    """
    pictures, labels = [], []
    for index in range(scenes):
        rng = np.random.default_rng((_SEED, index))
        scene = random_scene(TRAINING[index % len(TRAINING)], rng)
        pictures.append(decode_image(encode_jpeg(render(scene, PREPROCESSING.image_size)), PREPROCESSING))
        named = (scene.colour, scene.shape, scene.size, scene.background)
        labels.append([values.index(name) for values, name in zip(_TASKS, named, strict=True)])
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2), torch.tensor(labels)


class AttributeHeads(nn.Module):
    """One linear classifier per task on normalised features, as used by the alignment."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(dim, len(values)) for values in _TASKS)
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, features: torch.Tensor) -> list[torch.Tensor]:
        directions = functional.normalize(features, dim=1) * self.log_scale.exp()
        return [head(directions) for head in self.heads]


def train(pictures: torch.Tensor, labels: torch.Tensor, epochs: int) -> nn.Module:
    """Trains the encoder from random weights; prints one line per epoch."""
    torch.manual_seed(_SEED)
    model = timm.create_model(MODEL, num_classes=0).to(memory_format=torch.channels_last)
    heads = AttributeHeads(model.num_features)
    optimizer = torch.optim.AdamW([*model.parameters(), *heads.parameters()], lr=_LEARNING_RATE, weight_decay=0.02)
    steps = epochs * (len(pictures) // _BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / _WARM_UP, 0.5 * (1 + np.cos(np.pi * step / steps)))
    )
    started = time.perf_counter()
    for epoch in range(epochs):
        correct = torch.zeros(len(_TASKS))
        order = torch.randperm(len(pictures))[: len(pictures) // _BATCH * _BATCH]
        for batch in order.split(_BATCH):
            answers = heads(model(normalise(pictures[batch]).contiguous(memory_format=torch.channels_last)))
            loss = torch.stack(
                [functional.cross_entropy(answer, labels[batch, task]) for task, answer in enumerate(answers)]
            ).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            correct += torch.stack([(a.argmax(1) == labels[batch, task]).sum() for task, a in enumerate(answers)])
        accuracies = " ".join(
            f"{name} {value:.1%}"
            for name, value in zip(("colour", "shape", "size", "background"), correct / len(order), strict=True)
        )
        print(f"epoch {epoch + 1}/{epochs}  {time.perf_counter() - started:.0f} s  {accuracies}", flush=True)
    return model.eval()


def normalise(pictures: torch.Tensor) -> torch.Tensor:
    """Normalises uint8 images for the encoder."""
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
    return (pictures / 255 - mean) / std


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="the safetensors file to write")
    parser.add_argument("--scenes", type=int, default=_SCENES, help="pictures to draw (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=_EPOCHS, help="passes over them (default %(default)s)")
    arguments = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    print(f"drawing {arguments.scenes:,} scenes", flush=True)
    model = train(*draw(arguments.scenes), epochs=arguments.epochs)
    weights = save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    storage.write_bytes(arguments.out, weights)
    print(f"{arguments.out}: {MODEL}, {len(weights) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
