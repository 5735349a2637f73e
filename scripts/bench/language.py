"""Prompt tuning of a language model against PEFT: loss and gradient must be the same before anything is timed.

Six layers of a Llama, 512 wide, 50,000 tokens, random weights. A step is the loss of 16 texts of 8 to 64 tokens and the
gradient of the soft prompt: one answer token behind each text (short-p20, short-p100), or 64 (answers-64). PEFT gets
the texts padded on the right to the longest of the batch, as its examples do. Peak memory is what a process of its own
takes for one step beyond the loaded model. Row `generate` compares 64 generated tokens with a prompt of 20 vectors and
without: its ratio is the prompted speed by the unprompted. Row `mixed` answers 32 texts, each with a prompt of its own,
in one batch and in 32 runs: its ratio is the speed of the batch by that of the runs.

    python scripts/bench/language.py --json docs/results/language_bench.json
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from measure import (
    Row,
    cpu_seconds,
    in_a_process,
    parser,
    relative_error,
    report,
    side_by_side,
    use_one_thread,
)
from peft import PromptTuningConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from mmprompt.experiments.memory import forget_peak, peak_bytes
from mmprompt.models.decoder.generation import Job, generate
from mmprompt.models.decoder.generation_config import Generation
from mmprompt.models.decoder.kv_cache import KVCache
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.decoder.packing import Question
from mmprompt.models.sites import LM_INPUT, Vectors

WIDTH, N_LAYERS, VOCABULARY, N_TEXTS, REPEATS, N_NEW = 512, 6, 50_000, 16, 5, 64
N_PROMPTS, N_MIXED_NEW = 32, 16
START, END, IGNORED = 1, 2, -100
SAME = 1e-4


@dataclass(frozen=True)
class Setting:
    """One row: vectors of the prompt, and tokens of each answer."""

    n_soft: int
    n_answer: int


SETTINGS = {"short-p20": Setting(20, 1), "short-p100": Setting(100, 1), "answers-64": Setting(20, 64)}


class Tokens:
    """As much of a tokenizer as is asked for: the texts of this benchmark are token ids."""

    pad_token_id, eos_token_id = None, END

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [START, 5] if add_special_tokens else [5]}


def new_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=8,
        max_position_embeddings=512,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def new_batch(n_answer: int) -> list[tuple[list[int], list[int]]]:
    """Texts and answers of random tokens."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(8, 65, (N_TEXTS,), generator=generator).tolist()
    draw = [torch.randint(3, VOCABULARY, (length + n_answer,), generator=generator).tolist() for length in lengths]
    return [(ids[:-n_answer], ids[-n_answer:]) for ids in draw]


class Ours:
    def __init__(self, lm: LlamaForCausalLM, setting: Setting) -> None:
        self.model = FrozenLanguageModel("bench", lm, Tokens())
        soft = tuple(-1 - place for place in range(setting.n_soft))
        batch = new_batch(setting.n_answer)
        self.questions = [Question((*soft, *text), (tuple(answer),)) for text, answer in batch]
        start = lm.get_input_embeddings().weight[: setting.n_soft]
        self.vectors = start.clone().requires_grad_()

    def step(self) -> tuple[Tensor, Tensor]:
        predicted = self.model.predict({LM_INPUT: Vectors(self.vectors)}, self.questions)
        loss = -predicted.token_log_probs().mean()
        (gradient,) = torch.autograd.grad(loss, self.vectors)
        return loss.detach(), gradient


class Peft:
    def __init__(self, lm: LlamaForCausalLM, setting: Setting) -> None:
        start = lm.get_input_embeddings().weight[: setting.n_soft].clone()
        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=setting.n_soft)
        self.model = get_peft_model(lm, config).eval()
        self.vectors = self.model.prompt_encoder["default"].embedding.weight
        self.vectors.data.copy_(start)
        batch = new_batch(setting.n_answer)
        length = max(len(text) + len(answer) for text, answer in batch)

        def padded(rows: list[list[int]], value: int) -> Tensor:
            return torch.tensor([row + [value] * (length - len(row)) for row in rows])

        self.ids = padded([text + answer for text, answer in batch], END)
        self.mask = padded([[1] * len(text + answer) for text, answer in batch], 0)
        self.labels = padded([[IGNORED] * len(text) + answer for text, answer in batch], IGNORED)

    def step(self) -> tuple[Tensor, Tensor]:
        loss = self.model(input_ids=self.ids, attention_mask=self.mask, labels=self.labels).loss
        (gradient,) = torch.autograd.grad(loss, self.vectors)
        return loss.detach(), gradient


