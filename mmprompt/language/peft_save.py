"""Prompts in PEFT's two files, written; PEFT itself is not needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmprompt.core.file import describe_backbone
from mmprompt.core.header import BackboneFacts
from mmprompt.core.learned import Prompt
from mmprompt.errors import UserError, bad_value, unknown_name
from mmprompt.files import make_folder, sha256_bytes, tensor_bytes, write_bytes, write_json
from mmprompt.language.peft import (
    CAUSAL,
    COLUMNS,
    COMPILED,
    CONFIG,
    ENCODED,
    FORMAT,
    LORA,
    MULTITASK,
    PREFIX,
    PROMPT,
    ROWS,
    SIDE,
    TENSORS,
    VECTORS,
    Side,
)
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.sources import MultitaskVectors
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.sites import LM_INPUT, Site, Vectors, low_rank_of
from mmprompt.settings import checked
from mmprompt.version import __version__

TRAIN_IN_FRONT = "Train it with a template that begins with {soft}{bos}."
PeftKind = Literal["prefix", "lora"]
Content = tuple[dict[str, Any], dict[str, Tensor]]
"""A configuration, and the tensors in PEFT's layout."""


@checked
def save_peft(
    prompted: LanguagePredictor, folder: Path | str, kind: PeftKind | None = None, task: str | None = None
) -> None:
    """Write a prompt as PEFT reads it: float32, and beside PEFT's two files what `load_peft` needs to give it back.

    Vectors among the tokens become PROMPT_TUNING, keys and values PREFIX_TUNING, the vectors of several tasks
    MULTITASK_PROMPT_TUNING, low-rank terms LORA. PEFT is then to be given the text that the template makes of a row, as
    the tokenizer frames it. A compiled prompt stands for all that the text begins with up to its last vector, words and
    start token among it: PEFT is to be given what follows, without a start token.

    Args:
        prompted: the frozen model and the prompt.
        folder: made if missing; files of an earlier prompt in it are replaced.
        kind: "prefix" compiles vectors to keys and values; "lora" writes low-rank terms without the vectors that were
            learned with them, and only PEFT's two files.
        task: of a prompt of several tasks the one to write; by default all.
    Raises:
        UserError: PEFT has no such prompt, or the folder cannot be written.
    """
    sites, tasks = prompted.prompt.sites, prompted.tasks
    if task is not None and task not in tasks:
        raise unknown_name("task", task, tasks)
    if not sites or prompted.label_rows is not None:
        what = "a soft verbalizer has output rows" if sites else "a prompt in words alone has no vectors"
        raise UserError(f"{what}, but PEFT's files are of vectors. Use save.")
    is_whole = all(site.part for site in sites) or not prompted.changes_weights
    if kind != "lora" and not is_whole:
        raise UserError(
            "this prompt has vectors and changes of weights, but a folder of PEFT's has one or the other. "
            "Use `kind='lora'`, which writes low-rank terms alone."
        )
    with torch.no_grad():
        config, tensors, holds, compiled = _content(prompted, kind, task)
    folder = make_folder(Path(folder))
    adapter = tensor_bytes({name: value.float() for name, value in tensors.items()}, {"format": "pt"})
    write_bytes(folder / TENSORS, adapter)
    data = tensor_bytes(compiled)
    if compiled:
        write_bytes(folder / COMPILED, data)
    else:
        (folder / COMPILED).unlink(missing_ok=True)
    side = Side(
        format=FORMAT,
        mmprompt=__version__,
        backbone=BackboneFacts(**describe_backbone(prompted.model)),
        template=prompted.template.text,
        verbalizer=None if prompted.label_words is None else prompted.label_words.to_dict(),
        tasks=[] if task is not None else list(tasks),
        holds=list(holds),
        adapter_sha256=sha256_bytes(adapter),
        compiled_sha256=sha256_bytes(data) if compiled else None,
    )
    if is_whole:
        write_json(folder / SIDE, asdict(side))
    else:  # its template is that of the vectors
        (folder / SIDE).unlink(missing_ok=True)
    write_json(folder / CONFIG, config)


def _content(
    prompted: LanguagePredictor, kind: PeftKind | None, task: str | None
) -> tuple[dict[str, Any], dict[str, Tensor], tuple[int, ...], dict[str, Tensor]]:
    """Lay out a prompt: configuration and tensors, and of a compiled one the slots it holds and its vectors."""
    if kind == "prefix" and prompted.changes_weights:
        expected = "this prompt changes weights and has no vectors to compile"
        raise bad_value("kind", kind, expected, "Leave kind out.")
    if kind == "lora" or prompted.changes_weights:
        return *_as_terms(prompted.prompt, prompted.model), (), {}
    if kind is None and not any(site.tower == "lm.kv" for site in prompted.prompt.sites):
        return *_as_vectors(prompted, task), (), {}
    if prompted.tasks and task is None:
        raise UserError(f"a prefix is of one task, but this prompt has {len(prompted.tasks)}. Give the task.")
    vectors = prompted.vectors(task or "")
    if LM_INPUT not in vectors:
        return *_as_prefix(prompted.model, vectors, ()), (), {}
    holds = _compiled_slots(prompted, kind)
    compiled = {str(site): each.values.float() for site, each in vectors.items()}
    return *_as_prefix(prompted.model, vectors, holds), holds, compiled


