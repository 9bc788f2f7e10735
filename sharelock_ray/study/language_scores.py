"""Scores of language models from tables of others, and as `sharelock language-score` measures them.

A metric has values of several harnesses: prompts, shots, and ways to read an answer. Those of two harnesses differ by
as much as models do, so only scores of one harness are compared. `language_scores.csv` beside this file has scores with
the source of each; a model without a source has no row.
"""

import csv
import difflib
import io
import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from sharelock_ray import storage
from sharelock_ray.documents import Document, read_document
from sharelock_ray.errors import RequestError
from sharelock_ray.evaluation.statistics import Estimate
from sharelock_ray.sources.content import decoded

SHIPPED = str(Path(__file__).with_suffix(".csv"))
BITS_PER_BYTE = "bits per byte"
_LOWER_IS_BETTER = ("bitsperbyte", "perplexity", "loss")
_COLUMNS = ("model", "metric", "harness", "value")
_QUESTIONS = {"mmlupro": 12_032, "mmlu": 14_042, "hellaswag": 10_042, "arcc": 1_172}
"""Number of questions of the split that harnesses score."""
_AT_CHANCE = 0.015
"""Largest difference from chance of a score that ranks nothing: the order of the options moves scores by as much."""
_Z = 1.959964


class LanguageScore(Document):
    """A document of `sharelock language-score`: bits per byte of a language model on a text."""

    model: str
    """Name of the encoder."""
    encoder: str = ""
    """Its name and the hash of its settings, as in the folders of its feature sets."""
    revision: str | None = None
    """Commit of the model on the hub."""
    family: str = ""
    """Models of one family are not independent. "" if unknown."""
    parameters: int | None = None
    """Number of parameters that its states depend on, without the head."""
    kind: Literal["causal", "masked"]
    """Likelihood of a causal model, or pseudo-likelihood of a masked one (arXiv 1910.14659); they do not compare."""
    layer: int | None = None
    """Index of the hidden states, as of the encoder; None is the model's output."""
    readout: Literal["head", "linear"] = "head"
    """How the head reads the layer: itself, or after an affine map to the states of the last layer, which is fitted on
    the other half of the text."""
    bits_per_byte: Estimate
    """The interval resamples blocks of the text."""
    block_bytes: int | None = None
    context: int | None = None
    """Largest number of tokens in a forward pass."""
    stride: int | None = None
    """Tokens that each window of a causal model scores."""
    lossless: bool = True
    """Whether the tokens hold the whole text, so that its bytes are those that the bits are of."""
    text_sha256: str
    """SHA-256 of the text."""
    tokens: int = Field(ge=1)
    bytes: int = Field(ge=1)

    @property
    def harness(self) -> str:
        """What must be equal for two scores to compare."""
        context = "" if self.context is None else f", context {self.context:,}"
        return f"{self.kind}, text {self.text_sha256[:8]}{context}{'' if self.lossless else ', lossy tokenizer'}"


@dataclass(frozen=True)
class ScoredModel:
    """A language model's score in one metric of one harness."""

    model: str
    metric: str
    harness: str
    value: float
    error: float | None = None
    """Standard error; None if unknown."""
    chance: float | None = None
    family: str = ""
    params_b: float | None = None
    """Number of parameters, in billions."""
    source: str = ""
    source_date: str = ""

    @property
    def at_chance(self) -> bool:
        """Whether the score is so near to chance, or below, that it does not rank the model."""
        return self.chance is not None and self.value <= self.chance + _AT_CHANCE


def read_scores(places: Sequence[str] = ()) -> list[ScoredModel]:
    """Reads tables of scores (`.csv`) and documents of `sharelock language-score` (`.json`).

    A table has the columns `model`, `metric`, `harness` and `value`; `family`, `params_b`, `chance`, `n` (the number of
    questions), `source` and `source_date` are optional, and others are ignored. A row without a value is one without a
    source, and is left out.

    Args:
        places: () for the shipped table.

    Raises:
        RequestError: a file is missing or is no such table; the message names the row.
        RunError: a document is damaged.
    """
    found: list[ScoredModel] = []
    for place in places or (SHIPPED,):
        uri = storage.absolute(place)
        found += [_measured(uri)] if uri.endswith(".json") else _rows(uri)
    return found


