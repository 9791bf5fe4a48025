"""Client of the REST API of an Anka Registry, which finds versions. `anka` itself transfers their layers."""

from __future__ import annotations

import asyncio
import json
import ssl
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from yarl import URL

from agent.images.anka.version import Version, version_digest
from agent.images.errors import BadImageError, ImageNotFoundError, RegistryDeniedError, RegistryError
from agent.images.sources.http_client import failure_reason
from agent.images.sources.proxies import proxy_for

if TYPE_CHECKING:
    from agent.config import AnkaConfig
    from agent.images.anka.login import Login
    from agent.images.anka.version import TemplateName

REQUEST_TIMEOUT_S: Final = 30.0
MAX_REPLY_BYTES: Final = 32 << 20
_MAX_DIGITS: Final = 18
REMEDY: Final = "check registry and its credentials under [hypervisor.anka]"


class AnkaRegistry:
    """One Anka Registry. Certificates are read at each request, so that renewed ones apply immediately."""

    def __init__(self, config: AnkaConfig, login: Login) -> None:
        self._config = config
        self._login = login
        self._session: aiohttp.ClientSession | None = None

    @property
    def url(self) -> str:
        """The base URL; empty if no Registry is configured."""
        return (self._config.registry or "").rstrip("/")

    async def find(self, name: TemplateName) -> Version:
        """Return the version that a name means now. Raises `ImageNotFoundError`, `BadImageError`, `RegistryError`s."""
        if not self.url:
            remedy = "set registry under [hypervisor.anka]"
            raise RegistryError(f"finding {name} failed: no Anka Registry is configured", remedy=remedy)
        listed = _entries(await self._get("/registry/v2/vm"), "templates")
        matches = [entry for entry in listed if name.template in (entry.get("id"), entry.get("name"))]
        if not matches:
            raise ImageNotFoundError(
                f"{self.url} has no template {name.template}", remedy="push the template, or correct the name"
            )
        if len(matches) > 1:
            ids = ", ".join(str(entry.get("id")) for entry in matches)
            raise BadImageError(f"{name.template} names several templates of {self.url}: {ids}", remedy="use a UUID")
        template = str(matches[0].get("id"))
        shown = await self._get(f"/registry/v2/vm?id={template}")
        return self._version(name, template, shown if isinstance(shown, dict) else {})

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    def _version(self, name: TemplateName, template: str, shown: dict[str, Any]) -> Version:
        versions = _entries(shown.get("versions"), "versions")
        if name.tag is None:
            found = max(versions, key=lambda entry: _count(entry.get("number")), default=None)
        else:
            found = next((entry for entry in versions if entry.get("tag") == name.tag), None)
        if found is None:
            raise ImageNotFoundError(f"{self.url} has no tag {name.tag} of {name.template}", remedy="push the tag")
        layers, tag = found.get("images"), found.get("tag")
        if not isinstance(layers, list) or not layers or not isinstance(tag, str):
            raise BadImageError(f"{self.url} lists no layers of {name}", remedy="push the tag again")
        return Version(
            digest=version_digest(template, tag, tuple(str(layer) for layer in layers)),
            template=template,
            tag=tag,
            source=self._config.remote,
            size_bytes=_count(found.get("size")),
            arch=str(found.get("arch") or shown.get("arch") or ""),
        )

    async def _get(self, path: str) -> object:
        """Return the body of a call. Logs in again if the session has ended."""
        status, answer = await self._request("GET", path, await self._login.header(self._post))
        if status == 401 and self._login.forget():
            status, answer = await self._request("GET", path, await self._login.header(self._post))
        return self._body(status, path, answer)

    async def _post(self, path: str, document: dict[str, str]) -> bytes:
        status, answer = await self._request("POST", path, {}, json.dumps(document))
        if status != 200:
            self._body(status, path, answer)
        return answer

    def _body(self, status: int, path: str, answer: bytes) -> object:
        endpoint = f"{self.url}{path.partition('?')[0]}"
        try:
            parsed = json.loads(answer)
        except (ValueError, RecursionError):
            parsed = None
        document: dict[str, object] = parsed if isinstance(parsed, dict) else {}
        message = str(document.get("message") or answer[:200].decode(errors="replace"))
        if 300 <= status < 400:
            remedy = "set registry under [hypervisor.anka] to the address that it redirects to"
            raise RegistryError(f"{endpoint} redirects to another address", remedy=remedy)
        if status in (401, 403):
            raise RegistryDeniedError(f"{endpoint} denies access: {message}", remedy=REMEDY)
        if status == 404:
            raise ImageNotFoundError(f"{endpoint}: {message or 'not found'}")
        if status != 200 or document.get("status") != "OK":
            raise RegistryError(f"{endpoint} replied {status}: {message}", remedy="read the Registry's logs")
        return document.get("body")

    async def _request(
        self, method: str, path: str, headers: dict[str, str], body: str | None = None
    ) -> tuple[int, bytes]:
        if self._session is None:
            self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        trust = await asyncio.to_thread(self._trust)
        proxy = proxy_for(URL(self.url))
        through = f" through the proxy {proxy}" if proxy else ""
        options: dict[str, Any] = {"ssl": trust, "proxy": proxy.url if proxy else None, "allow_redirects": False}
        headers = {**headers, "User-Agent": "hearth", "Content-Type": "application/json"}
        try:
            async with (
                asyncio.timeout(REQUEST_TIMEOUT_S),
                self._session.request(method, self.url + path, data=body, headers=headers, **options) as response,
            ):
                answer = bytearray()
                async for chunk in response.content.iter_any():
                    answer += chunk
                    if len(answer) > MAX_REPLY_BYTES:
                        raise RegistryError(f"the reply of {self.url}{path} is larger than {MAX_REPLY_BYTES} bytes")
                return response.status, bytes(answer)
        except TimeoutError as error:
            raise RegistryError(
                f"{self.url}{through} did not reply within {REQUEST_TIMEOUT_S:g} s", remedy=REMEDY
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise RegistryError(
                f"connecting to {self.url}{through} failed: {failure_reason(error)}", remedy=REMEDY
            ) from error

    def _trust(self) -> ssl.SSLContext | bool:
        config = self._config
        if config.ca_file is None and config.cert_file is None:
            return True
        try:
            context = ssl.create_default_context()
            if config.ca_file is not None:
                context.load_verify_locations(config.ca_file)
            if config.cert_file is not None:
                context.load_cert_chain(config.cert_file, config.key_file)
        except (OSError, ssl.SSLError) as error:
            remedy = "correct ca_file, cert_file and key_file under [hypervisor.anka]"
            raise RegistryError(f"loading the certificates for {self.url} failed: {error}", remedy=remedy) from error
        return context


def _entries(body: object, what: str) -> list[dict[str, Any]]:
    if not isinstance(body, list):
        raise RegistryError(f"the Anka Registry sent no list of {what}")
    return [entry for entry in body if isinstance(entry, dict)]


def _count(value: object) -> int:
    """Return a number of the Registry in bounds; 0 for anything else, such as a size that it does not know."""
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    return int(text) if len(text) <= _MAX_DIGITS and text.isascii() and text.isdigit() else 0
