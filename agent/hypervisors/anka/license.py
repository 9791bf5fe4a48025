"""The condition of Anka's license. Without a valid license no VM starts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from agent.hypervisors.contract import HealthFact

if TYPE_CHECKING:
    from collections.abc import Mapping

CONDITION: Final = "LicenseValid"
UNFIT: Final = frozenset({"com.veertu.anka.run", "com.veertu.anka.develop"})
"""License types that do not permit CI hosts."""
NOTICE: Final = timedelta(days=14)


def license_fact(shown: Mapping[str, object], now: datetime) -> HealthFact:
    """Return the condition for the output of `anka license show`."""
    status, kind = str(shown.get("status", "unknown")), str(shown.get("license_type", ""))
    if status != "valid":
        message = (
            f"Anka's license is {status}, so no VM starts: run `anka license validate` or `anka license activate KEY`"
        )
        return HealthFact(CONDITION, "LicenseInvalid", message)
    if kind in UNFIT:
        message = f"Anka's license type {kind} does not permit CI hosts: activate an Anka Build license"
        return HealthFact(CONDITION, "LicenseUnfit", message)
    expires = _day(str(shown.get("expires", "")))
    if expires is not None and expires - now < NOTICE:
        message = f"Anka's license ends on {expires:%Y-%m-%d}: renew it with `anka license activate KEY`"
        return HealthFact(CONDITION, "LicenseExpiring", message)
    return HealthFact(CONDITION)


def _day(text: str) -> datetime | None:
    """Parse a date in Anka's format (17-aug-2025), None if it is not one."""
    try:
        return datetime.strptime(text, "%d-%b-%Y").replace(tzinfo=UTC)
    except ValueError:
        return None
