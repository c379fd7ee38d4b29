"""One training step of RecGOAT: time of its phases beside their floors, peak memory, and the textbook step beside it.

    python benchmarks/step.py --shape baby --recdim 64 256 --data data/baby
    python benchmarks/step.py --shape baby --recdim 800 --textbook 0
    python benchmarks/step.py --shape 20000x8000x150000x384x512

Settings are those of the published Baby command line but for --recdim. The textbook step (benchmarks/textbook.py) has
the same parameters and batches; losses are compared at the start, where both have a new plan, without dropout. It runs in
a process of its own, in turn with ours, so that memory and the way it is allocated do not mix.
"""

import dataclasses
import itertools
import statistics
import sys

import bench
import textbook
import torch

from dataloader import Sampler
from model import make_model
from procedure import float32_products
from world import keep_freed_memory

REFRESH = "cost and Sinkhorn"


def phases(model, batch, config):
    """{phase: (call, bytes, operations)}: forward and backward of each part of a step on its own, of real inputs.

    Bytes count what has to be read and written at least once, with a gathered row of a sparse product counted at every
    edge; operations count multiplications and additions.
    """
    backbone, d, rows = model.backbone, config.recdim, None if model.takes_all() else batch.each_item
    with torch.no_grad():
        user, z_id, z = model.represent()
    leaf = {name: value[batch.each_item].requires_grad_() for name, value in {"id": z_id, **z}.items()}
    n_nodes, n_items = len(user) + len(z_id), len(z_id)
    grad_item, grads = torch.randn_like(z_id), [torch.randn_like(part) for part in backbone.of_batch(batch)]
    nnz = backbone.adjacency.values().numel()
    needed, unique = len(batch.each_item), len(batch.pos_rows)
    pairs = len(leaf) * (len(leaf) - 1) // 2

    def light_gcn():
        torch.autograd.backward(backbone.of_batch(batch), grads)

    def attention(m):
        def call():
            out = model.branch(m, rows)
            out.backward(grad_item[: len(out)])

        return call

    def refresh():
        for m in model.modalities:
            model.fusion.transports[m].potential.zero_()
            model.fusion.transports[m].refresh(z[m], z_id)

    def transport():
        fused = model.fusion(leaf["id"], {m: leaf[m] for m in model.modalities})
        fused.backward(torch.ones_like(fused))

    def losses():
        sum(model.modality_pairs([view.index_select(0, batch.pos_rows) for view in leaf.values()])).backward()

    found = {
        "LightGCN": (
            light_gcn,
            2 * backbone.layers * 4 * d * (nnz + n_nodes),
            2 * backbone.layers * 2 * nnz * d,
        )
    }
    for m in model.modalities:
        edges, dim = (
            len((model.graphs[m] if rows is None else model.graphs[m].at_rows(rows)).target),
            getattr(model, f"{m}_features").shape[1],
        )
        found[f"attention, {m}"] = (
            attention(m),
            4 * (2 * n_items * dim + 3 * edges * d + 6 * n_items * d),
            4 * n_items * dim * d + 6 * edges * d,
        )
    found["transport and fusion"] = (
        transport,
        4 * (6 * needed * d) * len(model.modalities),
        6 * needed * d * d * len(model.modalities),
    )
    found["InfoNCE"] = (losses, 4 * 6 * unique * d * pairs, 6 * unique * unique * d * pairs)
    found[REFRESH] = (
        refresh,
        4 * 2 * n_items * d * len(model.modalities),
        3 * n_items * d * d * len(model.modalities),
    )
    return found


def batches_of(dataset, config, device):
    """The whole batches of one epoch."""
    batches = list(
        Sampler(dataset.interactions.train, dataset.interactions.n_items, config.bpr_batch, 0, device).epoch()
    )
    return batches[:-1] or batches


def stepper(loss, optimizer, batches):
    """A call that makes the next training step."""
    turn = itertools.count()

    def call():
        value = loss(batches[next(turn) % len(batches)])
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()

    return call


def adam(model, optimizer):
    """A call of the optimiser alone, on random gradients."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.grad = 1e-3 * torch.randn_like(weight)
    return optimizer.step


# ---------------------------------------------------------------- a step of either kind


class Ours:
    """The trainer's step: `config.plan_every` of them a call, so that each call has its share of new plans."""

    def __init__(self, shape, config, data, device):
        keep_freed_memory()
        self.device, self.config, self.dataset = (
            device,
            config,
            bench.make_dataset(shape, config, device, data),
        )
        torch.manual_seed(0)
        self.model = make_model(config, self.dataset, device).train()
        self.batches = batches_of(self.dataset, config, device)
        self.optimizer = torch.optim.Adam(
            (p for p in self.model.parameters() if p.requires_grad), lr=config.lr, fused=True
        )
        self.step = stepper(lambda batch: self.model.loss(batch)["loss"], self.optimizer, self.batches)

    def seconds(self):
        """Seconds a step."""
        with float32_products("high" if self.config.precision == "tf32" else "highest"):
            return (
                bench.clock(lambda: [self.step() for _ in range(self.config.plan_every)], self.device)
                / self.config.plan_every
            )

    def loss(self):
        """Loss of the first batch at the start, with a new plan and without dropout."""
        with torch.no_grad():
            _, z_id, z = self.model.eval().represent()
            for m in self.model.modalities:
                self.model.fusion.transports[m].refresh(z[m], z_id)
            loss = float(self.model.loss(self.batches[0])["loss"])
        self.model.train()
        return loss


