"""Trains the captioner of `photo` from captions alone, without a photograph: prepare, train, write, export.

    python scripts/train_photo_captioner.py prepare --work DIR --captions captions_val2017.json
    python scripts/train_photo_captioner.py train   --work DIR     # goes on from the last checkpoint
    python scripts/train_photo_captioner.py export  --work DIR --assets mmprompt/assets

`prepare` fetches WordNet, MiniLM and SmolLM2, which say what ImageNet's classes have to do with what captions name, and
the classifier of the image tower, which says where images of its classes lie. `train` draws image features from those
and learns a small language model behind a mapper that writes the captions. The recipe is in docs/captions.md.
"""

import json
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mmprompt.captioning.readers.load import MapperSettings, new_mapper
from mmprompt.models.packaged import fetch, get_smollm2, image_weights
from openart.export import export_captioner
from openart.state import State, load_state, save_state
from openart.tokenizer import END, START, Encoder, learn_merges, read_encoder, write_tokenizer
from openart.training import adamw, set_rate, write_line
from photo_captions.likeness import (
    SPOKEN,
    class_texts,
    noun_gains,
    scene_likeness,
    sentence_vectors,
    taxonomy,
    word_likeness,
)
from photo_captions.scenes import Caption, Scene, by_manner, example_of, read_scenes
from photo_captions.simulate import DIRECTIONS, Simulator
from photo_text.sources import load_nouns
from photo_text.teacher import class_targets
from train_photo_projection import minilm

N_MERGES, CONTEXT_LENGTH = 2_600, 96
FEWEST = 8
"""Captions that name a noun, for it to be drawn into features."""
HELD_OUT = 250
"""Scenes that are not learned from."""
WIDTH, LAYERS, HEADS, HIDDEN, N_PREFIX, DROPOUT = 160, 3, 5, 432, 4, 0.1
IMAGE_WIDTH = 1280
SHARPNESS, THRESHOLD = 8.0, 0.08
"""Of a class's detector at the start: its slope, and the product of feature and class above which it speaks."""
STOPS = 0.25
"""Share of captions that are learned with a full stop, for captions of one's own often have one."""
IGNORED = -100


def prepare(work: Path, captions: Path) -> None:
    """Fetch the sources; write the scenes, the vocabulary, and what classes have to do with nouns and scenes."""
    smollm2 = get_smollm2()
    image, bert, tokenizer = fetch("photo")
    work.mkdir(parents=True, exist_ok=True)
    scenes = read_scenes(captions)
    (work / "scenes.json").write_text(json.dumps([[[c.text, c.nouns, c.manner] for c in s.captions] for s in scenes]))
    texts = [caption.text for scene in scenes for caption in scene.captions]
    write_tokenizer(learn_merges(texts, N_MERGES), work / "tokenizer", CONTEXT_LENGTH)
    held = [set(caption.nouns) for scene in scenes for caption in scene.captions]
    counts = Counter(noun for some in held for noun in some)
    nouns = [noun for noun, count in counts.most_common() if count >= FEWEST and noun.isalpha()]
    (work / "nouns.json").write_text(json.dumps(nouns))
    wordnet = load_nouns(work)
    *_, classifier, _ = image_weights(image).values()
    projection, classes = class_targets(classifier, DIRECTIONS)
    model = minilm(bert)
    words = Tokenizer.from_str(tokenizer.decode())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]")  # noqa: S106, a token of a text
    spoken, defined = (sentence_vectors(model, tokenizer, some) for some in class_texts(wordnet))
    single = sentence_vectors(model, tokenizer, [SPOKEN.format(noun) for noun in nouns])
    vectors = sentence_vectors(model, tokenizer, texts)
    rows = [[row for row, some in enumerate(held) if noun in some] for noun in nouns]
    lm = AutoModelForCausalLM.from_pretrained(smollm2).eval()
    tensors = {
        "words": word_likeness(spoken, defined, single, rows, vectors),
        "scenes": scene_likeness(defined, spoken, scenes, vectors),
        "taxonomy": taxonomy(wordnet, nouns),
        "gains": noun_gains(lm, AutoTokenizer.from_pretrained(smollm2), nouns),
        "projection": projection,
        "classes": classes,
    }
    save_file({name: value.contiguous() for name, value in tensors.items()}, work / "likeness.safetensors")
    print(f"{len(scenes)} scenes, {len(texts)} captions, {len(nouns)} nouns")


