"""`doctor`: what is installed and found here, and a self-check of some seconds."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import typer

from retroact import __version__
from retroact.cli import options
from retroact.cli.codes import FOUND
from retroact.cli.console import about_bytes, say, tell_json
from retroact.cli.listing import list_data

_NAME = re.compile(r"[\w.-]+")
_EXTRA = re.compile(r"extra == ['\"](\w+)['\"]")


def doctor(
    as_json: options.Json = False,
    json_out: options.JsonOut = None,
) -> None:
    """Versions, devices, data and cache as they are found here, and a self-check of some seconds.

    \b
    Example:
      retroact doctor
    """
    checks = [_run(check) for check in (check_torch, check_cache)]
    if checks[0].passed:
        found = [check_weights, check_retrofit, check_attack, check_devices]
        checks += [_run(check) for check in found]
    said = {
        "versions": list_versions(),
        "extras": list_extras(),
        "devices": list_devices() if checks[0].passed else [],
        "data": list_data() if checks[0].passed else [],
        "cache": describe_cache(),
        "checks": [asdict(check) for check in checks],
    }
    if not tell_json(said, as_json, json_out):
        _print(said, checks)
    if not all(check.passed for check in checks):
        raise typer.Exit(FOUND)


def _print(said: dict[str, Any], checks: list[Checked]) -> None:
    say(", ".join(f"{name} {version}" for name, version in said["versions"].items()), wrap=True)
    for extra, packages in said["extras"].items():
        here = ", ".join(f"{name} {version or 'is not here'}" for name, version in packages.items())
        say(f"extra {extra}: {here}", wrap=True)
    for device in said["devices"]:
        say(f"device {device['name']}: {device['what']}", wrap=True)
    for row in said["data"]:
        say(f"data {row['name']}: {row['from']}", wrap=True)
    cache = said["cache"]
    say(f"cache {cache['path']}: {about_bytes(cache['bytes']) if cache['bytes'] else 'empty'}")
    for check in checks:
        say(str(check), style=None if check.passed else "red", wrap=True)
    passed, seconds = sum(c.passed for c in checks), sum(c.seconds for c in checks)
    say(f"{passed} of {len(checks)} passed in {seconds:.1f} s", style="bold")


# ---------------------------------------------------------------------------------- what is here


def list_versions() -> dict[str, str]:
    """The versions of the package, of Python, of the machine's system and of what results rest
    on."""
    python, system = sys.version.split()[0], f"{platform.system()} {platform.machine()}"
    named = [name for name, extra in _required() if not extra]
    return {"retroact": __version__, "Python": python, "system": system} | {
        name: _version_of(name) or "is not here" for name in named
    }


def list_extras() -> dict[str, dict[str, str | None]]:
    """Of each extra its packages with their versions, None for what is not here."""
    found: dict[str, dict[str, str | None]] = {}
    for name, extra in _required():
        if extra and extra != "dev":
            found.setdefault(extra, {})[name] = _version_of(name)
    return found


def _required() -> Iterator[tuple[str, str]]:
    """The packages that this one asks for, and for which extra."""
    with suppress(metadata.PackageNotFoundError):
        for line in metadata.requires("retroact") or ():
            name, extra = _NAME.match(line), _EXTRA.search(line)
            if name is not None:
                yield name[0], extra[1] if extra else ""


def _version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def list_devices() -> list[dict[str, str]]:
    """Where networks can run."""
    import torch

    cpu = f"{options.cores()} cores, {torch.get_num_threads()} threads of torch"
    devices = [{"name": "cpu", "what": cpu}]
    for i in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(i)
        devices.append(
            {"name": f"cuda:{i}", "what": f"{card.name}, {about_bytes(card.total_memory)}"}
        )
    if torch.backends.mps.is_available():
        devices.append({"name": "mps", "what": "Apple's"})
    return devices


def describe_cache() -> dict[str, Any]:
    """Where what can be made again is kept, and how many bytes that is."""
    from retroact.files import own_cache

    folder, size = own_cache(), 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # another process may be at it
            size += path.stat().st_size if path.is_file() else 0
    return {"path": str(folder), "bytes": size}


# ------------------------------------------------------------------------------- the self-check


@dataclass(frozen=True)
class Checked:
    """What was checked, whether it is as it should be, and what was seen."""

    check: str
    passed: bool
    said: str
    seconds: float

    def __str__(self) -> str:
        return f"{'passed' if self.passed else 'FAILED'}: {self.check}: {self.said}"


def _run(check: Callable[[], str]) -> Checked:
    """Runs a check, which says what it saw or raises."""
    began, name = time.perf_counter(), (check.__doc__ or "").strip().rstrip(".")
    try:
        said, passed = check(), True
    except Exception as error:  # whatever is broken here is what is asked for
        said, passed = f"{type(error).__name__}: {error}".splitlines()[0], False
    return Checked(" ".join(name.split()), passed, said, round(time.perf_counter() - began, 2))


def _expect(holds: bool, said: str) -> str:
    if not holds:
        raise AssertionError(said)
    return said


def check_torch() -> str:
    """torch can be imported."""
    import torch

    return f"torch {torch.__version__}"


def check_cache() -> str:
    """The cache can be written."""
    from retroact.files import own_cache

    folder = own_cache()
    folder.mkdir(parents=True, exist_ok=True)
    return _expect(os.access(folder, os.W_OK), f"{folder}")


def check_weights() -> str:
    """digits-cnn decides as many test images rightly as its page says."""
    from retroact.evaluation.accuracy import clean_accuracy_of
    from retroact.nets import zoo
    from retroact.nets.data import data

    page = zoo.entry("digits-cnn")
    found = clean_accuracy_of(zoo.load("digits-cnn"), data("digits"))
    said = f"{found:.2%} of {page.test_n}, expected {page.accuracy:.2%}"
    return _expect(abs(found - page.accuracy) * page.test_n < 0.5, said)


def check_retrofit() -> str:
    """JumpReLU(0) computes what ReLU does, bit for bit."""
    import torch

    from retroact.activations.piecewise import JumpReLU
    from retroact.nets import zoo
    from retroact.nets.data import data
    from retroact.retrofitting.surgery import retrofit

    net, images = zoo.load("digits-cnn"), data("digits[:50]").images
    with torch.no_grad():
        same = torch.equal(net(images), retrofit(net, JumpReLU(0.0))(images))
    return _expect(same, f"{len(images)} images, {'alike' if same else 'they differ'}")


def check_attack() -> str:
    """PGD breaks images within ball and box, and twice the same ones."""
    from retroact.attacks.pgd import PGD
    from retroact.crafting.threat import Linf
    from retroact.evaluation.evaluate import evaluate
    from retroact.evaluation.metrics import clean_accuracy, robust_accuracy
    from retroact.nets import zoo
    from retroact.nets.data import data

    threat, images, net = Linf(0.1), data("digits[:50]"), zoo.load("digits-cnn")
    one, two = (evaluate(net, images, PGD(10), threat, keep=50) for _ in range(2))
    clean, robust = clean_accuracy(one), robust_accuracy(one)
    said = f"{clean:.0%} clean, {robust:.0%} under attack"
    assert one.examples is not None
    inside = bool((one.distance[:, 3] <= threat.eps + 1e-6).all())
    boxed = bool(((one.examples >= 0) & (one.examples <= 1)).all())
    _expect(inside and boxed, f"{said}, but images left the ball or the box")
    _expect(one == two, f"{said}, but another result the second time")
    return _expect(robust < clean, said)


def check_devices() -> str:
    """Every device computes what the CPU does, to 1e-3."""
    import torch

    from retroact.ground import neutral
    from retroact.nets import zoo
    from retroact.nets.data import data

    net, images = zoo.load("digits-cnn"), data("digits[:50]").images
    named = [device["name"] for device in list_devices()]
    with neutral(), torch.no_grad():
        expected = net(images)
        apart = {
            name: float((net.to(name)(images.to(name)).cpu() - expected).abs().max())
            for name in named
        }
    said = ", ".join(f"{name} {far:.1g} apart" for name, far in apart.items())
    return _expect(max(apart.values()) < 1e-3, said)
