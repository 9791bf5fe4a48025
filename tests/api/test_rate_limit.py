"""The rate limit of a caller. It never affects other callers, the Unix socket or `/livez`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.api.auth import Role, TokenAuthenticator, create_token
from agent.api.rate_limit import MAX_CALLERS, Rate, RateLimiter
from tests.api.conftest import run
from tests.api.real_engine import RealEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    import aiohttp

    from tests.api.conftest import Running

ONE_A_DAY = Rate(1 / 86400, 3)


@given(
    st.floats(0.1, 1000),
    st.integers(1, 50),
    st.lists(st.floats(0, 100), min_size=1, max_size=200),
)
def test_rate_limit_admits_at_most_rate_and_burst(per_s: float, burst: int, pauses: list[float]) -> None:
    limiter, now_s, taken = RateLimiter(Rate(per_s, burst)), 0.0, 0
    for pause_s in pauses:
        now_s += pause_s
        wait_s = limiter.wait_s("c", now_s)
        taken += wait_s == 0
        assert 0 <= wait_s <= 1 / per_s + 1e-6
    assert taken <= burst + now_s * per_s + 1e-6


def test_rate_limit_admits_a_request_after_its_wait() -> None:
    limiter = RateLimiter(Rate(4, 1))
    assert limiter.wait_s("c", 10.0) == 0
    assert limiter.wait_s("c", 10.0) == 0.25
    assert limiter.wait_s("c", 9.0) == 0.25, "a clock that goes back gives nothing"
    assert limiter.wait_s("c", 10.25) == 0


def test_rate_limit_counts_callers_separately() -> None:
    limiter = RateLimiter(Rate(1, 1))
    assert [limiter.wait_s(name, 0.0) for name in "aab"] == [0, 1, 0]
    for number in range(10 * MAX_CALLERS):
        limiter.wait_s(str(number), 0.0)
    assert len(limiter._buckets) == MAX_CALLERS


@pytest.fixture
async def slow(tmp_path: Path) -> AsyncIterator[Running]:
    """Yield a server that accepts three requests of each caller, and the next one a day later."""
    authenticator = TokenAuthenticator(tmp_path / "tokens.json", anonymous=Role.READ)
    async with run(RealEngine(), tmp_path, authenticator=authenticator, limiter=RateLimiter(ONE_A_DAY)) as api:
        yield api


async def statuses(
    session: aiohttp.ClientSession, path: str, count: int, headers: Mapping[str, str] | None = None
) -> list[int]:
    found = []
    for _ in range(count):
        async with session.get(path, headers=headers) as response:
            found.append(response.status)
    return found


async def test_limited_response_has_retry_after(slow: Running) -> None:
    assert await statuses(slow.tcp, "/v1/host", 4) == [200, 200, 200, 429]
    async with slow.tcp.get("/v1/vms") as response:
        problem = await response.json(content_type=None)
        assert (response.status, problem["code"], problem["status"]) == (429, "rate-limited", 429)
        assert 0 < int(response.headers["Retry-After"]) <= 86400
        assert response.headers["X-Request-ID"] == problem["request_id"]


async def test_limit_excludes_other_callers_socket_and_livez(slow: Running, tmp_path: Path) -> None:
    await statuses(slow.tcp, "/v1/host", 4)
    token = {"Authorization": f"Bearer {create_token(tmp_path / 'tokens.json', 't', Role.READ, now_s=0)}"}
    assert await statuses(slow.tcp, "/v1/host", 4, token) == [200, 200, 200, 429]
    assert await statuses(slow.unix, "/v1/host", 10) == [200] * 10
    assert await statuses(slow.tcp, "/livez", 10) == [200] * 10


async def test_token_guesses_are_limited(slow: Running) -> None:
    guesses = await statuses(slow.tcp, "/v1/host", 5, {"Authorization": "Bearer hearth_guess"})
    assert guesses == [401, 401, 401, 429, 429]


def test_cost_is_taken_from_the_bucket() -> None:
    limiter = RateLimiter(Rate(10.0, 100))
    assert limiter.wait_s("c", 0.0, 60) == 0
    assert limiter.wait_s("c", 0.0, 60) == 2.0
    assert limiter.wait_s("c", 2.0, 60) == 0
    assert limiter.wait_s("d", 0.0, 1000) == 0, "a cost above the burst takes a whole burst"
    assert limiter.wait_s("d", 0.0) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("path", "headers", "count"),
    [
        ("/v1/host", {}, 100),
        ("/v1/events?limit=1000", {}, 2),
        ("/v1/events?after=0&limit=1000", {}, 2),
        ("/v1/events", {}, 17),
        ("/v1/events?limit=nonsense", {}, 100),
        ("/metrics", {}, 5),
        ("/v1/events?after=0", {"Accept": "text/event-stream"}, 2),
        ("/v1/events", {"Accept": "text/event-stream"}, 100),
    ],
)
async def test_expensive_reads_count_more(tmp_path: Path, path: str, headers: dict[str, str], count: int) -> None:
    limiter = RateLimiter(Rate(1e-9, 102))
    async with run(RealEngine(), tmp_path, limiter=limiter) as api:
        answered = 0
        while answered <= count + 3:
            async with api.tcp.get(path, headers=headers) as response:
                if response.status == 429:
                    break
                answered += 1
    assert count <= answered <= count + 2
