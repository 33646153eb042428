"""Pictures of fusion: bands, weights, reliability."""

import re

import numpy as np
import pytest

from edgeopt.errors import EdgeOptError
from edgeopt.evaluation.plots import plot_modality_weights, plot_reliability, plot_uncertainty


def test_bands_are_wide_where_uncertainty_is_high():
    """The band of a modality is widest at its highest uncertainty; the line has a gap where the modality is missing."""
    signals = np.zeros((2, 4))
    log_u = np.array([[0.0, 0.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    present = np.array([[1, 0, 1, 1], [1, 1, 1, 1]])
    burst = np.array([[False, False, True, False], [False] * 4])
    ax = plot_uncertainty(["a", "b"], signals, log_u, burst, present)
    lines = [line for line in ax.get_lines() if len(line.get_xdata()) == 4]
    assert np.isnan(np.asarray(lines[1].get_ydata())).tolist() == [False, True, False, False]
    corners = ax.collections[1].get_paths()[0].vertices
    height = {x: np.ptp(corners[corners[:, 0] == x, 1]) for x in range(4)}
    assert height[2] == pytest.approx(0.6)
    assert height[0] == pytest.approx(0.09)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["signal", "uncertainty", "burst"]
    with pytest.raises(EdgeOptError, match=re.escape("log_u: shape [4, 2]: expected [2, 4], of modalities and steps")):
        plot_uncertainty(["a", "b"], signals, log_u.T)


def test_weights():
    """A line for each modality, through its weights."""
    ax = plot_modality_weights({"a": [0.2, 0.7], "b": [0.8, 0.3]})
    assert [list(line.get_ydata()) for line in ax.get_lines()] == [[0.2, 0.7], [0.8, 0.3]]
    with pytest.raises(EdgeOptError, match=r"^weights\['b'\]: shape \[1\]: expected \[2\] as the others$"):
        plot_modality_weights({"a": [0.2, 0.7], "b": [0.8]})
    with pytest.raises(EdgeOptError, match="at least one modality"):
        plot_modality_weights({})


def test_reliability():
    """Bins without answers are left out; the diagonal is there."""
    table = [[0.1, 0.2, 0.5], [np.nan, np.nan, 0.0], [0.9, 0.8, 0.5]]
    ax = plot_reliability({"a": table})
    diagonal, line = ax.get_lines()
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 1]
    assert list(line.get_xdata()) == [0.1, 0.9]
    assert list(line.get_ydata()) == [0.2, 0.8]
    with pytest.raises(EdgeOptError, match=r"^tables\['a'\]: shape \[2, 1\]: expected \[bins, 3\]$"):
        plot_reliability({"a": [[1], [2]]})
    with pytest.raises(EdgeOptError, match="at least one label"):
        plot_reliability({})
