"""S3 and what speaks its protocol: one place for its settings, its retries and its errors.

s3fs does the talking. Its own repetitions and those of botocore are off: nested, they would multiply, and none of them
knows how long the whole has taken. Instead each request is repeated by one `RetryPolicy`; a read goes on at the byte
where it broke off; a write is one put, or parts that appear together. Every wrong request ends as one line.

Settings come from the environment of each process, so that nothing of them is in a recipe, a pickle or a manifest:

    AWS_ENDPOINT_URL, AWS_REGION, AWS_PROFILE, …   as in every AWS tool
    SHARELOCK_S3_PART_BYTES                        size of a part of a large object, 16 MiB if not set
    SHARELOCK_S3_ATTEMPTS                          of one request, in a row without progress; 10 if not set
"""

import asyncio
import io
import os
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Any, NoReturn, TypeVar

import aiohttp
import botocore.session
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    SSLError,
)
from botocore.parsers import ResponseParserError
from fsspec.asyn import sync, sync_wrapper
from s3fs import S3FileSystem

from sharelock_ray.errors import RequestError, RunError, SharelockError
from sharelock_ray.storage import ImpossibleUriError, number_from_environment
from sharelock_ray.storage.retry import ExhaustedError, RetryPolicy

_T = TypeVar("_T")
_Sink = Callable[[int, bytes], None]
"""Takes bytes of an object: their offset in the object, and the bytes."""

_MIN_PART_BYTES = 5 << 20
_MAX_PARTS = 10_000
"""Limits of S3 for a part that is not the last, and for their number (S3 User Guide, "multipart upload limits")."""
_PARALLEL_PARTS = 8
_CONNECTIONS = 32
_CONNECT_S = 5
# Completing a large upload can take a minute, during which S3 says nothing.
_ANSWER_S = 60
# An endpoint that has never answered is more likely a wrong address than one that is down.
_FIRST_CONTACT_S = 5
_CLEANING_S = 10
_READ_AHEAD_BYTES = 8 << 20
_CHUNK_BYTES = 1 << 20
_WRITER = "sharelock-writer"
"""Metadata of an object that tells a writer its own."""

# Beside whatever comes with a status of 5xx; the last three are those of an object within a removal of many.
_TRANSIENT_CODES = frozenset(
    {
        "RequestTimeout",
        "IncompleteBody",
        "BadDigest",
        "XAmzContentSHA256Mismatch",
        "OperationAborted",
        "SlowDown",
        "InternalError",
        "ServiceUnavailable",
    }
)
_TRANSIENT_ERRORS = (
    HTTPClientError,
    EndpointConnectionError,
    ConnectTimeoutError,
    IncompleteReadError,
    ResponseParserError,
    aiohttp.ClientError,
    ConnectionError,
    TimeoutError,
)
_EXPIRED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"})
_CONFLICT = "ConditionalRequestConflict"
_IMPOSSIBLE_NAMES = ("InvalidBucketName", "KeyTooLongError")


class _UploadGoneError(Exception):
    """An upload in parts that the store no longer knows, or that it wants begun again."""


