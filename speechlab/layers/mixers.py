"""Sequence mixers: five ways to carry information along time, one signature.

    y, state = mixer(x, state=None)         x, y: (B, L, d_model)

All are causal. The state is a plain tuple of tensors with the whole memory of a mixer: passed with
the next chunk, the outputs are those of the whole sequence. Without a state a mixer starts at
rest.

| name     | memory                                      | source                              |
|----------|---------------------------------------------|-------------------------------------|
| mamba    | selective state space, diagonal per channel | arXiv 2312.00752, mamba-ssm `Mamba` |
| mamba2   | selective state space, one decay per head   | arXiv 2405.21060, mamba-ssm `Mamba2`|
| mamba_s4 | Mamba block around a time-invariant S4      | CleanUMamba's ablation, 2111.00396  |
| lstm     | long short-term memory, one layer           | torch.nn.LSTM                       |
| mha      | attention over the last `window` frames     | arXiv 1706.03762                    |

The three Mambas have a `leak`: per frame their state is also multiplied by exp(-leak). With 0, as
published, some channels remember for hours, and noise suppression degrades after minutes.

Parameter names and the order of random draws of `mamba` and `mamba2` are mamba-ssm's, so that
weights can be exchanged.
"""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechlab.errors import UserError
from speechlab.layers.channels import OUTER, Group, Grouped, Member, inputs, outputs
from speechlab.layers.s4 import S4
from speechlab.layers.scan import selective_scan

State = tuple[Tensor, ...]


class Mamba(Grouped):
    """Selective state space layer (arXiv 2312.00752, figure 3); state: conv tail, scan state."""

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        d_inner: int | None = None,
        dt_rank: int | None = None,
        leak: float = 0.0,
    ) -> None:
        """d_inner defaults to expand * d_model, dt_rank to ceil(d_model / 16)."""
        super().__init__()
        d_inner = expand * d_model if d_inner is None else d_inner
        dt_rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
        self.split, self.leak = [dt_rank, d_state, d_state], leak
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner)
        self.x_proj = nn.Linear(d_inner, sum(self.split), bias=False)
        self.dt_proj = nn.Linear(dt_rank, d_inner)
        nn.init.uniform_(self.dt_proj.weight, -(dt_rank**-0.5), dt_rank**-0.5)
        with torch.no_grad():
            self.dt_proj.bias.copy_(inverse_softplus(draw_step_sizes(d_inner)))
        A = torch.arange(1, d_state + 1, dtype=torch.float32).repeat(d_inner, 1)
        self.A_log = nn.Parameter(A.log())  # (d_inner, d_state)
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        tail, h = state or (None, None)
        u, z = self.in_proj(x).chunk(2, -1)  # (B, L, d_inner) each
        u, tail = causal_depthwise(u, self.conv1d, tail)
        u = F.silu(u)
        dt, B, C = self.x_proj(u).split(self.split, -1)
        dt = F.linear(dt, self.dt_proj.weight)  # (B, L, d_inner); its bias is added in the scan
        A = -self.A_log.exp()
        y, h = selective_scan(u, dt, A, B, C, self.D, z, self.dt_proj.bias, h, leak=self.leak)
        return self.out_proj(y), (tail, h)

    def channel_groups(self) -> dict[str, Group]:
        d_inner, (dt_rank, d_state, _) = len(self.D), self.split
        inner = outputs(self, "in_proj", halves=2) + inputs(self, "out_proj")
        inner += outputs(self, "conv1d") + inputs(self, "x_proj") + outputs(self, "dt_proj")
        inner += Member("A_log", 0), Member("D", 0)
        state = (*outputs(self, "x_proj", halves=2, offset=dt_rank), Member("A_log", 1))
        return {
            OUTER: outer_group(self),
            "d_inner": Group(d_inner, inner),
            "d_state": Group(d_state, state),
            "dt_rank": Group(dt_rank, outputs(self, "x_proj") + inputs(self, "dt_proj")),
        }

    def narrowed(self, widths: Mapping[str, int]) -> dict[str, int]:
        return {"d_conv": self.conv1d.kernel_size[0], **widths}


