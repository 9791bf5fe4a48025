"""The clone of a template's tag: makes a VM, its size, and a port rule for each port that must be reachable.

Numbers A1… are those of docs/mac-contracts.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.anka.command import AnkaNameTakenError, AnkaNotFoundError, AnkaReplyError
from agent.hypervisors.contract import HypervisorError, VmExistsError

if TYPE_CHECKING:
    from agent.anka.command import Anka
    from agent.domain.model import LocalImage
    from agent.hypervisors.contract import VmSpec


async def make_clone(anka: Anka, spec: VmSpec, image: LocalImage) -> None:
    """Clone and configure a VM. On an error an incomplete VM stays.

    Raises `VmExistsError`, `HypervisorError` and `AnkaError`. `anka clone` always gets the tag: without it, it clones
    whichever tag is checked out, which a pull may change (A5).
    """
    template, _, tag = image.known_as.partition(":")
    if not template or not tag:
        raise HypervisorError(f"the image {image.digest} is not an Anka template", remedy="assign anka:TEMPLATE:TAG")
    try:
        await anka.query("clone", "--tag", tag, template, spec.name, timeout_s=anka.config.start_timeout_s)
    except AnkaNameTakenError:
        raise VmExistsError(f"a VM named {spec.name} exists") from None
    except AnkaNotFoundError as error:
        raise HypervisorError(
            f"{spec.name} cannot be cloned: {error}", remedy="the agent pulls the tag again"
        ) from error
    await anka.query("modify", spec.name, "cpu", str(spec.size.cpus))
    await anka.query("modify", spec.name, "ram", format_memory(spec.size.memory_mib))
    missing = set(spec.ports) - {rule["guest_port"] for rule in await port_rules(anka, spec.name)}
    for port in sorted(missing):
        # Without a fixed host port: the VM does not start if a fixed one is in use (A11).
        await anka.query("modify", spec.name, "port", f"hearth-{port}", str(port))


async def port_rules(anka: Anka, name: str) -> list[dict[str, Any]]:
    """Return a VM's port rules; those of a running VM have a `host_port`. Raises `AnkaError`."""
    body = (await anka.query("show", name, "network")).body
    rules = body.get("port_forwarding_rules") if isinstance(body, dict) else None
    if rules is None and isinstance(body, dict) and "mode" in body:
        return []
    if not isinstance(rules, list):
        raise AnkaReplyError(f"`anka show {name} network` reports no port rules")
    return [rule for rule in rules if isinstance(rule, dict) and isinstance(rule.get("guest_port"), int)]


def format_memory(mib: int) -> str:
    """Return an amount of memory as `anka modify` takes it."""
    return f"{mib // 1024}G" if mib % 1024 == 0 else f"{mib}M"
