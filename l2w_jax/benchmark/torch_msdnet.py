"""MSDNet in PyTorch, to be timed beside ours: its modules are named as in the files of
`l2w_jax.interop.export_torch`, whose tensors it takes. Needs PyTorch (the extra `torch`).

Features are [N, C, H, W] here.
"""

import itertools
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from l2w_jax.models import MSDNet
from l2w_jax.models.msdnet import LayerPlan

Scales = tuple[Tensor, ...]


class _Net(nn.Module):
    """Convolutions, each with batch norm and ReLU, one after the other."""

    def __init__(self, *convolutions: nn.Conv2d):
        super().__init__()
        self.net = nn.Sequential(*_with_norms(convolutions))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def _with_norms(convolutions: tuple[nn.Conv2d, ...]) -> list[nn.Module]:
    return [
        layer
        for convolution in convolutions
        for layer in (convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True))
    ]


def _convolution(width_in: int, width: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width_in, width, size, stride, size // 2, bias=False)


class _FirstLayer(nn.Module):
    """All scales of the image, each a 3x3 convolution of stride 2 of the one before."""

    def __init__(self, widths: list[int], stem: str):
        super().__init__()
        if stem == "cifar":
            first: nn.Module = _Net(_convolution(3, widths[0], 3))
        else:
            convolution = nn.Conv2d(3, widths[0], 7, 2, 3)
            first = nn.Sequential(*_with_norms((convolution,)), nn.MaxPool2d(3, 2, 1))
        coarser = [
            _Net(_convolution(width_in, width, 3, 2))
            for width_in, width in itertools.pairwise(widths)
        ]
        self.layers = nn.ModuleList([first, *coarser])

    def forward(self, features: Scales) -> Scales:
        (x,) = features
        outputs = []
        for layer in self.layers:
            x = layer(x)
            outputs.append(x)
        return tuple(outputs)


class _Extension(nn.Module):
    """What a layer adds to one scale: a normal branch and, below a finer scale, a down branch."""

    def __init__(self, width_in: int, width: int, factor: int, finer: tuple[int, int] | None):
        super().__init__()
        if finer is not None:
            width //= 2
            finer_width, finer_factor = finer
            self.conv_down = self._branch(finer_width, width, finer_factor, 2)
        self.conv_normal = self._branch(width_in, width, factor, 1)

    @staticmethod
    def _branch(width_in: int, width: int, factor: int, stride: int) -> _Net:
        narrow = min(width_in, factor * width)
        return _Net(_convolution(width_in, narrow, 1), _convolution(narrow, width, 3, stride))

    def forward(self, x: Tensor, finer: Tensor | None) -> Tensor:
        if finer is None:
            return torch.cat([x, self.conv_normal(x)], dim=1)
        return torch.cat([x, self.conv_down(finer), self.conv_normal(x)], dim=1)


class _Layer(nn.Module):
    """One layer: the coarsest scales that are kept, each extended."""

    def __init__(self, model: MSDNet, plan: LayerPlan, widths: list[int]):
        super().__init__()
        self.dropped = plan.scales_in - plan.scales_out
        first = model.num_scales - plan.scales_out
        extensions = []
        for scale in range(first, model.num_scales):
            reads_finer = scale > first or self.dropped
            finer = (widths[scale - 1], model.bottleneck_factors[scale - 1])
            extensions.append(
                _Extension(
                    widths[scale],
                    model.growth_rate * model.growth_factors[scale],
                    model.bottleneck_factors[scale],
                    finer if reads_finer else None,
                )
            )
        self.layers = nn.ModuleList(extensions)

    def forward(self, features: Scales) -> Scales:
        finer = (None, *features)[self.dropped :]
        kept = features[self.dropped :]
        return tuple(
            layer(x, y) for layer, x, y in zip(self.layers, kept, finer[: len(kept)], strict=True)
        )


class _Transition(nn.Module):
    """A 1x1 convolution, batch norm and ReLU at every scale."""

    def __init__(self, widths_in: list[int], widths: list[int]):
        super().__init__()
        pairs = zip(widths_in, widths, strict=True)
        self.m = nn.ModuleList([_Net(_convolution(*pair, 1)) for pair in pairs])

    def forward(self, features: Scales) -> Scales:
        return tuple(layer(x) for layer, x in zip(self.m, features, strict=True))


class _Classifier(nn.Module):
    """Two 3x3 convolutions of stride 2, a 2x2 average pool, a linear layer."""

    def __init__(self, width_in: int, stem: str, num_classes: int):
        super().__init__()
        width = 128 if stem == "cifar" else width_in
        convolutions = _convolution(width_in, width, 3, 2), _convolution(width, width, 3, 2)
        self.m = nn.Sequential(*map(_Net, convolutions), nn.AvgPool2d(2))
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.m(x).flatten(1))


