"""Checkpoints: whatever bits of a file change, it is refused, or says what it said."""

from pathlib import Path

import numpy as np
import torch

from bitcore.errors import BitLabError
from bittrain.checkpoint import AtomicCheckpointIO, load_checkpoint


def test_a_flipped_bit_changes_nothing_or_is_found(tmp_path: Path) -> None:
    path, weights = tmp_path / "last.ckpt", torch.randn(40, 30)
    content = {"bitlab": {"model": "mlp", "epoch": 3}, "state_dict": {"weight": weights, "bias": torch.arange(7)}}
    AtomicCheckpointIO().save_checkpoint(content, path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    found = 0
    for place in rng.choice(len(whole), 500, replace=False):
        altered = bytearray(whole)
        altered[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(altered)
        try:
            loaded = load_checkpoint(path)
        except BitLabError:
            found += 1
            continue
        assert loaded["bitlab"] == content["bitlab"], place
        for name, tensor in content["state_dict"].items():
            assert torch.equal(loaded["state_dict"][name], tensor), place
    assert found > 300
