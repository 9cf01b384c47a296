"""The forward and backward pass of a step, on a CUDA device as one launch."""

import contextlib
from collections.abc import Callable

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from companion import losses
from companion.training.methods import Batch

WARM_UP = 3  # steps before the capture, in which libraries choose their kernels and allocate what they keep


def gradient(method, fabric: Fabric) -> Callable[[Batch], Tensor]:
    """A function of a batch that leaves the gradient of ``method.loss(batch)`` in the parameters and returns the loss.

    On one CUDA device it is captured as a CUDA graph after a few ordinary steps: a batch of 32 needs some thousand
    launches, each shorter than Python takes to ask for it. Elsewhere, and for a method that is not static, every
    step is an ordinary one. One process alone compiles the encoder of a method that asks for it by ``compiled``, anew
    for each shape of a batch; what is evaluated is not compiled.

    Args:
        method: what is trained, as ``fabric.setup`` returned it.
        fabric: device and precision.
    """

    # One process trains as recorded runs were trained, bit for bit; several divide the work.
    alone = fabric.world_size == 1
    way = losses.plain if alone else losses.divided
    inside = _compiled(method.model.encoder) if alone and method.compiled else contextlib.nullcontext

    def step(batch: Batch) -> Tensor:
        with fabric.autocast(), way(), inside():
            loss = method.loss(batch)
        method.zero_grad()
        fabric.backward(loss)
        return loss.detach()

    return _Captured(step, method) if alone and fabric.device.type == "cuda" and method.static else step


def _compiled(encoder: nn.Module) -> Callable[[], contextlib.AbstractContextManager]:
    """A function that opens a context in which ``encoder`` is compiled. Its weights keep their names, and outside it is
    what it was: nothing is compiled for the sizes of an evaluation."""
    compiled = torch.compile(encoder.forward, dynamic=False)  # nn.Module.compile: no nn.Sequential before torch 2.14

    @contextlib.contextmanager
    def inside():
        encoder.forward = compiled
        try:
            yield
        finally:
            del encoder.forward

    return inside


class _Captured:
    """``step`` replayed: every batch is copied to where the first one lay, and its gradient to where the first's was.

    A batch of another shape than the one before it, as where views grow during a training, is captured anew. Nothing
    else may set the gradients to None.
    """

    def __init__(self, step: Callable[[Batch], Tensor], method):
        self.step, self.method, self.shapes = step, method, None
        self.stream = torch.cuda.Stream()  # of all that is not a replay: memory that is kept belongs to a stream

    def __call__(self, batch: Batch) -> Tensor:
        shapes = [tensor.shape for tensor in batch]
        if shapes != self.shapes:
            self.shapes, self.graph, self.done = shapes, None, 0
        self.done += 1
        if self.done <= WARM_UP:
            return self._aside(batch)
        if self.graph is None:
            self._capture(batch)
        for ours, given in zip(self.batch, batch, strict=True):
            ours.copy_(given)
        self.graph.replay()
        return self.loss

    def _aside(self, batch: Batch) -> Tensor:
        """An ordinary step on the stream of the capture: what it allocates is then not bound to that of the others."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            loss = self.step(batch)
        torch.cuda.current_stream().wait_stream(self.stream)
        return loss

    def _capture(self, batch: Batch) -> None:
        self.batch, self.graph = Batch(*(tensor.clone() for tensor in batch)), torch.cuda.CUDAGraph()
        self.method.zero_grad()  # so that the graph owns the gradients, and writes instead of adding
        # Left to itself torch captures all graphs on one stream, whose matrix products share their workspace.
        with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
            self.loss = self.step(self.batch)
