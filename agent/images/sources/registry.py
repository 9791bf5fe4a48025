"""A repository in an OCI registry (OCI distribution specification 1.1), for reads and writes."""

from __future__ import annotations

import asyncio
import re
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from agent.images.errors import (
    BadImageError,
    ImageNotFoundError,
    RegistryDeniedError,
    RegistryError,
    TransferError,
)
from agent.images.manifest import INDEX_TYPE, MANIFEST_TYPE, MAX_MANIFEST_BYTES, digest_of
from agent.images.reference import is_digest
from agent.images.sources.http_client import read_body
from agent.images.sources.registry_http import RegistryHttp, Request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import aiohttp
    from yarl import URL

    from agent.images.manifest import Blob
    from agent.images.sources.contract import Write

_OK: Final = frozenset({200})
_WHOLE_OR_PART: Final = frozenset({200, 206})
_CREATED: Final = frozenset({200, 201, 202, 204})
_MANIFEST_TYPES: Final = ", ".join(
    [
        MANIFEST_TYPE,
        INDEX_TYPE,
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ]
)
"""All four types, so that the error for another kind of image is not "not found"."""
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
_UPLOAD_PIECE_BYTES: Final = 256 << 10
_UPLOAD_BYTES_PER_S: Final = 64 << 10


class RegistryRepository:
    """One repository in a registry, as a `Repository`."""

    def __init__(self, http: RegistryHttp, namespace: str) -> None:
        self._http = http
        self._namespace = namespace

    @property
    def name(self) -> str:
        """See `Source.name`."""
        return f"{self._http.host}/{self._namespace}"

    async def digest(self, tag: str) -> str | None:
        """See `Source.digest`. A HEAD that fails decides nothing: some registries only answer GET."""
        try:
            async with self._http.send(self._manifest_request("HEAD", tag)) as response:
                claimed = response.headers.get("Docker-Content-Digest", "")
        except (RegistryError, ImageNotFoundError) as error:
            if isinstance(error, TransferError) and error.overloaded:
                raise
            return None
        return claimed if is_digest(claimed) else None

    async def manifest(self, target: str) -> bytes:
        """See `Source.manifest`."""
        try:
            async with self._http.send(self._manifest_request("GET", target)) as response:
                return await read_body(response, MAX_MANIFEST_BYTES, "a manifest", error=BadImageError)
        except ImageNotFoundError:
            raise self._unknown(target) from None

    @property
    def ranged(self) -> bool:
        """See `Source.ranged`."""
        return self._http.ranged

    async def read(self, blob: Blob, start: int, size: int, write: Write) -> None:
        """See `Source.read`."""
        partial = size < blob.size
        headers = {"Range": f"bytes={start}-{start + size - 1}"} if partial else {}
        request = Request("GET", self._blob_path(blob), self._scope("pull"), _WHOLE_OR_PART, headers)
        async with self._http.send(request) as response:
            if partial and (response.status == 200 or "Content-Encoding" in response.headers):
                self._http.record_ignored_range()
            skip = _bytes_to_skip(response, blob, start, partial=partial)
            await self._write_body(response, skip, size, write)

    def distrust(self, blob: Blob) -> None:
        """See `Source.distrust`. There is no other source."""

    async def has(self, blob: Blob) -> bool:
        """See `Sink.has`. If a HEAD fails, a GET of one byte decides."""
        request = self._request("HEAD", self._blob_path(blob), "pull,push", _OK | {404}, {})
        try:
            async with self._http.send(request) as response:
                size = response.headers.get("Content-Length", str(blob.size))
                return response.status == 200 and size == str(blob.size)
        except RegistryError as error:
            if isinstance(error, TransferError) and error.overloaded:
                raise
        return await self._has_by_get(blob)

    async def _has_by_get(self, blob: Blob) -> bool:
        """Return whether a blob can be read. False if that is denied: an upload then reports why."""
        accept = _WHOLE_OR_PART | {404, 416}
        request = self._request("GET", self._blob_path(blob), "pull,push", accept, {"Range": "bytes=0-0"})
        try:
            async with self._http.send(request) as response:
                if response.status == 206:
                    return response.headers.get("Content-Range", "").endswith((f"/{blob.size}", "/*"))
                return response.status == 200 and response.content_length in (None, blob.size)
        except RegistryDeniedError:
            return False

    async def mount(self, blob: Blob, repository: str) -> bool:
        """See `Sink.mount`."""
        path = f"{self._namespace}/blobs/uploads/?mount={blob.digest}&from={repository}"
        request = self._request("POST", path, "pull,push", frozenset({201, 202}), {})
        request = replace(request, scope=f"{request.scope} repository:{repository}:pull")
        async with self._http.send(request) as response:
            if response.status == 201:
                return True
            upload = self._http.follow(response) if "Location" in response.headers else None
        # The registry started an upload instead of the mount.
        if upload is not None:
            await self._cancel_upload(upload)
        return False

    async def put(self, blob: Blob, content: bytes | bytearray) -> None:
        """See `Sink.put`."""
        start = self._request("POST", f"{self._namespace}/blobs/uploads/", "pull,push", frozenset({202}), {})
        async with self._http.send(start) as response:
            target = self._http.follow(response, query=f"digest={blob.digest}")
        headers = {"Content-Length": str(blob.size), "Content-Type": "application/octet-stream"}
        limit_s = self._http.timeouts.answer_s + blob.size / _UPLOAD_BYTES_PER_S
        finish = self._request("PUT", target, "pull,push", _CREATED, headers)
        finish = replace(finish, body=lambda: _pieces(content), limit_s=limit_s)
        async with self._http.send(finish):
            pass

    async def _cancel_upload(self, upload: URL) -> None:
        accept = frozenset({200, 202, 204, 400, 404, 405})
        request = self._request("DELETE", upload, "pull,push", accept, {})
        async with self._http.send(request):
            pass

    async def put_manifest(self, content: bytes, *, media_type: str, tag: str | None) -> bool:
        """See `Sink.put_manifest`."""
        path = f"{self._namespace}/manifests/{tag or digest_of(content)}"
        headers = {"Content-Length": str(len(content)), "Content-Type": media_type}
        request = self._request("PUT", path, "pull,push", _CREATED, headers)
        async with self._http.send(replace(request, body=lambda: _pieces(content))) as response:
            return "OCI-Subject" in response.headers

    async def referrers(self, digest: str) -> bytes | None:
        """See `Repository.referrers`. Whatever else than a list the registry answers means that it has no such call."""
        path = f"{self._namespace}/referrers/{digest}"
        request = self._request("GET", path, "pull", _OK, {"Accept": INDEX_TYPE})
        try:
            async with self._http.send(request) as response:
                return await read_body(response, MAX_MANIFEST_BYTES, "a list of referrers")
        except (RegistryError, ImageNotFoundError):
            return None

    async def _write_body(self, response: aiohttp.ClientResponse, skip: int, size: int, write: Write) -> None:
        pace = _PaceCheck(self._http)
        async for data in response.content.iter_any():
            piece = memoryview(data)[skip:][:size]
            skip = max(0, skip - len(data))
            size -= len(piece)
            with pace.exclude_time():
                await write(piece)
                await self._http.bandwidth.take(len(data))
            pace.check(len(data))
            if not size:
                return
        raise TransferError(f"the registry {self._http.host} ended a response {size} bytes too early")

    def _manifest_request(self, method: str, target: str) -> Request:
        path = f"{self._namespace}/manifests/{target}"
        return self._request(method, path, "pull", _OK, {"Accept": _MANIFEST_TYPES})

    def _request(
        self,
        method: str,
        path: str | URL,
        actions: str,
        accept: frozenset[int],
        headers: dict[str, str],
    ) -> Request:
        """Return a request with a small response."""
        scope = f"repository:{self._namespace}:{actions}"
        return Request(method, path, scope, accept, headers, limit_s=self._http.timeouts.answer_s)

    def _scope(self, actions: str) -> str:
        return f"repository:{self._namespace}:{actions}"

    def _blob_path(self, blob: Blob) -> str:
        return f"{self._namespace}/blobs/{blob.digest}"

    def _unknown(self, target: str) -> ImageNotFoundError:
        missing = f"version {target}" if is_digest(target) else f"tag {target!r}"
        return ImageNotFoundError(
            f"{self.name} has no {missing}", remedy="correct the reference, or push the image first"
        )


