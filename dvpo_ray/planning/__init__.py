"""Planning: what a recipe needs on given devices, computed before anything starts."""

from dvpo_ray.planning.devices import Device, DeviceGroup, parse_devices
from dvpo_ray.planning.plan import Plan, make_plan
from dvpo_ray.planning.shapes import ModelShape

__all__ = ["Device", "DeviceGroup", "ModelShape", "Plan", "make_plan", "parse_devices"]
