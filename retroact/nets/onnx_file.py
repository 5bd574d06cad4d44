"""A network that is an ONNX file: it answers with scores and has no gradient.

net = ra.load("deployed.onnx")
ra.audit(trained, net, data, threat)                  # is the deployed form easier to fool?
ra.evaluate(net, data, attack, threat, source=trained)  # gradients of the net it was made from
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retroact.nets.classifier import Classifier


class OnnxNetwork(nn.Module):
    """Runs the bytes of an ONNX file, with one input and its first output, on one thread of the
    CPU. ImportError (with what to install) where there is no onnxruntime, ValueError for what it
    does not read.

    A file that takes batches of one fixed size is asked in batches of that size.
    """

    sha256: Tensor

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self._content, self._session = content, None
        digest = hashlib.sha256(content).digest()
        # what names the network where its weights are asked for
        self.register_buffer("sha256", torch.frombuffer(bytearray(digest), dtype=torch.uint8))

    @property
    def shape(self) -> tuple[int, ...] | None:
        """That of one example, where the file says it."""
        sizes = self._input().shape[1:]
        return tuple(sizes) if sizes and all(isinstance(s, int) for s in sizes) else None

    def forward(self, x: Tensor) -> Tensor:
        given = x.detach().cpu().numpy().astype(_DTYPES.get(self._input().type, np.float32))
        size = self._input().shape[0] if self._input().shape else None
        parts = _in_batches(given, size) if isinstance(size, int) else [given]
        answers = [self._run(part) for part in parts]
        return torch.from_numpy(np.concatenate(answers)[: len(given)]).to(x.device)

    def _run(self, part: np.ndarray[Any, Any]) -> Any:
        return self._opened().run(None, {self._input().name: part})[0]

    def _input(self) -> Any:
        inputs = self._opened().get_inputs()
        if len(inputs) != 1:
            names = ", ".join(i.name for i in inputs)
            raise ValueError(f"expected an ONNX file with one input, got {len(inputs)}: {names}")
        return inputs[0]

    def _opened(self) -> Any:
        if self._session is None:
            self._session = _open(self._content)
        return self._session

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}  # a session does not travel, nor is it copied


_DTYPES = {"tensor(float16)": np.float16, "tensor(double)": np.float64}


def _in_batches(x: np.ndarray[Any, Any], size: int) -> list[np.ndarray[Any, Any]]:
    """Parts of so many rows each; the last is filled up with its last row."""
    lacking = -len(x) % size
    filled = np.concatenate([x, np.repeat(x[-1:], lacking, axis=0)])
    return np.split(filled, len(filled) // size)


def _open(content: bytes) -> Any:
    try:
        import onnxruntime
    except ImportError as e:
        raise ImportError(f'an ONNX file needs {e.name}: pip install "retroact[onnx]"') from e
    how = onnxruntime.SessionOptions()
    how.intra_op_num_threads = how.inter_op_num_threads = 1
    how.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(content, how, providers=["CPUExecutionProvider"])
    except Exception as e:  # onnxruntime has a class for each way to fail
        raise ValueError(f"this is no ONNX file that onnxruntime reads: {str(e)[:300]}") from e


def read(path: Path, shape: tuple[int, ...] | None = None) -> Classifier:
    """The network in a file. Its normalisation, if any, is the file's own: it takes what it was
    exported with, pixels in [0,1] where it was a classifier. FileNotFoundError where there is
    none."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; expected a network that was exported to ONNX")
    net = OnnxNetwork(path.read_bytes())
    return Classifier(net, shape=net.shape or shape, name=path.stem)
