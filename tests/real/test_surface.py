"""Surface forms over the whole of WordNet 3.0 and real tables of names: planted leaks and innocent pairs.

60 plants of each rule are drawn by a fixed seed. If all are found, the recall is at least 95.1 % with a confidence of
95 %.
"""

import random
from collections.abc import Callable, Iterable, Mapping

import pytest

from innocent import read_pairs
from sharelock_ray.concepts.audit import audit
from sharelock_ray.concepts.compounds import NamesWithin, surface_index
from sharelock_ray.concepts.concept import Concept
from sharelock_ray.concepts.evidence import Evidence
from sharelock_ray.concepts.forms import Lexicon, written_names
from sharelock_ray.concepts.relations import Relations, Rules
from sharelock_ray.concepts.surface import SurfaceIndex
from sharelock_ray.concepts.wordnet import WordNet
from sharelock_ray.evaluation.names import read_list

PLANTS = 60
CAPTIONS = ("a photo of the {} in the garden", "{}, close up", "two people and {}.", "the old {} - stock photo")
COMPOUND_RULES = {" ": "spaced", "-": "hyphenated", "": "closed_compound"}
SENSE = Rules(homographs="sense")


@pytest.fixture(scope="session")
def wordnet(whole_wordnet: WordNet) -> WordNet:
    return whole_wordnet


@pytest.fixture(scope="session")
def lemmas(wordnet: WordNet) -> list[str]:
    """The names of things, in random order: kinds of physical objects with plain letters."""
    found, queue = {"n00002684": None}, ["n00002684"]
    for wnid in queue:
        for below in wordnet[wnid].hyponyms:
            if below not in found:
                found[below] = None
                queue.append(below)
    names = {lemma.lower(): None for wnid in found for lemma in wordnet[wnid].lemmas if len(lemma) > 2}
    names = [name for name in names if all(word.isalpha() for word in name.replace("-", " ").split())]
    return random.Random(20).sample(names, len(names))


@pytest.fixture(scope="session")
def nouns(wordnet: WordNet) -> Lexicon:
    words = frozenset(
        lemma.lower() for synset in wordnet.synsets.values() for lemma in synset.lemmas if " " not in lemma
    )
    return Lexicon(wordnet.exceptions, words)


def assert_all_found(
    plants: Iterable[tuple[str, str]],
    rules: set[str],
    index_of: Callable[[list[str]], SurfaceIndex],
) -> None:
    """Each plant is a name and what a caption writes for it; all names are looked for at once."""
    pairs = list(dict(plants).items())
    assert len(pairs) >= PLANTS
    index = index_of([name for name, _ in pairs])
    for row, (name, written) in enumerate(pairs):
        caption = CAPTIONS[row % len(CAPTIONS)].format(written)
        found = {mention.concept: mention.rule for mention in index.mentions(caption)}
        assert found.get(name) in rules, (name, caption, found)


def compounds(wordnet: WordNet, joint: str) -> list[tuple[str, tuple[str, str]]]:
    """Wnids of general things with their name, and a compound for a kind of them that ends with it."""
    found = {}
    for wnid in random.Random(20).sample(sorted(wordnet.synsets), len(wordnet.synsets)):
        for above in wordnet[wnid].hypernyms:
            head = wordnet[above].lemmas[0]
            for lemma in (lemma for lemma in wordnet[wnid].lemmas if "-" not in lemma):
                before, space, last = lemma.rpartition(" ")
                is_closed = not space and lemma.endswith(head) and len(lemma) > len(head) > 2
                if wordnet.senses(head)[0] == above and (is_closed if not joint else last == head and before):
                    found.setdefault(above, (head, lemma.replace(" ", joint)))
    some = list(found.items())[:PLANTS]
    assert len(some) == PLANTS
    return some


def plants(names: Iterable[str], written: Callable[[str], str | None]) -> list[tuple[str, str]]:
    found = [(name, text) for name in names if (text := written(name))]
    return found[:PLANTS]


