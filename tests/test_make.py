"""Recipes: the same bytes every time, honest numbers, and clear words where data are missing."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from moeopt.errors import InputError
from moeopt.instance import read_instance_file
from moeopt.make import RECIPES, azure, deepseek_v2_lite, gpt_oss, make, mixtral, tasks
from moeopt.make.files import json_bytes, npz_bytes
from moeopt.prepare import prepare
from moeopt.routing import USAGE_STEP, distinct_scenarios, expert_load, usage_profile

REAL = Path(__file__).resolve().parents[1] / "instances" / "real"
TRACES = os.environ.get("MOEOPT_TRACES")


# --- routing -------------------------------------------------------------------------------------


def test_distinct_scenarios_counts_sets_not_orders():
    experts, weight = distinct_scenarios(np.array([[3, 1], [1, 3], [0, 2], [3, 1]], np.uint8))
    assert experts.tolist() == [[0, 2], [1, 3]]
    assert weight.tolist() == [1, 3]


def test_expert_load_counts_tokens():
    assert expert_load([[0, 2], [2, 3]], 5).tolist() == [1, 0, 2, 1, 0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: distinct_scenarios([[0, 1], [2, 2]]), "token 1 chose one expert twice"),
        (lambda: distinct_scenarios(np.empty((0, 2))), "expected a table"),
        (lambda: expert_load([[0, 5]], 5), r"expert 5 is not in 0\.\.4"),
        (lambda: usage_profile([[1.0, 2.0], [0.0, 0.0]], 2), "at least one positive"),
        (lambda: usage_profile([[1.0, -1.0]], 2), "non-negative"),
    ],
)
def test_routing_refuses(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_usage_profile_is_exact_and_close():
    load = np.random.default_rng(1).exponential(size=(50, 7, 11))
    usage = usage_profile(load, 3)
    assert (usage.sum(axis=-1) == 3).all()
    assert (usage / USAGE_STEP == np.rint(usage / USAGE_STEP)).all()
    ideal = 3 * load / load.sum(axis=-1, keepdims=True)
    assert np.abs(usage - ideal).max() < USAGE_STEP


# --- files ---------------------------------------------------------------------------------------


def test_npz_has_no_date_and_no_order():
    a, b = np.arange(6, dtype=">i4").reshape(2, 3), np.array([0.5])
    packed = npz_bytes({"a": a, "b": b})
    assert packed == npz_bytes({"b": b, "a": a.astype("<i4")})
    with np.load(io.BytesIO(packed), allow_pickle=False) as archive:
        assert sorted(archive) == ["a", "b"]
        assert archive["a"].tolist() == a.tolist()
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_json_layout_keeps_the_document():
    document = {"text": "é" * 120, "rows": [[1, 2.5], [3, None]] * 40, "flat": list(range(200))}
    data = json_bytes(document)
    assert json.loads(data) == document
    assert "é".encode() in data
    with pytest.raises(ValueError, match="JSON compliant"):
        json_bytes({"x": float("nan")})


# --- numbers from the models' configurations -----------------------------------------------------


@pytest.mark.parametrize(
    ("experts", "expert_parameters", "dense_bytes", "published"),
    [
        # gpt-oss experts have biases (8,640 each) beside their weights.
        (24 * 32, 3 * 2880**2 + 3 * 2880, gpt_oss.DENSE_BYTES, 20_914_757_184),
        (26 * 64, 3 * 2048 * 1408, deepseek_v2_lite.DENSE_BYTES, 15_706_484_224),
        (32 * 8, 3 * 4096 * 14_336, mixtral.DENSE_BYTES, 46_702_792_704),
    ],
)
def test_dense_weights_complete_the_published_size(
    experts, expert_parameters, dense_bytes, published
):
    assert experts * expert_parameters + dense_bytes // 2 == published


def test_sizes_in_bytes():
    assert mixtral.EXPERT_BYTES == 336 * 2**20
    assert deepseek_v2_lite.EXPERT_BYTES == 16.5 * 2**20
    assert gpt_oss.EXPERT_BYTES == 24_883_200 * 4.25 / 8 + 17_280
    assert mixtral.KV_KIB_PER_TOKEN == 128
    assert gpt_oss.KV_KIB_PER_TOKEN == 48
    assert deepseek_v2_lite.KV_KIB_PER_TOKEN == 30.375


def test_every_subject_lends_its_usage_once():
    subjects = [s for groups in mixtral.SUBJECTS.values() for g in groups.values() for s in g]
    assert len(subjects) == len(set(subjects)) == 57


# --- request classes -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_length_classes_are_safe_and_lose_nobody(seed):
    rng = np.random.default_rng(seed)
    lengths = np.stack([rng.geometric(0.001, 300), rng.geometric(0.01, 300)], axis=1)
    classes = azure.length_classes("c", lengths, 7)
    assert [group.name for group in classes] == [f"c{i}" for i in range(1, 8)]
    assert sorted(map(tuple, np.concatenate([g.lengths for g in classes]))) == sorted(
        map(tuple, lengths)
    )
    for group in classes:
        total = group.prompt_tokens + group.output_tokens
        assert (group.lengths.sum(axis=1) <= total).all()
        assert (group.lengths.sum(axis=1) == total).any()
        assert (group.lengths[:, 1] <= group.output_tokens).all()
        assert group.prompt_tokens >= 1


def test_more_classes_waste_less():
    rng = np.random.default_rng(3)
    lengths = np.stack([rng.geometric(0.001, 200), rng.geometric(0.01, 200)], axis=1)

    def cost(count: int) -> float:
        classes = azure.length_classes("c", lengths, count)
        kv = sum(g.count * (g.prompt_tokens + g.output_tokens) for g in classes)
        steps = sum(g.count * g.output_tokens for g in classes)
        return kv / lengths.sum() + steps / lengths[:, 1].sum()

    costs = [cost(count) for count in (1, 2, 4, 8, 16)]
    assert all(later < earlier for earlier, later in pairwise(costs))


def test_equal_requests_are_not_parted():
    lengths = np.array([[5, 2]] * 4 + [[7, 3]] * 3)
    assert [g.count for g in azure.length_classes("c", lengths, 2)] == [4, 3]
    with pytest.raises(InputError, match="do not make 3 different classes"):
        azure.length_classes("c", lengths, 3)


def test_sample_is_spread_over_the_trace():
    lengths = np.arange(20).reshape(10, 2)
    assert azure.sample(lengths, 4)[:, 0].tolist() == [0, 4, 10, 14]
    with pytest.raises(InputError, match="cannot take 11 requests"):
        azure.sample(lengths, 11)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("time,a,b\n", "not an Azure"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023,12,x\n", "line 2"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "empty"),
    ],
)
def test_damaged_length_trace(tmp_path, text, words):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        azure.read_lengths(path)


# --- recipes -------------------------------------------------------------------------------------


def test_dbrx_gives_the_shipped_bytes(tmp_path):
    made = make("dbrx", None, tmp_path)
    assert [path.name for path in made] == [
        f"dbrx_16x4_seed{seed}{slots}.json"
        for seed in range(3)
        for slots in ["", *(f"_{n}slots" for n in range(5, 17))]
    ]
    for path in made:
        assert path.read_bytes() == (REAL / path.name).read_bytes()
        assert (path.with_name(path.name[:15] + ".npz")).exists()
    data = prepare(read_instance_file(made[-1]), "replication")
    assert (len(data.scenarios[0]), data.slots) == (1820, 16)


def test_dbrx_seeds_differ_and_the_third_is_nearly_uniform():
    weights = [
        prepare(read_instance_file(REAL / f"dbrx_16x4_seed{seed}.json"), "placement")
        .scenarios[0]
        .weight
        for seed in range(3)
    ]
    assert weights[2].max() / weights[2].min() < 1.11
    assert weights[0].max() / weights[0].min() > 100
    assert weights[1].max() > 2 * weights[0].max()


def test_make_refuses_what_it_does_not_know(tmp_path):
    with pytest.raises(InputError, match="no recipe 'dbrxx'; there are: gpt-oss-20b"):
        make("dbrxx", None, tmp_path)
    with pytest.raises(InputError, match="no option 'sed'; it has: seed"):
        make("dbrx", None, tmp_path, sed=1)
    with pytest.raises(InputError, match="negative"):
        make("dbrx", None, tmp_path, seed=-1)
    assert not list(tmp_path.iterdir())


def test_make_replaces_only_when_told(tmp_path):
    make("dbrx", None, tmp_path, seed=5)
    path, *others = make("dbrx", None, tmp_path, seed=5)  # the same bytes are not in the way
    good = path.read_bytes()
    path.write_bytes(b"mine")
    with pytest.raises(InputError, match="exists with other contents"):
        make("dbrx", None, tmp_path, seed=5)
    assert path.read_bytes() == b"mine"
    make("dbrx", None, tmp_path, seed=5, force=True)
    assert path.read_bytes() == good
    assert {*tmp_path.iterdir()} == {path, *others, tmp_path / "dbrx_16x4_seed5.npz"}


@pytest.mark.parametrize("name", [n for n, recipe in RECIPES.items() if recipe.sources])
def test_missing_data_are_all_named_with_their_address(tmp_path, name):
    with pytest.raises(InputError) as caught:
        make(name, tmp_path, tmp_path / "out")
    text = "\n".join(caught.value.problems)
    for source in RECIPES[name].sources:
        assert source.folder in text
        assert source.url in text
        assert source.commit in text
        assert source.url in RECIPES[name].describe()
    with pytest.raises(InputError, match="--data DIR"):
        make(name, None, tmp_path / "out")


def _write_gpt_oss(folder: Path, condensed: bool) -> None:
    rng = np.random.default_rng(7)
    ids = np.stack([rng.permutation(32)[:4] for _ in range(9 * 24)]).reshape(9, 24, 4)
    offsets, repetition = [0, 4, 6, 9], [False, True, False]
    folder.mkdir(parents=True)
    if condensed:
        np.savez(folder / "gptoss20b_ids.npz", ids=ids.astype(np.uint8), offsets=offsets)
        meta = [
            {"dataset": "set", "category": f"category {i}", "repetition": flag}
            for i, flag in enumerate(repetition)
        ]
        (folder / "gptoss20b_meta.json").write_text(json.dumps(meta))
        return
    for i, flag in enumerate(repetition):
        tokens = ids[offsets[i] : offsets[i + 1]]
        router = [
            {f"token_{100 + t}": {f"layer_{j}": {"selected_experts": r.tolist()} for j, r in e}}
            for t, e in enumerate(map(enumerate, tokens))
        ]
        path = folder / "data" / "set" / f"category {i}" / f"True_{flag}_examples.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"has_repetition": flag, "router_data": router}))


def _write_esft(folder: Path, condensed: bool) -> None:
    rng = np.random.default_rng(8)
    folder.mkdir(parents=True)
    arrays = {}
    for task in deepseek_v2_lite.TASKS:
        lens = np.array([3, 1, 4])
        ids = np.stack([rng.permutation(64)[:6] for _ in range(8 * 26)]).reshape(8, 26, 6)
        arrays |= {f"{task}_ids": ids.astype(np.uint8), f"{task}_lens": lens}
        if condensed:
            continue
        scores = folder / "results" / "expert_scores" / task
        scores.mkdir(parents=True)
        for i in range(26):
            rows = np.split(ids[:, i], np.cumsum(lens)[:-1])
            lines = [
                "\t".join(map(str, row.ravel())) + "\t\t" + "\t".join(["0.1"] * row.size)
                for row in rows
            ]
            (scores / f"expert_weights_{i + 1}.txt").write_text("\n".join(lines) + "\n")
    if condensed:
        np.savez(folder / "esft_dsv2lite_ids.npz", **arrays)


def _write_azure(folder: Path, below: str) -> None:
    rng = np.random.default_rng(9)
    (folder / below).mkdir(parents=True)
    for kind, count in (("conv", 3100), ("code", 1600)):
        rows = [
            f"2023-11-16 18:{i // 100:02d}:{i % 100:02d},{p},{o}"
            for i, (p, o) in enumerate(
                zip(rng.geometric(0.001, count), rng.geometric(0.01, count), strict=True)
            )
        ]
        text = "\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n"
        (folder / below / f"AzureLLMInferenceTrace_{kind}.csv").write_text(text)


def _write_mmlu(folder: Path) -> None:
    rng = np.random.default_rng(10)
    (folder / "frac_vecs").mkdir(parents=True)
    for groups in mixtral.SUBJECTS.values():
        for subject in (s for members in groups.values() for s in members):
            load = rng.exponential(size=(3, 32, 8)).astype(np.float32)
            np.save(folder / "frac_vecs" / subject, load / load.sum(axis=-1, keepdims=True))


@pytest.fixture(scope="module")
def raw_data(tmp_path_factory):
    """Small made-up data in the repositories' own layout, and in the condensed one."""
    own, condensed = tmp_path_factory.mktemp("own"), tmp_path_factory.mktemp("condensed")
    for folder, short in ((own, False), (condensed, True)):
        _write_gpt_oss(folder / gpt_oss.SOURCE.folder, short)
        _write_esft(folder / deepseek_v2_lite.SOURCE.folder, short)
        _write_azure(folder / azure.SOURCE.folder, "." if short else "data")
        _write_mmlu(folder / mixtral.SOURCE.folder)
    return own, condensed


