"""Every result of a benchmark names the machine that it was measured on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks.rows import machine, write

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NAMED = {"processor", "instruction_set", "cores", "torch", "sprachbund"}
OLDER = """
    bundled.json collection_memory.json emission_delay.json engines.json families.json
    few_rows.json four_bits_quality.json identify.json jobs.json kquant.json
    live_cascade.json live_flicker.json live_not_understood.json live_policies.json memory.json
    moe_dispatch.json native_heads.json native_heads_memory_bound.json nbest_cascade.json
    peers_by_processor/amd_epyc_zen_5.json scale_plan_interval.json scale_plan_memory.json
    scale_plan_simulated.json scale_plan_storage.json scale_plan_throughput.json scoring.json
    serving_curve_workers.json serving_load.json serving_sessions.json serving_soak.json serving_uploads.json
    shards.json shards_speed.json sharing_cost.json sharing_epoch.json speakers.json speakers_left_out.json
    speculation_shapes.json startup.json streaming_bits.json streaming_hour.json streaming_speed.json
    streaming_speed_published.json study_coverage.json torch_int8.json training_memory.json training_speed.json
    turn_ends.json turn_ends_live.json units.json waiting.json whisper_step.json wording.json
"""
"""Results from before `benchmarks.rows.write` named the machine in full. They are not measured again for that alone.
One that is comes off this list; none is added to it."""
TABLES = "*_machine.json", "*_ratios.json", "peers_by_processor.json"
"""Tables that `benchmarks/peers/report.py` makes of results that name their machine."""


def results() -> Iterator[Path]:
    """Files that a benchmark measured."""
    return (path for path in BENCHMARKS.rglob("*.json") if not any(map(path.match, TABLES)))


def machines(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The machine of a result, or those of a table of several; empty where it names none."""
    if "machines" in result:
        return list(result["machines"])
    named = result.get("manifest", result).get("machine")
    return [named] if isinstance(named, dict) else []


def test_every_result_but_older_ones_names_its_machine() -> None:
    unnamed = set()
    for path in results():
        named = machines(json.loads(path.read_text(encoding="utf-8")))
        if not named or not all(named_one.keys() >= NAMED for named_one in named):
            unnamed.add(path.relative_to(BENCHMARKS).as_posix())
    assert unnamed == set(OLDER.split())


def test_what_is_written_names_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from sprachbund import __version__
    from sprachbund.engines import extension

    write(tmp_path / "result.json", {"rows": [{"a": 1}]})
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result == {"machine": machine(), "rows": [{"a": 1}]}
    (named,) = machines(result)
    assert named.keys() >= NAMED
    assert named["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert named["sprachbund"] == __version__
    known = extension.instruction_sets()
    if known:
        assert named["instruction_set"] == known[0]
        monkeypatch.setenv(extension.INSTRUCTION_SET, known[-1])
        assert machine()["instruction_set"] == known[-1], "as the kernels are held to"
