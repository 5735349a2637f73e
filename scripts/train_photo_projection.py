"""Trains the projection behind the text tower of `photo`: prepare, train, export.

    python scripts/train_photo_projection.py prepare --work DIR
    python scripts/train_photo_projection.py train   --work DIR
    python scripts/train_photo_projection.py export  --work DIR --assets mmprompt/assets

No image is used, and the text tower stays as it was fetched. `prepare` needs some minutes, for the texts are encoded
once there. `train` goes on from its last checkpoint if there is one. The recipe is in docs/photographs.md.
"""

import json
import math
import random
import re
import time
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
import tyro
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from mmprompt.files import read_checkpoint
from mmprompt.models.dual_encoder.bert import SoftmaxProjection
from mmprompt.models.packaged import ASSETS, fetch, image_weights, text_weights
from openart.training import write_line
from photo_text.sources import Nouns, WordVectors, imagenet_offsets, load_nouns, load_word_vectors
from photo_text.teacher import Teacher, Weights, class_targets
from photo_text.texts import TEMPLATES, Entry, gather
from photo_text.training import loss_of

EMBEDDING, N_VALUES = 512, 4000
WEIGHTS = Weights(taxonomy=6, name=12, definition=5)  # chosen on Caltech101's validation images
LOGIT_SCALE = 30.0
N_COMMON, N_TOKENS = 100_000, 24
SHARPNESS = 12.0  # of the scores at the start
BATCH, CLASS_SHARE, RATE = 512, 5, 2e-3
BARE, PHOTO = 0, 1  # places among the texts of a name
OFTEN = {BARE: 1.5, PHOTO: 2.0}  # how often a text is learned, beside 0.8


@dataclass(frozen=True)
class Text:
    """A text of a name: row of its target, place among the texts of the name, and rank of its rarest word."""

    text: str
    row: int
    place: int
    rank: int
    is_class: bool


def rank_of(name: str, vectors: WordVectors) -> int:
    """The rank of the rarest word of a name."""
    return max((vectors.rows.get(word, 10**6) for word in re.findall("[a-z]+", name)), default=10**6)


def texts_of(groups: dict[str, list[Entry]], nouns: Nouns, vectors: WordVectors) -> list[Text]:
    """What is learned: classes, and common names in their first meaning, alone and in a template; classes in more."""
    rng, texts = random.Random(0), []
    for row, entry in enumerate(groups["classes"]):
        above = nouns.synsets[entry.offset].hypernyms
        kind = nouns.synsets[above[0]].lemmas[0] if above else "thing"
        forms = [entry.name, f"a photo of a {entry.name}.", f"{entry.name}, a kind of {kind}"]
        forms += [rng.choice(TEMPLATES).format(entry.name) for _ in range(4)]
        texts += [Text(form, row, place, rank_of(entry.name, vectors), True) for place, form in enumerate(forms)]
    for row, entry in enumerate(groups["common"], len(groups["classes"])):
        forms = [entry.name, f"a photo of a {entry.name}."] if entry.is_first else []
        texts += [Text(form, row, place, rank_of(entry.name, vectors), False) for place, form in enumerate(forms)]
    return texts


def minilm(weights: bytes) -> BertModel:
    """The text tower from its file."""
    model = BertModel(BertConfig.from_pretrained(ASSETS / "photo" / "text"), add_pooling_layer=False).eval()
    own = {name.removeprefix("text.transformer."): value for name, value in text_weights(weights).items()}
    model.load_state_dict(own)
    return model


@torch.no_grad()
def encode(texts: list[str], weights: bytes, tokenizer: bytes) -> Tensor:
    """The mean slot of each text, [N, D], texts of equal length side by side."""
    model = minilm(weights)
    words = Tokenizer.from_str(tokenizer.decode())
    words.no_padding()
    words.enable_truncation(N_TOKENS)
    ids = [found.ids for found in words.encode_batch(texts)]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    found: dict[int, Tensor] = {}
    start = 0
    while start < len(order):
        batch = [i for i in order[start : start + 256] if len(ids[i]) == len(ids[order[start]])]
        slots = model(torch.tensor([ids[i] for i in batch])).last_hidden_state
        found.update(zip(batch, slots.mean(dim=1), strict=True))
        start += len(batch)
        print(f"\r{start} of {len(order)} texts", end="", flush=True)
    return torch.stack([found[i] for i in range(len(ids))])


def prepare(work: Path) -> None:
    """Fetch the sources; write the texts' encodings, their targets and the image projection."""
    work.mkdir(parents=True, exist_ok=True)
    nouns, vectors, leaves = load_nouns(work), load_word_vectors(work), imagenet_offsets()
    image, *text = fetch("photo")
    *_, classifier, _ = image_weights(image).values()
    projection, classes = class_targets(classifier, EMBEDDING)
    groups = gather(nouns, vectors, leaves, N_COMMON)
    teacher = Teacher(nouns, vectors, leaves, classes, WEIGHTS)
    entries = groups["classes"] + groups["common"]
    texts = texts_of(groups, nouns, vectors)
    used = {text.row for text in texts}
    targets = torch.zeros(len(entries), EMBEDDING)
    for row in used:
        leaf = entries[row].leaf
        targets[row] = classes[leaf] if leaf is not None else teacher.target(entries[row].name, entries[row].offset)
    encoded = F.normalize(encode([each.text for each in texts], *text), dim=-1)
    (work / "texts.json").write_text(json.dumps([[t.text, t.row, t.place, t.rank, t.is_class] for t in texts]))
    tensors = {"encoded": encoded, "targets": targets, "classes": classes, "projection": projection}
    save_file({name: value.contiguous() for name, value in tensors.items()}, work / "projection_data.safetensors")


