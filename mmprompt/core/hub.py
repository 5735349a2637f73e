"""Saved prompts on the Hugging Face Hub: a repository holds the two files of a prompt and a model card made of them.

The frozen model stays where it is; nothing else of a run folder, such as paths of images, is uploaded.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmprompt.core.file import load, save
from mmprompt.core.header import HEADER, TENSORS, public_name, read_header, write_header
from mmprompt.errors import UserError, bad_file, bad_value
from mmprompt.files import ANY_SIZE, make_folder, new_folder, read_bytes, read_json, write_bytes
from mmprompt.settings import checked, expanded
from mmprompt.version import __version__

CARD = "README.md"
FILES = [HEADER, TENSORS, CARD]
TASKS = {"classification": "image-classification", "captioning": "image-to-text", "language": "text-generation"}
"""What the Hub calls the tasks of our kinds."""
ROWS = {"zero_shot_name": "bare class name", "zero_shot_template": "hand-written template", "learned": "this prompt"}


@checked
def push_to_hub(
    run: Any,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload a prompt to the Hugging Face Hub, with a model card made of its run.

    The two files of the prompt are uploaded, paths of this machine left out of them, and the card where the repository
    has none: a card that somebody edited stays as it is.

    Args:
        run: a run folder, a predictor, or the result of a training.
        repo_id: `"USER/NAME"`; made if there is none.
        private: whether a new repository is; None for what the user's settings say.
        revision: the branch; "main" by default.
        token: by default the one of `hf auth login` or `$HF_TOKEN`.
    Returns:
        the address of the commit.
    Raises:
        UserError: the Hub cannot be reached, refuses the name or the token, or there is no saved prompt.
    """
    from huggingface_hub import HfApi

    folder = expanded(run) if isinstance(run, Path | str) else getattr(run, "folder", None)
    with tempfile.TemporaryDirectory() as place:
        if folder is None:
            folder = Path(place) / "saved"
            save(getattr(run, "predictor", run), folder)
        fresh = make_folder(Path(place) / "upload")
        header = read_header(folder)
        _copy_public(folder, header, fresh)
        metrics = read_json(folder / "metrics.json") if (folder / "metrics.json").is_file() else {}
        with one_line_errors(repo_id):
            hub = HfApi(token=token, library_name="mmprompt", library_version=__version__)
            repo_id = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if not hub.file_exists(repo_id, CARD, revision=revision):
                write_bytes(fresh / CARD, model_card(repo_id, read_header(fresh), metrics).encode())
            message = f"Upload a prompt with mmprompt {__version__}"
            done = hub.upload_folder(
                repo_id=repo_id, folder_path=fresh, revision=revision, commit_message=message, run_as_future=False
            )
    return str(done.commit_url)


@checked
def from_pretrained(
    name: Path | str,
    model: Any = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: Path | str | None = None,
) -> Any:
    """Load a prompt from the Hugging Face Hub, or from a folder.

    Args:
        name: `"USER/NAME"`, or a folder as `load` takes it.
        model: the frozen model or its name; by default the one that the file names.
        revision: a branch, tag or commit; "main" by default.
        token: by default the one of `hf auth login` or `$HF_TOKEN`.
        cache_dir: where downloads are kept, instead of the Hub's own folder.
    Raises:
        UserError: the Hub cannot be reached, has no such prompt, or what `load` refuses.
    """
    folder = Path(name)
    return load(folder if folder.is_dir() else _fetched(str(name), revision, token, cache_dir), model)


@checked
def pull(repo_id: str, folder: Path | str, revision: str | None = None, token: str | None = None) -> None:
    """Download a prompt and its card into a new folder; arguments and refusals are those of `from_pretrained`."""
    folder = Path(folder)
    if folder.exists():
        raise bad_file(folder, "is there already", "Give another `out`.")
    place = _fetched(repo_id, revision, token, None)
    with new_folder(folder) as fresh:
        for name in FILES:  # another program may have fetched more of the repository
            if (place / name).is_file():
                write_bytes(fresh / name, read_bytes(place / name, ANY_SIZE))


def _fetched(repo_id: str, revision: str | None, token: str | None, cache_dir: Path | str | None) -> Path:
    """Download the files of a prompt into the Hub's cache."""
    from huggingface_hub import snapshot_download

    with one_line_errors(repo_id):
        place = snapshot_download(repo_id, revision=revision, token=token, cache_dir=cache_dir, allow_patterns=FILES)
    if not (Path(place) / HEADER).is_file():
        raise bad_file(repo_id, f"holds no {HEADER}, so it is no prompt of mmprompt", "Check the name on the Hub.")
    return Path(place)


