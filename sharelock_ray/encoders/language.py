"""Frozen language encoders, through transformers."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from sharelock_ray.encoders import gguf
from sharelock_ray.encoders.automodel import layers_of, load_model
from sharelock_ray.encoders.linear import accelerate
from sharelock_ray.encoders.loading import loading
from sharelock_ray.encoders.norms import FinalNorm, find_norm
from sharelock_ray.encoders.passes import Arrays, Encoded, Passes, suited
from sharelock_ray.encoders.provenance import device_name, hub_commit
from sharelock_ray.encoders.spec import LanguageSpec
from sharelock_ray.encoders.weights import local_weights
from sharelock_ray.errors import RequestError

# Names of the final norm in families of models; the second half in decoders before Llama.
NORMS = ("norm", "final_norm", "final_layer_norm", "ln_f", "norm_f", "final_layernorm", "decoder.final_layer_norm")

# Padded tokens per forward pass. On a CPU the states of more tokens leave the caches: `sharelock bench captions`. On a
# GPU larger batches are not faster, but mix more caption lengths: `sharelock bench encoders`.
_CPU_TOKENS, _GPU_TOKENS = 384, 2048
# Half the length in tokens of the texts that probe a model when it is loaded.
_PROBE_TOKENS = 4


class LanguageEncoder:
    """A frozen transformers model on one device.

    Texts are sorted by length and cut into batches of about `token_budget` padded tokens, which halves the work on
    captions of mixed length. Equal texts are encoded once. Padding is on the right under an attention mask, so neither
    causal nor bidirectional models see it, and absolute positions are right by default.

    Args:
        spec: model, prompt and pooling.
        device: where the model runs.
        token_budget: padded tokens per forward pass; None is a default for the device. Changes the speed, and the
            embeddings only by rounding. Halved after each out-of-memory error.
        others: more encoders with the same `forward_key`, read from the same forward passes.
        compiled: whether to use `torch.compile`, which slows down the first batches.

    Raises:
        RequestError: the model cannot be loaded, or lacks what a spec reads.
    """

    def __init__(
        self,
        spec: LanguageSpec,
        device: str = "cpu",
        token_budget: int | None = None,
        *,
        others: Sequence[LanguageSpec] = (),
        compiled: bool = False,
    ) -> None:
        self.spec = spec
        self.specs = [spec, *others]
        self._device = torch.device(device)
        # Setting truncation on a tokenizer is not thread-safe.
        self._tokenizing = threading.Lock()
        self._passes = Passes(self._device, token_budget or suited(self._device, _CPU_TOKENS, _GPU_TOKENS))
        with loading(repr(spec.model)):
            source = source_of(spec)
            self._tokenizer, model, lacks = _load(spec, source)
            layers = int(model.config.get_text_config().num_hidden_layers)
        self._vocabulary = vocabulary_of(model)
        self._require(model, layers)
        self._norm = None if all(each.final_norm for each in self.specs) else _final_norm(model, spec)
        # Nothing is generated, so a cache of keys and values would be useless.
        model.config.get_text_config().use_cache = False
        self._model = model.eval().requires_grad_(False).to(self._device)
        if not compiled:
            accelerate(self._model)
        self._dims, self._causal, self._pads = self._probe(lacks)
        if compiled:
            # The layers share one compiled graph. Lengths change with every batch.
            for part in layers_of(model, layers) or [model]:
                part.compile(dynamic=True)
        # The mask hides it, so any token with an embedding will do if the tokenizer's own has none.
        special = (self._tokenizer.pad_token_id, self._tokenizer.eos_token_id)
        self._pad_id = next((i for i in special if i is not None and self._knows(i)), 0)
        self.revision = hub_commit(spec.hub_id, spec.revision, spec.hub_file) if spec.hub_id else None
        """Commit of the model on the hub; None for other models."""
        self.weights_format = gguf.weights_format(source) if spec.is_gguf else None
        """Architecture and quantisation of a GGUF file; None for other models."""

    def _require(self, model: torch.nn.Module, layers: int) -> None:
        """Raises RequestError if the model or the tokenizer lacks what a spec needs."""
        spec = self.spec
        positions = positions_of(model)
        if positions is not None and spec.max_length > positions:
            raise RequestError(f"{spec.model} reads at most {positions} tokens: reduce `max_length`")
        require_layers(spec.model, layers, (each.layer for each in self.specs))
        if spec.append_eos and self._tokenizer.eos_token_id is None:
            raise RequestError(f"the tokenizer of {spec.model} has no end-of-sequence token to append")
        if spec.prompt and not self._tokenizer.is_fast:
            raise RequestError(f"the tokenizer of {spec.model} is not a fast one, which a `prompt` needs")
        self._before, _, self._after = (spec.prompt or "{}").partition("{}")
        always = self._tokenizer(self._before + self._after)["input_ids"]
        self._shortest = max(1, len(always))
        if spec.prompt and len(always) >= spec.max_length:
            raise RequestError(f"the prompt alone fills `max_length` ({spec.max_length} tokens)")
        for token in (*always, *([self._tokenizer.eos_token_id] if spec.append_eos else [])):
            if not self._knows(token):
                name = self._tokenizer.convert_ids_to_tokens(token)
                raise RequestError(
                    f"{spec.model} has no embedding for {name!r}, a token in every text: check its tokenizer"
                )

    def _knows(self, token: int) -> bool:
        """Whether the model has an embedding for a token."""
        return self._vocabulary is None or token < self._vocabulary

    @property
    def device(self) -> str:
        """Name of the device."""
        return device_name(self._device)

    @property
    def token_budget(self) -> int:
        """Current number of padded tokens per forward pass."""
        return self._passes.limit

    @property
    def dim(self) -> int:
        """Width D of an embedding."""
        return self._dims[0]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds texts.

        Returns:
            (N, D) float32, not normalised, in the order of `texts`.

        Raises:
            RunError: a text does not fit into the device's memory.
        """
        return self.encode_each(texts).only()

    @torch.inference_mode()
    def encode_each(self, texts: Sequence[str]) -> Encoded:
        """Embeds texts for `spec` and each of `others`; see `encode`."""
        unique = list(dict.fromkeys(texts))
        with self._tokenizing:
            ids, long = self._tokenize(unique)
        unknown = {}
        for i, tokens in enumerate(ids):
            # Tokens can be added to a tokenizer without resizing the model.
            token = next((token for token in tokens if not self._knows(token)), None)
            if token is not None:
                unknown[i] = str(self._tokenizer.convert_ids_to_tokens(token))
                ids[i] = [self._pad_id]

        def cut(rows: Sequence[int], token_budget: int) -> Iterator[list[int]]:
            for batch in token_batches([len(ids[row]) for row in rows], token_budget, self._pads):
                yield [rows[i] for i in batch]

        def load(rows: list[int]) -> Arrays:
            return self._padded([ids[row] for row in rows])

        smallest = self._padded([[self._pad_id]])
        found = self._passes.run(len(unique), self._dims, cut, load, self._forward, smallest)
        for embeddings in found.embeddings:
            embeddings[list(unknown)] = np.nan
        row = {text: i for i, text in enumerate(unique)}
        rows = [row[text] for text in texts]
        too_large = set(found.too_large)
        return replace(
            found,
            embeddings=[embeddings[rows] for embeddings in found.embeddings],
            too_large=[i for i, r in enumerate(rows) if r in too_large],
            unknown={i: unknown[r] for i, r in enumerate(rows) if r in unknown},
            tokens=sum(map(len, ids)),
            truncated=sum(r in long for r in rows),
        )

    def _tokenize(self, texts: list[str]) -> tuple[list[list[int]], set[int]]:
        """Returns the token ids of each text, and the indices of truncated texts."""
        if not texts:
            return [], set()
        room = self.spec.max_length - self.spec.append_eos
        wrapped = [self._before + text + self._after for text in texts]
        ids: list[list[int]] = self._tokenizer(wrapped, verbose=False)["input_ids"]
        long = {i for i, tokens in enumerate(ids) if len(tokens) > room}
        for i in long:
            ids[i] = self._shortened(wrapped[i], len(texts[i]), room)
        # Some tokenizers return no tokens for an empty text.
        ids = [tokens or [self._pad_id] for tokens in ids]
        if self.spec.append_eos:
            # Some tokenizers append it themselves.
            eos = self._tokenizer.eos_token_id
            ids = [tokens if tokens[-1] == eos else [*tokens, eos] for tokens in ids]
        return ids, long

    def _shortened(self, wrapped: str, length: int, room: int) -> list[int]:
        """Truncates the caption of `length` characters in a wrapped text, so that `room` tokens remain."""
        if self.spec.prompt is None:
            tokens: list[int] = self._tokenizer(wrapped, truncation=True, max_length=room)["input_ids"]
            return tokens
        encoded = self._tokenizer(wrapped, return_offsets_mapping=True, verbose=False)
        start, end = len(self._before), len(self._before) + length
        caption = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a >= start and b <= end and a < b]
        excess = len(encoded["input_ids"]) - room
        dropped = set(caption[max(0, len(caption) - excess) :])
        return [token for i, token in enumerate(encoded["input_ids"]) if i not in dropped]

    def _padded(self, ids: list[list[int]]) -> Arrays:
        """Returns (B, T) token ids and their mask, False at padding."""
        lengths = np.array([len(i) for i in ids])
        mask = np.arange(lengths.max()) < lengths[:, None]
        padded = np.full(mask.shape, self._pad_id)
        padded[mask] = np.concatenate(ids)
        return padded, mask

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        # Tokens of a causal model do not see the padding on their right. Attention without a mask is faster.
        states = self._states(ids, None if self._causal else mask)
        return [pool(each, mask, spec.pooling) for each, spec in zip(states, self.specs, strict=True)]

    def _states(self, ids: torch.Tensor, mask: torch.Tensor | None) -> list[torch.Tensor]:
        """Returns the (B, T, D) hidden states that each spec reads."""
        output = self._model(
            input_ids=ids,
            attention_mask=None if mask is None else mask.long(),
            output_hidden_states=any(spec.layer is not None for spec in self.specs),
        )
        return [
            output.hidden_states[spec.layer]
            if spec.layer is not None
            else output.last_hidden_state
            if self._norm is None or spec.final_norm
            else self._norm.before
            for spec in self.specs
        ]

    @torch.inference_mode()
    def _probe(self, lacks: str) -> tuple[list[int], bool, bool]:
        """Probes the model with made-up texts.

        Args:
            lacks: the missing weights, as `_load` returns them.

        Returns:
            the embedding width of each spec; whether the model is causal (its configuration alone is not enough,
            because some bidirectional models are built from a decoder's parts); and whether padding leaves the
            embeddings unchanged, so that texts of different lengths can share a batch.
        """
        half = min(_PROBE_TOKENS, (positions_of(self._model) or 2 * _PROBE_TOKENS) // 2)
        # All tokens differ, because attention over equal tokens does not depend on the mask.
        places = torch.arange(1, 2 * half + 1, device=self._device)[None]
        tokens = places * (self._vocabulary or 2 * half + 1) // (2 * half + 1)
        first, second = tokens.split(half, 1)
        with loading(f"{self.spec.model!r} as a model of texts"):
            both = self._states(torch.cat([torch.cat([first, first], 1), torch.cat([first, second], 1)]), None)
            alone = self._states(first, places[:, :half] > 0)
            padded = self._states(tokens, places <= half)
            self._states(tokens[:, : self._shortest], places[:, : self._shortest] > 0)
            if any(each.shape[1] != 2 * half for each in both):
                raise ValueError("it does not return one state per token")
        if lacks and not all(each.isfinite().all() for each in both):
            raise RequestError(f"{self.spec.model} is incomplete: {lacks}")
        blind = all(torch.allclose(each[0, :half], each[1, :half], rtol=1e-3, atol=1e-3) for each in both)
        causal = blind and _is_causal(self._model)
        return [int(each.shape[2]) for each in both], causal, causal or equal_up_to_rounding(alone, padded)


def require_layers(model: str, layers: int, wanted: Iterable[int | None]) -> None:
    """Raises RequestError if a model of `layers` layers lacks one of the `wanted` indices."""
    for layer in wanted:
        if layer is not None and not -layers - 1 <= layer <= layers:
            raise RequestError(f"{model} has {layers} layers: set `layer` from {-layers - 1} to {layers}")


def _final_norm(model: torch.nn.Module, spec: LanguageSpec) -> FinalNorm:
    norm = find_norm(model, *NORMS)
    if norm is None:
        raise RequestError(f"{spec.model} has no final norm: omit `final_norm`")
    return FinalNorm(norm)


def source_of(spec: LanguageSpec, head: bool = False) -> str:
    """Returns what transformers loads: a name on the hub, or a local folder.

    Args:
        head: whether the model's head, which predicts tokens, is needed too.
    """
    if spec.is_gguf:
        return str(gguf.converted(spec, head))
    return str(local_weights(spec.model)) if spec.is_local else spec.model


def _load(spec: LanguageSpec, source: str) -> tuple[Any, Any, str]:
    """Returns the tokenizer, the model that reads text, and a description of its missing weights, which are NaN."""
    options = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    model, lacks = load_model(source, spec.dtype, **options)
    return tokenizer, text_tower(model), lacks


def text_tower(model: Any) -> Any:
    """Returns the text encoder: the encoder of T5, the language model of Gemma 3, the text tower of CLIP."""
    if model.config.is_encoder_decoder:
        return model.get_encoder()
    return getattr(model, "language_model", None) or getattr(model, "text_model", model)


def vocabulary_of(model: Any) -> int | None:
    """Returns the number of tokens for which a model has an embedding; None if unknown."""
    try:
        table = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        table = None
    size = getattr(table, "num_embeddings", None)
    return size or getattr(model.config.get_text_config(), "vocab_size", None)


def equal_up_to_rounding(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    """Whether hidden states (1, T, D) equal the first T of `others` up to rounding."""
    for a, b in zip(some, others, strict=True):
        tolerance = 1e-4 if a.dtype == torch.float32 else 0.1
        if ((a - b[:, : a.shape[1]]).norm(dim=2) > tolerance * a.norm(dim=2)).any():
            return False
    return True


def positions_of(model: Any) -> int | None:
    """Returns the number of positions of a model, in tokens; None if unknown."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    # XLNet has relative positions, and -1 here.
    if positions is None or positions < 0:
        return None
    # RoBERTa's positions start after the padding index, which has a row in the table too.
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    paddings = (getattr(table, "padding_idx", None) for table in tables)
    return int(positions) - next((padding + 1 for padding in paddings if padding is not None), 0)


def _is_causal(model: torch.nn.Module) -> bool:
    """Whether all attention modules of a transformers model are marked causal."""
    flags = [module.is_causal for module in model.modules() if hasattr(module, "is_causal")]
    return bool(flags) and all(flags)


def pool(states: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Pools right-padded hidden states to one vector per text.

    Args:
        states: (N, T, D).
        mask: (N, T) bool, False at padding.

    Returns:
        (N, D).
    """
    if pooling == "first":
        return states[:, 0]
    if pooling == "last":
        return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
    if pooling == "max":
        return states.masked_fill(~mask[:, :, None], float("-inf")).amax(1)
    weights = mask.float()[:, :, None]
    if pooling == "weighted_mean":
        weights = weights.cumsum(1) * weights
    return ((states.float() * weights).sum(1) / weights.sum(1)).to(states.dtype)


def token_batches(lengths: Sequence[int], token_budget: int, pads: bool = True) -> Iterator[list[int]]:
    """Yields batches of texts of similar length: indices, at most `token_budget` padded tokens (or one text).

    Args:
        pads: whether texts of different lengths can share a batch.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        full = lengths[i] * (len(batch) + 1) > token_budget
        if batch and (full or not (pads or lengths[i] == lengths[batch[0]])):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
