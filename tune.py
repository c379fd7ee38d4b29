"""Search for good settings: many short trainings, judged on VALIDATION; the test split is never scored.

    python tune.py --study lgn_demo --trials 40 --dataset demo --model lgn --epochs 80 --patience 4
    python tune.py --study lgn_demo --trials 40 ...           # the same again, beside it or later: goes on with the study
    python tune.py --study NAME --trials 30 --space lr=1e-3..3e-2:log item_knn_k=5,10,20 layer=1..4 --dataset ...
    python tune.py --study lgn_demo --best                    # the best trials and the command line of the best

Flags of main.py that are not searched hold for every trial; docs/tune.md has the rest. A study is one SQLite file. Any
number of processes may work on it at once; each makes trials until the study has --trials finished ones. A trial that
was stopped or killed is queued again, with its parameters, and resumed from its last checkpoint.
"""

import argparse
import contextlib
import dataclasses
import functools
import re
import shlex
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cli import Parser, run_command
from data.feature_files import feature_paths
from data.formats import dataset_folder, interactions_hash
from main import RESUME_HINT, load, make_model, set_up
from models.registry import checked, config_class, find_model
from parse import make_parser as main_parser
from parse import named_model, parse_args, restored_config
from procedure import fit, format_metrics
from training.folder import make_run_folder, provenance
from training.run import start_run
from training.stop import Stop
from utils import Diverged, TrainingError, UserError, lock_file, write_text
from world import RECIPES, Config, seed_everything

try:
    import optuna
    from optuna.trial import TrialState
    from sqlalchemy.exc import SQLAlchemyError
except ImportError:  # an optional extra; parse() says so
    optuna = None

# A study keeps what decides what is computed on, and how trials are judged.
NOT_SEARCHED = ("dataset", "data_format", "use_multimodal", "model", "recipe")
OF_PROCESS = {"path": "runs", "max_minutes": 0.0}  # not of the best command


# ---------------------------------------------------------------- the space


def searchable(cls):
    """{name: field} of the settings of a Config class that can be searched."""
    return {
        field.name: field
        for field in dataclasses.fields(cls)
        if field.metadata["group"] in ("data", "model", "alignment", "training")
        and not field.metadata["free"]
        and field.name not in NOT_SEARCHED
    }


def parse_space(entries, cls):
    """['lr=1e-4..1e-2:log', 'layer=1..4', 'fuse_norm=none,l2'] -> {setting: distribution}. Raises UserError for a bad entry."""
    space, fields = {}, searchable(cls)
    for entry in entries:
        name, _, values = entry.partition("=")
        if not values or name in space:
            raise UserError(
                f"--space {entry}: must be SETTING=LOW..HIGH, SETTING=LOW..HIGH:log or SETTING=a,b,c, each setting once"
            )
        if name not in fields:
            raise UserError(f"--space {entry}: '{name}' is nothing to search; take of {', '.join(fields)}")
        space[name] = distribution(fields[name], values, entry)
    return space


def distribution(field, values, entry):
    """The optuna distribution of 'LOW..HIGH', 'LOW..HIGH:log' or 'a,b,c' for a field of Config."""
    of_type = type(field.default)
    kind = {int: optuna.distributions.IntDistribution, float: optuna.distributions.FloatDistribution}.get(
        of_type
    )
    ends = re.fullmatch(r"(.+?)\.\.(.+?)(:log)?", values)
    try:
        if ends and kind:
            low, high, log = of_type(ends[1]), of_type(ends[2]), bool(ends[3])
            if low < high < float("inf") and (low > 0 or not log):
                return kind(low, high, log=log)
        elif len(words := list(dict.fromkeys(values.split(",")))) > 1:
            return optuna.distributions.CategoricalDistribution([of_type(word) for word in words])
    except ValueError:
        pass
    raise UserError(
        f"--space {entry}: needs two values or more of type {of_type.__name__}, or LOW..HIGH of numbers with LOW below "
        "HIGH, for :log above 0"
    )


def default_space(config, given):
    """The search space of the config's model, without the settings that are given as flags."""
    modalities = list(feature_paths(config, dataset_folder(config)[0]))
    space = parse_space(find_model(config.model).search_space(config, modalities), type(config))
    return {name: values for name, values in space.items() if name not in given}


