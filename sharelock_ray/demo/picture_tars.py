"""Tars of captioned pictures for training, validation and testing, and tables of their captions in all languages.

Pictures of one subject ("Apple", "apple 2") are all in one of training and validation. A tar holds, of each picture,
its PNG, its English caption, its label where it has one, and what else is known of it as JSON.
"""

import io
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from signal import SIG_IGN, SIGINT, signal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from sharelock_ray import storage
from sharelock_ray.config import Config
from sharelock_ray.demo.catalogues import Catalogue, Picture, class_names, clip_art, emoji, stamps
from sharelock_ray.demo.drawing import UndrawableError, drawn
from sharelock_ray.demo.tars import tar_of
from sharelock_ray.documents import Document, read_document
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.machine import cpu_count
from sharelock_ray.progress import Progress, say

BUILDER = "2"
"""Changes whenever the same packages are to give other pictures, captions or splits."""
PER_TAR = 512
_HELD_OUT_OF = 10
"""One of so many subjects is for validation."""
_CHUNK = 16
"""Pictures that a process draws before it returns them."""


@dataclass(frozen=True)
class Material:
    """The unpacked packages, and what makes the pictures what they are: digests and versions by name."""

    clip_art: Path
    emoji_names: Path
    font: Path
    stamps: Path
    versions: dict[str, str]


class Tar(Config):
    """A tar that was written.

    Args:
        skipped: why a picture could not be drawn, by its name.
    """

    sha256: str
    bytes: int
    pictures: int
    skipped: dict[str, str]


class PicturesRecord(Document):
    """`pictures.json`: what the pictures were made from, and each tar as soon as it is written.

    Args:
        left_out: pictures that were not drawn, by catalogue and reason.
        tars: by path below the folder.
        complete: all tars and tables are written.
    """

    made_from: dict[str, str]
    left_out: dict[str, dict[str, int]] = Field(default_factory=dict)
    tars: dict[str, Tar] = Field(default_factory=dict)
    complete: bool = False


def write_pictures(folder: Path, material: Material) -> PicturesRecord:
    """Writes `train/00000.tar` …, `validation/…`, `test/…`, `classes.txt`, `captions/<split>.parquet`,
    `captions/styles.parquet` and `pictures.json` below `folder`.

    An interrupted call is continued, and a finished one returns at once. Where the packages have changed, all is drawn
    again; a file whose content stays the same is not touched.

    Raises:
        RequestError: the packages hold no pictures for a split.
        RunError: a process that draws pictures died.
    """
    place = str(folder / "pictures.json")
    made_from = material.versions | {"builder": BUILDER}
    record = read_document(PicturesRecord, place) if storage.exists(place) else None
    if record is None or record.made_from != made_from:
        record = PicturesRecord(made_from=made_from)
    tars = {name: tar for name, tar in record.tars.items() if _is_there(folder / name, tar)}
    if record.complete and tars == record.tars:
        return record

    say("pictures: reading their captions")
    found = {
        "clip art": clip_art(material.clip_art),
        "emoji": emoji(material.emoji_names, material.font),
        "stamps": stamps(material.stamps),
    }
    splits = _splits(found)
    classes = class_names(splits["test"])
    _write(folder / "classes.txt", "".join(f"{name}\n" for name in classes).encode())
    contents = {
        f"{split}/{start // PER_TAR:05d}.tar": pictures[start : start + PER_TAR]
        for split, pictures in splits.items()
        for start in range(0, len(pictures), PER_TAR)
    }
    record = PicturesRecord(
        made_from=made_from,
        left_out={name: catalogue.left_out for name, catalogue in found.items()},
        tars={name: tar for name, tar in tars.items() if name in contents},
    )
    for name, members, skipped in _packed(contents, record.tars, classes):
        content = tar_of(members)
        _write(folder / name, content)
        tar = Tar(
            sha256=storage.sha256(content),
            bytes=len(content),
            pictures=len(contents[name]) - len(skipped),
            skipped=skipped,
        )
        record = record.model_copy(update={"tars": dict(sorted({**record.tars, name: tar}.items()))})
        storage.write_json(place, record.content())
    _remove_others(folder, contents)
    for split in splits:
        captions = [(key, picture.captions) for key, picture in _captioned(split, contents, record.tars).items()]
        _write(folder / "captions" / f"{split}.parquet", _table(captions))
    styles = [(key, _styles(picture)) for key, picture in _captioned("validation", contents, record.tars).items()]
    _write(folder / "captions" / "styles.parquet", _table(styles))
    record = record.model_copy(update={"complete": True})
    storage.write_json(place, record.content())
    return record


