"""The `sharelock` command: parses arguments, calls a workflow, prints its result, and maps errors to exit codes."""

import argparse
import io
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from sharelock_ray import storage
from sharelock_ray.bench import command as bench_command
from sharelock_ray.concepts.captions import Captions, NamedConcept
from sharelock_ray.concepts.relations import Rules
from sharelock_ray.concepts.residual import points
from sharelock_ray.errors import RequestError, SharelockError
from sharelock_ray.evaluation.benchmark import read_benchmark
from sharelock_ray.evaluation.statistics import Estimate
from sharelock_ray.progress import clock, printable
from sharelock_ray.recipe.load import read_recipe
from sharelock_ray.recipe.schema import Recipe
from sharelock_ray.report.summary import StudySummary, Summary
from sharelock_ray.report.table import print_table, text_table
from sharelock_ray.sources.content import read_lines
from sharelock_ray.workflows import benchmarks, rejects
from sharelock_ray.workflows.affinity import affinity as run_affinity
from sharelock_ray.workflows.audit import audit as run_audit
from sharelock_ray.workflows.compare import compare as run_compare
from sharelock_ray.workflows.demo import demo as run_demo
from sharelock_ray.workflows.doctor import doctor as run_doctor
from sharelock_ray.workflows.evaluate import evaluate as run_evaluate
from sharelock_ray.workflows.extract import extract as run_extract
from sharelock_ray.workflows.inputs import Inputs
from sharelock_ray.workflows.language_score import language_score as run_language_score
from sharelock_ray.workflows.plan import PROBE, PlanTotal, SplitPlan
from sharelock_ray.workflows.plan import plan as run_plan
from sharelock_ray.workflows.report import report as run_report
from sharelock_ray.workflows.report import report_study
from sharelock_ray.workflows.status import status as run_status
from sharelock_ray.workflows.train import train as run_train
from sharelock_ray.workflows.tune import tune as run_tune