def check_space(space, base, given):
    """Raise UserError if a setting is both given and searched, or a value is not allowed."""
    for name, values in space.items():
        if name in given:
            raise UserError(f"--{name} is given as a flag and searched; drop it or its --space")
        ends = getattr(values, "choices", None) or (values.low, values.high)
        for value in ends:
            checked(dataclasses.replace(base, **{name: value}))


# ---------------------------------------------------------------- the study


@contextlib.contextmanager
def plain_errors(path, kind):
    """Turn what the database may raise into one line."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = str(error.__cause__ or error).splitlines()[0][:100]
        raise kind(
            f"{path}: the study cannot be read or written ({reason}); mend it or name another with --storage"
        ) from None


def open_study(name, path, settings=None, space=None, data=""):
    """The study `name` of an SQLite file; made with these settings, space and hash of the data unless there is one, which must have them."""
    if settings is None and not path.exists():
        raise UserError(f"{path}: there is no such study; name its file with --storage")
    path.parent.mkdir(parents=True, exist_ok=True)
    with plain_errors(path, UserError), lock_file(f"{path}.lock", wait=True):  # tables are made once
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}}
        )
        names = optuna.get_all_study_names(storage)
        if settings is None and name not in names:
            raise UserError(f"{path}: has no study '{name}'; it has {', '.join(names) or 'none'}")
        study = optuna.create_study(
            storage=storage, study_name=name, direction="maximize", load_if_exists=True
        )
        if settings is not None:
            space = {key: optuna.distributions.distribution_to_json(value) for key, value in space.items()}
            keep_or_compare(study, settings, space, data)
    return study


def keep_or_compare(study, settings, space, data):
    """Note in a new study what it searches; raise UserError if an older one has other settings, another space or other data."""
    stored = study.user_attrs
    if "settings" not in stored:
        study.set_user_attr("space", space)
        study.set_user_attr("data", data)
        study.set_user_attr("settings", settings)  # last: with it the study is whole
        return
    names = [
        field.name
        for field in dataclasses.fields(config_class(settings["model"]))
        if not field.metadata["free"] or field.name == "epochs"
    ]
    changes = [
        f"--{name} {stored['settings'].get(name)} -> {settings[name]}"
        for name in names
        if name not in space and stored["settings"].get(name) != settings[name]
    ]
    changes += [
        f"--space {name}"
        for name in {**space, **stored["space"]}
        if space.get(name) != stored["space"].get(name)
    ]
    changes += ["the interactions"] if stored["data"] != data else []
    if changes:
        raise UserError(
            f"study '{study.study_name}' was begun otherwise ({', '.join(changes)[:200]}); go on as it began, or name another "
            "--study"
        )


@dataclasses.dataclass(frozen=True)
class Search:
    """What a process does: trials of a study until it has `count` finished ones."""

    study: object
    lock: str  # path of a lock, see access()
    base: Config  # the settings of every trial but those that are searched
    space: dict  # {setting: distribution}, in the order in which the sampler draws them
    count: int

    def access(self):
        """Hold the study for the block, which no other process touches then: SQLite alone may refuse one of two writers."""
        return lock_file(self.lock, wait=True)

    def trials(self, *states):
        """The study's trials in these states."""
        return self.study.get_trials(deepcopy=False, states=states)

    def finished(self):
        """How many trials count: those that came to their end, and those that were given up early."""
        return len(self.trials(TrialState.COMPLETE, TrialState.PRUNED))


def at_work(folder):
    """Whether a process holds the lock of a run folder; "" for none."""
    if not folder or not Path(folder).is_dir():
        return False
    try:
        with lock_file(Path(folder) / ".lock"):
            return False
    except UserError:
        return True


def requeue(study, number):
    """Mark a trial as failed, and queue its parameters, its run folder and what it reported once more."""
    trial = study.trials[number]
    study.tell(number, state=TrialState.FAIL)
    if "folder" in trial.user_attrs:  # else it was killed while it was being drawn, and will be drawn again
        study.add_trial(
            optuna.create_trial(
                state=TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs=trial.user_attrs,
                intermediate_values=trial.intermediate_values,
            )
        )


