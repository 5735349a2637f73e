"""Training a caption prompt and writing captions on the embedded default, against the plain way.

The plain way takes pairs of an image and a caption: it reads and encodes the image of every caption, pads captions
to the longest of the data, runs image, prompt and caption through the decoder, and takes the loss over all of it. It
writes captions one image at a time without a cache, the whole text again for every token, as the published code of
ClipCap does. Row `train-features-once` lets it encode the image of every caption once, before training.

    python scripts/bench/captioning.py --json docs/results/captioning_bench.json
"""

import os

os.environ["MMPROMPT_CACHE_LIMIT"] = "0"  # no features from an earlier run

import torch
import torch.nn.functional as F
from measure import Row, cpu_seconds, parser, relative_error, report, use_one_thread
from torch import Tensor

import mmprompt as mp
from mmprompt.captioning.data import CaptionData
from mmprompt.captioning.decoding import Decoding
from mmprompt.captioning.predictor import Captioner, Guidance
from mmprompt.captioning.readers.captioner import LM_INPUT, FrozenCaptioner
from mmprompt.captioning.task import epochs_of
from mmprompt.core.learned import Prompt
from mmprompt.core.method import resolved_recipe, settled
from mmprompt.data.images import read_image
from mmprompt.models.sites import vectors_of
from mmprompt.training.recipe import learning_rate
from mmprompt.training.seeds import batches, epoch_order

FOCUS, SEED, N_TOKENS, N_WRITTEN = "emotions", 1, 20, 64
TRAININGS = ("train", "train-features-once")
SAME_WEIGHTS = 1e-3
IGNORED = -100
RECIPE = resolved_recipe(mp.PromptTuning(), ("tiny", "captioning"), {}, None)


class Plain:
    """A captioner and a prompt by the plain procedure."""

    def __init__(self, captioner: FrozenCaptioner, data: CaptionData) -> None:
        self.captioner, decoder = captioner, captioner.decoder
        self.lm, self.mapper, self.end_id = decoder.lm, decoder.mapper, decoder.end_id
        self.start = decoder.embed(torch.tensor([decoder.start_ids]))
        self.images = [item.image for item in data.train]
        self.ids = [[[*captioner.tokenizer.encode(t), self.end_id] for t in item.of(FOCUS)] for item in data.train]
        self.length = max(len(ids) for some in self.ids for ids in some)
        method = settled(mp.PromptTuning(), captioner.name, "captioning")
        (self.source,) = data.focus(FOCUS).predictor(method, captioner, SEED).prompt.sources

    def read(self, path: object) -> Tensor:
        return self.captioner.preprocess(read_image(path))  # type: ignore[arg-type]

    def features(self, index: int) -> Tensor:
        """[n, T, D'] of one image, encoded again for each of its n captions."""
        return torch.cat([self.captioner.encode_image(self.read(self.images[index])[None]) for _ in self.ids[index]])

    def loss(self, indices: list[int], features: Tensor) -> Tensor:
        """Cross entropy of all captions of some images, padded to the longest of the data."""
        texts = [ids for index in indices for ids in self.ids[index]]
        ids = torch.tensor([text + [self.end_id] * (self.length - len(text)) for text in texts])
        labels = torch.tensor([text + [IGNORED] * (self.length - len(text)) for text in texts])
        soft = self.source.vectors.expand(len(ids), -1, -1)
        before = [self.mapper(features), self.start.expand(len(ids), -1, -1), soft]
        x = torch.cat([*before, self.lm.get_input_embeddings()(ids)], 1)
        logits = self.lm(inputs_embeds=x).logits[:, x.shape[1] - self.length - 1 : -1]
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)

    def train(self, stored: list[Tensor] | None) -> None:
        """All epochs; with stored features, of the image of every caption."""
        optimizer = torch.optim.AdamW([self.source.values], lr=RECIPE.lr, weight_decay=RECIPE.weight_decay)
        n_epochs = epochs_of(RECIPE, len(self.images))
        for epoch in range(n_epochs):
            optimizer.param_groups[0]["lr"] = learning_rate(RECIPE, epoch, n_epochs)
            for indices in batches(epoch_order(SEED, epoch, len(self.images)), RECIPE.batch_size):
                features = [self.features(index) if stored is None else stored[index] for index in indices]
                optimizer.zero_grad()
                self.loss(indices, torch.cat(features)).backward()
                optimizer.step()

    @torch.no_grad()
    def write(self, path: object, vectors: Tensor) -> list[int]:
        """The tokens of one caption, always as many."""
        features = self.captioner.encode_image(self.read(path)[None])
        x = torch.cat([self.mapper(features), self.start, vectors[None]], 1)
        tokens: list[int] = []
        for _ in range(N_TOKENS):
            tokens.append(int(self.lm(inputs_embeds=x).logits[0, -1].argmax()))
            x = torch.cat([x, self.lm.get_input_embeddings()(torch.tensor([[tokens[-1]]]))], 1)
        return tokens


