"""Random combinations of settings end in a finished run or in one line; benchmarks/sweep.py runs more."""

from benchmarks.sweep import faults, run, sweep

# A seed of its own, so that the tests and the default of the benchmark see different combinations.
SEED, COUNT = 7, 20


def test_combinations_of_settings(tmp_path):
    found = sweep(COUNT, SEED, tmp_path)
    assert [(number, flags, end.said) for number, flags, end in found if end.kind == "DEFECT"] == []
    assert {end.kind for *_, end in found} >= {"finished", "refused"}


def test_a_traceback_and_a_number_that_is_not_finite_are_defects(tmp_path, monkeypatch):
    sweep(0, SEED, tmp_path)
    flags = {"dataset": "small", "data_root": str(tmp_path / "data"), "path": str(tmp_path / "runs")}
    flags |= {"model": "mf", "epochs": "1", "eval_every": "1", "tensorboard": "0", "cuda": "0"}
    assert run(flags).kind == "finished"
    (folder,) = (tmp_path / "runs").iterdir()
    assert faults(folder) == []
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text.replace('"loss": 0.', '"loss": NaN, "was": 0.'))
    assert faults(folder) == ["metrics.jsonl: NaN is no JSON"]
    monkeypatch.setattr("session.load", lambda *_: 1 / 0)
    end = run(flags)
    assert end.kind == "DEFECT" and "ZeroDivisionError" in end.said
