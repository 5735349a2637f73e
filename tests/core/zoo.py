"""Methods of the field in their smallest form, on the hooks of the core alone.

They prove what the package's own methods do not need: sources that read the image, serve both towers or are low-rank
terms, heads that are filled or that learn, a gradient rule, a teacher, an average of weights, adaptation at test time.
`kinds` says what of them a file may name; the tests register it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmprompt.classification.methods import CoOp
from mmprompt.classification.methods.base import ClassificationMethod
from mmprompt.classification.predictor import Classifier
from mmprompt.classification.template import ClassTemplate
from mmprompt.core.heads import Head
from mmprompt.core.learned import Given, Inserts, Learned, Outputs, Prompt, Source, random_vectors
from mmprompt.core.method import FrozenFeatures, Start, cross_entropy
from mmprompt.data.images import ImageLike, as_list, read_image
from mmprompt.data.transforms import augment_coop
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.image_features import ImageFeatures
from mmprompt.models.sites import LowRank, Site, Tower, Vectors
from mmprompt.training.callbacks import Callback
from mmprompt.training.problem import Run
from mmprompt.training.recipe import Recipe


def drawn(module: nn.Module, generator: torch.Generator, std: float = 0.2) -> nn.Module:
    """The module with every parameter drawn anew."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, std, generator=generator)
    return module


def need_image_tokens(backbone: DualEncoder, method: str) -> int:
    if backbone.vision_width is None:
        raise UserError(f"{method} learns in the image tower, but {backbone.name} has no image tokens. Use coop.")
    return backbone.vision_width


