"""Encoding of captions: sorted batches by token budget, compared with common practice."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sharelock_ray.bench.models import DECODERS, WORDS, write_decoder
from sharelock_ray.bench.timing import DType, alternate, median_ratio
from sharelock_ray.encoders.spec import LanguageSpec

_BATCH = 32
# Standard deviation of log length for CC3M's captions, 10.3 ± 4.5 tokens (Sharma et al. 2018, table 2).
_SIGMA = 0.42


@dataclass(frozen=True)
class Setting:
    """`captions` texts with log-normal lengths."""

    captions: int
    mean_tokens: int
    repeated: float = 0.0
    """Fraction of captions that repeat another."""


@dataclass(frozen=True)
class Decoder:
    """A Llama with random weights in a shape of `bench.models`, and its device."""

    shape: str = "small"
    dtype: DType = "float32"
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True)
class Comparison:
    """Captions per second of each round, by wall time on a GPU and by CPU time on a CPU.

    On one thread, CPU time equals the wall time of an idle machine.
    """

    setting: Setting
    ours: list[float]
    batches: list[float]
    """Unsorted batches of 32, padded to the longest."""
    single: list[float]
    """One caption per forward pass, as in the released ShareLock code."""
    max_cosine_distance: float
    """Largest cosine distance to the embedding of the caption encoded alone."""

    @property
    def ratio_to_batches(self) -> float:
        return median_ratio(self.ours, self.batches)

    @property
    def ratio_to_single(self) -> float:
        return median_ratio(self.ours, self.single)


def compare(decoder: Decoder, settings: Sequence[Setting], repeats: int) -> list[Comparison]:
    """Encodes the captions of each setting in three ways in turn, in this process."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from sharelock_ray.encoders.language import LanguageEncoder

    threads = torch.get_num_threads()
    torch.set_num_threads(decoder.threads)
    dtype = getattr(torch, decoder.dtype)
    with tempfile.TemporaryDirectory(prefix="sharelock-bench-") as folder:
        write_decoder(Path(folder), DECODERS[decoder.shape], dtype, decoder.device)
        spec = LanguageSpec(name="bench", model=folder, pooling="last", dtype=decoder.dtype, max_length=512)
        encoder = LanguageEncoder(spec, decoder.device)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder, dtype=dtype).eval().to(decoder.device)
    tokenizer.pad_token, tokenizer.padding_side = "[UNK]", "left"

    def plain(texts: list[str], size: int) -> np.ndarray:
        with torch.inference_mode():
            found = []
            for start in range(0, len(texts), size):
                tokens = tokenizer(texts[start : start + size], padding=True, return_tensors="pt").to(decoder.device)
                found.append(model(**tokens).last_hidden_state[:, -1])
            return torch.cat(found).float().cpu().numpy()

    def measured(setting: Setting) -> Comparison:
        texts = captions(setting)
        ways: dict[str, Callable[[], np.ndarray]] = {
            "sorted, by token budget": lambda: encoder.encode(texts),
            f"batches of {_BATCH}": lambda: plain(texts, _BATCH),
            "one by one": lambda: plain(texts, 1),
        }
        ours, alone = ways["sorted, by token budget"](), ways["one by one"]()
        clock = time.process_time if decoder.device == "cpu" else time.perf_counter
        found = alternate({name: _rate(way, len(texts), clock) for name, way in ways.items()}, repeats)
        cosine = (ours * alone).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(alone, axis=1)
        sorted_, in_batches, singly = found.values()
        return Comparison(setting, sorted_, in_batches, singly, float((1 - cosine).max()))

    found = [measured(setting) for setting in settings]
    torch.set_num_threads(threads)
    return found


def _rate(way: Callable[[], object], count: int, clock: Callable[[], float]) -> Callable[[], float]:
    def run() -> float:
        started = clock()
        way()
        return count / (clock() - started)

    return run


def captions(setting: Setting) -> list[str]:
    """Texts with a log-normal number of words, `mean_tokens` on average, one token per word."""
    generator = np.random.default_rng(0)
    lengths = generator.lognormal(np.log(setting.mean_tokens) - _SIGMA**2 / 2, _SIGMA, setting.captions)
    texts = [" ".join(f"w{i}" for i in generator.integers(0, WORDS, max(1, round(length)))) for length in lengths]
    copies = int(setting.repeated * len(texts))
    return texts[: len(texts) - copies] + [texts[i] for i in generator.integers(0, len(texts) - copies, copies)]
