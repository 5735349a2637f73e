"""Make `tiny`'s captioner: a small language model that reads the frozen image tower's tokens, from artwork scenes.

    python scripts/pretrain_tiny.py prepare          --work DIR      # once: fetches and draws the artwork
    python scripts/pretrain_tiny_captioner.py train  --work DIR      # goes on from the last checkpoint
    python scripts/pretrain_tiny_captioner.py export --work DIR --assets FOLDER

The decoder is a `LlamaForCausalLM` of transformers, the projector a layer norm and a linear map. It sees every scene
with several texts, and a part of the texts without any picture, so that it is a language model too. Recipe:
docs/captions.md.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import mmprompt as mp
from openart import prepared
from openart.batches import Composer
from openart.captions import SceneMaker, mix_at
from openart.captions_export import export_captioner, export_scenes
from openart.tokenizer import END, START, Encoder, read_encoder

IMAGE_SIZE = 72
WIDTH, LAYERS, HEADS, HIDDEN = 128, 4, 4, 352
IGNORED = -100


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
        """Mean cross entropy of the words.

        Args:
            tokens: [N, T, D] of the image tower, or None for texts without a picture.
            ids: [N, L] with start and end, padded; labels: the same, ignored where padded.
        """
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


def rate(step: int, options: argparse.Namespace) -> float:
    """Warm-up over 100 steps, then a cosine to zero."""
    if step < 100:
        return options.learning_rate * (step + 1) / 100
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * step / options.steps))


class Training:
    """A run under way: model, optimiser and step, all of which a checkpoint holds."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.folder = options.work / "runs" / options.run
        self.folder.mkdir(parents=True, exist_ok=True)
        self.backbone = mp.load_backbone("tiny", device="cpu")
        self.encoder = read_encoder(options.work / "prepared" / "tokenizer", context_length=128)
        self.maker = SceneMaker(Composer(prepared.load_prepared(options.work), IMAGE_SIZE))
        torch.manual_seed(options.seed)
        self.model = Captioner(self.encoder, self.backbone.vision_width)
        decayed = [p for p in self.model.parameters() if p.ndim >= 2]
        plain = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98))
        self.step = 0
        if (self.folder / "state.safetensors").is_file():
            self.restore()

    def restore(self) -> None:
        """Take back the last checkpoint."""
        found = load_file(self.folder / "state.safetensors")
        weights = {n.removeprefix("model/"): t for n, t in found.items() if n.startswith("model/")}
        missing = self.model.load_state_dict(weights, strict=False).missing_keys
        assert missing in ([], ["decoder.lm_head.weight"]), missing
        for i, p in enumerate(self.model.parameters()):
            if f"adam/{i}/exp_avg" in found:
                names = ("exp_avg", "exp_avg_sq", "step")
                self.optimiser.state[p] = {n: found[f"adam/{i}/{n}"] for n in names}
        self.step = int(found["step"])

    def save(self) -> None:
        """Write a checkpoint."""
        tensors = {f"model/{n}": t for n, t in self.model.state_dict().items() if n != "decoder.lm_head.weight"}
        for i, p in enumerate(self.model.parameters()):
            tensors |= {f"adam/{i}/{n}": t for n, t in self.optimiser.state[p].items()}
        tensors["step"] = torch.tensor(self.step)
        part = self.folder / "state.part"
        save_file({n: t.contiguous() for n, t in tensors.items()}, part)
        part.replace(self.folder / "state.safetensors")

    def losses(self, step: int) -> tuple[Tensor, Tensor]:
        """The loss of texts with their pictures, and that of texts alone."""
        options = self.options
        rng, mix = np.random.default_rng([options.seed, step, 5]), mix_at(step)
        images, contents = self.maker.batch(options.seed, step, options.batch_size, options.strength)
        with torch.no_grad():
            tokens = self.backbone.encode_image_tokens(self.backbone.normalize(images)).float()
        rows = torch.arange(len(contents)).repeat(options.texts)
        ids, labels = padded([contents[int(row)].text(rng, mix) for row in rows], self.encoder)
        alone, alone_labels = padded(
            [content.text(rng, mix) for content in contents[: len(contents) // 4]], self.encoder
        )
        return self.model.loss(tokens[rows], ids, labels), self.model.loss(None, alone, alone_labels)

    def run(self) -> None:
        """Train to the last step."""
        started, first, seen = time.time(), self.step, []
        while self.step < self.options.steps:
            for group in self.optimiser.param_groups:
                group["lr"] = rate(self.step, self.options)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.options.bf16):
                shown, alone = self.losses(self.step)
            self.optimiser.zero_grad()
            (shown + 0.2 * alone).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimiser.step()
            self.step += 1
            seen.append((shown.item(), alone.item()))
            if self.step % 25 == 0:
                mean = [round(float(v), 4) for v in np.mean(seen, 0)]
                seconds = round((time.time() - started) / (self.step - first), 2)
                line = {"step": self.step, "loss": mean[0], "text_loss": mean[1], "seconds_a_step": seconds}
                print(json.dumps(line), flush=True)
                with (self.folder / "log.jsonl").open("a") as log:
                    log.write(json.dumps(line) + "\n")
                seen = []
            if self.step % 100 == 0 or self.step == self.options.steps:
                self.save()


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("train", "export"):
        sub = verbs.add_parser(verb)
        sub.add_argument("--work", type=Path, required=True, help="work folder of pretrain_tiny.py")
        sub.add_argument("--run", default="captioner")
        sub.add_argument("--seed", type=int, default=1)
        sub.add_argument("--steps", type=int, default=2500)
        sub.add_argument("--batch-size", type=int, default=48, help="scenes a step")
        sub.add_argument("--texts", type=int, default=3, help="texts a scene")
        sub.add_argument("--strength", type=float, default=0.5, help="of the restyling, 0 to 1")
        sub.add_argument("--learning-rate", type=float, default=3e-3)
        sub.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
        if verb == "export":
            sub.add_argument("--assets", type=Path, required=True, help="the package's assets folder")
    return parser.parse_args(arguments)


def main() -> None:
    """Run one verb."""
    options = parse(sys.argv[1:])
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    training = Training(options)
    if options.verb == "train":
        training.run()
    else:
        export_captioner(training.model, options.work / "prepared" / "tokenizer", options.assets / "tiny" / "captioner")
        export_scenes(training.maker, options.assets, prepared.sources(options.work))


if __name__ == "__main__":
    main()
