"""A frozen language model that is asked questions with a prompt in it; decoder-only, or with an encoder.

What all questions begin with, the prompt above all, is read once for all of them; texts share rows; logits are computed
only where an answer's token is predicted.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from mmprompt.errors import UserError
from mmprompt.models.decoder.encoder_decoder import EncoderDecoderReader
from mmprompt.models.decoder.inserts import (
    Change,
    changed,
    changes_of,
    check_changes,
    check_vectors,
    keys_values,
    output_of,
    replaced_output,
)
from mmprompt.models.decoder.kv_cache import KVCache, learned_cache
from mmprompt.models.decoder.packing import Packed, Question, pack, share_rows
from mmprompt.models.decoder.reader import CausalReader, device_of
from mmprompt.models.decoder.whole_rows import WholeRowReader
from mmprompt.models.frozen import fingerprint
from mmprompt.models.recompute import recomputed
from mmprompt.models.sites import LM_INPUT, Insert, Site, Vectors, vectors_of, with_tensors

TOKENS = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id"),
    *("forced_eos_token_id", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens"),
)
"""What a model's own settings of generation say of its tokens: how an answer begins and ends, and what it never is."""
_log = logging.getLogger(__name__)

SiteVectors = Mapping[Site, Vectors]
Inserts = Mapping[Site, Insert]


@dataclass(frozen=True)
class Predicted:
    """What a model predicts of the answers to some questions.

    Args:
        logits: [S, V], of each slot that predicts something; [S, W] where only W tokens were asked for.
        at: [K] int64, for each token of each answer in order the row of `logits` that predicts it.
        tokens: [K] int64, its column.
        lengths: of each answer in order, in tokens.
    """

    logits: Tensor
    at: Tensor
    tokens: Tensor
    lengths: tuple[int, ...]

    def token_log_probs(self) -> Tensor:
        """Return [K] in float32 or more, of each token of each answer; among the W tokens where W were asked for."""
        logits = self.logits.to(torch.promote_types(self.logits.dtype, torch.float32))
        return logits.log_softmax(-1)[self.at, self.tokens]

    def answer_log_probs(self) -> Tensor:
        """Return [A], the sum over each answer's tokens."""
        lengths = torch.tensor(self.lengths, device=self.at.device)
        rows = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
        found = self.token_log_probs()
        return found.new_zeros(len(lengths)).index_add(0, rows, found)