class ObjectStore(S3FileSystem):
    """A bucket store as fsspec knows it, that repeats what is worth it and publishes objects whole or not at all.

    Holds no credentials: botocore finds them in the environment, the profile or the instance, and renews them.
    """

    retries = 1

    def __init__(self, endpoint: str | None, region: str | None, part_bytes: int, attempts: int, **_: Any) -> None:
        """What fsspec's own configuration says of s3, which it adds to the arguments, does not count.

        Args:
            endpoint: URL of the store; None for what botocore's own configuration says.
            part_bytes: a larger object is written and read in parts of this size.
            attempts: of a request, in a row without progress.
        """
        config: dict[str, Any] = {
            "connect_timeout": _CONNECT_S,
            "read_timeout": _ANSWER_S,
            "max_pool_connections": _CONNECTIONS,
            "retries": {"total_max_attempts": 1, "mode": "standard"},
        }
        if endpoint and not _profile_says("addressing_style"):
            # Few stores of one's own have a name for each bucket.
            config["s3"] = {"addressing_style": "path"}
        super().__init__(
            endpoint_url=endpoint,
            client_kwargs={"region_name": region} if region else {},
            config_kwargs=config,
            # Another process may write at any time, so a remembered listing would be wrong.
            use_listings_cache=False,
        )
        self._part_bytes = part_bytes
        self._policy = RetryPolicy(attempts=attempts)
        self._answered = False

    @classmethod
    def from_environment(cls) -> "ObjectStore":
        """The store that the environment names; one for a process, as long as the environment stays.

        Raises:
            RequestError: a setting is not a number that can be used.
        """
        return cls(
            endpoint=os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
            # botocore itself reads only the second.
            region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
            part_bytes=number_from_environment("SHARELOCK_S3_PART_BYTES", 16 << 20, least=_MIN_PART_BYTES),
            attempts=number_from_environment("SHARELOCK_S3_ATTEMPTS", RetryPolicy.attempts, least=1),
        )

    # Every request of s3fs, a page of a listing or the removal of a folder as well, goes through here.
    async def _call_s3(self, method: str, *settings: dict[str, Any], **arguments: Any) -> Any:
        return (await self._request(method, *settings, **arguments))[0]

    async def _request(self, method: str, *settings: dict[str, Any], **arguments: Any) -> tuple[Any, int]:
        """The answer to one request, and how many attempts at it failed before."""

        async def attempt() -> Any:
            answer = await self._attempt(method, *settings, **arguments)
            # The removal of many objects is answered with 200 even if some are still there.
            for failed in answer.get("Errors", []) if method == "delete_objects" else []:
                raise ClientError({"Error": failed, "ResponseMetadata": {"HTTPStatusCode": 200}}, method)
            return answer

        # To a put, a conflict says only that another one is under way.
        again = {_CONFLICT} if method == "put_object" else set()
        return await self._persist(_uri(arguments), attempt, again)

    async def _attempt(self, method: str, *settings: dict[str, Any], **arguments: Any) -> Any:
        answer = await super()._call_s3(method, *settings, **arguments)
        self._answered = True
        return answer

    async def _persist(
        self,
        uri: str,
        attempt: Callable[[], Awaitable[_T]],
        again: set[str] | None = None,
        progress: Callable[[], int] = lambda: 0,
    ) -> tuple[_T, int]:
        """Runs `attempt` by the policy; codes in `again` are transient too."""
        began = time.monotonic()

        def transient(error: Exception) -> bool:
            self._answered |= _response(error) is not None
            if _is_no_contact(error) and not self._answered:
                return time.monotonic() - began < _FIRST_CONTACT_S
            return _is_transient(error) or _code(error) in (again or ())

        try:
            return await self._policy.run(attempt, transient, progress)
        except ExhaustedError as error:
            raise RunError(
                f"{uri}: the object store at {self._place()} still fails after {error} "
                f"({_line(error.__cause__)}): run the same command again to continue"
            ) from None
        except SharelockError:
            raise
        except Exception as error:
            self._explain(error, uri)

    def _explain(self, error: Exception, uri: str) -> NoReturn:
        """Raises what a permanent error means to the caller or the user."""
        code = _code(error)
        if _is_no_contact(error):
            raise RequestError(
                f"{uri}: no object store answers at {self._place()}: check AWS_ENDPOINT_URL and the network"
            ) from None
        if isinstance(error, NoCredentialsError | PartialCredentialsError):
            raise RequestError(
                f"{uri}: no credentials for {self._place()}: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
                f"AWS_SECRET_ACCESS_KEY, or run where an instance profile gives them"
            ) from None
        if isinstance(error, ParamValidationError | UnicodeError) or code in _IMPOSSIBLE_NAMES:
            raise ImpossibleUriError(f"{uri}: S3 allows no such name: check the bucket and the path") from None
        # Of botocore alone a ValueError says that the endpoint is no URL.
        if isinstance(error, BotoCoreError | ValueError):
            raise RequestError(f"{uri}: {_line(error)}: check the AWS_* variables and the AWS profile") from None
        if code in ("NoSuchUpload", _CONFLICT):
            raise _UploadGoneError(code) from None
        if code == "NoSuchBucket":
            raise RequestError(
                f"{uri}: no such bucket at {self._place()}: check its name, AWS_ENDPOINT_URL and the region"
            ) from None
        status = _status(error)
        if status == 404:
            raise FileNotFoundError(f"no object at {uri}") from None
        if status == 412:
            raise FileExistsError(f"there is an object at {uri}") from None
        # The answer to a HEAD has no body that could say more than 400.
        if code in _EXPIRED_CODES or (status == 400 and code == "400"):
            raise RequestError(
                f"{uri}: the object store at {self._place()} refuses this ({code}: {_line(error)}): the credentials "
                f"have most likely expired: renew them, and run the same command again to continue"
            ) from None
        if status in (401, 403) or code == "AccessDenied":
            raise RequestError(
                f"{uri}: the object store at {self._place()} refuses this ({code}): "
                f"check the credentials, and that they may read, write, list and delete there"
            ) from None
        if status:
            raise RequestError(
                f"{uri}: the object store at {self._place()} answers {status} {code}: {_line(error)}"
            ) from None
        raise error

    def _place(self) -> str:
        return _without_user(str(self._s3.meta.endpoint_url if self._s3 else self.endpoint_url or "AWS"))

    async def _exists(self, path: str) -> bool:
        # That of s3fs takes any failure to reach a bucket for its absence.
        try:
            await self._info(path)
        except FileNotFoundError:
            return False
        return True

    exists = sync_wrapper(_exists)

    async def _pipe_file(self, path: str, data: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Publishes `data` at `path`; with the mode "create" only where no object is.

        A repetition whose first attempt got through although its answer was lost meets its own object: it knows it by
        metadata that no other writer could have set.

        Raises:
            FileExistsError: with the mode "create", another writer's object is there.
        """
        bucket, key, _version = self.split_path(path)
        place = {"Bucket": bucket, "Key": key}
        condition = {"IfNoneMatch": "*"} if mode == "create" else {}
        writer = uuid.uuid4().hex
        write = self._put if len(data) <= self._part_bytes else self._put_parts
        for begun in range(1, self._policy.attempts + 1):
            try:
                await write(place, data, {_WRITER: writer}, condition)
                return
            except (FileExistsError, _UploadGoneError) as error:
                if await self._writer(place) == writer:
                    return
                if isinstance(error, FileExistsError):
                    raise
            await asyncio.sleep(self._policy.pause(begun))
        raise RunError(f"{_uri(place)}: the store gave up {begun} uploads: another process writes or cleans up there")

    async def _writer(self, place: dict[str, str]) -> str | None:
        """Who wrote the object at `place`, where there is one."""
        with suppress(FileNotFoundError):
            return str((await self._call_s3("head_object", **place))["Metadata"].get(_WRITER))
        return None

    async def _put(
        self, place: dict[str, str], data: bytes, metadata: dict[str, str], condition: dict[str, str]
    ) -> None:
        await self._call_s3("put_object", **place, Body=data, Metadata=metadata, **condition)

    async def _put_parts(
        self, place: dict[str, str], data: bytes, metadata: dict[str, str], condition: dict[str, str]
    ) -> None:
        size = max(self._part_bytes, -(-len(data) // _MAX_PARTS))
        begun, failed = await self._request("create_multipart_upload", **place, Metadata=metadata)
        upload = {**place, "UploadId": begun["UploadId"]}

        async def put(number: int) -> dict[str, Any]:
            part = data[(number - 1) * size : number * size]
            answer = await self._call_s3("upload_part", **upload, PartNumber=number, Body=part)
            return {"PartNumber": number, "ETag": answer["ETag"]}

        try:
            numbers = range(1, -(-len(data) // size) + 1)
            parts = await _together([partial(put, number) for number in numbers])
            await self._call_s3("complete_multipart_upload", **upload, MultipartUpload={"Parts": parts}, **condition)
        except BaseException:
            await self._abort([upload])
            raise
        finally:
            if failed:
                await self._abort_lost(place)

    async def _abort(self, uploads: Sequence[dict[str, str]]) -> None:
        """Takes back what uploads have stored, if it can be done at once; the error that led here matters more."""
        with suppress(TimeoutError, SharelockError):
            async with asyncio.timeout(_CLEANING_S):
                for upload in uploads:
                    with suppress(_UploadGoneError):
                        await self._call_s3("abort_multipart_upload", **upload)

    async def _abort_lost(self, place: dict[str, str]) -> None:
        """Aborts the uploads to `place` that failed attempts may have begun, and whose answers were lost.

        It cannot tell them from another writer's upload to the same place, which then begins again.
        """
        lost: list[dict[str, str]] = []
        with suppress(TimeoutError, SharelockError):
            async with asyncio.timeout(_CLEANING_S):
                found = await self._call_s3("list_multipart_uploads", Bucket=place["Bucket"], Prefix=place["Key"])
                lost = [
                    {**place, "UploadId": each["UploadId"]}
                    for each in found.get("Uploads", [])
                    if each["Key"] == place["Key"]
                ]
        await self._abort(lost)

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        found = bytearray()

        def sink(offset: int, chunk: bytes) -> None:
            at = offset - (start or 0)
            found.extend(bytes(max(0, at - len(found))))
            found[at : at + len(chunk)] = chunk

        await self._download(path, start or 0, end, sink)
        return bytes(found)

    async def _get_file(self, rpath: str, lpath: str, *_: Any, **__: Any) -> None:
        with open(lpath, "wb") as file:

            def sink(offset: int, chunk: bytes) -> None:
                file.seek(offset)
                file.write(chunk)

            await self._download(rpath, 0, None, sink)

    async def _download(self, path: str, start: int, end: int | None, sink: _Sink, etag: str | None = None) -> None:
        """Gives the bytes from `start` to before `end` (or the object's end) to `sink`, several parts at a time.

        Raises:
            FileNotFoundError: there is no object.
            RunError: the object was replaced meanwhile; `etag` is the one that it must still have.
        """
        bucket, key, _version = self.split_path(path)
        place = {"Bucket": bucket, "Key": key}
        step = self._part_bytes
        etag, size = await self._read_part(
            place, start, start + step if end is None else min(end, start + step), sink, etag
        )
        end = size if end is None else min(end, size)
        starts = range(start + step, end, step)
        await _together([partial(self._read_part, place, at, min(at + step, end), sink, etag) for at in starts])

    async def _read_part(
        self, place: dict[str, str], start: int, end: int, sink: _Sink, etag: str | None
    ) -> tuple[str | None, int]:
        """Reads from `start` to before `end`, going on after each fault where it broke off.

        Returns:
            the object's ETag and its size in bytes; None and `start` if the object ends before that.
        """
        at, size = start, start

        async def attempt() -> None:
            nonlocal at, size, etag
            try:
                answer = await self._attempt("get_object", **place, Range=f"bytes={at}-{end - 1}")
            except OSError as error:
                if _status(error) == 416 and etag is None:
                    return
                raise
            with closing(answer["Body"]) as body:
                if answer["ETag"] != (etag or answer["ETag"]):
                    raise RunError(f"{_uri(place)} was replaced while it was read: run the same command again")
                etag, size = answer["ETag"], int(answer["ContentRange"].rpartition("/")[2])
                while chunk := await body.read(_CHUNK_BYTES):
                    sink(at, chunk)
                    at += len(chunk)
            if at < min(end, size):
                raise IncompleteReadError(actual_bytes=at - start, expected_bytes=min(end, size) - start)

        if start < end:
            await self._persist(_uri(place), attempt, progress=lambda: at)
        return etag, size

    def _open(self, path: str, mode: str = "rb", **_: Any) -> io.BufferedReader:
        if mode != "rb":
            # A stream that is closed after an error would publish what it has.
            raise io.UnsupportedOperation(f"mode {mode!r}: an object is written whole, by write_bytes or create_bytes")
        return io.BufferedReader(_Stream(self, path), _READ_AHEAD_BYTES)


class _Stream(io.RawIOBase):
    """An object as a stream that can be read from anywhere; always the object that it was when opened."""

    def __init__(self, store: ObjectStore, path: str) -> None:
        found = store.info(path)
        if found["type"] != "file":
            raise FileNotFoundError(f"no object at s3://{path}")
        self._store, self._path = store, path
        self._etag, self._size = found["ETag"], found["size"]
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        view, start = memoryview(buffer).cast("B"), self._at
        end = max(start, min(start + len(view), self._size))

        def sink(offset: int, chunk: bytes) -> None:
            view[offset - start : offset - start + len(chunk)] = chunk

        sync(self._store.loop, self._store._download, self._path, start, end, sink, self._etag)
        self._at = end
        return end - start

    def readall(self) -> bytes:
        found = bytearray(max(0, self._size - self._at))
        self.readinto(found)
        return bytes(found)


async def _together(tasks: Sequence[Callable[[], Awaitable[_T]]]) -> list[_T]:
    """What `tasks` return, a few at a time; the first that fails ends the others before it is raised."""
    free = asyncio.Semaphore(_PARALLEL_PARTS)

    async def run(task: Callable[[], Awaitable[_T]]) -> _T:
        async with free:
            return await task()

    running = [asyncio.ensure_future(run(task)) for task in tasks]
    try:
        return await asyncio.gather(*running)
    finally:
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _response(error: BaseException | None) -> dict[str, Any] | None:
    """The store's answer, where `error` is one; s3fs hides it in the cause."""
    answer = getattr(error, "response", None) or getattr(getattr(error, "__cause__", None), "response", None)
    return answer if isinstance(answer, dict) else None


def _status(error: BaseException) -> int | None:
    return (_response(error) or {}).get("ResponseMetadata", {}).get("HTTPStatusCode")


def _code(error: BaseException) -> str | None:
    return (_response(error) or {}).get("Error", {}).get("Code")


def _is_no_contact(error: Exception) -> bool:
    """No connection came about. aiobotocore calls one that breaks off later an EndpointConnectionError too."""
    if isinstance(error, EndpointConnectionError):
        return isinstance(error.kwargs.get("error"), aiohttp.ClientConnectorError)
    return isinstance(error, ConnectTimeoutError)


def _is_transient(error: Exception) -> bool:
    status = _status(error)
    if status is not None:
        # 501: the store does not know the request, and never will.
        return status in (408, 429) or (status >= 500 and status != 501) or _code(error) in _TRANSIENT_CODES
    if isinstance(error, SSLError):
        return "certificate" not in str(error).lower()
    return isinstance(error, _TRANSIENT_ERRORS)


def _line(error: BaseException | None) -> str:
    return _without_user(" ".join(str(error).split())) or type(error).__name__


def _without_user(text: str) -> str:
    """`text`, in which no URL holds a user's name and password."""
    return re.sub(r"(?<=://)[^/\s]*@", "", text)


def _profile_says(setting: str) -> bool:
    """Whether the AWS profile has this setting of s3."""
    try:
        return setting in botocore.session.Session().get_scoped_config().get("s3", {})
    # It is said of the first request.
    except BotoCoreError:
        return False


def _uri(arguments: dict[str, Any]) -> str:
    return f"s3://{arguments.get('Bucket', '')}/{arguments.get('Key', arguments.get('Prefix', ''))}"
