"""The benchmarks measure what they report. Speed itself is not tested."""

import json
import statistics
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from sharelock_ray.bench import captions, command, decode
from sharelock_ray.bench import measure_batches as batches
from sharelock_ray.bench import measure_concepts as concepts
from sharelock_ray.bench import measure_encoders as encoders
from sharelock_ray.bench import measure_evaluate as evaluate
from sharelock_ray.bench import measure_extract as extract
from sharelock_ray.bench import measure_loss as loss
from sharelock_ray.bench import measure_prompts as prompts
from sharelock_ray.bench import measure_start as start
from sharelock_ray.bench import measure_streaming as streaming
from sharelock_ray.bench import measure_train as train
from sharelock_ray.bench import measure_tune as tune
from sharelock_ray.bench.models import DECODERS, random_vision
from sharelock_ray.concepts.wordnet import WordNet
from sharelock_ray.errors import RequestError
from sharelock_ray.features.cache import cache_folder
from sharelock_ray.sources.prompts import prompts_of


@pytest.mark.real
def test_concepts_are_audited_in_both_ways(whole_wordnet: WordNet) -> None:
    found = concepts.measure_wordnet(str(whole_wordnet.folder), repeats=1, sample=2)
    assert (found.unseen, found.seen, found.strict) == (20_844, 1_000, 14_469)
    assert min(*found.read, *found.audit, *found.pairs) > 0
    assert found.ratio > 1


@pytest.mark.real
def test_captions_are_searched_in_both_ways() -> None:
    found = concepts.measure_captions(None, captions=2000, repeats=1, sample=2)
    assert found.concepts == 1000
    # A name is put into 30 %, and other captions name something by themselves.
    assert 0.2 < found.named < 0.6
    assert min(*found.build, *found.find, *found.expression) > 0
    assert found.ratio > 1


def test_decode_reads_every_image_in_both_ways() -> None:
    found = decode.compare(decode.Setting(width=160, height=120, images=5, image_size=32), repeats=2)
    assert found.bytes > 1000
    assert [len(rates) for rates in (found.ours, found.full_scale)] == [2, 2]
    assert min(*found.ours, *found.full_scale) > 0
    assert found.setting.preprocessing.resize == 36


@pytest.mark.slow
def test_start_waits_for_what_each_side_encodes(capsys: pytest.CaptureFixture[str]) -> None:
    start.encode_here()
    assert capsys.readouterr().out == "encoded\n"
    found = start.compare(repeats=1)
    assert 0 < min(found.plain) < min(found.ray)
    assert found.ratio == found.command[0] / found.ray[0]


class TestCaptions:
    @pytest.mark.parametrize("mean", [12, 47])
    def test_have_the_lengths_of_web_captions(self, mean: int) -> None:
        lengths = [len(text.split()) for text in captions.captions(captions.Setting(4000, mean))]
        assert statistics.mean(lengths) == pytest.approx(mean, rel=0.03)
        assert statistics.stdev(lengths) == pytest.approx(mean * 4.5 / 10.3, rel=0.06)

    def test_repeat_the_requested_fraction(self) -> None:
        texts = captions.captions(captions.Setting(400, 20, repeated=0.25))
        assert len(texts) == 400
        assert len(set(texts)) == 300

    def test_all_ways_encode_the_same(self) -> None:
        (found,) = captions.compare(captions.Decoder(), [captions.Setting(8, 6)], repeats=1)
        assert found.max_cosine_distance < 1e-5
        assert [len(rates) for rates in (found.ours, *found.theirs.values())] == [1, 1, 1]

    def test_minilm_equals_sentence_transformers(self) -> None:
        pytest.importorskip("sentence_transformers")
        (found,) = captions.compare_minilm("cpu", 1, [captions.Setting(40, 12)], repeats=2)
        assert found.max_cosine_distance < 1e-5
        assert list(found.ratios) == [captions.SENTENCE_TRANSFORMERS]
        assert [len(rates) for rates in (found.ours, *found.theirs.values())] == [2, 2]

    def test_without_sentence_transformers_there_is_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "sentence_transformers", None)
        with pytest.raises(RequestError, match="pip install sentence-transformers"):
            captions.compare_minilm("cpu", 1, [], repeats=1)


