"""A result does not depend on what the caller's program has set, and nothing that it has set is
changed."""

import random
import threading
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import retroact as ra
from retroact.auditing.battery import Battery
from retroact.crafting.oracle import evaluating
from retroact.experiments import tuning
from retroact.ground import neutral, one_thread
from retroact.retrofitting.watching import trial

EPS = ra.Linf(0.1)
FEW = ra.PGD(steps=3)
LITTLE = Battery(
    2, 1, 2, 2, trial_steps=0, sample=4, queries=0, points=12, anew=1, alarmed_finish=2
)


def small():
    """A net with a norm and a dropout, in train mode, on images that it decides in several ways."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(144, 5),
    )
    return ra.Classifier(body, shape=(1, 8, 8)).train()


def images(split=""):
    x = torch.rand(
        24, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float32, device="cpu"
    )
    net = small().eval()
    with torch.inference_mode(False), torch.no_grad():
        net.module[-1].bias -= net(x).median(0).values
        return ra.Images.of(x, net(x).argmax(1), split=split)


def flat(record):
    return [v.tobytes() for v in record.facts().values()]


TRAIN = images("train")


def hardened(net):
    """The bits of what two steps make of a net."""
    hardened = ra.harden(net, TRAIN, EPS, recipe=ra.Hardening(learn="norms", steps=2)).net
    return [v.detach().numpy().tobytes() for v in hardened.state_dict().values()]


JOBS = {
    "PGD": lambda net, d: flat(ra.evaluate(net, d, ra.PGD(steps=3), EPS)),
    "DeepFool": lambda net, d: flat(ra.evaluate(net, d, ra.DeepFool(steps=5), ra.L2(1.0))),
    "TrustRegion": lambda net, d: flat(ra.evaluate(net, d, ra.TrustRegion(steps=5), ra.L2(1.0))),
    "FMN": lambda net, d: flat(ra.evaluate(net, d, ra.FMN(steps=5), ra.L2(1.0))),
    "DDN": lambda net, d: flat(ra.evaluate(net, d, ra.DDN(steps=5), ra.L2(1.0))),
    "CarliniWagner": lambda net, d: flat(
        ra.evaluate(net, d, ra.CarliniWagner(steps=5), ra.L2(1.0))
    ),
    "Square": lambda net, d: flat(ra.evaluate(net, d, ra.Square(queries=10), EPS)),
    "APGD": lambda net, d: flat(ra.evaluate(net, d, ra.APGD(steps=5), EPS)),
    "Foolbox": lambda net, d: flat(ra.evaluate(net, d, ra.Foolbox("LinfPGD", steps=2), EPS)),
    "audit": lambda net, d: str(
        ra.audit(net, ra.retrofit(net, ra.JumpReLU(0.1)), d, EPS, battery=LITTLE, claimed=FEW)
    ),
    "harden": lambda net, d: hardened(net),
    "tune": lambda net, d: str(ra.tune(net, ra.JumpReLU, d, EPS, grid=[0.1])),
    "calibrate": lambda net, d: ra.show(ra.calibrate(net, ra.MeanSparse(0.2), TRAIN)),
    "retrofit": lambda net, d: str(ra.retrofit(net, ra.JumpReLU(0.1)).retrofit),
    "fold": lambda net, d: float(ra.fold(ra.retrofit(net, ra.SReLU(2.0))).logit_scale),
}


@contextmanager
def double():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


WORLDS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "float64 by default": double,
    "another device by default": lambda: torch.device("meta"),
}


def told():
    """All that a program may have set, and that must not change."""
    return {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "dtype": torch.get_default_dtype(),
        "device": str(torch.get_default_device()),
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": np.random.get_state()[1].tobytes(),
        "python": random.getstate(),
        "threads": torch.get_num_threads(),
        "call": (nn.Module.__call__, nn.Module.__getattr__),
    }


def of(net):
    return [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), m._parameters.keys())
        for m in net.modules()
    ] + [(p.requires_grad, p.grad, p.detach().numpy().tobytes()) for p in net.parameters()]


@pytest.fixture(scope="module", autouse=True)
def few_steps():
    """`tune` attacks with few."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "CLAIMED", FEW)
        patch.setattr(tuning, "ON_MARGIN", replace(FEW, loss="margin"))
        yield


@pytest.fixture(scope="module")
def expected():
    return {name: job(small(), images()) for name, job in JOBS.items()}


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("world", WORLDS)
def test_a_result_is_the_same_in_any_world_and_leaves_it_as_it_was(world, job, expected):
    net, data = small(), images()
    torch.manual_seed(5), np.random.seed(6), random.seed(7)
    of_net = of(net)
    with WORLDS[world]():
        before = told()
        result = JOBS[job](net, data)
        after = told()
    assert result == expected[job]
    assert after == before and of(net) == of_net


