"""The docs say what the code does: the reference is up to date, README and the guides run, examples
give what stands below them, and the site builds without a warning."""

import doctest
import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

import retroact
from retroact.nets import zoo

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md")]
    + [page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts]
)
README = (ROOT / "README.md").read_text()


@cache
def _written_from_the_code():
    """Each text that is written from the code, in a process that no other test's classes are in."""
    code = (
        "import json, runpy; made = runpy.run_path('docs/make_reference.py');"
        " print(json.dumps({name: made[name]() for name in ('page', 'listed')}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("made", "written"), [("page", "docs/reference.md"), ("listed", "retroact/cli/listed.json")]
)
def test_what_is_written_from_the_code_is_up_to_date(made, written):
    text = _written_from_the_code()[made]
    assert text == (ROOT / written).read_text(), "run `make docs`"


@pytest.mark.skipif(
    not os.environ.get("RETROACT_DATA"), reason="the README's example needs MNIST in RETROACT_DATA"
)
def test_the_readmes_python_runs(tmp_path, monkeypatch):
    code = next(
        block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "ra.tune" in block
    )
    code = code.replace("[:500]", "[:8]").replace("[:1000]", "[:8]")
    assert code.count("steps=40") == 2
    code = code.replace("steps=40", "steps=4")
    little = "steps=1, targets=1, targeted_steps=1, finish=1, trial_steps=0, queries=0, points=20"
    assert 'battery="quick"' in code
    code = code.replace('battery="quick"', f"battery=Battery({little})")
    code = f"from retroact.auditing.battery import Battery\n{code}"
    monkeypatch.setattr(retroact.JumpReLU, "grid", (0.0, 1.0))  # of 11 that `tune` would try
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert (tmp_path / "audit.html").stat().st_size > 10_000
    assert (tmp_path / "hard.safetensors").exists()


