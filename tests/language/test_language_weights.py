"""LoRA, adapters and full tuning: learned, kept and used by the same calls as a prompt, alone and beside one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import mmprompt as mp
from mmprompt.core.fit import fit
from mmprompt.core.soft import DecoderMethod, LoRA, PrefixTuning, PromptTuning
from mmprompt.errors import UserError
from mmprompt.language.data import TextData, TextRow
from mmprompt.language.explain import prompt_effect_kl
from mmprompt.language.generation import generate_texts, stream_text
from mmprompt.language.meta import meta_init
from mmprompt.language.methods import Adapter, FullTuning, HardPrompt, MultitaskPrompt, PTuning
from mmprompt.language.pool import PromptPool, compose
from mmprompt.language.predictor import LanguagePredictor
from mmprompt.language.task import LanguageTask
from mmprompt.models.decoder.generation_config import Generation
from mmprompt.models.decoder.inserts import linear_layers
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.decoder.packing import Question
from mmprompt.training.callbacks import Callback
from mmprompt.training.problem import Run
from tests.language_models import frozen_model

pytestmark = pytest.mark.usefixtures("feature_store")

ALONE: tuple[DecoderMethod, ...] = (LoRA(rank=2), LoRA(rank=2, dropout=0.3), Adapter(width=4), FullTuning())
TOGETHER: tuple[DecoderMethod, ...] = (
    PromptTuning(3) + LoRA(rank=2),
    PrefixTuning(2, hidden=4) + LoRA(rank=2),
    PromptTuning(3) + LoRA(rank=2) + Adapter(width=4),
    HardPrompt() + LoRA(rank=2),
)
METHODS = ALONE + TOGETHER
FAMILIES = ("llama", "gpt2", "opt_narrow", "t5")
TEXTS = ("a fine day", "a fine film", "what a fine meal", "a poor day", "a poor film", "what a poor meal")
ROWS = tuple(TextRow({"text": text}, "good" if "fine" in text else "bad") for text in TEXTS)
DATA = TextData("days", ROWS, ROWS[:2], ROWS, labels=("bad", "good"))
QUESTIONS = [Question((5, 6, 7), ((8, 9), (10,))), Question((5, 11), ((12,),))]
QUICK: dict[str, Any] = {"epochs": 8, "batch_size": 3, "progress": False, "checkpoint_seconds": 0}
SHORT = Generation(max_tokens=4)


@cache
def model_of(family: str) -> FrozenLanguageModel:
    return frozen_model(family, torch.float32)


def named(method: DecoderMethod) -> str:
    parts = getattr(method, "methods", (method,))
    return "+".join(type(part).__name__ + ("-dropout" if getattr(part, "dropout", 0) else "") for part in parts)


@dataclass(frozen=True)
class Trained:
    """A method trained on the rows, and where."""

    predictor: LanguagePredictor
    history: list[dict[str, Any]]
    folder: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trained]:
    """Trains a method on a family when it is first asked for."""
    done: dict[tuple[str, str], Trained] = {}

    def find(method: DecoderMethod, family: str = "llama") -> Trained:
        key = named(method), family
        if key not in done:
            folder = tmp_path_factory.mktemp("run") / "run"
            result = fit(method, model_of(family), DATA, folder, lr=0.01, **QUICK)
            done[key] = Trained(result.predictor, result.history, folder)
        return done[key]

    return find


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ALONE, ids=named)
def test_nothing_is_changed_before_the_first_step(method: DecoderMethod, family: str) -> None:
    model = model_of(family)
    untrained = LanguageTask(DATA).predictor(method, model, 1)
    found, expected = (model.predict(one, QUESTIONS).token_log_probs() for one in (untrained.inserts(), {}))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    n_learned = sum(weight.numel() for weight in untrained.prompt.parameters())
    n_all = sum(weight.numel() for weight in model.lm.parameters())
    assert n_learned == n_all if isinstance(method, FullTuning) else 0 < n_learned < n_all


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS, ids=named)
def test_all_of_it_learns_and_no_frozen_weight_moves(
    method: DecoderMethod, family: str, trained: Callable[..., Trained]
) -> None:
    run = trained(method, family)
    model = run.predictor.model
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    assert model is model_of(family)
    assert model.compute_fingerprint() == model.fingerprint
    assert not any(weight.requires_grad or weight.grad is not None for weight in model.lm.parameters())
    assert not any(part._forward_hooks for part in model.lm.modules())
    start = LanguageTask(DATA).predictor(method, model, 1).prompt.state_dict()
    after = run.predictor.prompt.state_dict()
    unread = {"wpe", "shared", "embed", "wte", "project_in"}  # rows of embeddings, and what no text reaches
    still = [name for name in start if torch.equal(start[name], after[name])]
    assert isinstance(method, FullTuning) or not [name for name in still if "start" not in name and "unit" not in name]
    assert len(still) < len(start), unread


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS, ids=named)
def test_what_is_saved_says_the_same_when_it_is_loaded(
    method: DecoderMethod, family: str, trained: Callable[..., Trained]
) -> None:
    run = trained(method, family)
    loaded = mp.load(run.folder, model_of(family))
    assert torch.equal(loaded.label_log_probs(ROWS), run.predictor.label_log_probs(ROWS))
    assert [one.label for one in loaded.predict(list(TEXTS))] == [
        one.label for one in run.predictor.predict(list(TEXTS))
    ]
    texts = [one.text for one in generate_texts(loaded, ROWS[:2], SHORT)]
    assert texts == [one.text for one in generate_texts(run.predictor, ROWS[:2], SHORT)]
    assert mp.evaluate(loaded, DATA).labels.accuracy == mp.evaluate(run.predictor, DATA).labels.accuracy
    assert not (run.folder / "lora").exists()


class Interrupted(Callback):
    def on_epoch_end(self, run: Run, epoch: int, logs: dict[str, Any]) -> None:
        if epoch == 4:
            raise InterruptedError


@pytest.mark.parametrize("method", METHODS, ids=named)
def test_a_training_that_was_broken_off_ends_in_the_same_bytes(
    method: DecoderMethod, trained: Callable[..., Trained], tmp_path: Path
) -> None:
    whole = trained(method).folder / "prompt.safetensors"
    with pytest.raises(InterruptedError):
        fit(method, model_of("llama"), DATA, tmp_path / "run", callbacks=[Interrupted()], lr=0.01, **QUICK)
    fit(method, model_of("llama"), DATA, tmp_path / "run", resume=True, lr=0.01, **QUICK)
    assert (tmp_path / "run" / "prompt.safetensors").read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("method", [LoRA(rank=2), TOGETHER[0]], ids=named)
def test_another_model_is_refused_and_a_finished_run_kept(
    method: DecoderMethod, trained: Callable[..., Trained]
) -> None:
    run = trained(method)
    with pytest.raises(UserError, match=r"this prompt was learned on llama .* not on gpt2"):
        mp.load(run.folder, model_of("gpt2"))
    with pytest.raises(UserError, match="never overwritten"):
        fit(method, model_of("llama"), DATA, run.folder, **QUICK)


def test_names_joined_by_plus_are_one_method(tmp_path: Path) -> None:
    result = mp.fit("prompt-tuning+lora", model_of("llama"), DATA, tmp_path / "run", **(QUICK | {"epochs": 1}))
    config = json.loads((tmp_path / "run" / "run.json").read_text())["method"]
    assert config["name"] == "prompt-tuning+lora"
    assert config["settings"]["rank"] == 8
    assert {str(site) for site in result.predictor.prompt.sites if not site.part} == {"lm.input"}
    assert result.predictor.bound.n_soft == 20


def test_beside_a_prompt_terms_move_as_far_as_alone() -> None:
    """With Adam's first step every number moves by its rate: that of LoRA's own recipe, however it is trained."""
    moved = []
    for method in (LoRA(rank=2), LoRA(rank=2) + PromptTuning(3)):
        result = fit(method, model_of("llama"), DATA, epochs=1, batch_size=6, progress=False)
        terms = [insert for site, insert in result.predictor.inserts().items() if site.part]
        moved.append(torch.cat([term.b.detach().flatten() for term in terms]).abs())  # type: ignore[union-attr]
    torch.testing.assert_close(moved[0].median(), torch.tensor(2e-3), rtol=1e-3, atol=0)
    torch.testing.assert_close(moved[1].median(), torch.tensor(2e-3), rtol=1e-3, atol=0)


@pytest.mark.parametrize("method", [LoRA(rank=2), Adapter(4), FullTuning()], ids=named)
def test_reading_rows_again_gives_the_same_gradient(method: DecoderMethod) -> None:
    model = frozen_model("llama")
    untrained = LanguageTask(DATA).predictor(method + PromptTuning(3), model, 1)
    prompt = untrained.prompt.double()
    torch.manual_seed(1)
    for parameter in prompt.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    questions = [untrained.question(row.fields, untrained.answers) for row in ROWS]
    gradients = []
    for is_recomputed in (False, True):
        loss = model.predict(untrained.inserts(), questions, is_recomputed=is_recomputed).token_log_probs().sum()
        gradients.append(torch.autograd.grad(loss, list(prompt.parameters())))
    for found, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()) + 1e-12)


def test_prompts_with_and_without_changes_answer_in_one_call(trained: Callable[..., Trained]) -> None:
    plain = fit(PromptTuning(3), model_of("llama"), DATA, **(QUICK | {"epochs": 1})).predictor
    others = [trained(method).predictor for method in (LoRA(rank=2), FullTuning())]
    each = [plain, others[0], plain, others[1]]
    mixed = [one.text for one in generate_texts(each, ROWS[:4], SHORT)]
    alone = [generate_texts(one, [row], SHORT)[0].text for one, row in zip(each, ROWS, strict=False)]
    assert mixed == alone
    assert "".join(stream_text(others[0], ROWS[1], SHORT)).strip() == alone[1]


def test_what_another_thread_reads_meanwhile_goes_without_the_terms(trained: Callable[..., Trained]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    model, changed = model_of("llama"), trained(LoRA(rank=2)).predictor
    expected = model.predict({}, QUESTIONS).token_log_probs()
    with model.changed(changed.inserts()), ThreadPoolExecutor(1) as pool:
        found = pool.submit(lambda: model.predict({}, QUESTIONS).token_log_probs()).result()
        assert not torch.allclose(model.predict({}, QUESTIONS).token_log_probs(), expected)
    assert torch.equal(found, expected)


def test_whether_it_is_heard_is_told_against_the_frozen_model(trained: Callable[..., Trained]) -> None:
    learned = trained(LoRA(rank=2)).predictor
    untrained = LanguageTask(DATA).predictor(LoRA(rank=2), model_of("llama"), 1)
    assert prompt_effect_kl(learned, ROWS) > 0.01
    assert prompt_effect_kl(untrained, ROWS) < 1e-9


def test_pools_choose_among_such_prompts_and_do_not_mix_their_vectors(trained: Callable[..., Trained]) -> None:
    prompts = {"one": trained(LoRA(rank=2)).predictor, "two": trained(TOGETHER[0]).predictor}
    pool = PromptPool.of(prompts, dict.fromkeys(prompts, ROWS))
    assert len(pool.classify(ROWS)) == len(pool.classify(ROWS, "outputs")) == len(ROWS)
    refusal = r"the prompt 'one' changes weights of the model, but vectors alone go together\."
    with pytest.raises(UserError, match=refusal):
        pool.classify(ROWS, "vectors")
    with pytest.raises(UserError, match=refusal):
        compose(prompts, "{soft*3:one} {soft*3:two} {text} {answer}")


def test_targets_choose_layers() -> None:
    model = model_of("llama")
    layers = linear_layers(model.lm)

    def chosen(*targets: str) -> list[str]:
        sites = LanguageTask(DATA).predictor(LoRA(rank=2, targets=targets), model, 1).prompt.sites
        return sorted(site.part for site in sites)

    assert chosen("all") == sorted(layers)
    assert "lm_head" not in layers
    assert chosen("q_proj") == sorted(name for name in layers if name.endswith("q_proj"))
    assert chosen("1.self_attn.v_proj", "layers.0.mlp.up_proj") == [
        "model.layers.0.mlp.up_proj",
        "model.layers.1.self_attn.v_proj",
    ]
    assert {name.split(".")[-1] for name in chosen("attention")} == {"q_proj", "k_proj", "v_proj", "o_proj"}


class Odd(nn.Module):
    """A model whose layers are called nothing that is known."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer, self.out = nn.Linear(4, 4), nn.Linear(4, 8)
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(num_hidden_layers=2, hidden_size=4))

    def get_output_embeddings(self) -> nn.Module:
        return self.out


