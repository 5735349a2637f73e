"""The first part of the page: images, training, results, a new image, words edited around the learned vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from mmprompt.core.file import save
from mmprompt.data.catalog import read_card
from mmprompt.errors import UserError
from mmprompt.studio.classify import KIND, METHODS, OWN, SETS, ImageWork, Setting, bundled
from mmprompt.studio.pages import fragments
from mmprompt.studio.pages.parts import QUIET, Updates, Watch, Wiring
from mmprompt.studio.session import Session

BUNDLED = "a bundled set"
N_PREVIEW = 6
HINT = '<p class="hint">Change a word, and what it does to the test images stands here at once.</p>'


def any_image(label: str, **how: Any) -> gr.Image:
    """Make a control for an image whose file is handed on unread: what is no image is then refused in our words."""
    image = gr.Image(label=label, sources=["upload", "webcam", "clipboard"], type="filepath", buttons=[], **how)
    read = image.preprocess  # opens the file, but for one that the camera took
    image.preprocess = lambda given: given.path if given is not None and given.path else read(given)
    return image


class ImagePage:
    """The controls, and what happens when they are used."""

    def __init__(self, wiring: Wiring) -> None:
        self.wiring = wiring
        self._lay_out_data()
        gr.Markdown("## 2 · Learn a prompt")
        with gr.Accordion("Settings", open=False):
            with gr.Row():
                offered = list(wiring.studio.models.offered[KIND])
                backbone = gr.Dropdown(offered, value="tiny", label="Frozen model")
                method = gr.Dropdown(list(METHODS), value=METHODS[0], label="Method")
            with gr.Row():
                shots = gr.Slider(1, 16, value=Setting.shots, step=1, label="Training images of each class")
                epochs = gr.Slider(1, 100, value=Setting.epochs, step=1, label="Epochs")
        setting = [self.source, self.chosen, backbone, method, shots, epochs]
        self.watch = Watch(wiring, "images", "Train", self.submit, setting, self.show_trained)
        with gr.Column(visible=False) as self.after:
            gr.Markdown("## 3 · What came out")
            self.results = gr.HTML(elem_id="results")
            gr.Markdown("## 4 · Try a new image")
            with gr.Row():
                image = any_image("New image", elem_id="new-image", height=260)
                self.named = gr.HTML(elem_id="named")
            wiring.on(image.change, self.named, self.try_image, image, is_busy=True)
            self._lay_out_words()
            gr.Markdown("## 6 · Take it with you")
            with gr.Row(elem_classes="actions"):
                self.download = gr.DownloadButton("Download the prompt", elem_id="download")

    def _lay_out_data(self) -> None:
        on = self.wiring.on
        gr.Markdown("## 1 · Choose images")
        choices = [("A bundled set", BUNDLED), ("My own images", OWN)]
        self.source = gr.Radio(choices, value=BUNDLED, label="Images", elem_id="source")
        with gr.Column() as self.of_set:
            titles = [(f"{read_card(name).title} ({name})", name) for name in SETS]
            self.chosen = gr.Dropdown(titles, value=SETS[0], label="Set", elem_id="set")
            self.preview = gr.HTML()
        with gr.Column(visible=False) as self.of_own:
            class_name = gr.Textbox(value="", label="Class name", placeholder="red mug", elem_id="class-name")
            self.drop = gr.File(
                label="Images of this class", file_count="multiple", file_types=["image"], elem_id="drop", height=140
            )
            self.added = gr.HTML(elem_id="added")
            self.classes = gr.HTML(elem_id="classes")
            with gr.Row(elem_classes="actions"):
                self.which = gr.Dropdown([], label="Class to remove", value=None)
                remove = gr.Button("Remove the class", variant="secondary")
        on(self.source.change, self.added, self.choose, self.source)
        self.chosen.change(preview, self.chosen, self.preview, **QUIET)
        on(self.drop.upload, self.added, self.add, class_name, self.drop, is_busy=True)
        on(remove.click, self.added, self.drop_class, self.which)

    def _lay_out_words(self) -> None:
        gr.Markdown(
            "## 5 · Edit the words, keep the soft part\n`{soft*N}` stands for N learned vectors, `{name}` for the "
            "class name. Write around them, move them, split them."
        )
        with gr.Row():
            with gr.Column():
                self.template = gr.Textbox(value="", label="Words around the class name", elem_id="template", lines=1)
                self.names = gr.Textbox(
                    value="", label="Class names, one a line", elem_id="names", lines=6, max_lines=12
                )
                with gr.Row(elem_classes="actions"):
                    reset = gr.Button("As learned", variant="secondary")
                    keep = gr.Button("Keep for the download", variant="secondary", elem_id="keep")
            with gr.Column():
                self.reworded = gr.HTML(HINT, elem_id="reworded")
        on, words = self.wiring.on, [self.template, self.names]
        for box in words:
            on(box.change, self.reworded, self.reword, *words, trigger_mode="always_last")
        on(reset.click, self.reworded, self.as_learned)
        on(keep.click, self.reworded, self.keep_words, *words)

    def show(self, session: Session) -> Updates:
        """Show everything as the session has it."""
        work = session.images
        is_own = bool(work.own.classes) if work.trained is None else work.setting.data == OWN
        chosen = Setting.data if work.setting.data == OWN else work.setting.data
        return {
            **self.watch.show(session),
            **self.show_trained(session),
            **self._show_classes(work),
            self.source: OWN if is_own else BUNDLED,
            self.chosen: chosen,
            self.preview: preview(chosen),
            **self.choose(session, OWN if is_own else BUNDLED),
        }

    def submit(
        self, session: Session, source: str, chosen: str, backbone: str, method: str, shots: int, n: int
    ) -> None:
        """Queue a training."""
        setting = Setting(OWN if source == OWN else chosen, backbone, method, int(shots), int(n))
        session.submit("images", session.images.train(setting))

    def show_trained(self, session: Session) -> Updates:
        """Show what there is since the last training or loading."""
        trained = session.images.trained
        if trained is None:
            return {}
        classifier = session.images.classifier()
        words = {self.template: classifier.prompt.template.text, self.names: "\n".join(classifier.class_names)}
        archive = session.download(trained.folder, f"prompt-{trained.folder.name}")
        shown = {self.after: gr.update(visible=True), self.results: fragments.results(trained)}
        return {**shown, **words, self.reworded: HINT, self.named: "", self.download: str(archive)}

    def choose(self, session: Session, source: str) -> Updates:
        """Show the controls of bundled or of own images."""
        return {self.of_set: gr.update(visible=source == BUNDLED), self.of_own: gr.update(visible=source == OWN)}

    def add(self, session: Session, class_name: str, files: list[str] | None) -> Updates:
        """Take dropped images into a class."""
        if not class_name.strip():
            return {
                self.drop: None,
                self.added: fragments.html("refuse", "The class has no name. Write one, then drop images."),
            }
        given = [Path(file) for file in files or []]
        found = session.images.own.add(class_name, given)
        for path in given:
            path.unlink(missing_ok=True)
        return {**self._show_classes(session.images), self.drop: None, self.added: fragments.html("added", found)}

    def drop_class(self, session: Session, name: str | None) -> Updates:
        """Remove a class of own images."""
        if not name:
            raise UserError("no class is chosen. Choose the one to remove.")
        session.images.own.remove(name)
        return self._show_classes(session.images)

    def _show_classes(self, work: ImageWork) -> Updates:
        return {
            self.classes: fragments.html("own_classes", work.own),
            self.which: gr.update(choices=list(work.own.classes), value=None),
        }

    def reword(self, session: Session, template: str, names: str) -> Updates:
        """Show what edited words change, on the test images and on the one that was tried last."""
        work = session.images
        if work.is_as_learned(template, names.splitlines()):
            return {self.reworded: HINT}
        found = work.reword(template, names.splitlines())
        return {self.reworded: fragments.reworded(found), **self._name_again(work)}

    def as_learned(self, session: Session) -> Updates:
        """Go back to the words of the training."""
        work = session.images
        work.edited = None
        return {**self.show_trained(session), **self._name_again(work), self.reworded: HINT} if work.trained else {}

    def keep_words(self, session: Session, template: str, names: str) -> Updates:
        """Put the prompt with the edited words into the download."""
        found = session.images.reword(template, names.splitlines())
        assert session.images.trained is not None, "there were words to edit"
        folder = session.folder / "kept"
        save(found.classifier, folder)
        archive = session.download(folder, f"prompt-{session.images.trained.folder.name}-edited")
        return {self.download: str(archive), self.reworded: fragments.reworded(found) + fragments.html("say", "Kept.")}

    def try_image(self, session: Session, image: str | None) -> Updates:
        """Say what is on a new image."""
        if image is None:
            session.images.tried = None
            return {}
        return {self.named: fragments.named(*session.images.name(Path(image)))}

    def _name_again(self, work: ImageWork) -> Updates:
        if work.tried is None or not work.tried.is_file():
            return {}
        return {self.named: fragments.named(*work.name(work.tried))}


def preview(name: str) -> str:
    """Return some training images of a bundled set, each of another class."""
    data = bundled(Setting(name, shots=1))
    some = data.train[:: max(1, len(data.train) // N_PREVIEW)][:N_PREVIEW]
    return fragments.html("examples", [(item.path, data.class_names[item.label]) for item in some])
