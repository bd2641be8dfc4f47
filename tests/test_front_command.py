"""``front`` and ``sensitivity`` as commands: tables, JSON, plots and plans that can be checked."""

from __future__ import annotations

import json
import signal

import pytest
import typer
from test_front import tiny

from moeopt.catalog import read_instance
from moeopt.checker import check_solution
from moeopt.cli import run
from moeopt.commands import fronting
from moeopt.front.envelope import Envelope
from moeopt.front.steady import changed
from moeopt.instance import JointOptions, write_instance_file
from moeopt.prepare import prepare
from moeopt.report.plot_front import read_front
from moeopt.solution import read_solution_file, validate_against

NAME = "smoke_joint_kv_or_replicas"


def moeopt(*arguments: object) -> int:
    app = typer.Typer()
    app.command("front")(fronting.front)
    app.command("sensitivity")(fronting.sensitivity)
    return run(lambda: app([str(a) for a in arguments]))


def test_front_as_json_is_read_by_plot(capsys, tmp_path):
    figure = tmp_path / "front.svg"
    assert moeopt("front", NAME, "--points", 5, "--json", "--plot", figure) == 0
    text = capsys.readouterr().out
    document = json.loads(text)
    file = tmp_path / "front.json"
    file.write_text(text, encoding="utf-8")
    front = read_front(file)
    assert front.instance == NAME
    assert len(front.points) == len(document["points"]) >= 2
    for point in document["points"]:
        assert point["throughput"] <= point["bound"]
        assert point["step_us"] <= point["tpot_us"]
        assert 0 < point["kv_share"] < 1
    assert figure.read_text(encoding="utf-8").count("<svg") == 1
    assert moeopt("front", NAME, "--plot", figure) == 2
    assert "--force" in capsys.readouterr().err


def test_front_at_given_limits_with_plans(capsys, tmp_path):
    instance = tiny(0, "max")
    file = tmp_path / "tiny.json"
    write_instance_file(instance, file)
    plans = tmp_path / "plans"
    plans.mkdir()
    arguments = ("front", file, "--tpot", 1e-6, "--tpot", 1, "--tpot", 2, "--plans", plans)
    assert moeopt(*arguments) == 0
    table = capsys.readouterr().out
    assert "no plan exists" in table
    assert "prefill and communication are not counted" in table
    written = sorted(plans.glob("*.plan.json"))
    assert len(written) == 1  # the best plan at both of the other limits
    solution = read_solution_file(written[0])
    made = read_instance(plans / written[0].name.replace(".plan", ""))
    assert validate_against(made, solution) == []
    assert check_solution(prepare(made, "joint"), solution).violations == []
    assert moeopt("front", file, "--tpot", 1e-6) == 1
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("front", NAME, "--tpot", -1), "must be positive"),
        (("front", NAME, "--plans", "nowhere"), "no such folder"),
        (("front", NAME, "--plot", "front.xyz"), "xyz"),
        (("front", "smoke_placement_unit"), "needs `requests`"),
        (("sensitivity", NAME, "--gib", 0), "must be positive"),
        (("sensitivity", NAME, "--tpot", 1e-6), "no plan was found"),
    ],
)
def test_bad_input_is_one_clear_line(capsys, arguments, words):
    assert moeopt(*arguments) == 2
    assert words in capsys.readouterr().err


def test_sensitivity_table_and_json(capsys, tmp_path):
    instance = tiny(3, "max")
    instance = changed(instance, joint=JointOptions(tpot_limit_us=1e6))
    file = tmp_path / "tiny.json"
    write_instance_file(instance, file)
    assert moeopt("sensitivity", file, "--gib", 0.003, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["tpot_limit_us"] == 1e6
    now, *cases = document["cases"]
    assert now["name"] == "now"
    assert now["change"] is None
    assert len(cases) >= 4
    for case in cases:
        low, high = case["change"]
        assert low == case["plan"]["throughput"] - now["bound"]
        assert high == case["bound"] - now["plan"]["throughput"]
        assert low <= high
    assert document["replicas_pay"]["bound"] >= document["replicas_pay"]["plan"]["throughput"]
    assert moeopt("sensitivity", file, "--gib", 0.003) == 0
    table = capsys.readouterr().out
    assert "+0.003 GiB, all to KV cache" in table
    assert "eplica" in table


@pytest.mark.parametrize("command", ["front", "sensitivity"])
def test_an_interrupt_before_the_first_plan_exits_with_130(command, capsys, monkeypatch):
    made = Envelope.__init__
    planned = []

    def interrupted(envelope, steady):
        made(envelope, steady)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Envelope, "__init__", interrupted)
    monkeypatch.setattr("moeopt.joint.assemble.plan_layer", lambda *a, **b: planned.append(a))
    assert moeopt(command, NAME) == 130
    assert planned == []
    capsys.readouterr()


@pytest.mark.parametrize(
    ("command", "progress"), [("front", "_progress"), ("sensitivity", "_case_done")]
)
def test_an_interrupt_keeps_what_is_there(command, progress, capsys, monkeypatch):
    said = getattr(fronting, progress)
    shown = []

    def interrupt(found):
        if not shown:
            signal.raise_signal(signal.SIGINT)
        shown.append(found)
        return said(found)

    monkeypatch.setattr(fronting, progress, interrupt)
    before = signal.getsignal(signal.SIGINT)
    assert moeopt(command, NAME, "--json") == 0
    assert signal.getsignal(signal.SIGINT) is before
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert document["interrupted"] is True
    found = document["points"] if command == "front" else document["cases"]
    assert any("step_us" in (point.get("plan") or point) for point in found)
    assert "interrupted" in printed.err
