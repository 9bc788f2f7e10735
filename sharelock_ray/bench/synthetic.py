"""Feature sets with random embeddings in realistic shapes."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.features.manifest import Origin
from sharelock_ray.features.writer import EncodedChunk, FeatureSetWriter
from sharelock_ray.sources.sample import Shard
from sharelock_ray.storage import join

_PER_PART = 10_000


def write_pairs(folder: str, pairs: int, dims: tuple[int, int]) -> tuple[str, str]:
    """Writes a float16 vision and language set of `pairs` keys in parts of 10,000; returns both URIs."""
    vision, language = VisionSpec(name="random", model="none"), LanguageSpec(name="random", model="none")
    uris = join(folder, "vision"), join(folder, "language")
    _write(uris[0], vision, "vision", pairs, dims[0])
    _write(uris[1], language, "language", pairs, dims[1])
    return uris


def _write(uri: str, spec: VisionSpec | LanguageSpec, modality: str, pairs: int, dim: int) -> None:
    writer = FeatureSetWriter(uri, modality, "float16")
    counts = [min(_PER_PART, pairs - start) for start in range(0, pairs, _PER_PART)]
    shards = [Shard(part, f"{part:05d}", f"random/{part:05d}.tar", 0) for part in range(len(counts))]
    writer.start(shards, _PER_PART)

    def write(part: int) -> None:
        count = counts[part]
        embeddings = np.random.default_rng([dim, part]).standard_normal((count, dim), np.float32)
        columns: dict[str, list[object]] = {"key": [f"{part:05d}/{i:09d}" for i in range(count)]}
        if modality == "vision":
            columns["label"] = [None] * count
        else:
            columns |= {"caption_id": [0] * count, "text": ["a caption"] * count}
        writer.stage(part, 0, True, shards[part].uri, EncodedChunk(columns, embeddings))
        writer.seal(part)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(len(counts))))
    origin = Origin(
        dataset="random", split="train", encoder=spec.model_dump(mode="json"), weights_sha256=None, software={}
    )
    writer.finish(shards, origin, gpus=0, wall_seconds=0)
