"""What every part of the page shares: handlers that answer a refusal in place, a watched training, its curves."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import gradio as gr

from mmprompt.errors import UserError
from mmprompt.studio.pages import fragments
from mmprompt.studio.pages.curves import curves
from mmprompt.studio.session import Session, Studio

TICK_S = 0.5
FOLDERS = re.compile(r"[^\s'\"]*/(?:uploads|sessions)/(?:[^\s/]+/)*")
Updates = dict[Any, Any]
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": 8}
BUSY: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private", "concurrency_limit": 8}


@dataclass(frozen=True)
class Part:
    """A part of the page: what shows it as its session has it, and the components that this touches."""

    show: Callable[[Session], Updates]
    outputs: list[Any]


def answered(studio: Studio, notice: gr.HTML, handle: Callable[..., Updates]) -> Callable[..., Updates]:
    """Make a handler of one that takes a session and gives updates: a refusal is shown in `notice`."""

    @wraps(handle)
    def answer(name: str, *given: Any) -> Updates:
        try:
            return {notice: "", **handle(studio.session(name), *given)}
        except UserError as error:
            return {notice: refusal(error)}

    return answer


def refusal(error: UserError) -> str:
    """Word a refusal without the folders of this computer, which mean nothing to who sits at the page."""
    return fragments.refuse(FOLDERS.sub("", str(error)))


class Watch:
    """The controls of one kind of training: start, stop, how far it is, curves.

    Args:
        studio: whose queue it is.
        browser: holds the name of the session.
        place: of the jobs that are watched.
        start: what the button that starts says.
    """

    def __init__(self, studio: Studio, browser: gr.BrowserState, place: str, start: str) -> None:
        self.studio, self.browser, self.place = studio, browser, place
        with gr.Row(elem_classes="actions"):
            self.start = gr.Button(start, variant="primary", elem_id=f"{place}-start")
            self.stop = gr.Button("Stop", variant="stop", interactive=False, elem_id=f"{place}-stop")
        self.status = gr.HTML(elem_id=f"{place}-status")
        self.curves = gr.HTML(elem_id=f"{place}-curves")
        self.timer = gr.Timer(TICK_S, active=False)
        self._seen = gr.State(0)  # which training's end this page has shown, so that a late tick undoes no edit

    @property
    def outputs(self) -> list[Any]:
        """All that `show` touches."""
        return [self.start, self.stop, self.status, self.curves, self.timer]

    def connect(
        self, submit: Callable[..., None], inputs: list[Any], done: Callable[[Session], Updates], outputs: list[Any]
    ) -> None:
        """Say what starts a training and what is shown when one has ended."""

        def start(session: Session, *given: Any) -> Updates:
            submit(session, *given)
            return self.show(session)

        def tick(session: Session, seen: int) -> Updates:
            job = session.job_of(self.place)
            shown = self.show(session)
            if job is None or job.is_alive or id(job) == seen:
                return shown
            return {**shown, **done(session), self._seen: id(job)}

        def stop(session: Session) -> Updates:
            job = session.job_of(self.place)
            if job is not None:
                job.stop()
            return self.show(session)

        every, notice = [*self.outputs, *outputs, self._seen], self.status
        self.start.click(answered(self.studio, notice, start), [self.browser, *inputs], self.outputs, **QUIET)
        self.stop.click(answered(self.studio, notice, stop), [self.browser], self.outputs, **QUIET)
        self.timer.tick(answered(self.studio, notice, tick), [self.browser, self._seen], every, **QUIET)

    def show(self, session: Session) -> Updates:
        """Return how far the training of a session is."""
        job = session.job_of(self.place)
        is_alive = job is not None and job.is_alive
        return {
            self.start: gr.update(interactive=not is_alive),
            self.stop: gr.update(interactive=is_alive),
            self.status: fragments.progress(job, session.n_ahead()),
            self.curves: "" if job is None else curves(job.history, job.n_epochs),
            self.timer: gr.Timer(TICK_S, active=is_alive),
        }
