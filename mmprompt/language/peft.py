"""Prompts in PEFT's two files, read and written; PEFT itself is not needed, and no pickle is read.

PEFT puts its vectors before everything, the start token of the text too; that is what `TEMPLATE` says. What `save_peft`
writes beside its files, template and words of labels, is read too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmprompt.core.file import describe_backbone, read_sealed, refuse_other_backbone
from mmprompt.core.header import RESTORE, BackboneFacts
from mmprompt.core.learned import Given, Learned, Prompt, Source
from mmprompt.errors import UserError, bad_file, unknown_name
from mmprompt.files import (
    make_folder,
    read_bytes,
    read_json,
    read_tensors,
    sha256_bytes,
    tensor_bytes,
    write_bytes,
    write_json,
)
from mmprompt.language.peft_lora import LORA, OTHER_MODEL, SAVE_AGAIN, check_lora, lora_content, read_terms
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.sources import MultitaskVectors
from mmprompt.language.templates.template import Template
from mmprompt.language.templates.verbalizer import Verbalizer
from mmprompt.models.decoder.load import load_language_model
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.sites import LM_INPUT, Site, Vectors, vectors_of
from mmprompt.settings import Count, checked, holds, validate
from mmprompt.version import __version__

CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
SIDE, COMPILED = "mmprompt.json", "mmprompt.safetensors"
VECTORS, COLUMNS, ROWS = "prompt_embeddings", "prefix_task_cols", "prefix_task_rows"
PROMPT, P_TUNING, PREFIX, MULTITASK = "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING"
KINDS = (PROMPT, P_TUNING, PREFIX, MULTITASK, LORA)
CAUSAL, ENCODED = "CAUSAL_LM", "SEQ_2_SEQ_LM"
FORMAT = 1
MAX_BYTES = 2**31

TEMPLATE = "{soft}{bos}{text}{answer}"
"""What PEFT does with a text: vectors, then the text as the tokenizer frames it. Of a prefix, `{soft}` is nothing."""
TRAIN_IN_FRONT = "Train it with a template that begins with {soft}{bos}."
PeftKind = Literal["prefix", "lora"]
Content = tuple[dict[str, Any], dict[str, Tensor]]
"""A configuration, and the tensors in PEFT's layout."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Side:
    """The content of `mmprompt.json`.

    Args:
        tasks: names of the tasks, where PEFT has numbers.
        holds: of a compiled prompt the slots whose keys and values it holds, as in `Question`; texts follow them
            without start tokens of their own.
        adapter_sha256: of the tensors beside it.
        compiled_sha256: of `mmprompt.safetensors`, the vectors that were compiled; None where none were.
    """

    format: int
    mmprompt: str
    backbone: BackboneFacts
    template: str
    verbalizer: dict[str, Any] | None
    tasks: list[str]
    holds: list[int]
    adapter_sha256: str
    compiled_sha256: str | None