def _is_there(path: Path, tar: Tar) -> bool:
    return path.exists() and path.stat().st_size == tar.bytes


def _splits(found: dict[str, Catalogue]) -> dict[str, list[Picture]]:
    """The pictures of each split; those for training in an order that mixes them."""
    both = sorted(
        [*found["clip art"].pictures, *found["emoji"].pictures],
        key=lambda picture: storage.sha256(picture.name.encode()),
    )
    splits = {
        "train": [picture for picture in both if not _is_held_out(picture)],
        "validation": [picture for picture in both if _is_held_out(picture)],
        "test": found["stamps"].pictures,
    }
    for split, pictures in splits.items():
        if not pictures:
            raise RequestError(f"the packages hold no pictures with captions for the {split} split: restore them")
    return splits


def _is_held_out(picture: Picture) -> bool:
    return int(storage.sha256(picture.subject.encode())[:8], 16) % _HELD_OUT_OF == 0


def _packed(
    contents: dict[str, list[Picture]], done: dict[str, Tar], classes: list[str]
) -> Iterator[tuple[str, list[tuple[str, bytes]], dict[str, str]]]:
    """Draws the pictures of each tar that is not done: its name, members, and the reasons of pictures without any."""
    todo = {name: pictures for name, pictures in contents.items() if name not in done}
    drawings = [picture.drawing for pictures in todo.values() for picture in pictures]
    total = sum(map(len, contents.values()))
    # Not by a fork, which would copy locks that other threads hold. Ctrl-C is for this process, which ends the others.
    pool = ProcessPoolExecutor(cpu_count(), get_context("spawn"), signal, (SIGINT, SIG_IGN))
    with Progress("pictures", "pictures", total, total - len(drawings)) as progress:
        try:
            results = pool.map(drawn, drawings, chunksize=_CHUNK)
            for name, pictures in todo.items():
                members: list[tuple[str, bytes]] = []
                skipped: dict[str, str] = {}
                for picture in pictures:
                    result = next(results)
                    if isinstance(result, UndrawableError):
                        skipped[picture.name] = str(result)
                    else:
                        members += _members(picture, result, classes)
                    progress.update()
                yield name, members, skipped
        except BrokenProcessPool:
            raise RunError(
                f"a process that draws the pictures of {name} died, of too little memory or of a picture: "
                "run the same command again to continue"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _members(picture: Picture, png: bytes, classes: list[str]) -> Iterator[tuple[str, bytes]]:
    yield f"{picture.name}.png", png
    yield f"{picture.name}.txt", picture.captions["en"].encode()
    if picture.folder in classes:
        yield f"{picture.name}.cls", str(classes.index(picture.folder)).encode()
    if picture.notes:
        yield f"{picture.name}.json", json.dumps(picture.notes, ensure_ascii=False).encode()


def _captioned(split: str, contents: dict[str, list[Picture]], tars: dict[str, Tar]) -> dict[str, Picture]:
    """The pictures of a split by the key that feature sets have (shard + sample)."""
    return {
        f"{name.removeprefix(f'{split}/').removesuffix('.tar')}/{picture.name}": picture
        for name, pictures in contents.items()
        if name.startswith(f"{split}/")
        for picture in pictures
        if picture.name not in tars[name].skipped
    }


def _styles(picture: Picture) -> dict[str, str]:
    """The title of a picture written in other styles than the training captions, by the style's name."""
    title = picture.captions["en"].partition(",")[0]
    subject = title[:1].lower() + title[1:]
    article = "an" if subject[:1] in tuple("aeiou") else "a"
    return {"title": title, "sentence": f"{article.title()} {subject}.", "picture": f"a picture of {subject}"}


def _table(by_key: list[tuple[str, dict[str, str]]]) -> bytes:
    """Parquet with a row per caption, from the captions of each key by language."""
    rows = [(key, language, caption) for key, by in by_key for language, caption in sorted(by.items())]
    keys, languages, captions = zip(*rows, strict=True)
    buffer = io.BytesIO()
    table = pa.table({"key": keys, "language": pa.array(languages).dictionary_encode(), "caption": captions})
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    """As `storage.write_bytes`; a file with that content keeps its time, which feature sets know their inputs by."""
    if not path.exists() or path.read_bytes() != content:
        storage.write_bytes(str(path), content)


def _remove_others(folder: Path, contents: dict[str, list[Picture]]) -> None:
    """Removes the tars of an earlier version."""
    for split in {name.partition("/")[0] for name in contents}:
        for path in (folder / split).glob("*.tar"):
            if f"{split}/{path.name}" not in contents:
                path.unlink()