def claim(search, stack):
    """A trial to run: (trial, config, run folder), the folder locked until `stack` closes. None if none is left.

    What is drawn depends on the seed, the number of the trial and those finished before; so one process makes the same
    study in one go and in several.
    """
    with search.access():
        for trial in search.trials(TrialState.RUNNING):
            if not at_work(trial.user_attrs.get("folder")):
                requeue(search.study, trial.number)
        number = len(search.trials(TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING))
        if number >= search.count:
            return None
        seed = int(np.random.SeedSequence([search.base.seed, number]).generate_state(1)[0])
        search.study.sampler = optuna.samplers.TPESampler(seed=seed)
        trial = search.study.ask(search.space)
        trial.set_user_attr("number", trial.user_attrs.get("number", number))
        config, folder = trial_config(search, trial)
        stack.enter_context(lock_file(folder / ".lock", wait=True))  # who queued it again is about to let go
        trial.set_user_attr("folder", str(folder))
    return trial, config, folder


def trial_config(search, trial):
    """(Config, run folder) of a trial: its folder of before if it has come to a checkpoint there, else a new one."""
    name = f"{search.base.name or search.study.study_name}_{trial.user_attrs['number']}"
    config, before = (
        dataclasses.replace(search.base, **trial.params, name=name),
        trial.user_attrs.get("folder"),
    )
    if before and (Path(before) / "last.pt").exists():
        return dataclasses.replace(config, resume=before), Path(before)
    return config, make_run_folder(config)


# ---------------------------------------------------------------- a trial


@functools.lru_cache(maxsize=1)
def load_once(config, device):
    """The Dataset of these settings; the last one is kept."""
    return load(config, device)[0]


def dataset_of(config, device):
    """load_once by the settings that a dataset depends on."""
    names = [field.name for field in dataclasses.fields(Config) if field.metadata["group"] == "data"]
    return load_once(Config(**{name: getattr(config, name) for name in (*names, "model", "topks")}), device)


def tuned(run, log):
    """What result.json says of a trial in place of procedure.finish: validation alone."""
    config, at = run.config, run.progress
    status = "tuned" if at.out_of_patience(config) or at.epoch >= run.epochs else "pruned"
    log.finish(config, at.best["epoch"], valid_best=at.best["metrics"])
    log.say(
        f"{status} after epoch {at.epoch}; best epoch {at.best['epoch']}: {format_metrics(at.best['metrics'], config.topks)}"
    )
    return {
        "status": status,
        "best_epoch": at.best["epoch"],
        "epochs": at.epoch,
        "valid": at.best["metrics"],
        "seconds": at.seconds,
        "seconds_to_best": at.best["seconds"],
        "device": str(run.device),
        "versions": provenance(),
    }


def run_trial(search, trial, config, folder, device, stop):
    """Train a trial, or go on with it. Returns the content of its result.json."""
    with search.access():
        reported = search.study.trials[trial.number].intermediate_values  # by a process that was killed

    def watch(epoch, metrics):
        with search.access():
            if epoch not in reported:
                trial.report(metrics[config.selection_metric], epoch)
            return trial.should_prune()

    dataset = dataset_of(config, device)
    seed_everything(config.seed)
    run = start_run(make_model(config, dataset, device), dataset, config, folder, device)
    if config.resume:
        run.resume()
    return fit(run, stop, watch, tuned, echo=False)


def attempt(search, trial, config, folder, device, stop):
    """Run a trial and tell the study what came of it. Returns a line about it."""
    study, metric = search.study, config.selection_metric
    try:
        result = run_trial(search, trial, config, folder, device, stop)
    except Diverged as error:
        with search.access():
            study.tell(trial, state=TrialState.PRUNED)
            return trial_line(trial, str(error).split(";")[0])
    except BaseException:
        with search.access():
            study.tell(trial, state=TrialState.FAIL)
        raise
    with search.access():
        if result["status"] == "interrupted":
            requeue(study, trial.number)
            return trial_line(trial, f"stopped after epoch {result['epoch']} and queued again")
        value = result["valid"][metric]
        trial.set_user_attr("epoch", result["best_epoch"])
        if result["status"] == "pruned":
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, value)
        return trial_line(
            trial,
            f"{metric} {value:.4f} at epoch {result['best_epoch']}, {result['status']} after {result['epochs']}, "
            f"{result['seconds']:.0f} s",
        )


