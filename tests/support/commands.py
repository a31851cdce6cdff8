"""`enhance` and `separate`, and small models for them: laws that both commands share."""

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from speechlab.config import override
from speechlab.inference.enhance import enhance_all
from speechlab.inference.separate import separate_all
from speechlab.models import ConvTasNet, ConvTasNetConfig, SepMamba, SepMambaConfig
from speechlab.models.base import Model
from speechlab.models.cleanumamba import CONFIGS, CleanUMamba
from tests.support.separation_toys import RATE, Splitter
from tests.support.small_models import SMALL

TINY = ConvTasNetConfig(n_filters=8, d_model=6, d_skip=6, d_hidden=8, n_blocks=2, n_repeats=1)
WHOLE = SepMambaConfig(
    channels=(4, 6), kernel_sizes=(6, 4), n_blocks=1, layer={"d_state": 3}, n_sources=3
)


def enhancer(normalize="utterance", seed=0, **changes):
    torch.manual_seed(seed)
    return CleanUMamba(override(SMALL["cleanumamba"], normalize=normalize, **changes)).eval()


def separator(config=TINY, seed=0):
    torch.manual_seed(seed)
    return {ConvTasNetConfig: ConvTasNet, SepMambaConfig: SepMamba}[type(config)](config).eval()


class Halving(Model):
    """Half of its input for each source, computed where its weight is."""

    def __init__(self, n_sources: int) -> None:
        super().__init__(CONFIGS["ablation"])
        self.n_sources = n_sources
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, noisy):
        assert noisy.device == self.device
        return 0.5 * self.weight * noisy.expand(-1, self.n_sources, -1)


@dataclass(frozen=True)
class Command:
    function: Callable
    log: str
    parts: tuple[str, ...]  # folders of the outputs
    model: Callable  # of a seed
    kinds: tuple[Callable, ...]  # models that read a file once, and twice
    other: dict  # a setting that changes the outputs
    level: str  # the setting that is robust or published
    wrong: dict  # part of an error -> settings
    step: str  # method of the model that processes samples
    low: Callable  # a cheap model of a low rate, for long files

    def run(self, model, *inputs, output, **settings):
        return self.function(model, inputs, output, progress=False, **settings)

    def rows(self, folder):
        with (folder / self.log).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def outputs(self, folder, name="a.wav"):
        return [folder / part / name for part in self.parts]


COMMANDS = {
    "enhance": Command(
        function=enhance_all,
        log="enhance.csv",
        parts=("",),
        model=lambda seed=0: enhancer(seed=seed),
        kinds=(enhancer, lambda: enhancer("running")),
        other={"mix": 0.5},
        level="level",
        wrong={"mix is 1.5": {"mix": 1.5}, "mix is nan": {"mix": math.nan}},
        step="network",
        low=lambda: enhancer(sample_rate=RATE),
    ),
    "separate": Command(
        function=separate_all,
        log="separate.csv",
        parts=("s1", "s2"),
        model=lambda seed=0: separator(seed=seed),
        kinds=(separator, lambda: separator(override(WHOLE, direction="forward", n_sources=2))),
        other={"level": "model"},
        level="input_level",
        wrong={
            "chunks of 0.5 s": {"chunk_s": 0.5},
            "chunks of nan s": {"chunk_s": math.nan},
            "no level 'loud'": {"level": "loud"},
        },
        step="forward",
        low=Splitter,
    ),
}


def contents(paths):
    return [path.read_bytes() for path in paths]
