"""A token server for the faulty registry. Its tokens expire after a number of uses, and it can deny all access."""

from __future__ import annotations

import base64
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class TokenServer:
    """Issues tokens for `uses` requests each, to `user` with `password`, or to the refresh token `identity`."""

    user: str = "builder"
    password: str = "se:cret"
    identity: str = "refresh-me"
    scope: str = "repository:tests/image:pull"
    realm: str = ""
    uses: int = 10**9
    refuse_all: bool = False
    anonymous: bool = False
    padding: str = ""
    answers: list[dict[str, str]] = field(default_factory=list)
    left: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Serve `/token`, and pass on only requests with a valid token."""
        if request.path == "/token":
            return await self._token(request)
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.left.get(token, 0) <= 0 or self.refuse_all:
            self.refused += 1
            realm = self.realm or f"http://{request.host}/token"
            challenge = f'Bearer realm="{realm}",service="tests",scope="{self.scope}"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        self.left[token] -= 1
        return await handler(request)

    async def _token(self, request: web.Request) -> web.StreamResponse:
        form = await request.post() if request.method == "POST" else {}
        parameters = {**request.query, **{key: str(value) for key, value in form.items()}}
        basic = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        known = request.headers.get("Authorization") == f"Basic {basic}"
        if not self.anonymous and not known and parameters.get("refresh_token") != self.identity:
            return web.Response(status=401)
        self.answers.append(parameters)
        token = f"token-{next(self._numbers)}"
        self.left[token] = self.uses
        key = "access_token" if request.method == "POST" else "token"
        return web.json_response({"padding": self.padding, key: token, "expires_in": 300})
