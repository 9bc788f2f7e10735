"""Language models in GGUF files, the format of llama.cpp.

Such a file holds a model's quantised weights and its tokenizer. A node converts it once to what transformers saves, a
folder with dequantised weights, which is then loaded as any other model.
"""

import importlib.util
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from sharelock_ray import storage
from sharelock_ray.encoders.loading import line_of, loading, quietly
from sharelock_ray.encoders.spec import LanguageSpec
from sharelock_ray.encoders.weights import kept, local_weights, weights_digest
from sharelock_ray.errors import RequestError

_PACKAGES = ("gguf", "accelerate")
_FORMAT = "format.txt"
# Name of the file during conversion.
_FILE = "model.gguf"
# How Llama 3 scales its positions; only the factor differs between its models.
_CONTEXT, _LOW, _HIGH = 8192, 1.0, 4.0
_LLAMA_3 = {
    "rope_type": "llama3",
    "low_freq_factor": _LOW,
    "high_freq_factor": _HIGH,
    "original_max_position_embeddings": _CONTEXT,
}


def converted(spec: LanguageSpec, head: bool = False) -> Path:
    """Returns a local folder with the model and the tokenizer of a GGUF file.

    It lies in the node's cache under the name of the file's SHA-256 and the dtype. One process converts the file under
    a lock while the others wait.

    Args:
        head: whether the model's head, which predicts tokens, is needed too. Most small models have none of its own:
            it is their table of embeddings.

    Raises:
        RequestError: the file does not exist, is incomplete, or has an architecture that transformers does not read;
            or a package is missing.
    """
    path = _local_file(spec)
    key = f"{path} {storage.version(str(path))} {spec.dtype}"
    found = kept(key, lambda folder: _convert(spec, path, folder, AutoModel))
    if head and not AutoConfig.from_pretrained(found).tie_word_embeddings:
        return kept(f"{key} head", lambda folder: _convert(spec, path, folder, AutoModelForCausalLM))
    return found


def weights_format(folder: str) -> str:
    """Returns the architecture of the GGUF file from which `folder` was converted, and how many tensors it holds by
    their quantisation: `llama (GGUF: 61 F32, 210 Q4_1, 1 Q8_0)`."""
    return Path(folder, _FORMAT).read_text()


def _local_file(spec: LanguageSpec) -> Path:
    repository, file = spec.hub_id, spec.hub_file
    if repository is None or file is None:
        return local_weights(spec.model)
    try:
        return Path(hf_hub_download(repository, file, revision=spec.revision))
    # The hub's client raises errors of several libraries.
    except Exception as error:
        raise RequestError(f"{spec.model} is neither a file here nor on the hub: {line_of(error)}") from None


def _convert(spec: LanguageSpec, path: Path, folder: Path, kind: Any) -> str:
    """Writes the converted model, loaded by the class `kind`, to `folder`; returns the name that it shall have."""
    name = f"{weights_digest(str(path))}-{spec.dtype}{'' if kind is AutoModel else '-head'}"
    if (folder.parent / name).exists():  # Converted from another place.
        return name
    reader = _opened(spec.model, path)
    # Alone in a folder, since transformers would read other files beside it too.
    folder.mkdir()
    (folder / _FILE).symlink_to(path.resolve())
    config = _config(spec.model, reader, folder)
    types = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    held = ", ".join(f"{types[each]} {each}" for each in sorted(types))
    (folder / _FORMAT).write_text(f"{_field(reader, 'general.architecture')} (GGUF: {held})")
    # Its index of a large vocabulary takes a gigabyte, and transformers makes one more.
    del reader
    with loading(repr(spec.model)), quietly():
        # Not in each version of transformers that other models need.
        from transformers import GgufConfig

        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=_FILE)
        model, info = kind.from_pretrained(
            folder,
            config=config,
            gguf_file=_FILE,
            dtype=getattr(torch, spec.dtype),
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
        )
        # What the file lacks is random here; where the folder lacks it, loading says so.
        weights = {key: value for key, value in model.state_dict().items() if key not in info["missing_keys"]}
        model.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)
    # safetensors makes its files private; permissions must follow the umask, as those of any other file here.
    for weights_file in folder.glob("*.safetensors"):
        shutil.copymode(folder / _FORMAT, weights_file)
    (folder / _FILE).unlink()
    return name


