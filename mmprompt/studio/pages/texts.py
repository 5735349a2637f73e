"""The third part of the page: a prompt of a language model beside an instruction, both answering as they write."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr

from mmprompt.errors import UserError
from mmprompt.language.data import load_texts
from mmprompt.studio.pages import fragments
from mmprompt.studio.pages.parts import QUIET, Updates, Watch, Wiring, refusal
from mmprompt.studio.session import Session
from mmprompt.studio.texts import ARROW, BUNDLED


class TextPage:
    """The controls, and what happens when they are used."""

    def __init__(self, wiring: Wiring) -> None:
        self.studio = wiring.studio
        data = load_texts(BUNDLED)
        example = data.test[0].fields["text"]
        gr.Markdown("## 1 · Learn from rows of text")
        with gr.Row():
            offered = list(self.studio.models.offered["language"])
            model = gr.Dropdown(offered, value="tiny", label="Frozen language model")
            epochs = gr.Slider(1, 30, value=6, step=1, label="Epochs")
        lines = gr.Textbox(
            label=f"Rows, one a line: text {ARROW} answer. Left empty, it is the bundled set: is somebody in it?",
            placeholder=f"{example} {ARROW} {data.test[0].label}",
            lines=3,
            max_lines=10,
            elem_id="rows",
        )
        inputs = [model, lines, epochs]
        self.watch = Watch(wiring, "texts", "Learn the prompt", self.submit, inputs, self.show_learned)
        with gr.Column(visible=False) as self.after:
            self.scores = gr.HTML(elem_id="scores")
            gr.Markdown("## 2 · Prompt against instruction")
            text = gr.Textbox(label="Text", value=example, elem_id="text")
            instruction = gr.Textbox(
                label="Instruction, in words", value=data.instructions[-1], elem_id="instruction", lines=2
            )
            with gr.Row(elem_classes="actions"):
                ask = gr.Button("Answer with both", variant="primary", elem_id="ask")
                self.download = gr.DownloadButton("Download the prompt")
            self.problem = gr.HTML()
            with gr.Row():
                with gr.Column():
                    gr.Markdown("### The instruction says")
                    self.written = gr.HTML(elem_id="by-instruction")
                with gr.Column():
                    gr.Markdown("### The learned prompt says")
                    self.learned = gr.HTML(elem_id="by-prompt")
        for listen in (ask.click, text.submit):
            said = [self.problem, self.written, self.learned]
            listen(self.answer, [wiring.browser, text, instruction], said, **QUIET)

    def show(self, session: Session) -> Updates:
        """Show everything as the session has it."""
        return {**self.watch.show(session), **self.show_learned(session)}

    def submit(self, session: Session, model: str, lines: str, epochs: int) -> None:
        """Queue a training."""
        session.submit("texts", session.texts.train(model, lines, int(epochs)))

    def show_learned(self, session: Session) -> Updates:
        """Show what there is since the last training or loading."""
        work = session.texts
        if work.run is None:
            return {}
        return {
            self.after: gr.update(visible=True),
            self.scores: "" if work.measure is None else fragments.scores(work.measure),
            self.download: str(session.download(work.run, f"text-prompt-{work.run.name}")),
        }

    def answer(self, name: str, text: str, instruction: str) -> Iterator[Updates]:
        """Answer a text with both, as the words come."""
        try:
            for written, learned in self.studio.session(name).texts.compare(text, instruction):
                shown = {self.written: fragments.html("side", written), self.learned: fragments.html("side", learned)}
                yield {self.problem: "", **shown}
        except UserError as error:
            yield {self.problem: refusal(error)}
