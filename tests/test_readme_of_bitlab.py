"""The snippets of BitLab's README, word for word."""

# ruff: noqa: I001  (imports in the order of the README)

from __future__ import annotations

import torch


def test_configuration_and_kernel():
    from bitcore.config import BitQuantConfig
    from bitcore.kernels import KernelRegistry

    config = BitQuantConfig(
        activation_dtype='int8', activation_granularity='per_tensor', weight_granularity='per_tensor'
    )  # fmt: skip
    kernel = KernelRegistry.get_kernel_for_config(config)

    assert type(kernel).__name__ in KernelRegistry.list_available_kernels()
    assert kernel.has_cpp_backend is ("PortableLinear" in KernelRegistry.list_available_kernels())


def test_bitlinear():
    from bitcore.config import BitQuantConfig
    from bitlayers.bitlinear import BitLinear

    config = BitQuantConfig(
        activation_dtype='int8', activation_granularity='per_tensor', weight_granularity='per_tensor'
    )  # fmt: skip
    layer = BitLinear(in_features=512, out_features=256, bias=True, quant_config=config)
    x = torch.randn(32, 512)

    layer.train()
    output = layer(x)
    assert output.shape == (32, 256) and output.requires_grad

    layer.eval()
    output = layer(x)
    assert output.shape == (32, 256)

    assert layer.qweight.dtype == torch.int8
    assert torch.unique(layer.qweight).tolist() == [-1, 0, 1]


def test_a_module_of_ones_own():
    import torch.nn as nn
    from bitcore.config import BitQuantConfig
    from bitlayers.bitlinear import BitLinear

    class MyModel(nn.Module):
        def __init__(self, quant_config=None):
            super().__init__()
            self.fc1 = BitLinear(784, 256, quant_config=quant_config)
            self.relu = nn.ReLU()
            self.fc2 = BitLinear(256, 10, quant_config=quant_config)

        def forward(self, x):
            x = self.relu(self.fc1(x))
            return self.fc2(x)

    for config in (None, BitQuantConfig(activation_dtype='int8')):  # fmt: skip
        model = MyModel(config)
        assert model(torch.randn(4, 784)).shape == (4, 10)
        model.eval()
        assert model(torch.randn(4, 784)).shape == (4, 10)


def test_a_model_of_the_zoo():
    from bitmodels import AutoBitModel
    from bitmodels.mlp import BitMLPConfig

    config = BitMLPConfig(n_layers=3, in_channels=256, hidden_dim=128, out_channels=10, dropout=0.1)
    model = AutoBitModel.from_config(config)
    output = model(torch.randn(1, 256))

    assert output.shape == (1, 10)
