"""What a report says in words and aligned numbers; every claim follows from an interval in the record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmprompt.classification.report.record import BASELINES, Record
from mmprompt.reports.numbers import between, percent, signed

NO_WORDS = (
    "No vectors of this prompt stand among the words of the text tower, or their neighbours were not looked up when "
    "the run ended; `mmprompt prompt inspect` does that."
)
WORDS_NOTE = (
    "Each learned vector with the tokens whose embeddings lie nearest to it, and their Euclidean distance. Read them "
    "as a hint and no more: a learned vector need not lie near any word, the nearest ones often make no sense (the "
    "question behind issue 9 of the CoOp code), and it is all vectors together with the class name that count."
)


def of(record: Record, labels: Mapping[str, str]) -> dict[str, Any]:
    """All texts of a report by their name in the template.

    Args:
        record: the run.
        labels: how each measured row is called.
    """
    run, data = record.run, record.run["data"]
    method, backbone = run["method"]["name"], run["backbone"]["name"]
    return {
        "title": f"{data['name']}: {method}, {shots_of(record)}",
        "eyebrow": " · ".join([data["name"], method, f"on {backbone}", shots_of(record), f"seed {run['seed']}"]),
        "novel_column": any(measured.novel is not None for measured in record.measured.values()),
        "headline": headline(record),
        "leads": leads(record, labels),
        "rows": rows(record, labels),
        "interval_note": (
            f"{len(record.shown):,} test pictures of {len(record.class_names)} classes; none was used for training or "
            f"for any choice. Guessing would be right in {percent(1 / len(record.class_names))}. Intervals are "
            "bootstrapped over pictures, those of a gain in pairs, picture by picture; they say nothing of other "
            "seeds: train several before comparing methods."
        ),
        "further": further(record),
        "classes_note": classes_note(record),
        "calibration_note": calibration_note(record),
        "learning_note": learning_note(record),
        "words": words(record),
        "words_note": WORDS_NOTE,
        "words_missing": NO_WORDS,
        "command": record.command,
        "facts": facts(record),
        "repeat_note": (
            "The same command with the same versions on the same kind of processor gives the same numbers; a finished "
            "folder is never written to again, so give another --out. The whole configuration is in run.json, which "
            "--config reads."
        ),
    }


def shots_of(record: Record) -> str:
    """How many pictures of each class it learned from."""
    if record.shots is None:
        return "all shots"
    return f"{record.shots} shot{'s' if record.shots > 1 else ''}"


def headline(record: Record) -> dict[str, str]:
    """The finding in one sentence, the learned prompt's accuracy set apart in it."""
    ours, bare = record.measured["learned"], record.measured["zero_shot_name"]
    low, high = bare.gain_interval
    verb = "raised accuracy" if low > 0 else "lowered accuracy" if high < 0 else "made no clear difference, going"
    return {
        "before": f"The learned prompt {verb} from {percent(bare.accuracy)} to ",
        "number": percent(ours.accuracy),
        "after": ".",
    }


def leads(record: Record, labels: Mapping[str, str]) -> list[str]:
    """What was learned from, and how it stands beside each baseline."""
    seen = "all training pictures" if record.shots is None else f"{record.shots} a class"
    n_train = record.run["data"]["sizes"]["train"]
    learned = (
        f"It learned from {n_train:,} pictures ({seen}) of {len(record.class_names)} classes; the model itself stayed "
        f"frozen and was shown {len(record.shown):,} other pictures for the test."
    )
    names = {"zero_shot_name": "the bare class name", "zero_shot_template": f"the hand-written {labels[BASELINES[1]]}"}
    compared = [
        f"{signed(record.measured[key].gain)} points over {names[key]} "
        f"(95 % interval {between(record.measured[key].gain_interval, True)})"
        for key in BASELINES
    ]
    return [learned, f"That is {' and '.join(compared)}."]


def rows(record: Record, labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """The table of accuracies; the gain stands in the row of what is beaten."""
    return [
        {
            "label": labels[key],
            "accuracy": percent(measured.accuracy),
            "interval": between(measured.interval),
            "gain": "" if key == "learned" else signed(measured.gain),
            "gain_interval": "" if key == "learned" else between(measured.gain_interval, True),
            "novel": "" if measured.novel is None else percent(measured.novel),
            "is_learned": key == "learned",
        }
        for key, measured in record.measured.items()
    ]


def further(record: Record) -> str:
    """Other measures of the learned prompt, as far as the run kept them."""
    names = {"top5": "right among the five most probable", "macro_f1": "macro F1"}
    known = {name: record.metrics["learned"].get(name) for name in names}
    found = [f"{names[name]} {percent(value)}" for name, value in known.items() if value is not None]
    return f"The learned prompt by other measures: {', '.join(found)}." if found else ""


def classes_note(record: Record) -> str:
    """How many classes gained and lost against zero-shot with the template, and which gained and lost most."""
    before, after = (record.class_accuracies(key) for key in ("zero_shot_template", "learned"))
    change = {name: after[name] - before[name] for name in after}
    n_up, n_down = (sum(sign * value > 0 for value in change.values()) for sign in (1, -1))
    best, worst = max(change, key=lambda name: change[name]), min(change, key=lambda name: change[name])
    text = f"Against zero-shot with the template, {n_up} classes gained and {n_down} lost, of {len(change)}."
    if change[best] > 0:
        text += f" {best} gained most ({signed(change[best])} points)."
    if change[worst] < 0:
        text += f" {worst} lost most ({signed(change[worst])})."
    return text


def calibration_note(record: Record) -> str:
    """What the calibration error says."""
    bins = record.reliability
    surer = sum(n * (c - a) for n, c, a in zip(bins.counts, bins.confidence, bins.accuracy, strict=True))
    way = "surer than it is right" if surer > 0 else "less sure than it is right"
    return (
        f"Predictions grouped by the probability it gave: on the dotted line, 80 % sure is right in 80 %. The expected "
        f"calibration error is {percent(bins.error)} (15 bins); on the whole it is {way}."
    )


def learning_note(record: Record) -> str:
    """How long it trained and where the log is."""
    if not record.log:
        return "This run kept no log."
    seconds = sum(record.log_values("seconds"))
    spent = f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
    n_epochs = len(record.log)
    return f"{n_epochs} epoch{'s' if n_epochs > 1 else ''} in {spent}. The numbers are in log.jsonl, a line an epoch."


def words(record: Record) -> list[dict[str, Any]]:
    """The nearest words of each vector, distances with two decimals."""
    return [
        {"vector": row["vector"], "words": [(word, f"{distance:.2f}") for word, distance in row["words"]]}
        for row in record.words or []
    ]


def facts(record: Record) -> list[tuple[str, str]]:
    """What has to be the same for a repetition: data, model, settings, versions."""
    run, data, backbone = record.run, record.run["data"], record.run["backbone"]
    return [
        ("data set", f"{data['name']}, protocol {data['protocol']}, fingerprint {data['fingerprint'][:16]}"),
        ("backbone", f"{backbone['name']}, fingerprint {backbone['fingerprint'][:16]}"),
        ("method", f"{run['method']['name']}: {in_words(run['method']['settings'])}"),
        ("recipe", in_words(run["recipe"])),
        ("shots, seed", f"{shots_of(record)}, seed {run['seed']}"),
        ("computed on", f"{run['device']} in {run['dtype']}"),
        ("versions", ", ".join(f"{name} {number}" for name, number in run["versions"].items())),
    ]


def in_words(settings: Mapping[str, Any]) -> str:
    """Settings as `n_ctx 4, class_position end`, without those that are unset."""
    return ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
