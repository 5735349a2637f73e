"""A frozen dual encoder and a prompt, together a classifier: an `nn.Module` for training, `predict` for use.

Whichever tower holds nothing learned has features that never change: they are computed once. It knows no loss and no
optimiser.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mmprompt.display as display
from mmprompt.classification.template import ClassTemplate, check_class_names, refuse_single_class
from mmprompt.core.file import model_of, read_prompt, refuse_other_backbone
from mmprompt.core.header import HEADER, RESTORE, TENSORS
from mmprompt.core.heads import Cosine, Head, TextAndMeans, TextProbe
from mmprompt.core.learned import Given, Outputs, Prompt
from mmprompt.data.images import ImageLike, as_list, is_one, read_image
from mmprompt.errors import UserError, bad_file, bad_value, unknown_name
from mmprompt.models.dual_encoder.interface import DualEncoder, without_text
from mmprompt.models.dual_encoder.load import load_backbone
from mmprompt.models.image_features import ImageFeatures, encode_images
from mmprompt.models.sites import TextSlots
from mmprompt.settings import Share, check

if TYPE_CHECKING:
    from pandas import DataFrame

PREDICT_BATCH = 64
N_SHOWN = 5
NEAR_UNIT = 0.02
"""How far the norm of stored features may be from 1, in half precision too."""


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one image.

    Args:
        label: the most probable class name; None where it is less probable than the threshold that was asked for.
        probability: of the most probable class name, 0..1.
        probabilities: the probability of every class, most probable first.
    """

    label: str | None
    probability: float
    probabilities: dict[str, float]

    def __repr__(self) -> str:
        said = "I don't know" if self.label is None else self.label
        return f"<Prediction: {said} {self.probability:.3f}, of {len(self.probabilities)} classes>"

    def _repr_html_(self) -> str:
        said = "I don't know" if self.label is None else self.label
        return display.section(said, display.bars(dict(islice(self.probabilities.items(), N_SHOWN))))

    def to_frame(self) -> DataFrame:
        """Return the classes with their probabilities, the most probable first, as a pandas DataFrame.

        Raises:
            UserError: pandas is not installed.
        """
        return display.frame({"class": [*self.probabilities], "probability": [*self.probabilities.values()]})


