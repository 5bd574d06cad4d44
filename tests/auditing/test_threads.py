"""Audits beside one another: torch.fx traces for the whole process, and nobody else may notice."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

import retroact as ra
from retroact.auditing.battery import Battery
from retroact.auditing.subjects import TRACE, prepare
from retroact.retrofitting.tracing import trace


def normed(seed):
    """A small net with batch norms that have seen something, and images that it decides in several
    ways."""
    torch.manual_seed(seed)
    layers = [
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
    ]
    net = ra.Classifier(nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 4)), shape=(1, 8, 8))
    x = torch.rand(24, 1, 8, 8)
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_var.uniform_(0.5, 2)
        net.module[-1].bias -= net(x).median(0).values
    return net, ra.Images.of(x, net(x).argmax(1))


SMALL = Battery(
    steps=2,
    targets=1,
    targeted_steps=2,
    finish=0,
    queries=0,
    trial_steps=0,
    points=12,
    alarmed_finish=2,
)


def audited(pair):
    net, data = pair
    hard = ra.retrofit(net, ra.JumpReLU(0.05))
    how = {"battery": SMALL, "claimed": ra.PGD(steps=2), "executor": ra.Threads(2)}
    return ra.audit(net, hard, data, ra.Linf(0.1), **how)


def prepared(pair):
    """All that an audit traces."""
    net, data = pair
    pair = prepare(net, ra.retrofit(net, ra.JumpReLU(0.05)), data, ra.Linf(0.1))
    return [source.name for side in pair for source in (*side.sources, *side.derived)]


def twice(work, pairs):
    """The work in two threads at once, which leaves torch's modules as they were."""
    calls = nn.Module.__call__, nn.Module.__getattr__
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(work, pairs))
    assert (nn.Module.__call__, nn.Module.__getattr__) == calls
    return done


def test_two_audits_of_nets_with_norms_in_two_threads():
    pairs = [normed(seed) for seed in (0, 1)]
    alone = [str(audited(pair)) for pair in pairs]
    assert [str(made) for made in twice(audited, pairs)] == alone


def test_what_two_audits_trace_is_traced_in_two_threads():
    pairs = [normed(seed) for seed in (0, 1)]
    alone = [prepared(pair) for pair in pairs]
    assert all(TRACE in names for names in alone)
    for _ in range(3):
        assert twice(prepared, pairs) == alone


def test_a_net_runs_while_another_thread_traces():
    net, data = normed(0)
    expected, stop, wrong = net(data.images), threading.Event(), []

    def runs():
        while not stop.is_set():
            with torch.no_grad():
                wrong.extend([] if torch.equal(net(data.images), expected) else [1])

    beside = threading.Thread(target=runs)
    beside.start()
    try:
        graphs = [trace(normed(1)[0].module) for _ in range(30)]
    finally:
        stop.set()
        beside.join()
    assert not wrong and all(g is not None for g in graphs)
