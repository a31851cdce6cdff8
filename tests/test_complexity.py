"""Costs: the published counts, counted again by PyTorch, and measures that measure."""

import math
import time

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import speechlab
from speechlab import complexity
from speechlab.complexity import count_macs, macs_per_second
from speechlab.configuration import override
from speechlab.errors import UserError
from speechlab.layers.mixers import MIXERS
from speechlab.models.cleanumamba import CleanUMamba, CleanUMambaConfig, ablation_config

TINY = CleanUMambaConfig(
    down_channels=(4, 6, 5),
    skip_channels=(5, 7, 6),
    up_channels=(3, 4, 5),
    d_model=8,
    layers=({"d_state": 4},),
    normalize="running",
)
MEGABYTE = 2**20


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
    torch.manual_seed(0)
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


def test_an_unknown_model_is_named():
    with pytest.raises(UserError, match="Linear have no rule"):
        count_macs(torch.nn.Linear(1, 1))


def test_latency():
    assert complexity.latency_ms(CleanUMamba(TINY)) == 1000 * 21 / 16000
    assert complexity.latency_ms(CleanUMamba(override(TINY, normalize="utterance"))) == math.inf


def test_real_time_factor_is_time_over_length():
    class Slow(torch.nn.Linear):
        sample_rate = 16000

        def forward(self, noisy: torch.Tensor) -> torch.Tensor:
            assert noisy.shape == (1, 1, 1600) and torch.get_num_threads() == 1
            end = time.process_time() + 0.02
            while time.process_time() < end:
                pass
            return noisy

    assert 0.2 <= complexity.real_time_factor(Slow(1, 1), seconds=0.1) < 1


def test_peak_memory_is_that_of_the_call():
    """Fifty megabytes for a moment; nothing kept, nothing of the imports."""
    peak = complexity.peak_memory(np.ones, 50 * MEGABYTE // 8)
    if math.isnan(peak):
        pytest.skip("this system does not tell the resident set of a process")
    assert 49 * MEGABYTE <= peak <= 60 * MEGABYTE


def test_cost_is_a_row_of_a_table():
    model = CleanUMamba(TINY)
    table = complexity.cost_table({"a": model, "b": model}, seconds=0.2)
    assert table["model"].tolist() == ["a", "b"]
    row = table.iloc[0]
    assert row["n_params"] == complexity.n_params(model)
    assert row["macs_per_second"] == macs_per_second(model) > row["scan_macs_per_second"] > 0
    assert row["latency_ms"] == complexity.latency_ms(model) and row["threads"] == 1
    assert 0 < row["real_time_factor"] < 1000


def test_stream_cost_is_that_of_its_stream():
    model = CleanUMamba(override(ablation_config(), normalize="running")).eval()
    cost = complexity.stream_cost(model, 0.1 * torch.randn(1, 1, 16 * 256), "modules")
    assert (cost.latency_samples, cost.hop_ms) == (765, 16.0)
    assert cost.n_params == 441_601
    assert 0 < cost.median_ms <= cost.p95_ms
    assert cost.state_bytes > 0
