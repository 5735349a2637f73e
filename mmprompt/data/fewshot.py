"""Which images a few-shot run may see, by the rules of the published code: the same seed picks the same images.

`coop`: group the list by label in order of first appearance; of every group draw k without replacement, or take it
whole when it is smaller; then draw min(k, 4) of every validation group from the same stream.
`clip-lora`: validation before training, and a smaller group is drawn from with repetition; a set without a validation
part gives both from one draw of its training part. `tip-adapter`: training alone, validation whole, with repetition.
`jsonl`: a published list, read and not drawn. The test part stays whole in all of them, and classes are left out
only afterwards (`base_new`). This file does not know where the lists come from.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal, TypeVar, get_args

from mmprompt.data.class_names import check_template, shortened
from mmprompt.data.splits import Dataset, Item, Splits, by_label, class_counts
from mmprompt.errors import UserError, bad_file, bad_value, unknown_name
from mmprompt.files import read_objects

MAX_VAL_SHOTS = 4

Rule = Literal["coop", "clip-lora", "tip-adapter", "jsonl"]
RULES: tuple[Rule, ...] = get_args(Rule)

T = TypeVar("T")
Picks = tuple[tuple[Item, ...], tuple[Item, ...]]

_ADVICE = "Restore the published file."


def draw_dataset(
    splits: Splits,
    name: str,
    shots: int | None,
    seed: int,
    template: str = "a photo of a {}.",
    templates: tuple[str, ...] = (),
    protocol: str = "coop",
    augment: str = "coop",
    licence: str = "",
    recipe: Mapping[str, str | int | float | bool | None] | None = None,
    rule: str = "coop",
    published: Path | None = None,
) -> Dataset:
    """Draw the shots of all images, and say which classes had too few.

    `rule` and `published` are those of `draw_shots`, `protocol` says whose split it is, and all else is of `Dataset`.
    """
    for text in (template, *templates):
        check_template(text)
    _check_rule(rule)
    train, val, notes = splits.train, splits.val, splits.notes
    shots = shots if train else None
    if shots is not None:
        train, val = draw_shots(splits, shots, seed, rule, published)
        notes = (*notes, *_short_classes(splits, shots, rule))
        if rule != "coop":  # the usual one of split and rule needs no word
            protocol = rule if protocol in ("coop", "folder") else f"{protocol}, {rule}"
    return Dataset(
        name=name,
        root=splits.root,
        class_names=splits.class_names,
        train=train,
        val=val,
        test=splits.test,
        template=template,
        templates=templates,
        shots=shots,
        seed=None if shots is None else seed,
        protocol=protocol,
        augment=augment,
        notes=notes,
        licence=licence,
        recipe=recipe or {},
    )


def draw_shots(splits: Splits, shots: int, seed: int, rule: str = "coop", published: Path | None = None) -> Picks:
    """Draw the few-shot train and val parts, `shots` images a class, by one of the rules of this file.

    The order of the splits decides what a seed picks; the papers use seeds 1, 2 and 3, Tip-Adapter 1 alone. `published`
    is the folder with published lists, for rule jsonl.
    """
    _check_rule(rule)
    rng, n_val = draw_stream(seed), min(shots, MAX_VAL_SHOTS)
    if shots < 1:
        raise bad_value("shots", shots, "at least 1 image a class is needed", "Use `shots=1` or more.")

    def draw(items: Iterable[Item], n_each: int) -> tuple[Item, ...]:
        return sample_groups(by_label(items).values(), n_each, rng, repeat=rule != "coop")

    if rule == "jsonl":
        if published is None:
            raise UserError(
                "protocol is jsonl, but published lists are read from the folder of a published data set, and there "
                "are none of this. Use `protocol='coop'`."
            )
        known = {item.path.relative_to(splits.root).as_posix(): item for item in (*splits.train, *splits.val)}
        train, val = (published / f"shot_{shots}-seed_{seed}_{part}.jsonl" for part in ("train", "val"))
        return _read_published(train, known), _read_published(val, known)
    if rule == "tip-adapter":
        return draw(splits.train, shots), splits.val
    if rule == "coop":
        return draw(splits.train, shots), draw(splits.val, n_val)
    if not splits.val:
        return _both_from_train(splits, shots, n_val, rng)
    drawn_val = draw(splits.val, n_val)
    return draw(splits.train, shots), drawn_val


def _check_rule(rule: str) -> None:
    if rule not in RULES:
        raise unknown_name("protocol", rule, RULES)


def draw_stream(seed: int) -> random.Random:
    """Return the random numbers of a draw, of a seed that is 0 or more."""
    if seed < 0:
        raise bad_value("seed", seed, "0 or more was expected", "Use 1, 2 or 3 as the papers do.")
    return random.Random(seed)


def sample_groups(groups: Iterable[Sequence[T]], shots: int, rng: random.Random, repeat: bool = False) -> tuple[T, ...]:
    """Draw some members of every group (Zhou et al. 2022, the sampling of CoOp's released code), group after group.

    The order of the groups and of their members decides what a seed picks. A group smaller than `shots` is taken whole
    and uses no random number; or, by `repeat`, drawn with repetition as CLIP-LoRA's released code does.
    """
    picks: list[T] = []
    for group in groups:
        if len(group) >= shots:
            picks += rng.sample(group, shots)
        else:
            picks += rng.choices(group, k=shots) if repeat else group
    return tuple(picks)


def _both_from_train(splits: Splits, shots: int, n_val: int, rng: random.Random) -> Picks:
    train: list[Item] = []
    val: list[Item] = []
    for label, group in by_label(splits.train).items():
        if len(group) < shots + n_val:
            raise UserError(
                f"the class {splits.class_names[label]!r} has {len(group)} training images, but protocol clip-lora "
                f"draws {shots} + {n_val} where there is no val part. Use `protocol='coop'`, or fewer shots."
            )
        picked = rng.sample(group, shots + n_val)
        train += picked[:shots]
        val += picked[shots:]
    return tuple(train), tuple(val)


def _read_published(path: Path, known: dict[str, Item]) -> tuple[Item, ...]:
    """Read the picks of a published list, an object with `_impath` and `_label` a line, in the order of the file.

    The paths were written on another machine, so an image is found by the end of its path, among those known: no list
    can bring a test image into training.
    """
    if not path.is_file():
        raise bad_file(path, "is not there", "Get the published lists, or use `protocol='coop'`.")
    picks = []
    for line, record in read_objects(path):
        if not {"_impath", "_label"} <= set(record):
            raise bad_file(path, "is not an object with _impath and _label", _ADVICE, line)
        parts = PurePosixPath(str(record["_impath"]).replace("\\", "/")).parts
        ends = ("/".join(parts[start:]) for start in range(len(parts)))  # the longest first
        item = next((known[end] for end in ends if end in known), None)
        if item is None:
            problem = f"{record['_impath']!r} is neither a train nor a val image of this set"
            raise bad_file(path, problem, _ADVICE, line)
        label = record["_label"]
        if type(label) is not int or label != item.label:
            raise UserError(f"{path}, line {line}: label {label!r} is {item.label} in this set. {_ADVICE}")
        picks.append(item)
    if not picks:
        raise bad_file(path, "names no image", _ADVICE)
    return tuple(picks)


def _short_classes(splits: Splits, shots: int, rule: str) -> tuple[str, ...]:
    counts = class_counts(splits.train, len(splits.class_names))
    short = [name for name, count in zip(splits.class_names, counts, strict=True) if count < shots]
    if not short:
        return ()
    done = "taken whole" if rule in ("coop", "jsonl") else "filled up by repeating some"
    return (f"Classes with fewer than {shots} training images, {done}: {shortened(short)}.",)


def base_new(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """Divide a dataset of four classes or more into base and new (Zhou et al. 2022, CoCoOp's base-to-new protocol).

    The first half of the labels, rounded up, is base, the rest is new, and both count their labels from 0. The shots
    must have been drawn before, from all classes: drawing afterwards picks other images.
    """
    n_classes = len(dataset.class_names)
    if n_classes < 4:
        raise UserError(
            f"{dataset.name} has {n_classes} classes, but base-to-new needs four or more, two to learn and two new "
            "ones. Use few-shot."
        )
    n_base = -(-n_classes // 2)

    def only(labels: range) -> Dataset:
        train, val, test = (
            tuple(replace(item, label=item.label - labels.start) for item in part if item.label in labels)
            for part in (dataset.train, dataset.val, dataset.test)
        )
        class_names = dataset.class_names[labels.start : labels.stop]
        return replace(dataset, class_names=class_names, train=train, val=val, test=test)

    return only(range(n_base)), only(range(n_base, n_classes))
