"""The storage of a run's output: seen by every node, with the operations that writers rely on, and fast."""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sharelock_ray import storage
from sharelock_ray.errors import SharelockError
from sharelock_ray.health.check import Check, graded, refused

_SAMPLE_BYTES = 8 << 20
_MB = 1e6
_SLOW_MB_S = 20
# A second for stores that give whole seconds.
_RESOLUTION_S = 1.0
_ACCESS = "check the path, the credentials, and that they may read, write, list and delete there"


@dataclass(frozen=True)
class Nonce:
    """A random text that the driver wrote into the output, for the nodes to read."""

    uri: str
    text: str


@contextmanager
def probe_folder(output: str) -> Iterator[str]:
    """URI of a new folder below `output`, for the checks; removed at the end, with every folder that they made.

    Raises:
        SharelockError: it cannot be removed.
    """
    place = Path(storage.resolve(output)[1])
    missing = [path for path in (place, *place.parents) if not path.exists()] if storage.is_local(output) else []
    folder = storage.join(output, f".doctor-{uuid.uuid4().hex}")
    try:
        yield folder
    finally:
        # Without access, nothing was written either.
        with suppress(SharelockError, OSError):
            storage.remove(folder)
        for path in missing:
            with suppress(OSError):
                path.rmdir()


def write_nonce(folder: str) -> Nonce:
    """Writes a nonce into `folder`.

    Raises:
        SharelockError: it cannot be written.
    """
    nonce = Nonce(storage.join(folder, "nonce"), uuid.uuid4().hex)
    storage.write_bytes(nonce.uri, nonce.text.encode())
    return nonce


def shared_output(nonce: Nonce) -> Check:
    """Checks that this node reads what the driver wrote."""
    name, folder = "shared output", nonce.uri.rpartition("/.doctor-")[0]
    remedy = "set `output` to an object store, or to a folder that all nodes mount"
    try:
        if storage.read_bytes(nonce.uri) == nonce.text.encode():
            return Check(name, "ok", folder)
    except FileNotFoundError:
        pass
    except (SharelockError, OSError) as error:
        return refused(name, error, remedy)
    return Check(name, "fail", f"this node does not see what the driver wrote to {folder}", remedy)


def store_access(folder: str) -> Check:
    """Checks that objects can be written, read and removed, and that no writer replaces one that must be new."""
    name, place, new = "store", _new(folder), _new(folder)
    try:
        storage.write_bytes(place, b"first")
        if storage.read_bytes(place) != b"first":
            return Check(name, "fail", "an object is not read as it was written", "use another store")
        created = storage.create_bytes(new, b"second")
        replaced = storage.create_bytes(place, b"second") or storage.read_bytes(place) != b"first"
        if not created or replaced:
            found = "it replaces an object that must not be replaced (If-None-Match is ignored)"
            return Check(name, "fail", found, "use a store with conditional writes: two writers would mix their parts")
        for each in (place, new):
            storage.remove(each)
        if storage.exists(place):
            return Check(name, "fail", "a removed object is still there", _ACCESS)
    except (SharelockError, OSError) as error:
        return refused(name, error, _ACCESS)
    return Check(name, "ok", "reads, writes, creates only what is new, and deletes")


def store_speed(folder: str) -> Check:
    """Measures one write and one read of 8 MiB. On a local disk, the read is from memory."""
    place, data = _new(folder), os.urandom(_SAMPLE_BYTES)
    remedy = "use a store in the region of the nodes, or a faster disk or network"
    try:
        begun = time.perf_counter()
        storage.write_bytes(place, data)
        written = time.perf_counter()
        storage.read_bytes(place)
        read = time.perf_counter()
        storage.remove(place)
    except (SharelockError, OSError) as error:
        return refused("store speed", error, _ACCESS)
    rates = [_SAMPLE_BYTES / _MB / seconds for seconds in (written - begun, read - written)]
    found = f"one write at {rates[0]:,.0f} MB/s, one read at {rates[1]:,.0f} MB/s"
    return graded("store speed", min(rates), _SLOW_MB_S, 0, found, remedy)


def store_clock(folder: str) -> Check:
    """Compares this node's clock with that of the store."""
    place = _new(folder)
    try:
        begun = time.monotonic()
        storage.write_bytes(place, b"now")
        age = storage.age(place)
        elapsed = time.monotonic() - begun
        storage.remove(place)
    except (SharelockError, OSError) as error:
        return refused("store clock", error, _ACCESS)
    return skew("store clock", "the store", max(age - elapsed - _RESOLUTION_S, -age, 0))


def skew(name: str, reference: str, seconds: float) -> Check:
    """Judges the least difference of two clocks that the measurement allows. S3 refuses requests 15 minutes apart."""
    remedy = "synchronise this node's clock (chrony, or systemd-timesyncd)"
    return graded(name, -seconds, -5, -300, f"{seconds:,.1f} s from {reference}", remedy)


def _new(folder: str) -> str:
    return storage.join(folder, uuid.uuid4().hex)
