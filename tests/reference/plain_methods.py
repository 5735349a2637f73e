"""Eight methods of prompt learning, each as its paper and its released code say, and the loops that learn by them.

Slow and plain on purpose: whole rows of words, one class and one image after another. What is learned is a list of
tensors, in the order that a method's docstring gives. It imports nothing of the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import open_clip
import torch
from torch import Tensor
from torch.func import functional_call

from tests.reference import plain_text, plain_vision

Terms = dict[str, Tensor]
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Frozen:
    """A CLIP of open_clip or transformers, the class names, and the hand-written template of the data."""

    model: Any
    tokenizer: Any
    names: Sequence[str]
    template: str
    vision_layers: int
    vision_heads: int
    length: int = 77

    @property
    def is_open_clip(self) -> bool:
        return hasattr(self.model, "visual")

    def row(self, text: str) -> tuple[list[int], int]:
        """The ids of a text from start to end, padded, and where its end stands."""
        ids = self.tokenizer(text.replace("_", " "))["input_ids"]
        return ids + [0] * (self.length - len(ids)), len(ids) - 1

    def written(self, template: str) -> Tensor:
        """Raw features [C, E] of the class names in a template, by the library's own forward."""
        ids = torch.tensor([self.row(template.format(name))[0] for name in self.names])
        if self.is_open_clip:
            return self.model.encode_text(ids)
        return self.model.get_text_features(input_ids=ids).pooler_output

    def text(self, words: str, vectors: Sequence[Tensor]) -> Tensor:
        """Unit features [C, E] of "words name.", its first M tokens replaced by vectors [M, D] in the first layers."""
        n_ctx, rows, ends = len(vectors[0]), [], []
        for name in self.names:
            row, end = self.row(f"{words} {name}.")
            row[1 : 1 + n_ctx] = [-1 - m for m in range(n_ctx)]
            rows.append(row)
            ends.append(end)
        features = plain_text.open_clip_features if self.is_open_clip else plain_text.transformers_features
        deeper = {layer: values for layer, values in enumerate(vectors) if layer}
        return features(self.model, rows, ends, vectors[0], deeper)

    def image(self, images: Tensor, vectors: Sequence[Tensor] = ()) -> Tensor:
        """Unit features [B, E], vectors [M, D] after the patches in the first layers."""
        features = plain_vision.open_clip_features if self.is_open_clip else plain_vision.transformers_clip_features
        each = [dict(enumerate(vectors))] * len(images)
        return features(self.model.state_dict(), images, each, self.vision_layers, self.vision_heads)

    def logits(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        return self.model.logit_scale.exp() * image_features @ class_features.T


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return -logits.log_softmax(1)[range(len(labels)), labels].mean()


def cocoop(clip: Frozen, learned: list[Tensor], images: Tensor, labels: Tensor) -> Terms:
    """Zhou et al. 2022b, equations 2 and 3: context; weight and bias of the hidden and of the last layer."""
    ctx, hidden, hidden_bias, last, last_bias = learned
    losses = []
    for image, label in zip(clip.image(images), labels, strict=True):
        shift = last @ torch.relu(hidden @ image + hidden_bias) + last_bias
        logits = clip.logits(image[None], clip.text("a photo of a", [ctx + shift]))
        losses.append(cross_entropy(logits, label[None]))
    return {"cross_entropy": sum(losses) / len(losses)}  # type: ignore[dict-item]


def kgcoop(clip: Frozen, learned: list[Tensor], images: Tensor, labels: Tensor) -> Terms:
    """Yao et al. 2023, section 3.2, the distance as in the released code (a cosine): context."""
    features = clip.text("a photo of a", learned)
    score = (features * unit(clip.written(clip.template))).sum(1).mean()
    return {
        "cross_entropy": cross_entropy(clip.logits(clip.image(images), features), labels),
        "knowledge": 8.0 * (1 - score),
    }


def prograd(clip: Frozen, learned: list[Tensor], images: Tensor, labels: Tensor) -> Terms:
    """Zhu et al. 2023, equations 3 and 4: context."""
    bare = clip.image(images)
    logits = clip.logits(bare, clip.text(" ".join(["X"] * len(learned[0])), learned))
    frozen = clip.logits(bare, unit(clip.written(clip.template))).softmax(1)
    return {
        "cross_entropy": cross_entropy(logits, labels),
        "general": -(frozen * logits.log_softmax(1)).sum(1).mean(),
    }


def deep_text(clip: Frozen, learned: list[Tensor], images: Tensor, labels: Tensor) -> Terms:
    """Khattak et al. 2023a, section 4.2: vectors of each text layer."""
    return {"cross_entropy": cross_entropy(clip.logits(clip.image(images), clip.text("a photo of a", learned)), labels)}


def ivlp(clip: Frozen, learned: list[Tensor], images: Tensor, labels: Tensor) -> Terms:
    """Khattak et al. 2023a, section 4.2: vectors of each text layer, then of each image layer."""
    n_vision = clip.vision_layers
    text, vision = learned[:-n_vision], learned[-n_vision:]
    logits = clip.logits(clip.image(images, vision), clip.text("a photo of a", text))
    return {"cross_entropy": cross_entropy(logits, labels)}


def maple(clip: Frozen, learned: list[Tensor], images: Tensor, labels: Tensor) -> Terms:
    """Khattak et al. 2023a, section 3.2: vectors of J text layers, then weight and bias of each one's map."""
    depth = len(learned) // 3
    text, maps = learned[:depth], learned[depth:]
    vision = [values @ maps[2 * layer].T + maps[2 * layer + 1] for layer, values in enumerate(text)]
    logits = clip.logits(clip.image(images, vision), clip.text("a photo of a", text))
    return {"cross_entropy": cross_entropy(logits, labels)}


def promptsrc(clip: Frozen, learned: list[Tensor], images: Tensor, labels: Tensor) -> Terms:
    """Khattak et al. 2023b, section 3.2.1, means as in the released code: as `ivlp`."""
    n_vision = clip.vision_layers
    text, image = clip.text("a photo of a", learned[:-n_vision]), clip.image(images, learned[-n_vision:])
    templates = [make("{}") for make in open_clip.OPENAI_IMAGENET_TEMPLATES[:60]]
    frozen_text = unit(sum(clip.written(template) for template in templates) / 60)  # type: ignore[arg-type]
    frozen_image = clip.image(images)
    own = clip.logits(image, text).log_softmax(1)
    frozen = clip.logits(frozen_image, frozen_text).log_softmax(1)
    return {
        "cross_entropy": cross_entropy(clip.logits(image, text), labels),
        "text": 25.0 * (text - frozen_text).abs().mean(),
        "image": 10.0 * (image - frozen_image).abs().mean(),
        "logits": (frozen.exp() * (frozen - own)).sum() / own.numel(),
    }


def clip_lora(clip: Frozen, learned: list[Tensor], images: Tensor, labels: Tensor) -> Terms:
    """Zanella and Ben Ayed 2024, section 3: A of queries, keys and values of each text and image layer, then all B.

    The weights themselves are changed, and the library's own forward does the rest.
    """
    half, rank = len(learned) // 2, len(learned[0])
    changes = [1 / math.sqrt(rank) * b @ a for a, b in zip(learned[:half], learned[half:], strict=True)]
    weights = dict(clip.model.named_parameters())
    n_text = half // 3 - clip.vision_layers
    for layer in range(half // 3):
        query, key, value = changes[3 * layer : 3 * layer + 3]
        place = layer if layer < n_text else layer - n_text
        if clip.is_open_clip:
            tower = "transformer" if layer < n_text else "visual.transformer"
            name = f"{tower}.resblocks.{place}.attn.in_proj_weight"
            weights[name] = weights[name] + torch.cat([query, key, value])
        else:
            tower = "text_model" if layer < n_text else "vision_model"
            for part, change in zip("qkv", (query, key, value), strict=True):
                name = f"{tower}.encoder.layers.{place}.self_attn.{part}_proj.weight"
                weights[name] = weights[name] + change
    ids = torch.tensor([clip.row(clip.template.format(name))[0] for name in clip.names])
    if clip.is_open_clip:
        image, text, _ = functional_call(clip.model, weights, (images, ids))
    else:
        found = functional_call(clip.model, weights, (), {"input_ids": ids, "pixel_values": images})
        image, text = found.image_embeds, found.text_embeds
    return {"cross_entropy": cross_entropy(clip.logits(image, text), labels)}


def of_sum(terms: Terms, learned: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(sum(terms.values()), learned))  # type: ignore[arg-type]


def projected(terms: Terms, learned: list[Tensor]) -> list[Tensor]:
    """Zhu et al. 2023, equation 5: of the own gradient, what runs against the general one is taken off."""
    gradients = []
    for own, general in zip(
        torch.autograd.grad(terms["cross_entropy"], learned, retain_graph=True),
        torch.autograd.grad(terms["general"], learned),
        strict=True,
    ):
        direction = general / general.norm()
        along = (own * direction).sum()
        gradients.append(own - along * direction if along < 0 else own)
    return gradients


@dataclass
class Momentum:
    """Stochastic gradient descent as the papers set it, the rate by the epoch."""

    lr: float
    velocity: list[Tensor] = field(default_factory=list)

    def rate(self, step: int, n_steps: int, n_epochs: int) -> float:
        epoch = step * n_epochs // n_steps
        return 1e-5 if epoch == 0 else self.lr * (1 + math.cos(math.pi * (epoch - 1) / n_epochs)) / 2

    def moved(self, learned: list[Tensor], gradients: list[Tensor], rate: float) -> list[Tensor]:
        pulled = [gradient + 5e-4 * value for value, gradient in zip(learned, gradients, strict=True)]
        old = self.velocity or [torch.zeros_like(value) for value in learned]
        self.velocity = [0.9 * before + now for before, now in zip(old, pulled, strict=True)]
        return [value - rate * speed for value, speed in zip(learned, self.velocity, strict=True)]


@dataclass
class AdamW:
    """Loshchilov and Hutter 2019, algorithm 2, as CLIP-LoRA sets it, the rate by the step."""

    lr: float
    means: list[Tensor] = field(default_factory=list)
    squares: list[Tensor] = field(default_factory=list)
    n_done: int = 0

    def rate(self, step: int, n_steps: int, n_epochs: int) -> float:
        return 1e-6 + (self.lr - 1e-6) * (1 + math.cos(math.pi * step / n_steps)) / 2

    def moved(self, learned: list[Tensor], gradients: list[Tensor], rate: float) -> list[Tensor]:
        zeros = [torch.zeros_like(value) for value in learned]
        self.means = [0.9 * m + 0.1 * g for m, g in zip(self.means or zeros, gradients, strict=True)]
        self.squares = [0.999 * s + 0.001 * g * g for s, g in zip(self.squares or zeros, gradients, strict=True)]
        self.n_done += 1
        found = []
        for value, mean, square in zip(learned, self.means, self.squares, strict=True):
            step = mean / (1 - 0.9**self.n_done) / ((square / (1 - 0.999**self.n_done)).sqrt() + 1e-8)
            found.append(value - rate * 1e-2 * value - rate * step)
        return found


@dataclass(frozen=True)
class Method:
    """What a paper says: loss terms, what is made of their gradients, optimiser, and whose weights are averaged."""

    terms: Callable[[Frozen, list[Tensor], Tensor, Tensor], Terms]
    lr: float
    optimizer: type[Momentum] | type[AdamW] = Momentum
    gradients: Callable[[Terms, list[Tensor]], list[Tensor]] = of_sum
    gaussian: tuple[float, float] | None = None


METHODS = {
    "cocoop": Method(cocoop, 0.002),
    "kgcoop": Method(kgcoop, 0.002),
    "prograd": Method(prograd, 0.002, gradients=projected),
    "deep-text": Method(deep_text, 0.0025),
    "ivlp": Method(ivlp, 0.0035),
    "maple": Method(maple, 0.0035),
    "promptsrc": Method(promptsrc, 0.0025, gaussian=(15.0, 1.0)),
    "clip-lora": Method(clip_lora, 2e-4, AdamW),
}


@dataclass
class Learning:
    """Of every step the terms, the gradient of the cross entropy, the one that was used, and where it led; the end."""

    terms: list[Terms] = field(default_factory=list)
    own: list[list[Tensor]] = field(default_factory=list)
    gradients: list[list[Tensor]] = field(default_factory=list)
    places: list[list[Tensor]] = field(default_factory=list)
    last: list[Tensor] = field(default_factory=list)


def learn(method: Method, clip: Frozen, start: list[Tensor], batches: Sequence[Batch], n_epochs: int) -> Learning:
    """Equally many batches in each epoch."""
    found, optimizer, learned = Learning(), method.optimizer(method.lr), start
    for step, (images, labels) in enumerate(batches):
        leaves = [value.detach().requires_grad_() for value in learned]
        terms = method.terms(clip, leaves, images, labels)
        found.own.append(list(torch.autograd.grad(terms["cross_entropy"], leaves, retain_graph=True)))
        gradients = method.gradients(terms, leaves)
        rate = optimizer.rate(step, len(batches), n_epochs)
        learned = optimizer.moved([leaf.detach() for leaf in leaves], gradients, rate)
        found.terms.append({name: term.detach() for name, term in terms.items()})
        found.gradients.append(gradients)
        found.places.append(learned)
    ends = found.places[len(batches) // n_epochs - 1 :: len(batches) // n_epochs]
    found.last = learned if method.gaussian is None else gaussian_mean(ends, *method.gaussian)
    return found


def gaussian_mean(ends: Sequence[list[Tensor]], mean: float, std: float) -> list[Tensor]:
    """Khattak et al. 2023b, section 3.2.2: the mean over the ends of epochs 1, 2, ..., by a normal density."""
    weights = [math.exp(-0.5 * ((epoch - mean) / std) ** 2) for epoch in range(1, len(ends) + 1)]
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    return [torch.tensordot(shares, torch.stack(each), 1) for each in zip(*ends, strict=True)]
