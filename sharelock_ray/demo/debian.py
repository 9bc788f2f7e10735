"""Debian packages, fetched by the system's own client and unpacked without root."""

import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from sharelock_ray import storage
from sharelock_ray.errors import RequestError
from sharelock_ray.progress import say

_APT = ("apt-get", "--quiet", "-o", "Acquire::Retries=5", "-o", "Acquire::http::Timeout=60")
_LIMIT_S = 900
_AR_MAGIC, _AR_HEADER_BYTES = b"!<arch>\n", 60


@dataclass(frozen=True)
class Package:
    """A version of a Debian package, and the part of it that is wanted.

    Args:
        sha256: digest of the `.deb` file.
        inside: the folder that is unpacked.
        patterns: names of the files in it that are unpacked (`*.svg`); links never are.
        stage: the work that needs it, for messages.
        instead: what a user does who cannot have it, for the error.
    """

    name: str
    version: str
    sha256: str
    inside: str
    patterns: tuple[str, ...]
    stage: str = "pictures"
    instead: str = "use pictures of your own: sharelock demo pictures --data 'folder/*.tar'"


def unpacked(package: Package, folder: Path) -> Path:
    """The folder with a package's files below `folder`; fetched and unpacked once.

    A `.deb` file that lies in `folder` already is used instead of a download, so it may come from anywhere.

    Raises:
        RequestError: the package cannot be fetched, or has other content.
    """
    target = folder / f"{package.name}-{package.sha256[:8]}"
    if target.exists():
        return target
    with storage.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as work:
            given = (path for path in sorted(folder.glob(f"{package.name}_*.deb")) if _is(package, path))
            _unpack(package, next(given, None) or _download(package, folder, Path(work)), Path(work, "unpacked"))
            os.rename(Path(work, "unpacked"), target)
    return target


def _is(package: Package, path: Path) -> bool:
    return storage.sha256_of(str(path)) == package.sha256


def _download(package: Package, folder: Path, work: Path) -> Path:
    if shutil.which("apt-get") is None:
        raise _unavailable(package, folder, "there is no apt-get on this machine, which is no Debian")
    say(f"{package.stage}: fetching Debian's {package.name} {package.version}")
    download = ("download", f"{package.name}={package.version}")
    problem = _apt(work, *download)
    if problem:
        # The system's lists of packages are old, or were removed as in container images: fetch lists of our own.
        lists = ("-o", f"Dir::State::Lists={work}/lists", "-o", f"Dir::Cache={work}/cache")
        problem = _apt(work, *lists, "update") or _apt(work, *lists, *download)
    if problem:
        another = problem.startswith("Version ")
        raise _unavailable(package, folder, "this release of Debian has another version" if another else problem)
    found = sorted(work.glob("*.deb"))
    if not found or not _is(package, found[0]):
        raise _unavailable(package, folder, "the file that was fetched has another SHA-256")
    return found[0]


def _apt(work: Path, *arguments: str) -> str | None:
    """Runs apt-get; its error in one line, or None."""
    try:
        # Its messages are read below.
        ran = subprocess.run(
            [*_APT, *arguments], cwd=work, env=os.environ | {"LC_ALL": "C"}, capture_output=True, timeout=_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return f"apt-get took more than {_LIMIT_S} s"
    if ran.returncode == 0:
        return None
    lines = ran.stderr.decode(errors="replace").splitlines()
    errors = [line.removeprefix("E: ").strip() for line in lines if line.startswith("E: ")]
    return errors[0] if errors else f"apt-get ended with exit code {ran.returncode}"


def _unavailable(package: Package, folder: Path, why: str) -> RequestError:
    return RequestError(
        f"Debian's {package.name} {package.version} is missing ({why}): put its .deb file, of SHA-256 "
        f"{package.sha256}, into {folder}, or {package.instead}"
    )


def _unpack(package: Package, archive: Path, target: Path) -> None:
    """Unpacks the wanted files. A `.deb` is an `ar` archive with a tar in it, so no tool of Debian is needed."""
    target.mkdir()
    with archive.open("rb") as file:
        _seek(file, b"data.tar")
        with tarfile.open(fileobj=file, mode="r|*") as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if member.isfile() and path.is_relative_to(package.inside) and any(map(path.match, package.patterns)):
                    member.name = str(path.relative_to(package.inside))
                    tar.extract(member, target, filter="data")


def _seek(file: BinaryIO, name: bytes) -> None:
    """Moves to the content of the first member of an `ar` archive whose name starts with `name`."""
    assert file.read(len(_AR_MAGIC)) == _AR_MAGIC
    while not (header := file.read(_AR_HEADER_BYTES)).startswith(name):
        size = int(header[48:58])
        file.seek(size + size % 2, os.SEEK_CUR)