class Fails(nn.Module):
    """Fails in the middle of an attack, in train mode before and after."""

    def __init__(self, after):
        super().__init__()
        self.net, self.calls, self.after = small(), 0, after

    def forward(self, x):
        self.calls += 1
        if self.calls > self.after:
            torch.manual_seed(99), torch.set_default_dtype(torch.float64)
            raise RuntimeError("in the middle")
        return self.net(x)


@pytest.mark.parametrize("after", [0, 1, 4])
def test_an_exception_leaves_the_world_as_it_was(after):
    net, data = Fails(after), images()
    with double(), torch.no_grad():
        before, flags = told(), [m.training for m in net.modules()]
        with pytest.raises((RuntimeError, ValueError), match="in the middle"):
            ra.audit(net, net, data, EPS, battery="quick")
        net.calls = 0
        with pytest.raises(RuntimeError, match="in the middle"):
            ra.evaluate(net, data, ra.PGD(steps=50), EPS)
        assert told() == before and [m.training for m in net.modules()] == flags


def test_the_last_block_puts_back_what_the_first_found():
    torch.manual_seed(3)
    state, first_in, second_in = torch.get_rng_state(), threading.Event(), threading.Event()

    def other():
        first_in.wait()
        with neutral():
            second_in.set()
            torch.rand(3)

    beside = threading.Thread(target=other)
    beside.start()
    with neutral():
        first_in.set()
        second_in.wait()
        torch.rand(5)
    beside.join()
    assert torch.equal(torch.get_rng_state(), state)


def test_two_trials_beside_one_another_leave_torchs_fast_path_as_it_was():
    fast, first_in, second_in, first_out = (
        torch.backends.mha.get_fastpath_enabled(),
        *(threading.Event() for _ in "123"),
    )
    inside = []

    def other():
        first_in.wait()
        with trial():
            second_in.set()
            first_out.wait()
            inside.append(torch.backends.mha.get_fastpath_enabled())

    beside = threading.Thread(target=other)
    beside.start()
    with trial():
        first_in.set()
        second_in.wait()
    first_out.set()
    beside.join()
    assert inside == [False] and torch.backends.mha.get_fastpath_enabled() is fast is True


class Noisy(nn.Module):
    """Draws in eval mode, too."""

    def __init__(self):
        super().__init__()
        self.net = small()

    def forward(self, x):
        return self.net(x + 0.05 * torch.randn_like(x))


def test_what_a_network_draws_depends_on_no_generator_of_the_caller():
    data, records = images(), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        records.append(flat(ra.evaluate(Noisy(), data, ra.PGD(steps=3), EPS)))
    assert records[0] == records[1]


class Watching(nn.Module):
    """Notes on how many threads, with how many bits of a product, and whether with fused attention,
    it was asked."""

    def __init__(self, net):
        super().__init__()
        self.net, self.seen = net, set()

    def forward(self, x):
        short = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        fused = torch.backends.mha.get_fastpath_enabled()
        self.seen.add((torch.get_num_threads(), *short, fused))
        return self.net(x)


@pytest.mark.parametrize(
    "job",
    [
        lambda net, d: ra.evaluate(net, d, ra.PGD(steps=2), EPS),
        lambda net, d: ra.audit(net, net, d, EPS, battery=LITTLE, claimed=FEW),
        lambda net, d: ra.check(net, d, EPS, battery=LITTLE, claimed=FEW),
    ],
    ids=["evaluate", "audit", "check"],
)
def test_sums_are_added_on_one_thread_and_in_full_and_the_caller_gets_his_own_back(job):
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = torch.get_num_threads(), matmul.allow_tf32, cudnn.allow_tf32
    torch.set_num_threads(2)
    matmul.allow_tf32 = cudnn.allow_tf32 = True
    try:
        net = Watching(small())
        job(net, images())
        assert net.seen == {(1, False, False, False)}
        assert torch.get_num_threads() == 2 and matmul.allow_tf32 and cudnn.allow_tf32
        assert torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.set_num_threads(before[0])
        matmul.allow_tf32, cudnn.allow_tf32 = before[1:]


def test_a_second_thread_is_pinned_too():
    """A thread that has computed before keeps its own count, whatever another one sets."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    ready, pinned, seen = threading.Event(), threading.Event(), []

    def second():
        torch.ones(10).sum()
        seen.append(torch.get_num_threads())
        ready.set()
        pinned.wait()
        with one_thread():
            seen.append(torch.get_num_threads())

    thread = threading.Thread(target=second)
    thread.start()
    ready.wait()
    try:
        with one_thread():
            pinned.set()
            thread.join()
        assert seen == [2, 1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_blocks_that_end_in_any_order_leave_no_network_held():
    net, other = small(), small()
    first, second = evaluating(net), evaluating(other)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert net.training and other.training
    with evaluating(net, other):
        assert not net.training and not other.training
