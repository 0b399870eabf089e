"""Errors while a checkpoint is read: only errors of the checkpoint itself may advise to delete it."""

from __future__ import annotations

import errno

import pytest
import torch

from fgrpo.training.checkpoints import WrongCheckpoint, _reading


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        PermissionError(errno.EACCES, "Permission denied", "optimizer.pt"),
        OSError(errno.EIO, "Input/output error", "optimizer.pt"),
        OSError(errno.ESTALE, "Stale file handle", "optimizer.pt"),
    ],
)
def test_the_machines_faults_are_not_the_checkpoints(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, _reading("checkpoint-2"):
        raise error
    assert raised.value is error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("PytorchStreamReader failed reading zip archive"),
        FileNotFoundError(errno.ENOENT, "No such file", "optimizer.pt"),
        OSError("no file named model.safetensors"),
        OSError(errno.EINVAL, "Invalid argument"),  # torch's, of a file that is too short to look for its end in
        EOFError(),
    ],
)
def test_a_broken_checkpoint_is_reported_as_broken(error: Exception) -> None:
    with (
        pytest.raises(WrongCheckpoint, match=r"cannot resume from checkpoint-2 .*delete that folder"),
        _reading("checkpoint-2"),
    ):
        raise error
