"""Make `tiny`'s captioner: a small language model that reads the frozen image tower's tokens, from artwork scenes.

    python scripts/pretrain_tiny.py prepare          --work DIR      # once: fetches and draws the artwork
    python scripts/pretrain_tiny_captioner.py train  --work DIR      # goes on from the last checkpoint
    python scripts/pretrain_tiny_captioner.py export --work DIR --assets FOLDER
    python scripts/pretrain_tiny_captioner.py known --assets FOLDER   # what images it was trained on, of openart-scenes

The decoder is a `LlamaForCausalLM` of transformers, the projector a layer norm and a linear map. It sees every scene
with several texts, and a part of the texts without any image, so that it is a language model too. Recipe:
docs/captions.md.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import mmprompt as mp
from mmprompt.captioning.predictor import CaptionFeatures
from mmprompt.captioning.readers.captioner import KnownImages
from mmprompt.captioning.readers.load import KNOWN_IMAGES_FILE
from mmprompt.files import tensor_bytes, write_bytes
from openart.batches import Composer
from openart.captions import SceneMaker, mix_at
from openart.export import export_captioner, export_scenes
from openart.prepared import load_prepared, sources
from openart.state import State, load_state, save_state
from openart.tokenizer import END, START, Encoder, read_encoder
from openart.training import adamw, set_rate, write_line

IMAGE_SIZE = 72
WIDTH, LAYERS, HEADS, HIDDEN = 128, 4, 4, 352
IGNORED = -100
SHRINKAGE = 0.05
"""Of the covariance to a multiple of the identity: some directions hardly vary among a few hundred images."""
MARGIN = 1.2
"""How much farther than the farthest image that was held out an image must be to be a stranger."""


class Captioner(nn.Module):
    """The decoder and its projector; the image tower is not in it."""

    def __init__(self, encoder: Encoder, image_width: int) -> None:
        super().__init__()
        config = LlamaConfig(
            vocab_size=len(encoder.ids),
            hidden_size=WIDTH,
            intermediate_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=encoder.ids[START],
            eos_token_id=encoder.ids[END],
            pad_token_id=encoder.ids[END],
        )
        self.decoder = LlamaForCausalLM(config)
        self.projector = nn.Sequential(nn.LayerNorm(image_width), nn.Linear(image_width, WIDTH))

    def loss(self, tokens: Tensor | None, ids: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy of the words `ids` [N, L], with image tokens [N, T, D] or none before them."""
        x = self.decoder.get_input_embeddings()(ids)
        n_image = 0
        if tokens is not None:
            x = torch.cat([self.projector(tokens), x], 1)
            n_image = tokens.shape[1]
        hidden = self.decoder.model(inputs_embeds=x).last_hidden_state[:, n_image:-1]
        wanted = labels[:, 1:] != IGNORED
        return F.cross_entropy(self.decoder.lm_head(hidden[wanted]).float(), labels[:, 1:][wanted])


def padded(texts: list[str], encoder: Encoder) -> tuple[Tensor, Tensor]:
    """Ids [N, L] and labels [N, L] of texts."""
    rows = [encoder.encode(text) for text in texts]
    length = max(map(len, rows))
    end = encoder.ids[END]
    ids = torch.tensor([row + [end] * (length - len(row)) for row in rows])
    labels = torch.tensor([row + [IGNORED] * (length - len(row)) for row in rows])
    return ids, labels


@dataclass(frozen=True)
class Settings:
    """Of a run."""

    work: Path
    """Work folder of pretrain_tiny.py."""
    run: str = "captioner"
    seed: int = 1
    steps: int = 2500
    batch_size: int = 48
    """Scenes a step."""
    texts: int = 3
    """Texts a scene."""
    strength: float = 0.5
    """Of the restyling, 0 to 1."""
    learning_rate: float = 3e-3
    bf16: bool = False
    """bfloat16 autocast."""


