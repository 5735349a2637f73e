"""Checkpoints of published code: what comes out is what a plain reading of the layout gives, on two libraries' CLIPs.

The files are written here as the published code writes them: Dassl's dictionary with its scheduler and optimiser as
objects, float16, copies of embeddings, dead weights, the frozen model.
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

import mmprompt as mp
from mmprompt.classification.cli import convert as cli
from mmprompt.classification.published import LAYOUTS, Published, convert, layers_of
from mmprompt.cli.main import main
from mmprompt.errors import UserError
from mmprompt.files import read_json
from tests.small_models import CONTEXT, EMBED, LAYERS, WIDTH, save_open_clip

NAMES = ["cat", "red car", "dog"]
State = dict[str, Tensor]


@dataclass(frozen=True)
class Plain:
    """A library's own CLIP, run tower by tower: embeddings in, deep vectors put over those of before."""

    backbone: Any
    model: Any

    @property
    def is_open_clip(self) -> bool:
        return hasattr(self.model, "visual")

    @property
    def table(self) -> Tensor:
        tower = self.model if self.is_open_clip else self.model.text_model.embeddings
        return tower.token_embedding.weight

    def ids(self, texts: Sequence[str]) -> Tensor:
        """Start, words, end, which has the highest id, and zeros."""
        size = len(self.table)
        rows = [[size - 2, *self.backbone.tokenize(text), size - 1] for text in texts]
        return torch.tensor([row + [0] * (CONTEXT - len(row)) for row in rows])

    def text(self, ids: Tensor, x: Tensor | None = None, deep: Mapping[int, Tensor] | None = None) -> Tensor:
        x, end = self.table[ids] if x is None else x, ids.argmax(-1)
        if self.is_open_clip:
            x, blocks = x + self.model.positional_embedding, self.model.transformer.resblocks
            norm, mask = self.model.ln_final, {"attn_mask": self.model.attn_mask}
        else:
            tower = self.model.text_model
            x, blocks = x + tower.embeddings.position_embedding.weight, tower.encoder.layers
            triangle = torch.full((CONTEXT, CONTEXT), float("-inf")).triu(1)[None, None]
            norm, mask = tower.final_layer_norm, {"attention_mask": triangle}
        for layer, block in enumerate(blocks):
            if layer in (deep or {}):
                own = deep[layer]
                x = torch.cat([x[:, :1], own.expand(len(x), -1, -1), x[:, 1 + len(own) :]], 1)
            x = block(x, **mask)
        x = norm(x)[torch.arange(len(x)), end]
        x = x @ self.model.text_projection if self.is_open_clip else self.model.text_projection(x)
        return F.normalize(x, dim=-1)

    def image(self, images: Tensor, tokens: Sequence[Tensor] = ()) -> Tensor:
        if self.is_open_clip:
            tower = self.model.visual
            x = tower.conv1(images).flatten(2).transpose(1, 2)
            x = torch.cat([tower.class_embedding.expand(len(x), 1, -1), x], 1) + tower.positional_embedding
            before, blocks, own = tower.ln_pre, tower.transformer.resblocks, {}
        else:
            tower = self.model.vision_model
            x, before, blocks = tower.embeddings(images), tower.pre_layrnorm, tower.encoder.layers
            own = {"attention_mask": None}
        n_own = x.shape[1]
        if tokens:
            x = torch.cat([x, tokens[0].expand(len(x), -1, -1)], 1)
        x = before(x)
        for layer, block in enumerate(blocks):
            if 0 < layer < len(tokens):
                x = torch.cat([x[:, :n_own], tokens[layer].expand(len(x), -1, -1)], 1)
            x = block(x, **own)
        if self.is_open_clip:
            return F.normalize(tower.ln_post(x[:, 0]) @ tower.proj, dim=-1)
        return F.normalize(self.model.visual_projection(tower.post_layernorm(x[:, 0])), dim=-1)

    def logits(self, image: Tensor, text: Tensor) -> Tensor:
        return self.model.logit_scale.exp() * image @ text.T

    def copies(self, words: str, n_ctx: int, prefix: str = "", names: Sequence[str] = NAMES) -> State:
        """The embeddings that the published code keeps beside the context."""
        x = self.table[self.ids([f"{words} {name}." for name in names])].detach()
        return {f"{prefix}token_prefix": x[:, :1], f"{prefix}token_suffix": x[:, 1 + n_ctx :]}

    def frozen(self) -> State:
        """Weights by the names that MaPLe's code has for them."""
        names = ["logit_scale", "image_encoder.class_embedding", "image_encoder.conv1.weight", "image_encoder.proj"]
        names += [f"image_encoder.ln_{place}.{part}" for place in ("pre", "post") for part in ("weight", "bias")]
        names += ["text_encoder.positional_embedding", "text_encoder.text_projection", "text_encoder.ln_final.bias"]
        for tower in ("image_encoder", "text_encoder"):
            block = f"{tower}.transformer.resblocks.1"
            names += [f"{block}.{part}" for part in ("attn.in_proj_weight", "attn.out_proj.bias", "mlp.c_fc.weight")]
        return {name: torch.ones(3) for name in names}


