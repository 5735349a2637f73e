"""The second part of the page: captions with focus, strength and what to avoid."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from mmprompt.studio.captions import FOCUSES, KIND
from mmprompt.studio.pages.fragments import html
from mmprompt.studio.pages.images import any_image
from mmprompt.studio.pages.parts import Updates, Watch, Wiring
from mmprompt.studio.session import Session

NOTHING = "nothing"


class CaptionPage:
    """The controls, and what happens when they are used."""

    def __init__(self, wiring: Wiring) -> None:
        gr.Markdown("## 1 · Learn a focus\nA few vectors make the frozen captioner speak of one thing. Learned once.")
        offered = list(wiring.studio.models.offered[KIND])
        with gr.Row():
            self.captioner = gr.Dropdown(offered, value="tiny", label="Frozen captioner", elem_id="captioner")
            learn = gr.Dropdown(list(FOCUSES), value="emotions", label="Focus to learn", elem_id="focus-to-learn")
        self.watch = Watch(wiring, "captions", "Learn the focus", self.submit, [learn], self.show_learned)
        gr.Markdown("## 2 · Steer the captions")
        with gr.Row():
            with gr.Column():
                self.focuses = gr.CheckboxGroup([], label="Focus, several speak in turn", elem_id="focuses")
                strength = gr.Slider(0, 3, value=1, step=0.1, label="Strength", elem_id="strength")
                self.avoid = gr.Dropdown([NOTHING], value=NOTHING, label="Avoid", elem_id="avoid")
                cost = gr.Slider(0, 10, value=10, step=0.5, label="Strength of avoiding", elem_id="avoid-strength")
            image = any_image("An image of your own, instead of the scenes", height=240, elem_id="caption-image")
        problem = gr.HTML(elem_id="caption-problem")
        self.captions = gr.HTML(elem_id="captions")
        with gr.Row(elem_classes="actions"):
            self.download = gr.DownloadButton("Download the focus", visible=False)
        controls = [image, self.focuses, strength, self.avoid, cost]
        for control in controls:
            wiring.on(control.change, problem, self.write, *controls, is_busy=True, trigger_mode="always_last")
        wiring.on(self.captioner.change, problem, self.choose, self.captioner, image, is_busy=True)

    def show(self, session: Session) -> Updates:
        """Show everything as the session has it."""
        return {**self.watch.show(session), **self.show_learned(session)}

    def show_learned(self, session: Session) -> Updates:
        """Offer the focuses that are there, the newest chosen."""
        work = session.captions
        names = work.learned()
        return {
            self.captioner: work.captioner,
            self.focuses: gr.update(choices=names, value=[work.newest] if work.newest in names else names[-1:]),
            self.avoid: gr.update(choices=[NOTHING, *names]),
        }

    def choose(self, session: Session, captioner: str, image: str | None) -> Updates:
        """Speak with another captioner: first by itself, then with a focus of its own, where there is one."""
        if captioner == session.captions.captioner:
            return {}
        session.captions.captioner = captioner
        avoid = gr.update(choices=[NOTHING, *session.captions.learned()], value=NOTHING)
        return {**self.show_learned(session), self.avoid: avoid, **self.write(session, image, [], 1.0, NOTHING, 0.0)}

    def submit(self, session: Session, focus: str) -> None:
        """Queue the training of a focus, of which nothing is kept when it is stopped: all share it."""
        session.submit("captions", session.captions.learn(focus), keeps_part=False)

    def write(
        self,
        session: Session,
        image: str | None,
        focuses: list[str],
        strength: float,
        avoid: str,
        cost: float,
    ) -> Updates:
        """Write captions as they are steered."""
        path, avoided = None if image is None else Path(image), None if avoid == NOTHING else avoid
        rows = session.captions.write(path, focuses, strength, avoided, cost)
        shown = {self.captions: html("captioned", rows)}
        if not focuses:
            return {**shown, self.download: gr.update(visible=False)}
        archive = session.download(session.captions.folder(focuses[0]), f"focus-{focuses[0].split()[0]}")
        return {**shown, self.download: gr.update(visible=True, value=str(archive))}
