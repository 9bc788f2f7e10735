"""Named encoders: `preset: dinov2-l` in a recipe stands for the fields listed here.

A preset is expanded when the recipe is read; fields in the recipe override it. Its name only becomes the default of
`name`, so the same settings written out give the same feature set.
"""

import difflib
import itertools
from typing import Any


def expand(content: Any, modality: str | None = None) -> Any:
    """Replaces `preset` in an encoder's section of a recipe by the preset's fields.

    Args:
        modality: required modality; None accepts any.

    Raises:
        ValueError: the preset does not exist, has the other modality, or all its fields are overridden.
    """
    if not isinstance(content, dict) or "preset" not in content:
        return content
    given = {field: value for field, value in content.items() if field != "preset"}
    name = str(content["preset"])
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.0)
        raise ValueError(f"there is no preset {name!r}: did you mean `{near[0]}`? (docs/encoders.md lists all)")
    fields = PRESETS[name]
    wanted = given.get("modality", modality)
    if wanted not in (None, fields["modality"]):
        raise ValueError(f"the preset {name!r} is a {fields['modality']} encoder, but `modality` is {wanted}")
    if fields.keys() - given.keys() <= {"modality"}:
        # For example a tuning grid that sets `preset` on a fully specified encoder.
        raise ValueError(f"the preset {name!r} has no effect here: the recipe also sets every field of it")
    return {"name": name, **fields, **given}


def written_out(content: Any) -> list[Any]:
    """The encoders of a recipe's section with lists of poolings or layers: one for each combination.

    They share one model and one forward pass. What is listed is added to the name: `gpt2-mean-layer4`; a layer of None,
    the model's final output, is `final`.
    """
    section = content if isinstance(content, dict) else {}
    listed = [name for name in ("pooling", "layer") if isinstance(section.get(name), list)]
    if not listed:
        return [content]
    name = section.get("name", section.get("preset"))
    found = []
    for values in itertools.product(*(section[field] for field in listed)):
        chosen = dict(zip(listed, values, strict=True))
        found.append({**section, **chosen, "name": "-".join([str(name), *map(_suffix, chosen.items())])})
    return found


def name_of(content: Any, modality: str) -> str | None:
    """The name of an encoder of a recipe; None if it has another modality."""
    content = content if isinstance(content, dict) else getattr(content, "__dict__", {})
    preset = PRESETS.get(str(content.get("preset")), {})
    has = content.get("modality", preset.get("modality"))
    return str(content.get("name", content.get("preset"))) if has == modality else None


def _suffix(chosen: tuple[str, Any]) -> str:
    field, value = chosen
    return f"layer{value}" if field == "layer" and value is not None else str(value or "final")


_ONE_WORD = 'This sentence: "{}" means in one word:"'
"""Prompt after which the last token of a decoder names the subject, however a caption is written (arXiv 2307.16645)."""


def _vision(model: str, image_size: int = 224, **fields: Any) -> dict[str, Any]:
    return {"modality": "vision", "model": model, "image_size": image_size, **fields}


def _language(model: str, pooling: str, **fields: Any) -> dict[str, Any]:
    return {"modality": "language", "model": model, "pooling": pooling, **fields}


