"""Time and memory of a training step of RecGOAT: its phases beside their lower bounds, and the textbook step.

    python benchmarks/step.py --shape baby --recdim 64 256 --data $RECGOAT_TEST_DATA/baby
    python benchmarks/step.py --shape baby --recdim 800 --textbook 0
    python benchmarks/step.py --shape 20000x8000x150000x384x512

All settings except --recdim, --batch and --precision are those of the published Baby command line. The
textbook step (benchmarks/textbook.py) has the same parameters and batches. It runs alternately with ours, in
a process of its own, so that neither side affects the other's memory. The losses of the two are compared
before training, with fresh transport plans and without dropout.
"""

import argparse
import dataclasses
import itertools
import statistics
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import torch

from benchmarks import bench, textbook
from dataloader import Batch, Dataset, Sampler
from layers.attention import AttentionGraph
from model import RecGOAT, Transport
from procedure import float32_products
from training.memory import keep_freed_memory
from world import Config

PLAN = "plan refresh"
FLOAT = 4  # bytes

# ---------------------------------------------------------------- phases of a step


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of the training step, forward and backward, and the work that it cannot avoid.

    A byte counts if it has to be read or written at least once; of a sparse product, the row that an edge
    gathers counts for every edge. A multiply-add is two operations.
    """

    call: Callable[[], typing.Any]
    nbytes: float
    operations: float


def make_phases(model: RecGOAT, batch: Batch) -> dict[str, Phase]:
    """The parts of a training step on a batch, each with real inputs and independent of the others."""
    with torch.no_grad():
        _, z_id, z = model.represent(items=batch.unique_items)
    views = {name: view.requires_grad_() for name, view in {"id": z_id, **z}.items()}
    return {
        "LightGCN": lightgcn_phase(model, batch),
        **{f"attention, {m}": attention_phase(model, m, batch) for m in model.modalities},
        "transport and fusion": fusion_phase(model, views),
        "InfoNCE": contrastive_phase(model, views, batch),
        PLAN: plan_phase(model),
    }


def lightgcn_phase(model: RecGOAT, batch: Batch) -> Phase:
    """Propagation of the ID embeddings, and the norm of those of the batch."""
    backbone = model.backbone
    with torch.no_grad():
        vectors = backbone.embeddings(batch.unique_users, batch.unique_items)
    gradients = [torch.randn_like(part) for part in vectors]

    def call() -> None:
        vectors = backbone.embeddings(batch.unique_users, batch.unique_items)
        torch.autograd.backward([*vectors, backbone.norm(batch)], [*gradients, None])

    nbytes, operations = propagation_work(model)
    return Phase(call, 2 * nbytes, 2 * operations)


def propagation_work(model: RecGOAT) -> tuple[float, float]:
    """Bytes and operations of propagating all embeddings once, without gradients."""
    config, adjacency = model.config, model.backbone.adjacency
    edges = adjacency.values().numel()
    return config.layer * FLOAT * config.recdim * (
        edges + len(adjacency)
    ), config.layer * 2 * edges * config.recdim


def attention_phase(model: RecGOAT, modality: str, batch: Batch) -> Phase:
    """Attention of one modality to the items of a batch."""
    branch, graph, x = model.branches[modality], graph_of(model, modality), model.features(modality)
    items, d = batch.unique_items, model.config.recdim
    gradient = torch.randn(len(items), d, device=x.device)
    edges, (n, dim) = len(graph.select_targets(items).target), x.shape
    return Phase(
        lambda: branch(graph, x, items).backward(gradient),
        FLOAT * (2 * n * dim + 3 * edges * d + 6 * n * d),
        4 * n * dim * d + 6 * edges * d,
    )


def fusion_phase(model: RecGOAT, views: dict[str, torch.Tensor]) -> Phase:
    """Transport and fusion of the vectors of a batch's items."""
    z = {m: views[m] for m in model.modalities}
    (n, d), gradient = views["id"].shape, torch.ones_like(views["id"])
    return Phase(
        lambda: model.fusion(views["id"], z).backward(gradient),
        FLOAT * 6 * n * d * len(z),
        6 * n * d * d * len(z),
    )


def contrastive_phase(model: RecGOAT, views: dict[str, torch.Tensor], batch: Batch) -> Phase:
    """InfoNCE of every pair of views of a batch's positive items."""

    rows, index = batch.unique_pos, batch.pos_index

    def call() -> None:
        torch.stack(model.modality_pairs(list(views.values()), rows, index)).sum().backward()

    n, d, pairs = len(batch.unique_pos), model.config.recdim, len(views) * (len(views) - 1) // 2
    return Phase(call, FLOAT * 6 * n * d * pairs, 6 * n * n * d * pairs)


