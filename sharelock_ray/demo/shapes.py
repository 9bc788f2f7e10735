"""The demo's data: captioned images of one coloured shape, generated from a seed and written as WebDataset tars.

A class is a pair of a colour and a shape. A quarter of the pairs is held out of training, each colour and each shape
exactly twice, so the test consists of unseen pairs of seen colours and shapes.
"""

import io
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageDraw

from sharelock_ray import storage
from sharelock_ray.demo.tars import tar_of
from sharelock_ray.errors import RequestError

COLOURS = {
    "red": (214, 32, 36),
    "orange": (250, 136, 8),
    "yellow": (250, 224, 22),
    "green": (28, 150, 52),
    "cyan": (36, 208, 224),
    "blue": (32, 64, 214),
    "purple": (124, 36, 168),
    "pink": (252, 132, 190),
}
SIZES = {"small": 0.15, "medium": 0.23, "large": 0.34}
"""Radius as a fraction of the image's side."""
BACKGROUNDS = {
    "white": ((248, 248, 248), (248, 248, 248)),
    "grey": ((128, 128, 128), (128, 128, 128)),
    "black": ((14, 14, 14), (14, 14, 14)),
    "beige": ((222, 204, 170), (222, 204, 170)),
    "striped": ((236, 236, 236), (72, 72, 72)),
}
"""Colours of odd and even stripes; equal for a plain background."""

_Outline = tuple[tuple[float, float], ...]


def _around(radii: tuple[float, ...]) -> _Outline:
    """Corners at equal angles around the centre, clockwise from the top, at the given radii."""
    angles = (math.tau * i / len(radii) for i in range(len(radii)))
    return tuple((r * math.sin(angle), -r * math.cos(angle)) for r, angle in zip(radii, angles, strict=True))


def _heart() -> _Outline:
    def point(t: float) -> tuple[float, float]:
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        return 16 * math.sin(t) ** 3 / 16, -(y + 2.5) / 16

    return tuple(point(math.tau * i / 48) for i in range(48))


_CROSS = ((-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3))
_ARROW = ((-1, -0.3), (0.1, -0.3), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.3), (-1, 0.3))
# Outlines within a circle of radius 1 or a little beyond it, y pointing down. The ring's hole is cut by `render`.
SHAPES: dict[str, _Outline] = {
    "circle": _around((1.0,) * 64),
    "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "triangle": _around((1.1, 1.1, 1.1)),
    "heart": _heart(),
    "star": _around((1.15, 0.46) * 5),
    "ring": _around((1.0,) * 64),
    "cross": _CROSS + tuple((-x, -y) for x, y in _CROSS),
    "arrow": _ARROW,
}
_HOLE = 0.58
MARGIN = 1.2
"""No outline reaches further from the centre than this, in radii, so none leaves the picture."""

