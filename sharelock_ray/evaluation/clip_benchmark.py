"""CLIP-Benchmark's own command line, with our models: `python -m sharelock_ray.evaluation.clip_benchmark eval …`.

It takes the arguments of `clip_benchmark`; `--pretrained` is a checkpoint folder, and `--model` names the model in its
results. Data, class names, templates and metrics are CLIP-Benchmark's. Images and texts are embedded by `AlignedModel`.
"""

import sys
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from sharelock_ray.encoders.images import Preprocessing, crop_image, upright
from sharelock_ray.encoders.spec import VisionSpec
from sharelock_ray.errors import RequestError, SharelockError
from sharelock_ray.progress import printable
from sharelock_ray.runs.model import AlignedModel, load_model

_TYPE = "sharelock"
# Its own default is the name of another model, and fails for a checkpoint in a folder, after the evaluation.
_DEFAULTS = ("--model_type", _TYPE, "--model", _TYPE, "--output", "{dataset}_{model}_{language}_{task}.json")


class Texts(list[str]):
    """Texts in place of tokens, which CLIP-Benchmark moves to a device."""

    def to(self, device: Any) -> "Texts":
        """Returns the texts themselves."""
        return self


class Model:
    """An aligned model with the methods that CLIP-Benchmark calls."""

    def __init__(self, model: AlignedModel) -> None:
        self._model = model

    def eval(self) -> "Model":
        """Returns the model itself, which is always in evaluation mode."""
        return self

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embeds (N, S, S, 3) uint8 pixels as unit vectors (N, D)."""
        return self._model.encode_pixels(pixels.numpy(force=True)).to(self._model.device)

    def encode_text(self, texts: Texts) -> torch.Tensor:
        """Embeds texts as unit vectors (N, D)."""
        return self._model.encode_text(texts).to(self._model.device)


def load(model_name: str, pretrained: str, cache_dir: str | None, device: str) -> tuple[Model, Any, type[Texts]]:
    """The loader that CLIP-Benchmark asks for: (model, transform of an image, tokenizer).

    Args:
        pretrained: a checkpoint folder (`<run>/best`), or a `.ckpt` of the official ShareLock code.

    Raises:
        RequestError, RunError: as `load_model`.
    """
    model = load_model(pretrained, device)
    spec = model.checkpoint.vision.encoder
    assert isinstance(spec, VisionSpec)
    return Model(model), partial(_pixels, spec.resolved().preprocessing), Texts


def main() -> None:
    """Runs CLIP-Benchmark's command line; mistakes about the model end as those of `sharelock`."""
    try:
        _run()
    except SharelockError as error:
        print(printable(f"sharelock: {error}"), file=sys.stderr)
        sys.exit(error.exit_code)


def with_numpy_2_4(metrics: Any) -> None:
    """Makes the module `zeroshot_classification` run with NumPy 2.4 and later.

    Version 1.6.2 calls `float` on an array of one element, which NumPy refuses since.
    """
    metrics.float = _number


def _run() -> None:
    try:
        from clip_benchmark import cli, models
        from clip_benchmark.metrics import zeroshot_classification
    except ImportError as error:
        raise RequestError(
            f"CLIP-Benchmark cannot be imported ({error}): run `pip install 'sharelock-ray[benchmarks]'`"
        ) from None
    models.TYPE2FUNC[_TYPE] = load
    models.MODEL_TYPES.append(_TYPE)
    with_numpy_2_4(zeroshot_classification)
    if sys.argv[1:2] == ["eval"]:
        # First, so that the user's own arguments override them.
        sys.argv[2:2] = _DEFAULTS
    cli.main()


def _number(value: Any) -> float:
    return value.item() if isinstance(value, np.ndarray) else float(value)


def _pixels(preprocessing: Preprocessing, image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(crop_image(upright(image), preprocessing).copy())


if __name__ == "__main__":
    main()
