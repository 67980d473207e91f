"""Many copies of one module, trained as one program: parameters in matrices with one row per copy.

Axes: S copies (seeds), P parameters of one copy, B batch.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap


class Ensemble:
    """S copies of a module with the same shapes.

    flat, gradients   (S, P) matrices: first the decays' parameters (named log_rate), then all others; a group that
                      the module does not have is left out
    parameters        name -> (S, ...) tensors that share flat's memory

    A module with `last_stacked(parameters, tokens)` computes all copies at once; others run under torch.func.vmap.
    ValueError for no modules, or modules whose parameters differ in name or shape.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        if not modules:
            raise ValueError("modules must hold at least one module")
        self.template = modules[0]
        shapes = {name: p.shape for name, p in self.template.named_parameters()}
        if any({name: p.shape for name, p in module.named_parameters()} != shapes for module in modules):
            raise ValueError("modules must have the same parameter names and shapes")
        self.flat: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self.parameters: dict[str, Tensor] = {}
        self.is_decay: list[bool] = []
        self.names: list[list[str]] = []
        for decays in (True, False):
            names = [name for name in shapes if name.endswith("log_rate") == decays]
            if names:
                self.is_decay.append(decays)
                self._add_group([dict(module.named_parameters()) for module in modules], names)

    def _add_group(self, copies: list[dict[str, nn.Parameter]], names: list[str]) -> None:
        flat = torch.stack([torch.cat([copy[name].detach().flatten() for name in names]) for copy in copies])
        start = 0
        for name in names:
            shape = copies[0][name].shape
            part = slice(start, start + shape.numel())
            self.parameters[name] = flat[:, part].view(-1, *shape).requires_grad_()
            start = part.stop
        self.names.append(names)
        self.flat.append(flat)
        self.gradients.append(torch.zeros_like(flat))

    def __len__(self) -> int:
        return len(self.flat[0])

    def __call__(self, tokens: Tensor) -> Tensor:
        """tokens (B, T, D), read by every copy -> predictions (S, B, d_y)."""
        stacked: Callable[..., Tensor] | None = getattr(self.template, "last_stacked", None)
        if stacked is not None:
            return stacked(self.parameters, tokens)
        return vmap(lambda p: functional_call(self.template, p, (tokens,)))(self.parameters)

    def differentiate(self, loss: Tensor) -> None:
        """Write the gradient of a scalar into `gradients`."""
        found = dict(zip(self.parameters, torch.autograd.grad(loss, list(self.parameters.values())), strict=True))
        for names, gradient in zip(self.names, self.gradients, strict=True):
            torch.cat([found[name].reshape(len(self), -1) for name in names], dim=1, out=gradient)

    @torch.no_grad()
    def load(self, module: nn.Module, copy: int) -> nn.Module:
        """Write the weights of one copy into a module of the same shape, and return it."""
        for name, parameter in module.named_parameters():
            parameter.copy_(self.parameters[name][copy])
        return module

    @torch.no_grad()
    def clip_(self, most: float) -> None:
        """Scale each copy's gradient to a norm of at most `most`: copies do not see each other."""
        norms = [g.norm(dim=1, keepdim=True) for g in self.gradients]
        norm = norms[0] if len(norms) == 1 else torch.hypot(norms[0], norms[1])
        scale = (most / norm.clamp_(min=1e-12)).clamp_(max=1)
        for g in self.gradients:
            g.mul_(scale)
