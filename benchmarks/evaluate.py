"""A full evaluation, valid and test over all items: time beside its floor, per-user loops, and a training epoch.

    python benchmarks/evaluate.py --data data/baby --recdim 64
    python benchmarks/evaluate.py --shape electronics --recdim 200 --users 2000 --epoch 0 --train_steps 20

The loops are those of benchmarks/textbook.py: a matrix-vector product, a mask, topk and Python sets for every user and
split. --users limits the users they are timed on; their time is then scaled to all. Both sides start from the same
vectors, and their metrics are compared. What ours takes depends on how many relevant items are near the top, so the
vectors are those of a LightGCN that is trained first. The matrix product of all scores, of which ours makes a part, stands beside.
"""

import dataclasses
import sys

import bench
import textbook
import torch
from step import Ours, stepper
from tqdm import tqdm

from model import make_model
from procedure import splits_of
from training.ranking import evaluate


def items_by_user(pairs, limit):
    """[n, 2] pairs -> {user: list of items} of the first `limit` users."""
    rows = {}
    for user, item in pairs.tolist():
        rows.setdefault(user, []).append(item)
    return dict(sorted(rows.items())[:limit])


def trained_vectors(config, ours, steps):
    """User and item vectors of a model that config names, after training steps on the data and batches of an Ours."""
    model = make_model(config, ours.dataset, ours.device).train()
    step = stepper(
        lambda batch: model.loss(batch)["loss"],
        torch.optim.Adam(model.parameters(), lr=config.lr, fused=True),
        ours.batches,
    )
    for _ in tqdm(range(steps), desc="training", leave=False, delay=2):
        step()
    with torch.inference_mode():
        return model.eval().embeddings()


def measure(args, recdim, device, machine):
    """Print the figures of one embedding size and return them."""
    config = bench.baby_command(recdim=recdim, precision=args.precision)
    ours = Ours(args.shape, config, args.data, device)
    data, ks = ours.dataset.interactions, (10, 20)
    splits = splits_of(data, config, device)
    user, item = trained_vectors(
        dataclasses.replace(config, model="lgn", lr=5e-3, decay=1e-2), ours, args.train_steps
    )
    ours.model.eval()
    masked = items_by_user(data.train, args.shape.users)
    wanted = [items_by_user(pairs, args.users) for pairs in (data.valid, data.test)]
    found = {}

    def whole():
        found["ours"] = evaluate(user, item, splits, ks, args.chunk)

    def embeddings():
        with torch.inference_mode():
            ours.model.embeddings()

    def loops():
        found["loops"] = [textbook.evaluate(user, item, masked, relevant, ks) for relevant in wanted]

    bench.reset_peak_memory()
    embeddings()
    whole()
    peak = bench.peak_memory(device)
    calls = {"evaluation": whole, "embeddings": embeddings}
    if args.users:
        calls["loops"] = loops
    with torch.inference_mode():
        seconds = bench.interleave(calls, args.repeats, device)
    users = sum(len(split.users) for split in splits)
    ranked = users if not splits[1].ranks_like(splits[0]) else len(splits[0].users)
    product = machine.floor(4 * ranked * item.shape[0], 2 * ranked * item.shape[0] * recdim)
    middle = {name: sorted(times)[len(times) // 2] for name, times in seconds.items()}
    total = middle["evaluation"] + middle["embeddings"]
    print(
        f"\nrecdim {recdim}: {len(splits[0].users)} + {len(splits[1].users)} users x {len(item)} items, {ranked} rankings\n"
        f"  embeddings {bench.spread(seconds['embeddings'])}, once\n"
        f"  ranking and metrics {bench.spread(seconds['evaluation'])}; all scores alone at least {product * 1e3:.3g} ms; "
        f"recall@20 {found['ours'][0]['recall@20']:.4f} and {found['ours'][1]['recall@20']:.4f}\n"
        f"  together {total:.3g} s, peak memory {peak:.0f} MB"
    )
    figures = {
        "recdim": recdim,
        "seconds": seconds,
        "all_scores": product,
        "metrics": found["ours"],
        "peak_memory_mb": peak,
    }
    if args.users:
        scale = users / sum(map(len, wanted))
        same = (
            [max(abs(a[name] - b[name]) for name in b) for a, b in zip(found["ours"], found["loops"])]
            if scale == 1
            else []
        )
        ratios = [scale * loop / fast for loop, fast in zip(seconds["loops"], seconds["evaluation"])]
        figures["loops_over_ours"] = sorted(ratios)[len(ratios) // 2]
        print(
            f"  per-user loops {scale * middle['loops']:.3g} s: {figures['loops_over_ours']:.0f} times as long"
            + (f"; metrics differ by {max(same):.1e}" if same else "")
        )
    if args.epoch:
        ours.model.train()
        ours.seconds()
        step = ours.seconds()
        epoch = step * -(-len(data.train) // config.bpr_batch)
        figures["epoch"] = epoch
        print(
            f"  a training epoch {epoch:.3g} s ({step:.3g} s a step): evaluation is {100 * total / epoch:.1f} % of it"
        )
    return figures


def main():
    """Measure and print. Returns the exit code."""
    parser = bench.make_parser(
        "Time and memory of a full evaluation against per-user loops and a training epoch."
    )
    parser.add_argument("--recdim", type=int, nargs="+", default=[64], help="embedding sizes")
    parser.add_argument(
        "--chunk", type=int, default=0, help="users scored at a time; 0: as many as suit the device"
    )
    parser.add_argument(
        "--users", type=int, default=10**9, help="users of each split for the loops; 0 leaves them out"
    )
    parser.add_argument(
        "--train_steps",
        type=int,
        default=1200,
        help="training steps of the LightGCN whose vectors are ranked",
    )
    parser.add_argument(
        "--epoch", type=int, default=1, choices=(0, 1), help="0 leaves the training epoch out"
    )
    parser.add_argument("--precision", default="fp32", help="of training, as main.py's")
    args = parser.parse_args()
    device = bench.start(args)
    machine = bench.measure_machine(device)
    print(f"evaluation, {args.shape.name}: {bench.machine_line(device, machine)}")
    bench.write_json(
        args,
        "evaluate",
        {
            "machine": vars(machine),
            "figures": [measure(args, recdim, device, machine) for recdim in args.recdim],
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
