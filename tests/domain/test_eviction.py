"""Selection of images to evict: as few as free the space, least recently used first, never one in use."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.domain.eviction import select_evictions
from agent.domain.model import Image

IMAGES = st.lists(
    st.builds(
        Image,
        digest=st.text("abcdef", min_size=1, max_size=3),
        allocated_bytes=st.integers(0, 100),
        last_used_at_s=st.floats(0, 10),
    ),
    unique_by=lambda image: image.digest,
    max_size=8,
)


@given(images=IMAGES, in_use=st.sets(st.text("abcdef", min_size=1, max_size=3)), needed=st.integers(-10, 500))
def test_evictions_are_the_fewest_least_recently_used(images: list[Image], in_use: set[str], needed: int) -> None:
    selected = select_evictions(images, in_use, needed)
    freed = sum(image.allocated_bytes for image in selected)
    idle = [image for image in images if image.digest not in in_use]
    assert set(selected) <= set(idle)
    kept = set(idle) - set(selected)
    if selected:
        assert freed - selected[-1].allocated_bytes < needed, "no image is evicted after enough space is free"
        newest_s = max(image.last_used_at_s for image in selected)
        assert all(image.last_used_at_s >= newest_s for image in kept)
    assert freed >= needed or not kept, "all idle images are selected when they free too little"


def test_nothing_is_evicted_when_nothing_is_needed() -> None:
    assert select_evictions([Image("a", allocated_bytes=5)], (), 0) == ()
