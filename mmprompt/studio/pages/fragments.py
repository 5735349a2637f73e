"""The HTML of the studio's answers: plain functions of what came out, every text in it escaped."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mmprompt.classification.report import most_confused
from mmprompt.data.images import read_image
from mmprompt.errors import UserError
from mmprompt.reports.pages import base64_text
from mmprompt.reports.tables import between, counted, percent, signed, verdict

if TYPE_CHECKING:
    from mmprompt.classification.predictor import Prediction
    from mmprompt.language.measure import LanguageMeasure
    from mmprompt.studio.captions import Captioned
    from mmprompt.studio.classify import Reworded, Trained
    from mmprompt.studio.images import Added, OwnImages
    from mmprompt.studio.jobs import Job
    from mmprompt.studio.texts import Side

THUMBNAIL = 200
N_SHOWN = 8
N_BARS = 5
N_OF_CLASS = 4
MOST_REFUSED = 3
MOST_OF_CLASS = 2


class Bar(NamedTuple):
    """A share 0..1 with its name; an interval of 95 % and whether it is the one to look at."""

    name: str
    share: float
    interval: Sequence[float] | None = None
    is_main: bool = False


def say(text: str) -> str:
    """Return a sentence that screen readers speak when it appears."""
    return f'<p class="say" role="status">{escape(text)}</p>' if text else ""


def refuse(text: str) -> str:
    """Return what went wrong, spoken at once."""
    is_name = not text.partition(" ")[0].isalpha()  # of a file, which stays as it is
    return f'<p class="say refused" role="alert">{escape(text if is_name else text[:1].upper() + text[1:])}</p>'


def bars(rows: Iterable[Bar]) -> str:
    """Return shares as bars with their numbers, one below the other."""
    lines = []
    for row in rows:
        inside = "" if row.interval is None else f" <small>{between(row.interval)}</small>"
        kind = "bar main" if row.is_main else "bar"
        lines.append(
            f'<li class="{kind}"><span class="name">{escape(row.name)}</span>'
            f'<span class="track"><span class="fill" style="width:{100 * row.share:.1f}%"></span></span>'
            f'<span class="number">{percent(row.share)}{inside}</span></li>'
        )
    return f'<ul class="bars">{"".join(lines)}</ul>'


def picture(path: Path, description: str) -> str:
    """Return a small image, or words in its place where the file cannot be read any more."""
    try:
        image = read_image(path)
    except UserError:
        return f'<span class="gone">{escape(description)}: the file is gone</span>'
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    image.save(data, "WEBP", quality=85)
    return f'<img alt="{escape(description)}" src="data:image/webp;base64,{base64_text(data.getvalue())}">'


def cards(images: Iterable[tuple[Path, str, str]]) -> str:
    """Return images with what is said below each, as (file, description, HTML below)."""
    shown = "".join(
        f"<li><figure>{picture(path, description)}<figcaption>{below}</figcaption></figure></li>"
        for path, description, below in images
    )
    return f'<ul class="cards">{shown}</ul>' if shown else ""


def own_classes(own: OwnImages) -> str:
    """Return the classes of somebody's own images, each with how many it has and the first few."""
    parts = []
    for name, files in own.classes.items():
        pictures = "".join(picture(path, name) for path in own.paths(name)[:N_OF_CLASS])
        alone = "" if len(files) > 1 else " <small>one image is learned from and cannot be tested</small>"
        parts.append(f"<li><b>{escape(name)}</b> {counted(len(files), 'image')}{alone}<div>{pictures}</div></li>")
    if not parts:
        return '<p class="hint">Name a class and drop images of it; then another. Ten of each are a good start.</p>'
    return f'<ul class="classes">{"".join(parts)}</ul>'


def progress(job: Job | None, n_ahead: int) -> str:
    """Say how far a training is."""
    if job is None:
        return ""
    if job.phase == "failed":
        return refuse(job.problem)
    if job.phase == "stopped":
        return say("Stopped. Nothing was kept.")
    if job.phase == "waiting":
        return say(f"Waiting: {counted(n_ahead, 'training')} of this studio {'is' if n_ahead == 1 else 'are'} first.")
    n_done = len(job.history)
    if job.phase == "done":
        early = f" Stopped after epoch {n_done} of {job.n_epochs}." if n_done < job.n_epochs else ""
        return say(f"Done.{early}")
    if not job.n_epochs:
        return say(f"{job.doing[:1].upper()}{job.doing[1:]} …")
    share = n_done / job.n_epochs
    asked = ", stopping" if job.is_asked_to_stop else ""
    return (
        f'<div class="progress"><progress max="1" value="{share:.3f}" aria-label="Training"></progress>'
        f"<span>Epoch {n_done} of {job.n_epochs}, {escape(job.doing)}{asked}</span></div>"
    )


