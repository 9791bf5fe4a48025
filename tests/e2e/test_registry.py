"""Images in a real registry: pushed by the command, pulled and started by the agent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.test_agent import condition
from tests.support.guests import build_small_image

if TYPE_CHECKING:
    from scripts.lib.host import Host
    from tests.support.registry import RegistryProcess

pytestmark = [pytest.mark.qemu, pytest.mark.registry, pytest.mark.timeout(300)]


async def test_image_is_pushed_pulled_and_leased(host: Host, registry: RegistryProcess) -> None:
    host.configure(f'[images.registries."{registry.host}"]\ninsecure = true')
    reference = f"{registry.host}/ci/small:1.0"
    disk = build_small_image("1.0")
    await host.run_hearth("image", "push", str(disk), reference, "--memory", "256", "--cpus", "1")
    host.assign("small", reference, warm=1)
    await host.start()
    await host.wait_until_warm(1)
    lease = await host.call("POST", "/v1/leases", {"pool": "small", "holder": "job", "wait_s": 30})
    assert lease["address"]["ports"]["22"] > 0


async def test_wrong_credentials_error_names_registry(host: Host, password_registry: RegistryProcess) -> None:
    registry = password_registry.host
    host.configure(f'[images.registries."{registry}"]\ninsecure = true\nusername = "builder"\npassword = "wrong"')
    host.assign("small", f"{registry}/ci/small:1.0", warm=1)
    await host.start()
    reported = await condition(host, "ImagesAvailable", problem=True)
    assert registry in reported["message"]
    assert "wrong" not in reported["message"].replace("wrong credentials", "")


async def test_unreachable_registry_is_reported_in_condition(host: Host) -> None:
    host.configure('[images.registries."127.0.0.1:1"]\ninsecure = true')
    host.assign("small", "127.0.0.1:1/ci/small:1.0", warm=1)
    await host.start()
    reported = await condition(host, "ImagesAvailable", problem=True)
    assert "127.0.0.1:1" in reported["message"]
