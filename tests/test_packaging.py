"""Packaging: pyproject.toml, requirements.txt, constraints.txt, CITATION.cff, LICENSE and shell scripts."""

import os
import re
import shutil
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci" / "run"]


def read_requirements(name: str) -> list[str]:
    """Requirements of a pip file, without comments and options."""
    lines = (line.strip() for line in (ROOT / name).read_text().splitlines())
    return [line for line in lines if line and line[0] not in "#-"]


def named_packages() -> dict[str, Requirement]:
    """Every requirement in pyproject.toml, by normalised name, without the project itself."""
    lines = PROJECT["dependencies"] + [line for extra in EXTRAS.values() for line in extra]
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(each.name): each for each in requirements if each.name != PROJECT["name"]}


def test_requirements_repeat_the_dependencies_and_apply_the_constraints():
    assert read_requirements("requirements.txt") == PROJECT["dependencies"]
    assert "-c constraints.txt" in (ROOT / "requirements.txt").read_text().splitlines()


def test_constraints_pin_exactly_the_named_packages_within_their_bounds():
    pins = {}
    for line in read_requirements("constraints.txt"):
        name, version = line.split("==")
        pins[canonicalize_name(name)] = version
    packages = named_packages()
    assert pins.keys() == packages.keys()
    assert [name for name, version in pins.items() if version not in packages[name].specifier] == []


def test_every_requirement_has_an_upper_bound():
    bounded = {"==", "~=", "<", "<="}
    unbounded = [
        str(requirement)
        for requirement in named_packages().values()
        if not bounded & {specifier.operator for specifier in requirement.specifier}
    ]
    assert unbounded == []


def test_extras_do_not_install_torch_and_all_contains_the_others():
    names = {canonicalize_name(Requirement(line).name) for extra in EXTRAS.values() for line in extra}
    assert not names & {"torch", "torchvision"}
    (everything,) = (Requirement(line) for line in EXTRAS["all"])
    assert everything.name == PROJECT["name"]
    assert everything.extras == EXTRAS.keys() - {"all"}


def test_every_module_is_packaged():
    setuptools = PYPROJECT["tool"]["setuptools"]
    assert sorted(setuptools["py-modules"]) == sorted(path.stem for path in ROOT.glob("*.py"))
    folders = [
        path.parent.relative_to(ROOT) for path in [*ROOT.glob("*/__init__.py"), *ROOT.glob("*/*/__init__.py")]
    ]
    packages = {".".join(folder.parts) for folder in folders if folder.parts[0] != "tests"}
    assert set(setuptools["packages"]) == packages


def test_every_data_file_of_a_package_is_packaged():
    """Presets, published figures, pages: an installed project has no source tree to read them from."""
    setuptools = PYPROJECT["tool"]["setuptools"]
    missing, count = [], 0
    for package in setuptools["packages"]:
        for path in (ROOT / package).iterdir():
            if path.is_file() and path.suffix != ".py":
                count += 1
                patterns = setuptools["package-data"].get(package, [])
                missing += [path] * (not any(fnmatch(path.name, pattern) for pattern in patterns))
    assert not missing and count > 5


def test_citation_file_is_valid_and_agrees_with_the_project():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"]
    assert citation["title"]
    assert citation["authors"]
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    paper = citation["preferred-citation"]
    assert paper["title"].startswith("RecGOAT: Graph Optimal Adaptive Transport")
    assert [author["family-names"] for author in paper["authors"]][:3] == ["Li", "Ju", "Song"]
    assert paper["url"] == "https://arxiv.org/abs/2602.00682"


def test_licence_file_is_the_one_that_the_metadata_name():
    licence = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == "MIT"
    assert PROJECT["license-files"] == ["LICENSE"]
    assert licence.startswith("MIT License\n\nCopyright (c) 2026 the RecGOAT authors of this repository\n")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_has_valid_syntax(script):
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_installation_in_scripts_and_workflows_applies_the_constraints():
    files = [*SCRIPTS, *(ROOT / ".github" / "workflows").glob("*.yml")]
    lines = [line for path in files for line in path.read_text().splitlines() if "pip install" in line]
    assert lines
    constrained = re.compile(r"(--constraint|-c) constraints\.txt|--requirement requirements\.txt")
    assert [line for line in lines if not constrained.search(line)] == []


@pytest.mark.parametrize("uv_works", [True, False])
def test_setup_installs_with_uv_and_falls_back_to_pip(tmp_path, uv_works):
    """In a copy of the scripts, with programs that only note how they were called."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("scripts/setup.sh", "requirements.txt", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    for path, code in ((tmp_path / "uv", 1 - uv_works), (tmp_path / ".venv" / "bin" / "python", 0)):
        path.write_text(f'#!/usr/bin/env bash\necho "{path.name} $*" >>{tmp_path}/calls\nexit {code}\n')
        path.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for extras in ("", "report tests", "report tests"):
        command = ["bash", "-c", "set -euo pipefail; source scripts/setup.sh"]
        subprocess.run(command, cwd=tmp_path, env={**environment, "EXTRAS": extras}, check=True)
    shared, pip = "pip install --constraint constraints.txt", "python -m"
    uv = f"uv {shared} --python .venv/bin/python --torch-backend auto"
    what = ["--requirement requirements.txt", "--editable .[report,tests]"]  # nothing the third time
    expected = [
        f"{tool} {part}" for part in what for tool in (uv, *([] if uv_works else [f"{pip} {shared}"]))
    ]
    assert (tmp_path / "calls").read_text().splitlines() == expected