@pytest.mark.real
class TestPlantedLeaks:
    @pytest.mark.parametrize(
        ("rules", "written"),
        [
            ({"form"}, lambda name: name + "s" if name[-1] not in "sxzhyfo" and not name.endswith("man") else None),
            ({"form"}, lambda name: name + "es" if name[-1] in "xz" or name.endswith(("sh", "tch", "ss")) else None),
            ({"form"}, lambda name: name[:-1] + "ies" if name.endswith(("ry", "ly", "ty", "ny")) else None),
            ({"form"}, lambda name: name.upper() if " " not in name else None),
            ({"possessive"}, lambda name: name + "'s"),
            ({"possessive"}, lambda name: name + "s’" if name[-1] not in "sxzhyfo" and "-" not in name else None),
            ({"hyphenated"}, lambda name: name.replace(" ", "-") if " " in name and "-" not in name else None),
            ({"hyphenated"}, lambda name: f"snow-{name}" if " " not in name and "-" not in name else None),
            ({"closed_compound"}, lambda name: name.replace(" ", "") if " " in name and "-" not in name else None),
            ({"spaced"}, lambda name: name.replace("-", " ") if "-" in name and " " not in name else None),
        ],
        ids=["s", "es", "ies", "upper", "possessive", "of plural", "hyphen", "hyphen before", "closed", "space"],
    )
    def test_of_writing(self, rules, written, lemmas, nouns):
        assert_all_found(
            plants(lemmas, written), rules, lambda names: SurfaceIndex({name: {"en": [name]} for name in names}, nouns)
        )

    def test_irregular_plurals(self, wordnet, nouns):
        pairs = [
            (singulars[0], plural)
            for plural, singulars in sorted(wordnet.exceptions.items())
            if plural != singulars[0] and not plural.endswith("s")
        ]
        some = random.Random(20).sample(pairs, 2 * PLANTS)
        assert_all_found(some, {"form"}, lambda names: SurfaceIndex({name: {"en": [name]} for name in names}, nouns))

    def test_accents(self, lemmas):
        accents = str.maketrans("aeioun", "áèïôüñ")
        assert_all_found(
            plants(lemmas, lambda name: name.translate(accents) if set(name) & set("aeioun") else None),
            {"form"},
            lambda names: SurfaceIndex({name: {"en": [name]} for name in names}),
        )

    @pytest.mark.parametrize("homographs", ["string", "sense"])
    @pytest.mark.parametrize("joint", [" ", "-", ""], ids=["space", "hyphen", "closed"])
    def test_head_words_of_compounds(self, joint, homographs, wordnet):
        """Kinds of things that WordNet names by what they are a kind of: "guide dog", "bullfrog"."""
        some = compounds(wordnet, joint)
        concepts = [Concept(name=head, wnid=wnid) for wnid, (head, _) in some]
        index = surface_index(concepts, wordnet, Rules.model_validate({"homographs": homographs}))
        for wnid, (head, written) in some:
            found_here = {mention.concept: mention.rule for mention in index.mentions(f"an image of {written}")}
            assert found_here.get(f"{head} ({wnid})") == COMPOUND_RULES[joint], (head, written, found_here)

    @pytest.mark.parametrize("homographs", ["string", "sense"])
    @pytest.mark.parametrize("joint", [" ", "-", ""], ids=["space", "hyphen", "closed"])
    def test_compounds_in_the_whole_audit(self, joint, homographs, wordnet):
        """Trained on the head, tested on the compound, without WordNet's relations; and the other way round."""
        some = [(head, written) for _, (head, written) in compounds(wordnet, joint)]
        rules = Rules(homographs=homographs, hypernyms=0, hyponyms=0, parts=False, surface=True)
        sides = [[Concept(name=name) for name in of] for of in zip(*some, strict=True)]
        for seen, unseen in (sides, sides[::-1]):
            for found in audit(seen, unseen, wordnet, rules).unseen:
                assert COMPOUND_RULES[joint] in {each.rule for each in found.evidence}, found

    @pytest.mark.parametrize(("before", "rule"), [("crimson ", "spaced"), ("crimson-", "hyphenated")])
    def test_names_that_wordnet_does_not_have_in_the_whole_audit(self, before, rule, lemmas, wordnet):
        names = [name for name in lemmas if " " not in name and "-" not in name and len(wordnet.senses(name)) == 1]
        heads = [Concept(name=name) for name in names[:PLANTS]]
        audited = audit(
            heads, [Concept(name=before + each.name) for each in heads], wordnet, Rules(surface=True)
        ).unseen
        for head, found in zip(heads, audited, strict=True):
            assert (rule, head.name) in {(each.rule, each.seen) for each in found.evidence}, found

    @pytest.mark.parametrize("language", ["cn", "jp", "it", "ar"])
    def test_translations_of_imagenet(self, language):
        pytest.importorskip("clip_benchmark")
        names = read_list(f"package://clip_benchmark/datasets/{language}_classnames.json#imagenet1k", "names")
        code = {"cn": "zh", "jp": "ja"}.get(language, language)
        captions = {
            "zh": "一张{}的照片",
            "ja": "公園にいる{}の写真",
            "it": "una foto di {} nel parco",
            "ar": "صورة {} في الحديقة",
        }
        self.assert_translations_found(names, code, captions[code])

    @pytest.mark.parametrize(
        ("language", "caption"),
        [("DE", "ein Foto: {} im Garten"), ("FR", "une photo de {}, au parc"), ("RU", "на фото {} в саду"),
         ("HI", "{} की एक तस्वीर"), ("TH", "ภาพถ่าย{}ในสวน"), ("KO", "공원에 있는 {} 사진")],
    )  # fmt: skip
    def test_translations_of_babel_imagenet(self, language, caption):
        pytest.importorskip("clip_benchmark")
        names = read_list(f"package://clip_benchmark/datasets/babel_imagenet.json#{language}/1", "names")
        self.assert_translations_found(names, language.lower(), caption)

    def assert_translations_found(self, entries: list[str], language: str, caption: str) -> None:
        some = random.Random(20).sample(sorted(set(entries)), 2 * PLANTS)
        names: Mapping[str, Mapping[str, list[str]]] = {entry: {language: written_names(entry)} for entry in some}
        index = SurfaceIndex(names)
        for entry in some:
            text = caption.format(written_names(entry)[0])
            assert entry in {mention.concept for mention in index.mentions(text, language)}, (entry, text)


@pytest.mark.real
def test_at_most_4_of_200_innocent_pairs_alarm_in_the_whole_audit(wordnet: WordNet) -> None:
    pairs = {(str(pair.seen), str(pair.unseen)): pair for pair in read_pairs()}
    alarms: dict[tuple[str, str], list[Evidence]] = {}
    for one, other in ((1, 2), (2, 1)):
        sides = ({str(pair[side]): pair[side] for pair in pairs.values()}.values() for side in (one, other))
        for found in NamesWithin(*map(list, sides), wordnet, SENSE).found:
            key = (found.seen, found.unseen) if one == 1 else (found.unseen, found.seen)
            if key in pairs:
                alarms.setdefault(key, []).append(found)
        for key, pair in pairs.items():
            if found := Relations([pair[one]], wordnet, SENSE).evidence(pair[other]):
                alarms.setdefault(key, []).extend(found)
    print(*alarms.values(), sep="\n")
    assert len(alarms) <= 4, alarms