def _opened(model: str, path: Path) -> Any:
    """Returns a reader of the file.

    Raises:
        RequestError: a package is missing, or the file is incomplete.
    """
    if missing := [package for package in _PACKAGES if importlib.util.find_spec(package) is None]:
        raise RequestError(
            f"{model} is a GGUF file, and this node has no {' and no '.join(missing)}: "
            f"pip install 'sharelock-ray[gguf]'"
        )
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
    # The reader checks no lengths, so a file that is cut off ends in any kind of error.
    except Exception as error:
        size = f"{path.stat().st_size:,} bytes"
        raise RequestError(f"{model} is no complete GGUF file ({size}; {line_of(error)}): fetch it again") from None
    if (parts := _field(reader, "split.count") or 1) > 1:
        raise RequestError(f"{model} is one of {parts} parts: merge them with `llama-gguf-split --merge`")
    if _field(reader, "general.architecture") is None:
        raise RequestError(f"{model} names no architecture (general.architecture): use another file")
    if reader.get_field("tokenizer.ggml.tokens") is None:
        raise RequestError(f"{model} has no tokenizer (tokenizer.ggml.tokens): use another file, or the original model")
    return reader


def _field(reader: Any, name: str) -> Any:
    """Returns a value of the file's metadata; None if it has none."""
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _config(model: str, reader: Any, folder: Path) -> Any:
    """Returns the model's configuration.

    Raises:
        RequestError: transformers does not read the file's architecture, or how it scales positions.
    """
    try:
        config = AutoConfig.from_pretrained(folder, gguf_file=_FILE)
    except ValueError as error:
        raise RequestError(
            f"transformers does not read {model}, a GGUF file of the architecture "
            f"{_field(reader, 'general.architecture')!r} ({line_of(error)}): use the original model"
        ) from None
    _scale_positions(model, reader, config)
    return config


def _scale_positions(model: str, reader: Any, config: Any) -> None:
    """Sets in `config` how the model scales its positions, which transformers does not read from the file.

    Raises:
        RequestError: the model does so in another way than Llama 3, whose factors are the tensor `rope_freqs`.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("full_attention", rope).get("rope_type", "default") != "default":
        return  # transformers knows it by the architecture.
    scaling = _field(reader, f"{_field(reader, 'general.architecture')}.rope.scaling.type")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors if tensor.name.startswith("rope_")}
    if scaling in (None, "none") and not tensors:
        return
    factors = tensors.get("rope_freqs.weight")
    if len(tensors) != 1 or factors is None or not _is_llama_3(factors, rope.get("rope_theta")):
        raise RequestError(
            f"{model} scales its positions ({scaling or ', '.join(tensors)}), which transformers does not read from "
            f"a GGUF file: use the original model"
        )
    config.rope_parameters = {**rope, **_LLAMA_3, "factor": float(factors.max())}


def _is_llama_3(factors: np.ndarray, theta: float | None) -> bool:
    """Whether (D / 2,) divisors of the frequencies are those of Llama 3 (arXiv 2407.21783) for their maximum."""
    if theta is None:
        return False
    waves = 2 * np.pi * theta ** (np.arange(len(factors)) / len(factors))
    # 1 where the original context has many waves, 0 where it has less than one.
    unscaled = np.clip((_CONTEXT / waves - _LOW) / (_HIGH - _LOW), 0, 1)
    return np.allclose(1 / factors, (1 - unscaled) / factors.max() + unscaled, rtol=1e-3)
