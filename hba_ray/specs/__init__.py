"""Specs: what an experiment is, a file for each section. Neither torch nor ray is imported, so a light install checks every spec."""

from hba_ray.specs.base import Added, Spec, fingerprint, identity_values
from hba_ray.specs.experiment import ExperimentSpec
from hba_ray.specs.load import load_spec
from hba_ray.specs.paper import Contrast, Gate, MeasuredBy, PaperSpec
from hba_ray.specs.sections.atlas import AtlasSpec, MediaSpec, ToySpec
from hba_ray.specs.sections.compute import ComputeSpec, TrackingSpec
from hba_ray.specs.sections.evaluate import EvaluateSpec, GenerationSpec
from hba_ray.specs.sections.grpo import GrpoSpec, HarpoSpec, RewardSpec
from hba_ray.specs.sections.model import LoraSpec, ModelSpec, TinySpec
from hba_ray.specs.sections.sft import SftSpec, TransferSpec
from hba_ray.specs.sections.sweep import AshaSpec, DrawSpec, SweepSpec
from hba_ray.specs.trials import Trial, trials

__all__ = [
    "Added",
    "AshaSpec",
    "AtlasSpec",
    "ComputeSpec",
    "Contrast",
    "DrawSpec",
    "EvaluateSpec",
    "ExperimentSpec",
    "Gate",
    "GenerationSpec",
    "GrpoSpec",
    "HarpoSpec",
    "LoraSpec",
    "MeasuredBy",
    "MediaSpec",
    "ModelSpec",
    "PaperSpec",
    "RewardSpec",
    "SftSpec",
    "Spec",
    "SweepSpec",
    "TinySpec",
    "ToySpec",
    "TrackingSpec",
    "TransferSpec",
    "Trial",
    "fingerprint",
    "identity_values",
    "load_spec",
    "trials",
]
