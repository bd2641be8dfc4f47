"""JSON files: strict reading, one clear line for each problem, atomic writing."""

from __future__ import annotations

import difflib
import gzip
import io
import json
import os
import secrets
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from moeopt.errors import InputError

#: Lines printed for one kind of problem before "... and n more of this kind".
LINES_OF_A_KIND = 20

#: What is said of a folder where a file is expected.
IS_A_FOLDER = "is a folder, not a file"


def read_json_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read one JSON object from a ``.json`` or ``.json.gz`` file.

    Duplicate keys and the literals NaN and Infinity, which Python's reader accepts, are refused.

    Raises
    ------
    InputError
        The file is missing, unreadable, truncated, no JSON or no object.
    """
    path = Path(path)
    raw = read_bytes(path)
    if path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path}: not a complete gzip file ({error})") from None
    return parse_json_object(raw, str(path))


def check_version(document: Mapping[str, Any], schema: str) -> None:
    """InputError where a document is not of the one version that is read."""
    if "schema" not in document:
        raise InputError(f"schema: missing (this version of moeopt reads {schema})")
    if document["schema"] != schema:
        given = shown(document["schema"])
        raise InputError(f"schema: {given} is not read (this version of moeopt reads {schema})")


def parse_json_object(raw: bytes, where: str) -> dict[str, Any]:
    """Parse one JSON object; ``where`` names the source in the error lines."""
    try:
        document = json.loads(
            raw.decode("utf-8-sig"),
            object_pairs_hook=_distinct_keys,
            parse_constant=_refused_literal,
        )
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        line = f"{where}: line {error.lineno} column {error.colno}: not JSON: {error.msg}"
        raise InputError(line) from None
    except RecursionError:
        raise InputError(f"{where}: nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    if not isinstance(document, dict):
        raise InputError(f"{where}: must be a JSON object, not {_kind(document)}")
    return document


def read_bytes(path: Path) -> bytes:
    """Read a whole file; InputError with one line where that is impossible."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: {IS_A_FOLDER}") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