@checked
def load_peft(
    folder: Path | str,
    model: FrozenLanguageModel | str,
    template: str | None = None,
    verbalizer: Verbalizer | None = None,
    task: str | int | None = None,
) -> LanguagePredictor:
    """Load what PEFT wrote: prompt tuning, P-tuning, prefix tuning, multitask prompt tuning or LoRA.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        model: the frozen model or its name.
        template: by default the one that `save_peft` kept, else `TEMPLATE`.
        verbalizer: by default the one that `save_peft` kept, else none.
        task: which task of a multitask prompt, by number or name; by default all, and rows name theirs ("0", "1", ...
            where PEFT wrote them).
    Raises:
        UserError: files are missing or broken, of another kind, or do not fit the model or the template.
    """
    folder = Path(folder)
    config = read_config(folder)
    tensors = read_adapter(folder, config)
    side = read_side(folder)
    model = load_language_model(model) if isinstance(model, str) else model
    if side is not None:
        refuse_other_backbone(folder, asdict(side), model)
    expected = ENCODED if model.is_encoder_decoder else CAUSAL
    if config.get("task_type") not in (None, expected):
        problem = f"is a prompt for {config['task_type']}, but {model.name} is a model for {expected}"
        raise bad_file(folder, problem, OTHER_MODEL)
    if config["peft_type"] == MULTITASK:
        sources: list[Source] = _multitask(folder, model, config, tensors, side, task)
    elif task is not None:
        raise bad_file(folder, f"is a prompt of one task, but the task {task!r} was asked for", "Leave the task out.")
    elif side is not None and side.compiled_sha256 is not None:
        compiled = read_sealed(folder / COMPILED, side.compiled_sha256)
        sources = [Learned(Site.parse(name), values) for name, values in compiled.items()]
    elif config["peft_type"] == LORA:
        sources = [read_terms(folder / TENSORS, model, config, tensors)]
    elif config["peft_type"] == PREFIX:
        sources = _keys_values(folder, model, config, tensors[VECTORS])
    else:
        sources = [Learned(LM_INPUT, _of_width(folder, model, tensors[VECTORS]))]
    vectors = vectors_of(Prompt(Template.parse(TEMPLATE), *sources).inserts("lm")).get(LM_INPUT)
    n_vectors = 0 if vectors is None else vectors.n_vectors
    parsed = Template.parse(template or (TEMPLATE if side is None else side.template))
    n_soft = _n_bare(folder, parsed, n_vectors, model)
    if verbalizer is None and side is not None and side.verbalizer is not None:
        verbalizer = Verbalizer.from_dict(side.verbalizer)
    prompt = Prompt(parsed.with_soft(n_soft), *sources).to(model.device).requires_grad_(False).eval()
    prompted = LanguagePredictor(model, prompt, verbalizer)
    if template is not None and n_vectors and prompted.bound.opening != tuple(range(-1, -1 - n_vectors, -1)):
        _log.warning("PEFT puts its vectors before everything, but this template does not. Begin it with {soft}{bos}.")
    return prompted


def read_config(folder: Path) -> dict[str, Any]:
    """Read `adapter_config.json` and check what a prompt is read by."""
    path = folder / CONFIG
    if not path.is_file():
        inner = min((place.parent.name for place in folder.glob(f"*/{CONFIG}")), default=None)
        advice = "Give a folder that PEFT's save_pretrained wrote." if inner is None else f"Give {folder / inner}."
        raise bad_file(folder, f"holds no {CONFIG}, so it is no prompt of PEFT's", advice)
    config = read_json(path)
    if not isinstance(config, dict):
        raise bad_file(path, "is no JSON object", SAVE_AGAIN)
    kind, task_type, modules = (config.get(name) for name in ("peft_type", "task_type", "modules_to_save"))
    if kind not in KINDS:
        said = "has no peft_type" if kind is None else f"has the peft_type {str(kind)[:40]!r}"
        raise bad_file(path, f"{said}, but one of {', '.join(KINDS)} was expected", "Give a folder of those.")
    if task_type not in (None, CAUSAL, ENCODED):
        problem = f"was trained for {str(task_type)[:40]!r}, but {CAUSAL} or {ENCODED} was expected"
        raise bad_file(path, problem, "Only prompts of models that write text are read.")
    if modules:
        problem = f"keeps modules of the model too (modules_to_save is {str(modules)[:80]})"
        raise bad_file(path, problem, "Only vectors and low-rank terms are read.")
    if kind == LORA:
        check_lora(path, config)
        return config
    numbers = {
        "num_virtual_tokens": (Count, "a whole number of 1 or more"),
        "num_transformer_submodules": (Literal[1, 2] | None, "1 or 2"),
    }
    for name, (kind_of_number, expected) in numbers.items():
        if not holds(config.get(name), kind_of_number):
            raise bad_file(path, f"{name} is {str(config.get(name))[:40]}, but {expected} was expected", SAVE_AGAIN)
    return config


