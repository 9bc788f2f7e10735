"""Class prompts (each class name in each template) as a source of texts for language encoders."""

from collections.abc import Iterator, Sequence

from sharelock_ray.config import Config, content_hash
from sharelock_ray.sources.listing import row_name, sample_key
from sharelock_ray.sources.sample import CAPTIONS, Content, Reject, Sample, Shard

_CLASSES = 100
"""Classes per shard: 8,000 texts with the 80 templates of CLIP."""


class PromptSource(Config):
    """One sample per class, in label order; its captions are the class's prompts.

    The key ends in the zero-padded label; `caption_id` is the index of the template.
    """

    names: tuple[str, ...]
    templates: tuple[str, ...]
    """Texts with `{}` for the name."""

    @property
    def provides(self) -> frozenset[Content]:
        return frozenset({CAPTIONS})

    def shards(self) -> list[Shard]:
        """Runs of 100 classes."""
        return [self._shard(index) for index in range(-(-len(self.names) // _CLASSES))]

    def version(self, shard: Shard) -> str:
        """Digest of the shard's prompts."""
        return self._shard(shard.index).version

    def keys_of(self, shard: Shard) -> Iterator[str]:
        """One key per class."""
        first = shard.index * _CLASSES
        return (sample_key(shard, row_name(label)) for label in range(first, first + len(self._prompts(shard.index))))

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """One sample per class of the shard."""
        for key, prompts in zip(self.keys_of(shard), self._prompts(shard.index), strict=True):
            yield Sample(key, None, prompts)

    def _prompts(self, index: int) -> tuple[tuple[str, ...], ...]:
        # Many languages have millions of prompts, so they are made where they are read.
        some = self.names[index * _CLASSES : (index + 1) * _CLASSES]
        return tuple(tuple(prompts_of(name, self.templates)) for name in some)

    def _shard(self, index: int) -> Shard:
        prompts = self._prompts(index)
        size = sum(len(text.encode()) for of_class in prompts for text in of_class)
        name = f"classes-{index:05d}"
        return Shard(index, name, f"prompts/{name}", size, content_hash(prompts))


def prompts_of(name: str, templates: Sequence[str]) -> list[str]:
    """The name inserted into each template; it may contain braces."""
    return [template.replace("{}", name) for template in templates]