class CaptionerModel(nn.Module):
    """The decoder and its mapper, whose concepts begin as ImageNet's classes; the image tower is not in it.

    A concept's vectors are the embeddings of the words that go with it, in the shares of `words` [K, V], and a rest
    that is learned: so the decoder meets words that it may copy.

    Args:
        encoder: of the captions.
        projection: [n, F] of image features.
        classes: [K, n], where images of each class lie.
        words: [K, V].
    """

    def __init__(self, encoder: Encoder, projection: Tensor, classes: Tensor, words: Tensor) -> None:
        super().__init__()
        config = LlamaConfig(
            vocab_size=len(encoder.ids),
            hidden_size=WIDTH,
            intermediate_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=CONTEXT_LENGTH,
            tie_word_embeddings=True,
            bos_token_id=encoder.ids[START],
            eos_token_id=encoder.ids[END],
            pad_token_id=encoder.ids[END],
        )
        self.decoder = LlamaForCausalLM(config)
        self.mapper = new_mapper(MapperSettings("concepts", len(projection), WIDTH, N_PREFIX, len(classes)))
        threshold = torch.full((len(classes),), -SHARPNESS * THRESHOLD)
        self.mapper[1].load_state_dict({"weight": SHARPNESS * classes, "bias": threshold})
        self.register_buffer("projection", projection, persistent=False)
        self.register_buffer("words", words, persistent=False)

    def prefix(self, features: Tensor) -> Tensor:
        """The vectors [N, M, D] of features [N, n]."""
        shown = self.mapper[1:3](features) @ self.words  # [N, V]
        return self.mapper(features[:, None]) + (shown @ self.decoder.get_input_embeddings().weight)[:, None]

    def loss(self, features: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy of the words [N, L] whose labels are not IGNORED, after features [N, n]."""
        x = torch.cat([self.prefix(features), self.decoder.get_input_embeddings()(ids)], 1)
        x = F.dropout(x, DROPOUT, self.training)
        hidden = self.decoder.model(inputs_embeds=x).last_hidden_state[:, N_PREFIX:-1]
        wanted = labels[:, 1:] != IGNORED
        return F.cross_entropy(self.decoder.lm_head(hidden[wanted]), labels[:, 1:][wanted])

    @property
    @torch.no_grad()
    def projector(self) -> nn.Module:
        """The mapper as it ships: it reads the image tower's own features, and the words are in its vectors."""
        weights = self.mapper.state_dict()
        shown = (self.words @ self.decoder.get_input_embeddings().weight).T  # [D, K]
        weights["3.weight"] = weights["3.weight"] + shown.repeat(N_PREFIX, 1)
        weights["1.weight"] = weights["1.weight"] @ self.projection
        whole = new_mapper(MapperSettings("concepts", IMAGE_WIDTH, WIDTH, N_PREFIX, len(shown.T)))
        whole.load_state_dict(weights)
        return whole


@dataclass(frozen=True)
class Settings:
    """Of a run."""

    work: Path
    """Work folder, outside the repository."""
    run: str = "photo_captioner"
    seed: int = 1
    steps: int = 2000
    batch_size: int = 64
    """Captions a step."""
    examples: float = 0.2
    """Share of captions before which another in the same manner stands, so that what is read first sets the manner."""
    learning_rate: float = 3e-3


def load_scenes(work: Path) -> list[Scene]:
    """Read what `prepare` wrote."""
    rows = json.loads((work / "scenes.json").read_text())
    return [Scene(tuple(Caption(text, tuple(n), tuple(m)) for text, n, m in row)) for row in rows]


class Training:
    """A run under way, from its last checkpoint if there is one."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        self.settings, work = settings, settings.work
        self.folder = work / "runs" / settings.run
        self.folder.mkdir(parents=True, exist_ok=True)
        self.encoder = read_encoder(work / "tokenizer", CONTEXT_LENGTH)
        self.scenes, tensors = load_scenes(work), load_file(work / "likeness.safetensors")
        self.rows = {noun: row for row, noun in enumerate(json.loads((work / "nouns.json").read_text()))}
        projection = tensors.pop("projection")
        self.simulator = Simulator(**tensors)
        order = np.random.default_rng(0).permutation(len(self.scenes)).tolist()
        self.held_out, learned = order[:HELD_OUT], order[HELD_OUT:]
        self.lessons = [(row, caption) for row in learned for caption in self.scenes[row].captions]
        self.examples = by_manner([self.scenes[row] for row in learned])
        torch.manual_seed(settings.seed)
        self.model = CaptionerModel(self.encoder, projection, tensors["classes"], self.words())
        self.state = State(self.model, adamw(self.model, weight_decay=0.1))
        self.checkpoint = self.folder / "state.safetensors"
        if self.checkpoint.is_file():
            load_state(self.state, self.checkpoint)

    def words(self) -> Tensor:
        """For each class the tokens [K, V] of the nouns that go with it, by Bayes' rule; rows sum to 1."""
        counts = Counter(noun for scene in self.scenes for caption in scene.captions for noun in set(caption.nouns))
        prior = torch.tensor([float(counts[noun]) for noun in self.rows])
        shares = self.simulator.nouns.T * prior  # [K, nouns]
        tokens = torch.zeros(len(self.rows), len(self.encoder.ids))
        for noun, row in self.rows.items():
            ids = self.encoder.encode(noun)[1:-1]
            tokens[row, ids] = 1 / len(ids)
        return (shares / shares.sum(1, keepdim=True)) @ tokens

    def features(self, some: list[tuple[int, Caption]], generator: torch.Generator) -> Tensor:
        """Draw features [B, n] of the scenes of some captions; what a caption names shows more often than the rest."""
        named = []
        for row, caption in some:
            scene = self.scenes[row]
            shares = {n: 0.5 * votes / len(scene.captions) for n, votes in scene.votes.items() if n in self.rows}
            shares |= {noun: 1.0 for noun in caption.nouns if noun in self.rows}
            named.append([(self.rows[noun], share) for noun, share in shares.items()])
        return self.simulator.draw([row for row, _ in some], named, generator)

    def texts(self, some: list[tuple[int, Caption]], rng: random.Random, has_example: bool) -> tuple[Tensor, Tensor]:
        """Ids and labels [B, L] of captions; an example that stands before a caption is not predicted."""
        ids, labels = [], []
        for _, caption in some:
            stop = "." if rng.random() < STOPS else ""
            words = self.encoder.encode(caption.text + stop)
            example: list[int] = []
            if has_example:
                example = self.encoder.encode(f"{example_of(caption, self.examples, rng)}{stop} ;")[1:-1]
            ids.append([words[0], *example, *words[1:]])
            labels.append([IGNORED] * (1 + len(example)) + words[1:])
        length, end = max(map(len, ids)), self.encoder.ids[END]
        return (
            torch.tensor([row + [end] * (length - len(row)) for row in ids]),
            torch.tensor([row + [IGNORED] * (length - len(row)) for row in labels]),
        )

    def loss(self, step: int) -> Tensor:
        """The mean loss of one step, with and without examples: a pure function of weights, seed and step."""
        settings = self.settings
        rng = random.Random(f"{settings.seed}/{step}")
        generator = torch.Generator().manual_seed(rng.getrandbits(62))
        torch.manual_seed(rng.getrandbits(62))  # of the dropout
        some = rng.choices(self.lessons, k=settings.batch_size)
        n_with = round(settings.examples * settings.batch_size)
        # Short captions and long ones apart, so that little is padded.
        some[n_with:] = sorted(some[n_with:], key=lambda lesson: len(lesson[1].text))
        features, middle = self.features(some, generator), (n_with + len(some)) // 2
        total = torch.zeros(())
        for part in (slice(0, n_with), slice(n_with, middle), slice(middle, len(some))):
            if some[part]:
                ids, labels = self.texts(some[part], rng, has_example=part.stop == n_with)
                total = total + len(some[part]) * self.model.loss(features[part], ids, labels)
        return total / len(some)

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Cross entropy of a caption of every held-out scene, seen in features drawn from the scene."""
        some = [(row, self.scenes[row].captions[0]) for row in self.held_out]
        features = self.features(some, torch.Generator().manual_seed(0))
        self.model.eval()
        loss = self.model.loss(features, *self.texts(some, random.Random(0), False)).item()
        self.model.train()
        return loss

    def run(self) -> None:
        """Train to the last step."""
        state, optimiser = self.state, self.state.optimiser
        started, first, seen = time.time(), state.step, []
        self.model.train()
        while state.step < self.settings.steps:
            set_rate(optimiser, self.settings.learning_rate, state.step, self.settings.steps)
            loss = self.loss(state.step)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimiser.step()
            state.step += 1
            seen.append(loss.item())
            if state.step % 50 == 0:
                seconds = round((time.time() - started) / (state.step - first), 3)
                line = {"step": state.step, "loss": round(float(np.mean(seen)), 4), "seconds_a_step": seconds}
                if state.step % 250 == 0:
                    line["held_out"] = round(self.held_out_loss(), 4)
                print(json.dumps(line), flush=True)
                write_line(self.folder, line)
                seen = []
            if state.step % 250 == 0 or state.step == self.settings.steps:
                save_state(state, self.checkpoint, {})


def train(settings: Settings) -> None:
    """Train, or go on training."""
    Training(settings).run()


def export(settings: Settings, assets: Path) -> None:
    """Write what the package ships.

    Args:
        assets: the package's assets folder.
    """
    export_captioner(Training(settings).model, settings.work / "tokenizer", assets / "photo" / "captioner", "photo")


if __name__ == "__main__":
    config = (tyro.conf.OmitArgPrefixes,)
    verbs = {"prepare": prepare, "train": train, "export": export}
    tyro.extras.subcommand_cli_from_dict(verbs, description=__doc__, config=config)