def _vision_presets() -> dict[str, dict[str, Any]]:
    presets = {}
    # DINOv2 (arXiv 2304.07193) is evaluated at 224 after a resize to 256; timm's default, 518, costs six times more.
    for size, name in {"s": "small", "b": "base", "l": "large", "g": "giant"}.items():
        model = f"vit_{name}_patch14_dinov2.lvd142m"
        presets[f"dinov2-{size}"] = _vision(model, pooling="cls", resize=256)
        registers = f"vit_{name}_patch14_reg4_dinov2.lvd142m"
        presets[f"dinov2-{size}-reg"] = _vision(registers, pooling="cls", resize=256)
        # As in the released ShareLock code: bilinear instead of DINOv2's own bicubic resize, and Meta's hub.
        parity: dict[str, Any] = {
            "interpolation": "bilinear",
            "reduced_scale": False,
            "position_interpolation": "dinov2-hub",
        }
        presets[f"sharelock-dinov2-{size}"] = _vision(model, pooling="cls", resize=256, **parity)
        presets[f"sharelock-dinov2-{size}-reg"] = _vision(registers, pooling="cls", resize=256, **parity)
    # DINOv3 (arXiv 2508.10104), at timm's default size.
    sizes = {"s": "small", "s-plus": "small_plus", "b": "base", "l": "large", "h-plus": "huge_plus", "7b": "7b"}
    for size, name in sizes.items():
        presets[f"dinov3-{size}"] = _vision(f"vit_{name}_patch16_dinov3.lvd1689m", 256, pooling="cls")
    for size, name in {"t": "tiny", "s": "small", "b": "base", "l": "large"}.items():
        presets[f"dinov3-convnext-{size}"] = _vision(f"convnext_{name}.dinov3_lvd1689m")
        presets[f"convnext-{size}"] = _vision(f"convnext_{name}.fb_in22k_ft_in1k")
    for size, name in {"s": "small", "b": "base"}.items():
        presets[f"dino-{size}-16"] = _vision(f"vit_{name}_patch16_224.dino", pooling="cls")
    for size, name in {"s": "small", "b": "base", "l": "large"}.items():
        presets[f"vit-{size}-16"] = _vision(f"vit_{name}_patch16_224.augreg_in21k_ft_in1k")
    presets["vit-b-32"] = _vision("vit_base_patch32_224.augreg_in21k_ft_in1k")
    for depth in (50, 101):
        presets[f"resnet-{depth}"] = _vision(f"resnet{depth}.tv_in1k")
    # Vision towers without CLIP's projection into the shared space; resized as CLIP does. OpenAI trained with an
    # approximate GELU (openai/CLIP, `clip/model.py`), for which timm has the `quickgelu` models.
    for size, name in {"b-32": "base_patch32", "b-16": "base_patch16", "l-14": "large_patch14"}.items():
        presets[f"clip-{size}"] = _vision(f"vit_{name}_clip_quickgelu_224.openai", resize=224)
        presets[f"openclip-{size}"] = _vision(f"vit_{name}_clip_224.laion2b", resize=224)
    # SigLIP 2 (arXiv 2502.14786) pools by attention, and was trained on squashed images.
    for size, name in {"b-16": "base_patch16", "so400m-14": "so400m_patch14"}.items():
        presets[f"siglip2-{size}"] = _vision(f"vit_{name}_siglip_224.v2_webli", resize=224, crop_mode="squash")
    # MAE (arXiv 2111.06377), as its authors probe it.
    for size, name in {"b-16": "base_patch16", "l-16": "large_patch16", "h-14": "huge_patch14"}.items():
        presets[f"mae-{size}"] = _vision(f"vit_{name}_224.mae", pooling="cls", resize=256)
    presets["openclip-h-14"] = _vision("vit_huge_patch14_clip_224.laion2b", resize=224)
    return presets