def untrained(texts: list[Text], encoded: Tensor, targets: Tensor) -> SoftmaxProjection:
    """The kernel regression from the classes, and from the commonest names with less weight."""
    photos = [i for i, text in enumerate(texts) if text.place == PHOTO]
    photos.sort(key=lambda i: (not texts[i].is_class, 0 if texts[i].is_class else texts[i].rank))
    n_classes, chosen = sum(texts[i].is_class for i in photos), photos[:N_VALUES]
    made = SoftmaxProjection(encoded.shape[1], N_VALUES, EMBEDDING)
    with torch.no_grad():
        made.scores.weight.copy_(SHARPNESS * encoded[chosen])
        made.scores.bias.copy_(torch.where(torch.arange(N_VALUES) < n_classes, 0.0, -2.0))
        made.values.weight.copy_(targets[[texts[i].row for i in chosen]].T)
    return made


@dataclass
class Run:
    """What a training goes on from."""

    model: SoftmaxProjection
    average: SoftmaxProjection
    optimiser: torch.optim.Optimizer
    step: int = 0

    def load(self, path: Path) -> None:
        """Go on from a file."""
        state = read_checkpoint(path)
        self.step = state["step"]
        for name in ("model", "average", "optimiser"):
            getattr(self, name).load_state_dict(state[name])

    def save(self, path: Path) -> None:
        """Write a file to go on from."""
        states = {name: getattr(self, name).state_dict() for name in ("model", "average", "optimiser")}
        torch.save(states | {"step": self.step}, path)


def train(work: Path, steps: int = 800, seed: int = 1, threads: int = 1) -> None:
    """Train, or go on training: a line of the log and a checkpoint every 100 steps, and after the last one."""
    torch.set_num_threads(threads)
    texts = [Text(*row) for row in json.loads((work / "texts.json").read_text())]
    data = load_file(work / "projection_data.safetensors")
    encoded, targets, rows = data["encoded"], data["targets"], torch.tensor([text.row for text in texts])
    classes = [i for i, text in enumerate(texts) if text.is_class]
    common = [i for i, text in enumerate(texts) if not text.is_class]
    shares = list(accumulate(OFTEN.get(texts[i].place, 0.8) / (30_000 + texts[i].rank) for i in common))
    model, average = untrained(texts, encoded, targets), untrained(texts, encoded, targets)
    rates = (3 * RATE, 0.3 * RATE)
    parts = ({"params": part.parameters(), "lr": rate} for part, rate in zip(model.children(), rates, strict=True))
    run, folder = Run(model, average, torch.optim.Adam(parts)), work / "runs" / "projection"
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "state.pt").is_file():
        run.load(folder / "state.pt")
    began, sums = time.monotonic(), []
    while run.step < steps:
        rng = random.Random(f"{seed}/{run.step}")
        chosen = rng.choices(classes, k=BATCH // CLASS_SHARE)
        chosen += rng.choices(common, cum_weights=shares, k=BATCH - BATCH // CLASS_SHARE)
        wanted = targets[rows[chosen]]
        features = F.normalize(model(encoded[chosen]), dim=-1)
        loss = loss_of(features, wanted, data["classes"])
        for group, rate in zip(run.optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, (run.step + 1) / 30, (1 - run.step / steps) / 0.6)
        run.optimiser.zero_grad()
        loss.backward()
        run.optimiser.step()
        run.step += 1
        follow(average, model, min(0.99, run.step / (run.step + 9)))
        sums.append((loss.item(), (features.detach() * wanted).sum(dim=-1).mean().item()))
        if run.step % 100 == 0 or run.step == steps:
            loss_mean, cosine = (round(value, 4) for value in torch.tensor(sums).mean(dim=0).tolist())
            line = {"step": run.step, "seconds": round(time.monotonic() - began, 1)}
            write_line(folder, line | {"loss": loss_mean, "cosine": cosine})
            sums.clear()
            run.save(folder / "state.pt")


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, keep: float) -> None:
    """Move a running average of weights."""
    for kept, new in zip(average.parameters(), model.parameters(), strict=True):
        kept.lerp_(new, 1 - keep)


def export(work: Path, assets: Path) -> None:
    """Write the projections into the folder `photo` of the assets in half precision.

    Args:
        assets: the package's assets folder.
    """
    state = read_checkpoint(work / "runs" / "projection" / "state.pt")["average"]
    weights = {f"text.proj.{name}": value for name, value in state.items()}
    weights["visual.head.proj.weight"] = load_file(work / "projection_data.safetensors")["projection"]
    weights["logit_scale"] = torch.tensor(math.log(LOGIT_SCALE))
    halves = {name: value.to(torch.float16).contiguous() for name, value in weights.items()}
    (assets / "photo" / "text.safetensors").write_bytes(safetensors.torch.save(halves))


if __name__ == "__main__":
    verbs = {"prepare": prepare, "train": train, "export": export}
    tyro.extras.subcommand_cli_from_dict(verbs, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