class _PaceCheck:
    """Ends a transfer that is too slow for a whole time window."""

    def __init__(self, http: RegistryHttp) -> None:
        self._host = http.host
        self._timeouts = http.timeouts
        self._clock = asyncio.get_running_loop().time
        self._since_s = self._clock()
        self._bytes = 0

    def check(self, count: int) -> None:
        """Count received bytes. Raises `TransferError` if the rate of the last window is too low."""
        self._bytes += count
        elapsed_s = self._clock() - self._since_s
        if elapsed_s < self._timeouts.slow_window_s:
            return
        rate = self._bytes / elapsed_s
        if rate < self._timeouts.slow_bytes_per_s:
            limit = self._timeouts.slow_bytes_per_s
            raise TransferError(
                f"the registry {self._host} sends only {rate:.0f} bytes per second; {limit:.0f} are needed"
            )
        self._since_s, self._bytes = self._clock(), 0

    @contextmanager
    def exclude_time(self) -> Iterator[None]:
        """Do not count the time spent in this context, because the registry does not cause it."""
        started_s = self._clock()
        yield
        self._since_s += self._clock() - started_s


def _bytes_to_skip(response: aiohttp.ClientResponse, blob: Blob, start: int, *, partial: bool) -> int:
    """Return the number of body bytes before the requested ones. Raises `TransferError` for a wrong response."""
    host = response.url.host
    if response.headers.get("Content-Encoding", "identity") != "identity":
        # aiohttp decodes the body, so Content-Length is not that of the blob, and a part cannot be located.
        if response.status != 200:
            raise TransferError(f"{host} compressed a part of a blob")
        return start
    if response.status == 200:
        # Without Range support the whole blob is sent: the bytes before `start` are skipped, and not mistaken for the
        # rest.
        if response.content_length not in (None, blob.size):
            raise TransferError(f"{host} sent {response.content_length} bytes for a blob of {blob.size} bytes")
        return start
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if not partial or found is None or int(found[1]) != start or found[3] not in ("*", str(blob.size)):
        raise TransferError(f"{host} sent another range than the requested one")
    return 0


async def _pieces(content: bytes | bytearray) -> AsyncIterator[bytes]:
    for start in range(0, len(content), _UPLOAD_PIECE_BYTES):
        yield bytes(content[start : start + _UPLOAD_PIECE_BYTES])
