"""Parameters and multiply-accumulates (MACs) of a model.

The rule, per second of steady-state input (no padding, no start):

- every convolution and linear layer: a product per weight and output position, a transposed
  convolution once per input position; biases are free;
- the memory of a mixer, beyond its layers, per frame:
  | mixer    | MACs per frame       | for                                                        |
  |----------|----------------------|------------------------------------------------------------|
  | mamba    | 4 e n + 2 e          | step A; decay h + (step u) B; C h; step u; D u             |
  | mamba2   | 3 e n + 2 e + heads  | the same with one step A per head                          |
  | mamba_s4 | H (n n + 2 n + 1)    | A x + B u; C x; D u, as the recurrence of its H systems    |
  | lstm     | 3 d                  | forget c + input g; output tanh c                          |
  | mha      | 2 window d           | q k and p v over a full window                             |
  | gru      | 3 d                  | reset gate; old and new state by the update gate           |
  with e = d_inner, n = d_state, d = d_model (of both directions, of all heads);
- attention over all frames: 2 L d per frame, so that MACs per second grow with the length L;
- norms, activations, gates between layers and residuals: not counted.

Published counts differ: torchprofile counts a transposed convolution at stride 2 twice;
`profiled_macs` counts as thop does.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from speechlab.audio.level import LEVELS
from speechlab.errors import UserError
from speechlab.layers.mixers import LSTM, MHA, Mamba, Mamba2, MambaS4
from speechlab.layers.time_frequency import Attention

LENGTH_S = 4.0  # seconds of input, for attention over all frames
MACS_PER_FRAME: dict[type[nn.Module], Callable[[Any], int]] = {
    Mamba: lambda m: 4 * m.A_log.numel() + 2 * len(m.D),
    Mamba2: lambda m: (3 * m.d_state + 2) * m.split[0] + m.split[2],
    MambaS4: lambda m: m.s4.C.numel() * (m.s4.C[0].numel() + 2) + len(m.s4.D),
    LSTM: lambda m: 3 * m.lstm.hidden_size,
    MHA: lambda m: 2 * m.window * m.q_proj.out_features,
    nn.LSTM: lambda m: 3 * _state_size(m),
    nn.GRU: lambda m: 3 * _state_size(m),
}
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)
NORMS = (nn.InstanceNorm2d, nn.LayerNorm, nn.BatchNorm1d)  # norms that thop counts
FREE = (*NORMS, nn.GroupNorm, nn.RMSNorm, nn.PReLU, nn.ReLU)  # not counted; they keep the shape
PROFILED = (*CONVOLUTIONS, *NORMS, nn.Linear, nn.PReLU)


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates per second of input, by the rule above."""

    layers: float  # convolutions and linear layers
    memory: float  # scan, recurrence or attention

    @property
    def total(self) -> float:
        return self.layers + self.memory


