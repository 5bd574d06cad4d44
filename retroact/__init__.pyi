# The public names, each beside its home. `retroact/__init__.py` reads this list and imports a name's
# home when the name is first used, so that `import retroact` (and `retroact --help`) need no torch.
from retroact.attacks.driver import craft as craft
from retroact.attacks.fgsm import FGSM as FGSM
from retroact.attacks.goals import LeastLikely as LeastLikely
from retroact.attacks.goals import Random as Random
from retroact.attacks.goals import Targeted as Targeted
from retroact.attacks.goals import Untargeted as Untargeted
from retroact.attacks.oracle import Oracle as Oracle
from retroact.attacks.pgd import PGD as PGD
from retroact.attacks.threat import L2 as L2
from retroact.attacks.threat import Linf as Linf
from retroact.checkpoint import load as load
from retroact.checkpoint import save as save
from retroact.evaluation.evaluate import evaluate as evaluate
from retroact.evaluation.metrics import clean_accuracy as clean_accuracy
from retroact.evaluation.metrics import rho as rho
from retroact.evaluation.metrics import robust_accuracy as robust_accuracy
from retroact.evaluation.metrics import success_rate as success_rate
from retroact.evaluation.metrics import wilson as wilson
from retroact.evaluation.metrics import worst_case as worst_case
from retroact.evaluation.record import Record as Record
from retroact.experiments.cell import Cell as Cell
from retroact.experiments.cell import Model as Model
from retroact.experiments.store import Store as Store
from retroact.experiments.sweep import grid as grid
from retroact.experiments.sweep import sweep as sweep
from retroact.experiments.tuning import tune as tune
from retroact.nets.classifier import Classifier as Classifier
from retroact.nets.data import Images as Images
from retroact.nets.data import data as data
from retroact.reports.html import report as report
from retroact.retrofitting.activations import CELU as CELU
from retroact.retrofitting.activations import BoundedReLU as BoundedReLU
from retroact.retrofitting.activations import JumpReLU as JumpReLU
from retroact.retrofitting.activations import PerSite as PerSite
from retroact.retrofitting.activations import ReLU as ReLU
from retroact.retrofitting.activations import ShiftedReLU as ShiftedReLU
from retroact.retrofitting.activations import Sigmoid as Sigmoid
from retroact.retrofitting.activations import Softplus as Softplus
from retroact.retrofitting.activations import Softsign as Softsign
from retroact.retrofitting.activations import SReLU as SReLU
from retroact.retrofitting.activations import Swish as Swish
from retroact.retrofitting.activations import Tanh as Tanh
from retroact.retrofitting.export import export as export
from retroact.retrofitting.folding import fold as fold
from retroact.retrofitting.sites import sites as sites
from retroact.retrofitting.surgery import retrofit as retrofit
from retroact.spec import key as key
from retroact.spec import parse as parse
from retroact.spec import show as show
from retroact.training.train import train as train

__all__: list[str]
__version__: str