@pytest.mark.parametrize("name", ["gpt-oss-20b", "deepseek-v2-lite", "mixtral-8x7b"])
def test_both_layouts_give_the_same_bytes(tmp_path, raw_data, name):
    for data_dir, out in zip(raw_data, ("a", "b"), strict=True):
        make(name, data_dir, tmp_path / out)
    first = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert len(first) > 2


def test_gpt_oss_drops_repetitive_requests(tmp_path, raw_data):
    made = make("gpt-oss-20b", raw_data[0], tmp_path, layer=3)
    single = next(path for path in made if path.name == "gpt-oss-20b_l3_8gpu.json")
    instance = read_instance_file(single)
    assert [layer.layer for layer in instance.routing] == [3]
    assert sum(instance.routing[0].scenarios.weight) == 7  # of 9 tokens, 2 are repetitive


def test_gpt_oss_tells_the_subjects(raw_data):
    for data_dir in raw_data:
        found = gpt_oss.read_subjects(data_dir)
        assert [request[:2] for request in found] == [("set", "category 0"), ("set", "category 2")]
        assert [len(ids) for _, _, ids in found] == [4, 3]
        again = gpt_oss.read_requests(data_dir)
        assert all((a[1] == b[2]).all() for a, b in zip(again, found, strict=True))
    with pytest.raises(InputError, match="no request of science"):
        tasks.gpt_oss_usage(raw_data[0])


