"""The procedure of the published code in a few lines: every prompt at full length, through the model's own blocks.

Written after the text encoder and prompt learner of CoOp (Zhou et al. 2022a), the loop over images of CoCoOp
(Zhou et al. 2022b) and the deep prompts of MaPLe (Khattak et al. 2023). The weights are frozen; autograd goes through.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def class_features(
    model: nn.Module, token_ids: Tensor, ctx_index: Tensor, ends: Tensor, ctx: Tensor, deep: Mapping[int, Tensor]
) -> Tensor:
    """Unit features [C, E] of an open_clip `CLIP`, from padded token ids [C, 77] and the places of the end tokens [C].

    `ctx_index` [C, 77] says which vector of `ctx` [M, D] or [C, M, D] stands in a slot, -1 for none; `deep` holds, by
    layer, [M, D] in place of the context's slots at its input.
    """
    x = put(model.token_embedding(token_ids), ctx_index, ctx) + model.positional_embedding
    for layer, block in enumerate(model.transformer.resblocks):
        if layer in deep:
            x = put(x, ctx_index, deep[layer])
        x = block(x, attn_mask=model.attn_mask)
    x = model.ln_final(x)
    return F.normalize(x[torch.arange(len(x)), ends] @ model.text_projection, dim=-1)


def put(x: Tensor, ctx_index: Tensor, ctx: Tensor) -> Tensor:
    """The context vectors in their slots."""
    ctx = ctx.expand(len(x), -1, -1)  # [C, M, D]
    spread = ctx.gather(1, ctx_index.clamp(min=0)[..., None].expand(-1, -1, ctx.shape[-1]))
    return torch.where(ctx_index[..., None] >= 0, spread, x)