class Mamba2(Grouped):
    """State space duality layer (arXiv 2405.21060, figure 6) with one group of B and C.

    The heads' scalar decays are the scan of `mamba` with a row of A per channel.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        expand: int = 2,
        d_head: int = 64,
        d_inner: int | None = None,
        leak: float = 0.0,
    ) -> None:
        """d_inner defaults to expand * d_model; it is split into heads of d_head channels."""
        super().__init__()
        d_inner = expand * d_model if d_inner is None else d_inner
        n_heads, rest = divmod(d_inner, d_head)
        if rest:
            raise UserError(f"d_inner {d_inner} is not a multiple of d_head {d_head}")
        self.d_head, self.d_state, self.leak = d_head, d_state, leak
        self.split = [d_inner, d_inner + 2 * d_state, n_heads]
        self.in_proj = nn.Linear(d_model, sum(self.split), bias=False)
        d_mixed = d_inner + 2 * d_state
        self.conv1d = nn.Conv1d(d_mixed, d_mixed, d_conv, groups=d_mixed)
        self.dt_bias = nn.Parameter(inverse_softplus(draw_step_sizes(n_heads)))
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(n_heads))
        self.norm = nn.RMSNorm(d_inner, eps=1e-5)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        tail, h = state or (None, None)
        z, mixed, dt = self.in_proj(x).split(self.split, -1)
        mixed, tail = causal_depthwise(mixed, self.conv1d, tail)
        u, B, C = F.silu(mixed).split([z.shape[-1], self.d_state, self.d_state], -1)
        A = self._per_channel(-self.A_log.exp())[:, None].expand(-1, self.d_state)
        dt, D, dt_bias = map(self._per_channel, (dt, self.D, self.dt_bias))
        y, h = selective_scan(u, dt, A, B, C, D, None, dt_bias, h, leak=self.leak)
        return self.out_proj(self.norm(y * F.silu(z))), (tail, h)

    def channel_groups(self) -> dict[str, Group]:
        d_inner, n_heads, d_state = self.split[0], self.split[2], self.d_state
        head = {"block": self.d_head}
        heads = outputs(self, "in_proj", halves=2, **head)  # z, then x; B, C and dt follow
        heads += outputs(self, "in_proj", offset=2 * (d_inner + d_state))
        heads += outputs(self, "conv1d", **head) + outputs(self, "norm", **head)
        heads += inputs(self, "out_proj", **head)
        heads += Member("A_log", 0), Member("D", 0), Member("dt_bias", 0, scored=False)
        inside = outputs(self, "in_proj", halves=2 * n_heads)  # the same position of every head
        inside += outputs(self, "conv1d", halves=n_heads) + outputs(self, "norm", halves=n_heads)
        inside += inputs(self, "out_proj", halves=n_heads)
        state = outputs(self, "in_proj", halves=2, offset=2 * d_inner)
        state += outputs(self, "conv1d", halves=2, offset=d_inner)
        return {
            OUTER: outer_group(self),
            "n_heads": Group(n_heads, heads),
            "d_head": Group(self.d_head, inside),
            "d_state": Group(d_state, state),
        }

    def narrowed(self, widths: Mapping[str, int]) -> dict[str, int]:
        sizes = {name: widths[name] for name in ("d_state", "d_head")}
        d_inner = widths["n_heads"] * widths["d_head"]
        return {"d_conv": self.conv1d.kernel_size[0], "d_inner": d_inner, **sizes}

    def _per_channel(self, per_head: Tensor) -> Tensor:
        """(..., n_heads) -> (..., d_inner)"""
        return per_head.repeat_interleave(self.d_head, -1)


class MambaS4(Grouped):
    """A Mamba block whose selective scan is replaced by S4 on few channels (CleanUMamba, table 1).

    in_proj -> causal conv -> d_inner to n_channels -> S4, GELU -> back to d_inner, GLU -> gate.
    """

    def __init__(
        self,
        d_model: int,
        n_channels: int = 16,
        d_state: int = 64,
        d_conv: int = 4,
        expand: int = 2,
        d_inner: int | None = None,
        leak: float = 0.0,
    ) -> None:
        """n_channels: S4 systems; d_state: size of the state of each; d_inner as in `Mamba`."""
        super().__init__()
        d_inner = expand * d_model if d_inner is None else d_inner
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner)
        self.s4_in = nn.Linear(d_inner, n_channels)
        self.s4 = S4(n_channels, d_state, leak)
        self.s4_out = nn.Linear(n_channels, 2 * d_inner)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        tail, h = state or (None, None)
        u, z = self.in_proj(x).chunk(2, -1)  # (B, L, d_inner) each
        u, tail = causal_depthwise(u, self.conv1d, tail)
        y, h = self.s4(self.s4_in(F.silu(u)), h)  # (B, L, n_channels)
        y = F.glu(self.s4_out(F.gelu(y)), -1)  # (B, L, d_inner)
        return self.out_proj(y * F.silu(z)), (tail, h)

    def channel_groups(self) -> dict[str, Group]:
        n_channels, n_pairs = self.s4.A_imag.shape
        inner = outputs(self, "in_proj", halves=2) + inputs(self, "out_proj")
        inner += outputs(self, "conv1d") + inputs(self, "s4_in") + outputs(self, "s4_out", halves=2)
        systems = outputs(self, "s4_in") + inputs(self, "s4_out")
        systems += tuple(Member(f"s4.{name}", 0) for name, _ in self.s4.named_parameters())
        paired = ("C", "B", "P", "log_A_real", "A_imag")
        return {
            OUTER: outer_group(self),
            "d_inner": Group(self.out_proj.in_features, inner),
            "n_channels": Group(n_channels, systems),
            "n_pairs": Group(n_pairs, tuple(Member(f"s4.{name}", 1) for name in paired)),
        }

    def narrowed(self, widths: Mapping[str, int]) -> dict[str, int]:
        sizes = {name: widths[name] for name in ("d_inner", "n_channels")}
        d_state = 2 * widths["n_pairs"]
        return {"d_conv": self.conv1d.kernel_size[0], "d_state": d_state, **sizes}


class LSTM(Grouped):
    """One layer of nn.LSTM as wide as the model; state: hidden and cell, (1, B, d_model) each."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(d_model, d_model, batch_first=True)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        if x.shape[1] == 0:  # nn.LSTM refuses an empty sequence
            zeros = x.new_zeros(1, x.shape[0], x.shape[2])
            return x, state or (zeros, zeros)
        return self.lstm(x, state)

    def channel_groups(self) -> dict[str, Group]:
        """Input, cell and output are one group; rows have four gates."""
        gates = {name: 4 for name, _ in self.lstm.named_parameters()}
        rows = (Member(f"lstm.{n}", 0, h, scored="bias" not in n) for n, h in gates.items())
        columns = (Member(f"lstm.{name}", 1) for name in gates if "weight" in name)
        return {OUTER: Group(self.lstm.hidden_size, (*rows, *columns))}

    def narrowed(self, widths: Mapping[str, int]) -> dict[str, int]:
        return {}


