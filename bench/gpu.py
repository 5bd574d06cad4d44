"""What takes a GPU, a stage a call: `bash bench/gpu.sh STAGE` (docs/performance.md, "On a GPU").

    tests-and-bench   checks of the device against the CPU, and how fast attacks and training are on
                      it, as JSON
    attacks-and-audit attacks beside those of torchattacks, foolbox and other peers that are
                      installed, and an audit of 1000 images (bench/gpu_attacks.py)
    NAME              trains that network of the zoo at full resolution: one of TRAININGS

Needs torch, numpy, safetensors and Pillow, the checkout, and the file that bench/gpu_pack.py
writes. Outputs go to the folder $OUT, bench/out by default, none larger than 16 MiB. A stage stops
by itself after `--minutes`; a training that was not done by then leaves
NAME.checkpoint.safetensors, and goes on from it where it finds it in $OUT or `--before`. `--toy`
runs the same code on a few images for two epochs, on a CPU and with no data at hand.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import platform
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gpu_attacks
import numpy as np
import safetensors
import safetensors.torch
import torch
from gpu_checks import checks
from gpu_pack import PACK, Rows, pack, unpacked
from PIL import Image
from torch import nn

import retroact as ra
from retroact.evaluation.proof import prove_for
from retroact.nets.zoo import NETWORKS
from retroact.training.fit import Progress, UnfinishedError, fit
from retroact.training.recipes import RECIPES, Recipe, Standard
from retroact.training.resuming import FILE
from retroact.training.train import checkpoints_of, train_on

LIMIT = 16 * 2**20
"""Bytes of the largest output."""
RESERVE = 45.0
"""Seconds that are kept for measuring and writing a trained network."""

# Reckoned for an H100, not measured: convolutions of these widths at a seventh of its 800 TFLOP/s
# in bf16; 2.5 TB/s, and some 45 bytes of traffic for each number of a map (written, normalised,
# activated, and the passes back); 48,983 images an epoch. `tests-and-bench` times a step of each
# and foretells its minutes.
# WideResNet   1.19 G multiply-adds an image, three passes: 0.35 PFLOP an epoch, 3.2 s (1.4 M
# numbers: 1.3 s) its twin     0.6 of a batch twice more: 0.49 PFLOP, 4.5 s
# MobileNetV2  1.7 M numbers an image: 3.8 TB, 1.6 s at best; depthwise convolutions are slow, so 6
# s (0.03 PFLOP) its twin     1.4 times as much: 8 s
# ResNet-18/2  0.14 G multiply-adds, 23 passes: 0.31 PFLOP, 2.9 s; 0.3 M numbers, 11.5 times: 3 s;
# 1,045 passes of some 180 kernels, launched one by one: 3 s. They overlap in part, so 6 s So 50
# epochs of WideResNet take 3 of the 8 minutes, 40 of its twin 3, 40 of MobileNetV2 4, 30 of its
# twin 4, 40 of the last 4; the rest is for what was reckoned wrong. The rate of 0.4 for batches of
# 512 is that of 0.1 for 128.
_LARGE = Standard(epochs=50, lr=0.4, batch=512, augment=True, bf16=True, channels_last=True)
TRAININGS: dict[str, Recipe] = {
    "wideresnet-cifar10": _LARGE,
    "wideresnet-cifar10-robust": replace(
        RECIPES["wideresnet-cifar10-robust"], standard=replace(_LARGE, epochs=40)
    ),  # type: ignore[type-var]
    "mobilenetv2-cifar10": replace(_LARGE, epochs=40),
    "mobilenetv2-cifar10-robust": replace(
        RECIPES["mobilenetv2-cifar10-robust"], standard=replace(_LARGE, epochs=30)
    ),  # type: ignore[type-var]
    "preactresnet18-cifar10-robust": RECIPES["preactresnet18-cifar10-robust"],
}
"""The robust ones see the zoo's mixed batches, from scratch; the last is of the zoo's own recipe,
PGD at 8/255."""

Splits = tuple[ra.Images, ra.Images, ra.Images]


@dataclass(frozen=True)
class Stage:
    """What a stage is given: the splits, where to compute, where to write, and until when."""

    splits: Splits
    device: str
    out: Path
    before: Path
    until: float
    toy: bool

    @property
    def left(self) -> float:
        """Seconds until the stage must end."""
        return self.until - time.monotonic()

    def write(self, name: str, facts: dict[str, Any]) -> None:
        """Facts as JSON, with where they were measured."""
        facts = {"where": _where(self.device), "toy": self.toy} | facts
        (self.out / name).write_text(json.dumps(facts, indent=2) + "\n")


def main() -> None:
    args, began = _arguments(), time.monotonic()
    torch.backends.cudnn.benchmark = True
    # float32 is to mean float32 where the device is compared with the CPU, and where a network is
    # measured
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("RETROACT_ZOO", str(args.before))
    splits = _toys() if args.toy else unpacked(args.pack)
    print(f"{', '.join(map(repr, splits))} after {time.monotonic() - began:.0f} s", flush=True)
    stage = Stage(splits, args.device, args.out, args.before, began + 60 * args.minutes, args.toy)
    run = _STAGES.get(args.stage, partial(_trained, args.stage))
    fine = run(stage)
    for path in sorted(args.out.iterdir()):
        size = path.stat().st_size
        print(f"{path.name}: {size / 2**20:.2f} MiB{', TOO LARGE' if size > LIMIT else ''}")
    print(
        f"{args.stage}: {'ended' if fine else 'FAILED, see above,'} after"
        f" {time.monotonic() - began:.0f} s"
    )
    sys.exit(0 if fine else 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stage", choices=[*_STAGES, *TRAININGS])
    parser.add_argument("--toy", action="store_true", help="a few drawn images, two epochs")
    parser.add_argument("--device", default="", help="default: cuda; the CPU for --toy")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "bench/out"))
    parser.add_argument(
        "--before", type=Path, default=Path("bench/out"), help="where earlier outputs lie"
    )
    parser.add_argument("--pack", type=Path, default=PACK)
    args = parser.parse_args()
    args.device = args.device or ("cpu" if args.toy else "cuda")
    return args


def _toys() -> Splits:
    """Pictures of two colours that say their class, packed and unpacked as the real ones are."""
    random, found = np.random.RandomState(0), {}
    for split, n in (("train", 10), ("test", 4)):
        labels = [i % 10 for i in range(n)]
        encoded = []
        for label in labels:
            coarse = random.randint(0, 255, (4, 4, 3)).astype(np.uint8)
            coarse[:, :, label % 3] = 20 * label
            picture = io.BytesIO()
            kind = "PNG" if label % 2 else "JPEG"
            Image.fromarray(coarse.repeat(8, 0).repeat(8, 1)).save(picture, kind)
            encoded.append(picture.getvalue())
        found[split] = Rows(encoded, labels)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "toy.npz"
        pack(path, found, "drawn", [str(i) for i in range(10)])
        return unpacked(path)


def _where(device: str) -> dict[str, str]:
    on = torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine()
    return {
        "device": device,
        "name": on,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


# ------------------------------------------------------------------------------------------- tests


def _tests_and_bench(stage: Stage) -> bool:
    fine = _tests(stage)
    _bench(stage)
    return fine


def _attacks_and_audit(stage: Stage) -> bool:
    test, toy = stage.splits[2], stage.toy
    found = gpu_attacks.measure(stage.device, test, stage.out, lambda: stage.left, toy=toy)
    stage.write(gpu_attacks.AUDIT, found)
    return True


_STAGES = {"tests-and-bench": _tests_and_bench, "attacks-and-audit": _attacks_and_audit}


def _tests(stage: Stage) -> bool:
    """Whether all checks that there was time for passed; what each said goes to checks.json."""
    test = stage.splits[2]
    found: dict[str, Any] = {}
    for name, check in checks(stage.device, test[: min(200, len(test))]):
        began = time.monotonic()
        if stage.left < 0.4 * 60:  # the bench has its turn
            found[name] = {"passed": None, "said": "not run, time was up"}
            continue
        try:
            passed, said = True, check()
        except Exception as e:
            passed, said = False, f"{type(e).__name__}: {e}"
            traceback.print_exc()
        found[name] = {
            "passed": passed,
            "said": said,
            "seconds": round(time.monotonic() - began, 2),
        }
        print(
            f"{'passed' if passed else 'FAILED'}: {name}: {said} ({found[name]['seconds']} s)",
            flush=True,
        )
        stage.write("checks.json", {"checks": found})
    return all(one["passed"] is not False for one in found.values())


# ------------------------------------------------------------------------------------------- bench


def _bench(stage: Stage) -> None:
    """PGD-40 on a ResNet-20, images a second and peak memory; seconds an epoch of each training; to
    bench.json."""
    found: dict[str, Any] = {"attacks": [], "trainings": {}}
    torch.manual_seed(0)
    plain = NETWORKS["resnet20-cifar10"]().to(stage.device)
    for dtype in (torch.float32, torch.bfloat16):
        net = copy.deepcopy(plain).to(dtype)
        for chunk in (4,) if stage.toy else (64, 512, 2048):
            found["attacks"].append(_pgd(net, chunk, stage) | {"dtype": str(dtype), "chunk": chunk})
            print(found["attacks"][-1], flush=True)
            stage.write("bench.json", found)
    for name, recipe in TRAININGS.items():
        if stage.left < 20:
            break
        found["trainings"][name] = _speed(name, recipe, stage)
        print(name, found["trainings"][name], flush=True)
        stage.write("bench.json", found)


def _pgd(net: nn.Module, chunk: int, stage: Stage) -> dict[str, Any]:
    """PGD-40 that fells nothing, because eps is tiny, so that all images take all steps; and the
    bare passes."""
    n = 4 if stage.toy else 2048
    x = torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = torch.cat(
            [
                net(part.to(stage.device, next(net.parameters()).dtype)).argmax(1).cpu()
                for part in x.split(512)
            ]
        )
    attack, images = ra.PGD(steps=2 if stage.toy else 40), ra.Images.of(x, labels)
    threat = ra.Linf(1e-7)
    ra.evaluate(net, images[:chunk], attack, threat, chunk=chunk)  # warms up
    _settle(stage.device, reset=True)
    began = time.perf_counter()
    record = ra.evaluate(net, images, attack, threat, chunk=chunk)
    seconds = time.perf_counter() - began
    steps = float(record.gradients.mean())
    cheap = prove_for(attack, net, x, images.index, [threat]).lean
    bare = _bare(cheap, x[:chunk], stage.device, 2 if stage.toy else 20)
    return {
        "images_per_second": round(n / seconds, 1),
        "gradients": round(steps, 1),
        "of_limit": round(seconds / (n * steps * bare), 2),
        "peak_mib": _peak(stage.device),
    }


def _bare(net: nn.Module, x: torch.Tensor, device: str, passes: int) -> float:
    """Seconds an image of a forward pass and the backward pass to the pixels."""
    part, before = x.to(device, next(net.parameters()).dtype).requires_grad_(), passes // 4
    for turn in range(before + passes):
        if turn == before:
            _settle(device)
            began = time.perf_counter()
        torch.autograd.grad(net(part).sum(), part)
    _settle(device)
    return (time.perf_counter() - began) / (passes * len(part))


def _settle(device: str, *, reset: bool = False) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        if reset:
            torch.cuda.reset_peak_memory_stats()


def _peak(device: str) -> float | None:
    return (
        round(torch.cuda.max_memory_allocated() / 2**20, 1) if device.startswith("cuda") else None
    )


def _speed(name: str, recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """Seconds a step in the second of two short epochs, and the minutes that the whole training
    would take."""
    plan, steps = recipe.standard, 1 if stage.toy else 20
    plan = replace(plan, epochs=2, batch=2 if stage.toy else plan.batch)
    adversarial = recipe is not recipe.standard
    short = replace(recipe, standard=plan) if adversarial else plan  # type: ignore[type-var]
    n = steps * plan.batch
    images = ra.Images.of(torch.rand(n, 3, 32, 32), torch.arange(n) % 10, split="train")
    ends: list[float] = []
    _settle(stage.device, reset=True)
    fit(
        NETWORKS[name](),
        images,
        short,
        device=stage.device,
        progress=lambda _: ends.append(time.perf_counter()),
    )
    second = (ends[1] - ends[0]) / steps
    whole = recipe.standard.epochs * (len(stage.splits[0]) // plan.batch)
    return {
        "seconds_per_step": round(second, 4),
        "images_per_second": round(plan.batch / second, 1),
        "minutes_foretold": round(whole * second / 60, 2),
        "peak_mib": _peak(stage.device),
    }


# ---------------------------------------------------------------------------------------- training


def _trained(name: str, stage: Stage) -> bool:
    """Trains as far as time allows, and writes the network with its page, or what the next call
    goes on from."""
    recipe = _toy(TRAININGS[name]) if stage.toy else TRAININGS[name]
    epochs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        checkpoint = checkpoints_of(work, name, 0) / FILE
        behind = _brought(name, checkpoint, stage)
        try:
            page = train_on(
                stage.splits,
                name,
                recipe,
                command=f"bash bench/gpu.sh {name}",
                seed=0,
                device=stage.device,
                out=work,
                seconds=stage.left - RESERVE,
                progress=_told(epochs),
            )
        except UnfinishedError as e:
            _write_thin(checkpoint, stage.out / _thin(name))
            print(f"{name}: {e}")
            stage.write(
                f"{name}.report.json", {"finished": False, "said": str(e), "epochs": epochs}
            )
            return True
        for suffix in ("safetensors", "json"):
            shutil.copy(work / f"{name}.{suffix}", stage.out / f"{name}.{suffix}")
        (stage.out / _thin(name)).unlink(missing_ok=True)
        facts = {"finished": True, "went_on": behind, "epochs": epochs, "accuracy": page.accuracy}
        facts |= {
            "validation_accuracy": page.validation_accuracy,
            "robust": _robust(name, work, stage),
        }
    print(f"{name}: {facts['accuracy']:.2%} on {page.test}, robust {facts['robust']}")
    stage.write(f"{name}.report.json", facts)
    return True


def _toy(recipe: Recipe) -> Recipe:
    plan = replace(recipe.standard, epochs=2, batch=5, lr=0.01)
    if recipe is recipe.standard:
        return plan
    return replace(recipe, standard=plan)  # type: ignore[type-var]


def _told(epochs: list[dict[str, float]]) -> Callable[[Progress], None]:
    began = time.monotonic()

    def look(progress: Progress) -> None:
        if progress.step < progress.steps:
            return
        epochs.append(
            {
                "epoch": progress.epoch,
                "loss": progress.loss,
                "seconds": round(time.monotonic() - began, 1),
            }
        )
        print(
            f"epoch {progress.epoch} of {progress.epochs}, loss {progress.loss:.4f},"
            f" {epochs[-1]['seconds']} s",
            flush=True,
        )

    return look


def _robust(name: str, folder: Path, stage: Stage) -> dict[str, float]:
    """Accuracy left by PGD-20 (a toy: PGD-2) on the first test images, at the radius trained
    against; an upper bound, no audit."""
    page = json.loads((folder / f"{name}.json").read_text())
    net = NETWORKS[name]()
    net.module.load_state_dict(safetensors.torch.load_file(folder / f"{name}.safetensors"))
    net, test = net.to(stage.device).eval(), stage.splits[2]
    eps = getattr(ra.parse(page["recipe"]), "eps", 2 / 255)
    test = test[: min(1000, len(test))]
    attack = ra.PGD(steps=2 if stage.toy else 20, loss="margin")
    record = ra.evaluate(net, test, attack, ra.Linf(eps), chunk=500)
    return {"eps": eps, "n": len(test), "accuracy": ra.robust_accuracy(record)}


def _thin(name: str) -> str:
    return f"{name}.checkpoint.safetensors"


def _write_thin(checkpoint: Path, path: Path) -> None:
    """The weights in fp16 and no momentum: a quarter of the checkpoint, and under the limit.

    A run that goes on from it has lost the momentum, some ten steps' worth, and is no longer the
    same to the bit.
    """
    with safetensors.safe_open(checkpoint, framework="pt") as file:
        names = file.keys()  # a method of its own: the file is no mapping
        weights = {k: file.get_tensor(k) for k in names if k.startswith("net.")}
        facts = file.metadata()
    weights = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    safetensors.torch.save_file(weights, path, metadata=facts)


def _brought(name: str, checkpoint: Path, stage: Stage) -> bool:
    """Whether an earlier call's checkpoint was found and put where the training looks for it."""
    for folder in (stage.out, stage.before):
        if (folder / _thin(name)).is_file():
            checkpoint.parent.mkdir(parents=True)
            shutil.copy(folder / _thin(name), checkpoint)
            return True
    return False


if __name__ == "__main__":
    main()
