"""Small replay traces, derived from public ones: ``python -m moeopt.make.traces --data DIR``.

Two kinds of ``.npz``, in ``instances/traces``:

- routing (``gpt-oss-20b``, ``deepseek-v2-lite``): which experts every token of some whole requests
  chose, in token order, in every MoE layer: ``sets`` [T, L] (see :mod:`moeopt.make.traces_sets`),
  ``offsets`` [R + 1], ``prompt_tokens`` [R], and ``experts``, ``top_k``, ``group`` [R] (the task);
- arrivals (``azure-conv``, ``azure-code``, ``mooncake``): ``arrival_ms``, ``prompt_tokens`` and
  ``output_tokens`` [R] of consecutive requests.

The same data give the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeopt.errors import InputError
from moeopt.make import azure, deepseek_v2_lite, gpt_oss
from moeopt.make.files import npz_bytes
from moeopt.make.recipe import Source
from moeopt.make.traces_sets import rank_sets

MOONCAKE = Source(
    folder="kvcache-ai__Mooncake",
    title="Mooncake conversation trace",
    url="https://github.com/kvcache-ai/Mooncake",
    commit="3b5a594133958449a1feaf1c9e0fc1b553e34a28",
    licence="Apache-2.0",
)
#: Whole requests kept, evenly spread in the order of the source, to stay below 3 MB a file.
GPT_OSS_REQUESTS = 180
DEEPSEEK_SHARE = 0.84
#: Consecutive requests kept of each trace of arrivals, and where they start (a share of the trace).
ARRIVALS, ARRIVALS_FROM = 3000, 0.25

Arrays = dict[str, npt.NDArray[Any]]


def gpt_oss_20b(data_dir: Path) -> Arrays:
    """Generated tokens of 180 of the 494 requests without the authors' repetition flag."""
    source = gpt_oss.SOURCE
    meta = json.loads(source.find(data_dir, "gptoss20b_meta.json")[0].read_text(encoding="utf-8"))
    with np.load(source.find(data_dir, "gptoss20b_ids.npz")[0], allow_pickle=False) as archive:
        ids, offsets = archive["ids"], archive["offsets"]
    clean = np.array([r for r, request in enumerate(meta) if not request["repetition"]])
    kept = clean[np.arange(GPT_OSS_REQUESTS) * len(clean) // GPT_OSS_REQUESTS]
    parts = [ids[offsets[r] : offsets[r + 1]] for r in kept]
    prompts = [meta[r]["prompt_tokens"] for r in kept]
    return _routing(parts, prompts, ["generated"] * len(parts), gpt_oss.EXPERTS)


def deepseek_v2_lite_tasks(data_dir: Path) -> Arrays:
    """Teacher-forced tokens (prompt and answer) of 84 % of the requests of each task."""
    parts, groups = [], []
    for task, trace in deepseek_v2_lite.read_traces(data_dir).items():
        ends = np.cumsum(trace.lens)
        count = int(DEEPSEEK_SHARE * len(trace.lens))
        for r in np.arange(count) * len(trace.lens) // count:
            parts.append(trace.ids[ends[r] - trace.lens[r] : ends[r]])
            groups.append(task)
    return _routing(parts, [0] * len(parts), groups, deepseek_v2_lite.EXPERTS)


def _routing(
    parts: list[npt.NDArray[np.uint8]], prompts: list[int], groups: list[str], experts: int
) -> Arrays:
    return {
        "sets": rank_sets(np.concatenate(parts), experts),
        "offsets": np.cumsum([0, *map(len, parts)]).astype("<i4"),
        "prompt_tokens": np.array(prompts, dtype="<i4"),
        "group": np.array([g.encode("ascii") for g in groups]),
        "experts": np.array(experts, dtype="<i4"),
        "top_k": np.array(parts[0].shape[2], dtype="<i4"),
    }


def azure_arrivals(data_dir: Path, patterns: tuple[str, ...]) -> Arrays:
    """Consecutive requests of the Azure trace 2023."""
    path = azure.SOURCE.find(data_dir, *patterns)[0]
    azure.read_lengths(path)  # refuses what is not such a trace
    with path.open(newline="", encoding="utf-8-sig") as stream:
        rows = [
            # Seven digits of seconds: datetime reads six.
            (_milliseconds(line["TIMESTAMP"][:26]), line["ContextTokens"], line["GeneratedTokens"])
            for line in csv.DictReader(stream)
        ]
    return _arrivals(sorted((t, int(prompt), int(output)) for t, prompt, output in rows))


def _milliseconds(text: str) -> int:
    return round(datetime.fromisoformat(text + "+00:00").timestamp() * 1000)


def mooncake_arrivals(data_dir: Path) -> Arrays:
    """Consecutive requests of the Mooncake conversation trace (output of at least one token)."""
    path = MOONCAKE.find(
        data_dir, "conversation_trace.jsonl.gz", "FAST25-release/traces/conversation_trace.jsonl"
    )[0]
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    entries = [json.loads(line) for line in text.splitlines()]
    rows = [(e["timestamp"], e["input_length"], e["output_length"]) for e in entries]
    return _arrivals([row for row in sorted(rows) if row[2] >= 1])


def _arrivals(rows: list[tuple[int, int, int]]) -> Arrays:
    first = int(ARRIVALS_FROM * len(rows))
    table = np.array(rows[first : first + ARRIVALS], dtype=np.int64)
    return {
        "arrival_ms": (table[:, 0] - table[0, 0]).astype("<i4"),
        "prompt_tokens": table[:, 1].astype("<i4"),
        "output_tokens": table[:, 2].astype("<i4"),
    }


def derive(data_dir: Path) -> dict[str, bytes]:
    """Return the shipped traces by file name.

    Raises
    ------
    InputError
        A source is missing or damaged.
    """
    arrays = {
        "gpt-oss-20b": gpt_oss_20b(data_dir),
        "deepseek-v2-lite": deepseek_v2_lite_tasks(data_dir),
        "azure-conv": azure_arrivals(data_dir, azure.CONVERSATION),
        "azure-code": azure_arrivals(data_dir, azure.CODE),
        "mooncake": mooncake_arrivals(data_dir),
    }
    return {f"{name}.npz": npz_bytes(parts) for name, parts in arrays.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m moeopt.make.traces", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the sources' folders")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    options = parser.parse_args(arguments)
    try:
        files = derive(options.data)
    except InputError as error:
        print(*error.problems, sep="\n", file=sys.stderr)
        return error.exit_status
    options.output.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (options.output / name).write_bytes(data)
        print(f"{options.output / name}: {len(data):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
