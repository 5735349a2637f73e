"""PEFT's models and ours with the same prompts, and what each says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor

from mmprompt.language.data import TextRow
from mmprompt.language.generation import jobs_of
from mmprompt.language.methods import MultitaskPrompt, PrefixTuning, PromptTuning, PTuning
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.templates.verbalizer import Verbalizer
from mmprompt.models.decoder.generation import generate
from mmprompt.models.decoder.generation_config import Generation
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.decoder.packing import Question
from tests.language_models import prompt_from

N = 3
TEXTS = ("a red car", "the happy dog", "a photo of the blue house")
CONFIGS: dict[str, Any] = {
    "prompt": lambda **more: peft.PromptTuningConfig(num_virtual_tokens=N, **more),
    "mlp": lambda **more: peft.PromptEncoderConfig(num_virtual_tokens=N, encoder_hidden_size=16, **more),
    "lstm": lambda **more: peft.PromptEncoderConfig(
        num_virtual_tokens=N, encoder_hidden_size=16, encoder_reparameterization_type="LSTM", **more
    ),
    "prefix": lambda **more: peft.PrefixTuningConfig(num_virtual_tokens=N, **more),
    "projected": lambda **more: peft.PrefixTuningConfig(
        num_virtual_tokens=N, prefix_projection=True, encoder_hidden_size=16, **more
    ),
    "multitask": lambda **more: peft.MultitaskPromptTuningConfig(
        num_virtual_tokens=N, num_tasks=2, num_ranks=2, **more
    ),
}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def peft_model(model: FrozenLanguageModel, name: str, **more: Any) -> Any:
    """PEFT's model with a random prompt large enough to matter; the frozen weights are shared with ours."""
    task_type = "SEQ_2_SEQ_LM" if model.is_encoder_decoder else "CAUSAL_LM"
    torch.manual_seed(5)
    built = peft.get_peft_model(model.lm, CONFIGS[name](task_type=task_type, **more)).eval()
    for parameter in built.prompt_encoder.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return built


def saved(built: Any, folder: Path) -> Path:
    built.save_pretrained(folder)
    return folder


def again(model: FrozenLanguageModel, folder: Path) -> Any:
    return peft.PeftModel.from_pretrained(model.lm, folder).eval()


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=tolerance, atol=tolerance)


def tolerance_of(name: str, model: FrozenLanguageModel) -> float:
    """PEFT multiplies the factors of a task in float32, in another order than one task alone is."""
    return 1e-5 if name == "multitask" else TOLERANCE[model.dtype]


ANSWER = (5, 40, 7)
N_NEW = 8


def peft_logits(
    model: FrozenLanguageModel, built: Any, ids: Sequence[int], answer: Sequence[int] = ANSWER, **more: Any
) -> Tensor:
    """[A, V], what PEFT predicts at the tokens of an answer."""
    read = ids if model.is_encoder_decoder else [*ids, *answer[:-1]]
    given = {"labels": torch.tensor([answer])} if model.is_encoder_decoder else {}
    inputs = {"input_ids": torch.tensor([read]), "attention_mask": torch.ones(1, len(read))}
    return built(**inputs, **given, **more).logits[0, -len(answer) :]


def our_logits(prompted: LanguagePredictor, slots: Sequence[int], task: str = "") -> Tensor:
    """The same, of slots; what an encoder's text ends with is put there by the model's reader."""
    predicted = prompted.model.predict(prompted.vectors(task), [Question(tuple(slots), (ANSWER,))])
    return predicted.logits[predicted.at]


def peft_tokens(model: FrozenLanguageModel, built: Any, ids: Sequence[int], **more: Any) -> tuple[int, ...]:
    """What PEFT writes, greedily: token by token, each from its forward of all before it."""
    found: list[int] = []
    while len(found) < N_NEW:
        found.append(int(peft_logits(model, built, ids, [*found, 0], **more)[-1].argmax()))
        if found[-1] == model.end_id:
            return tuple(found[:-1])
    return tuple(found)


def peft_generates(model: FrozenLanguageModel, built: Any, ids: Sequence[int], **more: Any) -> tuple[int, ...]:
    """The same by its `generate`, where that agrees with its forward: under transformers 5.24, PEFT 0.21.2 loses the
    prompt once there is a cache, and prefixes of some models without one.
    """
    ends = {"eos_token_id": model.end_id, "pad_token_id": model.pad_id}
    read = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.int64)}
    found = built.generate(**read, **ends, **more, max_new_tokens=N_NEW, do_sample=False, use_cache=False)[0].tolist()
    found = found[1 if model.is_encoder_decoder else len(ids) :]
    return tuple(found[: found.index(model.end_id)] if model.end_id in found else found)


def our_tokens(prompted: LanguagePredictor, text: str, task: str = "") -> tuple[int, ...]:
    jobs = jobs_of([prompted], [TextRow({"text": text}, task=task)], N_NEW)
    return generate(prompted.model, jobs, Generation(max_tokens=N_NEW, min_tokens=0))[0]


def same_as_peft(prompted: LanguagePredictor, built: Any, tolerance: float) -> None:
    """The same logits and greedy tokens for the texts, as the tokenizer frames them."""
    model = prompted.model
    for task in prompted.tasks or ("",):
        number = prompted.tasks.index(task) if task else 0
        more = {"task_ids": torch.tensor([number])} if task else {}
        for text in TEXTS:
            ids = model.tokenizer(text)["input_ids"]
            slots = prompted.question({"text": text}, (ANSWER,)).slots
            close(our_logits(prompted, slots, task), peft_logits(model, built, ids, **more), tolerance)
            tokens = our_tokens(prompted, text, task)
            assert tokens == peft_tokens(model, built, ids, **more)
            if not prompted.n_prefix:
                assert tokens == peft_generates(model, built, ids, **more)


METHODS: dict[str, Any] = {
    "prompt": PromptTuning(N),
    "p-tuning": PTuning(N, hidden=8),
    "prefix": PrefixTuning(N, hidden=8),
    "multitask": MultitaskPrompt(N, rank=2),
}
FRONT = "{soft}{bos}{text}{answer}"
WORDS = Verbalizer({"good": ["great", "fine"], "bad": "poor"})
WIDE = "Text: {soft*2:a} is{soft} {text}\n{answer}"


def ours(model: FrozenLanguageModel, name: str, template: str = FRONT, n_soft: int | None = None) -> LanguagePredictor:
    """A prompt of one of our methods, with random numbers large enough to matter."""
    method = METHODS[name]
    torch.manual_seed(3)
    start = torch.randn(n_soft or N, model.width) * model.embedding_rms
    prompt = prompt_from(method, model, start, ("first", "second"), template)
    for parameter in prompt.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return LanguagePredictor(model, prompt, WORDS)


ROWS = [TextRow({"text": text}, task=task) for text in TEXTS for task in ("first", "second")]
