"""The gate of caption prompts on photographs: objects, actions and attributes, learned from captions alone.

    python scripts/measure_photo_focus.py --work DIR --data captions.jsonl --json docs/results/photo_focus.json

The captions are COCO's, chosen by `focus_sets` among those of each scene that `train_photo_captioner.py prepare` read;
what the image tower might see of them is drawn from words, so no photograph is learned from. The method is chosen on
scenes that are kept for it. Then each prompt is measured on photographs that nothing was chosen on, beside no prompt
and beside the wording, of three, that keeps to its focus best on the very same photographs.
"""

import hashlib
import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

import mmprompt as mp
from markdown import gain, percent, table
from measure_captions import row_of
from mmprompt.captioning.data import CaptionData, CaptionItem
from mmprompt.captioning.focus_sets import COUNTED, build_focus
from mmprompt.captioning.measure import ANY_WORDS, measure_captions
from mmprompt.captioning.metrics.adherence import EVERYDAY, LexiconJudge, score_focus
from mmprompt.captioning.predictor import Captioner, CaptionFeatures, Guidance, hard_prompt
from mmprompt.captioning.task import FocusTask
from mmprompt.core.learned import Prompt
from mmprompt.files import make_folder, read_json
from train_photo_captioner import Settings, Training

N_TRAIN, N_VAL = 600, 100
METHODS = {"prompt-tuning": mp.PromptTuning(), "prefix-tuning": mp.PrefixTuning()}
GAIN, LOSS = 0.20, 0.10


class Scenes(CaptionData):
    """Captions whose images are names alone."""

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over ids and captions."""
        return hashlib.sha256(json.dumps([[i.image_id, dict(i.captions)] for i in self.items]).encode()).hexdigest()


class Drawn:
    """Features that the simulator draws for scenes, in place of those of images."""

    def __init__(self, training: Training, seed: int) -> None:
        self.training, self.seed = training, seed

    def of(self, paths: list[Path]) -> Tensor:
        """Return [N, 1, D'], of each name always the same."""
        rows = [int(path.name) for path in paths]
        some = [(row, self.training.scenes[row].captions[0]) for row in rows]
        drawn = self.training.features(some, torch.Generator().manual_seed(self.seed))
        return (drawn @ self.training.model.projection)[:, None]


def scenes_of(training: Training, seed: int) -> Scenes:
    """The captions of some scenes that the captioner has learned from, and of some to choose by that it has not."""
    held_out = set(training.held_out)
    learned = [row for row in range(len(training.scenes)) if row not in held_out]
    order = torch.randperm(len(learned), generator=torch.Generator().manual_seed(seed)).tolist()
    rows = [(learned[place], "train") for place in order[:N_TRAIN]]
    rows += [(row, "val") for row in training.held_out[:N_VAL]]
    items = []
    for row, split in rows:
        texts = tuple(caption.text for caption in training.scenes[row].captions)
        items.append(CaptionItem(Path(str(row)), str(row), {"": texts}, split))
    return Scenes("coco-captions", Path(), tuple(items))


def adherence(captioner: Captioner, items: list[CaptionItem], features: Tensor, focus: str) -> float:
    """Mean share of what captions name that belongs to a focus, by the lexicon of everyday words."""
    said = captioner.caption_features(features)
    captions = {item.image_id: caption.text for item, caption in zip(items, said, strict=True)}
    judge = LexiconJudge(read_json(EVERYDAY))
    return score_focus(captions, items, focus, judge).values["adherence"] or 0.0


def learn(captioner: Any, data: Scenes, focus: str, features: Drawn, seed: int) -> tuple[Prompt, dict[str, float]]:
    """Learn a prompt with each method; return that which keeps to the focus best on the scenes kept for it."""
    task = FocusTask(build_focus(data, focus), focus, features)  # type: ignore[arg-type]
    seen, found = features.of([item.image for item in data.val]), {}
    prompts = {}
    for name, method in METHODS.items():
        prompts[name] = mp.fit(method, captioner, task, seed=seed, progress=False).predictor.prompt
        guided = Captioner(captioner, Guidance(((prompts[name], 1.0),)))
        found[name] = adherence(guided, list(data.val), seen, focus)
    return prompts[max(found, key=found.__getitem__)], found


def best_words(captioner: Any, items: list[CaptionItem], features: Tensor, focus: str) -> str:
    """The wording of three that keeps to a focus best on the images that are measured on, in its favour."""
    wordings = [words.format(focus) for words in ANY_WORDS]

    def kept(words: str) -> float:
        guided = Captioner(captioner, Guidance(((hard_prompt(captioner, focus, words), 1.0),)))
        return adherence(guided, items, features, focus)

    return max(wordings, key=kept)


def passes(row: dict[str, Any]) -> bool:
    """Whether a row is within the gate."""
    gains = row["adherence"] - row["no_prompt"], row["adherence"] - row["words"]
    is_clear = row["over_none"]["interval"][0] > 0 and row["over_words"]["interval"][0] > 0
    return min(gains) >= GAIN and is_clear and row["grounded_no_prompt"] - row["grounded"] < LOSS


def main(
    work: Path,
    data: Path,
    images: Path | None = None,
    seed: int = 1,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Learn, measure, print the table, write the figures.

    Args:
        work: the work folder of train_photo_captioner.py.
        data: photographs with captions; the part `test` is measured.
        images: the folder of the photographs, if it is not that of the file.
        seed: of the scenes, what is drawn of them, and the prompts.
        json_file: where the figures go.
    """
    torch.set_num_threads(1)
    captioner = mp.load_captioner("photo", device="cpu")
    training = Training(Settings(work))
    scenes, drawn = scenes_of(training, seed), Drawn(training, seed)
    learned = {focus: learn(captioner, scenes, focus, drawn, seed) for focus in COUNTED}
    print(json.dumps({focus: found for focus, (_, found) in learned.items()}), flush=True)
    photographs = replace(mp.load_captions(data, images), lexicon=read_json(EVERYDAY))
    items = list(photographs.with_captions("test", None))
    features = CaptionFeatures(captioner)
    seen = features.of([item.image for item in items])
    words = {focus: best_words(captioner, items, seen, focus) for focus in COUNTED}
    prompts = [prompt for prompt, _ in learned.values()]
    measure = measure_captions(captioner, photographs, prompts, words=words, features=features, strengths=())
    rows = {focus: row_of(measure, focus) | {"methods": learned[focus][1]} for focus in COUNTED}
    lines = []
    for focus, row in rows.items():
        gains = [
            gain(row["adherence"] - row[rival], row[over]["interval"])
            for rival, over in (("no_prompt", "over_none"), ("words", "over_words"))
        ]
        shares = [percent(row[key]) for key in ("no_prompt", "words", "adherence")]
        lines.append([focus, *shares, *gains, percent(row["grounded_no_prompt"]), percent(row["grounded"])])
    head = ("focus", "no prompt", "best words", "learned", "over none", "over words", "grounded: none", "learned")
    print(table(head, lines))
    print("gate:", {focus: passes(row) for focus, row in rows.items()})
    if json_file is not None:
        make_folder(json_file.parent)
        json_file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
