"""Names of language models, and what `load_language_model` makes of them.

    tiny                     the embedded default: captions of drawn scenes, and names of things in seven languages
    smollm2                  SmolLM2-135M-Instruct, fetched once
    hf:NAME, hf:FOLDER       a transformers causal language model, or one of an encoder and a decoder, such as T5
    hf:FOLDER/FILE.gguf      the same from a GGUF file
    FOLDER, FILE.gguf        without the prefix, where it is there

Loading itself is transformers' own; what can go wrong there is worded as for `load_backbone`.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprompt.errors import UserError, bad_file, unknown_name
from mmprompt.models.dual_encoder.load import TINY, Source, find_device, folder_source, one_line_errors, read_options
from mmprompt.models.frozen import LoadOptions, freeze
from mmprompt.models.packaged import find_packaged
from mmprompt.progress import doing
from mmprompt.settings import checked, expanded

if TYPE_CHECKING:
    import torch

    from mmprompt.models.decoder.model import FrozenLanguageModel

FORMS = "Use tiny, smollm2, hf:NAME, or the path of a model folder or a GGUF file."
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.spm")
GGUF_START = b"GGUF"
QUANTISERS = ("bitsandbytes", "torchao")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
FASTER = 1.5
"""What a product of matrices must gain by bfloat16; less is lost again on what is converted."""
GGUF_READERS = ("gguf", "accelerate")


def list_language_models() -> list[str]:
    """List the names that can be loaded without a path."""
    return ["tiny", "smollm2"]


@checked
def load_language_model(
    name: str | Path = "tiny",
    device: str = "auto",
    dtype: str = "auto",
    cache_dir: str | Path | None = None,
    trust_remote_code: bool = False,
    device_map: str | Mapping[str, Any] | None = None,
) -> FrozenLanguageModel:
    """Load a frozen language model: evaluation mode, no weight with a gradient.

    Args:
        name: one of the forms at the top of this file.
        device: `"auto"` takes cuda, then mps, then cpu; else a torch device.
        dtype: `"auto"` is float32, the same numbers on every machine; `"bfloat16"` halves the memory; `"fast"` is
            bfloat16 where the device computes faster in it, else float32; `"float64"` everywhere but on mps;
            `"float16"` on accelerators.
        cache_dir: where downloads are kept, instead of transformers' own folder.
        trust_remote_code: whether code that a model brings along may run.
        device_map: for a model larger than one device, accelerate's: one of `DEVICE_MAPS`, or a device, `"cpu"` or
            `"disk"` for each of its parts; `device` counts for nothing then.
    Raises:
        UserError: no such name, weights or a tokenizer that are not there, or a model that cannot be read.
    """
    import torch

    from mmprompt.models.decoder.model import FrozenLanguageModel

    # On a CPU a half is slower as a rule, but a model of which there is room for one half alone is of use there too.
    is_half = dtype in ("bfloat16", "fast")
    options = read_options(device, "auto" if is_half else dtype, cache_dir, trust_remote_code)
    if dtype == "bfloat16" or (dtype == "fast" and is_fast_in_bfloat16(options.device)):
        options = replace(options, dtype=torch.bfloat16)
    if isinstance(device_map, str) and device_map not in DEVICE_MAPS:
        raise unknown_name("device_map", device_map, DEVICE_MAPS)
    for device in device_map.values() if isinstance(device_map, Mapping) else ():
        if device != "disk":
            find_device("device_map", device, "Give each part a device, `cpu` or `disk`.")
    if device_map is not None and find_spec("accelerate") is None:
        raise UserError('a device_map needs accelerate. Install it: pip install "mmprompt[llm]".')
    options = replace(options, device_map=device_map)
    lm, tokenizer = load_parts(str(name), options)
    return FrozenLanguageModel(str(name), lm, tokenizer)


def is_fast_in_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies matrices in bfloat16 faster than in float32: known of CUDA (8.0 and later),
    else timed.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)

    def seconds(dtype: torch.dtype) -> float:
        a, b = torch.ones(256, 1024, dtype=dtype, device=device), torch.ones(1024, 1024, dtype=dtype, device=device)
        found = []
        for _ in range(5):
            start = time.perf_counter()
            (a @ b)[0, 0].item()
            found.append(time.perf_counter() - start)
        return min(found)

    try:
        return seconds(torch.float32) > FASTER * seconds(torch.bfloat16)
    except RuntimeError:  # a device that has no bfloat16
        return False


def load_parts(name: str, options: LoadOptions) -> tuple[Any, Any]:
    """Load a frozen language model and its tokenizer, both transformers' own; errors as for `load_language_model`."""
    from transformers import AutoConfig, AutoTokenizer

    from mmprompt.models.frozen import hub_options, load_complete

    source = _find(name)
    hub = hub_options(options) | {"gguf_file": source.weights}
    # transformers draws a bar of its own while it unpacks GGUF; bars of downloads stay.
    no_bar = contextlib.nullcontext() if source.weights is None else contextlib.redirect_stderr(io.StringIO())
    with doing(f"loading {name}"), one_line_errors(name, source, options.cache_dir), _only_known_code(name), no_bar:
        config = AutoConfig.from_pretrained(source.model, **hub)
        quantised = None if source.weights else need_quantiser(name, config, options.device)
        device_map = options.device_map or (None if quantised is None else {"": options.device})
        model_class = _auto_class(name, config)
        folder = source.place if source.weights is None else None  # else on the hub, or in the GGUF file
        # For some models transformers makes up a tokenizer where there is none.
        if folder is not None and not any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):
            raise bad_file(folder, "holds no tokenizer", "Put the model's own tokenizer.json beside its weights.")
        tokenizer = AutoTokenizer.from_pretrained(source.model, **hub)
        try:
            lm = load_complete(
                model_class,
                source.model,
                options,
                gguf_file=source.weights,
                use_safetensors=True,
                dtype=options.dtype,
                device_map=device_map,
            )
        except ImportError as error:
            if quantised is None:
                raise
            problem = f"quantised by {quantised}, and what reads them is not installed"
            reason = " ".join(str(error).split())[:200].rstrip(".")
            raise UserError(f"the weights of {name} are {problem}: {reason}. Install it.") from None
    freeze(lm, options)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # as transformers makes one without its files
        raise UserError(
            f"the tokenizer of {name} knows no words. Put the model's own tokenizer.json beside its weights."
        )
    # Without tokens that were added to it, which many models never learned; the end token is needed.
    size, n_rows = max(tokenizer.vocab_size, 1 + (tokenizer.eos_token_id or 0)), len(lm.get_input_embeddings().weight)
    if size > n_rows:
        raise UserError(
            f"the tokenizer of {name} counts {size} tokens, but its model knows {n_rows}. "
            "Use the tokenizer that the model was trained with."
        )
    return lm, tokenizer


