"""A frozen captioner: an image encoder and a text decoder, with vectors of a prompt at the decoder's own site.

One row of the decoder reads: the image, learned keys and values (`lm.kv[i]`), the start tokens, learned vectors
(`lm.input`), and the caption. Vectors after the start steer better than before it, and the image, read first, can be
kept for every caption and every step of a training. Decoders whose prompt belongs into an encoder's input (T5) take it
there. This file knows neither libraries nor search; each library's decoder is a `TextDecoder`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from mmprompt.models.decoder.kv_cache import KVCache
from mmprompt.models.decoder.packing import Question, pack
from mmprompt.models.decoder.reader import CausalReader
from mmprompt.models.decoder.vectors import LM_INPUT, check_vectors, keys_values
from mmprompt.models.frozen import PixelTransform, fingerprint
from mmprompt.models.sites import Site, Vectors


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
    slot: Literal["decoder", "encoder"]

    def embed(self, token_ids: Tensor) -> Tensor:
        """The embeddings [..., D] of token ids [...], before positions are added; a new tensor."""
        ...

    def open(self, features: Tensor, soft: Tensor | None) -> KVCache:
        """Read the images.

        Args:
            features: [N, T, D'] of the image encoder.
            soft: [N, K, D] vectors for the encoder's input; None where `slot` is `"decoder"`.
        """
        ...

    def run(self, memory: KVCache, x: Tensor) -> tuple[Tensor, KVCache]:
        """Read further slots.

        Args:
            memory: what was read before; left as it is.
            x: [N, L, D] embeddings without positions; left as they are.
        Returns:
            [N, L, D''] hidden states, and the memory with these slots.
        """
        ...

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D''] to logits [..., V]."""
        ...


@dataclass(frozen=True)
class CaptionTokenizer:
    """A library's tokenizer, reduced to captions.

    Args:
        encode: a caption to token ids, without start or end.
        decode: token ids to a caption as people read it.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class State:
    """A batch of captions under way.

    Args:
        memory: what was read.
        logits: [N, V] of the next token.
    """

    memory: KVCache
    logits: Tensor

    def select(self, rows: Tensor) -> State:
        """Return the given rows [N'], each as often as it is named."""
        return State(self.memory.select(rows), self.logits.index_select(0, rows))

    def fork(self, images: KVCache, rows: Tensor) -> State:
        """Return the same for training: no gradient flows back through what was read of the images [N rows]."""
        return State(self.memory.select_after(images, rows), self.logits.index_select(0, rows))


class FrozenCaptioner:
    """A frozen image encoder and a frozen text decoder.

    Args:
        name: what `load_captioner` takes to get it again.
        model: all frozen weights, for the fingerprint.
        encode: pixels [B, 3, H, W] to image features [B, T, D'].
        decoder: the text decoder.
        tokenizer: of the captions.
        pixels: the test transform of the image encoder.

    Attributes:
        fingerprint: hex SHA-256 over the weights.
        encoder_fingerprint: that of a dual encoder whose image tower this captioner sees with, "" for none.
        device, dtype: where they live and compute.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        encode: Callable[[Tensor], Tensor],
        decoder: TextDecoder,
        tokenizer: CaptionTokenizer,
        pixels: PixelTransform,
    ) -> None:
        self.name = name
        self.model = model
        self.decoder = decoder
        self.tokenizer = tokenizer
        self.pixels = pixels
        self._encode = encode
        self.fingerprint = fingerprint(model)
        self.encoder_fingerprint = ""
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

    def prefill(self, memory: KVCache, vectors: Mapping[Site, Vectors]) -> State:
        """Read the start tokens and a prompt after the images.

        Args:
            memory: of `open`, N rows.
            vectors: `lm.input` and `lm.kv[i]`, shared [M, ...] or of scope `"sample"` [N, M, ...]; {} for none.
        """
        soft = None if LM_INPUT not in vectors else vectors[LM_INPUT].values.expand(len(memory), -1, -1)
        if self.decoder.slot == "encoder":
            assert memory.states is not None, "an encoder's memory holds image features"
            memory = self.decoder.open(memory.states, soft)
        memory = self._insert(memory, vectors)
        x = self.decoder.embed(torch.tensor([self.decoder.start_ids], device=self.device).expand(len(memory), -1))
        if soft is not None and self.decoder.slot == "decoder":
            x = torch.cat([x, soft.to(x.dtype)], dim=1)
        hidden, memory = self.decoder.run(memory, x)
        return State(memory, self.decoder.head(hidden[:, -1]))

    def step(self, state: State, token_ids: Tensor) -> State:
        """Read one more token [N] of every caption."""
        hidden, memory = self.decoder.run(state.memory, self.decoder.embed(token_ids[:, None]))
        return State(memory, self.decoder.head(hidden[:, -1]))

    def logits(
        self, memory: KVCache, vectors: Mapping[Site, Vectors], token_ids: Tensor, wanted: Tensor | None = None
    ) -> Tensor:
        """Compute the logits that predict each token of given captions.

        Args:
            memory: of `open`, N rows.
            vectors: as in `prefill`.
            token_ids: [N, L], ends included, padded behind with any token.
            wanted: [N, L] bool, the tokens whose logits are asked for; None for all.
        Returns:
            [N, L, V], or [sum(wanted), V] in row order.
        """
        return self.logits_after(self.prefill(memory, vectors), token_ids, wanted)

    def logits_after(self, state: State, token_ids: Tensor, wanted: Tensor | None = None) -> Tensor:
        """Compute the same from captions under way; the state's rows may be one image's many times over.

        Args:
            state: of `prefill`, N rows.
            token_ids: [N, L], as in `logits`.
            wanted: [N, L] bool, as in `logits`.
        """
        first = state.logits[:, None]  # [N, 1, V]
        if token_ids.shape[1] == 1:
            return first if wanted is None else first[wanted]
        hidden, _ = self.decoder.run(state.memory, self.decoder.embed(token_ids[:, :-1]))
        if wanted is None:
            return torch.cat([first, self.decoder.head(hidden)], dim=1)
        # one row a token that is asked for: the first tokens' logits are there already, the others are computed
        found = torch.cat([state.logits[wanted[:, 0]], self.decoder.head(hidden[wanted[:, 1:]])])
        is_first = wanted.nonzero()[:, 1] == 0
        return found[torch.cat([is_first.nonzero()[:, 0], (~is_first).nonzero()[:, 0]]).argsort()]

    def log_probs(
        self, memory: KVCache, vectors: Mapping[Site, Vectors], captions: Sequence[Sequence[tuple[int, ...]]]
    ) -> Tensor:
        """Compute the log-probability of each token of given captions, for training.

        Captions of one image share a row where the decoder can read them so. No gradient flows back through what was
        read of the images.

        Args:
            memory: of `open`, N rows.
            vectors: as in `prefill`.
            captions: of each row, one or more, each with its end.
        Returns:
            [K] float32, caption after caption.
        """
        if isinstance(self.decoder, CausalReader) and self.decoder.packs:
            memory = self._insert(memory, vectors)
            soft = vectors.get(LM_INPUT)
            n_soft = 0 if soft is None else soft.n_vectors
            slots = (*self.decoder.start_ids, *(-1 - place for place in range(n_soft)))
            rows = [[row] for row in range(len(captions))]
            packed = pack([Question(slots, tuple(some)) for some in captions], rows, memory.n_read, self.device)
            logits = self.decoder.head(self.decoder.read(memory, packed, soft))
            return logits.float().log_softmax(-1)[packed.at, packed.tokens]
        rows_of = torch.tensor([row for row, some in enumerate(captions) for _ in some], device=self.device)
        flat = [caption for some in captions for caption in some]
        length = max(map(len, flat))
        ids = torch.tensor([[*ids, *[self.decoder.end_id] * (length - len(ids))] for ids in flat], device=self.device)
        wanted = torch.arange(length, device=self.device) < torch.tensor([[len(ids)] for ids in flat]).to(self.device)
        state = self.prefill(memory, vectors).fork(memory, rows_of)
        log_probs = self.logits_after(state, ids, wanted).float().log_softmax(-1)
        return log_probs.gather(1, ids[wanted][:, None])[:, 0]

    def _insert(self, memory: KVCache, vectors: Mapping[Site, Vectors]) -> KVCache:
        self.check_vectors(vectors)
        given = keys_values(vectors, self.decoder.kv_shape, self.dtype)
        return memory.insert(given) if given else memory

    def check_vectors(self, vectors: Mapping[Site, Vectors]) -> None:
        """Refuse vectors that this captioner cannot take; see `models.decoder.vectors`."""
        check_vectors(self.name, self.decoder, vectors)
