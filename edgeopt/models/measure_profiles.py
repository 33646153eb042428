"""Measure the profiles that come with the package: ``python -m edgeopt.models.measure_profiles [FOLDER]``."""

import sys
from pathlib import Path

import torch

import edgeopt.profile
from edgeopt.models import build_model, sample_input
from edgeopt.profile import BUNDLED_PROFILES, ModelProfile


def measure(name: str) -> ModelProfile:
    """Return the profile of a bundled model, measured now at fp32."""
    with torch.device("meta"):
        model = build_model(name)
    return ModelProfile.from_module(model, sample_input(name), name=name)


def main(folder: Path) -> None:
    """Write every bundled profile to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in BUNDLED_PROFILES:
        profile = measure(name)
        profile.save(folder / f"{name}.json")
        print(
            f"{name:16} {profile.num_layers:3} layers {profile.num_parameters:14,} parameters"
            f" {profile.total_forward_flops / 1e9:8.2f} GFLOP forward {profile.total_backward_flops / 1e9:8.2f} backward"
            f" {profile.total_memory_bytes / 1e6:8.1f} MB kept"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(edgeopt.profile.__file__).parent / "profile_files")
