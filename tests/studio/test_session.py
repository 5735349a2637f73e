"""The studio without a browser: what a session does, and what it refuses."""

import json
import os
import threading
import time
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mmprompt.captioning.predictor import Captioner, CaptionTemplate, Guidance
from mmprompt.captioning.readers.captioner import LM_INPUT
from mmprompt.captioning.readers.load import load_captioner
from mmprompt.core.file import load, save
from mmprompt.core.header import header_hash
from mmprompt.core.learned import Learned, Prompt
from mmprompt.errors import UserError
from mmprompt.language.data import load_texts
from mmprompt.studio.classify import OWN, Setting, words_alone
from mmprompt.studio.images import MOST_IMAGES
from mmprompt.studio.jobs import MOST_WAITING, Job, Jobs
from mmprompt.studio.pages import fragments
from mmprompt.studio.prompts import Models
from mmprompt.studio.session import KEPT_DAYS, Studio
from mmprompt.studio.texts import rows_of, write_rows
from tests.captioner_models import save_blip


@pytest.fixture
def setting():
    return Setting(OWN, "tiny", "coop", shots=4, epochs=3)


@pytest.fixture
def filled(session, picture_folder):
    for folder in sorted(picture_folder.iterdir()):
        session.images.own.add(folder.name, sorted(folder.iterdir()))
    return session


@pytest.fixture
def trained(filled, setting, ended):
    job = ended(filled.submit("images", filled.images.train(setting)))
    assert (job.phase, job.problem) == ("done", "")
    return filled


def save_noise(folder, n, seed=0):
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = [folder / f"{seed}-{i}.png" for i in range(n)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)
    return paths


def save_bad(folder):
    text, huge = folder / "text.png", folder / "huge.png"
    text.write_text("not an image")
    Image.new("1", (20_000, 10_000)).save(huge)
    return text, huge


def test_own_images_become_a_classifier_beside_zero_shot(trained):
    found = trained.images.trained
    assert found.classifier.class_names == ("blue house", "green tree", "red car")
    assert set(found.metrics) >= {"zero_shot_name", "zero_shot_template", "learned", "predictions"}
    assert len(trained.job.history) == 3 == trained.job.n_epochs
    learned, plain = trained.images.name(found.data.test[0].path)
    assert set(learned.probabilities) == set(plain.probabilities) == set(found.classifier.class_names)


def test_edited_words_keep_the_vectors_and_say_what_changes(trained):
    work, names = trained.images, ["blue house", "green tree", "red car"]
    learned = work.trained.classifier
    found = work.reword("a small {soft*2} drawing of {soft*2} {name}", names)
    vectors = [source.vectors for source in (learned.prompt.sources[0], found.classifier.prompt.sources[0])]
    assert (vectors[0] == vectors[1]).all()
    assert found.classifier.prompt.template.text == "a small {soft*2} drawing of {soft*2} {name}"
    differ = sum(a != b for a, b in zip(found.before.predictions, found.after.predictions, strict=True))
    assert len(found.changed) == differ
    assert found.words_alone is not None
    assert found.before.accuracy == work.trained.metrics["learned"]["accuracy"]
    again = work.reword(learned.prompt.template.text, names)
    assert (again.after.accuracy, again.changed) == (found.before.accuracy, ())


def test_further_class_names_are_more_to_choose_from(trained):
    found = trained.images.reword("{soft*4} {name}.", ["blue house", "green tree", "red car", "yellow sun"])
    assert found.classifier.class_names[-1] == "yellow sun"
    learned, _ = trained.images.name(trained.images.trained.data.test[0].path)
    assert len(learned.probabilities) == 4


@pytest.mark.parametrize(
    ("template", "names", "said"),
    [
        ("{soft*3} {name}", "a b c", "3 vectors, and 4 were learned"),
        ("{soft*4}", "a b c", "exactly once"),
        ("{soft*4} {name", "a b c", "{"),
        ("{soft*4} {name}", "a b", "the images are of 3 classes"),
        ("{soft*4} {name}", "a a c", "stands twice"),
    ],
)
def test_words_that_cannot_be_are_refused_and_change_nothing(trained, template, names, said):
    with pytest.raises(UserError, match=said.replace("{", r"\{")):
        trained.images.reword(template, names.split())
    assert trained.images.edited is None