class WarmUp(LRScheduler):
    """As Dassl's, whose state holds the scheduler that follows and, in that, the optimiser."""

    def __init__(self, optimizer: Any, successor: Any) -> None:
        self.successor = successor
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        return [1e-5 for _ in self.base_lrs]


def dassl(path: Path, state: Mapping[str, Any], prefix: str = "") -> Path:
    """A file as Dassl writes it after a training in float16, with a step of momentum behind it."""
    parameter = nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    scheduler = WarmUp(optimizer, CosineAnnealingLR(optimizer, 5.0))
    parameter.sum().backward()
    optimizer.step()
    scheduler.step()
    content = {
        "state_dict": {f"{prefix}{name}": value.half() for name, value in state.items()},
        "epoch": 50,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "val_result": np.float64(61.5),
    }
    torch.save(content, path)
    return path


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Numbers that float16 holds exactly."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).mul(0.3).half().float()


@pytest.fixture(params=["open_clip", "transformers"])
def plain(request: pytest.FixtureRequest) -> Plain:
    name = {"open_clip": "tiny_clip_backbone", "transformers": "tiny_hf_clip_backbone"}[request.param]
    backbone = request.getfixturevalue(name)
    return Plain(backbone, backbone.model)


@pytest.fixture
def clip(tiny_clip_backbone: Any) -> Plain:
    return Plain(tiny_clip_backbone, tiny_clip_backbone.model)


@pytest.fixture
def images(plain: Plain, pixels: Tensor) -> Tensor:
    return plain.backbone.normalize(pixels)


@torch.no_grad()
def check(classifier: mp.Classifier, images: Tensor, expected: Tensor, folder: Path) -> None:
    """The logits are the expected ones, and are so when saved and loaded again."""
    assert classifier(images).numpy() == pytest.approx(expected.numpy(), abs=2e-4)
    mp.save(classifier, folder / "saved")
    loaded = mp.load(folder / "saved", classifier.backbone)
    assert loaded(images).numpy() == pytest.approx(expected.numpy(), abs=2e-4)


def end_context(plain: Plain, ctx: Tensor, words: str, names: Sequence[str] = NAMES) -> tuple[Tensor, Tensor]:
    """The ids and the embeddings of CoOp's texts, with vectors in place of the first words."""
    ids = plain.ids([f"{words} {name}." for name in names])
    x = plain.table[ids]
    own = ctx.expand(len(names), *ctx.shape[-2:])
    return ids, torch.cat([x[:, :1], own, x[:, 1 + own.shape[1] :]], 1)


KGCOOP_DEAD = {
    "bias_vectors": drawn(1, 512),
    "meta_net.linear1.weight": drawn(5, 5),
    "meta_net.linear1.bias": drawn(5),
}


