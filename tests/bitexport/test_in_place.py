"""What changes in place, and other spellings of one operation: the same graph as the plain spelling, or refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitcore.errors import BitLabError
from bitcore.presets import PRESETS
from bitexport import lower
from bitexport.calls import ARITHMETIC, MODULE_OF
from bitlayers import quantize
from bitlayers.flow import follow
from bitlayers.signs import Sign

STATIC = PRESETS["mcu-4bitsym-static"].replace(activation_dtype="int8")
SHAPE = (2, 4, 4)


class Net(nn.Module):
    """A convolution, a body that is given, a linear layer."""

    def __init__(self, body: str) -> None:
        super().__init__()
        self.conv, self.other, self.act = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 1), nn.ReLU(inplace=True)
        self.norm, self.fc, self.small = nn.BatchNorm2d(3), nn.Linear(48, 5), nn.Linear(3, 5)
        self.conv2 = nn.Conv2d(6, 3, 1)
        self.pooled = "pool" in body
        self.body = compile(body, "<body>", "exec")

    def forward(self, x: Tensor) -> Tensor:
        names = {"h": self.conv(x), "x": x, "m": self, "F": F, "torch": torch}
        exec(self.body, names)
        h: Tensor = names["h"]  # type: ignore[assignment]
        return (self.small if self.pooled else self.fc)(h.flatten(1))


def network(body: str) -> nn.Module:
    torch.manual_seed(0)
    model = quantize(Net(body), STATIC)
    with torch.no_grad():
        model(torch.randn(16, *SHAPE))
    return model.eval()


X = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(1))
# spelling: the plain one
SAME = {
    "h.relu_()": "h = h.relu()",
    "torch.relu_(h)": "h = h.relu()",
    "F.relu(h, inplace=True)": "h = h.relu()",
    "F.relu(h, True)": "h = h.relu()",
    "m.act(h)": "h = h.relu()",
    "h.clamp_(-0.5, 0.25)": "h = h.clamp(-0.5, 0.25)",
    "h *= 0.5": "h = h * 0.5",
    "h.mul_(0.5)": "h = h * 0.5",
    "h.div_(2)": "h = h * 0.5",
    "h -= 0.25": "h = h - 0.25",
    "i = h; h.relu_(); h = i": "h = h.relu()",
    "i = h.detach(); h.relu_(); h = i": "h = h.relu()",
    "v = h.view(h.size(0), -1); h.relu_(); h = v": "h = h.relu()",
    "v = h.unsqueeze(-1); h.relu_(); h = v.squeeze(-1)": "h = h.relu()",
    "i = h; h += m.other(x); h = h + i": "h = h + m.other(x); h = h + h",
    "h.add_(m.other(x))": "h = h + m.other(x)",
    "h.sub_(m.other(x))": "h = h - m.other(x)",
    "h.copy_(m.other(x)).relu_()": "h = m.other(x).relu()",
    "before = h + 0.5; h.relu_(); h = before": "h = h + 0.5",
    "n = h.shape[1]; k = n; k += 1; h = h.view(-1, n, 4, 4)": "pass",
    "h = m.other(x); h.relu_(); dead = m.fc(h.flatten(1))": "h = m.other(x).relu()",
    "h = h.clamp_max(0.5).clamp_min(0.1)": "h = h.clamp(0.1, 0.5)",
    "h = h.clamp(0.5, 0.25)": "h = h.clamp(0.25, 0.25)",
    "h = F.elu(input=h)": "h = F.elu(h)",
    "h = 0.25 * h / 2": "h = h * 0.125",
    "h = m.conv2(torch.cat(tensors=(h, m.other(x)), axis=1))": "h = m.conv2(torch.cat([h, m.other(x)], 1))",
    "h = torch.add(input=h, other=m.other(x))": "h = h + m.other(x)",
    "h = F.adaptive_avg_pool2d(h, 1)[:, :, 0, 0]": "h = F.adaptive_avg_pool2d(h, 1).flatten(1)",
    "h = F.adaptive_avg_pool2d(h, 1)[..., 0, -1]": "h = F.adaptive_avg_pool2d(h, 1).flatten(1)",
    "h = F.adaptive_avg_pool2d(h, 1).squeeze(-1).squeeze(-1)": "h = F.adaptive_avg_pool2d(h, 1).flatten(1)",
    "h = F.adaptive_avg_pool2d(h, 1).squeeze()": "h = F.adaptive_avg_pool2d(h, 1).flatten(1)",
    "h = h.reshape(-1, h.shape[1] * h.shape[2] * h.size(3))": "h = h.flatten(1)",
    "b = m.norm; h = F.batch_norm(h, b.running_mean, b.running_var, b.weight, b.bias, m.training)": "h = m.norm(h)",
    "h = F.silu(h, inplace=True)": "h = F.silu(h)",
}


@pytest.mark.parametrize("body", SAME)
def test_the_graph_is_that_of_the_plain_spelling(body: str) -> None:
    model, plain = network(body), network(SAME[body])
    graph, other = lower(model, SHAPE), lower(plain, SHAPE)
    codes = graph.input.quantize(X)
    assert np.array_equal(graph.run(codes), other.run(codes))
    assert graph.output_scale == other.output_scale
    with torch.no_grad():
        expected = model(X)
    got = torch.from_numpy(graph.run(codes)) * (graph.output_scale or 0)
    assert (got - expected).norm() < 0.05 * expected.norm()


REFUSED = {
    "v = h.flatten(1); h.relu_(); h = v": "'relu_': it changes in place what 'flatten', which is read later, may share",
    "v = h[:, :2]; v.relu_()": "'relu_': it changes in place what 'conv', which is read later, may share",
    "h[:, 0] = 0": "'setitem' has no integer operation",
    "t = h.mT; t += 1": "'iadd': it changes in place what 'conv', which is read later",
    "torch.add(h, 1, out=h)": "'add' has no integer operation",
    "h = F.hardtanh(h, 1, -1)": "'hardtanh' with arguments that integer graphs do not know: max_val",
}


@pytest.mark.parametrize("body", REFUSED)
def test_what_cannot_be_followed_is_refused(body: str) -> None:
    model = network("pass")
    model.body = compile(body, "<body>", "exec")  # type: ignore[assignment]
    with pytest.raises(BitLabError) as caught:
        lower(model, SHAPE)
    assert REFUSED[body] in str(caught.value)


@pytest.mark.parametrize("call", [call for call in (*MODULE_OF, *ARITHMETIC) if isinstance(call, str)])
def test_methods_are_methods_of_tensors_and_known_in_place_too(call: str) -> None:
    assert hasattr(Tensor, call)
    if hasattr(Tensor, f"{call}_") and not call.endswith("_"):
        assert f"{call}_" in {*MODULE_OF, *ARITHMETIC}


class Chain(nn.Module):
    """Two layers, and between them a body that is given."""

    def __init__(self, body: str) -> None:
        super().__init__()
        self.conv, self.fc = nn.Linear(4, 4), nn.Linear(4, 4)
        self.body = compile(body, "<body>", "exec")

    def forward(self, x: Tensor) -> Tensor:
        values = {"h": self.conv(x), "torch": torch}
        exec(self.body, values)
        return self.fc(values["h"])


N, C, U = Sign.NEVER, Sign.CAN, Sign.UNKNOWN


@pytest.mark.parametrize(
    ("body", "by_code", "by_example"),
    [
        ("h = h.relu()", N, N),
        ("h.relu_()", N, N),
        ("h = h.relu(); h -= 1", C, C),
        ("h = h.relu(); i = h; i.sub_(1)", C, C),
        ("h = h.relu(); v = h.view(h.shape); v -= 1; h = v", C, C),
        ("before = h + 1; h.relu_(); h = before", C, C),
        ("v = h.view(h.shape); h.relu_(); h = v", N, N),
        ("v = h.reshape(h.shape); h.relu_(); h = v", C, N),  # a view or a copy
        ("h = h.relu(); v = h.reshape(h.shape); h -= 1; h = v", C, C),
        ("h = h.relu(); v = h.reshape(h.shape); h -= 1; v.relu_()", C, N),
        ("v = h.reshape(h.shape); h.relu_(); v.relu_()", N, N),
        ("h = h.relu(); v = h[:, :2]; v -= 1", C, C),  # a part
        ("v = h[:, :2]; v.relu_()", C, C),
        ("h = h.relu(); v = h[:, :2]; w = h[:, 2:]; v -= 1; w.relu_(); h = torch.cat([v, v], 1)", C, C),
        ("h = h.relu(); v = h[:, [0, 1, 2, 3]]; h -= 1; h = v", N, N),  # a copy
        ("v = h[:, [0, 1, 2, 3]]; h.relu_(); h = v", C, C),
        ("h = h.relu(); v = h.abs(); h -= 1; h = v", N, N),
        ("h = h.relu(); h[:, 0] = -1", U, U),
        ("h = h.relu(); v = h.reshape(h.shape); h[:, 0] = -1; h = v", U, U),
        ("h = h.relu(); torch.sub(h, 1, out=h)", C, C),
        ("h = h.relu(); v = h.view(h.shape); torch.sub(h, 1, out=h); h = v", C, C),
    ],
)
def test_the_sign_of_what_a_layer_reads_is_that_behind_the_change(body: str, by_code: Sign, by_example: Sign) -> None:
    model = Chain(body)
    for example, sign in ((None, by_code), (torch.randn(2, 4), by_example)):
        flow = follow(model, [model.conv, model.fc], example)
        assert not flow.problem
        assert flow.sign((model.fc, "")) is sign
