"""The whole page, and the server that shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from mmprompt.errors import UserError
from mmprompt.studio.pages.captions import CaptionPage
from mmprompt.studio.pages.fragments import html
from mmprompt.studio.pages.images import ImagePage
from mmprompt.studio.pages.parts import QUIET, Wiring, refusal
from mmprompt.studio.pages.texts import TextPage
from mmprompt.studio.session import Session, Studio

MOST_BYTES = "25mb"
TITLE = """<header><h1>mmprompt studio</h1>
<p>Learn a few vectors that steer a frozen model. Nothing leaves this computer.</p></header>"""
FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
THEME = gr.themes.Default(
    primary_hue="indigo", neutral_hue="slate", font=FONT, font_mono=["ui-monospace", "monospace"]
).set(
    button_cancel_background_fill="#b91c1c",  # white words on it are read well
    button_cancel_background_fill_hover="#991b1b",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_dark="*primary_700",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_title_text_color="*neutral_700",
    block_label_text_color="*neutral_700",
    block_info_text_color="*neutral_600",
    input_placeholder_color="*neutral_500",
)


def build(studio: Studio) -> gr.Blocks:
    """Lay out the page."""
    with gr.Blocks(title="mmprompt studio", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        wiring = Wiring(studio)
        gr.HTML(TITLE)
        parts: dict[str, ImagePage | CaptionPage | TextPage] = {}
        with gr.Tabs() as tabs:
            with gr.Tab("Images", id="images"):
                parts["images"] = ImagePage(wiring)
            with gr.Tab("Captions", id="captions"):
                parts["captions"] = CaptionPage(wiring)
            with gr.Tab("Language", id="texts"):
                parts["texts"] = TextPage(wiring)
        with gr.Accordion("Load a prompt", open=False, elem_id="load"):
            given = gr.File(
                label="A zip of a prompt, or prompt.json with prompt.safetensors",
                file_count="multiple",
                file_types=[".zip", ".json", ".safetensors"],
                height=120,
                elem_id="load-file",
            )
            said = gr.HTML(elem_id="loaded")

        def open_session(name: str) -> dict[Any, Any]:
            session = studio.session(name)
            shown = [part.show(session) for part in parts.values()]
            return {wiring.browser: session.name} | {key: value for updates in shown for key, value in updates.items()}

        def load_prompt(session: Session, files: list[str] | None) -> dict[Any, Any]:
            try:
                place = session.open_prompt([Path(file) for file in files or []])
            except UserError as error:
                return {said: refusal(error), given: None}
            shown = {said: html("say", "Loaded."), given: None, tabs: gr.update(selected=place)}
            return shown | parts[place].show(session)

        wiring.on(given.upload, said, load_prompt, given, is_busy=True)
        every = wiring.connect(page)
        page.load(open_session, wiring.browser, [wiring.browser, *every], **QUIET)
    return page


def serve(studio: Studio, host: str, port: int) -> tuple[gr.Blocks, str]:
    """Show the page in a thread of its own, at a port that must be free; return it with its address."""
    page = build(studio)
    try:
        _, address, _ = page.queue(max_size=200).launch(
            server_name=host,
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            max_file_size=MOST_BYTES,
            allowed_paths=[str(studio.folder.resolve() / "sessions")],
            footer_links=[],
            ssr_mode=False,
            enable_monitoring=False,
            theme=THEME,
            css_paths=Path(__file__).with_name("studio.css"),
        )
    except OSError:
        raise UserError(
            f"port {port} of {host} cannot be used. Give another with --port, or end what uses it."
        ) from None
    return page, address
