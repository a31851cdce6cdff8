"""Multiply-accumulates: the published counts, and the counts of PyTorch."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import speechlab
from speechlab.config import override
from speechlab.errors import UserError
from speechlab.layers.mixers import MIXERS
from speechlab.models import (
    MPSENetConformer,
    MPSENetMamba,
    MPSENetMambaConfig,
    SEMambaAdvanced,
    SEMambaBasic,
    semamba,
    semamba_basic,
)
from speechlab.models.base import Model
from speechlab.models.cleanumamba import CleanUMamba, ablation_config
from speechlab.models.macs import count_macs, macs_per_second, profiled_macs


@pytest.mark.parametrize(
    ("name", "layers", "memory"),
    [
        ("Experiment_CleanU_Mamba", 365.6, 1.6),
        ("CleanUMamba-3N-E8_pruned-500K", 627.5, None),
        ("CleanUMamba-3N-E8_pruned-200K", 314.2, None),
    ],
)
def test_published_weights_have_the_counts_of_the_rule(shared, name, layers, memory):
    model = speechlab.load(shared / "upstream_checkpoints/cleanumamba" / f"{name}.pkl")
    macs = count_macs(model)
    assert round(macs.layers / 1e6, 1) == layers
    assert memory is None or round(macs.memory / 1e6, 1) == memory
    assert macs_per_second(model) == macs.layers + macs.memory


@pytest.mark.parametrize("mixer", MIXERS)
def test_layers_are_what_a_forward_pass_multiplies(mixer):
    """PyTorch's counter, on two lengths: their difference is the steady state.

    It does not see the depthwise convolution, which is no convolution there but shifted products.
    """
    model = CleanUMamba(override(ablation_config(mixer), normalize="none")).double().eval()
    frames = [40, 57]
    counts = [counted(model, model.frame_length + (n - 1) * model.hop_length) for n in frames]
    rate = model.sample_rate / model.hop_length
    steady = (counts[1] - counts[0]) / (frames[1] - frames[0]) * rate
    convs = [m for n, m in model.bottleneck.named_modules() if n.endswith("conv1d")]
    depthwise = rate * sum(conv.weight.numel() for conv in convs)
    assert count_macs(model).layers == pytest.approx(steady + depthwise, rel=1e-12)


@torch.no_grad()
def counted(model: torch.nn.Module, length: int) -> float:
    """Half the floating point operations of convolutions and matrix products of layers."""
    x = torch.randn(1, 1, length, dtype=torch.float64)  # in float32 an LSTM is one opaque call
    counter = FlopCounterMode(display=False)
    with counter:
        model(x)
    layers = {torch.ops.aten.convolution, torch.ops.aten.mm, torch.ops.aten.addmm}
    found = counter.get_flop_counts()["Global"]
    return sum(count for operation, count in found.items() if operation in layers) / 2


@pytest.mark.parametrize(
    ("mixer", "macs"),
    [
        ("mamba", 4 * 128 * 16 + 2 * 128),
        ("mamba2", 3 * 128 * 16 + 2 * 128 + 8),
        ("mamba_s4", 16 * (64 * 64 + 2 * 64 + 1)),
        ("lstm", 3 * 64),
        ("mha", 2 * 2048 * 64),
    ],
)
def test_memory_by_hand(mixer, macs):
    model = CleanUMamba(ablation_config(mixer))
    assert count_macs(model).memory == 3 * 62.5 * macs


def test_spectral_macs_by_hand():
    """The basic SEMamba: every weight of a layer once a frame, the scan's rule, 62.5 frames/s."""
    model = SEMambaBasic()
    macs = count_macs(model)
    with torch.inference_mode():
        assert count_macs(model) == macs
    convs = 3 * (257 * 1024 + 1024 * 512 + 512 * 128 + 128 * 256)
    mamba = 256 * 1024 + 4 * 512 + 512 * 48 + 16 * 512 + 512 * 256
    assert macs.layers == 62.5 * (convs + 2 * mamba + 256 * 257)
    assert macs.memory == 62.5 * 2 * (4 * 512 * 16 + 2 * 512)


class Spectral(Model):
    """One layer on frames of 8 features, a frame every 10 samples."""

    sample_rate, hop_length = 1000, 10

    def __init__(self, layer: torch.nn.Module, n_channels: int = 0) -> None:
        super().__init__(None)
        self.layer, self.n_channels = layer, n_channels

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        length = 1 + noisy.shape[-1] // self.hop_length
        if self.n_channels:
            return self.layer(noisy.new_zeros(1, self.n_channels, length, 8))
        x = noisy.new_zeros(1, length, 8)
        attends = isinstance(self.layer, torch.nn.MultiheadAttention)
        return self.layer(x, x, x) if attends else self.layer(x)


