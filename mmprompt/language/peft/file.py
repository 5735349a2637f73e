"""Prompts that PEFT wrote, read from its own files.

PEFT puts its vectors before everything, the start token of the text too; that is what `TEMPLATE` says. What stands
beside its files where `save_peft` wrote them, template and words of labels, is read too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from mmprompt.core.file import refuse_other_backbone
from mmprompt.core.sources import FreeVectors
from mmprompt.errors import bad_file
from mmprompt.language.peft import layout
from mmprompt.language.peft.side import SIDE, Side, read_compiled, read_side
from mmprompt.language.predictor import LanguagePrompt, PromptedModel
from mmprompt.language.sources import LanguageSources, MultitaskSources
from mmprompt.language.templates.template import Template
from mmprompt.language.templates.verbalizer import Verbalizer
from mmprompt.models.decoder.load import load_language_model
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.decoder.vectors import LM_INPUT
from mmprompt.models.sites import Site

TEMPLATE = "{soft}{bos}{text}{answer}"
"""What PEFT does with a text: vectors, then the text as the tokenizer frames it. Of a prefix, `{soft}` is nothing."""
OTHER_MODEL = "Load it with the model that it was trained on."
_log = logging.getLogger(__name__)


def load_peft(
    folder: Path | str,
    model: FrozenLanguageModel | str,
    template: str | None = None,
    verbalizer: Verbalizer | None = None,
    task: str | int | None = None,
) -> PromptedModel:
    """Load a prompt that PEFT wrote: prompt tuning, P-tuning, prefix tuning or multitask prompt tuning.

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
    shape = layout.read_shape(folder)
    tensors = layout.read_adapter(folder, shape)
    side = read_side(folder)
    if isinstance(model, str):
        model = load_language_model(model)
    _refuse_misfit(folder, shape, side, model)
    sources = _sources(folder, model, shape, tensors, side, task).to(model.device).requires_grad_(False)
    n_vectors = sum(vectors.n_vectors for site, vectors in sources.vectors().items() if site == LM_INPUT)
    read = Template.parse(template or (TEMPLATE if side is None else side.template))
    n_soft = _n_soft(folder, read, n_vectors, model)
    if verbalizer is None and side is not None and side.verbalizer is not None:
        verbalizer = Verbalizer.from_dict(side.verbalizer)
    prompted = PromptedModel(model, LanguagePrompt(read, sources, verbalizer, n_soft))
    if template is not None and n_vectors and prompted.bound.opening != front(n_vectors):
        _log.warning("PEFT puts its vectors before everything, but this template does not. Begin it with {soft}{bos}.")
    return prompted


def _refuse_misfit(folder: Path, shape: layout.Shape, side: Side | None, model: FrozenLanguageModel) -> None:
    if side is not None:
        refuse_other_backbone(folder, asdict(side), model)
    expected = layout.ENCODED if model.is_encoder_decoder else layout.CAUSAL
    if shape.task_type not in (None, expected):
        problem = f"is a prompt for {shape.task_type}, but {model.name} is a model for {expected}"
        raise bad_file(folder, problem, OTHER_MODEL)


def _sources(
    folder: Path,
    model: FrozenLanguageModel,
    shape: layout.Shape,
    tensors: Mapping[str, Tensor],
    side: Side | None,
    task: str | int | None,
) -> LanguageSources:
    """The vectors by site."""
    if task is not None and shape.kind != layout.MULTITASK:
        raise bad_file(folder, f"is a prompt of one task, but the task {task!r} was asked for", "Leave the task out.")
    if side is not None and side.compiled_sha256 is not None:
        return LanguageSources(
            {Site.parse(name): FreeVectors(values) for name, values in read_compiled(folder, side).items()}
        )
    values = tensors[layout.VECTORS]
    if shape.kind == layout.PREFIX:
        return LanguageSources(_keys_values(folder, model, shape, values))
    if values.shape[1] != model.width:
        problem = f"its vectors are {values.shape[1]} wide, but those of {model.name} are {model.width}"
        raise bad_file(folder, problem, OTHER_MODEL)
    if shape.kind != layout.MULTITASK:
        return LanguageSources({LM_INPUT: FreeVectors(values)})
    columns, rows = tensors[layout.COLUMNS], tensors[layout.ROWS]
    names = [str(number) for number in range(len(columns))] if side is None else side.tasks
    if len(names) != len(columns):
        raise bad_file(folder / SIDE, f"names {len(names)} tasks, but there are {len(columns)}", "Name each.")
    if model.is_encoder_decoder and shape.n_copies != 1:
        _log.warning(
            "PEFT trains vectors before the decoder's tokens too, but generates without them. So does mmprompt."
        )
    sources = MultitaskSources(FreeVectors(values), names, columns, rows)
    if task is None:
        return sources
    name = names[task] if isinstance(task, int) and 0 <= task < len(names) else str(task)
    return LanguageSources({LM_INPUT: FreeVectors(sources.vectors_of(name)[LM_INPUT].values)})


def _keys_values(
    folder: Path, model: FrozenLanguageModel, shape: layout.Shape, values: Tensor
) -> dict[Site, FreeVectors]:
    """Keys and values by block, from rows that hold those of all blocks."""
    if model.kv_shape is None:
        raise bad_file(folder, f"holds keys and values, but {model.name} takes none", OTHER_MODEL)
    if model.is_encoder_decoder and shape.n_copies == 1:
        problem = (
            "was trained with num_transformer_submodules 1, by which PEFT hides the encoder's text from the decoder"
        )
        raise bad_file(folder, problem, "Only prefixes with 2, PEFT's default here, are read.")
    n_layers, n_heads, head_width = model.kv_shape
    width = 2 * n_heads * head_width
    # behind an encoder any number of blocks will do, see `blocks_of`
    own = {"num_attention_heads": n_heads, "token_dim": n_heads * head_width}
    own |= {} if model.is_encoder_decoder else {"num_layers": n_layers}
    other = next((name for name in own if shape.model.get(name) not in (None, own[name])), None)
    n_numbers = values.shape[1]
    is_wrong = n_numbers % width != 0 if model.is_encoder_decoder else n_numbers != n_layers * width
    if other is not None or is_wrong:
        said = f"of {n_numbers} numbers" if other is None else f"of {other} {str(shape.model[other])[:40]}"
        problem = (
            f"holds keys and values {said}, but {model.name} takes {n_layers * width} numbers: "
            f"{n_layers} blocks, {n_heads} heads of width {head_width}, keys and values"
        )
        raise bad_file(folder, problem, OTHER_MODEL)
    blocks = layout.blocks_of(values, n_layers, width, model.is_encoder_decoder)
    return {Site("lm.kv", layer): FreeVectors(part) for layer, part in enumerate(blocks)}


def _n_soft(folder: Path, template: Template, n_vectors: int, model: FrozenLanguageModel) -> int:
    """How many vectors a bare `{soft}` has, so that the template takes all.

    Raises:
        UserError: it does not.
    """
    n_fixed = template.bind(model.tokenizer, model.start_ids, 0, model.is_encoder_decoder).n_soft
    n_bare = n_vectors - n_fixed
    if n_bare < 0 or (n_bare > 0 and not template.has_bare_soft):
        raise bad_file(
            folder,
            f"holds {n_vectors} vectors among the tokens, but the template has {n_fixed} soft slots",
            "Write {soft} for all of them." if n_vectors else "Write it without.",
        )
    return n_bare


def front(n_vectors: int) -> tuple[int, ...]:
    """The slots of vectors that stand one after another, each once."""
    return tuple(-1 - place for place in range(n_vectors))
