"""The whole page, and the server that shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from mmprompt.errors import UserError
from mmprompt.studio.pages import fragments
from mmprompt.studio.pages.captions import CaptionPage
from mmprompt.studio.pages.images import ImagePage
from mmprompt.studio.pages.parts import BUSY, QUIET, Part, refusal
from mmprompt.studio.pages.texts import TextPage
from mmprompt.studio.session import Studio

KEY = "mmprompt-studio"
"""Under which a browser keeps the name of its session; the name is the secret, no key could add to it."""
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
        browser = gr.BrowserState("", storage_key=KEY, secret=KEY)
        gr.HTML(TITLE)
        with gr.Tabs() as tabs:
            with gr.Tab("Images", id="images"):
                images = ImagePage(studio, browser).part
            with gr.Tab("Captions", id="captions"):
                captions = CaptionPage(studio, browser).part
            with gr.Tab("Language", id="texts"):
                texts = TextPage(studio, browser).part
        with gr.Accordion("Load a prompt", open=False, elem_id="load"):
            types = [".zip", ".json", ".safetensors"]
            given = gr.File(
                label="A zip of a prompt, or prompt.json with prompt.safetensors",
                file_count="multiple",
                file_types=types,
                height=120,
                elem_id="load-file",
            )
            said = gr.HTML(elem_id="loaded")
        parts = {"images": images, "captions": captions, "texts": texts}
        _connect(studio, page, browser, parts, tabs, given, said)
    return page


def _connect(
    studio: Studio, page: gr.Blocks, browser: gr.BrowserState, parts: dict[str, Part], tabs: Any, given: Any, said: Any
) -> None:
    every = [component for part in parts.values() for component in part.outputs]

    def open_session(name: str) -> dict[Any, Any]:
        session = studio.session(name)
        shown = [part.show(session) for part in parts.values()]
        return {browser: session.name} | {key: value for updates in shown for key, value in updates.items()}

    def load_prompt(name: str, files: list[str] | None) -> dict[Any, Any]:
        session = studio.session(name)
        try:
            place = session.open_prompt([Path(file) for file in files or []])
        except UserError as error:
            return {said: refusal(error), given: None}
        shown = {said: fragments.say("Loaded."), given: None, tabs: gr.update(selected=place)}
        return shown | parts[place].show(session)

    page.load(open_session, browser, [browser, *every], **QUIET)
    given.upload(load_prompt, [browser, given], [said, given, tabs, *every], **BUSY)


def serve(studio: Studio, host: str, port: int) -> tuple[gr.Blocks, str]:
    """Show the page in a thread of its own; return it with its address.

    Raises:
        UserError: the port is taken.
    """
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
