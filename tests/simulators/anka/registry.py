"""A simulated Anka Registry: its documented REST API over made-up templates, and the layers that pulls fetch.

The download of layers is not documented: `/files/…` is an invention of the simulator.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from aiohttp import web

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

LAYER_BYTES: Final = 64 << 10
DENIED: Final = {"status": "FAIL", "message": "Authentication Required"}


@dataclass
class Tag:
    """One version of a template. Its first layer is the newest."""

    name: str
    number: int
    images: list[str]
    pushed_at: int


@dataclass
class Template:
    """One template with its versions."""

    id: str
    name: str
    tags: list[Tag] = field(default_factory=list)


class AnkaRegistry:
    """The server. `root_token` or `keys` (API key id → public key as PEM) require authentication, `tls` mTLS."""

    def __init__(
        self,
        *,
        root_token: str | None = None,
        keys: dict[str, Path] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.templates: dict[str, Template] = {}
        self.layers: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.ready = True
        self.stall = asyncio.Event()
        self.stall.set()
        self.answer: web.Response | None = None  # the answer to every request, if set
        self._token, self._keys, self._tls = root_token, keys or {}, tls
        self._secrets: dict[str, str] = {}
        self._sessions: set[str] = set()
        self._runner: web.AppRunner | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """The URL at which it listens."""
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}"

    def push(self, name: str, tag: str, **traits: Any) -> Template:
        """Add a tag on top of a template's newest, or replace it. `traits` defines its guests."""
        template = next((one for one in self.templates.values() if one.name == name), None)
        if template is None:
            template = Template(str(uuid.uuid4()), name)
            self.templates[template.id] = template
        layer = f"{uuid.uuid4().hex}.ank"
        self.layers[layer] = json.dumps({"serves": tag, **traits}).encode().ljust(LAYER_BYTES, b"\0")
        below = [one for one in template.tags if one.name != tag]
        images = [layer, *(below[-1].images if below else [self._base()])]
        template.tags = [*below, Tag(tag, len(below), images, int(time.time()))]
        return template

    def _base(self) -> str:
        layer = f"{uuid.uuid4().hex}.ank"
        self.layers[layer] = b"{}".ljust(LAYER_BYTES, b"\0")
        return layer

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/registry/status", self._status)
        app.router.add_get("/registry/disk", self._disk)
        app.router.add_get("/livez", self._readyz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/registry/vm", self._list_v1)
        app.router.add_get("/registry/v2/vm", self._vm)
        app.router.add_get("/files/{layer}", self._layer)
        app.router.add_post("/tap/v1/hand", self._hand)
        app.router.add_post("/tap/v1/shake", self._shake)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._tls)
        await site.start()
        server = site._server
        assert isinstance(server, asyncio.Server)
        self.port = server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stall.set()
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append(request.path_qs)
        await self.stall.wait()
        if self.answer is not None:
            return web.Response(body=self.answer.body, status=self.answer.status, content_type="application/json")
        open_to_all = request.path in ("/livez", "/readyz") or request.path.startswith("/tap/")
        if not open_to_all and not self._allowed(request.headers.get("Authorization", "")):
            return web.json_response(DENIED, status=401)
        answer: web.StreamResponse = await handler(request)
        return answer

    def _allowed(self, authorization: str) -> bool:
        if self._token is None and not self._keys:
            return True
        kind, _, value = authorization.partition(" ")
        if kind == "Sim-Key":  # the simulated command line skips the handshake
            return value in self._keys
        if kind == "Basic":
            return self._token is not None and base64.b64decode(value) == f"root:{self._token}".encode()
        return kind == "Bearer" and json.loads(base64.b64decode(value)).get("token") in self._sessions

    async def _status(self, _: web.Request) -> web.Response:
        return _ok({"status": "Running", "version": "1.50.1-24e848a5"})

    async def _disk(self, _: web.Request) -> web.Response:
        return _ok({"free": 335356690432, "total": 1000240963584})

    async def _readyz(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.ready else 503)

    async def _list_v1(self, _: web.Request) -> web.Response:
        return _ok([{template.id: template.name} for template in self.templates.values()])

    async def _vm(self, request: web.Request) -> web.Response:
        if "id" not in request.query:
            return _ok([{"id": one.id, "name": one.name, "size": _size(one)} for one in self.templates.values()])
        template = self.templates.get(request.query["id"])
        if template is None:
            return web.json_response({"status": "FAIL", "message": "VM not found"}, status=404)
        versions = [_version(template, tag) for tag in template.tags]
        newest = max((tag.pushed_at for tag in template.tags), default=0)
        return _ok({
            "id": template.id, "name": template.name, "versions": versions, "size": _size(template), "arch": "arm64",
            "last_pull": 0, "last_push": newest,
        })  # fmt: skip

    async def _layer(self, request: web.Request) -> web.Response:
        layer = self.layers.get(request.match_info["layer"])
        return web.Response(status=404) if layer is None else web.Response(body=layer)

    async def _hand(self, request: web.Request) -> web.Response:
        """Send a secret that only the holder of the API key can read."""
        body = await request.json()
        key = self._keys.get(body["id"])
        if key is None:
            return web.json_response(DENIED, status=401)
        secret = uuid.uuid4().hex
        self._secrets[body["id"]] = secret
        process = await asyncio.create_subprocess_exec(
            "openssl", "pkeyutl", "-encrypt", "-pubin", "-inkey", str(key),
            "-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha256",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        sealed, _ = await process.communicate(secret.encode())
        return web.Response(text=base64.b64encode(sealed).decode())

    async def _shake(self, request: web.Request) -> web.Response:
        """Open a session for a client that decrypted the secret."""
        body = await request.json()
        if not body.get("secret") or self._secrets.pop(body["id"], None) != body["secret"]:
            return web.json_response(DENIED, status=401)
        data = {"userName": body["id"], "sessionId": uuid.uuid4().hex, "token": uuid.uuid4().hex}
        self._sessions.add(data["token"])
        return web.json_response({"id": body["id"], "data": data})

    def expire_sessions(self) -> None:
        """Forget every session, as the real one does after five minutes."""
        self._sessions.clear()


def _ok(body: Any) -> web.Response:
    return web.json_response({"status": "OK", "body": body, "message": ""})


def _size(template: Template) -> int:
    return LAYER_BYTES * len({image for tag in template.tags for image in tag.images})


def _version(template: Template, tag: Tag) -> dict[str, Any]:
    return {
        "number": tag.number, "tag": tag.name, "config_file": f"{template.id}.yaml", "nvram": "nvram",
        "images": tag.images, "state_files": [], "description": "", "state_file": "",
        "size": LAYER_BYTES * len(tag.images), "arch": "", "last_pull": 0, "last_push": tag.pushed_at,
        "creation_date": tag.pushed_at,
    }  # fmt: skip
