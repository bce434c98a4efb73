"""No library that is used here reports home: each one's telemetry is switched off before it is imported."""

import os

SWITCHES = {
    # onnxruntime looks up a host some seconds after a model was loaded, and writes a device id and a queue of events
    # under ~/.cache/Microsoft. Its own `disable_telemetry_events()` stops neither. Read when its library is loaded.
    "ORT_DISABLE_TELEMETRY": "1",
    # huggingface_hub fetches a list of programs to report before its first request; hf_xet reports transfers.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # A Ray cluster that `units encode --ray local` starts reports hourly.
    "RAY_USAGE_STATS_ENABLED": "0",
    # W&B sends its own errors to its makers, offline too.
    "WANDB_ERROR_REPORTING": "false",
}
"""Environment variables, and the values that stand for no telemetry."""


def switch_off() -> None:
    """Set the switches, for this process and those it starts, whatever they were: the promise has no exception."""
    os.environ.update(SWITCHES)