def need_quantiser(name: str, config: Any, device: torch.device) -> str | None:
    """Return the library, which must be there, that quantised the weights of a folder; None where they are plain.

    Once bitsandbytes has packed 4-bit weights anew for a CPU, as it does when it reads, it gives no gradient.
    """
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    bnb = "bitsandbytes"  # whose earlier folders do not name it
    method = found.get("quant_method", bnb) if isinstance(found, dict) else found.quant_method
    library = str(getattr(method, "value", method)).lower()
    if library == bnb and isinstance(found, dict) and found.get("load_in_4bit") and device.type == "cpu":
        problem = f"{name} has 4-bit weights of bitsandbytes, which changes them as a CPU reads them"
        raise UserError(f"{problem}. Use a GPU, or 8-bit weights.")
    if library in QUANTISERS and find_spec(library) is None:
        raise UserError(
            f"the weights of {name} are quantised by {library}, which is not installed. Install it: pip install "
            f"{library} accelerate."
        )
    return library


@contextlib.contextmanager
def _only_known_code(name: str) -> Iterator[None]:
    """Refuse a model that brings its own code along, which was not allowed to run."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise UserError(
            f"{name} brings its own code along, which is not run unless you say so. "
            "Read that code, then allow it with trust_remote_code."
        ) from None


def _find(name: str) -> Source:
    """Read a language model's name, and refuse what is not there."""
    if name == "tiny":
        return folder_source(TINY / "language")
    if name == "smollm2":
        return folder_source(find_packaged("smollm2"))
    model = name.removeprefix("hf:")
    path = expanded(model)
    if path.suffix == ".gguf" or path.is_file():
        return _gguf_source(path)
    if model and path.is_dir():
        advice = "Give a folder as transformers saves a model, with config.json and model.safetensors."
        if not (path / "config.json").is_file():
            raise bad_file(path, "holds no config.json", advice)
        if not any(path.glob("*.safetensors")):
            pickled = min((file.name for file in path.glob("*.bin")), default=None)
            problem = "holds no weights" if pickled is None else f"holds its weights as a pickle alone ({pickled})"
            raise bad_file(path, problem, advice)
        return Source("transformers", str(path), place=path)
    if model.startswith((".", "/", "~")):
        raise bad_file(path, "is not there", FORMS)
    if model == name or not model:
        raise unknown_name("language model or folder", name, list_language_models(), FORMS)
    return Source("transformers", model)


def _gguf_source(path: Path) -> Source:
    try:
        with path.open("rb") as file:
            start = file.read(len(GGUF_START))
    except OSError as error:
        raise bad_file(path, f"cannot be read ({error.strerror})", "Give the path of a GGUF file.") from None
    if start != GGUF_START:
        raise bad_file(path, f"is no GGUF file, it begins with {start!r}", FORMS)
    need_gguf(str(path))
    return Source("transformers", str(path.parent), weights=path.name, place=path)


def need_gguf(what: str) -> None:
    """Refuse to go on where what reads GGUF is not installed."""
    missing = [package for package in GGUF_READERS if find_spec(package) is None]
    if missing:
        raise UserError(
            f'{what} is a GGUF file, which is read with {missing[0]}. Install it: pip install "mmprompt[llm]".'
        )


def _auto_class(name: str, config: Any) -> Any:
    """Choose the one of transformers' auto classes that loads a model: causal, or with encoder and decoder."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )

    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        is_known, auto_class = kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, AutoModelForSeq2SeqLM
    else:
        # BERT and its kin are listed as causal too, but read both ways unless their configuration says otherwise.
        reads_both_ways = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
        is_known = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not reads_both_ways
        auto_class = AutoModelForCausalLM
    # A model that brings its own code along, allowed by the user, says itself what loads it.
    if not is_known and auto_class.__name__ not in (getattr(config, "auto_map", None) or {}):
        raise UserError(
            f"{name} is a {kind!r} model, but a causal language model was expected. Use a model such as hf:gpt2."
        )
    return auto_class