if TYPE_CHECKING:
    from sharelock_ray.workflows.concepts import CaptionCorpus

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as in shells."""
_LANGUAGES_SHOWN = 4
_PROBLEMS_SHOWN = 20
"""Problems printed per feature set; `--json` prints all."""

app = typer.Typer(
    help="Align a frozen vision encoder with a frozen language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(bench_command.app, name="bench")
rejects_app = typer.Typer(help="List, export or retry inputs that could not be encoded.", no_args_is_help=True)
app.add_typer(rejects_app, name="rejects")
benchmarks_app = typer.Typer(invoke_without_command=True)
app.add_typer(benchmarks_app, name="benchmarks")
concepts_app = typer.Typer(help="Separate seen and unseen concepts, or audit given ones.", no_args_is_help=True)
app.add_typer(concepts_app, name="concepts")

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Override a field, such as alignment.steps=100. Repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object, on the last line.")]
Address = Annotated[
    str | None, typer.Option("--address", metavar="RAY", help="Address of a Ray cluster. Default: a local Ray.")
]
ConceptList = Annotated[
    str, typer.Argument(help="Names or wnids, separated by commas, or a list: a file, timm://… or standard://….")
]
Homographs = Annotated[
    Literal["string", "sense"], typer.Option(help="Whether equal names are one concept, or their meanings count.")
]
Hypernyms = Annotated[
    int | None, typer.Option(min=0, metavar="STEPS", help="More general unseen concepts. Default: any; 0 is off.")
]
Hyponyms = Annotated[
    int | None, typer.Option(min=0, metavar="STEPS", help="Unseen kinds of a seen concept. Default: any; 0 is off.")
]
Parts = Annotated[bool, typer.Option(help="Parts, members and substances, both ways.")]
Siblings = Annotated[bool, typer.Option(help="Kinds of the same direct hypernym.")]
Surface = Annotated[bool, typer.Option(help='Names that end with a name of the other side: "red eft" and "eft".')]
WordNetFolder = Annotated[
    str | None, typer.Option("--wordnet", metavar="FOLDER", help="WordNet 3.0. Default: the system's, or Debian's.")
]
NamesTable = Annotated[
    str | None, typer.Option("--names", metavar="TABLE", help="Names in other languages: concept, language, name.")
]
SeenLanguage = Annotated[str, typer.Option(help="Language of the names in the first list.")]
UnseenLanguage = Annotated[str, typer.Option(help="Language of the names in the second list.")]
SimilarityFile = Annotated[
    str | None,
    typer.Option(
        "--similarity", metavar="FILE", help="A threshold of `concepts threshold`: similar names are related."
    ),
]
NameFeatures = Annotated[
    str | None, typer.Option(metavar="SET", help="Language set of the names. Default: embed them anew.")
]
SeenImages = Annotated[
    str | None, typer.Option(metavar="SET", help="Vision set of the seen concepts: look for visual twins.")
]
UnseenImages = Annotated[str | None, typer.Option(metavar="SET", help="Vision set of the unseen concepts.")]
ImageClasses = Annotated[
    str | None, typer.Option(metavar="LIST", help="Concepts by label in both sets. Default: the list of each side.")
]
DuplicateCosine = Annotated[
    float | None,
    typer.Option("--duplicates", metavar="COSINE", help="Least cosine of near duplicates. Default: by rule."),
]
TwinQuantile = Annotated[
    float,
    typer.Option(
        "--twin-quantile", min=0, max=1, help="Classes are twins above this quantile of the likeness within classes."
    ),
]
PretrainingLists = Annotated[
    str | None,
    typer.Option(
        "--pretraining", metavar="LISTS", help="Classes that the vision encoder was trained on: timm://…, or auto."
    ),
]
CaptionsPlace = Annotated[
    str | None,
    typer.Option(
        "--captions", metavar="PLACE", help="Captions of the training: a language set, or a file or pattern of them."
    ),
]
SearchAddress = Annotated[
    str | None,
    typer.Option("--address", metavar="RAY", help="Ray cluster that searches captions. Default: this process does."),
]
ConceptsOutput = Annotated[str | None, typer.Option("--output", metavar="FILE", help="Write the result, as .json.")]


@app.command()
def demo(
    recipe: RecipeArgument = "demo",
    data: Annotated[str | None, typer.Option(metavar="TARS", help="Your own tars, such as 'folder/*.tar'.")] = None,
    settings: Settings = None,
    as_json: AsJson = False,
    address: Address = None,
) -> None:
    """Run every stage, from data to report."""
    overrides = [*(_own_data(data) if data else []), *(settings or [])]
    loaded = _recipe(recipe, overrides)
    with _cluster(address):
        summary = run_demo(loaded)
    _show_summary(summary, as_json)


@app.command()
def extract(
    recipe: RecipeArgument, settings: Settings = None, as_json: AsJson = False, address: Address = None
) -> None:
    """Extract feature sets: encode every input once with the frozen encoders."""
    loaded = _recipe(recipe, settings)
    with _cluster(address):
        sets = run_extract(loaded)
    rows = [[s.uri, f"{s.manifest.rows:,}", f"{s.manifest.rejects:,}", str(s.manifest.dim)] for s in sets]
    _show(
        text_table(["feature set", "rows", "rejects", "dim"], rows),
        {"features": [{"uri": s.uri, "rows": s.manifest.rows, "rejects": s.manifest.rejects} for s in sets]},
        as_json,
    )


@app.command()
def audit(recipe: RecipeArgument, settings: Settings = None, as_json: AsJson = False, address: Address = None) -> None:
    """Verify feature sets: each input is in rows or rejects exactly once, and each part matches the manifest."""
    loaded = _recipe(recipe, settings)
    with _cluster(address):
        audits = run_audit(loaded)
    rows = [
        [
            a.uri,
            f"{a.inputs or 0:,}",
            f"{a.rows:,}",
            f"{a.rejects:,}",
            "" if a.matched is None else f"{a.matched:,}",
            f"{len(a.problems):,} problems" if a.problems else "sound",
        ]
        for a in audits
    ]
    _show(
        text_table(["feature set", "inputs", "rows", "rejects", "keys on both sides", "verdict"], rows),
        {"audits": [asdict(a) for a in audits]},
        as_json,
    )
    for each in audits:
        if not as_json:
            for problem in each.problems[:_PROBLEMS_SHOWN]:
                print(printable(f"{each.uri}: {problem}"))
    for each in audits:
        each.require()


@app.command()
def status(recipe: RecipeArgument, settings: Settings = None, as_json: AsJson = False) -> None:
    """Show the progress of a run, during the run or after a kill."""
    found = run_status(_recipe(recipe, settings))
    rows = [[each.stage, each.state, each.detail] for each in found]
    _show(text_table(["stage", "state", ""], rows), {"stages": [asdict(each) for each in found]}, as_json)


@app.command()
def plan(
    recipe: RecipeArgument,
    samples: Annotated[int, typer.Option(min=1, help="Number of samples to probe per split.")] = PROBE,
    price: Annotated[float | None, typer.Option(help="Price per GPU-hour (without GPUs: per actor-hour).")] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Estimate time, GPU-hours, bytes and cost of an extraction from a probe on this machine."""
    found = run_plan(_recipe(recipe, settings), samples, price)
    rows = [[each.split, f"{each.samples:,}", *_amounts(each), f"{each.cores_to_read:,.1f}"] for each in found.splits]
    rows.append(["all", "", *_amounts(found.total), ""])
    header = ["split", "samples", "time", "GPU-hours", "MiB stored", "cost", "cores to feed the GPUs"]
    _show(text_table(header, rows), found.model_dump(mode="json"), as_json)


