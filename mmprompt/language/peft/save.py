"""Prompts written as PEFT's `PeftModel.from_pretrained` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmprompt.errors import UserError, unknown_name
from mmprompt.files import make_folder, tensor_bytes, write_bytes, write_json
from mmprompt.language.peft import layout
from mmprompt.language.peft.file import front
from mmprompt.language.peft.side import write_side
from mmprompt.language.predictor import PromptedModel
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.decoder.vectors import LM_INPUT
from mmprompt.models.sites import Site, Vectors

TRAIN_IN_FRONT = "Train it with a template that begins with {soft}{bos}."
Content = tuple[dict[str, Any], dict[str, Tensor]]
"""A configuration, and the tensors in PEFT's layout."""


def save_peft(
    prompted: PromptedModel, folder: Path | str, kind: Literal["prefix"] | None = None, task: str | None = None
) -> None:
    """Write a prompt as PEFT reads it: float32, and beside PEFT's two files what `load_peft` needs to give it back.

    Vectors among the tokens become PROMPT_TUNING, keys and values PREFIX_TUNING, the vectors of several tasks
    MULTITASK_PROMPT_TUNING. PEFT is then to be given the text that the template makes of a row, as the tokenizer frames
    it. A compiled prompt stands for all that the text begins with up to its last vector, words and start token among
    it: PEFT is to be given what follows, without a start token.

    Args:
        prompted: the frozen model and the prompt.
        folder: made if missing; files of an earlier prompt in it are replaced.
        kind: "prefix" compiles vectors to keys and values.
        task: of a prompt of several tasks the one to write; by default all.
    Raises:
        UserError: PEFT has no such prompt, or the folder cannot be written.
    """
    sources = prompted.prompt.sources
    if task is not None and task not in sources.tasks:
        raise unknown_name("task", task, sources.tasks)
    if not sources.sites:
        raise UserError("a prompt in words alone has no vectors, but PEFT's files are of vectors. Use save_language.")
    holds: tuple[int, ...] = ()
    compiled: dict[Site, Vectors] = {}
    with torch.no_grad():
        if kind == "prefix" or any(site.tower == "lm.kv" for site in sources.sites):
            vectors = _of_one_task(prompted, task)
            holds = _what_is_compiled(prompted, vectors, kind)
            config, tensors = _as_prefix(prompted.model, vectors, holds)
            compiled = vectors if holds else {}
        else:
            config, tensors = _as_vectors(prompted, task)
    folder = make_folder(Path(folder))
    data = tensor_bytes({name: value.float() for name, value in tensors.items()}, {"format": "pt"})
    write_bytes(folder / layout.TENSORS, data)
    names = [] if task is not None else list(sources.tasks)
    kept = {str(site): given.values.float() for site, given in compiled.items()}
    write_side(folder, prompted, names, data, list(holds), kept)
    write_json(folder / layout.CONFIG, config)


def _as_vectors(prompted: PromptedModel, task: str | None) -> Content:
    """Vectors before everything.

    Raises:
        UserError: they stand elsewhere.
    """
    sources, model = prompted.prompt.sources, prompted.model
    opening, n_vectors = prompted.bound.opening, sources.vectors()[LM_INPUT].n_vectors
    if opening != front(n_vectors):
        can_compile = opening is not None and not model.is_encoder_decoder
        raise UserError(
            "PEFT puts the vectors of a prompt before everything, each once, but in this template "
            f"{_what_is_before(model, opening)}. "
            + ('Use kind="prefix", which compiles what stands there.' if can_compile else TRAIN_IN_FRONT)
        )
    base = _base_of(model)
    if not sources.tasks or task is not None:
        values = sources.vectors_of(task or "")[LM_INPUT].values
        return layout.config_of(layout.PROMPT, base, n_vectors), {layout.VECTORS: values}
    tensors = sources.tensors()
    columns, rows = tensors["task_columns"], tensors["task_rows"]
    config = layout.config_of(layout.MULTITASK, base, n_vectors, n_tasks=len(rows), rank=rows.shape[1])
    return config, {layout.VECTORS: tensors[str(LM_INPUT)], layout.COLUMNS: columns, layout.ROWS: rows}


def _what_is_before(model: FrozenLanguageModel, opening: tuple[int, ...] | None) -> str:
    if opening is None:
        return "a field stands before some"
    tokens = [slot for slot in opening if slot >= 0]
    return f"{model.tokenizer.decode(tokens)[:40]!r} stands before some" if tokens else "some stand twice"


def _of_one_task(prompted: PromptedModel, task: str | None) -> dict[Site, Vectors]:
    """The vectors that a prefix is made of.

    Raises:
        UserError: they are of several tasks.
    """
    sources = prompted.prompt.sources
    if sources.tasks and task is None:
        raise UserError(f"a prefix is of one task, but this prompt has {len(sources.tasks)}. Give the task.")
    return sources.vectors_of(task or "")


def _what_is_compiled(
    prompted: PromptedModel, vectors: Mapping[Site, Vectors], kind: Literal["prefix"] | None
) -> tuple[int, ...]:
    """The slots that become keys and values; () where the prompt is keys and values already.

    Raises:
        UserError: it cannot be compiled.
    """
    if LM_INPUT not in vectors:
        return ()
    model, opening = prompted.model, prompted.bound.opening
    if kind is None:
        problem = "has vectors among the tokens beside keys and values, but PEFT has one or the other"
        raise UserError(f'this prompt {problem}. Use kind="prefix", which compiles all of it.')
    if model.is_encoder_decoder:
        problem = "reads vectors and text in both directions, so that vectors alone have no keys and values"
        raise UserError(f"the encoder of {model.name} {problem}. Leave kind out.")
    if opening is None:
        raise UserError(
            f"vectors are compiled before a text is known, but a field stands before some. {TRAIN_IN_FRONT}"
        )
    if model.kv_shape is None:
        raise UserError(f"{model.name} has blocks of different shapes, which take no prefix. Leave kind out.")
    return opening


def _as_prefix(model: FrozenLanguageModel, vectors: Mapping[Site, Vectors], holds: tuple[int, ...]) -> Content:
    """Keys and values of all blocks side by side."""
    assert model.kv_shape is not None, "prompts without a place are not made"
    n_layers, n_heads, width = model.kv_shape
    if holds:
        # [2, H, M, D/H] of each block to [M, 2 H D/H]
        pairs = (torch.stack([key[0], value[0]]) for key, value in model.read_shared(vectors, holds).own)
        blocks = [pair.permute(2, 0, 1, 3).flatten(1) for pair in pairs]
    else:
        blocks = [vectors[Site("lm.kv", layer)].values for layer in range(n_layers)]
    values = layout.rows_of(blocks, model.is_encoder_decoder)
    base = _base_of(model, (values.shape[1] // (2 * n_heads * width), n_heads, n_heads * width))
    return layout.config_of(layout.PREFIX, base, len(values)), {layout.VECTORS: values}


def _base_of(model: FrozenLanguageModel, of_prefix: tuple[int, int, int] | None = None) -> layout.Base:
    """What a configuration says of a model.

    Args:
        model: it.
        of_prefix: blocks, heads and width of keys and values; None for vectors among the tokens.
    """
    config = model.lm.config.get_text_config()
    own = (config.num_hidden_layers, config.num_attention_heads, model.width)
    task_type = layout.ENCODED if model.is_encoder_decoder else layout.CAUSAL
    return layout.Base(model.lm.name_or_path or None, task_type, *(of_prefix or own))