def test_readmes_own_network_needs_nothing_but_its_file():
    """`mynets.py` is written as it stands there, and its network answers."""
    code = next(
        block
        for block in re.findall(r"```python\n(.*?)```", README, re.S)
        if block.startswith("# mynets.py")
    )
    made = {}
    exec(compile(code, "mynets.py", "exec"), made)
    assert made["build"]()(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_readme_is_short_and_begins_with_picture_playground_command_and_verdict():
    assert len(README.splitlines()) <= 120
    first = "\n".join(README.splitlines()[:35])
    assert re.findall(r"\]\(([^)]+)\)", README)[0] == "docs/playground.md"
    assert re.search(r'<img src="docs/audit.svg"', first)
    assert _audit_of_readme() and re.search(r"^NO EFFECT; MASKED by saturation", first, re.M)


def _audit_of_readme():
    return next(
        line for line in README.splitlines() if line.startswith("retroact audit digits-cnn")
    )


def _excerpt_of_readme():
    return re.search(r"```text\n(NO EFFECT.*?)```", README, re.S).group(1)


def test_the_picture_has_the_numbers_of_the_excerpt():
    drawn = re.findall(r">([\d.]+)<", (ROOT / "docs" / "audit.svg").read_text())
    rows = [line for line in _excerpt_of_readme().splitlines() if line.startswith("digits-cnn")]
    told = [number for row in rows for number in re.findall(r" (\d+\.\d)\b", row)]
    assert len(told) == 6
    assert set(told) <= set(drawn)


@pytest.mark.slow
def test_the_excerpt_in_readme_is_what_the_command_prints(call):
    """Word for word, on one line; numbers may be those of another processor, 3 points away."""
    words = shlex.split(_audit_of_readme())[1:]
    code, out, err = call(*words)
    assert code == 0, err
    told, found = (" ".join(text.split()) for text in (_excerpt_of_readme(), out))
    number = r"[-+]?\d+(?:\.\d+)?(?:e-\d+)?"
    assert re.sub(number, "#", found).startswith(re.sub(number, "#", told))
    for a, b in zip(re.findall(number, told), re.findall(number, found), strict=False):
        assert abs(float(a) - float(b)) <= 3, (a, b)


class _Examples(doctest.DocTestRunner):
    """Keeps what went wrong, so that the test says it."""

    def __init__(self):
        super().__init__(verbose=False)
        self.said = []

    def run_text(self, text, where):
        made = doctest.DocTestParser().get_doctest(text, {}, where, where, 0)
        self.run(made, out=self.said.append)
        return len(made.examples)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```pycon" in page.read_text()], ids=lambda p: p.name
)
def test_a_pages_examples_give_what_stands_below_them(page):
    runner = _Examples()
    blocks = re.findall(r"```pycon\n(.*?)```", page.read_text(), re.S)
    assert runner.run_text("\n".join(blocks), page.name) >= len(blocks)
    assert not runner.said, "".join(runner.said)


def test_examples_in_docstrings_give_what_stands_below_them():
    runner = _Examples()
    texts = {name: inspect.getdoc(getattr(retroact, name)) or "" for name in retroact.__all__}
    ran = sum(runner.run_text(text, name) for name, text in texts.items() if ">>>" in text)
    assert ran > 3
    assert not runner.said, "".join(runner.said)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_the_site_builds_without_a_warning(tmp_path, monkeypatch, capsys):
    """Every link and anchor within the site is found, every docstring can be read, no page is left
    out."""
    from sphinx.cmd.build import main

    monkeypatch.chdir(ROOT)
    words = ["--quiet", "--fail-on-warning", "--keep-going", "-b", "dummy"]
    words += ["-D", "smartquotes=0"]  # which take a tenth of the time and warn of nothing
    assert main([*words, "docs", str(tmp_path)]) == 0, capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "verdicts", "report"),
    [
        pytest.param("your-network.md", 9, "verdict.html", marks=pytest.mark.long),
        pytest.param("tables.md", 6, "rows.html", marks=pytest.mark.long),
        ("ten-minutes.md", 1, "defence.html"),
    ],
)
def test_a_guide_runs_from_the_data_to_its_verdicts(page, verdicts, report, tmp_path):
    """Each named block is written, each command run in turn, in one folder; verdicts come out of
    all of them."""
    told = []
    text = (ROOT / "docs" / page).read_text().replace("digits[:100]", "digits[:40]")
    for language, block in re.findall(r"```(\w*)\n(.*?)```", text, re.S):
        if language == "python":
            (tmp_path / block.splitlines()[0].removeprefix("# ")).write_text(block)
        if language:  # "text" is what came out
            continue
        for command in block.strip().splitlines():
            program, rest = command.split(" ", 1)
            words = {"python": [], "retroact": ["-m", "retroact.cli"]}[program] + shlex.split(rest)
            done = subprocess.run(
                [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            told.append(done.stdout)
    effects = re.findall("(GENUINE|HARMFUL|NO EFFECT|INCONCLUSIVE|ABSTAINED);", "".join(told))
    assert len(effects) == verdicts
    assert (tmp_path / report).stat().st_size > 10_000


def _mistakes(folder):
    """Every mistake in the guide's table, as a function, by the row's first column."""
    import retroact as ra

    mine = sys.modules["mine"]
    state, digits = mine.Net().state_dict(), ra.data("digits[:40]")
    fine = ra.load("digits-cnn")
    x, y = digits.images, digits.labels

    def file(name, content):
        torch.save(content, folder / name)
        return folder / name

    def wrapped(adapt, **more):
        class Adapted(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = fine.module

            def forward(self, x):
                return adapt(self.net(x))

        return ra.Classifier(Adapted(), 0.0, 1.0, shape=(1, 8, 8), **more)

    def attacked(net=fine, images=x, labels=y):
        return ra.evaluate(net, (images, labels), "PGD(steps=1)", "Linf(0.1)")

    def audited(net=fine, change="JumpReLU(0.5)", threat="Linf(0.1)"):
        return ra.audit(net, change, digits, threat, battery="quick")

    gelus = ra.Classifier(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.GELU(), nn.Linear(20, 10)),
        shape=(1, 8, 8),
    )
    wide = {**state, "fc.weight": torch.zeros(100, 512), "fc.bias": torch.zeros(100)}
    (folder / "junk.pth").write_bytes(b"hello")
    hard = ra.retrofit(fine, "JumpReLU(0.5)")

    def of_file(path):
        return lambda: ra.load("mine:build", weights=path)

    return {
        "`net.load_state_dict(…)` of a file whose names begin with `module.`": lambda: (
            mine.Net().load_state_dict({f"module.{name}": value for name, value in state.items()})
        ),
        "a whole network in the file, `torch.save(net, …)`": of_file(file("whole.pth", mine.Net())),
        "a file that is no checkpoint": of_file(folder / "junk.pth"),
        "a file in which names are missing": of_file(
            file("part.pth", {k: v for k, v in state.items() if "fc" not in k})
        ),
        "weights of another architecture, or number of classes": of_file(file("wide.pth", wide)),
        'the file in the place of the network, `ra.load("mine.pth")`': lambda: ra.load(
            file("mine.pth", state)
        ),
        "weights of a training that diverged": of_file(
            file("nan.pth", state | {"fc.bias": torch.full((10,), torch.nan)})
        ),
        "whole numbers where floats belong": of_file(
            file("whole-numbers.pth", state | {"fc.bias": torch.ones(10, dtype=torch.int64)})
        ),
        "no weights at all": lambda: audited(ra.load("mine:build")),
        "a name misspelt": lambda: ra.load("lenet-mnits"),
        "a module that cannot be imported": lambda: ra.load("nowhere:build"),
        "the file in the place of the module, `mine.py:build`": lambda: ra.load("mine.py:build"),
        "a function misspelt": lambda: ra.load("mine:buid"),
        "a class that needs arguments": lambda: ra.load("torch.nn:Linear"),
        "the class in the place of the network": lambda: attacked(mine.Net),
        "no shape, where there are no images yet": lambda: ra.retrofit(mine.Net(), "JumpReLU(0.5)"),
        "`mean` and `std` of pixels up to 255": lambda: ra.Classifier(
            mine.Net(), mean=123.7, std=58.4
        ),
        "a network whose answer hangs on its batch": lambda: audited(
            wrapped(lambda z: z + 9 * z.mean(0).roll(1))
        ),
        "logits of two heads": lambda: attacked(wrapped(lambda z: (z, 2 * z))),
        "an `output=` that is not there": lambda: attacked(
            wrapped(lambda z: {"logits": z, "aux": 2 * z}, output="logit")
        ),
        "one logit for two classes": lambda: attacked(wrapped(lambda z: z[:, :1])),
        "probabilities": lambda: attacked(wrapped(lambda z: z.softmax(1))),
        "decisions": lambda: attacked(wrapped(lambda z: z.argmax(1))),
        'a class or a flag "rejected", in an audit': lambda: audited(
            change=wrapped(lambda z: (z, z.amax(1) < 0))
        ),
        "images of another size": lambda: attacked(images=torch.rand(40, 1, 28, 28)),
        "the same, where the Classifier says no shape": lambda: attacked(
            ra.Classifier(mine.Net()), torch.rand(40, 1, 28, 28)
        ),
        "pixels up to 255, as floats": lambda: attacked(images=x * 255),
        "rows of a table, and a network that says no shape": lambda: attacked(
            ra.Classifier(mine.Net()), x.flatten(1)
        ),
        "values of a table outside [0, 1]": lambda: ra.Images.of(
            x.flatten(1) * 8 - 4, y, shape=(64,)
        ),
        "normalised pixels": lambda: attacked(images=(x - 0.3) / 0.4),
        "labels from 1": lambda: attacked(labels=y + 1),
        "one-hot labels": lambda: attacked(labels=nn.functional.one_hot(y)),
        "test data in `tune` or `harden`": lambda: ra.tune(
            fine, "JumpReLU", "digits[:40]", "Linf(0.1)"
        ),
        "an activation misspelt": lambda: audited(change="JumpRelu(0.5)"),
        "a network of GELUs": lambda: audited(gelus),
        "a kind misspelt": lambda: ra.retrofit(gelus, "JumpReLU(0.5)", also="gellu"),
        "a TorchScript network to retrofit": lambda: audited(torch.jit.trace(fine.module, x[:2])),
        "a retrofit of a retrofit": lambda: ra.retrofit(hard, "JumpReLU(0.5)"),
        "a radius in pixels up to 255": lambda: audited(threat="Linf(8)"),
        "a radius at which every image can be made grey": lambda: audited(threat="Linf(0.6)"),
        "`--device cuda` where there is none": lambda: ra.sweep(
            [ra.Cell("digits-cnn", "digits[:2]", ra.PGD(), ra.Linf(0.1))],
            ra.Store(folder / "s.sqlite"),
            device="cuda",
        ),
        '`ra.save(net, "hard.pth")`': lambda: ra.save(hard, folder / "hard.pth"),
    }


def _errors_and_cures():
    """The rows of the guide's table: what was done, and the sentence said of it."""
    table = (ROOT / "docs" / "your-network.md").read_text().split("## Errors and cures")[1]
    rows = [
        [cell.strip() for cell in line[1:-1].split("|")]
        for line in table.splitlines()
        if line.startswith("| ")
    ]
    return {done: said.split("`")[1] for done, said, _ in rows[1:] if "`" in said}


@pytest.fixture
def guide(tmp_path, monkeypatch):
    """The guide's `mine.py` in a folder of its own, imported from there."""
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "your-network.md").read_text(), re.S
    )
    (tmp_path / "mine.py").write_text(blocks[0])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    importlib.import_module("mine")
    torch.manual_seed(0)
    yield _mistakes(tmp_path)
    sys.modules.pop("mine", None)


def test_each_mistake_in_the_guide_gets_its_sentence(guide):
    told = _errors_and_cures()
    assert told.keys() == guide.keys()
    for done, said in told.items():
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                guide[done]()
                found = ""
            except (ValueError, TypeError, RuntimeError) as error:
                found = "; ".join((str(error), *getattr(error, "__notes__", ())))
        assert said in found or any(said in str(w.message) for w in warned), f"{done}: {found}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("name", zoo.names())
def test_the_zoos_table_says_what_each_page_says(name):
    page = zoo.entry(name)
    row = next(
        line
        for line in (ROOT / "docs" / "zoo.md").read_text().splitlines()
        if line.startswith(f"| `{name}` |")
    )
    told = (
        f"{100 * page.accuracy:.2f}% of {page.test_n}",
        f"{100 * page.validation_accuracy:.2f}% of {page.validation_n}",
    )
    assert all(said in row for said in (*told, f"`{page.recipe}`"))
