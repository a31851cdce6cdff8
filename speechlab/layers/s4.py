"""S4: a time-invariant state space, run as a convolution or as a recurrence (arXiv 2111.00396).

The state matrix is diagonal plus low rank (DPLR): x' = (Λ - P P*) x + B u, y = 2 Re(C x) + D u.
Half of each conjugate pair is kept; in real coordinates (Re x, Im x) the same system is

    M = [[Re Λ, -Im Λ], [Im Λ, Re Λ]] - 2 p pᵀ,  p = (Re P, Im P)      (2N, 2N), real

so nothing here is complex. Discretised by the bilinear transform (section 2.3) in float64:

    Ā = (I - Δ/2 M)⁻¹ (I + Δ/2 M),  B̄ = (I - Δ/2 M)⁻¹ Δ B,  x_t = Ā x_{t-1} + B̄ u_t,  y_t = C x_t

| code      | meaning                                          | paper |
|-----------|--------------------------------------------------|-------|
| H         | channels, each with a system of its own          | H     |
| n         | real size of the state, two per conjugate pair   | N     |
| A_bar, b  | discretised transition and input, float64        | Ā, B̄  |
| c         | output row in real coordinates, (2 Re C, -2 Im C)| C     |
| step      | exp(log_dt), the length of a time step           | Δ     |
"""

import math

import torch
from torch import Tensor, nn


