"""What fits where, by hand."""

from __future__ import annotations

import json

import pytest

from kvsim.errors import ConfigError, MachineError, UnknownNameError
from kvsim.fits import fits
from kvsim.machine import Machine
from kvsim.model import Model


def test_a_model_that_fits_by_hand() -> None:
    answer = fits("llama-3.1-70b", "h100x8", context=[1000, 100_000])
    hbm, dram, ssd = answer.rooms
    assert answer.home == "hbm"
    assert answer.weights_bytes == hbm.weights_bytes == 141_107_412_992
    assert answer.stream_s == 0
    assert hbm.capacity_bytes == 640 * 10**9
    assert hbm.reserve_bytes == 64 * 10**9
    assert hbm.kv_bytes == 640 * 10**9 - 64 * 10**9 - 141_107_412_992
    assert hbm.kv_tokens == hbm.kv_bytes // 327_680
    assert (dram.weights_bytes, dram.reserve_bytes, dram.kv_bytes) == (0, 0, 2 * 10**12)
    assert ssd.kv_bytes == 8 * 7_680_000_000_000
    assert answer.contexts[1].bytes_each == 327_680 * 100_000
    assert answer.contexts[1].at_once == (13, 61, 1875)
    assert answer.contexts[1].total == 1949
    for room in answer.rooms:
        assert room.reserve_bytes + room.weights_bytes + room.kv_bytes == room.capacity_bytes


def test_weights_that_do_not_fit_the_wafer_are_streamed() -> None:
    answer = fits("llama-3.1-70b", "cs3")
    assert answer.home == "memoryx"
    assert answer.stream_s == pytest.approx(141_107_412_992 / 150e9)
    assert answer.room("memoryx").kv_bytes == 1_500_000_000_000 - 141_107_412_992
    assert any("exceed sram" in warning and "memoryx" in warning for warning in answer.warnings)
    assert any("estimates" in warning for warning in answer.warnings)


def test_links_on_the_way_bound_streaming() -> None:
    machine = Machine.load("h100x8").set("tier.hbm.count", 1)
    answer = fits("llama-3.1-70b", machine)
    assert answer.home == "dram"
    assert answer.stream_s == pytest.approx(141_107_412_992 / (8 * 51.5e9))
    slower = fits("llama-3.1-70b", machine.set("tier.dram.read", "100 GB/s"))
    assert slower.stream_s == pytest.approx(141_107_412_992 / 80e9)


def test_weights_larger_than_every_tier() -> None:
    with pytest.raises(MachineError, match=r"groq-lpu-rack: weights 141.1 GB exceed every tier"):
        fits("llama-3.1-70b", "groq-lpu-rack")
    half = Model.load("llama-3.1-70b").with_(weights_dtype="fp8")
    assert fits(half, "groq-lpu-rack").home == "sram"


def test_windows_and_states_are_counted_once_a_sequence() -> None:
    model, machine = Model.load("qwen3-next-80b-a3b"), Machine.load("epyc9965-2s")
    answer = fits(model, machine, context=10_000)
    each = 24_576 * 10_000 + 75_497_472
    assert answer.contexts[0].bytes_each == each
    assert answer.contexts[0].at_once[0] == answer.rooms[0].kv_bytes // each
    gemma = fits("gemma-3-27b", machine, context=10_000)
    assert gemma.contexts[0].bytes_each == 81_920 * 10_000 + 436_207_616
    assert "in windows" in repr(gemma)
    assert "of state a sequence" in repr(answer)


def test_warnings_say_what_a_person_should_know() -> None:
    tiny = Machine.load("cs3").set("tier.memoryx.capacity", "700 GB")
    answer = fits("deepseek-v3", tiny, context=[1_000_000])
    text = " | ".join(answer.warnings)
    assert "exceed the model's context of 163,840" in text
    assert "no context of 1,000,000 tokens fits sram" in text or "no tier holds one context" in text
    assert "latent KV, one head on 8 devices" in " ".join(fits("deepseek-v3", "h100x8").warnings)
    assert "reads at most 2,048 tokens" in " ".join(fits("glm-5", "h100x8").warnings)


def test_shown_and_saved() -> None:
    answer = fits("llama-3.1-8b", "h100x8", context=4096)
    text = repr(answer)
    assert text == str(answer)
    assert "llama-3.1-8b on h100x8: bf16 weights, 16.06 GB, in hbm" in text
    assert "x 4,096" in text
    data = json.loads(json.dumps(answer.to_dict()))
    assert data["home"] == "hbm"
    assert [room["tier"] for room in data["rooms"]] == ["hbm", "dram", "ssd"]
    assert data["contexts"][0]["at_once"]["hbm"] == answer.contexts[0].at_once[0]
    assert data["contexts"][0]["total"] == answer.contexts[0].total
    with pytest.raises(UnknownNameError, match="did you mean 'dram'"):
        answer.room("drm")


@pytest.mark.parametrize("context", [0, -5, 1.5, True, "many", [1, 0], [10**18]])
def test_bad_contexts(context: object) -> None:
    with pytest.raises(ConfigError, match="context: found"):
        fits("llama-3.1-8b", "h100x8", context=context)  # type: ignore[arg-type]


@pytest.mark.parametrize("machine", Machine.names())
@pytest.mark.parametrize("model", Model.names())
def test_every_model_on_every_machine(model: str, machine: str) -> None:
    largest = max(map(Machine.load(machine).usable_bytes, range(len(Machine.load(machine).tiers))))
    if Model.load(model).weight_bytes > largest:
        with pytest.raises(MachineError, match="exceed every tier"):
            fits(model, machine)
        return
    answer = fits(model, machine)
    assert sum(room.weights_bytes for room in answer.rooms) == answer.weights_bytes
    assert all(room.kv_bytes >= 0 for room in answer.rooms)
    assert repr(answer)