class TestExtract:
    def test_tars_hold_each_image_once(self, tmp_path: Path) -> None:
        extract.write_tars(tmp_path, extract.Setting(25, 1, per_tar=10))
        names = []
        for path in sorted(tmp_path.glob("*.tar")):
            with tarfile.open(path) as tar:
                names.append(tar.getnames())
        assert [len(n) for n in names] == [10, 10, 5]
        assert [name for tar_names in names for name in tar_names] == [f"{i:09d}.jpg" for i in range(25)]

    def test_loop_and_webdataset_save_the_same_embeddings(self, tmp_path: Path) -> None:
        pytest.importorskip("webdataset")
        setting = extract.Setting(150, 1, image_size=32, per_tar=80, width=80, height=60)
        extract.write_tars(tmp_path, setting)
        spec = random_vision(tmp_path, setting.model, setting.image_size)
        found = []
        for work in (extract._loop, extract._webdataset):
            rates = work(str(tmp_path), setting, spec)
            assert min(rates.per_second, rates.per_cpu_second) > 0
            found.append(np.load(tmp_path / "embeddings.npy").astype(np.float32))
        np.testing.assert_allclose(*found, rtol=1e-2, atol=1e-3)

    def test_without_webdataset_there_is_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(extract, "find_spec", lambda name: None)
        with pytest.raises(RequestError, match="pip install webdataset"):
            extract.compare(extract.Setting(1, 1), repeats=1)

    @pytest.mark.slow
    def test_all_sides_give_rates_over_the_same_images(self) -> None:
        pytest.importorskip("webdataset")
        found = extract.compare(extract.Setting(600, 1, image_size=64, per_tar=300, width=80, height=60), repeats=1)
        assert min(*found.loop, *found.webdataset, *found.pipeline, found.start_seconds) > 0
        assert min(found.ratios.values()) > 0
        assert min(found.driver_bytes, found.worker_bytes) > 50 << 20


class TestTune:
    @pytest.mark.slow
    def test_both_sides_train_every_trial_over_one_copy_of_the_features(self) -> None:
        small = tune.Setting(2, pairs=2000, dim=64, steps=30, depths=(2,), widths=(16, 32))
        found = tune.compare(small, repeats=1)
        assert small.trials == 6
        assert min(*found.loop, *found.study, found.start_seconds) > 0
        assert found.feature_copies <= 1.05


class TestEncoders:
    def test_count_the_arithmetic_of_a_decoder(self) -> None:
        (found,) = encoders.language("small", "float32", "cpu", 64, mean_tokens=[12], compiled=False, repeats=1)
        sizes = DECODERS["small"]
        attention, mlp = 4 * sizes["hidden_size"] ** 2, 3 * sizes["hidden_size"] * sizes["intermediate_size"]
        weights = sizes["num_hidden_layers"] * (attention + mlp)
        # Two FLOP per weight and token, plus a little for attention itself.
        assert found.flop_per_unit == pytest.approx(2 * weights, rel=0.02)

    def test_the_peak_is_plausible(self) -> None:
        peak = encoders.peak("cpu", "float32", repeats=3)
        assert np.isfinite(peak)
        assert 1e9 < peak < 1e14

    def test_measure_the_memory_formats_in_turn(self, capsys: pytest.CaptureFixture[str]) -> None:
        found = encoders.vision("test_vit", 32, "float32", "cpu", 2, compiled=False, channels_last=True, repeats=2)
        names = ["test_vit at 32, float32", "test_vit at 32, float32, channels last"]
        assert [each.name for each in found] == names
        assert [len(each.per_second) for each in found] == [2, 2]
        said = [line.split(": ")[1].rpartition(", ")[0] for line in capsys.readouterr().err.splitlines()]
        assert said == names * 2

    def test_decoding_has_a_rate(self) -> None:
        assert encoders.decode_rate(width=100, height=80, image_size=32, images=10) > 0