def results(trained: Trained) -> str:
    """Return accuracy beside zero-shot, what is mixed up, and images that it gets wrong."""
    metrics, data = trained.metrics, trained.data
    if not metrics or data is None:
        return say(f"This prompt came from a file. It tells {len(trained.classifier.class_names)} classes apart.")
    names = {"zero_shot_name": "class name alone", "zero_shot_template": f"“{data.template}”", "learned": "learned"}
    rows = [
        Bar(name, metrics[key]["accuracy"], metrics[key]["interval"], key == "learned")
        for key, name in names.items()
        if key in metrics
    ]
    learned = metrics["learned"]
    sentence = f"{percent(learned['accuracy'])} of {counted(learned['n'], 'test image')} right"
    gain = learned.get("gain_over_zero_shot_template")
    if gain:
        claim = verdict(gain["interval"], "better than", "worse than", "no clear difference from")
        points = f"{signed(gain['gain'])} points, 95 % {between(gain['interval'], True)}"
        sentence += f": {claim} the written words ({points})"
    confused = most_confused(np.asarray(learned["confusion"]), metrics["class_names"])[:N_BARS]
    mixed = "".join(
        f"<tr><td>{escape(row['label'])}</td><td>{escape(row['predicted'])}</td>"
        f"<td>{row['count']} <small>({row['share']} of them)</small></td></tr>"
        for row in confused
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in data.notes)
    parts = [f"<p><b>{escape(sentence)}.</b></p>", bars(rows)]
    if notes:
        parts.append(f'<ul class="notes">{notes}</ul>')
    if mixed:
        heads = "<tr><th scope=col>really</th><th scope=col>taken for</th><th scope=col>how often</th></tr>"
        parts.append(f"<h3>What is mixed up</h3><table><thead>{heads}</thead><tbody>{mixed}</tbody></table>")
    surest = sorted(
        (one for one in metrics["predictions"] if one["label"] != one["predicted"]), key=lambda one: -one["probability"]
    )
    labels = [one["label"] for one in surest]
    wrong = [one for i, one in enumerate(surest) if labels[:i].count(one["label"]) < MOST_OF_CLASS][:N_SHOWN]
    if wrong:
        parts.append("<h3>Surest mistakes</h3>")
        parts.append(
            cards(
                (
                    Path(one["path"]),
                    f"{data.class_names[one['label']]}, taken for {data.class_names[one['predicted']]}",
                    f"<b>{escape(data.class_names[one['predicted']])}</b> {percent(one['probability'])}<br>"
                    f"really {escape(data.class_names[one['label']])}",
                )
                for one in wrong
            )
        )
    return "".join(parts)


def named(learned: Prediction, plain: Prediction | None) -> str:
    """Return what the learned prompt and the words alone say of one image."""
    first = [Bar(name, share, None, name == learned.label) for name, share in learned.probabilities.items()][:N_BARS]
    parts = [f'<p class="answer" role="status">{escape(str(learned.label))}</p>', bars(first)]
    if plain is not None:
        parts.append(f"<p>Words alone say <b>{escape(str(plain.label))}</b>, {percent(plain.probability)}.</p>")
    return "".join(parts)


def reworded(found: Reworded) -> str:
    """Return what edited words come to."""
    if found.before is None or found.after is None or found.gain is None:
        return say("The words are in use. There are no test images to measure them on.")
    rows = [Bar("as learned", found.before.accuracy, found.before.interval)]
    rows.append(Bar("with your words", found.after.accuracy, found.after.interval, True))
    if found.words_alone is not None:
        rows.append(Bar("your words alone", found.words_alone.accuracy, found.words_alone.interval))
    claim = verdict(found.gain, "Your words do better", "Your words do worse", "No clear difference")
    difference = signed(found.after.accuracy - found.before.accuracy)
    n_changed = counted(len(found.changed), "test image")
    sentence = (
        f"{claim}: {difference} points. {n_changed} {'is' if len(found.changed) == 1 else 'are'} named otherwise."
    )
    changed = cards(
        (
            one.path,
            f"{one.label}, before {one.before}, now {one.after}",
            f"{escape(one.before)} → <b>{escape(one.after)}</b><br>"
            + ("right now" if one.after == one.label else "right before" if one.before == one.label else "still wrong"),
        )
        for one in found.changed[:N_SHOWN]
    )
    return f'<p role="status"><b>{escape(sentence)}</b></p>{bars(rows)}{changed}'


def captioned(rows: Sequence[Captioned]) -> str:
    """Return images with what is said of each, by itself and steered."""
    return cards(
        (
            row.image,
            f"captioned: {row.steered}",
            f'<span class="steered">{escape(row.steered)}</span><small>by itself: {escape(row.plain)}</small>',
        )
        for row in rows
    )


def scores(measure: LanguageMeasure) -> str:
    """Return how often a learned prompt, no prompt and each instruction are right."""
    rows = [
        Bar(
            score.name if not score.name.startswith("instruction") else f"“{score.template}”",
            float(score.right.mean()),
            score.interval,
            place == 0,
        )
        for place, score in enumerate(measure.scores)
    ]
    return f"<p><b>Right on {counted(measure.n_rows, 'test row')}</b></p>{bars(rows)}"


def side(found: Side) -> str:
    """Return what one prompt says, as far as it is written."""
    label = (
        f'<p class="answer">{escape(found.label)} <small>{percent(found.probability)}</small></p>It goes on writing:'
    )
    return f'{label if found.label else ""}<p class="written">{escape(found.text.strip()) or "…"}</p>'


def added(found: Added) -> str:
    """Say what became of images that somebody gave."""
    known = f", {counted(found.n_known, 'image')} already there" if found.n_known else ""
    text = say(f"{counted(found.n_new, 'new image')}{known}.") if found.n_new or found.n_known else ""
    if found.refused:
        more = len(found.refused) - MOST_REFUSED
        listed = " ".join(found.refused[:MOST_REFUSED]) + (f" And {more:,} more." if more > 0 else "")
        text += refuse(f"{counted(len(found.refused), 'file')} left out. {listed}")
    return text
