"""`sharelock bench …`: one command per benchmark."""

import json
import statistics
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

import typer

from sharelock_ray.bench.timing import DType, machine, median_ratio
from sharelock_ray.report.table import print_table, text_table

app = typer.Typer(help="Measure performance as ratios within one run.", no_args_is_help=True)

Repeats = Annotated[int, typer.Option(min=1, help="Number of rounds; results are medians.")]
Threads = Annotated[int, typer.Option(min=1, help="Number of CPUs for each side.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Shape = Annotated[str, typer.Option(help="Shape of a Llama with random weights: small or llama-3-8b.")]
Compiled = Annotated[bool, typer.Option("--compile", help="Use torch.compile.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object, on the last line.")]


@app.command()
def extract(
    images: Annotated[list[int] | None, typer.Option(help="Number of images of a measurement. Repeatable.")] = None,
    threads: Threads = 1,
    model: Annotated[str, typer.Option(help="A timm model, with random weights.")] = "test_vit",
    image_size: int = 160,
    size: Annotated[tuple[int, int], typer.Option(help="Width and height of the JPEGs.")] = (400, 300),
    device: Device = "cpu",
    dtype: DType = "float32",
    repeats: Repeats = 5,
    as_json: AsJson = False,
) -> None:
    """Extraction of images from tars to Parquet, compared with a plain PyTorch loop and a webdataset DataLoader."""
    from sharelock_ray.bench.measure_extract import Setting, compare

    setting = Setting(0, threads, model, image_size, dtype, device, width=size[0], height=size[1])
    found = [compare(replace(setting, images=count), repeats) for count in images or [2000, 20000]]
    rows = [
        [
            f"{c.setting.images:,}",
            f"{_median(c.pipeline)}",
            f"{_median(c.loop)}",
            f"{_median(c.webdataset)}",
            *(f"{ratio:.2f}" for ratio in c.ratios.values()),
            f"{c.start_seconds:.1f}",
            f"{c.driver_bytes / 2**20:.0f}",
            f"{c.worker_bytes / 2**20:.0f}",
            f"{c.spilled_bytes / 2**20:.0f}",
        ]
        for c in found
    ]
    rates = ["images", "ours /s", "loop /s", "webdataset /s", "to loop", "CPU", "to webdataset", "CPU"]
    header = [*rates, "start s", "driver MiB", "worker MiB", "spilled MiB"]
    _show(header, rows, {"comparisons": [asdict(c) | c.ratios for c in found]}, as_json)


@app.command()
def start(repeats: Repeats = 5, as_json: AsJson = False) -> None:
    """The time from a command to the first encoded sample, compared with a bare Ray and a process without Ray."""
    from sharelock_ray.bench.measure_start import compare

    found = compare(repeats)
    row = [*map(_median, (found.command, found.ray, found.plain)), f"{found.ratio:.2f}"]
    header = ["command s", "bare Ray s", "without Ray s", "to bare Ray"]
    _show(header, [row], {"comparisons": [asdict(found) | {"ratio": found.ratio}]}, as_json)


@app.command(name="decode")
def decode_(
    image_size: Annotated[int, typer.Option(min=1, help="Input size of the encoder, in pixels.")] = 224,
    repeats: Repeats = 5,
    as_json: AsJson = False,
) -> None:
    """Reading and decoding of JPEGs on one core, and the cores needed for 1,000 images per second."""
    from sharelock_ray.bench.decode import Setting, compare

    sizes = [(341, 256, 512), (500, 375, 512), (1024, 768, 128), (4000, 3000, 16)]
    found = [compare(Setting(width, height, count, image_size), repeats) for width, height, count in sizes]
    rows = [
        [
            f"{c.setting.width:,} x {c.setting.height:,}",
            f"{c.bytes / 1000:,.0f}",
            _median(c.ours),
            _median(c.full_scale),
            f"{c.ratio:.2f}",
            f"{1000 / statistics.median(c.ours):.1f}",
        ]
        for c in found
    ]
    header = ["JPEG", "KB", "images per CPU second", "at full scale", "ratio", "cores for 1,000 images/s"]
    _show(header, rows, {"comparisons": [asdict(c) | {"ratio": c.ratio} for c in found]}, as_json)


@app.command(name="captions")
def captions_(
    device: Device = "cpu",
    language: Shape = "small",
    dtype: DType = "float32",
    repeats: Repeats = 5,
    threads: Threads = 1,
    as_json: AsJson = False,
) -> None:
    """Encoding of captions: by a decoder, compared with common practice, and by MiniLM, with sentence-transformers."""
    from sharelock_ray.bench.captions import OTHERS, Decoder, Setting, compare, compare_minilm

    settings = [Setting(512, 12), Setting(160, 47), Setting(512, 12, repeated=0.3)]
    found = compare(Decoder(language, dtype, device, threads), settings, repeats)
    settings = [Setting(2048, 12), Setting(640, 47), Setting(2048, 12, repeated=0.55)]
    found += compare_minilm(device, threads, settings, repeats)
    rows = [
        [
            c.model,
            f"{c.setting.mean_tokens}",
            f"{c.setting.repeated:.0%}",
            f"{_median(c.ours)}",
            *(f"{c.ratios[name]:.2f}" if name in c.ratios else "" for name in OTHERS),
            f"{c.max_cosine_distance:.1e}",
        ]
        for c in found
    ]
    others = [f"to {name}" for name in OTHERS]
    header = ["model", "mean tokens", "repeated", "captions /s", *others, "1 - cosine"]
    _show(header, rows, {"comparisons": [asdict(c) | {"ratios": c.ratios} for c in found]}, as_json)


@app.command()
def encoders(
    device: Device = "cpu",
    vision: Annotated[str, typer.Option(help="A timm model, with random weights.")] = "vit_tiny_patch16_224",
    image_size: int = 224,
    image_batch_size: int | None = None,
    language: Shape = "small",
    token_budget: int | None = None,
    dtype: DType = "float32",
    compiled: Compiled = False,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Also measure the NHWC format.")] = False,
    repeats: Repeats = 5,
    as_json: AsJson = False,
) -> None:
    """Each encoder alone, compared with the rate of the device's own matrix product."""
    from sharelock_ray.bench import measure_encoders as bench

    images = bench.vision(vision, image_size, dtype, device, image_batch_size, compiled, channels_last, repeats)
    found = images + bench.language(language, dtype, device, token_budget, (12, 47), compiled, repeats)
    decode = bench.decode_rate(image_size=image_size)
    rows = [
        [
            t.name,
            f"{_median(t.per_second)} {t.unit}/s",
            f"{t.peak_flop / 1e12:.2f}",
            f"{t.share_of_peak:.0%}",
            f"{median_ratio(t.per_second, images[0].per_second):.2f}" if t in images[1:] else "",
        ]
        for t in found
    ]
    cores = statistics.median(found[0].per_second) / decode
    rows.append([f"decoding for {image_size}, one core", f"{decode:,.0f} images/s", "", f"needs {cores:.1f} cores", ""])
    result = {"device": bench.describe(device), "decode_per_core": decode, "encoders": [asdict(t) for t in found]}
    _show(["encoder", "rate", "peak TFLOP/s", "share of peak", "to NCHW"], rows, result, as_json)


@app.command()
def loss(
    pairs: Annotated[int, typer.Option(min=2, help="Global batch size.")] = 16384,
    dim: Annotated[int, typer.Option(min=1, help="Width of the shared space.")] = 1024,
    threads: Threads = 2,
    repeats: Repeats = 5,
    as_json: AsJson = False,
) -> None:
    """The contrastive loss, forward and backward, compared with open_clip, the released code and one bare product."""
    from sharelock_ray.bench import measure_loss as bench

    found = bench.compare(bench.Setting(pairs, dim, threads), repeats)
    product = found[0]
    theirs = {m.frozen: m for m in found if m.way == bench.OPEN_CLIP}
    rows = [
        [
            m.way,
            "" if m is product else "text" if m.frozen else "both",
            *(bench.median_seconds(values) for values in (m.wall, m.cpu)),
            *(f"{m.ratio(product, clock):.2f}" for clock in ("wall", "cpu")),
            *("" if m is product else f"{m.ratio(theirs[m.frozen], clock):.2f}" for clock in ("wall", "cpu")),
            f"{m.extra_bytes / 2**20:,.0f}",
        ]
        for m in found
    ]
    header = ["way", "trains", "wall s", "CPU s", "to product", "CPU", "to open_clip", "CPU", "extra MiB"]
    _show(header, rows, {"pairs": pairs, "dim": dim, "ways": [asdict(m) for m in found]}, as_json)


@app.command()
def evaluate(
    images: Annotated[int, typer.Option(min=1, help="Images to classify.")] = 50_000,
    classes: Annotated[int, typer.Option(min=2, help="Classes.")] = 1000,
    templates: Annotated[int, typer.Option(min=1, help="Prompts of each class.")] = 80,
    retrieval: Annotated[
        list[str] | None, typer.Option(metavar="NxM", help="Images x captions of a retrieval. Repeatable.")
    ] = None,
    dim: Annotated[int, typer.Option(min=1, help="Width of the shared space.")] = 1024,
    threads: Threads = 1,
    repeats: Repeats = 5,
    as_json: AsJson = False,
) -> None:
    """Scoring from features: classification, compared with CLIP-Benchmark; retrieval, by size, with its memory."""
    from sharelock_ray.bench import measure_evaluate as bench

    sizes = [bench.sizes(each) for each in retrieval or ["10000x50000", "20000x100000", "40000x200000"]]
    zero_shot = bench.compare_zero_shot(bench.ZeroShotSetting(images, classes, templates, dim, threads), repeats)
    found = [bench.measure_retrieval(bench.RetrievalSetting(*size, dim, threads)) for size in sizes]
    what = f"{images:,} images, {classes:,} classes, {templates} templates"
    rows = [
        [f"{what}: {side}", f"{statistics.median(seconds):.2f}", ratio, "", "", ""]
        for side, seconds, ratio in (
            (bench.THEIRS, zero_shot.theirs, "1"),
            (bench.OURS, zero_shot.ours, f"{zero_shot.ratio:.2f}"),
        )
    ]
    rows += [
        [
            f"{r.setting.images:,} images x {r.setting.texts:,} captions",
            f"{r.seconds:.2f}",
            "",
            f"{r.per_second / 1e6:,.0f}",
            f"{r.setting.bytes / 2**20:,.0f}",
            f"{r.extra_bytes / 2**20:,.0f}",
        ]
        for r in found
    ]
    slope = bench.exponent(found)
    if slope is not None:
        rows.append(["exponent of time by images x captions", f"{slope:.2f}", "", "", "", ""])
    header = ["", "CPU s", "times as fast", "million pairs /CPU s", "features MiB", "extra MiB"]
    result = {
        "zero_shot": asdict(zero_shot) | {"ratio": zero_shot.ratio},
        "retrieval": [asdict(r) for r in found],
        "exponent": slope,
    }
    _show(header, rows, result, as_json)


@app.command()
def prompts(
    classes: Annotated[int, typer.Option(min=200, help="Class names of ImageNet-21k.")] = 20_000,
    templates: Annotated[int, typer.Option(min=1, help="Prompts of each class.")] = 7,
    repeats: Repeats = 3,
    as_json: AsJson = False,
) -> None:
    """Class prompts: extraction into a feature set of texts, compared with the encoder alone (MiniLM, one thread)."""
    from sharelock_ray.bench import measure_prompts as bench

    found = bench.compare(classes, templates, repeats)
    rows = [
        ["encoder alone, given all prompts", f"{_median(found.encoder)}", "1"],
        ["extraction", f"{_median(found.extraction)}", f"{found.ratio:.2f}"],
    ]
    header = [f"{found.prompts:,} prompts", "prompts /CPU s", "ratio"]
    _show(header, rows, asdict(found) | {"ratio": found.ratio}, as_json)


@app.command()
def batches(
    pairs: Annotated[int, typer.Option(min=2, help="Number of pairs in the generated feature sets.")] = 40_000,
    batch_size: int = 16_384,
    vision_dim: int = 1024,
    language_dim: int = 768,
    repeats: Repeats = 5,
    as_json: AsJson = False,
) -> None:
    """Batches from memory on one core, compared with the released code (one file per sample) and a bare gather."""
    from sharelock_ray.bench import measure_batches as bench

    c = bench.compare(bench.Setting(pairs, batch_size, vision_dim, language_dim), repeats)
    rows = [
        ["one file per sample, DataLoader", _median(c.released), f"{1 / c.ratio_to_released:.4f}", ""],
        ["bare gather", _median(c.gather), f"{1 / c.ratio_to_gather:.2f}", ""],
        ["ours", _median(c.ours), "1", f"{c.ratio_to_released:,.0f}"],
        [f"first opening of {c.opening.bytes / 1e9:.2f} GB", f"{c.opening.first:.2f} s", "", ""],
        ["", f"{c.opening.bytes_per_cpu_second / 1e9:.2f} GB per CPU second", "", ""],
        ["second opening", f"{c.opening.second:.3f} s", "", ""],
    ]
    ratios = {"to_released": c.ratio_to_released, "to_gather": c.ratio_to_gather}
    opening = {"bytes_per_cpu_second": c.opening.bytes_per_cpu_second}
    _show(["", "samples per CPU second", "to ours", "ours to it"], rows, {**asdict(c), **ratios, **opening}, as_json)


@app.command()
def streaming(
    pairs: Annotated[int, typer.Option(min=2, help="Number of pairs in the generated feature sets.")] = 163_840,
    batch_size: int = 16_384,
    vision_dim: int = 1024,
    language_dim: int = 4096,
    repeats: Repeats = 5,
    as_json: AsJson = False,
) -> None:
    """Features larger than memory: random rows from the disk, compared with parts streamed from storage."""
    from sharelock_ray.bench import measure_streaming as bench

    c = bench.compare(bench.Setting(pairs, batch_size, vision_dim, language_dim), repeats)
    rows = [
        ["order global: random rows from the disk", _median(c.disk), "1"],
        ["order parts: decoded by this process", _median(c.here), f"{c.ratio_here:.2f}"],
        ["order parts: decoded by tasks", _median(c.tasks), f"{c.ratio_tasks:.2f}"],
    ]
    ratios = {"ratio_here": c.ratio_here, "ratio_tasks": c.ratio_tasks}
    _show(["order", "pairs /s", "ratio"], rows, {**asdict(c), **ratios}, as_json)


@app.command()
def train(
    batch_size: Annotated[int, typer.Option(min=2, help="Batch size of the step compared with the product.")] = 2048,
    sweep: Annotated[list[int] | None, typer.Option(help="Batch sizes to compare. Repeatable.")] = None,
    sweep_width: Annotated[int, typer.Option(min=1, help="Width of the head in the comparisons.")] = 512,
    workers: Annotated[int, typer.Option(min=1, help="Number of CPU workers to compare with one.")] = 2,
    width: Annotated[int, typer.Option(min=1, help="Width of the head's hidden layers.")] = 4096,
    depth: Annotated[int, typer.Option(min=1, help="Depth of the head.")] = 4,
    vision_dim: int = 1024,
    language_dim: int = 4096,
    precision: Literal["float32", "bfloat16"] = "float32",
    accumulation: Annotated[int, typer.Option(min=1, help="Micro-batches per step.")] = 1,
    compiled: Compiled = False,
    device: Device = "cpu",
    threads: Threads = 1,
    steps: Annotated[int, typer.Option(min=0, help="Steps of an additional whole training.")] = 0,
    pairs: Annotated[int, typer.Option(min=64, help="Random pairs for the whole training.")] = 20_000,
    evaluate_every: Annotated[int, typer.Option(min=1, help="Steps between its validations; 31 in cc3m.")] = 31,
    repeats: Repeats = 3,
    as_json: AsJson = False,
) -> None:
    """A training step, compared with the device's matrix product, by batch size and number of workers."""
    from sharelock_ray.bench import measure_train as bench

    setting = bench.Setting(
        batch_size,
        vision_dim,
        language_dim,
        depth,
        width,
        precision,
        device,
        threads,
        accumulation=accumulation,
        compiled=compiled,
    )
    found = bench.compare(setting, sweep or [1024, 2048, 4096, 8192], sweep_width, workers, repeats)
    rows = [
        [
            what,
            f"{m.setting.batch_size:,}",
            f"{m.setting.width:,}",
            f"{m.setting.workers} x {m.setting.threads}",
            f"{statistics.median(m.seconds):.3f}",
            f"{m.flop_per_second / 1e12:.3f}",
            "" if m.share_of_product is None else f"{m.share_of_product:.0%}",
        ]
        for what, group in (("step", [found.step]), ("by batch", found.batches), ("by workers", found.workers))
        for m in group
    ]
    if found.slope is not None:
        rows.append(["exponent of time by batch size", f"{found.slope:.2f}", *[""] * 5])
    result = asdict(found) | {"slope": found.slope, "share_of_product": found.step.share_of_product}
    if steps:
        run = bench.whole_run(setting, pairs, steps, evaluate_every)
        rate, share = run.flop_per_second, run.flop_per_second / statistics.median(found.step.product)
        rows.append(
            [
                f"{steps:,} steps on {pairs:,} pairs: {run.seconds:.1f} s, opened in {run.open_seconds:.1f} s",
                f"{batch_size:,}",
                f"{width:,}",
                f"1 x {threads}",
                f"{run.seconds / steps:.3f}",
                f"{rate / 1e12:.3f}",
                f"{share:.0%}",
            ]
        )
        result |= {"run": asdict(run), "run_share_of_product": share}
    header = ["what", "batch", "width", "workers x CPUs", "s per step", "TFLOP/s", "of the product"]
    _show(header, rows, {"device": bench.describe(device), **result}, as_json)


@app.command()
def tune(
    threads: Threads = 2,
    pairs: Annotated[int, typer.Option(min=100, help="Pairs of random features of width 384.")] = 10_000,
    steps: Annotated[int, typer.Option(min=2, help="Steps of each training.")] = 60,
    repeats: Repeats = 3,
    as_json: AsJson = False,
) -> None:
    """A study of 36 trials on Ray Tune, compared with a plain loop with as many threads."""
    from sharelock_ray.bench.measure_tune import Setting, compare

    found = compare(Setting(threads, pairs, steps=steps), repeats)
    row = [
        f"{found.setting.trials}",
        _median(found.study),
        _median(found.loop),
        f"{found.ratio:.2f}",
        f"{found.start_seconds:.1f}",
        f"{found.processes}",
        f"{found.feature_copies:.2f}",
    ]
    header = ["trials", "study /min", "loop /min", "ratio", "start s", "processes", "copies of features"]
    _show(header, [row], {"comparisons": [asdict(found) | {"ratio": found.ratio}]}, as_json)


@app.command()
def concepts(
    wordnet: Annotated[str | None, typer.Option(metavar="FOLDER", help="WordNet 3.0.")] = None,
    captions: Annotated[int, typer.Option(min=1000, help="Number of captions.")] = 200_000,
    repeats: Repeats = 3,
    as_json: AsJson = False,
) -> None:
    """Audits of 20,844 classes against 1,000, compared with a loop over pairs, and of captions, with an expression."""
    from sharelock_ray.bench.measure_concepts import measure_captions, measure_wordnet

    classes = measure_wordnet(wordnet, repeats)
    texts = measure_captions(wordnet, captions, repeats)
    audit, find = statistics.median(classes.audit), statistics.median(texts.find)
    rows = [
        ["read WordNet", "", f"{statistics.median(classes.read):.2f}", "", "", ""],
        [
            "classes, all rules of WordNet",
            f"{classes.unseen:,} x {classes.seen:,}",
            f"{audit:.2f}",
            f"{classes.unseen / audit:,.0f}",
            f"{classes.ratio:,.0f}",
            f"{classes.strict / classes.unseen:.0%} unseen",
        ],
        ["index of names", f"{texts.concepts:,}", f"{statistics.median(texts.build):.2f}", "", "", ""],
        [
            "captions, all surface rules",
            f"{texts.captions:,} x {texts.concepts:,}",
            f"{find:.2f}",
            f"{texts.captions_per_second:,.0f}",
            f"{texts.ratio:,.0f}",
            f"{texts.named:.0%} named",
        ],
    ]
    result = {
        "wordnet": asdict(classes) | {"ratio": classes.ratio},
        "captions": asdict(texts) | {"ratio": texts.ratio, "per_second": texts.captions_per_second},
    }
    _show(["", "size", "CPU s", "per CPU second", "to a plain loop", "found"], rows, result, as_json)


def _median(values: list[float]) -> str:
    return f"{statistics.median(values):,.1f}"


def _show(header: list[str], rows: list[list[str]], result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"machine": machine(), **result}))
        return
    print_table(text_table(header, rows, caption=machine()))