def plan_phase(model: RecGOAT) -> Phase:
    """Refresh of the transport plans: vectors of all items, cost and Sinkhorn. The bound omits Sinkhorn."""
    transports = [typing.cast(Transport, transport) for transport in model.fusion.transports.values()]

    def call() -> None:
        # A repeated refresh would converge at once from the last potential, which training never does.
        for transport in transports:
            transport.potential.zero_()
        model.begin_step(0)

    d = model.config.recdim
    nbytes, operations = propagation_work(model)
    for m in model.modalities:
        edges, (n, dim) = len(graph_of(model, m).target), model.features(m).shape
        nbytes += FLOAT * (n * dim + edges * d + 2 * n * d) + FLOAT * 2 * n * d
        operations += 2 * n * dim * d + 2 * edges * d + 3 * n * d * d
    return Phase(call, nbytes, operations)


def adam_phase(model: RecGOAT, optimizer: torch.optim.Optimizer) -> Phase:
    """The optimiser alone, on random gradients."""
    for weight in trained_weights(model):
        weight.grad = 1e-3 * torch.randn_like(weight)
    return Phase(optimizer.step, adam_bytes(model), 0)


def trained_weights(model: RecGOAT) -> list[torch.nn.Parameter]:
    """The parameters that the optimiser changes."""
    return [weight for weight in model.parameters() if weight.requires_grad]


def adam_bytes(model: RecGOAT) -> float:
    """Bytes of a step of Adam: weight, gradient and two moments are read, all but the gradient written."""
    return FLOAT * 7 * sum(weight.numel() for weight in trained_weights(model))


def step_floor(model: RecGOAT, batch: Batch, machine: bench.Machine) -> float:
    """Lower bound in seconds of the mean step: the sum over its phases, with its share of a plan refresh."""
    floors = {name: machine.floor(p.nbytes, p.operations) for name, p in make_phases(model, batch).items()}
    floors[PLAN] /= model.config.plan_every
    return sum(floors.values()) + machine.floor(adam_bytes(model), 0)


def graph_of(model: RecGOAT, modality: str) -> AttentionGraph:
    """The item graph of a modality."""
    return typing.cast(AttentionGraph, model.graphs[modality])


# ---------------------------------------------------------------- both kinds of step


def whole_batches(dataset: Dataset, config: Config, device: torch.device) -> list[Batch]:
    """The batches of one epoch without the last, which may be smaller."""
    data = dataset.interactions
    batches = list(Sampler(data.train, data.n_items, config.bpr_batch, 0, device).epoch())
    return batches[:-1] or batches


