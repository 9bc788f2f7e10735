"""Maps over items on all nodes."""

import pytest

from sharelock_ray.engine.tasks import each
from sharelock_ray.errors import RunError

pytestmark = pytest.mark.usefixtures("local_ray")


def inverse(number: int) -> float:
    if number == 3:
        raise RunError("three is too many")
    return 1 / number


def test_results_keep_the_order_of_the_items() -> None:
    assert list(each("invert", inverse, [4, 1, 2])) == [0.25, 1, 0.5]


@pytest.mark.parametrize(("item", "said"), [(3, "^three is too many$"), (0, "invert failed: ZeroDivisionError: ")])
def test_an_error_is_one_line(item: int, said: str) -> None:
    with pytest.raises(RunError, match=said) as error:
        list(each("invert", inverse, [1, item]))
    assert "\n" not in str(error.value)
