"""The joint problem by layers: gaps and times of every shipped instance and of variants of them.

``python benchmarks/joint.py [--only TEXT] [--time-limit S]`` solves each case end to end in a
process of its own (``moeopt.solve`` without a formulation, one thread) and writes
``results/joint.csv`` and ``results/joint.md``. Variants: ``uniform`` (equal slots), ``resident``
(every resident replica charged), ``waves`` (2.9 times the requests, all with the longest output,
the number of waves decided). ``prescribed``: the requests of every wave are given, one task a wave.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from moeopt import read_instance, solve
from moeopt.instance import Instance, JointOptions

RESULTS = Path(__file__).parent / "results"
COLUMNS = (
    "instance", "variant", "form", "charged", "upper_us", "lower_us", "gap_percent", "upper_from",
    "lower_from", "seconds", "cpu_s", "peak_mib",
)  # fmt: skip
STEADY = (
    "mixtral-8x7b_4gpu_steady", "mixtral-8x7b_8gpu_steady", "gpt-oss-20b_4gpu_steady",
    "gpt-oss-20b_8gpu_steady", "deepseek-v2-lite_8gpu_steady", "deepseek-v3_32gpu_steady",
)  # fmt: skip
LENGTHS = (
    "mixtral-8x7b_4gpu_azure", "mixtral-8x7b_4gpu_azure_sum", "mixtral-8x7b_4gpu_azure_p2",
    "mixtral-8x7b_4gpu_azure_each", "mixtral-8x7b_8gpu_azure", "mixtral-8x7b_8gpu_azure_sum",
    "mixtral-8x7b_8gpu_azure_p2", "deepseek-v2-lite_8gpu_joint",
)  # fmt: skip
TASKS = (
    "mixtral-8x7b_4gpu_tasks", "mixtral-8x7b_4gpu_tasks_sum", "mixtral-8x7b_4gpu_tasks_p2",
    "mixtral-8x7b_8gpu_tasks", "mixtral-8x7b_8gpu_tasks_sum", "mixtral-8x7b_8gpu_tasks_p2",
    "gpt-oss-20b_4gpu_tasks", "gpt-oss-20b_4gpu_tasks_sum", "gpt-oss-20b_4gpu_tasks_p2",
    "gpt-oss-20b_8gpu_tasks", "gpt-oss-20b_8gpu_tasks_sum", "gpt-oss-20b_8gpu_tasks_p2",
    "deepseek-v2-lite_8gpu_tasks",
)  # fmt: skip
VARIANTS = ("steady", "uniform", "waves", "waves resident")


def cases() -> list[tuple[str, str]]:
    """All (instance, variant)."""
    names = [name + form for name in STEADY for form in ("", "_sum", "_p2")]
    steady = [(name, variant) for variant in VARIANTS for name in names]
    lengths = [(name, v) for name in LENGTHS for v in ("lengths", "lengths resident")]
    return steady + lengths + [(n, v) for n in TASKS for v in ("prescribed", "prescribed resident")]


def varied(instance: Instance, variant: str) -> Instance:
    """Return the instance with what the variant changes."""
    charged = "resident" if "resident" in variant else None
    options = instance.joint or JointOptions()
    requests = instance.requests
    assert requests is not None
    if variant.startswith("waves"):
        longest = max(r.output_tokens for r in requests)
        # The cache of a request stays what it is: longer outputs, shorter prompts.
        requests = tuple(
            r.model_copy(
                update={
                    "count": -(-29 * r.count // 10),
                    "output_tokens": longest,
                    "prompt_tokens": max(0, r.prompt_tokens + r.output_tokens - longest),
                }
            )
            for r in requests
        )
        options = JointOptions(waves=6)
    options = options.model_copy(
        update={"charged": charged, "uniform_slots": True if variant == "uniform" else None}
    )
    return instance.model_copy(update={"requests": requests, "joint": options})


def run_case(name: str, variant: str, time_limit_s: float) -> dict[str, object]:
    """Solve one case in this process."""
    instance = varied(read_instance(name), variant)
    begin, cpu = time.monotonic(), time.process_time()
    record = solve(instance, problem="joint", time_limit_s=time_limit_s, gap=1e-4).record
    return {
        "instance": name,
        "variant": variant,
        "form": instance.layer_time.form,
        "charged": record.charged,
        "upper_us": record.upper_bound,
        "lower_us": record.lower_bound,
        "gap_percent": None if record.gap is None else round(100 * record.gap, 4),
        "upper_from": record.upper_bound_from,
        "lower_from": record.lower_bound_from,
        "seconds": round(time.monotonic() - begin, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def write(rows: list[dict[str, object]]) -> None:
    """Write the table in both forms."""
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "joint.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    lines = [
        "# The joint problem by layers",
        "",
        "Made by `benchmarks/joint.py`. Gaps in percent; `cpu_s` without solver workers.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + " --- |" * len(COLUMNS),
    ]
    lines += ["| " + " | ".join(str(row[c]) for c in COLUMNS) + " |" for row in rows]
    (RESULTS / "joint.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Run the cases asked for, each in its own process; keep the others' rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose 'INSTANCE VARIANT' has this text")
    parser.add_argument("--time-limit", type=float, default=60.0)
    parser.add_argument("--case", nargs=2, help="run one case here and print it")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(run_case(arguments.case[0], arguments.case[1], arguments.time_limit)))
        return
    known: dict[tuple[str, str], dict[str, object]] = {}
    table = RESULTS / "joint.csv"
    if table.exists():
        with table.open(encoding="utf-8") as stream:
            known = {(r["instance"], r["variant"]): dict(r) for r in csv.DictReader(stream)}
    for name, variant in cases():
        if arguments.only not in f"{name} {variant}":
            continue
        command = [sys.executable, __file__, "--case", name, variant]
        command += ["--time-limit", str(arguments.time_limit)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(name, variant, done.stderr[-500:], file=sys.stderr)
            continue
        known[name, variant] = json.loads(done.stdout)
        print(done.stdout.strip(), flush=True)
        write([known[case] for case in cases() if case in known])


if __name__ == "__main__":
    main()
