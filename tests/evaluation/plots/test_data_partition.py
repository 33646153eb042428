"""The picture of a data partition: what is drawn is what the clients hold."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from edgeopt.evaluation.plots.training.data_partition import plot_data_partition

pytest.importorskip("torch")
from edgeopt.data.partition import Partition, dirichlet

LABELS = np.random.default_rng(1).integers(0, 10, 1200)


@pytest.mark.parametrize("clients", [10, 200])
def test_cells_and_bars_are_the_counts(clients: int):
    """Each cell is the number of samples of a label and client, each bar the number of a client."""
    partition = dirichlet(LABELS, clients, 0.3)
    ax = plot_data_partition(partition, LABELS)
    counts = np.array([[int((LABELS[own] == label).sum()) for own in partition.indices] for label in range(10)])
    np.testing.assert_array_equal(ax.images[0].get_array(), counts)
    (above,) = ax.child_axes
    np.testing.assert_array_equal([bar.get_height() for bar in above.patches], [len(own) for own in partition.indices])
    ax.figure.canvas.draw()
    assert above.get_xlim() == ax.get_xlim() == (-0.5, clients - 0.5)


def test_title_says_the_extremes():
    """By hand: three samples of two labels with one client, none with the other."""
    ax = plot_data_partition(Partition(([0, 2, 1], [])), [0, 1, 1])
    assert ax.get_title(loc="left") == "2 clients with 0 to 3 samples of 0 to 2 labels"


def test_given_axes_are_drawn_on():
    """Given axes are used and returned."""
    ax = Figure().add_subplot()
    assert plot_data_partition(dirichlet(LABELS, 5, 1.0), LABELS, ax) is ax


def test_nobody_has_anything():
    """Clients without samples are drawn as such."""
    plot_data_partition(Partition(([], []), num_samples=2), [0, 1]).figure.canvas.draw()
