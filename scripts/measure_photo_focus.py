"""The gate of caption prompts on photographs: objects, actions and attributes, learned from captions alone.

    python scripts/measure_photo_focus.py --data captions.jsonl --texts captions_val2017.json --json FILE

The captions are COCO's, chosen by `focus_sets`, of the scenes among some that speak most of a focus. What stands for
their images is what `photo-small`'s text tower makes of the things that they name, so no photograph is learned from.
Each prompt is measured on photographs by a lexicon, beside no prompt and beside the wording, of three, that keeps to
its focus best on the very same photographs.
"""

import hashlib
import json
import random
from collections import defaultdict
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

import mmprompt as mp
from markdown import gain, percent, table
from measuring import read_figures, run_main, write_figures
from mmprompt.captioning.data import CaptionData, CaptionItem
from mmprompt.captioning.focus_sets import COUNTED, build_focus, nouns, share_of
from mmprompt.captioning.measure import ANY_WORDS
from mmprompt.captioning.metrics.adherence import FocusScores, lift, score_focus
from mmprompt.captioning.metrics.judges import EVERYDAY, LexiconJudge
from mmprompt.captioning.predictor import Captioner, CaptionFeatures, Guidance, hard_prompt
from mmprompt.captioning.readers.captioner import FrozenCaptioner
from mmprompt.captioning.task import FocusTask
from mmprompt.core.soft import LoRA
from mmprompt.files import read_json
from mmprompt.models.dual_encoder.interface import DualEncoder

N_SCENES, N_TRAIN, N_VAL = 800, 200, 60
"""Scenes whose captions are looked at, those among them that speak most of a focus, and others that are looked at."""
N_STEPS, SETTINGS = 200, LoRA(dropout=0.2, ratio=1.0)
NORM = 0.7
"""Of a stand-in; a feature of the image tower has 1, of which much is no thing that a caption names."""
GAIN, LOSS = 0.20, 0.10