def training_row(name: str, setting: Setting) -> Row:
    ours, peft = Ours(new_model(), setting), Peft(new_model(), setting)
    (our_loss, our_gradient), (peft_loss, peft_gradient) = ours.step(), peft.step()
    error = relative_error(our_gradient, peft_gradient)
    is_equal = error < SAME and abs(our_loss.item() - peft_loss.item()) < SAME
    seconds = side_by_side({"ours": ours.step, "peft": peft.step}, REPEATS)
    n_tokens = sum(len(text) + len(answer) for text, answer in new_batch(setting.n_answer))
    memory = {way: in_a_process(__file__, "--step", name, way) for way in ("ours", "peft")}
    return {
        "name": name,
        "ratio": seconds["peft"] / seconds["ours"],
        "equal": is_equal,
        "peft_s": seconds["peft"],
        "ours_s": seconds["ours"],
        "tokens_a_second": n_tokens / seconds["ours"],
        "gradient_error": error,
        "memory_ratio": memory["peft"] / memory["ours"],
        "ours_mb": memory["ours"] / 2**20,
        "peft_mb": memory["peft"] / 2**20,
    }


def one_step(name: str, way: str) -> None:
    """Print the bytes that a step takes at most beyond the loaded model."""
    kind: Any = {"ours": Ours, "peft": Peft}[way]
    work = kind(new_model(), SETTINGS[name])
    forget_peak()
    before = peak_bytes()
    work.step()
    print(peak_bytes() - before)


def generation_row() -> Row:
    """Prompted and unprompted generation by the same call, as many tokens for the same texts."""
    lm = new_model()
    model = FrozenLanguageModel("bench", lm, Tokens())
    vectors = {LM_INPUT: Vectors(lm.get_input_embeddings().weight[100:120].clone())}
    texts = [tuple(text[:16]) for text, _ in new_batch(1) if len(text) >= 16][:8]
    settings = Generation(max_tokens=N_NEW, min_tokens=N_NEW)
    soft = tuple(-1 - place for place in range(20))
    with torch.no_grad():
        prompt = model.read_shared(vectors, soft)
    compiled = [Job(prompt, text) for text in texts]
    whole = [Job(KVCache(), soft + text, vectors[LM_INPUT]) for text in texts]
    plain = [Job(KVCache(), text) for text in texts]
    is_equal = generate(model, compiled, settings) == generate(model, whole, settings)
    jobs = {"prompted": compiled, "unprompted": plain}
    works = {name: partial(generate, model, some, settings) for name, some in jobs.items()}
    for work in works.values():
        cpu_seconds(work)
    seconds = side_by_side(works, REPEATS)
    return {
        "name": "generate",
        "ratio": seconds["unprompted"] / seconds["prompted"],
        "equal": is_equal,
        "prompted_s": seconds["prompted"],
        "unprompted_s": seconds["unprompted"],
        "tokens_a_second": len(texts) * N_NEW / seconds["prompted"],
    }


def mixed_row() -> Row:
    """As many prompts as texts, which were read before, in one batch and one after the other."""
    lm = new_model()
    model = FrozenLanguageModel("bench", lm, Tokens())
    weight, soft = lm.get_input_embeddings().weight, tuple(-1 - place for place in range(20))
    texts = [tuple(text[:8]) for text, _ in (*new_batch(1), *new_batch(2))]
    with torch.no_grad():
        prompts = [
            model.read_shared({LM_INPUT: Vectors(weight[100 + 20 * n : 120 + 20 * n].clone())}, soft)
            for n in range(N_PROMPTS)
        ]
    jobs = [Job(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    settings = Generation(max_tokens=N_MIXED_NEW, min_tokens=N_MIXED_NEW)

    def apart() -> list[tuple[int, ...]]:
        return [generate(model, [job], settings)[0] for job in jobs]

    works = {"mixed": partial(generate, model, jobs, settings), "apart": apart}
    is_equal = works["mixed"]() == works["apart"]()
    seconds = side_by_side(works, REPEATS)
    return {
        "name": "mixed",
        "ratio": seconds["apart"] / seconds["mixed"],
        "equal": is_equal,
        "mixed_s": seconds["mixed"],
        "apart_s": seconds["apart"],
        "tokens_a_second": N_PROMPTS * N_MIXED_NEW / seconds["mixed"],
    }


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--step", nargs=2, metavar=("ROW", "WAY"), help="one step, for its peak memory")
    args = made.parse_args()
    use_one_thread()
    if args.step:
        one_step(*args.step)
        return
    wanted = args.rows or [*SETTINGS, "generate", "mixed"]
    rows = [training_row(name, setting) for name, setting in SETTINGS.items() if name in wanted]
    rows += [generation_row()] if "generate" in wanted else []
    rows += [mixed_row()] if "mixed" in wanted else []
    report(rows, args.json)


if __name__ == "__main__":
    main()