class MHA(Grouped):
    """Causal multi-head attention without positions over a frame and the window - 1 before it.

    The window also applies offline, so that a stream and a file agree. In a recording of at most
    `window` frames, each frame attends to its whole past. State: the keys and values of the last
    window - 1 frames, (B, n_heads, ≤ window - 1, d_head) each: of constant size once the window is
    full.
    """

    def __init__(
        self, d_model: int, n_heads: int = 8, window: int = 2048, d_head: int | None = None
    ) -> None:
        """window: frames, at least 1 (2048 are 32.8 s at a hop of 256 samples and 16 kHz).

        d_head defaults to d_model / n_heads.
        """
        super().__init__()
        if window < 1 or (d_head is None and d_model % n_heads):
            raise UserError(f"d_model {d_model}, n_heads {n_heads}, window {window} do not fit")
        self.n_heads, self.window = n_heads, window
        d_inner = d_model if d_head is None else n_heads * d_head
        projections = (nn.Linear(d_model, d_inner, bias=False) for _ in range(3))
        self.q_proj, self.k_proj, self.v_proj = projections
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        q, k, v = (self._heads(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if state is not None:
            k, v = torch.cat([state[0], k], 2), torch.cat([state[1], v], 2)
        past = k.shape[2] - q.shape[2]
        # queries in blocks of a window: memory grows with L * window, not L * L
        parts = q.split(self.window, 2) if q.shape[2] else ()
        blocks = [self._attend(part, k, v, past + i * self.window) for i, part in enumerate(parts)]
        y = torch.cat(blocks, 2) if blocks else q
        keep = min(self.window - 1, k.shape[2])
        state = tuple(cache[:, :, cache.shape[2] - keep :].clone() for cache in (k, v))
        return self.out_proj(y.transpose(1, 2).flatten(2)), state  # (B, L, d_model)

    def channel_groups(self) -> dict[str, Group]:
        """Whole heads: with fewer channels in a head the scale of its scores would change."""
        names, head = ("q_proj", "k_proj", "v_proj"), {"block": self.d_head}
        heads = sum((outputs(self, name, **head) for name in names), ())
        outer = sum((inputs(self, name) for name in names), ()) + outputs(self, "out_proj")
        return {
            OUTER: Group(self.out_proj.out_features, outer),
            "n_heads": Group(self.n_heads, heads + inputs(self, "out_proj", **head)),
        }

    def narrowed(self, widths: Mapping[str, int]) -> dict[str, int]:
        return {"window": self.window, "d_head": self.d_head, **widths}

    @property
    def d_head(self) -> int:
        """Channels of a head."""
        return self.out_proj.in_features // self.n_heads

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, start: int) -> Tensor:
        """Queries at the positions start, start + 1, … of the keys: (B, n_heads, l, d_head)."""
        first, end = max(0, start - self.window + 1), start + q.shape[2]
        position = torch.arange(start, end, device=q.device)[:, None]
        distance = position - torch.arange(first, end, device=q.device)
        seen = (distance >= 0) & (distance < self.window)
        k, v = k[:, :, first:end], v[:, :, first:end]
        broken = ~(k + v).isfinite().all(-1)  # (B, n_heads, K)
        if not broken.any():
            return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        k, v = k.nan_to_num(0.0, 0.0, 0.0), v.nan_to_num(0.0, 0.0, 0.0)  # 0 * NaN is NaN
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return y.masked_fill((seen & broken[:, :, None]).any(-1, keepdim=True), math.nan)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, L, d_model) -> (B, n_heads, L, d_head)"""
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)


MIXERS: dict[str, Callable[..., nn.Module]] = {
    "mamba": Mamba,
    "mamba2": Mamba2,
    "mamba_s4": MambaS4,
    "lstm": LSTM,
    "mha": MHA,
}


def outer_group(mixer: nn.Module) -> Group:
    """Inputs of in_proj and outputs of out_proj."""
    members = inputs(mixer, "in_proj") + outputs(mixer, "out_proj")
    return Group(mixer.out_proj.out_features, members)


def causal_depthwise(x: Tensor, conv: nn.Conv1d, tail: Tensor | None) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution in (B, L, D) layout by shifted products, no transposes.

    tail: the last d_conv - 1 inputs, (B, d_conv - 1, D); zeros if None. Returns y and the new tail.
    """
    n_past = conv.kernel_size[0] - 1
    if tail is None:
        tail = x.new_zeros(x.shape[0], n_past, x.shape[2])
    padded = torch.cat([tail, x], 1)  # (B, n_past + L, D)
    length = x.shape[1]
    y = conv.bias.to(x.dtype).expand_as(x)
    for shift, tap in enumerate(conv.weight.to(x.dtype)[:, 0].unbind(-1)):
        y = torch.addcmul(y, padded[:, shift : shift + length], tap)
    return y, padded[:, length:].clone()


def draw_step_sizes(count: int, low: float = 0.001, high: float = 0.1) -> Tensor:
    """Log-uniform time steps, at least 1e-4 (arXiv 2312.00752, section 3.6)."""
    log_step = torch.rand(count) * (math.log(high) - math.log(low)) + math.log(low)
    return log_step.exp().clamp(min=1e-4)


def inverse_softplus(x: Tensor) -> Tensor:
    """The value whose softplus is x, accurate for small x."""
    return x + torch.log(-torch.expm1(-x))
