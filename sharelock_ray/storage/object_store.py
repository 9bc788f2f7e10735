"""S3 and compatible object stores: settings, retries and errors.

Requests go through s3fs. Retries of s3fs and botocore are disabled: nested retries would multiply, and neither limits
the total time. One `RetryPolicy` retries each request instead. A read resumes at the byte where it was interrupted; a
write is one put or an atomic multipart upload. An invalid request ends in a one-line error.

Settings come from the environment of each process, so that no recipe, pickle or manifest contains them:

    AWS_ENDPOINT_URL, AWS_REGION, AWS_PROFILE, …   as in every AWS tool
    SHARELOCK_S3_PART_BYTES                        size of a part of a large object in bytes; default 16 MiB
    SHARELOCK_S3_ATTEMPTS                          attempts per request without progress; default 10
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
"""Receives bytes of an object: their offset in the object, and the bytes."""

_MIN_PART_BYTES = 5 << 20
_MAX_PARTS = 10_000
"""S3's minimum size of all parts except the last, and maximum number (S3 User Guide, "multipart upload limits")."""
_PARALLEL_PARTS = 8
_CONNECTIONS = 32
_CONNECT_S = 5
# S3 may take a minute to complete a large upload, and sends nothing meanwhile.
_ANSWER_S = 60
# An endpoint that has never answered is more likely a wrong address than a temporary failure.
_FIRST_CONTACT_S = 5
_CLEANING_S = 10
_READ_AHEAD_BYTES = 8 << 20
_CHUNK_BYTES = 1 << 20
_WRITER = "sharelock-writer"
"""Metadata key by which a writer recognises its own object."""

# In addition to any status of 5xx. The last three occur for single objects in the removal of several.
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
    """The store does not know a multipart upload any more, or asks to start it again."""


