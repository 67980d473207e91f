"""GDSSM's prediction with one of its parts taken away, to measure what that part gives. Only the last output.

    whole           Z_k = Lambda * Z_{k-1} + S_k^T w_q S_k             y = C Z^T (S^T d)
    input_gate      Z_k = Lambda * Z_{k-1} + M(S_k), M linear          y = C Z^T (S^T d)
    output_gate     Z_k = Lambda * Z_{k-1} + S_k^T w_q S_k             y = L(Z), L linear
    decay           Z_k = Z_{k-1} + S_k^T w_q S_k                      y = C Z^T (S^T d)

M (D^2 x W D) and L (D x D^2) are any linear maps, so each ablated layer has more weights than what was taken away: what it
cannot do is not for want of them. Windows are GDSSM's (width 3, stride 2), Lambda is one number. Axes: B batch, K windows.
"""

import torch
from torch import Tensor, nn

from ..config import check_choice
from ..weights import DecayParameter, check_size

PARTS = ("input_gate", "output_gate", "decay")
_WINDOW, _STRIDE = 3, 2


class Ablated(nn.Module):
    """GDSSM of D features without one of PARTS, or whole (None): module(tokens (B, T, D)) -> (B, d_y).

    Parameters w_q (W, W) or m (D^2, W D), d (W), c (D, D) or l (D, D^2), decay. Raises ValueError for sizes, ConfigError
    for an unknown part.
    """

    def __init__(self, d_model: int, d_y: int, without: str | None = None) -> None:
        super().__init__()
        check_size("d_model", d_model)
        check_size("d_y", d_y)
        if without is not None:
            check_choice("without", without, PARTS)
        self.d_model, self.d_y, self.without = d_model, d_y, without
        n, w = d_model, _WINDOW
        self.shapes = {
            **({"m": (n * n, w * n)} if without == "input_gate" else {"w_q": (w, w)}),
            **({"l": (n, n * n)} if without == "output_gate" else {"c": (n, n), "d": (w,)}),
        }
        for name, shape in self.shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        self.decay = DecayParameter("none" if without == "decay" else "head", 1, n)
        self.reset_parameters()

    m: nn.Parameter
    w_q: nn.Parameter
    l: nn.Parameter  # noqa: E741
    c: nn.Parameter
    d: nn.Parameter

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Gaussian of variance 1 / (numbers read); Lambda as GDSSM's."""
        for name, shape in self.shapes.items():
            self.get_parameter(name).normal_(0, shape[-1] ** -0.5, generator=generator)
        self.decay.reset_parameters(generator)

    @property
    def state_size(self) -> int:
        """Numbers kept per sequence: Z and the last W - 1 tokens."""
        return self.d_model**2 + (_WINDOW - 1) * self.d_model

    def forward(self, tokens: Tensor) -> Tensor:
        """The first d_y outputs after the last window."""
        s = tokens.unfold(1, _WINDOW, _STRIDE).transpose(2, 3)  # (B, K, W, D)
        log = self.decay.log()
        if log is not None:
            age = torch.arange(s.shape[1] - 1, -1, -1, device=s.device, dtype=s.dtype)
            weight = (age * log).exp()[:, None, None]
        else:
            weight = s.new_ones(())
        if self.without == "input_gate":
            z = ((weight * s).sum(1).flatten(1) @ self.m.T).unflatten(1, (self.d_model, self.d_model))
        else:
            z = torch.einsum("bkai,ac,bkcj->bij", weight * s, self.w_q, s)
        if self.without == "output_gate":
            y = z.flatten(1) @ self.l.T
        else:
            y = torch.einsum("ij,bkj,bk->bi", self.c, z, torch.einsum("w,bwk->bk", self.d, s[:, -1]))
        return y[:, : self.d_y]
