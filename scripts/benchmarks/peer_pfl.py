"""apple/pfl-research 0.6.0 on the fixed workload, FedAvg with central Gaussian DP, one process, one thread.

    python -m benchmarks.peer_pfl mlp 500      # model, users a round
Needs its own environment, see peers.py. A unit of work is a whole round: local training of every user, clipping, sum,
central noise, server step.
"""

import sys

import torch
from pfl.internal.ops import pytorch_ops
from pfl.internal.ops.selector import set_framework_module
from torch import nn

set_framework_module(pytorch_ops)

from pfl.aggregate.simulate import SimulatedBackend  # noqa: E402
from pfl.algorithm.base import NNAlgorithmParams  # noqa: E402
from pfl.algorithm.federated_averaging import FederatedAveraging  # noqa: E402
from pfl.callback.base import TrainingProcessCallback  # noqa: E402
from pfl.data.federated_dataset import FederatedDataset  # noqa: E402
from pfl.data.pytorch import PyTorchTensorDataset  # noqa: E402
from pfl.data.sampling import get_user_sampler  # noqa: E402
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams  # noqa: E402
from pfl.metrics import Metrics, Weighted  # noqa: E402
from pfl.model.pytorch import PyTorchModel  # noqa: E402
from pfl.privacy.gaussian_mechanism import GaussianMechanism  # noqa: E402
from pfl.privacy.privacy_mechanism import CentrallyAppliedPrivacyMechanism  # noqa: E402

from benchmarks import workload  # noqa: E402
from benchmarks.turns import Turns  # noqa: E402

ROUNDS = 10**6  # it is stopped from outside; evaluation would come every so many rounds


class Net(nn.Module):
    def __init__(self, kind: str):
        super().__init__()
        self.net = workload.model(kind)

    def loss(self, x, y, eval=False):
        self.train(not eval)
        return nn.functional.cross_entropy(self.net(x), y)

    def metrics(self, x, y, eval=True):
        return {"loss": Weighted(0.0, 1)}


class Clock(TrainingProcessCallback):
    def __init__(self, users: int):
        self.users = users
        self.turns = Turns()

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        return not self.turns.go_on(self.users), Metrics()


def main() -> None:
    kind, count = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    x, y = workload.users(count)
    data = FederatedDataset(
        lambda user: PyTorchTensorDataset(tensors=[x[user], y[user]]),
        get_user_sampler("minimize_reuse", list(range(count))),
    )
    net = Net(kind)
    backend = SimulatedBackend(
        training_data=data,
        val_data=data,
        postprocessors=[CentrallyAppliedPrivacyMechanism(GaussianMechanism(workload.CLIP, 0.5))],
    )
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=ROUNDS, evaluation_frequency=ROUNDS, train_cohort_size=count, val_cohort_size=0
        ),
        backend=backend,
        model=PyTorchModel(
            net,
            local_optimizer_create=torch.optim.SGD,
            central_optimizer=torch.optim.SGD(net.parameters(), lr=1.0),
        ),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=workload.LR, local_batch_size=workload.BATCH
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=50),
        callbacks=[Clock(count)],
    )


if __name__ == "__main__":
    main()
