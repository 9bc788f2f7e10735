"""How well a language model predicts a text: the bits of each token, through transformers.

A causal model gives each token a probability from the tokens before it. A masked model gives it one from those on both
sides while the token itself is masked; the product over tokens is no probability of the text, but a pseudo-likelihood
(arXiv 1910.14659). The two do not compare.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
)

from sharelock_ray.encoders.automodel import layers_of, load_model
from sharelock_ray.encoders.language import (
    equal_up_to_rounding,
    positions_of,
    require_layers,
    source_of,
    text_tower,
    token_batches,
    vocabulary_of,
)
from sharelock_ray.encoders.lens import AffineMap
from sharelock_ray.encoders.linear import accelerate
from sharelock_ray.encoders.loading import loading
from sharelock_ray.encoders.passes import Arrays, Passes, suited
from sharelock_ray.encoders.provenance import hub_commit
from sharelock_ray.encoders.spec import LanguageSpec
from sharelock_ray.errors import RequestError, RunError

Kind = Literal["causal", "masked"]
Readout = Literal["head", "linear"]

# Tokens per forward pass, and logits that exist at a time: a vocabulary may have 262,144 tokens.
_CPU_TOKENS, _GPU_TOKENS = 512, 8192
_LOGITS = 1 << 24
# Half the length in tokens of the texts that probe a model when it is loaded.
_PROBE_TOKENS = 4
# Fewer give no map of states that holds for others.
_LEAST_TOKENS = 64


@dataclass(frozen=True)
class TextBits:
    """The bits of a text under one model; T tokens."""

    bits: list[np.ndarray]
    """By layer: (T,) float64, -log2 of each token's probability."""
    starts: np.ndarray
    """(T,) int64: the byte of the text in UTF-8 at which each token begins."""
    lossless: bool
    """Whether the tokens hold the whole text. A tokenizer that drops case, white space or characters gives the bits of
    the text without them."""


