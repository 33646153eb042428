"""The study of personal models: whose data they are, how they are judged, and that everything runs at a small size."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from edgeopt.evaluation.studies import run_study
from edgeopt.evaluation.studies.flexp_sfl import CUTS, EACH, RENAMED, STUDY, TASKS, ForEach, Setting, cuts, given
from edgeopt.evaluation.studies.learning import MIN_SAMPLES, radio
from edgeopt.training import FedAvg, FlexpSfl, Sgd, train
from tests.one_thread import one_thread  # noqa: F401 - a fixture of all tests here

SMALL = Setting(clients=4, rounds=2, every=1)


@pytest.mark.parametrize("name", TASKS)
def test_tasks(name: str):
    """Clients have a third of the data, at least so many each; nobody has the proxy; the same for the same seed."""
    found, again = (given(name, Setting(), seed=2) for _ in range(2))
    task = found.task
    assert task.num_layers == 4
    assert task.partition == again.task.partition
    assert torch.equal(found.proxy, again.proxy)
    assert task.partition.sizes.min() >= MIN_SAMPLES
    assert 0.3 < task.partition.sizes.sum() / len(task.train) < 0.4
    held = task.train.inputs[torch.from_numpy(np.concatenate(task.partition.indices))].flatten(1)
    assert torch.cdist(found.proxy.flatten(1).double(), held.double()).min() > 0
    assert (found.names is None) == (name != RENAMED)


def test_every_client_has_its_own_names():
    """On digits-renamed: five of each class, called as the client's names say; other clients call it otherwise."""
    found, plain = given(RENAMED, Setting(), seed=2), given("digits-iid", Setting(), seed=2)
    assert found.names is not None
    counts = found.task.partition.label_counts(found.task.train.labels, 10)
    assert (counts == EACH).all()
    for rows, names in zip(found.task.partition.indices, found.names, strict=True):
        own = torch.from_numpy(rows.copy())
        assert sorted(names.tolist()) == list(range(10))
        assert torch.equal(found.task.train.targets[own], names[plain.task.train.targets[own]])
    assert len({tuple(names.tolist()) for names in found.names}) == 10


@pytest.mark.parametrize("name", ["digits-0.5", RENAMED])
def test_models_are_judged_for_each_client(name: str):
    """On the test samples under its own names, weighted like its labels; of one model for all, that model."""
    of = given(name, SMALL, seed=0)
    for inner in (FlexpSfl(Sgd(0.1)), FedAvg(Sgd(0.1))):
        planner = SMALL.plan(cut_layer=cuts(SMALL))
        history = train(of.task, ForEach(inner, of.names), planner, radio(4, 0), rounds=2)
        assert list(history.personal) == [0, 1, 2, 3]
        whole, own = [], []
        for client, weights in history.personal.items():
            right = of.task.predict(weights, of.task.test.inputs).argmax(1).numpy()
            called = of.task.test.labels if of.names is None else of.names[client].numpy()[of.task.test.labels]
            known = of.task.train.labels[of.task.partition.indices[client]]
            shares = np.bincount(known, minlength=10) / len(known)
            whole.append((right == called).mean())
            own.append(sum(shares[k] * (right == called)[called == k].mean() for k in range(10)))
        assert history.rows[-1]["accuracy"] == pytest.approx(np.mean(whole))
        assert history.rows[-1]["personal_accuracy"] == pytest.approx(np.mean(own))


def test_cuts_are_those_of_the_study():
    """Ten clients have them as they are; fewer have some of each; those of a U stay below its middle."""
    assert cuts(Setting()).tolist() == list(CUTS)
    assert cuts(SMALL).tolist() == [1, 1, 2, 3]
    assert cuts(Setting(), most=2).tolist() == [min(cut, 2) for cut in CUTS]


def test_every_variant_runs_and_tables_and_pictures_are_made():
    """One row per variant with both accuracies; only what aligns reports a spread; pictures come from the rows."""
    found = run_study(STUDY, quick=True, tasks=[RENAMED], executor="serial", display=False)
    assert found.variants() == list(STUDY.variants)
    assert all(0 <= row[name] <= 1 for row in found.rows for name in ("accuracy", "personal_accuracy"))
    personal = {"flexp-sfl", "isolated", "hard", *STUDY.ablations}
    assert {row["variant"] for row in found.rows if "spread" in row} == personal
    megabytes = {row["variant"]: row["megabytes"] for row in found.rows}
    assert megabytes["flexp-sfl"] == megabytes["isolated"] == megabytes["hard"] == megabytes["psl"]
    assert megabytes["flexp-sfl"] < megabytes["u-shape"] < megabytes["splitfed-v1"]
    assert len(STUDY.tables(found)["summary"]) == len(STUDY.variants)
    pictures = STUDY.pictures(found)
    assert set(pictures) == {
        f"{RENAMED}-{name}" for name in ("personal-accuracy-round", "personal-accuracy-megabytes", "accuracy-round")
    }
    assert len(pictures[f"{RENAMED}-personal-accuracy-round"].draw().get_lines()) == len(STUDY.variants)
    assert all(claim.decide(found.evidence).verdict == "not shown" for claim in STUDY.claims)  # of one seed
