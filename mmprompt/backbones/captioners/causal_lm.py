"""A plain causal language model as the decoder of a captioner: it reads image vectors as a prefix (Mokady et al. 2021,
"ClipCap"; Liu et al. 2023, "Visual Instruction Tuning"), then the start token, a prompt and the caption.
"""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmprompt.backbones.captioners.pretrained import first_id
from mmprompt.backbones.language.hf_cache import cache_argument, from_cache, to_cache
from mmprompt.backbones.language.memory import Memory
from mmprompt.errors import UserError

UNLIMITED = 1024
"""Slots of a model whose positions have no end."""


class PrefixDecoder:
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
        config = lm.config.get_text_config()
        self.lm, self.mapper, self.is_mapper_trained = lm, mapper, is_mapper_trained
        # OPT's embeddings can be narrower than its blocks: the width of a prompt is theirs, that of keys the blocks'.
        self.vocabulary_size, self.width = lm.get_input_embeddings().weight.shape
        self.start_ids: tuple[int, ...] = (start_id,)
        self.end_id = end_id
        self.budget = (getattr(config, "max_position_embeddings", None) or UNLIMITED) - n_image - 1
        self._takes_places = "position_ids" in inspect.signature(lm.base_model.forward).parameters
        self.kv_shape: tuple[int, int, int] | None = self._measure()

    def embed(self, token_ids: Tensor) -> Tensor:
        """Token embeddings, as the model scales them."""
        return self.lm.get_input_embeddings()(token_ids)

    def open(self, features: Tensor, soft: Tensor | None) -> Memory:
        """Read the image prefix."""
        return self.run(Memory(), self.mapper(features))[1]

    def run(self, memory: Memory, x: Tensor) -> tuple[Tensor, Memory]:
        """Read further slots."""
        places = torch.arange(memory.n_read, memory.n_read + x.shape[1], device=x.device)
        cache = to_cache(memory.own)
        out = self.lm.base_model(
            inputs_embeds=x,
            use_cache=True,
            **({"position_ids": places.expand(x.shape[0], -1)} if self._takes_places else {}),
            **cache_argument(self.lm.base_model, cache),
        )
        return out.last_hidden_state, Memory(from_cache(cache), n_read=memory.n_read + x.shape[1])

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states to logits."""
        return self.lm.get_output_embeddings()(hidden)

    @torch.no_grad()
    def _measure(self) -> tuple[int, int, int] | None:
        """The shape of keys and values, once reading slot by slot is seen to give the model's own logits."""
        x = self.embed(torch.tensor([[*self.start_ids, self.end_id, *self.start_ids]], device=self.lm.device))
        try:
            expected = self.lm(inputs_embeds=x, use_cache=False).logits
            first, memory = self.run(Memory(), x[:, :2])
            second, memory = self.run(memory, x[:, 2:])
            found = self.head(torch.cat([first, second], dim=1))
            is_same = torch.allclose(found, expected, rtol=1e-2, atol=1e-2 * expected.abs().max().item())
        except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError):
            is_same = False
        if not is_same:
            raise UserError(
                f"the language model, a {type(self.lm).__name__}, cannot be read slot by slot, but a decoder with keys "
                "and values was expected. Use a model such as hf:gpt2, or of the OPT or Llama families."
            )
        shapes = {(len(memory.own), part.shape[1], part.shape[3]) for pair in memory.own for part in pair}
        return shapes.pop() if len(shapes) == 1 else None  # mode kv takes one shape for all blocks


def start_of(name: str, lm: Any, tokenizer: Any) -> int:
    """The token before a caption: the model's start, or its end where it has no start of its own."""
    starts = [getattr(place, "bos_token_id", None) for place in (tokenizer, lm.generation_config, lm.config)]
    ends = [getattr(place, "eos_token_id", None) for place in (tokenizer, lm.generation_config, lm.config)]
    return first_id(name, "start", *starts, *ends)


def end_of(name: str, lm: Any, tokenizer: Any) -> int:
    """The token after a caption."""
    places = (tokenizer, lm.generation_config, lm.config)
    return first_id(name, "end", *(getattr(place, "eos_token_id", None) for place in places))
