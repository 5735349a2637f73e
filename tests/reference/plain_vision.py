"""Visual prompts on CLIP's and SigLIP's image towers, plainly: one image, one head, one row at a time.

Written from the papers: the transformer of Dosovitskiy et al. 2021 (equations 1 to 4), deep visual
prompts as Khattak et al. 2023 ("MaPLe") place them (after the patches, without position, before the
first norm; taken over at each deeper layer), or as Jia et al. 2022 do, after the first norm, the
attention pool of Zhai et al. 2022. Works on plain dictionaries of weights; imports nothing of the
package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
AFTER_NORM = -1  # the layer of prompts that enter after the first norm


def norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def siglip_norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-6)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def attend(query: Tensor, key: Tensor, value: Tensor, n_heads: int) -> Tensor:
    """Each head on its own; query [Q, D], key and value [T, D]."""
    size = query.shape[-1] // n_heads
    heads = []
    for head in range(n_heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[:, part] @ key[:, part].T / math.sqrt(size)
        heads.append(torch.softmax(scores, dim=-1) @ value[:, part])
    return torch.cat(heads, dim=-1)


def patches(image: Tensor, kernel: Tensor) -> Tensor:
    """[3, H, W] cut into squares, row by row, each multiplied with the kernel [D, 3, p, p]: [P, D]."""
    size = kernel.shape[-1]
    rows = []
    for top in range(0, image.shape[1], size):
        for left in range(0, image.shape[2], size):
            square = image[:, top : top + size, left : left + size]
            rows.append((kernel * square).sum((1, 2, 3)))
    return torch.stack(rows)


def run(x: Tensor, prompts: Mapping[int, Tensor], n_layers: int, block: Callable[[Tensor, int], Tensor]) -> Tensor:
    """The blocks, a deeper layer's prompts taking over the slots after the tower's own ones; returns those own ones."""
    n_own = x.shape[0] - (prompts[0].shape[0] if 0 in prompts else 0)
    if AFTER_NORM in prompts:
        x = torch.cat([x, prompts[AFTER_NORM]])
    for layer in range(n_layers):
        if layer > 0 and layer in prompts:
            x = torch.cat([x[:n_own], prompts[layer]])
        x = block(x, layer)
    return x[:n_own]


def open_clip_features(
    weights: Weights,
    images: Tensor,
    prompts: list[dict[int, Tensor]],
    n_layers: int,
    n_heads: int,
    activation: Callable[[Tensor], Tensor] = gelu,
    pool: str = "tok",
    norm_after_pool: bool = False,
) -> Tensor:
    """Unit features [B, E] of open_clip's `visual.` weights; prompts per image: {layer: [M, D]}."""
    w = {name.removeprefix("visual."): value for name, value in weights.items() if name.startswith("visual.")}

    def optional(x: Tensor, name: str) -> Tensor:
        return norm(x, w, name) if f"{name}.weight" in w else x

    def per_head(x: Tensor, name: str) -> Tensor:
        return torch.cat([optional(part, name) for part in x.chunk(n_heads, dim=-1)], dim=-1)

    def block(x: Tensor, layer: int) -> Tensor:
        name = f"transformer.resblocks.{layer}"
        normed = norm(x, w, f"{name}.ln_1")
        query, key, value = (normed @ w[f"{name}.attn.in_proj_weight"].T + w[f"{name}.attn.in_proj_bias"]).split(
            x.shape[-1], dim=-1
        )
        query, key = per_head(query, f"{name}.attn.ln_q"), per_head(key, f"{name}.attn.ln_k")
        attended = linear(attend(query, key, value, n_heads), w, f"{name}.attn.out_proj")
        x = x + optional(attended, f"{name}.ln_attn") * w.get(f"{name}.ls_1.gamma", torch.ones(()))
        hidden = activation(linear(norm(x, w, f"{name}.ln_2"), w, f"{name}.mlp.c_fc"))
        hidden = linear(optional(hidden, f"{name}.mlp.ln"), w, f"{name}.mlp.c_proj")
        return x + hidden * w.get(f"{name}.ls_2.gamma", torch.ones(()))

    features = []
    for image, own in zip(images, prompts, strict=True):
        x = torch.cat([w["class_embedding"][None], patches(image, w["conv1.weight"])]) + w["positional_embedding"]
        if 0 in own:
            x = torch.cat([x, own[0]])
        if "ln_pre.weight" in w:
            x = norm(x, w, "ln_pre")
        x = run(x, own, n_layers, block)
        if not norm_after_pool:
            x = norm(x, w, "ln_post")
        pooled = x[1:].mean(0) if pool == "avg" else x[0]
        if norm_after_pool:
            pooled = norm(pooled, w, "ln_post")
        pooled = pooled @ w["proj"]
        features.append(pooled / torch.sqrt((pooled**2).sum()))
    return torch.stack(features)


def transformers_block(
    w: Weights, x: Tensor, layer: int, n_heads: int, normalise: Callable, activation: Callable
) -> Tensor:
    name = f"encoder.layers.{layer}"
    normed = normalise(x, w, f"{name}.layer_norm1")
    query, key, value = (linear(normed, w, f"{name}.self_attn.{part}_proj") for part in "qkv")
    x = x + linear(attend(query, key, value, n_heads), w, f"{name}.self_attn.out_proj")
    hidden = activation(linear(normalise(x, w, f"{name}.layer_norm2"), w, f"{name}.mlp.fc1"))
    return x + linear(hidden, w, f"{name}.mlp.fc2")


