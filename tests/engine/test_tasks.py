"""Maps over items on all nodes."""

import pytest

from sharelock_ray.engine.tasks import each, streamed
from sharelock_ray.errors import RunError

pytestmark = pytest.mark.usefixtures("local_ray")


both = pytest.mark.parametrize("mapped", [each, streamed])


def inverse(number: int) -> float:
    if number == 3:
        raise RunError("three is too many")
    return 1 / number


@both
def test_results_keep_the_order_of_the_items(mapped) -> None:
    assert list(mapped("invert", inverse, [4, 1, 2])) == [0.25, 1, 0.5]


@both
@pytest.mark.parametrize(("item", "said"), [(3, "^three is too many$"), (0, "invert failed: ZeroDivisionError: ")])
def test_an_error_is_one_line(item: int, said: str, mapped) -> None:
    with pytest.raises(RunError, match=said) as error:
        list(mapped("invert", inverse, [1, item]))
    assert "\n" not in str(error.value)
