"""Folders of small models and pipelines, for tests to load, change and refuse."""

from diffusers import DDPMScheduler

DDPM = dict(DDPMScheduler().config) | {"_class_name": "DDPMScheduler"}