def select(scores: Iterable[ScoredModel], metric: str | None, harness: str | None = None) -> dict[str, ScoredModel]:
    """The scores of one metric of one harness, by model.

    Args:
        metric: its name; case and punctuation are ignored. None: the only one.
        harness: its name, or any part of it that others lack. None: the only one.

    Raises:
        RequestError: the name is unknown or ambiguous, or a model has two scores.
    """
    scores = list(scores)
    chosen = _named("metric", metric, {score.metric for score in scores})
    scores = [score for score in scores if score.metric == chosen]
    one = _named(f"harness of {chosen}", harness, {score.harness for score in scores})
    found: dict[str, ScoredModel] = {}
    for score in scores:
        if score.harness == one and found.setdefault(score.model, score) is not score:
            raise RequestError(f"the model {score.model} has two scores in {chosen} ({one}): keep one")
    return found


def lower_is_better(metric: str) -> bool:
    """Whether better language models have lower scores in a metric."""
    return _key(metric) in _LOWER_IS_BETTER


def _named(what: str, name: str | None, known: Collection[str]) -> str:
    """The one of `known` that is meant: the only one, that of this name, or the only one with this part."""
    if not known:
        raise RequestError("the files of scores hold no values: add rows with `value`")
    matches = [each for each in known if name is None or _key(name) == _key(each)]
    if name is not None:
        matches = matches or [each for each in known if name.casefold() in each.casefold()]
    if len(matches) == 1:
        return matches[0]
    if matches:
        listed = "; ".join(sorted(matches))
        raise RequestError(f"scores of one {what} compare, and these are of {len(matches)} ({listed}): name one")
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
    raise RequestError(f"there is no {what} {name!r}: did you mean {near!r}?")


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _measured(uri: str) -> ScoredModel:
    with storage.reading(uri, "language score"):
        found = read_document(LanguageScore, uri, "name a document of `sharelock language-score`, or a .csv file")
    bits = found.bits_per_byte
    return ScoredModel(
        model=found.model,
        metric=BITS_PER_BYTE,
        harness=found.harness,
        value=bits.value,
        error=(bits.high - bits.low) / (2 * _Z),
        family=found.family,
        params_b=None if found.parameters is None else found.parameters / 1e9,
        source=uri,
    )


def _rows(uri: str) -> list[ScoredModel]:
    with storage.reading(uri, "table of scores"):
        text = decoded(storage.read_bytes(uri), uri)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        if missing := [name for name in _COLUMNS if name not in (reader.fieldnames or ())]:
            raise RequestError(f"{uri} has no column `{missing[0]}`: a table of scores has {', '.join(_COLUMNS)}")
        return [_row(row, f"{uri}, row {number:,}") for number, row in enumerate(reader, 1) if row["value"]]
    except csv.Error as error:
        raise RequestError(f"{uri} is not a CSV file after line {reader.line_num:,}: {error}") from None


def _row(row: dict[str, str], place: str) -> ScoredModel:
    value = _number(row, "value", place)
    assert value is not None
    for name in ("model", "metric"):
        if not row[name]:
            raise RequestError(f"{place}: `{name}` is empty")
    questions = _number(row, "n", place) or _QUESTIONS.get(_key(row["metric"]))
    params = _number(row, "params_b", place)
    is_share = questions is not None and 0 <= value <= 1
    return ScoredModel(
        model=row["model"],
        metric=row["metric"],
        harness=row["harness"] or "not stated",
        value=value,
        error=math.sqrt(value * (1 - value) / questions) if is_share and questions else None,
        chance=_number(row, "chance", place),
        family=row.get("family") or "",
        # Leaderboards write 0 or -1 for an unknown size.
        params_b=params if params and params > 0 else None,
        source=row.get("source") or "",
        source_date=row.get("source_date") or "",
    )


def _number(row: dict[str, str], name: str, place: str) -> float | None:
    text = row.get(name)
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise RequestError(f"{place}: `{name}` must be a number (it is {text!r})")
    return number
