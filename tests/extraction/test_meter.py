"""What the operator is told of a running extraction."""

import dataclasses

import pytest

from sharelock_ray.extraction import meter as module
from sharelock_ray.extraction.meter import Meter, combined
from sharelock_ray.extraction.report import ChunkReport
from sharelock_ray.features.state import Live
from sharelock_ray.sources.sample import Shard

SHARDS = [Shard(i, str(i), f"{i}.tar", 1000) for i in range(4)]
REPORT = ChunkReport(
    part=1,
    index=0,
    last=False,
    encoders=(0,),
    samples=10,
    bytes=500,
    rejects=1,
    tokens=120,
    read_seconds=1.0,
    encode_seconds=3.0,
    write_seconds=0.0,
    worker="node:1",
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the meter sees; set `clock[0]`."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_the_share_is_of_the_bytes_of_the_whole_input(clock: list[float]) -> None:
    meter = Meter("extract", SHARDS, finished=[0], earlier=Live())
    assert meter.share == 0.25
    meter.add(REPORT)
    assert meter.share == pytest.approx(0.375)
    meter.add(dataclasses.replace(REPORT, index=1, bytes=400, last=True))
    assert meter.share == 0.5


def test_the_rest_of_the_time_follows_from_the_share(clock: list[float]) -> None:
    meter = Meter("extract", SHARDS, finished=[], earlier=Live())
    meter.add(dataclasses.replace(REPORT, bytes=0))
    clock[0] += 20
    meter.add(dataclasses.replace(REPORT, last=True))
    live = meter.live()
    assert (live.samples, live.samples_per_second) == (20, 0.5)
    assert live.seconds_left == pytest.approx(60)


def test_what_earlier_runs_did_is_counted_and_their_rate_is_not(clock: list[float]) -> None:
    meter = Meter("extract", SHARDS, finished=[0], earlier=Live(samples=70, rejects=2, wall_seconds=30))
    clock[0] += 5
    meter.add(REPORT)
    clock[0] += 5
    meter.add(REPORT)
    live = meter.live()
    assert (live.samples, live.rejects, live.wall_seconds, live.samples_per_second) == (90, 4, 40, 2.0)


def test_an_encoder_idles_while_its_actor_waits(clock: list[float]) -> None:
    meter = Meter("extract", SHARDS, finished=[], earlier=Live())
    meter.add(REPORT)  # Its actor has been at work for 3 seconds.
    assert meter.idle(clock[0]) == 0
    clock[0] += 9
    meter.add(REPORT)
    assert meter.idle(clock[0]) == pytest.approx(1 - 6 / 12)
    meter.add(dataclasses.replace(REPORT, worker="node:2", encode_seconds=6))
    assert meter.idle(clock[0]) == pytest.approx(1 - 12 / 18)


def test_the_line_says_rates_stages_idleness_and_rejects(clock: list[float]) -> None:
    meter = Meter("extract train", SHARDS, finished=[], earlier=Live())
    meter.add(REPORT)
    clock[0] += 4
    meter.add(REPORT)
    line = meter._progress.line(clock[0])
    assert line.startswith("extract train: 20 samples (25%), 2.5/s")
    assert line.endswith("60 tokens/s; read 25%, encode 75%, write 0%; encoders idle 14%; 2 rejects")


def test_others_are_told_every_ten_seconds(clock: list[float]) -> None:
    meter = Meter("extract", SHARDS, finished=[], earlier=Live())
    assert not meter.is_due()
    clock[0] += 11
    assert meter.is_due()
    assert not meter.is_due()


def test_of_several_sets_the_one_that_tells_most_is_gone_on_from() -> None:
    assert combined([None, Live(wall_seconds=3), Live(wall_seconds=5, samples=1)]).samples == 1
    assert combined([None]) == Live()
