"""Image features from a frozen image tower with vectors inserted beside its patches.

The vectors of `vision.input` are appended after the patch tokens, without a position and before the tower's first
norm, those of `vision.layer[0]` after it; those of `vision.layer[i]` replace them at the input of block i; past the
last prompted layer they flow on. This is deep visual prompting (Jia et al. 2022, VPT-Deep); at `vision.input` it has
the form that Khattak et al. 2023 ("MaPLe") gave it for CLIP, in its published code. Layers below the first prompt keep
no graph, because nothing in them is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmprompt.errors import UserError, bad_value
from mmprompt.models.dual_encoder.forward.views import TensorMap, VisionView, adapted_blocks, moved_norm, unchanged
from mmprompt.models.sites import Insert, Site, Vectors, vectors_of

PRE_NORM, FINAL_NORM = Site("vision", part="pre_norm"), Site("vision", part="final_norm")

INPUT, NORMED = Site("vision"), Site("vision", 0, "normed")


@dataclass(frozen=True)
class OpaqueTower:
    """An image tower that is run as its library runs it, because its inside is no `VisionView`.

    Args:
        forward: pixels [B, 3, H, W] to raw features [B, E].
        part: the class that has no image tokens a prompt could join, for error texts.
        trunk: the part of `forward` before the projection, [B, 3, H, W] to [B, W], where it can be told apart.
        project: the rest of it, [B, W] to [B, E].
        raw_width: W, 0 where there is no such part.
    """

    forward: TensorMap
    part: str
    trunk: TensorMap = unchanged
    project: TensorMap = unchanged
    raw_width: int = 0


def encode_images(tower: VisionView | OpaqueTower, images: Tensor, inserts: Mapping[Site, Insert]) -> Tensor:
    """Return the raw image features [B, E] of a tower.

    Pooling sees the tower's own slots alone: an average or an attention pool reads the patches and never
    the prompts, which act on them through the blocks. Without inserts the result is the library's own.

    Args:
        tower: the view of its blocks, or its plain forward.
        images: [B, 3, H, W], normalised, on the tower's device and in its dtype.
        inserts: `"shared"` [M, D] or `"sample"` [B, M, D] vectors at vision sites, the same M at all of them; and
            what is learned inside its blocks or at its own norms.
    Raises:
        UserError: the tower has no image tokens, no such layer, another width, or M differs between sites.
    """
    if isinstance(tower, OpaqueTower):
        if inserts:
            raise UserError(
                f"visual prompts were given, but this image tower ({tower.part}) has no image tokens that a prompt can "
                "join. Use padding-prompt or patch-prompt, which learn pixels, a text prompt such as coop, or a "
                "backbone with a ViT image tower."
            )
        return tower.forward(images)
    prompts = prompts_by_site(tower, images.shape[0], vectors_of(inserts))
    x = tower.embed(images)  # [B, T, D]
    n_own = x.shape[1]
    if INPUT in prompts:
        x = with_prompts(x, n_own, prompts[INPUT])
    pre_norm, final_norm = (
        moved_norm(norm, site, inserts.get(site), tower.width)
        for norm, site in ((tower.pre_norm, PRE_NORM), (tower.final_norm, FINAL_NORM))
    )
    x = pre_norm(x)
    for layer, block in enumerate(adapted_blocks("vision", tower.blocks, tower.width, inserts)):
        site = Site("vision", layer) if layer else NORMED
        if site in prompts:
            x = with_prompts(x, n_own, prompts[site])
        x = block.whole(x)
    return tower.pool(final_norm, x[:, :n_own])


def encode_image_tokens(tower: VisionView | OpaqueTower, images: Tensor) -> Tensor:
    """Return what enters the last block of a tower: class token (if there is one) and patches [B, T, D].

    The last block's own output is trained for the pooled slot alone where a class token is read, so captioners are
    given what it attends to (as in Liu et al. 2023, "Visual Instruction Tuning", section 4.1: the grid features
    before the last layer). A tower without image tokens is refused.
    """
    if isinstance(tower, OpaqueTower):
        raise UserError(
            f"image tokens were asked for, but this image tower ({tower.part}) has none. "
            "Use its pooled features, as a mapper of kind mlp does, or a backbone with a ViT image tower."
        )
    x = tower.pre_norm(tower.embed(images))
    for block in tower.blocks[:-1]:
        x = block.whole(x)
    return x


def with_prompts(x: Tensor, n_own: int, prompts: Tensor) -> Tensor:
    """Put prompts [B, M, D] behind the tower's own slots [B, T, D], in place of any that stood there."""
    return torch.cat([x[:, :n_own], prompts.to(x.dtype)], dim=1)  # [B, T + M, D]


def prompts_by_site(view: VisionView, n_images: int, vectors: Mapping[Site, Vectors]) -> dict[Site, Tensor]:
    """Check the vectors against the tower and give each image its own: {site: [B, M, D]}."""
    counts = {site: given.n_vectors for site, given in vectors.items()}
    if len(set(counts.values())) > 1:
        named = ", ".join(f"{site} {count}" for site, count in sorted(counts.items()))
        raise UserError(
            f"the visual prompts have different numbers of vectors ({named}), but a deeper layer takes over the "
            "slots of the one before. Use one n_visual for all layers."
        )
    if INPUT in vectors and NORMED in vectors:
        raise UserError(
            f"vectors were given at {INPUT} and at {NORMED}, before and after the tower's first norm, but they have "
            "the same slots. Leave out one of the two."
        )
    prompts = {}
    for site, given in vectors.items():
        if site.layer >= len(view.blocks):
            raise bad_value("site", site, f"this image tower has {len(view.blocks)} layers", "Use a smaller depth.")
        prompts[site] = for_each_image(given, n_images, view.width, site)
    return prompts


def for_each_image(given: Vectors, n_images: int, width: int, site: Site) -> Tensor:
    """Return the vectors of one site as [B, M, D]."""
    expected = {"shared": (given.n_vectors, width), "sample": (n_images, given.n_vectors, width)}.get(given.scope)
    if expected is None or given.values.shape != expected:
        raise UserError(
            f"the vectors of {site} are {given.scope} {list(given.values.shape)}, but this image tower takes shared "
            f"[M, {width}] or sample [{n_images}, M, {width}]. Build the prompt for this backbone."
        )
    return given.values.expand(n_images, -1, -1)
