"""`language-score`: bits per byte of a recipe's language models on a text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sharelock_ray import storage
from sharelock_ray.config import content_hash
from sharelock_ray.documents import read_document
from sharelock_ray.encoders.resolved import ResolvedEncoder, resolve
from sharelock_ray.encoders.spec import LanguageSpec
from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.statistics import Estimate, estimate
from sharelock_ray.progress import Progress, say
from sharelock_ray.recipe.schema import Recipe
from sharelock_ray.sources.content import decoded
from sharelock_ray.study.language_scores import LanguageScore

FOLDER = "language_scores"
_BLOCK = 1024
"""Bytes of the stretches of the text that the interval resamples: neighbouring tokens are not independent."""
_LEAST_BLOCKS = 10


@dataclass(frozen=True)
class StoredScore:
    """A score and its document."""

    uri: str
    score: LanguageScore


@dataclass(frozen=True)
class _Text:
    """A user's text and how it is read."""

    text: str
    size: int
    """Bytes in UTF-8."""
    sha256: str
    context: int
    stride: int


def language_score(
    recipe: Recipe, text: str, names: Sequence[str] = (), context: int = 512, stride: int | None = None
) -> list[StoredScore]:
    """Scores language encoders of a recipe, and writes `<output>/language_scores/<encoder>-<hash>.json` for each.

    A score with the same encoder, text and windows is kept. Encoders of one model are read from the same forward
    passes; those that differ in prompt and pooling only have one score. Without `names`, encoders that have no score
    are left out, and this is said.

    Args:
        text: path or URI of a UTF-8 text.
        names: encoders to score; () for all language encoders.
        context: tokens per forward pass. Scores of different contexts do not compare.
        stride: tokens that each window of a causal model scores; None for half the context.

    Raises:
        RequestError: the text is missing, not UTF-8 or too short; a name is unknown; or a model has no score.
        RunError: a probability is not finite, or a window does not fit into memory.
    """
    encoders = [resolve(spec) for spec in _chosen(recipe, names)]
    read = _read(text, context, stride or context // 2)
    uris = {encoder: _uri(recipe, encoder, read) for encoder in encoders}
    missing = [encoder for encoder in encoders if not storage.exists(uris[encoder])]
    if len(missing) < len(encoders):
        say(f"language-score: {len(encoders) - len(missing)} of {len(encoders)} already done")
    lost: dict[ResolvedEncoder, RequestError] = {}
    for model in dict.fromkeys(map(_model, missing)):
        group = [encoder for encoder in missing if _model(encoder) == model]
        try:
            for encoder, score in zip(group, _scores(group, read), strict=True):
                storage.create_json(uris[encoder], score.content())
        except RequestError as error:
            lost |= dict.fromkeys(group, error)
    for encoder, reason in lost.items():
        if names or len(lost) == len(encoders):
            raise reason
        say(f"language-score: {encoder.name} is left out: {reason}")
    return [StoredScore(uri, read_document(LanguageScore, uri)) for each, uri in uris.items() if each not in lost]


def _chosen(recipe: Recipe, names: Sequence[str]) -> list[LanguageSpec]:
    specs = [encoder for encoder in recipe.encoders if isinstance(encoder, LanguageSpec)]
    known = ", ".join(spec.name for spec in specs)
    if not specs:
        raise RequestError("the recipe has no language encoder to score: add one to `encoders`")
    for name in names:
        if name not in [spec.name for spec in specs]:
            raise RequestError(f"the recipe has no language encoder {name!r}: it has {known}")
    return [spec for spec in specs if not names or spec.name in names]


def _read(path: str, context: int, stride: int) -> _Text:
    uri = storage.absolute(path)
    with storage.reading(uri, "text"):
        data = storage.read_bytes(uri)
    text = decoded(data, uri)
    data = text.encode()
    if len(data) < _LEAST_BLOCKS * _BLOCK or not text.strip():
        size = f"has {len(data):,} bytes" if text.strip() else "is empty"
        raise RequestError(f"{uri} {size}: a score with an interval needs at least {_LEAST_BLOCKS * _BLOCK:,}")
    return _Text(text, len(data), storage.sha256(data), context, stride)


def _uri(recipe: Recipe, encoder: ResolvedEncoder, read: _Text) -> str:
    digest = content_hash(encoder.folder, read.sha256, read.context, read.stride)
    return storage.join(recipe.output, FOLDER, f"{encoder.name}-{digest}.json")


def _model(encoder: ResolvedEncoder) -> str:
    """Equal for encoders that have the same probabilities."""
    spec = encoder.spec
    assert isinstance(spec, LanguageSpec)
    return content_hash(spec.model, spec.revision, spec.dtype, spec.trust_remote_code)


def _scores(group: Sequence[ResolvedEncoder], read: _Text) -> list[LanguageScore]:
    """The scores of encoders of one model."""
    # Imported here, because they take seconds, and nothing may be missing.
    import torch

    from sharelock_ray.encoders.likelihood import LikelihoodModel

    specs = [encoder.spec for encoder in group if isinstance(encoder.spec, LanguageSpec)]
    layers = list(dict.fromkeys(spec.layer for spec in specs))
    model = LikelihoodModel(specs[0], "cuda" if torch.cuda.is_available() else "cpu", layers=layers)
    with Progress(f"language-score {specs[0].name}", "tokens", model.tokens(read.text)) as progress:
        found = model.bits(read.text, read.context, read.stride, progress.update)
    scores = []
    for encoder, spec in zip(group, specs, strict=True):
        at = layers.index(spec.layer)
        scores.append(
            LanguageScore(
                model=encoder.name,
                encoder=encoder.folder,
                revision=model.revision,
                family=family_of(spec.model),
                parameters=model.parameters[at],
                kind=model.kind,
                layer=spec.layer,
                readout=model.readouts[at],
                bits_per_byte=_bits_per_byte(found.bits[at], found.starts, read.size),
                block_bytes=_BLOCK,
                context=read.context,
                stride=read.stride if model.kind == "causal" else None,
                lossless=found.lossless,
                text_sha256=read.sha256,
                tokens=len(found.starts),
                bytes=read.size,
            )
        )
    return scores


def _bits_per_byte(bits: np.ndarray, starts: np.ndarray, size: int) -> Estimate:
    """The ratio, with the interval of the block bootstrap.

    Args:
        bits: (T,) of each token.
        starts: (T,) the byte at which each begins.
        size: bytes of the text.
    """
    blocks = np.arange(size) // _BLOCK
    bits_of_blocks = np.bincount(starts // _BLOCK, weights=bits, minlength=blocks[-1] + 1)
    # Spread over the bytes of a block, so that a resample's mean is its bits per byte.
    found = estimate((bits_of_blocks / np.bincount(blocks))[blocks], groups=blocks)
    return found.model_copy(update={"value": float(bits.sum() / size)})


def family_of(model: str) -> str:
    """The name of a model up to its size, such as `SmolLM2` of `HuggingFaceTB/SmolLM2-135M`; the whole without a size.

    Layers of one model are one family.
    """
    sized = re.match(r"(.+?)[-_.]?\d+(\.\d+)?[mb](?![a-z])", model.rpartition("/")[2], re.IGNORECASE)
    return sized[1] if sized else model
