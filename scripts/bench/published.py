"""The steps of the published codes in plain PyTorch: towers run whole, every text at full length, in every step.

Written after the code of CoOp and CoCoOp (Zhou et al. 2022), KgCoOp (Yao et al. 2023), ProGrad (Zhu et al. 2023), MaPLe
and PromptSRC (Khattak et al. 2023), CLIP-LoRA (Zanella and Ben Ayed 2024), TPT (Shu et al. 2022), Tip-Adapter (Zhang et
al. 2022), CLIP-Adapter (Gao et al. 2021), TaskRes (Yu et al. 2023), CLAP (Silva-Rodriguez et al. 2024), LP++ (Huang et
al. 2024) and GDA (Wang et al. 2024). What learns is taken from a classifier of ours, so that gradients can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from plain import class_features
from text_step import at_full_length
from torch import Tensor, nn

from mmprompt.classification.predictor import Classifier
from mmprompt.models.sites import LowRank, Site, low_rank_of

Step = tuple[Tensor, Sequence[Tensor]]
"""A loss, and the gradients of all that learns."""


@dataclass(frozen=True)
class Setting:
    """What a published step reads.

    Args:
        classifier: holds the frozen model, and what learns.
        pixels: [B, 3, H, W].
        labels: [B].
        teacher: [C, E] of hand-written words, of methods that have some.
    """

    classifier: Classifier
    pixels: Tensor
    labels: Tensor
    teacher: Tensor | None = None

    @property
    def model(self) -> Any:
        """The model of open_clip."""
        return self.classifier.backbone.model  # type: ignore[attr-defined]

    @property
    def leaves(self) -> list[nn.Parameter]:
        """All that learns."""
        return [each for each in self.classifier.prompt.parameters() if each.requires_grad]

    def text(self) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids [C, 77], context indices [C, 77] and the place of the end token [C]."""
        (line,) = self.classifier.prompt.template.lines  # type: ignore[attr-defined]
        slots = line.slots(self.classifier.backbone, self.classifier.class_names)
        return *at_full_length(slots, self.classifier.backbone.context_length), slots.lengths - 1

    def logits(self, images: Tensor, classes: Tensor) -> Tensor:
        """The scaled cosine."""
        return self.classifier.backbone.logit_scale * images @ classes.T

    def frozen_images(self) -> Tensor:
        """Image features [B, E] without a graph."""
        with torch.no_grad():
            return self.model.encode_image(self.pixels, normalize=True)

    def stepped(self, *terms: Tensor) -> Step:
        """The sum of loss terms and its gradients."""
        loss = torch.stack(terms).sum()
        return loss.detach(), torch.autograd.grad(loss, self.leaves)


def image_features(model: Any, images: Tensor, prompts: Mapping[int, Tensor]) -> Tensor:
    """Unit features [B, E] with prompts [M, D] by layer, appended before the first norm (MaPLe, released code)."""
    visual = model.visual
    x = visual.conv1(images).flatten(2).transpose(1, 2)  # [B, P, D]
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    n_own = x.shape[1]
    if 0 in prompts:
        x = torch.cat([x, prompts[0].expand(len(x), -1, -1)], dim=1)
    x = visual.ln_pre(x)
    for layer, block in enumerate(visual.transformer.resblocks):
        if layer and layer in prompts:
            x = torch.cat([x[:, :n_own], prompts[layer].expand(len(x), -1, -1)], dim=1)
        x = block(x)
    return F.normalize(visual.ln_post(x[:, 0]) @ visual.proj, dim=-1)


def prompts_of(setting: Setting, tower: str) -> dict[int, Tensor]:
    """What is learned in a tower, by layer."""
    inserts = setting.classifier.prompt.inserts(tower)  # type: ignore[arg-type]
    return {site.layer: insert.values for site, insert in inserts.items()}  # type: ignore[union-attr]


def classes_of(setting: Setting) -> Tensor:
    """Class features [C, E], every text at full length."""
    prompts = prompts_of(setting, "text")
    return class_features(setting.model, *setting.text(), prompts[0], {k: v for k, v in prompts.items() if k})


def coop(setting: Setting) -> Step:
    """The image tower and all texts, in every step."""
    logits = setting.logits(setting.frozen_images(), classes_of(setting))
    return setting.stepped(F.cross_entropy(logits, setting.labels))


def kgcoop(setting: Setting) -> Step:
    """CoOp, and the distance from the hand-written words."""
    classes = classes_of(setting)
    logits = setting.logits(setting.frozen_images(), classes)
    distance = 1 - F.cosine_similarity(classes, setting.teacher).mean()
    return setting.stepped(F.cross_entropy(logits, setting.labels), 8.0 * distance)