def test_words_alone_are_a_template_without_vectors():
    assert words_alone("a {soft*4} photo of {name}, {soft*2}.") == "a photo of {}, ."
    assert words_alone("{soft*2} {{}} {{of}} {}.\nthe {soft*2} {}") == "{{}} {{of}} {}.\nthe {}"


def test_work_survives_the_end_of_the_server(trained, studio, models):
    again = Studio(studio.folder, models).session(trained.name)
    before, after = trained.images, again.images
    assert after.trained.metrics == before.trained.metrics
    assert after.own.classes == before.own.classes
    assert after.setting == before.setting
    assert len(after.trained.history) == 3
    assert after.trained.data.test == before.trained.data.test


def test_sessions_know_nothing_of_each_other(trained, studio):
    other = studio.session()
    assert other.name != trained.name
    assert other.images.trained is None
    assert other.images.own.classes == {}
    with pytest.raises(UserError, match="no prompt yet"):
        other.images.classifier()


@pytest.mark.parametrize("name", ["", None, "../../etc", "0" * 32, 7])
def test_a_name_that_is_none_gets_a_new_session(studio, name):
    session = studio.session(name)
    assert session.name != name
    assert session.folder.parent == studio.folder / "sessions"


def test_a_downloaded_prompt_can_be_loaded(trained, studio):
    archive = trained.download(trained.images.trained.folder, "mine")
    other = studio.session()
    assert other.open_prompt([archive]) == "images"
    assert other.images.classifier().class_names == trained.images.trained.classifier.class_names
    image = trained.images.trained.data.test[0].path
    assert other.images.name(image)[0] == trained.images.name(image)[0]
    assert other.images.reword("a {soft*4} {name}", ["house", "tree"]).after is None


def test_a_prompt_that_was_edited_by_hand_is_refused(trained, tmp_path):
    folder = trained.images.trained.folder
    header = tmp_path / "prompt.json"
    header.write_text((folder / "prompt.json").read_text().replace("red car", "red cat"))
    with pytest.raises(UserError, match="was edited after it was saved"):
        trained.open_prompt([header, folder / "prompt.safetensors"])
    assert trained.images.trained.folder == folder


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": "hf:somebody/else"}, "learned on hf:somebody/else, but this studio has tiny"),
        ({"fingerprint": "0" * 64}, r"was learned on tiny \(000000000000\), not on tiny"),
    ],
)
def test_a_prompt_of_another_backbone_is_refused_and_leaves_nothing(trained, tmp_path, changed, said):
    folder = trained.images.trained.folder
    header = json.loads((folder / "prompt.json").read_text())
    del header["header_sha256"]
    header["backbone"] |= changed
    path = tmp_path / "prompt.json"
    path.write_text(json.dumps(header | {"header_sha256": header_hash(header)}))
    with pytest.raises(UserError, match=said):
        trained.open_prompt([path, folder / "prompt.safetensors"])
    assert [run.name for run in folder.parent.iterdir()] == [folder.name]
    assert trained.images.trained.folder == folder


def test_what_is_no_prompt_is_refused(session, tmp_path):
    text, archive = tmp_path / "notes.zip", tmp_path / "empty.zip"
    text.write_text("no zip")
    zipfile.ZipFile(archive, "w").close()
    for given in ([text], [archive], []):
        with pytest.raises(UserError, match=r"holds no prompt\.json"):
            session.open_prompt(given)


def test_bad_files_are_named_and_the_good_ones_taken(session, tmp_path):
    good, text, huge = save_noise(tmp_path, 1)[0], *save_bad(tmp_path)
    found = session.images.own.add("cat", [text, good, huge])
    assert (found.n_new, found.n_known) == (1, 0)
    assert found.refused[0].startswith("text.png: is not an image")
    assert "huge.png: has more than 100 megapixels" in found.refused[1]


