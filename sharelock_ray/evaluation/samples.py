"""What a model did with each sample of an evaluation, as a Parquet file: one for each benchmark and language, and one
for the run's own split. Does not import torch.

A row names its sample (`key` of an image, `caption_id` of one of its captions, `example` of compositional choice), says
what is right (`label`, `text`) and what the model did (`predicted`, `rank`, `tied`, or a column for each choice). Rows
of a split also name their record: `task`, `candidate_set` and `language`. The file's metadata has the request that was
answered: `benchmark`, or `evaluation` with a `schema_version`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sharelock_ray import storage
from sharelock_ray.errors import RunError
from sharelock_ray.evaluation.result import EvaluationRecord

if TYPE_CHECKING:
    from sharelock_ray.evaluation.ranks import Ranks

FOLDER = "evaluation"
"""Folder of the samples, in that of the run."""
REMEDY = "delete it and run `sharelock evaluate` again"


def samples_uri(output: str, dataset: str, part: str) -> str:
    """The file of a benchmark in a language, or of a split of a data set.

    Args:
        output: folder of the run.
        dataset: name of the benchmark or data set.
        part: the language, the task of frozen features, or the split.
    """
    return storage.join(output, FOLDER, f"{dataset}-{part}.parquet")


def samples_of(record: EvaluationRecord, output: str) -> str | None:
    """The file of a record's samples; None if the record does not name its data."""
    if record.benchmark:
        return samples_uri(output, record.benchmark.name, record.benchmark.part)
    return record.dataset and samples_uri(output, record.dataset, record.split)


def write_samples(uri: str, samples: pa.Table, request: Mapping[str, str]) -> None:
    """Writes samples.

    Args:
        request: the metadata: what was asked, as JSON, by `benchmark` or `evaluation`.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(samples.replace_schema_metadata(dict(request)), sink)
    storage.write_bytes(uri, sink.getvalue().to_pybytes())


def read_samples(uri: str) -> tuple[pa.Table, dict[str, str]]:
    """Reads samples and their metadata.

    Raises:
        FileNotFoundError: there is no file.
        RunError: it is damaged.
    """
    data = storage.read_bytes(uri)
    try:
        table = pq.read_table(pa.BufferReader(data))
        return table, {name.decode(): text.decode() for name, text in (table.schema.metadata or {}).items()}
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise RunError(f"{uri} is damaged ({' '.join(str(error).split())}): {REMEDY}") from None


def classified(keys: pa.Array, labels: pa.Array, predicted: np.ndarray, found: "Ranks") -> pa.Table:
    """A row for each image.

    Args:
        keys: (N,) of the images.
        labels: (N,) their classes, or lists of them.
        predicted: (N,) the nearest class of each.
        found: (N,) ranks of their own classes.
    """
    return pa.table(
        {
            "key": keys,
            "label": labels,
            "predicted": pa.array(predicted, pa.int32()),
            "rank": found.ahead,
            "tied": found.tied,
        }
    )


def retrieved(keys: pa.Array, owner: np.ndarray, captions: pa.Table, by_image: "Ranks", by_text: "Ranks") -> pa.Table:
    """A row for each query of both directions.

    Args:
        keys: (N,) of the images.
        owner: (M,) index of the image of each caption.
        captions: (M,) rows of `caption_id` and `text`.
        by_image: (N,) ranks of the images' own captions.
        by_text: (M,) ranks of the captions' own images.
    """
    queries = {
        "image_to_text": (keys, pa.nulls(len(keys), pa.int32()), pa.nulls(len(keys), pa.string()), by_image),
        "text_to_image": (keys.take(owner), captions["caption_id"], captions["text"], by_text),
    }
    return pa.concat_tables(
        pa.table(
            {
                "direction": pa.array([direction] * len(of_query), pa.string()),
                "key": of_query,
                "caption_id": caption_id,
                "text": text,
                "rank": found.ahead,
                "tied": found.tied,
            }
        )
        for direction, (of_query, caption_id, text, found) in queries.items()
    )


def of_records(samples: list[tuple[EvaluationRecord, pa.Table]]) -> pa.Table:
    """The samples of all records of a split in one table; a column that a task does not have is null in its rows."""
    tables = []
    for record, table in samples:
        candidate_set = getattr(record.result, "candidate_set", None)
        named = {"task": record.task, "candidate_set": candidate_set, "language": getattr(record, "language", None)}
        columns = {name: pa.array([value] * len(table), pa.string()) for name, value in named.items()}
        tables.append(pa.table({**columns, **dict(zip(table.column_names, table.columns, strict=True))}))
    return pa.concat_tables(tables, promote_options="default")