def prograd(setting: Setting) -> Step:
    """Two backward passes; the frozen model reads the images a second time."""
    assert setting.teacher is not None, "the words have been read"
    logits = setting.logits(setting.frozen_images(), classes_of(setting))
    general_logits = setting.logits(setting.frozen_images(), setting.teacher)
    own_loss = F.cross_entropy(logits, setting.labels)
    general_loss = -(general_logits.softmax(-1) * logits.log_softmax(-1)).sum(1).mean()
    general = torch.autograd.grad(general_loss, setting.leaves, retain_graph=True)
    own = torch.autograd.grad(own_loss, setting.leaves)
    aligned = []
    for toward, gradient in zip(general, own, strict=True):
        unit = toward / toward.norm()
        along = (gradient * unit).sum()
        aligned.append(gradient - along * unit if along < 0 else gradient)
    return (own_loss + general_loss).detach(), aligned


def cocoop_image(setting: Setting, index: int) -> Step:
    """One image: its features, its context, all texts with that."""
    source: Any = setting.classifier.prompt.sources[0]
    with torch.no_grad():
        image = setting.model.encode_image(setting.pixels[index : index + 1], normalize=True)
    ctx = source.context + source.up(source.down(image).relu())
    classes = class_features(setting.model, *setting.text(), ctx, {})
    return setting.stepped(F.cross_entropy(setting.logits(image, classes), setting.labels[index : index + 1]))


def cocoop(setting: Setting) -> Step:
    """One image after the other; the mean over them."""
    steps = [cocoop_image(setting, index) for index in range(len(setting.pixels))]
    gradients = [torch.stack(each).mean(0) for each in zip(*(gradients for _, gradients in steps), strict=True)]
    return torch.stack([loss for loss, _ in steps]).mean(), gradients


def both_towers(setting: Setting) -> Step:
    """Prompts in both towers: MaPLe and IVLP."""
    images = image_features(setting.model, setting.pixels, prompts_of(setting, "vision"))
    return setting.stepped(F.cross_entropy(setting.logits(images, classes_of(setting)), setting.labels))


def promptsrc(setting: Setting) -> Step:
    """Both towers, the frozen image tower beside them, and three distances."""
    assert setting.teacher is not None, "the words have been read"
    classes = classes_of(setting)
    images = image_features(setting.model, setting.pixels, prompts_of(setting, "vision"))
    logits, frozen = setting.logits(images, classes), setting.frozen_images()
    frozen_logits = setting.logits(frozen, setting.teacher)
    distance = F.kl_div(logits.log_softmax(1), frozen_logits.log_softmax(1), reduction="sum", log_target=True)
    return setting.stepped(
        F.cross_entropy(logits, setting.labels),
        25.0 * F.l1_loss(classes, setting.teacher),
        10.0 * F.l1_loss(images, frozen),
        distance / logits.numel(),
    )


def clip_lora(setting: Setting) -> Step:
    """Low-rank terms in both towers, every text at full length, in every step."""
    model, visual = setting.model, setting.model.visual
    terms = low_rank_of(setting.classifier.prompt.inserts())
    token_ids, _, ends = setting.text()
    x = model.token_embedding(token_ids) + model.positional_embedding
    for layer, block in enumerate(model.transformer.resblocks):
        x = block_with_terms(block, x, terms, "text", layer, model.attn_mask)
    classes = model.ln_final(x)[torch.arange(len(x)), ends] @ model.text_projection
    x = visual.conv1(setting.pixels).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    x = visual.ln_pre(x)
    for layer, block in enumerate(visual.transformer.resblocks):
        x = block_with_terms(block, x, terms, "vision", layer, None)
    images = visual.ln_post(x[:, 0]) @ visual.proj
    logits = setting.logits(F.normalize(images, dim=-1), F.normalize(classes, dim=-1))
    return setting.stepped(F.cross_entropy(logits, setting.labels))


def block_with_terms(
    block: Any, x: Tensor, terms: Mapping[Site, LowRank], tower: Any, layer: int, mask: Tensor | None
) -> Tensor:
    """A block whose queries, keys and values have a low-rank term each."""
    h, attention, parts = block.ln_1(x), block.attn, []
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
        term = terms[Site(tower, layer, part)]  # type: ignore[arg-type]
        y = F.linear(h, weight, bias) + term.scale * F.linear(F.linear(h, term.a), term.b)
        parts.append(y.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2))  # [B, H, L, D/H]
    mixed = F.scaled_dot_product_attention(*parts, attn_mask=mask).transpose(1, 2).flatten(2)
    x = x + attention.out_proj(mixed)
    return x + block.mlp(block.ln_2(x))


def tpt(setting: Setting, views: Tensor) -> Tensor:
    """Probabilities [C] of one image, after one step of AdamW on its views; it is then read once more."""
    model, text = setting.model, setting.text()
    ctx = prompts_of(setting, "text")[0].detach().clone().requires_grad_()
    optimizer = torch.optim.AdamW([ctx], lr=5e-3)
    with torch.no_grad():
        images = model.encode_image(views, normalize=True)
    logits = setting.logits(images, class_features(model, *text, ctx, {}))
    entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1)
    chosen = logits[entropy.argsort()[: int(len(logits) * 0.1)]].log_softmax(1)
    mean = chosen.logsumexp(0) - torch.log(torch.tensor(float(len(chosen))))
    (-(mean.exp() * mean).sum()).backward()
    optimizer.step()
    with torch.no_grad():
        image = model.encode_image(views[:1], normalize=True)
        return setting.logits(image, class_features(model, *text, ctx, {}))[0].softmax(-1)


