"""Container formats of audio files: detection by magic bytes, and detection of truncated files.

libsndfile, a dependency, reads the plain formats. The others are those of browsers and phones and need a
decoder (:mod:`echat.audio.media_decoding`). No torch here: copying audio does not need it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from echat.audio.errors import AudioError

PLAIN_SUFFIXES = ("wav", "flac", "mp3", "ogg", "opus")
PLAIN_MAGIC = {b"RIFF": "wav", b"fLaC": "flac", b"OggS": "ogg", b"ID3": "mp3"}  # first bytes -> suffix
MP3_FRAMES = (b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b"\xff\xfa")  # first bytes of an MP3 without a tag


@dataclass(frozen=True)
class Container:
    """A kind of file that libsndfile does not read."""

    name: str
    suffixes: tuple[str, ...]
    demuxer: str  # FFmpeg's name: nothing but this one looks at the bytes
    is_cut: Callable[[bytes], bool] = lambda _: False  # does the file end before it says it would?


def container_of(data: bytes) -> Container | None:
    """The container that begins with these bytes; None for plain files and for what is no sound."""
    if data[:1] == b"\0" and data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free"):
        return _MP4
    if data[:2] in (b"\xff\xf1", b"\xff\xf9", b"\xff\xf0", b"\xff\xf8"):  # layer 0, which no mp3 has
        return _ADTS
    return next((kind for magic, kind in _MAGIC if data.startswith(magic)), None)


def refuse_cut_off(data: bytes, container: Container, where: str) -> None:
    """AudioError for a file that breaks off; decoders pass over it in silence."""
    if container.is_cut(data):
        raise AudioError(
            f"{where}: expected a whole {container.name} file, found one that breaks off after "
            f"{len(data)} bytes: the file is cut off; copy it again",
            "cut off",
        )


_MP4_BOXES = (
    b"ftyp moov mdat free skip wide moof mfra sidx styp ssix uuid meta udta pdin prft emsg pnot".split()
)


def _is_mp4_cut(data: bytes) -> bool:
    """Boxes: size (4 bytes), name (4), for size 1 the size in 8 more; 0 reaches to the end."""
    position, names = 0, set()
    while position + 8 <= len(data):
        size, head = int.from_bytes(data[position : position + 4]), 8
        if size == 1:
            size, head = int.from_bytes(data[position + 8 : position + 16]), 16
        if (name := data[position + 4 : position + 8]) not in _MP4_BOXES:
            break  # a tag behind the file
        names.add(name)
        size = size or len(data) - position
        if size < head:
            return False  # broken rather than cut: for the decoder to say
        position += size
    return position > len(data) or b"moov" not in names


_EBML_MASTERS = (0x18538067, 0x1F43B675)  # Segment, Cluster: looked into


def _is_ebml_cut(data: bytes) -> bool:
    """Elements: an id of 1 to 4 bytes, a size of 1 to 8 bytes, with the number of bytes in its leading zeros.

    A size of ones alone is unknown (a stream): such a Segment or Cluster ends where its last element does.
    """
    position = 0
    while position < len(data):
        name, position = _ebml_number(data, position, keeps_mark=True)
        size, body = _ebml_number(data, position)
        if name is None or size is None:
            return True
        is_unknown = size == (1 << 7 * (body - position)) - 1
        if not is_unknown and body + size > len(data):
            return True
        position = body if name in _EBML_MASTERS else len(data) if is_unknown else body + size
    return False


def _ebml_number(data: bytes, position: int, keeps_mark: bool = False) -> tuple[int | None, int]:
    """(number, position after it); None where the bytes end before it or none is there."""
    if position >= len(data) or not data[position]:
        return None, len(data)
    length = 9 - data[position].bit_length()
    end = position + length
    number = int.from_bytes(data[position:end])
    return (None if end > len(data) else number if keeps_mark else number & (1 << 7 * length) - 1), end


def _is_adts_cut(data: bytes) -> bool:
    """Frames that begin with 12 ones and hold their length in bits 30 to 42."""
    position = 0
    while position + 7 <= len(data):
        if data[position] != 0xFF or data[position + 1] & 0xF6 != 0xF0:
            return False  # a tag behind the sound, or broken: for the decoder to say
        size = (data[position + 3] & 3) << 11 | data[position + 4] << 3 | data[position + 5] >> 5
        if size < 7:
            return False
        position += size
    return position != len(data) and (position > len(data) or data[position] == 0xFF)


_AMR_NARROW = (12, 13, 15, 17, 19, 20, 26, 31, 5)  # bytes after the first of a frame, by its mode
_AMR_WIDE = (17, 23, 32, 36, 40, 46, 50, 58, 60, 5)


def _is_amr_cut(data: bytes) -> bool:
    """Frames whose first byte holds their mode, which gives their length (RFC 4867, section 5.3)."""
    is_wide = data.startswith(b"#!AMR-WB\n")
    sizes, position = (_AMR_WIDE, 9) if is_wide else (_AMR_NARROW, 6)
    while position < len(data):
        mode = data[position] >> 3 & 15
        position += 1 + (sizes[mode] if mode < len(sizes) else 0)
    return position > len(data)


_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def _is_asf_cut(data: bytes) -> bool:
    """The file properties hold the size of the file at their byte 40; 0 in a stream."""
    start = data.find(_ASF_FILE_PROPERTIES)
    return start >= 0 and int.from_bytes(data[start + 40 : start + 48], "little") > len(data)


_MP4 = Container("mp4", ("m4a", "mp4", "3gp"), "mov", _is_mp4_cut)
_ADTS = Container("aac", ("aac",), "aac", _is_adts_cut)
_AMR = Container("amr", ("amr", "awb"), "amr", _is_amr_cut)
_WEBM = Container("webm", ("webm", "mka"), "matroska", _is_ebml_cut)
_WMA = Container("wma", ("wma",), "asf", _is_asf_cut)
_MAGIC = (
    (b"\x1a\x45\xdf\xa3", _WEBM),
    (b"#!AMR\n", _AMR),
    (b"#!AMR-WB\n", _AMR),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", _WMA),
    (b"ADIF", _ADTS),
)
# Containers that libsndfile reads, though not with every codec inside: WMA in a wav, Speex in an ogg.
CODEC_DEMUXERS = ((b"RIFF", "wav"), (b"OggS", "ogg"), (b"caff", "caf"), (b"ID3", "aac"))

MEDIA_SUFFIXES = tuple(suffix for kind in (_MP4, _ADTS, _AMR, _WEBM, _WMA) for suffix in kind.suffixes)
SOUND_SUFFIXES = PLAIN_SUFFIXES + MEDIA_SUFFIXES  # what a name may promise; see also media.readable_suffixes