def learned(captioner: FrozenCaptioner, data: CaptionData) -> Prompt:
    """A whole training, features included."""
    return mp.fit(mp.PromptTuning(), captioner, data.focus(FOCUS), seed=SEED, progress=False).predictor.prompt


def training_row(name: str, captioner: FrozenCaptioner, data: CaptionData) -> Row:
    """A training both ways; the learned vectors must be the same."""
    plain, found = Plain(captioner, data), []

    def ours() -> None:
        found.append(learned(captioner, data))

    def theirs() -> None:
        once = name == "train-features-once"
        plain.train([plain.features(index) for index in range(len(plain.images))] if once else None)

    plain_s, ours_s = cpu_seconds(theirs), cpu_seconds(ours)
    error = relative_error(vectors_of(found[0].inserts())[LM_INPUT].values.detach(), plain.source.vectors.detach())
    n_steps = epochs_of(RECIPE, len(plain.images)) * len(batches(list(range(len(plain.images))), RECIPE.batch_size))
    row = {"name": name, "ratio": plain_s / ours_s, "equal": error < SAME_WEIGHTS, "plain_s": plain_s}
    return row | {"ours_s": ours_s, "steps_a_second": n_steps / ours_s, "weights_error": error}


def writing_row(captioner: FrozenCaptioner, data: CaptionData) -> Row:
    """Captions of 20 tokens, images read and encoded by both; the tokens must be the same."""
    paths = [item.image for item in data.test[:N_WRITTEN]]
    prompt = learned(captioner, data)
    vectors = vectors_of(prompt.inserts())[LM_INPUT].values
    plain = Plain(captioner, data)
    end_id, captioner.decoder.end_id = captioner.decoder.end_id, -1  # no caption ends early, in either way
    steered = Captioner(captioner, Guidance(((prompt, 1.0),)), Decoding(max_tokens=N_TOKENS))
    found: dict[str, list[list[int]]] = {}
    captioner.tokenizer = type(captioner.tokenizer)(captioner.tokenizer.encode, lambda ids: " ".join(map(str, ids)))

    def ours() -> None:
        found["ours"] = [[int(word) for word in caption.text.split()] for caption in steered.caption(paths)]

    def theirs() -> None:
        found["plain"] = [plain.write(path, vectors) for path in paths]

    plain_s, ours_s = cpu_seconds(theirs), cpu_seconds(ours)
    captioner.decoder.end_id = end_id
    row = {"name": "write", "ratio": plain_s / ours_s, "equal": found["ours"] == found["plain"], "plain_s": plain_s}
    return row | {"ours_s": ours_s, "captions_a_second": len(paths) / ours_s}


def main() -> None:
    args = parser(__doc__).parse_args()
    use_one_thread()
    captioner = mp.load_captioner("tiny", device="cpu")
    data = mp.load_captions("openart-scenes")
    wanted = args.rows or [*TRAININGS, "write"]
    rows = [training_row(name, captioner, data) for name in TRAININGS if name in wanted]
    rows += [writing_row(captioner, data)] if "write" in wanted else []
    report(rows, args.json)


if __name__ == "__main__":
    main()
