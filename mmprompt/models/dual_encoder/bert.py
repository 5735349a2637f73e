"""Reads the BERT-like text towers that open_clip takes from transformers (`hf_model_name`): post-norm, bidirectional.

Padding is masked there, and a text is the mean of its slots, so that no view needs padding. The projection behind that
may be a `SoftmaxProjection`, which open_clip does not have.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from open_clip.hf_model import HFTextEncoder, MeanPooler
from torch import Tensor, nn
from transformers import BertModel, RobertaModel, XLMRobertaModel

from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.forward.views import BlockView, Frame, TextView, unchanged

KNOWN = (BertModel, RobertaModel, XLMRobertaModel)


class SoftmaxProjection(nn.Module):
    """A projection of texts [N, D] to [N, E]: learned values, averaged by the softmax of a text's scores.

    With the texts of classes as weights of the scores and images' places as values this is the kernel regression of
    Nadaraya (1964) and Watson (1964) with the kernel `exp(w · x)`; here both are learned from there.

    Args:
        width, n_values, embed_dim: D, the number of values, E.
    """

    def __init__(self, width: int, n_values: int, embed_dim: int) -> None:
        super().__init__()
        self.scores = nn.Linear(width, n_values)
        self.values = nn.Linear(n_values, embed_dim, bias=False)

    def forward(self, texts: Tensor) -> Tensor:
        """Project texts of any norm."""
        return self.values(self.scores(F.normalize(texts, dim=-1)).softmax(dim=-1))


def read_bert(tower: HFTextEncoder, frame: Frame) -> TextView:
    """Read a tower; one of another class, or one that is pooled otherwise, is refused by its name."""
    inner: Any = tower.transformer
    encoders = "a BertModel, RobertaModel or XLMRobertaModel that is no decoder"
    for part, is_known, expected in (
        (inner, type(inner) in KNOWN and not inner.config.is_decoder, encoders),
        (tower.pooler, type(tower.pooler) is MeanPooler, "a MeanPooler"),
    ):
        if not is_known:
            raise UserError(
                f"the text tower has a {type(part).__name__}, but {expected} was expected. "
                "Use a model such as open_clip:roberta-ViT-B-32/laion2b_s12b_b32k."
            )
    if frame.pad_id != inner.config.pad_token_id:
        raise UserError(
            f"the text tower masks token {inner.config.pad_token_id}, but its tokenizer pads with {frame.pad_id}. "
            "Use the tokenizer that the model was trained with."
        )
    embeddings = inner.embeddings
    # RoBERTa counts its positions from behind the padding's.
    first = 0 if isinstance(inner, BertModel) else inner.config.pad_token_id + 1
    return TextView(
        token_embedding=embeddings.word_embeddings,
        read_position=lambda: (
            embeddings.position_embeddings.weight[first:] + embeddings.token_type_embeddings.weight[0]
        ),
        blocks=tuple(map(read_block, inner.encoder.layer)),
        final_norm=unchanged,
        project=tower.proj,
        is_causal=False,
        pooling="mean",
        frame=frame,
        pre_norm=embeddings.LayerNorm,
    )


def read_block(layer: Any) -> BlockView:
    """Read one layer; its parts have the same names in all of the known classes."""
    attention, joined = layer.attention.self, layer.attention.output

    def mlp(x: Tensor) -> Tensor:
        return layer.output.dense(layer.intermediate(x))

    return BlockView(
        norm1=joined.LayerNorm,
        norm2=layer.output.LayerNorm,
        project=lambda x: (attention.query(x), attention.key(x), attention.value(x)),
        project_query=attention.query,
        project_key_value=lambda x: (attention.key(x), attention.value(x)),
        out_proj=joined.dense,
        mlp=mlp,
        n_heads=attention.num_attention_heads,
        is_post_norm=True,
    )
