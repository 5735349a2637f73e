"""The gate of caption prompts on the embedded default: several seeds, drawn scenes that training never saw.

    python scripts/measure_captions.py --json docs/results/captions.json

For every seed it learns a prompt for objects, emotions and actions and measures them on the test scenes, beside no
prompt and beside the best hand-written words; then on the same kind of scenes in a style that `tiny` never saw. With
the prompts of the first seed it measures what is left of a focus that is avoided, and whether a mix names both.
"""

import json
import math
import time
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

import mmprompt as mp
from markdown import percent, table
from measuring import read_figures, run_main, write_figures
from mmprompt.captioning.measure import NO_PROMPT, CaptionMeasure, measure_captions
from mmprompt.captioning.metrics.adherence import score_focus
from mmprompt.captioning.metrics.judges import judge_for
from mmprompt.captioning.predictor import CaptionFeatures, Guidance, focus_of
from mmprompt.captioning.readers.captioner import FrozenCaptioner
from mmprompt.core.learned import Prompt

FOCUSES = ("objects", "emotions", "actions")
SETS = ("openart-scenes", "openart-scenes-new-style")
GAIN, LOSS = 0.40, 0.10
AVOIDED = (10.0,)
"""Strengths: the default."""
N_STEERED = 60
"""Test scenes that it is measured on."""


def row_of(measure: CaptionMeasure, focus: str) -> dict[str, Any]:
    """The figures of one focus in one run."""
    lifts = measure.lifts[focus]
    bare, learned = measure.focus_scores[NO_PROMPT][focus], measure.focus_scores[focus][focus]
    words = measure.focus_scores[f"words: {focus}"][focus]
    return {
        "adherence": learned.values["adherence"],
        "no_prompt": bare.values["adherence"],
        "words": words.values["adherence"],
        "wording": next(one.words for one in measure.speakers if one.name == f"words: {focus}"),
        "over_none": asdict(lifts["adherence over none"]),
        "over_words": asdict(lifts["adherence over words"]),
        "grounded": learned.values["grounded_precision_all"],
        "grounded_no_prompt": bare.values["grounded_precision_all"],
        "grounded_of_focus": learned.values["grounded_precision"],
        "grounded_of_focus_no_prompt": bare.values["grounded_precision"],
        "human": dict(learned.human),
        "distinct": learned.distinct_ratio,
        "mean_length": learned.values["mean_length"],
        "cider_d": measure.text_scores[focus].cider_d,
    }


def learn(captioner: FrozenCaptioner, features: CaptionFeatures, seed: int) -> tuple[list[Prompt], dict[str, float]]:
    """The prompts of one seed, and the seconds that each took."""
    data, prompts, seconds = mp.load_captions(SETS[0]), [], {}
    for focus in FOCUSES:
        started = time.monotonic()
        task = data.focus(focus, features)
        prompts.append(mp.fit(mp.PromptTuning(), captioner, task, seed=seed, progress=False).predictor.prompt)
        seconds[focus] = round(time.monotonic() - started, 1)
    return prompts, seconds


def run(seed: int, with_curve: bool) -> dict[str, Any]:
    """Train and measure one seed."""
    captioner = mp.load_captioner("tiny", device="cpu")
    data, features = {name: mp.load_captions(name) for name in SETS}, CaptionFeatures(captioner)
    prompts, seconds = learn(captioner, features, seed)
    found: dict[str, Any] = {"seed": seed, "training_seconds": seconds}
    words: dict[str, str] = {}  # chosen on the validation scenes of the first set
    for name in SETS:
        curve = {} if with_curve and name == SETS[0] else {"strengths": ()}
        measure = measure_captions(captioner, data[name], prompts, words=words, features=features, **curve)
        words = {one.focus: one.words for one in measure.speakers if one.words}
        rows = {focus: row_of(measure, focus) for focus in FOCUSES}
        found[name] = {"focuses": rows, "confusion": measure.confusion.to_dict()}
        if measure.strengths[FOCUSES[0]]:
            found["strengths"] = measure.to_dict()["strengths"]
    return found


def steered(captioner: FrozenCaptioner, prompts: list[Prompt], features: CaptionFeatures) -> dict[str, Any]:
    """What is named on the test scenes where a focus is avoided, by strength, or two are mixed, and how fluently.

    Fluency is the perplexity of the captions under the captioner without a prompt, which sees the image.
    """
    data = mp.load_captions(SETS[0])
    judge, items = judge_for(data), data.test[:N_STEERED]
    seen = features.of([item.image for item in items])
    kv_cache = captioner.open(seen)

    def row(texts: list[str]) -> dict[str, float]:
        said = {item.image_id: text for item, text in zip(items, texts, strict=True)}
        scores = {focus: score_focus(said, items, focus, judge) for focus in FOCUSES}
        ids = [[(*captioner.tokenizer.encode(text), captioner.decoder.end_id)] for text in texts]
        with torch.no_grad():
            surprise = -captioner.log_probs(kv_cache, {}, ids).mean().item()
        any_focus = scores[FOCUSES[0]].values
        return {focus: score.values["mention_rate"] for focus, score in scores.items()} | {
            "grounded": any_focus["grounded_precision_all"],
            "words": any_focus["mean_length"],
            "perplexity": math.exp(surprise),
        }

    def say(guidance: Guidance) -> dict[str, float]:
        return row([caption.text for caption in mp.Captioner(captioner, guidance).caption_features(seen)])

    by_focus = {focus_of(prompt): prompt for prompt in prompts}
    beams = [
        caption.text
        for caption in mp.Captioner(captioner, decoding=mp.captioning.Decoding(n_beams=8)).caption_features(seen)
    ]
    return {
        "nothing avoided": say(Guidance()),
        "nothing avoided, 8 beams": row(beams),
        "references": {focus: row([item.of(focus)[0] for item in items])["perplexity"] for focus in FOCUSES},
        "avoided": {
            focus: {str(strength): say(Guidance(avoid=prompt, avoid_strength=strength)) for strength in AVOIDED}
            for focus, prompt in by_focus.items()
        },
        "alone": {focus: say(Guidance(((prompt, 1.0),))) for focus, prompt in by_focus.items()},
        "mixed": {
            f"{one} and {other}": say(Guidance(((by_focus[one], 1.0), (by_focus[other], 1.0))))
            for one, other in combinations(FOCUSES, 2)
        },
    }


