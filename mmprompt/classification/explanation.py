"""What a classifier's prompt has learned, section by section; `reports.explanation.explain` calls it for a run.

Everything is measured on images held out, but for three things that are said to be otherwise: the temperature is fitted
on validation, words are chosen and labels doubted on the images that it learned from. Features of the frozen tower are
computed once for all of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import mmprompt.models.sites as sites
from mmprompt.classification.predictor import Classifier
from mmprompt.classification.report import middle_square
from mmprompt.classification.task import BARE_NAME, zero_shot
from mmprompt.classification.template import ClassTemplate
from mmprompt.classification.words import context_words, nearest_words, spelled, word_gaps, words_by_gradient
from mmprompt.core.confidence import fit_temperature, log_loss
from mmprompt.core.learned import Given, Inserts, Prompt, Source
from mmprompt.core.metrics import Evaluation, evaluate_probabilities, one_a_class
from mmprompt.core.words import greedy_words
from mmprompt.data.images import read_image
from mmprompt.data.splits import Dataset, Item
from mmprompt.errors import UserError
from mmprompt.models.dual_encoder.encoder import FrozenDualEncoder
from mmprompt.models.dual_encoder.forward.relevance import relevance
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.image_features import ImageFeatures
from mmprompt.models.sites import Site, TextSlots, Tower, Vectors, vectors_of
from mmprompt.reports.explanation import Asked, Picture, Section, written
from mmprompt.reports.explanation_figures import draw_maps, draw_moves
from mmprompt.reports.sections import (
    calibration_section,
    changes_section,
    kept_of,
    labels_section,
    next_section,
    words_section,
    worth_section,
)
from mmprompt.reports.tables import counted
from mmprompt.terminal.images import Images

N_ENCODED = 128
"""Images that are encoded anew for every vector left out of the image tower."""
N_CANDIDATES = 10
"""Words near a vector that may stand for it."""
N_SUGGESTED = 20
"""Words that the gradient of the loss points to, tried in its place too."""
N_EXAMPLES, N_MAPPED = 4, 6


def data_at(place: Mapping[str, Any], training: Mapping[str, Any]) -> Dataset:
    """Load images from where `place_of_data` says that they lie, drawn as they were."""
    images = Images().at(place)
    data = images.load_as_drawn(training)
    return images.sound(data) if images.skip_broken else data


def sections_of(classifier: Classifier, data: Dataset, asked: Asked) -> tuple[str, list[Section]]:
    """Return the headline and all sections."""
    if not data.items(asked.split):
        raise UserError(f"the {asked.split} part of {data.name} is empty. Choose another `split`.")
    if data.class_names != classifier.class_names:
        classifier = classifier.with_class_names(data.class_names)
    look = _Look(classifier, data, asked)
    after = look.after
    headline = f"Right in {written(after.accuracy, 'percent')} of {counted(after.n, 'image')} {asked.seen}"
    headline += f", zero-shot in {written(look.before.accuracy, 'percent')}." if look.before else "."
    sections = [
        look.words(),
        look.worth(),
        None if look.before is None else changes_section(look.before, after, "zero-shot", asked, look.changed()),
        look.maps(),
        look.moves(),
        calibration_section((look.table, look.labels), look.validation()),
        look.in_words() if asked.to_words else None,
        look.doubts(),
        next_section(after, Counter(data.class_names[item.label] for item in data.train), "image", "Photograph", asked),
    ]
    return headline, [section for section in sections if section is not None]


def need_validation(data: Dataset) -> None:
    """Refuse data without images that a temperature could be fitted on."""
    if not data.val:
        raise UserError(f"{data.name} has no validation images to fit a temperature on. Give data with a val part.")


def temperature_of(classifier: Classifier, data: Dataset) -> float:
    """Return the temperature that is best on the validation images."""
    need_validation(data)
    probabilities = classifier.probabilities([item.path for item in data.val])
    return fit_temperature(probabilities, np.array([item.label for item in data.val]))


class _Look:
    """A classifier, its data, and what is computed once for several sections."""

    def __init__(self, classifier: Classifier, data: Dataset, asked: Asked) -> None:
        self.classifier, self.data, self.asked, self.items = classifier, data, asked, data.items(asked.split)
        self.backbone, self.names = classifier.backbone, classifier.class_names
        self.features = ImageFeatures(self.backbone, progress=asked.count("encoding images"))
        self.paths = [item.path for item in self.items]
        self.labels = np.array([item.label for item in self.items])
        self.table = classifier.probabilities(self.paths, self.features)
        self.after = self._scored(self.table)
        self.bare = zero_shot(self.backbone, self.names, data.template) if self.backbone.has_text else None
        self.bare_table = None if self.bare is None else self.bare.probabilities(self.paths, self.features)
        self.before = None if self.bare_table is None else self._scored(self.bare_table)

    def _scored(self, table: np.ndarray) -> Evaluation:
        return evaluate_probabilities(table, self.labels.tolist(), self.names)

    def validation(self) -> tuple[np.ndarray, np.ndarray] | None:
        items = self.data.val
        if not items or self.asked.split == "val":
            return None
        table = self.classifier.probabilities([item.path for item in items], self.features)
        return table, np.array([item.label for item in items])

    def words(self) -> Section | None:
        near = context_words(self.classifier, self.asked.k)
        if not near:
            return None
        named = [(row["vector"], row["words"]) for row in near]
        return words_section(named, word_gaps(self.backbone), is_distance=True)

    def worth(self) -> Section | None:
        """Leave each vector out; of those in the image tower on some of the images, which are encoded anew."""
        names, losses, falls = [], [], []
        is_encoded = any(site.tower == "vision" for site in self._vectors())
        step = -(-len(self.paths) // N_ENCODED) if is_encoded else 1
        paths, labels, whole = self.paths[::step], self.labels[::step], self.table[::step]
        loss, right = log_loss(whole, labels), float((whole.argmax(1) == labels).mean())
        places = [(tower, place) for tower, n in self._counts().items() for place in range(n)]
        if self.classifier.form == "test-time" or not places:
            return None
        encoded = self.classifier.features_of(paths, self.features)
        progress = self.asked.count("leaving vectors out")
        for done, (tower, place) in enumerate(places, 1):
            other = without_vector(self.classifier, tower, place)
            table = other.probabilities_of(other.features_of(paths) if tower == "vision" else encoded)
            names.append(f"{tower} vector {place + 1}")
            losses.append(log_loss(table, labels) - loss)
            falls.append(right - float((table.argmax(1) == labels).mean()))
            progress(done, len(places))
        return worth_section(names, losses, falls, f"of {counted(len(paths), 'image')} {self.asked.seen}")

    def _vectors(self) -> dict[Site, Vectors]:
        if self.classifier.prompt.needs_image:  # for one image, which is as good as any
            return vectors_of(self.classifier.prompt.inserts(given=Given(self._some_features())))
        return vectors_of(self.classifier.prompt.inserts())

    def _some_features(self) -> Tensor:
        return self.classifier.features_of(self.paths[:1], self.features)[:, : self.backbone.embed_dim]

    def _counts(self) -> dict[Tower, int]:
        """Count the vectors of each tower; deeper layers take over the slots of the first."""
        return {
            site.tower: each.n_vectors for site, each in self._vectors().items() if site.tower in ("text", "vision")
        }

    def changed(self) -> list[Picture]:
        """Show images that became right, then some that became wrong, one class after another."""
        assert self.before is not None, "zero-shot was measured"
        won, lost = self.after.correct & ~self.before.correct, self.before.correct & ~self.after.correct
        shown: list[Picture] = []
        for places, verb in ((won, "now"), (lost, "no longer")):
            chosen = islice(self._readable(one_a_class(np.flatnonzero(places), self.labels)), N_EXAMPLES)
            for place, image in chosen:
                old, new = self.names[self.before.predictions[place]], self.names[self.after.predictions[place]]
                true = self.names[self.labels[place]]
                said = (f"{verb} {true}", f"before: {old}") if verb == "now" else (f"now {new}", f"really {true}")
                shown.append(Picture(image, *said))
        return shown

    def _readable(self, places: Sequence[int]) -> Iterator[tuple[int, Any]]:
        for place in places:
            try:
                yield place, middle_square(read_image(self.paths[place]))
            except UserError:
                continue

    def maps(self) -> Section | None:
        """Show where evidence for the true class lies, with and without the prompt."""
        if not isinstance(self.backbone, FrozenDualEncoder) or self.classifier.form == "test-time":
            return None
        changed = np.zeros(len(self.labels), bool) if self.before is None else self.after.correct != self.before.correct
        ranked = [
            *one_a_class(np.flatnonzero(changed), self.labels),
            *one_a_class(np.flatnonzero(~changed), self.labels),
        ]
        chosen = list(islice(self._readable(ranked), N_MAPPED))
        if not chosen:
            return None
        places = [place for place, _ in chosen]
        images = torch.stack([self.backbone.preprocess(read_image(self.paths[place])) for place in places])
        ways = {} if self.bare is None else {"zero-shot": self.bare}
        ways["learned"] = self.classifier
        maps = [(name, evidence(one, images, self.labels[places]).numpy()) for name, one in ways.items()]
        rows = []
        for n, place in enumerate(places):
            alike = None
            if len(maps) == 2:
                alike = float(np.corrcoef(maps[0][1][n].ravel(), maps[1][1][n].ravel())[0, 1])
            probabilities = [
                table[place, self.labels[place]] for table in (self.bare_table, self.table) if table is not None
            ]
            rows.append((self.paths[place].name, self.names[self.labels[place]], *map(float, probabilities), alike))
        has_tokens = self.backbone.vision_layers > 0
        how = "relevance through all attentions (Chefer et al. 2021)" if has_tokens else "gradient times input"
        said = f"What speaks for the true class against the others, in {counted(len(places), 'image')}"
        said += " (those whose answer changed first)." if changed.any() else "."
        likeness = [row[-1] for row in rows if row[-1] is not None]
        if likeness:
            said += f" The two maps of an image correlate by {np.mean(likeness):.2f} on average: near 1, the prompt "
            said += "looks at the same places as zero-shot does."
        columns = (
            {"image": "", "class": ""}
            | dict.fromkeys([f"p, {name}" for name in ways], "percent")
            | {"maps alike": ".2f"}
        )
        shown = [image for _, image in chosen]
        captions = [self.names[self.labels[place]] for place in places]
        chart = partial(draw_maps, shown, captions, maps)
        note = f"Bright is much, each map by itself: {how}. A map shows what the score is sensitive to, not why."
        return Section("maps", "Where it looks", said, note, columns, rows, {"Images with maps of relevance": chart})

    def moves(self) -> Section | None:
        """Show how far the features of the class names went."""
        if self.bare is None or not self.classifier.prompt.has("text") or len(self.names) < 2:
            return None
        from sklearn.decomposition import PCA

        encoded = self.classifier.features_of(self.paths[:N_ENCODED], self.features)
        with torch.no_grad(), self.classifier.in_use():
            each = self.classifier.class_features(encoded[:, : self.backbone.embed_dim])
        after = F.normalize(each.reshape(-1, *each.shape[-2:]).mean(0), dim=-1).double().cpu()
        before = self.bare.class_features().double().cpu()
        flat = PCA(2).fit(torch.cat([before, after]).numpy())
        near = [(table @ table.T).fill_diagonal_(-2.0).max(1) for table in (before, after)]
        rows = [
            (name, float(before[c] @ after[c]), self.names[int(near[0].indices[c])], float(near[0].values[c]),
             self.names[int(near[1].indices[c])], float(near[1].values[c]))
            for c, name in enumerate(self.names)
        ]  # fmt: skip
        rows.sort(key=lambda row: row[1])
        closer, farther = (float(values.values.mean()) for values in near)
        said = f"The features of {counted(len(rows), 'class name')} lie at a cosine of "
        said += f"{np.mean([row[1] for row in rows]):.2f} to where they were; a class lies at a cosine of "
        said += f"{closer:.2f} to its nearest other before and {farther:.2f} after: they are "
        said += "farther apart." if farther < closer else "no farther apart."
        columns = {"class": "", "cosine to before": ".3f", "nearest before": "", "cosine before": ".3f"}
        columns |= {"nearest after": "", "cosine after": ".3f"}
        chart = partial(draw_moves, self.names, flat.transform(before.numpy()), flat.transform(after.numpy()))
        share = float(flat.explained_variance_ratio_.sum())
        note = f"A map by two principal components, which hold {share:.0%} of the spread: distances on it are rough."
        return Section(
            "features", "Class features before and after", said, note, columns, rows, {"Class features": chart}
        )

    def in_words(self) -> Section:
        """Put the context into words, chosen on the training images, and measure them on those held out."""
        title, prompt = "The prompt in words", self.classifier.prompt
        context = None if prompt.needs_image else vectors_of(prompt.inserts("text")).get(Site("text"))
        if context is None or context.scope != "shared" or prompt.head is not None or not self.data.train:
            said = "This prompt cannot be put into words: it has no context shared by all classes and images, has a "
            return Section("in_words", title, f"{said}head, or there are no images to choose words on.")
        near = nearest_words(self.backbone, context.values, N_CANDIDATES)
        candidates = [[word for word, _ in row if not set(word) & set("{}\n")] + [""] for row in near]
        encoded = self.features.of([item.path for item in self.data.train])
        wanted = np.array([item.label for item in self.data.train])
        pattern = self.classifier.prompt.template.text

        def loss(words: tuple[str, ...]) -> float:
            try:
                classifier = zero_shot(self.backbone, self.names, spelled(pattern, words))
            except UserError:  # too long for the tower
                return float("inf")
            return log_loss(classifier.probabilities_of(encoded), wanted)

        def suggest(words: tuple[str, ...], place: int) -> list[str]:
            labels = torch.from_numpy(wanted).to(encoded.device)
            found = words_by_gradient(self.classifier, words, place, encoded, labels, N_SUGGESTED)
            return [word for word in found if not set(word) & set("{}\n")]

        best = greedy_words(candidates, loss, self.asked.count("putting it into words"), suggest)
        texts = {
            "nearest words": spelled(pattern, [row[0] for row in candidates]),
            "best words": spelled(pattern, best),
            "hand-written": self.data.template,
            "bare name": BARE_NAME,
        }
        held_out = self.features.of(self.paths)
        tables = {
            name: zero_shot(self.backbone, self.names, text).probabilities_of(held_out) for name, text in texts.items()
        }
        scores = {"soft prompt": self.after} | {name: self._scored(table) for name, table in tables.items()}
        rows = [(name, texts.get(name, pattern), one.accuracy, *one.interval) for name, one in scores.items()]
        soft, words, bare = (scores[name].accuracy for name in ("soft prompt", "best words", "bare name"))
        said = f"As “{texts['best words']}” it is right in {written(words, 'percent')}, as vectors in "
        said += f"{written(soft, 'percent')} and with the bare name in {written(bare, 'percent')}"
        said += kept_of(words, soft, bare)
        note = (
            f"Words were chosen among the {N_CANDIDATES} nearest to each vector, {N_SUGGESTED} that the gradient "
            "points to (Ebrahimi et al. 2018) and none, one place after another, by the loss of the images that it "
            f"learned from; accuracies are of images {self.asked.seen}."
        )
        columns = {"": "", "text": "", "right": "percent", "95 % from": "percent", "to": "percent"}
        return Section("in_words", title, said, note, columns, rows)

    def doubts(self) -> Section:
        """Look for labels that the other images speak against."""
        items = self.data.train

        def image(place: int) -> Any:
            try:
                return middle_square(read_image(items[place].path))
            except UserError:
                return None

        named = [(_relative(item, self.data.root), self.names[item.label]) for item in items]
        return labels_section(named, lambda some: self.features.of([items[n].path for n in some]), "image", image)


def _relative(item: Item, root: Path) -> str:
    return item.path.relative_to(root).as_posix() if item.path.is_relative_to(root) else str(item.path)


class _Without(Source):
    """A source without one of the vectors that it gives to a tower."""

    def __init__(self, source: Source, tower: Tower, place: int) -> None:
        super().__init__()
        self.source, self.tower, self.place = source, tower, place
        self.sites, self.needs_image = source.sites, source.needs_image

    def forward(self, given: Given) -> Inserts:
        return sites.without_vector(self.source(given), self.tower, self.place)


class _ShorterTemplate:
    """A template with the slot of one vector left out of every line."""

    def __init__(self, template: ClassTemplate, place: int) -> None:
        self.text, self._whole, self._place = template.text, template, place

    @property
    def lines(self) -> tuple[Any, ...]:
        return tuple(_ShorterTemplate(line, self._place) for line in self._whole.lines)

    def slots(self, backbone: DualEncoder, class_names: Sequence[str]) -> TextSlots:
        gone = -1 - self._place
        rows = [self._whole.row(backbone, name) for name in class_names]
        return backbone.text_slots([[slot + (slot < gone) for slot in row if slot != gone] for row in rows])


def without_vector(classifier: Classifier, tower: Tower, place: int) -> Classifier:
    """Return a classifier with the slot of one vector, from 0, left out of all layers of a tower that have it."""
    prompt = classifier.prompt
    template: Any = prompt.template
    if tower == "text" and any(site == Site("text") for site in prompt.sites):
        template = _ShorterTemplate(template, place)
    sources = [_Without(source, tower, place) for source in prompt.sources]
    rest = Prompt(template, *sources, head=prompt.head).eval()
    return type(classifier)(classifier.backbone, rest, classifier.class_names, **classifier.form_settings())


def evidence(classifier: Classifier, images: Tensor, labels: np.ndarray) -> Tensor:
    """Map what speaks for a class: the logit of a label over the mean of the others, as `relevance` has it."""
    wanted = torch.tensor(labels, device=classifier.backbone.device)

    def score(features: Tensor) -> Tensor:
        logits = classifier.outputs(features).logits.float()
        own = logits.gather(1, wanted[:, None])[:, 0]
        return own - (logits.sum(1) - own) / max(1, logits.shape[1] - 1)

    backbone: Any = classifier.backbone
    with classifier.in_use():
        return relevance(backbone, images, score, classifier.prompt.inserts("vision"), classifier.reads_raw)
