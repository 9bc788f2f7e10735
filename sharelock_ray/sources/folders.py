"""One folder of images per class, as in ImageNet."""

from collections.abc import Iterator
from typing import Literal

from sharelock_ray import storage
from sharelock_ray.config import Config
from sharelock_ray.errors import RequestError
from sharelock_ray.sources.listing import IMAGE_EXTENSIONS, raise_unless_its_own, read_image, sample_key
from sharelock_ray.sources.sample import IMAGES, LABELS, Content, Reject, Sample, Shard


class ClassFolderSource(Config):
    """Images at `<path>/<class>/<image>`, without captions; label n is the n-th class folder by name."""

    format: Literal["class_folders"] = "class_folders"
    path: storage.Uri

    @property
    def provides(self) -> frozenset[Content]:
        return frozenset({IMAGES, LABELS})

    def shards(self) -> list[Shard]:
        """The class folders, sorted by name. Empty ones are kept, so labels do not depend on their content.

        Raises:
            RequestError: the folder is missing, or no class folder holds an image.
        """
        with storage.reading(self.path, "folder"):
            found = storage.entries(self.path)
        folders = [name for name, size in found.items() if size is None and not name.startswith(".")]
        if not folders:
            raise RequestError(f"{self.path} holds no class folders: images are expected at <class>/<image>")
        shards = []
        for index, name in enumerate(folders):
            uri = storage.join(self.path, name)
            content = _content(uri)
            size = sum(size for name, size in content if size and _is_image(name))
            shards.append(Shard(index, name, uri, size, _version(content)))
        if not any(shard.bytes for shard in shards):
            raise RequestError(f"the class folders of {self.path} hold no images: they are expected at <class>/<image>")
        return shards

    def version(self, shard: Shard) -> str:
        """Number of files and a digest of their names and sizes."""
        return _version(_content(shard.uri))

    def keys_of(self, shard: Shard) -> Iterator[str]:
        """The keys of the folder's entries."""
        return (sample_key(shard, name) for name, _ in _content(shard.uri))

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The images of one class, sorted by name; other entries and vanished files are rejects."""
        for name, size in _content(shard.uri):
            key = sample_key(shard, name)
            if size is None:
                yield Reject(
                    key, "read", "NoImageFile", "folder inside a class folder: images are expected at <class>/<image>"
                )
                continue
            if not _is_image(name):
                yield Reject(
                    key, "read", "NoImageFile", f"extension is not one of {', '.join(sorted(IMAGE_EXTENSIONS))}"
                )
                continue
            try:
                yield Sample(key, read_image(storage.join(shard.uri, name)), label=shard.index)
            except (OSError, ValueError) as error:
                raise_unless_its_own(error)
                yield Reject.of(key, "read", error)


def _content(folder: str) -> list[tuple[str, int | None]]:
    """Names and sizes of the entries of `folder` that are not hidden; the size of a folder is None."""
    return [(name, size) for name, size in storage.entries(folder).items() if not name.startswith(".")]


def _version(content: list[tuple[str, int | None]]) -> str:
    return f"{len(content):,} files of {storage.sha256(repr(content).encode())[:8]}"


def _is_image(name: str) -> bool:
    return name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS
