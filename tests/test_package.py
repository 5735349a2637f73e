"""The shape of the package: what imports what, and when."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mmprompt

PACKAGE = Path(mmprompt.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))


def loaded_after(code):
    """The modules in memory after running some code in a fresh interpreter."""
    program = f"{code}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_imports_from_the_lazy_root(path):
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.ImportFrom) and node.module == "mmprompt"), f"line {node.lineno}"


def test_importing_the_package_loads_no_torch():
    assert "torch" not in loaded_after("import mmprompt")


def test_nothing_is_asked_of_the_network_at_import_or_in_a_run():
    closed = """
import pkgutil, socket, sys
def refuse(*args, **kwargs):
    raise SystemExit(f"asked for {args}")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
import mmprompt as mp
for module in pkgutil.walk_packages(mp.__path__, "mmprompt."):
    if not module.name.endswith(("__main__", ".sandbox")):  # programs, not modules
        __import__(module.name)
data = mp.load_dataset("openart-left", shots=1)
print(mp.fit(mp.NearestClassMean(), "tiny", data).predictor.predict(data.test[0].path).label)
"""
    done = subprocess.run([sys.executable, "-c", closed], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_loads_no_torch():
    assert "torch" not in loaded_after("from mmprompt.cli.main import main; main(['--help'])")


def test_loading_a_prompt_needs_no_method_and_no_training():
    modules = loaded_after("import mmprompt; mmprompt.load")
    assert "mmprompt.core.file" in modules
    assert not {m for m in modules if m.startswith(("mmprompt.classification.methods", "mmprompt.training"))}


@pytest.mark.parametrize("room", ["classification", "captioning", "language"])
def test_a_predictor_needs_no_method_and_no_training(room):
    modules = loaded_after(f"import mmprompt.{room}.predictor")
    unneeded = (f"mmprompt.{room}.methods", f"mmprompt.{room}.task", "mmprompt.core.method", "mmprompt.training")
    assert not {m for m in modules if m.startswith(unneeded)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_name_that_a_text_gives_in_full_is_found(path):
    files = ("mmprompt.json", "mmprompt.safetensors")
    for name in set(re.findall(r"\bmmprompt(?:\.[a-zA-Z_]\w*)+", path.read_text())) - set(files):
        assert pkgutil.resolve_name(name) is not None


@pytest.mark.parametrize("name", mmprompt.__all__)
def test_every_public_name_resolves(name):
    assert getattr(mmprompt, name) is not None


def test_every_public_name_that_a_script_uses_is_there():
    scripts = PACKAGE.parent / "scripts"
    used = {name for path in scripts.rglob("*.py") for name in re.findall(r"\bmp\.([a-zA-Z_]\w*)", path.read_text())}
    assert "fit" in used
    assert used <= set(mmprompt.__all__)


@pytest.mark.parametrize("room", ["", "classification", "captioning", "language"])
def test_type_checkers_see_the_names_that_resolve(room):
    package = importlib.import_module(f"mmprompt.{room}".rstrip("."))
    (block,) = [
        node for node in ast.parse((PACKAGE / room / "__init__.py").read_text()).body if isinstance(node, ast.If)
    ]
    seen = {alias.name for node in block.body for alias in node.names}
    assert seen == set(package.__all__) - {"__version__", "captioning", "classification", "language"}
    assert all(getattr(package, name) is not None for name in seen)


@pytest.mark.parametrize("room", ["", "classification", "captioning", "language"])
def test_no_module_takes_the_place_of_a_name(room):
    package = importlib.import_module(f"mmprompt.{room}".rstrip("."))
    modules = {path.stem for path in (PACKAGE / room).iterdir() if path.suffix == ".py" or path.is_dir()}
    assert set(package.__all__) & modules <= {"captioning", "classification", "language"}


def test_the_public_names_are_few():
    assert len(mmprompt.__all__) <= 55


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'CoCoCoOp'"):
        mmprompt.CoCoCoOp  # noqa: B018
