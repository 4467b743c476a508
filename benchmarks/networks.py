"""ResNet-18 (224×224, batch 1): ternary in the engine, against onnxruntime's int8 (QDQ) and torch's float32.

All take turns; figures are the least and the median of one run (CPU time on one thread, else wall time). Beside them
the bytes of the file, and of memory: weights and intermediate results; onnxruntime's is what it adds to the process.

    OMP_NUM_THREADS=1 python benchmarks/networks.py --rounds 11
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from convolutions import interleaved
from peers import quantized_resnet18, runner
from safetensors.torch import save

import bitlab
from bitcore import BitQuantConfig
from bitmodels.resnet import BitResNetConfig, ResNet

SHAPE = (3, 224, 224)
TERNARY = BitQuantConfig(weight_granularity="per_channel", activation_dtype="int8", activation_scale="tracked")


def ternary_resnet18() -> torch.nn.Module:
    """Returns ResNet-18 with ternary weights; a few random images stand for training."""
    torch.manual_seed(0)
    model = bitlab.quantize(ResNet(BitResNetConfig()), TERNARY).train()
    with torch.no_grad():
        model(torch.randn(2, *SHAPE))
    return model.eval()


def resident() -> int:
    """Returns the bytes of memory that this process uses."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def file_bytes(model: torch.nn.Module) -> int:
    """Returns the size of the packed weights as a file."""
    bitlab.pack(model, inplace=True)
    return len(save(model.state_dict()))


def main() -> None:
    """Prints one JSON line a network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    x = torch.randn(1, *SHAPE)
    rival = quantized_resnet18(SHAPE[1])
    before = resident()
    onnxruntime = runner(rival, x.numpy(), options.threads)
    onnxruntime()
    memory = {"onnxruntime int8": resident() - before}
    model = ternary_resnet18()
    engine = bitlab.compile(model, SHAPE)
    memory["engine ternary"] = engine.weight_bytes + engine.arena_bytes
    plain = ResNet(BitResNetConfig()).eval()
    plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    floats = x.to(memory_format=torch.channels_last)
    memory["torch float32"] = 4 * sum(p.numel() for p in plain.parameters())
    files = {
        "engine ternary": file_bytes(model),
        "onnxruntime int8": rival.ByteSize(),
        "torch float32": memory["torch float32"],
    }
    cases: dict[str, Any] = {
        "engine ternary": lambda: engine(x),
        "onnxruntime int8": onnxruntime,
        "torch float32": torch.no_grad()(lambda: plain(floats)),
    }
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    for name, pair in interleaved(cases, options.rounds, clock).items():
        ms = [round(1e3 * t, 3) for t in pair]
        line = {"network": name, "threads": options.threads, "ms": ms, "file": files[name], "memory": memory[name]}
        print(json.dumps(line))  # noqa: T201


if __name__ == "__main__":
    main()