def _as_vectors(prompted: LanguagePredictor, task: str | None) -> Content:
    """Lay out vectors that stand before everything."""
    model = prompted.model
    opening, n_vectors = prompted.bound.opening, prompted.vectors()[LM_INPUT].n_vectors
    if opening != tuple(range(-1, -1 - n_vectors, -1)):
        tokens = [slot for slot in opening or () if slot >= 0]
        before = f"{model.tokenizer.decode(tokens)[:40]!r} stands before some" if tokens else "some stand twice"
        before = "a field stands before some" if opening is None else before
        can_compile = opening is not None and not model.is_encoder_decoder
        raise UserError(
            "PEFT puts the vectors of a prompt before everything, each once, but in this template "
            f"{before}. "
            + ("Use `kind='prefix'`, which compiles what stands there." if can_compile else TRAIN_IN_FRONT)
        )
    config = model.lm.config.get_text_config()
    shape = (config.num_hidden_layers, config.num_attention_heads, model.width)
    multitask = next((one for one in prompted.prompt.sources if isinstance(one, MultitaskVectors)), None)
    if multitask is None or task is not None:
        values = prompted.vectors(task or "")[LM_INPUT].values
        return _of_vectors(PROMPT, model, n_vectors, shape), {VECTORS: values}
    columns, rows = multitask.columns.detach(), multitask.rows.detach()
    extra = {
        "num_ranks": rows.shape[1],
        "num_tasks": len(rows),
        "prompt_tuning_init_state_dict_path": None,
        "prompt_tuning_init_task": 0,
    }
    written = {VECTORS: multitask.shared.detach(), COLUMNS: columns, ROWS: rows}
    return _of_vectors(MULTITASK, model, n_vectors, shape, extra), written


def _compiled_slots(prompted: LanguagePredictor, kind: PeftKind | None) -> tuple[int, ...]:
    """Return the slots that become keys and values."""
    model, opening = prompted.model, prompted.bound.opening
    if kind is None:
        problem = "has vectors among the tokens beside keys and values, but PEFT has one or the other"
        raise UserError(f"this prompt {problem}. Use `kind='prefix'`, which compiles all of it.")
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
    """Lay out keys and values of all blocks side by side; behind an encoder PEFT reads every other one."""
    assert model.kv_shape is not None, "prompts without a place are not made"
    n_layers, n_heads, width = model.kv_shape
    if holds:
        # [2, H, M, D/H] of each block to [M, 2 H D/H]
        pairs = (torch.stack([key[0], value[0]]) for key, value in model.read_shared(vectors, holds).own)
        blocks = [pair.permute(2, 0, 1, 3).flatten(1) for pair in pairs]
    else:
        blocks = [vectors[Site("lm.kv", layer)].values for layer in range(n_layers)]
    if model.is_encoder_decoder:
        blocks = [part for block in blocks for part in (block, torch.zeros_like(block))]
    values = torch.cat(blocks, dim=1)
    config = _of_vectors(PREFIX, model, len(values), (len(blocks), n_heads, n_heads * width))
    return config, {VECTORS: values}


def _as_terms(prompt: Prompt, model: FrozenLanguageModel) -> Content:
    """Lay out a prompt's low-rank terms, all of one rank and scale, by the names of the layers they stand beside."""
    inserts = prompt.inserts()
    terms = {site.part: term for site, term in low_rank_of(inserts).items()}
    if not terms or any(site.part and site.part not in terms for site in inserts):
        raise UserError("this prompt has no low-rank terms alone at the model's layers, but PEFT's LoRA has. Use save.")
    if len({(len(term.a), term.scale) for term in terms.values()}) > 1:
        raise UserError("the low-rank terms of this prompt differ in rank or scale, but PEFT's LoRA has one. Use save.")
    first = next(iter(terms.values()))
    own = {"bias": "none", "lora_alpha": first.scale * len(first.a), "lora_dropout": 0.0, "r": len(first.a)}
    tensors = {f"base_model.model.{name}.lora_A.weight": term.a.detach() for name, term in terms.items()}
    tensors |= {f"base_model.model.{name}.lora_B.weight": term.b.detach() for name, term in terms.items()}
    return _config(LORA, model, own | {"target_modules": sorted(terms)}), tensors


def _config(kind: str, model: FrozenLanguageModel, own: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a prompt as PEFT's `adapter_config.json` does: what all kinds say, and what one kind says."""
    config = {
        **dict.fromkeys(("auto_mapping", "modules_to_save", "peft_version", "revision")),
        "base_model_name_or_path": model.lm.name_or_path or None,
        "inference_mode": True,
        "peft_type": kind,
        "task_type": ENCODED if model.is_encoder_decoder else CAUSAL,
    }
    return dict(sorted((config | dict(own)).items()))


def _of_vectors(
    kind: str, model: FrozenLanguageModel, n_vectors: int, shape: tuple[int, int, int], extra: Mapping[str, Any] = {}
) -> dict[str, Any]:
    """Describe a prompt of n vectors: `shape` is layers, heads and width of a vector."""
    is_prefix = kind == PREFIX
    if is_prefix:
        extra = {"encoder_hidden_size": shape[2], "init_weights": None, "prefix_projection": False}
    else:
        names = ("prompt_tuning_init_text", "tokenizer_kwargs", "tokenizer_name_or_path")
        extra = {"prompt_tuning_init": "RANDOM", **dict.fromkeys(names), **extra}
    own = {
        "num_attention_heads": shape[1],
        "num_layers": shape[0],
        # One copy of the vectors, which PEFT reads as well as two; but its prefixes need an encoder to be named.
        "num_transformer_submodules": 2 if is_prefix and model.is_encoder_decoder else 1,
        "num_virtual_tokens": n_vectors,
        "token_dim": shape[2],
    }
    return _config(kind, model, own | extra)
