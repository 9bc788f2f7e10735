from pathlib import Path

import pytest

from nouns import write_wordnet
from sharelock_ray.concepts.wordnet import WordNet


@pytest.fixture(scope="session")
def nouns(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder of the tiny WordNet, and the wnid of each of its nouns."""
    folder = tmp_path_factory.mktemp("wordnet")
    return folder, write_wordnet(folder)


@pytest.fixture(scope="session")
def wordnet(nouns: tuple[Path, dict[str, str]]) -> WordNet:
    return WordNet(nouns[0])


@pytest.fixture(scope="session")
def wnids(nouns: tuple[Path, dict[str, str]]) -> dict[str, str]:
    return nouns[1]
