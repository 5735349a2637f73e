"""A frozen captioner: an image encoder and a text decoder, with vectors of a prompt at the decoder's own site.

One row of the decoder reads: the image, learned keys and values (`lm.kv[i]`), the start tokens, learned vectors
(`lm.input`), and the caption. Vectors after the start steer better than before it, and the image, read first, can be
kept for every caption and every step of a training. Decoders whose prompt belongs into an encoder's input (T5) take it
there. This file knows no search; each library's decoder is a `TextDecoder`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from mmprompt.errors import UserError
from mmprompt.files import read_tensors
from mmprompt.models.decoder.inserts import Change, changed, changes_of, check_changes, check_vectors, keys_values
from mmprompt.models.decoder.kv_cache import KVCache
from mmprompt.models.decoder.packing import Question, pack
from mmprompt.models.decoder.reader import CausalReader
from mmprompt.models.frozen import PixelTransform, architecture, fingerprint
from mmprompt.models.sites import LM_INPUT, Insert, Site, Vectors, vectors_of


class TextDecoder(Protocol):
    """What a captioner asks of a library's decoder. Rows of one call are equally long; there is no padding.

    Attributes:
        width: D of token embeddings, and of vectors at `lm.input`.
        vocabulary_size: V.
        start_ids: tokens before the prompt, one or more; end_id: the token after the last word.
        budget: slots that prompt and caption, end included, may take together.
        kv_shape: blocks, key/value heads and width of a head for `lm.kv`; None where none can be inserted.
        slot: whether vectors of `lm.input` stand among the decoder's tokens or in an encoder's input.
    """

    width: int
    vocabulary_size: int
    start_ids: tuple[int, ...]
    end_id: int
    budget: int
    kv_shape: tuple[int, int, int] | None
    slot: Literal["decoder", "encoder"] = "decoder"

    def embed(self, token_ids: Tensor) -> Tensor:
        """Embed token ids [...], before positions are added: a new tensor [..., D]."""
        ...

    def open(self, features: Tensor, soft: Tensor | None) -> KVCache:
        """Read images [N, T, D'], with vectors [N, K, D] for the encoder's input where `slot` is `"encoder"`."""
        ...

    def run(self, kv_cache: KVCache, x: Tensor, /) -> tuple[Tensor, KVCache]:
        """Read further slots: embeddings [N, L, D] without positions to hidden states [N, L, D''].

        Both arguments are left as they are; the cache that is returned has these slots too.
        """
        ...

    def head(self, hidden: Tensor) -> Tensor:
        """Turn hidden states [..., D''] into logits [..., V]."""
        ...


@dataclass(frozen=True)
class CaptionTokenizer:
    """A library's tokenizer, reduced to captions: `encode` gives token ids without start or end."""

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]


def caption_tokenizer(tokenizer: Any) -> CaptionTokenizer:
    """Reduce a transformers tokenizer to captions."""
    return CaptionTokenizer(
        lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        lambda ids: tidy(tokenizer.decode(list(ids), skip_special_tokens=True)),
    )


def tidy(text: str) -> str:
    """Return a caption without the spaces that some tokenizers put before punctuation."""
    return " ".join(re.sub(r" ([.,!?:;])", r"\1", text).split())


def first_id(name: str, what: str, *values: int | Sequence[int] | None) -> int:
    """Return the first token that is known, for models that name several, or name them in several places."""
    for value in values:
        if isinstance(value, int):
            return value
        if value:
            return value[0]
    raise UserError(
        f"{name} names no {what} token in its configuration, but captions need one. "
        f"Write its id into generation_config.json or config.json."
    )


@dataclass(frozen=True)
class KnownImages:
    """Mean [D'] and covariance of image features, averaged over tokens, and the distance that makes a stranger.

    Distances are Mahalanobis (Lee et al. 2018, "A Simple Unified Framework for Detecting Out-of-Distribution Samples"):
    the length of a difference from the mean times `whitening` [D', D'].
    """

    mean: Tensor
    whitening: Tensor
    limit: Tensor

    def distances(self, features: Tensor) -> Tensor:
        """Return the distance [B] of images with features [B, T, D']."""
        difference = features.mean(1).float().cpu() - self.mean
        return (difference @ self.whitening.T).norm(dim=1)

    def strangers(self, features: Tensor) -> Tensor:
        """Return which images of features [B, T, D'] are unlike those that were learned from: [B] bool."""
        return self.distances(features) > self.limit

    @classmethod
    def load(cls, path: Path) -> KnownImages:
        """Read a file of the three tensors, as scripts/pretrain_tiny_captioner.py writes it."""
        return cls(**{name: value.float() for name, value in read_tensors(path).items()})


@dataclass(frozen=True)
class State:
    """A batch of captions under way: what was read, the logits [N, V] of the next token, and what changes layers."""

    kv_cache: KVCache
    logits: Tensor
    changes: Mapping[Site, Change] = field(default_factory=dict)

    def select(self, rows: Tensor) -> State:
        """Return the given rows [N'], each as often as it is named."""
        return State(self.kv_cache.select(rows), self.logits.index_select(0, rows), self.changes)


