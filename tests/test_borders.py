"""No module but the border modules renders text for other programs, parses JSON, or opens a file to write."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Modules that talk to other machines, with requests and states of their own.
NETWORK = {"data/download.py", "data/transfer.py", "data/pictures.py", "data/profiles.py", "data/web.py"}
RENDERERS = {
    "json.JSONEncoder",
    "csv.writer",
    "csv.DictWriter",
    "html.escape",
    "json.dump",
    "json.dumps",
    "shlex.join",
    "shlex.quote",
}
PARSERS = {"json.load", "json.loads", "pickle.load", "pickle.loads", "yaml.load", "eval", "exec"}
WRITERS = {"write_text", "write_bytes", "to_csv", "to_json", "tofile", "dump"}
# Logs that grow line by line, a file of features that is filled row by row, and a copy in a temporary folder.
OTHERS = {"training/runlog.py", "data/encoding.py", "data/interaction_checks.py"}


def sources():
    """(path relative to the repository, syntax tree) of every module of the program."""
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith((".", "tests/", "benchmarks/", "build/")):
            yield name, ast.parse(path.read_text("utf-8"))


def called(node):
    """'module.function' or 'function' of a call."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def calls(names, allowed):
    """'file:line call' of every call of these functions outside the allowed files."""
    return [
        f"{file}:{node.lineno} {called(node)}"
        for file, tree in sources()
        if file not in allowed | NETWORK
        for node in ast.walk(tree)
        if called(node) in names
    ]


def test_text_for_other_programs_is_rendered_in_outgoing_alone():
    assert calls(RENDERERS, {"outgoing.py"}) == []
    assert calls(RENDERERS, set())  # the walk finds those of outgoing.py


def test_json_is_parsed_in_incoming_alone():
    assert calls(PARSERS, {"incoming.py"}) == []
    assert calls(PARSERS, set())


def opens_to_write(node):
    """Whether a call opens a file for writing, or writes one by its path."""
    if called(node) in ("open", "io.open", "gzip.open"):
        if node.args and ast.unparse(node.args[0]) == "os.devnull":
            return False
        modes = [*node.args[1:2], *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
        return any(not isinstance(mode, ast.Constant) or set(str(mode.value)) & set("wax+") for mode in modes)
    return called(node).rpartition(".")[0] != "" and called(node).rpartition(".")[2] in WRITERS


def test_files_are_written_through_utils_alone():
    found = {
        f"{file}:{node.lineno} {called(node)}"
        for file, tree in sources()
        if file not in {*OTHERS, *NETWORK}
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and opens_to_write(node)
    }
    own = {place for place in found if place.startswith("utils.py:")}
    assert own  # the walk finds those of utils.py
    assert {place for place in found - own if not place.endswith(" table.to_csv")} == set()
