"""Who we are to an Anka Registry: the root token, or a session opened with a user API key.

The key's session follows the documentation of UAK and TAP: the Registry sends a secret that only the key's holder can
read (RSA-OAEP with SHA-256), and returns a session for it. `openssl` reads it, so that the key stays in its file.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import TYPE_CHECKING, Any, Final

from agent.images.errors import RegistryDeniedError, RegistryError
from agent.processes.command import Command, CommandError, CommandRunner

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent.config import AnkaConfig

    Post = Callable[[str, dict[str, str]], Awaitable[bytes]]

OPENSSL_S: Final = 10.0
REMEDY: Final = "check api_key_id and api_key_file under [hypervisor.anka]"


class Login:
    """Gives the Authorization header of requests, opening sessions as they are needed."""

    def __init__(self, config: AnkaConfig, runner: CommandRunner | None = None) -> None:
        self._config = config
        self._runner = runner or CommandRunner()
        self._session: str | None = None

    async def header(self, post: Post) -> dict[str, str]:
        """Return the header; `post` sends a JSON document to a path of the Registry, and returns its answer."""
        if self._config.root_token is not None:
            login = f"root:{self._config.root_token.get_secret_value()}"
            return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
        if self._config.api_key_id is None:
            return {}
        if self._session is None:
            self._session = await self._open_session(self._config.api_key_id, post)
        return {"Authorization": f"Bearer {self._session}"}

    def forget(self) -> bool:
        """Forget a session that was refused: they end after minutes. Returns whether there was one."""
        had, self._session = self._session is not None, None
        return had

    async def _open_session(self, key: str, post: Post) -> str:
        try:
            sealed = base64.b64decode((await post("/tap/v1/hand", {"id": key})).strip().strip(b'"'), validate=True)
        except binascii.Error as error:
            raise RegistryError("the Anka Registry's answer to a login is no base64") from error
        answer = await post("/tap/v1/shake", {"id": key, "secret": await self._unseal(sealed)})
        try:
            data: Any = json.loads(answer)["data"]
        except (ValueError, KeyError, TypeError) as error:
            raise RegistryError("the Anka Registry opened no session: its answer cannot be read") from error
        return base64.b64encode(json.dumps(data, separators=(",", ":")).encode()).decode()

    async def _unseal(self, sealed: bytes) -> str:
        argv = (
            "openssl", "pkeyutl", "-decrypt", "-inkey", str(self._config.api_key_file),
            "-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha256",
        )  # fmt: skip
        try:
            result = await self._runner.run(Command(argv, OPENSSL_S, stdin=sealed))
        except CommandError as error:
            raise RegistryDeniedError(f"the Anka Registry's secret cannot be read: {error}", remedy=REMEDY) from error
        return result.stdout.decode(errors="replace")
