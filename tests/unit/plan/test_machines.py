"""Fleets: fake hosts by name, probed ones by their facts, and what is assumed of both."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmctl.controller.cli.plan import parse_rate
from llmctl.controller.plan.machines import CATALOGUE, Given, fake_fleet, known_device, probed_fleet
from llmctl.controller.probe.facts import Gpu
from llmctl.errors import ConfigError
from tests.unit.controller.builders import facts

NOTHING = Given()


def test_fake_hosts_are_counted() -> None:
    """64 hosts with 8 H100 each are 512 ranks with 80 GB."""
    fleet = fake_fleet("64x8xH100-80GB", NOTHING)
    assert (len(fleet.machines), fleet.world, fleet.slowest.memory) == (64, 512, 80 * 10**9)


def test_unlike_fake_hosts_are_planned_for_the_weakest() -> None:
    """Everyone waits for the slowest device, and the smallest memory is what must suffice."""
    fleet = fake_fleet("1x8xH100-80GB+2x4xA100-40GB", NOTHING)
    assert fleet.world == 16
    assert fleet.slowest.memory == 40 * 10**9
    assert fleet.slowest.bf16 == CATALOGUE["A100-40GB"].bf16


def test_ranks_of_a_cpu_host_share_it() -> None:
    """Two ranks on a host have half its cores and half its memory each."""
    one, two = (fake_fleet(f"1x{ranks}xcpu-8c-32GB", NOTHING).slowest for ranks in (1, 2))
    assert two.fp32 == one.fp32 / 2
    assert two.memory == one.memory // 2


@pytest.mark.parametrize("text", ["", "8xH100-80GB", "0x8xH100-80GB", "axbxH100-80GB", "2x0xL4-24GB"])
def test_what_is_no_fleet_is_told_with_an_example(text: str) -> None:
    """A wrong form is answered with right ones."""
    with pytest.raises(ConfigError) as caught:
        fake_fleet(text, NOTHING)
    assert "64x8xH100-80GB" in (caught.value.hint or "")


def test_an_unknown_device_names_the_known_ones() -> None:
    """A typo is answered with the nearest name and with all of them."""
    with pytest.raises(ConfigError, match="did you mean H100-80GB") as caught:
        known_device("H10-80GB")
    assert all(name in (caught.value.hint or "") for name in CATALOGUE)


def test_every_device_has_a_source() -> None:
    """No number of the catalogue is without its origin, and none is a sparse one: bf16 above 16 x fp32."""
    assert all(device.source for device in CATALOGUE.values())
    assert all(device.bf16 <= 17 * device.fp32 for device in CATALOGUE.values())


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "H100-80GB"),
        ("NVIDIA H100 PCIe", "H100-PCIE-80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100-80GB"),
        ("NVIDIA GeForce RTX 4090", "RTX4090-24GB"),
        ("NVIDIA L4", "L4-24GB"),
        ("NVIDIA L40S", "L40S-48GB"),
    ],
)
def test_a_driver_name_finds_its_device(model: str, expected: str) -> None:
    """nvidia-smi's names find their speed in the catalogue; the memory is what the driver says."""
    host = replace(facts("a"), gpus=(Gpu(index=0, model=model, memory=12345, driver="1"),))
    device = probed_fleet({"a": 1}, {"a": host}, NOTHING).slowest
    assert device.bf16 == CATALOGUE[expected].bf16
    assert device.memory == 12345


def test_local_hosts_are_shares_of_one_machine() -> None:
    """Two `local` hosts have this machine's cores and memory once, and no network between them."""
    known = {"a": facts("a"), "b": facts("b")}
    apart = probed_fleet({"a": 1, "b": 1}, known, NOTHING)
    shared = probed_fleet({"a": 1, "b": 1}, known, NOTHING, local={"a", "b"})
    assert shared.slowest.memory == apart.slowest.memory // 2
    assert shared.slowest.fp32 == apart.slowest.fp32 / 2
    assert shared.links.between == shared.slowest.inside
    assert any("one machine" in note for note in shared.notes)
    mixed = probed_fleet({"a": 1, "b": 1}, known, NOTHING, local={"a"})
    assert mixed.slowest.memory == apart.slowest.memory


def test_a_gpu_that_nobody_knows_is_assumed_aloud() -> None:
    """An unknown model is planned with, and a note says so."""
    host = replace(facts("a"), gpus=(Gpu(index=0, model="Frobnicator 9", memory=10**10, driver="1"),))
    fleet = probed_fleet({"a": 1}, {"a": host}, NOTHING)
    assert any("Frobnicator 9" in note for note in fleet.notes)


def test_what_is_measured_is_not_assumed() -> None:
    """With speed and bandwidth given, no note speaks of an assumption."""
    fleet = fake_fleet("2x8xH100-80GB", Given(between=5e10, inside=2e11, flops=4e14))
    assert fleet.notes == ()
    assert (fleet.links.between, fleet.slowest.inside) == (5e10, 2e11)
    assert fleet.slowest.bf16 * fleet.slowest.efficiency == 4e14


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [("100Gbit", 12.5e9), ("12.5GB", 12.5e9), ("800Mbit/s", 1e8), ("1Tbit/s", 1.25e11)],
)
def test_rates_are_bits_or_bytes(text: str, bytes_per_s: float) -> None:
    """Networks are sold in bits, links measured in bytes."""
    assert parse_rate(text, "--bandwidth") == bytes_per_s


@pytest.mark.parametrize("text", ["", "100", "fast", "0Gbit", "-1GB", "10 gallons"])
def test_a_rate_without_its_unit_is_refused(text: str) -> None:
    """A number alone could mean eight times as much."""
    with pytest.raises(ConfigError, match="100Gbit"):
        parse_rate(text, "--bandwidth")