class Textbook:
    """The step of benchmarks/textbook.py with torch's default optimiser."""

    def __init__(self, shape, config, data, device):
        config = dataclasses.replace(config, precision="fp32")
        self.device, dataset = device, bench.make_dataset(shape, config, device, data)
        dataset.features.update(
            {m: matrix.contiguous() for m, matrix in dataset.features.items()}
        )  # rows, as they are read
        torch.manual_seed(0)
        self.model = make_model(config, dataset, device).train()
        self.batches = batches_of(dataset, config, device)
        self.graphs = {
            "adjacency": textbook.coo_adjacency(dataset.adjacency),
            **{m: textbook.edge_index(g) for m, g in dataset.graphs.items()},
        }
        optimizer = torch.optim.Adam((p for p in self.model.parameters() if p.requires_grad), lr=config.lr)
        self.step = stepper(
            lambda batch: textbook.loss(self.model, self.graphs, *batch[:3]), optimizer, self.batches
        )

    def seconds(self):
        """Seconds a step."""
        return bench.clock(self.step, self.device)

    def loss(self):
        """Loss of the first batch at the start, without dropout."""
        with torch.no_grad():
            loss = float(textbook.loss(self.model.eval(), self.graphs, *self.batches[0][:3]))
        self.model.train()
        return loss


def compare(args, config):
    """Both steps in turn, each in a process of its own: its memory is its own, and so is how it allocates it."""
    with bench.Worker(Ours, args, config) as ours, bench.Worker(Textbook, args, config) as theirs:
        losses = ours.ask("loss"), theirs.ask("loss")
        seconds = {"ours": [], "textbook": []}
        for turn in range(args.repeats + 1):  # the first warms up
            for name, worker in (("textbook", theirs), ("ours", ours)):
                taken = worker.ask("seconds")
                if turn:
                    seconds[name].append(taken)
        peaks = {"ours": ours.ask("peak_memory"), "textbook": theirs.ask("peak_memory")}
    ratio, difference = (
        bench.median_ratio(seconds["textbook"], seconds["ours"]),
        abs(losses[0] - losses[1]) / abs(losses[1]),
    )
    print(
        f"textbook step {bench.spread(seconds['textbook'])}, {peaks['textbook']:.0f} MB; ours {bench.spread(seconds['ours'])}, "
        f"{peaks['ours']:.0f} MB: {ratio:.1f} times faster; losses differ by {difference:.1e}"
    )
    return {"seconds": seconds, "ratio": ratio, "loss_difference": difference, "peak_memory_mb": peaks}


# ---------------------------------------------------------------- tables


def measure(args, recdim, device, machine):
    """Print the tables of one embedding size. Returns its figures."""
    config = bench.baby_command(recdim=recdim, bpr_batch=args.batch, precision=args.precision)
    bench.reset_peak_memory()
    ours = Ours(args.shape, config, args.data, device)
    ours.seconds()
    steps = [ours.seconds() for _ in range(args.repeats)]
    figures = {
        "recdim": recdim,
        "batch": config.bpr_batch,
        "step": steps,
        "peak_memory_mb": bench.peak_memory(device),
    }
    ours.step()  # the one with new plans; the phases are those of the others
    parts = phases(ours.model, ours.batches[0], config)
    ours.model.zero_grad()
    parts["Adam"] = (
        adam(ours.model, ours.optimizer),
        7 * 4 * sum(w.numel() for w in ours.model.parameters() if w.requires_grad),
        0,
    )
    timed = bench.interleave({name: part[0] for name, part in parts.items()}, args.repeats, device)
    print(
        f"\nrecdim {recdim}, batch {config.bpr_batch}, {args.precision}: {bench.spread(steps)} a step (mean over {config.plan_every}, "
        f"with one new plan), peak memory {figures['peak_memory_mb']:.0f} MB"
    )
    rows, middle = [], statistics.median(steps)
    for name, (_, nbytes, operations) in parts.items():
        share, floor = (
            statistics.median(timed[name]) / (config.plan_every if name == REFRESH else 1),
            machine.floor(nbytes, operations),
        )
        rows.append(
            [
                name + (f" (1 step in {config.plan_every})" if name == REFRESH else ""),
                bench.spread(timed[name]),
                f"{floor * 1e3:.3g} ms",
                f"{statistics.median(timed[name]) / floor:.1f}x",
                f"{100 * share / middle:.0f} %",
            ]
        )
        figures[name] = {"seconds": timed[name], "floor": floor}
    print(bench.table(rows, ["phase", "forward and backward", "floor", "over floor", "of the step"]))
    del ours, parts
    if args.textbook:
        figures["textbook"] = compare(args, config)
    return figures


def main():
    """Measure and print. Returns the exit code."""
    parser = bench.make_parser(
        "Time and memory of one training step, phase by phase, against floors and the textbook."
    )
    parser.add_argument("--recdim", type=int, nargs="+", default=[64, 256], help="embedding sizes")
    parser.add_argument("--batch", type=int, default=4096, help="triples a step")
    parser.add_argument("--precision", default="fp32", help="as main.py's")
    parser.add_argument(
        "--textbook",
        type=int,
        default=1,
        choices=(0, 1),
        help="0 leaves the textbook step out (its cost tensor is [I, d, d])",
    )
    args = parser.parse_args()
    device = bench.start(args)
    machine = bench.measure_machine(device)
    print(f"step, {args.shape.name}: {bench.machine_line(device, machine)}")
    figures = [measure(args, recdim, device, machine) for recdim in args.recdim]
    bench.write_json(args, "step", {"machine": vars(machine), "figures": figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
