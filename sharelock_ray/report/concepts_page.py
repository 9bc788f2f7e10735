"""The pages of a split and of an audit of concepts: what is counted, and the evidence for each concept."""

from collections import Counter
from collections.abc import Iterable, Sequence

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from sharelock_ray.concepts.audit import ConceptAudit
from sharelock_ray.concepts.captions import Captions
from sharelock_ray.concepts.compared import SimilarityThreshold, Threshold, Twins
from sharelock_ray.concepts.evidence import Evidence
from sharelock_ray.concepts.relations import Rules
from sharelock_ray.concepts.residual import Residual, points
from sharelock_ray.concepts.split import ConceptSplit
from sharelock_ray.evaluation.statistics import Estimate
from sharelock_ray.report.plots import as_svg

_SHOWN = 2000
"""Concepts in the tables of a page; the document has all."""


def split_page(split: ConceptSplit) -> str:
    """The page of a split as HTML."""
    total = len(split.unseen) + len(split.seen) + len(split.removed)
    facts = {
        "hash": split.hash8,
        "concepts": f"{total:,}",
        "seen": f"{len(split.seen):,}",
        "unseen": f"{len(split.unseen):,}",
        f"removed from the {split.removed_from} ones": f"{len(split.removed):,}",
        **({} if split.fraction is None else {"drawn as unseen": f"{split.fraction:.0%}, seed {split.seed}"}),
        **_rules(split.rules, split.wordnet),
    }
    related = [(str(each.concept), each.evidence) for each in split.removed]
    return _page(
        "Split of concepts",
        facts,
        split.notes,
        _by_rule(each.evidence for each in split.removed),
        "Removed",
        related,
        {"Unseen": [str(each) for each in split.unseen], "Seen": [str(each) for each in split.seen]},
        similarity=split.similarity,
        twins=split.twins,
        captions=split.captions,
    )


def audit_page(audit: ConceptAudit) -> str:
    """The page of an audit as HTML."""
    strict = audit.strictly_unseen
    facts = {
        "seen": f"{len(audit.seen):,}",
        "unseen": f"{len(audit.unseen):,}",
        "strictly unseen": f"{len(strict):,} ({len(strict) / len(audit.unseen):.1%})",
        **_rules(audit.rules, audit.wordnet),
    }
    related = [(str(each.concept), each.evidence) for each in audit.unseen if each.evidence]
    return _page(
        "Audit of concepts",
        facts,
        audit.notes,
        audit.by_rule(),
        "Not strictly unseen",
        related,
        {"Strictly unseen": [str(each) for each in strict]},
        _distances(Counter(each.distance for each in audit.unseen if each.distance is not None)),
        audit.residual,
        audit.similarity,
        audit.twins,
        audit.captions,
    )


def threshold_page(threshold: SimilarityThreshold) -> str:
    """The page of a threshold for similar names as HTML."""
    return _page("Similar names", {}, (), {}, "", [], {}, similarity=threshold.chosen)


def _page(
    title: str,
    facts: dict[str, str],
    notes: Sequence[str],
    by_rule: dict[str, int],
    heading: str,
    related: Sequence[tuple[str, Sequence[Evidence]]],
    lists: dict[str, list[str]],
    distances: str = "",
    residual: Residual | None = None,
    similarity: Threshold | None = None,
    twins: Twins | None = None,
    captions: Captions | None = None,
) -> str:
    environment = Environment(loader=PackageLoader("sharelock_ray.report", "."), autoescape=True)
    return environment.get_template("concepts.html").render(
        title=title,
        facts=facts,
        notes=notes,
        by_rule=by_rule,
        heading=heading,
        related=related[:_SHOWN],
        left_out=len(related) - _SHOWN,
        lists={name: (len(of), of[:_SHOWN]) for name, of in lists.items() if of},
        distances=distances,
        residual=residual,
        similarity=similarity,
        curve=_curve(similarity) if similarity else "",
        twins=twins,
        captions=captions,
        images=[(each.key, each.evidence) for each in twins.duplicates.images] if twins and twins.duplicates else [],
        shown=_SHOWN,
        percent=_percent,
        points=points,
    )


def _rules(rules: Rules, wordnet: str) -> dict[str, str]:
    def depth(steps: int | None) -> str:
        return "any depth" if steps is None else f"{steps} steps" if steps else "off"

    return {
        "WordNet": wordnet,
        "homographs": f"by {rules.homographs}",
        "hypernyms": depth(rules.hypernyms),
        "hyponyms": depth(rules.hyponyms),
        "parts": "on" if rules.parts else "off",
        "siblings": "on" if rules.siblings else "off",
        "surface forms": "on" if rules.surface else "off",
    }


def _by_rule(evidence: Iterable[Sequence[Evidence]]) -> dict[str, int]:
    return dict(Counter(each.rule for of in evidence for each in of).most_common())


def _distances(counts: Counter[int]) -> str:
    """Number of unseen concepts by steps to the nearest seen one."""
    if not counts:
        return ""
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    axes = figure.add_subplot()
    axes.bar(list(counts), list(counts.values()), color="#4c78a8")
    axes.set_xticks(range(min(counts), max(counts) + 1))
    axes.set_xlabel("steps to the nearest seen concept")
    axes.set_ylabel("unseen concepts")
    axes.grid(alpha=0.3, axis="y")
    return as_svg(figure)


def _curve(found: Threshold) -> str:
    """Precision by recall, with the chosen threshold."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([at.recall for at in found.curve], [at.precision for at in found.curve], color="#4c78a8")
    axes.axhline(found.positives / found.labelled, color="#888", linestyle="--", linewidth=1)
    axes.plot(found.recall.value, found.precision.value, "o", color="#d62728")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    axes.grid(alpha=0.3)
    return as_svg(figure)


def _percent(of: Estimate) -> str:
    return f"{of.value:.1%} [{of.low:.1%}, {of.high:.1%}]"
