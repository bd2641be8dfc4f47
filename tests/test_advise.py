"""``advise``: maps made for some windows, scored on others; the answer and its reason."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import typer
from balance_brute import all_hosts
from typer.testing import CliRunner

from moeopt.advise.advice import advise
from moeopt.advise.matching import moves, renamed
from moeopt.advise.question import Question, from_instance, from_trace, read_map
from moeopt.advise.verdict import is_worth_it, sentence
from moeopt.balance import Effort, balance_data, check_balance
from moeopt.balance.hosts import hosts_of
from moeopt.catalog import read_instance
from moeopt.commands.advising import advise as command
from moeopt.errors import InputError
from moeopt.make.traces_shipped import Trace
from moeopt.trace.loads import load_trace, loads_of_choices

QUICK = Effort(rounds=4, steps=5_000)


def drifted(
    seed: int = 0, *, step: float = 0.05, windows: int = 8, layers: int = 2, experts: int = 32
) -> np.ndarray:
    """Loads whose logarithms walk: ``step`` 0 is a skew that stays, 1 a new one every window."""
    rng = np.random.default_rng(seed)
    logs = rng.normal(0, 1, (layers, experts))
    rows = []
    for _ in range(windows):
        logs = logs * np.sqrt(1 - step**2) + step * rng.normal(0, 1, logs.shape)
        share = np.exp(logs) / np.exp(logs).sum(axis=1, keepdims=True)
        rows.append(rng.poisson(50_000 * share))
    return np.array(rows, dtype=float)


def question(loads: np.ndarray, **changes: object) -> Question:
    return replace(Question("made", loads, np.full(8, 5)), **changes)


def test_a_skew_that_stays_is_worth_it() -> None:
    advice = advise(question(drifted(step=0.0)), effort=QUICK)
    assert (advice.fitted, advice.scored) == ((0, 4), (4, 8))
    assert advice.published is not None
    assert advice.published_gain is not None
    assert advice.unreplicated is not None
    assert advice.moeopt.balancedness > 0.95 > advice.today.balancedness
    assert advice.moeopt.largest_tokens <= advice.published.largest_tokens
    assert advice.unreplicated.balancedness < advice.moeopt.balancedness <= advice.ceiling <= 1
    assert 0.3 < advice.published_gain <= advice.gain <= advice.most_gain
    assert is_worth_it(advice)
    text = sentence(advice)
    assert text.startswith("worth it, because in windows 4 to 7 the fullest GPU has ")
    assert f"{advice.moeopt.moves:,} copies move and there are 16 redundant experts" in text
    memory = replace(advice.memory, redundant_experts=1)
    one = replace(advice, moeopt=replace(advice.moeopt, moves=1), memory=memory)
    assert sentence(one).endswith("; 1 copy moves and there is 1 redundant expert")


def test_even_loads_are_not_and_that_is_proved() -> None:
    loads = np.random.default_rng(0).poisson(1e6, (4, 2, 32)).astype(float)
    advice = advise(question(loads), effort=QUICK)
    assert advice.most_gain < 0.02
    assert not is_worth_it(advice)
    assert sentence(advice).endswith(" of the tokens of the fullest GPU (proved)")
    assert "no map can save more than" in sentence(advice)


def test_loads_that_change_completely_are_not_and_that_is_not_proved() -> None:
    loads = drifted(step=0.0, windows=2)
    loads[1] = np.roll(loads[0][:, ::-1], 5, axis=1)
    advice = advise(question(loads), effort=QUICK)
    assert advice.gain < 0.4 < advice.most_gain
    text = sentence(advice, least_gain=0.4)
    assert text.startswith("not worth it, because a map made for window 0 saves only ")
    assert "(proved)" not in text


def test_scores_are_those_of_the_checker() -> None:
    loads = drifted(3)
    advice = advise(question(loads), fit=(1, 3), score=(3, 5), effort=QUICK)
    data = balance_data(loads[3:5], gpus=8, replicas=40)
    report = check_balance(data, advice.plan)
    assert report.violations == []
    assert advice.moeopt.largest_tokens == report.objective
    assert advice.moeopt.balancedness == report.balancedness.mean()
    trivial = np.arange(32).reshape(8, 4)
    expected = loads[3:5][:, :, trivial].sum(axis=3).max(axis=2).sum() / 2
    assert advice.today.largest_tokens == expected
    assert advice.today.moves is None


def test_no_map_at_all_is_above_the_ceiling() -> None:
    rng = np.random.default_rng(1)
    hosts = all_hosts(5, (2, 2, 2))
    for _ in range(10):
        loads = rng.lognormal(0, 1, (2, 1, 5))
        made = question(loads, slots=np.full(3, 2), today=np.array([[0, 1, 2, 3, 4, 0]]))
        advice = advise(made, effort=QUICK)
        pieces = loads[1, 0] / hosts.sum(axis=2)
        largest = np.einsum("ne,neg->ng", pieces, hosts).max(axis=1).min()
        assert advice.least_tokens <= largest * (1 + 1e-12)
        assert loads[1].sum() / 3 / largest <= advice.ceiling * (1 + 1e-12)
        assert advice.unreplicated is None  # 5 experts on 3 GPUs


def test_a_budget_of_moves_is_kept() -> None:
    loads = drifted(5)
    today = np.stack([np.concatenate([np.arange(32), np.roll(np.arange(8), 3)])] * 2)
    today = today.reshape(2, 5, 8).transpose(0, 2, 1).reshape(2, 40)
    free = advise(question(loads, today=today), effort=QUICK)
    tight = advise(question(loads, today=today, most_moves=6), effort=QUICK)
    assert tight.moeopt.moves is not None
    assert free.moeopt.moves is not None
    assert tight.moeopt.moves <= 6 < free.moeopt.moves
    assert tight.gain < free.gain


def test_memory_and_the_kv_cache_it_costs() -> None:
    loads = drifted()
    sizes = {"expert_mib": 10.5, "kv_kib_per_token": 64.0}
    memory = advise(question(loads, **sizes), effort=QUICK).memory
    assert memory.redundant_experts == 2 * 8
    assert memory.redundant_mib == 16 * 10.5
    assert memory.added_mib == 16 * 10.5
    assert memory.kv_tokens == 16 * 10.5 * 1024 // 64
    text = sentence(advise(question(loads, **sizes), effort=QUICK))
    assert "16 redundant experts take 168 MiB, the KV cache of 2,688 tokens" in text
    none = advise(question(loads, slots=np.full(8, 4), **sizes), effort=QUICK)
    assert (none.memory.redundant_mib, none.unreplicated) == (0, None)


def test_gpus_are_renamed_to_move_the_fewest_copies() -> None:
    rng = np.random.default_rng(2)
    for nodes in (1, 2):
        before = rng.random((2, 6, 4)) < 0.4
        after = rng.random((2, 6, 4)) < 0.4
        found = renamed(before, after, nodes)
        orders = [p for p in permutations(range(4)) if nodes == 1 or {p[0], p[1]} == {0, 1}]
        for l in range(2):
            ways = [moves(before[l : l + 1], after[l : l + 1, :, list(p)]) for p in orders]
            assert moves(before[l : l + 1], found[l : l + 1]) == min(ways)
            for p in range(0, 4, 4 // nodes):
                here = slice(p, p + 4 // nodes)
                assert sorted(map(tuple, found[l].T[here])) == sorted(map(tuple, after[l].T[here]))


def test_an_instance_says_it_all() -> None:
    made = from_instance(read_instance("smoke_balance_moves"))
    assert (made.gpus, made.expert_mib, made.most_moves) == (3, 100.0, 3)
    advice = advise(made, effort=QUICK)
    assert (advice.fitted, advice.scored) == ((0, 1), (0, 1))
    assert advice.moeopt.largest_tokens == 12.0
    assert advice.moeopt.moves == 3
    assert hosts_of(advice.plan, made.slots, 4).any(axis=2).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fit": (3, 3)}, "fit: 3:3 has no window: FIRST must be below END"),
        ({"score": (7, 9)}, "score: 7:9 ends after the last window: 0:8 is all there is"),
    ],
)
def test_windows_that_are_not_there(changes: dict[str, tuple[int, int]], words: str) -> None:
    with pytest.raises(InputError, match=words):
        advise(question(drifted()), effort=QUICK, **changes)


def test_choices_are_counted_in_windows_of_requests() -> None:
    ids = np.array([[[0, 1]], [[0, 2]], [[1, 2]], [[0, 3]], [[2, 3]]], dtype=np.uint8)
    trace = Trace("made", 4, 2, ids, np.array([0, 2, 3, 5]), np.zeros(3, dtype=np.int64))
    found = loads_of_choices(trace, 2)
    assert found.load.tolist() == [[[2, 2, 2, 0]], [[1, 0, 1, 2]]]
    for windows in (0, 4):
        with pytest.raises(InputError, match="3 requests make 1 to 3 windows"):
            loads_of_choices(trace, windows)


def test_windows_are_fitted_one_by_one_where_that_helps() -> None:
    """Two kinds of requests take turns, each with hot experts of its own."""
    kind = np.ones((2, 1, 16))
    kind[0, 0, :4], kind[1, 0, 8:12] = 100, 100
    taking_turns = np.concatenate([kind] * 8) + np.random.default_rng(0).random((16, 1, 16))
    asked = replace(question(taking_turns), slots=np.full(4, 4))
    advice = advise(asked, effort=QUICK)
    assert advice.fitted_as == 8
    # The hot experts of each kind are on four GPUs.
    assert advice.moeopt.balancedness > 0.9
    # Three windows are too few to compare.
    assert advise(asked, fit=(0, 3), effort=QUICK).fitted_as == 1


def test_windows_without_tokens() -> None:
    loads = drifted()
    loads[4:] = 0
    with pytest.raises(InputError, match="score: there are no tokens in windows 4 to 8"):
        advise(question(loads), effort=QUICK)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"slots": 41}, "41 slots cannot be divided equally among 8 GPUs"),
        ({"today": np.zeros((2, 40), dtype=int)}, "layer 0 has no expert 1"),
        ({"today": np.zeros((1, 40), dtype=int)}, "2 layers of slots, are needed"),
        ({"today": np.zeros((2, 41), dtype=int)}, "41 slots are not equally many on 8 GPUs"),
        ({"today": np.full((2, 40), 32)}, "experts are 0 to 31"),
        ({"expert_mib": 0.0}, "expert_mib: must be above 0"),
        ({"most_moves": 3}, "a migration budget"),
        ({"gpus": 40, "slots": 40}, "the map in use is needed"),
    ],
)
def test_questions_that_do_not_fit(changes: dict[str, object], words: str) -> None:
    arguments: dict[str, object] = {"gpus": 8, "slots": 40} | changes
    with pytest.raises(InputError, match=words):
        from_trace(load_trace("t", drifted()), **arguments)  # type: ignore[arg-type]


# --- the command ----------------------------------------------------------------------------------


def run(*arguments: str) -> str:
    app = typer.Typer()
    app.command()(command)
    done = CliRunner().invoke(app, list(arguments))
    if done.exception:
        raise done.exception
    return done.stdout


def test_the_command_answers(tmp_path: Path) -> None:
    loads = drifted(step=0.0)
    path = tmp_path / "trace.npz"
    path.write_bytes(load_trace("trace", loads).to_bytes())
    shape = ("--gpus", "8", "--slots", "40")
    printed = run(str(path), *shape, "--expert-mib", "10.5", "--kv-kib-per-token", "64")
    for words in ("published heuristic", "no map is better than", "worth it, because", "KV cache"):
        assert words in printed
    np.save(tmp_path / "loads.npy", loads)
    answer = json.loads(run(str(tmp_path / "loads.npy"), *shape, "--fit", "0:4", "--json"))
    assert answer["worth_it"] is True
    assert answer["answer"] in printed.replace("\n", " ") or "redundant" in answer["answer"]
    assert answer["moeopt"]["balancedness"] <= answer["ceiling"]
    assert answer["gain"] <= answer["most_gain"]
    # The map of the answer, in use: nothing is left to gain that would be worth it.
    plan = np.array(answer["plan"])
    np.save(tmp_path / "map.npy", plan)
    sglang = tmp_path / "map.json"
    sglang.write_text(json.dumps({"physical_to_logical_map": plan.tolist()}))
    for current in (("map.npy",), ("map.json", "--from", "sglang")):
        again = json.loads(
            run(str(path), *shape, "--json", "--current", str(tmp_path / current[0]), *current[1:])
        )
        assert again["today"]["largest_tokens"] == answer["moeopt"]["largest_tokens"]
        assert again["worth_it"] is False


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("loads.npy",), "needs --gpus and --slots"),
        (("smoke_balance_moves", "--gpus", "3"), "an instance says itself"),
        (("azure-conv", "--gpus", "8", "--slots", "40"), "has no loads"),
        (("gpt-oss-20b", "--gpus", "8"), "needs --gpus and --slots"),
        (("gpt-oss-20b", "--gpus", "8", "--slots", "40", "--windows", "0"), "make 1 to 180"),
        (("loads.npy", "--gpus", "8", "--slots", "40", "--windows", "4"), "traces of choices"),
        (("smoke_balance_best",), "advice is for the even split"),
        (("smoke_balance_infeasible",), "2 slots too few"),
        (("smoke_balance_moves", "--fit", "0-1"), "write FIRST:END"),
        (("smoke_balance_moves", "--fit", "3:1"), "fit: 3:1 has no window"),
        (
            ("smoke_balance_moves", "--fit", "0:2"),
            "ends after the last window: 0:1 is all there is",
        ),
        (("smoke_balance_moves", "--least-gain", "2"), "between 0 and 1"),
        (("zero.npy", "--gpus", "8", "--slots", "40"), r"zero\.npy: every load is zero"),
        (("missing.npz", "--gpus", "8", "--slots", "40"), "missing.npz"),
        (("loads.npy", "--gpus", "8", "--slots", "40", "--from", "sglang"), "--current"),
    ],
)
def test_the_command_refuses(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    np.save(tmp_path / "loads.npy", drifted())
    np.save(tmp_path / "zero.npy", np.zeros((2, 4)))
    first = arguments[0]
    source = str(tmp_path / first) if "." in first else first
    with pytest.raises(InputError, match=words):
        run(source, *arguments[1:])


def test_maps_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text('{"physical_to_logical_map": [[0, 1], [0]]}')
    with pytest.raises(InputError, match="in which format"):
        read_map(path, (0, 1))
    with pytest.raises(InputError, match="different numbers of slots"):
        read_map(path, (0, 1), "sglang")
    with pytest.raises(InputError, match="no such file"):
        read_map(tmp_path / "none.npy", (0, 1))
    with pytest.raises(InputError, match="there is no format"):
        read_map(path, (0, 1), "none")
