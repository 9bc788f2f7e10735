"""Reading a recipe: overrides, and one clear line for each mistake."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

import support
from sharelock_ray.config import content_hash
from sharelock_ray.errors import RequestError, RunError
from sharelock_ray.recipe.load import SHIPPED, read_recipe, with_settings, write_recipe
from sharelock_ray.recipe.schema import Recipe
from sharelock_ray.sources.sample import Reject
from sharelock_ray.study.language_scores import read_scores, select
from sharelock_ray.workflows.extract import extract
from sharelock_ray.workflows.inputs import Inputs
from sharelock_ray.workflows.plan import plan
from sharelock_ray.workflows.train import train
from sharelock_ray.workflows.tune import point_recipe


@pytest.fixture
def path(tmp_path: Path, models: Path) -> str:
    return str(support.write_recipe(tmp_path / "tiny.yaml", models))


@pytest.mark.parametrize("shipped", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(shipped: Path) -> None:
    assert read_recipe(str(shipped)).name == shipped.stem


def test_a_shipped_recipe_goes_by_its_bare_name() -> None:
    assert read_recipe("demo") == read_recipe(str(SHIPPED / "demo.yaml"))


def test_an_override_changes_one_field(path: str) -> None:
    recipe = read_recipe(path, ["alignment.steps=7", "encoders.1.pooling=mean", "alignment.language.norm=layer"])
    assert recipe.alignment.steps == 7
    assert recipe.language.pooling == "mean"
    assert recipe.alignment.language.norm == "layer"
    assert recipe.alignment.language.width == 32


def test_a_saved_recipe_reads_back_the_same(path: str) -> None:
    recipe = read_recipe(path)
    write_recipe(recipe)
    assert read_recipe(f"{recipe.output}/recipe.yaml") == recipe


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ({"urls": "/data/*.tar"}, "webdataset"),
        ({"format": "parquet", "urls": "/data/*.parquet"}, "parquet"),
        ({"format": "table", "path": "/data/list.csv"}, "table"),
        ({"format": "texts", "path": "/data/prompts.txt"}, "texts"),
        ({"format": "class_folders", "path": "/data"}, "class_folders"),
    ],
)
def test_the_format_selects_the_source_and_defaults_to_tars(path: str, data: dict, kind: str) -> None:
    recipe = read_recipe(path, [f"data={json.dumps({'dataset': 'own', 'train': data})}"])
    assert recipe.splits["train"].format == kind
    write_recipe(recipe)
    assert read_recipe(f"{recipe.output}/recipe.yaml") == recipe


@pytest.mark.parametrize(
    ("source", "resolved"),
    [
        ({"urls": "data/{00..01}/*.tar"}, {"urls": "HERE/data/{00..01}/*.tar"}),
        (
            {"urls": ["a.tar", "../b/?.tar", "s3://bucket/*.tar"]},
            {"urls": ["HERE/a.tar", "UP/b/?.tar", "s3://bucket/*.tar"]},
        ),
        ({"format": "parquet", "urls": "*.parquet"}, {"urls": "HERE/*.parquet"}),
        ({"format": "table", "path": "x.csv", "images": "i"}, {"path": "HERE/x.csv", "images": "HERE/i"}),
        ({"format": "texts", "path": "x.txt"}, {"path": "HERE/x.txt"}),
        ({"format": "class_folders", "path": "val"}, {"path": "HERE/val"}),
    ],
    ids=str,
)
def test_a_saved_recipe_names_the_same_data_from_any_folder(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: dict, resolved: dict
) -> None:
    here = tmp_path / "up" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    data = {"dataset": "own", "train": source, "classes": "names.txt"}
    recipe = read_recipe(path, [f"data={json.dumps(data)}"])
    write_recipe(recipe)
    saved = yaml.safe_load(Path(recipe.output, "recipe.yaml").read_text())["data"]
    monkeypatch.chdir(tmp_path)
    assert read_recipe(f"{recipe.output}/recipe.yaml") == recipe
    shown = json.loads(json.dumps(resolved).replace("HERE", str(here)).replace("UP", str(here.parent)))
    assert {name: saved["train"][name] for name in resolved} == shown
    assert saved["classes"] == str(here / "names.txt")


def test_a_mistake_in_a_source_names_the_field_and_knows_its_format(path: str) -> None:
    def mistake(**source: str) -> str:
        with pytest.raises(RequestError) as error:
            read_recipe(path, [f"data={json.dumps({'dataset': 'own', 'train': source})}"])
        return str(error.value)

    assert "no field `data.train.image`: known here: caption_per_line, format, urls" in mistake(urls="x", image="y")
    assert "no field `data.train.imag`: did you mean `image`?" in mistake(format="parquet", urls="x", imag="y")
    assert "the field `data.train.path` is missing" in mistake(format="table")
    assert "`data.train`:" in mistake(format="excel")


def test_a_grid_point_is_checked_like_a_recipe(path: str) -> None:
    assert with_settings(read_recipe(path), {"alignment.language.depth": 3}).alignment.language.depth == 3
    with pytest.raises(RequestError, match=r"tuning.*alignment\.language\.depth"):
        with_settings(read_recipe(path), {"alignment.language.depth": "deep"})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("alignmnt.steps=3", "no field `alignmnt`: did you mean `alignment`?"),
        ("alignment.language.dpth=3", "no field `alignment.language.dpth`: did you mean `depth`?"),
        ("encoders.0.wights=x", "no field `encoders.0.wights`: did you mean `weights`?"),
        ("operations.extraction.zzz=1", "known here: channels_last"),
        ("alignment.steps=many", "`alignment.steps`: Input should be a valid integer"),
        ("encoders.0.image_size=x", "`encoders.0.image_size`"),
        ("alignment.language.depth=0", "both sides are locked"),
        ("data.shapes=null", "either `train` or `shapes`"),
        ("alignment", "write it as field=value"),
        ("alignment.steps.deep=1", "alignment.steps.deep is not a place in the recipe"),
        ("encoders.9.name=x", "encoders.9.name is not a place in the recipe"),
        ("alignment.steps=[", "is not a YAML value"),
    ],
)
def test_a_mistake_gets_one_line_that_names_the_field(path: str, override: str, message: str) -> None:
    with pytest.raises(RequestError) as error:
        read_recipe(path, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_only_an_order_by_parts_can_be_streamed(path: str) -> None:
    stream = "operations.training.stream=true"
    with pytest.raises(RequestError, match=r"`operations\.training\.stream` requires `alignment\.order: parts`"):
        read_recipe(path, [stream])
    assert read_recipe(path, [stream, "alignment.order=parts"]).operations.training.stream


def test_a_missing_field_is_named(tmp_path: Path, models: Path) -> None:
    path = support.write_recipe(tmp_path / "tiny.yaml", models)
    content = yaml.safe_load(path.read_text())
    del content["encoders"][1]["model"]
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(RequestError, match=r"the field `encoders\.1\.model` is missing"):
        read_recipe(str(path))


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no recipe at"), ("a: [", "is not YAML"), ("just text", "is not a recipe")]
)
def test_what_is_no_recipe_is_said(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RequestError, match=message):
        read_recipe(str(path))


def test_two_encoders_of_a_kind_must_not_be_guessed_between(path: str) -> None:
    recipe = read_recipe(path)
    twice = recipe.model_copy(update={"encoders": (recipe.vision, *recipe.encoders)})
    with pytest.raises(RequestError, match=r"lists 2 vision encoders .* set `alignment\.pair"):
        _ = twice.vision


@pytest.mark.parametrize("folder", ["[a]*", "{a,b}?", "[!x"])
def test_the_built_in_data_is_found_whatever_its_folder_is_called(path: str, tmp_path: Path, folder: str) -> None:
    recipe = read_recipe(path, [f"output={json.dumps(str(tmp_path / folder))}"])
    support.write_tar(tmp_path / folder / "data" / "train" / "00000.tar", {})
    assert [shard.name for shard in recipe.splits["train"].shards()] == ["00000"]


class TestClassNames:
    def named(self, path: str, tmp_path: Path, content: bytes) -> Recipe:
        (tmp_path / "classes.txt").write_bytes(content)
        data = {"dataset": "mine", "train": {"urls": "*.tar"}, "classes": str(tmp_path / "classes.txt")}
        return read_recipe(path, [f"data={json.dumps(data)}"])

    def test_are_the_lines_of_a_file(self, path: str, tmp_path: Path) -> None:
        recipe = self.named(path, tmp_path, "\ufefftench\r\ngreat\u2028white\r\n\r\n".encode())
        assert recipe.class_names() == ["tench", "great\u2028white"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [(b"tench\n \nray", "line 2 is empty, and each line must name a class"), (b"\xff\xfet\0", "save it as UTF-8")],
        ids=["empty line", "utf-16"],
    )
    def test_that_cannot_be_used_are_refused_before_any_work(
        self, path: str, tmp_path: Path, content: bytes, message: str
    ) -> None:
        recipe = self.named(path, tmp_path, content)
        for stage in (extract, plan, train):
            with pytest.raises(RequestError, match=message):
                stage(recipe)


def test_a_list_without_captions_is_refused_before_any_work(path: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("file_name,alt\n0.jpg,a\n")
    data = {"dataset": "mine", "train": {"format": "table", "path": str(tmp_path / "x.csv")}}
    recipe = read_recipe(path, [f"data={json.dumps(data)}"])
    for stage in (extract, plan):
        with pytest.raises(RequestError, match=r"has no captions for the language encoders: .* are file_name, alt"):
            stage(recipe)


@pytest.mark.parametrize("templates", ["['no place']", "['a {}.', 'a {name}.']", "[]"])
def test_templates_are_checked_when_the_recipe_is_read(path: str, templates: str) -> None:
    with pytest.raises(RequestError, match=r"`evaluation\.templates`: .*template") as error:
        read_recipe(path, [f"evaluation.templates={templates}"])
    assert "\n" not in str(error.value)


def test_recall_wants_a_k(path: str) -> None:
    with pytest.raises(RequestError, match=r"`evaluation\.recall_at`: .*at least 1 item"):
        read_recipe(path, ["evaluation.recall_at=[]"])


def test_an_extraction_of_nothing_but_rejects_is_no_success(path: str, tmp_path: Path) -> None:
    data = {"dataset": "mine", "train": {"urls": f"{tmp_path}/*.tar"}}
    recipe = read_recipe(path, [f"data={json.dumps(data)}"])
    lost = [Reject("00000/@0", "read", "DamagedTar", "bytes 0 to 133: the file is a Git LFS pointer")]
    for encoder in recipe.encoders:
        chunk = support.encoded(encoder.modality, [], rejects=lost)
        support.write_parts(Inputs(recipe).uri("train", encoder), encoder, [[chunk]])
    for _ in range(2):
        with pytest.raises(RunError, match=r"could be encoded \(00000/@0: DamagedTar: .* a Git LFS pointer\): fix the"):
            extract(recipe)


class TestPair:
    """Any number of encoders; which ones are aligned is said."""

    @pytest.fixture
    def many(self, tmp_path: Path, models: Path) -> str:
        encoders = [
            support.tiny_vision(models),
            support.tiny_vision(models, name="other-resnet"),
            support.tiny_language(models),
            support.tiny_language(models, "encoder"),
        ]
        dumped = [encoder.model_dump(mode="json") for encoder in encoders]
        return str(support.write_recipe(tmp_path / "many.yaml", models, encoders=dumped))

    def test_names_what_is_aligned(self, many: str) -> None:
        recipe = read_recipe(many, ["alignment.pair=[other-resnet, tiny-encoder]"])
        assert (recipe.vision.name, recipe.language.name) == ("other-resnet", "tiny-encoder")
        # Which features are trained on is known by their content: the request of a training has no names.
        assert recipe.training == read_recipe(many).training

    def test_must_be_given_where_there_is_a_choice(self, many: str) -> None:
        with pytest.raises(RequestError, match=r"2 language encoders \(tiny-decoder, tiny-encoder\), and one must"):
            _ = read_recipe(many).language

    def test_of_an_unknown_name_is_refused_as_the_recipe_is_read(self, many: str) -> None:
        with pytest.raises(RequestError, match=r"names the language encoder gpt, .* are tiny-decoder, tiny-encoder"):
            read_recipe(many, ["alignment.pair=[tiny-resnet, gpt]"])

    def test_is_in_no_name(self, many: str) -> None:
        recipe = read_recipe(many)
        assert content_hash(recipe.alignment) == content_hash(recipe.training)


class TestReadings:
    """One model read in several ways, and a study of all of them."""

    @staticmethod
    def recipe(path: str, *overrides: str, space: object = "*", **tuning: object) -> Recipe:
        study = json.dumps({"space": {"language": space}, "objective": "recall_at_1"} | tuning)
        return read_recipe(
            path, ["encoders.1.pooling=[mean, last]", "encoders.1.layer=[1, null]", f"tuning={study}", *overrides]
        )

    def test_are_written_out_and_named_in_the_space(self, path: str) -> None:
        recipe = self.recipe(path)
        names = [f"tiny-decoder-{pooling}-{layer}" for pooling in ("mean", "last") for layer in ("layer1", "final")]
        assert [encoder.name for encoder in recipe.encoders] == ["tiny-resnet", *names]
        assert recipe.tuning is not None
        assert recipe.tuning.space["language"] == tuple(names)
        assert list(recipe.studied) == names
        write_recipe(recipe)
        assert read_recipe(f"{recipe.output}/recipe.yaml") == recipe

    def test_are_chosen_by_patterns(self, path: str) -> None:
        recipe = self.recipe(path, space=["*-final", "tiny-decoder-mean-layer1"])
        assert list(recipe.studied) == [f"tiny-decoder-{name}" for name in ("mean-layer1", "mean-final", "last-final")]

    def test_a_pattern_without_an_encoder_is_named(self, path: str) -> None:
        with pytest.raises(RequestError, match=r"`tuning\.space\.language` names bert\*, but `encoders` has tiny-dec"):
            point_recipe(self.recipe(path, space=["bert*"]), {"language": "bert*"})


class TestMatched:
    """Pairs of models to compare; each mistake is one line."""

    @pytest.fixture
    def many(self, tmp_path: Path, models: Path) -> str:
        encoders = [support.tiny_vision(models), *(support.tiny_language(models, k) for k in ("encoder", "decoder"))]
        dumped = [encoder.model_dump(mode="json") for encoder in encoders]
        return str(support.write_recipe(tmp_path / "many.yaml", models, encoders=dumped))

    @staticmethod
    def tuning(*pairs: tuple[object, object], **changes: object) -> str:
        of = {"space": {"language": "*"}, "matched": [list(map(str, pair)) for pair in pairs]} | changes
        return f"tuning={json.dumps(of)}"

    def test_are_models_of_the_study(self, many: str, models: Path) -> None:
        pair = models / "encoder-0", models / "decoder-0"
        recipe = read_recipe(many, [self.tuning(pair)])
        assert recipe.tuning is not None
        assert recipe.tuning.matched == (tuple(map(str, pair)),)

    def test_mistakes(self, many: str, models: Path) -> None:
        encoder, decoder = models / "encoder-0", models / "decoder-0"
        for override, message in (
            (
                self.tuning((encoder, f"{decoder}1")),
                f"decoder-01, which no encoder of the study has: .* mean {decoder}",
            ),
            (self.tuning((encoder, encoder)), r"`matched` pairs .*encoder-0 with itself"),
            (self.tuning((encoder, decoder), (decoder, encoder)), r"`matched` pairs .*encoder-0 twice"),
            (
                self.tuning((encoder, decoder), space={"alignment.language.depth": [1, 2]}),
                r"`matched` compares encoders of a grid: name them in `space\.language`",
            ),
            (
                self.tuning((encoder, decoder), sampler="random", trials=3),
                r"`matched` compares encoders of a grid: .*`sampler: grid`",
            ),
            (
                self.tuning((encoder, decoder), space={"language": ["tiny-encoder"]}),
                r"decoder-0, which no encoder of the study has",
            ),
        ):
            with pytest.raises(RequestError, match=message) as error:
                read_recipe(many, [override])
            assert "\n" not in str(error.value)


def test_the_language_models_have_scores_of_one_harness_that_rank_them() -> None:
    models = [encoder.model for encoder in read_recipe("language_models").studied.values()]
    scores = select(read_scores(), "mmlu_pro", "log-likelihood")
    assert len(set(models)) == len(models) >= 12
    assert not [model for model in models if model not in scores or scores[model].at_chance]
    assert len({scores[model].family for model in models}) >= 8


def test_all_language_models_of_a_recipe_are_read_with_as_many_forward_passes() -> None:
    passes = {name: len({e.forward_key() for e in read_recipe(name).studied.values()}) for name in ("pooling", "layer")}
    assert passes == {"pooling": 1, "layer": 1}
    assert len({e.forward_key() for e in read_recipe("encoder_decoder").studied.values()}) == 12


def documented() -> list[list[str]]:
    """Arguments of the commands without a hub in docs/science.md, as bash gives them."""
    text = (Path(__file__).parents[2] / "docs" / "science.md").read_text()
    _, settings, commands = re.split(r"```bash\n", text.partition("## Without a hub")[2])
    script = "sharelock() { printf '%s\\0' \"$@\"; printf '\\n\\0'; }\n"
    script += "\n".join(block.partition("```")[0] for block in (settings, commands))
    found = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True).stdout
    return [line.split("\0")[:-1] for line in found.split("\n\0") if line]


def test_the_documented_commands_without_a_hub_are_valid_studies() -> None:
    commands = documented()
    assert {name for _, name, *_ in commands} >= {"direction", "pooling", "layer", "data_scale", "encoder_decoder"}
    for _, name, *options in commands:
        recipe = read_recipe(name, options[1::2])
        assert set(options[::2]) == {"--set"}
        assert recipe.tuning is not None
        assert not [encoder for encoder in recipe.encoders if encoder.hub_id]
        for point in recipe.tuning.points():
            point_recipe(recipe, point)