class TestLoss:
    @pytest.mark.parametrize("frozen", [False, True])
    def test_all_ways_compute_the_same(self, frozen: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        image, text = (F.normalize(torch.randn(40, 8, generator=generator), dim=1) for _ in range(2))
        image.requires_grad_(not frozen)
        text.requires_grad_()
        found = []
        for way in loss.losses().values():
            image.grad = text.grad = None
            value = way(image, text)
            value.backward()
            found.append([value.detach(), text.grad, torch.zeros(1) if frozen else image.grad])
        for other in found[1:]:
            torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-6)

    def test_every_implementation_has_both_clocks(self) -> None:
        kinds = [(loss.PRODUCT, True), *((way, frozen) for frozen in (False, True) for way in loss.losses())]
        taken = loss.seconds(loss.Setting(64, 8, threads=1), kinds, repeats=2)
        assert len(taken) == 9
        assert all(len(wall) == len(cpu) == 2 and min(*wall, *cpu) > 0 for wall, cpu in taken)

    @pytest.mark.slow
    def test_stored_logits_use_their_whole_size_and_tiles_that_of_one_tile(self) -> None:
        # All logits of 6,144 pairs are 144 MiB, a tile 32 MiB.
        setting = loss.Setting(6144, 32, threads=1)
        stored, tiled = (loss.extra_memory(setting, way, False) / 2**20 for way in ("stored", "tiled"))
        assert 144 <= stored < 180
        assert 32 <= tiled < 68

    def test_without_open_clip_there_is_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "open_clip", None)
        with pytest.raises(RequestError, match="pip install open_clip_torch"):
            loss.compare(loss.Setting(64, 8), repeats=1)


class TestPrompts:
    def test_are_those_of_each_class_of_imagenet_21k(self) -> None:
        source = prompts.prompts(210, 3)
        assert (len(set(source.names)) > 200, len(source.templates)) == (True, 3)
        assert sum(len(prompts_of(name, source.templates)) for name in source.names) == 630

    def test_of_more_classes_than_there_are_are_one_line(self) -> None:
        with pytest.raises(RequestError, match="--classes 30,000: ImageNet-21k has 21,843"):
            prompts.prompts(30_000, 7)


class TestEvaluate:
    def test_both_sides_find_the_same_accuracy(self) -> None:
        found = evaluate.compare_zero_shot(evaluate.ZeroShotSetting(300, 20, 3, dim=16, threads=1), repeats=2)
        assert [len(seconds) for seconds in (found.ours, found.theirs)] == [2, 2]
        assert found.ratio > 0
        assert 1 / 20 < found.top_1 < 1

    def test_without_clip_benchmark_there_is_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "clip_benchmark.metrics", None)
        with pytest.raises(RequestError, match="pip install"):
            evaluate.compare_zero_shot(evaluate.ZeroShotSetting(10, 5, 1, dim=4, threads=1), repeats=1)

    def test_retrieval_needs_a_block_of_memory_and_not_all_similarities(self) -> None:
        setting = evaluate.RetrievalSetting(*evaluate.sizes("8000x20000"), dim=16, threads=1)
        found = evaluate.measure_retrieval(setting)
        # All similarities are 610 MiB, a block of 1,024 x 1,024 is 4 MiB.
        assert 4 << 20 <= found.extra_bytes < 200 << 20
        assert found.per_second > 0

    def test_the_exponent_is_that_of_the_number_of_pairs(self) -> None:
        found = [
            evaluate.Retrieval(evaluate.RetrievalSetting(n, 2 * n, 4, 1), 1e-6 * (2 * n * n) ** 1.1, 0)
            for n in (100, 400, 900)
        ]
        assert evaluate.exponent(found) == pytest.approx(1.1)
        assert evaluate.exponent(found[:1]) is None

    @pytest.mark.parametrize("text", ["100", "10x", "x10", "0x10", "20x10", "axb", "-1x5"])
    def test_wrong_sizes_are_one_line(self, text: str) -> None:
        with pytest.raises(RequestError, match=rf"--retrieval {text} must be images x captions"):
            evaluate.sizes(text)


