"""What an evaluation found, as it is stored and shown. Needs no torch."""

from sharelock_ray.config import Config
from sharelock_ray.evaluation.statistics import Estimate


class ZeroShotResult(Config):
    """Accuracies as shares of 1. `candidates` names of classes were ranked; `classes` is how many have test images."""

    images: int
    candidates: int
    classes: int
    chance: float
    top_1: Estimate
    top_5: Estimate
    mean_per_class: float
    per_class: dict[str, float]
    """Top-1 by class name, of the classes that have images; with the label too where several have that name."""


class RetrievalResult(Config):
    """Shares of queries whose match is among the k nearest, by k."""

    images: int
    texts: int
    image_to_text: dict[int, Estimate]
    text_to_image: dict[int, Estimate]


class ZeroShot(Config):
    """The same images ranked among the classes that have images, and among all named classes."""

    among_present: ZeroShotResult
    among_all: ZeroShotResult


class Example(Config):
    """One image of the evaluated split: its true text, and the one that the model preferred."""

    key: str
    truth: str
    predicted: str
    thumbnail: str | None = None
    """A small PNG in base64. None where the image could not be read any more, and in evaluations of version 1."""


class Evaluation(Config):
    """`evaluation.json`. Retrieval is None where no image has a caption, zero-shot where none has a named class."""

    split: str
    model_step: int
    templates: tuple[str, ...]
    retrieval: RetrievalResult | None
    zero_shot: ZeroShot | None
    examples: tuple[Example, ...]
    notes: tuple[str, ...] = ()
    """What was left out, and why; and what else a reader of the numbers must know."""
