"""One network with each sequence mixer: its parameters, and its time for a second of audio.

python examples/mixers.py
"""

import time

import torch

from speechlab.layers.mixers import MIXERS
from speechlab.models.cleanumamba import CleanUMamba, ablation_config
from speechlab.models.macs import n_params

SECONDS = 4.0


def main() -> None:
    print(f"{'mixer':10}{'parameters':>12}{'ms per second':>16}")
    for mixer in MIXERS:
        model = CleanUMamba(ablation_config(mixer)).eval()
        noisy = torch.randn(1, 1, int(SECONDS * model.sample_rate))  # (B, 1, T)
        with torch.inference_mode():
            model(noisy)  # the first pass also compiles
            start = time.perf_counter()
            model(noisy)
        spent = 1000 * (time.perf_counter() - start) / SECONDS
        print(f"{mixer:10}{n_params(model):12,}{spent:16.1f}")


if __name__ == "__main__":
    main()
