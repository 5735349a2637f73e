"""Sources that make what enters the sites: of others or the image, terms at projections and norms, weights, pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmprompt.core.learned import Given, Inserts, Source, random_vectors
from mmprompt.models.sites import Bottleneck, LowRank, NormDelta, PixelTerm, Site, Vectors, Weight


class MadePrefix(Source):
    """Keys and values of all blocks that one MLP makes (Li and Liang 2021, "Prefix-Tuning", section 4.3).

    Of each block there is a `start` [M, 2 H D/H] and the size of these numbers; `hidden` is the MLP's width.
    """

    start: Tensor
    units: Tensor

    def __init__(self, start: Sequence[Tensor], units: Sequence[Tensor], hidden: int) -> None:
        super().__init__()
        n_vectors, width = start[0].shape
        self.sites = tuple(Site("lm.kv", layer) for layer in range(len(start)))
        self.register_buffer("start", torch.cat(list(start), dim=1).float())
        self.register_buffer("units", torch.cat([unit.expand(width) for unit in units]).float())
        self.inputs = nn.Parameter(torch.randn(n_vectors, hidden))
        self.mlp = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh(), zero_linear(hidden, width * len(start)))

    def forward(self, given: Given) -> Inserts:
        """Give the keys and values of all blocks as they are now."""
        values = self.start + self.units * self.mlp(self.inputs)
        parts = values.chunk(len(self.sites), dim=1)
        return {site: Vectors(part) for site, part in zip(self.sites, parts, strict=True)}


class Conditioned(Source):
    """Context vectors plus a shift that a small network makes of the image (Zhou et al. 2022, "CoCoOp", section 3.2).

    Args:
        n_ctx: M.
        text_width: D.
        image_width: E; the hidden layer is 1/16 as wide, but has 8 units at least.
    """

    kind = "conditioned"
    needs_image = True

    def __init__(self, n_ctx: int, text_width: int, image_width: int) -> None:
        super().__init__()
        self.n_ctx, self.text_width, self.image_width = n_ctx, text_width, image_width
        self.sites = (Site("text"),)
        self.context = nn.Parameter(torch.zeros(n_ctx, text_width))
        hidden = max(8, image_width // 16)
        self.down, self.up = nn.Linear(image_width, hidden), nn.Linear(hidden, text_width)

    def start_from(self, values: Tensor, generator: torch.Generator) -> Conditioned:
        """Set the context to values [M, D] and draw the network."""
        self.context.data.copy_(values)
        draw_linear(self.down, generator)
        draw_linear(self.up, generator)
        return self

    def forward(self, given: Given) -> Inserts:
        """Give a context [B, M, D] for each image."""
        assert given.image_features is not None, "class features of a conditioned prompt are asked for with images"
        shift = self.up(self.down(given.image_features.to(self.context.dtype)).relu())  # [B, D]
        return {self.sites[0]: Vectors(self.context + shift[:, None], "sample")}


class Coupled(Source):
    """Vectors of several text layers, and a linear map of each to the image tower (Khattak et al. 2023, "MaPLe").

    Args:
        n_ctx: M.
        text_width, vision_width: D of either tower.
        depth: prompted layers of each, the input included.
    """

    def __init__(self, n_ctx: int, text_width: int, vision_width: int, depth: int) -> None:
        super().__init__()
        self.sites = tuple(Site(tower, layer) for tower in ("text", "vision") for layer in range(depth))
        self.vectors = nn.ParameterList(nn.Parameter(torch.zeros(n_ctx, text_width)) for _ in range(depth))
        self.maps: list[nn.Linear] = nn.ModuleList(  # type: ignore[assignment]
            nn.Linear(text_width, vision_width) for _ in range(depth)
        )

    def start_from(self, values: Tensor, generator: torch.Generator) -> Coupled:
        """Set the first layer's vectors [M, D], draw the others, and the maps; the deeper maps start as one."""
        self.vectors[0].data.copy_(values)
        for deeper in self.vectors[1:]:
            deeper.data.copy_(random_vectors(tuple(values.shape), generator))
        for layer in self.maps[:2]:
            draw_linear(layer, generator)
        for layer in self.maps[2:]:
            layer.load_state_dict(self.maps[1].state_dict())
        return self

    def forward(self, given: Given) -> Inserts:
        """Give the vectors of all layers of both towers."""
        inserts: Inserts = {Site("text", layer): Vectors(values) for layer, values in enumerate(self.vectors)}
        for layer, (values, to_vision) in enumerate(zip(self.vectors, self.maps, strict=True)):
            inserts[Site("vision", layer)] = Vectors(to_vision(values))
        return inserts


