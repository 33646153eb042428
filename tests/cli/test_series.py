"""From measurements to a run: ``edgeopt import network``, ``carbon``, ``availability`` and ``train``."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from edgeopt.cli.app import app
from edgeopt.series import TimeSeries

RATES = "time;client;rate (kB/s)\n0;a;20\n1;a;1,5\n0;b;30\n1;b;\n"


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rates.csv").write_text(RATES)
    (tmp_path / "grid.csv").write_text("time (h),g/kWh\n0,400\n1,200\n")
    (tmp_path / "charging.csv").write_text("time,client,charging\n0,a,yes\n5,a,no\n0,b,no\n")
    return tmp_path


def test_from_a_table_to_a_run(folder: Path):
    """Rates and carbon intensities become series, and virtual time and grams follow them."""
    done = run("import", "network", folder / "rates.csv", "-o", folder / "rates.npz", "--json")
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["names"], facts["unit"], facts["greatest"]) == (["a", "b"], "bit/s", 240000)
    assert run("import", "carbon", folder / "grid.csv", "-o", folder / "grid.json").exit_code == 0
    base = ("train", "--model", "mlp", "--clients", 4, "--rounds", 2, "--json", "--batch-size", 4, "--local-steps", 1)
    plain, traced = (
        json.loads(run(*base, *more).stdout)
        for more in (
            (),
            ("--set", f"network.rates={folder}/rates.npz", "--set", f"network.carbon={folder}/grid.json"),
        )
    )
    assert traced["seconds"] > 2 * plain["seconds"]
    assert traced["accuracy"] == plain["accuracy"]
    assert traced["carbon_g"] == pytest.approx(traced["energy_j"] * 400 / 3.6e6)
    assert plain["carbon_g"] is None
    assert traced["experiment"]["network"]["rates"] == f"{folder}/rates.npz"


def test_availability(folder: Path):
    """Charging tables too."""
    done = run("import", "availability", folder / "charging.csv", "-o", folder / "when.npz")
    assert done.exit_code == 0, done.stderr
    assert TimeSeries.load(folder / "when.npz", "availability").at(1).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("import", "network", "rates.csv", "-o", "rates.csv"), "rates.csv: expected a name that ends in .json or .npz"),
        (("import", "network", "rates.csv", "-o", "r.npz", "--hold", "-1"), "hold_s = -1.0: expected a positive number"),
        (("import", "network", "grid.csv", "-o", "r.npz", "--value", "g/kWh"), "unit = 'g/kWh': expected one such as bit/s"),
        (("train", "--set", "network.rates=grid.json"), "quantity = 'carbon': expected 'rate'"),
        (
            ("train", "--set", "network.rates=rates.npz", "--algorithm", "multi-server-fedavg", "--planner", "fastest"),
            "rates.npz': expected it with split-training alone",  # long paths are shortened in the middle
        ),
    ],
)  # fmt: skip
def test_bad_words(folder: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str):
    """One line, exit status 2."""
    monkeypatch.chdir(folder)
    run("import", "carbon", "grid.csv", "-o", "grid.json")
    run("import", "network", "rates.csv", "-o", "rates.npz")
    done = run(*words)
    assert done.exit_code == 2
    assert message in done.stderr.replace(f"{folder}/", "")


def test_carbon_of_several_servers(folder: Path):
    """Where servers contend for clients, joules stand for grams as well."""
    assert run("import", "carbon", folder / "grid.csv", "-o", folder / "grid.json").exit_code == 0
    done = run(
        "train", "--model", "mlp", "--clients", 6, "--rounds", 2, "--json", "--algorithm", "multi-server-fedavg",
        "--planner", "fastest", "--set", f"network.carbon={folder}/grid.json", "--set", "network.servers=2",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["carbon_g"] > 0


def test_energy_on_the_command_line(folder: Path):
    """Batteries end a run's picks; who is not available waits, and rounds of nobody last as long as they are said to."""
    assert run("import", "availability", folder / "charging.csv", "-o", folder / "when.json").exit_code == 0
    assert run("import", "carbon", folder / "grid.csv", "-o", folder / "grid.json").exit_code == 0
    done = run(
        "train", "--model", "mlp", "--clients", 4, "--rounds", 4, "--json", "--planner", "energy", "--set", "planner.picks=2",
        "--set", "planner.energy_j=1e-12", "--set", "planner.battery_j=1e-9", "--set", f"network.availability={folder}/when.json",
        "--set", f"network.carbon={folder}/grid.json", "--set", "network.idle_s=2", "--out", folder / "out",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    rows = json.loads((folder / "out" / "history.json").read_text())["rows"]
    assert rows[0]["planned"] == 2  # clients 0 and 2 follow the column that charges
    assert json.loads(done.stdout)["carbon_g"] > 0
    later = [row for row in rows if not row["planned"]]
    assert later
    assert all(row["round_seconds"] == 2 for row in later)
    wrong = run("train", "--planner", "energy", "--clients", 4, "--set", "planner.most_g=1")
    assert wrong.exit_code == 2
    assert "most_g = 1: expected it with carbon and without power" in wrong.stderr