class FrozenLanguageModel:
    """A frozen language model and its tokenizer.

    Args:
        name: what `load_language_model` takes to get it again.
        lm: transformers' model, causal or with an encoder; in evaluation mode, no weight with a gradient.
        tokenizer: transformers' tokenizer.

    Attributes:
        fingerprint: hex SHA-256 over the weights.
        is_encoder_decoder: whether texts are read by an encoder, soft vectors among them.
        width: D of token embeddings, and of vectors at `lm.input`.
        vocabulary_size: V.
        kv_shape: blocks, key/value heads and width of a head for `lm.kv`, as a probe run gives them.
        budget: slots that prompt, text and answer may take together.
        start_ids: what the tokenizer puts before a text, often ().
        end_id: the token after an answer; pad_id: any token, where nothing is read.
        device, dtype: where it lives and computes.
    Raises:
        UserError: it cannot be read slot by slot, or has no end token.
    """

    transform = "text"

    def __init__(self, name: str, lm: Any, tokenizer: Any) -> None:
        self.name, self.lm, self.tokenizer = name, lm, tokenizer
        self.is_encoder_decoder = bool(lm.config.is_encoder_decoder)
        self.end_id = end_of(name, lm, tokenizer)
        # Many tokenizers were given a padding token that their model has no embedding of.
        pad_id = tokenizer.pad_token_id
        is_known = pad_id is not None and pad_id < lm.get_input_embeddings().weight.shape[0]
        self.pad_id: int = pad_id if is_known else self.end_id
        self.start_ids, behind = specials_of(tokenizer)
        self.reader = EncoderDecoderReader(lm, behind) if self.is_encoder_decoder else causal_reader(name, lm)
        self.width, self.vocabulary_size = self.reader.width, self.reader.vocabulary_size
        self.kv_shape, self.budget = self.reader.kv_shape, self.reader.n_positions
        self.fingerprint = fingerprint(lm)
        self.is_static_exact: bool | None = None  # not looked at yet; see `generation.check_static`
        self.device = device_of(lm)
        self.dtype = self.embed(torch.zeros(1, dtype=torch.int64, device=self.device)).dtype

    def __repr__(self) -> str:
        return f"<FrozenLanguageModel {self.name!r}: {self.device}, {self.dtype}>"

    @cached_property
    def embedding_rms(self) -> float:
        """Return the root mean square of the token embeddings: the size that vectors of a prompt should have."""
        embedded = self.embed(torch.arange(self.vocabulary_size, device=self.device))
        return embedded.float().square().mean().sqrt().item()

    @cached_property
    def generator(self) -> Any:
        """What generates: the model itself, but for the few whose own `generate` is wrong, as RWKV's is.

        Of its settings it keeps what says which tokens there are, and none of a search.
        """
        own = self.reader.generator if isinstance(self.reader, WholeRowReader) else self.lm
        generator = copy.copy(own)  # the same modules and weights, beside other settings
        generator.generation_config = GenerationConfig(
            **{name: getattr(own.generation_config, name) for name in TOKENS}
        )
        return generator

    def output_rows(self, tokens: Sequence[int]) -> Tensor:
        """Return the rows [K, D] of the output layer of some tokens; [K, D + 1] with a bias last where each has one.

        Raises:
            UserError: its weights are quantised, or lie elsewhere until they are read.
        """
        head = self.lm.get_output_embeddings()
        weight = head.weight
        if type(weight.data) is not Tensor or not weight.is_floating_point() or weight.is_meta:
            problem = "is quantised, or on disk until it is read, but a soft verbalizer starts from its rows"
            raise UserError(f"the output layer of {self.name} {problem}. Load the model whole.")
        ids = torch.tensor(tokens, device=weight.device)
        biases = (getattr(head, "bias", None), getattr(self.lm, "final_logits_bias", None))  # the latter BART's
        parts = [bias.flatten()[ids, None] for bias in biases if bias is not None]
        return torch.cat([weight[ids], *parts], 1).detach()

    def compute_fingerprint(self) -> str:
        """Return the fingerprint of the weights as they are now, to compare with `fingerprint`."""
        return fingerprint(self.lm)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return token embeddings [..., D] of ids [...], as the model scales them."""
        return self.reader.embed(token_ids)

    def check_inserts(self, inserts: Inserts) -> None:
        """Refuse vectors and changes of weights that this model cannot take."""
        check_vectors(self.name, self, vectors_of(inserts))
        check_changes(self.name, self.lm, changes_of(inserts))

    def changed(self, inserts: Inserts) -> AbstractContextManager[None]:
        """Have the model read with what changes its weights among some inserts; see `weights.changed`."""
        return changed(self.lm, changes_of(inserts))

    def check_recomputed(self) -> None:
        """Refuse to read rows again for the gradient where they are not read slot by slot."""
        if not isinstance(self.reader, CausalReader):
            where = "in its encoder" if self.is_encoder_decoder else "whole"
            raise UserError(f"{self.name} reads texts {where}, which are not read again. Train without recomputing.")

    def predict(
        self,
        inserts: Inserts,
        questions: Sequence[Question],
        words: Tensor | None = None,
        is_recomputed: bool = False,
        rows: Tensor | None = None,
    ) -> Predicted:
        """Predict each token of the answers to some questions.

        Args:
            inserts: vectors at `lm.input` and `lm.kv[i]`, shared by all questions [P, D] or one set each [N, P, D], and
                what stands at `lm.part[NAME]`; {} for none.
            questions: what is read, and the answers.
            words: [W] int64, the only tokens whose logits are wanted, all answers' tokens among them; None for all.
            is_recomputed: keep no activations but the prompt's, and read rows again for the gradient.
            rows: [W, D] in place of those of the output layer, [W, D + 1] with biases; the logits are then of these W.
        Raises:
            UserError: an insert does not fit, a question is longer than the model has room for, or an encoder is asked
                to read rows again.
        """
        self.check_inserts(inserts)
        vectors, changes = vectors_of(inserts), changes_of(inserts)
        n_kv = vectors[Site("lm.kv")].n_vectors if Site("lm.kv") in vectors else 0
        n_slots = max(n_kv + len(question.slots) + max(map(len, question.answers)) for question in questions)
        if n_slots > self.budget:
            raise UserError(
                f"a text with its prompt and answer takes {n_slots} slots, but {self.name} has {self.budget}. "
                "Shorten it, or mark a field of the template with :cut."
            )
        for given in vectors.values():
            is_each = given.scope == "shared" or given.values.shape[0] == len(questions)
            assert is_each, "vectors are given for all questions, or for each"
        if is_recomputed:
            self.check_recomputed()
        if not isinstance(self.reader, CausalReader):
            learned = keys_values(vectors, self.kv_shape, self.dtype)
            with self.changed(changes), replaced_output(self.lm, rows):
                logits, packed = self.reader.answer(vectors.get(LM_INPUT), learned, questions)
            logits = logits if words is None else logits.index_select(-1, words)
            logits = logits if rows is None else logits[..., : len(rows)]
        else:
            hidden, packed = self._read(self.reader, vectors, changes, questions, is_recomputed)
            with self.changed(changes):
                if rows is not None:
                    logits = self.reader.bounded(output_of(rows, hidden))
                else:
                    logits = self.reader.head(hidden) if words is None else self.reader.head_of(words, hidden)
        tokens = packed.tokens if words is None else columns_of(packed.tokens, words)
        return Predicted(logits, packed.at, tokens, packed.lengths)

    def read_shared(self, inserts: Inserts, slots: Sequence[int]) -> KVCache:
        """Read what other slots follow once, for the keys and values that a decoder-only model keeps of it.

        `inserts` are as in `predict`, and shared where there are slots, which are as in `Question`.
        """
        vectors = vectors_of(inserts)
        assert isinstance(self.reader, CausalReader), "others read prompt and text together"
        cache = learned_cache(keys_values(vectors, self.kv_shape, self.dtype))
        if not slots:
            return cache
        ids = torch.tensor([list(slots)], device=self.device)
        with self.changed(inserts):
            return self.reader.run(cache, self.reader.embed_slots(ids, vectors.get(LM_INPUT)))[1]

    def _read(
        self,
        reader: CausalReader,
        vectors: SiteVectors,
        changes: Mapping[Site, Change],
        questions: Sequence[Question],
        is_recomputed: bool,
    ) -> tuple[Tensor, Packed]:
        """Return the hidden states that questions are answered from, and where each stands."""
        soft = vectors.get(LM_INPUT)
        is_shared = all(given.scope == "shared" for given in vectors.values())
        start = shared_start(questions) if is_shared else ()
        cache = self.read_shared({**vectors, **changes}, start)
        rest = [Question(question.slots[len(start) :], question.answers) for question in questions]
        if not reader.packs:
            rest = [Question(question.slots, (answer,)) for question in rest for answer in question.answers]
            if not is_shared:
                counts = torch.tensor([len(question.answers) for question in questions], device=self.device)
                owner = torch.arange(len(questions), device=self.device).repeat_interleave(counts)
                if soft is not None and soft.scope != "shared":
                    soft = replace(soft, values=soft.values.index_select(0, owner))
                cache = cache if not cache.own or len(cache) == 1 else cache.select(owner)
        rows = share_rows(rest) if reader.packs and is_shared else [[item] for item in range(len(rest))]
        packed = pack(rest, rows, cache.n_read, self.device)
        if cache.own and len(cache) != len(rows):
            cache = cache.repeat(len(rows))
        if is_recomputed:
            return read_again(reader, cache, packed, soft, changes), packed
        with self.changed(changes):
            return reader.read(cache, packed, soft), packed


def causal_reader(name: str, lm: Any) -> CausalReader | WholeRowReader:
    """Read a causal model slot by slot where that gives its own logits, else in whole rows, which is said."""
    try:
        return CausalReader(lm)
    except UserError:
        reader = WholeRowReader(lm)
    _log.warning(
        "%s, a %s, does not give its own logits where it is read slot by slot, so each text is read whole, its prompt "
        "too: slower, and without prefixes.",
        name,
        type(lm).__name__,
    )
    return reader


def columns_of(tokens: Tensor, words: Tensor) -> Tensor:
    """Return [K] int64, which of `words` [W] each of the tokens [K] is."""
    is_same = tokens[:, None] == words
    assert bool(is_same.any(1).all()), "every answer's token is among the words"
    return is_same.int().argmax(1)


def shared_start(questions: Sequence[Question]) -> tuple[int, ...]:
    """Find the slots that all questions begin with; one at least is left to each."""
    texts = [question.slots for question in questions]
    first, last = min(texts), max(texts)  # in the order of tuples, where whatever these two share all share
    most = min(map(len, texts)) - 1
    n_shared = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), most)
    return first[: min(n_shared, most)]


def read_again(
    reader: CausalReader, cache: KVCache, packed: Packed, soft: Vectors | None, changes: Mapping[Site, Change]
) -> Tensor:
    """Do what `reader.read` does, row by row, keeping nothing of a row for the gradient but what goes in."""
    length, hidden, order = packed.slots.shape[1], [], []
    learned = [tensor for change in changes.values() for tensor in change.tensors]
    for row in range(len(packed.slots)):
        is_mine = packed.read // length == row
        one = replace(
            packed,
            slots=packed.slots[row : row + 1],
            places=packed.places[row : row + 1],
            visible=None if packed.visible is None else packed.visible[row : row + 1],
            used=packed.used[packed.used // length == row] % length,
            read=packed.read[is_mine] % length,
        )
        mine = soft if soft is None or soft.scope == "shared" else replace(soft, values=soft.values[row : row + 1])
        keys = [part[row : row + 1] for pair in cache.own for part in pair]

        def read(tensors: Sequence[Tensor], one: Packed = one, mine: Vectors | None = mine) -> Tensor:
            now = changes_of(with_tensors(changes, iter(tensors)))
            rest = tensors[len(learned) :]
            parts = rest if mine is None else rest[:-1]
            own = tuple(zip(parts[::2], parts[1::2], strict=True))
            soft = None if mine is None else replace(mine, values=rest[-1])
            with changed(reader.lm, now):
                return reader.read(KVCache(own, n_read=cache.n_read), one, soft)

        hidden.append(recomputed(read, [*learned, *keys, *([] if mine is None else [mine.values])]))
        order.append(is_mine.nonzero()[:, 0])
    return torch.cat(hidden).index_select(0, torch.cat(order).argsort())


def end_of(name: str, lm: Any, tokenizer: Any) -> int:
    """Find the token after an answer; refuse a model where neither it nor its tokenizer names one."""
    for place in (tokenizer, lm.generation_config, lm.config):
        value = getattr(place, "eos_token_id", None)
        if value is not None:
            return value if isinstance(value, int) else value[0]
    raise UserError(f"{name} names no end token, but answers need one. Write eos_token_id into its config.json.")


def specials_of(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Find the tokens that a tokenizer puts before a text, and behind it."""
    word = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(word) + 1):
        if whole[start : start + len(word)] == word:
            return tuple(whole[:start]), tuple(whole[start + len(word) :])
    return (), ()
