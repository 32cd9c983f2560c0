"""Models by name from a hub: downloaded, and converted where needed, when first asked for.

`osum-echat` (or `osum-echat-language`, `osum-echat-label`) are the released weights; `OWNER/NAME` is a
repository that holds a model folder as echat writes it. What was converted lies in the cache of echat and is
used without a network; to convert anew, remove it.
"""

import os
import re
import sys
from pathlib import Path, PurePosixPath

from echat.model_files import (
    CONFIG_FILE,
    SPEECH_TOKENIZER_FOLDER,
    TOKEN2WAV_FOLDER,
    TOKENIZER_FOLDER,
    WEIGHTS_FILE,
)
from echat.release import hub

RELEASED = {  # name -> the form in which these weights think
    hub.RELEASE: "language",
    f"{hub.RELEASE}-language": "language",
    f"{hub.RELEASE}-label": "label",
    hub.WEIGHTS_REPO: "language",
}
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FOLDERS = (TOKENIZER_FOLDER, TOKEN2WAV_FOLDER, SPEECH_TOKENIZER_FOLDER)
FILES = (CONFIG_FILE, WEIGHTS_FILE, "README.md", "LICENSE")


def is_hub_name(name: str) -> bool:
    """Whether a name may be that of a model on a hub."""
    return name in RELEASED or HUB_NAME.fullmatch(name) is not None


def fetch_model(name: str) -> Path:
    """The model folder of a name on the hub, on this machine."""
    return _converted_release(RELEASED[name]) if name in RELEASED else _published_folder(name)


def cache_folder() -> Path:
    """The cache folder of echat; `XDG_CACHE_HOME` replaces ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "echat"


def _converted_release(think: str) -> Path:
    """Released weights as a model folder: downloaded and converted once."""
    from filelock import FileLock

    from echat.release.conversion import convert

    folder = cache_folder() / "models" / f"{hub.RELEASE}-{think}"
    if (folder / CONFIG_FILE).is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / CONFIG_FILE).is_file():  # unless another process made it meanwhile
            release = hub.download(think)
            print(f"converting {release.weights.name} into {folder}, once", file=sys.stderr)
            convert(release.weights.path, release.llm_folder, folder, release.token2wav.path)
    return folder


def _published_folder(repo: str) -> Path:
    """A model folder that somebody published, in the cache of the hub; nothing else of it is fetched."""
    config = hub.fetch(repo, CONFIG_FILE)  # its commit is that of all others
    for name in hub.list_files(repo, config.commit):
        if name != CONFIG_FILE and _belongs(PurePosixPath(name)):
            hub.fetch(repo, name, config.commit)
    return config.path.parent


def _belongs(name: PurePosixPath) -> bool:
    if ".." in name.parts or name.is_absolute():
        return False
    return str(name) in FILES or (len(name.parts) > 1 and name.parts[0] in FOLDERS)