def steered_page(found: dict[str, Any]) -> str:
    """The same as Markdown."""
    rows = [("nothing", "", found["nothing avoided"]), ("nothing, 8 beams", "", found["nothing avoided, 8 beams"])]
    rows += [(focus, strength, row) for focus, some in found["avoided"].items() for strength, row in some.items()]
    avoided = [[name, strength, *_named(row)] for name, strength, row in rows]
    mixed = [[name, *_named(row)] for name, row in (found["alone"] | found["mixed"]).items()]
    headers = (*FOCUSES, "grounded", "words", "perplexity")
    references = ", ".join(f"{focus} {value:.2f}" for focus, value in found["references"].items())
    return "\n".join(
        [
            table(("avoided", "strength", *headers), avoided),
            f"\nReferences of one focus: {references}.\n",
            table(("prompts", *headers), mixed),
        ]
    )


def _named(row: dict[str, float]) -> list[str]:
    shares = ["" if row[name] is None else f"{100 * row[name]:.0f}" for name in (*FOCUSES, "grounded")]
    return [*shares, f"{row['words']:.1f}", f"{row['perplexity']:.2f}"]


def mean_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Means over seeds of all that is a number, not a number where nothing was named in one of them."""
    keys = [key for key, one in rows[0].items() if one is None or isinstance(one, float)]
    return {key: float(np.mean([row[key] for row in rows], dtype=float)) for key in keys}


def gate(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The gate on the test scenes, on means over seeds; the intervals of every single run must be above zero too."""
    found = {}
    for focus in FOCUSES:
        rows = [one[SETS[0]]["focuses"][focus] for one in runs]
        mean = mean_of(rows)
        gains = [mean["adherence"] - mean[other] for other in ("no_prompt", "words")]
        lost = max(
            mean["grounded_no_prompt"] - mean["grounded"],
            mean["grounded_of_focus_no_prompt"] - mean["grounded_of_focus"],
        )
        is_clear = all(row[over]["interval"][0] > 0 for row in rows for over in ("over_none", "over_words"))
        passes = min(gains) >= GAIN and lost < LOSS and is_clear
        found[focus] = mean | {"gain_over_none": gains[0], "gain_over_words": gains[1], "lost": lost, "passes": passes}
    found["is_diagonal"] = all(one[SETS[0]]["confusion"]["is_diagonal"] for one in runs)
    return found


def page(runs: list[dict[str, Any]], name: str) -> str:
    """Means over seeds as Markdown."""
    lines = []
    for focus in FOCUSES:
        rows = [one[name]["focuses"][focus] for one in runs]
        mean, gains = mean_of(rows), []
        for other, over in (("no_prompt", "over_none"), ("words", "over_words")):
            low = min(row[over]["interval"][0] for row in rows)
            gains.append(f"{100 * (mean['adherence'] - mean[other]):+.1f} (> {100 * low:+.1f})")
        said = [percent(mean[key]) for key in ("no_prompt", "words", "adherence")]
        grounded = [percent(mean[key]) for key in ("grounded_no_prompt", "grounded")]
        lines.append([focus, *said, *gains, *grounded])
    gained = ("gain over none", "gain over words")
    return table(("focus", "no prompt", "best words", "learned", *gained, "grounded: none", "learned"), lines)


def measure_gate(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Measure the gate of several seeds, and print its tables."""
    runs = []
    for seed in seeds:
        runs.append(run(seed, with_curve=seed == seeds[0]))
        print(json.dumps(runs[-1][SETS[0]]["focuses"])[:200], flush=True)
    passed = gate(runs)
    for name in SETS:
        print(f"\n{name}, {len(runs)} seeds\n\n{page(runs, name)}")
    print("\ngate:", {f: passed[f]["passes"] for f in FOCUSES}, "diagonal:", passed["is_diagonal"])
    return {"gate": passed, "runs": runs}


def measure_steered(seed: int) -> dict[str, Any]:
    """Measure what is avoided and mixed by the prompts of one seed, and print its tables."""
    captioner = mp.load_captioner("tiny", device="cpu")
    features = CaptionFeatures(captioner)
    found = steered(captioner, learn(captioner, features, seed)[0], features)
    heading = f"Share of captions that name a focus, in %, {N_STEERED} test scenes of {SETS[0]}, seed {seed}"
    print(f"\n{heading}\n\n{steered_page(found)}")
    return {"steered": {"seed": seed} | found}


def main(
    seeds: tuple[int, ...] = (1, 2, 3),
    parts: tuple[Literal["gate", "steered"], ...] = ("gate", "steered"),
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Measure, print the tables, write the figures; those of a part that is not measured stay in the file."""
    found = read_figures(json_file)
    if "gate" in parts:
        found |= measure_gate(seeds)
    if "steered" in parts:
        found |= measure_steered(seeds[0])
    if json_file is not None:
        write_figures(json_file, found)


if __name__ == "__main__":
    run_main(main, __doc__)