def head_logits(setting: Setting, images: Tensor, text: Tensor) -> Tensor:
    """Logits of a head that learns, as its paper writes them."""
    head: Any = setting.classifier.prompt.head
    if head.kind == "cache":
        affinity = F.linear(images, head.keys)
        votes = ((-1) * (head.sharpness - head.sharpness * affinity)).exp() @ head.values
        return setting.logits(images, text) + head.weight * votes
    if head.kind == "feature-adapter":
        changed = F.relu(F.linear(F.relu(F.linear(images, head.down.weight)), head.up.weight))
        return setting.logits(F.normalize(0.2 * changed + 0.8 * images, dim=-1), text)
    if head.kind == "residual":
        return setting.logits(images, F.normalize(text + 0.5 * head.residual, dim=-1))
    return setting.logits(images, F.normalize(head.weight, dim=-1))


def head_step(setting: Setting, images: Tensor, labels: Tensor, text: Tensor) -> Step:
    """A step of a head on image features."""
    terms = [F.cross_entropy(head_logits(setting, images, text), labels)]
    head: Any = setting.classifier.prompt.head
    if head.kind == "prototypes":
        terms.append((head.trust * (head.weight - head.start).pow(2).sum(-1)).mean())
    return setting.stepped(*terms)


def gda(features: Tensor, labels: Tensor, text: Tensor, held_out: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Weight [C, E] and bias [C] of Gaussian classes, and a sweep of their share by the images held out."""
    n_classes, width = text.shape
    means = torch.stack([features[labels == label].mean(0) for label in range(n_classes)])
    centred = torch.cat([features[labels == label] - means[label] for label in range(n_classes)])
    covariance = centred.T.cov()
    ridge = covariance.trace() * torch.eye(width, dtype=features.dtype)
    inverse = width * torch.linalg.pinv((len(centred) - 1) * covariance + ridge)
    weight = means @ inverse
    bias = -torch.log(torch.tensor(float(n_classes))) - (means * weight).sum(1) / 2
    others, truth = held_out
    for share in (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0):
        F.cross_entropy(100 * others @ text.T + share * (others @ weight.T + bias), truth)
    return weight, bias


def lp_plus_plus(
    features: Tensor, labels: Tensor, text: Tensor, held_out: tuple[Tensor, Tensor], n_steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The text's weights [C], weight [C, E] and bias [C] of the best step; text logits are computed in each.

    The text's weights step down their own gradient, as the paper writes it; the released code sums up all so far.
    """
    n_classes = len(text)
    shots = len(labels) // n_classes
    weight = torch.stack([features[labels == label].sum(0) for label in range(n_classes)]).requires_grad_()
    bias = torch.zeros(n_classes, dtype=features.dtype, requires_grad=True)
    own = torch.stack([(features @ text.T)[labels == label, label].sum() for label in range(n_classes)])
    alpha = (250 / shots * own.mean() * torch.ones(1, n_classes, dtype=features.dtype)).requires_grad_()
    lr = 4 * len(features) / torch.linalg.eigvalsh(features.T @ features)[-1].item()
    alpha_lr = len(features) / (4 * (features @ text.T).square().sum(0).max().item())
    optimizer = torch.optim.SGD([weight, bias], lr, momentum=0.9)
    best, kept = -1.0, (alpha[0], weight, bias)
    ones, others_ones = torch.ones(len(features), 1).to(features), torch.ones(len(held_out[1]), 1).to(features)
    for step in range(n_steps):
        logits = F.linear(features, weight, bias) + ones @ alpha * (features @ text.T)
        optimizer.zero_grad()
        alpha.grad = None
        F.cross_entropy(logits, labels).backward()
        optimizer.step()
        if (step + 1) % 10 == 0:
            alpha.data -= alpha_lr * alpha.grad.data
        others = F.linear(held_out[0], weight, bias) + others_ones @ alpha * (held_out[0] @ text.T)
        accuracy = (others.argmax(1) == held_out[1]).double().mean().item()
        if accuracy >= best:
            best, kept = accuracy, (alpha[0].detach().clone(), weight.detach().clone(), bias.detach().clone())
    return kept


STEPS: dict[str, Callable[[Setting], Step]] = {
    "coop": coop,
    "cocoop": cocoop,
    "kgcoop": kgcoop,
    "prograd": prograd,
    "ivlp": both_towers,
    "maple": both_towers,
    "promptsrc": promptsrc,
    "clip-lora": clip_lora,
}
