"""The list of innocent pairs, and those of them that need no WordNet. `tests/real/test_surface.py` audits all."""

from collections import Counter

import pytest

from innocent import read_pairs
from sharelock_ray.concepts.surface import SurfaceIndex

PAIRS = read_pairs()


def test_there_are_200_pairs_each_with_a_reason() -> None:
    assert len({(str(pair.seen), str(pair.unseen)) for pair in PAIRS}) == len(PAIRS) == 200
    assert all(len(pair.reason) > 10 for pair in PAIRS)
    assert min(Counter(pair.kind for pair in PAIRS).values()) > 10


@pytest.mark.parametrize("kind", ["inside a word", "same topic", "alike to the eye"])
def test_pairs_without_a_common_word_do_not_alarm(kind: str) -> None:
    for pair in PAIRS:
        if pair.kind == kind:
            for one, other in ((pair.seen, pair.unseen), (pair.unseen, pair.seen)):
                assert SurfaceIndex({"other": other.all_names()}).mentions(one.name) == []
