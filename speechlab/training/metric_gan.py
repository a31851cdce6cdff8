"""Training of spectral models with a discriminator that predicts PESQ: SEMamba and MP-SENet.

    noisy * gain ─► model ─► estimate (mag, phase) ─┬─► losses to clean ─┐
                                                    └─► discriminator ───┴─► generator's loss
    estimate, clean ─► PESQ in other processes ─► what the discriminator learns, first

MetricGAN (Fu et al. 2019, arXiv 1905.04874): PESQ has no gradient, so a network learns to predict
it and supplies one. The discriminator learns 1 for (clean, clean) and (PESQ - 1) / 3.5 for
(clean, estimate); the generator learns to get a score of 1. `PUBLISHED` has the settings of the two
systems; both train with AdamW, lr 5e-4, betas (0.8, 0.99), weight decay 0.01, 0.99 per epoch.

A clip without PESQ counts 0 in the discriminator's second term, and normally elsewhere; the column
`discriminator.unscored` of history.csv is the share of such clips. A reference of digital silence
also counts 0 in the discriminator's first term and in the phase term. It has no phase, and the
networks' norms divide by its deviation: its gradients would be 100 to 10,000 times those of speech.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from speechlab.audio.pcs import pcs
from speechlab.audio.spectrum import Spectrum
from speechlab.config import Weight
from speechlab.data.loader import Batch
from speechlab.errors import UserError, meant
from speechlab.losses import spectral as losses
from speechlab.models.spectral import SpectralModel
from speechlab.training.discriminator import MetricDiscriminator
from speechlab.training.objectives import Objective, Phase
from speechlab.training.pesq_targets import SAMPLE_RATE, PesqTargets

WEIGHTS = {  # of the generator's terms
    **{"metric": 0.05, "magnitude": 0.9, "phase": 0.3},
    **{"complex": 0.1, "time": 0.2, "consistency": 0.1},
}
REFERENCES: dict[str, Callable[[Tensor], Tensor]] = {  # clean (B, 1, T) -> target of the model
    "clean": lambda clean: clean,  # as it is
    "pcs400": partial(pcs, version="pcs400", level="input"),  # at the level of the clean segment
    "pcs400_peak": partial(pcs, version="pcs400", level="peak"),  # a pause is as loud as speech
}


@dataclass(frozen=True)
class MetricGANConfig:
    """Settings of the training, besides the model."""

    weights: Mapping[str, Weight] = field(default_factory=lambda: dict(WEIGHTS))  # some of WEIGHTS
    edges: losses.Edges = "raw"  # of the phase differences
    offsets: Literal["reanalysis", "mpsenet"] = "reanalysis"  # of the estimate analysed again
    judged: Literal["network", "reanalysed"] = "network"  # magnitude that the discriminator scores
    reference: Literal["clean", "pcs400", "pcs400_peak"] = "clean"  # a name in REFERENCES
    discriminator: str = ""  # published weights to start from; "": random

    def __post_init__(self) -> None:
        unknown = sorted(self.weights.keys() - WEIGHTS.keys())
        if unknown or not self.weights:
            known = ", ".join(WEIGHTS)
            what = "names none"
            if unknown:
                what = f"names '{unknown[0]}', which is no term{meant(unknown[0], WEIGHTS)}"
            raise UserError(f"gan.weights {what}; there are: {known}")


PUBLISHED = {
    "semamba": MetricGANConfig(),
    "semamba_pcs": MetricGANConfig(reference="pcs400_peak"),  # theirs: of whole utterances
    "mpsenet_conformer": MetricGANConfig(  # the shorter version has no consistency term
        {k: w for k, w in WEIGHTS.items() if k != "consistency"}, edges="differences"
    ),
    "mpsenet": MetricGANConfig(edges="differences", offsets="mpsenet", judged="reanalysed"),
}


class MetricGAN(Objective):
    """Two phases of a step: the discriminator learns the metric, then the model learns.

    Both use the optimiser of `fit`. Terms are computed in float32 under any autocast. A step waits
    for PESQ, so a training resumes exactly; see `training.pesq_targets`.
    """

    def __init__(
        self,
        model: SpectralModel,
        config: MetricGANConfig | None = None,
        discriminator: MetricDiscriminator | None = None,
        n_workers: int = 4,
    ) -> None:
        """discriminator: a trained one. n_workers: processes that compute PESQ, 0: this one; no
        number depends on it. UserError for a model without compressed spectra at 16 kHz.
        """
        super().__init__(model)
        if model.domain != "compressed_spectrum" or model.sample_rate != SAMPLE_RATE:
            raise UserError(
                f"{type(model).__name__}: a metric discriminator judges compressed spectra at "
                f"{SAMPLE_RATE} Hz; train it with losses alone"
            )
        self.config = config or MetricGANConfig()
        self.discriminator = discriminator or MetricDiscriminator()
        self.targets = PesqTargets(n_workers)

    def phases(self) -> list[Phase]:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        learnt = {"clean": 1.0, "estimate": 1.0, "unscored": 0.0}
        return [
            Phase("discriminator", [*self.discriminator.parameters()], self.judge, learnt),
            Phase("generator", trained, self.generate, self.config.weights),
        ]

    def close(self) -> None:
        """End the processes that compute PESQ."""
        self.targets.close()

    def judge(self, batch: Batch, carried: dict[str, Any]) -> dict[str, Tensor]:
        """The discriminator's terms, and the share of examples without a PESQ, (B,) each."""
        gain = self.model.gain(batch.noisy)  # to unit level
        estimate = self.model.spectrum_of((batch.noisy * gain)[:, 0])
        with torch.autocast(batch.noisy.device.type, enabled=False):
            wave = (REFERENCES[self.config.reference](batch.clean) * gain)[:, 0]  # (B, T)
            reference = self.model.front_end.analyse(wave)
            estimate = Spectrum(*(part.to(wave.dtype) for part in estimate))
            carried |= {"estimate": estimate, "reference": reference, "wave": wave}
            targets = self.targets(self._wave(estimate, wave), wave)
            scored = targets.isfinite()
            seen = self._judged(estimate).detach()
            # masking the term afterwards would still pass the gradient of a NaN
            seen = torch.where(scored[:, None, None], seen, reference.mag)
            wanted = torch.where(scored, targets, 0.0)
            error = (self.discriminator(reference.mag, seen) - wanted).square()
            best = (self.discriminator(reference.mag, reference.mag) - 1).square()
            return {
                "clean": torch.where(wave.any(-1), best, 0.0),
                "estimate": torch.where(scored, error, 0.0),
                "unscored": (~scored).to(wave.dtype),
            }

    def generate(self, batch: Batch, carried: dict[str, Any]) -> dict[str, Tensor]:
        """The generator's terms (B,), those that have a weight."""
        config, front_end = self.config, self.model.front_end
        estimate, reference, wave = (carried[name] for name in ("estimate", "reference", "wave"))
        pair = estimate, reference
        terms = {
            "metric": lambda: losses.metric(
                self.discriminator(reference.mag, self._judged(estimate))
            ),
            "magnitude": lambda: losses.magnitude(*pair),
            "phase": lambda: torch.where(wave.any(-1), losses.phase(*pair, config.edges), 0.0),
            "complex": lambda: losses.complex_spectrum(*pair),
            "time": lambda: losses.time(self._wave(estimate, wave), wave),
            "consistency": lambda: losses.consistency(estimate, front_end, config.offsets),
        }
        with torch.autocast(batch.noisy.device.type, enabled=False):
            return {name: terms[name]() for name in config.weights}

    def _wave(self, estimate: Spectrum, like: Tensor) -> Tensor:
        return self.model.front_end.synthesise(estimate, like.shape[-1])

    def _judged(self, estimate: Spectrum) -> Tensor:
        """The magnitude that the discriminator scores, (B, F, L)."""
        if self.config.judged == "network":
            return estimate.mag
        return self.model.front_end.reanalyse(estimate, self.config.offsets).mag