def test_damaged_traces_name_their_file(tmp_path):
    folder = tmp_path / gpt_oss.SOURCE.folder / "data" / "set" / "category"
    folder.mkdir(parents=True)
    (folder / "True_False_examples.json").write_text('{"has_repetition": false}')
    with pytest.raises(InputError, match=r"True_False_examples\.json: not a router trace"):
        make("gpt-oss-20b", tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match=r"layer: 24 is not in 0\.\.23"):
        make("gpt-oss-20b", tmp_path, tmp_path / "out", layer=24)


def test_damaged_task_names_its_file(tmp_path, raw_data):
    _write_esft(tmp_path / deepseek_v2_lite.SOURCE.folder, condensed=False)
    _write_azure(tmp_path / azure.SOURCE.folder, "data")
    scores = tmp_path / deepseek_v2_lite.SOURCE.folder / "results" / "expert_scores" / "law"
    (scores / "expert_weights_5.txt").write_text("1\t2\t3\t\t0.1\n")
    with pytest.raises(InputError, match=r"law/expert_weights_5\.txt: not a list of expert"):
        make("deepseek-v2-lite", tmp_path, tmp_path / "out")


# --- shipped instances ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(REAL.glob("*.json")), ids=lambda path: path.stem)
def test_shipped_instances_say_where_they_come_from(path):
    instance = read_instance_file(path)
    assert instance.name == path.stem
    source = instance.source
    assert source.title
    assert source.licence
    synthetic = "ynthetic" in source.title
    assert (source.url is None) == synthetic
    if not synthetic:
        assert "commit" in source.notes
        assert "dapted" in source.notes
    if instance.requests:
        for request in instance.requests:
            assert (request.usage.sum(axis=1) == instance.moe.top_k).all()


