"""The state of Anka's license as a fact for people: without a valid one nothing starts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from agent.hypervisors.contract import HealthFact

if TYPE_CHECKING:
    from collections.abc import Mapping

CONDITION: Final = "LicenseValid"
UNFIT: Final = frozenset({"com.veertu.anka.run", "com.veertu.anka.develop"})
"""Types that allow no CI host."""
NOTICE: Final = timedelta(days=14)


def license_fact(shown: Mapping[str, object], now: datetime) -> HealthFact:
    """Return what `anka license show` means for this host."""
    status, kind = str(shown.get("status", "unknown")), str(shown.get("license_type", ""))
    if status != "valid":
        message = (
            f"Anka's license is {status}: no VM can be started. `anka license validate`, or `anka license activate KEY`"
        )
        return HealthFact(CONDITION, "LicenseInvalid", message)
    if kind in UNFIT:
        message = f"Anka's license is of the type {kind}, which is not for CI hosts: activate an Anka Build license"
        return HealthFact(CONDITION, "LicenseUnfit", message)
    expires = _day(str(shown.get("expires", "")))
    if expires is not None and expires - now < NOTICE:
        message = f"Anka's license ends on {expires:%Y-%m-%d}: renew it with `anka license activate KEY`"
        return HealthFact(CONDITION, "LicenseExpiring", message)
    return HealthFact(CONDITION)


def _day(text: str) -> datetime | None:
    """Read a day as Anka writes it (17-aug-2025)."""
    try:
        return datetime.strptime(text, "%d-%b-%Y").replace(tzinfo=UTC)
    except ValueError:
        return None