def transformers_clip_features(
    weights: Weights, images: Tensor, prompts: list[dict[int, Tensor]], n_layers: int, n_heads: int
) -> Tensor:
    """Unit features [B, E] of transformers' CLIPModel."""
    w = {name.removeprefix("vision_model."): value for name, value in weights.items()}
    features = []
    for image, own in zip(images, prompts, strict=True):
        x = (
            torch.cat([w["embeddings.class_embedding"][None], patches(image, w["embeddings.patch_embedding.weight"])])
            + (w["embeddings.position_embedding.weight"])
        )
        if 0 in own:
            x = torch.cat([x, own[0]])
        x = norm(x, w, "pre_layrnorm")
        x = run(x, own, n_layers, lambda x, layer: transformers_block(w, x, layer, n_heads, norm, quick_gelu))
        pooled = w["visual_projection.weight"] @ norm(x[0], w, "post_layernorm")
        features.append(pooled / torch.sqrt((pooled**2).sum()))
    return torch.stack(features)


def siglip_features(
    weights: Weights, images: Tensor, prompts: list[dict[int, Tensor]], n_layers: int, n_heads: int
) -> Tensor:
    """Unit features [B, E] of transformers' SiglipModel; the attention pool reads the patches alone."""
    w = {name.removeprefix("vision_model."): value for name, value in weights.items()}
    features = []
    for image, own in zip(images, prompts, strict=True):
        x = patches(image, w["embeddings.patch_embedding.weight"]) + w["embeddings.patch_embedding.bias"]
        x = x + w["embeddings.position_embedding.weight"]
        if 0 in own:
            x = torch.cat([x, own[0]])
        x = run(x, own, n_layers, lambda x, layer: transformers_block(w, x, layer, n_heads, siglip_norm, gelu_tanh))
        x = siglip_norm(x, w, "post_layernorm")
        matrices, biases = w["head.attention.in_proj_weight"].chunk(3), w["head.attention.in_proj_bias"].chunk(3)
        query = w["head.probe"][0] @ matrices[0].T + biases[0]
        key, value = x @ matrices[1].T + biases[1], x @ matrices[2].T + biases[2]
        pooled = linear(attend(query, key, value, n_heads), w, "head.attention.out_proj")
        hidden = gelu_tanh(linear(siglip_norm(pooled, w, "head.layernorm"), w, "head.mlp.fc1"))
        pooled = (pooled + linear(hidden, w, "head.mlp.fc2"))[0]
        features.append(pooled / torch.sqrt((pooled**2).sum()))
    return torch.stack(features)


def timm_features(
    weights: Weights, images: Tensor, prompts: list[dict[int, Tensor]], n_layers: int, n_heads: int
) -> Tensor:
    """Unit features [B, E] of open_clip's head on timm's VisionTransformer, with whatever norms its weights hold."""
    w = {name.removeprefix("visual.trunk."): value for name, value in weights.items()}

    def optional(x: Tensor, name: str) -> Tensor:
        return siglip_norm(x, w, name) if f"{name}.weight" in w else x

    def per_head(x: Tensor, name: str) -> Tensor:
        return torch.cat([optional(part, name) for part in x.chunk(n_heads, dim=-1)], dim=-1)

    def block(x: Tensor, layer: int) -> Tensor:
        name = f"blocks.{layer}"
        query, key, value = linear(siglip_norm(x, w, f"{name}.norm1"), w, f"{name}.attn.qkv").chunk(3, dim=-1)
        query, key = per_head(query, f"{name}.attn.q_norm"), per_head(key, f"{name}.attn.k_norm")
        attended = optional(attend(query, key, value, n_heads), f"{name}.attn.norm")
        x = x + linear(attended, w, f"{name}.attn.proj") * w.get(f"{name}.ls1.gamma", torch.ones(()))
        hidden = gelu(linear(siglip_norm(x, w, f"{name}.norm2"), w, f"{name}.mlp.fc1"))
        hidden = linear(optional(hidden, f"{name}.mlp.norm"), w, f"{name}.mlp.fc2")
        return x + hidden * w.get(f"{name}.ls2.gamma", torch.ones(()))

    features = []
    for image, own in zip(images, prompts, strict=True):
        x = patches(image, w["patch_embed.proj.weight"]) + w.get("patch_embed.proj.bias", torch.zeros(()))
        extra = [w[name][0] for name in ("cls_token", "reg_token") if name in w]
        x = torch.cat([*extra, x]) + w["pos_embed"][0]
        if 0 in own:
            x = torch.cat([x, own[0]])
        x = run(optional(x, "norm_pre"), own, n_layers, block)
        x = siglip_norm(x, w, "norm")
        if "attn_pool.latent" in w:
            query = linear(w["attn_pool.latent"][0], w, "attn_pool.q")
            key, value = linear(x, w, "attn_pool.kv").chunk(2, dim=-1)
            pooled = linear(attend(query, key, value, n_heads), w, "attn_pool.proj")
            hidden = gelu(linear(siglip_norm(pooled, w, "attn_pool.norm"), w, "attn_pool.mlp.fc1"))
            x = pooled + linear(hidden, w, "attn_pool.mlp.fc2")
        pooled = w["visual.head.proj.weight"] @ x[0]
        features.append(pooled / torch.sqrt((pooled**2).sum()))
    return torch.stack(features)