def trial_line(trial, outcome):
    """'trial   3  ndcg@10 0.0412 at epoch 45, ...  lr 0.0012 ...'"""
    return f"trial {trial.user_attrs['number']:3d}  {outcome}  {show_params(trial.params)}"


def show_params(params):
    """'lr 0.0012  layer 3'"""
    return "  ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in params.items()
    )


def work(search, device, stop):
    """Make trials until the study has as many as are wanted, or stop() is true."""
    with contextlib.closing(tqdm(total=search.count, unit="trial", dynamic_ncols=True)) as bar:
        while show_progress(bar, search) < search.count and not stop():
            with contextlib.ExitStack() as stack:
                claimed = claim(search, stack)
                if claimed:
                    tqdm.write(attempt(search, *claimed, device, stop))
                    sys.stdout.flush()
            if not claimed:
                time.sleep(1)  # other processes are at the last ones; if one dies, its trial is done here


def show_progress(bar, search):
    """Set the bar to the study's finished trials, whoever made them, and return their number."""
    with search.access():
        count, values = search.finished(), [trial.value for trial in search.trials(TrialState.COMPLETE)]
    bar.n = min(count, search.count)
    bar.set_postfix({"best " + search.base.selection_metric: f"{max(values):.4f}"} if values else {})
    return count


# ---------------------------------------------------------------- the end of a study


def best_trials(study):
    """Trials that came to their end, best first."""
    return sorted(
        study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]), key=lambda trial: -trial.value
    )


def config_of(study, trial, model):
    """Config of a trial as a run of its own. model: --model, which a study of a user's own class needs."""
    return restored_config(
        study.user_attrs["settings"], study.study_name, model, **trial.params, **OF_PROCESS
    )


def command_line(config):
    """The main.py command that gives this Config: every setting that differs from the defaults of its recipe."""
    usual = {**{field.name: field.default for field in dataclasses.fields(config)}, **RECIPES[config.recipe]}
    words = ["python", "main.py", "--dataset", config.dataset, "--model", config.model]
    for name, value in vars(config).items():
        if value != usual[name] and name not in ("dataset", "model"):
            words += [f"--{name}", ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return shlex.join(words)


def summary(study, trials, metric, top=10):
    """The best trials as a table, and what the search says of the settings."""
    lines = [f"{'trial':>5} {'valid ' + metric:>16} {'epoch':>6}  settings"]
    lines += [
        f"{trial.user_attrs['number']:>5} {trial.value:>16.4f} {trial.user_attrs['epoch']:>6}  {show_params(trial.params)}"
        for trial in trials[:top]
    ]
    if len(trials) >= 10:  # of fewer it would be noise
        lines.append("importance  " + show_params(optuna.importance.get_param_importances(study)))
    return "\n".join(lines)


def conclude(study, folder, model):
    """Print the best trials and the best command line, and write it to <folder>/<study>.best.sh."""
    trials = best_trials(study)
    if not trials:
        print(f"study '{study.study_name}' has no trial yet that came to its end")
        return
    best, config = trials[0], config_of(study, trials[0], model)
    command = command_line(config)
    path = Path(folder) / f"{study.study_name}.best.sh"
    write_text(
        path,
        f"#!/usr/bin/env bash\n# Trial {best.user_attrs['number']}, on validation the best ({best.value:.4f}) of {len(trials)} that came to "
        f'their end in study {study.study_name}.\n# Flags are added.\n{command} "$@"\n',
    )
    print(summary(study, trials, config.selection_metric), f"{path}:", command, sep="\n")


# ---------------------------------------------------------------- command line


def make_parser():
    """The flags of the search; all others are main.py's."""
    parser = Parser(
        prog="python tune.py",
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python tune.py --study NAME (--trials N | --best) [flags] [flags of main.py]",
    )
    parser.add_argument("--study", required=True, metavar="NAME", help="name of the study")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--trials",
        type=int,
        metavar="N",
        help="finished trials that the study shall have, over all processes",
    )
    what.add_argument(
        "--best",
        action="store_true",
        help="print the best trials and the best command line, and train nothing",
    )
    parser.add_argument(
        "--storage", metavar="FILE", help="SQLite file of the study (default runs/tune/NAME.db)"
    )
    parser.add_argument(
        "--space",
        nargs="+",
        action="extend",
        default=[],
        metavar="SETTING=VALUES",
        help="what to search: SETTING=LOW..HIGH, SETTING=LOW..HIGH:log or SETTING=a,b,c (default: by model, without "
        "settings that are given as flags)",
    )
    parser.add_argument(
        "--pruner",
        choices=("median", "none"),
        default="median",
        help="median: give a trial up that is worse than the median of the others at the same epoch, after five trials "
        "and --warm_up evaluations (default); none: let patience alone stop it",
    )
    parser.add_argument(
        "--warm_up",
        type=int,
        default=3,
        metavar="N",
        help="evaluations before a trial may be given up (default 3)",
    )
    return parser


