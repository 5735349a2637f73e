"""Prompts of several tasks on one frozen model: each text gets the prompt of the texts that it is most like, or a
mixture of all, and two prompts are put into one template.

What a text is like is asked of the frozen model itself, so a pool needs no training. Prompts are retrieved by how alike
tasks are as in Vu et al. 2022 ("SPoT"), and mixed by softmax weights for each text as in Asai et al. 2022 ("ATTEMPT");
there tasks are known by their prompts and weights are learned, here both come from the texts. A pool
chosen from by keys is of Wang et al. 2022 ("L2P").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmprompt.core.file import read_sealed
from mmprompt.core.file import save as save_prompt
from mmprompt.core.header import read_header
from mmprompt.core.learned import Learned, Prompt
from mmprompt.errors import UserError, bad_file, bad_value, unknown_name
from mmprompt.files import make_folder, read_json, sha256_bytes, tensor_bytes, write_bytes, write_json
from mmprompt.language.data import TextRow
from mmprompt.language.predictor import BATCH, LabelPrediction, LanguagePredictor, label_predictions, load_prompted
from mmprompt.language.templates.template import Template
from mmprompt.language.templates.verbalizer import Verbalizer
from mmprompt.models.decoder.encoder_decoder import EncoderDecoderReader
from mmprompt.models.decoder.load import load_language_model
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.decoder.reader import body_of
from mmprompt.models.sites import LM_INPUT, Site, Vectors
from mmprompt.settings import check, checked, validate

TEMPERATURE = 0.01
"""Of cosines: the power of ten at which weights are closest to the shares that are right, on texts of five tasks."""
Mixing = Literal["choose", "outputs", "vectors"]
FORMAT = 1
HEADER, TENSORS, PROMPTS = "pool.json", "pool.safetensors", "prompts"
_NAME = re.compile(r"\w[\w-]*")
_RESTORE = "Restore the folder as it was saved, or save the pool again."


class PromptPool:
    """Prompts of several tasks, and the key of each.

    Args:
        prompts: by name, two or more on one frozen model, none of them itself of several tasks.
        keys: [K, D] what the training texts of each prompt are like, as `PromptPool.of` finds it.
        temperature: of the cosines between a text and the keys, above 0; smaller is more certain.
    Raises:
        UserError: the prompts are fewer than two, of several models, or of several tasks, a value is out of range, or
            the keys are not one for each prompt, as wide as the model.
    """

    @checked
    def __init__(
        self, prompts: Mapping[str, LanguagePredictor], keys: Tensor, temperature: float = TEMPERATURE
    ) -> None:
        self.model = _model_of(prompts)
        if not 0 < temperature < float("inf"):
            advice = f"Use {TEMPERATURE}, or less to be more certain."
            raise bad_value("temperature", temperature, "it must be above 0 and finite", advice)
        expected = [len(prompts), self.model.lm.config.get_text_config().hidden_size]
        if list(keys.shape) != expected:
            advice = "Make them with PromptPool.of."
            raise bad_value("the shape of the keys", list(keys.shape), f"{expected} was expected", advice)
        self.prompts, self.names = dict(prompts), tuple(prompts)
        self.keys, self.temperature = keys.to(self.model.device), temperature

    @classmethod
    @checked
    def of(
        cls,
        prompts: Mapping[str, LanguagePredictor],
        rows: Mapping[str, Sequence[TextRow]],
        temperature: float = TEMPERATURE,
    ) -> PromptPool:
        """Make a pool whose keys are the means over the texts that each prompt was learned from.

        Args:
            prompts: by name, two or more on one frozen model.
            rows: of each name the training rows; their labels and answers are not looked at.
            temperature: see the class.
        Raises:
            UserError: see the class; or a prompt has no rows, or rows no prompt.
        """
        model = _model_of(prompts)
        for name in rows:
            if name not in prompts:
                raise unknown_name("prompt", name, prompts, "Give rows of the prompts alone.")
            check("rows", rows[name], Sequence[TextRow], "Give rows of a TextData.")
        for name in prompts:
            if not rows.get(name):
                raise UserError(f"the prompt {name!r} has no rows to be known by. Give it some of its training rows.")
        keys = [text_features(model, joined_fields(prompts.values(), rows[name])).mean(0) for name in prompts]
        return cls(prompts, torch.stack(keys), temperature)

    @checked
    def weights(self, rows: Sequence[TextRow]) -> Tensor:
        """Return [N, K] float32, how much each prompt counts for each row: sums to 1 over the prompts.

        Args:
            rows: N rows; their task, label and answer are not looked at.
        Raises:
            UserError: a row has no field that a prompt of the pool reads, or no tokens in it.
        """
        features = text_features(self.model, joined_fields(self.prompts.values(), rows))
        cosines = F.normalize(features, dim=1) @ F.normalize(self.keys, dim=1).T
        below_best = cosines - cosines.max(-1, keepdim=True).values  # 0 or less, so that no quotient is too large
        return (below_best / max(self.temperature, torch.finfo(below_best.dtype).tiny)).softmax(-1)

    def route(self, rows: Sequence[TextRow]) -> tuple[list[str], Tensor]:
        """Return the name of the prompt that each of N rows is for, and the weights [N, K] of all; see `weights`."""
        weights = self.weights(rows)
        return [self.names[place] for place in weights.argmax(1).tolist()], weights

    def choose(self, rows: Sequence[TextRow]) -> list[LanguagePredictor]:
        """Return the prompt of each row, as `generate_texts` takes them."""
        return [self.prompts[name] for name in self.route(rows)[0]]

    def mix(self, rows: Sequence[TextRow]) -> list[LanguagePredictor]:
        """Return a prompt of its own for each row, the weighted mean of all vectors, as `generate_texts` takes them.

        Raises:
            UserError: the prompts have several templates, or vectors at several sites or of several numbers.
        """
        first = self._alike()
        vectors = self._mixed_vectors(self.weights(rows))
        mixed = []
        for row in range(len(rows)):
            sources = [Learned(site, values[row]) for site, values in vectors.items()]
            prompt = Prompt(first.template, *sources).requires_grad_(False)
            mixed.append(LanguagePredictor(self.model, prompt, first.label_words))
        return mixed

    @checked
    def classify(self, rows: Sequence[TextRow], how: Mixing = "choose") -> list[LabelPrediction]:
        """Return the label of each row, whatever task it is of.

        Args:
            rows: N rows; their task and label are not looked at.
            how: by the prompt that fits best (choose; the labels are its own), by the probabilities of all prompts,
                weighted (outputs), or by one prompt of weighted vectors (vectors).
        Raises:
            UserError: a prompt has no labels, or prompts that are mixed have different ones or do not fit together.
        """
        if how == "vectors":
            return label_predictions(self._labels(), self._log_probs_of_mixed_vectors(rows))
        if how == "outputs":
            labels, each = self._labels(), []
            for prompted in self.prompts.values():
                order = [prompted.verbalizer.labels.index(label) for label in labels]
                each.append(prompted.label_log_probs(rows)[:, order])
            log_probs = (self.weights(rows).log()[..., None] + torch.stack(each, dim=1)).logsumexp(1)
            return label_predictions(labels, log_probs)
        names = self.route(rows)[0]
        predicted = {}
        for name in dict.fromkeys(names):
            own = [row for row, other in zip(rows, names, strict=True) if other == name]
            predicted[name] = iter(self.prompts[name].classify(own))
        return [next(predicted[name]) for name in names]

    @torch.no_grad()
    def _log_probs_of_mixed_vectors(self, rows: Sequence[TextRow]) -> Tensor:
        first, weights = self._alike(), self.weights(rows)
        parts = [torch.zeros(0, len(first.verbalizer.labels), device=self.model.device)]
        for start in range(0, len(rows), BATCH):
            mixed = self._mixed_vectors(weights[start : start + BATCH])
            vectors = {site: Vectors(values, "sample") for site, values in mixed.items()}
            questions = [first.asked(row.fields) for row in rows[start : start + BATCH]]
            parts.append(first.label_scores(vectors, questions))
        return torch.cat(parts).log_softmax(-1)

    def _mixed_vectors(self, weights: Tensor) -> dict[Site, Tensor]:
        """Return by site the weighted means [N, M, D] of the prompts' vectors."""
        each = [prompted.vectors() for prompted in self.prompts.values()]
        return {
            site: torch.einsum("nk,kmd->nmd", weights, torch.stack([one[site].values.detach() for one in each]))
            for site in each[0]
        }

    def _alike(self) -> LanguagePredictor:
        """Return the first prompt, once all are seen to have its template and as many vectors at the same sites."""

        def form(prompted: LanguagePredictor) -> dict[str, object]:
            shapes = {site: vectors.values.shape for site, vectors in prompted.vectors().items()}
            words = prompted.label_words
            return {"template": prompted.template.text, "words of the labels": words, "vectors": shapes}

        first, *others = self.prompts.items()
        refuse_weights(self.prompts, "Choose a prompt, or mix their outputs.")
        for name, other in others:
            theirs = form(other)
            for what, value in form(first[1]).items():
                if value != theirs[what]:
                    raise UserError(
                        f"the prompts {first[0]!r} and {name!r} differ in their {what}, but vectors are mixed within "
                        "one template, as many of each. Choose a prompt, or mix their outputs."
                    )
        return first[1]

    def _labels(self) -> tuple[str, ...]:
        """Return the labels of the first prompt, once all are seen to have the same."""
        first, *others = self.prompts.items()
        for name, other in others:
            if set(other.verbalizer.labels) != set(first[1].verbalizer.labels):
                raise UserError(
                    f"the prompts {first[0]!r} and {name!r} have different labels, but only the same can be mixed. "
                    "Choose a prompt for each row."
                )
        return first[1].verbalizer.labels


