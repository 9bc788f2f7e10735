"""Encoders with random weights in realistic shapes; speed does not depend on the values of weights."""

from pathlib import Path
from typing import Any

from sharelock_ray.encoders.spec import VisionSpec

WORDS = tuple(f"w{i}" for i in range(4000))
"""Words of a decoder's tokenizer, one token each."""

DECODERS = {
    "llama-3-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "small": {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    },
}
"""Sizes of Llamas; Llama 3 8B as in its published configuration."""


def random_vision(folder: Path, model: str, image_size: int, **changes: Any) -> VisionSpec:
    """A timm model with random weights, saved in `folder`; images are resized to 8/7 of `image_size` and cropped."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    try:
        created = timm.create_model(model, num_classes=0, img_size=image_size)
    except TypeError:  # Only models with a fixed position grid accept the size.
        created = timm.create_model(model, num_classes=0)
    weights = folder / "weights.safetensors"
    save_file(created.state_dict(), weights)
    resize = image_size * 8 // 7
    spec = VisionSpec(name="bench", model=model, weights=str(weights), image_size=image_size, resize=resize, **changes)
    return spec.resolved()


def write_decoder(folder: Path, sizes: dict[str, int], dtype: Any = None, device: str = "cpu") -> None:
    """Writes a Llama with random weights, drawn on `device`, and a tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModel, LlamaConfig, PreTrainedTokenizerFast
    from transformers.utils import logging

    # Also for the loading of the model.
    logging.disable_progress_bar()

    vocabulary = {word: i for i, word in enumerate(["[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with torch.device(device):
        AutoModel.from_config(LlamaConfig(vocab_size=len(vocabulary), **sizes), dtype=dtype).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
