"""Sweeps: which runs a settings file means, and where each goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loraloom.errors import InputError
from loraloom.training.state import settings_digest
from loraloom.training.sweep import combinations, read_values

BASE: dict[str, Any] = {
    "name": "thing",
    "output": "runs/thing",
    "model": {"checkpoint": "base.safetensors"},
    "data": [{"folder": "pictures"}],
}


def swept(**table: Any) -> dict[str, Any]:
    return {**BASE, "sweep": table}


def test_a_file_without_a_sweep_is_one_run() -> None:
    assert combinations(BASE, Path()) == []


def test_all_combinations_are_runs_with_a_folder_each(tmp_path: Path) -> None:
    values = {"adapter": {"rank": [4, 16]}, "optimizer.rate": [1e-4, 0.5]}
    runs = combinations(swept(values=values), tmp_path)
    assert [run.title for run in runs] == [
        "rank 4, rate 0.0001", "rank 4, rate 0.5", "rank 16, rate 0.0001", "rank 16, rate 0.5",
    ]  # fmt: skip
    assert [(r.settings.adapter.rank, r.settings.optimizer.rate) for r in runs] == [
        (4, 1e-4), (4, 0.5), (16, 1e-4), (16, 0.5),
    ]  # fmt: skip
    assert runs[0].settings.output == tmp_path / "runs/thing/rank-4_rate-0.0001"
    assert runs[0].settings.name == "thing-rank-4_rate-0.0001"
    assert {run.settings.cache for run in runs} == {tmp_path / "runs/thing/cache"}
    assert len({run.settings.output for run in runs}) == 4


def test_a_run_keeps_its_folder_when_the_sweep_grows() -> None:
    few = combinations(swept(values={"adapter.rank": [4]}), Path())
    many = combinations(swept(values={"adapter.rank": [2, 4, 8]}), Path())
    assert few[0].settings == many[1].settings
    assert settings_digest(few[0].settings) == settings_digest(many[1].settings)


def test_a_random_sweep_draws_different_ones_and_the_same_again() -> None:
    values = {"adapter.rank": [*range(1, 100)], "run.seed": [*range(1000)], "run.batch": [1, 2]}
    drawn = [combinations(swept(values=values, random=20, seed=s), Path()) for s in (3, 3, 4)]
    assert [len(runs) for runs in drawn] == [20] * 3
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({run.title for run in drawn[0]}) == 20
    assert len(combinations(swept(values={"run.batch": [1, 2]}, random=20), Path())) == 2


def test_values_from_the_command_line() -> None:
    said = ["adapter.rank=4,16", "adapter.kind=lora,locon", "optimizer.betas=[0.9, 0.99],[0.8, 0.9]"]
    found = read_values(said)
    assert found == {
        "adapter.rank": [4, 16], "adapter.kind": ["lora", "locon"],
        "optimizer.betas": [[0.9, 0.99], [0.8, 0.9]],
    }  # fmt: skip
    runs = combinations(swept(values={"adapter.rank": [1]}), Path(), found)
    assert len(runs) == 8 and {run.settings.adapter.rank for run in runs} == {4, 16}
    assert all(":" not in run.settings.name and "/" not in run.settings.name for run in runs)


def test_folders_of_odd_values_differ_and_are_names() -> None:
    triggers = ["a b", "a_b", "../x", "é" * 300]
    runs = combinations(swept(values={"data.0.trigger": triggers}), Path())
    names = [run.settings.output.name for run in runs]
    assert len({*names}) == 4 and all(run.settings.output.parent == Path("runs/thing") for run in runs)
    assert [run.settings.data[0].trigger for run in runs] == triggers
    assert all(len(name) < 100 and not name.startswith(".") for name in names)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "sweep.values is empty"),
        ({"values": {"adapter.rank": 4}}, "sweep.values.adapter.rank is 4; expected a list"),
        ({"values": {"adapter.rank": []}}, "expected a list"),
        ({"values": {"name": ["a", "b"]}}, "a sweep sets name itself"),
        ({"values": {"adapter.rnak": [1, 2]}}, "rnak 1: adapter.rnak is not a setting; did you mean 'rank'?"),
        ({"values": {"adapter.rank": [4, "x"]}}, "rank x: adapter.rank is 'x'"),
        ({"values": {"data.3.trigger": ["a"]}}, "'3' names nothing there"),
        ({"values": {"adapter.rank.x": [1]}}, ""),
        ({"values": {"run.seed": [*range(1001)]}}, "1001 combinations, at most 1000"),
        ({"values": {"run.seed": [1]}, "rendom": 4}, "rendom is not a setting; did you mean 'random'?"),
        ({"values": {"run.seed": [1]}, "random": -1}, "at least 0"),
    ],
)
def test_mistakes_are_told_before_anything_runs(table: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as raised:
        combinations({**BASE, "sweep": table}, Path())
    assert said in str(raised.value)


@pytest.mark.parametrize("text", ["adapter.rank", "=1", "adapter.rank="])
def test_what_is_no_part_of_a_sweep_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="KEY=A,B,C"):
        read_values([text])


def test_a_sweep_that_is_no_table_is_refused() -> None:
    with pytest.raises(InputError, match="expected a table"):
        combinations({**BASE, "sweep": 3}, Path())
