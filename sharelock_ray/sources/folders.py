"""A folder of images for each class, as ImageNet is laid out."""

from collections.abc import Iterator
from typing import Literal

from sharelock_ray import storage
from sharelock_ray.config import Config
from sharelock_ray.errors import RequestError
from sharelock_ray.sources.listing import IMAGE_EXTENSIONS, TooLargeError, raise_unless_its_own, read_image, sample_key
from sharelock_ray.sources.sample import Reject, Sample, Shard


class ClassFolderSource(Config):
    """Images at `<path>/<class>/<image>`; label n is the n-th class folder by name, and there are no captions."""

    format: Literal["class_folders"] = "class_folders"
    path: storage.Uri

    def shards(self) -> list[Shard]:
        """The class folders, sorted; an empty one is kept, so that labels do not depend on what is in them.

        Raises:
            RequestError: there is no such folder, or it holds no class folder with an image.
        """
        try:
            found = storage.entries(self.path)
        except (FileNotFoundError, NotADirectoryError):
            raise RequestError(f"no folder at {self.path}: check the data's `path`") from None
        folders = [name for name, size in found.items() if size is None and not name.startswith(".")]
        if not folders:
            raise RequestError(f"{self.path} holds no class folders: images are expected at <class>/<image>")
        shards = []
        for index, name in enumerate(folders):
            uri = storage.join(self.path, name)
            shards.append(Shard(index, name, uri, sum(_images(uri).values())))
        if not any(shard.bytes for shard in shards):
            raise RequestError(f"the class folders of {self.path} hold no images")
        return shards

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        """The images of one class, sorted by name; one that is gone since the listing is a reject."""
        for name in _images(shard.uri):
            key = sample_key(shard, name)
            try:
                yield Sample(key, read_image(storage.join(shard.uri, name)), label=shard.index)
            except (OSError, TooLargeError) as error:
                raise_unless_its_own(error)
                yield Reject.of(key, "read", error)


def _images(folder: str) -> dict[str, int]:
    """Sizes of the image files directly in `folder`, by name."""
    return {
        name: size
        for name, size in storage.entries(folder).items()
        if size is not None and not name.startswith(".") and name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS
    }