def _language_presets() -> dict[str, dict[str, Any]]:
    # Base models, read at the last token as in the paper, but after a prompt: the best of the ways that
    # docs/pictures.md compares. Models from 1B parameters in the dtype of their weights.
    large = {
        "llama-2-7b": "meta-llama/Llama-2-7b-hf",
        "llama-2-13b": "meta-llama/Llama-2-13b-hf",
        "llama-3-8b": "meta-llama/Meta-Llama-3-8B",
        "llama-3.1-8b": "meta-llama/Llama-3.1-8B",
        "llama-3.2-1b": "meta-llama/Llama-3.2-1B",
        "llama-3.2-3b": "meta-llama/Llama-3.2-3B",
        "gemma-2-2b": "google/gemma-2-2b",
        "gemma-2-9b": "google/gemma-2-9b",
        "gemma-2-27b": "google/gemma-2-27b",
        "mistral-7b": "mistralai/Mistral-7B-v0.1",
        "yi-6b": "01-ai/Yi-6B",
        # Phi-3 has no published base model.
        "phi-3-mini": "microsoft/Phi-3-mini-4k-instruct",
        "phi-3-medium": "microsoft/Phi-3-medium-4k-instruct",
        "qwen2.5-1.5b": "Qwen/Qwen2.5-1.5B",
        "qwen2.5-3b": "Qwen/Qwen2.5-3B",
        "qwen2.5-7b": "Qwen/Qwen2.5-7B",
        "qwen3-1.7b": "Qwen/Qwen3-1.7B-Base",
        "qwen3-4b": "Qwen/Qwen3-4B-Base",
        "qwen3-8b": "Qwen/Qwen3-8B-Base",
        "smollm2-1.7b": "HuggingFaceTB/SmolLM2-1.7B",
    }
    small = {
        "qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B",
        "qwen3-0.6b": "Qwen/Qwen3-0.6B-Base",
        "smollm2-135m": "HuggingFaceTB/SmolLM2-135M",
        "smollm2-360m": "HuggingFaceTB/SmolLM2-360M",
        "gpt2": "openai-community/gpt2",
    }
    # Masked language models and T5's encoder: the mean over tokens. Their model cards name no other pooling.
    means = {
        "bert-base": "google-bert/bert-base-uncased",
        "bert-large": "google-bert/bert-large-uncased",
        "roberta-base": "FacebookAI/roberta-base",
        "roberta-large": "FacebookAI/roberta-large",
        "modernbert-base": "answerdotai/ModernBERT-base",
        "modernbert-large": "answerdotai/ModernBERT-large",
        "t5-base": "google-t5/t5-base",
        "t5-large": "google-t5/t5-large",
        # Sentence-transformers models with mean pooling.
        "minilm-l6": "sentence-transformers/all-MiniLM-L6-v2",
        "mpnet-base": "sentence-transformers/all-mpnet-base-v2",
        "all-roberta-large": "sentence-transformers/all-roberta-large-v1",
        "multilingual-mpnet": "sentence-transformers/paraphrase-multilingual-mpnet-base-v2",
        "gte-base": "thenlper/gte-base",
        "gte-large": "thenlper/gte-large",
    }
    presets = {name: _language(model, "last", prompt=_ONE_WORD, dtype="bfloat16") for name, model in large.items()}
    presets |= {name: _language(model, "last", prompt=_ONE_WORD) for name, model in small.items()}
    presets |= {name: _language(model, "mean") for name, model in means.items()}
    presets |= {
        name: _language(model, "mean", dtype="bfloat16")
        for name, model in {"t5-3b": "google-t5/t5-3b", "flan-t5-xl": "google/flan-t5-xl"}.items()
    }
    # From their model cards: the first token (BGE), a prefix to each text (E5).
    presets |= {f"bge-{size}": _language(f"BAAI/bge-{size}-en-v1.5", "first") for size in ("small", "base", "large")}
    presets |= {
        f"e5-{size}": _language(f"intfloat/e5-{size}-v2", "mean", prompt="query: {}")
        for size in ("small", "base", "large")
    }
    # Controlled pairs (arXiv 2507.11412), all in float32, so that a pair differs only in its objective.
    for size in ("17m", "32m", "68m", "150m", "400m", "1b"):
        presets[f"ettin-encoder-{size}"] = _language(f"jhu-clsp/ettin-encoder-{size}", "mean")
        presets[f"ettin-decoder-{size}"] = _language(f"jhu-clsp/ettin-decoder-{size}", "last")
    return presets


PRESETS: dict[str, dict[str, Any]] = _vision_presets() | _language_presets()
"""Fields of each preset by its name."""
