"""The three descriptions of the environment agree, and no file of the project names a package registry."""

import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIRED = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = [Requirement(line) for lines in PROJECT["optional-dependencies"].values() for line in lines]
# in pieces, so that this file names none of them
REGISTRIES = [".".join(parts) for parts in (("pypi", "org"), ("debian", "org"), ("download", "pytorch", "org"))]
REGISTRIES += ["python" + "hosted", "npm" + "js"]


def pins(lines: list[str]) -> dict[str, str]:
    """Read `name==version` lines, comments left out."""
    pairs = (line.strip().split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


CONSTRAINTS = pins((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
CONDA_PIP = next(entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict))


def test_every_constraint_is_an_exact_pin_of_a_plain_version():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    written = [line for line in lines if line and not line.startswith("#")]
    assert len(CONSTRAINTS) == len(written) > 50
    assert not [line for line in written if any(sign in line for sign in ("+", "@", "/", ";", " "))]
    assert CONSTRAINTS["torch"] == "2.13.0"
    assert "qlab" not in CONSTRAINTS


@pytest.mark.parametrize("required", REQUIRED + EXTRAS, ids=lambda required: required.name)
def test_every_direct_dependency_is_pinned_inside_its_range(required: Requirement):
    if canonicalize_name(required.name) == "qlab":  # an extra that includes another
        return
    assert required.specifier.contains(CONSTRAINTS[canonicalize_name(required.name)])


def test_conda_gets_the_same_names_and_pins():
    conda = pins(CONDA_PIP)
    assert set(conda) == {canonicalize_name(required.name) for required in REQUIRED}
    assert conda == {name: CONSTRAINTS[name] for name in conda}
    assert CONDA_PIP[0] == "-c constraints.txt"
    assert CONDA_PIP[-1] == "-e .[onnx]"  # as `make lab` asks for
    assert CONDA["name"] == "qlab"


@pytest.mark.parametrize("python", ["3.11.0", "3.12.0", "3.13.0", "3.14.0"])
def test_every_supported_python_is_admitted(python: str):
    conda_python = next(entry for entry in CONDA["dependencies"] if str(entry).startswith("python"))
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    assert Requirement(conda_python).specifier.contains(python)


@pytest.mark.parametrize("required", REQUIRED, ids=lambda required: required.name)
def test_ranges_admit_newer_releases(required: Requirement):
    assert required.specifier.contains("999.0")


def test_no_tracked_file_names_a_package_registry():
    # whoever owns the checkout: a CI job often runs as another user
    command = ["git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        text = path.read_bytes().decode("utf-8", errors="ignore").lower() if path.is_file() else ""
        found += [f"{name}: {registry}" for registry in REGISTRIES if registry in text]
    assert not found