def test_a_text_file_and_two_hundred_megapixels_are_refused_wherever_an_image_is_asked_for(trained, tmp_path):
    before = trained.images.name(trained.images.trained.data.test[0].path)
    for bad, said in zip(save_bad(tmp_path), ("is not an image", "more than 100 megapixels"), strict=True):
        with pytest.raises(UserError, match=said):
            trained.images.name(bad)
        with pytest.raises(UserError, match=said):
            trained.captions.write(bad, [], 1.0, None, 10.0)
    assert trained.images.name(trained.images.trained.data.test[0].path) == before


def test_five_hundred_files_at_once_are_taken_and_too_many_refused(session, tmp_path):
    paths = save_noise(tmp_path / "many", 500)
    told = []
    assert session.images.own.add("cat", paths, lambda done, total: told.append((done, total))).n_new == 500
    assert told[-1] == (500, 500)
    assert session.images.own.add("cat", paths[:3]).n_known == 3
    with pytest.raises(UserError, match=f"{MOST_IMAGES:,} at most, and 500 are here"):
        session.images.own.add("dog", [*paths, paths[0]])
    assert list(session.images.own.classes) == ["cat"]


def test_an_image_given_to_another_class_moves(session, tmp_path):
    paths = save_noise(tmp_path / "some", 2)
    session.images.own.add("cat", paths)
    session.images.own.add("dog", paths[:1])
    assert {name: len(files) for name, files in session.images.own.classes.items()} == {"cat": 1, "dog": 1}


def test_class_names_are_never_names_on_the_disk(session, tmp_path):
    session.images.own.add("../../cat", save_noise(tmp_path / "some", 1))
    assert list(session.images.own.classes) == ["../../cat"]
    assert not (session.folder.parent.parent / "cat").exists()


@pytest.mark.parametrize(
    ("counts", "said"),
    [({}, "no class has images"), ({"a": 3}, "one class has images"), ({"a": 1, "b": 1}, "one image")],
)
def test_too_few_images_are_refused_before_the_queue(session, tmp_path, setting, counts, said):
    for place, (name, n) in enumerate(counts.items()):
        session.images.own.add(name, save_noise(tmp_path / name, n, place))
    with pytest.raises(UserError, match=said):
        session.images.train(setting)


def test_a_class_with_one_image_is_trained_on_and_said(session, tmp_path, setting, ended):
    for place, (name, n) in enumerate({"a": 4, "b": 1}.items()):
        session.images.own.add(name, save_noise(tmp_path / name, n, place))
    assert ended(session.submit("images", session.images.train(setting))).phase == "done"
    assert any("for want of a second image: b" in note for note in session.images.trained.data.notes)


def test_a_stopped_training_keeps_what_it_learned(filled, setting, ended):
    work = filled.images.train(replace(setting, epochs=100))

    def stop_early(job):
        job.on_epoch_end = stop_after_two(job)
        work(job)

    def stop_after_two(job):
        def end(run, epoch, logs):
            if epoch == 1:
                job.stop()
            Job.on_epoch_end(job, run, epoch, logs)

        return end

    job = ended(filled.submit("images", stop_early))
    assert (job.phase, len(job.history), job.n_epochs) == ("done", 2, 100)
    assert load(filled.images.trained.folder, filled.images.trained.classifier.backbone)


def test_a_person_has_one_training_at_a_time(session, ended):
    gate = threading.Event()
    job = session.submit("images", lambda _: gate.wait(10) and None)
    with pytest.raises(UserError, match="under way"):
        session.submit("texts", lambda _: None)
    gate.set()
    assert ended(job).phase == "done"


def test_the_queue_is_in_order_and_has_an_end(ended):
    jobs, gate, order = Jobs(), threading.Event(), []
    first = jobs.add(Job("images", lambda _: gate.wait(10) and None))
    while first.phase == "waiting":
        pass
    others = [jobs.add(Job("images", lambda _, n=n: order.append(n))) for n in range(MOST_WAITING)]
    assert [jobs.n_ahead(job) for job in others] == list(range(1, MOST_WAITING + 1))
    with pytest.raises(UserError, match=f"{MOST_WAITING} trainings are waiting"):
        jobs.add(Job("images", lambda _: None))
    others[0].stop()
    gate.set()
    ended(others[-1])
    assert order == list(range(1, MOST_WAITING))
    assert others[0].phase == "stopped"


