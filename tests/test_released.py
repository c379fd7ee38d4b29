"""--recipe released against numbers of the authors' code: every stage, the gradients, 60 steps, the metrics.

tests/released/README.md says where the numbers come from. Differences are relative to the largest entry of an
array; the numbers are of float64.
"""

import numpy as np
import pytest
import torch
from helpers import dataset_of
from model_helpers import CPU, batch_of
from released_oracle import digest, digests, initial_weights, read_oracle, write_tiny
from small_runs import flags

from layers.sparse import csr_tensor
from parse import parse_args
from session import make_model
from training.evaluation import make_splits, score

CASES = {
    "oat": {
        "fusion": "oat",
        "item_branch_layers": 1,
        "bpr_batch": 512,
        "lr": 5e-3,
        "contrastive_weight": 0.3,
    },
    "concat": {"fusion": "concat", "contrastive_weight": 0.032},
    "sum": {"fusion": "sum", "contrastive_weight": 0.032},
    "text": {"fusion": "oat", "contrastive_weight": 0.032},
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
# Gradients of the attention vectors are small differences of large sums.
GRADIENT_TOLERANCE = {torch.float64: 1e-10, torch.float32: 5e-5}


@pytest.fixture(scope="module")
def oracle():
    return read_oracle()


@pytest.fixture(scope="module")
def tiny(oracle, tmp_path_factory):
    """The dataset folder of the oracle."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    write_tiny(oracle, folder)
    return folder


def config_of(tiny, case):
    """Settings as a command line of the released code gives them, without dropout."""
    given = {"recipe": "released", "model": "lgn_mm", "dataset": "tiny", "data_root": tiny.parent, "cuda": 0}
    given |= {"recdim": 32, "layer": 3, "item_knn_k": 10, "fuse_drop": 0.0, **CASES[case]}
    if case == "text":
        given["text_feat"] = tiny / "text_feat.npy"
    return parse_args(flags(given))[0]


class Case:
    """A model with the oracle's initial weights, and the oracle's numbers about it."""

    def __init__(self, oracle, tiny, name, dtype):
        self.oracle, self.name, self.dtype = oracle, name, dtype
        self.config = config_of(tiny, name)
        self.data = dataset_of(self.config)
        self.model = make_model(self.config, self.data, CPU).to(dtype)
        weights = initial_weights(oracle, name)
        parameters = dict(self.model.named_parameters())
        assert weights.keys() == parameters.keys()
        for key, weight in weights.items():
            assert weight.shape == parameters[key].shape
            parameters[key].data.copy_(weight)
        # The released code normalises the graph in float32, and the last bit of its values is its own.
        graph, values = self.model.backbone.adjacency, torch.from_numpy(oracle["adj/val"]).to(dtype)
        pattern = graph.crow_indices(), graph.col_indices()
        self.model.backbone.adjacency = csr_tensor(*pattern, values, graph.shape)
        self.batches = [batch_of(*triples.tolist()) for triples in oracle[f"{name}/batches"]]

    def expect(self, key, value):
        """Assert that a value equals the number stored under a key; of a matrix a digest is stored."""
        expected = self.oracle[f"{self.name}/{key}"]
        value = value.detach().double().numpy()
        close(key, digest(value) if value.ndim else value, expected, TOLERANCE[self.dtype])

    def check_vectors(self, stage):
        user, item = self.model.embeddings()
        _, z_id, z = self.model.represent()
        self.expect(f"{stage}/z/user", user)
        self.expect(f"{stage}/z/fused", item)
        for view, vectors in {"id": z_id, **z}.items():
            self.expect(f"{stage}/z/{view}", vectors)

    def check_transport(self, stage):
        _, z_id, z = self.model.represent()
        plans = self.model.fusion.plans(z_id, z)
        assert plans.keys() == {"text", "image"}
        for m, plan in plans.items():
            transport = self.model.fusion.transport(m)
            self.expect(f"{stage}/cost/{m}", transport.cost(z[m], z_id))
            self.expect(f"{stage}/plan/{m}", plan)
            self.expect(f"{stage}/moved/{m}", transport(z[m], plan))

    def check_loss(self, stage):
        """Every term of the loss on the first batch, the total, and all gradients."""
        terms = self.model.loss(self.batches[0])
        names = {"bpr": "bpr", "norm": "norm", "ui": "user_item_nce", "contrastive": "contrastive"}
        for key, name in {**names, "total": "loss"}.items():
            self.expect(f"{stage}/loss/{key}", terms[name])
        _, z_id, z = self.model.represent()
        for part, items in (("pos", self.batches[0].pos), ("neg", self.batches[0].neg)):
            pairs = self.model.modality_pairs([z_id, z["image"], z["text"]], items.unique(), items)
            for name, value in zip(("id_image", "id_text", "image_text"), pairs, strict=True):
                self.expect(f"{stage}/loss/{name}/{part}", value)
        self.model.zero_grad()
        terms["loss"].backward()
        gradients = {name: p.grad.double().numpy() for name, p in self.model.named_parameters()}
        expected = digests(self.oracle, f"{self.name}/{stage}/grad/")
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            close(f"gradient of {name}", digest(gradient), expected[name], GRADIENT_TOLERANCE[self.dtype])

    def check_metrics(self, stage):
        splits = make_splits(self.data.interactions, self.config, CPU)
        for metrics in score(self.model, self.data.interactions, list(splits), self.config):
            for name in ("recall", "ndcg"):
                expected = self.oracle[f"{self.name}/{stage}/eval/{name}"]
                assert metrics[f"{name}@10"] == pytest.approx(float(expected), rel=1e-10)

    def check(self, stage):
        self.check_vectors(stage)
        if self.config.fusion == "oat":
            self.check_transport(stage)
        self.check_loss(stage)
        self.check_metrics(stage)


def close(name, value, expected, tolerance):
    """Assert that the largest difference is at most `tolerance` times the largest expected entry."""
    assert np.shape(value) == np.shape(expected), name
    difference = np.abs(value - expected).max() / max(np.abs(expected).max(), 1e-30)
    assert difference <= tolerance, f"{name}: {difference}"


@pytest.fixture
def case(oracle, tiny, request):
    return Case(oracle, tiny, *request.param)


def cases(*names):
    parameters = [(name, dtype) for name in names for dtype in TOLERANCE]
    return pytest.mark.parametrize(
        "case", parameters, ids=[f"{name}-{str(dtype)[6:]}" for name, dtype in parameters], indirect=True
    )


@cases("oat", "concat", "sum", "text")
def test_every_stage_equals_the_released_code(case):
    case.model.train()
    case.check("s0")


def test_graphs_equal_those_of_the_released_code(oracle, tiny):
    config = config_of(tiny, "oat")
    model = make_model(config, dataset_of(config), CPU)
    for m, graph in model.graphs.items():
        found = set(zip(graph.source.tolist(), graph.target.tolist()))
        pairs = set(map(tuple, oracle[f"edges/{m}"].tolist()))
        assert found == pairs | {(b, a) for a, b in pairs} | {(i, i) for i in range(graph.n)}
        assert len(graph.source) == len(found)
    adjacency = model.backbone.adjacency.to_sparse_coo().coalesce()
    assert np.array_equal(adjacency.indices().numpy(), oracle["adj/idx"])
    np.testing.assert_allclose(adjacency.values().numpy(), oracle["adj/val"], rtol=2e-7)


def train(case, steps):
    """The losses of the first steps on the batches of the oracle."""
    optimizer, losses = torch.optim.Adam(case.model.parameters(), case.config.lr), []
    case.model.train()
    for step, batch in enumerate(case.batches[:steps]):
        case.model.begin_step(step)
        terms = case.model.loss(batch)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(terms["loss"].item())
    return np.array(losses)


def test_sixty_steps_equal_those_of_the_released_code(oracle, tiny):
    case = Case(oracle, tiny, "oat", torch.float64)
    losses, expected = train(case, 60), oracle["oat/losses"]
    assert len(expected) == 60 and losses[-1] < 0.5 * losses[0]
    np.testing.assert_allclose(losses, expected, rtol=1e-10)
    weights = {name: p.detach().numpy() for name, p in case.model.named_parameters()}
    for name, value in digests(oracle, "oat/final/").items():
        close(name, digest(weights[name]), value, 1e-10)
    case.check("s1")


def test_steps_in_single_precision_equal_those_of_the_released_code(oracle, tiny):
    # Adam divides by the size of the gradient, which amplifies rounding: 7e-5 after 60 steps.
    losses = train(Case(oracle, tiny, "oat", torch.float32), 8)
    np.testing.assert_allclose(losses, oracle["oat/losses"][:8], rtol=1e-5)