class FrozenCaptioner:
    """A frozen image encoder, from pixels [B, 3, H, W] to image features [B, T, D'], and a frozen text decoder.

    Attributes:
        name: what `load_captioner` takes to get it again.
        model: all frozen weights; `fingerprint` is the hex SHA-256 over them, `architecture` over what else
            decides what is computed.
        encoder_fingerprint: that of a dual encoder whose image tower this captioner sees with, "" for none.
        pixels: the test transform of the image encoder.
        known_images: what images it was trained on, None where that is not known.
        device, dtype: where the weights live and compute.
    """

    adapts_head = True

    def __init__(
        self,
        name: str,
        model: nn.Module,
        encode: Callable[[Tensor], Tensor],
        decoder: TextDecoder,
        tokenizer: CaptionTokenizer,
        pixels: PixelTransform,
    ) -> None:
        self.name, self.model = name, model
        self.decoder, self.tokenizer, self.pixels = decoder, tokenizer, pixels
        self._encode = encode
        self.fingerprint, self.architecture = fingerprint(model), architecture(model)
        self.encoder_fingerprint = ""
        self.known_images: KnownImages | None = None
        first = next(model.parameters())
        self.device, self.dtype = first.device, first.dtype
        self.transform = pixels.text

    def __repr__(self) -> str:
        return f"<FrozenCaptioner {self.name!r}: {self.device}, {self.dtype}>"

    def compute_fingerprint(self) -> str:
        """Return the fingerprint of the weights as they are now, to compare with `fingerprint`."""
        return fingerprint(self.model)

    def preprocess(self, image: Image.Image) -> Tensor:
        """Apply the test transform to one RGB image: [3, H, W] float32."""
        return self.pixels.apply(image)

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Encode normalised pixels [B, 3, H, W]: image features [B, T, D']."""
        return self._encode(images.to(self.device, self.dtype))

    @cached_property
    def image_shape(self) -> tuple[int, int]:
        """T and D' of the image features."""
        size = self.pixels.size
        n_tokens, width = self.encode_image(torch.zeros(1, 3, size, size)).shape[1:]
        return n_tokens, width

    def open(self, features: Tensor) -> KVCache:
        """Read the images [N, T, D'] once, for any number of captions, prompts and steps.

        Where the decoder's prompt stands in an encoder, nothing can be read without it: the features are kept.
        """
        if self.decoder.slot == "encoder":
            return KVCache(states=features)
        return self.decoder.open(features, None)

    def prefill(self, kv_cache: KVCache, inserts: Mapping[Site, Insert]) -> State:
        """Read the start tokens and a prompt after the N images of `open`; {} for none.

        Vectors, of `lm.input` and `lm.kv[i]`, are shared [M, ...] or of scope `"sample"` [N, M, ...]. Low-rank terms
        change what is read after the image, which the frozen layers read.
        """
        vectors, changes = vectors_of(inserts), changes_of(inserts)
        self.check_inserts(inserts)
        soft = None if LM_INPUT not in vectors else vectors[LM_INPUT].values.expand(len(kv_cache), -1, -1)
        if self.decoder.slot == "encoder":
            assert kv_cache.states is not None, "an encoder's cache holds image features"
            kv_cache = self.decoder.open(kv_cache.states, soft)
        kv_cache = self._insert(kv_cache, vectors)
        start_ids = torch.tensor([self.decoder.start_ids], device=self.device).expand(len(kv_cache), -1)
        with self._changed(changes):
            x = self.decoder.embed(start_ids)
            if soft is not None and self.decoder.slot == "decoder":
                x = torch.cat([x, soft.to(x.dtype)], dim=1)
            hidden, kv_cache = self.decoder.run(kv_cache, x)
            return State(kv_cache, self.decoder.head(hidden[:, -1]), changes)

    def step(self, state: State, token_ids: Tensor) -> State:
        """Read one more token [N] of every caption."""
        with self._changed(state.changes):
            hidden, kv_cache = self.decoder.run(state.kv_cache, self.decoder.embed(token_ids[:, None]))
            return State(kv_cache, self.decoder.head(hidden[:, -1]), state.changes)

    def _changed(self, changes: Mapping[Site, Change]) -> AbstractContextManager[None]:
        return changed(self.lm, changes) if changes else contextlib.nullcontext()

    @property
    def lm(self) -> Any:
        """The causal language model that is the decoder, for what changes its layers; no other kind has one."""
        if isinstance(self.decoder, CausalReader):
            return self.decoder.lm
        raise UserError(
            f"{self.name} has no causal language model for its decoder, so it takes no low-rank terms. "
            "Use prompt-tuning."
        )

    def logits(
        self, kv_cache: KVCache, inserts: Mapping[Site, Insert], token_ids: Tensor, wanted: Tensor | None = None
    ) -> Tensor:
        """Compute the logits [N, L, V] that predict captions [N, L], ends included, after N rows of `open`.

        Captions are padded behind with any token; `wanted` [N, L] bool are the tokens whose logits are asked for alone,
        as [sum(wanted), V] in row order.
        """
        return self._logits_after(self.prefill(kv_cache, inserts), token_ids, wanted)

    def _logits_after(self, state: State, token_ids: Tensor, wanted: Tensor | None) -> Tensor:
        """Compute the same from captions under way; the state's rows may be one image's many times over."""
        first = state.logits[:, None]  # [N, 1, V]
        if token_ids.shape[1] == 1:
            return first if wanted is None else first[wanted]
        with self._changed(state.changes):
            hidden, _ = self.decoder.run(state.kv_cache, self.decoder.embed(token_ids[:, :-1]))
            if wanted is None:
                return torch.cat([first, self.decoder.head(hidden)], dim=1)
            # one row a token that is asked for: the first tokens' logits are there already, the others are computed
            found = torch.cat([state.logits[wanted[:, 0]], self.decoder.head(hidden[wanted[:, 1:]])])
        is_first = wanted.nonzero()[:, 1] == 0
        return found[torch.cat([is_first.nonzero()[:, 0], (~is_first).nonzero()[:, 0]]).argsort()]

    def log_probs(
        self, kv_cache: KVCache, inserts: Mapping[Site, Insert], captions: Sequence[Sequence[tuple[int, ...]]]
    ) -> Tensor:
        """Compute the log-probability [K] of each token of given captions, caption after caption, for training.

        Each row of `open` has one or more captions, each with its end; they share the row where the decoder can read
        them so. No gradient flows back through what was read of the images.
        """
        if isinstance(self.decoder, CausalReader) and self.decoder.packs:
            vectors, changes = vectors_of(inserts), changes_of(inserts)
            self.check_inserts(inserts)
            kv_cache = self._insert(kv_cache, vectors)
            soft = vectors.get(LM_INPUT)
            n_soft = 0 if soft is None else soft.n_vectors
            slots = (*self.decoder.start_ids, *(-1 - place for place in range(n_soft)))
            rows = [[row] for row in range(len(captions))]
            packed = pack([Question(slots, tuple(some)) for some in captions], rows, kv_cache.n_read, self.device)
            with self._changed(changes):
                logits = self.decoder.head(self.decoder.read(kv_cache, packed, soft))
            return logits.float().log_softmax(-1)[packed.at, packed.tokens]
        rows_of = torch.tensor([row for row, some in enumerate(captions) for _ in some], device=self.device)
        flat = [caption for some in captions for caption in some]
        length = max(map(len, flat))
        ids = torch.tensor([[*ids, *[self.decoder.end_id] * (length - len(ids))] for ids in flat], device=self.device)
        lengths = torch.tensor([[len(ids)] for ids in flat], device=self.device)
        wanted = torch.arange(length, device=self.device) < lengths
        state = self.prefill(kv_cache, inserts)
        read = state.kv_cache.select_after(kv_cache, rows_of)
        state = State(read, state.logits.index_select(0, rows_of), state.changes)
        log_probs = self._logits_after(state, ids, wanted).float().log_softmax(-1)
        return log_probs.gather(1, ids[wanted][:, None])[:, 0]

    def _insert(self, kv_cache: KVCache, vectors: Mapping[Site, Vectors]) -> KVCache:
        given = keys_values(vectors, self.decoder.kv_shape, self.dtype)
        return kv_cache.insert(given) if given else kv_cache

    def check_inserts(self, inserts: Mapping[Site, Insert]) -> None:
        """Refuse what this captioner cannot take; see `models.decoder.inserts`."""
        check_vectors(self.name, self.decoder, vectors_of(inserts))
        changes = changes_of(inserts)
        if changes:
            check_changes(self.name, self.lm, changes)


class PrefixDecoder(CausalReader):
    """transformers' causal language model behind a mapper from image features [N, T, D'] to its embeddings [N, T', D].

    It reads image vectors as a prefix (Mokady et al. 2021, "ClipCap"; Liu et al. 2023, "Visual Instruction Tuning"),
    then the start token, a prompt and the caption. Any `...ForCausalLM` that keeps keys and values will do.
    """

    slot: Literal["decoder", "encoder"] = "decoder"

    def __init__(self, lm: Any, mapper: nn.Module, start_id: int, end_id: int, n_image: int) -> None:
        super().__init__(lm)
        self.mapper, self.n_image = mapper, n_image
        self.start_ids: tuple[int, ...] = (start_id,)
        self.end_id = end_id
        self.budget = self.n_positions - n_image - 1

    def open(self, features: Tensor, soft: Tensor | None) -> KVCache:
        """Read the image prefix."""
        return self.run(KVCache(), self.mapper(features))[1]
