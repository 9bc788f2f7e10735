"""The schema and the file names of a feature set, defined only here."""

import pyarrow as pa

from sharelock_ray import storage

REJECTS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("error", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ]
)


def rows_schema(modality: str, dim: int, stored_dtype: str) -> pa.Schema:
    """Columns of a part: `key`, `embedding` (fixed width), and those of the modality.

    Args:
        modality: `vision` adds `label`; `language` adds `caption_id` and `text`.
        dim: width D of an embedding.
        stored_dtype: `float16` or `float32`.
    """
    value = {"float16": pa.float16(), "float32": pa.float32()}[stored_dtype]
    extra = {
        "vision": [pa.field("label", pa.int32())],
        "language": [
            pa.field("caption_id", pa.int32(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
        ],
    }[modality]
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            *extra,
            pa.field("embedding", pa.list_(pa.field("element", value, nullable=False), dim), nullable=False),
        ]
    )


def sort_columns(modality: str) -> list[tuple[str, str]]:
    """The order of rows in a part."""
    return [("key", "ascending")] + ([("caption_id", "ascending")] if modality == "language" else [])


def feature_set_uri(root: str, dataset: str, split: str, modality: str, encoder: str) -> str:
    """URI of a feature set below `root`; `encoder` is `<name>-<hash8>`."""
    return storage.join(root, dataset, split, modality, encoder)


def part_name(index: int, digest: str = "") -> str:
    """Name of a part's file; that of a retried part contains a digest of its content."""
    return f"part-{index:05d}{digest and f'-{digest}'}.parquet"


def embedding_column(values: "object", dim: int) -> pa.FixedSizeListArray:
    """(N, D) NumPy array of the stored type as an Arrow column, without a copy."""
    flat = pa.array(values.reshape(-1))  # type: ignore[attr-defined]
    field = pa.field("element", flat.type, nullable=False)
    return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(field, dim))
