"""Problem instances as ``moeopt-instance/1`` files: an MoE, a cluster, routing and requests."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, NoReturn

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from moeopt.arrays import Array, Rows, open_sidecar, refuse, sidecar_bytes
from moeopt.errors import InputError
from moeopt.files import (
    check_version,
    json_bytes,
    problem_lines,
    published_schema,
    read_json_object,
    write_bytes_atomic,
)
from moeopt.instance_checks import instance_problems
from moeopt.instance_parts import (
    ActivationOptions,
    AffinityOptions,
    BalanceOptions,
    Cluster,
    JointOptions,
    LayerRouting,
    LayerTimeSpec,
    Moe,
    Name,
    PagingOptions,
    Part,
    RequestClass,
    Source,
    Text,
    TopologyOptions,
)

__all__ = [
    "Instance",
    "JointOptions",
    "json_schema",
    "read_instance_file",
    "write_instance_file",
]

SCHEMA: Literal["moeopt-instance/1"] = "moeopt-instance/1"

#: Arrays with fewer numbers stay in the document when a sidecar is written.
SIDECAR_FROM = 64


class Instance(Part):
    """One problem instance. Constructing one runs every check; see :meth:`from_document`."""

    model_config = ConfigDict(ignored_types=(functools.cached_property,))

    schema_: Annotated[Literal["moeopt-instance/1"], Field(alias="schema")] = SCHEMA
    name: Name
    source: Source | None = None
    moe: Moe
    cluster: Cluster
    layer_time: LayerTimeSpec
    routing: Annotated[tuple[LayerRouting, ...], Field(min_length=1)]
    requests: Annotated[tuple[RequestClass, ...], Field(min_length=1)] | None = None
    joint: JointOptions | None = None
    balance: BalanceOptions | None = None
    topology: TopologyOptions | None = None
    paging: PagingOptions | None = None
    activation: ActivationOptions | None = None
    affinity: AffinityOptions | None = None
    arrays: Name | None = None
    arrays_sha256: Annotated[Text, Field(pattern="^[0-9a-fA-F]{64}$")] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Instance:
        if lines := instance_problems(self):
            raise InputError(lines)
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Instance) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    @classmethod
    def from_document(
        cls, document: Mapping[str, Any], arrays: Callable[[str], Array] | None = None
    ) -> Instance:
        """Make an instance from a JSON-like document; arrays may be numpy arrays.

        Parameters
        ----------
        document : mapping
        arrays : callable, optional
            Looks up the key of ``{"npz": "KEY"}``; see :func:`moeopt.arrays.open_sidecar`.

        Raises
        ------
        InputError
            One line for each problem, starting with its JSON path: of types first, then of
            everything that can be checked beside them.
        """
        check_version(document, SCHEMA)
        try:
            return cls.model_validate(document, context=arrays)
        except ValidationError as error:
            lines = problem_lines(error, cls)
        raise InputError(lines + instance_problems(_readable_parts(document, arrays)))

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the content, whatever file holds it (``.json``, ``.json.gz``, sidecar).

        SHA-256 of a canonical JSON text (UTF-8, keys sorted, no white space, ASCII escapes,
        numbers as Python's shortest repr) of the instance: absent keys have their defaults, keys
        that are null are left out, and so are ``arrays`` and ``arrays_sha256``. An array stands
        as ``[type, shape, digest]``: type ``int64`` or ``float64``, SHA-256 of its numbers as
        little-endian 8-byte words in C order. Ragged rows stand as their ``ptr`` and ``values``.
        """
        canonical = json.dumps(
            _document(self, _digest), sort_keys=True, separators=(",", ":"), allow_nan=False
        )
        return hashlib.sha256(canonical.encode()).hexdigest()


def read_instance_file(path: str | os.PathLike[str]) -> Instance:
    """Read and check an instance: ``.json`` or ``.json.gz``, with its sidecar where it has one.

    Raises
    ------
    InputError
        One line for each problem, starting with its JSON path.
    """
    path = Path(path)
    document = read_json_object(path)
    lookup: Callable[[str], Array] | None = None
    trouble: list[str] = []
    name, sha256 = document.get("arrays"), document.get("arrays_sha256")
    if isinstance(name, str):
        try:
            lookup = _sidecar_beside(path, name, sha256)
        except InputError as error:
            trouble = error.problems
            lookup = _no_array  # one line for the sidecar, none for each array in it
    try:
        instance = Instance.from_document(document, lookup)
    except InputError as error:
        raise InputError(trouble + error.problems) from None
    if trouble:
        raise InputError(trouble)
    return instance