class Training:
    """A run under way, from its last checkpoint if there is one."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        self.settings = settings
        self.folder = settings.work / "runs" / settings.run
        self.folder.mkdir(parents=True, exist_ok=True)
        self.backbone = mp.load_backbone("tiny", device="cpu")
        self.encoder = read_encoder(settings.work / "prepared" / "tokenizer", context_length=128)
        self.maker = SceneMaker(Composer(load_prepared(settings.work), IMAGE_SIZE))
        torch.manual_seed(settings.seed)
        self.model = Captioner(self.encoder, self.backbone.vision_width)
        self.state = State(self.model, adamw(self.model, weight_decay=0.05))
        self.checkpoint = self.folder / "state.safetensors"
        if self.checkpoint.is_file():
            load_state(self.state, self.checkpoint)

    def losses(self, step: int) -> tuple[Tensor, Tensor]:
        """The loss of texts with their images, and that of texts alone."""
        settings = self.settings
        rng, mix = np.random.default_rng([settings.seed, step, 5]), mix_at(step)
        images, contents = self.maker.batch(settings.seed, step, settings.batch_size, settings.strength)
        with torch.no_grad():
            tokens = self.backbone.encode_image_tokens(self.backbone.normalize(images)).float()
        rows = torch.arange(len(contents)).repeat(settings.texts)
        shown = padded([contents[int(row)].text(rng, mix) for row in rows], self.encoder)
        alone = padded([content.text(rng, mix) for content in contents[: len(contents) // 4]], self.encoder)
        return self.model.loss(tokens[rows], *shown), self.model.loss(None, *alone)

    def run(self) -> None:
        """Train to the last step."""
        state, optimiser = self.state, self.state.optimiser
        started, first, seen = time.time(), state.step, []
        while state.step < self.settings.steps:
            set_rate(optimiser, self.settings.learning_rate, state.step, self.settings.steps)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.settings.bf16):
                shown, alone = self.losses(state.step)
            optimiser.zero_grad()
            (shown + 0.2 * alone).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimiser.step()
            state.step += 1
            seen.append((shown.item(), alone.item()))
            if state.step % 25 == 0:
                mean = [round(float(v), 4) for v in np.mean(seen, 0)]
                seconds = round((time.time() - started) / (state.step - first), 2)
                line = {"step": state.step, "loss": mean[0], "text_loss": mean[1], "seconds_a_step": seconds}
                print(json.dumps(line), flush=True)
                write_line(self.folder, line)
                seen = []
            if state.step % 100 == 0 or state.step == self.settings.steps:
                save_state(state, self.checkpoint, {})


def train(settings: Settings) -> None:
    """Train, or go on training."""
    Training(settings).run()


def export(settings: Settings, assets: Path) -> None:
    """Write what the package ships.

    Args:
        assets: the package's assets folder.
    """
    training = Training(settings)
    export_captioner(training.model, settings.work / "prepared" / "tokenizer", assets / "tiny" / "captioner")
    export_scenes(training.maker, assets, sources(settings.work))


def known_images(features: Tensor, held_out: Tensor) -> KnownImages:
    """Fit image features [N, T, D'], and set the limit by others [N', T, D'] of the same kind."""
    pooled = features.mean(1).double()
    covariance = torch.cov(pooled.T)
    size = len(covariance)
    shrunk = covariance + SHRINKAGE * covariance.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    whitening = torch.linalg.inv(torch.linalg.cholesky(shrunk))
    found = KnownImages(pooled.mean(0).float(), whitening.float(), torch.tensor([float("inf")]))
    return KnownImages(found.mean, found.whitening, MARGIN * found.distances(held_out).max()[None])


def save_known(found: KnownImages, path: Path) -> None:
    """Write it to a file of half precision."""
    write_bytes(path, tensor_bytes({name: value.half() for name, value in vars(found).items()}))


def known(assets: Path, photographs: Path | None = None) -> None:
    """Write what tells drawn scenes from other images: of the training scenes, with a limit by the validation scenes.

    Prints how many of other images are taken for strangers.

    Args:
        assets: the package's assets folder.
        photographs: a folder of JPEG files, to be counted too.
    """
    captioner, data = mp.load_captioner("tiny", device="cpu"), mp.load_captions("openart-scenes")
    features = CaptionFeatures(captioner)
    train, held_out, test = (features.of([item.image for item in part]) for part in (data.train, data.val, data.test))
    found = known_images(train, held_out)
    save_known(found, assets / "tiny" / KNOWN_IMAGES_FILE)
    others = {"test scenes": test}
    others["scenes in a new style"] = features.of([i.image for i in mp.load_captions("openart-scenes-new-style").test])
    if photographs is not None:
        others["photographs"] = features.of(sorted(photographs.glob("*.jpg")))
    counts = {name: f"{int(found.strangers(some).sum())} of {len(some)}" for name, some in others.items()}
    print(json.dumps({"limit": round(found.limit.item(), 2), "strangers": counts}))


if __name__ == "__main__":
    config = (tyro.conf.OmitArgPrefixes,)
    tyro.extras.subcommand_cli_from_dict(
        {"train": train, "export": export, "known": known}, description=__doc__, config=config
    )
