"""The pages: every command parses, every file and link exists, and the tables agree with the code."""

import argparse
import dataclasses
import re
import runpy
import shlex
import sys
from pathlib import Path

import pandas as pd
import pytest

import tune
from models.registry import config_class
from parse import make_parser, parse_args
from scripts.fill_tables import BLOCK, parse_table
from scripts.settings_page import page as settings_page
from world import Config

ROOT = Path(__file__).resolve().parents[1]
TOP_PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES = [*(ROOT / name for name in TOP_PAGES), *sorted((ROOT / "docs").glob("*.md"))]
# The commands in the README of the paper's authors: (dataset, folder, k, epochs, recdim, contrastive weight).
PUBLISHED = [
    ("baby_raw", "baby_raw", 20, 1000, 800, 0.032),
    ("sports_raw", "sports_raw", 30, 1000, 600, 0.005),
    ("electronics", "electronics_raw", 20, 2000, 200, 0.05),
]
PUBLISHED_COMMAND = (
    "python -u main.py --dataset {0:<10} --model lgn_mm --use_multimodal 1 "
    "--text_feat ./data/{1}/text_feat.npy --image_feat ./data/{1}/image_feat.npy "
    "--item_knn_k {2} --item_branch_layers 1 --epochs {3} --recdim {4} --layer 3 --lr 8e-4 "
    '--bpr_batch 4096 --topks "[10]" --fusion oat --contrastive_weight {5}\n'
)
SHELL_OPERATORS = (">", "&", "|", ";", "&&")
NOT_IN_REPOSITORY = {"my_model.py"}


def code_blocks(text, languages=("", "bash")):
    """Contents of the fenced blocks of these languages."""
    found = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [body for language, body in found if language in languages]


def python_commands(text):
    """Words after "python" of every command in the code blocks, without comments, redirections and -u."""
    commands = []
    for block in code_blocks(text):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and Path(words[0]).name == "python":
                end = next((i for i, word in enumerate(words) if word in SHELL_OPERATORS), len(words))
                commands.append(words[2:end] if words[1] == "-u" else words[1:end])
    return commands


COMMANDS = [(path.name, words) for path in PAGES for words in python_commands(path.read_text())]


@pytest.fixture
def own_model(tmp_path, monkeypatch):
    """A working directory with the my_model.py of CONTRIBUTING.md and the presets, as in the repository."""
    (tmp_path / "presets").symlink_to(ROOT / "presets")
    (block,) = code_blocks((ROOT / "CONTRIBUTING.md").read_text(), ["python"])
    (tmp_path / "my_model.py").write_text(block)
    monkeypatch.chdir(tmp_path)


class ParsedError(Exception):
    """Raised in place of running a command whose arguments were accepted."""


def shown(value):
    """Name of a page or a command in the name of a test."""
    return value if isinstance(value, str) else " ".join(value)


def check_training(words):
    """Parse the arguments of main.py; those that need a finished run only as far as possible without it."""
    if "--resume" in words or "--checkpoint" in words:
        model = words[words.index("--model") + 1] if "--model" in words else Config.model
        return make_parser(config_class(model)).parse_args(words)
    return parse_args(words)[0]


def check_search(words):
    """Parse the arguments of tune.py, and those it passes on to main.py."""
    args, rest = tune.make_parser().parse_known_args(words)
    if not args.best:
        settings = {field.name for field in dataclasses.fields(check_training(rest))}
        assert {part.partition("=")[0] for part in args.space} <= settings


def check_tool(words, monkeypatch):
    """Start a tool as its command line does, and stop it when its parser has accepted the arguments."""
    parse = argparse.ArgumentParser.parse_args

    def parse_only(*args, **options):
        parse(*args, **options)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    module = words[0] == "-m"
    target, arguments = (words[1], words[2:]) if module else (ROOT / words[0], words[1:])
    monkeypatch.setattr(sys, "argv", [str(target), *arguments])
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    run = runpy.run_module if module else runpy.run_path
    with pytest.raises(ParsedError):
        run(target, run_name="__main__")


@pytest.mark.usefixtures("own_model")
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("page,words", COMMANDS, ids=shown)
def test_command_of_a_page_parses(page, words, monkeypatch):
    if words[:2] == ["-m", "scripts.settings_page"]:
        assert len(words) == 2  # it has no arguments
    elif words[0] == "main.py":
        check_training(words[1:])
    elif words[0] == "tune.py":
        check_search(words[1:])
    else:
        check_tool(words, monkeypatch)


def test_the_pages_have_commands_of_every_tool():
    tools = {words[1] if words[0] == "-m" else words[0] for _, words in COMMANDS}
    assert {"main.py", "report.py", "recommend.py", "tune.py", "explore.py"} <= tools
    names = ("download", "prepare", "features", "check", "synthetic", "reconstruct")
    assert {f"data.{name}" for name in names} <= tools


def test_wrong_command_of_a_page_is_noticed(monkeypatch):
    text = "```\npython report.py runs --no_such_flag 1    # comment\n```\n"
    (words,) = python_commands(text)
    assert words == ["report.py", "runs", "--no_such_flag", "1"]
    with pytest.raises(SystemExit):
        check_tool(words, monkeypatch)


