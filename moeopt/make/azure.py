"""Request lengths from the Azure LLM inference trace 2023 (Splitwise)."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moeopt.errors import InputError
from moeopt.make.recipe import Source

SOURCE = Source(
    folder="Azure__AzurePublicDataset",
    title="Azure LLM inference trace 2023",
    url="https://github.com/Azure/AzurePublicDataset",
    commit="b469a113cedca53ddc3bdea71a143dc4b7d8700c",
    licence="CC-BY-4.0",
)
CONVERSATION = ("AzureLLMInferenceTrace_conv.csv", "data/AzureLLMInferenceTrace_conv.csv")
CODE = ("AzureLLMInferenceTrace_code.csv", "data/AzureLLMInferenceTrace_code.csv")
ATTRIBUTION = (
    "Request lengths: Azure LLM inference trace 2023 (CC-BY-4.0, (c) Microsoft), "
    f"{SOURCE.url} commit {SOURCE.commit[:12]}; attribution: Patel et al., Splitwise: Efficient "
    "generative LLM inference using phase splitting, ISCA 2024. Adapted: arrival times dropped, "
    "every n-th request in time order kept"
)

Lengths = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LengthClass:
    """Requests that are planned as equals: never less KV cache, never fewer steps than needed.

    ``lengths``: prompt and output tokens of each member, shape (n, 2).
    """

    name: str
    lengths: Lengths

    @property
    def count(self) -> int:
        """Number of requests."""
        return len(self.lengths)

    @property
    def output_tokens(self) -> int:
        """Longest output among the members."""
        return int(self.lengths[:, 1].max())

    @property
    def prompt_tokens(self) -> int:
        """Smallest prompt with which no member has more tokens in all."""
        return int(self.lengths.sum(axis=1).max()) - self.output_tokens

    @property
    def decode_tokens(self) -> int:
        """Output tokens of all members together, as observed."""
        return int(self.lengths[:, 1].sum())

    def describe(self) -> str:
        """Name and true mean lengths."""
        prompt, output = self.lengths.mean(axis=0)
        return f"{self.name} {prompt:.1f}+{output:.1f}"


def read_lengths(path: Path) -> Lengths:
    """Read (context, generated) tokens of every request in time order, shape (n, 2).

    Raises
    ------
    InputError
        Not such a trace.
    """
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.reader(stream)
        header = next(reader, None)
        if header != ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]:
            raise InputError(f"{path}: not an Azure LLM inference trace (header {header})")
        try:
            rows = sorted((row[0], int(row[1]), int(row[2])) for row in reader if row)
        except (ValueError, IndexError) as error:
            raise InputError(f"{path}: line {reader.line_num}: {error}") from error
    lengths = np.array([row[1:] for row in rows], dtype=np.int64).reshape(-1, 2)
    if not len(lengths) or (lengths < 1).any():
        raise InputError(f"{path}: empty, or a request without context or output")
    return lengths


def sample(lengths: Lengths, count: int) -> Lengths:
    """Keep ``count`` requests, evenly spread over the trace in time order."""
    if not 1 <= count <= len(lengths):
        raise InputError(f"cannot take {count} requests of a trace of {len(lengths)}")
    return lengths[np.arange(count) * len(lengths) // count]


def length_classes(prefix: str, lengths: Lengths, classes: int) -> list[LengthClass]:
    """Cut requests into classes of similar output and total length.

    Starting from one class, the cut that saves the most is made again and again: cuts are
    thresholds on the output or on the total length; the cost of a class is its count times
    (largest total / mean total of all + largest output / mean output of all), so that neither the
    KV cache nor the steps of a class are far above what its members need. Costs are compared in
    integers, so the result does not depend on the machine.

    Returns
    -------
    list of LengthClass
        Named ``<prefix>1, <prefix>2, …``, by output length, then prompt length.
    """
    keys = np.stack([lengths.sum(axis=1), lengths[:, 1]], axis=1)
    price = keys.sum(axis=0)[::-1]  # of a token of total length, of a token of output length
    parts = [np.arange(len(keys))]
    while len(parts) < classes:
        cuts = [_best_cut(keys, price, part) for part in parts]
        best = max(range(len(parts)), key=lambda i: cuts[i][0])
        saving, left, right = cuts[best]
        if saving <= 0:
            raise InputError(f"{len(lengths)} requests do not make {classes} different classes")
        parts[best : best + 1] = [left, right]
    groups = sorted((LengthClass("", lengths[part]) for part in parts), key=_by_length)
    return [LengthClass(f"{prefix}{i}", group.lengths) for i, group in enumerate(groups, 1)]


def _by_length(group: LengthClass) -> tuple[int, int]:
    return group.output_tokens, group.prompt_tokens


def _best_cut(keys: Lengths, price: Lengths, part: Lengths) -> tuple[int, Lengths, Lengths]:
    """Return the saving and the two sides of the best cut of one class."""
    best = (0, part, part[:0])
    whole = len(part) * int(keys[part].max(axis=0) @ price)
    size = np.arange(1, len(part))
    for axis in (0, 1):
        order = part[np.argsort(keys[part, axis], kind="stable")]
        ascending = keys[order]
        below = np.maximum.accumulate(ascending)[:-1] @ price
        above = np.maximum.accumulate(ascending[::-1])[::-1][1:] @ price
        # A threshold cannot part equal requests.
        possible = ascending[:-1, axis] < ascending[1:, axis]
        saving = np.where(possible, whole - size * below - (len(part) - size) * above, 0)
        if saving.size and int(saving.max()) > best[0]:
            cut = int(saving.argmax()) + 1
            best = (int(saving.max()), order[:cut], order[cut:])
    return best
