"""The released files from a model hub: resumable, checked by hash, or straight from the local cache.

Cache, mirrors, tokens and offline mode are those of huggingface_hub: `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`,
`HF_HUB_OFFLINE`. Files lie in its cache, so what another program fetched is not fetched again. Only the
transfer is ours: the library throws an interrupted file away and does not compare hashes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from echat.errors import first_line

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

RELEASE = "osum-echat"
WEIGHTS_REPO = "ASLP-lab/OSUM-EChat"
WEIGHTS_FILES = {"label": "tag_think_final.pt", "language": "language_think_final.pt"}
TOKEN2WAV_FILE = "CosyVoice-300M-25Hz.tar"
LLM_REPO = "Qwen/Qwen2.5-3B-Instruct"
LLM_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")  # its weights are never needed
DEFAULT_REVISION = "main"
SHA256_DIGITS, SHA1_DIGITS = 64, 40  # how the hub names large and small files


@dataclass(frozen=True)
class DownloadedFile:
    """A file that lies on this machine."""

    repo: str
    name: str
    path: Path
    commit: str
    bytes: int
    check: str  # sha256, git-sha1, or why it could not be checked


@dataclass(frozen=True)
class Release:
    """Everything that a conversion needs."""

    weights: DownloadedFile
    token2wav: DownloadedFile
    llm: tuple[DownloadedFile, ...]

    @property
    def llm_folder(self) -> Path:
        return self.llm[0].path.parent

    def __iter__(self) -> Iterator[DownloadedFile]:
        yield from (self.weights, self.token2wav, *self.llm)


def download(think: str, revision: str | None = None) -> Release:
    """Weights that think in `label` or `language` form, their synthesis, and the language model's shape and
    tokenizer. `revision` (branch, tag, commit) is that of the weights."""
    at = revision or DEFAULT_REVISION
    return Release(
        llm=tuple(fetch(LLM_REPO, name) for name in LLM_FILES),  # small ones first: they show what is wrong
        token2wav=fetch(WEIGHTS_REPO, TOKEN2WAV_FILE, at),
        weights=fetch(WEIGHTS_REPO, WEIGHTS_FILES[think], at),
    )


def fetch(repo: str, name: str, revision: str = DEFAULT_REVISION) -> DownloadedFile:
    """One file in the cache, whole and checked; what lies there already is not transferred again."""
    from huggingface_hub import constants, hf_hub_download

    try:
        if not constants.HF_HUB_OFFLINE:
            _ensure_cached(repo, name, revision)
        path = Path(hf_hub_download(repo, name, revision=revision))  # now a look-up
    except Exception as error:
        _raise_explained(error, repo, name, revision)
    check = _check(path.resolve(), path.resolve().name, f"{repo}, {name}")
    return DownloadedFile(repo, name, path, path.parent.name, path.stat().st_size, check)


def list_files(repo: str, commit: str) -> list[str]:
    """Names of the files of a repository at a commit; without a connection those that lie in the cache."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import repo_folder_name

    if not constants.HF_HUB_OFFLINE:
        try:
            return [file.rfilename for file in HfApi().model_info(repo, revision=commit).siblings or []]
        except HfHubHTTPError as error:
            _raise_explained(error, repo, "list of files", commit)
        except Exception:  # no connection, in one of many forms
            pass
    cache = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    folder = cache / "snapshots" / commit
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]


