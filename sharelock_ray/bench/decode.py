"""Reading and decoding of images on CPUs, and the cores needed to keep a GPU busy."""

import io
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from sharelock_ray import storage
from sharelock_ray.bench.measure_extract import Setting as Tars
from sharelock_ray.bench.measure_extract import tar_files, write_tars
from sharelock_ray.bench.timing import alternate, median_ratio, rate_by_cpu
from sharelock_ray.encoders.images import Preprocessing, crop_image, upright
from sharelock_ray.extraction.chunks import cut, decode
from sharelock_ray.sources.webdataset import WebDatasetSource

_CHUNK = 64


@dataclass(frozen=True)
class Setting:
    """`images` JPEGs of `width` x `height` in a tar, preprocessed to squares of `image_size`."""

    width: int
    height: int
    images: int
    image_size: int = 224

    @property
    def preprocessing(self) -> Preprocessing:
        """Resizes to 8/7 of the crop size, as the paper does (256 and 224)."""
        return Preprocessing(image_size=self.image_size, resize=self.image_size * 8 // 7, interpolation="bilinear")


@dataclass(frozen=True)
class Comparison:
    """Images per second of CPU time, per round."""

    setting: Setting
    bytes: int
    """Mean size of a JPEG."""
    ours: list[float]
    """Chunks of a shard, read and decoded as in extraction."""
    full_scale: list[float]
    """A plain loop over the same tar that decodes at full resolution before resizing."""

    @property
    def ratio(self) -> float:
        return median_ratio(self.ours, self.full_scale)


def compare(setting: Setting, repeats: int) -> Comparison:
    """Writes the tar to a temporary folder and reads it in both ways in turn."""
    with tempfile.TemporaryDirectory(prefix="sharelock-bench-") as folder:
        write_tars(Path(folder), Tars(setting.images, 1, width=setting.width, height=setting.height))
        source = WebDatasetSource(urls=f"{storage.escape(folder)}/*.tar")
        preprocessing = setting.preprocessing

        def ours() -> int:
            chunks = (
                decode(chunk, [preprocessing]) for shard in source.shards() for chunk in cut(source, shard, _CHUNK)
            )
            return sum(len(chunk.pixels[preprocessing].images) for chunk in chunks)

        def full_scale() -> int:
            count = 0
            for data in tar_files(Path(folder)):
                with Image.open(io.BytesIO(data)) as image:
                    crop_image(upright(image), preprocessing)
                count += 1
            return count

        name = f"{setting.width} x {setting.height}"
        runs = {f"{name}, ours": ours, f"{name}, full scale": full_scale}
        found = alternate({name: partial(rate_by_cpu, work) for name, work in runs.items()}, repeats)
        size = sum(path.stat().st_size for path in Path(folder).glob("*.tar")) // setting.images
        return Comparison(setting, size, *found.values())
