"""Login to an Anka Registry: by the root token, or by a session of a user API key.

The session follows the documentation of UAK and TAP: the Registry sends a secret that is encrypted for the key
(RSA-OAEP with SHA-256), and opens a session in return for the decrypted secret. `openssl` decrypts it, so that the key
stays in its file.
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

OPENSSL_TIMEOUT_S: Final = 10.0
REMEDY: Final = "check api_key_id and api_key_file under [hypervisor.anka]"


class Login:
    """Returns Authorization headers, and opens a session when one is needed."""

    def __init__(self, config: AnkaConfig, runner: CommandRunner | None = None) -> None:
        self._config = config
        self._runner = runner or CommandRunner()
        self._session: str | None = None

    async def header(self, post: Post) -> dict[str, str]:
        """Return the header. `post` sends a JSON document to a path of the Registry and returns the reply."""
        if self._config.root_token is not None:
            login = f"root:{self._config.root_token.get_secret_value()}"
            return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
        if self._config.api_key_id is None:
            return {}
        if self._session is None:
            self._session = await self._open_session(self._config.api_key_id, post)
        return {"Authorization": f"Bearer {self._session}"}

    def forget(self) -> bool:
        """Discard a session that the Registry refused; sessions end after minutes. Return whether there was one."""
        had_session, self._session = self._session is not None, None
        return had_session

    async def _open_session(self, key: str, post: Post) -> str:
        try:
            encrypted = base64.b64decode((await post("/tap/v1/hand", {"id": key})).strip().strip(b'"'), validate=True)
        except binascii.Error as error:
            raise RegistryError("the Anka Registry's reply to a login is not base64") from error
        reply = await post("/tap/v1/shake", {"id": key, "secret": await self._decrypt(encrypted)})
        try:
            data: Any = json.loads(reply)["data"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RegistryError(
                "opening a session at the Anka Registry failed: its reply is not the expected JSON"
            ) from error
        return base64.b64encode(json.dumps(data, separators=(",", ":")).encode()).decode()

    async def _decrypt(self, encrypted: bytes) -> str:
        argv = (
            "openssl", "pkeyutl", "-decrypt", "-inkey", str(self._config.api_key_file),
            "-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha256",
        )  # fmt: skip
        try:
            result = await self._runner.run(Command(argv, OPENSSL_TIMEOUT_S, stdin=encrypted))
        except CommandError as error:
            raise RegistryDeniedError(
                f"decrypting the Anka Registry's secret failed: {error}", remedy=REMEDY
            ) from error
        return result.stdout.decode(errors="replace")
