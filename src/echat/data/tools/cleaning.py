"""A corpus without its bad records.

Tars are written anew only where something in them is bad, and then their other members keep their bytes;
sound in files stays where it is.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from echat.checkpoint import atomic_path
from echat.data import storage
from echat.data.defects import DefectReport
from echat.data.formats.audio_folder import save_roots
from echat.data.formats.indexed_corpus import IndexedCorpus, LineCorpus, RawCorpus
from echat.data.formats.jsonl import JsonLines
from echat.data.formats.osum_record import COMBINES_LIST, SHARDS_LIST
from echat.data.formats.shard_index import open_shard
from echat.data.formats.tar_corpora import CombineCorpus, ShardCorpus, pairing
from echat.data.formats.tar_writer import TarWriter
from echat.data.formats.text_files import write_lines, write_sums
from echat.data.sample import AudioRef, Sample
from echat.data.tools.check import CheckConfig, open_checked
from echat.data.tools.executors import ExecutorName, run_jobs
from echat.data.tools.output_files import files_of, refuse_folder, remove_temporaries
from echat.data.tools.writers import ListWriter, write_combine_lists

_LINES_PER_JOB = 10_000


def clean(
    config: CheckConfig,
    bad: Sequence[int],
    out: str | os.PathLike[str],
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
    executor: ExecutorName = "local",
) -> None:
    """Write the corpus of a check into folder ``out``, in its own format, without the records ``bad``.

    The list that names everything comes last and appears whole. Metadata of lists are written anew with
    paths that hold wherever the folder lies.
    """
    corpus, folder = open_checked(config), Path(out)
    refuse_output(config, folder)
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(folder)
    names = _names(corpus)
    work = partial(clean_job, config, tuple(bad), str(folder))
    written: list[str | None] = []
    for name in run_jobs(work, len(names), workers, executor):
        written.append(name)
        progress(len(written), len(names))
    _finish(corpus, folder, [name for name in written if name is not None])


def refuse_output(config: CheckConfig, out: str | os.PathLike[str]) -> None:
    """Raise DataError where the clean corpus could overwrite the one it is made from."""
    refuse_folder(out, files_of(open_checked(config)), "--fix")


def clean_job(config: CheckConfig, bad: tuple[int, ...], out: str, number: int) -> str | None:
    """One part of the corpus; returns what the list shall say of it, None where nothing of it is left."""
    corpus, folder = open_checked(config), Path(out)
    name = _names(corpus)[number]
    if isinstance(corpus, ShardCorpus):
        return _clean_shard(corpus, number, frozenset(bad), folder / name)
    if isinstance(corpus, CombineCorpus):
        return _clean_combine(corpus, number, frozenset(bad), folder / name)
    begin = number * _LINES_PER_JOB
    samples = _good(corpus, range(begin, min(begin + _LINES_PER_JOB, len(corpus))), frozenset(bad))
    return name if _list_writer(corpus, folder).write(number, samples, DefectReport(strict=True)) else None


def _good(corpus: IndexedCorpus, numbers: range, bad: frozenset[int]) -> Iterator[Sample]:
    return (corpus[number] for number in numbers if number not in bad)


def _names(corpus: IndexedCorpus) -> list[str]:
    """A name for each part, by its tar or its number."""
    if not isinstance(corpus, ShardCorpus | CombineCorpus):
        return [str(number) for number in range(-(-len(corpus) // _LINES_PER_JOB))]
    names = [os.path.basename(part.files[-1]) for part in corpus.parts.parts]
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{number:09d}_{name}" for number, name in enumerate(names)]


def _begin(corpus: ShardCorpus | CombineCorpus, number: int) -> int:
    return corpus.parts.ends[number - 1] if number else 0


def _clean_shard(corpus: ShardCorpus, number: int, bad: frozenset[int], path: Path) -> str | None:
    (tar,) = corpus.parts.parts[number].files
    begin, end = _begin(corpus, number), corpus.parts.ends[number]
    good = [index - begin for index in range(begin, end) if index not in bad]
    if not good:
        return None
    if len(good) == end - begin and not corpus.parts.facts(number).defects:
        return storage.absolute(tar)
    _copy_records(tar, good, path)
    return path.name


def _copy_records(tar: str, numbers: Sequence[int], path: Path) -> None:
    """A tar of some records of another one, member by member as they are."""
    index = open_shard(tar)
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        writer = TarWriter(stream)
        for number in numbers:
            for member in index[number].members.values():
                stretch = AudioRef(tar, offset=member.offset, size=member.size, member=member.name)
                writer.add(member.name, stretch.read_bytes())
        writer.close()
    write_sums(path, [(writer.sha256.hexdigest(), path.name)])
    open_shard(str(path))  # leaves the index beside it


def _clean_combine(corpus: CombineCorpus, number: int, bad: frozenset[int], path: Path) -> str | None:
    """The good lines; and their tar, where the archive itself has defects."""
    lines, tar = corpus.parts.parts[number].files
    begin, end = _begin(corpus, number), corpus.parts.ends[number]
    good = [index - begin for index in range(begin, end) if index not in bad]
    if not good:
        return None
    kept = pairing(lines, tar)[good]
    source = JsonLines(lines)
    name = path.with_suffix(".list")
    with atomic_path(name) as temporary, temporary.open("wb") as stream:
        for line in sorted(kept[:, 1].tolist()):
            stream.write(" ".join(source.text(line).splitlines()).encode() + b"\n")  # an item of an array
    if corpus.parts.facts(number).defects:
        _copy_records(tar, kept[:, 0].tolist(), path)
        tar = str(path)
    return f"{name.name}|{storage.absolute(tar)}"


def _finish(corpus: IndexedCorpus, folder: Path, names: Sequence[str]) -> None:
    """The lists."""
    if isinstance(corpus, ShardCorpus):
        write_lines(folder / SHARDS_LIST, names)
    elif isinstance(corpus, CombineCorpus):
        pairs = [name.split("|", 1) for name in names]
        roots = {storage.parent(tar) for _, tar in pairs}
        if len(roots) == 1 and all(Path(tar).stem == Path(name).stem for name, tar in pairs):
            write_combine_lists(folder, [name for name, _ in pairs], roots.pop())
        else:
            write_lines(folder / COMBINES_LIST, names)
    else:
        assert isinstance(corpus, LineCorpus)
        save_roots(folder, corpus.folder.roots)
        _list_writer(corpus, folder).finish([int(name) for name in names])
        shutil.rmtree(folder / "parts")


def _list_writer(corpus: IndexedCorpus, folder: Path) -> ListWriter:
    return ListWriter(
        folder, "keep", "raw" if isinstance(corpus, RawCorpus) else "manifest", copy_audio=False
    )