def make_stepper(
    loss: Callable[[Batch], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    begin_step: Callable[[int], None] = lambda step: None,
) -> Callable[[], None]:
    """A function that makes the next training step each time it is called, like the trainer."""
    steps = itertools.count()

    def make_step() -> None:
        step = next(steps)
        begin_step(step)
        value = loss(batches[step % len(batches)])
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()

    return make_step


class Ours:
    """The trainer's step on a dataset of a shape."""

    def __init__(self, shape: bench.Shape, config: Config, data: str, device: torch.device):
        keep_freed_memory()
        self.device, self.config = device, config
        self.dataset = bench.make_dataset(shape, config, device, data)
        torch.manual_seed(0)
        self.model = RecGOAT(config, self.dataset).to(device).train()
        self.batches = whole_batches(self.dataset, config, device)
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.Adam(weights, lr=config.lr, fused=True)
        self.step = make_stepper(
            lambda batch: self.model.loss(batch)["loss"], self.optimizer, self.batches, self.model.begin_step
        )

    def seconds(self) -> float:
        """Mean seconds of `plan_every` steps, one of which refreshes the transport plans."""

        def steps() -> None:
            for _ in range(self.config.plan_every):
                self.step()

        with float32_products("high" if self.config.precision == "tf32" else "highest"):
            return bench.time_call(steps, self.device)[0] / self.config.plan_every

    def loss(self) -> float:
        """Loss of the first batch with fresh plans and without dropout."""
        self.model.eval()
        self.model.begin_step(0)
        with torch.no_grad():
            loss = float(self.model.loss(self.batches[0])["loss"])
        self.model.train()
        return loss


class Textbook:
    """The step of benchmarks/textbook.py, in float32 and with torch's default Adam."""

    def __init__(self, shape: bench.Shape, config: Config, data: str, device: torch.device):
        self.device = device
        config = dataclasses.replace(config, precision="fp32")
        dataset = bench.make_dataset(shape, config, device, data)
        # In row-major order, as they are in the file.
        dataset.features.update({m: matrix.contiguous() for m, matrix in dataset.features.items()})
        torch.manual_seed(0)
        self.model = RecGOAT(config, dataset).to(device).train()
        self.batches = whole_batches(dataset, config, device)
        self.graphs = textbook.graphs_of(self.model)
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.step = make_stepper(self.batch_loss, torch.optim.Adam(weights, lr=config.lr), self.batches)

    def batch_loss(self, batch: Batch) -> torch.Tensor:
        """Loss of a batch, which computes its own transport plans."""
        return textbook.loss(self.model, self.graphs, batch.users, batch.pos, batch.neg)

    def seconds(self) -> float:
        """Seconds of a step."""
        return bench.time_call(self.step, self.device)[0]

    def loss(self) -> float:
        """Loss of the first batch without dropout."""
        self.model.eval()
        with torch.no_grad():
            loss = float(self.batch_loss(self.batches[0]))
        self.model.train()
        return loss


# ---------------------------------------------------------------- measurements


def measure(
    args: argparse.Namespace, recdim: int, device: torch.device, machine: bench.Machine
) -> bench.Figures:
    """Print the tables of one embedding size. Returns its figures."""
    config = bench.baby_config(recdim=recdim, bpr_batch=args.batch, precision=args.precision)
    figures = {"recdim": recdim, "batch": config.bpr_batch, **measure_ours(args, config, device, machine)}
    if args.textbook:
        figures["textbook"] = compare(args, config)
    return figures


def measure_ours(
    args: argparse.Namespace, config: Config, device: torch.device, machine: bench.Machine
) -> bench.Figures:
    """Time our step and its phases, and print them. Returns the figures."""
    bench.reset_peak_memory()
    ours = Ours(args.shape, config, args.data, device)
    ours.seconds()
    steps = [ours.seconds() for _ in range(args.repeats)]
    peak = bench.peak_memory(device)
    phases = make_phases(ours.model, ours.batches[0])
    ours.model.zero_grad()
    phases["Adam"] = adam_phase(ours.model, ours.optimizer)
    seconds = bench.alternate({name: phase.call for name, phase in phases.items()}, args.repeats, device)
    floors = {name: machine.floor(phase.nbytes, phase.operations) for name, phase in phases.items()}
    print(
        f"\nrecdim {config.recdim}, batch {config.bpr_batch}, {config.precision}: "
        f"{bench.format_times(steps)} per step (mean of {config.plan_every}, one with a plan refresh), "
        f"peak memory {peak:.0f} MB"
    )
    print(phase_table(seconds, floors, statistics.median(steps), config.plan_every))
    phase_figures = {name: {"seconds": seconds[name], "floor": floors[name]} for name in phases}
    return {"step": steps, "peak_memory_mb": peak, **phase_figures}


def phase_table(
    seconds: dict[str, list[float]], floors: dict[str, float], step: float, plan_every: int
) -> str:
    """Table of the phases: time, lower bound, and share of the median step."""
    rows = []
    for name, times in seconds.items():
        median, every = statistics.median(times), plan_every if name == PLAN else 1
        rows.append(
            [
                f"{name} (1 step in {every})" if name == PLAN else name,
                bench.format_times(times),
                f"{floors[name] * 1e3:.3g} ms",
                f"{median / floors[name]:.1f}x",
                f"{100 * median / every / step:.0f} %",
            ]
        )
    return bench.format_table(
        rows, ["phase", "forward and backward", "lower bound", "time / bound", "share of step"]
    )


def compare(args: argparse.Namespace, config: Config) -> bench.Figures:
    """Time both kinds of step alternately, each in its own process, and print them. Returns the figures."""
    seconds: dict[str, list[float]] = {"textbook": [], "ours": []}
    with bench.Worker(Textbook, args, config) as theirs, bench.Worker(Ours, args, config) as ours:
        workers = {"textbook": theirs, "ours": ours}
        losses = {name: worker.ask("loss") for name, worker in workers.items()}
        for turn in range(args.repeats + 1):
            for name, worker in workers.items():
                taken = worker.ask("seconds")
                if turn:  # the first turn is the warm-up
                    seconds[name].append(taken)
        peaks = {name: worker.ask("peak_memory") for name, worker in workers.items()}
    ratio = bench.median_ratio(seconds["textbook"], seconds["ours"])
    difference = abs(losses["ours"] - losses["textbook"]) / abs(losses["textbook"])
    print(
        f"textbook step {bench.format_times(seconds['textbook'])}, {peaks['textbook']:.0f} MB; "
        f"ours {bench.format_times(seconds['ours'])}, {peaks['ours']:.0f} MB: {ratio:.1f} times faster; "
        f"relative difference of the losses {difference:.1e}"
    )
    return {"seconds": seconds, "ratio": ratio, "loss_difference": difference, "peak_memory_mb": peaks}


def main() -> int:
    """Measure and print. Returns the exit code."""
    parser = bench.make_parser(
        "Time and memory of a training step and its phases, beside lower bounds and the textbook step."
    )
    parser.add_argument("--recdim", type=int, nargs="+", default=[64, 256], help="embedding sizes")
    parser.add_argument("--batch", type=int, default=4096, help="triples in a step")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "tf32", "bf16"), help="as in main.py")
    parser.add_argument(
        "--textbook",
        type=int,
        default=1,
        choices=(0, 1),
        help="0 omits the textbook step, whose cost tensor is [items, recdim, recdim]",
    )
    args = parser.parse_args()
    device = bench.set_up(args)
    machine = bench.measure_machine(device)
    print(f"step, {args.shape.name}: {bench.describe_machine(device, machine)}")
    figures = [measure(args, recdim, device, machine) for recdim in args.recdim]
    bench.write_figures(args, "step", {"machine": vars(machine), "figures": figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