def n_params(model: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def macs_per_second(model: nn.Module, seconds: float = LENGTH_S) -> float:
    """Multiply-accumulates per second of steady-state input, by the rule of this module.

    seconds: length of the input, relevant for attention over all of it.
    """
    return count_macs(model, seconds).total


@torch.inference_mode(False)
def count_macs(model: nn.Module, seconds: float = LENGTH_S) -> Macs:
    """The same, layers and memory separately. UserError for a model without a rule."""
    if rates := model.layer_rates():
        return _sum_of_rates(rates)
    if not n_params(model):
        raise UserError(f"the MACs of {type(model).__name__} have no rule yet")
    hop = model.hop_length
    half = max(1, round(seconds * model.sample_rate / 2 / hop)) * hop
    # Costs without those of the edges: exact where they are linear or quadratic in the length
    weights = {half: -3, 2 * half: 4, 3 * half: -1}
    seen: list[tuple[nn.Module, int]] = []
    hollow = _hollow(model, lambda layer, x: seen.append((layer, x[..., 0].numel())))
    counts = {length: _counted(hollow, seen, length) for length in weights}
    rate = model.sample_rate / (2 * half)
    layers, memory = (
        rate * sum(weight * counts[length][i] for length, weight in weights.items()) for i in (0, 1)
    )
    return Macs(layers, memory)


def _counted(
    hollow: nn.Module, seen: list[tuple[nn.Module, int]], n_samples: int
) -> tuple[float, float]:
    """Products of layers and of memory for a signal of `n_samples`, edges included.

    seen: takes the layers with a memory and their numbers of frames.
    """
    seen.clear()
    with FlopCounterMode(display=False) as counter:
        _pass_shapes(hollow, n_samples)
    layers = float(sum(n_frames * _weights(layer) for layer, n_frames in seen))
    memory = float(sum(n_frames * _memory(layer) for layer, n_frames in seen))
    for operation, n_flops in counter.get_flop_counts().get("Global", {}).items():
        name = str(operation)
        if name in ("aten.convolution", "aten.mm", "aten.addmm"):
            layers += n_flops / 2
        else:  # both factors depend on the signal
            memory += n_flops / 2
    return layers, memory


def _hollow(model: nn.Module, see: Callable[[nn.Module, Tensor], None]) -> nn.Module:
    """A copy on the meta device: shapes without numbers.

    Layers with a memory pass their input (..., L, D) to `see` and compute nothing: their loops over
    frames do not run on the meta device. Layers that are FREE are left out.
    """
    # with gradients, PyTorch computes a linear layer as one product of matrices
    hollow = copy.deepcopy(model).to("meta").eval().requires_grad_(True)
    hollow.level = LEVELS["none"]
    for module in hollow.modules():
        if isinstance(module, tuple(MACS_PER_FRAME)):
            module.forward = partial(_see_and_skip, module, see)
        elif isinstance(module, FREE):
            module.forward = nn.Identity().forward
    return hollow


def _see_and_skip(
    module: nn.Module, see: Callable[[nn.Module, Tensor], None], x: Tensor, state: Any = None
) -> tuple[Tensor, tuple]:
    see(module, x)
    recurrent = isinstance(module, nn.RNNBase)
    n_directions = 1 + module.bidirectional if recurrent else 1
    width = n_directions * module.hidden_size if recurrent else x.shape[-1]
    return x.new_zeros(*x.shape[:-1], width), ()


def _pass_shapes(hollow: nn.Module, n_samples: int) -> None:
    """Spectral models up to the spectrum: the inverse STFT needs numbers and has no weights."""
    try:
        analysed = hollow if hollow.domain == "waveform" else hollow.spectrum
        analysed(torch.zeros(1, 1, n_samples, device="meta"))
    except (NotImplementedError, RuntimeError) as error:
        kind = type(hollow).__name__
        raise UserError(f"the MACs of {kind} have no rule yet: it depends on values") from error


def _weights(module: nn.Module) -> int:
    """Weights of convolutions, linear layers and recurrences in it: products per frame."""
    total = 0
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv1d):
            total += part.weight.numel()
        elif isinstance(part, nn.RNNBase):
            total += sum(p.numel() for n, p in part.named_parameters() if "weight" in n)
    return total


def _memory(module: nn.Module) -> int:
    return next(rule(module) for kind, rule in MACS_PER_FRAME.items() if isinstance(module, kind))


def _state_size(recurrent: nn.RNNBase) -> int:
    return recurrent.hidden_size * recurrent.num_layers * (1 + recurrent.bidirectional)


def _sum_of_rates(rates: Iterable[tuple[nn.Module, float]]) -> Macs:
    """Counts of layers with their applications per second."""
    layers = memory = 0.0
    for module, rate in rates:
        if isinstance(module, nn.Linear | nn.Conv1d | nn.ConvTranspose1d):
            layers += rate * module.weight.numel()
        elif isinstance(module, nn.LSTM):
            layers += rate * sum(p.numel() for n, p in module.named_parameters() if "weight" in n)
        elif type(module) in MACS_PER_FRAME:
            memory += rate * MACS_PER_FRAME[type(module)](module)
    return Macs(layers, memory)


def profiled_macs(model: nn.Module, n_frames: int) -> float:
    """MACs of a spectral model for `n_frames` as thop counts them, the profiler of SEMamba's paper.

    It counts called modules, on a machine without mamba-ssm's fused path. So it misses the
    attention of nn.MultiheadAttention, Mamba's scan and the two layers of Mamba whose weights
    are multiplied without a call (in_proj, dt_proj); counts a transposed convolution per *output*
    position, Mamba's convolution at d_conv - 1 frames too many, 4 per element of a norm with
    weights and 1 per element of a PReLU. The printed figures of the basic model are for 250
    frames, those of the advanced one for 321 (2 s).
    """
    total = 0.0

    def see(module: nn.Module, x: Tensor) -> None:
        nonlocal total
        total += x[..., 0].numel() * _weights(module)
        if isinstance(module, Mamba):
            unseen = module.in_proj.weight.numel() + module.dt_proj.weight.numel()
            n_more = x[:, 0, 0].numel() * (module.conv1d.kernel_size[0] - 1)
            total += n_more * module.conv1d.weight.numel() - x[..., 0].numel() * unseen

    def called(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += _profiled(module, output)

    hollow = _hollow(model, see)
    unseen = {part for m in hollow.modules() if isinstance(m, Attention) for part in m.modules()}
    for module in set(hollow.modules()) - unseen:
        if isinstance(module, PROFILED):
            module.register_forward_hook(called)
    _pass_shapes(hollow, (n_frames - 1) * model.hop_length)
    return total


def _profiled(module: nn.Module, output: Tensor) -> float:
    if isinstance(module, nn.PReLU):
        return output.numel()
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    if isinstance(module, CONVOLUTIONS):
        return output.numel() * module.weight.numel() / module.out_channels
    return 4 * output.numel()
