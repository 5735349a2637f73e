"""A plain causal language model as the decoder of a captioner: it reads image vectors as a prefix (Mokady et al. 2021,
"ClipCap"; Liu et al. 2023, "Visual Instruction Tuning"), then the start token, a prompt and the caption.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from mmprompt.models.decoder.kv_cache import KVCache
from mmprompt.models.decoder.reader import CausalReader


class PrefixDecoder(CausalReader):
    """transformers' causal language model behind a mapper from image features to its embeddings.

    Args:
        lm: any `...ForCausalLM`.
        mapper: [N, T, D'] to [N, T', D].
        start_id, end_id: the tokens around a caption.
        n_image: T', the slots of an image.
        is_mapper_trained: whether captions can be expected of it already.
    Raises:
        UserError: the model scales its logits, or keeps no keys and values.
    """

    slot: Literal["decoder", "encoder"] = "decoder"

    def __init__(
        self, lm: Any, mapper: nn.Module, start_id: int, end_id: int, n_image: int, is_mapper_trained: bool = True
    ) -> None:
        super().__init__(lm)
        self.mapper, self.is_mapper_trained = mapper, is_mapper_trained
        self.start_ids: tuple[int, ...] = (start_id,)
        self.end_id = end_id
        self.budget = self.n_positions - n_image - 1

    def open(self, features: Tensor, soft: Tensor | None) -> KVCache:
        """Read the image prefix."""
        return self.run(KVCache(), self.mapper(features))[1]
