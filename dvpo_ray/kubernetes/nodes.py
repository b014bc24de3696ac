"""Which GPUs a pod is to have: a pool of several kinds must not be mixed."""

from __future__ import annotations

from dvpo_ray.config.kubernetes import KubernetesSection
from dvpo_ray.errors import UserInputError
from dvpo_ray.kubernetes.sizing import Group

# What NVIDIA's GPU feature discovery writes for the boards whose figures the catalogue of `dvpo plan` has.
PRODUCTS = {
    "A100-40GB": "NVIDIA-A100-SXM4-40GB",
    "A100-80GB": "NVIDIA-A100-SXM4-80GB",
    "H100-80GB": "NVIDIA-H100-80GB-HBM3",
    "H200-141GB": "NVIDIA-H200",
    "B200-180GB": "NVIDIA-B200",
    "L4-24GB": "NVIDIA-L4",
    "L40S-48GB": "NVIDIA-L40S",
    "RTX4090-24GB": "NVIDIA-GeForce-RTX-4090",
}
FEATURE_DISCOVERY = "nvidia.com/gpu.product"


def gpu_selector(kubernetes: KubernetesSection, group: Group, device: str) -> dict[str, str]:
    """Labels of the nodes of a group; none without GPUs.

    Raises:
        UserInputError: the recipe names another label than that of NVIDIA's feature discovery, and no value of it.
    """
    if not group.gpus:
        return {}
    product = kubernetes.gpu_product
    if product is None and kubernetes.gpu_label != FEATURE_DISCOVERY:
        raise UserInputError(
            f"kubernetes.gpu_label = '{kubernetes.gpu_label}': what it says of a {device} is not known here: set "
            f"kubernetes.gpu_product to its value on the nodes to use (`kubectl get nodes -L {kubernetes.gpu_label}`)"
        )
    if product is None and device not in PRODUCTS:
        raise UserInputError(f"the label of nodes with a {device} is not known: set kubernetes.gpu_product to it")
    return {kubernetes.gpu_label: product or PRODUCTS[device]}
