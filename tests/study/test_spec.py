"""What a study may ask for, and what is refused before anything runs."""

import pytest
from pydantic import ValidationError

from sharelock_ray.errors import RequestError
from sharelock_ray.recipe.load import parse_recipe, read_recipe
from sharelock_ray.study.spec import TuningSpec

SPACE = {"alignment.language.depth": [2, 4], "alignment.language.activation": ["relu", "gelu", "silu"]}
DIRECTION = {
    "to_vision": {"alignment.vision.depth": 0, "alignment.language.depth": 2},
    "both": {"alignment.vision.depth": 2, "alignment.language.depth": 2, "alignment.dim": 64},
}
RATE = {"low": 1e-4, "high": 1e-2, "log": True}


def refusal(**fields: object) -> str:
    with pytest.raises(ValidationError) as error:
        TuningSpec.model_validate({"space": SPACE} | fields)
    return str(error.value)


def test_a_grid_has_every_combination_once() -> None:
    points = list(TuningSpec(space=SPACE).points())
    assert len({tuple(point.values()) for point in points}) == len(points) == 6


def test_named_choices_set_several_fields() -> None:
    spec = TuningSpec(space={"direction": DIRECTION, "alignment.steps": [5]})
    assert spec.labels("direction") == ("to_vision", "both")
    assert spec.changes({"direction": "both", "alignment.steps": 5}) == {**DIRECTION["both"], "alignment.steps": 5}


def test_a_value_that_is_no_scalar_is_shown_as_json_and_set_as_it_is() -> None:
    spec = TuningSpec(space={"evaluation.templates": [["a {}"], ["a {}", "the {}"]]})
    assert spec.labels("evaluation.templates") == ('["a {}"]', '["a {}", "the {}"]')
    assert spec.changes({"evaluation.templates": '["a {}"]'}) == {"evaluation.templates": ["a {}"]}


def test_one_objective_may_stand_alone() -> None:
    assert TuningSpec(space=SPACE, objective="recall_at_1").objective == ("recall_at_1",)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"space": {}}, "at least 1"),
        ({"space": {"alignment.steps": []}}, "`alignment.steps` has no value to try"),
        ({"space": {"alignment.learning_rate": RATE}}, "wants a list of values for `alignment.learning_rate`"),
        ({"space": {"alignment.learning_rate": {"low": 1, "high": 1}}}, "`low` must be less than `high`"),
        ({"space": {"alignment.learning_rate": RATE | {"low": 0}}}, "more than 0 where `log` is true"),
        ({"sampler": "tpe"}, "`trials` says how many points"),
        ({"trials": 3}, "the grid tries all of its own"),
        ({"seeds": [1, 1]}, "each may be named once"),
        ({"objective": ["parameters", "recall_at_1"]}, "put a quality first"),
    ],
)
def test_what_makes_no_study_is_refused(fields: dict[str, object], message: str) -> None:
    assert message in refusal(**fields)


class TestComparability:
    @pytest.mark.parametrize("field", ["alignment.global_batch_size", "alignment.loss", "alignment.learn_logit_scale"])
    def test_losses_of_different_kinds_are_not_compared(self, field: str) -> None:
        assert f"losses of different `{field}` cannot be compared" in refusal(space={field: [1, 2]})

    def test_also_where_a_named_choice_hides_the_field(self) -> None:
        space = {"batch": {"small": {"alignment.global_batch_size": 64}, "large": {"alignment.global_batch_size": 128}}}
        assert "losses of different `alignment.global_batch_size`" in refusal(space=space)

    def test_recall_over_one_gallery_compares_them(self) -> None:
        space = {"alignment.global_batch_size": [64, 128], "alignment.learn_logit_scale": [True, False]}
        assert TuningSpec(space=space, objective="recall_at_1").space.keys() == space.keys()

    def test_but_no_scheduler_does_by_recall_within_batches_of_different_size(self) -> None:
        space = {"alignment.global_batch_size": [64, 128]}
        message = refusal(space=space, objective="recall_at_1", scheduler="asha")
        assert "validations of different `alignment.global_batch_size` cannot be compared" in message


class TestPassword:
    @pytest.mark.parametrize(
        "url",
        [
            "postgresql://me:s3cret@db/studies",
            "postgresql+psycopg2://:s3cret@db:5432/studies",
            "mysql://me:s3cret/with:any?thing@db/studies",
            "postgresql://db/studies?user=me&password=s3cret",
            "mysql+pymysql://me@db/studies?passwd=s3cret",
        ],
    )
    def test_in_a_url_is_refused_without_being_shown(self, url: str) -> None:
        content = read_recipe("search").model_dump(mode="json")
        content["tuning"]["storage"] = url
        with pytest.raises(
            RequestError, match=r"`tuning`: `storage` holds a password.*SHARELOCK_OPTUNA_PASSWORD"
        ) as error:
            parse_recipe(content, "search.yaml")
        assert "s3cret" not in str(error.value)

    @pytest.mark.parametrize("url", ["postgresql://me@db:5432/studies", "sqlite:////tmp/a:b@c/s.db", "sqlite:///s.db"])
    def test_is_not_seen_where_there_is_none(self, url: str) -> None:
        assert TuningSpec(space=SPACE, storage=url).storage == url
