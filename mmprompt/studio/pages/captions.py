"""The second part of the page: captions with focus, strength and what to avoid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from mmprompt.studio.captions import FOCUSES
from mmprompt.studio.pages import fragments
from mmprompt.studio.pages.images import any_image
from mmprompt.studio.pages.parts import BUSY, Part, Updates, Watch, answered
from mmprompt.studio.session import Session, Studio

NOTHING = "nothing"


class CaptionPage:
    """The controls, and what happens when they are used."""

    def __init__(self, studio: Studio, browser: gr.BrowserState) -> None:
        gr.Markdown("## 1 · Learn a focus\nA few vectors make the frozen captioner speak of one thing. Learned once.")
        self.learn = gr.Dropdown(list(FOCUSES), value="emotions", label="Focus to learn", elem_id="focus-to-learn")
        self.watch = Watch(studio, browser, "captions", "Learn the focus")
        gr.Markdown("## 2 · Steer the captions")
        with gr.Row():
            with gr.Column():
                self.focuses = gr.CheckboxGroup([], label="Focus, several speak in turn", elem_id="focuses")
                self.strength = gr.Slider(0, 3, value=1, step=0.1, label="Strength", elem_id="strength")
                self.avoid = gr.Dropdown([NOTHING], value=NOTHING, label="Avoid", elem_id="avoid")
                self.cost = gr.Slider(0, 10, value=10, step=0.5, label="Strength of avoiding", elem_id="avoid-strength")
            self.image = any_image("An image of your own, instead of the scenes", height=240)
        self.problem = gr.HTML()
        self.captions = gr.HTML(elem_id="captions")
        with gr.Row(elem_classes="actions"):
            self.download = gr.DownloadButton("Download the focus", visible=False)
        controls = [self.image, self.focuses, self.strength, self.avoid, self.cost]
        write = answered(studio, self.problem, self.write)
        outputs = [self.problem, self.captions, self.download]
        for control in controls:
            control.change(write, [browser, *controls], outputs, **(BUSY | {"trigger_mode": "always_last"}))
        self.watch.connect(self.submit, [self.learn], self.show_learned, [self.focuses, self.avoid])

    @property
    def part(self) -> Part:
        """What shows this part as a session has it."""
        return Part(self.show, [*self.watch.outputs, self.focuses, self.avoid])

    def show(self, session: Session) -> Updates:
        """Show everything as the session has it."""
        return {**self.watch.show(session), **self.show_learned(session)}

    def show_learned(self, session: Session) -> Updates:
        """Offer the focuses that are there, the newest chosen."""
        names = session.captions.learned()
        chosen = names[-1:] if session.captions.newest not in names else [session.captions.newest]
        avoid = gr.update(choices=[NOTHING, *names])
        return {self.focuses: gr.update(choices=names, value=chosen), self.avoid: avoid}

    def submit(self, session: Session, focus: str) -> None:
        """Queue the training of a focus, of which nothing is kept when it is stopped: all share it."""
        session.submit("captions", session.captions.learn(focus), keeps_part=False)

    def write(
        self, session: Session, image: str | None, focuses: list[str], strength: float, avoid: str, cost: float
    ) -> Updates:
        """Write captions as they are steered."""
        path, avoided = None if image is None else Path(image), None if avoid == NOTHING else avoid
        rows: Any = session.captions.write(path, focuses, strength, avoided, cost)
        shown = {self.captions: fragments.captioned(rows)}
        if not focuses:
            return {**shown, self.download: gr.update(visible=False)}
        archive = session.download(session.captions.folder(focuses[0]), f"focus-{focuses[0].split()[0]}")
        return {**shown, self.download: gr.update(visible=True, value=str(archive))}
