from __future__ import annotations

import stat
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmprompt import files
from mmprompt.errors import UserError
from mmprompt.files import SafeRoot, unpack, write_bytes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with links of every kind."""
    for folder in ("root/real", "outside"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "outside" / "secret.png").touch()
    folder = tmp_path / "root"
    (folder / "real" / "a.png").touch()
    (folder / "real" / "inside.png").symlink_to(folder / "real" / "a.png")
    (folder / "real" / "out.png").symlink_to(tmp_path / "outside" / "secret.png")
    (folder / "real" / "nowhere.png").symlink_to(tmp_path / "outside" / "gone.png")
    (folder / "linked").symlink_to(tmp_path / "outside")
    (folder / "same").symlink_to(folder / "real")
    return folder


@pytest.mark.parametrize(
    "path", ["real/a.png", "real/inside.png", "same/a.png", "not/there.png", "real/../real/a.png", "", "."]
)
def test_paths_that_stay_below_the_root_are_joined(root: Path, path: str) -> None:
    assert SafeRoot(root).join(path) == root / path


@pytest.mark.parametrize(
    "path",
    [
        "real/out.png",
        "real/nowhere.png",
        "linked/secret.png",
        "linked",
        "linked/new/deep.png",
        "../outside/secret.png",
        "real/../../outside/secret.png",
        "..",
        "real/../..",
        "linked/..",
        "/etc/passwd",
        "a\0b",
    ],
)
def test_paths_that_leave_the_root_are_refused(root: Path, path: str) -> None:
    inside = SafeRoot(root)
    inside.join("real/a.png")  # a folder that is known already opens no door
    with pytest.raises(UserError, match="leaves the data folder"):
        inside.join(path)


def test_a_root_may_be_reached_by_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert SafeRoot(tmp_path / "link").join("real/a.png").exists()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMPROMPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_zip(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as handle:
        for name, content in members.items():
            handle.writestr(name, content)
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return make_zip(tmp_path / "art" / "pictures.zip", {f"left/{i}.png": b"picture %d" % i for i in range(20)})


def refusal(archive: Path) -> str:
    with pytest.raises(UserError) as caught:
        unpack(archive)
    return str(caught.value)


def test_the_folder_is_named_after_the_zip_and_holds_its_files(archive: Path, cache: Path) -> None:
    folder = unpack(archive)
    assert folder.parent == cache
    assert folder.name.startswith("art-")
    assert (folder / "left" / "7.png").read_bytes() == b"picture 7"
    assert [path.name for path in cache.iterdir()] == [folder.name]


def test_a_whole_folder_is_used_again(archive: Path) -> None:
    before = (unpack(archive) / "left" / "0.png").stat().st_mtime_ns
    assert (unpack(archive) / "left" / "0.png").stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["lost", "cut"])
def test_a_damaged_folder_is_filled_again(archive: Path, cache: Path, damage: str) -> None:
    victim = unpack(archive) / "left" / "3.png"
    victim.unlink()
    if damage == "cut":
        victim.touch()
    assert (unpack(archive) / "left" / "3.png").read_bytes() == b"picture 3"
    assert len(list(cache.iterdir())) == 1


def test_another_zip_gets_another_folder(archive: Path) -> None:
    first = unpack(archive)
    make_zip(archive, {"left/0.png": b"new"})
    assert unpack(archive) != first


def test_many_at_once_all_get_the_whole_folder(archive: Path, cache: Path) -> None:
    barrier, results = threading.Barrier(8), []

    def work() -> None:
        barrier.wait()
        folder = unpack(archive)
        results.append(len(list(folder.rglob("*.png"))))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [20] * 8
    assert len(list(cache.iterdir())) == 1


def test_the_slower_process_uses_what_the_faster_one_made(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extract = zipfile.ZipFile.extractall

    def overtaken(handle: zipfile.ZipFile, *args: object) -> None:
        monkeypatch.setattr(zipfile.ZipFile, "extractall", extract)
        unpack(archive)
        extract(handle, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(zipfile.ZipFile, "extractall", overtaken)
    assert (unpack(archive) / "left" / "0.png").is_file()


def test_a_stop_half_way_leaves_nothing(archive: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(zipfile.ZipFile, "extractall", stopped)
    with pytest.raises(KeyboardInterrupt):
        unpack(archive)
    assert list(cache.iterdir()) == []


def test_a_name_of_no_letter_is_a_damaged_archive(tmp_path: Path, cache: Path) -> None:
    archive = make_zip(tmp_path / "bad.zip", {"good.png": b"", "a.png": b""})
    archive.write_bytes(archive.read_bytes().replace(b"a.png", b"\0.png"))
    assert "is a damaged archive" in refusal(archive)
    assert not cache.exists()


@pytest.mark.parametrize("n_writers", [2, 4])
def test_of_several_writers_of_a_file_one_wins_whole(n_writers: int, tmp_path: Path) -> None:
    contents = [bytes([number]) * 10**6 for number in range(n_writers)]
    together = threading.Barrier(n_writers)

    def write(content: bytes) -> None:
        for _ in range(5):
            together.wait()
            write_bytes(tmp_path / "a", content)
            assert (tmp_path / "a").read_bytes() in contents

    with ThreadPoolExecutor(n_writers) as pool:
        list(pool.map(write, contents))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "left/../../a.png", "C:a.png", "left\\a.png"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, cache: Path, name: str) -> None:
    archive = make_zip(tmp_path / "bad.zip", {"good.png": b"", name: b""})
    assert f"holds the unsafe name {name!r}" in refusal(archive)
    assert not cache.exists()


def test_links_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.zip"
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as handle:
        handle.writestr(link, "/etc/passwd")
    assert "holds the unsafe name 'link'" in refusal(path)


def test_an_archive_that_unpacks_to_too_much_is_refused(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_ZIP_BYTES", 100)
    assert "unpacks to more than" in refusal(archive)


def test_an_archive_of_too_many_files_is_refused(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_ZIP_FILES", 19)
    assert "unpacks to more than 19 files" in refusal(archive)


def test_a_missing_archive_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no.zip") == f"{tmp_path}/no.zip: is not there. Install mmprompt again."


def test_a_file_that_is_no_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_text("no zip")
    assert "is a damaged archive (File is not a zip file)" in refusal(path)


def test_damaged_content_is_refused_and_leaves_nothing(archive: Path, cache: Path) -> None:
    data = archive.read_bytes()
    archive.write_bytes(data.replace(data[44:50], b"\xff" * 6, 1))
    assert "is a damaged archive" in refusal(archive)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_made_is_refused(archive: Path, cache: Path) -> None:
    cache.touch()
    assert "cannot be made" in refusal(archive)