@pytest.mark.parametrize(
    ("layer", "n_channels", "layers", "memory"),
    [
        (torch.nn.Linear(8, 5), 0, 8 * 5, 0),
        (torch.nn.Conv2d(3, 4, (3, 3), (1, 2), (1, 1)), 3, 3 * 4 * 9 * 4, 0),
        (torch.nn.Conv2d(4, 4, (3, 1), groups=2), 4, 2 * 4 * 3 * 8, 0),
        (torch.nn.ConvTranspose2d(3, 4, (1, 3), (1, 2)), 3, 3 * 4 * 3 * 8, 0),
        (torch.nn.GRU(8, 6, bidirectional=True), 0, 2 * 3 * 6 * (8 + 6), 3 * 12),
        (torch.nn.LSTM(8, 6, num_layers=2), 0, 4 * 6 * (8 + 6 + 6 + 6), 3 * 12),
        (torch.nn.MultiheadAttention(8, 2, batch_first=True), 0, 4 * 8 * 8, 2 * 200 * 8),
        (MIXERS["mamba2"](8, 4, d_head=4), 0, 8 * 44 + 24 * 4 + 16 * 8, 3 * 16 * 4 + 2 * 16 + 4),
        (MIXERS["mha"](8, 2, window=5), 0, 4 * 8 * 8, 2 * 5 * 8),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else None,
)
def test_layers_of_spectral_models_by_hand(layer, n_channels, layers, memory):
    """Per frame of 2 s, 200 frames; what edges cost is not in it, padded or cut."""
    macs = count_macs(Spectral(layer, n_channels), seconds=2)
    assert macs.layers == pytest.approx(100 * layers, rel=1e-12)
    assert macs.memory == pytest.approx(100 * memory, rel=0.02)  # attention's frame at the end


@pytest.mark.parametrize(
    ("model", "n_frames", "billions"),
    [
        (lambda: SEMambaBasic(), 250, 0.76),
        (lambda: SEMambaBasic(semamba_basic.CONFIGS["bidirectional"]), 250, 1.06),
        (lambda: SEMambaBasic(semamba_basic.CONFIGS["transformer_causal"]), 250, 2.26),
        (lambda: SEMambaBasic(semamba_basic.CONFIGS["transformer_bidirectional"]), 250, 2.26),
        (lambda: SEMambaAdvanced(), 321, 65.46),
        (lambda: SEMambaAdvanced(semamba.CONFIGS["one_directional"]), 321, 53.09),
        (lambda: MPSENetConformer(), 321, 74.29),
    ],
    ids=["basic", "both", "transformer", "whole", "advanced", "one_directional", "conformer"],
)
def test_the_profiler_sees_the_published_figures(model, n_frames, billions):
    """To every printed digit, with the published sizes."""
    with torch.device("meta"):
        assert round(profiled_macs(model(), n_frames) / 1e9, 2) == billions


def test_attention_over_all_frames_grows_with_the_length():
    with torch.device("meta"):
        config = override(semamba_basic.CONFIGS["transformer_bidirectional"], n_blocks=2)
        model = SEMambaBasic(config)
    short, long = count_macs(model, 2.048), count_macs(model, 4.096)
    assert short.layers == long.layers
    assert short.memory == pytest.approx(62.5 * 2 * 2 * 128 * 512, rel=0.02)
    assert long.memory == pytest.approx(2 * short.memory, rel=0.01)
    assert model.macs(2.048) == 2.048 * short.total


@pytest.mark.parametrize("axes", ["named", "published"])
def test_every_spectral_model_has_a_count(axes):
    """Small ones of all kinds; counting leaves the model as it was."""
    config = MPSENetMambaConfig(
        d_model=8, n_shared_blocks=1, n_branch_blocks=1, n_heads=2, axes=axes
    )
    model = MPSENetMamba(config).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    macs = count_macs(model, seconds=0.5)
    assert macs.layers > 0 < macs.memory and model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_model_that_looks_at_numbers_is_named():
    class Looking(Spectral):
        def forward(self, noisy: torch.Tensor) -> torch.Tensor:
            return noisy * noisy.max().item()

    with pytest.raises(UserError, match="Looking have no rule yet: it depends on values"):
        count_macs(Looking(torch.nn.Linear(1, 1)))
