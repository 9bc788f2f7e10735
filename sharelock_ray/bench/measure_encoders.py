"""The encoders alone: their share of the device's peak, and the cores needed to decode for them."""

import io
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from sharelock_ray.bench import captions
from sharelock_ray.bench.models import DECODERS, random_vision, write_decoder
from sharelock_ray.bench.timing import DType, alternate
from sharelock_ray.encoders.images import decode_image
from sharelock_ray.encoders.language import LanguageEncoder
from sharelock_ray.encoders.linear import accelerate
from sharelock_ray.encoders.provenance import device_name
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.encoders.vision import VisionEncoder


@dataclass(frozen=True)
class Throughput:
    """One encoder: units (images, tokens) per second, per round, and FLOP per unit."""

    name: str
    unit: str
    per_second: list[float]
    flop_per_unit: float
    peak_flop: float
    """FLOP per second of one large matrix product of the same type on the same device."""

    @property
    def share_of_peak(self) -> float:
        return statistics.median(self.per_second) * self.flop_per_unit / self.peak_flop


def vision(
    model: str,
    image_size: int,
    dtype: DType,
    device: str,
    batch_size: int | None,
    compiled: bool,
    channels_last: bool,
    repeats: int,
) -> list[Throughput]:
    """Images per second of a timm model with random weights, from uint8 pixels in memory to float32 embeddings.

    Args:
        channels_last: whether to also measure the channels-last memory format, in turn with the default one.
    """
    with tempfile.TemporaryDirectory(prefix="sharelock-bench-") as folder:
        spec = random_vision(Path(folder), model, image_size, dtype=dtype)
        plain = VisionEncoder(spec, device, batch_size)
        encoders = [VisionEncoder(spec, device, batch_size, compiled=True) if compiled else plain]
        if channels_last:
            encoders.append(VisionEncoder(spec, device, batch_size, compiled=compiled, channels_last=True))
    shape = (8 * plain.batch_size, image_size, image_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    flop = _flop(lambda: plain.encode(pixels[:1]))
    name = f"{model} at {image_size}, {dtype}"
    runs = {
        each: _rate(_by_two(partial(encoder.encode, pixels)), 2 * len(pixels))
        for each, encoder in zip((name, f"{name}, channels last"), encoders, strict=False)
    }
    found = alternate(runs, repeats)
    highest = peak(device, dtype)
    return [Throughput(name, "images", rates, flop, highest) for name, rates in found.items()]


def language(
    shape: str,
    dtype: DType,
    device: str,
    token_budget: int | None,
    mean_tokens: Sequence[int],
    compiled: bool,
    repeats: int,
) -> list[Throughput]:
    """Tokens per second of a Llama with random weights, from captions of each mean length to embeddings."""
    with tempfile.TemporaryDirectory(prefix="sharelock-bench-") as folder:
        write_decoder(Path(folder), DECODERS[shape], getattr(torch, dtype), device)
        spec = LanguageSpec(name="bench", model=folder, pooling="last", dtype=dtype, max_length=512)
        plain = LanguageEncoder(spec, device, token_budget)
        encoder = LanguageEncoder(spec, device, token_budget, compiled=True) if compiled else plain

    def throughput(mean: int) -> Throughput:
        count = 32 * encoder.token_budget // mean
        texts = captions.captions(captions.Setting(captions=count, mean_tokens=mean))
        text = " ".join(["w1"] * mean)
        flop = _flop(lambda: plain.encode([text])) / mean
        tokens = encoder.encode_each(texts).tokens
        name = f"{shape} shape, {mean} tokens, {dtype}"
        rates = alternate({name: _rate(_by_two(lambda: encoder.encode(texts)), 2 * tokens)}, repeats)[name]
        return Throughput(name, "tokens", rates, flop, peak(device, dtype))

    return [throughput(mean) for mean in mean_tokens]


def decode_rate(width: int = 500, height: int = 375, image_size: int = 224, images: int = 200) -> float:
    """JPEGs per second on one core: read, resized to 256/224 of `image_size` and cropped."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    spec = VisionSpec(name="bench", model="test_vit", image_size=image_size, resize=image_size * 8 // 7).resolved()
    started = time.process_time()
    for _ in range(images):
        decode_image(buffer.getvalue(), spec.preprocessing)
    return images / (time.process_time() - started)


def peak(device: str, dtype: DType, repeats: int = 5) -> float:
    """FLOP per second of one large square matrix product, the fastest of `repeats`, computed as in the encoders."""
    size = 8192 if device == "cuda" else 2048
    kind = {"device": device, "dtype": getattr(torch, dtype)}
    rows, layer = torch.randn(size, size, **kind), torch.nn.Sequential(torch.nn.Linear(size, size, False, **kind))
    accelerate(layer)

    @torch.inference_mode()
    def product() -> None:
        layer(rows)
        if device == "cuda":
            torch.cuda.synchronize()

    rate = _rate(product, 1)
    return max(rate() for _ in range(repeats)) * 2 * size**3


def describe(device: str) -> str:
    """The device's name, with the number of threads for a CPU."""
    name = device_name(torch.device(device))
    return f"{name}, {torch.get_num_threads()} threads" if device == "cpu" else name


def _flop(work: Callable[[], object]) -> float:
    # torch counts the layers of `encoders/linear.py` as nothing.
    linear = {torch.ops.aten.mkldnn_linear: lambda rows, weight, *_, **__: 2 * math.prod(rows) * weight[0]}
    with FlopCounterMode(display=False, custom_mapping=linear) as counter:
        work()
    return float(counter.get_total_flops())


def _by_two(work: Callable[[], object]) -> Callable[[], None]:
    """Runs the work twice, on two threads, as an extraction actor does."""

    def run() -> None:
        with ThreadPoolExecutor(2) as pool:
            for job in [pool.submit(work) for _ in range(2)]:
                job.result()

    return run


def _rate(work: Callable[[], object], units: int) -> Callable[[], float]:
    """Runs the work once as a warm-up; returns a function that measures its units per second."""
    work()

    def rate() -> float:
        started = time.perf_counter()
        work()
        return units / (time.perf_counter() - started)

    return rate
