"""Encoding of captions: batches by token budget after sorting by length, against what is usually done."""

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
# The spread of CC3M's captions, 10.3 ± 4.5 tokens (Sharma et al. 2018, table 2), of the logarithm.
_SIGMA = 0.42


@dataclass(frozen=True)
class Setting:
    """`captions` texts of log-normal lengths."""

    captions: int
    mean_tokens: int
    repeated: float = 0.0
    """Share of captions that repeat another."""


@dataclass(frozen=True)
class Decoder:
    """A Llama of random weights in one of the shapes of `bench.models`, and what it runs on."""

    shape: str = "small"
    dtype: DType = "float32"
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True)
class Comparison:
    """Captions per second of each round: of the clock on a GPU, of CPU time on a CPU.

    On one thread the latter is what a quiet machine's clock would show.
    """

    setting: Setting
    ours: list[float]
    batches: list[float]
    """Batches of 32 as they come, padded to their longest."""
    single: list[float]
    """One caption a forward pass, as the released ShareLock code encodes its training captions."""
    max_cosine_distance: float
    """Largest distance of our embedding from that of the caption encoded alone."""

    @property
    def ratio_to_batches(self) -> float:
        return median_ratio(self.ours, self.batches)

    @property
    def ratio_to_single(self) -> float:
        return median_ratio(self.ours, self.single)


def compare(decoder: Decoder, settings: Sequence[Setting], repeats: int) -> list[Comparison]:
    """Encodes the same captions of each setting in the three ways in turn, in this process."""
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
    """Texts of `mean_tokens` words in the mean, a word a token, of log-normal number."""
    generator = np.random.default_rng(0)
    lengths = generator.lognormal(np.log(setting.mean_tokens) - _SIGMA**2 / 2, _SIGMA, setting.captions)
    texts = [" ".join(f"w{i}" for i in generator.integers(0, WORDS, max(1, round(length)))) for length in lengths]
    copies = int(setting.repeated * len(texts))
    return texts[: len(texts) - copies] + [texts[i] for i in generator.integers(0, len(texts) - copies, copies)]