def parse(argv):
    """Command line -> (search flags, Config of the trials, names of the given settings, notes). Raises UserError."""
    args, rest = make_parser().parse_known_args(argv)
    if optuna is None:
        raise UserError("tune.py needs optuna: pip install -c constraints.txt -e '.[tune]'")
    if not re.fullmatch(r"[\w.-]+", args.study, re.ASCII) or args.study.startswith("."):
        raise UserError(
            f"--study {args.study[:60]}: must be letters, digits, '_', '-' and '.', not at the start; it names files"
        )
    if args.trials is not None and args.trials < 1:
        raise UserError(f"--trials {args.trials}: must be at least 1")
    named = named_model(rest)["model"]
    if args.best and (args.space or [word for word in rest if word not in ("--model", named)]):
        raise UserError(
            f"--best takes its settings from the study; drop {' '.join(rest or ['--space'])[:80]}"
        )
    config, notes = parse_args(rest)
    given = vars(main_parser(type(config)).parse_args(rest)).keys()
    if config.select_on != "valid":
        raise UserError(
            "--select_on test: a search on the test split leaks; drop it, or add --select_on valid to --recipe released"
        )
    for name in ("resume", "checkpoint", "projector"):
        if getattr(config, name):
            raise UserError(
                f"--{name} is not for a search; a study goes on by its own command line, and its best one can have the rest"
            )
    if "path" not in given:
        config = dataclasses.replace(config, path=f"runs/tune/{args.study}")
    return args, config, set(given), notes


def command(args, base, given, notes):
    """What a parsed command line asks for. Returns the exit code."""
    path = Path(args.storage or f"runs/tune/{args.study}.db")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if args.best:
        with plain_errors(path, UserError):
            conclude(open_study(args.study, path), path.parent, base.model)
        return 0
    space = parse_space(args.space, type(base)) or default_space(base, given)
    check_space(space, base, given)
    print(*notes, sep="\n", end="\n" if notes else "")
    device = set_up(base)
    dataset = dataset_of(base, device)  # bad data end here, before there is a study
    study = open_study(args.study, path, base.as_dict(), space, interactions_hash(dataset.interactions))
    study.pruner = (
        optuna.pruners.MedianPruner(n_warmup_steps=args.warm_up * base.eval_every)
        if args.pruner == "median"
        else optuna.pruners.NopPruner()
    )
    space = {
        name: optuna.distributions.json_to_distribution(text)
        for name, text in study.user_attrs["space"].items()
    }
    search = Search(study, f"{path}.lock", base, space, args.trials)
    with plain_errors(path, TrainingError), Stop(base.max_minutes) as stop:
        work(search, device, stop)
        with search.access():
            conclude(study, path.parent, base.model)
            return 0 if search.finished() >= search.count else stop.exit_code


def main(argv=None):
    """Run a command line. Returns the exit code, as main.py does."""
    return run_command(lambda: command(*parse(argv)), io_hint=RESUME_HINT)


if __name__ == "__main__":
    sys.exit(main())
