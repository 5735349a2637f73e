"""What every part of the page shares: handlers that answer a refusal in place, and a training that is watched."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import gradio as gr

from mmprompt.errors import UserError
from mmprompt.studio.pages import fragments
from mmprompt.studio.session import Session, Studio

KEY = "mmprompt-studio"
"""Under which a browser keeps the name of its session; the name is the secret, no key could add to it."""
TICK_S = 0.5
FOLDERS = re.compile(r"[^\s'\"]*/(?:uploads|sessions)/(?:[^\s/]+/)*")
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": 8}
Updates = dict[Any, Any]
Show = Callable[[Session], Updates]


class Wiring:
    """What happens when controls are used; a handler takes its session and may update whatever is on the page."""

    def __init__(self, studio: Studio) -> None:
        self.studio, self.browser = studio, gr.BrowserState("", storage_key=KEY, secret=KEY)
        self._handlers: list[Callable[[Sequence[Any]], None]] = []

    def on(
        self,
        listen: Any,
        notice: gr.HTML,
        handle: Callable[..., Updates],
        *inputs: Any,
        is_busy: bool = False,
        **how: Any,
    ) -> None:
        """Have an event handled once the page is whole: a refusal is shown in `notice`, which is empty otherwise."""

        @wraps(handle)
        def answer(name: str, *given: Any) -> Updates:
            try:
                return {notice: "", **handle(self.studio.session(name), *given)}
            except UserError as error:
                return {notice: refusal(error)}

        shown = {"show_progress": "minimal", "show_progress_on": notice} if is_busy else {}
        given = [self.browser, *inputs]
        self._handlers.append(lambda every: listen(answer, given, every, **(QUIET | shown | how)))

    def connect(self, page: gr.Blocks) -> list[Any]:
        """Connect all handlers, and return what they may update."""
        kinds = (gr.components.Component, gr.Column, gr.Tabs)
        fixed = (gr.Image, gr.Markdown, gr.BrowserState)  # an update makes a component anew, and `any_image` is patched
        every = [block for block in page.blocks.values() if isinstance(block, kinds) and not isinstance(block, fixed)]
        for connect in self._handlers:
            connect(every)
        return every


def refusal(error: UserError) -> str:
    """Word a refusal without the folders of this computer, which mean nothing to who sits at the page."""
    return fragments.html("refuse", FOLDERS.sub("", str(error)))


class Watch:
    """The controls of one kind of training: start, stop, how far it is, curves.

    `submit` starts a training, given a session and the `inputs`, which are its settings; `done` shows what one that has
    ended came to.
    """

    def __init__(
        self, wiring: Wiring, place: str, start: str, submit: Callable[..., None], inputs: Sequence[Any], done: Show
    ) -> None:
        self.place, self.submit, self.done = place, submit, done
        with gr.Row(elem_classes="actions"):
            self.start = gr.Button(start, variant="primary", elem_id=f"{place}-start")
            self.stop = gr.Button("Stop", variant="stop", interactive=False, elem_id=f"{place}-stop")
        self.status = gr.HTML(elem_id=f"{place}-status")
        self.curves = gr.HTML(elem_id=f"{place}-curves")
        self.timer = gr.Timer(TICK_S, active=False)
        self._seen = gr.State(0)  # which training's end this page has shown, so that a late tick undoes no edit
        wiring.on(self.start.click, self.status, self._start, *inputs)
        wiring.on(self.stop.click, self.status, self._stop)
        wiring.on(self.timer.tick, self.status, self._tick, self._seen)

    def _start(self, session: Session, *given: Any) -> Updates:
        self.submit(session, *given)
        return self.show(session)

    def _stop(self, session: Session) -> Updates:
        job = session.job_of(self.place)
        if job is not None:
            job.stop()
        return self.show(session)

    def _tick(self, session: Session, seen: int) -> Updates:
        job, shown = session.job_of(self.place), self.show(session)
        if job is None or job.is_alive or id(job) == seen:
            return shown
        return {**shown, **self.done(session), self._seen: id(job)}

    def show(self, session: Session) -> Updates:
        """Return how far the training of a session is."""
        job = session.job_of(self.place)
        is_alive = job is not None and job.is_alive
        return {
            self.start: gr.update(interactive=not is_alive),
            self.stop: gr.update(interactive=is_alive),
            self.status: "" if job is None else fragments.html("progress", job, session.jobs.n_ahead(job)),
            self.curves: "" if job is None else fragments.curves(job.history, job.n_epochs),
            self.timer: gr.Timer(TICK_S, active=is_alive),
        }