class ObjectStore(S3FileSystem):
    """fsspec filesystem of an S3 store, with retries and atomic writes.

    It holds no credentials: botocore reads them from the environment, the profile or the instance, and renews them.
    """

    retries = 1

    def __init__(self, endpoint: str | None, region: str | None, part_bytes: int, attempts: int, **_: Any) -> None:
        """Ignores other arguments: fsspec adds those of its own configuration of s3.

        Args:
            endpoint: URL of the store; None for that of botocore's configuration.
            part_bytes: size of a part; larger objects are written and read in parts.
            attempts: maximum number of attempts per request without progress.
        """
        config: dict[str, Any] = {
            "connect_timeout": _CONNECT_S,
            "read_timeout": _ANSWER_S,
            "max_pool_connections": _CONNECTIONS,
            "retries": {"total_max_attempts": 1, "mode": "standard"},
        }
        if endpoint and not _profile_says("addressing_style"):
            # Self-hosted stores rarely have a host name per bucket.
            config["s3"] = {"addressing_style": "path"}
        super().__init__(
            endpoint_url=endpoint,
            client_kwargs={"region_name": region} if region else {},
            config_kwargs=config,
            # Other processes may write at any time, so a cached listing would be wrong.
            use_listings_cache=False,
        )
        self._part_bytes = part_bytes
        self._policy = RetryPolicy(attempts=attempts)
        self._answered = False

    @classmethod
    def from_environment(cls) -> "ObjectStore":
        """The store that the environment configures; cached per process while the settings stay the same.

        Raises:
            RequestError: a setting is not an integer or is too small.
        """
        return cls(
            endpoint=os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
            # botocore reads only the second variable.
            region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
            part_bytes=number_from_environment("SHARELOCK_S3_PART_BYTES", 16 << 20, least=_MIN_PART_BYTES),
            attempts=number_from_environment("SHARELOCK_S3_ATTEMPTS", RetryPolicy.attempts, least=1),
        )

    # s3fs sends all requests through this method, including listings and removals.
    async def _call_s3(self, method: str, *settings: dict[str, Any], **arguments: Any) -> Any:
        return (await self._request(method, *settings, **arguments))[0]

    async def _request(self, method: str, *settings: dict[str, Any], **arguments: Any) -> tuple[Any, int]:
        """Sends one request with retries; returns the answer and the number of failed attempts."""

        async def attempt() -> Any:
            answer = await self._attempt(method, *settings, **arguments)
            # The status of a removal of several objects is 200 even if some removals failed.
            for failed in answer.get("Errors", []) if method == "delete_objects" else []:
                raise ClientError({"Error": failed, "ResponseMetadata": {"HTTPStatusCode": 200}}, method)
            return answer

        # For a put, a conflict only means that another put is in progress.
        retryable = {_CONFLICT} if method == "put_object" else set()
        return await self._retry(_uri(arguments), attempt, retryable)

    async def _attempt(self, method: str, *settings: dict[str, Any], **arguments: Any) -> Any:
        answer = await super()._call_s3(method, *settings, **arguments)
        self._answered = True
        return answer

    async def _retry(
        self,
        uri: str,
        attempt: Callable[[], Awaitable[_T]],
        retryable: set[str] | None = None,
        progress: Callable[[], int] = lambda: 0,
    ) -> tuple[_T, int]:
        """Runs `attempt` with the retry policy; error codes in `retryable` are also transient."""
        began = time.monotonic()

        def transient(error: Exception) -> bool:
            self._answered |= _response(error) is not None
            if _is_no_contact(error) and not self._answered:
                return time.monotonic() - began < _FIRST_CONTACT_S
            return _is_transient(error) or _code(error) in (retryable or ())

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
        """Raises the error for the caller or the user that corresponds to a permanent error."""
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
            raise ImpossibleUriError(f"{uri}: S3 does not allow this name: check the bucket and the path") from None
        # botocore raises ValueError for an endpoint that is not a URL.
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
        # The answer to a HEAD has no body, so the code is only 400.
        if code in _EXPIRED_CODES or (status == 400 and code == "400"):
            raise RequestError(
                f"{uri}: the object store at {self._place()} rejects the request ({code}: {_line(error)}): the "
                f"credentials have most likely expired: renew them, and run the same command again to continue"
            ) from None
        if status in (401, 403) or code == "AccessDenied":
            raise RequestError(
                f"{uri}: the object store at {self._place()} rejects the request ({code}): "
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
        # s3fs treats any failure to reach a bucket as its absence.
        try:
            await self._info(path)
        except FileNotFoundError:
            return False
        return True

    exists = sync_wrapper(_exists)

    async def _pipe_file(self, path: str, data: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Writes `data` to `path` atomically; mode "create" fails if an object exists.

        If the first attempt succeeded but its answer was lost, the retry finds the object of this call, and recognises
        it by a unique metadata value.

        Raises:
            FileExistsError: in mode "create", another writer's object exists.
        """
        bucket, key, _version = self.split_path(path)
        place = {"Bucket": bucket, "Key": key}
        condition = {"IfNoneMatch": "*"} if mode == "create" else {}
        writer = uuid.uuid4().hex
        write = self._put if len(data) <= self._part_bytes else self._put_parts
        for uploads in range(1, self._policy.attempts + 1):
            try:
                await write(place, data, {_WRITER: writer}, condition)
                return
            except (FileExistsError, _UploadGoneError) as error:
                if await self._writer(place) == writer:
                    return
                if isinstance(error, FileExistsError):
                    raise
            await asyncio.sleep(self._policy.pause(uploads))
        raise RunError(
            f"{_uri(place)}: {uploads} uploads were aborted: check whether another process writes or cleans up there"
        )

    async def _writer(self, place: dict[str, str]) -> str | None:
        """The writer of the object at `place`; None without an object."""
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
            parts = await _gather([partial(put, number) for number in numbers])
            await self._call_s3("complete_multipart_upload", **upload, MultipartUpload={"Parts": parts}, **condition)
        except BaseException:
            await self._abort([upload])
            raise
        finally:
            if failed:
                await self._abort_lost(place)

    async def _abort(self, uploads: Sequence[dict[str, str]]) -> None:
        """Aborts uploads within a time limit; ignores errors, since the caller is about to raise the original one."""
        with suppress(TimeoutError, SharelockError):
            async with asyncio.timeout(_CLEANING_S):
                for upload in uploads:
                    with suppress(_UploadGoneError):
                        await self._call_s3("abort_multipart_upload", **upload)

    async def _abort_lost(self, place: dict[str, str]) -> None:
        """Aborts uploads to `place` that were started by failed attempts whose answers were lost.

        This also aborts a concurrent writer's upload to the same place; that writer then starts again.
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
        """Passes the bytes from `start` (inclusive) to `end` (exclusive) to `sink`; reads several parts in parallel.

        Args:
            end: None for the end of the object.
            etag: expected ETag of the object; None accepts the first one that is read.

        Raises:
            FileNotFoundError: there is no object.
            RunError: the object was replaced during the read.
        """
        bucket, key, _version = self.split_path(path)
        place = {"Bucket": bucket, "Key": key}
        step = self._part_bytes
        etag, size = await self._read_part(
            place, start, start + step if end is None else min(end, start + step), sink, etag
        )
        end = size if end is None else min(end, size)
        starts = range(start + step, end, step)
        await _gather([partial(self._read_part, place, at, min(at + step, end), sink, etag) for at in starts])

    async def _read_part(
        self, place: dict[str, str], start: int, end: int, sink: _Sink, etag: str | None
    ) -> tuple[str | None, int]:
        """Reads the bytes from `start` (inclusive) to `end` (exclusive); resumes after each interruption.

        Returns:
            ETag and size of the object in bytes; None and `start` if the object ends before `start`.
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
            await self._retry(_uri(place), attempt, progress=lambda: at)
        return etag, size

    def _open(self, path: str, mode: str = "rb", **_: Any) -> io.BufferedReader:
        if mode != "rb":
            # A stream that is closed after an error would publish incomplete data.
            raise io.UnsupportedOperation(f"mode {mode!r}: use write_bytes or create_bytes, which write atomically")
        return io.BufferedReader(_Stream(self, path), _READ_AHEAD_BYTES)


class _Stream(io.RawIOBase):
    """A seekable stream over one version of an object: raises RunError if the object is replaced while it is open."""

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


async def _gather(tasks: Sequence[Callable[[], Awaitable[_T]]]) -> list[_T]:
    """Runs `tasks` with limited concurrency and returns their results; the first error cancels the others."""
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
    """The store's answer, if `error` or its cause (for errors of s3fs) carries one."""
    answer = getattr(error, "response", None) or getattr(getattr(error, "__cause__", None), "response", None)
    return answer if isinstance(answer, dict) else None


def _status(error: BaseException) -> int | None:
    return (_response(error) or {}).get("ResponseMetadata", {}).get("HTTPStatusCode")


def _code(error: BaseException) -> str | None:
    return (_response(error) or {}).get("Error", {}).get("Code")


def _is_no_contact(error: Exception) -> bool:
    """Whether no connection was made. aiobotocore also raises EndpointConnectionError for interrupted connections."""
    if isinstance(error, EndpointConnectionError):
        return isinstance(error.kwargs.get("error"), aiohttp.ClientConnectorError)
    return isinstance(error, ConnectTimeoutError)


def _is_transient(error: Exception) -> bool:
    status = _status(error)
    if status is not None:
        # 501: the store does not implement the request.
        return status in (408, 429) or (status >= 500 and status != 501) or _code(error) in _TRANSIENT_CODES
    if isinstance(error, SSLError):
        return "certificate" not in str(error).lower()
    return isinstance(error, _TRANSIENT_ERRORS)


def _line(error: BaseException | None) -> str:
    return _without_user(" ".join(str(error).split())) or type(error).__name__


def _without_user(text: str) -> str:
    """`text` without user names and passwords in URLs."""
    return re.sub(r"(?<=://)[^/\s]*@", "", text)


def _profile_says(setting: str) -> bool:
    """Whether the AWS profile has this setting in its `s3` section."""
    try:
        return setting in botocore.session.Session().get_scoped_config().get("s3", {})
    # The first request reports this error.
    except BotoCoreError:
        return False


def _uri(arguments: dict[str, Any]) -> str:
    return f"s3://{arguments.get('Bucket', '')}/{arguments.get('Key', arguments.get('Prefix', ''))}"
