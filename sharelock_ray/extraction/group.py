"""The encoders of one process. Encoders that differ only in what they read of a forward pass share it and the model."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sharelock_ray.encoders.spec import EncoderSpec, VisionSpec
from sharelock_ray.errors import RunError
from sharelock_ray.extraction.chunks import Chunk, encode_language, encode_vision
from sharelock_ray.features.writer import EncodedChunk


@dataclass(frozen=True)
class EncoderGroup:
    """A loaded model and the encoders that it serves, by index in the list passed to `load_encoders`."""

    members: tuple[int, ...]
    spec: EncoderSpec
    encoder: Any

    def encode(self, chunk: Chunk) -> list[EncodedChunk]:
        """Rows and rejects of a decoded chunk, per member."""
        if isinstance(self.spec, VisionSpec):
            return encode_vision(self.encoder, chunk, self.spec.preprocessing)
        return encode_language(self.encoder, chunk)


def load_encoders(
    specs: Sequence[EncoderSpec],
    device: str,
    *,
    image_batch_size: int | None,
    token_budget: int | None,
    compiled: bool,
    channels_last: bool,
) -> list[EncoderGroup]:
    """Loads the encoders of `specs`, each model once.

    Raises:
        RequestError: a model cannot be loaded.
        RunError: the device does not exist.
    """
    import torch

    from sharelock_ray.encoders.language import LanguageEncoder
    from sharelock_ray.encoders.vision import VisionEncoder

    if device == "cuda" and not torch.cuda.is_available():
        raise RunError(
            f"torch {torch.__version__} finds no GPU on {socket.gethostname()}: install a build for the GPU's driver, "
            f"or set operations.extraction.num_gpus=0"
        )
    shared: dict[str, list[int]] = {}
    for place, spec in enumerate(specs):
        shared.setdefault(spec.forward_key(), []).append(place)
    groups = []
    for members in shared.values():
        first, *others = (specs[place] for place in members)
        settings: dict[str, Any] = {"others": others, "compiled": compiled}
        encoder = (
            VisionEncoder(first, device, image_batch_size, channels_last=channels_last, **settings)
            if isinstance(first, VisionSpec)
            else LanguageEncoder(first, device, token_budget, **settings)
        )
        groups.append(EncoderGroup(tuple(members), first, encoder))
    return groups
