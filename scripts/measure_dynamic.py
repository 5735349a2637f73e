"""Prompts that are chosen, mixed, learned to be learned from, and put together, on real language models.

    mmprompt backbones get smollm2
    python scripts/measure_dynamic.py --part pool      --json docs/results/language_dynamic.json
    python scripts/measure_dynamic.py --part meta      --json docs/results/language_dynamic.json
    python scripts/measure_dynamic.py --part languages --json docs/results/language_dynamic.json
    python scripts/measure_dynamic.py --table          --json docs/results/language_dynamic.json

pool: texts of five tasks, mixed, each to be given its task's prompt; and prompts of one task from three draws of the
rows, chosen from and mixed. meta: accuracy on a task that was held out, after exactly ten steps, by where they start.
languages: one prompt a language on names of emoji, and what becomes of two prompts together.

Finished cells are kept in the file, trained prompts in --work: run again, it goes on.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

import mmprompt as mp
from markdown import percent, several, table
from measuring import accuracy, read_figures, run_main, short_name, write_figures
from mmprompt.core.learned import Given, Inserts, Learned, Prompt, Source
from mmprompt.core.soft import DecoderMethod
from mmprompt.language.data import TextData, TextRow, sample_shots
from mmprompt.language.generation import generate_texts
from mmprompt.language.measure import score_texts
from mmprompt.language.meta import few_steps, meta_init
from mmprompt.language.methods import DeepPrompts, PromptInit, PromptTuning
from mmprompt.language.pool import PromptPool, compose, load_pool, save_pool, text_features
from mmprompt.models.decoder.generation_config import Generation
from mmprompt.models.decoder.model import FrozenLanguageModel
from mmprompt.models.sites import LM_INPUT, Vectors
from mmprompt.training.seeds import batches

DATA = Path("examples/data")
SHOTS, N_SOFT, N_STEPS = 16, 20, 32
"""Rows a class, vectors, and about how many steps a prompt of the pool is trained."""
N_STEPS_LANGUAGE = {"tiny": 320, "smollm2": 80}
POOL, N_ROUTED, DRAWS = ("emoji_kinds", "intent", "languages", "questions", "sentiment"), 40, (1, 2, 3)
META, HELD_OUT, OTHER = ("emoji_kinds", "intent", "questions", "sentiment"), ("emoji_kinds", "questions"), "intent"
N_ADAPTED, ADAPT_SEEDS, RATES = 120, (1, 2), (0.03, 0.1)
META_BATCH, N_ROUNDS, N_INNER = 8, 21, 10
LANGUAGES = {"de": "German", "es": "Spanish", "fr": "French", "it": "Italian", "nl": "Dutch", "pt": "Portuguese"}
N_NAMES, LONGEST = 64, 16
COMPOSED = ("de", "es", "fr")
FORMS = {"tiny": "{} .", "smollm2": "<{}>"}
ORDERS = {"task, language": "{soft*20:task} {soft*20:language}", "language, task": "{soft*20:language} {soft*20:task}"}
Cell = Callable[[], dict[str, Any]]
Partners = dict[str, Callable[[], Inserts]]


class Cells:
    """The finished cells of a part, in the file."""

    def __init__(self, path: Path, part: str) -> None:
        self.path = path
        self.all = read_figures(path)
        self.part: dict[str, Any] = self.all.setdefault(part, {})

    def add(self, name: str, measure: Cell) -> dict[str, Any]:
        """A cell, measured unless it is there."""
        if name not in self.part:
            started = time.process_time()
            found = measure()
            self.part[name] = found | {"cpu_seconds": round(time.process_time() - started, 1)}
            write_figures(self.path, self.all)
            print(name, {key: value for key, value in self.part[name].items() if key != "texts"}, flush=True)
        return self.part[name]


def fitted(
    model: FrozenLanguageModel,
    data: TextData,
    folder: Path,
    method: DecoderMethod | None = None,
    seed: int = 1,
    n_wanted: int = N_STEPS,
) -> mp.LanguagePredictor:
    """A prompt of about so many steps, kept in a folder."""
    method = method or PromptTuning(N_SOFT)
    n_steps = len(batches(list(range(len(data.train))), type(method).recipe.batch_size))
    recipe = mp.Recipe(epochs=max(1, round(n_wanted / n_steps)))
    return mp.fit(method, model, data, folder, recipe, seed, resume=True, progress=False).predictor


def few_shot(name: str, seed: int = 1) -> TextData:
    """The rows of a task, with a draw of those for training."""
    return sample_shots(mp.load_texts(DATA / f"{name}.jsonl"), SHOTS, seed)


def share(found: Sequence[bool]) -> float:
    return round(float(np.mean(found)), 4)


# A pool of tasks


def pool(model: FrozenLanguageModel, cells: Cells, work: Path) -> None:
    datas = {name: few_shot(name) for name in POOL}
    rows = {name: data.test[:N_ROUTED] for name, data in datas.items()}
    cells.add("features", partial(features, model, datas, rows))
    place = work / "pool"
    if not (place / "pool.json").exists():
        prompts = {name: fitted(model, data, work / f"{name}-1") for name, data in datas.items()}
        save_pool(PromptPool.of(prompts, {name: data.train for name, data in datas.items()}), place)
    kept = load_pool(place, model)
    for name in POOL:
        cells.add(f"tasks/{name}", partial(routed, kept, name, rows[name]))
    cells.add("draws", partial(draws, model, work))


def features(
    model: FrozenLanguageModel, datas: dict[str, TextData], rows: dict[str, tuple[TextRow, ...]]
) -> dict[str, Any]:
    """The share of texts that are nearest to the key of their task, by what the texts are known by."""

    def by_tokens(texts: Sequence[str]) -> Tensor:
        ids = [torch.tensor(model.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        return torch.stack([model.embed(some).mean(0) for some in ids])

    def by_last(texts: Sequence[str]) -> Tensor:
        first = model.tokenizer("\n")["input_ids"]
        ids = [torch.tensor([first + model.tokenizer(text)["input_ids"]]) for text in texts]
        with torch.no_grad():
            return torch.stack([model.lm.base_model(some).last_hidden_state[0, len(first) :].mean(0) for some in ids])

    kinds = {"token embeddings": by_tokens, "last states": by_last, "middle states": lambda t: text_features(model, t)}
    found = {}
    for kind, feature in kinds.items():
        keys = torch.stack([feature([row.fields["text"] for row in data.train]).mean(0) for data in datas.values()])
        right = []
        for number, name in enumerate(datas):
            texts = feature([row.fields["text"] for row in rows[name]])
            nearest = (F.normalize(texts, dim=1) @ F.normalize(keys, dim=1).T).argmax(1)
            right += (nearest == number).tolist()
        found[kind] = share(right)
    return found


def routed(kept: PromptPool, name: str, rows: Sequence[TextRow]) -> dict[str, Any]:
    """Whether texts of a task find its prompt, and what it brings them."""
    names, weights = kept.route(rows)
    labels = kept.classify(rows)
    both = [one.label == row.label and n == name for one, row, n in zip(labels, rows, names, strict=True)]
    return {
        "n": len(rows),
        "routed": {other: names.count(other) for other in kept.names if other in names},
        "weight": round(weights[:, kept.names.index(name)].mean().item(), 4),
        "own_prompt": round(accuracy(kept.prompts[name], rows), 4),
        "chosen_prompt": share(both),
    }


def draws(model: FrozenLanguageModel, work: Path) -> dict[str, Any]:
    """Prompts of one task from several draws of the training rows: one, the best fitting one, and all together."""
    name = POOL[0]
    data = {seed: few_shot(name, seed) for seed in DRAWS}
    prompts = {f"draw-{s}": fitted(model, data[s], work / f"{name}-{s}", seed=s) for s in DRAWS}
    kept = PromptPool.of(prompts, {f"draw-{seed}": data[seed].train for seed in DRAWS})
    rows = data[DRAWS[0]].test
    found: dict[str, Any] = {"task": name, "n": len(rows)}
    found["single"] = [round(accuracy(one, rows), 4) for one in prompts.values()]
    for how in ("choose", "outputs", "vectors"):
        labels = kept.classify(rows, how)
        found[how] = share([one.label == row.label for one, row in zip(labels, rows, strict=True)])
    return found


# A start that was learned


def meta(model: FrozenLanguageModel, cells: Cells, work: Path) -> None:
    other = work / f"{OTHER}-1"
    fitted(model, few_shot(OTHER), other)
    for held in HELD_OUT:
        folder = work / f"meta-without-{held}"
        cells.add(f"{held}/learning", partial(learn_start, model, held, folder))
        starts = {
            "meta": PromptInit(start="prompt", from_prompt=folder),
            "labels": PromptInit(start="labels"),
            "random": PromptInit(start="random"),
            f"prompt of {OTHER}": PromptInit(start="prompt", from_prompt=other),
        }
        for rate, seed, (name, start) in product(RATES, ADAPT_SEEDS, starts.items()):
            cells.add(f"{held}/{name}/lr {rate}/{seed}", partial(adapt, model, held, start, rate, seed))


def learn_start(model: FrozenLanguageModel, held: str, folder: Path) -> dict[str, Any]:
    """Learn a start over all tasks but one."""
    datas = [few_shot(name) for name in META if name != held]
    if not (folder / "prompt.json").exists():
        recipe = replace(PromptTuning.recipe, batch_size=META_BATCH)
        meta_init(datas, model, PromptTuning(N_SOFT), recipe, out=folder, n_rounds=N_ROUNDS, n_inner=N_INNER)
    return {"tasks": [data.name for data in datas]}


def adapt(model: FrozenLanguageModel, held: str, start: PromptInit, rate: float, seed: int) -> dict[str, Any]:
    """Ten steps on the task that was held out, and the accuracy on its test rows."""
    data = few_shot(held, seed)
    ten = few_steps(data, 10, PromptTuning.recipe.batch_size, seed).task(init=start)
    result = mp.fit(PromptTuning(N_SOFT), model, ten, None, mp.Recipe(epochs=1, lr=rate), seed, progress=False)
    right, loss = accuracy(result.predictor, data.test[:N_ADAPTED]), result.history[0]["loss"]
    return {"accuracy": round(right, 4), "loss": round(loss, 3)}


# A prompt a language


class Judge:
    """Says in which language a name is, English or one of six: by lingua, from its letters, and by the lists of all
    names, those of several languages left out."""

    def __init__(self, data: TextData, form: str, end: str) -> None:
        self.form, self.end = form, end
        try:
            from lingua import IsoCode639_1, LanguageDetectorBuilder
        except ImportError:
            raise mp.UserError("languages are told apart by lingua. pip install lingua-language-detector") from None
        codes = [getattr(IsoCode639_1, code.upper()) for code in ("en", *LANGUAGES)]
        self.detector = LanguageDetectorBuilder.from_iso_codes_639_1(*codes).build()
        self.rows = {code: tuple(row for row in data.test if row.task == code) for code in LANGUAGES}
        pairs = {(row.fields["text"].casefold(), "en") for row in (*data.train, *data.val, *data.test)}
        pairs |= {(str(row.answer).casefold(), row.task) for row in (*data.train, *data.val, *data.test)}
        spoken = Counter(name for name, _ in pairs)
        self.listed = {code: {n for n, c in pairs if c == code and spoken[n] == 1} for code in ("en", *LANGUAGES)}

    def language_of(self, name: str) -> str:
        """The code of a language, "" where there is nothing to tell it by."""
        language = self.detector.detect_language_of(name)
        return "" if language is None else language.iso_code_639_1.name.lower()

    def shares(self, names: Sequence[str]) -> dict[str, float]:
        """The share of names in each language."""
        judged = Counter(map(self.language_of, names))
        return {code: round(judged[code] / len(names), 4) for code in ("en", *LANGUAGES)}

    def truth(self) -> dict[str, Any]:
        """What is said of the true test names of each language."""
        english = [row.fields["text"] for row in self.rows["de"]]
        return {"en": self.shares(english)} | {
            code: self.shares([str(row.answer) for row in rows]) for code, rows in self.rows.items()
        }

    def measure(self, prompted: mp.LanguagePredictor, rows: Sequence[TextRow], code: str | None) -> dict[str, Any]:
        """What is answered to English names: in which languages, and how near to the names of one of them."""
        answers = [one.text for one in generate_texts(prompted, rows, Generation(max_tokens=LONGEST))]
        lines = [text.partition(self.end)[0].strip() for text in answers]
        before, after = self.form.split("{}")
        inner = [line.removeprefix(before).removesuffix(after).strip() for line in lines]
        found: dict[str, Any] = {
            "n": len(rows),
            "judged": self.shares(inner),
            "listed": {key: share([n.casefold() in names for n in inner]) for key, names in self.listed.items()},
            "copied": share(
                [n.casefold() == row.fields["text"].casefold() for n, row in zip(inner, rows, strict=True)]
            ),
            "in_form": share([line == self.form.format(name) for line, name in zip(lines, inner, strict=True)]),
        }
        if code is not None:
            wanted = [str(row.answer) for row in rows]
            scores = score_texts(inner, wanted)
            same = [n.casefold() == other.casefold() for n, other in zip(inner, wanted, strict=True)]
            found |= {"exact": share(same), "chrf": round(scores.chrf, 2)}
        return found | {"texts": [f"{row.fields['text']} > {line}" for row, line in zip(rows, lines, strict=True)][:12]}


def languages(model: FrozenLanguageModel, cells: Cells, work: Path) -> None:
    data = mp.load_texts(DATA / "emoji_languages.jsonl")
    judge = Judge(data, FORMS[model.name], " ," if model.name == "tiny" else "\n")
    cells.add("true names", judge.truth)
    between = " =" if model.name == "tiny" else "\n"  # tiny has read lists: bear = oso , bread = pan
    data = replace(data, template=f"{{soft}} {{text:cut}}{between}{{answer}}")
    methods: dict[str, DecoderMethod] = {"prompt-tuning": PromptTuning(N_SOFT)}
    if model.name == "tiny":
        methods["deep-prompts"] = DeepPrompts(N_SOFT)
    prompts: dict[str, mp.LanguagePredictor] = {}
    nothing = in_words(model, f"{{text:cut}}{between}{{answer}}")
    cells.add(f"{model.name}/none", partial(judge.measure, nothing, judge.rows["de"], None))
    for code in LANGUAGES:
        if model.name == "tiny":
            kind, words = "title", in_words(model, f"{LANGUAGES[code]} : {{text:cut}}{between}{{answer}}")
        else:
            kind, words = "instruction", in_words(model, data.instructions[0])
        cells.add(f"{model.name}/{kind}/{code}", partial(judge.measure, words, judge.rows[code], code))
        for name, method in methods.items():
            folder, n_steps = work / f"{name}-{code}", N_STEPS_LANGUAGE[model.name]
            one = fitted(model, of_language(data, code), folder, method, n_wanted=n_steps)
            prompts.setdefault(code, one)
            cells.add(f"{model.name}/{name}/{code}", partial(judge.measure, one, judge.rows[code], code))
    together(model, cells, work, judge, data, prompts)


def in_words(model: FrozenLanguageModel, text: str) -> mp.LanguagePredictor:
    """The model with a prompt in words alone."""
    return mp.LanguagePredictor(model, Prompt(mp.Template.parse(text)))


def together(
    model: FrozenLanguageModel,
    cells: Cells,
    work: Path,
    judge: Judge,
    data: TextData,
    prompts: dict[str, mp.LanguagePredictor],
) -> None:
    """A task prompt, learned in English alone, with prompts of languages, learned without the task."""
    english = of_language(data, "de")
    rows = tuple(replace(row, answer=judge.form.format(row.fields["text"])) for row in english.train)
    n_steps = N_STEPS_LANGUAGE[model.name]
    task = fitted(model, replace(english, train=rows), work / "form", n_wanted=n_steps)
    cells.add(f"{model.name}/form/alone", partial(judge.measure, task, judge.rows["de"], None))
    for code in COMPOSED:
        pair = {"task": task, "language": prompts[code]}
        ways = {name: compose(pair, english.template.replace("{soft}", slots)) for name, slots in ORDERS.items()}
        halves = PromptPool(pair, torch.ones(2, model.width))  # equal keys: half of each for every text
        ways["mean"] = halves.mix(judge.rows[code][:1])[0]
        for name, one in ways.items():
            cells.add(f"{model.name}/form/{name}/{code}", partial(judge.measure, one, judge.rows[code], code))
    if model.name == "tiny":
        one = behind(model, data, prompts, judge.form)
        for code in LANGUAGES:
            name = f"{model.name}/form/language, task learned behind {', '.join(COMPOSED)}/{code}"
            cells.add(name, partial(judge.measure, one, judge.rows[code], code))


class Beside(Source):
    """Vectors that are learned, and what a partner puts in, which stays as it is: the partner is the task of a row."""

    def __init__(self, own: Learned, partners: Partners) -> None:
        super().__init__()
        self.partners, self.own, self.tasks = partners, own, tuple(partners)
        self.sites = tuple(dict.fromkeys((*next(iter(partners.values()))(), LM_INPUT)))

    def forward(self, given: Given) -> Inserts:
        inserts = dict(self.partners[given.task or self.tasks[0]]())
        before = [inserts[LM_INPUT].values] if LM_INPUT in inserts else []  # type: ignore[union-attr]
        return inserts | {LM_INPUT: Vectors(torch.cat([*before, self.own.vectors]))}


@dataclass(frozen=True)
class Made(PromptTuning):
    """Vectors that are learned within a source of this script, perhaps behind others."""

    source: Callable[[Learned], Source] = field(kw_only=True)
    n_others: int = 0

    @property
    def n_vectors(self) -> int:
        return N_SOFT + self.n_others

    def prompt(self, backbone: Any, start: mp.Start) -> Prompt:
        values, unit = start.vectors(self.n_vectors)
        return Prompt(start.template, self.source(Learned(LM_INPUT, values[-N_SOFT:], unit=unit)))


def n_before(partners: Partners) -> int:
    """How many vectors partners put before those of the task."""
    first = next(iter(partners.values()))()
    return int(first[LM_INPUT].n_vectors) if LM_INPUT in first else 0  # type: ignore[union-attr]


def frozen(prompted: mp.LanguagePredictor) -> Callable[[], Inserts]:
    """What a learned prompt puts in, as it is."""
    inserts: Inserts = {site: Vectors(one.values.detach()) for site, one in prompted.vectors().items()}
    return lambda: inserts


def learned_beside(model: FrozenLanguageModel, data: TextData, partners: Partners, rows: list[TextRow]) -> Learned:
    """A task prompt that is learned beside partners, each row with its own."""
    n_steps = len(batches(list(range(len(rows))), PromptTuning.recipe.batch_size))
    recipe = mp.Recipe(epochs=max(1, round(N_STEPS_LANGUAGE[model.name] / n_steps)))
    some = replace(data, train=tuple(rows), val=(), test=tuple(rows[:1])).task(init=PromptInit("vocabulary"))
    method = Made(source=partial(Beside, partners=partners), n_others=n_before(partners))
    return mp.fit(method, model, some, recipe=recipe, progress=False).predictor.prompt.sources[0].own


def beside(model: FrozenLanguageModel, template: str, partners: Partners, own: Learned) -> mp.LanguagePredictor:
    """The task with every one of the languages; the task of a row says which."""
    parsed = mp.Template.parse(template).with_soft(N_SOFT + n_before(partners))
    return mp.LanguagePredictor(model, Prompt(parsed, Beside(own, partners)).requires_grad_(False).eval())


def behind(
    model: FrozenLanguageModel, data: TextData, prompts: dict[str, mp.LanguagePredictor], form: str
) -> mp.LanguagePredictor:
    """A task prompt, learned behind the prompts of some languages, behind the prompt of each."""
    partners = {code: frozen(one) for code, one in prompts.items()}
    rows = [replace(row, task=code) for code in COMPOSED for row in of_language(data, code).train]
    in_form = [replace(row, answer=form.format(row.answer)) for row in rows]
    own = learned_beside(model, data, {code: partners[code] for code in COMPOSED}, in_form)
    return beside(model, str(data.template), partners, own)


def of_language(data: TextData, code: str) -> TextData:
    """The rows of one language, as many for training as are asked for."""
    rows = [tuple(row for row in part if row.task == code) for part in (data.train, data.val, data.test)]
    plain = [tuple(replace(row, task="", fields={"text": row.fields["text"]}) for row in part) for part in rows]
    return replace(data, train=plain[0][:N_NAMES], val=plain[1], test=plain[2])


def tables(found: dict[str, Any]) -> str:
    """All figures of the file as Markdown."""
    parts = {"pool": pool_tables, "meta": meta_table, "languages": language_tables}
    return "\n\n".join(f"{name}\n\n{parts[name.partition('/')[0]](cells)}" for name, cells in found.items())


def pool_tables(cells: dict[str, Any]) -> str:
    rows = []
    for name, cell in cells.items():
        if name.startswith("tasks/"):
            task = name.removeprefix("tasks/")
            figures = (cell["routed"].get(task, 0) / cell["n"], cell["own_prompt"], cell["chosen_prompt"])
            rows.append((task, *map(percent, figures), f"{cell['weight']:.2f}"))
    found = [table(("texts of", "routed right", "own prompt", "chosen prompt", "weight of the own"), rows)]
    if cell := cells.get("draws"):
        row = (several(cell["single"]), *(percent(cell[how]) for how in ("choose", "outputs", "vectors")))
        found.append(table(("one prompt", "best fitting", "probabilities mixed", "vectors mixed"), [row]))
    return "\n\n".join(found)


def meta_table(cells: dict[str, Any]) -> str:
    starts = ("meta", "labels", "random", f"prompt of {OTHER}")
    rows = []
    for held, rate in product(HELD_OUT, RATES):
        some = [[cells.get(f"{held}/{start}/lr {rate}/{seed}") for seed in ADAPT_SEEDS] for start in starts]
        figures = [several([cell["accuracy"] for cell in each if cell]) for each in some]
        if any(figures):
            rows.append((held, str(rate), *figures))
    return table(("held out", "rate", *starts), rows)


def language_tables(cells: dict[str, Any]) -> str:
    """Answers judged to be in the language that was asked for, and in brackets those that are the listed name."""
    rows = [("true names", *(percent(cells["true names"][code][code]) for code in LANGUAGES))]
    plain = {name: cell for name, cell in cells.items() if name != "true names" and "exact" in cell}
    for way in dict.fromkeys(name.rsplit("/", 1)[0] for name in plain):
        figures = []
        for code in LANGUAGES:
            cell = plain.get(f"{way}/{code}")
            figure = f"{percent(cell['judged'][code])} ({percent(cell['exact'])})" if cell else ""
            figures.append(f"{figure}, form {percent(cell['in_form'])}" if cell and "/form/" in way else figure)
        rows.append((way.replace("/", ", "), *figures))
    lines = [table(("answers to", *LANGUAGES), rows)]
    for name, cell in cells.items():
        if name.endswith(("/none", "/alone")):
            figures = f"English {percent(cell['judged']['en'])}, copied {percent(cell['copied'])}"
            lines.append(f"{name.replace('/', ', ')}: {figures}, form {percent(cell['in_form'])}.")
    return "\n\n".join(lines)


PARTS = {"pool": pool, "meta": meta, "languages": languages}


def main(
    json_file: Annotated[Path, tyro.conf.arg(name="json")],
    part: Literal["pool", "meta", "languages"] | None = None,
    models: tuple[str, ...] = ("smollm2",),
    work: Path = Path("runs/dynamic"),
    threads: int = 1,
    table_only: Annotated[bool, tyro.conf.arg(name="table")] = False,
) -> None:
    """Measure one part.

    Args:
        json_file: keeps all figures.
        models: of languages; the other parts take the first.
        work: trained prompts.
        table_only: print the tables of the file and measure nothing.
    """
    if table_only:
        print(tables(read_figures(json_file)))
        return
    if part is None:
        raise mp.UserError("there is nothing to do. Give --part or --table.")
    torch.set_num_threads(threads)
    for name in models if part == "languages" else models[:1]:
        short = short_name(name)
        cells = Cells(json_file, part if part == "languages" else f"{part}/{short}")
        PARTS[part](mp.load_language_model(name, device="cpu"), cells, work / short)


if __name__ == "__main__":
    run_main(main, __doc__)