class TorchMSDNet(nn.Module):
    """The network of `model`, in evaluation mode: blocks, and a classifier after each."""

    def __init__(self, model: MSDNet):
        super().__init__()
        widths = [model.channels * factor for factor in model.growth_factors]
        blocks, classifiers = [], []
        for k, plans in enumerate(model.block_plans):
            modules: list[nn.Module] = [_FirstLayer(widths, model.stem)] if k == 0 else []
            for plan in plans:
                modules.append(_Layer(model, plan, widths))
                widths = [
                    width + model.growth_rate * factor
                    for width, factor in zip(widths, model.growth_factors, strict=True)
                ]
                if plan.transition_width is not None:
                    narrow = [plan.transition_width * factor for factor in model.growth_factors]
                    kept = slice(model.num_scales - plan.scales_out, None)
                    modules.append(_Transition(widths[kept], narrow[kept]))
                    widths = narrow
            blocks.append(nn.Sequential(*modules))
            classifiers.append(_Classifier(widths[-1], model.stem, model.num_classes))
        self.blocks, self.classifier = nn.ModuleList(blocks), nn.ModuleList(classifiers)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[N, 3, H, W] -> the logits [N, C] of every exit."""
        features, logits = (images,), []
        for block, classifier in zip(self.blocks, self.classifier, strict=True):
            features = block(features)
            logits.append(classifier(features[-1]))
        return logits


class EarlyExits:
    """A TorchMSDNet on stored images, stopping early.

    Attributes:
        thresholds: T_k [K] of `rules.log_odds`.
    """

    def __init__(
        self,
        model: MSDNet,
        tensors: Mapping[str, NDArray],
        mean: NDArray[np.float32],
        deviation: NDArray[np.float32],
        memory_format: torch.memory_format,
    ):
        """`tensors` are from `interop.variables_to_torch`; mean and deviation [3] are of pixels."""
        network = TorchMSDNet(model)
        network.load_state_dict({name: torch.tensor(array) for name, array in tensors.items()})
        self._network = network.to(memory_format=memory_format)
        self._memory_format = memory_format
        self._mean, self._deviation = (
            torch.tensor(of_channels)[:, None, None] for of_channels in (mean, deviation)
        )
        self.thresholds: NDArray[np.float32] | None = None

    def _prepared(self, images: NDArray[np.uint8]) -> Tensor:
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        return ((x - self._mean) / self._deviation).contiguous(memory_format=self._memory_format)

    @torch.inference_mode()
    def full_network(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[N, H, W, 3] -> probabilities [K, N, C]."""
        return torch.stack(self._network(self._prepared(images))).softmax(-1).numpy()

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """[N, H, W, 3] -> labels and exits, from 0, [N]."""
        labels, exits = np.zeros((2, len(images)), np.int64)
        features, left = (self._prepared(images),), np.arange(len(images))
        stages = zip(self._network.blocks, self._network.classifier, strict=True)
        for k, (block, classifier) in enumerate(stages):
            features = block(features)
            logits = classifier(features[-1])
            labels[left], exits[left] = logits.argmax(-1), k
            if k == len(self.thresholds) - 1:
                break
            best = logits.argmax(-1, keepdim=True)
            others = logits.scatter(-1, best, -torch.inf).logsumexp(-1)
            log_odds = logits.gather(-1, best)[:, 0] - others
            stay = np.flatnonzero(log_odds.numpy() < self.thresholds[k])
            if not stay.size:
                break
            if stay.size < left.size:
                left, features = left[stay], tuple(x[stay] for x in features)
        return labels, exits
