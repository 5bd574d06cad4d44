"""Export: a retrofitted net as one file for other runtimes, checked against torch before it is
kept.

`.pt2` is torch.export's own format, `.onnx` is for onnxruntime and everything else (extra `onnx`).
Both take batches of any size. The ONNX exporter writes a jump as LessOrEqual + Where; ONNX has the
same function as one operator, ThresholdedRelu, and it is put in its place. The two differ in a NaN,
which ThresholdedRelu turns into 0, so whoever feeds NaN to the file does not see it again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from retroact.doors import named
from retroact.files import replacing
from retroact.ground import neutral
from retroact.retrofitting.copying import deep_copy
from retroact.retrofitting.examples import Example, Inputs, example_for
from retroact.retrofitting.watching import trial
from retroact.spec import CallError

CHUNK = 256

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Exported:
    """What was written, and how it compares with torch on `n` inputs.

    `max_difference` is the largest |difference| of any logit, `agreement` the share of inputs with
    the same argmax.
    """

    path: Path
    n: int
    max_difference: float
    agreement: float


@neutral()
def export(
    net: str | os.PathLike[str] | nn.Module,
    path: str | Path,
    example: Example | None = None,
    *,
    images: Tensor | None = None,
) -> Exported:
    """Writes the net in eval mode to a `.pt2` or `.onnx` file and compares the two on `images`.

    `example` is an input or a tuple of inputs, needed where the net has no `shape`; `images`, shape
    (n, …), in the net's own units (pixels in [0,1] for a classifier), are the example where none
    are given. The file takes any batch size; it is written whole or not at all. Raises ValueError
    for no images, another suffix and for a dtype that ONNX's runtime lacks, ImportError (with what
    to install) where ONNX is missing, and what torch's exporter raises.
    """
    path = Path(path)
    writers = {".pt2": (_write_pt2, _run_pt2), ".onnx": (_write_onnx, _run_onnx)}
    if path.suffix not in writers:
        raise CallError(f"expected a file that ends in .pt2 or .onnx, got {str(path)!r}")
    net = cast(nn.Module, named(net))
    if path.suffix == ".onnx":
        _require_onnx()
        if any(p.dtype is torch.bfloat16 for p in net.parameters()):
            raise ValueError(
                "ONNX files are checked with numpy, which has no bfloat16; export net.float(), or a"
                " .pt2"
            )
    if images is not None and not len(images):
        raise ValueError(
            "expected at least one of images= to compare on, got none; leave it out to compare on"
            " noise"
        )
    write, run = writers[path.suffix]
    inputs = tuple(i.cpu() if isinstance(i, Tensor) else i for i in example_for(net, example))
    ours = deep_copy(net).eval().cpu()
    with replacing(path) as draft, trial(), _silence():
        write(ours, inputs, draft)
        checked = inputs if images is None else (images.cpu().to(_dtype(inputs[0])),)
        difference, agreement = _compare(ours, run(draft), checked)
    return Exported(path, len(checked[0]), difference, agreement)


def _dtype(example: object) -> torch.dtype | None:
    return example.dtype if isinstance(example, Tensor) and example.is_floating_point() else None


def _compare(ours: nn.Module, theirs: Callable[..., Tensor], inputs: Inputs) -> tuple[float, float]:
    """The largest difference of any logit, and the share of inputs with the same argmax."""
    differences, same, n = [0.0], 0, len(inputs[0])
    for start in range(0, n, CHUNK):
        chunk = tuple(i[start : start + CHUNK] if isinstance(i, Tensor) else i for i in inputs)
        expected, logits = ours(*chunk), theirs(*chunk)
        differences.append(float((logits - expected).abs().max()))
        same += int((logits.argmax(1) == expected.argmax(1)).sum())
    return max(differences), same / n


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The exporters report their progress, and what they do without, on every channel there is."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _any_batch(inputs: Inputs) -> tuple[object, ...]:
    batch = torch.export.Dim("batch")
    return tuple({0: batch} if isinstance(i, Tensor) else None for i in inputs)


# ------------------------------------------------------------------------------------- torch.export


def _write_pt2(net: nn.Module, inputs: Inputs, path: Path) -> None:
    torch.export.save(torch.export.export(net, inputs, dynamic_shapes=_any_batch(inputs)), path)


def _run_pt2(path: Path) -> Callable[..., Tensor]:
    loaded: Callable[..., Tensor] = torch.export.load(path).module()
    return loaded


# --------------------------------------------------------------------------------------------- ONNX


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as e:
        raise ImportError(f'exporting to ONNX needs {e.name}: pip install "retroact[onnx]"') from e


def _write_onnx(net: nn.Module, inputs: Inputs, path: Path) -> None:
    import onnx

    torch.onnx.export(
        net,
        inputs,
        path,
        dynamo=True,
        dynamic_shapes=_any_batch(inputs),
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )
    model = onnx.load(path)
    with_thresholded_relu(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _run_onnx(path: Path) -> Callable[..., Tensor]:
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as Lacking

    # from the bytes: a system that locks open files could not rename the draft of a session that
    # has it open
    try:
        session = onnxruntime.InferenceSession(
            path.read_bytes(), providers=["CPUExecutionProvider"]
        )
    except Lacking as e:
        raise ValueError(
            f"onnxruntime lacks an operator in the net's dtype ({e}); export net.float(), or a .pt2"
        ) from e
    names = [i.name for i in session.get_inputs()]

    def run(*inputs: object) -> Tensor:
        tensors = [i for i in inputs if isinstance(i, Tensor)]
        fed = {name: i.numpy() for name, i in zip(names, tensors, strict=True)}
        return torch.from_numpy(session.run(None, fed)[0])

    return run


def with_thresholded_relu(model: Any) -> int:
    """Rewrites every Where(z <= κ, 0, z) of an ONNX model to ThresholdedRelu(κ), in place; says how
    many.

    Only in float32 and for κ ≥ 0: onnxruntime has the operator for nothing else.
    """
    from onnx import helper

    graph, constants = model.graph, _constants(model.graph)
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(output.name for output in graph.output)
    compared = {
        n.output[0]: n for n in graph.node if n.op_type == "LessOrEqual" and uses[n.output[0]] == 1
    }
    wheres = [n for n in graph.node if n.op_type == "Where" and n.input[0] in compared]
    jumps = [
        (n, compared[n.input[0]]) for n in wheres if _is_jump(n, compared[n.input[0]], constants)
    ]
    for where, compare in jumps:
        kappa, z = float(constants[compare.input[1]]), where.input[2]
        where.CopyFrom(
            helper.make_node("ThresholdedRelu", [z], where.output, name=where.name, alpha=kappa)
        )
        graph.node.remove(compare)
    _drop_unused(graph)
    return len(jumps)


def _drop_unused(graph: Any) -> None:
    used = {name for node in graph.node for name in node.input}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)


def _is_jump(where: Any, compare: Any, constants: Mapping[str, Array]) -> bool:
    kappa, zero = constants.get(compare.input[1]), constants.get(where.input[1])
    if kappa is None or zero is None or compare.input[0] != where.input[2]:
        return False
    numbers = kappa.size == zero.size == 1 and str(kappa.dtype) == str(zero.dtype) == "float32"
    return bool(numbers and float(kappa) >= 0.0 and float(zero) == 0.0)


def _constants(graph: Any) -> dict[str, Array]:
    """The numbers that stand in an ONNX graph, by name."""
    from onnx import numpy_helper

    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return constants