class LowRankTerms(Source):
    """Low-rank terms beside projections (Hu et al. 2022, "LoRA", section 4.1); they start as nothing.

    Args:
        places: names of sites, and the width of each projection, or how many numbers go in and come out.
        rank: R.
        scale: of the terms.
        dropout: share of what enters them that is dropped in training, 0..1.
        unit: what the matrices are learned in, so that one learning rate serves them and what is learned beside them.
        ratio: of the outer matrices' learning rate to the inner ones' (Hayou et al. 2024, "LoRA+").
    """

    kind = "low-rank"

    def __init__(
        self,
        places: Mapping[str, int | Sequence[int]],
        rank: int,
        scale: float = 1.0,
        dropout: float = 0.0,
        unit: float = 1.0,
        ratio: float = 1.0,
    ) -> None:
        super().__init__()
        self.places, self.rank, self.scale, self.dropout = dict(places), rank, scale, dropout
        self.unit, self.ratio = unit, ratio
        self.sites = tuple(Site.parse(place) for place in places)
        sizes = [(size, size) if isinstance(size, int) else size for size in places.values()]
        self.a = nn.ParameterList(nn.Parameter(torch.zeros(rank, n_in)) for n_in, _ in sizes)
        self.b = nn.ParameterList(nn.Parameter(torch.zeros(n_out, rank)) for _, n_out in sizes)

    def start_from(self, generator: torch.Generator) -> LowRankTerms:
        """Draw the inner matrices as a linear layer's weights; the outer ones stay zero."""
        for inner in self.a:
            bound = 1 / math.sqrt(inner.shape[1])
            inner.data.copy_(torch.empty(inner.shape).uniform_(-bound, bound, generator=generator) / self._inner)
        return self

    @property
    def _inner(self) -> float:
        """What the inner matrices are learned in."""
        return self.unit / self.ratio

    def settings(self) -> dict[str, Any]:
        """See `Source`."""
        made = super().settings()
        return {name: value for name, value in made.items() if name not in ("unit", "ratio") or value != 1.0}

    def forward(self, given: Given) -> Inserts:
        """Give a term for each place."""
        dropout = self.dropout if self.training else 0.0
        parts = zip(self.sites, self.a, self.b, strict=True)
        if self.unit == self.ratio == 1.0:
            return {site: LowRank(a, b, self.scale, dropout) for site, a, b in parts}
        return {site: LowRank(a * self._inner, b * self.unit, self.scale, dropout) for site, a, b in parts}


class Bottlenecks(Source):
    """Small networks behind sublayers (Houlsby et al. 2019, "Parameter-Efficient Transfer Learning", section 2.1).

    `places` are names of sites and the width of each sublayer, `hidden` is R.
    """

    kind = "adapters"

    def __init__(self, places: Mapping[str, int], hidden: int) -> None:
        super().__init__()
        self.places, self.hidden = dict(places), hidden
        self.sites = tuple(Site.parse(place) for place in places)
        self.down = nn.ModuleList(nn.Linear(width, hidden) for width in places.values())
        self.up = nn.ModuleList(nn.Linear(hidden, width) for width in places.values())

    def start_from(self, generator: torch.Generator) -> Bottlenecks:
        """Draw weights near zero, N(0, 0.01) cut at two deviations, and set biases to 0 (section 3.6)."""
        for layer in (*self.down, *self.up):
            nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02, generator=generator)
            nn.init.zeros_(layer.bias)
        return self

    def forward(self, given: Given) -> Inserts:
        """Give the network of each place."""
        parts = zip(self.sites, self.down, self.up, strict=True)
        return {site: Bottleneck(down.weight, down.bias, up.weight, up.bias) for site, down, up in parts}  # type: ignore[arg-type]


