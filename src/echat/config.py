"""Configuration: YAML on disk, frozen pydantic models in the program, strict in between.

A file states only what differs from the defaults. ``base: other.yaml`` inherits from another file (path
relative to the one that names it), and ``a.b=c`` overrides win over both. An unknown key is an error that
suggests the nearest known one. Keys that were renamed are read under their old names for one version.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from reprlib import Repr
from typing import Any, ClassVar, TypeVar, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from echat.checkpoint import atomic_path

C = TypeVar("C", bound=BaseModel)
_LOG = logging.getLogger(__name__)


class ConfigError(ValueError):
    """A configuration that cannot be used, said in one line."""


class Config(BaseModel):
    """Base of every configuration: frozen, typed, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    # Fields that a file leaves out while they have their default, so that older versions go on reading it.
    OMITTED_AT_DEFAULT: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_omitted(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        usual = {name for name in self.OMITTED_AT_DEFAULT if getattr(self, name) == fields[name].default}
        return {name: value for name, value in handler(self).items() if name not in usual}

    renamed: ClassVar[Mapping[str, str]] = {}
    """Old key -> key of today, `table.key` for one that moved into a table, "" for one that is gone; read for
    one version."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            values = _renamed(cls, values)
            known = set(cls.model_fields) | {f.alias for f in cls.model_fields.values() if f.alias}
            for key in values:
                if key not in known:
                    raise ValueError(f"unknown key {key!r}, {nearest(str(key), known)}")
        return values


def nearest(word: str, known: Iterable[str]) -> str:
    """Advice for a misspelt word: "did you mean 'width'?", or the known ones when none is near."""
    known = sorted(known)
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"


def load_config(cls: type[C], path: str | Path, overrides: Sequence[str] = ()) -> C:
    """Read ``path`` (with its bases), apply ``key.path=value`` overrides and validate as ``cls``."""
    return validate(cls, read_values(cls, path, overrides), str(path))


def read_values(
    cls: type[BaseModel], path: str | Path | None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """The values of a file (None: none) and of overrides under the keys of today, not yet validated."""
    values = read_yaml(path, cls) if path is not None else {}
    for override in overrides:
        apply_override(values, override, cls)
    return values


def validate(cls: type[C], values: Mapping[str, Any], where: str) -> C:
    """``cls`` from plain values; the first thing that does not fit becomes a one-line ConfigError."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}, {describe(error)}") from error


_SHORT = Repr()  # a value of strangers may be endless
_SHORT.maxstring = _SHORT.maxother = 200


def describe(error: ValidationError) -> str:
    """A validation error in one line: key, what was expected, what was found, how many more."""
    problems = error.errors(include_url=False)
    first = problems[0]
    message = first["msg"].removeprefix("Value error, ")
    key = ".".join(str(part) for part in first["loc"])
    text = f"key {key}: {message}" if key else message
    if first["type"] not in {"value_error", "missing", "extra_forbidden"}:
        text += f", found {_SHORT.repr(first['input'])}"
    if len(problems) > 1:
        text += f" (and {len(problems) - 1} more)"
    return text


def save_config(config: BaseModel, path: str | Path) -> None:
    """Write the resolved configuration as YAML; ``load_config`` reads back an equal one."""
    text = to_yaml(config)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def to_yaml(config: BaseModel) -> str:
    """The resolved configuration as YAML text, keys in the order of their definition."""
    values = config.model_dump(mode="json")
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def read_yaml(path: str | Path, cls: type[BaseModel] | None = None) -> dict[str, Any]:
    """The mapping in a YAML file, with ``base`` files resolved: mappings merge, anything else is replaced.

    With the class of the configuration each file may use old names of its keys.
    """
    return _read_with_bases(Path(path), (), cls)


def _read_with_bases(path: Path, readers: tuple[Path, ...], cls: type[BaseModel] | None) -> dict[str, Any]:
    if path.resolve() in readers:
        raise ConfigError(f"{path}, key base: expected a chain that ends, found a circle; remove one base")
    values = _read_one(path)
    if cls is not None:
        try:
            values = rename_keys(cls, values)
        except ValueError as error:
            raise ConfigError(f"{path}, {error}") from error
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}, key base: expected the path of a YAML file, found {base!r}")
    return merge(_read_with_bases(path.parent / base, (*readers, path.resolve()), cls), values)


