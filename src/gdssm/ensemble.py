"""Many copies of one module, trained as one program: all parameters in one matrix, one row per copy.

Axes: S copies (seeds), P parameters of one copy, B batch.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from .weights import Linearised


class Ensemble:
    """S copies of a module with the same shapes.

    flat (S, P)    every parameter of every copy      gradient (S, P)    what was found last
    parameters     name -> (S, ...) tensors that share flat's memory
    columns        name -> which columns of flat the parameter has

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
        self.flat = torch.stack([torch.cat([p.detach().flatten() for p in module.parameters()]) for module in modules])
        self.gradient = torch.zeros_like(self.flat)
        self.parameters: dict[str, Tensor] = {}
        self.columns: dict[str, slice] = {}
        start = 0
        for name, shape in shapes.items():
            self.columns[name] = slice(start, start + shape.numel())
            self.parameters[name] = self.flat[:, self.columns[name]].view(-1, *shape).requires_grad_()
            start += shape.numel()

    def __len__(self) -> int:
        return len(self.flat)

    def __call__(self, tokens: Tensor) -> Tensor:
        """tokens (B, T, D), read by every copy -> predictions (S, B, d_y)."""
        stacked: Callable[..., Tensor] | None = getattr(self.template, "last_stacked", None)
        if stacked is not None:
            return stacked(self.parameters, tokens)
        return vmap(lambda p: functional_call(self.template, p, (tokens,)))(self.parameters)

    def linearised(self, tokens: Tensor) -> tuple[Tensor, Callable[[Tensor], None]]:
        """Predictions as from a call, without a graph, and the function that takes the gradient there into `gradient`, once.

        A module with `last_stacked_and_pullback(parameters, tokens)` may have its gradients written out; others use autograd.
        """
        written_out: Callable[..., Linearised | None] | None = getattr(self.template, "last_stacked_and_pullback", None)
        found = None if written_out is None else written_out(self.parameters, tokens)
        if found is None:
            prediction = self(tokens)
            return prediction.detach(), lambda grad: self.differentiate(prediction, grad)
        prediction, pullback = found

        def write(grad: Tensor) -> None:
            by_name = pullback(grad)
            self._collect([by_name[name] for name in self.parameters])

        return prediction, write

    def name_of(self, column: int) -> str:
        """The parameter that a column of flat belongs to."""
        return next(name for name, columns in self.columns.items() if column < columns.stop)

    def differentiate(self, output: Tensor, weights: Tensor | None = None) -> None:
        """Write the gradient of a scalar, or of the sum of an output times weights of its shape, into `gradient`."""
        self._collect(torch.autograd.grad(output, list(self.parameters.values()), weights))

    def _collect(self, gradients: Sequence[Tensor]) -> None:
        torch.cat([g.reshape(len(self), -1) for g in gradients], dim=1, out=self.gradient)

    @torch.no_grad()
    def load(self, module: nn.Module, copy: int) -> nn.Module:
        """Write the weights of one copy into a module of the same shape, and return it."""
        for name, parameter in module.named_parameters():
            parameter.copy_(self.parameters[name][copy])
        return module


class Adam:
    """Adam (Kingma and Ba, 2015) on an ensemble's matrix, with a rate for every column, or every column of every copy.

    Elementwise, so copies do not see each other. torch.optim.Adam does the same arithmetic, but for matrices of a few
    hundred numbers its bookkeeping takes longer than the layer's forward pass.
    """

    def __init__(self, ensemble: Ensemble, *, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        self.ensemble, self.betas, self.eps = ensemble, (beta1, beta2), eps
        self.mean, self.square = torch.zeros_like(ensemble.flat), torch.zeros_like(ensemble.flat)
        self.steps = 0

    @torch.no_grad()
    def step(self, rates: Tensor) -> None:
        """One update along `ensemble.gradient` with these rates, (P,) or (S, P)."""
        self.steps += 1
        (beta1, beta2), gradient = self.betas, self.ensemble.gradient
        self.mean.lerp_(gradient, 1 - beta1)
        self.square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (1 - beta2**self.steps) ** 0.5
        self.ensemble.flat.addcdiv_(
            self.mean * rates, self.square.sqrt().add_(self.eps * root), value=-root / (1 - beta1**self.steps)
        )
