"""Processes by name, for models without a scheduler config."""

from __future__ import annotations

from typing import Any, Literal

ProcessName = Literal["auto", "ddpm", "v-prediction", "flow", "flow-sit"]


_FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}


PROCESSES: dict[str, dict[str, Any] | None] = {
    "auto": None,
    "ddpm": {"_class_name": "DDPMScheduler", "beta_schedule": "linear"},
    "v-prediction": {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "prediction_type": "v_prediction"},
    "flow": _FLOW,
    "flow-sit": _FLOW | {"_secateur_flow_convention": "sit"},
}