@torch.no_grad()
def text_features(model: FrozenLanguageModel, texts: Sequence[str]) -> Tensor:
    """Encode N texts as a frozen model sees them: [N, D], the mean of its hidden states halfway up over their tokens.

    Halfway up, states tell the subject of a text; token embeddings tell its words alone, and the last states the next
    word (measured in docs/language-dynamic.md). What is read first has a state of its own kind, so a new line stands
    before each text, and does not count, where the tokenizer puts nothing there. With an encoder, its states are taken.
    What does not fit the model is not read.
    """
    reader = model.reader
    is_encoded = isinstance(reader, EncoderDecoderReader)

    def tokens(text: str) -> list[int]:
        return list(model.tokenizer(text, add_special_tokens=False)["input_ids"])

    before = model.start_ids if is_encoded else model.start_ids or tokens("\n")
    behind = reader.behind if isinstance(reader, EncoderDecoderReader) else ()
    room = model.budget - len(before) - len(behind)
    ids = [tokens(text)[:room] for text in texts]
    for text, some in zip(texts, ids, strict=True):
        if not some:
            raise UserError(
                f"the text {text[:40]!r} has no tokens, so nothing says which prompt it is for. Write some."
            )
    read = model.lm.get_encoder() if is_encoded else body_of(model.lm)
    features: list[Tensor] = []
    for start in range(0, len(ids), BATCH):
        rows = [[*before, *some, *behind] for some in ids[start : start + BATCH]]
        length = max(map(len, rows))
        slots = torch.tensor([row + [model.pad_id] * (length - len(row)) for row in rows], device=model.device)
        places = torch.arange(length, device=model.device)
        ends = torch.tensor([[len(row)] for row in rows], device=model.device)
        # A decoder sees nothing behind a slot, so padding needs no mask, and rows of a window no slot is left in.
        options = {"attention_mask": (places < ends).long()} if is_encoded else {"use_cache": False}
        out = read(slots, output_hidden_states=True, **options)
        states = out.hidden_states[len(out.hidden_states) // 2].float()
        is_text = ((places >= len(before)) & (places < ends - len(behind)))[..., None]
        features.append((states * is_text).sum(1) / is_text.sum(1))
    return torch.cat(features) if features else torch.zeros(0, model.width, device=model.device)


def compose(
    prompts: Mapping[str, LanguagePredictor], template: str, verbalizer: Verbalizer | None = None
) -> LanguagePredictor:
    """Put several prompts into one template, each where its name stands: `{soft*8:task} {soft*8:language} {text}`.

    Args:
        prompts: by the name of their soft slots, all on one frozen model, with vectors among the tokens alone.
        template: whose named soft slots are these prompts.
        verbalizer: the words of the labels; None where texts are generated.
    Raises:
        UserError: the template has slots without a prompt or prompts without a slot, or another number of vectors, or
            the prompts do not go together.
    """
    model, parsed = _model_of(prompts), Template.parse(template)
    refuse_weights(prompts, "Compose prompts of prompt-tuning or p-tuning.")
    values = []
    for group in parsed.groups:
        if group.name is None:
            raise UserError(
                "the template has soft slots without a name, but each is to be one of the prompts. Name it."
            )
        if group.name not in prompts:
            raise unknown_name("prompt", group.name, prompts, "Name each soft slot as its prompt.")
        vectors = prompts[group.name].vectors()
        if set(vectors) != {LM_INPUT}:
            raise UserError(
                f"the prompt {group.name!r} has keys and values, but vectors among the tokens alone stand in a "
                "template. Compose prompts of prompt-tuning or p-tuning."
            )
        n_vectors = vectors[LM_INPUT].n_vectors
        if group.n_vectors != n_vectors:
            raise UserError(
                f"the soft slots {group.name!r} are {group.n_vectors}, but that prompt has {n_vectors} vectors. "
                f"Write {{soft*{n_vectors}:{group.name}}}."
            )
        values.append(vectors[LM_INPUT].values.detach())
    for name in prompts.keys() - {group.name for group in parsed.groups}:
        raise UserError(f"the template has no soft slots named {name!r}. Add them, or leave that prompt out.")
    prompt = Prompt(parsed, Learned(LM_INPUT, torch.cat(values))).requires_grad_(False)
    return LanguagePredictor(model, prompt, verbalizer)


def refuse_weights(prompts: Mapping[str, LanguagePredictor], advice: str) -> None:
    """Refuse prompts of which vectors would be a part alone."""
    for name, one in prompts.items():
        if one.changes_weights:
            raise UserError(
                f"the prompt {name!r} changes weights of the model, but vectors alone go together. {advice}"
            )


def _model_of(prompts: Mapping[str, LanguagePredictor]) -> FrozenLanguageModel:
    """Return the one model of several prompts; refuse prompts that cannot be chosen from."""
    if len(prompts) < 2:
        raise UserError(f"there are {len(prompts)} prompts, but two or more go together. Give more.")
    for name, one in prompts.items():
        check(f"prompts[{name!r}]", one, LanguagePredictor, "Give what load gave, or the `predictor` of a Result.")
    if len({id(one.model) for one in prompts.values()}) > 1:
        raise UserError("the prompts are of several models, but they need one. Load them on the same model.")
    for name, one in prompts.items():
        if one.tasks:
            raise UserError(f"the prompt {name!r} is itself of several tasks, but one each is needed. Give others.")
    return next(iter(prompts.values())).model


def joined_fields(prompts: Iterable[LanguagePredictor], rows: Sequence[TextRow]) -> list[str]:
    """Join the fields of each row that some prompt reads, in order."""
    fields = tuple(dict.fromkeys(chain.from_iterable(one.template.fields for one in prompts)))
    texts = [[row.fields[name] for name in fields if name in row.fields] for row in rows]
    if not all(texts):
        known = ", ".join(map(repr, fields))
        raise UserError(f"a row has none of the fields that the prompts read: {known}. Write one of them.")
    return ["\n".join(each) for each in texts]


@dataclass(frozen=True)
class _Header:
    """What a saved pool says of itself; names are those of the folders of its prompts."""

    format: int
    names: tuple[str, ...]
    temperature: float
    tensors_sha256: str


def save_pool(pool: PromptPool, folder: Path | str) -> None:
    """Write a pool to a folder, made if missing: each prompt as `save` writes it, the keys, and the header last."""
    for name in pool.names:
        if not _NAME.fullmatch(name):
            raise bad_value("the name of a prompt", repr(name), "letters, digits, - and _ were expected", "Rename it.")
    folder = make_folder(Path(folder))
    for name, prompted in pool.prompts.items():
        save_prompt(prompted, folder / PROMPTS / name)
    data = tensor_bytes({"keys": pool.keys})
    write_bytes(folder / TENSORS, data)
    header = {"format": FORMAT, "names": list(pool.names), "temperature": float(pool.temperature)}
    write_json(folder / HEADER, header | {"tensors_sha256": sha256_bytes(data)})


def load_pool(folder: Path | str, model: FrozenLanguageModel | str | None = None) -> PromptPool:
    """Load a saved pool, by default on the model that its prompts name."""
    folder = Path(folder)
    path = folder / HEADER
    if not path.is_file():
        problem = f"holds no {HEADER}, so it is no pool of prompts"
        raise bad_file(folder, problem, "Give a folder that was saved as one.")
    content = read_json(path)
    if not isinstance(content, dict):
        raise bad_file(path, "is not a header", _RESTORE)
    if isinstance(content.get("format"), int) and content["format"] > FORMAT:
        problem = f"has format {content['format']}, but up to {FORMAT} is read"
        raise bad_file(path, problem, "Upgrade mmprompt.")
    header = validate(_Header, content, path)
    if len(header.names) < 2:
        raise bad_file(path, f"names {len(header.names)} prompts, but a pool has two or more", _RESTORE)
    for name in header.names:
        if not _NAME.fullmatch(name):
            raise bad_file(path, f"names a prompt {name!r}, which is no name of a folder", _RESTORE)
    places = [folder / PROMPTS / name for name in header.names]
    if model is None or isinstance(model, str):
        model = load_language_model(model or read_header(places[0], "language")["backbone"]["name"])
    prompts = {place.name: load_prompted(place, model) for place in places}
    keys = read_sealed(folder / TENSORS, header.tensors_sha256, _RESTORE).get("keys")
    if keys is None or keys.dim() != 2 or len(keys) != len(prompts):
        raise bad_file(folder / TENSORS, f"does not hold one key for each of {len(prompts)} prompts", _RESTORE)
    return PromptPool(prompts, keys, header.temperature)