def _read_one(path: Path) -> dict[str, Any]:
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise ConfigError(f"{path}: expected a YAML file, found {found}; check the path")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: expected YAML text in UTF-8, found byte {error.object[error.start]:#04x} "
            f"at offset {error.start}; is it another kind of file?"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{_line(error)}: expected YAML, {_problem(error)}") from error
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond what Python reads
        raise ConfigError(f"{path}: expected YAML, found what cannot be read ({error})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values, found a {type(values).__name__} at the top")
    return values


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` on top, key by key into nested mappings; inputs are left alone."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def apply_override(values: dict[str, Any], override: str, cls: type[BaseModel] | None = None) -> None:
    """Set ``a.b.0.c=value`` in place. The value is YAML; a number in the path picks from a list.

    With the class of the configuration the path may use old names of keys.
    """
    key, equals, text = override.partition("=")
    parts = [*_renamed_path(cls, key.strip().split("."))]
    if not equals or not all(parts):
        raise ConfigError(f"override {override!r}: expected key.path=value, for example optimizer.lr=1e-4")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: expected a YAML value, {_problem(error)}") from error
    inner = _class_at(cls, parts)
    if inner is not None and isinstance(value, dict):
        value = rename_keys(inner, value)
    node: Any = values
    for depth, part in enumerate(parts[:-1]):
        node = _step(node, part, override, ".".join(parts[:depth]))
    if isinstance(node, list):
        node[_index(node, parts[-1], override)] = value
    else:
        node[parts[-1]] = value


def _step(node: Any, part: str, override: str, where: str) -> Any:
    """One level down, making the mapping when it is not there yet."""
    if isinstance(node, list):
        child = node[_index(node, part, override)]
    else:
        child = node.get(part)
        if child is None:
            child = node[part] = {}
    if not isinstance(child, dict | list):
        inside = f"{where}.{part}".lstrip(".")
        raise ConfigError(f"override {override!r}: expected keys inside {inside}, found the value {child!r}")
    return child


def _index(items: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise ConfigError(
            f"override {override!r}: expected a list index in 0..{len(items) - 1}, found {part!r}"
        )
    return int(part)


# --- Renamed keys: files and overrides are brought to the keys of today before they are merged.


def rename_keys(cls: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with the old keys of a configuration, and of those inside it, under their new names."""
    changed = _renamed(cls, values)
    for key, field in cls.model_fields.items():
        inner = _config_in(field.annotation)
        if inner is not None and key in changed:
            changed[key] = _rename_inside(inner, changed[key])
    return changed


def _rename_inside(cls: type[Config], value: Any) -> Any:
    if isinstance(value, Mapping):
        return rename_keys(cls, value)
    return [_rename_inside(cls, item) for item in value] if isinstance(value, list | tuple) else value


def _renamed(cls: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    changed = dict(values)
    for old, new in getattr(cls, "renamed", {}).items():
        if old in changed:
            value, (*tables, key) = changed.pop(old), new.split(".")
            if not new:
                _warn_renamed(old, "gone and has no effect")
                continue
            node = changed
            for table in tables:
                there = node.get(table) or {}
                if not isinstance(there, Mapping):
                    raise ValueError(f"key {table}: expected keys and values, found the value {there!r}")
                node[table] = node = dict(there)
            if key in node:
                raise ValueError(f"key {old}: its new name {new} is there, too; leave {old} out")
            node[key] = value
            _warn_renamed(old, new)
    return changed


@cache  # one line per key, however often it is read
def _warn_renamed(old: str, new: str) -> None:
    _LOG.warning("key %s is now %s; the old name will not be read by the next version", old, new)


def _renamed_path(cls: type[BaseModel] | None, parts: Sequence[str]) -> Iterable[str]:
    """The parts of a dotted path under the keys of today."""
    for part in parts:
        new = getattr(cls, "renamed", {}).get(part)
        if new:
            _warn_renamed(part, new)
        names = new.split(".") if new else [part]
        yield from names
        cls = _class_at(cls, names)


def _class_at(cls: type[BaseModel] | None, parts: Iterable[str]) -> type[BaseModel] | None:
    """The configuration that a path leads to; None for a plain value."""
    for part in parts:
        if cls is not None and not part.isdigit():
            field = cls.model_fields.get(part)
            cls = None if field is None else _config_in(field.annotation)
    return cls


def _config_in(annotation: Any) -> type[Config] | None:
    """The configuration that an annotation holds: itself, optional, or the items of a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    if get_origin(annotation) is dict:
        return None
    return next((found for inner in get_args(annotation) if (found := _config_in(inner))), None)


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-4 as a number, as YAML 1.2 does, and refuses a key written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key_node.tag != "tag:yaml.org,2002:merge" and isinstance(key, str):
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"found the key {key!r} twice", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that ``_Loader`` would read as numbers."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )


def _line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}" if mark is not None else ""


def _problem(error: yaml.YAMLError) -> str:
    problem = getattr(error, "problem", None) or str(error)
    return " ".join(str(problem).split())
