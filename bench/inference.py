"""What a retrofit costs at inference: CPU time over that of the ReLU net, measured in pairs.

    python bench/inference.py

Prints a markdown table. The two nets of a row run alternately in one process on one thread, each
for `--rounds` rounds; a ratio is the median over rounds of CPU seconds of one over those of the
other, so that what else happens on the machine meets both. The row "ReLU" against a copy of itself
shows the noise.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

from retroact.activations.piecewise import JumpReLU, SReLU
from retroact.nets.lenet_like import LeNetLike
from retroact.nets.resnet20 import ResNet20
from retroact.retrofitting.export import export
from retroact.retrofitting.folding import fold
from retroact.retrofitting.surgery import retrofit

NETS = {"LeNet": (LeNetLike, (1, 28, 28), 128), "ResNet-20": (ResNet20, (3, 32, 32), 32)}
Pass = Callable[[], object]


def main() -> None:
    args = _arguments()
    torch.set_num_threads(1)
    print(
        f"CPU time over that of the ReLU net, median of {args.rounds} alternated rounds, one"
        " thread\n"
    )
    print("| net | batch | runtime | ReLU again | JumpReLU(0.5) | SReLU(10) | SReLU(10), folded |")
    print("|---|---|---|---|---|---|---|")
    for name, (net, shape, batch) in NETS.items():
        torch.manual_seed(0)
        bare, images = net()().eval(), torch.rand(batch, *shape)
        variants = _variants(bare, images)
        for runtime, passes in (("torch", _in_torch), ("onnxruntime", _in_onnxruntime)):
            reference = passes(bare, images)
            ratios = [
                (
                    "-"
                    if variant is None
                    else f"{_ratio(passes(variant, images), reference, args.rounds):.3f}"
                )
                for variant in variants
            ]
            print(f"| {name} | {batch} | {runtime} | {' | '.join(ratios)} |", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=200)
    return parser.parse_args()


def _variants(bare: nn.Module, images: Tensor) -> list[nn.Module | None]:
    jumped = retrofit(bare, JumpReLU(0.5), example=images[:2])
    sloped = retrofit(bare, SReLU(10.0), example=images[:2])
    try:
        folded = fold(sloped)
    except ValueError:  # skips do not fold
        folded = None
    return [bare, jumped, sloped, folded]


def _in_torch(net: nn.Module, images: Tensor) -> Pass:
    def once() -> object:
        with torch.inference_mode():
            return net(images)

    return once


def _in_onnxruntime(net: nn.Module, images: Tensor) -> Pass:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        done = export(net, Path(folder) / "net.onnx", images[:2])
        session = onnxruntime.InferenceSession(
            done.path.read_bytes(), options, providers=["CPUExecutionProvider"]
        )
    fed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, fed)


def _ratio(one: Pass, other: Pass, rounds: int) -> float:
    # about 20 ms a round, so that the clock is fine enough
    repeats = max(1, round(0.02 / _seconds(other, 3)))
    pairs = [(_seconds(one, repeats), _seconds(other, repeats)) for _ in range(rounds)]
    return statistics.median(a / b for a, b in pairs)


def _seconds(run: Pass, repeats: int) -> float:
    run()
    begin = time.process_time()
    for _ in range(repeats):
        run()
    return (time.process_time() - begin) / repeats


if __name__ == "__main__":
    main()