@app.command()
def doctor(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="Also check its output, weights and waiting times.")
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
    address: Annotated[
        str | None, typer.Option("--address", metavar="RAY", help="Address of a Ray cluster. Default: this machine.")
    ] = None,
) -> None:
    """Check this machine, or every node of a cluster, and say what to do. Exit code 1 if a check fails."""
    if recipe is None and settings:
        raise RequestError("--set changes a recipe: give the RECIPE too")
    found = run_doctor(None if recipe is None else _recipe(recipe, settings), address)
    rows = [
        ["" if i else node.node, check.name, check.state, check.found, check.remedy]
        for node in found.nodes
        for i, check in enumerate(node.checks)
    ]
    _show(text_table(["node", "check", "state", "found", "what to do"], rows), asdict(found), as_json)
    if not as_json:
        for each in found.not_checked:
            print(printable(f"not checked: {each}"))
    found.require()


@rejects_app.command("list")
def list_rejects(
    recipe: RecipeArgument,
    limit: Annotated[int, typer.Option(min=1, help="Number of rejects to show.")] = 50,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """List the inputs that could not be encoded, and why."""
    table = rejects.rejects(_recipe(recipe, settings))
    shown = table.slice(0, limit).to_pylist()
    rows = [[f"{r['split']} {r['modality']}", r["key"], r["stage"], r["error"], r["message"]] for r in shown]
    _show(
        text_table(["set", "key", "stage", "error", "message"], rows),
        {"rejects": table.num_rows, "shown": shown},
        as_json,
    )
    if not as_json and table.num_rows > limit:
        print(f"{limit:,} of {table.num_rows:,}: `sharelock rejects export` writes all of them")


@rejects_app.command("export")
def export_rejects(
    recipe: RecipeArgument,
    path: Annotated[str, typer.Argument(help="Output file: .csv, .jsonl or .parquet.")],
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Write all rejects to a file."""
    count = rejects.export(_recipe(recipe, settings), path)
    _show(text_table(["file", "rejects"], [[path, f"{count:,}"]]), {"path": path, "rejects": count}, as_json)


@rejects_app.command("retry")
def retry_rejects(
    recipe: RecipeArgument, settings: Settings = None, as_json: AsJson = False, address: Address = None
) -> None:
    """Extract the shards with rejects again and replace the parts that improved."""
    loaded = _recipe(recipe, settings)
    with _cluster(address):
        found = rejects.retry(loaded)
    rows = [[each.uri, f"{each.tried:,}", f"{each.recovered:,}"] for each in found]
    _show(
        text_table(["feature set", "rejects", "rows recovered"], rows),
        {"retries": [asdict(each) for each in found]},
        as_json,
    )


@app.command()
def train(recipe: RecipeArgument, settings: Settings = None, as_json: AsJson = False, address: Address = None) -> None:
    """Train the projection on extracted features."""
    loaded = _recipe(recipe, settings)
    with _cluster(address):
        result = run_train(loaded).model_dump(mode="json")
    _show(text_table(["training", ""], [[name, str(value)] for name, value in result.items()]), result, as_json)


@app.command()
def tune(recipe: RecipeArgument, settings: Settings = None, as_json: AsJson = False, address: Address = None) -> None:
    """Train every point of the recipe's study and report which choices matter."""
    loaded = _recipe(recipe, settings)
    with _cluster(address):
        summary = run_tune(loaded)
    _show_summary(summary, as_json)


@app.command()
def evaluate(
    recipe: RecipeArgument, settings: Settings = None, as_json: AsJson = False, address: Address = None
) -> None:
    """Score the best checkpoint: zero-shot classification, retrieval, and the recipe's benchmarks."""
    loaded = _recipe(recipe, settings)
    inputs = Inputs(loaded)
    with _cluster(address):
        run_evaluate(loaded, inputs)
    _show_summary(run_report(loaded, inputs), as_json)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Folders of runs, or their evaluation.json.")],
    output: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Write compare.html and tables as CSV and Parquet here.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare evaluated runs with each other and with published scores.

    Scores of different images, or by different rules, are kept apart. Published scores name their source. Each further
    run is compared with the first on the same samples.
    """
    found = run_compare(runs, output)
    _show(found.table(), found.as_json(), as_json)
    if not as_json:
        if found.paired:
            print_table(found.paired_table())
        _show_notes(found.notes)
        if found.page is not None:
            print(printable(f"report: {found.page}"))


@app.command()
def affinity(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN", help="Folders of evaluated runs, or of one study that `tune` made.")
    ],
    metric: Annotated[
        str | None, typer.Option(help="The language score that decides, such as mmlu_pro. Choose it before the run.")
    ] = None,
    harness: Annotated[
        str | None, typer.Option(help="Its harness, or a part of its name. Harnesses never mix.")
    ] = None,
    scores: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Language scores: .csv, or .json of `language-score`. Repeatable."),
    ] = None,
    visual: Annotated[str | None, typer.Option(help="The visual score, by a part of its title.")] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC[@HARNESS]", help="Another language score, with Holm's correction. Repeatable."),
    ] = None,
    predict: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL[=SCORE]", help="Predict the visual score of a model. Repeatable."),
    ] = None,
    output: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Write affinity.html, .json, .csv and .parquet here.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Correlate visual scores of runs with scores of their language models: do better ones see better?"""
    found = run_affinity(runs, metric, harness, scores or (), visual, also or (), predict or (), output)
    from sharelock_ray.report.affinity_text import table

    _show(table(found), found.content(), as_json)
    if output is not None and not as_json:
        print(printable(f"report: {storage.join(output, 'affinity.html')}"))


@benchmarks_app.callback()
def list_benchmarks(
    context: typer.Context,
    folder: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH", help="Folder of a benchmark's images. NAME may be your own file. Repeatable."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the benchmarks, and whether their names and images are here."""
    if context.invoked_subcommand:
        return
    found = benchmarks.benchmarks(benchmarks.folders_of(folder or []))
    rows = [
        [b.name, b.task, _languages(b.languages), _count(b.size), b.licence or "", b.names, b.images] for b in found
    ]
    header = ["benchmark", "task", "languages", "size", "licence", "names", "images"]
    _show(text_table(header, rows), {"benchmarks": [asdict(each) for each in found]}, as_json)


@benchmarks_app.command("show")
def show_benchmark(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A shipped benchmark, or your own .yaml file.")],
    folder: Annotated[str | None, typer.Option(metavar="PATH", help="Folder of its images.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a benchmark is made of, and read its class names and templates."""
    benchmark = read_benchmark(name)
    found = benchmarks.texts(benchmark, folder)
    about = {field: value for field, value in benchmark.model_dump(mode="json").items() if value not in (None, False)}
    if as_json:
        print(json.dumps({**about, "texts": [asdict(each) for each in found]}))
        return
    print_table(
        text_table([], [[field, json.dumps(value, ensure_ascii=False)] for field, value in about.items()], name)
    )
    header = ["language", "classes", "SHA-256 of names", "templates", "SHA-256 of templates", "warning"]
    rows = [
        [t.language, f"{t.classes:,}", t.class_digest[:8], f"{t.templates:,}", t.template_digest[:8], t.warning]
        for t in found
    ]
    if rows:
        print_table(text_table(header, rows))


@concepts_app.command("threshold")
def choose_threshold(
    pairs: Annotated[str, typer.Argument(help="Labelled pairs: two words and a score per line, such as SimLex-999.")],
    encoder: Annotated[str, typer.Option(help="Language encoder: a preset, a recipe, or a language set of the words.")],
    template: Annotated[str, typer.Option(help="Text with {} for the name.")] = "{}",
    positive: Annotated[float, typer.Option(help="Least score of a pair that counts as one concept.")] = 7.0,
    precision: Annotated[
        float | None, typer.Option(min=0, max=1, help="Lowest threshold with this precision. Default: highest F1.")
    ] = None,
    output: ConceptsOutput = None,
    as_json: AsJson = False,
) -> None:
    """Choose the cosine from which names are similar, for one language encoder."""
    # Imported here, since it imports torch.
    from sharelock_ray.workflows import concepts

    made = concepts.make_threshold(pairs, encoder, template, positive, precision, output)
    found = made.chosen
    rows = [
        ["encoder", found.encoder],
        ["pairs", f"{found.labelled:,}, of one concept: {found.positives:,}"],
        ["rule", found.rule],
        ["threshold", f"{found.threshold:.4f}"],
        ["precision", _percent(found.precision)],
        ["recall", _percent(found.recall)],
        [
            "average precision",
            f"{found.average_precision:.3f}; of a random order {found.positives / found.labelled:.3f}",
        ],
    ]
    _show(text_table(["similar names", ""], rows), made.content(), as_json)


@concepts_app.command("split")
def split_concepts(
    seen: ConceptList,
    unseen: Annotated[str | None, typer.Argument(help="Another such list. Default: a fraction of the first.")] = None,
    fraction: Annotated[float, typer.Option(min=0, max=1, help="Fraction of one list to draw as unseen.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of that draw.")] = 0,
    remove: Annotated[Literal["seen", "unseen"], typer.Option(help="The side that loses related concepts.")] = "unseen",
    homographs: Homographs = "string",
    hypernyms: Hypernyms = None,
    hyponyms: Hyponyms = None,
    parts: Parts = True,
    siblings: Siblings = False,
    surface: Surface = True,
    wordnet: WordNetFolder = None,
    names: NamesTable = None,
    seen_language: SeenLanguage = "en",
    unseen_language: UnseenLanguage = "en",
    similarity: SimilarityFile = None,
    name_features: NameFeatures = None,
    seen_images: SeenImages = None,
    unseen_images: UnseenImages = None,
    image_classes: ImageClasses = None,
    duplicates: DuplicateCosine = None,
    quantile: TwinQuantile = 0.05,
    pretraining: PretrainingLists = None,
    captions: CaptionsPlace = None,
    address: SearchAddress = None,
    output: ConceptsOutput = None,
    as_json: AsJson = False,
) -> None:
    """Make a split: seen and unseen concepts, no two of which are related."""
    # Imported here, since it imports torch.
    from sharelock_ray.workflows import concepts

    rules = Rules(
        homographs=homographs,
        hypernyms=hypernyms,
        hyponyms=hyponyms,
        parts=parts,
        siblings=siblings,
        surface=surface,
    )
    inputs = concepts.Inputs(wordnet, names, seen_language, unseen_language)
    evidence = concepts.Evidence(
        similarity, name_features, seen_images, unseen_images, image_classes, duplicates, quantile, pretraining
    )
    corpus = _corpus(captions, address)
    with _cluster(address):
        made = concepts.make_split(seen, unseen, rules, inputs, fraction, seed, remove, output, evidence, corpus)
    rows = [[name, f"{len(of):,}"] for name, of in (("seen", made.seen), ("unseen", made.unseen))]
    rows += [[f"removed from the {remove} ones", f"{len(made.removed):,}"], ["hash", made.hash8]]
    if made.twins and made.twins.duplicates:
        rows.insert(-1, [f"removed images of the {remove} ones", f"{len(made.removed_images):,}"])
    if made.captions:
        rows.insert(-1, ["removed captions", f"{made.captions.named:,} of {made.captions.captions:,}"])
    _show(text_table(["split", ""], rows), {"hash": made.hash8, **made.content()}, as_json)
    if not as_json:
        _tell([f"{each.concept}: {found.detail} ({found.rule})" for each in made.removed for found in each.evidence])
        _tell([f"{each.key}: {each.evidence.detail} ({each.evidence.rule})" for each in made.removed_images])
        if made.captions:
            _show_captions(made.captions)
            if output is not None:
                print(printable(f"removed captions: {concepts.beside(output, made.captions)}"))
        _show_notes(made.notes)


@concepts_app.command("audit")
def audit_concepts(
    seen: ConceptList,
    unseen: Annotated[
        str | None, typer.Argument(help="Another such list. Default: with --captions, the first is the unseen one.")
    ] = None,
    homographs: Homographs = "string",
    hypernyms: Hypernyms = None,
    hyponyms: Hyponyms = None,
    parts: Parts = True,
    siblings: Siblings = False,
    surface: Surface = True,
    wordnet: WordNetFolder = None,
    names: NamesTable = None,
    seen_language: SeenLanguage = "en",
    unseen_language: UnseenLanguage = "en",
    accuracy: Annotated[
        str | None, typer.Option(metavar="FILE#PLACE", help="A model's accuracy by class, a JSON object.")
    ] = None,
    distance: Annotated[
        Literal["steps", "names", "prototypes"], typer.Option(help="Distance by which accuracies are compared.")
    ] = "steps",
    chance: Annotated[float, typer.Option(min=0, max=1, help="Accuracy of a random answer.")] = 0.0,
    similarity: SimilarityFile = None,
    name_features: NameFeatures = None,
    seen_images: SeenImages = None,
    unseen_images: UnseenImages = None,
    image_classes: ImageClasses = None,
    duplicates: DuplicateCosine = None,
    quantile: TwinQuantile = 0.05,
    pretraining: PretrainingLists = None,
    captions: CaptionsPlace = None,
    address: SearchAddress = None,
    output: ConceptsOutput = None,
    as_json: AsJson = False,
) -> None:
    """Tell whether a test is zero-shot after a training, and why: `sharelock concepts audit dog puppy`."""
    # Imported here, since they import torch.
    from sharelock_ray.concepts.audit import answer
    from sharelock_ray.workflows import concepts

    rules = Rules(
        homographs=homographs,
        hypernyms=hypernyms,
        hyponyms=hyponyms,
        parts=parts,
        siblings=siblings,
        surface=surface,
    )
    inputs = concepts.Inputs(wordnet, names, seen_language, unseen_language)
    evidence = concepts.Evidence(
        similarity, name_features, seen_images, unseen_images, image_classes, duplicates, quantile, pretraining
    )
    corpus = _corpus(captions, address)
    if unseen is None and corpus is None:
        raise RequestError("an audit needs what was trained on and what is tested: add a second list, or --captions")
    trained_on, tested = (None, seen) if unseen is None else (seen, unseen)
    with _cluster(address):
        found = concepts.audit(trained_on, tested, rules, inputs, accuracy, output, evidence, distance, chance, corpus)
    rows = [[rule, f"{count:,}"] for rule, count in found.by_rule().items()]
    rows += [["strictly unseen", f"{len(found.strictly_unseen):,}"], ["all unseen", f"{len(found.unseen):,}"]]
    result = {"strictly_unseen": len(found.strictly_unseen), "by_rule": found.by_rule(), **found.content()}
    _show(text_table(["unseen concepts", ""], rows), result, as_json)
    if not as_json:
        trained = str(found.seen[0]) if len(found.seen) == 1 else f"{len(found.seen):,} concepts" if found.seen else ""
        if found.captions:
            trained += f"{' and ' if trained else ''}{found.captions.captions:,} captions"
        _tell([" ".join(answer(trained, each)) for each in found.unseen])
        if found.captions:
            _show_captions(found.captions)
        if found.twins and found.twins.duplicates:
            images = found.twins.duplicates.images
            print(f"near duplicates of seen images: {len(images):,} of {found.twins.duplicates.compared[0]:,}")
            _tell([f"{each.key}: {each.evidence.detail} ({each.evidence.rule})" for each in images])
        if found.residual is not None and found.residual.distance == "steps" and found.residual.per_step is not None:
            print(f"accuracy per step to the nearest seen concept: {points(found.residual.per_step)}")
        if found.residual is not None and found.residual.statement:
            print(found.residual.statement)
        _show_notes(found.notes)


@concepts_app.command("report")
def report_concepts(
    document: Annotated[str, typer.Argument(metavar="FILE", help="A split or an audit that --output wrote.")],
    as_json: AsJson = False,
) -> None:
    """Write the page of a split or an audit beside it."""
    # Imported here, since it imports torch.
    from sharelock_ray.workflows import concepts

    page = concepts.report(document)
    print(json.dumps({"page": page}) if as_json else printable(f"report: {page}"))


@app.command("language-score")
def score_language(
    recipe: RecipeArgument,
    text: Annotated[str, typer.Option(metavar="FILE", help="A UTF-8 text of at least 10 kB.")],
    language: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A language encoder of the recipe. Repeatable.")
    ] = None,
    context: Annotated[int, typer.Option(min=2, help="Tokens per forward pass.")] = 512,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Tokens that each window scores. Default: half the context.")
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Measure bits per byte of the recipe's language models on a text; lower is better.

    Masked models have a pseudo-likelihood, which does not compare with the likelihood of causal models.
    """
    found = run_language_score(_recipe(recipe, settings), text, language or (), context, stride)
    rows = []
    for each in sorted((stored.score for stored in found), key=lambda score: (score.kind, score.bits_per_byte.value)):
        bits = each.bits_per_byte
        kind = each.kind if each.lossless else f"{each.kind}, lossy tokenizer"
        interval = f"{bits.low:.3f} to {bits.high:.3f}"
        rows.append(
            [each.model, kind, each.readout.replace("_", " "), f"{bits.value:.3f}", interval, f"{each.tokens:,}"]
        )
    header = ["encoder", "kind", "read by", "bits per byte", "95 % interval", "tokens"]
    scores = [{"uri": each.uri, **each.score.model_dump(mode="json")} for each in found]
    _show(text_table(header, rows), {"scores": scores}, as_json)


@app.command()
def report(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|STUDY", help="A recipe, or the folder of a study.")],
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Write the report page of a run or a study."""
    if storage.is_folder(recipe):
        _show_summary(report_study(recipe), as_json)
    else:
        _show_summary(run_report(_recipe(recipe, settings)), as_json)


@app.command()
def classify(
    image: Annotated[str, typer.Argument(help="An image file: a local path or a URI.")],
    model: Annotated[str, typer.Option(help="A checkpoint folder, such as runs/demo/best, or an official .ckpt.")],
    labels: Annotated[str, typer.Option(help='Class names, separated by commas: "a dog,a cat".')] = "",
    label: Annotated[list[str] | None, typer.Option(help="One class name, commas allowed. Repeatable.")] = None,
    labels_file: Annotated[str | None, typer.Option(help="A text file with one class name per line.")] = None,
    template: Annotated[str, typer.Option(help="Prompt template with {} for the class name.")] = "a photo of a {}.",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Allow the language model's own Python code to run.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Rank class names for an image."""
    lines = [] if labels_file is None else read_lines(labels_file, "labels")
    names = _labels([*labels.split(","), *(label or ()), *lines])
    from sharelock_ray.encoders.images import ImageTooLargeError, upright_image
    from sharelock_ray.runs.model import load_model

    loaded = load_model(model, trust_remote_code=trust_remote_code)
    picture = upright_image(_image_bytes(image), image)
    try:
        probabilities = loaded.classify(picture, names, [template])[0].tolist()
    except ImageTooLargeError as error:
        raise RequestError(f"the image {image} does not fit {model}: {error}") from None
    ranked = sorted(zip(names, probabilities, strict=True), key=lambda item: -item[1])
    _show(
        text_table(["label", "probability"], [[name, f"{p:.1%}"] for name, p in ranked]),
        {"image": image, "labels": [{"label": name, "probability": p} for name, p in ranked]},
        as_json,
    )


def _percent(of: Estimate) -> str:
    return f"{of.value:.1%} [{of.low:.1%}, {of.high:.1%}]"


def run_job(verb: str) -> None:
    """Runs `sharelock VERB` with the arguments of a job script; `--config` is the recipe."""
    parser = argparse.ArgumentParser(description=f"`sharelock {verb}` as a job of a Ray cluster.")
    parser.add_argument("--config", required=True, metavar="RECIPE")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    settings = [argument for setting in given.set for argument in ("--set", setting)]
    main([verb, given.config, *settings, *(["--json"] if given.json else [])])


def main(arguments: list[str] | None = None) -> None:
    """Runs the command and exits: 0 done, 1 the run failed, 2 the request was wrong, 130 interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As for standard error: characters outside the terminal's encoding are escaped instead of raising.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        # Typer catches Ctrl-C and returns its exit code.
        if app(arguments, standalone_mode=False) == INTERRUPTED:
            raise KeyboardInterrupt
    except SharelockError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted: run the same command again to continue", INTERRUPTED)
    except Exception as error:
        # Typer's usage errors have `format_message`; any other error is a bug and keeps its traceback.
        if not hasattr(error, "format_message"):
            raise
        message = " ".join(error.format_message().split())
        _fail(f"{message} (see `sharelock --help`)", RequestError.exit_code)


def _fail(message: str, code: int) -> None:
    print(printable(f"sharelock: {message}"), file=sys.stderr)
    sys.exit(code)


def _recipe(path: str, settings: list[str] | None) -> Recipe:
    return read_recipe(path, settings or ())


def _cluster(address: str | None) -> AbstractContextManager[None]:
    """Connects to the cluster at `address`. Without an address, each stage connects when it needs Ray."""
    if address is None:
        return nullcontext()
    from sharelock_ray.engine import cluster

    return cluster.connected(address)


def _own_data(pattern: str) -> list[str]:
    """Overrides that replace a recipe's data by a user's tars."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", Path(pattern).parent.name).strip("-") or "data"
    return [
        f"data={json.dumps({'dataset': name, 'train': {'urls': pattern}})}",
        f"name={json.dumps(name)}",
        f"output={json.dumps(f'runs/{name}')}",
    ]


def _labels(given: list[str]) -> list[str]:
    names = [name.strip() for name in given if name.strip()]
    if len(names) < 2:
        raise RequestError('give at least two labels with --labels "a dog,a cat", --label or --labels-file')
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise RequestError(f"the label {twice[0]!r} is given {names.count(twice[0])} times: give each label once")
    try:
        "".join(names).encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"the labels are not valid Unicode: see {error.object[error.start]!a}") from None
    return names


def _image_bytes(path: str) -> bytes:
    """Bytes of an image file; errors become one-line request errors."""
    from sharelock_ray.sources.listing import read_image

    try:
        return read_image(path)
    except SharelockError:
        raise
    except FileNotFoundError:
        raise RequestError(f"no image at {path}") from None
    # Each storage backend raises its own errors.
    except Exception as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:160] or type(error).__name__
        raise RequestError(f"the image {path} cannot be read: {reason}") from None


def _amounts(of: SplitPlan | PlanTotal) -> list[str]:
    cost = "" if of.cost is None else f"{of.cost:,.2f}"
    return [clock(of.hours * 3600), f"{of.gpu_hours:,.2f}", f"{of.bytes / 2**20:,.1f}", cost]


def _corpus(place: str | None, address: str | None) -> "CaptionCorpus | None":
    from sharelock_ray.workflows.concepts import CaptionCorpus

    return None if place is None else CaptionCorpus(place, bool(address or os.environ.get("RAY_ADDRESS")))


def _show_captions(found: Captions) -> None:
    """How many captions name each concept, and by which words."""
    rows = [[each.concept, f"{each.captions:,}", *_rules_of(each)] for each in found.concepts[:_PROBLEMS_SHOWN]]
    if rows:
        print_table(text_table(["concept", "captions", "by rule"], rows))
        words = (f"{word} ({count:,})" for word, count in list(found.words.items())[:_PROBLEMS_SHOWN])
        print(printable(f"named most often: {', '.join(words)}"))


def _rules_of(named: NamedConcept) -> list[str]:
    return [", ".join(f"{rule} {count:,}" for rule, count in named.by_rule.items())]


def _tell(lines: Sequence[str]) -> None:
    for line in lines[:_PROBLEMS_SHOWN]:
        print(printable(line))
    if len(lines) > _PROBLEMS_SHOWN:
        print(f"{_PROBLEMS_SHOWN} of {len(lines):,}: --output writes all, and `sharelock concepts report` a page")


def _show_notes(notes: Sequence[str]) -> None:
    for note in notes:
        print(printable(f"note: {note}"))


def _languages(codes: Sequence[str]) -> str:
    return " ".join(codes) if len(codes) <= _LANGUAGES_SHOWN else f"{len(codes):,} languages"


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _show_summary(summary: Summary | StudySummary, as_json: bool) -> None:
    _show(summary.table(), summary.as_json(), as_json)
    if not as_json:
        print(printable(f"report: {summary.page}"))


def _show(table: Table, result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
    else:
        print_table(table)
