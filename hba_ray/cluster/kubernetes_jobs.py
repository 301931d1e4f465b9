"""Specs as RayJobs on Kubernetes: applies the manifests of one spec with `kubectl`, and follows the job to its end."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from hba_ray.cluster.jobs import EXIT, Shown, for_cluster, job_name
from hba_ray.cluster.render.blanks import blanks
from hba_ray.cluster.render.kubernetes import render_kubernetes
from hba_ray.errors import EnvironmentMissing, SpecError
from hba_ray.specs import ExperimentSpec
from hba_ray.specs.infra import InfraSpec
from hba_ray.specs.load import as_yaml

LONGEST_NAME = 47
"""Letters of a RayJob's name: KubeRay makes names of pods of it."""
POLL_SECONDS = 2.0
BY_INFRA = {
    "compute.storage": "its infra file says it, as storage",
    "tracking.mlflow": "its infra file says it, as mlflow",
    "compute.address": "it has a cluster of its own",
    "--address": "kubectl knows its cluster",
    "--retries": "KubeRay starts it again by itself",
}
"""What else a command line could say of a job, and what decides it here."""


def kubernetes_name(spec: ExperimentSpec) -> str:
    """A name of a spec's job that Kubernetes takes; equal specs have equal ones."""
    *words, digest = re.sub(r"[^a-z0-9]+", "-", job_name(spec).lower()).strip("-").rsplit("-", 1)
    return f"{'-'.join(words)[: LONGEST_NAME - len(digest) - 1].rstrip('-')}-{digest}"


class KubernetesJobs:
    """The jobs of a cluster that an infra file describes, through the `kubectl` of this machine and its context.

    Raises:
        SpecError: the infra file leaves out what Kubernetes needs to be told.
        EnvironmentMissing: there is no `kubectl`.
    """

    def __init__(self, infra: InfraSpec, file: Path):
        if left := blanks(render_kubernetes(infra)):
            raise SpecError(str(file), f"leaves out {', '.join(blank.key for blank in left)}", f"hba cluster check kubernetes {file}")
        if shutil.which("kubectl") is None:
            raise EnvironmentMissing("--k8s", "there is no kubectl here", "install it, with a context for your cluster")
        self.infra = infra

    def submit(self, spec: ExperimentSpec) -> str:
        """Applies the manifests of a spec; one that is on its way already is left alone.

        Returns:
            The name of its RayJob.

        Raises:
            SpecError: see `for_cluster`.
            EnvironmentMissing: the cluster refuses.
        """
        storage = spec.compute.model_copy(update={"storage": self.infra.storage})
        sent = for_cluster(spec.model_copy(update={"compute": storage}))
        name = kubernetes_name(sent)
        if self._state(name) in (None, *EXIT):  # one that has ended is in the way of the next
            self._kubectl("delete", "rayjob", name, "--ignore-not-found", "--wait=true")
            self._kubectl("apply", "-f", "-", given=render_kubernetes(self.infra, as_yaml(sent, exclude_unset=True), job=name))
        return name

    def follow(self, name: str, show: Callable[[str], None]) -> int:
        """Shows what a job says, until it has ended.

        Returns:
            The exit code: 0, 1 where it failed, 130 where it was stopped.
        """
        shown = Shown(show)
        while True:
            state = self._state(name)
            shown.again()
            shown.take(self._kubectl("logs", "--selector", f"job-name={name}", "--tail=-1", must=False))
            if state in EXIT:
                return EXIT[state]
            time.sleep(POLL_SECONDS)

    def _state(self, name: str) -> str | None:
        """The status of a job as Ray names it; "" before it has one, None where there is no such job."""
        said = self._kubectl("get", "rayjob", name, "--ignore-not-found", "--output=json")
        return (json.loads(said).get("status") or {}).get("jobStatus", "") if said.strip() else None

    def _kubectl(self, *words: str, given: str | None = None, must: bool = True) -> str:
        """What kubectl prints.

        Raises:
            EnvironmentMissing: it fails, and `must` is true.
        """
        command = ["kubectl", "--namespace", self.infra.kubernetes.namespace, *words]
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
        if done.returncode and must:
            said = (done.stderr.strip() or done.stdout.strip() or f"ended with {done.returncode}").splitlines()[-1]  # after its log
            raise EnvironmentMissing("--k8s", f"kubectl {words[0]}: {said}", "look at `kubectl config current-context`, and at its rights")
        return done.stdout if not done.returncode else ""