def _ensure_cached(repo: str, name: str, revision: str) -> None:
    """See that the cache holds the blob; without a connection the cache is left as it is."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import repo_folder_name

    url = hf_hub_url(repo, name, revision=revision)
    try:
        found = get_hf_file_metadata(url)
    except HfHubHTTPError:
        raise
    except Exception:  # no connection, in one of many forms: the library then looks into its cache
        return
    if not found.commit_hash or not found.etag or Path(found.etag).name != found.etag:
        return  # no hub, or one that names files by paths: the library says so
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
    if not (folder / found.etag).exists():
        folder.mkdir(parents=True, exist_ok=True)
        _transfer(url, found, folder / found.etag, f"{repo}, {name}")


def _transfer(url: str, found: HfFileMetadata, blob: Path, what: str) -> None:
    """Bring a blob, going on where an earlier attempt ended; it gets its name only when its hash is right."""
    from filelock import FileLock
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    headers = build_hf_headers()
    if urlsplit(found.location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # a signed address elsewhere: the token is none of its business
    part = blob.with_name(f"{blob.name}.part")
    with FileLock(f"{part}.lock"):
        if blob.exists():
            return  # another process brought it meanwhile
        if found.size is not None:
            _check_disk_space(part, found.size, what)
        with open(part, "ab") as file:
            try:
                http_get(
                    found.location,
                    file,
                    resume_size=file.tell(),
                    headers=headers,
                    expected_size=found.size,
                    displayed_filename=what,
                )
            except Exception as error:  # of many kinds; what came so far stays
                raise ValueError(
                    f"{what}: expected {found.size} bytes, found the transfer broken off after {file.tell()} "
                    f"({first_line(error)}); run the command again, it goes on from there"
                ) from error
        try:
            _check(part, blob.name, what)
        except ValueError:
            part.unlink()
            raise
        os.replace(part, blob)


def _check_disk_space(part: Path, size: int, what: str) -> None:
    """Refuse what the disk cannot hold, before hours of transfer; a part that is too long is no part."""
    have = part.stat().st_size if part.exists() else 0
    if have > size:
        part.unlink()
        have = 0
    free = shutil.disk_usage(part.parent).free
    if free < size - have:
        raise ValueError(
            f"{what}: expected {size - have:,} bytes free in {part.parent}, found {free:,}; make room or set "
            "HF_HOME to a larger disk"
        )


def _check(path: Path, etag: str, what: str) -> str:
    """Compare a file with the hash that the hub gave -> the kind of hash."""
    is_sha256 = len(etag) == SHA256_DIGITS
    if not is_sha256 and len(etag) != SHA1_DIGITS:
        return "unchecked: the source gives no hash"
    digest = hashlib.sha256() if is_sha256 else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    kind = "sha256" if is_sha256 else "git-sha1"
    if digest.hexdigest() != etag:
        raise ValueError(
            f"{what}: expected {kind} {etag}, found {digest.hexdigest()} in {path}; the transfer or a mirror "
            "spoiled it: remove the file if it is still there and run the command again"
        )
    return kind


def _raise_explained(error: Exception, repo: str, name: str, revision: str) -> NoReturn:
    """The library's many errors in our words."""
    from huggingface_hub import constants, errors

    where, cache = constants.ENDPOINT, constants.HF_HUB_CACHE
    cut_off = "HF_HUB_OFFLINE set" if constants.HF_HUB_OFFLINE else f"no connection to {where}"
    advice: dict[Any, str] = {
        errors.RevisionNotFoundError: f"expected a branch, tag or commit of {repo}, found no {revision!r}; "
        "leave --revision out for the newest",
        errors.RepositoryNotFoundError: f"expected a repository that may be read at {where}, found none; "
        "check HF_ENDPOINT, and HF_TOKEN if it is a private mirror",
        errors.LocalEntryNotFoundError: f"expected it in the cache {cache}, found none there and {cut_off}; "
        "run this online once, or give your own copy to echat convert",
        errors.EntryNotFoundError: f"expected it in {repo} at {revision!r}, found none; try another "
        "--revision",
        errors.HfHubHTTPError: f"expected it from {where}, found {first_line(error)}; try later or set "
        "HF_ENDPOINT to a mirror",
    }
    for kind, words in advice.items():
        if isinstance(error, kind):
            raise ValueError(f"{repo}, {name}: {words}") from error
    raise error