CLASS_NAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
"""Names by label: colour * 8 + shape."""
HELD_OUT = tuple(label for label in range(len(CLASS_NAMES)) if (label % 8 - label // 8) % 8 in (0, 4))
"""Labels that the test split consists of and the training split never contains."""
TRAINING = tuple(label for label in range(len(CLASS_NAMES)) if label not in HELD_OUT)

_SUPERSAMPLING = 4
_TRAIN, _TEST = 0, 1


@dataclass(frozen=True)
class Scene:
    """Content of an image. `x`, `y` and `radius` are fractions of its side, `rotation` is in degrees."""

    colour: str
    shape: str
    size: str
    background: str
    x: float
    y: float
    radius: float
    rotation: float
    brightness: float

    @property
    def label(self) -> int:
        """Index into CLASS_NAMES."""
        return CLASS_NAMES.index(f"{self.colour} {self.shape}")


def random_scene(label: int, rng: np.random.Generator) -> Scene:
    """A scene of class `label`; all other properties are drawn from `rng`."""
    colour, shape = CLASS_NAMES[label].split()
    size = list(SIZES)[rng.integers(len(SIZES))]
    background = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    radius = SIZES[size] * rng.uniform(0.92, 1.08)
    room = radius * MARGIN
    x, y = rng.uniform(room, 1 - room, 2)
    rotation, brightness = rng.uniform(-25, 25), rng.uniform(0.88, 1.05)
    return Scene(colour, shape, size, background, float(x), float(y), radius, rotation, brightness)


def render(scene: Scene, image_size: int, *others: Scene) -> Image.Image:
    """Renders a scene as a square RGB image with antialiased edges; objects of `others` are drawn over it."""
    odd, even = BACKGROUNDS[scene.background]
    image = Image.new("RGB", (image_size, image_size), odd)
    if odd != even:
        stripes = ImageDraw.Draw(image)
        for i in range(0, 10, 2):
            stripes.rectangle((0, image_size * i // 10, image_size, image_size * (i + 1) // 10 - 1), fill=even)
    for each in (scene, *others):
        red, green, blue = (min(255, round(value * each.brightness)) for value in COLOURS[each.colour])
        image.paste((red, green, blue), mask=_mask(each, image_size))
    return image


def _mask(scene: Scene, image_size: int) -> Image.Image:
    """The object of a scene, white on black."""
    side = image_size * _SUPERSAMPLING
    cos, sin = math.cos(math.radians(scene.rotation)), math.sin(math.radians(scene.rotation))

    def place(outline: _Outline, scale: float) -> list[tuple[float, float]]:
        r = scene.radius * scale
        return [
            (side * (scene.x + r * (x * cos - y * sin)), side * (scene.y + r * (x * sin + y * cos))) for x, y in outline
        ]

    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    draw.polygon(place(SHAPES[scene.shape], 1), fill=255)
    if scene.shape == "ring":
        draw.polygon(place(SHAPES["ring"], _HOLE), fill=0)
    return mask.reduce(_SUPERSAMPLING)


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """An English caption that names colour and shape, and sometimes size and background."""
    colour, shape, size, background = scene.colour, scene.shape, scene.size, scene.background
    templates = (
        f"{with_article(colour)} {shape}.",
        f"a photo of {with_article(colour)} {shape}.",
        f"{with_article(size)} {colour} {shape}.",
        f"there is {with_article(colour)} {shape} in the picture.",
        f"{with_article(size)} {colour} {shape} on a {background} background.",
        f"the picture shows {with_article(shape)} that is {colour}.",
        f"an image of {with_article(colour)} {shape} in front of a {background} background.",
        f"{with_article(shape)} in {colour}, drawn {size}.",
        f"{colour} {shape}, {background} background",
        f"somebody painted this {size} {shape} {colour}.",
    )
    return templates[rng.integers(len(templates))]


def with_article(word: str) -> str:
    """A word, or words, behind "a" or "an"."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def encode_jpeg(image: Image.Image) -> bytes:
    """The bytes of a JPEG file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def write_shapes(
    folder: str, *, seed: int, train_images: int, test_images_per_class: int, image_size: int, shards: int
) -> None:
    """Writes the demo's dataset below `folder`; an interrupted call is continued.

    Writes `train/00000.tar` …, `test/00000.tar`, `classes.txt` and, last, `shapes.json` with the arguments. Two
    training samples are damaged on purpose, so that the demo has rejects: a truncated image file, and a missing
    caption.

    Args:
        folder: local path or URI.
        seed: determines all scenes and captions.
        train_images: number of training samples, including the two damaged ones.
        test_images_per_class: number of samples per held-out class.
        image_size: side of the square images, in pixels.
        shards: number of tars of the training split.

    Raises:
        RequestError: `folder` holds shapes made with other arguments, or there are too few samples.
    """
    if not 1 <= shards <= train_images or train_images < 2 or test_images_per_class < 1:
        raise RequestError(
            "the shapes need at least 2 training images, 1 test image per class and 1 training image per shard"
        )
    arguments = {
        "seed": seed,
        "train_images": train_images,
        "test_images_per_class": test_images_per_class,
        "image_size": image_size,
        "shards": shards,
    }
    with written_once(folder, arguments) as missing:
        if missing:
            write_split(folder, "train", train_images, shards, partial(_sample, seed, _TRAIN, TRAINING, image_size))
            images = len(HELD_OUT) * test_images_per_class
            write_split(folder, "test", images, 1, partial(_sample, seed, _TEST, HELD_OUT, image_size))
            storage.write_bytes(storage.join(folder, "classes.txt"), ("\n".join(CLASS_NAMES) + "\n").encode())


@contextmanager
def written_once(folder: str, arguments: Mapping[str, object]) -> Iterator[bool]:
    """Whether the data of `arguments` is still to be written below `folder`; leaving the context without an error says
    that it is complete.

    Raises:
        RequestError: `folder` holds shapes made with other arguments.
    """
    # The arguments are stored before the first tar, so that an interrupted call is not continued with other ones.
    finished, begun = storage.join(folder, "shapes.json"), storage.join(folder, "shapes.begun.json")
    for note in (finished, begun):
        if storage.exists(note) and (found := storage.read_json(note)) != arguments:
            raise RequestError(
                f"{folder} holds shapes made with other arguments ({_differences(found, arguments)}): "
                "remove it or choose another folder"
            )
    if storage.exists(finished):
        yield False
        return
    storage.write_json(begun, arguments)
    yield True
    storage.write_json(finished, arguments)
    storage.remove(begun)


def write_split(folder: str, split: str, images: int, shards: int, sample: Callable[[int], dict[str, bytes]]) -> None:
    """Writes the tars of a split that are missing; two training samples are damaged, see `write_shapes`.

    Args:
        sample: gives the members of a sample, by extension, for its index.
    """
    truncated, uncaptioned = (images // 3, images // 3 + images // 2) if split == "train" else (None, None)
    bounds = [images * shard // shards for shard in range(shards + 1)]
    for shard in range(shards):
        tar = storage.join(folder, split, f"{shard:05d}.tar")
        if storage.exists(tar):
            continue
        samples = {index: sample(index) for index in range(bounds[shard], bounds[shard + 1])}
        if truncated in samples:
            samples[truncated]["jpg"] = samples[truncated]["jpg"][: len(samples[truncated]["jpg"]) // 2]
        if uncaptioned in samples:
            del samples[uncaptioned]["txt"]
        storage.write_bytes(tar, tar_of(_members(samples)))


def _differences(found: Mapping[str, object], wanted: Mapping[str, object]) -> str:
    names = dict.fromkeys([*wanted, *found])
    return ", ".join(
        f"{name} {found.get(name)}, not {wanted.get(name)}" for name in names if found.get(name) != wanted.get(name)
    )


def _sample(seed: int, split: int, labels: tuple[int, ...], image_size: int, index: int) -> dict[str, bytes]:
    """The members of sample `index`, by extension; deterministic in the arguments."""
    rng = np.random.default_rng((seed, split, index))
    scene = random_scene(labels[index % len(labels)], rng)
    return {
        "jpg": encode_jpeg(render(scene, image_size)),
        "txt": caption(scene, rng).encode(),
        "cls": str(scene.label).encode(),
    }


def _members(samples: dict[int, dict[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    for index, parts in samples.items():
        for extension, content in parts.items():
            yield f"{index:09d}.{extension}", content