@pytest.mark.parametrize("source", ["coop", "kgcoop", "prograd"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("is_own", [False, True], ids=["shared", "a context each"])
def test_context_vectors_stand_before_the_name(
    source: Published, prefix: str, is_own: bool, plain: Plain, images: Tensor, tmp_path: Path
) -> None:
    ctx = drawn(3, 4, WIDTH) if is_own else drawn(4, WIDTH)
    dead = KGCOOP_DEAD if source == "kgcoop" else {}
    path = dassl(tmp_path / "model.pth.tar-50", {"ctx": ctx} | plain.copies("a a a a", 4) | dead, prefix)
    found = convert(path, source, plain.backbone, NAMES)
    check(found, images, plain.logits(plain.image(images), plain.text(*end_context(plain, ctx, "a a a a"))), tmp_path)
    assert found.prompt.is_class_specific == is_own


def test_other_classes_may_be_named_where_one_context_serves_all(plain: Plain, images: Tensor, tmp_path: Path) -> None:
    ctx, new = drawn(4, WIDTH), ["fish", "tree"]
    path = dassl(tmp_path / "file", {"ctx": ctx} | plain.copies("a a a a", 4))
    expected = plain.logits(plain.image(images), plain.text(*end_context(plain, ctx, "a a a a", new)))
    check(convert(path, "coop", plain.backbone, new), images, expected, tmp_path)


@pytest.mark.parametrize("position", ["middle", "front"])
def test_the_name_stands_in_the_middle_or_in_front(position: Any, plain: Plain, images: Tensor, tmp_path: Path) -> None:
    ctx = drawn(4, WIDTH)
    path = dassl(tmp_path / "file", {"ctx": ctx} | plain.copies("a a a a", 4))
    ids, rows = plain.ids([f"a a a a {name}." for name in NAMES]), []
    n_before = {"middle": 2, "front": 0}[position]
    for name, x in zip(NAMES, plain.table[ids], strict=True):
        end = 5 + len(plain.backbone.tokenize(name))
        rows.append(torch.cat([x[:1], ctx[:n_before], x[5:end], ctx[n_before:], x[end:]]))
    expected = plain.logits(plain.image(images), plain.text(ids, torch.stack(rows)))
    check(convert(path, "coop", plain.backbone, NAMES, class_position=position), images, expected, tmp_path)


def test_tokens_beyond_the_number_of_words_stay(plain: Plain, images: Tensor, tmp_path: Path) -> None:
    words = "a photo of, a"  # four words, five tokens
    ctx, names = drawn(4, WIDTH), ["cat", "dog"]
    ids, x = end_context(plain, ctx, words, names)
    path = dassl(tmp_path / "file", {"ctx": ctx} | plain.copies(words, 4, names=names))
    expected = plain.logits(plain.image(images), plain.text(ids, x))
    found = convert(path, "prograd", plain.backbone, names, words=words)
    assert found.prompt.template.text == "{soft*4} a {name}."
    check(found, images, expected, tmp_path)
    with pytest.raises(UserError, match="the words 'a' stay between vectors and name"):
        convert(path, "prograd", plain.backbone, names, words=words, class_position="front")


def test_the_network_of_cocoop_shifts_the_context(plain: Plain, images: Tensor, tmp_path: Path) -> None:
    ctx, hidden = drawn(4, WIDTH), 8
    net = {
        "meta_net.linear1.weight": drawn(hidden, EMBED),
        "meta_net.linear1.bias": drawn(hidden),
        "meta_net.linear2.weight": drawn(WIDTH, hidden),
        "meta_net.linear2.bias": drawn(WIDTH),
    }
    path = dassl(tmp_path / "file", {"ctx": ctx} | net | plain.copies("a photo of a", 4))
    rows = []
    for feature in plain.image(images):
        inner = (net["meta_net.linear1.weight"] @ feature + net["meta_net.linear1.bias"]).relu()
        own = ctx + net["meta_net.linear2.weight"] @ inner + net["meta_net.linear2.bias"]
        rows.append(plain.logits(feature[None], plain.text(*end_context(plain, own, "a photo of a"))))
    check(convert(path, "cocoop", plain.backbone, NAMES), images, torch.cat(rows), tmp_path)


def maple_state(plain: Plain, n_ctx: int = 2, depth: int = LAYERS, words: str = "a photo of a") -> State:
    state = {"ctx": drawn(n_ctx, WIDTH), "proj.weight": drawn(WIDTH, WIDTH), "proj.bias": drawn(WIDTH)}
    for place in range(depth - 1):
        state[f"compound_prompts_text.{place}"] = drawn(n_ctx, WIDTH, seed=1 + place)
        state[f"compound_prompt_projections.{place}.weight"] = drawn(WIDTH, WIDTH, seed=1 + place)
        state[f"compound_prompt_projections.{place}.bias"] = drawn(WIDTH, seed=1 + place)
    state = {f"prompt_learner.{name}": value for name, value in state.items()}
    return state | plain.copies(words, n_ctx, "prompt_learner.") | plain.frozen()


@pytest.mark.parametrize("depth", [1, 2])
def test_the_maps_of_maple_make_the_tokens_of_the_image_tower(
    depth: int, plain: Plain, images: Tensor, tmp_path: Path
) -> None:
    state = maple_state(plain, depth=depth)
    path = dassl(tmp_path / "file", state)
    own = {name.removeprefix("prompt_learner."): value for name, value in state.items()}
    tokens = [own["ctx"] @ own["proj.weight"].T + own["proj.bias"]]
    deep = {}
    if depth == 2:
        deep[1] = own["compound_prompts_text.0"]
        maps = "compound_prompt_projections.0"
        tokens.append(deep[1] @ own[f"{maps}.weight"].T + own[f"{maps}.bias"])
    text = plain.text(*end_context(plain, own["ctx"], "a photo of a"), deep)
    found = convert(path, "maple", plain.backbone, NAMES)
    assert found.prompt.template.text == "{soft*2} of a {name}."
    check(found, images, plain.logits(plain.image(images, tokens), text), tmp_path)


@pytest.mark.parametrize("source", ["ivlp", "promptsrc"])
@pytest.mark.parametrize("has_vision", [True, False], ids=["both towers", "the text tower"])
def test_both_towers_have_vectors_of_their_own(
    source: Published, has_vision: bool, plain: Plain, images: Tensor, tmp_path: Path
) -> None:
    ctx, deep = drawn(4, WIDTH), {1: drawn(4, WIDTH, seed=1)}
    tokens = [drawn(3, WIDTH), drawn(3, WIDTH, seed=1)] if has_vision else []
    block = "transformer.resblocks.1.VPT_shallow"
    state = {"prompt_learner.ctx": ctx, f"text_encoder.{block}": deep[1]} | plain.frozen()
    if has_vision:
        state |= {"image_encoder.VPT": tokens[0], f"image_encoder.{block}": tokens[1]}
    state |= plain.copies("a photo of a", 4, "prompt_learner.")
    if source == "promptsrc":
        state["prompt_learner.ZS_image_encoder.conv1.weight"] = torch.ones(2)
    path = dassl(tmp_path / "file", state, "module.")
    text = plain.text(*end_context(plain, ctx, "a photo of a"), deep)
    check(
        convert(path, source, plain.backbone, NAMES), images, plain.logits(plain.image(images, tokens), text), tmp_path
    )


def test_tokens_of_the_image_tower_alone(plain: Plain, images: Tensor, tmp_path: Path) -> None:
    tokens = [drawn(3, WIDTH), drawn(3, WIDTH, seed=1)]
    names = ["image_encoder.VPT", "image_encoder.transformer.resblocks.1.VPT_shallow"]
    path = dassl(tmp_path / "file", dict(zip(names, tokens, strict=True)) | plain.frozen())
    text = plain.text(plain.ids([f"a blue {name}." for name in NAMES]))
    found = convert(path, "vpt", plain.backbone, NAMES, template="a blue {}.")
    check(found, images, plain.logits(plain.image(images, tokens), text), tmp_path)


def test_arrays_of_a_plain_vit_fit_a_tower_without_a_norm_before_its_blocks(tmp_path: Path, pixels: Tensor) -> None:
    backbone = mp.load_backbone(save_open_clip(tmp_path / "model", {"no_ln_pre": True}), device="cpu")
    plain, images = Plain(backbone, backbone.model), backbone.normalize(pixels)
    tokens = drawn(1, 3, WIDTH), drawn(LAYERS - 1, 3, WIDTH)
    content = {name: value.numpy() for name, value in zip(("shallow_prompt", "deep_prompt"), tokens, strict=True)}
    torch.save(content, tmp_path / "prompt_ep9.pth")
    text = plain.text(plain.ids([f"a photo of a {name}." for name in NAMES]))
    expected = plain.logits(plain.image(images, [tokens[0][0], *tokens[1]]), text)
    check(convert(tmp_path / "prompt_ep9.pth", "vpt", backbone, NAMES), images, expected, tmp_path)
    content["deep_prompt"] = drawn(LAYERS, 3, WIDTH).numpy()
    torch.save(content, tmp_path / "deep.pth")
    with pytest.raises(UserError, match="vectors of 3 layers, but the image tower"):
        convert(tmp_path / "deep.pth", "vpt", backbone, NAMES)


def lora_content(encoder: str, params: str, rank: int = 2, n_terms: int | None = None) -> dict[str, Any]:
    n_terms = LAYERS * (2 if encoder == "both" else 1) if n_terms is None else n_terms
    weights = {
        f"layer_{i}": {
            f"{letter}_proj": {
                "w_lora_A": drawn(rank, WIDTH, seed=10 * i + j),
                "w_lora_B": drawn(WIDTH, rank, seed=100 + 10 * i + j),
            }
            for j, letter in enumerate(params)
        }
        for i in range(n_terms)
    }
    facts = {"r": rank, "alpha": 3, "encoder": encoder, "params": list(params), "position": "all"}
    return {"weights": weights, "metadata": facts}


def merged(plain: Plain, content: dict[str, Any]) -> Plain:
    """The model with the terms added to its weights."""
    model, facts = copy.deepcopy(plain.model), content["metadata"]
    places = [(tower, layer) for tower in ("text", "vision") for layer in range(LAYERS)]
    places = [place for place in places if facts["encoder"] in ("both", place[0])]
    for (tower, layer), terms in zip(places, content["weights"].values(), strict=True):
        for name, term in terms.items():
            added = term["w_lora_B"] @ term["w_lora_A"] * facts["alpha"] / math.sqrt(facts["r"])
            if plain.is_open_clip:
                blocks = (model if tower == "text" else model.visual).transformer.resblocks
                start = "qkv".index(name[0]) * WIDTH
                blocks[layer].attn.in_proj_weight.data[start : start + WIDTH] += added
            else:
                block = getattr(model, f"{tower}_model").encoder.layers[layer]
                getattr(block.self_attn, name).weight.data += added
    return Plain(plain.backbone, model)


@pytest.mark.parametrize(("encoder", "params"), [("both", "qkv"), ("text", "qv"), ("vision", "k")])
def test_low_rank_terms_are_those_added_to_the_weights(
    encoder: str, params: str, plain: Plain, images: Tensor, tmp_path: Path
) -> None:
    content = lora_content(encoder, params)
    torch.save(content, tmp_path / "lora_weights.pt")
    tuned = merged(plain, content)
    expected = tuned.logits(tuned.image(images), tuned.text(tuned.ids([f"a photo of a {name}." for name in NAMES])))
    check(convert(tmp_path / "lora_weights.pt", "clip-lora", plain.backbone, NAMES), images, expected, tmp_path)


def test_the_positions_of_clip_lora_are_those_of_its_tables() -> None:
    of_base = {"top": 11, "top1": 11, "top2": 10, "top3": 9, "up": 8, "half-up": 6, "all": 0}
    assert all(list(layers_of(name, 12)) == list(range(first, 12)) for name, first in of_base.items())
    assert [list(layers_of(name, 12)) for name in ("bottom", "mid", "half-bottom")] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [0, 1, 2, 3, 4, 5],
    ]
    assert list(layers_of("half-up", 24)) == list(range(12, 24))


@pytest.mark.parametrize("has_rows", [False, True], ids=["keys", "trained keys"])
def test_the_cache_votes_beside_the_text(has_rows: bool, plain: Plain, images: Tensor, tmp_path: Path) -> None:
    keys = F.normalize(drawn(EMBED, 6), dim=0).half().float()
    values = F.one_hot(torch.tensor([0, 0, 1, 1, 2, 2])).float()
    torch.save(nn.Parameter(keys.T.half()) if has_rows else keys.half(), tmp_path / "keys.pt")
    torch.save(values.half(), tmp_path / "values.pt")
    image = plain.image(images)
    text = plain.text(plain.ids([f"a photo of a {name}." for name in NAMES]))
    expected = 100 * image @ text.T + 1.5 * (-(5.5 - 5.5 * image @ keys)).exp() @ values
    options: dict[str, Any] = {"values": tmp_path / "values.pt", "alpha": 1.5, "beta": 5.5}
    found = convert(tmp_path / "keys.pt", "tip-adapter", plain.backbone, NAMES, **options)
    check(found, images, expected, tmp_path)
    with pytest.raises(UserError, match="cannot take other class names"):
        found.with_class_names(["fish", "tree"])
    with pytest.raises(UserError, match="learned with 3 classes, but 2"):
        convert(tmp_path / "keys.pt", "tip-adapter", plain.backbone, NAMES[:2], **options)
    del options["beta"]
    with pytest.raises(UserError, match="beta is not given"):
        convert(tmp_path / "keys.pt", "tip-adapter", plain.backbone, NAMES, **options)


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (torch.ones(EMBED, 2), {"alpha": -1}, "alpha is -1.0, but it must be a number from 0 to"),
        (torch.ones(EMBED, 2), {"alpha": 1e300}, r"alpha is 1e\+300, but .* Give the `alpha` that was found"),
        (torch.ones(EMBED, 2), {"beta": -1e6}, "beta is -1000000.0, but it must be a number, above 0"),
        ([[1.0], [1.0, 2.0]], {}, "holds keys, but not as a tensor of numbers"),
    ],
)
def test_a_cache_that_could_not_vote_is_refused(
    content: Any, options: dict[str, float], said: str, clip: Plain, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "keys.pt")
    torch.save(torch.ones(2, 3), tmp_path / "values.pt")
    given: dict[str, Any] = {"values": tmp_path / "values.pt", "alpha": 1.0, "beta": 5.5} | options
    with pytest.raises(UserError, match=said):
        convert(tmp_path / "keys.pt", "tip-adapter", clip.backbone, NAMES, **given)


