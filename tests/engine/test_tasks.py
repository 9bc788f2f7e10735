"""Maps over items on all nodes, and calls on every node."""

import time

import pytest

from sharelock_ray.engine.tasks import each, nodes, on_nodes, streamed
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


def test_each_node_is_called_once_and_its_answer_is_timed() -> None:
    (node,) = nodes()
    answers = on_nodes(inverse, {node.id: 2}, seconds=60)
    assert {name: (answer.value, answer.error) for name, answer in answers.items()} == {node.id: (0.5, None)}
    assert 0 < answers[node.id].received - answers[node.id].sent < 60
    assert node.resources["CPU"] >= 2


def test_an_error_on_a_node_is_its_answer() -> None:
    (node,) = nodes()
    assert on_nodes(inverse, {node.id: 0}, seconds=60)[node.id].error == "ZeroDivisionError: division by zero"


def test_a_node_that_hangs_has_not_answered() -> None:
    (node,) = nodes()
    assert on_nodes(time.sleep, {node.id: 60}, seconds=1)[node.id].error == "no answer within 1 s"


def test_a_node_that_is_gone_has_not_answered() -> None:
    (answer,) = on_nodes(inverse, {"0" * 56: 1}, seconds=60).values()
    assert answer.value is None
    assert answer.error
