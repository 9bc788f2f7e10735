from typing import get_args

import pytest
from pydantic import ValidationError

from sharelock_ray.concepts.evidence import Evidence, Rule

PUPPY = Evidence(rule="hyponym", seen="dog", unseen="puppy", detail="puppy is a hyponym of dog", distance=1)


def test_is_stored_and_read_as_json() -> None:
    assert Evidence.model_validate(PUPPY.model_dump(mode="json")) == PUPPY


def test_a_rule_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValidationError):
        Evidence(rule="cousin", seen="a", unseen="b", detail="")
    assert len(set(get_args(Rule))) == 16