class Classifier(nn.Module):
    """Logits over class names from a frozen backbone steered by a prompt.

    The backbone is not a sub-module: `parameters()` and `state_dict()` hold the prompt alone.

    Args:
        backbone: the frozen model.
        prompt: all that was learned, and the words around the class name.
        class_names: C names, the order of the logits.
        class_features: [C, E] of unit norm as saved, so that loading encodes no text; computed if None.
    Raises:
        UserError: a class name is empty, repeated, or too long for the text tower.
    """

    kind = "classification"
    form: ClassVar[str] = ""
    """The name under which `CLASSIFIERS` knows a class of its own, "" for the ordinary one."""

    def __init__(
        self, backbone: DualEncoder, prompt: Prompt, class_names: Sequence[str], class_features: Tensor | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.prompt = prompt
        check_class_names(class_names)
        self.class_names = tuple(map(str, class_names))  # Python's own, not numpy's
        self._cosine = Cosine(backbone.logit_scale, backbone.logit_bias)
        self._slots: list[TextSlots] | None = None if class_features is not None else self._all_slots()
        self._cached = class_features
        with self.in_use():
            self._cached_for = None if class_features is None else self._versions()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self.class_names)} classes on {self.backbone.name}>"

    def _repr_html_(self) -> str:
        shown = ", ".join(self.class_names[:N_SHOWN]) + (", …" if len(self.class_names) > N_SHOWN else "")
        return display.section(repr(self)[1:-1], display.facts({"classes": shown} | self.prompt.facts()))

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of a batch.

        Args:
            images: [B, 3, H, W], as `backbone.preprocess` gives them.
        Returns:
            [B, C].
        """
        return self.outputs(self.image_features(images)).logits

    def outputs(self, image_features: Tensor, labels: Tensor | None = None, frozen: Outputs | None = None) -> Outputs:
        """Compute all that a loss may look at.

        Args:
            image_features: [B, E] of unit norm, or [B, E + W] for a head that reads raw features.
            labels: [B], None where nothing is known of the images.
            frozen: see `Outputs`.
        """
        joint = image_features[:, : self.backbone.embed_dim]
        head = self._cosine if self.prompt.head is None else self.prompt.head
        if not self.backbone.has_text and getattr(head, "reads_text", True):
            raise without_text(self.backbone.name)
        class_features = self.class_features(joint)
        return Outputs(head(image_features, class_features), labels, joint, class_features, frozen, head)

    def image_features(self, images: Tensor) -> Tensor:
        """Compute features [B, E] of images [B, 3, H, W], with a graph only if learned parts are inside.

        For a head that reads raw features they are [B, E + W]; see `DualEncoder.encode_image`.
        """
        images = images.to(self.backbone.device)
        if not self.prompt.has("vision"):
            with torch.no_grad():
                return self.backbone.encode_image(images, raw=self.reads_raw)
        return self.backbone.encode_image(images, self.prompt.inserts("vision"), raw=self.reads_raw)

    @property
    def reads_raw(self) -> bool:
        """Whether the head reads what the image tower gives before the projection."""
        return getattr(self.prompt.head, "reads_raw", False)

    def class_features(self, image_features: Tensor | None = None) -> Tensor:
        """Give unit-norm features [C, E] of the class names, computed again only if what is learned has changed.

        An image tower alone knows no names, and they are [C, 0].

        Args:
            image_features: [B, E]; needed where a source reads the image, and the result is then [B, C, E].
        Raises:
            UserError: they are needed and not given.
        """
        if not self.backbone.has_text:
            return torch.empty(len(self.class_names), 0, device=self.backbone.device, dtype=self.backbone.dtype)
        if self.prompt.needs_image:
            if image_features is None:
                raise UserError(
                    "the class features of this prompt depend on the image, but no image features were given. "
                    "Give class_features those of some images."
                )
            return self._encode_text(Given(image_features))
        if self._cached is not None and torch.compiler.is_exporting():
            return self._cached  # a constant of the exported graph
        parameters = (parameter for source in self.prompt.sources_of("text") for parameter in source.parameters())
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters):
            return self._encode_text(Given())
        versions = self._versions()
        if self._cached is None or self._cached_for != versions:
            with torch.no_grad(), torch.autocast(self.backbone.device.type, enabled=False):  # it outlives a step
                self._cached, self._cached_for = self._encode_text(Given()), versions
        return self._cached

    @torch.no_grad()
    def unscaled_class_features(self) -> Tensor:
        """Compute class features [C, E] on the CPU before they are scaled to unit norm, the mean over all templates."""
        inserts = self.prompt.inserts("text")
        slots = self._slots or self._all_slots()
        return torch.stack([self.backbone.encode_text(each, inserts, normalise=False) for each in slots]).mean(0).cpu()

    def _encode_text(self, given: Given) -> Tensor:
        if self._slots is None:
            self._slots = self._all_slots()
        inserts = self.prompt.inserts("text", given)
        each = [self.backbone.encode_text(slots, inserts) for slots in self._slots]
        return each[0] if len(each) == 1 else F.normalize(torch.stack(each).mean(0), dim=-1)

    def _all_slots(self) -> list[TextSlots]:
        if not self.backbone.has_text:
            return []
        return [line.slots(self.backbone, self.class_names) for line in self.prompt.template.lines]  # type: ignore[attr-defined]

    def _versions(self) -> tuple[Any, ...]:
        """Say where all that the text depends on lies, how often it was written to, and in which mode it is."""
        sources = self.prompt.sources_of("text")
        tensors = [tensor for source in sources for tensor in (*source.parameters(), *source.buffers())]
        modes = tuple(source.training for source in sources)
        return modes, *((tensor.data_ptr(), tensor._version) for tensor in tensors)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Leave out for a while what is done in training alone, such as dropout."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode

    @torch.no_grad()
    def probabilities(self, paths: Sequence[Path], features: ImageFeatures | None = None) -> np.ndarray:
        """Compute class probabilities of image files, with features shared where nothing learned is in the image tower.

        Args:
            paths: N image files.
            features: shared features of image files.
        Returns:
            [N, C] float64, rows sum to 1.
        Raises:
            UserError: an image cannot be read.
        """
        return self.probabilities_of(self.features_of(paths, features))

    @torch.no_grad()
    def features_of(self, paths: Sequence[Path], features: ImageFeatures | None = None) -> Tensor:
        """Compute features [N, E] of image files as `outputs` takes them; arguments as of `probabilities`."""
        features = features or ImageFeatures(self.backbone)
        features.refuse_other(self.backbone)
        with self.in_use():
            inserts = self.prompt.inserts("vision")
        if inserts:
            return encode_images(self.backbone, paths, inserts, raw=self.reads_raw)
        return features.wide(paths) if self.reads_raw else features.of(paths)

    def probabilities_of(self, encoded: Tensor) -> np.ndarray:
        """Compute class probabilities [N, C] float64 of `features_of` image files."""
        with self.in_use():
            return self._table(encoded.split(PREDICT_BATCH) if self.prompt.needs_image else [encoded])

    def predict_proba(self, images: ImageLike | Iterable[ImageLike]) -> np.ndarray:
        """Compute class probabilities of images.

        Args:
            images: a path, PIL image, array (HWC or HW) or tensor (CHW), or many of them.
        Returns:
            [N, C] float64, rows sum to 1, columns in the order of `class_names`.
        Raises:
            UserError: there is one class only, or an image cannot be read.
        """
        refuse_single_class(self.class_names)
        with self.in_use():
            return self._table(self._encoded(as_list(images)))

    @torch.no_grad()
    def _encoded(self, sources: Sequence[ImageLike]) -> Iterator[Tensor]:
        for start in range(0, len(sources), PREDICT_BATCH):
            read = [self.backbone.preprocess(read_image(one)) for one in sources[start : start + PREDICT_BATCH]]
            yield self.image_features(torch.stack(read).to(self.backbone.dtype))

    @torch.no_grad()
    def _table(self, batches: Iterable[Tensor]) -> np.ndarray:
        rows = [self.outputs(part).logits.double().softmax(-1).cpu().numpy() for part in batches if len(part)]
        return np.concatenate(rows) if rows else np.zeros((0, len(self.class_names)))

    def predict(self, images: ImageLike | Iterable[ImageLike], threshold: float = 0.0) -> Prediction | list[Prediction]:
        """Say what the classifier sees: a `Prediction` for one image, a list of them for many.

        Args:
            images: as for `predict_proba`.
            threshold: 0..1; where no class is as probable as that, the label is None: "I don't know".
        Raises:
            UserError: as for `predict_proba`, or the threshold is no probability.
        """
        check("threshold", threshold, Share, "Use `threshold=0.5`.")
        predictions = [self._prediction(row, threshold) for row in self.predict_proba(images)]
        return predictions[0] if is_one(images) else predictions

    def _prediction(self, row: np.ndarray, threshold: float) -> Prediction:
        order = np.argsort(-row, kind="stable")
        ranked = {self.class_names[i]: float(row[i]) for i in order}
        best = next(iter(ranked))
        return Prediction(best if ranked[best] >= threshold else None, ranked[best], ranked)

    def update(self, images: ImageLike | Iterable[ImageLike], labels: str | Sequence[str]) -> None:
        """Learn at once from images whose classes somebody said; nothing learned before is forgotten.

        Each image is added to the vector of its class, `unit(text + sum of images)`, so that the order does not matter;
        the probe of a `text-probe` stays as it is.

        Args:
            images: as for `predict_proba`; of none nothing is learned.
            labels: the class name of each; one for one image.
        Raises:
            UserError: a label is not a class name, there is not one for each image, there is no text tower, or this
                classifier has a head of another kind.
        """
        check("labels", labels, str | Sequence[str], "Give the class name of each image.")
        sources, names = as_list(images), [labels] if isinstance(labels, str) else list(labels)
        if len(sources) != len(names):
            raise bad_value("labels", len(names), f"there are {len(sources)} images", "Give one for each image.")
        for name in names:
            if name not in self.class_names:
                raise unknown_name("label", str(name), self.class_names)
        if not self.backbone.has_text:
            problem = "has no text tower, to whose class features images are added"
            raise UserError(f"{self.backbone.name} {problem}. Train again with all images, or on a dual encoder.")
        head = self.prompt.head.beside if isinstance(self.prompt.head, TextProbe) else self.prompt.head
        if not isinstance(head, TextAndMeans | None):
            raise UserError(
                f"this classifier has a head of kind {getattr(self.prompt.head, 'kind', '?')!r}, which learns from all "
                "its images at once. Use `text-and-means`, or a prompt without a head."
            )
        if not sources:
            return
        with self.in_use():
            features = torch.cat(list(self._encoded(sources)))[:, : self.backbone.embed_dim]
        if head is None:
            scale, bias = self.backbone.logit_scale, self.backbone.logit_bias
            head = TextAndMeans(len(self.class_names), features.shape[1], scale, bias).to(self.backbone.device)
            self.prompt.head = head
        head.add(features, torch.tensor([self.class_names.index(name) for name in names]))

    def with_class_names(self, class_names: Sequence[str]) -> Classifier:
        """Return the same prompt with other class names (base to new).

        Raises:
            UserError: context or head belong to single classes, or a name is empty, repeated or too long.
        """
        check_class_names(class_names)
        head = self.prompt.head
        if self.prompt.is_class_specific:
            raise UserError(
                "this prompt has a context or a head for each class, so it cannot take other class names. "
                "Train with class_specific=False, or a method without a head, for that."
            )
        if isinstance(head, Head):
            head = head.for_class_names(self.class_names, class_names)
        prompt = self.prompt.sharing_sources(self.prompt.template, head)
        return type(self)(self.backbone, prompt, class_names, **self.form_settings())

    def with_template(self, template: str) -> Classifier:
        """Return the same prompt among other words, such as `a drawing of {soft*4} {name}`.

        Args:
            template: with as many vectors as were learned, in one place or in several.
        Raises:
            UserError: it holds another number of vectors, or is no template.
        """
        words, prompt = ClassTemplate(template), self.prompt
        n_learned: int = prompt.template.n_ctx  # type: ignore[attr-defined]
        if any(line.n_ctx != n_learned for line in words.lines):
            found = " and ".join(str(n) for n in sorted({line.n_ctx for line in words.lines}))
            advice = f"Write {{soft*{n_learned}}} among the words." if n_learned else "Leave {soft} out."
            raise bad_value("template", repr(template), f"it has {found} vectors, and {n_learned} were learned", advice)
        prompt = prompt.sharing_sources(words, prompt.head)
        return type(self)(self.backbone, prompt, self.class_names, **self.form_settings())

    def header(self) -> dict[str, Any]:
        """Give what the prompt file keeps of a classifier beside its prompt; see `core.file.Predictor`.

        Raises:
            UserError: it is a class of its own that no file could be read with, or its head reads text that an image
                tower alone does not give.
        """
        if not self.backbone.has_text and getattr(self.prompt.head, "reads_text", False):
            raise without_text(self.backbone.name)
        where = "Add it to mmprompt.classification.predictor.CLASSIFIERS."
        if type(self) is not Classifier and not self.form:
            raise UserError(f"{type(self).__name__} has no form of its own, but would be read as another. {where}")
        if self.form not in CLASSIFIERS:
            name = type(self).__name__
            raise UserError(f"{name} has the form {self.form!r}, which no file could be read with. {where}")
        return {"class_names": list(self.class_names), "form": self.form, "form_settings": self.form_settings()}

    def form_settings(self) -> dict[str, Any]:
        """Give the keyword arguments, JSON-ready, with which `CLASSIFIERS[form]` makes this class again."""
        return {}

    def push_to_hub(self, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
        """Upload the prompt to the Hugging Face Hub; see `core.hub.push_to_hub`."""
        from mmprompt.core.hub import push_to_hub

        return push_to_hub(self, repo_id, private, token=token)

    def kept_tensors(self) -> dict[str, Tensor]:
        """Give the class features, so that loading encodes no text; nothing where they depend on the image."""
        if self.prompt.needs_image:
            return {}
        with self.in_use():
            return {"class_features": self.class_features().detach()}


CLASSIFIERS: dict[str, Callable[..., Classifier]] = {"": Classifier}
"""The forms of classifiers that a prompt file may name; a class of your own is added here."""


def load(folder: Path, header: Mapping[str, Any], model: DualEncoder | str | None, device: str) -> Classifier:
    """Load a saved classifier, in evaluation mode; no text is encoded, the class features are in the file.

    Args:
        folder: that holds the files.
        header: of `core.header.read_header`.
        model: the backbone or its name; by default the one that the file names.
        device: as of `core.file.load`.
    Raises:
        UserError: files are edited or damaged, or for another backbone.
    """
    if header["form"] not in CLASSIFIERS:  # to which those that are seldom used add themselves
        importlib.import_module("mmprompt.classification.forms")
    form = CLASSIFIERS.get(header["form"])
    if form is None:
        advice = "Upgrade mmprompt, or import the module that adds it first."
        raise bad_file(folder, f"holds a classifier of form {header['form']!r}, which is not known here", advice)
    backbone = model_of(folder, header, model, partial(load_backbone, device=device))
    refuse_other_backbone(folder, header, backbone)
    template = ClassTemplate(header["template"])
    kept = () if any(facts["kind"] != "vectors" for facts in header["sources"]) else ("class_features",)
    prompt, tensors = read_prompt(folder, header, backbone.device, template, *kept)
    class_features = tensors.get("class_features")
    if class_features is not None:
        n_classes = len(header["class_names"])
        width = backbone.embed_dim if backbone.has_text else 0
        is_fit = list(class_features.shape) == [n_classes, width] and class_features.is_floating_point()
        off_unit = (class_features.double().norm(dim=-1) - min(width, 1)).abs()
        if not is_fit or not bool((off_unit < NEAR_UNIT).all()):
            problem = f"does not hold a feature of unit norm for each of {n_classes} classes"
            raise bad_file(folder / TENSORS, problem, RESTORE)
        class_features = class_features.to(backbone.device, backbone.dtype)
    try:
        classifier = form(backbone, prompt, header["class_names"], class_features, **header["form_settings"])
    except TypeError:
        problem = f"does not hold the classifier {header['form']!r} as its form takes it"
        raise bad_file(folder / HEADER, problem, RESTORE) from None
    except UserError as error:
        raise UserError(f"{folder / HEADER}: {error}") from None
    if class_features is not None:
        _try_head(folder, classifier.eval(), class_features)
    return classifier.eval()


def _try_head(folder: Path, classifier: Classifier, class_features: Tensor) -> None:
    """Refuse a head that does not give a finite logit for each class."""
    width = classifier.backbone.embed_dim + (classifier.backbone.raw_width if classifier.reads_raw else 0)
    image_features = F.pad(class_features[:1], (0, width - class_features.shape[1]))  # [1, E + W]
    try:
        with torch.no_grad():
            logits = classifier.outputs(image_features).logits
        is_fit = logits.shape == (1, len(classifier.class_names)) and bool(logits.isfinite().all())
    except RuntimeError:
        is_fit = False
    if not is_fit:
        problem = f"does not hold a head for {len(classifier.class_names)} classes of {classifier.backbone.name}"
        raise bad_file(folder / TENSORS, problem, RESTORE)