class S4(nn.Module):
    """Single-input single-output S4 systems side by side, initialised with HiPPO-LegS.

    forward: (B, L, H) -> (B, L, H) and the state (B, H, 2 N) in float64. A convolution by FFT
    where no state is given, the recurrence where one is: both are the same numbers.
    """

    def __init__(self, n_channels: int, d_state: int = 64, leak: float = 0.0) -> None:
        """d_state: size of the state, even; step sizes are drawn log-uniformly in 0.001 to 0.1.

        leak: per time step the state is also multiplied by exp(-leak).
        """
        super().__init__()
        self.leak = leak
        eigenvalues, P, B = hippo_legs(d_state)  # each (N,), N = d_state / 2
        log_dt = torch.rand(n_channels, 1) * math.log(0.1 / 0.001) + math.log(0.001)
        C = torch.randn(n_channels, d_state // 2, 2) * math.sqrt(0.5)
        self.D = nn.Parameter(torch.randn(n_channels))
        self.log_dt = nn.Parameter(log_dt)
        self.C = nn.Parameter(C)
        self.B = nn.Parameter(_repeat(torch.view_as_real(B), n_channels))
        self.P = nn.Parameter(_repeat(torch.view_as_real(P), n_channels))
        self.log_A_real = nn.Parameter(_repeat((-eigenvalues.real).log(), n_channels))
        self.A_imag = nn.Parameter(_repeat(-eigenvalues.imag, n_channels))

    def forward(self, u: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """u: (B, L, H), state: (B, H, n) or None for rest. Returns y (B, L, H), state (B, H, n)."""
        A_bar, b, c = self.discretise()
        v = u.to(A_bar.dtype).transpose(1, 2)  # (B, H, L)
        if state is None:
            finite = v.nan_to_num(0.0, 0.0, 0.0)  # the FFT would carry a NaN into the past
            y = causal_convolution(finite, ssm_kernel(A_bar, b, c, v.shape[-1]))
            y = y + 0 * v.cumsum(-1)  # NaN from the first NaN on
            state = final_state(A_bar, b, v)
        else:
            y, state = recurrence(A_bar, b, c, v, state)
        return (y.transpose(1, 2) + u * self.D).to(u.dtype), state

    def discretise(self) -> tuple[Tensor, Tensor, Tensor]:
        """A_bar (H, n, n), b (H, n), c (H, n), in float64 for weights of any type."""
        real, imag = -self.log_A_real.double().exp(), -self.A_imag.double()  # (H, N)
        p = _stack(self.P.double())
        top = torch.cat([real.diag_embed(), -imag.diag_embed()], -1)  # (H, N, n)
        bottom = torch.cat([imag.diag_embed(), real.diag_embed()], -1)
        M = torch.cat([top, bottom], -2) - 2 * p[:, :, None] * p[:, None, :]  # (H, n, n)
        step = self.log_dt.double().exp()  # (H, 1)
        eye = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
        half = step[..., None] / 2 * M
        right = torch.cat([eye + half, (step * _stack(self.B.double()))[..., None]], -1)
        solved = torch.linalg.solve(eye - half, right)  # (H, n, n + 1)
        sign = torch.tensor([2.0, -2.0], dtype=M.dtype, device=M.device)
        A_bar = solved[..., :-1] * math.exp(-self.leak)
        return A_bar, solved[..., -1], _stack(self.C.double() * sign)


def ssm_kernel(A_bar: Tensor, b: Tensor, c: Tensor, length: int) -> Tensor:
    """The impulse response c Ā^l b for l < length: (H, length).

    With l = j T + t it is the product of rows c Ā^(jT) and columns Ā^t b, so its cost and memory
    grow with sqrt(length) matrices, not length.
    """
    T = max(1, math.isqrt(length))
    columns, A_T = powers(A_bar, b, T)  # (H, n, T)
    rows, _ = powers(A_T.transpose(1, 2), c, -(-length // T))  # (H, n, J)
    return (rows.transpose(1, 2) @ columns).flatten(1)[:, :length]  # (H, J, T) -> (H, length)


def powers(A: Tensor, v: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """v, A v, …, A^(count-1) v by doubling, and A^count: (H, n, count), (H, n, n)."""
    stacked, square, done = v[..., None], A, 1
    result = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device).expand_as(A)
    for bit in range(count.bit_length()):
        if count >> bit & 1:
            result = square @ result
        if done < count:
            stacked = torch.cat([stacked, square @ stacked], -1)
            done *= 2
        square = square @ square
    return stacked[..., :count], result


def causal_convolution(v: Tensor, kernel: Tensor) -> Tensor:
    """v: (B, H, L), kernel: (H, L). Linear convolution cut to L, by zero-padded FFT."""
    length = v.shape[-1]
    n_fft = 2 * length
    spec = torch.fft.rfft(v, n_fft) * torch.fft.rfft(kernel, n_fft)
    return torch.fft.irfft(spec, n_fft)[..., :length]


def final_state(A_bar: Tensor, b: Tensor, v: Tensor, block: int = 128) -> Tensor:
    """The state (B, H, n) after the whole of v (B, H, L) from rest, a block at a time."""
    state = v.new_zeros(*v.shape[:2], b.shape[-1])
    length = v.shape[-1]
    block = min(block, length) or 1
    columns, A_block = powers(A_bar, b, block)  # (H, n, block)
    first = length % block  # the short block comes first, so that A_block serves all the others
    if first:
        state = torch.einsum("hnt,bht->bhn", columns[..., :first].flip(-1), v[..., :first])
    for part in v[..., first:].split(block, -1) if length > first else ():
        inflow = torch.einsum("hnt,bht->bhn", columns.flip(-1), part)
        state = torch.einsum("hmn,bhn->bhm", A_block, state) + inflow
    return state


def recurrence(
    A_bar: Tensor, b: Tensor, c: Tensor, v: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Step by step: v (B, H, L), state (B, H, n) -> y (B, H, L), state."""
    outputs = [v[..., :0]]
    for sample in v.unbind(-1):
        state = torch.einsum("hmn,bhn->bhm", A_bar, state) + b * sample[..., None]
        outputs.append((state * c).sum(-1, keepdim=True))
    return torch.cat(outputs, -1), state


def hippo_legs(d_state: int) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues Λ, low-rank P and input B of HiPPO-LegS (arXiv 2111.00396, appendix C).

    Complex, (d_state / 2,) each: the half of each conjugate pair with negative imaginary part.
    """
    q = torch.arange(d_state, dtype=torch.float64)
    scale = (2 * q + 1).sqrt()
    A = -torch.tril(scale[:, None] * scale[None, :], -1) - torch.diag(q + 1)
    P = (q + 0.5).sqrt()
    skew = A + P[:, None] * P[None, :] + 0.5 * torch.eye(d_state, dtype=q.dtype)
    imag, V = torch.linalg.eigh(skew * -1j)
    half = imag.argsort()[: d_state // 2]
    basis = V[:, half].conj().T  # (N, d_state)
    B = basis @ scale.to(V.dtype)
    B = torch.complex(B.real, B.imag.clamp(-2.0, 2.0))  # the published initialisation clips here
    eigenvalues = torch.complex(torch.full_like(imag[half], -0.5), imag[half])
    return (
        eigenvalues.to(torch.complex64),
        (basis @ P.to(V.dtype)).to(torch.complex64),
        B.to(torch.complex64),
    )


def untruncate(C_tilde: Tensor, A_bar: Tensor, length: int) -> Tensor:
    """C from the stored C̃ = C (I - Ā^length) of a published checkpoint (section 3.2).

    C_tilde: (H, N, 2) real and imaginary parts; A_bar: (H, n, n) float64. Returns (H, N, 2).
    """
    sign = torch.tensor([2.0, -2.0], dtype=A_bar.dtype)
    row = _stack(C_tilde.double() * sign)  # (H, n)
    eye = torch.eye(A_bar.shape[-1], dtype=A_bar.dtype)
    left = (eye - torch.linalg.matrix_power(A_bar, length)).transpose(1, 2)
    row = torch.linalg.solve(left, row[..., None])[..., 0]
    return torch.stack(row.chunk(2, -1), -1) / sign


def _stack(pairs: Tensor) -> Tensor:
    """(H, N, 2) real and imaginary parts -> (H, 2 N) real coordinates."""
    return torch.cat(pairs.unbind(-1), -1)


def _repeat(row: Tensor, n_channels: int) -> Tensor:
    return row.float().expand(n_channels, *row.shape).clone()
