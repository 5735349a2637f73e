"""The licences of the embedded model and pictures: each that is named has its text, and the wheel holds them all."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from openart.export import OPENART_README, SCENES_README, TINY_README

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "mmprompt" / "assets"
PAGES = [*sorted((ASSETS / "licences").glob("*.md")), ASSETS / "openart" / "README.md"]
SOURCE = re.compile(r"^\* \*\*.+?\*\*: .+?\. (\S+)(?: http\S+)?$", re.MULTILINE)
ENDS = {
    "Apache-2.0": "limitations under the License.",
    "CC-BY-4.0": "Creative Commons may be contacted at creativecommons.org.",
    "CC-BY-SA-4.0": "Creative Commons may be contacted at creativecommons.org.",
    "MIT": "USE OR OTHER DEALINGS IN THE SOFTWARE.",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_every_licence_that_is_named_has_its_text(page: Path) -> None:
    named = set(SOURCE.findall(page.read_text(encoding="utf-8")))
    assert named
    assert [name for name in sorted(named) if not (ASSETS / "licences" / f"{name}.txt").is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_every_source_on_the_page_names_its_licence(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(SOURCE.findall(text)) == text.count("sha256 `")


@pytest.mark.parametrize(
    ("written", "page"),
    [
        (TINY_README, PAGES[0].with_name("tiny.md")),
        (OPENART_README, PAGES[-1]),
        (SCENES_README, ASSETS / "scenes/README.md"),
    ],
    ids=["tiny", "openart", "scenes"],
)
def test_the_page_is_the_one_that_an_export_writes(written: str, page: Path) -> None:
    around = [re.escape(part) for part in re.split(r"\{\w*\}", written)]
    assert re.fullmatch(r"(?s:.+)".join(around), page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ENDS)
def test_a_licence_is_there_to_its_last_words(name: str) -> None:
    text = (ASSETS / "licences" / f"{name}.txt").read_text(encoding="utf-8")
    assert text.rstrip().endswith(ENDS[name])
    assert len(text) > (1_000 if name == "MIT" else 10_000)


def test_the_mit_text_names_all_whose_work_is_under_it() -> None:
    text = (ASSETS / "licences" / "MIT.txt").read_text(encoding="utf-8")
    owners = re.findall(
        r"^\* \*\*.+?\*\*: ([^(.]+?)(?: \(.*)?\. MIT\b",
        (ASSETS / "licences" / "tiny.md").read_text("utf-8"),
        re.MULTILINE,
    )
    assert owners
    assert [owner for owner in owners if owner not in text] == []


def test_the_wheel_holds_the_texts_with_the_package_and_as_its_licence_files() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["mmprompt"]
    assert "exclude" not in wheel
    stated = {path for pattern in project["project"]["license-files"] for path in ROOT.glob(pattern)}
    assert {ROOT / "LICENSE", *(ASSETS / "licences").iterdir()} <= stated