def write_instance_file(
    instance: Instance | Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    sidecar: bool = False,
    force: bool = False,
) -> Instance:
    """Check an instance and write it atomically.

    Parameters
    ----------
    instance : Instance or mapping
        A mapping is a document whose arrays may be numpy arrays.
    path : path
        Ends in ``.json`` or ``.json.gz``.
    sidecar : bool
        Put arrays of :data:`SIDECAR_FROM` numbers and more into ``NAME.npz`` beside it.
    force : bool
        Overwrite.

    Returns
    -------
    Instance
        As it will be read back.

    Raises
    ------
    InputError
        The instance has problems, or the file exists and ``force`` is false.
    """
    path = Path(path)
    if not isinstance(instance, Instance):
        instance = Instance.from_document(instance)
    moved: dict[str, Array] = {}

    def place(key: str, array: Array | Rows) -> Any:
        numbers = len(array.values) if isinstance(array, Rows) else array.size
        if not sidecar or numbers < SIDECAR_FROM:
            return _plain(array)
        moved[key] = array.padded() if isinstance(array, Rows) else array
        return {"npz": key}

    document = _document(instance, place)
    if not force and path.exists():
        raise InputError(f"{path}: exists already, not overwritten")
    if moved:
        raw = sidecar_bytes(moved)
        beside = path.with_name(path.name.removesuffix(".gz").removesuffix(".json") + ".npz")
        document |= {"arrays": beside.name, "arrays_sha256": hashlib.sha256(raw).hexdigest()}
        write_bytes_atomic(beside, raw, force=force)
    text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    write_bytes_atomic(path, json_bytes(path, text + "\n"), force=force)
    return instance


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of ``moeopt-instance/1`` (cross-field checks are not in it)."""
    return published_schema(Instance)


def _sidecar_beside(path: Path, name: str, sha256: object) -> Callable[[str], Array]:
    if not isinstance(sha256, str):
        raise InputError("arrays_sha256: missing, but `arrays` names a file")
    if Path(name).is_absolute():
        raise InputError(f"arrays: must be relative to the instance, not {name!r}")
    return open_sidecar(path.parent / name, sha256)


def _no_array(key: str) -> NoReturn:
    refuse()


def _readable_parts(
    document: Mapping[str, Any], arrays: Callable[[str], Array] | None
) -> SimpleNamespace:
    """Read every part that can be read; None stands for the others."""

    def read(part: type[Part], value: Any) -> Any:
        try:
            return part.model_validate(value, context=arrays)
        except ValidationError:
            return None

    def read_each(part: type[Part], values: Any) -> Any:
        return [read(part, value) for value in values] if isinstance(values, list) else None

    return SimpleNamespace(
        moe=read(Moe, document.get("moe")),
        cluster=read(Cluster, document.get("cluster")),
        layer_time=read(LayerTimeSpec, document.get("layer_time")),
        routing=read_each(LayerRouting, document.get("routing")),
        requests=read_each(RequestClass, document.get("requests")),
        joint=read(JointOptions, document.get("joint")),
        balance=read(BalanceOptions, document.get("balance")),
        topology=read(TopologyOptions, document.get("topology")),
        paging=read(PagingOptions, document.get("paging")),
        activation=read(ActivationOptions, document.get("activation")),
        affinity=read(AffinityOptions, document.get("affinity")),
    )


def _document(part: BaseModel, place: Callable[[str, Array | Rows], Any]) -> dict[str, Any]:
    """Return a part as JSON values, nulls left out, each array as ``place(key, array)``."""

    def plain(value: Any, key: str) -> Any:
        if isinstance(value, BaseModel):
            return {
                name: plain(inner, f"{key}.{name}" if key else name)
                for name in type(value).model_fields
                if (inner := getattr(value, name)) is not None
                and name not in ("schema_", "arrays", "arrays_sha256")
            }
        if isinstance(value, tuple):
            return [plain(inner, f"{key}.{i}") for i, inner in enumerate(value)]
        return place(key, value) if isinstance(value, np.ndarray | Rows) else value

    document: dict[str, Any] = {"schema": SCHEMA} | plain(part, "")
    return document


def _plain(array: Array | Rows) -> list[Any]:
    if isinstance(array, np.ndarray) and array.dtype.kind == "f" and (np.abs(array) < 2**53).all():
        whole = array.astype(np.int64)
        array = whole if (whole == array).all() else array  # counts stay counts
    return array.tolist()


def _digest(key: str, array: Array | Rows) -> list[Any]:
    if isinstance(array, Rows):
        return [_digest(key, array.ptr), _digest(key, array.values)]
    words = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<")))
    return [str(array.dtype), list(array.shape), hashlib.sha256(words.data).hexdigest()]