@pytest.mark.parametrize(
    ("error", "said"), [(UserError("bad rows"), "bad rows"), (ZeroDivisionError(), "ZeroDivision")]
)
def test_a_training_that_fails_leaves_the_queue_alive(session, ended, error, said):
    def fail(_):
        raise error

    job = ended(session.submit("images", fail))
    assert job.phase == "failed"
    assert said in job.problem
    assert ended(session.submit("images", lambda _: None)).phase == "done"


@pytest.mark.parametrize(
    ("lines", "said"),
    [("only text", "line 1"), ("a => b\nc => d", "number of rows"), ("a => x\n => y", "line 2")],
)
def test_rows_that_cannot_be_are_refused(session, lines, said):
    with pytest.raises(UserError, match=said):
        session.texts.train("tiny", lines, 1)


def test_rows_with_answers_that_come_back_are_labels(tmp_path):
    lines = "\n".join(f"text {i} => {'yes' if i % 2 else 'no'}" for i in range(40))
    assert load_texts(write_rows(rows_of(lines), tmp_path / "labels.jsonl")).labels == ("no", "yes")
    lines = "\n".join(f"text {i} => answer {i}" for i in range(40))
    assert load_texts(write_rows(rows_of(lines), tmp_path / "answers.jsonl")).labels == ()


def test_a_focus_that_is_not_there_is_refused(session):
    with pytest.raises(UserError, match="no focus named 'smells'"):
        session.captions.learn("smells")
    with pytest.raises(UserError, match="is not learned yet"):
        session.captions.write(None, ["objects"], 1.0, None, 10.0)


def test_a_prompt_of_texts_answers_beside_an_instruction(session, studio, models, ended):
    lines = "\n".join(
        f"a {'dog' if i % 2 else 'face'} and {i} balls => {'animal' if i % 2 else 'person'}" for i in range(40)
    )
    job = ended(session.submit("texts", session.texts.train("tiny", lines, 2)))
    assert (job.phase, job.problem, len(job.history)) == ("done", "", 2)
    assert [score.name for score in session.texts.measure.scores] == ["learned prompt", "no prompt"]
    sides = list(session.texts.compare("a dog and a ball", "{text} is a {answer}"))
    assert len(sides) > 1
    for written, learned in sides:
        assert {written.label, learned.label} <= {"animal", "person"}
    assert sides[-1][1].text.startswith(sides[0][1].text)
    again = Studio(studio.folder, models).session(session.name).texts
    assert list(again.compare("a dog and a ball", "{text} is a {answer}"))[-1] == sides[-1]
    assert {side.notice for pair in sides for side in pair} == {""}
    for pair in session.texts.compare("a dog and a ball " * 200, "{text:cut} is a {answer}"):
        for side in pair:
            assert "too long" in side.notice
            assert "too long" in fragments.html("side", side)


@pytest.mark.parametrize(
    ("text", "instruction", "said"),
    [("", "{text} {answer}", "no text"), ("a", "{text} {soft} {answer}", "soft"), ("a", "{other} {answer}", "once")],
)
def test_questions_that_cannot_be_are_refused(session, ended, text, instruction, said):
    with pytest.raises(UserError, match="no prompt yet"):
        list(session.texts.compare(text, instruction))
    rows = "\n".join(f"word {i} => {'ab'[i % 2]}" for i in range(20))
    assert ended(session.submit("texts", session.texts.train("tiny", rows, 1))).phase == "done"
    with pytest.raises(UserError, match=said):
        list(session.texts.compare(text, instruction))


