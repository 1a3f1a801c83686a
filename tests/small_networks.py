"""A convolutional multi-exit network that compiles in seconds, for tests of training."""

from flax import linen as nn

from l2w_jax.models import MultiExitNetwork
from l2w_jax.models.initializers import torch_default
from l2w_jax.models.layers import ConvBNReLU, LayerOptions, parameter_dtype


class ConvNetwork(MultiExitNetwork):
    """Two exits, each a linear layer on the pooled output of one more strided convolution."""

    num_classes: int = 10

    def setup(self):
        options = LayerOptions(self.dtype, self.axis_name)
        dtype = parameter_dtype(self.dtype)
        init = torch_default(6)
        self.convolutions = [ConvBNReLU(6, 3, options, 2) for _ in range(2)]
        self.heads = [
            nn.Dense(
                self.num_classes, dtype=dtype, param_dtype=dtype, kernel_init=init, bias_init=init
            )
            for _ in range(2)
        ]

    @property
    def num_exits(self):
        return 2

    def init_carry(self, images, train):
        return images

    def stage_with_features(self, k, carry, train):
        for_head, carry = self.balance_gradients(k, self.convolutions[k](carry, train))
        pooled = for_head.mean(axis=(1, 2))
        return pooled, self.heads[k](pooled), carry
