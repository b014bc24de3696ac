"""Kubernetes: RayJobs and RayClusters rendered from recipes, and the rules of the operator that its CRDs do not state."""

from dvpo_ray.kubernetes.manifests import Finding, read_manifests
from dvpo_ray.kubernetes.render import Flavour, render
from dvpo_ray.kubernetes.rules import check

__all__ = ["Finding", "Flavour", "check", "read_manifests", "render"]
