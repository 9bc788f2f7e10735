"""Encoder against decoder: matched pairs of language models, each read in its best way.

How a model is read, by which pooling and from which layer, is chosen on validation pairs, for each model and data set.
The difference under each pooling shows whether the choice of one would decide which model wins.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sharelock_ray.config import Config
from sharelock_ray.documents import Document
from sharelock_ray.study.effects import t_interval, with_doubles
from sharelock_ray.study.trials import Interval, Objective, Study

DOCUMENT = "matched.json"
LANGUAGE = "language"
"""The axis of a study whose values are language encoders."""
_CHOSEN_BY: Objective = "recall_at_1"
_Data = tuple[tuple[str, Any], ...]


class Choice(Config):
    """The reading of a model that was chosen on validation pairs of a data set."""

    model: str
    data: str
    """Values of the study's other axes, such as the data set; "" without other axes."""
    encoder: str
    pooling: str
    layer: int | None
    candidates: int
    """Number of readings that it was chosen from."""
    validation: float
    """Recall at 1 among validation pairs, by which it was chosen: the mean over the seeds."""
    score: float
    """Mean over the seeds."""


class Difference(Config):
    """Score of an encoder minus that of its decoder, with 95 % t-intervals of paired differences."""

    encoder: str
    decoder: str
    pooling: str | None
    """The pooling of both; None: each has its chosen reading. The layer is always chosen."""
    data: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    """For each of `data`, one for each seed."""
    over_seeds: Interval
    """Over the seeds' means over the data sets: holds for these data sets."""
    over_data: Interval | None
    """Over the data sets' means over the seeds; None for a single data set."""


class Overall(Config):
    """Mean difference of all pairs of models under one pooling, over the pairs."""

    pooling: str | None
    pairs: int
    difference: Interval


class Matched(Document):
    """`matched.json`: encoders against decoders."""

    score: Objective
    """The score that is compared: zero-shot accuracy on the test split, if trials have it."""
    seeds: tuple[int, ...]
    choices: tuple[Choice, ...]
    differences: tuple[Difference, ...]
    overall: tuple[Overall, ...]
    """First with the chosen readings, then under each pooling."""
    notes: tuple[str, ...] = ()

    @property
    def leads(self) -> tuple[list[str], list[str]]:
        """The fixed poolings under which encoders lead, and those under which decoders lead, in the mean."""
        fixed = [(each.pooling, each.difference.value) for each in self.overall if each.pooling is not None]
        return [name for name, value in fixed if value > 0], [name for name, value in fixed if value < 0]


def compare_matched(study: Study) -> Matched:
    """Compares the matched models of a study.

    A reading is a candidate for a data set if it has finished with every seed. Of equal candidates, the first in the
    study is chosen.
    """
    scores = _scores(study)
    data = list(dict.fromkeys(of for _, of in scores))
    poolings = list(dict.fromkeys(reading.pooling for reading in study.readings.values()))

    def chosen(model: str, of: _Data, pooling: str | None) -> tuple[Choice, np.ndarray] | None:
        found = [
            name
            for name, reading in study.readings.items()
            if reading.model == model and pooling in (None, reading.pooling) and (name, of) in scores
        ]
        if not found:
            return None
        best = max(found, key=lambda name: scores[name, of][0].mean())
        reading, (validation, score) = study.readings[best], scores[best, of]
        choice = Choice(
            model=model,
            data=_text(of),
            encoder=best,
            pooling=reading.pooling,
            layer=reading.layer,
            candidates=len(found),
            validation=float(validation.mean()),
            score=float(score.mean()),
        )
        return choice, score

    differences, notes = [], []
    choices: dict[tuple[str, str], Choice] = {}
    for pair in study.matched:
        for pooling in (None, *poolings):
            of_data: dict[str, np.ndarray] = {}
            for of in data:
                encoder, decoder = (chosen(model, of, pooling) for model in pair)
                if encoder and decoder:
                    of_data[_text(of)] = encoder[1] - decoder[1]
                    if pooling is None:
                        choices |= {(choice.model, choice.data): choice for choice, _ in (encoder, decoder)}
            if of_data:
                differences.append(_difference(pair, pooling, of_data))
            elif pooling is None:
                notes.append(f"left out, not finished with every seed on any data: {' and '.join(pair)}")
    score = _score(study)
    if score == _CHOSEN_BY:
        notes.append(
            "Readings were chosen and scored on the same validation pairs, for lack of a test split with classes: the "
            "scores of both sides are optimistic."
        )
    if len({choice.candidates for choice in choices.values()}) > 1:
        notes.append("The models have different numbers of readings to choose from, which favours those with more.")
    counts = [model for pair in study.matched for model in pair]
    if shared := list(dict.fromkeys(model for model in counts if counts.count(model) > 1)):
        notes.append(f"The pairs are not independent, since they share models: {', '.join(shared)}")
    return Matched(
        score=score,
        seeds=study.seeds,
        choices=tuple(choices.values()),
        differences=tuple(differences),
        overall=tuple(_overall(differences, (None, *poolings))),
        notes=tuple(notes),
    )


def _score(study: Study) -> Objective:
    finished = [trial for trial in study.trials if trial.state == "finished"]
    return "zero_shot" if finished and all("zero_shot" in trial.values for trial in finished) else _CHOSEN_BY


def _scores(study: Study) -> dict[tuple[str, _Data], tuple[np.ndarray, np.ndarray]]:
    """Recalls and scores by seed of each language encoder and data set that has finished with every seed."""
    score = _score(study)
    cells: dict[tuple[str, _Data], dict[int, tuple[float, float]]] = {}
    for trial in with_doubles(study.trials, study.doubles):
        if trial.state == "finished":
            of = tuple((axis, trial.point[axis]) for axis in study.axes if axis != LANGUAGE)
            values = trial.values[_CHOSEN_BY], trial.values[score]
            cells.setdefault((trial.point[LANGUAGE], of), {})[trial.seed] = values
    return {
        cell: (of_seeds[:, 0], of_seeds[:, 1])
        for cell, found in cells.items()
        if found.keys() >= set(study.seeds) and len(of_seeds := np.array([found[seed] for seed in study.seeds]))
    }


def _difference(pair: tuple[str, str], pooling: str | None, of_data: dict[str, np.ndarray]) -> Difference:
    values = np.stack(list(of_data.values()))
    return Difference(
        encoder=pair[0],
        decoder=pair[1],
        pooling=pooling,
        data=tuple(of_data),
        values=tuple(map(tuple, values.tolist())),
        over_seeds=t_interval(values.mean(0)),
        over_data=t_interval(values.mean(1)) if len(values) > 1 else None,
    )


def _overall(differences: Sequence[Difference], poolings: Sequence[str | None]) -> list[Overall]:
    found = []
    for pooling in poolings:
        means = [each.over_seeds.value for each in differences if each.pooling == pooling]
        if means:
            found.append(Overall(pooling=pooling, pairs=len(means), difference=t_interval(means)))
    return found


def _text(of: _Data) -> str:
    return ", ".join(f"{axis.rpartition('.')[2]} {value}" for axis, value in of)
