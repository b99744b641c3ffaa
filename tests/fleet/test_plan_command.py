"""What `lowbit plan` says of machines, and of lists of machines that are none."""

from __future__ import annotations

import json

import pytest

from lowbit.cli import main
from lowbit.fleet import Machine, plan_batch


@pytest.fixture
def plan(tmp_path, capsys):
    """Run the command on a list of machines; return status, output and errors."""

    def run(machines, *more):
        path = tmp_path / "machines.json"
        path.write_text(machines if isinstance(machines, str) else json.dumps(machines))
        status = main(["plan", "--tokens", "1e6", "--machines", str(path), *more])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


FAST = {"name": "fast", "count": 2, "memory": "1GB", "decode_tps": 100, "prefill_tps": 400}
SLOW = {"name": "slow", "memory": "1GB", "decode_tps": 10, "prefill_tps": 40}
SMALL = {**SLOW, "name": "small", "memory": "1MB"}


def test_shares_are_as_the_speeds_so_that_all_end_together(plan):
    status, out, _ = plan([FAST, SLOW, SMALL], "--json")
    assert status == 0
    found = json.loads(out)
    fast, slow, small = found["machines"]
    assert fast["tokens"] == pytest.approx(20 * slow["tokens"])
    assert fast["tokens"] + slow["tokens"] == pytest.approx(1e6)
    assert (small["tokens"], small["parallel"]) == (0, 0)
    assert found["seconds"] == pytest.approx(1e6 / found["tokens_per_second"])
    assert fast["tokens"] / fast["tokens_per_second"] == pytest.approx(found["seconds"])


def test_the_table_says_what_is_too_small_and_when_it_is_done(plan):
    status, out, _ = plan([FAST, SMALL])
    assert status == 0
    assert "too small" in out
    assert out.splitlines()[-1].startswith("together: ")


def test_figures_of_bench_are_taken_as_it_prints_them(plan, capsys):
    assert main(["bench", "-p", "8", "-n", "4", "-t", "1", "--repeat", "1", "--json"]) == 0
    bench = json.loads(capsys.readouterr().out)
    status, out, _ = plan([{"name": "this", "memory": "1GB", "bench": bench}], "--json", "--prompt-share", "0")
    assert status == 0
    assert json.loads(out)["tokens_per_second"] >= 0.9 * bench[0]["decode_tps"]


def test_a_model_of_twice_the_weights_takes_twice_the_time():
    machine = Machine("m", 1, 1 << 30, 100.0, 400.0, weight_bytes=10_000)
    once, twice = (
        plan_batch([machine], 1e6, 0.5, weight_bytes, 1 << 20, 1 << 10)[0].rate for weight_bytes in (10_000, 20_000)
    )
    assert once == pytest.approx(2 * twice)


def test_one_text_is_as_quick_as_bench_says_and_many_are_bound_by_arithmetic():
    machine = Machine("m", 1, 1 << 30, 100.0, 400.0)
    assert machine.rate(1) == 100
    assert 300 < machine.rate(32) < 400


def test_texts_at_a_time_are_as_many_as_there_is_memory_for():
    machine = Machine("m", 1, 1000, 100.0, 400.0)
    assert plan_batch([machine], 1e6, 0.5, 100, 900, 20)[0].parallel == 5


@pytest.mark.parametrize(
    ("machines", "said"),
    [("{", "no JSON"), ("[]", "must be a list of machines"), ("[1]", "machine 1 must be an object"),
     ([{"memory": "1GB"}], "machine 1: decode_tps is missing"), ([{**FAST, "memory": "much"}], "fast: memory"),
     ([{**FAST, "count": 0}], "fast: count and parallel"),
     ([{**FAST, "decode_tps": 0}], "fast: speeds must be above 0"),
     ([{**FAST, "cores": 4}], "fast: cores is not known"), ([{**FAST, "bench": []}], "fast: "),
     ([SMALL], "no machine has the memory")],
)  # fmt: skip
def test_a_list_that_is_none_is_one_line_with_the_machine(plan, machines, said):
    status, out, err = plan(machines)
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("more", [("--tokens", "many"), ("--prompt-share", "2")])
def test_options_out_of_range_are_refused(plan, more):
    status, _, err = plan([FAST], *more)
    assert status == 2
    assert err.count("\n") == 1
