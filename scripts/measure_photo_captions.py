"""Measures the captioner of `photo` on photographs with captions that it never saw, beside floors.

    python scripts/measure_photo_captions.py --data captions.jsonl --texts captions_val2017.json --json FILE

The floors say nothing of the image (any caption of `texts`; of 150 of them the one that is best if it is said of all)
or know no captioner (of 3,000 the one whose embedding in the text tower is nearest).
"""

import json
import random
from pathlib import Path
from typing import Annotated

import torch
import tyro

import mmprompt as mp
from markdown import table
from measuring import run_main, write_figures
from mmprompt.captioning.decoding import Decoding
from mmprompt.captioning.metrics.caption_metrics import CaptionScores, score_captions
from mmprompt.captioning.predictor import CaptionFeatures
from mmprompt.models.dual_encoder.interface import DualEncoder
from mmprompt.models.image_features import encode_images

N_TEXTS, N_FIXED = 3000, 150
SEEDS = (1, 2, 3)
COLUMNS = ("captions", "BLEU-4", "ROUGE-L", "CIDEr-D", "words", "different")


def read_texts(path: Path) -> list[str]:
    """Read the captions of COCO's file."""
    return [row["caption"].strip() for row in json.loads(path.read_text(encoding="utf-8"))["annotations"]]


def fixed_caption(texts: list[str], references: dict[str, tuple[str, ...]]) -> str:
    """Of some captions the one with the best CIDEr-D if it is said of every image, chosen on these in its favour."""
    asked = random.Random(0).sample(texts, N_FIXED)
    return max(asked, key=lambda caption: score_captions(dict.fromkeys(references, caption), references).cider_d)


@torch.no_grad()
def nearest_texts(backbone: DualEncoder, images: torch.Tensor, texts: list[str]) -> list[str]:
    """For each image [N, E] the text nearest to it in the joint space."""
    room = backbone.context_length - 2
    vectors = backbone.encode_text(backbone.text_slots([backbone.tokenize(text)[:room] for text in texts]))
    return [texts[row] for row in (images @ vectors.T).argmax(1).tolist()]


def row_of(name: str, scores: CaptionScores) -> list[str]:
    """A line of the table; CIDEr-D times 100, as papers print it."""
    numbers = 100 * scores.bleu[3], 100 * scores.rouge_l, 100 * scores.cider_d, scores.mean_length
    return [name, *(f"{number:.1f}" for number in numbers), f"{100 * scores.distinct_ratio:.0f} %"]


def main(
    data: Path,
    texts: Path,
    images: Path | None = None,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Measure, print the table, write the figures and what was said.

    Args:
        data: photographs with captions; the part `test` is measured.
        texts: COCO's caption file, for the floors.
        images: the folder of the photographs, if it is not that of the file.
        json_file: where the figures go.
    """
    items = mp.load_captions(data, images).with_captions("test", None)
    references = {item.image_id: item.of(None) for item in items}
    flat = read_texts(texts)
    said: dict[str, list[str]] = {}
    for seed in SEEDS:
        said[f"any caption, seed {seed}"] = random.Random(seed).sample(flat, len(items))
    said["one caption for all"] = [fixed_caption(flat, references)] * len(items)
    backbone = mp.load_backbone("photo", device="cpu")
    pictures = encode_images(backbone, [item.image for item in items])
    said["nearest caption"] = nearest_texts(backbone, pictures, random.Random(0).sample(flat, N_TEXTS))
    model = mp.load_captioner("photo", device="cpu")
    features = CaptionFeatures(model).of([item.image for item in items])
    for name, decoding in (("`photo`", Decoding()), ("`photo`, 5 beams", Decoding(n_beams=5))):
        captions = mp.Captioner(model, decoding=decoding).caption_features(features)
        said[name] = [caption.text for caption in captions]
    found = {name: score_captions(dict(zip(references, some, strict=True)), references) for name, some in said.items()}
    print(table(COLUMNS, [row_of(name, scores) for name, scores in found.items()]))
    if json_file is not None:
        write_figures(json_file, {name: scores.to_dict() for name, scores in found.items()})


if __name__ == "__main__":
    run_main(main, __doc__)