def test_shipped_joint_instances_can_be_served():
    for path in REAL.glob("mixtral*.json"):
        data = prepare(read_instance_file(path), "joint")
        free_mib = data.free_mib.sum() - data.layers * data.experts * data.expert_mib
        assert (data.requests.count * data.requests.kv_mib).sum() < data.waves * free_mib


def test_tasks_fill_the_memory():
    """The cache of every wave fits, the fullest leaves little room for replicas."""
    paths = list(REAL.glob("*gpu_tasks.json"))
    assert len(paths) == 5
    for path in paths:
        data = prepare(read_instance_file(path), "joint")
        caches = data.requests.kv_mib @ data.wave_requests
        room = data.free_mib.sum() - data.layers * data.experts * data.expert_mib
        assert 0.5 <= caches.min() / room < caches.max() / room <= 0.995
        assert caches.max() / room >= 0.96


def test_gpt_oss_layer_ten_is_the_known_one():
    """Contiguous groups of four: 1.465 expert times a token (1.472 with repetitive requests)."""
    data = prepare(read_instance_file(REAL / "gpt-oss-20b_l10_8gpu.json"), "placement")
    scenarios = data.scenarios[0]
    gpu = (scenarios.expert // 4).reshape(-1, 4)
    time = (gpu[:, :, None] == np.arange(8)).sum(axis=1).max(axis=1)
    assert scenarios.weight @ time == pytest.approx(1.46534, abs=1e-5)


@pytest.mark.skipif(TRACES is None, reason="MOEOPT_TRACES does not name the raw data")
@pytest.mark.parametrize("name", list(RECIPES))
def test_recipes_give_the_shipped_bytes(tmp_path, name):
    make(name, Path(str(TRACES)), tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (REAL / path.name).read_bytes(), path.name


# --- catalogue -----------------------------------------------------------------------------------


def _catalog(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "moeopt.make.catalog", "--instances", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_catalog_is_current():
    run = _catalog(REAL.parent, "--check")
    assert run.returncode == 0, f"{run.stdout}{run.stderr}run: python -m moeopt.make.catalog"


def test_catalog_keeps_bounds_of_the_same_content_only(tmp_path):
    path, *others = make("dbrx", None, tmp_path / "real", seed=1)
    for other in others:
        other.unlink()
    assert _catalog(tmp_path, "--check").returncode == 1
    assert _catalog(tmp_path).returncode == 0
    catalog = tmp_path / "catalog.json"
    (entry,) = json.loads(catalog.read_text())["instances"]
    assert entry["problems"] == ["placement"]
    bound = {
        "problem": "placement",
        "lower_bound": 1.5,
        "lower_bound_from": "here",
        "upper_bound": 1.6,
        "upper_bound_from": "there",
        "date": "2026-01-01",
    }

    def store(value):
        entry["best_known"] = [value]
        catalog.write_text(json.dumps({"instances": [entry]}))

    store(bound)
    instance = json.loads(path.read_text())
    path.write_text(json.dumps(instance))  # other bytes, same content
    assert _catalog(tmp_path).returncode == 0
    (entry,) = json.loads(catalog.read_text())["instances"]
    assert entry["best_known"] == [bound]

    store(bound | {"lower_bound": 1.7})
    run = _catalog(tmp_path)
    assert (run.returncode, "above upper bound" in run.stderr) == (2, True)
    store({"problem": "placement"})
    run = _catalog(tmp_path)
    assert (run.returncode, "needs exactly" in run.stderr) == (2, True)

    store(bound)
    instance["cluster"]["slots_per_gpu"] += 1
    path.write_text(json.dumps(instance))
    run = _catalog(tmp_path)
    assert (run.returncode, "has changed since" in run.stderr) == (2, True)
    assert _catalog(tmp_path, "--drop-stale").returncode == 0
    (entry,) = json.loads(catalog.read_text())["instances"]
    assert entry["best_known"] == []

    store(bound)
    path.unlink()
    run = _catalog(tmp_path)
    assert (run.returncode, "is gone" in run.stderr) == (2, True)
