"""Parameters and multiply-accumulates of the networks in the papers' tables.

    python -m benchmarks.macs [--output FOLDER]

Networks of published size on the meta device, without weights or arithmetic; takes 30 s. Writes
benchmarks/spectral_macs.csv and benchmarks/separation_macs.csv under FOLDER, default results/;
`make paper` reads them. `speechlab.models.macs` has the counting rule.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from speechlab.config import override
from speechlab.errors import UserError
from speechlab.models import SYSTEMS, semamba, semamba_basic, sepmamba, umambanet
from speechlab.models.baselines import conv_tasnet, dprnn, sepformer, sudormrf
from speechlab.models.macs import macs_per_second, n_params, profiled_macs
from speechlab.models.mpsenet import MPSENetConfig, MPSENetConformerConfig, MPSENetMambaConfig
from speechlab.report import separation, spectral
from speechlab.storage.atomic import write

RESULTS = Path(__file__).resolve().parents[1] / "results"
SPECTRAL = {
    spectral.CAUSAL: semamba_basic.CONFIGS["causal"],
    spectral.TRANSFORMER: semamba_basic.CONFIGS["transformer_causal"],
    spectral.WHOLE: semamba_basic.CONFIGS["bidirectional"],
    spectral.TRANSFORMER_WHOLE: semamba_basic.CONFIGS["transformer_bidirectional"],
    spectral.ADVANCED: semamba.CONFIGS["bidirectional"],
    spectral.FORWARD: semamba.CONFIGS["one_directional"],
    spectral.CONFORMER: MPSENetConformerConfig(),
    # the axes of the published weights, whose cross-attention is a small layer
    "MP-SENet": MPSENetConfig(axes="published"),
    spectral.MAMBA_BRANCH: MPSENetMambaConfig(axes="published"),
}
SEPARATION = {
    "conv_tasnet": conv_tasnet.CONFIGS["published"],
    "dprnn": dprnn.CONFIGS["published"],
    # U-Mamba-Net's paper compares with a DPRNN of 23.9 GMACs, so its windows are longer than 2
    # samples. Windows of 16 samples and chunks of 100 frames are our choice.
    "dprnn_16": replace(dprnn.CONFIGS["published"], kernel_size=16, stride=8, chunk_size=100),
    "sepformer": sepformer.CONFIGS["published"],
    "sudormrf": sudormrf.CONFIGS["published"],
    **sepmamba.CONFIGS,
    **{f"umambanet_{name}": config for name, config in umambanet.CONFIGS.items()},
}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS, help="default: results/")
    output = parser.parse_args(words).output
    for path, counts in ((spectral.COUNTS, count_spectral()), (separation.COUNTS, count())):
        write(output / path, counts.to_csv(index=False, lineterminator="\n"))


def build(name: str) -> nn.Module:
    """The separation network of a name in `SEPARATION`, with random weights."""
    if name not in SEPARATION:
        raise UserError(f"no separation model {name!r}; there are {', '.join(SEPARATION)}")
    return of_config(SEPARATION[name])


def of_config(config: Any) -> nn.Module:
    """The network of a configuration, with random weights."""
    return dict(SYSTEMS.values())[type(config)](config)


def count(models: Iterable[str] = separation.COUNTED) -> pd.DataFrame:
    """Counts of separation networks, by their names in `SEPARATION`.

    Columns: model, n_params, macs_per_second_4s (per second of an input of that length).
    """
    rows = []
    for name in models:
        with torch.device("meta"):
            model = build(name)
        macs = round(macs_per_second(model, separation.SECONDS))
        row = {"model": name, "n_params": n_params(model)}
        rows.append(row | {f"macs_per_second_{separation.SECONDS}s": macs})
    return pd.DataFrame(rows)


def count_spectral(models: Iterable[str] = spectral.FRAMES) -> pd.DataFrame:
    """Counts of spectral networks, by their names in `SPECTRAL`.

    Columns: model, n_params, n_frames, macs_profiled (MACs in n_frames by the paper's profiler),
    macs_per_second_4s and _10s (all MACs, per second of an input of that length).
    """
    rows = []
    for name in models:
        n_frames, _ = spectral.FRAMES[name]
        with torch.device("meta"):
            built = {s: of_config(for_length(SPECTRAL[name], s)) for s in spectral.LENGTHS_S}
        model = built[spectral.LENGTHS_S[0]]
        row = {"model": name, "n_params": n_params(model), "n_frames": n_frames}
        row["macs_profiled"] = round(profiled_macs(model, n_frames))
        row |= {f"macs_per_second_{s}s": round(macs_per_second(m, s)) for s, m in built.items()}
        rows.append(row)
    return pd.DataFrame(rows)


def for_length(config: Any, seconds: float) -> Any:
    """The configuration for an input of so many seconds: causal attention sees all of it."""
    if "window" not in getattr(config, "layer", {}):
        return config
    window = round(seconds * config.sample_rate / config.front_end.hop_length)
    return override(config, layer=dict(config.layer) | {"window": window})


if __name__ == "__main__":
    main()
