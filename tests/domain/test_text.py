"""Text of guests and registries is cut to a size that every part of the agent can store."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.domain.errors import HearthError
from agent.domain.text import CUT, MESSAGE_LIMIT_BYTES, clip

ANY_TEXT = st.text(st.characters(categories=None)) | st.text(st.characters(categories=None), min_size=40).map(
    lambda text: text * 20
)


@given(ANY_TEXT, st.integers(len(CUT), 200))
def test_clipped_text_fits_and_can_be_encoded(text: str, limit_bytes: int) -> None:
    clipped = clip(text, limit_bytes)
    assert len(clipped.encode()) <= limit_bytes
    assert clip(clipped, limit_bytes) == clipped
    storable = text.encode("utf-8", "replace").decode()
    assert clipped == storable or (clipped.endswith(CUT) and storable.startswith(clipped.removesuffix(CUT)))


def test_long_error_message_is_cut() -> None:
    error = HearthError("the guest refused: " + "x" * 5_000_000, remedy="restart it")
    assert len(error.message.encode()) == MESSAGE_LIMIT_BYTES
    assert str(error).endswith(f"{CUT}; restart it")
