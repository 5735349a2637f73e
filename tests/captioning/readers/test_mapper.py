"""Mappers: shapes, what they depend on, and settings that cannot be."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmprompt.captioning.readers.load import MAPPERS, MapperSettings, new_mapper
from mmprompt.errors import UserError

N, IMAGE_WIDTH, WIDTH = 3, 12, 16


def small(kind: str, n_prefix: int | None = 5) -> nn.Module:
    counts = None if kind == "linear" else n_prefix, 6 if kind == "concepts" else None
    return new_mapper(MapperSettings(kind, IMAGE_WIDTH, WIDTH, *counts)).double().eval()


def features(n_tokens: int) -> torch.Tensor:
    return torch.randn(N, n_tokens, IMAGE_WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_a_linear_mapper_norms_and_maps_every_token() -> None:
    mapper = small("linear")
    norm, linear = mapper
    x = features(7)
    centred = x - x.mean(-1, keepdim=True)
    expected = linear(norm.weight * centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() + norm.bias)
    assert torch.allclose(mapper(x), expected, rtol=1e-10, atol=1e-12)
    assert list(mapper.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_an_mlp_makes_vectors_of_the_pooled_feature() -> None:
    mapper = small("mlp")
    x = features(1)
    weights = dict(mapper.named_parameters())
    hidden = torch.tanh(x[:, 0] @ weights["1.weight"].T + weights["1.bias"])
    assert hidden.shape == (N, 5 * WIDTH // 2)
    expected = (hidden @ weights["3.weight"].T + weights["3.bias"]).view(N, 5, WIDTH)
    assert torch.allclose(mapper(x), expected, rtol=1e-10, atol=1e-12)


def plain_transformer(
    weights: dict[str, torch.Tensor], image: torch.Tensor, n_prefix: int, n_heads: int
) -> torch.Tensor:
    """Pre-norm blocks over one image's vectors and the constants, written out: [D'] to [M, D]."""
    spread = (weights["spread.weight"] @ image + weights["spread.bias"]).view(n_prefix, WIDTH)
    x = torch.cat([spread, weights["constants"]])
    for layer in range(8):
        own = {name.split(f"layers.{layer}.")[1]: w for name, w in weights.items() if f"layers.{layer}." in name}
        normed = F.layer_norm(x, (WIDTH,), own["norm1.weight"], own["norm1.bias"])
        query, key, value = (normed @ own["self_attn.in_proj_weight"].T).chunk(3, -1)
        heads = []
        for head in range(n_heads):
            part = slice(head * WIDTH // n_heads, (head + 1) * WIDTH // n_heads)
            scores = query[:, part] @ key[:, part].T / math.sqrt(WIDTH // n_heads)
            heads.append(scores.softmax(-1) @ value[:, part])
        x = x + torch.cat(heads, -1) @ own["self_attn.out_proj.weight"].T + own["self_attn.out_proj.bias"]
        normed = F.layer_norm(x, (WIDTH,), own["norm2.weight"], own["norm2.bias"])
        hidden = (normed @ own["linear1.weight"].T + own["linear1.bias"]).relu()
        x = x + hidden @ own["linear2.weight"].T + own["linear2.bias"]
    return x[n_prefix:]


@pytest.mark.parametrize("is_training", [True, False])
def test_a_transformer_reads_image_and_constants_together(is_training: bool) -> None:
    mapper = small("transformer", 3).train(is_training)
    x = features(1)
    weights = {name: value.detach() for name, value in mapper.named_parameters()}
    expected = torch.stack([plain_transformer(weights, row, 3, 8) for row in x[:, 0]])
    with torch.set_grad_enabled(is_training):
        assert torch.allclose(mapper(x), expected, rtol=1e-9, atol=1e-10)


def test_a_transformer_has_as_many_parameters_as_clipcap() -> None:
    mapper = new_mapper(MapperSettings("transformer", 512, 768, 10))
    assert sum(parameter.numel() for parameter in mapper.parameters()) == 41_745_408  # Mokady et al., 10 and 10


@pytest.mark.parametrize("kind", MAPPERS)
def test_every_weight_of_a_mapper_learns_and_rows_do_not_see_one_another(kind: str) -> None:
    mapper, x = small(kind), features(7 if kind == "linear" else 1)
    found = mapper(x)
    assert found.shape == (N, 7 if kind == "linear" else 5, WIDTH)
    assert torch.allclose(found[1:2], mapper(x[1:2]), rtol=1e-10, atol=1e-12)
    found.square().sum().backward()
    assert all(bool(parameter.grad.abs().max() > 0) for parameter in mapper.parameters())


def test_a_seed_gives_the_same_mapper_and_leaves_random_numbers_alone() -> None:
    settings = MapperSettings("transformer", IMAGE_WIDTH, WIDTH, 2)
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    first, second, other = new_mapper(settings), new_mapper(settings), new_mapper(settings, seed=2)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.constants, second.constants)
    assert not torch.equal(first.constants, other.constants)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (("mlp", 12, 16, 0), "n_prefix is 0, but it must be a whole number, 1 or more."),
        (("mlp", 12, "16", 3), "width is '16', but it must be a whole number, 1 or more."),
        (("concepts", 12, 16, 3), "n_concepts is None, but a mapper of kind concepts has some, and no other has."),
        (("mlp", 12, 16, 3, 4), "n_concepts is 4, but a mapper of kind concepts has some, and no other has."),
        (("convolution", 12, 16, 3), "there is no kind of mapper named 'convolution'."),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: tuple, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        MapperSettings(*settings)
    assert expected in str(caught.value)