ODD = SimpleNamespace(name="odd", lm=Odd(), device=torch.device("cpu"))
START = mp.Start(torch.Generator(), mp.Template.parse("{text}{answer}"))


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (
            lambda: LoRA(rank=0),
            "rank is 0, but it must be a whole number from 1 to 16384. Leave `rank` out for the default.",
        ),
        (lambda: LoRA(alpha=0), "alpha is 0, but it must be a number, above 0. Leave `alpha` out for the default."),
        (
            lambda: LoRA(dropout=1.0),
            "dropout is 1.0, but it must be a number, 0 or more and below 1. Leave `dropout` out for the default.",
        ),
        (lambda: LoRA(targets=()), "targets is empty, but at least one layer is adapted. Use `targets=('all',)`."),
        (
            lambda: Adapter(width=0),
            "width is 0, but it must be a whole number from 1 to 16384. Leave `width` out for the default.",
        ),
        (
            lambda: LanguageTask(DATA).predictor(LoRA(targets=("q_prj",)), model_of("llama"), 1),
            "there is no linear layer of llama named 'q_prj'. Did you mean 'q_proj'?",
        ),
        (
            lambda: LoRA(targets=("attention",)).prompt(ODD, START),
            "odd has no attention whose layers are known by name, but its linear layers are mixer. "
            "Name those to adapt, or use all.",
        ),
        (
            lambda: Adapter().prompt(ODD, START),
            "the blocks of odd are not found, so it takes no adapters. Use lora.",
        ),
        (
            lambda: LoRA() + MultitaskPrompt(),
            "LoRA and MultitaskPrompt both have a setting named rank, but a combination has one of each. "
            "Combine others.",
        ),
        (
            lambda: fit(PromptTuning(2) + Adapter(), "tiny", mp.load_captions("openart-scenes").focus("objects")),
            "method is Adapter, but it is for language. Use one of prompt-tuning, prefix-tuning, lora, hard.",
        ),
        (
            lambda: fit(Adapter(), "tiny", mp.load_captions("openart-scenes").focus("objects")),
            "method is Adapter, but it is for language. Use one of prompt-tuning, prefix-tuning, lora, hard.",
        ),
        (
            lambda: fit(LoRA(), model_of("llama"), DATA.task(template="{soft*2} {text} {answer}")),
            "the template has 2 soft slots, but lora learns no vectors among the tokens. "
            "Take them out, or use prompt-tuning.",
        ),
        (
            lambda: fit("prompt-tuning+lore", model_of("llama"), DATA),
            "there is no method named 'lore'. Did you mean 'lora'?",
        ),
        (
            lambda: meta_init([DATA, DATA], model_of("llama"), PromptTuning(2) + LoRA()),
            "a start is learned for vectors among the tokens that all tasks share. Use prompt-tuning.",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(refused: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        refused()
    assert str(caught.value).strip() == message


def test_two_methods_at_the_same_site_are_refused() -> None:
    @dataclass(frozen=True)
    class Other(PTuning):
        n_soft: int = 2

    with pytest.raises(UserError, match="both have a setting named n_soft"):
        PromptTuning(2) + Other()
