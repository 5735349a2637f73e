"""What the documentation site has besides docs/: README and CHANGELOG, and the public names of each room from their
docstrings. A hook of `mkdocs build`.
"""

import importlib
import inspect
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#:\s]+)(#[^)]*)?\)")
COPIED = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
ROOMS = {
    "index": ("mmprompt", "The common names: `import mmprompt as mp`."),
    "classification": ("mmprompt.classification", "What serves images and class names alone."),
    "captioning": ("mmprompt.captioning", "What serves captions alone."),
    "language": ("mmprompt.language", "What serves language models alone."),
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not written in docs/."""
    for source, page in COPIED.items():
        text = (ROOT / source).read_text().replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    for page, (package, title) in ROOMS.items():
        files.append(File.generated(config, f"api/{page}.md", content=api_page(package, title)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Name the files of the repository that a page links to outside docs/, where the site has no copy."""
    here = (Path(config.docs_dir) / page.file.src_uri).parent

    def inside(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        name = target.removeprefix("../")
        if name in COPIED:
            return f"[{text}]({COPIED[name]}{anchor})"
        is_in_docs = (here / target).resolve().is_relative_to(config.docs_dir) and (here / target).exists()
        if is_in_docs or files.get_file_from_path(target):
            return link[0]
        return f"{text} (`{name}`)"

    return LINK.sub(inside, markdown)


def api_page(package: str, title: str) -> str:
    """Return the page of a package's public classes and functions."""
    module = importlib.import_module(package)
    values = [getattr(module, name) for name in sorted(module.__all__, key=str.lower)]
    documented = [value for value in values if inspect.isclass(value) or inspect.isfunction(value)]
    blocks = [f"::: {value.__module__}.{value.__qualname__}" for value in documented]
    return "\n\n".join([f"# {package}", title, *blocks]) + "\n"