class LikelihoodModel:
    """A language model with its head, on one device.

    The head was trained for the last layer only. The states of another layer are first mapped to those of the last by
    an affine map (`lens.py`), which is fitted on the one half of the text to read the other. All layers are read from
    the same forward passes.

    Args:
        spec: the model and its `dtype`; prompt and pooling have no meaning here.
        device: where the model runs.
        layers: indices as of `LanguageSpec.layer`.
        token_budget: tokens per forward pass; None is a default for the device.

    Raises:
        RequestError: the model cannot be loaded, has no head for tokens, or is an encoder-decoder.
    """

    kind: Kind
    """Whether the head predicts the next token (`causal`) or masked ones."""

    def __init__(
        self,
        spec: LanguageSpec,
        device: str = "cpu",
        *,
        layers: Sequence[int | None] = (None,),
        token_budget: int | None = None,
    ) -> None:
        self.spec, self.layers = spec, tuple(layers)
        self._device = torch.device(device)
        self._passes = Passes(self._device, token_budget or suited(self._device, _CPU_TOKENS, _GPU_TOKENS))
        options = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
        with loading(repr(spec.model)):
            source = source_of(spec, head=True)
            self.kind = _kind(AutoConfig.from_pretrained(source, **options), spec.model)
            self._tokenizer = AutoTokenizer.from_pretrained(source, **options)
            auto = AutoModelForMaskedLM if self.kind == "masked" else AutoModelForCausalLM
            model, lacks = load_model(source, spec.dtype, auto, **options)
        # OPT's head reads its decoder.
        self._base = getattr(model.base_model, "decoder", model.base_model)
        tower = text_tower(self._base)
        self._depth = int(model.config.get_text_config().num_hidden_layers)
        require_layers(spec.model, self._depth, self.layers)
        self._vocabulary = vocabulary_of(model)
        self._positions = positions_of(tower)
        self._parameters = [_parameters(tower, self._layer(layer), self._depth) for layer in self.layers]
        # Nothing is generated, so a cache of keys and values would be useless.
        model.config.get_text_config().use_cache = False
        self._model = model.eval().requires_grad_(False).to(self._device)
        accelerate(self._model)
        self._start, self._end = self._special()
        self._width = self._probe(lacks)
        self.revision = hub_commit(spec.hub_id, spec.revision, spec.hub_file) if spec.hub_id else None
        """Commit of the model on the hub; None for other models."""

    @property
    def readouts(self) -> list[Readout]:
        """How each layer is read."""
        return ["head" if self._layer(layer) == self._depth else "linear" for layer in self.layers]

    @property
    def parameters(self) -> list[int]:
        """For each layer: the number of parameters that its states depend on, without the head."""
        return self._parameters

    def tokens(self, text: str) -> int:
        """Number of tokens of a text."""
        return len(self._tokenized(text)[0])

    @torch.inference_mode()
    def bits(
        self, text: str, context: int = 512, stride: int = 256, progress: Callable[[int], None] = lambda tokens: None
    ) -> TextBits:
        """The bits of each token of a text; their sum is that of the text.

        A causal model reads windows of at most `context` tokens, each after the tokenizer's start token (or, without
        one, its end token), and each scores the `stride` tokens at its end: every token once, and after at least
        `context` - `stride` others, as far as there are so many. Without either token, nothing predicts the first one,
        and it counts as one of equally probable tokens. A masked model reads for each token the `context` tokens around
        it, which takes as many passes as there are tokens.

        Args:
            context: tokens per window, with special ones.
            stride: tokens that a window scores; without effect on masked models.
            progress: called with the number of tokens before each forward pass.

        Raises:
            RequestError: the text is empty, the model has no embedding for one of its tokens, or the windows are
                impossible.
            RunError: a probability is not finite, or a window does not fit into the device's memory.
        """
        ids, starts = self._tokenized(text)
        self._require(context, stride)
        if "linear" in self.readouts and len(ids) < _LEAST_TOKENS:
            raise RequestError(
                f"the text has {len(ids):,} tokens, too few to read a layer before the last: at least {_LEAST_TOKENS}"
            )
        if self.kind == "causal":
            windows = _causal_windows(len(ids), context + 1 - len(self._start), stride, first=0 if self._start else 1)
        else:
            windows = _masked_windows(len(ids), context - len(self._start) - len(self._end))

        widest = max((window.stop - window.first for window in windows), default=1)

        def load(rows: list[int]) -> Arrays:
            return self._inputs(ids, [windows[row] for row in rows], widest)

        def counted(rows: list[int]) -> Arrays:
            progress(sum(windows[row].stop - windows[row].first for row in rows))
            return load(rows)

        def cut(rows: Sequence[int], token_budget: int) -> Iterator[list[int]]:
            # Windows of one length need no padding, which some models see even under a mask.
            lengths = [windows[row].end - windows[row].begin for row in rows]
            for batch in token_batches(lengths, token_budget, pads=False):
                yield [rows[i] for i in batch]

        smallest = (np.zeros((1, 1), np.int64),) * 4
        sums: _Maps = {}
        if "linear" in self.readouts:
            self._passes.run(len(windows), [1], cut, load, partial(self._observe, sums), smallest)
        maps = {key: each.fit() for key, each in sums.items()}
        dims = [widest] * len(self.layers)
        found = self._passes.run(len(windows), dims, cut, counted, partial(self._forward, maps), smallest)
        if found.too_large:
            raise RunError(
                f"{self.spec.model} does not fit {context} tokens into the device's memory: reduce the context"
            )
        bits = [np.full(len(ids), math.log2(self._width)) for _ in self.layers]
        for values, each in zip(found.embeddings, bits, strict=True):
            for row, window in zip(values, windows, strict=True):
                each[window.first : window.stop] = row[: window.stop - window.first]
            self._require_finite(each, ids)
        decoded = self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return TextBits(bits, starts, lossless=decoded.strip() == text.strip())

    def _layer(self, layer: int | None) -> int:
        """The index from 0; None, the model's output, is that of the last layer."""
        return self._depth if layer is None else layer % (self._depth + 1)

    def _special(self) -> tuple[list[int], list[int]]:
        """The tokens before and after each window.

        Raises:
            RequestError: the tokenizer lacks what is needed.
        """
        tokenizer = self._tokenizer
        if not tokenizer.is_fast:
            raise RequestError(f"the tokenizer of {self.spec.model} is not a fast one, which the place of tokens needs")
        around = tokenizer("a", return_special_tokens_mask=True)
        ids, special = around["input_ids"], [*around["special_tokens_mask"], 0]
        before = special.index(0)
        if self.kind == "masked":
            if tokenizer.mask_token_id is None:
                raise RequestError(f"the tokenizer of {self.spec.model} has no mask token, which a masked model needs")
            after = special[before:].index(1) + before if any(special[before:]) else len(ids)
            return ids[:before], ids[after:]
        known = (tokenizer.bos_token_id, tokenizer.eos_token_id)
        fallback = [token for token in known if token is not None and self._knows(token)][:1]
        return ids[:before] or fallback, []

    def _knows(self, token: int) -> bool:
        """Whether the model has an embedding for a token."""
        return self._vocabulary is None or token < self._vocabulary

    def _tokenized(self, text: str) -> tuple[list[int], np.ndarray]:
        """The token ids of a text without special ones, and the byte at which each begins."""
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids: list[int] = encoded["input_ids"]
        if not ids:
            raise RequestError(f"the text has no tokens for {self.spec.model}: give one with words")
        if unknown := [token for token in ids if not self._knows(token)]:
            name = self._tokenizer.convert_ids_to_tokens(unknown[0])
            raise RequestError(
                f"{self.spec.model} has no embedding for {name!r}, a token of the text: check its tokenizer"
            )
        characters = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        sizes = 1 + sum((characters >= least).astype(np.int64) for least in (0x80, 0x800, 0x10000))
        places = np.concatenate([[0], np.cumsum(sizes)])
        return ids, places[[start for start, _ in encoded["offset_mapping"]]]

    def _require(self, context: int, stride: int) -> None:
        """Raises RequestError if there can be no such windows."""
        special = len(self._start) + len(self._end)
        if context <= special:
            raise RequestError(
                f"a context of {context} tokens is too short for {self.spec.model}: at least {special + 1}"
            )
        if self._positions is not None and context > self._positions:
            raise RequestError(
                f"{self.spec.model} reads at most {self._positions:,} tokens: reduce the context, for all models that "
                f"are compared"
            )
        if self.kind == "causal" and not 1 <= stride <= context - special:
            raise RequestError(f"a stride of {stride} tokens: choose one from 1 to {context - special}")

    def _inputs(self, ids: list[int], windows: "Sequence[_Window]", scored_most: int) -> Arrays:
        """(B, T) tokens of windows of one length; (B, `scored_most`) the places that predict a token, those tokens, and
        the half of the text (1 or 2) that each is in.

        Windows that score fewer are filled up with token 0, in half 0.
        """
        tokens = []
        at, targets, halves = np.zeros((3, len(windows), scored_most), np.int64)
        for i, window in enumerate(windows):
            row = [*self._start, *ids[window.begin : window.end], *self._end]
            scored = np.arange(window.first, window.stop)
            # A causal model predicts a token from the place before it.
            places = scored - window.begin + len(self._start) - (self.kind == "causal")
            if self.kind == "masked":
                row[places[0]] = self._tokenizer.mask_token_id
            tokens.append(row)
            at[i, : len(scored)], targets[i, : len(scored)] = places, ids[window.first : window.stop]
            halves[i, : len(scored)] = 1 + (2 * scored >= len(ids))
        return np.array(tokens), at, targets, halves

    def _observe(
        self, sums: "_Maps", ids: torch.Tensor, at: torch.Tensor, targets: torch.Tensor, halves: torch.Tensor
    ) -> list[torch.Tensor]:
        """Adds the states of (B, T) tokens at the places `at` to `sums`, by layer and half of the text."""
        last, *states = self._states(ids, at)
        for half in (1, 2):
            of_half = halves == half
            for layer, readout, each in zip(self.layers, self.readouts, states, strict=True):
                if readout == "linear" and of_half.any():
                    sums.setdefault((layer, half), AffineMap()).add(each[of_half], last[of_half])
        return [at[:, :1].float()]

    def _forward(
        self,
        maps: Mapping[tuple[int | None, int], tuple[torch.Tensor, torch.Tensor]],
        ids: torch.Tensor,
        at: torch.Tensor,
        targets: torch.Tensor,
        halves: torch.Tensor,
    ) -> list[torch.Tensor]:
        """For each layer (B, S): the bits of `targets` at the places `at` of (B, T) tokens."""
        _, *found = self._states(ids, at)
        for i, (layer, readout) in enumerate(zip(self.layers, self.readouts, strict=True)):
            if readout == "linear":
                # Each half is read by what was fitted on the other.
                first, second = (
                    found[i].float() @ matrix + offset for matrix, offset in (maps[layer, 2], maps[layer, 1])
                )
                found[i] = torch.where((halves == 1)[..., None], first, second).to(found[i].dtype)
        return [self._bits(states, targets) for states in found]

    def _states(self, ids: torch.Tensor, at: torch.Tensor) -> list[torch.Tensor]:
        """The (B, S, D) states of (B, T) tokens at the (B, S) places `at`: of the last layer, and of each layer."""
        output = self._base(input_ids=ids, output_hidden_states="linear" in self.readouts)
        rows = torch.arange(len(ids), device=ids.device)[:, None]
        last = output.last_hidden_state[rows, at]
        return [
            last,
            *(
                last if readout == "head" else output.hidden_states[layer][rows, at]
                for layer, readout in zip(self.layers, self.readouts, strict=True)
            ),
        ]

    def _bits(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        rows = max(1, _LOGITS // self._width)
        parts = zip(states.flatten(0, 1).split(rows), targets.flatten().split(rows), strict=True)
        nats = [functional.cross_entropy(self._logits(part).float(), of, reduction="none") for part, of in parts]
        return torch.cat(nats).view(targets.shape) / math.log(2)

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        """(N, V) logits of (N, D) states, by all that the model computes after its layers."""
        # The model's own forward pass, in which these states stand for the output of the layers: a head may be more
        # than one matrix, such as scaled or capped.
        self._base.forward = lambda *_, **__: self._output(last_hidden_state=states[None])
        try:
            logits: torch.Tensor = self._model(input_ids=states.new_zeros(1, len(states), dtype=torch.long)).logits[0]
        finally:
            del self._base.forward
        return logits

    @torch.inference_mode()
    def _probe(self, lacks: str) -> int:
        """Returns the number of tokens that the head predicts.

        Raises RequestError if the head is missing or reads other states, or if a causal model sees what follows.

        Args:
            lacks: the missing weights, as `load_model` returns them.
        """
        half = min(_PROBE_TOKENS, (self._positions or 2 * _PROBE_TOKENS) // 2)
        # All tokens differ, because attention over equal tokens does not depend on the mask.
        places = torch.arange(1, 2 * half + 1, device=self._device)[None]
        tokens = places * (self._vocabulary or 2 * half + 1) // (2 * half + 1)
        with loading(f"{self.spec.model!r} as a model of texts"):
            expected = self._model(input_ids=tokens).logits
            other = self._model(input_ids=torch.cat([tokens[:, :half], tokens[:, :half]], 1)).logits
            output = self._base(input_ids=tokens)
            self._output = type(output)
            found = self._logits(output.last_hidden_state[0])
        if lacks and not expected.isfinite().all():
            raise RequestError(f"{self.spec.model} has no trained head that predicts tokens: {lacks}")
        if not equal_up_to_rounding([expected], [found[None]]):
            raise RequestError(f"{self.spec.model}: its head reads other states than those of its last layer")
        if self.kind == "causal" and not equal_up_to_rounding([expected[:, :half]], [other]):
            raise RequestError(
                f"{self.spec.model} sees the tokens that it would have to predict: it is no causal model"
            )
        return int(expected.shape[2])

    def _require_finite(self, bits: np.ndarray, ids: list[int]) -> None:
        lost = np.flatnonzero(~np.isfinite(bits))
        if len(lost):
            name = self._tokenizer.convert_ids_to_tokens(ids[lost[0]])
            raise RunError(
                f"{self.spec.model} gives {len(lost):,} of {len(bits):,} tokens no finite probability, the first is "
                f"{name!r} (token {lost[0]:,}): set `dtype: float32`, or check the weights"
            )


# By layer and half of the text.
_Maps = dict[tuple[int | None, int], AffineMap]


@dataclass(frozen=True)
class _Window:
    """A model reads the tokens from `begin` to `end` and predicts those from `first` to `stop`."""

    begin: int
    end: int
    first: int
    stop: int


def _causal_windows(count: int, room: int, stride: int, first: int) -> list[_Window]:
    """Windows that score the tokens from `first` to `count`, each from up to `room` - 1 tokens before and among them.

    The last token is predicted, but not read.
    """
    stops = [(start, min(count, start + stride)) for start in range(first, count, stride)]
    return [_Window(max(0, stop - room), stop - 1, start, stop) for start, stop in stops]


def _masked_windows(count: int, room: int) -> list[_Window]:
    """A window of up to `room` tokens around each of `count` tokens."""
    begins = [min(max(0, token - room // 2), max(0, count - room)) for token in range(count)]
    return [_Window(begin, min(count, begin + room), token, token + 1) for token, begin in enumerate(begins)]


def _kind(config: Any, model: str) -> Kind:
    """What a model's head predicts.

    Raises:
        RequestError: it has none, or is an encoder-decoder.
    """
    if config.is_encoder_decoder:
        raise RequestError(
            f"{model} is an encoder-decoder, which has no likelihood of a text alone: name other encoders"
        )
    custom = getattr(config, "auto_map", None) or {}
    # Some encoders can also be made decoders.
    if "AutoModelForMaskedLM" in custom or (
        type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    ):
        return "masked"
    if "AutoModelForCausalLM" in custom or type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return "causal"
    raise RequestError(f"{model} ({config.model_type}) has no head that predicts tokens: name other encoders")


def _parameters(model: torch.nn.Module, layer: int, layers: int) -> int:
    """Number of a model's parameters without those of the layers after `layer`."""
    stack = layers_of(model, layers)
    unread = {id(weight) for part in (stack or ())[layer:] for weight in part.parameters()}
    return sum(weight.numel() for weight in model.parameters() if id(weight) not in unread)