def test_published_commands_stand_verbatim_and_mean_what_they_say():
    text = (ROOT / "docs/reproduce.md").read_text()
    configs = [parse_args(words[1:])[0] for words in python_commands(text)]
    assert len(configs) == len(PUBLISHED)
    for config, values in zip(configs, PUBLISHED):
        assert PUBLISHED_COMMAND.format(*values) in text
        dataset, folder, k, epochs, recdim, weight = values
        assert (config.dataset, config.text_feat) == (dataset, f"./data/{folder}/text_feat.npy")
        assert (config.item_knn_k, config.epochs, config.recdim) == (k, epochs, recdim)
        assert config.contrastive_weight == weight
        assert (config.model, config.fusion, config.item_branch_layers, config.layer) == (
            "lgn_mm",
            "oat",
            1,
            3,
        )
        assert (config.bpr_batch, config.lr, config.topks) == (4096, 8e-4, (10,))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_files_named_on_a_page_exist(path):
    text = path.read_text()
    folders = "docs|scripts|benchmarks|models|layers|training|exploring|recommending|reporting|tests|data"
    paths = re.findall(rf"(?<![\w./-])((?:{folders})/[\w.-]+\.(?:py|sh|md|csv|png|svg))(?!\w)", text)
    names = re.findall(r"(?<![\w./-])([a-z_]\w*\.(?:py|sh))(?!\w)", text)
    modules = re.findall(r"python -m ([a-z_]+\.[a-z_]+)", text)
    missing = [name for name in paths if not (ROOT / name).is_file()]
    missing += [
        name
        for name in {*names} - NOT_IN_REPOSITORY
        if not any((ROOT / folder / name).is_file() for folder in ("", "scripts"))
    ]
    missing += [name for name in modules if not (ROOT / name.replace(".", "/")).with_suffix(".py").is_file()]
    assert not missing


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_of_a_page_resolve(path):
    text = without_code(path.read_text())
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    broken = []
    for target in targets:
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            broken.append(target)
    assert not broken


def without_code(text):
    """The text without fenced blocks and code spans."""
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(path):
    """Anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_settings_page_is_up_to_date():
    stored = (ROOT / "docs/settings.md").read_text()
    assert stored == settings_page(), "run: python -m scripts.settings_page > docs/settings.md"


def test_settings_page_lists_every_setting_once():
    flags = re.findall(r"^\| `--(\w+)`", settings_page(), re.MULTILINE)
    assert {field.name for field in dataclasses.fields(Config)} <= {*flags}
    assert len(flags) == len({*flags})


def test_defaults_in_the_readme_are_those_of_config():
    rows = re.findall(r"^\| (`--[^|]+) \| ([^|]+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    defaults = {field.name: field.default for field in dataclasses.fields(Config)}
    count = 0
    for flags, values in rows:
        for flag, value in zip(flags.split(", "), values.split(", "), strict=True):
            default = defaults[flag.strip("`-")]
            shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
            assert value == (f"`{shown}`" if shown else "required"), flag
            count += 1
    assert count == 15


def test_headline_results_are_those_of_the_results_page():
    readme, results = (ROOT / "README.md").read_text(), (ROOT / "docs/results.md").read_text()
    table = results.partition("## Table 3")[0]
    rows = re.findall(r"^\| ([\w ]+) \| (\d) \| ([^|]+) \| ([^|]+) \|$", readme, re.MULTILINE)
    assert len(rows) == 10
    for name, seeds, recall, ndcg in rows:
        (line,) = re.findall(rf"^\| {name} \| {seeds} \|.*$", table, re.MULTILINE)
        assert recall in line.split("|")[4] and ndcg in line.split("|")[6]


def test_tables_of_results_agree_with_their_runs():
    """docs/runs/REPORT.csv has every run of a report, all of one commit; its tables have their means."""
    checked = 0
    for path in (ROOT / "docs/runs").glob("*.csv"):
        runs = pd.read_csv(path, dtype={"git commit": str})
        assert runs["git commit"].nunique() == 1 and "uncommitted" not in runs["git commit"][0], path
        for block in (block for page in PAGES for block in BLOCK.finditer(page.read_text())):
            if block["report"] != path.stem or not block["title"].startswith("Test results"):
                continue
            header, *rows = parse_table(block["table"])
            assert sorted(row[0] for row in rows) == sorted({*runs.method}), path
            for row in rows:
                cells = dict(zip(header, row))
                values = runs[runs.method == cells.pop("method")]
                assert int(cells.pop("seeds")) == len(values) == values.seed.nunique()
                for metric, cell in cells.items():
                    column = values[f"test {metric}"]
                    assert re.sub("[*]{2}|</?u>", "", cell) == f"{column.mean():.4f} ± {column.std():.4f}"
                    checked += 1
    assert checked > 50


def test_architecture_is_drawn_without_outside_references():
    drawing = (ROOT / "docs/architecture.svg").read_text()
    assert "<script" not in drawing and "href" not in drawing
    assert {*re.findall(r"https?://[^\"]+", drawing)} == {"http://www.w3.org/2000/svg"}
