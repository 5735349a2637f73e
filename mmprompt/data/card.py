"""What a YAML file says about a dataset: layout, names, templates, sizes, licence, sources and published numbers.

The dataclasses are the schema. This file reads nothing and knows no dataset by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from mmprompt.data.class_names import Rewrite, check_template, check_templates
from mmprompt.data.splits import SplitName
from mmprompt.errors import bad_value, unknown_name

Layout = Literal["csv", "coop", "folder", "aircraft", "imagenet"]
TorchvisionSet = Literal["DTD", "Flowers102", "Food101", "OxfordIIITPet", "StanfordCars"]
REFERENCE_VALUES = ("accuracy", "base", "new", "harmonic_mean")

Protocol = Literal["few-shot", "base-to-new", "cross-dataset", "domain-generalisation", "zero-shot"]


@dataclass(frozen=True)
class Reference:
    """Published numbers of one method, named as in its paper, on one dataset, to print beside one's own.

    The backbone is what it stood on, such as `ViT-B/16`, and the source where the numbers were read. `shots` are
    training images a class, None where there are none; `values` are percent by name: `accuracy`, or `base`, `new` and
    `harmonic_mean`.
    """

    method: str
    backbone: str
    protocol: Protocol
    shots: int | None
    values: Mapping[str, float]
    source: str

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            if name not in REFERENCE_VALUES:
                raise unknown_name("reference value", name, REFERENCE_VALUES)
            if not 0 <= value <= 100:
                raise bad_value(name, value, "a percentage was expected", "Write 92.6 for 92.6 %.")


@dataclass(frozen=True)
class Place:
    """Another place where a set may lie: its folder below the root, and below that the one of its images."""

    folder: str
    images: str

    def __post_init__(self) -> None:
        _check_below(self, "folder", "images")


@dataclass(frozen=True)
class DatasetCard:
    """What a YAML file says about a dataset.

    Args:
        name: what `load_dataset` takes; the file's own name without `.yaml`.
        title: one line for lists.
        layout: `"csv"` (a table of path, label, split), `"coop"` (a split file of CoOp's), `"folder"`, `"aircraft"`
            (`images_variant_*.txt` and `variants.txt`) or `"imagenet"` (class folders and `classnames.txt`).
        template: the hand-written prompt, with one `{}`.
        licence: of the images.
        source: where to get them.
        folder: the set's folder below the root that the user gives.
        images: the folder of images below that one; empty for that one itself.
        split: the split file below the set's folder, or the file of class names of layout imagenet.
        also: other places where the set may lie, looked at in turn.
        torchvision: the class of torchvision whose own layout is read where there is none of the above.
        train_images: the folder of training images below images, for layout imagenet; empty for a set that is only
            tested on.
        test_images: likewise for testing.
        get: by path below the set's folder, the command or link that gets it.
        archive: a zip of the package's own images, which needs no root.
        csv: the table, beside the archive or below the set's folder.
        n_classes: how many there should be.
        sizes: images in train, val and test.
        rename: class names to replace, as folders, tables and split files spell them.
        rewrite: the rule by which all other class names become readable, as in `readable_name`.
        templates: the ensemble: sentences, or names such as `open_clip:OPENAI_IMAGENET_TEMPLATES`.
        augment: what suits these images in training; mirrored images would not know left from right.
        notes: what a reader of results should know.
        recipe: settings of the training recipe, chosen on validation.
        reference: published numbers.
    """

    name: str
    title: str
    layout: Layout
    template: str
    licence: str
    source: str
    folder: str = ""
    images: str = ""
    split: str = ""
    also: tuple[Place, ...] = ()
    torchvision: TorchvisionSet | None = None
    train_images: str = ""
    test_images: str = ""
    get: dict[str, str] = field(default_factory=dict)
    archive: str = ""
    csv: str = ""
    n_classes: int | None = None
    sizes: dict[SplitName, int] = field(default_factory=dict)
    rename: dict[str, str] = field(default_factory=dict)
    rewrite: Rewrite = "none"
    templates: tuple[str, ...] = ()
    augment: Literal["none", "coop"] = "coop"
    notes: str = ""
    recipe: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    reference: tuple[Reference, ...] = ()

    def __post_init__(self) -> None:
        check_template(self.template)
        check_templates(self.templates)
        for key in {"csv": ("csv",), "coop": ("split",), "imagenet": ("split",)}.get(self.layout, ()):
            if not getattr(self, key):
                raise bad_value(key, "empty", f"the layout {self.layout} needs it", "Add it.")
        _check_below(self, "folder", "images", "split", "csv", "train_images", "test_images")
        if self.archive and self.layout != "csv":
            raise bad_value("archive", self.archive, f"the layout {self.layout} cannot have one", "Use layout: csv.")
        if self.rewrite != "none" and self.layout == "imagenet":
            raise bad_value("rewrite", self.rewrite, "the layout imagenet has a list of readable names", "Use rename.")


def _check_below(card: Place | DatasetCard, *keys: str) -> None:
    """Refuse paths of a card that are absolute or climb with `..`; links are the user's own and allowed."""
    for key in keys:
        path = PurePosixPath(getattr(card, key))
        if path.is_absolute() or ".." in path.parts:
            value = repr(getattr(card, key))
            raise bad_value(key, value, "a path below the root was expected", "Leave out .. and the leading slash.")