@contextlib.contextmanager
def one_line_errors(repo_id: str) -> Iterator[None]:
    """Turn what the Hub's client raises into one line."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    log_in = "Log in with `hf auth login`, or set HF_TOKEN."
    try:
        yield
    except UserError:
        raise
    except errors.HFValidationError:
        raise bad_value("repo_id", repr(repo_id), "a name of the Hub was expected", "Write USER/NAME.") from None
    except errors.LocalTokenNotFoundError:
        raise bad_file(repo_id, f"needs a token for {hub}", log_in) from None
    except errors.RevisionNotFoundError:
        raise bad_file(repo_id, f"has no such revision on {hub}", "Give a branch, tag or commit that it has.") from None
    except (errors.RepositoryNotFoundError, errors.GatedRepoError):
        raise bad_file(repo_id, f"is not on {hub}, or you may not see it", f"Check the name. {log_in}") from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "?")
        said = error.server_message or "no reason given"
        advice = log_in if status in (401, 403) else "Check the name and your rights, or try again later."
        raise bad_file(repo_id, f"{hub} answered {status} ({said})", advice) from None
    except Exception as error:  # a missing network has a dozen names, by system and proxy
        reason = " ".join(str(error.__cause__ or error).split())[:120] or type(error).__name__
        advice = "Connect, unset HF_HUB_OFFLINE, or check HF_ENDPOINT."
        raise bad_file(repo_id, f"the Hub at {hub} cannot be reached ({reason})", advice) from None


def _copy_public(folder: Path, header: Mapping[str, Any], target: Path) -> None:
    """Copy a prompt without the paths of this machine; its tensors stay byte for byte."""
    public = {key: value for key, value in header.items() if key != "header_sha256"}
    public["training"] = _without_paths(header["training"])
    public["backbone"] = header["backbone"] | {"name": public_name(header["backbone"]["name"])}
    write_bytes(target / TENSORS, read_bytes(folder / TENSORS, ANY_SIZE))
    write_header(target, public)


def _without_paths(value: Any, key: str = "") -> Any:
    """Leave of every path its last part, and no notes on data, which may name folders too."""
    if isinstance(value, dict):
        return {name: _without_paths(each, name) for name, each in value.items() if name != "notes"}
    if isinstance(value, list):
        return [_without_paths(each, key) for each in value]
    if not isinstance(value, str):
        return value
    is_start = key in ("ctx_init", "tpt_init") and "/" in value and " " not in value  # of words there are several
    is_path = is_start or value.startswith(("/", "~", "./", "../"))
    return Path(value).name if is_path else value


def model_card(repo_id: str, header: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Write the model card of a prompt, from its header and its run's `metrics.json`, {} where there is none."""
    from huggingface_hub import EvalResult, ModelCardData

    training, backbone = header["training"], header["backbone"]
    method, data = training.get("method", {}), training.get("data", {})
    learned = metrics.get("learned", {}) if header["kind"] == "classification" else {}
    task = TASKS[header["kind"]]
    results = (
        [EvalResult(task, data.get("name", "?"), data.get("name", "?"), "accuracy", round(learned["accuracy"], 4))]
        if "accuracy" in learned
        else None
    )
    hub_name = backbone["name"].removeprefix("hf:") if backbone["name"].startswith("hf:") else None
    head = ModelCardData(
        library_name="mmprompt",
        pipeline_tag=task,
        tags=["mmprompt", "prompt-tuning", *([method["name"]] if method.get("name") else [])],
        base_model=hub_name if hub_name and hub_name.count("/") == 1 else None,
        metrics=["accuracy"] if results else None,
        model_name=repo_id.rpartition("/")[2] if results else None,
        eval_results=results,
    )
    given = "IMAGE" if header["kind"] != "language" else "TEXT"
    parts = [
        f"# {repo_id.rpartition('/')[2]}",
        f"A prompt for a frozen {backbone['name']}, learned with mmprompt {header['mmprompt']}. The frozen model is no "
        "part of this repository.",
        _facts(header),
        *_accuracy(metrics if learned else {}),
        f"## Use\n\n```bash\nmmprompt prompt pull {repo_id} --out prompt\nmmprompt predict prompt {given}\n```",
        f'```python\nimport mmprompt as mp\n\npredictor = mp.from_pretrained("{repo_id}")\n```',
        *(
            ["## To know\n\n" + "\n".join(f"- {note}" for note in training["notices"])]
            if training.get("notices")
            else []
        ),
        "## Licence\n\nThe run says none. The licences of the frozen model and of the data bear on it; name one as "
        "`license:` in the head of this file.",
    ]
    return f"---\n{head.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _facts(header: Mapping[str, Any]) -> str:
    """Say in a table what a prompt is and what it was learned from."""
    training, backbone = header["training"], header["backbone"]
    method, data = training.get("method", {}), training.get("data", {})
    given = ", ".join(f"{name} {value}" for name, value in method.get("settings", {}).items() if value is not None)
    rows = {
        "frozen model": f"`{backbone['name']}`, weights `{backbone['fingerprint'][:16]}`",
        "method": f"{method.get('name', '')}: {given}".strip(": "),
        "template": f"`{header['template']}`" if header["template"] else "",
        "focus": header.get("focus", ""),
        "classes": ", ".join(header.get("class_names", [])),
        "learned from": data.get("name", ""),
        "shots, seed": f"{data['shots']}, {training.get('seed')}" if data.get("shots") else "",
        "rows or images": ", ".join(f"{name} {n}" for name, n in data.get("sizes", {}).items()),
    }
    lines = [f"| {name} | {' '.join(str(value).replace('|', '/').split())} |" for name, value in rows.items() if value]
    return "\n".join(["## What it is", "", "| | |", "|---|---|", *lines])


def _accuracy(metrics: Mapping[str, Any]) -> list[str]:
    """Set the accuracy beside that of the frozen model with words alone."""
    rows = {said: metrics[key] for key, said in ROWS.items() if key in metrics}
    if not rows:
        return []
    lines = [
        f"| {said} | {100 * row['accuracy']:.1f} % | {100 * row['interval'][0]:.1f} to {100 * row['interval'][1]:.1f} |"
        for said, row in rows.items()
    ]
    n_images = metrics["learned"]["n"]
    head = ["## Accuracy", "", f"On {n_images:,} test images.", "", "| | accuracy | 95 % interval |", "|---|---|---|"]
    return ["\n".join([*head, *lines])]