def read_text(path: Path) -> str:
    """Read a whole text file; InputError with one line where that is impossible."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None


def require_writable(path: str | os.PathLike[str], force: bool = False) -> None:
    """Refuse before the work what would keep its result from being written after it.

    Raises
    ------
    InputError
        The file exists and ``force`` is false, is no regular file, or cannot be made.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise InputError(f"{path}: {IS_A_FOLDER}")
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: is a device or pipe, not a file")
        if path.exists() and not force:
            raise InputError(f"{path}: exists; --force overwrites it")
        if not path.parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}")
        _try_to_make(_temporary(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None


def require_folder(path: str | os.PathLike[str]) -> None:
    """Refuse before the work a folder that cannot be made, or in which no file can."""
    path = nearest = Path(path)
    try:
        while not nearest.exists():
            nearest = nearest.parent
        if not nearest.is_dir():
            raise InputError(f"{nearest}: is a file, not a folder")
        _try_to_make(_temporary(nearest / "moeopt"))
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None


def write_bytes_atomic(path: str | os.PathLike[str], raw: bytes, *, force: bool = False) -> None:
    """Write a file so that a reader sees all of it or nothing.

    Raises
    ------
    InputError
        The file exists and ``force`` is false, or the folder cannot be written.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        if force:
            temporary.replace(path)
        else:
            _rename_new(temporary, path)
    except FileExistsError:
        raise InputError(f"{path}: exists already, not overwritten") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def json_bytes(path: str | os.PathLike[str], text: str) -> bytes:
    """Encode JSON text for ``path``: gzip with a fixed date where it ends in ``.gz``."""
    raw = text.encode()
    if Path(path).suffix != ".gz":
        return raw
    packed = io.BytesIO()
    # No name and no date inside: the same content gives the same bytes.
    with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=packed, mtime=0) as file:
        file.write(raw)
    return packed.getvalue()


def json_path(location: tuple[int | str, ...]) -> str:
    """Return ``routing[0].scenarios.weight`` for ``("routing", 0, "scenarios", "weight")``."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def published_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON Schema of a file format; a file must name its version, a constructor not."""
    schema = model.model_json_schema(by_alias=True)
    schema["required"] = ["schema", *schema["required"]]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def limited(lines: list[str], total: int) -> list[str]:
    """Return the first lines of one kind, and how many more of ``total`` there are."""
    shown = lines[:LINES_OF_A_KIND]
    rest = total - len(shown)
    return [*shown, f"... and {rest:,} more of this kind"] if rest > 0 else shown


def problem_lines(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Translate pydantic's errors into one line for each problem, starting with its JSON path."""
    lines: list[str] = []
    for found in error.errors(include_url=False):
        if found["type"] == "too_short" and found["input"]:
            continue  # a list is not too short when its entries are wrong: they have their lines
        # Arrays report their own problems, with paths below the field's.
        below = found.get("ctx", {}).get("lines")
        path = json_path(found["loc"])
        if below is not None:
            lines += [line if line.startswith("...") else path + line for line in below]
        else:
            lines.append(f"{path or 'document'}: {_words(found, model)}")
    return lines


def _words(found: Mapping[str, Any], model: type[BaseModel]) -> str:
    kind, ctx, value = found["type"], found.get("ctx", {}), found["input"]
    given = shown(value)
    fixed = {
        "missing": "missing",
        "int_type": f"must be a whole number, not {given}",
        "int_from_float": f"must be a whole number, not {given}",
        "float_type": f"must be a number, not {given}",
        "finite_number": f"must be a finite number, not {given}",
        "string_type": f"must be a text, not {given}",
        "string_too_short": "must not be empty",
        "tuple_type": f"must be a list, not {given}",
        "list_type": f"must be a list, not {given}",
        "dict_type": f"must be an object, not {given}",
        "model_type": f"must be an object, not {given}",
        "model_attributes_type": f"must be an object, not {given}",
    }
    if kind == "float_type" and type(value) is int:
        return "is a number that is too large"
    if kind in fixed:
        return fixed[kind]
    if kind == "extra_forbidden":
        return _unknown_key(found["loc"], model)
    if kind == "literal_error":
        return f"must be {ctx['expected']}, not {given}"
    if kind == "greater_than":
        return f"must be greater than {ctx['gt']:g}, not {given}"
    if kind == "greater_than_equal":
        return f"must be at least {ctx['ge']:,.15g}, not {given}"
    if kind == "less_than_equal":
        return f"must be at most {ctx['le']:,.15g}, not {given}"
    if kind == "too_short":
        return "must not be empty"
    if kind == "string_pattern_mismatch":
        return f"must match {ctx['pattern']}, not {given}"
    message = str(found["msg"])
    return message[:1].lower() + message[1:]


def _unknown_key(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    owner: type[BaseModel] | None = model
    for part in location[:-1]:
        if owner is not None and isinstance(part, str):
            owner = _model_in(owner.model_fields[part].annotation)
    fields = {} if owner is None else owner.model_fields
    known = [field.alias or name for name, field in fields.items()]
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
    return f"unknown key ({hint})"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for a in get_args(annotation) if (m := _model_in(a)) is not None), None)


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} appears twice in one object")
    return found


def _refused_literal(literal: str) -> Any:
    raise ValueError(f"{literal} is no JSON number")


def shown(value: Any) -> str:
    """Return a value as short JSON for an error line."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _kind(value: object) -> str:
    words = {list: "a list", str: "a text", bool: "true or false", int: "a number"}
    return words.get(type(value), "a number" if isinstance(value, float) else "null")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _try_to_make(path: Path) -> None:
    # Rights, read-only file systems and names that are too long show in no other way.
    path.touch(exist_ok=False)
    path.unlink()


def _rename_new(temporary: Path, path: Path) -> None:
    try:
        # A hard link fails where the name exists: no window between looking and writing.
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        if path.exists():  # a file system without hard links
            raise FileExistsError from None
        temporary.replace(path)