class Evil:
    """What runs something when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harm",)


def state_of(source: str, plain: Plain) -> dict[str, Any]:
    """A sound checkpoint's tensors."""
    ctx = {"ctx": drawn(4, WIDTH)} | plain.copies("a photo of a", 4)
    block = "transformer.resblocks.1.VPT_shallow"
    ivlp = {"prompt_learner.ctx": drawn(4, WIDTH), f"text_encoder.{block}": drawn(4, WIDTH)} | plain.copies(
        "a photo of a", 4, "prompt_learner."
    )
    states: dict[str, dict[str, Any]] = {
        "coop": ctx,
        "maple": maple_state(plain),
        "promptsrc": ivlp | {"image_encoder.VPT": drawn(3, WIDTH), f"image_encoder.{block}": drawn(3, WIDTH)},
        "clip-lora": lora_content("both", "qkv"),
    }
    return states[source]


def without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.pop(name)


def put(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.update({name: value})


BLOCK_2 = "text_encoder.transformer.resblocks.2.VPT_shallow"
REFUSED: dict[str, tuple[str, Callable[[dict[str, Any]], None], str]] = {
    "another width": ("coop", put("ctx", drawn(4, 16)), "holds ctx of shape 4 x 16, but .* takes M x 32"),
    "no vector": ("coop", put("ctx", torch.zeros(0, WIDTH)), "holds ctx of shape 0 x 32"),
    "too many vectors": ("coop", put("ctx", drawn(CONTEXT + 1, WIDTH)), "n_ctx is 17"),
    "one axis": ("coop", put("ctx", drawn(WIDTH)), "holds ctx of shape 32, but"),
    "no context": ("coop", without("ctx"), "holds no ctx"),
    "no tensor": ("coop", put("ctx", "a photo"), "not as a tensor of numbers"),
    "lists of two lengths": ("coop", put("ctx", [[1.0], [1.0, 2.0]]), "not as a tensor of numbers"),
    "a list of tensors": ("coop", put("ctx", [drawn(2), drawn(3)]), "not as a tensor of numbers"),
    "whole numbers": ("coop", put("ctx", torch.ones(4, WIDTH, dtype=torch.int64)), "not as a tensor of numbers"),
    "a tensor that is nowhere": ("coop", put("ctx", torch.ones(1, 1).expand(10**9, WIDTH)), "not as a tensor"),
    "not a number": ("coop", put("ctx", drawn(4, WIDTH) * float("nan")), "NaN or infinity in ctx"),
    "an unknown entry": ("coop", put("head.weight", drawn(3)), "holds head.weight, which this layout does not know"),
    "contexts of other classes": ("coop", put("ctx", drawn(2, 4, WIDTH)), "with 2 classes, but 3"),
    "an object": ("coop", put("ctx", Evil()), r"holds the object \w+.mkdir"),
    "deeper than the text tower": ("promptsrc", put(BLOCK_2, drawn(4, WIDTH)), "3 layers, but the text tower"),
    "a layer left out": (
        "promptsrc",
        put("text_encoder.transformer.resblocks.7.VPT_shallow", drawn(4, WIDTH)),
        "resblocks.7.VPT_shallow, which",
    ),
    "other vectors in a layer": (
        "promptsrc",
        put("text_encoder.transformer.resblocks.1.VPT_shallow", drawn(3, WIDTH)),
        "3 x 32, but .* 4 x 32",
    ),
    "no map": ("maple", without("prompt_learner.proj.weight"), "holds no prompt_learner.proj.weight"),
    "no facts": ("clip-lora", without("metadata"), "says that r is None, but it must be a whole number"),
    "fewer terms": ("clip-lora", lambda state: state["weights"].pop("layer_3"), "holds no weights.layer_3.q_proj"),
    "more terms": (
        "clip-lora",
        lambda state: state["weights"].update({"layer_4": state["weights"]["layer_3"]}),
        "weights.layer_4.k_proj.w_lora_A and 5 more, which",
    ),
    "the output projection": (
        "clip-lora",
        lambda state: state["metadata"].update(params=["q", "o"]),
        r"params is \['q', 'o'\], but",
    ),
    "numbers for letters": (
        "clip-lora",
        lambda state: state["metadata"].update(params=torch.ones(2)),
        r"params is tensor\(\[1\., 1\.\]\), but",
    ),
    "another rank": ("clip-lora", lambda state: state["metadata"].update(r=3), "2 x 32, but .* takes 3 x 32"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_does_not_fit_is_refused_in_one_line_and_nothing_is_written(
    case: str,
    clip: Plain,
    tiny_open_clip_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    source, spoil, said = REFUSED[case]
    state = state_of(source, clip)
    spoil(state)
    torch.save(state, "file.pt")
    before = set(tmp_path.iterdir())
    assert run("file.pt", source, tiny_open_clip_folder) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(said, error), error
    assert set(tmp_path.iterdir()) == before


def run(file: str, source: str, backbone: Path, *more: str) -> int:
    fixed = ["--from", source, "--backbone", str(backbone), "--out", "new"]
    return main(["prompt", "convert", file, *fixed, "--classes", ",".join(NAMES), *more])


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("nowhere.pt", "is not there"),
        ("folder", "is a folder"),
        ("text.pt", "is no file of torch.save"),
        ("empty.pt", "is no file of torch.save"),
        ("half.pt", "is no file of torch.save"),
        ("tensor.pt", "holds no entries with names"),
        ("nest.pt", "holds more than 10000 entries"),
        ("wide.pt", "holds more than 10000 entries"),
        ("objects.pt", "is no file of torch.save"),
    ],
)
def test_what_is_no_checkpoint_is_refused_in_one_line(
    file: str,
    said: str,
    tiny_open_clip_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("text.pt").write_text("no checkpoint")
    Path("empty.pt").touch()
    torch.save({"ctx": torch.ones(99)}, "half.pt")
    Path("half.pt").write_bytes(Path("half.pt").read_bytes()[:500])
    torch.save(torch.ones(3), "tensor.pt")
    nest: dict[str, Any] = {}
    nest["in"] = nest
    torch.save(nest, "nest.pt")
    torch.save({str(number): number for number in range(10_001)}, "wide.pt")
    torch.save({"shallow_prompt": np.array([Evil()], dtype=object)}, "objects.pt")
    assert run(file, "coop", tiny_open_clip_folder) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert not Path("new").exists()
    assert not Path("harm").exists()


def test_another_backbone_is_seen_by_its_embeddings(clip: Plain, tmp_path: Path) -> None:
    other = mp.load_backbone(save_open_clip(tmp_path / "other", seed=5), device="cpu")
    path = dassl(tmp_path / "file", state_of("coop", clip))
    with pytest.raises(UserError, match="learned on another backbone"):
        convert(path, "coop", other, NAMES)


def test_other_words_are_seen(clip: Plain, tmp_path: Path) -> None:
    path = dassl(tmp_path / "file", maple_state(clip, words="a red image of"))
    with pytest.raises(UserError, match=r"other words than 'of a' between .* `words`"):
        convert(path, "maple", clip.backbone, NAMES)
    found = convert(path, "maple", clip.backbone, NAMES, words="a red image of")
    assert found.prompt.template.text == "{soft*2} image of {name}."
    path = dassl(tmp_path / "file", maple_state(clip, words="a a"))
    assert convert(path, "maple", clip.backbone, NAMES, words="").prompt.template.text == "{soft*2} {name}."


def test_braces_among_the_words_stay_braces(clip: Plain, tmp_path: Path) -> None:
    path = dassl(tmp_path / "file", maple_state(clip, words="a photo {x} a"))
    found = convert(path, "maple", clip.backbone, NAMES, words="a photo {x} a")
    assert found.prompt.template.words == (" { x } a ", ".")


def test_another_order_of_classes_is_seen_where_each_has_its_own_context(clip: Plain, tmp_path: Path) -> None:
    path = dassl(tmp_path / "file", {"ctx": drawn(3, 4, WIDTH)} | clip.copies("a a a a", 4))
    with pytest.raises(UserError, match="another class in the place of 'dog'"):
        convert(path, "coop", clip.backbone, ["dog", "red car", "cat"])


def test_more_vectors_than_four_started_at_random_in_the_code_of_maple(clip: Plain, tmp_path: Path) -> None:
    path = dassl(tmp_path / "file", maple_state(clip, n_ctx=5, words="a a a a a"))
    assert convert(path, "maple", clip.backbone, NAMES).prompt.template.text == "{soft*5} {name}."


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("coop", {"template": "a {}."}, "template is a {}., but coop has no use for it"),
        ("cocoop", {"class_position": "front"}, "class_position is front, but cocoop"),
        ("maple", {"words": "a photo"}, None),
        ("maple", {"words": "photo"}, "holds 2 vectors, more than tokens"),
        ("coop", {"words": "a photo of a cat"}, "holds 4 vectors, fewer than words"),
        ("coop", {"source": "cop"}, "Did you mean 'coop'"),
    ],
)
def test_what_is_said_of_a_file_must_suit_it(
    source: Any, options: dict[str, Any], said: str | None, clip: Plain, tmp_path: Path
) -> None:
    state = state_of("coop" if source == "cocoop" else source, clip)
    if said is None:
        state = maple_state(clip, words="a photo")
    path = dassl(tmp_path / "file", state)
    call = {"source": source} | options
    if said is None:
        convert(path, backbone=clip.backbone, class_names=NAMES, **call)
        return
    with pytest.raises(UserError, match=said):
        convert(path, backbone=clip.backbone, class_names=NAMES, **call)


def test_a_tower_without_image_tokens_is_refused(tiny_resnet_backbone: Any, tmp_path: Path) -> None:
    torch.save({"image_encoder.VPT": drawn(3, WIDTH)}, tmp_path / "file")
    with pytest.raises(UserError, match="has no image tokens"):
        convert(tmp_path / "file", "vpt", tiny_resnet_backbone, NAMES)


def test_an_image_tower_alone_is_refused(tiny_timm_backbone: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": {"prompt_learner.ctx": torch.zeros(1, 4, WIDTH)}}, tmp_path / "file.pt")
    with pytest.raises(UserError, match="has no text tower, but this needs one"):
        convert(tmp_path / "file.pt", "vpt", tiny_timm_backbone, ["cat", "dog"])


def test_arrays_of_a_plain_vit_are_refused_by_a_tower_with_a_norm_before(clip: Plain, tmp_path: Path) -> None:
    torch.save({"shallow_prompt": drawn(1, 3, WIDTH).numpy()}, tmp_path / "file")
    with pytest.raises(UserError, match="a norm before its blocks"):
        convert(tmp_path / "file", "vpt", clip.backbone, NAMES)


def test_the_verb_writes_a_folder_that_predicts(
    clip: Plain,
    tiny_open_clip_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    dassl(Path("model.pth.tar-50"), state_of("coop", clip), "module.")
    Path("names.txt").write_text("cat\nred car\n\ndog\n")
    assert run("model.pth.tar-50", "coop", tiny_open_clip_folder, "--class-position", "end") == 0
    assert "Next: mmprompt predict new" in capsys.readouterr().out
    loaded = mp.load("new")
    assert loaded.class_names == tuple(NAMES)
    facts = read_json(Path("new/prompt.json"))["training"]
    assert facts["method"] == {"name": "coop", "settings": {}}
    assert facts["converted_from"]["file"] == "model.pth.tar-50"
    more = ["--from", "coop", "--backbone", str(tiny_open_clip_folder), "--classes", "names.txt", "--json"]
    assert main(["prompt", "convert", "model.pth.tar-50", *more, "--out", "again"]) == 0
    assert json.loads(capsys.readouterr().out) == {"written": "again"}
    assert Path("again/prompt.safetensors").read_bytes() == Path("new/prompt.safetensors").read_bytes()
    assert main(["inspect", "new", "--words", "0"]) == 0
    assert run("model.pth.tar-50", "coop", tiny_open_clip_folder) == 2
    assert "already holds a finished run" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["~/names.txt", "~/names of cat,dog.txt"])
def test_class_names_are_read_from_a_file_below_the_home_folder_and_with_a_comma_in_its_name(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Path(given).expanduser().write_text("cat\nred car\n")
    assert cli.names_in(given) == ["cat", "red car"]
    assert cli.names_in("cat, red car") == ["cat", "red car"]
    assert cli.names_in("cat," * 2000) == ["cat"] * 2000


def test_one_class_name_that_is_no_file_is_refused(
    tmp_path: Path, tiny_open_clip_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file.pt"
    path.touch()
    words = ["prompt", "convert", str(path), "--from", "coop", "--backbone", str(tiny_open_clip_folder)]
    assert main([*words, "--out", str(tmp_path / "new"), "--classes", "names.txt"]) == 2
    assert "neither a file nor names" in capsys.readouterr().err


def test_the_verb_and_the_library_know_the_same_layouts() -> None:
    assert typing.get_args(cli.Published) == typing.get_args(Published) == tuple(LAYOUTS)
