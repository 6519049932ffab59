import pytest
import torch

import qlab.energy
from qlab.energy import Energy, nvml_joules, rapl_joules


def counter(folder, zone: str, microjoules: int) -> None:
    (folder / zone).mkdir(exist_ok=True)
    (folder / zone / "name").write_text(zone.replace("intel-rapl:", "package-") + "\n")
    (folder / zone / "energy_uj").write_text(f"{microjoules}\n")
    (folder / zone / "max_energy_range_uj").write_text("1000000000\n")


def test_packages_are_added_and_their_parts_left_out(tmp_path):
    counter(tmp_path, "intel-rapl:0", 5_000_000)
    counter(tmp_path, "intel-rapl:1", 7_000_000)
    counter(tmp_path, "intel-rapl:0:0", 3_000_000)
    assert rapl_joules(tmp_path) == {"RAPL package-0": (5.0, 1000.0), "RAPL package-1": (7.0, 1000.0)}


def test_what_cannot_be_read_is_not_measured(tmp_path):
    (tmp_path / "intel-rapl:0").mkdir()  # without its files, as where only root may read them
    assert rapl_joules(tmp_path) == {}
    assert rapl_joules(tmp_path / "missing") == {}


@pytest.mark.parametrize(("before", "after", "joules"), [(10.0, 12.5, 2.5), (999.0, 1.0, 2.0)])
def test_joules_are_the_difference_also_when_a_counter_starts_again(monkeypatch, before, after, joules):
    readings = iter([{"RAPL package-0": (before, 1000.0)}, {"RAPL package-0": (after, 1000.0)}])
    monkeypatch.setattr(qlab.energy, "rapl_joules", lambda: next(readings))
    with Energy() as energy:
        pass
    assert energy.joules == pytest.approx(joules)
    assert energy.source == "RAPL package-0"


def test_joules_of_runs_measured_together_are_shared_out(monkeypatch):
    readings = iter([{"RAPL package-0": (10.0, 1000.0)}, {"RAPL package-0": (16.0, 1000.0)}, {}, {}])
    monkeypatch.setattr(qlab.energy, "rapl_joules", lambda: next(readings))
    with Energy() as energy:
        pass
    assert energy.joules_each(3) == pytest.approx(2.0)
    with Energy() as unknown:
        pass
    assert unknown.joules_each(3) is None
    with pytest.raises(ValueError, match="runs must be at least 1, got 0"):
        energy.joules_each(0)


def test_no_counter_means_not_measured_never_zero(monkeypatch):
    monkeypatch.setattr(qlab.energy, "rapl_joules", dict)
    with Energy() as energy:
        pass
    assert (energy.joules, energy.source) == (None, "not measured")


def test_a_counter_that_vanishes_means_not_measured(monkeypatch):
    readings = iter([{"RAPL package-0": (1.0, 1000.0)}, {}])
    monkeypatch.setattr(qlab.energy, "rapl_joules", lambda: next(readings))
    with Energy() as energy:
        pass
    assert energy.source == "not measured"


def test_energy_nests_and_survives_an_exception(monkeypatch):
    joules = iter(range(10))
    monkeypatch.setattr(qlab.energy, "rapl_joules", lambda: {"RAPL package-0": (float(next(joules)), 1000.0)})
    with pytest.raises(ZeroDivisionError), Energy() as outer, Energy() as inner:
        raise ZeroDivisionError
    assert (outer.joules, inner.joules) == (3.0, 1.0)


def test_nvml_without_a_gpu_says_nothing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert nvml_joules(torch.device("cuda:0")) == {}


@pytest.mark.gpu
def test_a_gpu_uses_joules():
    x = torch.randn(4096, 4096, device="cuda")
    with Energy(device="cuda") as energy:
        for _ in range(200):
            x = x @ x / 64
    assert energy.source == "NVML"
    assert energy.joules > 0