class Conditioned(Source):
    """Context vectors plus a shift that a small network makes of the image (CoCoOp)."""

    kind = "zoo-conditioned"
    needs_image = True

    def __init__(self, n_ctx: int, image_width: int, text_width: int) -> None:
        super().__init__()
        self.sites = (Site("text"),)
        hidden = max(8, image_width // 16)
        self.context = nn.Parameter(torch.zeros(n_ctx, text_width))
        self.network = nn.Sequential(nn.Linear(image_width, hidden), nn.ReLU(), nn.Linear(hidden, text_width))

    def settings(self) -> dict[str, Any]:
        first = self.network[0]
        return {"n_ctx": len(self.context), "image_width": first.in_features, "text_width": self.context.shape[1]}

    def forward(self, given: Given) -> Inserts:
        assert given.image_features is not None
        shift = self.network(given.image_features.to(self.context.dtype))  # [B, D]
        return {self.sites[0]: Vectors(self.context + shift[:, None], "sample")}


class Coupled(Source):
    """Vectors of several text layers, and what a linear map of each makes of them for the image tower (MaPLe)."""

    def __init__(self, n_ctx: int, depth: int, text_width: int, vision_width: int) -> None:
        super().__init__()
        towers: tuple[Tower, ...] = ("text", "vision")
        self.sites = tuple(Site(tower, layer) for tower in towers for layer in range(depth))
        self.vectors = nn.ParameterList([nn.Parameter(torch.zeros(n_ctx, text_width)) for _ in range(depth)])
        self.maps = nn.ModuleList([nn.Linear(text_width, vision_width) for _ in range(depth)])

    def forward(self, given: Given) -> Inserts:
        text = {Site("text", layer): Vectors(values) for layer, values in enumerate(self.vectors)}
        pairs = enumerate(zip(self.vectors, self.maps, strict=True))
        return text | {Site("vision", layer): Vectors(to_vision(values)) for layer, (values, to_vision) in pairs}


class LowRankTerms(Source):
    """Low-rank terms beside projections (LoRA); none of `x` is dropped outside training."""

    kind = "zoo-low-rank"

    def __init__(self, places: Mapping[str, int], rank: int = 2, scale: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.places, self.rank, self.scale, self.dropout = dict(places), rank, scale, dropout
        self.sites = tuple(Site.parse(place) for place in places)
        self.a = nn.ParameterList([nn.Parameter(torch.zeros(rank, width)) for width in places.values()])
        self.b = nn.ParameterList([nn.Parameter(torch.zeros(width, rank)) for width in places.values()])

    def settings(self) -> dict[str, Any]:
        return {"places": self.places, "rank": self.rank, "scale": self.scale, "dropout": self.dropout}

    def forward(self, given: Given) -> Inserts:
        dropout = self.dropout if self.training else 0.0
        parts = zip(self.sites, self.a, self.b, strict=True)
        return {site: LowRank(a, b, self.scale, dropout) for site, a, b in parts}


class Cache(Head):
    """The cosine with the text, and labels of training images by their likeness to the image (Tip-Adapter)."""

    kind = "zoo-cache"

    def __init__(self, n_keys: int, width: int, n_classes: int, scale: float, bias: float, sharpness: float) -> None:
        super().__init__()
        self.scale, self.bias, self.sharpness = scale, bias, sharpness
        self.keys = nn.Parameter(torch.zeros(n_keys, width))
        self.register_buffer("values", torch.zeros(n_keys, n_classes))

    def settings(self) -> dict[str, Any]:
        n_keys, width = self.keys.shape
        made = {"n_keys": n_keys, "width": width, "n_classes": self.values.shape[1]}
        return made | {"scale": self.scale, "bias": self.bias, "sharpness": self.sharpness}

    def forward(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        likeness = image_features @ self.keys.to(image_features.dtype).T  # [B, N]
        votes = (self.sharpness * (likeness - 1)).exp() @ self.values.to(image_features.dtype)
        return self.scale * image_features @ class_features.T + self.bias + votes


@dataclass(frozen=True)
class CoCoOp(ClassificationMethod):
    """Context conditioned on the image (Zhou et al. 2022, "Conditional Prompt Learning", section 3.2)."""

    n_ctx: int = 3

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        source = drawn(Conditioned(self.n_ctx, backbone.embed_dim, backbone.text_width), start.generator)
        return Prompt(ClassTemplate.of_context(self.n_ctx), source).to(backbone.device)  # type: ignore[arg-type]


@dataclass(frozen=True)
class MaPLe(ClassificationMethod):
    """Coupled prompts of both towers (Khattak et al. 2023, "MaPLe", section 3.2)."""

    n_ctx: int = 2
    depth: int = 2

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        vision_width = need_image_tokens(backbone, "maple")
        source = drawn(Coupled(self.n_ctx, self.depth, backbone.text_width, vision_width), start.generator)
        template = ClassTemplate(f"{{soft*{self.n_ctx}}} {{name}}.")
        return Prompt(template, source).to(backbone.device)  # type: ignore[arg-type]


@dataclass(frozen=True)
class LoRA(ClassificationMethod):
    """Low-rank terms in the attention of both towers (Zanella and Ben Ayed 2024), by steps and not by epochs."""

    rank: int = 2
    dropout: float = 0.25
    recipe: ClassVar[Recipe] = Recipe(optimizer="adamw", lr=2e-3, warmup_epochs=0, schedule="step", min_lr=1e-6)

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        need_image_tokens(backbone, "lora")
        source = LowRankTerms(places_of(backbone), self.rank, 1 / self.rank, self.dropout)
        drawn(source.a, start.generator)
        return Prompt(start.template, source).to(backbone.device)


def places_of(backbone: DualEncoder, towers: Sequence[str] = ("text", "vision")) -> dict[str, int]:
    """Queries, keys and values of every block, and the width of each."""
    shapes = {
        "text": (backbone.text_layers, backbone.text_width),
        "vision": (backbone.vision_layers, backbone.vision_width or 0),
    }
    parts: tuple[str, ...] = ("query", "key", "value")
    return {
        f"{tower}.block[{layer}].{part}": shapes[tower][1]
        for tower in towers
        for layer in range(shapes[tower][0])
        for part in parts
    }


@dataclass(frozen=True)
class TipAdapter(ClassificationMethod):
    """A cache of labelled features beside the text (Zhang et al. 2022, "Tip-Adapter", section 3)."""

    sharpness: float = 5.5
    is_trained: ClassVar[bool] = False

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        return Prompt(start.template)

    def begin(self, predictor: Classifier, data: FrozenFeatures) -> None:
        backbone, n_classes = predictor.backbone, len(predictor.class_names)
        n_keys, width = data.image_features.shape
        head = Cache(n_keys, width, n_classes, backbone.logit_scale, backbone.logit_bias, self.sharpness)
        with torch.no_grad():
            head.keys.copy_(data.image_features)
            head.values.copy_(F.one_hot(data.labels, n_classes))
        predictor.prompt.head = head.requires_grad_(self.is_trained).to(backbone.device)


@dataclass(frozen=True)
class TipAdapterF(TipAdapter):
    """The same with keys that learn."""

    is_trained: ClassVar[bool] = True
    recipe: ClassVar[Recipe] = Recipe(optimizer="adamw", lr=1e-3, eps=1e-4, schedule="step")


@dataclass(frozen=True)
class ProGrad(CoOp):
    """CoOp that never steps against what the frozen model knows (Zhu et al. 2023, "Prompt-aligned Gradient")."""

    def teacher(self, backbone: DualEncoder, class_names: Sequence[str], template: str) -> Tensor:
        return written_features(backbone, class_names)

    def loss_terms(self, outputs: Outputs) -> Mapping[str, Tensor]:
        assert outputs.frozen is not None
        return {"own": cross_entropy(outputs), "general": divergence(outputs.logits, outputs.frozen.logits)}

    @property
    def gradient_rule(self) -> Any:
        return without_conflict


def without_conflict(gradients: Mapping[str, Sequence[Tensor]]) -> list[Tensor]:
    """The own gradient, less its part against the general one."""
    result = []
    for own, general in zip(gradients["own"], gradients["general"], strict=True):
        along = (own * general).sum() / general.square().sum().clamp_min(1e-12)
        result.append(own - along.clamp(max=0) * general)
    return result


@dataclass(frozen=True)
class PromptSRC(CoOp):
    """Prompts held to the frozen model, and averaged over epochs (Khattak et al. 2023, "Self-regulating Prompts")."""

    n_visual: int = 2

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        text = super().prompt(backbone, start)
        shape = (self.n_visual, need_image_tokens(backbone, "promptsrc"))
        visual = Learned(Site("vision"), random_vectors(shape, start.generator))
        return Prompt(text.template, *text.sources, visual).to(backbone.device)

    def teacher(self, backbone: DualEncoder, class_names: Sequence[str], template: str) -> Tensor:
        return written_features(backbone, class_names)

    def loss_terms(self, outputs: Outputs) -> Mapping[str, Tensor]:
        frozen = outputs.frozen
        assert frozen is not None
        return {
            "cross_entropy": cross_entropy(outputs),
            "text": 25 * F.l1_loss(outputs.class_features, frozen.class_features),
            "image": 10 * F.l1_loss(outputs.image_features, frozen.image_features),
            "logits": divergence(outputs.logits, frozen.logits),
        }

    def callbacks(self, n_epochs: int) -> Sequence[Callback]:
        return [WeightAverage(n_epochs)]


class WeightAverage(Callback):
    """At the end the weights are their mean over epochs, later ones counting more."""

    def __init__(self, n_epochs: int) -> None:
        rising = torch.arange(1.0, n_epochs + 1, dtype=torch.float64)
        self.weights = rising / rising.sum()
        self.mean: dict[str, Tensor] = {}

    def on_train_begin(self, run: Run) -> None:
        self.mean = {}

    def on_epoch_end(self, run: Run, epoch: int, logs: dict[str, Any]) -> None:
        for name, value in run.problem.module.state_dict().items():
            self.mean[name] = self.mean.get(name, 0) + self.weights[epoch] * value.detach().double()

    def on_train_end(self, run: Run) -> None:
        run.problem.module.load_state_dict(self.mean)

    def state(self) -> dict[str, Tensor]:
        return self.mean

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.mean = dict(state)


def written_features(backbone: DualEncoder, class_names: Sequence[str]) -> Tensor:
    with torch.no_grad():
        return Classifier(backbone, Prompt(ClassTemplate("a photo of a {}.")), class_names).class_features()


def divergence(logits: Tensor, frozen: Tensor) -> Tensor:
    return F.kl_div(logits.log_softmax(1), frozen.log_softmax(1), reduction="batchmean", log_target=True)


@dataclass(frozen=True)
class TPT(ClassificationMethod):
    """Context tuned on each test image by the entropy of its views (Shu et al. 2022, "Test-Time Prompt Tuning")."""

    n_views: int = 4
    step_size: float = 0.05
    is_trained: ClassVar[bool] = False
    needs_shots: ClassVar[bool] = False

    def prompt(self, backbone: DualEncoder, start: Start) -> Prompt:
        words = CoOp(ctx_init="a photo of a").prompt(backbone, start)
        return words.requires_grad_(False)

    def predictor(self, backbone: DualEncoder, prompt: Prompt, class_names: Sequence[str]) -> Classifier:
        return TestTime(backbone, prompt, class_names, n_views=self.n_views, step_size=self.step_size)


class TestTime(Classifier):
    """A classifier whose prompt is tuned on each image and put back."""

    __test__ = False  # no class of tests, whatever its name
    form = "zoo-test-time"

    def __init__(
        self,
        backbone: DualEncoder,
        prompt: Prompt,
        class_names: Sequence[str],
        class_features: Tensor | None = None,
        *,
        n_views: int,
        step_size: float,
    ) -> None:
        super().__init__(backbone, prompt, class_names, class_features)
        self.n_views, self.step_size = n_views, step_size

    def form_settings(self) -> dict[str, Any]:
        return {"n_views": self.n_views, "step_size": self.step_size}

    def probabilities(self, paths: Sequence[Path], features: ImageFeatures | None = None) -> np.ndarray:
        return self.predict_proba(list(paths))

    def predict_proba(self, images: ImageLike | Iterable[ImageLike]) -> np.ndarray:
        rows = [self._adapted(image) for image in as_list(images)]
        return np.stack(rows) if rows else np.zeros((0, len(self.class_names)))

    def _adapted(self, source: ImageLike) -> np.ndarray:
        image, size = read_image(source), self.backbone.image_size
        crops = [self.backbone.normalize(augment_coop(image, size, 0, view, 0)) for view in range(self.n_views)]
        views = torch.stack([self.backbone.preprocess(image), *crops])
        with torch.no_grad():
            features = self.image_features(views.to(self.backbone.dtype))
        with self._tuned_on(features), torch.no_grad():
            return self.outputs(features[:1]).logits[0].double().softmax(-1).cpu().numpy()

    @contextmanager
    def _tuned_on(self, features: Tensor) -> Any:
        before = {name: value.clone() for name, value in self.prompt.state_dict().items()}
        self.prompt.requires_grad_(True)
        optimizer = torch.optim.AdamW(self.prompt.parameters(), lr=self.step_size)
        with torch.enable_grad():
            mean = self.outputs(features).logits.softmax(1).mean(0)
            (-(mean * mean.log()).sum()).backward()
        optimizer.step()
        yield
        self.prompt.zero_grad(set_to_none=True)
        self.prompt.requires_grad_(False).load_state_dict(before)


METHODS: dict[str, type[ClassificationMethod]] = {
    "zoo-cocoop": CoCoOp,
    "zoo-maple": MaPLe,
    "zoo-lora": LoRA,
    "zoo-tip-adapter": TipAdapter,
    "zoo-tip-adapter-f": TipAdapterF,
    "zoo-prograd": ProGrad,
    "zoo-promptsrc": PromptSRC,
    "zoo-tpt": TPT,
}
SOURCES = {Conditioned.kind: Conditioned, LowRankTerms.kind: LowRankTerms}
HEADS = {Cache.kind: Cache}
CLASSIFIERS = {TestTime.form: TestTime}
