"""The benchmarks measure what they say; how fast anything is, is not tested."""

import json
import statistics
import tarfile
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sharelock_ray.bench import captions, command, encoders, extract
from sharelock_ray.bench.models import DECODERS


class TestCaptions:
    @pytest.mark.parametrize("mean", [12, 47])
    def test_have_the_lengths_of_web_captions(self, mean: int) -> None:
        lengths = [len(text.split()) for text in captions.captions(captions.Setting(4000, mean))]
        assert statistics.mean(lengths) == pytest.approx(mean, rel=0.03)
        assert statistics.stdev(lengths) == pytest.approx(mean * 4.5 / 10.3, rel=0.06)

    def test_repeat_as_asked(self) -> None:
        texts = captions.captions(captions.Setting(400, 20, repeated=0.25))
        assert len(texts) == 400
        assert len(set(texts)) == 300

    def test_all_ways_encode_the_same(self) -> None:
        found = captions.compare(captions.Setting(8, 6), repeats=1)
        assert found.max_cosine_distance < 1e-5
        assert [len(rates) for rates in (found.ours, found.batches, found.single)] == [1, 1, 1]


class TestExtract:
    def test_tars_hold_each_image_once(self, tmp_path: Path) -> None:
        extract.write_tars(tmp_path, extract.Setting(25, 1, per_tar=10))
        names = []
        for path in sorted(tmp_path.glob("*.tar")):
            with tarfile.open(path) as tar:
                names.append(tar.getnames())
        assert [len(n) for n in names] == [10, 10, 5]
        assert [name for tar_names in names for name in tar_names] == [f"{i:09d}.jpg" for i in range(25)]

    @pytest.mark.slow
    def test_both_sides_give_rates_over_the_same_images(self) -> None:
        found = extract.compare(extract.Setting(600, 1, image_size=64, per_tar=300, width=80, height=60), repeats=1)
        assert min(*found.loop, *found.pipeline, found.start_seconds) > 0
        assert min(found.driver_bytes, found.worker_bytes) > 50 << 20


class TestEncoders:
    def test_count_the_arithmetic_of_a_decoder(self) -> None:
        found = encoders.language("small", "float32", "cpu", token_budget=64, mean_tokens=12, repeats=1)
        sizes = DECODERS["small"]
        layer = 4 * sizes["hidden_size"] ** 2 + 3 * sizes["hidden_size"] * sizes["intermediate_size"]
        # Two for each weight and token, plus a little for attention itself.
        assert found.flop_per_unit == pytest.approx(2 * sizes["num_hidden_layers"] * layer, rel=0.02)

    def test_a_product_cannot_beat_its_own_peak_by_much(self) -> None:
        peak = encoders.peak("cpu", "float32", repeats=3)
        assert np.isfinite(peak)
        assert 1e9 < peak < 1e14

    def test_decoding_has_a_rate(self) -> None:
        assert encoders.decode_rate(width=100, height=80, image_size=32, images=10) > 0


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