class Scenes(CaptionData):
    """Captions whose images are names alone."""

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over ids and captions."""
        return hashlib.sha256(json.dumps([[i.image_id, dict(i.captions)] for i in self.items]).encode()).hexdigest()


class StandIns(CaptionFeatures):
    """Features of scenes by the things that their first captions name, in place of those of images."""

    def __init__(self, scenes: Scenes, backbone: DualEncoder, captioner: FrozenCaptioner) -> None:
        super().__init__(captioner, store=None)
        named = [sorted(set(nouns(item.of(None)[0]))) for item in scenes.items]
        things = sorted({thing for some in named for thing in some})
        texts = [backbone.tokenize(f"a photo of a {thing}.") for thing in things]
        with torch.no_grad():
            vectors = backbone.encode_text(backbone.text_slots(texts))
        vectors = vectors - vectors.mean(0)
        model: Any = backbone.model
        back = torch.linalg.pinv(model.visual.head.proj.weight.detach()).T  # from the joint space to image features
        self.of_scene = {}
        for item, some in zip(scenes.items, named, strict=True):
            mean = vectors[[things.index(thing) for thing in some]].sum(0)
            self.of_scene[item.image_id] = NORM * F.normalize(mean @ back, dim=0)

    def of(self, paths: list[Path]) -> Tensor:
        """Return [N, 1, D']."""
        return torch.stack([self.of_scene[path.name] for path in paths])[:, None]


def scenes_of(texts: Path, seed: int) -> Scenes:
    """The captions of some scenes, a few of them to choose by."""
    by_scene: dict[int, list[str]] = defaultdict(list)
    for row in json.loads(texts.read_text("utf-8"))["annotations"]:
        by_scene[row["image_id"]].append(row["caption"].strip())
    some = [(scene, said) for scene, said in by_scene.items() if nouns(said[0])]
    chosen = random.Random(seed).sample(some, N_SCENES + N_VAL)
    items = [
        CaptionItem(Path(str(scene)), str(scene), {"": tuple(said)}, "train" if place < N_SCENES else "val")
        for place, (scene, said) in enumerate(chosen)
    ]
    return Scenes("coco-captions", Path(), tuple(items))


def most_of(data: Scenes, focus: str) -> CaptionData:
    """Keep, of the scenes to learn from, those whose captions speak most of a focus."""
    chosen = build_focus(data, focus)
    own = sorted((i for i in chosen.train if i.of(focus)), key=lambda item: -share_of(item.of(focus)[0], focus))
    return replace(chosen, items=(*own[:N_TRAIN], *chosen.val))


def row_of(judged: dict[str, FocusScores]) -> dict[str, Any]:
    """The figures of a focus: learned, no prompt, and the best of the wordings."""
    none, learned = judged["none"], judged["learned"]
    wording = max(
        (name for name in judged if name not in ("none", "learned")), key=lambda name: adherence(judged[name])
    )
    words = judged[wording]
    return {
        "adherence": adherence(learned),
        "no_prompt": adherence(none),
        "words": adherence(words),
        "wording": wording,
        "over_none": list(lift(learned, none, "adherence").interval),
        "over_words": list(lift(learned, words, "adherence").interval),
        "grounded": learned.values["grounded_precision_all"],
        "grounded_no_prompt": none.values["grounded_precision_all"],
        "human": dict(learned.human),
    }


def adherence(scores: FocusScores) -> float:
    """Mean share of what captions name that belongs to the focus; 0 where they name nothing."""
    return scores.values["adherence"] or 0.0


def passes(row: dict[str, Any]) -> bool:
    """Whether a row is within the gate."""
    gains = row["adherence"] - row["no_prompt"], row["adherence"] - row["words"]
    is_clear = row["over_none"][0] > 0 and row["over_words"][0] > 0
    return min(gains) >= GAIN and is_clear and row["grounded_no_prompt"] - row["grounded"] < LOSS


def main(
    data: Path,
    texts: Path,
    images: Path | None = None,
    focuses: tuple[str, ...] = tuple(COUNTED),
    seed: int = 1,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Learn, measure, print the table, write the figures; those of a focus that is not measured stay in the file.

    Args:
        data: photographs with captions; the part `test` is measured.
        texts: COCO's caption file, which is learned from.
        images: the folder of the photographs, if it is not that of the file.
        focuses: those that are measured.
        seed: of the scenes and the prompts.
        json_file: where the figures go.
    """
    torch.set_num_threads(1)
    captioner, scenes = mp.load_captioner("photo", device="cpu"), scenes_of(texts, seed)
    stand_ins = StandIns(scenes, mp.load_backbone("photo-small", device="cpu"), captioner)
    items = list(mp.load_captions(data, images).with_captions("test", None))
    seen, judge = CaptionFeatures(captioner).of([item.image for item in items]), LexiconJudge(read_json(EVERYDAY))

    def said_with(guidance: Guidance) -> dict[str, str]:
        said = Captioner(captioner, guidance).caption_features(seen)
        return {item.image_id: one.text for item, one in zip(items, said, strict=True)}

    rows = read_figures(json_file)
    bare = said_with(Guidance())
    for focus in focuses:
        task = FocusTask(most_of(scenes, focus), focus, stand_ins)
        learned = mp.fit(SETTINGS, captioner, task, seed=seed, progress=False, n_steps=N_STEPS).predictor
        speakers = {"none": bare, "learned": said_with(learned.guidance)}
        for words in (wording.format(focus) for wording in ANY_WORDS):
            speakers[words] = said_with(Guidance(((hard_prompt(captioner, focus, words), 1.0),)))
        rows[focus] = row_of({name: score_focus(said, items, focus, judge) for name, said in speakers.items()})
        rows[focus] |= {"captions": list(speakers["learned"].values())[:4]}
        print(json.dumps({focus: rows[focus]}), flush=True)
        if json_file is not None:
            write_figures(json_file, rows)
    lines = []
    for focus, row in rows.items():
        gains = [
            gain(row["adherence"] - row[rival], row[over])
            for rival, over in (("no_prompt", "over_none"), ("words", "over_words"))
        ]
        shares = [percent(row[key]) for key in ("no_prompt", "words", "adherence")]
        grounded = [percent(row[key]) for key in ("grounded_no_prompt", "grounded")]
        lines.append([focus, *shares, *gains, *grounded, "yes" if passes(row) else "no"])
    head = (
        "focus",
        "no prompt",
        "best words",
        "learned",
        "over none",
        "over words",
        "grounded: none",
        "learned",
        "gate",
    )
    print(table(head, lines))


if __name__ == "__main__":
    run_main(main, __doc__)
