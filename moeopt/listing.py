"""What there is: problems, formulations, solvers, instances, versions; what an instance holds."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from typing import Any

import numpy as np

from moeopt import __version__
from moeopt.catalog import (
    LP_SOLVERS,
    SOLVERS,
    formulation_names,
    instance_entries,
    load_formulation,
    solver_names,
)
from moeopt.errors import InputError
from moeopt.instance import Instance
from moeopt.prepare import explain_infeasible, prepare
from moeopt.problem import PROBLEMS, ProblemData
from moeopt.solvers.selfcheck import self_check
from moeopt.step_bound import kv_memory_mib

Row = dict[str, Any]

_PROBLEMS = {
    "placement": "one GPU for each expert; least expected layer time (Euro-Par 2025, Problem 1)",
    "replication": "replicas, and which replica serves (Euro-Par 2025, Problem 2)",
    "joint": "placement, replication and requests to waves and GPUs under GPU memory and KV cache",
    "balance": "replicas in all slots; least tokens on the fullest GPU, mean over load windows",
    "topology": "experts on servers; fewest hops of the tokens, with or without copies",
    "affinity": "experts used in turn or together on one GPU; fewest tokens that change GPU",
    "paging": "what leaves a cache of experts; fewest loads, offline optimum (arXiv 2509.02408)",
    "activation": "how many experts a layer keeps within a budget of gate mass, and where",
}


def problems() -> list[Row]:
    """Return the problems, one row each."""
    return [{"problem": name, "decides": _PROBLEMS[name]} for name in PROBLEMS]


def formulations() -> list[Row]:
    """Return the shipped formulations, one row each."""
    rows = []
    for name in formulation_names():
        module = load_formulation(name)
        rows.append(
            {
                "formulation": name,
                "problem": module.PROBLEM,
                "kind": module.KIND,
                "solvers": ", ".join(solver_names(module)),
                "what": (module.__doc__ or "").strip().splitlines()[0],
            }
        )
    return sorted(rows, key=lambda row: (PROBLEMS.index(row["problem"]), row["formulation"]))


_SOLVER_PACKAGES = {"highs": "highspy", "cpsat": "ortools", "pdlp": "ortools"}
_SOLVER_WHAT = {
    "highs": "HiGHS: simplex, interior point, branch and bound",
    "cpsat": "OR-Tools CP-SAT: on directed rounding, and native CP models",
    "pdlp": "OR-Tools PDLP: first-order, for the LP relaxations of large formulations",
}


def solvers() -> list[Row]:
    """Return the solvers with their versions, one row each."""
    return [
        {
            "solver": name,
            "version": metadata.version(_SOLVER_PACKAGES[name]),
            "what": _SOLVER_WHAT[name],
        }
        for name in dict.fromkeys((*SOLVERS, *LP_SOLVERS))
    ]


def instances() -> list[Row]:
    """Return the shipped instances, one row each."""
    return [
        {
            "instance": entry["name"],
            "problems": ", ".join(entry["problems"]),
            "licence": entry["licence"],
            "source": entry["source"],
        }
        for entry in instance_entries()
    ]


LISTINGS = {
    "problems": problems,
    "formulations": formulations,
    "solvers": solvers,
    "instances": instances,
}


def version_rows() -> list[Row]:
    """Return versions of everything that can change a result, and the solvers' self-checks."""
    rows = [
        {"component": "moeopt", "version": __version__, "self_check": ""},
        {"component": "python", "version": platform.python_version(), "self_check": ""},
        {
            "component": "platform",
            "version": f"{sys.platform} {platform.machine()}",
            "self_check": "",
        },
    ]
    for package in ("pyomo", "numpy", "scipy", "pydantic"):
        rows.append({"component": package, "version": metadata.version(package), "self_check": ""})
    for name in SOLVERS:
        rows.append(
            {
                "component": f"{name} ({_SOLVER_PACKAGES[name]})",
                "version": metadata.version(_SOLVER_PACKAGES[name]),
                "self_check": self_check(name) or "passed",
            }
        )
    return rows


def describe_instance(instance: Instance) -> dict[str, Any]:
    """Describe an instance: sizes, memory, skew of its routing, requests, problems.

    Returns
    -------
    dict
        Section title to {label: value}; plain data.
    """
    moe, cluster = instance.moe, instance.cluster
    sections: dict[str, dict[str, Any]] = {
        "instance": {"name": instance.name, "sha256": instance.sha256},
        "moe": {
            "name": moe.name,
            "layers × experts, top-k": f"{moe.layers} × {moe.experts}, top-{moe.top_k}",
            "expert": f"{moe.expert_mib:,.6g} MiB",
        },
        "cluster": {
            "GPUs": sum(node.gpus for node in cluster.nodes),
            "slots a GPU and layer": cluster.slots_per_gpu or "by memory alone",
        },
        "layer time": {
            key: value
            for key, value in instance.layer_time.model_dump(exclude_none=True).items()
            if value not in (0, 0.0)
        },
        "problems": {},
    }
    if instance.source is not None:
        source = instance.source.model_dump(exclude_none=True)
        sections["instance"] |= {key: str(value) for key, value in source.items()}
    data: ProblemData | None = None
    for problem in PROBLEMS:
        try:
            prepared = prepare(instance, problem)
        except InputError as error:
            sections["problems"][problem] = "no: " + "; ".join(error.problems)
            continue
        data = prepared
        reasons = explain_infeasible(prepared)
        sections["problems"][problem] = "infeasible: " + "; ".join(reasons) if reasons else "yes"
    if data is not None:
        sections["memory"] = _describe_memory(data)
        sections["routing"] = _describe_routing(data)
        if data.requests is not None:
            sections["requests"] = _describe_requests(data)
    return {title: section for title, section in sections.items() if section}


def _describe_memory(data: ProblemData) -> dict[str, Any]:
    if data.free_mib is None:
        return {}
    total = float(data.free_mib.sum())
    return {
        "free after reserved and dense": f"{total:,.0f} MiB on {data.gpus} GPUs",
        "one copy of every expert": f"{data.layers * data.experts * data.expert_mib:,.0f} MiB",
        "left for replicas and KV cache": f"{kv_memory_mib(data):,.0f} MiB",
    }


def _describe_routing(data: ProblemData) -> dict[str, Any]:
    skew = data.load.max(axis=1) / data.load.mean(axis=1)
    section: dict[str, Any] = {
        "largest / mean load of a layer": f"median {np.median(skew):.2f}, largest {skew.max():.2f}"
    }
    if data.scenarios:
        counts = [len(layer) for layer in data.scenarios]
        section["distinct scenarios a layer"] = f"{min(counts):,} to {max(counts):,}"
    return section


def _describe_requests(data: ProblemData) -> dict[str, Any]:
    requests = data.requests
    assert requests is not None
    return {
        "classes": len(requests.names),
        "requests": int(requests.count.sum()),
        "output tokens": int(requests.count @ requests.output_tokens),
        "KV cache of all": f"{float(requests.kv_mib @ requests.count):,.0f} MiB",
        "waves at most": data.waves,
    }