class TestBatches:
    def test_every_way_has_rates_and_both_openings_are_timed(self) -> None:
        found = batches.compare(batches.Setting(pairs=600, batch_size=64, vision_dim=8, language_dim=4, files=40), 2)
        assert [len(rates) for rates in (found.ours, found.gather, found.released)] == [2, 2, 2]
        assert found.opening.bytes == 600 * (8 + 4) * 2
        assert min(*found.ours, *found.gather, *found.released, found.opening.first_cpu, found.opening.second) > 0

    def test_the_cache_of_the_caller_is_restored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SHARELOCK_CACHE", "kept")
        with batches.cache_in("/nowhere"):
            assert str(cache_folder()).startswith("/nowhere")
        assert str(cache_folder()).startswith("kept")


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_streaming_yields_an_epoch_in_each_way() -> None:
    found = streaming.compare(streaming.Setting(pairs=600, batch_size=64, vision_dim=8, language_dim=4), repeats=1)
    assert [len(rates) for rates in (found.disk, found.here, found.tasks)] == [1, 1, 1]
    assert min(*found.disk, *found.here, *found.tasks) > 0


class TestTrain:
    SETTING = train.Setting(batch_size=64, vision_dim=8, language_dim=16, depth=3, width=32)

    def test_counts_the_products_that_a_step_requires(self) -> None:
        take = train._step(self.SETTING)
        with FlopCounterMode(display=False) as counter:
            take()
        # The counter does not see the two products of the loss, which write to existing memory.
        assert counter.get_total_flops() == self.SETTING.flop - 2 * 2 * 64**2 * 8

    def test_the_slope_is_the_exponent_of_the_batch_size(self) -> None:
        batches = [train.Measured(replace(self.SETTING, batch_size=n), [3e-6 * n**1.5] * 2, []) for n in (64, 128, 512)]
        assert train.Comparison(batches[0], batches, []).slope == pytest.approx(1.5)
        assert train.Comparison(batches[0], batches[:1], []).slope is None

    def test_steps_are_compared_with_the_product(self) -> None:
        found = train.step(self.SETTING, repeats=2)
        assert (len(found.seconds), len(found.product)) == (2, 2)
        assert found.share_of_product > 0

    @pytest.mark.slow
    def test_workers_share_a_step(self) -> None:
        found = train.on_workers(replace(self.SETTING, workers=2), repeats=2)
        assert len(found.seconds) == 2
        assert found.share_of_product is None

    def test_a_whole_run_trains_as_many_steps(self) -> None:
        run = train.whole_run(self.SETTING, pairs=400, steps=12, evaluate_every=5)
        assert (run.steps, run.pairs) == (12, 400)
        assert run.placement.startswith("batches come from the host")
        assert min(run.seconds, run.open_seconds) > 0


@pytest.mark.slow
def test_the_command_prints_one_json_object_with_the_machine() -> None:
    result = CliRunner().invoke(
        command.app,
        [
            *("encoders", "--json", "--repeats", "1", "--token-budget", "64"),
            *("--vision", "test_vit", "--image-size", "32", "--image-batch-size", "2"),
        ],
    )
    found = json.loads(result.stdout.splitlines()[-1])
    assert "cores" in found["machine"]
    assert [e["unit"] for e in found["encoders"]] == ["images", "tokens", "tokens"]
    assert found["decode_per_core"] > 0
