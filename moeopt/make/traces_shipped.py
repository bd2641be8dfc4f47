"""Reading replay traces: the shipped ones by name, or a user's own ``.npz``."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moeopt.errors import InputError
from moeopt.make.traces_sets import sets_of
from moeopt.matrix_file import open_npz

IntArray = npt.NDArray[np.int64]

#: Shipped routing traces (the name is the MoE's) and what their tokens are.
ROUTING = {
    "gpt-oss-20b": "generated tokens of 180 requests (AmanPriyanshu, Apache-2.0)",
    "deepseek-v2-lite": "prompt and answer tokens of 176 requests of 4 tasks (ESFT, MIT)",
}
#: Shipped traces of arrivals and lengths.
ARRIVALS = {
    "azure-conv": "3,000 requests of the Azure LLM inference trace 2023 (CC-BY-4.0)",
    "azure-code": "3,000 requests of the Azure LLM inference trace 2023 (CC-BY-4.0)",
    "mooncake": "3,000 requests of the Mooncake conversation trace (Apache-2.0)",
}


@dataclass(frozen=True)
class Trace:
    """Expert choices of whole requests, token by token.

    Attributes
    ----------
    name : str
    experts, top_k : int
    ids : uint8 or uint16 array, shape (T, L, k)
        Experts of every token; the order in a row means nothing.
    offsets : int array, shape (R + 1,)
        Request r is ``ids[offsets[r]:offsets[r + 1]]``, in token order.
    prompt_tokens : int array, shape (R,)
        Context before the first of these tokens.
    """

    name: str
    experts: int
    top_k: int
    ids: npt.NDArray[np.unsignedinteger]
    offsets: IntArray
    prompt_tokens: IntArray

    @property
    def lengths(self) -> IntArray:
        """Tokens of each request, shape (R,)."""
        return np.diff(self.offsets)

    @property
    def layers(self) -> int:
        """MoE layers L."""
        return int(self.ids.shape[1])

    def usage(self) -> npt.NDArray[np.float64]:
        """Mean activations a token, shape (L, E); rows sum to top_k."""
        layers = range(self.layers)
        counts = [np.bincount(self.ids[:, l].ravel(), minlength=self.experts) for l in layers]
        return np.stack(counts) / len(self.ids)

    def take(self, requests: npt.ArrayLike, name: str | None = None) -> Trace:
        """Return the trace of some of the requests, in the given order."""
        chosen = np.asarray(requests, dtype=np.int64)
        parts = [self.ids[self.offsets[r] : self.offsets[r + 1]] for r in chosen]
        return replace(
            self,
            name=name or self.name,
            ids=np.concatenate(parts),
            offsets=np.cumsum([0, *map(len, parts)]),
            prompt_tokens=self.prompt_tokens[chosen],
        )

    def split(self, seed: int = 0, share: float = 0.5) -> tuple[Trace, Trace]:
        """Split by request, at random: (part to fit a plan on, held-out part).

        Raises
        ------
        InputError
            A part would be empty.
        """
        requests = len(self.lengths)
        count = round(share * requests)
        if not 0 < count < requests:
            raise InputError(f"{self.name}: {share:g} of {requests} requests leaves a part empty")
        order = np.random.default_rng(seed).permutation(requests)
        fitted, held = np.sort(order[:count]), np.sort(order[count:])
        return self.take(fitted, f"{self.name} (fit)"), self.take(held, f"{self.name} (held out)")


@dataclass(frozen=True)
class Arrivals:
    """Requests in the order of their arrival: arrival in s from the first, tokens; shape (R,)."""

    name: str
    arrival_s: npt.NDArray[np.float64]
    prompt_tokens: IntArray
    output_tokens: IntArray


def read_trace(name_or_path: str | os.PathLike[str]) -> Trace:
    """Read a routing trace: a shipped name, or an ``.npz``.

    A file has ``offsets`` [R + 1] and either ``ids`` [T, L, k] with the number of ``experts``, or
    ``sets`` [T, L] with ``experts`` and ``top_k``; ``prompt_tokens`` [R] is optional (0).

    Raises
    ------
    InputError
        No such trace, or it does not fit together.
    """
    path, name = _find(name_or_path, ROUTING)
    arrays = _load(path, ("offsets", "experts"))
    experts = _whole(path, arrays, "experts")
    if "ids" in arrays:
        ids = arrays["ids"]
    elif "sets" in arrays and "top_k" in arrays:
        ids = sets_of(arrays["sets"], experts, _whole(path, arrays, "top_k"))
    else:
        raise InputError(f"{path}: has neither ids nor sets and top_k")
    offsets = arrays["offsets"].astype(np.int64)
    requests = len(offsets) - 1
    prompts = arrays.get("prompt_tokens", np.zeros(max(requests, 0))).astype(np.int64)
    problems = []
    if ids.ndim != 3 or ids.size == 0:
        problems.append(f"{path}: ids has shape {ids.shape}, expected [tokens, layers, k]")
    elif int(ids.max()) >= experts or int(ids.min()) < 0:
        problems.append(f"{path}: an expert is not in 0..{experts - 1}")
    elif (np.diff(np.sort(ids, axis=-1), axis=-1) == 0).any():
        problems.append(f"{path}: a token chose one expert twice")
    if requests < 1 or offsets[0] != 0 or offsets[-1] != len(ids) or (np.diff(offsets) < 1).any():
        problems.append(f"{path}: offsets must ascend from 0 to the number of tokens, {len(ids)}")
    if prompts.shape != (max(requests, 0),) or (prompts < 0).any():
        problems.append(f"{path}: prompt_tokens must be {requests} numbers of at least 0")
    if problems:
        raise InputError(problems)
    kind = np.uint8 if experts <= 256 else np.uint16
    return Trace(name, experts, int(ids.shape[2]), ids.astype(kind), offsets, prompts)


def read_arrivals(name_or_path: str | os.PathLike[str]) -> Arrivals:
    """Read arrivals and lengths: a shipped name, or an ``.npz`` with the same three arrays.

    Raises
    ------
    InputError
        No such trace, or it does not fit together.
    """
    path, name = _find(name_or_path, ARRIVALS)
    arrays = _load(path, ("arrival_ms", "prompt_tokens", "output_tokens"))
    time_ms, prompt, output = (
        arrays[key].astype(np.int64) for key in ("arrival_ms", "prompt_tokens", "output_tokens")
    )
    fits = time_ms.ndim == 1 and time_ms.shape == prompt.shape == output.shape and len(time_ms)
    if not fits or (np.diff(time_ms) < 0).any() or (prompt < 0).any() or (output < 1).any():
        raise InputError(
            f"{path}: needs as many arrival_ms (ascending), prompt_tokens and output_tokens (>= 1)"
        )
    return Arrivals(name, (time_ms - time_ms[0]) / 1000.0, prompt, output)


def _find(name_or_path: str | os.PathLike[str], shipped: dict[str, str]) -> tuple[Path, str]:
    text = os.fspath(name_or_path)
    if text in shipped:
        return Path(str(files("moeopt.instances") / "traces" / f"{text}.npz")), text
    path = Path(text)
    if not path.is_file():
        raise InputError(f"{text}: neither a file nor a shipped trace ({', '.join(shipped)})")
    return path, path.stem


def _whole(path: Path, arrays: dict[str, npt.NDArray[np.generic]], key: str) -> int:
    if arrays[key].size != 1 or int(arrays[key].astype(np.int64).item()) < 1:
        raise InputError(f"{path}: {key} must be one whole number, at least 1")
    return int(arrays[key].astype(np.int64).item())


def _load(path: Path, needed: tuple[str, ...]) -> dict[str, npt.NDArray[np.generic]]:
    with open_npz(path) as archive:
        arrays = dict(archive)
    missing = [f"{path}: has no array {key}" for key in needed if key not in arrays]
    if missing:
        raise InputError(missing)
    return arrays