def test_a_focus_is_learned_once_and_steers_captions(session, studio, models, ended, monkeypatch):
    monkeypatch.setattr("mmprompt.studio.captions.EPOCHS", 1)
    assert ended(session.submit("captions", session.captions.learn("objects"), keeps_part=False)).phase == "done"
    other = studio.session()
    assert other.captions.learned() == ["objects"]
    again = ended(other.submit("captions", other.captions.learn("objects"), keeps_part=False))
    assert (again.phase, again.history) == ("done", [])
    by_itself, steered = (other.captions.write(None, ["objects"], strength, None, 10.0) for strength in (0.0, 1.0))
    assert all(plain == said for _, plain, said in by_itself)
    assert any(plain != said for _, plain, said in steered)
    archive = session.download(session.captions.folder("objects"), "focus")
    assert other.open_prompt([archive]) == "captions"
    assert other.captions.learned() == ["objects", "objects (file 1)"]
    again = Studio(studio.folder, models).session(other.name)
    assert again.captions.learned() == other.captions.learned()


def test_a_focus_of_another_captioner_is_spoken_by_that_captioner(tmp_path, models):
    save_blip(tmp_path / "blip")
    captioner = load_captioner(str(tmp_path / "blip"), device="cpu")
    vectors = torch.randn(2, captioner.decoder.width, generator=torch.Generator().manual_seed(1))
    prompt = Prompt(CaptionTemplate("smells"), Learned(LM_INPUT, vectors))
    save(Captioner(captioner, Guidance(((prompt, 1.0),))), tmp_path / "run")
    given = [tmp_path / "run" / name for name in ("prompt.json", "prompt.safetensors")]
    with pytest.raises(UserError, match="but this studio has tiny"):
        Studio(tmp_path / "without", models).session().open_prompt(given)
    work = Studio(tmp_path / "with", Models(captioners=(captioner.name,), device="cpu")).session()
    assert work.open_prompt(given) == "captions"
    assert work.captions.captioner == captioner.name
    assert work.captions.learned() == ["smells (file 1)"]
    image = save_noise(tmp_path / "noise", 1)[0]
    ((path, plain, steered),) = work.captions.write(image, work.captions.learned(), 1.0, None, 10.0)
    told = load(tmp_path / "run", captioner).predict(image).text
    assert (path, plain, steered) == (image, Captioner(captioner).caption([image])[0].text, told)
    again = Studio(tmp_path / "with", work.captions.models).session(work.name).captions
    assert (again.captioner, again.learned(), again.newest) == (captioner.name, ["smells (file 1)"], "smells (file 1)")
    elsewhere = Studio(tmp_path / "with", models).session(work.name).captions
    assert (elsewhere.captioner, elsewhere.learned()) == ("tiny", [])
    work.captions.captioner = "tiny"
    assert work.captions.learned() == []


@pytest.mark.parametrize("focus", ["/../../../../../../escaped", "..", "smells" * 100, "\N{GRINNING FACE}"])
def test_a_download_stays_in_the_folder_of_its_session_whatever_a_file_calls_its_focus(session, focus, tmp_path):
    captioner = load_captioner("tiny", device="cpu")
    prompt = Prompt(CaptionTemplate(focus), Learned(LM_INPUT, torch.zeros(2, captioner.decoder.width)))
    save(Captioner(captioner, Guidance(((prompt, 1.0),))), tmp_path / "run")
    session.open_prompt([tmp_path / "run" / name for name in ("prompt.json", "prompt.safetensors")])
    name = session.captions.newest
    archive = session.download(session.captions.folder(name), f"focus-{name.split()[0]}")
    assert archive.resolve().parent == session.folder / "downloads"
    assert zipfile.is_zipfile(archive)


def test_sessions_that_nobody_opened_for_a_month_are_deleted_at_the_start(tmp_path, models):
    first = Studio(tmp_path / "studio", models)
    old, recent, in_use = (first.session() for _ in range(3))
    other = first.sessions / "notes"
    other.mkdir()
    for folder, days in ((old.folder, KEPT_DAYS + 1), (recent.folder, KEPT_DAYS - 1), (in_use.folder, 99), (other, 99)):
        then = time.time() - days * 86400
        os.utime(folder, (then, then))
    assert first.session(in_use.name) is in_use
    again = Studio(tmp_path / "studio", models)
    assert again.n_forgotten == 1
    assert {path.name for path in again.sessions.iterdir()} == {recent.name, in_use.name, "notes"}
    assert again.session(old.name).name != old.name
