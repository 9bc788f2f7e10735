"""Scenes of two objects, with captions and tests of compositional choice, generated from a seed.

Two objects of different colours and shapes lie beside or above each other: "a red circle left of a blue square". A
quarter of the pairs of objects is held out of training; exchanging colours or places leads from a held-out pair to a
held-out pair, so a test shows known objects in pairs that training never showed.

The tests are the shipped benchmarks `scenes-swap` (two images, two captions of the same words) and `scenes-replace`
(one image, four captions, of which three have another word). `attributes.parquet` tells what their images and captions
say (see `evaluation.attributes`).
"""

import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sharelock_ray import storage
from sharelock_ray.demo.shapes import (
    BACKGROUNDS,
    COLOURS,
    MARGIN,
    SHAPES,
    TRAINING,
    Scene,
    encode_jpeg,
    render,
    with_article,
    write_split,
    written_once,
)
from sharelock_ray.demo.tars import tar_of
from sharelock_ray.errors import RequestError

RELATIONS = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
"""Each relation of a first object to a second one, and that of the second to the first."""
_PLACES = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}
_TEMPLATES = (
    "{first} {relation} {second}.",
    "a picture of {first} {relation} {second}.",
    "there is {first} {relation} {second}.",
    "{first} is {relation} {second}.",
    "the picture shows {first} {relation} {second}.",
)
_WITHOUT_RELATION = "{first} and {second}."
WRONG = 3
"""Wrong captions of an image."""
_TRAIN, _TEST, _SWAP, _REPLACE = 2, 3, 4, 5
"""Streams of random numbers; those of `shapes` are 0 and 1."""


@dataclass(frozen=True)
class Thing:
    """A coloured shape."""

    colour: str
    shape: str

    @property
    def label(self) -> int:
        """Index into `shapes.CLASS_NAMES`."""
        return 8 * list(COLOURS).index(self.colour) + list(SHAPES).index(self.shape)


@dataclass(frozen=True)
class TwoThings:
    """What a scene shows: two things of different colours and shapes, and where the first is, seen from the second."""

    first: Thing
    relation: str
    second: Thing

    @property
    def held_out(self) -> bool:
        """Whether training never shows the two things together; equal for scenes with exchanged colours or places."""
        return sum(sum(divmod(thing.label, 8)) for thing in (self.first, self.second)) % 4 == 0

    def turned(self) -> "TwoThings":
        """The same scene, seen from the first thing."""
        return TwoThings(self.second, RELATIONS[self.relation], self.first)

    def with_swapped_colours(self) -> "TwoThings":
        first, second = self.first, self.second
        return TwoThings(replace(first, colour=second.colour), self.relation, replace(second, colour=first.colour))

    def with_swapped_places(self) -> "TwoThings":
        return TwoThings(self.second, self.relation, self.first)

    def attributes(self) -> dict[str, str]:
        """The colour of each shape and its place: what tells scenes apart, whatever a caption names first."""
        return {
            f"{name} of the {thing.shape}": value
            for thing, relation in ((self.first, self.relation), (self.second, RELATIONS[self.relation]))
            for name, value in (("colour", thing.colour), ("place", _PLACES[relation]))
        }


def random_scene(rng: np.random.Generator, held_out: bool) -> TwoThings:
    """A random scene of things that training shows, also after exchanging colours."""
    while True:
        (a, b), (x, y) = (rng.choice(names, 2, replace=False).tolist() for names in (list(COLOURS), list(SHAPES)))
        scene = TwoThings(Thing(a, x), list(RELATIONS)[rng.integers(len(RELATIONS))], Thing(b, y))
        shown = (scene, scene.with_swapped_colours()) if held_out else (scene,)
        if scene.held_out == held_out and all(thing.label in TRAINING for s in shown for thing in (s.first, s.second)):
            return scene


def draw(scene: TwoThings, image_size: int, rng: np.random.Generator) -> bytes:
    """The JPEG file of a scene; sizes, background, and places within the halves are drawn from `rng`."""
    background = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]

    def drawn(thing: Thing, relation: str) -> Scene:
        radius = rng.uniform(0.13, 0.19)
        room = radius * MARGIN
        # In its own half along the relation, and near the middle across it.
        along = rng.uniform(room, 0.5 - room) + (0.5 if relation in ("right of", "below") else 0.0)
        across = rng.uniform(0.35, 0.65)
        x, y = (along, across) if relation in ("left of", "right of") else (across, along)
        rotation, brightness = rng.uniform(-25, 25), rng.uniform(0.88, 1.05)
        return Scene(thing.colour, thing.shape, "small", background, x, y, radius, rotation, brightness)

    first = drawn(scene.first, scene.relation)
    return encode_jpeg(render(first, image_size, drawn(scene.second, RELATIONS[scene.relation])))


def caption(scene: TwoThings, template: str) -> str:
    """The caption of a scene by a template."""
    first, second = (with_article(f"{thing.colour} {thing.shape}") for thing in (scene.first, scene.second))
    return template.format(first=first, relation=scene.relation, second=second)


