"""Progress and rates shown during an extraction."""

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
    """The meter's clock; set `clock[0]`."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def chunk(**changes: object) -> ChunkReport:
    return dataclasses.replace(REPORT, **changes)


def test_the_share_counts_bytes_of_the_whole_input(clock: list[float]) -> None:
    meter = Meter("extract", SHARDS, open_chunks={1: 0, 2: 0, 3: 0}, earlier=Live())
    assert meter.share == 0.25
    meter.add(REPORT, whole=False)
    assert meter.share == pytest.approx(0.375)
    meter.add(chunk(index=1, bytes=400, last=True), whole=True)
    assert meter.share == 0.5


def test_a_shard_is_done_when_all_its_chunks_have_arrived_in_any_order(clock: list[float]) -> None:
    meter = Meter("extract", SHARDS[:2], open_chunks={0: 0, 1: 0}, earlier=Live())
    shares = []
    for index, whole in [(2, False), (0, False), (1, True), (1, True)]:
        clock[0] += 1
        meter.add(chunk(part=1, index=index, last=index == 2, bytes=600), whole)
        shares.append(meter.share)
    assert shares == [pytest.approx(0.3), 0.5, 0.5, 0.5]
    meter.add(chunk(part=0, last=True), whole=True)
    assert (meter.share, meter.live().seconds_left) == (1, 0)


def test_chunks_of_an_earlier_run_count_with_the_mean_size(clock: list[float]) -> None:
    meter = Meter("extract", SHARDS[:2], open_chunks={0: 3, 1: 0}, earlier=Live())
    meter.add(chunk(part=1, bytes=200), whole=False)
    assert meter.share == pytest.approx((3 * 200 + 200) / 2000)
    clock[0] += 10
    meter.add(chunk(part=1, bytes=200), whole=False)
    assert meter.live().seconds_left == pytest.approx(50)
    # The shard's last chunk was among those staged earlier.
    meter.add(chunk(part=0, bytes=200), whole=True)
    assert meter.share == pytest.approx((1000 + 400) / 2000)


def test_the_remaining_time_follows_from_the_share(clock: list[float]) -> None:
    meter = Meter("extract", SHARDS, open_chunks=dict.fromkeys(range(4), 0), earlier=Live())
    meter.add(chunk(bytes=0), whole=False)
    clock[0] += 20
    meter.add(chunk(last=True), whole=True)
    live = meter.live()
    assert (live.samples, live.samples_per_second) == (20, 0.5)
    assert live.seconds_left == pytest.approx(60)


def test_totals_include_earlier_runs_and_rates_do_not(clock: list[float]) -> None:
    earlier = Live(samples=70, rejects=2, wall_seconds=30)
    meter = Meter("extract", SHARDS, open_chunks={1: 0, 2: 0, 3: 0}, earlier=earlier)
    clock[0] += 5
    assert meter.live().seconds == {}
    meter.add(REPORT, whole=False)
    clock[0] += 5
    meter.add(REPORT, whole=False)
    live = meter.live()
    assert (live.samples, live.rejects, live.wall_seconds, live.samples_per_second) == (90, 4, 40, 2.0)
    assert live.seconds == {"read": 2, "encode": 6, "write": 0}


def test_an_encoder_idles_while_its_actor_waits(clock: list[float]) -> None:
    meter = Meter("extract", SHARDS, open_chunks=dict.fromkeys(range(4), 0), earlier=Live())
    meter.add(REPORT, whole=False)  # Its actor has worked for 3 seconds.
    assert meter.idle == 0
    clock[0] += 9
    meter.add(REPORT, whole=False)
    assert meter.idle == pytest.approx(1 - 6 / 12)
    # A lost actor reports nothing and does not count as idle.
    clock[0] += 100
    meter.add(chunk(worker="node:2", encode_seconds=6), whole=False)
    assert meter.idle == pytest.approx(1 - 12 / 18)


def test_the_progress_line_shows_rates_stages_idle_time_and_rejects(clock: list[float]) -> None:
    meter = Meter("extract train", SHARDS, open_chunks=dict.fromkeys(range(4), 0), earlier=Live())
    meter.add(chunk(tokens=5000), whole=False)
    clock[0] += 4
    meter.add(REPORT, whole=False)
    line = meter._progress.line(clock[0])
    assert line.startswith("extract train: 20 samples (25%), 2.5/s")
    assert line.endswith("30 tokens/s; read 25%, encode 75%, write 0%; encoders idle 14%; 2 rejects")


def test_the_state_with_the_most_wall_seconds_is_continued() -> None:
    assert combined([None, Live(wall_seconds=3), Live(wall_seconds=5, samples=1)]).samples == 1
    assert combined([None]) == Live()
