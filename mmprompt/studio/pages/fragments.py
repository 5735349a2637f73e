"""What the studio answers as HTML: plain functions of what came out, over the macros of `fragments.html.jinja`."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jinja2 import PackageLoader

from mmprompt.core.metrics import most_confused
from mmprompt.data.images import read_image
from mmprompt.errors import UserError
from mmprompt.reports.pages import base64_text, environment_of
from mmprompt.reports.tables import between, counted, percent, signed, verdict

if TYPE_CHECKING:
    from mmprompt.classification.predictor import Prediction
    from mmprompt.language.measure import LanguageMeasure
    from mmprompt.studio.classify import Reworded, Trained

THUMBNAIL = 200
N_SHOWN, N_BARS, MOST_OF_CLASS = 8, 5, 2
CURVES = {"loss": ("loss", "{:.2f}"), "accuracy": ("right on the training data", "{:.0%}")}
"""What is drawn of an epoch's record, how it is called and how its numbers are written."""


class Bar(NamedTuple):
    """A share 0..1 with its name; an interval of 95 % and whether it is the one to look at."""

    name: str
    share: float
    interval: Sequence[float] | None = None
    is_main: bool = False


@cache
def macros() -> Any:
    """Return the macros, which escape every text that they are given."""
    environment = environment_of(PackageLoader("mmprompt.studio", "pages"))
    environment.filters |= {"thumbnail": thumbnail, "sentence": sentence}
    return environment.get_template("fragments.html.jinja").module


def html(name: str, *values: Any) -> str:
    """Fill in a macro."""
    return str(getattr(macros(), name)(*values)).strip()


def sentence(text: str) -> str:
    """Begin a text with a capital, but for the name of a file, which stays as it is."""
    return text[:1].upper() + text[1:] if text.partition(" ")[0].isalpha() else text


def thumbnail(path: Path) -> str:
    """Return a small image as base64 text of WebP; "" where the file cannot be read any more."""
    try:
        image = read_image(path)
    except UserError:
        return ""
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    image.save(data, "WEBP", quality=85)
    return base64_text(data.getvalue())


def curves(history: Sequence[Mapping[str, Any]], n_epochs: int) -> str:
    """Return a figure for each measure that the records have, whose axis is as long as the training will be."""
    figures, n_epochs = [], max(n_epochs, len(history))
    for key, (name, form) in CURVES.items():
        if history and all(key in record for record in history):
            values = [float(record[key]) for record in history]
            top = 1.0 if key == "accuracy" else max(values) * 1.05 or 1.0
            points = [(44 + 266 * n / max(1, n_epochs - 1), 12 + 106 * (1 - v / top)) for n, v in enumerate(values)]
            numbers = {"first": values[0], "last": values[-1], "top": top, "zero": 0.0}
            written = {of: form.format(number) for of, number in numbers.items()}
            figures.append({"name": name, "n": len(values), "n_epochs": n_epochs, "points": points} | written)
    return html("curves", figures) if figures else ""


def results(trained: Trained) -> str:
    """Return accuracy beside zero-shot, what is mixed up, and images that it gets wrong."""
    metrics, data = trained.metrics, trained.data
    if not metrics or data is None:
        return html("say", f"This prompt tells {len(trained.classifier.class_names)} classes apart.")
    names = {"zero_shot_name": "class name alone", "zero_shot_template": f"“{data.template}”", "learned": "learned"}
    rows = [
        Bar(name, metrics[key]["accuracy"], metrics[key]["interval"], key == "learned")
        for key, name in names.items()
        if key in metrics
    ]
    learned = metrics["learned"]
    said = f"{percent(learned['accuracy'])} of {counted(learned['n'], 'test image')} right"
    gain = learned.get("gain_over_zero_shot_template")
    if gain:
        claim = verdict(gain["interval"], "better than", "worse than", "no clear difference from")
        points = f"{signed(gain['gain'])} points, 95 % {between(gain['interval'], True)}"
        said += f": {claim} the written words ({points})"
    confused = most_confused(np.asarray(learned["confusion"]), metrics["class_names"])[:N_BARS]
    surest = sorted(
        (one for one in metrics["predictions"] if one["label"] != one["predicted"]), key=lambda one: -one["probability"]
    )
    labels = [one["label"] for one in surest]
    wrong = [
        (Path(one["path"]), data.class_names[one["label"]], data.class_names[one["predicted"]], one["probability"])
        for i, one in enumerate(surest)
        if labels[:i].count(one["label"]) < MOST_OF_CLASS
    ]
    return html("results", said, rows, data.notes, confused, wrong[:N_SHOWN])


def named(learned: Prediction, plain: Prediction | None) -> str:
    """Return what the learned prompt and the words alone say of one image."""
    rows = [Bar(name, share, None, name == learned.label) for name, share in learned.probabilities.items()]
    return html("named", learned, rows[:N_BARS], plain)


def reworded(found: Reworded) -> str:
    """Return what edited words come to."""
    if found.before is None or found.after is None or found.gain is None:
        return html("say", "The words are in use. There are no test images to measure them on.")
    rows = [Bar("as learned", found.before.accuracy, found.before.interval)]
    rows.append(Bar("with your words", found.after.accuracy, found.after.interval, True))
    if found.words_alone is not None:
        rows.append(Bar("your words alone", found.words_alone.accuracy, found.words_alone.interval))
    claim = verdict(found.gain, "Your words do better", "Your words do worse", "No clear difference")
    n = len(found.changed)
    said = f"{claim}: {signed(found.after.accuracy - found.before.accuracy)} points. "
    said += f"{counted(n, 'test image')} {'is' if n == 1 else 'are'} named otherwise."
    return html("reworded", said, rows, found.changed[:N_SHOWN])


def scores(measure: LanguageMeasure) -> str:
    """Return how often a learned prompt, no prompt and each instruction are right."""
    named = [(f"“{one.template}”" if one.name.startswith("instruction") else one.name, one) for one in measure.scores]
    rows = [Bar(name, float(one.right.mean()), one.interval, n == 0) for n, (name, one) in enumerate(named)]
    return html("scores", measure.n_rows, rows)