def read_adapter(folder: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """Read the tensors by PEFT's names, in float32; of two copies of the vectors the first.

    `VECTORS` are [n, D], or of a prefix [n, J 2 H D/H]; of several tasks, `COLUMNS` are [T, n, R], `ROWS` [T, R, D].
    """
    path = folder / TENSORS
    if not path.is_file():
        if (folder / PICKLE).is_file():
            problem = f"holds its tensors as a pickle alone ({PICKLE}), which is never read"
            raise bad_file(folder, problem, "Save it again with PEFT's save_pretrained, which writes safetensors.")
        raise bad_file(folder, f"holds no {TENSORS}", SAVE_AGAIN)
    tensors = read_tensors(path)
    if config["peft_type"] == LORA:
        return {name: value.float() for name, value in tensors.items()}
    kind, n, n_copies = config["peft_type"], config["num_virtual_tokens"], config.get("num_transformer_submodules")
    names = (VECTORS, COLUMNS, ROWS) if kind == MULTITASK else (VECTORS,)
    for name in names:
        if name not in tensors:
            raise bad_file(path, f"holds no {name}, which a {kind} prompt has", SAVE_AGAIN)
    for name in sorted(tensors.keys() - set(names)):
        raise bad_file(path, f"holds {name}, which no {kind} prompt has", "Give a folder of a prompt alone.")

    def check(name: str, expected: str, is_fit: bool) -> None:
        sizes, dtype = list(tensors[name].shape), tensors[name].dtype
        if not is_fit or 0 in sizes or not dtype.is_floating_point:
            has = f"{name} is {sizes} of {str(dtype).removeprefix('torch.')}"
            raise bad_file(path, f"{has}, but {expected} of floating-point numbers was expected", SAVE_AGAIN)

    vectors = tensors[VECTORS]
    n_rows = [n * copy for copy in ((1,) if kind == PREFIX else (n_copies,) if n_copies else (1, 2))]
    expected = " or ".join(f"[{n}, width]" for n in n_rows)
    check(VECTORS, f"{expected} for {n} virtual tokens", vectors.dim() == 2 and vectors.shape[0] in n_rows)
    if kind == MULTITASK:
        columns, (n_all, width) = tensors[COLUMNS], vectors.shape
        check(COLUMNS, f"[tasks, {n_all}, rank]", columns.dim() == 3 and columns.shape[1] == n_all)
        shape = [columns.shape[0], columns.shape[2], width]
        check(ROWS, f"{shape}", list(tensors[ROWS].shape) == shape)
        tensors[COLUMNS] = columns[:, :n]
    tensors[VECTORS] = vectors[:n]
    return {name: value.float() for name, value in tensors.items()}


def read_side(folder: Path) -> Side | None:
    """Read `mmprompt.json`, None where there is none."""
    path = folder / SIDE
    if not path.is_file():
        return None
    content = read_json(path)
    if not isinstance(content, dict):
        raise bad_file(path, "is no JSON object", RESTORE)
    side = validate(Side, content, path)
    if side.format > FORMAT:
        problem = f"has format {side.format}, but this mmprompt {__version__} reads up to {FORMAT}"
        raise bad_file(path, problem, "Upgrade mmprompt.")
    if sha256_bytes(read_bytes(folder / TENSORS, MAX_BYTES)) != side.adapter_sha256:
        problem = f"was written with another {TENSORS} than the one beside it"
        raise bad_file(path, problem, "Restore the folder as it was saved, or remove this file.")
    return side


def _of_width(folder: Path, model: FrozenLanguageModel, values: Tensor) -> Tensor:
    if values.shape[1] != model.width:
        problem = f"its vectors are {values.shape[1]} wide, but those of {model.name} are {model.width}"
        raise bad_file(folder, problem, OTHER_MODEL)
    return values


def _multitask(
    folder: Path,
    model: FrozenLanguageModel,
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    side: Side | None,
    task: str | int | None,
) -> list[Source]:
    """Return the vectors of all tasks, or of one."""
    values, columns, rows = _of_width(folder, model, tensors[VECTORS]), tensors[COLUMNS], tensors[ROWS]
    names = [str(number) for number in range(len(columns))] if side is None else side.tasks
    if len(names) != len(columns):
        raise bad_file(folder / SIDE, f"names {len(names)} tasks, but there are {len(columns)}", "Name each.")
    if model.is_encoder_decoder and config.get("num_transformer_submodules") != 1:
        _log.warning(
            "PEFT trains %d vectors before the decoder's tokens too, but generates without them; they are left out. "
            "Scores of labels differ from those of PEFT's forward, and saved again the prompt has lost them.",
            len(values),
        )
    source = MultitaskVectors.of(names, values, columns, rows)
    if task is None:
        return [source]
    name = names[task] if isinstance(task, int) and 0 <= task < len(names) else str(task)
    (vectors,) = source(Given(task=name)).values()
    return [Learned(LM_INPUT, vectors.tensors[0])]


def _keys_values(folder: Path, model: FrozenLanguageModel, config: dict[str, Any], values: Tensor) -> list[Source]:
    """Return keys and values by block, from rows [n, J width] that hold those of all blocks.

    Behind an encoder PEFT hands out pairs of the J stored blocks, the second of which it then drops, and begins again
    where they end: block i is given the (2 i mod J)-th, so any J will do.
    """
    if model.kv_shape is None:
        raise bad_file(folder, f"holds keys and values, but {model.name} takes none", OTHER_MODEL)
    is_encoded = model.is_encoder_decoder
    if is_encoded and config.get("num_transformer_submodules") == 1:
        problem = (
            "was trained with num_transformer_submodules 1, by which PEFT hides the encoder's text from the decoder"
        )
        raise bad_file(folder, problem, "Only prefixes with 2, PEFT's default here, are read.")
    n_layers, n_heads, head_width = model.kv_shape
    width, n_numbers = 2 * n_heads * head_width, values.shape[1]
    own = {"num_attention_heads": n_heads, "token_dim": n_heads * head_width}
    own |= {} if is_encoded else {"num_layers": n_layers}
    other = next((name for name in own if config.get(name) not in (None, own[name])), None)
    if other is not None or (n_numbers % width != 0 if is_encoded else n_numbers != n_layers * width):
        said = f"of {n_numbers} numbers" if other is None else f"of {other} {str(config[other])[:40]}"
        problem = (
            f"holds keys and values {said}, but {model.name} takes {n_layers * width} numbers: "
            f"{n_layers} blocks, {n_heads} heads of width {head_width}, keys and values"
        )
        raise bad_file(folder, problem, OTHER_MODEL)
    blocks = values.split(width, dim=1)
    step = 2 if is_encoded else 1
    return [Learned(Site("lm.kv", layer), blocks[step * layer % len(blocks)]) for layer in range(n_layers)]


def _n_bare(folder: Path, template: Template, n_vectors: int, model: FrozenLanguageModel) -> int:
    """Count the vectors of a bare `{soft}`, so that the template takes all."""
    n_fixed = template.bind(model.tokenizer, model.start_ids, model.is_encoder_decoder).n_soft
    n_bare = n_vectors - n_fixed
    if n_bare < 0 or (n_bare > 0 and not template.has_bare_soft):
        raise bad_file(
            folder,
            f"holds {n_vectors} vectors among the tokens, but the template has {n_fixed} soft slots",
            "Write {soft} for all of them." if n_vectors else "Write it without.",
        )
    return n_bare


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
    holds: tuple[int, ...] = ()
    compiled: dict[str, Tensor] = {}
    is_part = kind == "lora" and not all(site.part for site in sites)
    if prompted.changes_weights and kind != "lora" and not all(site.part for site in sites):
        raise UserError(
            "this prompt has vectors and changes of weights, but a folder of PEFT's has one or the other. "
            'Use kind="lora", which writes low-rank terms alone.'
        )
    with torch.no_grad():
        if kind == "lora" or prompted.changes_weights:
            config, tensors = lora_content(prompted.prompt, prompted.model)
        elif kind == "prefix" or any(site.tower == "lm.kv" for site in sites):
            if tasks and task is None:
                raise UserError(f"a prefix is of one task, but this prompt has {len(tasks)}. Give the task.")
            vectors = prompted.vectors(task or "")
            if LM_INPUT in vectors:
                holds = _compiled_slots(prompted, kind)
                compiled = {str(site): each.values.float() for site, each in vectors.items()}
            config, tensors = _as_prefix(prompted.model, vectors, holds)
        else:
            config, tensors = _as_vectors(prompted, task)
    folder = make_folder(Path(folder))
    adapter = tensor_bytes({name: value.float() for name, value in tensors.items()}, {"format": "pt"})
    write_bytes(folder / TENSORS, adapter)
    if is_part:  # its template is that of the vectors
        (folder / SIDE).unlink(missing_ok=True)
        (folder / COMPILED).unlink(missing_ok=True)
        write_json(folder / CONFIG, config)
        return
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
    write_json(folder / SIDE, asdict(side))
    write_json(folder / CONFIG, config)


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
            f"{before}. " + ('Use kind="prefix", which compiles what stands there.' if can_compile else TRAIN_IN_FRONT)
        )
    config = model.lm.config.get_text_config()
    shape = (config.num_hidden_layers, config.num_attention_heads, model.width)
    multitask = next((one for one in prompted.prompt.sources if isinstance(one, MultitaskVectors)), None)
    if multitask is None or task is not None:
        values = prompted.vectors(task or "")[LM_INPUT].values
        return _config(PROMPT, model, n_vectors, shape), {VECTORS: values}
    columns, rows = multitask.columns.detach(), multitask.rows.detach()
    extra = {
        "num_ranks": rows.shape[1],
        "num_tasks": len(rows),
        "prompt_tuning_init_state_dict_path": None,
        "prompt_tuning_init_task": 0,
    }
    written = {VECTORS: multitask.shared.detach(), COLUMNS: columns, ROWS: rows}
    return _config(MULTITASK, model, n_vectors, shape, extra), written