class NormDeltas(Source):
    """What is added to the weights and biases of layer norms, by site and width; it starts as nothing."""

    kind = "layer-norms"

    def __init__(self, places: Mapping[str, int]) -> None:
        super().__init__()
        self.places = dict(places)
        self.sites = tuple(Site.parse(place) for place in places)
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(width)) for width in places.values())
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(width)) for width in places.values())

    def forward(self, given: Given) -> Inserts:
        """Give what is added to each norm."""
        parts = zip(self.sites, self.weights, self.biases, strict=True)
        return {site: NormDelta(weight, bias) for site, weight, bias in parts}


class Weights(Source):
    """Weights that stand in place of a model's own, by site and shape; `unit` is what their numbers are learned in."""

    kind = "weights"

    def __init__(self, shapes: Mapping[str, Sequence[int]], unit: float = 1.0) -> None:
        super().__init__()
        self.shapes, self.unit = {name: list(shape) for name, shape in shapes.items()}, unit
        self.sites = tuple(Site.parse(name) for name in shapes)
        self.values = nn.ParameterList(nn.Parameter(torch.zeros(*shape)) for shape in shapes.values())

    def start_from(self, weights: Sequence[Tensor]) -> Weights:
        """Set the weights to others of their shapes."""
        for own, weight in zip(self.values, weights, strict=True):
            own.data.copy_(weight.detach().float() / self.unit)
        return self

    def forward(self, given: Given) -> Inserts:
        """Give the weights as they are now."""
        pairs = zip(self.sites, self.values, strict=True)
        return {site: Weight(own if self.unit == 1.0 else own * self.unit) for site, own in pairs}


class PixelFrame(Source):
    """Pixels around the edge of every image (Bahng et al. 2022, "Exploring Visual Prompts", section 3.2, "padding")."""

    kind = "pixel-frame"
    sites = (Site("vision", part="pixels"),)

    def __init__(self, image_size: int, width: int) -> None:
        super().__init__()
        self.image_size, self.width = image_size, width
        inner = image_size - 2 * width
        self.top, self.bottom = (nn.Parameter(torch.zeros(3, width, image_size)) for _ in range(2))
        self.left, self.right = (nn.Parameter(torch.zeros(3, inner, width)) for _ in range(2))

    def forward(self, given: Given) -> Inserts:
        """Give the frame as it is now, and nothing inside of it."""
        inner = self.left.new_zeros(3, self.left.shape[1], self.left.shape[1])
        middle = torch.cat([self.left, inner, self.right], dim=2)
        return {self.sites[0]: PixelTerm(torch.cat([self.top, middle, self.bottom], dim=1))}


class PixelPatch(Source):
    """A square of pixels on every image (Bahng et al. 2022, "Exploring Visual Prompts", section 3.2, "patch").

    Args:
        image_size: H = W of the backbone's input.
        width: of the square, in pixels.
        is_random: put it somewhere else at each step of training, and in the middle outside of it; else in the corner.
    """

    kind = "pixel-patch"
    sites = (Site("vision", part="pixels"),)

    def __init__(self, image_size: int, width: int, is_random: bool = False) -> None:
        super().__init__()
        self.image_size, self.width, self.is_random = image_size, width, is_random
        self.values = nn.Parameter(torch.zeros(3, width, width))

    def forward(self, given: Given) -> Inserts:
        """Give the square where it stands now."""
        room = self.image_size - self.width
        top, left = (room // 2, room // 2) if self.is_random else (0, 0)
        if self.is_random and self.training:
            top, left = torch.randint(room + 1, (2,)).tolist()
        return {self.sites[0]: PixelTerm(F.pad(self.values, (left, room - left, top, room - top)))}


def zero_linear(n_in: int, n_out: int) -> nn.Linear:
    """Make a linear layer that gives zeros before it learns."""
    layer = nn.Linear(n_in, n_out)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def draw_linear(layer: nn.Linear, generator: torch.Generator) -> None:
    """Draw a linear layer as torch does, but on the CPU, so that every device starts from the same bytes."""
    bound = 1 / math.sqrt(layer.in_features)
    for parameter in layer.parameters():
        parameter.data.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))


SOURCES: dict[str, Callable[..., Source]] = {
    kind.kind: kind for kind in (Conditioned, LowRankTerms, Bottlenecks, NormDeltas, Weights, PixelFrame, PixelPatch)
}
"""The kinds of sources that a prompt file may name, beside vectors; a source of your own is added here."""
