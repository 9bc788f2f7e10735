"""Standard splits: ImageNet-21k beyond ImageNet-1k by hops, AwA2, and the proposed splits of a user's own copy.

A source of concepts is a list in a file (`sharelock_ray.evaluation.names`), or one of

    standard://imagenet-1k              timm's list of 1,000 classes
    standard://imagenet-21k-minus-1k    the 20,844 classes of timm's list beyond them
    standard://imagenet-2-hops          the 1,549 of them that DeViSE and later work test on (see `two_hops`)
    standard://imagenet-within-<N>      those of at most N steps in WordNet's graph to a class of ImageNet-1k
    standard://awa2-seen, awa2-unseen   the proposed split of AwA2, with wnids
    <folder>/att_splits.mat#seen        the proposed split of any of its data sets: seen, unseen or all
    dog,puppy                           names or wnids, separated by commas

Proposed splits are those of Xian et al. (arXiv 1707.00600); the wnids of AwA2 are those of yinboc/DGP (MIT licence).
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from sharelock_ray import storage
from sharelock_ray.concepts.concept import ENGLISH, Concept, concepts_of, read_concepts
from sharelock_ray.concepts.relations import Relations, Rules
from sharelock_ray.concepts.wordnet import WordNet
from sharelock_ray.errors import RequestError

_STANDARD = "standard://"
_PROPOSED = ".mat"
_AWA2 = "package://sharelock_ray/concepts/awa2.json#"
_LIST = re.compile(r"://|#|\.(txt|json|py)$")
_ANIMAL = "n00015388"
"""Three steps from a seen class in WordNet, but in the published list, whose hierarchy was ImageNet's own."""
_LOCATIONS: dict[str, tuple[str, ...]] = {
    "seen": ("trainval_loc", "test_seen_loc"),
    "unseen": ("test_unseen_loc",),
    "all": (),
}


def read_source(source: str, wordnet: WordNet, language: str = ENGLISH) -> list[Concept]:
    """Reads the concepts of a source.

    Raises:
        RequestError: there is no such source, or it is damaged, empty, or has an entry twice.
    """
    if source.startswith(_STANDARD):
        return _standard(source.removeprefix(_STANDARD), wordnet)
    file, _, place = source.partition("#")
    if file.endswith(_PROPOSED):
        return concepts_of(proposed_split(file)[_side(source, place)], source, wordnet)
    if _LIST.search(source):
        return read_concepts(source, wordnet, language)
    return concepts_of([name.strip() for name in source.split(",") if name.strip()], "the list", wordnet, language)


def within(seen: Sequence[Concept], others: Sequence[Concept], hops: int, wordnet: WordNet) -> list[Concept]:
    """Those of `others` that are at most `hops` steps from a seen one, up to a common ancestor and down."""
    relations = Relations(seen, wordnet, Rules(homographs="sense"))
    found = ((concept, relations.nearest(concept)) for concept in others)
    return [concept for concept, nearest in found if nearest is not None and nearest[1] <= hops]


def two_hops(wordnet: WordNet) -> list[Concept]:
    """The 1,549 classes that are called "2-hops": one step from a class of ImageNet-1k, and "animal".

    They equal the list of yinboc/DGP. Its "3-hops" are of ImageNet's own hierarchy of 2011, and cannot be computed from
    WordNet: all classes of two steps are among them, and 1,878 of more.
    """
    seen, others = (_standard(name, wordnet) for name in ("imagenet-1k", "imagenet-21k-minus-1k"))
    near = {concept.wnid for concept in within(seen, others, 1, wordnet)} | {_ANIMAL}
    return [concept for concept in others if concept.wnid in near]


def proposed_split(uri: str) -> dict[str, list[str]]:
    """The class names of a data set's `att_splits.mat`, by side: `seen`, `unseen` and `all`.

    The file has the names of all classes and the numbers of images, from 1; the labels of the images are in
    `res101.mat` of the same folder. Without that one, `trainvalclasses.txt` and `testclasses.txt` say the same.

    Raises:
        RequestError: a file is missing, or is not such a file.
    """
    folder = uri.rpartition("/")[0]
    images = [place for places in _LOCATIONS.values() for place in places]
    splits = _matrices(uri, ["allclasses_names", *images])
    classes = _matrices(f"{folder}/res101.mat" if folder else "res101.mat", ["labels"])
    try:
        names = [str(each[0]) for each in splits["allclasses_names"].ravel()]
        labels = classes["labels"].ravel().astype(int)
        of = {
            side: {int(labels[image - 1]) for place in places for image in splits[place].ravel().astype(int)}
            for side, places in _LOCATIONS.items()
        }
        found = {side: [names[label - 1] for label in sorted(of[side])] for side in of}
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise RequestError(f"{uri} is no att_splits.mat of a proposed split: {' '.join(str(error).split())}") from None
    return found | {"all": names}


def _standard(name: str, wordnet: WordNet) -> list[Concept]:
    hops = re.fullmatch(r"imagenet-within-(\d+)", name)
    if hops:
        seen, others = (_standard(each, wordnet) for each in ("imagenet-1k", "imagenet-21k-minus-1k"))
        return within(seen, others, int(hops[1]), wordnet)
    known: dict[str, Callable[[], list[Concept]]] = {
        "imagenet-1k": lambda: read_concepts("timm://imagenet-1k", wordnet),
        "imagenet-21k-minus-1k": lambda: _beyond_1k(wordnet),
        "imagenet-2-hops": lambda: two_hops(wordnet),
        "awa2-seen": lambda: read_concepts(f"{_AWA2}seen", wordnet),
        "awa2-unseen": lambda: read_concepts(f"{_AWA2}unseen", wordnet),
    }
    if name not in known:
        listed = ", ".join([*known, "imagenet-within-<N>"])
        raise RequestError(f"there are no standard concepts {name!r}: use {listed}, or a list of your own in a file")
    return known[name]()


def _beyond_1k(wordnet: WordNet) -> list[Concept]:
    seen = {concept.wnid for concept in read_concepts("timm://imagenet-1k", wordnet)}
    return [concept for concept in read_concepts("timm://imagenet-21k", wordnet) if concept.wnid not in seen]


def _side(source: str, place: str) -> str:
    if place not in _LOCATIONS:
        raise RequestError(f"{source} must end in one of {', '.join(f'#{side}' for side in _LOCATIONS)}")
    return place


def _matrices(uri: str, names: Sequence[str]) -> dict[str, Any]:
    # Commands that read other lists start faster without it.
    from scipy.io import loadmat

    with storage.reading(uri, "file of a proposed split"), storage.local_copy(uri) as path:
        try:
            return dict(loadmat(str(path), appendmat=False, variable_names=names))
        except OSError:
            raise
        # scipy has many kinds of errors for a damaged file.
        except Exception as error:
            raise RequestError(f"{uri} is not a file of MATLAB 5: {' '.join(str(error).split())}") from None