def _compiled_slots(prompted: LanguagePredictor, kind: PeftKind | None) -> tuple[int, ...]:
    """Return the slots that become keys and values."""
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
    config = _config(PREFIX, model, len(values), (len(blocks), n_heads, n_heads * width))
    return config, {VECTORS: values}


def _config(
    kind: str, model: FrozenLanguageModel, n_vectors: int, shape: tuple[int, int, int], extra: Mapping[str, Any] = {}
) -> dict[str, Any]:
    """Describe n vectors as `adapter_config.json` does: `shape` is layers, heads and width of a vector."""
    is_prefix = kind == PREFIX
    if is_prefix:
        extra = {"encoder_hidden_size": shape[2], "init_weights": None, "prefix_projection": False}
    else:
        names = ("prompt_tuning_init_text", "tokenizer_kwargs", "tokenizer_name_or_path")
        extra = {"prompt_tuning_init": "RANDOM", **dict.fromkeys(names), **extra}
    config = {
        **dict.fromkeys(("auto_mapping", "modules_to_save", "peft_version", "revision")),
        "base_model_name_or_path": model.lm.name_or_path or None,
        "inference_mode": True,
        "num_attention_heads": shape[1],
        "num_layers": shape[0],
        # One copy of the vectors, which PEFT reads as well as two; but its prefixes need an encoder to be named.
        "num_transformer_submodules": 2 if is_prefix and model.is_encoder_decoder else 1,
        "num_virtual_tokens": n_vectors,
        "peft_type": kind,
        "task_type": ENCODED if model.is_encoder_decoder else CAUSAL,
        "token_dim": shape[2],
    }
    return dict(sorted((config | extra).items()))
