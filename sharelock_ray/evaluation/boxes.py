"""Boxes of images as images of their own: ARO scores the part of an image that an example is about."""

import io
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from sharelock_ray.encoders.images import open_image
from sharelock_ray.sources.sample import Content, Reject, Sample, Shard, Source


def boxed(key: str, box: Iterable[object]) -> str:
    """The key of a box of an image.

    Args:
        box: left, top, width and height, in pixels.
    """
    return f"{key}@{','.join(map(str, box))}"


@dataclass(frozen=True)
class BoxImages:
    """Cuts boxes out of the images of a source; images without a box are left out.

    Args:
        keys: those of the boxes, of `boxed`.
    """

    source: Source
    keys: tuple[str, ...]

    @cached_property
    def _keys_of_image(self) -> dict[str, list[str]]:
        found = defaultdict(list)
        for key in dict.fromkeys(self.keys):
            found[key.rpartition("@")[0]].append(key)
        return dict(found)

    @property
    def provides(self) -> frozenset[Content]:
        return self.source.provides

    def shards(self) -> list[Shard]:
        """Those of the source."""
        return self.source.shards()

    def version(self, shard: Shard) -> str:
        """See `Source.version`."""
        return self.source.version(shard)

    def keys_of(self, shard: Shard) -> Iterator[str]:
        """The keys of the boxes."""
        return (key for image in self.source.keys_of(shard) for key in self._keys_of_image.get(image, ()))

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The boxes as uncompressed images; where an image cannot be read, each of its boxes is a reject."""
        for item in self.source.read(shard):
            for key in self._keys_of_image.get(item.key, ()):
                yield replace(item, key=key) if isinstance(item, Reject) else _cut(item, key)


def _cut(sample: Sample, key: str) -> Sample | Reject:
    try:
        left, top, width, height = (int(each) for each in key.rpartition("@")[2].split(","))
        with open_image(sample.image or b"") as image:
            if not (0 < width <= image.width and 0 < height <= image.height):
                raise ValueError(f"a box of {width} x {height} pixels in an image of {image.width} x {image.height}")
            # Outside the image it is black, as in Pillow and so in the authors' program.
            cut = image.convert("RGB").crop((left, top, left + width, top + height))
        content = io.BytesIO()
        cut.save(content, "BMP")
    except (OSError, ValueError) as error:
        return Reject.of(key, "decode", error)
    return replace(sample, key=key, image=content.getvalue())
