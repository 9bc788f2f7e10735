"""Small data, tiny models and helpers for the tests."""

import io
import itertools
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5Model,
)

from sharelock_ray import storage
from sharelock_ray.encoders.spec import LanguageSpec, VisionSpec
from sharelock_ray.extraction.chunks import cut, decode
from sharelock_ray.extraction.group import load_encoders
from sharelock_ray.features.featureset import open_features
from sharelock_ray.features.manifest import Origin, is_complete
from sharelock_ray.features.soundness import audit
from sharelock_ray.features.writer import EncodedChunk, FeatureSetWriter
from sharelock_ray.recipe.load import read_recipe
from sharelock_ray.recipe.schema import Recipe
from sharelock_ray.runs.folder import RunFolder
from sharelock_ray.runs.loop import train
from sharelock_ray.sources.sample import Content, Reject, Sample, Shard, Source
from sharelock_ray.storage import write_bytes
from sharelock_ray.workflows.inputs import Inputs, Split, check_inputs, prepare

WORDS = ["a", "red", "green", "blue", "circle", "square", "photo", "of", "the", "small", "large", ".", "in", "picture"]


def jpeg(colour: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (40, 32), seed: int = 0) -> bytes:
    """A JPEG of `size` (width, height): noise around one colour."""
    noise = np.random.default_rng(seed).integers(-20, 20, (size[1], size[0], 3))
    image = Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """Writes a tar of `members` in the given order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    write_bytes(str(path), buffer.getvalue())
    return path


def write_pairs(folder: Path, shards: int = 2, samples: int = 10, bad: bool = False) -> str:
    """Writes tars of labelled image-caption pairs; returns the pattern that matches them.

    Args:
        bad: whether to damage the image of the first sample of each shard, and to omit the caption of the second.
    """
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    for shard in range(shards):
        members = {}
        for i in range(samples):
            label = (shard + i) % 3
            members[f"{i:04d}.jpg"] = jpeg(colours[label], seed=100 * shard + i)
            members[f"{i:04d}.txt"] = f"a {WORDS[1 + label]} {'circle' if i % 2 else 'square'}.".encode()
            members[f"{i:04d}.cls"] = str(label).encode()
        if bad:
            members["0000.jpg"] = b"no image"
            del members["0001.txt"]
        write_tar(folder / f"{shard:05d}.tar", members)
    return str(folder / "*.tar")


def tiny_vision(folder: Path, seed: int = 0, **changes: object) -> VisionSpec:
    """A tiny timm model with random weights on disk."""
    torch.manual_seed(seed)
    path = folder / f"vision-{seed}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), path)
    settings = {
        "name": "tiny-resnet",
        "model": "test_resnet",
        "weights": str(path),
        "image_size": 32,
        "resize": 32,
        "crop_mode": "center",
        "interpolation": "bilinear",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
    }
    return VisionSpec(**(settings | changes))


_LANGUAGE_MODELS = {
    "decoder": (LlamaConfig, LlamaModel),
    "gpt2": (GPT2Config, GPT2Model),
    "encoder": (BertConfig, BertModel),
    "roberta": (RobertaConfig, RobertaModel),
    "t5": (T5Config, T5Model),
}
DECODERS = ("decoder", "gpt2")


def tiny_language(folder: Path, kind: str = "decoder", seed: int = 0, **changes: object) -> LanguageSpec:
    """A tiny transformers model with random weights and a tokenizer of WORDS, on disk.

    Args:
        kind: `decoder` (Llama), `encoder` (BERT), `gpt2`, `roberta` or `t5`.
    """
    path = folder / f"{kind}-{seed}"
    if not path.exists():
        torch.manual_seed(seed)
        sizes = {
            "vocab_size": len(WORDS) + 4,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
        }
        # T5 names its sizes differently. Padding is token 0; RoBERTa's positions start after the padding index.
        own = {"d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4} if kind == "t5" else {}
        pad = {} if kind in DECODERS else {"pad_token_id": 0}
        config, model = _LANGUAGE_MODELS[kind]
        model(config(**sizes, **own, **pad)).save_pretrained(path)
        _tokenizer(kind).save_pretrained(path)
    pooling = "last" if kind in DECODERS else "mean"
    settings = {"name": f"tiny-{kind}", "model": str(path), "pooling": pooling, "max_length": 32}
    return LanguageSpec(**(settings | changes))


def _tokenizer(kind: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    # GPT-2 and T5 have no start token.
    template = {"decoder": "[CLS] $A", "gpt2": "$A", "t5": "$A [SEP]"}.get(kind, "[CLS] $A [SEP]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    pad = {} if kind in DECODERS else {"pad_token": "[PAD]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[SEP]", **pad)


def write_feature_sets(
    folder: Path, pairs: int, dims: tuple[int, int] = (24, 16), parts: tuple[int, int] = (1, 1)
) -> tuple[str, str]:
    """Writes a vision and a language set of `pairs` pairs with a shared random signal; returns both URIs.

    A larger number of pairs starts with the same pairs.

    Args:
        dims: widths of the vision and language embeddings.
        parts: numbers of parts of the vision and language set.
    """
    generator = np.random.default_rng(0)
    mixers = [generator.normal(size=(8, dim)) for dim in dims]
    signal = np.stack([np.random.default_rng([1, i]).normal(size=8) for i in range(pairs)])
    embeddings = [np.tanh(signal @ mixer).astype(np.float32) for mixer in mixers]
    keys = [f"00000/{i:06d}" for i in range(pairs)]
    vision = VisionSpec(name="signal", model="none", stored_dtype="float32")
    language = LanguageSpec(name="signal", model="none", stored_dtype="float32")
    columns = {
        "vision": {"key": keys, "label": [i % 3 for i in range(pairs)]},
        "language": {"key": keys, "caption_id": [0] * pairs, "text": [f"text {i}" for i in range(pairs)]},
    }
    uris = []
    for spec, values, count in zip((vision, language), embeddings, parts, strict=True):
        bounds = [pairs * part // count for part in range(count + 1)]
        chunks = [
            EncodedChunk({name: of[a:b] for name, of in columns[spec.modality].items()}, values[a:b])
            for a, b in itertools.pairwise(bounds)
        ]
        uris.append(write_parts(str(folder / spec.modality), spec, [[chunk] for chunk in chunks]))
    return tuple(uris)


def write_recipe(path: Path, models: Path, **changes: object) -> Path:
    """Writes a recipe with tiny models that runs in seconds; `changes` replace top-level fields."""
    content = {
        "name": "tiny",
        "output": str(path.parent / "run"),
        "data": {
            "dataset": "shapes",
            "shapes": {"train_images": 240, "test_images_per_class": 2, "image_size": 32, "shards": 2},
        },
        "encoders": [tiny_vision(models).model_dump(mode="json"), tiny_language(models).model_dump(mode="json")],
        "alignment": {
            "language": {"depth": 2, "width": 32, "dropout": 0.1},
            "global_batch_size": 64,
            "steps": 20,
            "warmup_steps": 5,
            "evaluate_every": 5,
            "validation_fraction": 0.2,
        },
        "operations": {"extraction": {"chunk_size": 32}},
    } | changes
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return path


def write_study(path: Path, output: str, **alignment: object) -> str:
    """Writes a recipe of four small trials, and its features in `output`; returns the path of the recipe."""
    known = {"image_size": 8, "resize": 8, "crop_mode": "center", "interpolation": "bicubic"}
    known |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    content = {
        "name": "study",
        "output": output,
        "data": {"dataset": "pairs", "train": {"urls": "nowhere/*.tar"}},
        "encoders": [
            {"modality": "vision", "name": "signal", "model": "none", **known},
            {"modality": "language", "name": "signal", "model": "none"},
        ],
        "alignment": {
            "language": {"depth": 2, "width": 16},
            "global_batch_size": 32,
            "steps": 20,
            "evaluate_every": 10,
        }
        | alignment,
        "tuning": {"space": {"alignment.language.depth": [1, 2]}, "seeds": [0, 1]},
    }
    path.write_text(yaml.safe_dump(content))
    write_features_of(read_recipe(str(path)))
    return str(path)


def write_features_of(recipe: Recipe) -> None:
    """Writes synthetic feature sets for the encoders of a recipe: 200 pairs with a shared random signal, 8 wide."""
    keys = [f"00000/{i:06d}" for i in range(200)]
    signal = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float16)
    for encoder in recipe.encoders:
        chunk = encoded(encoder.modality, keys, embeddings=signal)
        write_parts(Inputs(recipe).uri("train", encoder), encoder, [[chunk]])


def extracted_alone(recipe: Recipe) -> None:
    """Extracts the missing feature sets of a recipe in this process, without Ray."""
    prepare(recipe)
    extract_alone(recipe, Inputs(recipe).all_splits)


def extract_alone(recipe: Recipe, splits: Sequence[Split]) -> None:
    """Extracts the missing feature sets of splits in this process, in place of `workflows.extract.extract_splits`."""
    check_inputs(splits)
    options = {"image_batch_size": None, "token_budget": None, "compiled": False, "channels_last": False}
    for split in splits:
        shards = split.source.shards()
        for encoder, uri in zip(split.encoders, split.uris, strict=True):
            if is_complete(uri):
                continue
            (group,) = load_encoders([encoder.spec], "cpu", **options)
            preprocessings = {encoder.spec.preprocessing} if encoder.modality == "vision" else set()
            parts = [
                [group.encode(decode(chunk, preprocessings))[0] for chunk in cut(split.source, shard, 32)]
                for shard in shards
            ]
            write_parts(uri, encoder.spec, parts, split.dataset, shards, split.name)


def trained_alone(recipe: Recipe, folder: Path, seed: int = 0) -> RunFolder:
    """Trains a recipe in this process, without Ray; `folder` is the run folder."""
    run = RunFolder(str(folder))
    uris = [Inputs(recipe).uri("train", encoder) for encoder in (recipe.vision, recipe.language)]
    train(run, *uris, recipe.alignment.model_copy(update={"seed": seed}))
    return run


def alone() -> dict[str, str]:
    """The environment without the variables of the session's Ray, for processes that start their own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Starts the `sharelock` command as a user would, in its own process and session."""
    return subprocess.Popen(
        [sys.executable, "-c", "from sharelock_ray.cli import main; main()", *arguments],
        env=alone() | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Background jobs of a shell, and their child processes, ignore Ctrl-C by default.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_for(moment: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Waits until `moment()` is true; fails if the process ends first."""
    deadline = time.monotonic() + 300
    while not moment():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def hold_writes(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Blocks all writes to storage until the returned event is set."""
    go_on, write = threading.Event(), storage.write_bytes

    def slow(uri: str, data: bytes) -> None:
        assert go_on.wait(60)
        write(uri, data)

    monkeypatch.setattr(storage, "write_bytes", slow)
    return go_on


def kill(driver: subprocess.Popen[str]) -> None:
    """Kills a driver with SIGKILL; its Ray ends shortly after."""
    driver.kill()
    driver.communicate()


def encoded(modality: str, keys: list[str], dim: int = 4, seed: int = 0, **changes: object) -> EncodedChunk:
    """A chunk of random embeddings with one row per key; a repeated key is another caption of the same sample."""
    columns: dict[str, list[object]] = {"key": list(keys)}
    if modality == "vision":
        columns["label"] = [sum(key.encode()) % 3 for key in keys]
    else:
        columns["caption_id"] = [keys[:i].count(key) for i, key in enumerate(keys)]
        columns["text"] = [f"text {keys[:i].count(key)} of {key}" for i, key in enumerate(keys)]
    embeddings = np.random.default_rng(seed).normal(size=(len(keys), dim)).astype(np.float32)
    return EncodedChunk(**({"columns": columns, "embeddings": embeddings} | changes))


def write_parts(
    uri: str,
    spec: VisionSpec | LanguageSpec,
    parts: list[list[EncodedChunk]],
    dataset: str = "pairs",
    shards: list[Shard] | None = None,
    split: str = "train",
) -> str:
    """Writes a complete feature set with one part (and shard) per list of chunks; returns its URI."""
    writer = FeatureSetWriter(uri, spec.modality, spec.stored_dtype)
    shards = shards or [Shard(i, f"{i:05d}", f"memory/{i:05d}.tar", 100 + i) for i in range(len(parts))]
    writer.start(shards, chunk_size=1)
    for shard, chunks in zip(shards, parts, strict=True):
        for index, chunk in enumerate(chunks):
            writer.stage(shard.index, index, index == len(chunks) - 1, shard.uri, chunk)
        writer.seal(shard.index)
    origin = Origin(
        dataset=dataset,
        split=split,
        encoder=spec.model_dump(mode="json"),
        weights_sha256=spec.weights_digest(),
        software={},
    )
    writer.finish(shards, origin, gpus=0, wall_seconds=0)
    return uri


def units_in_the_last_place(a: torch.Tensor, b: torch.Tensor) -> int:
    """The largest distance between two float16 tensors in units in the last place."""
    # The bit patterns of positive numbers are ordered as integers; those of negative ones are mirrored.
    first, second = (torch.where(bits < 0, -32768 - bits, bits) for bits in (x.view(torch.int16).int() for x in (a, b)))
    return int((first - second).abs().max())


@dataclass(frozen=True)
class KilledOnce:
    """A source whose first reader is killed after `samples` samples of a shard; the file `mark` records this."""

    source: Source
    shard: int
    samples: int
    mark: str

    @property
    def provides(self) -> frozenset[Content]:
        return self.source.provides

    def shards(self) -> list[Shard]:
        return self.source.shards()

    def keys_of(self, shard: Shard) -> Iterator[str]:
        return self.source.keys_of(shard)

    def version(self, shard: Shard) -> str:
        return self.source.version(shard)

    def read(self, shard: Shard) -> Iterator[Sample | Reject]:
        for i, item in enumerate(self.source.read(shard)):
            if shard.index == self.shard and i == self.samples and not os.path.exists(self.mark):
                Path(self.mark).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield item


def read_source(source: Source) -> list[Sample | Reject]:
    """All samples and rejects of a source, in order."""
    return [item for shard in source.shards() for item in source.read(shard)]


def prove_accounted(source: Source, folder: Path, inputs: int) -> None:
    """Stores a row for each sample of a source, and checks by an audit that each of `inputs` occurs exactly once."""
    parts = [
        [
            encoded("vision", [sample.key for sample in chunk.samples], rejects=chunk.rejects, seed=chunk.index)
            for chunk in cut(source, shard, chunk_size=2)
        ]
        for shard in source.shards()
    ]
    spec = VisionSpec(name="made-up", model="none")
    report = audit(open_features(write_parts(str(folder), spec, parts)), [item.key for item in read_source(source)])
    assert (report.problems, report.inputs) == ([], inputs)
    for shard in source.shards():
        assert sorted(source.keys_of(shard)) == sorted(item.key for item in source.read(shard))


def photographs() -> list[Image.Image]:
    """Smooth images, wide and tall."""
    y, x, channel = np.ogrid[:61, :83, :3]
    waves = [(127 + 120 * np.sin(x / (7 + i) + channel + i) * np.cos(y / 9)).astype(np.uint8) for i in range(3)]
    return [Image.fromarray(np.ascontiguousarray(w.transpose(1, 0, 2) if i == 1 else w)) for i, w in enumerate(waves)]


def run_together(code: str, *arguments: str, processes: int) -> list[str]:
    """Runs `code` in several processes that go on at the same time; returns what each printed after that.

    The code prints "ready" and reads a line from standard input.
    """
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(processes)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [process.communicate(timeout=120)[0] for process in started]


def cosine_distances(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """1 - cosine of each of (N, D) rows and its counterpart, computed in float64."""
    some, others = some.astype(np.float64), others.astype(np.float64)
    return 1 - (some * others).sum(1) / np.linalg.norm(some, axis=1) / np.linalg.norm(others, axis=1)