def write_scenes(
    folder: str,
    *,
    seed: int,
    train_images: int,
    test_images_per_class: int,
    image_size: int,
    shards: int,
    choices: int,
) -> None:
    """Writes scenes of two objects below `folder`, as `shapes.write_shapes` does those of one; without `classes.txt`,
    since a scene has no class.

    Args:
        test_images_per_class: a 16th of the test samples.
        choices: examples of each kind of compositional choice.

    Raises:
        RequestError: `folder` holds shapes made with other arguments, or there are too few samples.
    """
    if not 1 <= shards <= train_images or train_images < 2 or min(test_images_per_class, choices) < 1:
        raise RequestError(
            "the scenes need at least 2 training images, 1 test image per class, 1 training image per shard and "
            "1 choice of each kind"
        )
    arguments = {
        "objects": 2,
        "seed": seed,
        "train_images": train_images,
        "test_images_per_class": test_images_per_class,
        "image_size": image_size,
        "shards": shards,
        "choices": choices,
    }
    with written_once(folder, arguments) as missing:
        if not missing:
            return
        write_split(folder, "train", train_images, shards, partial(_sample, seed, _TRAIN, image_size))
        write_split(folder, "test", 16 * test_images_per_class, 1, partial(_sample, seed, _TEST, image_size))
        images: dict[str, dict[str, str]] = {}
        texts: dict[str, dict[str, str]] = {}
        for name, stream, changes in (("swap", _SWAP, _SWAPS), ("replace", _REPLACE, _REPLACEMENTS)):
            members: list[tuple[str, bytes]] = []
            lines: list[str] = []
            for kind, change in ((kind, change) for kind, change in changes.items() for _ in range(choices)):
                rng = np.random.default_rng((seed, stream, len(lines)))
                scenes, template = _choice(change, rng)
                captions = [caption(scene, template) for scene in scenes]
                texts |= {text: scene.attributes() for text, scene in zip(captions, scenes, strict=True)}
                keys = []
                for scene in scenes[: 2 if name == "swap" else 1]:
                    member = f"{len(members):09d}"
                    members.append((f"{member}.jpg", draw(scene, image_size, rng)))
                    keys.append(f"{name}/{member}")
                    images[keys[-1]] = scene.attributes()
                lines.append(json.dumps({"images": keys, "captions": captions, "kind": kind}))
            storage.write_bytes(storage.join(folder, name, f"{name}.tar"), tar_of(members))
            storage.write_bytes(storage.join(folder, f"{name}.jsonl"), ("\n".join(lines) + "\n").encode())
        storage.write_bytes(storage.join(folder, "attributes.parquet"), _attributes(images, texts))


def _sample(seed: int, stream: int, image_size: int, index: int) -> dict[str, bytes]:
    """The members of sample `index`, by extension; deterministic in the arguments."""
    rng = np.random.default_rng((seed, stream, index))
    scene = random_scene(rng, held_out=stream == _TEST)
    templates = (*_TEMPLATES, _WITHOUT_RELATION)
    told = scene.turned() if rng.integers(2) else scene
    text = caption(told, templates[rng.integers(len(templates))])
    return {"jpg": draw(scene, image_size, rng), "txt": text.encode()}


def _choice(change: "_Change", rng: np.random.Generator) -> tuple[list[TwoThings], str]:
    """A held-out scene and those that differ from it in one respect, told from one side, and the template of all."""
    scene = random_scene(rng, held_out=True)
    told = scene.turned() if rng.integers(2) else scene
    return [told, *change(told, rng)], _TEMPLATES[rng.integers(len(_TEMPLATES))]


def _others(names: Iterable[str], rng: np.random.Generator, *used: str) -> list[str]:
    """A few of the names that are not used."""
    return rng.choice([name for name in names if name not in used], WRONG, replace=False).tolist()


def _other_colours(scene: TwoThings, rng: np.random.Generator) -> list[TwoThings]:
    colours = _others(COLOURS, rng, scene.first.colour, scene.second.colour)
    return [replace(scene, first=replace(scene.first, colour=colour)) for colour in colours]


def _other_shapes(scene: TwoThings, rng: np.random.Generator) -> list[TwoThings]:
    shapes = _others(SHAPES, rng, scene.first.shape, scene.second.shape)
    return [replace(scene, first=replace(scene.first, shape=shape)) for shape in shapes]


def _other_relations(scene: TwoThings, rng: np.random.Generator) -> list[TwoThings]:
    return [replace(scene, relation=relation) for relation in RELATIONS if relation != scene.relation]


_Change = Callable[[TwoThings, np.random.Generator], list[TwoThings]]
_SWAPS: dict[str, _Change] = {
    "swap_attribute": lambda scene, rng: [scene.with_swapped_colours()],
    "swap_relation": lambda scene, rng: [scene.with_swapped_places()],
}
_REPLACEMENTS: dict[str, _Change] = {
    "replace_attribute": _other_colours,
    "replace_object": _other_shapes,
    "replace_relation": _other_relations,
}


def _attributes(images: Mapping[str, Mapping[str, str]], texts: Mapping[str, Mapping[str, str]]) -> bytes:
    """The Parquet file that `evaluation.attributes` reads."""
    rows = [
        (*((name, None) if kind == "image" else (None, name)), attribute, value)
        for kind, items in (("image", images), ("text", texts))
        for name, item in items.items()
        for attribute, value in item.items()
    ]
    names = ("image", "text", "attribute", "value")
    columns = zip(names, zip(*rows, strict=True), strict=True)
    buffer = io.BytesIO()
    pq.write_table(pa.table({name: pa.array(column, pa.string()) for name, column in columns}), buffer)
    return buffer.getvalue()
